"""What an autoregressive network offers: parameters of every pixel, their distribution, decoding.

Legend: B batch, C channels, H and W height and width, P parameters of one pixel's distribution, U
uniform numbers that drawing one pixel takes, L levels of a channel, ``*S`` any further axes (H and
W, or none for a single pixel).

Pixels come in raster order, row by row from the left, and a pixel's channels belong together: the
network gives the parameters of pixel (i, j) from the pixels before it, and the distribution takes
care of the channels. Pixels are floats in [-1, 1]; level v of n levels is ``2 v / (n - 1) - 1``.
They are never narrower than float32, whatever the network computes in: half precision would merge
levels.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from genlab.networks.base import Network, check_classes


class PixelDistribution(ABC):
    """The distribution of a pixel given its parameters. Subclasses are frozen dataclasses.

    Attributes:
        num_params: P.
        num_uniforms: U.
        num_levels: values that a channel can take.
    """

    num_levels: int

    @property
    @abstractmethod
    def num_channels(self) -> int:
        """C."""

    @property
    @abstractmethod
    def num_params(self) -> int:
        """P."""

    @property
    @abstractmethod
    def num_uniforms(self) -> int:
        """U."""

    @abstractmethod
    def log_prob(
        self, params: Float[Tensor, "B P *S"], pixels: Float[Tensor, "B C *S"]
    ) -> Float[Tensor, " B *S"]:
        """Log-probability of each pixel, all channels together, in nats.

        Args:
            params: what the network says.
            pixels: on the grid of levels, in [-1, 1].
        """

    @abstractmethod
    def level_log_probs(
        self, params: Float[Tensor, "B P *S"], channel: int, before: Float[Tensor, "B c *S"]
    ) -> Float[Tensor, "B L *S"]:
        """Log-probability of each level of a channel, given the channels before it.

        Args:
            params: what the network says.
            channel: which one, from 0.
            before: the channels before it, on the grid of levels, in [-1, 1].
        """

    @abstractmethod
    def sample(
        self,
        params: Float[Tensor, "B P *S"],
        uniforms: Float[Tensor, "B U *S"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "B C *S"]:
        """Draw pixels: a function of parameters and uniform numbers, without randomness of its own.

        Args:
            params: what the network says.
            uniforms: in [0, 1).
            temperature: 1 is the model itself, 0 its most likely choices.

        Returns:
            Pixels on the grid of levels, in [-1, 1], in the dtype of the parameters, at least
            float32.
        """

    @abstractmethod
    def guide(
        self,
        params: Float[Tensor, "B P *S"],
        null_params: Float[Tensor, "B P *S"],
        scale: float,
    ) -> Float[Tensor, "B P *S"]:
        """Move the parameters away from those of the null class.

        Args:
            params: given the class.
            null_params: given the null class.
            scale: 1 leaves ``params`` as they are, more moves further.
        """


class PixelDecoder(ABC):
    """Computes parameters pixel by pixel in raster order, every layer one pixel at a time.

    A run looks like this, with nothing left out and nothing twice::

        decoder = network.decoder(labels, height, width)
        for i in range(height):
            for j in range(width):
                params = decoder.params(i, j)                 # (B, P)
                decoder.put(i, j, distribution.sample(params, uniforms[:, :, i, j]))

    What `params` returns may be overwritten by the next call.
    """

    @abstractmethod
    def params(self, i: int, j: int) -> Float[Tensor, "B P"]:
        """Parameters of pixel (i, j), all pixels before it having been put."""

    @abstractmethod
    def put(self, i: int, j: int, pixel: Float[Tensor, "B C"]) -> None:
        """Settle pixel (i, j), for the pixels after it."""


class AutoregressiveNetwork(Network):
    """Parameters of every pixel's distribution, given the pixels before it and the class.

    Subclasses decorate their constructor with `register_to_config`; among its arguments are
    ``img_resolution``, ``in_channels`` (C) and ``label_dim``.

    Attributes:
        label_dim: number of classes; 0 for an unconditional network.
    """

    label_dim: int

    @property
    @abstractmethod
    def distribution(self) -> PixelDistribution:
        """What the parameters are parameters of."""

    @abstractmethod
    def forward(
        self, pixels: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B P H W"]:
        """Parameters of all pixels at once, for training and likelihoods.

        Args:
            pixels: in [-1, 1], in float32 or wider also where the network is narrower.
            labels: classes, -1 for the null class; None is the null class in the whole batch.

        Raises:
            LabelError: a class is out of range.
        """

    @abstractmethod
    def decoder(
        self,
        labels: Int64[Tensor, " B"],
        height: int,
        width: int,
        dtype: torch.dtype | None = None,
    ) -> PixelDecoder:
        """Begin a batch of images, pixel by pixel.

        Args:
            labels: one for each image, -1 for the null class (or for all, without classes).
            height: of the images.
            width: of the images.
            dtype: to compute in; None is the network's own.
        """

    def initialise(
        self, pixels: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"] | None = None
    ) -> None:
        """Set first weights by data, before training; networks that need none do nothing.

        Args:
            pixels: a batch of training images, the larger the better.
            labels: their classes.
        """

    def embed_labels(
        self, table: nn.Module, labels: Int64[Tensor, " B"] | None
    ) -> Float[Tensor, "#B E"]:
        """Rows of a table of class vectors; zeros for the null class.

        Args:
            table: one row for each class; it is called, not read.
            labels: as `forward` takes them.

        Raises:
            LabelError: a class is out of range.
        """
        device = next(table.parameters()).device
        if labels is None:
            return torch.zeros_like(table(torch.zeros(1, dtype=torch.int64, device=device)))
        check_classes(labels, self.label_dim)
        labels = labels.to(device)
        rows: Tensor = table(labels.clamp(min=0))
        return rows * (labels >= 0).to(rows.dtype)[:, None]

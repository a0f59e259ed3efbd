"""PixelCNN++: two streams of shifted convolutions over three resolutions.

The stream ``u`` sees the rows above a pixel, the stream ``ul`` the pixels to its left as well.
Neither sees the pixel itself: the first convolutions shift by a row or a column, and all others
reach up and to the left only (in ``u`` also to the right).

Legend: B batch, C channels of the image, F filters, P parameters of a pixel's distribution, H and W
height and width.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.networks.as_model import register_to_config
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.networks.base import check_positive
from genlab.networks.kernels.pixelcnnpp_decoder import PixelCNNPPDecoder
from genlab.networks.layers.logistic_mixture import LogisticMixture
from genlab.networks.layers.pixelcnnpp_blocks import (
    DownRightShiftedConv2d,
    DownRightShiftedDeconv2d,
    DownShiftedConv2d,
    DownShiftedDeconv2d,
    GatedResnet,
    Pointwise,
    Streams,
)
from genlab.networks.layers.weight_norm import WeightNorm, normalising
from genlab.networks.layout import ClassTable, Layout, build_layout, paths_of

NUM_LEVELS = 3
SIZE_STEP = 2 ** (NUM_LEVELS - 1)
"""Height and width are multiples of this."""


class PixelCNNPP(AutoregressiveNetwork):
    """Parameters of a discretised mixture of logistics for every pixel.

    Args:
        img_resolution: H = W of samples, a multiple of 4; the network takes any such size.
        in_channels: C, 1 or 3.
        label_dim: number of classes; 0 for an unconditional network.
        num_blocks: in each stream at each level on the way down to low resolution; on the way up
            there is one more, except at the lowest level.
        num_filters: F.
        num_mixtures: components of the mixture.
        dropout: of elements in every block, in training.

    Source: Salimans et al. 2017, arXiv:1701.05517, Figure 2, in the layout of the PyTorch port
    pclucas14/pixel-cnn-pp; the class is added to each block's maps before the gate, as in
    openai/pixel-cnn.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        label_dim: int = 0,
        num_blocks: int = 5,
        num_filters: int = 160,
        num_mixtures: int = 10,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive(
            img_resolution=img_resolution,
            num_blocks=num_blocks,
            num_filters=num_filters,
            num_mixtures=num_mixtures,
        )
        if label_dim < 0:
            raise ConfigError(f"label_dim must be at least 0, got {label_dim}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie between 0 and 1, got {dropout}")
        _check_size(img_resolution, img_resolution)
        self._distribution = LogisticMixture(channels=in_channels, num_mixtures=num_mixtures)
        self.label_dim = label_dim

        def streams(num_blocks: int, skips: tuple[int, int]) -> Streams:
            return Streams(num_blocks, num_filters, skips, label_dim=label_dim, dropout=dropout)

        width, seen = num_filters, in_channels + 1
        self.u_init = DownShiftedConv2d(seen, width, shift=True)
        self.ul_init = nn.ModuleList(
            [
                DownShiftedConv2d(seen, width, (1, 3), shift=True),
                DownRightShiftedConv2d(seen, width, (2, 1), shift=True),
            ]
        )
        self.up_layers = nn.ModuleList(streams(num_blocks, (0, 1)) for _ in range(NUM_LEVELS))
        self.down_layers = nn.ModuleList(
            streams(num_blocks + (i > 0), (1, 2)) for i in range(NUM_LEVELS)
        )
        between = range(NUM_LEVELS - 1)
        self.downsize_u_stream = nn.ModuleList(
            DownShiftedConv2d(width, width, stride=2) for _ in between
        )
        self.downsize_ul_stream = nn.ModuleList(
            DownRightShiftedConv2d(width, width, stride=2) for _ in between
        )
        self.upsize_u_stream = nn.ModuleList(DownShiftedDeconv2d(width) for _ in between)
        self.upsize_ul_stream = nn.ModuleList(DownRightShiftedDeconv2d(width) for _ in between)
        self.nin_out = Pointwise(width, self._distribution.num_params)

    @property
    def distribution(self) -> LogisticMixture:
        """A discretised mixture of logistics."""
        return self._distribution

    def forward(
        self, pixels: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B P H W"]:
        """Parameters of every pixel; see `AutoregressiveNetwork.forward`.

        Raises:
            ConfigError: height or width is no multiple of 4.
        """
        _check_size(*pixels.shape[2:])
        # A channel of ones tells the image from the zeros beyond its border.
        x = F.pad(pixels.to(self.u_init.conv.weight_v), (0, 0, 0, 0, 0, 1), value=1.0)
        us = [self.u_init(x)]
        uls = [self.ul_init[0](x) + self.ul_init[1](x)]
        for level, layers in enumerate(self.up_layers):
            if level:
                us.append(self.downsize_u_stream[level - 1](us[-1]))
                uls.append(self.downsize_ul_stream[level - 1](uls[-1]))
            for u_block, ul_block in _pairs(layers):
                us.append(u_block(us[-1], None, self.class_vector(u_block, labels)))
                uls.append(ul_block(uls[-1], us[-1], self.class_vector(ul_block, labels)))
        u, ul = us.pop(), uls.pop()
        for level, layers in enumerate(self.down_layers):
            if level:
                u = self.upsize_u_stream[level - 1](u)
                ul = self.upsize_ul_stream[level - 1](ul)
            for u_block, ul_block in _pairs(layers):
                u = u_block(u, us.pop(), self.class_vector(u_block, labels))
                joined = torch.cat([u, uls.pop()], 1)
                ul = ul_block(ul, joined, self.class_vector(ul_block, labels))
        return self.nin_out(F.elu(ul))

    def class_vector(
        self, block: nn.Module, labels: Int64[Tensor, " B"] | None
    ) -> Float[Tensor, "#B E"] | None:
        """What the class adds in a block, (B, 2 F); None where the network has no classes."""
        table = block.class_embedding
        return self.embed_labels(table, labels) if isinstance(table, nn.Module) else None

    @override
    def layout(self) -> Layout:
        """Branches end in a gate, not in a layer, so no branch is declared."""
        blocks = paths_of(self, GatedResnet)
        tables = [f"{path}.class_embedding" for path in blocks] if self.label_dim else []
        return build_layout(
            self,
            blocks=blocks,
            tables=[ClassTable(layer=table) for table in tables],
            modules={"last": ["nin_out"]},
            layers=(WeightNorm,),
        )

    @override
    def decoder(
        self,
        labels: Int64[Tensor, " B"],
        height: int,
        width: int,
        dtype: torch.dtype | None = None,
    ) -> PixelCNNPPDecoder:
        _check_size(height, width)
        return PixelCNNPPDecoder(self, labels, height, width, dtype or self.dtype)

    @torch.no_grad()
    def initialise(
        self, pixels: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"] | None = None
    ) -> None:
        """Scale and shift every layer so that its outputs for these images are normalised.

        Dropout is off meanwhile. See `genlab.networks.layers.weight_norm.normalising`.
        """
        training = self.training
        with normalising(self.eval()):
            self(pixels, labels)
        self.train(training)


def _pairs(layers: nn.Module) -> Any:
    """The blocks of both streams side by side."""
    return zip(layers.u_stream, layers.ul_stream, strict=True)  # type: ignore[arg-type]  # ModuleLists


def _check_size(height: int, width: int) -> None:
    if height % SIZE_STEP or width % SIZE_STEP:
        raise ConfigError(
            f"PixelCNN++ halves images twice, so height and width must be multiples of {SIZE_STEP},"
            f" got {height} x {width}; resize or pad the images"
        )

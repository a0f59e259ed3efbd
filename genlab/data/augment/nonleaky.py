"""Non-leaky augmentation: the network is conditioned on it, so that samples show none of it.

Each transformation happens independently with its own probability, and its parameters become
labels that the network is conditioned on; all zero means untouched, and is what sampling uses.
Drawing the parameters is apart from applying them, so the second is a plain function.

Source: Karras et al. 2022 (EDM), arXiv:2206.00364, section 5 and table 6.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from genlab.data.augment.warp import rotation, scaling, translation, warp
from genlab.errors import ConfigError

NUM_LABELS = 9
"""Columns of the augmentation labels: what ``augment_dim`` of a network has to be."""

SCALE_STD = 0.2
"""Standard deviation of log2 of the scale, isotropic and anisotropic."""

TRANSLATE_STD = 0.125
"""Standard deviation of the shift, as a part of the width or height."""

ANISO_ROTATE_PROB = 0.5
"""How often anisotropic scaling acts along a random axis rather than along x."""


@dataclass(frozen=True)
class AugmentDraws:
    """What is done to each image of a batch; all zero (False) leaves it as it is.

    Attributes:
        xflip: mirrored left to right.
        yflip: mirrored top to bottom, after that.
        scale: w; the content grows by 2**(0.2 w).
        angle: the content turns by this angle (radians, anticlockwise as seen).
        aniso: w; the content is stretched by 2**(0.2 w) along an axis and shrunk across it.
        axis: that axis (radians from the horizontal, anticlockwise as seen).
        shift_x: the content moves right by 0.125 x width times this.
        shift_y: it moves down by 0.125 x height times this.
    """

    xflip: Bool[Tensor, " B"]
    yflip: Bool[Tensor, " B"]
    scale: Float[Tensor, " B"]
    angle: Float[Tensor, " B"]
    aniso: Float[Tensor, " B"]
    axis: Float[Tensor, " B"]
    shift_x: Float[Tensor, " B"]
    shift_y: Float[Tensor, " B"]

    @classmethod
    def none(cls, count: int, device: torch.device | str = "cpu") -> "AugmentDraws":
        """Leave ``count`` images as they are."""
        still = torch.zeros(count, device=device)
        return cls(still > 0, still > 0, *[still] * 6)

    def labels(self) -> Float[Tensor, "B 9"]:
        """The parameters as the network gets them, `NUM_LABELS` columns.

        x flip, y flip, scale w, cos(angle) - 1, sin(angle), w cos(axis) and w sin(axis) of the
        anisotropic scaling, shift in x and in y.
        """
        columns = [
            self.xflip,
            self.yflip,
            self.scale,
            self.angle.cos() - 1,
            self.angle.sin(),
            self.aniso * self.axis.cos(),
            self.aniso * self.axis.sin(),
            self.shift_x,
            self.shift_y,
        ]
        return torch.stack([column.float() for column in columns], dim=1)

    def to(self, device: torch.device) -> "AugmentDraws":
        """The same draws on another device."""
        return AugmentDraws(*[getattr(self, f.name).to(device) for f in fields(self)])

    def source_matrix(self, height: int, width: int) -> Float[Tensor, "B 3 3"]:
        """Where the result's places lie in the flipped image; see `genlab.data.augment.warp.warp`.

        The content is scaled, turned, stretched and shifted, in this order; the product below is
        the inverse of that.
        """
        grow = torch.exp2(-SCALE_STD * self.scale)
        stretch = torch.exp2(-SCALE_STD * self.aniso)
        shift = translation(
            -TRANSLATE_STD * width * self.shift_x, -TRANSLATE_STD * height * self.shift_y
        )
        anisotropic = rotation(-self.axis) @ scaling(stretch, 1 / stretch) @ rotation(self.axis)
        return scaling(grow, grow) @ rotation(self.angle) @ anisotropic @ shift


@dataclass(frozen=True, kw_only=True)
class AugmentPipe:
    """Augment batches of images and say what was done.

    The probability of each transformation is ``p`` times its multiplier. The defaults are those of
    EDM's training: mirroring always in play (so half the images are mirrored), the rest with
    probability p. A multiplier of 0 switches one off; its columns of the labels stay 0.

    Attributes:
        p: probability; EDM uses 0.12 for CIFAR-10 and 0.15 for FFHQ and AFHQv2.
        xflip: mirror left to right, with probability 1/2 where applied.
        yflip: mirror top to bottom, with probability 1/2 where applied.
        scale: scale by 2**(0.2 n), n normal.
        rotate_frac: turn by any angle.
        aniso: stretch by 2**(0.2 n) along an axis.
        translate_frac: shift by 0.125 n of the size in x and in y.
    """

    p: float = 0.12
    xflip: float = 1e8
    yflip: float = 1.0
    scale: float = 1.0
    rotate_frac: float = 1.0
    aniso: float = 1.0
    translate_frac: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"the augmentation probability p must lie in 0 ... 1, got {self.p}")
        for f in fields(self):
            value = getattr(self, f.name)
            if not value >= 0:
                raise ConfigError(f"augmentation: {f.name} must be 0 or more, got {value}")

    def __call__(
        self, images: Float[Tensor, "B C H W"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 9"]]:
        """Augment a batch.

        Args:
            images: (B, C, H, W), in [-1, 1].
            generator: where every draw comes from; it may be on another device than the images.

        Returns:
            The images, (B, C, H, W), and the labels, (B, 9).
        """
        return apply(images, self.draw(len(images), generator).to(images.device))

    def draw(self, count: int, generator: torch.Generator) -> AugmentDraws:
        """Draw what is to be done to ``count`` images.

        As many numbers are drawn whatever the settings, so that switching one transformation off
        does not change the others.
        """
        device = generator.device
        chance = torch.rand(7, count, generator=generator, device=device)
        uniform = torch.rand(4, count, generator=generator, device=device)
        normal = torch.randn(4, count, generator=generator, device=device)
        turn = (2 * uniform[2:] - 1) * math.pi
        return AugmentDraws(
            xflip=(uniform[0] < 0.5) & (chance[0] < self.xflip * self.p),
            yflip=(uniform[1] < 0.5) & (chance[1] < self.yflip * self.p),
            scale=normal[0] * (chance[2] < self.scale * self.p),
            angle=turn[0] * (chance[3] < self.rotate_frac * self.p),
            aniso=normal[1] * (chance[4] < self.aniso * self.p),
            axis=turn[1] * (chance[5] < ANISO_ROTATE_PROB),
            shift_x=normal[2] * (chance[6] < self.translate_frac * self.p),
            shift_y=normal[3] * (chance[6] < self.translate_frac * self.p),
        )


def apply(
    images: Float[Tensor, "B C H W"], draws: AugmentDraws
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 9"]]:
    """Do to each image what ``draws`` says, and label it.

    Args:
        images: (B, C, H, W), in [-1, 1].
        draws: one entry for each image.

    Returns:
        The images, (B, C, H, W), and the labels, (B, 9).
    """
    labels = draws.labels()
    images = torch.where(draws.xflip[:, None, None, None], images.flip(3), images)
    images = torch.where(draws.yflip[:, None, None, None], images.flip(2), images)
    # Most images are at most mirrored; resampling would leave them as they are, so it is spared.
    moved = labels[:, 2:].ne(0).any(dim=1).nonzero()[:, 0]
    if len(moved):
        source = draws.source_matrix(*images.shape[2:])[moved]
        images = images.index_copy(0, moved, warp(images[moved], source))
    return images, labels

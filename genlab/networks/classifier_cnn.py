"""A small residual network that classifies images: features for scores, and a judge of classes.

Legend: B batch, C channels of the image, R its height and width, K classes, W the width of the last
level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError
from genlab.networks.base import check_positive, level_resolutions
from genlab.networks.layers import Conv2d, Init, Linear, group_norm

_BEFORE_RELU = Init("kaiming_normal", weight=math.sqrt(2))
_LAST = Init("kaiming_normal", weight=0.0)
_SKIP = Init("kaiming_normal")
_HEAD = Init("kaiming_uniform", weight=1 / math.sqrt(3))

_EPS = 1e-5


@dataclass(frozen=True)
class Embedding:
    """What the network sees before it decides.

    Attributes:
        spatial: features of the middle level, (B, D, h, w).
        pooled: the last features, averaged over the image, (B, W).
    """

    spatial: Float[Tensor, "B D h w"]
    pooled: Float[Tensor, "B W"]


class ClassifierCNN(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """A residual network with pre-activation blocks and group normalisation.

    Group normalisation treats every image by itself: there are no running statistics, so averaged
    weights fit, an image's logits do not depend on its batch, and several processes compute what
    one does.

    Args:
        img_resolution: R, height and width.
        in_channels: C.
        num_classes: K, at least 2.
        patch_size: the image is folded into patches of this size first, each pixel of a patch
            becoming channels; 2 saves the work at full resolution.
        channels: width of each level; between levels height and width are halved.
        num_blocks: residual blocks at each level.
        dropout: of the pooled features, in training.
        class_names: of the logits, kept for those who read them.

    Source: He et al. 2016, arXiv:1603.05027 (pre-activation blocks); Wu and He 2018,
    arXiv:1803.08494 (group normalisation). Departures: blocks begin as the identity (the last
    convolution is 0 at first, Goyal et al. 2017, arXiv:1706.02677, section 5.1), halving is a mean
    of 2x2 pixels before the block, and the stem works on patches.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        num_classes: int,
        patch_size: int = 2,
        channels: Sequence[int] = (48, 96, 192),
        num_blocks: int = 1,
        dropout: float = 0.0,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_positive(
            img_resolution=img_resolution,
            in_channels=in_channels,
            num_classes=num_classes,
            patch_size=patch_size,
            channels=channels,
            num_blocks=num_blocks,
        )
        if num_classes < 2:
            raise ConfigError(f"a classifier needs at least 2 classes, got {num_classes}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie between 0 and 1, got {dropout}")
        if img_resolution % patch_size:
            raise ConfigError(
                f"img_resolution {img_resolution} is no multiple of patch_size {patch_size}; "
                "patch_size=1 fits any"
            )
        level_resolutions(img_resolution // patch_size, len(channels), "img_resolution/patch_size")
        if class_names is not None and len(class_names) != num_classes:
            raise ConfigError(f"got {len(class_names)} class names for {num_classes} classes")
        self.img_resolution, self.in_channels = img_resolution, in_channels
        self.num_classes, self.patch_size = num_classes, patch_size
        self.widths = tuple(channels)
        self.stem = Conv2d(in_channels * patch_size**2, channels[0], 3, init=_SKIP)
        before = (channels[0], *channels)
        self.levels = nn.ModuleList(
            nn.Sequential(*(Block(width if i else entering, width) for i in range(num_blocks)))
            for entering, width in zip(before, channels, strict=False)
        )
        self.norm = group_norm(channels[-1], _EPS)
        self.drop = nn.Dropout(dropout)
        self.head = Linear(channels[-1], num_classes, init=_HEAD)

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """(D, h, w) of `Embedding.spatial`."""
        level = self._middle
        size = self.img_resolution // self.patch_size >> level
        return self.widths[level], size, size

    @property
    def _middle(self) -> int:
        return len(self.levels) // 2

    def embed(self, x: Float[Tensor, "B C R R"]) -> Embedding:
        """Features of images.

        Args:
            x: in [-1, 1].
        """
        h = self.stem(F.pixel_unshuffle(x, self.patch_size))
        spatial = h
        for number, level in enumerate(self.levels):
            h = level(F.avg_pool2d(h, 2) if number else h)
            if number == self._middle:
                spatial = h
        return Embedding(spatial=spatial, pooled=F.relu(self.norm(h)).mean((2, 3)))

    def classify(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B K"]:
        """Logits (without softmax) of pooled features."""
        return self.head(self.drop(pooled))

    def forward(self, x: Float[Tensor, "B C R R"]) -> Float[Tensor, "B K"]:
        """Logits (without softmax).

        Args:
            x: images in [-1, 1].
        """
        return self.classify(self.embed(x).pooled)


class Block(nn.Module):
    """Norm, ReLU, convolution, twice, around a skip that a 1x1 convolution widens if needed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, _EPS)
        self.conv1 = Conv2d(in_channels, out_channels, 3, init=_BEFORE_RELU)
        self.norm2 = group_norm(out_channels, _EPS)
        self.conv2 = Conv2d(out_channels, out_channels, 3, init=_LAST)
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else Conv2d(in_channels, out_channels, 1, init=_SKIP)
        )

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B E h w"]:
        """(B, D, h, w) -> (B, E, h, w)."""
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        return torch.add(self.skip(x), h)

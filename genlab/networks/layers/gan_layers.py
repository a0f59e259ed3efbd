"""What the networks of BigGAN share: batch normalisation, self-attention, first weights.

Legend: B batch, C channels, E conditioning vector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.choices import check_choice
from genlab.errors import ConfigError, LabelError
from genlab.networks.base import Labels
from genlab.networks.layers.class_embedding import mix_rows
from genlab.networks.layers.precision import WideBuffers, wide
from genlab.networks.layers.spectral_norm import Layers, SpectralEmbedding, SpectralNorm
from genlab.networks.layout import (
    LINEAR_LAYERS,
    Branch,
    ClassTable,
    Layout,
    ModulatedNorm,
    Parts,
    Rows,
    buffers_of,
    build_layout,
)

Features = Float[Tensor, "B C H W"]
Conditioning = Float[Tensor, "B E"] | Int64[Tensor, " B"]

MOMENTUM = 0.1
"""Share of the newest batch in running statistics."""

OUTPUT_EPS = 1e-5
"""Of the last batch normalisation of BigGAN's generators: ``bn_eps`` never reaches it."""

Init = Literal["orthogonal", "normal", "xavier"]


def affine(x: Features, scale: Tensor, shift: Tensor) -> Features:
    """``x * scale + shift`` in one pass, with one number for each channel or sample and channel."""
    return torch.addcmul(shift[..., None, None], x, scale[..., None, None])


class Statistics(WideBuffers):
    """Batch normalisation by batch statistics in training, by stored ones in evaluation.

    Stored are running averages: of the unbiased variance, or with ``own`` (the "own" batch norm of
    BigGAN-PyTorch) of the biased one. While ``passes`` counts, training calls add their statistics
    up instead (`genlab.networks.layers.standing_statistics`), and evaluation divides the sums by
    their number. They stay in float32 where a network is in half precision, whose sums would soon
    stand still.

    Args:
        channels: C.
        eps: added to the variance.
        own: which variance is averaged.
    """

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int, *, eps: float, own: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.own = own
        self.passes: int | None = None
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def normalize(self, x: Features, gain: Tensor, bias: Tensor) -> Features:
        """Normalise, then multiply by the gain and add the bias: (C,) or (B, C)."""
        if self.training:
            return affine(self._by_batch(x), gain, bias)
        mean, var = self.stored_mean, self.stored_var
        if self.passes is not None:
            mean, var = mean / self.passes, var / self.passes
        return normalize(x, mean, var, gain, bias, self.eps)

    def _by_batch(self, x: Features) -> Features:
        if not self.own and self.passes is None:
            return F.batch_norm(
                x, self.stored_mean, self.stored_var, None, None, True, MOMENTUM, self.eps
            )
        # With momentum 1 torch's running statistics are those of this batch.
        mean, var = torch.zeros_like(self.stored_mean), torch.zeros_like(self.stored_var)
        normalized = F.batch_norm(x, mean, var, None, None, True, 1.0, self.eps)
        count = x.numel() // x.shape[1]
        var *= (count - 1) / count
        if self.passes is None:
            self.stored_mean.lerp_(mean, MOMENTUM)
            self.stored_var.lerp_(var, MOMENTUM)
        else:
            self.stored_mean += mean
            self.stored_var += var
            self.passes += 1
        return normalized


def normalize(
    x: Features, mean: Tensor, var: Tensor, gain: Tensor, bias: Tensor, eps: float
) -> Features:
    """Batch normalisation with given statistics (C,), folded into one pass over the features.

    Half precision would round scale and shift, and so err by a like amount in all of a channel.
    """
    dtype = wide(x.dtype)
    scale = gain.to(dtype) * torch.rsqrt(var.to(dtype) + eps)
    return affine(x, scale, bias - mean * scale).to(x.dtype)


class BatchNorm(Statistics):
    """Batch normalisation with a learned gain and bias for each channel."""

    def __init__(self, channels: int, *, eps: float, own: bool = False) -> None:
        super().__init__(channels, eps=eps, own=own)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Features) -> Features:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.normalize(x, self.gain, self.bias)


class ConditionalBatchNorm(Statistics):
    """Batch normalisation whose gain and bias come from the sample's conditioning vector.

    Args:
        channels: C.
        make: makes a layer from the conditioning to features of a given width. The gain is 1 + its
            output.
        eps: added to the variance.
        own: see `Statistics`.
    """

    def __init__(
        self, channels: int, make: Callable[[int], nn.Module], *, eps: float, own: bool = False
    ) -> None:
        super().__init__(channels, eps=eps, own=own)
        self.gain = make(channels)
        self.bias = make(channels)
        self.has_tables = isinstance(self.gain, nn.Embedding)

    def forward(self, x: Features, condition: Conditioning) -> Features:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.normalize(x, 1 + self.gain(condition), self.bias(condition))

    def modulated(self, path: str) -> ModulatedNorm | None:
        """How the condition acts on it, standing at ``path``; tables of classes do not modulate."""
        return None if self.has_tables else modulated_by_layers(path, self.channels)


def modulated_by_layers(path: str, channels: int) -> ModulatedNorm:
    """A conditional batch normalisation whose layers ``gain`` and ``bias`` scale and shift it."""
    return ModulatedNorm(
        norm=path,
        scale=Rows(layer=f"{path}.gain", start=0, stop=channels),
        shift=Rows(layer=f"{path}.bias", start=0, stop=channels),
    )


class ResidualBlock(nn.Module):
    """What the residual blocks of BigGAN and BigGAN-deep tell of themselves.

    Attributes:
        convolutions: names of the branch's convolutions, the last one at its end.
        conditional_norms: names of its conditional normalisations.
        out_channels: D.
    """

    convolutions: ClassVar[tuple[str, ...]]
    conditional_norms: ClassVar[tuple[str, ...]] = ()
    out_channels: int

    def parts(self, path: str, block: str) -> Parts:
        """What it adds to its network's `Layout`.

        Args:
            path: where it stands.
            block: the stage that it belongs to.
        """
        branch = Branch(
            block=block,
            kind="convolution",
            layer=f"{path}.{self.convolutions[-1]}",
            width=self.out_channels,
        )
        norms: dict[str, Any] = {
            f"{path}.{name}": self.get_submodule(name) for name in self.conditional_norms
        }
        modulated = [norm.modulated(norm_path) for norm_path, norm in norms.items()]
        return Parts(
            branches=(branch,),
            modulated=tuple(m for m in modulated if m is not None),
            modules={
                "convolution": tuple(f"{path}.{name}" for name in self.convolutions),
                "modulation": tuple(norms),
            },
        )


class SelfAttention(nn.Module):
    """Self-attention of SA-GAN: keys and values are pooled, the branch begins silent.

    Args:
        channels: C; queries and keys have C // 8 channels, values C // 2.
        layers: makes the four 1x1 convolutions, all without bias.

    Source: Zhang et al. 2019, arXiv:1805.08318, as BigGAN runs it; there is no 1 / sqrt(d).
    """

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        self.channels = channels
        if channels < 8:
            raise ConfigError(
                f"self-attention needs at least 8 features, not {channels}; use more channels, or "
                "attend elsewhere"
            )
        self.theta = layers.conv(channels, channels // 8, 1, bias=False)
        self.phi = layers.conv(channels, channels // 8, 1, bias=False)
        self.g = layers.conv(channels, channels // 2, 1, bias=False)
        self.o = layers.conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Features) -> Features:
        """(B, C, H, W) -> (B, C, H, W), H and W even."""
        height, width = x.shape[2:]
        queries = self.theta(x).flatten(2).mT  # (B, H W, C/8)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2)  # (B, C/8, H W / 4)
        values = F.max_pool2d(self.g(x), 2).flatten(2).mT  # (B, H W / 4, C/2)
        weights = (queries @ keys).softmax(-1)
        h = (weights @ values).mT.unflatten(2, (height, width))  # (B, C/2, H, W)
        return torch.addcmul(x, self.gamma, self.o(h))

    def parts(self, path: str, block: str) -> Parts:
        """The parts of this layer for a `Layout`; ``path`` is its name in the network."""
        branch = Branch(block=block, kind="attention", layer=f"{path}.o", width=self.channels)
        return Parts(branches=(branch,), modules={"attention": (path,)})


class Stage(nn.ModuleList):
    """A block (or several), and where it has one the self-attention behind them."""

    def forward(self, x: Features, *condition: Tensor) -> Float[Tensor, "B D h w"]:
        """Run them in turn; only blocks take the conditioning."""
        for module in self:
            x = module(x) if isinstance(module, SelfAttention) else module(x, *condition)
        return x

    def parts(self, path: str) -> list[Parts]:
        """What its modules add to the network's `Layout`, the stage standing at ``path``."""
        return [
            module.parts(f"{path}.{number}", block=path)
            for number, module in enumerate(self)
            if isinstance(module, ResidualBlock | SelfAttention)
        ]


def output_layer(
    channels: int, img_channels: int, layers: Layers, *, own_batch_norm: bool
) -> nn.Sequential:
    """The end of BigGAN's generators: batch normalisation, ReLU, 3x3."""
    return nn.Sequential(
        BatchNorm(channels, eps=OUTPUT_EPS, own=own_batch_norm),
        nn.ReLU(inplace=True),
        layers.conv(channels, img_channels),
    )


def gan_layout(
    network: nn.Module,
    *,
    tables: Sequence[ClassTable],
    last: Sequence[str],
    parts: Mapping[str, Sequence[Parts]] | None = None,
    normalizations: tuple[type[nn.Module], ...] = (Statistics,),
) -> Layout:
    """The layout of a network of BigGAN's kind.

    Args:
        network: the network.
        tables: its class tables.
        last: paths of its output layers.
        parts: of its blocks, by path; None asks its `Stage` modules.
        normalizations: see `build_layout`.
    """
    if parts is None:
        parts = {
            path: stage.parts(path)
            for path, stage in network.named_modules()
            if isinstance(stage, Stage)
        }
    return build_layout(
        network,
        blocks=list(parts),
        parts=[part for stage in parts.values() for part in stage],
        tables=tables,
        statistics=buffers_of(network, Statistics, SpectralNorm),
        modules={"last": last},
        normalizations=normalizations,
        layers=(*LINEAR_LAYERS, SpectralNorm),
    )


def conditional_tables(network: nn.Module) -> list[ClassTable]:
    """The tables of conditional batch normalisations that have a gain and bias for each class."""
    return [
        ClassTable(layer=f"{path}.{name}")
        for path, module in network.named_modules()
        if isinstance(module, ConditionalBatchNorm) and module.has_tables
        for name in ("gain", "bias")
    ]


def projection_table(embed: nn.Module) -> ClassTable:
    """The table ``embed`` of a projection discriminator."""
    vectors = embed.vector_names if isinstance(embed, SpectralEmbedding) else ()
    return ClassTable(layer="embed", vectors=vectors)


def upsample(x: Features) -> Float[Tensor, "B C h w"]:
    """Double height and width by repeating pixels."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def embed_shared(
    table: nn.Module | None, labels: Labels
) -> Float[Tensor, "B E"] | Int64[Tensor, " B"]:
    """Look classes up in the shared embedding or mix its rows; without one, give them back.

    Raises:
        LabelError: rows of class weights are given where no shared embedding could mix them.
    """
    if not labels.is_floating_point():
        return labels if table is None else table(labels.to(next(table.parameters()).device))
    if table is None:
        raise LabelError(
            "this network has a table of classes in every layer and cannot mix classes; give class "
            "indices"
        )
    weight = next(table.parameters())
    return mix_rows(table, labels.to(weight.device, weight.dtype))


def project(
    x: Features, labels: Int64[Tensor, " B"], linear: nn.Module, embed: nn.Module
) -> Float[Tensor, "B 1"]:
    """The projection discriminator's head: linear(h) + <embed(y), h>, h summed over space.

    Source: Miyato and Koyama 2018, arXiv:1802.05637, Eq. 5.
    """
    h = F.relu(x).sum((2, 3))
    return linear(h) + (embed(labels) * h).sum(1, keepdim=True)


@torch.no_grad()
def draw_weights(network: nn.Module, init: Init) -> None:
    """Draw the weights of all convolutions, linear layers and tables; biases keep torch's draw.

    ``normal`` has the standard deviation 0.02.

    Raises:
        ConfigError: there is no such way to draw them.
    """
    draws: dict[str, Any] = {
        "orthogonal": nn.init.orthogonal_,
        "normal": lambda weight: nn.init.normal_(weight, 0, 0.02),
        "xavier": nn.init.xavier_uniform_,
    }
    check_choice("init", init, tuple(draws))
    for module in network.modules():
        drawn = isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding | SpectralNorm)
        if drawn and not module.weight.is_meta:
            draws[init](module.weight)

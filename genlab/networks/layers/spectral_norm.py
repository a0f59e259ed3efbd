"""Spectral normalisation: layers whose weight is divided by its largest singular value, sigma.

sigma is estimated by power iteration from a vector that is kept between calls. Two conventions are
in use, and a file of one cannot be run with the other:

- *power* (BigGAN-PyTorch; the ``Spectral...`` layers): the left vector ``u0`` is kept. Every call
  does one round from it, in evaluation too; training stores the new vector.
- *pair* (torch's former hook, Hugging Face's BigGAN-deep; the ``Paired...`` layers): both vectors
  ``u`` and ``v`` are kept. Evaluation takes them as they are; training renews them first.

In both the gradient flows through sigma by the weight alone. `fold` keeps the divided weights, so
that sampling divides once and not in every call.

Source: Miyato et al. 2018, arXiv:1802.05957, Algorithm 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.networks.base import Network, check_positive
from genlab.networks.layers.precision import wide, without_autocast

Matrix = Float[Tensor, "out rest"]

Plain = nn.Conv2d | nn.Linear | nn.Embedding

S = TypeVar("S", bound="SpectralNorm")
P = TypeVar("P", nn.Conv2d, nn.Linear, nn.Embedding)

EPS = 1e-12
"""Below this the length of a vector counts as this, unless told otherwise."""


class SpectralNorm(nn.Module):
    """What the layers of this file share.

    They are no `nn.Linear` or `nn.Conv2d`: what an adapter adds to the output of such a layer, it
    later adds to its weight, and here the sum would be divided by another sigma. So peft refuses
    them; `remove_spectral_norm` makes plain layers of them.

    Attributes:
        weight: before it is divided.
        bias: as of a plain layer.
        folded: the normalised weight where `fold` has kept it; never saved.
        eps: below this the length of a vector counts as this.
    """

    weight: Tensor
    bias: Tensor | None
    folded: Tensor | None
    eps: float

    _start: Callable[..., None]
    """Draws the kept vectors once the layer stands; takes the options of its convention."""

    def plain(self) -> nn.Module:
        """Torch's own layer with the normalised weight: in evaluation it gives the same."""
        raise NotImplementedError

    def normalized_weight(self) -> Tensor:
        """The weight divided by sigma; in training the kept vectors are renewed."""
        if self.folded is not None and not torch.is_grad_enabled() and self._folded_is_current():
            return self.folded
        return self._normalize()

    def fold(self) -> None:
        """Keep the normalised weight for calls without gradients.

        It is dropped when training begins, and passed over once the weight or a vector has been
        changed in place (``.data`` hides a change from torch: fold again after one). The weight
        itself, and with it what is saved, stays as it is.
        """
        if self.folded is not None and self._folded_is_current():
            return
        if self.training or self.weight.is_inference():  # inference tensors hide their changes
            self.folded = None
            return
        with torch.no_grad():
            folded = self._normalize()
        if self.folded is None or self.folded.shape != folded.shape:
            self.folded = folded
        else:  # in place, because a compiled network holds on to the tensor
            self.folded.copy_(folded)
        self._folded_from = self._versions()

    def train(self: S, mode: bool = True) -> S:
        """Set the mode; training drops what `fold` kept."""
        if mode:
            self.folded = None
        return super().train(mode)

    def _take(self, layer: Plain, options: Mapping[str, Any]) -> None:
        """Take over the parameters of a plain layer, as torch draws them, and start from there."""
        self.weight = layer.weight
        self.bias = None if isinstance(layer, nn.Embedding) else layer.bias
        self._start(**options)

    @torch.no_grad()
    def _give(self, layer: P) -> P:
        """Hand the parameters over to a plain layer, the weight normalised as in evaluation."""
        training = self.training
        weight = self.eval().normalized_weight()
        layer.weight = nn.Parameter(weight.detach().clone(), self.weight.requires_grad)
        if not isinstance(layer, nn.Embedding) and self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        self.train(training)
        return layer.train(training)

    def _keep_vectors(self, eps: float, **vectors: Tensor) -> None:
        self.eps = eps
        for name, vector in vectors.items():
            self.register_buffer(name, vector)
        self.register_buffer("folded", None, persistent=False)
        self._folded_from = ()

    def _vectors(self) -> list[Tensor]:
        raise NotImplementedError

    def _sigma(self, matrix: Matrix) -> Float[Tensor, ""]:
        raise NotImplementedError

    def _normalize(self) -> Tensor:
        # A sigma of 16-bit products would be off by some thousandths, and all features with it.
        dtype = wide(self.weight.dtype)
        with without_autocast(self.weight.device):
            weight = self.weight.to(dtype)
            return (weight / self._sigma(weight.flatten(1))).to(self.weight.dtype)

    def _versions(self) -> tuple[tuple[int, int], ...]:
        return tuple((id(t), t._version) for t in (self.weight, *self._vectors()))

    def _folded_is_current(self) -> bool:
        # A compiler cannot look at versions: whoever compiles folds before each call.
        return torch.compiler.is_compiling() or self._folded_from == self._versions()


class _Power(SpectralNorm):
    """The power convention: buffers ``u0``, ``u1``, ... (1, out) and ``sv0``, ... (1).

    ``sv*`` are the singular values that training saw last; nothing reads them.
    """

    num_itrs: int
    num_svs: int

    def _start(self, *, num_svs: int = 1, num_itrs: int = 1, eps: float = EPS) -> None:
        self.num_svs, self.num_itrs = num_svs, num_itrs
        vectors = {f"u{i}": torch.randn(1, len(self.weight)) for i in range(num_svs)}
        values = {f"sv{i}": torch.ones(1) for i in range(num_svs)}
        self._keep_vectors(eps, **vectors, **values)

    @property
    def vector_names(self) -> tuple[str, ...]:
        """Names of the buffers with the left singular vectors, (1, out)."""
        return tuple(f"u{i}" for i in range(self.num_svs))

    def _vectors(self) -> list[Tensor]:
        return [self.get_buffer(name) for name in self.vector_names]

    def _sigma(self, matrix: Matrix) -> Float[Tensor, ""]:
        if not self.training:
            # Further rounds would start from the same kept vector, further vectors divide nothing.
            return self._round(matrix, self._vectors()[:1])[1][0]
        for _ in range(self.num_itrs):
            vectors, values = self._round(matrix, self._vectors())
            with torch.no_grad():
                for i, (u, value) in enumerate(zip(vectors, values, strict=True)):
                    getattr(self, f"u{i}").copy_(u)
                    getattr(self, f"sv{i}").copy_(value)
        return values[0]

    def _round(self, matrix: Matrix, us: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """One round for each vector: the new ones, and the singular values that they give."""
        left: list[Tensor] = []
        right: list[Tensor] = []
        for u in us:
            with torch.no_grad():
                v = F.normalize(_orthogonal(u.to(matrix.dtype) @ matrix, right), eps=self.eps)
                right.append(v)
                u = F.normalize(_orthogonal(v @ matrix.T, left), eps=self.eps)
                left.append(u)
        pairs = zip(left, right, strict=True)
        return left, [((v @ matrix.T) @ u.T).squeeze() for u, v in pairs]


def _orthogonal(x: Tensor, others: Sequence[Tensor]) -> Tensor:
    """What of ``x`` (1, n) is orthogonal to the others (Gram and Schmidt)."""
    for y in others:
        x = x - (x @ y.T) / (y @ y.T) * y
    return x


class _Pair(SpectralNorm):
    """The pair convention: buffers ``u`` (out) and ``v`` (rest)."""

    u: Tensor
    v: Tensor

    def _start(self, *, eps: float = EPS) -> None:
        out, rest = self.weight.flatten(1).shape
        u, v = (F.normalize(torch.randn(size), dim=0, eps=eps) for size in (out, rest))
        self._keep_vectors(eps, u=u, v=v)

    def _vectors(self) -> list[Tensor]:
        return [self.u, self.v]

    def _sigma(self, matrix: Matrix) -> Float[Tensor, ""]:
        u, v = self.u.to(matrix.dtype), self.v.to(matrix.dtype)
        if self.training:
            with torch.no_grad():
                v = F.normalize(matrix.T @ u, dim=0, eps=self.eps)
                u = F.normalize(matrix @ v, dim=0, eps=self.eps)
                self.u.copy_(u)
                self.v.copy_(v)
        return u @ (matrix @ v)


class _Conv2d(SpectralNorm):
    """A convolution of odd kernel size that keeps height and width."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, bias: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self._take(
            nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias), options
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """(B, C, H, W) -> (B, D, H, W)."""
        weight = self.normalized_weight()
        return F.conv2d(x, weight, self.bias, padding=weight.shape[2] // 2)

    @override
    def plain(self) -> nn.Conv2d:
        out_channels, in_channels, kernel, _ = self.weight.shape
        return self._give(
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                padding=kernel // 2,
                bias=self.bias is not None,
                device="meta",
            )
        )


class _Linear(SpectralNorm):
    """A linear layer."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self._take(nn.Linear(in_features, out_features, bias), options)

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
        """(B, C) -> (B, D)."""
        return F.linear(x, self.normalized_weight(), self.bias)

    @override
    def plain(self) -> nn.Linear:
        out_features, in_features = self.weight.shape
        bias = self.bias is not None
        return self._give(nn.Linear(in_features, out_features, bias, device="meta"))


class SpectralConv2d(_Power, _Conv2d):
    """A convolution of odd kernel size that keeps height and width; the power convention."""


class SpectralLinear(_Power, _Linear):
    """A linear layer; the power convention."""


class SpectralEmbedding(_Power):
    """A table whose rows are the classes; the power convention."""

    def __init__(self, num_embeddings: int, embedding_dim: int, **options: Any) -> None:
        super().__init__()
        self._take(nn.Embedding(num_embeddings, embedding_dim), options)

    def forward(self, labels: Int64[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """(B,) -> (B, D)."""
        return F.embedding(labels, self.normalized_weight())

    @override
    def plain(self) -> nn.Embedding:
        num_embeddings, embedding_dim = self.weight.shape
        return self._give(nn.Embedding(num_embeddings, embedding_dim, device="meta"))


class PairedConv2d(_Pair, _Conv2d):
    """A convolution of odd kernel size that keeps height and width; the pair convention."""


class PairedLinear(_Pair, _Linear):
    """A linear layer; the pair convention."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Makes the layers of a network, normalised in one convention or not at all.

    Attributes:
        norm: ``power``, ``pair`` or ``none``.
        num_svs: singular values that the power convention tracks; only the first one divides.
        num_itrs: its rounds in each training call.
        eps: of the length of vectors.

    Raises:
        ConfigError: a number is not positive.
    """

    norm: Literal["power", "pair", "none"] = "power"
    num_svs: int = 1
    num_itrs: int = 1
    eps: float = EPS

    def __post_init__(self) -> None:
        check_positive(num_svs=self.num_svs, num_itrs=self.num_itrs)

    def conv(
        self, in_channels: int, out_channels: int, kernel: int = 3, *, bias: bool = True
    ) -> nn.Module:
        """A convolution that keeps height and width."""
        if self.norm == "none":
            return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        cls = SpectralConv2d if self.norm == "power" else PairedConv2d
        return cls(in_channels, out_channels, kernel, bias=bias, **self._options())

    def linear(self, in_features: int, out_features: int, *, bias: bool = True) -> nn.Module:
        """A linear layer."""
        if self.norm == "none":
            return nn.Linear(in_features, out_features, bias)
        cls = SpectralLinear if self.norm == "power" else PairedLinear
        return cls(in_features, out_features, bias=bias, **self._options())

    def embedding(self, num_embeddings: int, embedding_dim: int) -> nn.Module:
        """A table of classes; the pair convention has none."""
        if self.norm == "none":
            return nn.Embedding(num_embeddings, embedding_dim)
        assert self.norm == "power"
        return SpectralEmbedding(num_embeddings, embedding_dim, **self._options())

    def _options(self) -> dict[str, Any]:
        if self.norm == "pair":
            return {"eps": self.eps}
        return {"num_svs": self.num_svs, "num_itrs": self.num_itrs, "eps": self.eps}


def fold(network: nn.Module) -> nn.Module:
    """Keep the normalised weights of all layers, for sampling; see `SpectralNorm.fold`."""
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            module.fold()
    return network


def remove_spectral_norm(network: Network) -> None:
    """Put plain layers in place of spectrally normalised ones, with the weights as divided.

    What the network makes in evaluation stays the same, bit for bit, and its config says so; in
    further training weights are free. Adapters that become part of weights need such layers.

    Raises:
        ConfigError: the network cannot be configured without spectral normalisation.
    """
    paths = [path for path, module in network.named_modules() if isinstance(module, SpectralNorm)]
    if paths and "spectral_norm" not in network.config:
        raise ConfigError(
            f"{type(network).__name__} exists with spectral normalisation only, so it cannot be "
            "removed; choose a method that adds nothing to its weights"
        )
    for path in paths:
        layer = network.get_submodule(path)
        assert isinstance(layer, SpectralNorm)
        network.set_submodule(path, layer.plain())
    if paths:
        network.register_to_config(spectral_norm=False)

"""The Inception network that FID is made with, laid out to run twice as fast: same numbers.

Names, shapes and geometry of the layers come from torch-fidelity's definition, which is held
against the TensorFlow graph of 2015-12-05. What is computed differs in order only, so results do in
rounding only (4e-7 relative, float32):

- batch norms are folded into the convolutions before them (in float64);
- 1x1 convolutions that read the same features are one convolution;
- where a maximum is taken right after a ReLU, the ReLU comes second: it is monotone;
- where a 1x1 convolution follows an average, it comes first: both are linear, one over channels and
  one over pixels, and there are fewer channels after it.

ReLU and pooling are PyTorch's own, which let not-a-number through; oneDNN's fused ReLU makes it 0.
"""

from collections.abc import Collection, Mapping

import torch
import torch_fidelity.feature_extractor_inceptionv3 as official
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional as F

Features = Float32[Tensor, "B C H W"]

IMAGE_SIZE = (299, 299)
SPATIAL_CHANNELS = 7
SPATIAL_WIDTH = SPATIAL_CHANNELS * 17 * 17

OUTPUTS = {
    "64": ("Conv2d_2b_3x3", 64),
    "192": ("Conv2d_4a_3x3", 192),
    "spatial": ("Mixed_6d", SPATIAL_WIDTH),
    "768": ("Mixed_6e", 768),
    "2048": ("Mixed_7c", 2048),
    "logits": ("fc", 1008),
}
"""Output -> the layer it is read at, and its width. Numbers are averages over all pixels (after the
maximum pooling that follows a layer), as torch-fidelity names them."""

POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
"""Layers that maximum pooling, 3x3 with stride 2, follows."""


def official_layers() -> nn.ModuleDict:
    """All layers in their order, with torch-fidelity's names and shapes, without numbers."""
    conv = official.BasicConv2d
    with torch.device("meta"):
        return nn.ModuleDict(
            {
                "Conv2d_1a_3x3": conv(3, 32, kernel_size=3, stride=2),
                "Conv2d_2a_3x3": conv(32, 32, kernel_size=3),
                "Conv2d_2b_3x3": conv(32, 64, kernel_size=3, padding=1),
                "Conv2d_3b_1x1": conv(64, 80, kernel_size=1),
                "Conv2d_4a_3x3": conv(80, 192, kernel_size=3),
                "Mixed_5b": official.InceptionA(192, pool_features=32),
                "Mixed_5c": official.InceptionA(256, pool_features=64),
                "Mixed_5d": official.InceptionA(288, pool_features=64),
                "Mixed_6a": official.InceptionB(288),
                "Mixed_6b": official.InceptionC(768, channels_7x7=128),
                "Mixed_6c": official.InceptionC(768, channels_7x7=160),
                "Mixed_6d": official.InceptionC(768, channels_7x7=160),
                "Mixed_6e": official.InceptionC(768, channels_7x7=192),
                "Mixed_7a": official.InceptionD(768),
                "Mixed_7b": official.InceptionE_1(1280),
                "Mixed_7c": official.InceptionE_2(2048),
                "fc": nn.Linear(2048, 1008),
            }
        )


Stage = str | tuple[str, str]
"""One convolution, or two side by side."""

_E = (
    ("branch1x1",),
    ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
    ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
)
BRANCHES: dict[type[nn.Module], tuple[tuple[Stage, ...], ...]] = {
    official.InceptionA: (
        ("branch1x1",),
        ("branch5x5_1", "branch5x5_2"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    ),
    official.InceptionB: (
        ("branch3x3",),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    ),
    official.InceptionC: (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
    ),
    official.InceptionD: (
        ("branch3x3_1", "branch3x3_2"),
        ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"),
    ),
    official.InceptionE_1: _E,
    official.InceptionE_2: _E,
}
"""What stands beside each other in a block, in the order of its output; pooling comes last."""


class InceptionNetwork(nn.Module):
    """The leading layers, as far as an output needs them.

    Args:
        tensors: by torch-fidelity's names; those of further layers are ignored.
        last: the deepest output wanted, a key of `OUTPUTS`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], last: str) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for name, layer in official_layers().items():
            own = {
                key.removeprefix(f"{name}."): value
                for key, value in tensors.items()
                if key.startswith(f"{name}.")
            }
            # num_batches_tracked may be missing: nothing reads it.
            layer.load_state_dict(own, strict=False, assign=True)
            self.layers[name] = _fast(name, layer)
            if name == OUTPUTS[last][0]:
                break
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, x: Features, outputs: Collection[str]) -> dict[str, Float32[Tensor, "B _"]]:
        """Compute outputs, running no layer that none of them needs.

        Args:
            x: images (B, 3, 299, 299), (pixel - 128) / 128.
            outputs: keys of `OUTPUTS`, as deep as this network goes.
        """
        output_names = {OUTPUTS[output][0]: output for output in outputs}
        features = {}
        for name, layer in self.layers.items():
            x = layer(x)
            if name in output_names:
                features[output_names[name]] = _read(name, x)
            if len(features) == len(output_names):
                break
        return features


def _read(layer: str, x: Tensor) -> Tensor:
    if layer == "Mixed_6d":
        # The tensor mixed_6/conv of the graph: the first branch, behind its ReLU. ADM's evaluator
        # takes its first 7 channels, flattened in the order H, W, C.
        return x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
    return x.mean((2, 3)) if x.ndim == 4 else x


def _fast(name: str, layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Linear):
        # Logits without the bias are what the Inception Score of 2016 was made with.
        return _Unbiased(layer)
    if isinstance(layer, official.BasicConv2d):
        return (_PooledConv if name in POOLED else _Conv)([layer])
    return _Block(layer)


class _Unbiased(nn.Module):
    """Average over all pixels, then a linear layer without its bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.mean((2, 3)), self.weight)


class _Conv(nn.Module):
    """Convolution, bias, ReLU.

    Args:
        parts: official layers of one geometry that read the same features; their outputs follow
            each other.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        weights, biases = zip(*map(_fold, parts), strict=True)
        self.weight = nn.Parameter(torch.cat(weights))
        self.bias = nn.Parameter(torch.cat(biases))
        conv: nn.Conv2d = parts[0].conv  # type: ignore[assignment]  # torch-fidelity has no types
        self.stride, self.padding = conv.stride, conv.padding

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution alone."""
        assert not isinstance(self.padding, str)
        return F.conv2d(x, self.weight, bias, self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x, self.bias).relu_()


class _PooledConv(_Conv):
    """The same with maximum pooling behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.linear(x, self.bias), 3, 2).relu_()


class _AveragedConv(_Conv):
    """An average over 3x3 pixels (TensorFlow's: without the padding), then a 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(self.linear(x, None), 3, 1, 1, count_include_pad=False)
        return y.add_(self.bias[:, None, None]).relu_()


class _MaximumConv(_Conv):
    """A maximum over 3x3 pixels, then a 1x1 convolution.

    The last block alone has it. The paper averages there too, but so the graph is.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.max_pool2d(x, 3, 1, 1))


class _Beside(nn.Module):
    """Two convolutions of the same features."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = _Conv([first]), _Conv([second])

    def forward(self, x: Tensor) -> Tensor:
        return _join([self.first(x), self.second(x)])


class _Block(nn.Module):
    """An Inception block: branches beside each other, and one that pools."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = dict(block.named_children())
        branches = BRANCHES[type(block)]
        heads = [layers[str(b[0])] for b in branches if _is_pointwise(layers[str(b[0])])]
        self.heads = _Conv(heads)
        self.widths = [len(head.conv.weight) for head in heads]  # type: ignore[union-attr, arg-type]
        self.direct = [not _is_pointwise(layers[str(branch[0])]) for branch in branches]
        self.branches = nn.ModuleList(
            nn.Sequential(*(_stage(layers, s) for s in (branch if direct else branch[1:])))
            for branch, direct in zip(branches, self.direct, strict=True)
        )
        self.pool: nn.Module = nn.MaxPool2d(3, 2)
        if "branch_pool" in layers:
            last = isinstance(block, official.InceptionE_2)
            self.pool = (_MaximumConv if last else _AveragedConv)([layers["branch_pool"]])

    def forward(self, x: Tensor) -> Tensor:
        heads = iter(self.heads(x).split(self.widths, dim=1))
        parts = [
            branch(x if direct else next(heads))
            for branch, direct in zip(self.branches, self.direct, strict=True)
        ]
        return _join([*parts, self.pool(x)])


def _stage(layers: Mapping[str, nn.Module], stage: Stage) -> nn.Module:
    if isinstance(stage, str):
        return _Conv([layers[stage]])
    return _Beside(layers[stage[0]], layers[stage[1]])


def _is_pointwise(layer: nn.Module) -> bool:
    return layer.conv.kernel_size == (1, 1)  # type: ignore[union-attr]


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate channels into channels_last, which PyTorch's own rule leaves for slices."""
    return torch.cat([part.permute(0, 2, 3, 1) for part in parts], -1).permute(0, 3, 1, 2)


def _fold(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does the work of the batch norm behind it."""
    conv: nn.Conv2d = layer.conv  # type: ignore[assignment]
    norm: nn.BatchNorm2d = layer.bn  # type: ignore[assignment]
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    return weight.float().detach(), bias.float().detach()

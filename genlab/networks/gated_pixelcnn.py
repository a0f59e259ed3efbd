"""Gated PixelCNN: a vertical stack over the rows above, a horizontal one along the row.

Legend: B batch, D channels of a stack, K levels of a pixel, H and W height and width.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.networks.as_model import register_to_config
from genlab.networks.autoregressive import AutoregressiveNetwork, PixelDecoder
from genlab.networks.base import check_positive
from genlab.networks.layers.categorical import Categorical, to_levels
from genlab.networks.layout import Branch, ClassTable, Layout, Parts, build_layout

Stack = Float[Tensor, "B D H W"]


class GatedPixelCNN(AutoregressiveNetwork):
    """Logits for every level of every pixel, of one channel: grey images or codes of a codebook.

    The layout is that of ritheshkumar95/pytorch-vqvae, which embeds levels instead of scaling them
    and knows one channel only; images in colour are PixelCNN++'s.

    Args:
        img_resolution: H = W; convolutions take any size, samples have this one.
        in_channels: 1.
        label_dim: number of classes; 0 for an unconditional network.
        num_levels: K, 256 for 8-bit images, the number of codes for a codebook.
        channels: D.
        num_layers: gated layers, the first included.
        first_kernel: width of the first layer's convolutions, odd and at least 3.
        kernel: of the others, odd and at least 3.
        head_channels: width of the last hidden layer.

    Source: van den Oord et al. 2016, arXiv:1606.05328, section 2 and Figure 2. Departures of that
    layout: the first layer has no residual connection, and the vertical stack enters the horizontal
    one before the class is added to it.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int = 1,
        label_dim: int = 0,
        num_levels: int = 256,
        channels: int = 64,
        num_layers: int = 15,
        first_kernel: int = 7,
        kernel: int = 3,
        head_channels: int = 512,
    ) -> None:
        super().__init__()
        check_positive(
            img_resolution=img_resolution,
            channels=channels,
            num_layers=num_layers,
            head_channels=head_channels,
        )
        _check(in_channels, label_dim, num_levels, (first_kernel, kernel))
        self.label_dim = label_dim
        self.num_levels = num_levels
        self.channels = channels
        self.embedding = nn.Embedding(num_levels, channels)
        self.layers = nn.ModuleList(
            GatedLayer(channels, kernel if i else first_kernel, label_dim, first=i == 0)
            for i in range(num_layers)
        )
        self.output_conv = nn.Sequential(
            nn.Conv2d(channels, head_channels, 1),
            nn.ReLU(),
            nn.Conv2d(head_channels, num_levels, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def distribution(self) -> Categorical:
        """A softmax over the levels."""
        return Categorical(self.num_levels)

    def forward(
        self, pixels: Float[Tensor, "B 1 H W"], labels: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B K H W"]:
        """Logits of every pixel; see `AutoregressiveNetwork.forward`."""
        x = self.embed(pixels[:, 0]).movedim(-1, 1)
        v, h = x, x
        for layer, vector in zip(self.layers, self.class_vectors(labels), strict=True):
            v, h = layer(v, h, vector)
        return self.output_conv(h)

    def embed(self, pixels: Float[Tensor, "*S"]) -> Float[Tensor, "*S D"]:
        """The learned vector of each pixel's level."""
        return self.embedding(to_levels(pixels, self.num_levels))

    def class_vectors(
        self, labels: Int64[Tensor, " B"] | None
    ) -> list[Float[Tensor, "#B E"] | None]:
        """What the class adds to each layer, (B, 2 D); None where the network has no classes."""
        tables = [layer.class_cond_embedding for layer in self.layers]
        return [
            self.embed_labels(table, labels) if isinstance(table, nn.Module) else None
            for table in tables
        ]

    @override
    def layout(self) -> Layout:
        layers = {
            path: layer for path, layer in self.named_modules() if isinstance(layer, GatedLayer)
        }
        tables = [f"{path}.class_cond_embedding" for path in layers] if self.label_dim else []
        return build_layout(
            self,
            blocks=list(layers),
            parts=[layer.parts(path) for path, layer in layers.items()],
            tables=[ClassTable(layer=table) for table in tables],
            modules={"last": ["output_conv"]},
        )

    @override
    def decoder(
        self,
        labels: Int64[Tensor, " B"],
        height: int,
        width: int,
        dtype: torch.dtype | None = None,
    ) -> "GatedDecoder":
        return GatedDecoder(self, labels, height, width, dtype or self.dtype)


class GatedLayer(nn.Module):
    """Both stacks once.

    The vertical stack sees the rows above, up to ``kernel // 2`` of them, the horizontal one the
    pixels to the left, as many. Later layers also see what the layer before made of the very row
    and pixel; the first must not, hence it lacks that row and column of weights.

    Args:
        channels: D.
        kernel: width of the vertical convolution, odd.
        label_dim: number of classes.
        first: whether this is the first layer.
    """

    def __init__(self, channels: int, kernel: int, label_dim: int, *, first: bool) -> None:
        super().__init__()
        self.channels = channels
        self.first, self.reach = first, kernel // 2
        self.window = self.reach if first else self.reach + 1
        self.class_cond_embedding = nn.Embedding(label_dim, 2 * channels) if label_dim else None
        self.vert_stack = nn.Conv2d(channels, 2 * channels, (self.window, kernel))
        self.vert_to_horiz = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horiz_stack = nn.Conv2d(channels, 2 * channels, (1, self.window))
        self.horiz_resid = nn.Conv2d(channels, channels, 1)

    def forward(
        self, v: Stack, h: Stack, class_vector: Float[Tensor, "#B E"] | None
    ) -> tuple[Stack, Stack]:
        """(B, D, H, W) twice -> the same shapes, of the vertical and the horizontal stack."""
        last = -1 if self.first else 0  # the row or column that the first layer must not see
        from_above = self.vert_stack(F.pad(v, (self.reach, self.reach, self.reach, last)))
        from_left = self.horiz_stack(F.pad(h, (self.reach, last, 0, 0)))
        of_class = 0 if class_vector is None else class_vector[:, :, None, None]
        out = self.horiz_resid(gate(self.vert_to_horiz(from_above) + from_left + of_class))
        return gate(from_above + of_class), out if self.first else out + h

    def parts(self, path: str) -> Parts:
        """What this layer adds to its network's `Layout`: the horizontal stack's branch."""
        if self.first:
            return Parts()
        branch = Branch(
            block=path, kind="convolution", layer=f"{path}.horiz_resid", width=self.channels
        )
        inside = ("vert_to_horiz", "horiz_stack", "horiz_resid")
        return Parts(
            branches=(branch,),
            modules={"convolution": tuple(f"{path}.{name}" for name in inside)},
        )


def gate(x: Float[Tensor, "B E *S"]) -> Float[Tensor, "B D *S"]:
    """Gate the first half of the channels, its tanh, by the sigmoid of the second."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class GatedDecoder(PixelDecoder):
    """Decodes pixel by pixel: the vertical stack runs once a row, the horizontal one once a pixel.

    Every layer keeps the few inputs that its convolutions still look at.

    Args:
        network: its weights are read now; later changes are not seen.
        labels: one for each image.
        height: of the images.
        width: of the images.
        dtype: to compute in.
    """

    def __init__(
        self,
        network: GatedPixelCNN,
        labels: Int64[Tensor, " B"],
        height: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        self.network = network
        self.batch, self.width, self.dtype = len(labels), width, dtype
        vectors = network.class_vectors(labels)
        self.layers = [
            _LayerCache(layer, vector, self.batch, width, dtype)
            for layer, vector in zip(network.layers, vectors, strict=True)
            if isinstance(layer, GatedLayer)
        ]
        into, _, out = network.output_conv
        self.head = [_pointwise(into, network.channels, dtype)]
        self.head.append(_pointwise(out, len(self.head[0][1]), dtype))
        self.row = self._empty_row()

    def params(self, i: int, j: int) -> Float[Tensor, "B K"]:
        """Logits of pixel (i, j); the first of a row runs the vertical stack."""
        if j == 0:
            self._begin_row()
        h = None
        for layer in self.layers:
            h = layer.step(j, h)
        assert h is not None
        (weight, bias), (weight_out, bias_out) = self.head
        hidden = torch.addmm(bias, h, weight).relu_()
        return torch.addmm(bias_out, hidden, weight_out)

    def put(self, i: int, j: int, pixel: Float[Tensor, "B 1"]) -> None:
        """Embed the pixel, for the rows below and the pixels to the right."""
        embedded = self.network.embed(pixel[:, 0]).to(self.dtype)
        self.row[:, :, j] = embedded
        self.layers[0].push(embedded)

    def _begin_row(self) -> None:
        """Run the vertical stack; the first layer looks at the row above, so far the newest."""
        v = self.row
        for layer in self.layers:
            v = layer.begin_row(v)
        self.row = self._empty_row()

    def _empty_row(self) -> Float[Tensor, "B D W"]:
        shape = self.batch, self.network.channels, self.width
        return torch.zeros(shape, device=self.network.device, dtype=self.dtype)


class _LayerCache:
    """One layer of the decoder, with the inputs that it looks at.

    Attributes:
        above: rows of the vertical stack's input, padded left and right, the newest last:
            (B, D, window, W + 2 reach).
        left: inputs of the horizontal stack, the newest last: (B, window, D).
        from_above: what the horizontal stack adds for each pixel of the row, (W, B, 2 D).
    """

    def __init__(
        self,
        layer: GatedLayer,
        class_vector: Float[Tensor, "#B E"] | None,
        batch: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        self.first, self.reach, self.window = layer.first, layer.reach, layer.window
        channels = layer.channels
        window = (channels, self.window, 2 * self.reach + 1)
        kernel, _ = self.vertical = _kernel_and_bias(layer.vert_stack, window, dtype)
        self.across = _pointwise(layer.vert_to_horiz, 2 * channels, dtype)
        self.residual = _pointwise(layer.horiz_resid, channels, dtype)
        from_left, offset = _kernel_and_bias(layer.horiz_stack, (channels, 1, self.window), dtype)
        # (2 D, D, 1, window) -> (window * D, 2 D): the order in which `left` lies in memory.
        self.horizontal = from_left[:, :, 0].permute(2, 1, 0).flatten(0, 1)
        # Without classes what they add is 0.
        vector = kernel.new_zeros(1, 1) if class_vector is None else class_vector
        self.class_vector = vector.to(dtype)
        self.constant = self.class_vector + offset
        padded = width + 2 * self.reach
        self.above = kernel.new_zeros(batch, channels, self.window, padded)
        self.left = kernel.new_zeros(batch, self.window, channels)
        self.from_above = self.left

    def begin_row(self, v: Float[Tensor, "B D W"]) -> Float[Tensor, "B D W"]:
        """Take in a row of the vertical stack, give its next one; forget what was to the left."""
        self.above = self.above.roll(-1, 2)
        self.above[:, :, -1, self.reach : -self.reach] = v
        self.left.zero_()
        x = F.conv2d(self.above, *self.vertical)[:, :, 0]
        weight, bias = self.across
        self.from_above = x.permute(2, 0, 1) @ weight + bias + self.constant
        return gate(x + self.class_vector[:, :, None])

    def step(self, j: int, h: Float[Tensor, "B D"] | None) -> Float[Tensor, "B D"]:
        """The horizontal stack at pixel j; the first layer's inputs came by `push`."""
        if h is not None:
            self.push(h)
        x = torch.addmm(self.from_above[j], self.left.flatten(1), self.horizontal)
        weight, bias = self.residual
        out = torch.addmm(bias, gate(x), weight)
        return out if h is None else out.add_(h)

    def push(self, h: Float[Tensor, "B D"]) -> None:
        """Take in the horizontal stack's next input."""
        if self.window > 1:
            self.left[:, :-1] = self.left[:, 1:].clone()
        self.left[:, -1] = h


def _pointwise(
    layer: nn.Module, channels: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "D E"], Float[Tensor, " E"]]:
    """A 1x1 convolution as matrix and bias: x @ weight + bias."""
    kernel, bias = _kernel_and_bias(layer, (channels, 1, 1), dtype)
    return kernel[:, :, 0, 0].t().contiguous(), bias


def _kernel_and_bias(
    layer: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Float[Tensor, "E D h w"], Float[Tensor, " E"]]:
    """What a convolution without padding computes.

    A plain one tells it. Anything else, such as one inside an adapter or with a hook, is asked: by
    a patch of zeros, and by each patch with a single one.

    Args:
        layer: the convolution.
        shape: of the patch that it looks at, (D, h, w).
        dtype: to compute in.
    """
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    if type(layer) is nn.Conv2d and not hooked:
        assert layer.bias is not None
        return layer.weight.to(dtype), layer.bias.to(dtype)
    like = next(layer.parameters())
    ones = torch.eye(math.prod(shape), device=like.device, dtype=like.dtype).unflatten(1, shape)
    outputs = layer(torch.cat([torch.zeros_like(ones[:1]), ones]))[:, :, 0, 0].to(dtype)
    bias = outputs[0]
    return (outputs[1:] - bias).t().unflatten(1, shape), bias


def _check(in_channels: int, label_dim: int, num_levels: int, kernels: Sequence[int]) -> None:
    if in_channels != 1:
        raise ConfigError(
            f"a Gated PixelCNN of this layout models images of one channel, got {in_channels}; "
            "take grey images (data.channels=1), or the network pixelcnn++ for colour"
        )
    if label_dim < 0:
        raise ConfigError(f"label_dim must be at least 0, got {label_dim}")
    if num_levels < 2:
        raise ConfigError(f"num_levels must be at least 2, got {num_levels}")
    if any(kernel < 3 or kernel % 2 == 0 for kernel in kernels):
        raise ConfigError(f"kernels must be odd and at least 3, got {list(kernels)}")

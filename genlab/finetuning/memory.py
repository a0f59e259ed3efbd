"""The memory of a training step, found by running one on the meta device.

There every operation has shapes and no numbers, so a step of the largest network runs in about a
second and allocates nothing. What a step of the real thing would hold is added up as its tensors
come and go: activations that autograd keeps, those that gradient checkpointing makes again,
gradients, copies in lower precision, and what is under way in between.
"""

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # torch documents it, underscore or not
from torch.utils.checkpoint import checkpoint

from genlab.errors import ConfigError
from genlab.generators.autoregressive import bits_per_dimension
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.networks.base import DiffusionNetwork
from genlab.networks.gan_base import GeneratorNetwork
from genlab.registry import class_path

META = torch.device("meta")

COMPUTE = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Settings of ``mixed_precision`` -> what matrices are multiplied in; None is the weights' type."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The memory of a step at its peak, beside weights, optimizer and averages.

    Attributes:
        activations: bytes of all that is no gradient of a parameter.
        gradients: bytes of the parameters' gradients that are there by then.
    """

    activations: int
    gradients: int


def step_memory(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    batch_size: int,
    *,
    rounds: int = 1,
    gradient_checkpointing: bool = False,
    mixed_precision: str = "no",
) -> StepMemory:
    """Run a step of a network on the meta device and measure its peak.

    Attention counts as the fused kernels that GPUs and CPUs have for it: no matrix of all pairs of
    tokens is kept. The loss is a plain squared error (autoregressive networks: their likelihood),
    and of a GAN the generator alone is run. What a library takes for itself (workspaces, a GPU's
    context, fragments of its allocator) is not in it.

    Args:
        network: prepared by a method, on the meta device. It is put into training, and its
            gradients are lost.
        image_shape: (C, H, W) of what it works on.
        batch_size: images at a time.
        rounds: micro-batches of a step; from the second on there are gradients throughout.
        gradient_checkpointing: as in training.
        mixed_precision: as in training: "no", "bf16" or "fp16".

    Raises:
        ConfigError: the network is of no family that GenLab trains, or has no checkpointing.
    """
    network.train()
    mode = _AsTrained(COMPUTE[mixed_precision])
    if gradient_checkpointing:
        _checkpoint(network, mode)
    tracker = _Tracker([*network.parameters(), *network.buffers()])
    handles = [
        parameter.register_post_accumulate_grad_hook(tracker.note_gradient)
        for parameter in network.parameters()
        if parameter.requires_grad
    ]
    try:
        with tracker:
            for _ in range(rounds):
                with mode:
                    loss = _loss(network, image_shape, batch_size)
                torch.autograd.backward(loss)
                del loss
    finally:
        for handle in handles:
            handle.remove()
        network.zero_grad(set_to_none=True)
    return StepMemory(
        activations=tracker.peak - tracker.gradients_at_peak, gradients=tracker.gradients_at_peak
    )


def _checkpoint(network: Any, mode: TorchFunctionMode) -> None:
    def run(block: nn.Module, *args: Any) -> Any:
        # What is computed again in the backward pass is computed alike.
        contexts = nullcontext(), mode
        return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: contexts)

    try:
        network.enable_gradient_checkpointing(run)
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"gradient_checkpointing: {type(network).__name__} has none; set it to false"
        ) from error


def _loss(network: nn.Module, image_shape: tuple[int, int, int], batch_size: int) -> Tensor:
    images = torch.empty((batch_size, *image_shape), device=META)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=META)
    if isinstance(network, DiffusionNetwork):
        levels = torch.empty(batch_size, device=META)
        prediction = network(images, levels, network.embed_labels(labels))
        error: Tensor = prediction[:, : image_shape[0]].float() - images
        return error.square().sum()
    if isinstance(network, AutoregressiveNetwork):
        return bits_per_dimension(network, network(images, labels), images).sum()
    if isinstance(network, GeneratorNetwork):
        latents = torch.empty(batch_size, network.dim_z, device=META)
        return network(latents, network.embed_labels(labels)).float().sum()
    raise ConfigError(
        f"the memory of {class_path(type(network))} cannot be estimated: GenLab does not train it"
    )


class _Tracker(TorchDispatchMode):
    """Adds up the bytes of meta tensors that are alive.

    Args:
        standing: tensors that are there anyway; they do not count.

    Attributes:
        peak: the most bytes there were.
        gradients_at_peak: how many of them were gradients of parameters.
    """

    def __init__(self, standing: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in standing:
            self._known.add(tensor.untyped_storage())
        self._gradients: dict[int, int] = {}
        self._alive = self.peak = self.gradients_at_peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.device == META:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        self._alive += size
        weakref.finalize(storage, self._forget, size)
        if self._alive > self.peak:
            self.peak, self.gradients_at_peak = self._alive, sum(self._gradients.values())

    def _forget(self, size: int) -> None:
        self._alive -= size

    def note_gradient(self, parameter: Tensor) -> None:
        """A parameter has its gradient, or more of it."""
        self._gradients[id(parameter)] = parameter.numel() * parameter.element_size()


class _AsTrained(TorchFunctionMode):
    """Lets meta tensors compute as in training: attention fused, and mixed precision.

    Args:
        dtype: what matrices are multiplied in, as autocast does it; None leaves it.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._dtype is not None and func in _IN_LOW_PRECISION:
            args, kwargs = _cast(args, self._dtype), _cast(kwargs, self._dtype)
        elif self._dtype is not None and func in _IN_FLOAT32:
            args, kwargs = _cast(args, torch.float32), _cast(kwargs, torch.float32)
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **kwargs)


_IN_LOW_PRECISION = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose2d,
    F.scaled_dot_product_attention,
    torch.addmm,
    torch.baddbmm,
    torch.bmm,
    torch.einsum,
    torch.matmul,
    torch.mm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
}
"""What autocast computes in the lower precision, of the functions that networks call."""

_IN_FLOAT32 = {
    F.group_norm,
    F.layer_norm,
    F.log_softmax,
    F.softmax,
    torch.log_softmax,
    torch.softmax,
    Tensor.log_softmax,
    Tensor.softmax,
}
"""What autocast computes in float32."""


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_cast(part, dtype) for part in value)
    if isinstance(value, dict):
        return {key: _cast(part, dtype) for key, part in value.items()}
    return value


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps: queries, keys, values, the result, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        rows = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])

"""Golden case of Gated PixelCNN: logits, both stacks of every layer, likelihood, gradients."""

from typing import Any

import torch
from golden_cases import Case, MismatchError, Run, compare
from torch import Tensor
from torch.nn import functional as F

import genlab
from genlab.generators import AutoregressiveGenerator
from genlab.networks.layers.categorical import from_levels

MASKED = {"layers.0.vert_stack.weight": 2, "layers.0.horiz_stack.weight": 3}
"""Officially these weights hold a last row or column that every forward pass zeroes in place, and
that still gets a gradient; ours do not hold it. Name -> its axis."""


def gated_pixelcnn(run: Run) -> None:
    case = run.case
    tensors = dict(case.tensors)
    codes, labels = tensors.pop("x"), tensors.pop("label")
    generator, pixels = _generator(case, codes)
    network: Any = generator.network
    results: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(_keep(results, f"layer.{number}"))
        for number, layer in enumerate(network.layers)
    ]
    logits = network(pixels, labels)
    for hook in hooks:
        hook.remove()
    F.cross_entropy(logits, codes).backward()
    results |= {f"grad.{name}": p.grad for name, p in network.named_parameters()}
    results["logits"] = logits
    results["nll_per_position"] = -network.distribution.log_prob(logits.double(), pixels)
    results["dependence"] = _dependence(network, pixels[:1], labels[:1], _changed_pixel(case))
    for name, reference in tensors.items():
        axis = MASKED.get(name.removeprefix("grad."))
        if axis is not None:
            reference = reference.narrow(axis, 0, reference.shape[axis] - 1)
        compare(f"{run.id}: {name}", results[name], reference)
    _check_values(case, generator, pixels, labels)


def _generator(case: Case, codes: Tensor) -> tuple[AutoregressiveGenerator, Tensor]:
    made = case.meta["constructor"]
    config = {**made, "shape": list(codes.shape[1:])}
    generator = genlab.convert(case.folder / "weights.safetensors", config=config)
    assert isinstance(generator, AutoregressiveGenerator)
    generator.network.zero_grad()
    return generator, from_levels(codes[:, None], made["input_dim"])


def _keep(results: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
        results[f"{name}.v"], results[f"{name}.h"] = output

    return hook


def _changed_pixel(case: Case) -> tuple[int, int]:
    """Row and column of the pixel that the official call changed."""
    row, column = case.meta.get("changed_pixel", (4, 4))
    return row, column


@torch.no_grad()
def _dependence(network: Any, pixels: Tensor, labels: Tensor, pixel: tuple[int, int]) -> Tensor:
    """Where the logits change when one pixel does."""
    changed = pixels.clone()
    at = (..., *pixel)
    changed[at] = torch.where(pixels[at] < 0, 1.0, -1.0)
    differs = network(pixels, labels) != network(changed, labels)
    return differs.any(1)[0].to(torch.uint8)


def _check_values(
    case: Case, generator: AutoregressiveGenerator, pixels: Tensor, labels: Tensor
) -> None:
    told = dict(case.meta["values"])
    bits = float(generator.bits_per_dimension(pixels, labels.tolist()).double().mean())
    nats = bits * float(torch.tensor(2.0, dtype=torch.float64).log())
    for ours, theirs in {
        bits: told.pop("bits_per_position"),
        nats: told.pop("mean_cross_entropy_nats"),
    }.items():
        if abs(ours - theirs) > 1e-6 * theirs:  # a sum in float32
            raise MismatchError(f"{case.name}: {ours} where officially {theirs}")
    zeroed = told.pop("entries_zeroed_by_forward")
    if sorted(zeroed) != sorted(MASKED) or told:
        raise MismatchError(f"{case.name}: this check does not know {zeroed}, {sorted(told)}")

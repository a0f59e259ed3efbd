"""Golden cases of PixelCNN++: the network, the discretised mixture of logistics, drawing pixels.

A case that tells a constructor is a network with its weights; the others are of the mixture alone.
"""

import math
import re
from dataclasses import replace
from typing import Any

import torch
from golden_cases import KERNEL_NOISE, Case, MismatchError, Run, compare
from torch import Tensor

import genlab
from genlab.generators import AutoregressiveGenerator
from genlab.networks.layers.logistic_mixture import LogisticMixture
from genlab.samplers.autoregressive.base import DECODERS, Canvas, PixelModel

FLOAT64 = 1e-9
"""The tolerance that came with the float64 cases, relative."""

FLOAT32_SUM = 1e-5
"""How far the official sum of an image in float32 may be from its own pixels in float64: it is off
by 2e-6 in places."""


def pixelcnnpp(run: Run) -> None:
    if "constructor" in run.case.meta:
        _network(run)
    else:
        _mixture(run)


def _mixture(run: Run) -> None:
    case = run.case
    tensors, call = dict(case.tensors), case.meta["call"]
    mixture = LogisticMixture(channels=call["channels"], num_mixtures=call["nr_mix"])
    pixels = tensors.pop("x_uint8").double() / 127.5 - 1
    rounding = (pixels - tensors["x"]).abs().max()
    _expect(case, "error of x, which is rounded to float32,", rounding, 0.0, 1e-7)
    params = tensors.pop("params")
    values = dict(case.meta["values"])
    for name in list(values):
        x, told = tensors.pop(name), dict(values.pop(name))
        leaf = params.clone().requires_grad_()
        nats = -mixture.log_prob(leaf, x)
        (gradient,) = torch.autograd.grad(nats.sum(), leaf)
        for what, ours in {"nats_per_pixel": nats.detach(), "grad_params": gradient}.items():
            theirs = tensors.pop(f"{name}.{what}")
            error = (ours - theirs).norm() / theirs.norm()
            _expect(case, f"error of {name}.{what}", error, 0.0, FLOAT64)
        single = -mixture.log_prob(params.float(), x.float()).sum()
        _expect(case, name, nats.sum(), told.pop("loss_nats_float64"), FLOAT64)
        _expect(case, f"{name} in float32", single, told.pop("loss_nats_float32"), 1e-6)
        bits = nats.sum() / (x.numel() * math.log(2))
        _expect(case, f"bits/dim of {name}", bits, told.pop("bits_per_dim"), FLOAT64)
        _expect_empty(case, told)
    drawn = replace(mixture, rounded=False).sample(params.float(), _uniforms(tensors, "sample"))
    compare(f"{run.id}: sample.out", drawn, tensors.pop("sample.out"))
    _expect_empty(case, tensors)


def _network(run: Run) -> None:
    case = run.case
    tensors = dict(case.tensors)
    made = case.meta["constructor"]
    generator = _generator(case, [made["input_channels"], 8, 8])
    network: Any = generator.network
    x = tensors.pop("x")
    compare(f"{run.id}: x", tensors.pop("x_uint8") / 127.5 - 1, x)
    params = network(x)
    results: dict[str, Tensor] = {
        "params": params,
        "params_sample_true": network(x[:1]),
        "nats_per_pixel": -network.distribution.log_prob(params.double(), x.double()),
    }
    single, gradient = _single(network, tensors["params"], x)
    params.backward(gradient)
    results["causal.grad_x"] = _causal_gradient(case, network, x[:1], tensors)
    # Officially the gradients of that sum were added to those of the likelihood.
    results |= {f"grad.{name}": parameter.grad for name, parameter in network.named_parameters()}
    mixture = replace(network.distribution, rounded=False)
    results["sample.out"] = mixture.sample(params, _uniforms(tensors, "sample"))
    uniforms, images = _uniforms(tensors, "ar"), tensors.pop("ar.out")
    for name in tensors:
        noise = _gradient_noise(case) if name.startswith("grad.") else 0.0
        compare(f"{run.id}: {name}", results[name], tensors[name], kernel_noise=noise)
    for decoder in DECODERS:
        drawn = _decode(network, decoder, uniforms).float()
        compare(f"{run.id}: ar.out ({decoder})", drawn, images)
    _values(case, x, results["nats_per_pixel"], single)


def _single(network: Any, params: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The nats in float32 and their gradient, both at the official parameters.

    Differences of sigmoids cancel to a few digits, and what is left of them changes with the last
    bit of the parameters, so with the processor. At parameters of one's own the nats are 2e-6 and
    the gradients of the weights 2e-4 from the official ones on some processors, no farther from
    those in float64 than these are.
    """
    leaf = params.clone().requires_grad_()
    nats = -network.distribution.log_prob(leaf, x).sum()
    nats.backward()
    assert leaf.grad is not None
    return nats.detach(), leaf.grad


def _gradient_noise(case: Case) -> float:
    """Of the official float32 gradients, which are as far as 4e-4 from gradients in float64.

    The tolerance that came with them is 1e-4; ours keep to 3e-6.
    """
    return float(case.meta["suggested_tolerance"]["rtol"]) / KERNEL_NOISE


def _generator(case: Case, obs: list[int]) -> AutoregressiveGenerator:
    config = {**case.meta["constructor"], "obs": obs}
    generator = genlab.convert(case.folder / "weights.safetensors", config=config)
    assert isinstance(generator, AutoregressiveGenerator)
    generator.network.zero_grad()
    return generator


def _causal_gradient(case: Case, network: Any, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    about = case.meta["files"]["io.safetensors"]["causal.cotangent"]["what"]
    found = re.search(r"at pixel \((\d+),(\d+)\)", about)
    if found is None:
        raise MismatchError(f"{case.name}: at which pixel is the cotangent?")
    i, j = map(int, found.groups())
    leaf = x.clone().requires_grad_()
    (network(leaf)[0, :, i, j] * tensors.pop("causal.cotangent")).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@torch.no_grad()
def _decode(network: Any, decoder: str, uniforms: Tensor) -> Tensor:
    """Draw as officially, without rounding to the levels of 8-bit images."""
    model = PixelModel(network, torch.full((len(uniforms),), -1))
    model.distribution = replace(network.distribution, rounded=False)
    *_, last = DECODERS.build(decoder)(model, Canvas(uniforms=uniforms))
    return last.x


def _uniforms(tensors: dict[str, Tensor], name: str) -> Tensor:
    """The recorded uniform numbers in our order: of the components, then of the channels."""
    both = [tensors.pop(f"{name}.{which}") for which in ("u_mix", "u_logistic")]
    return torch.cat(both, -1).movedim(-1, 1)


def _values(case: Case, x: Tensor, exact: Tensor, single: Tensor) -> None:
    """The sums, given ours for each pixel in float64, and the sum in float32."""
    told = dict(case.meta["values"])
    if told.pop("dims") != x.numel():
        raise MismatchError(f"{case.name}: another number of dimensions")
    _expect(case, "nats", single, told.pop("loss_nats_float32"), 1e-6)
    # Of parameters in float32, like those that ours is computed from.
    _expect(case, "nats", exact.sum(), told.pop("loss_nats_float64_same_params"), 1e-6)
    expect_images(case, exact, told.pop("loss_nats_per_image_float32"))
    bits = told.pop("bits_per_dim")
    _expect(case, "bits/dim", exact.sum() / (x.numel() * math.log(2)), bits, 1e-6)
    if x.shape[2] == x.shape[3]:
        square = _generator(case, list(x.shape[1:]))
        _expect(case, "bits/dim", square.bits_per_dimension(x).mean(), bits, 1e-6)
    _expect_empty(case, told)


def expect_images(case: Case, exact: Tensor, rounded: list[float]) -> None:
    """The nats of each image, through those of its pixels in float64, and officially in float32."""
    official = case.tensors["nats_per_pixel"].flatten(1).sum(1)
    for ours, theirs, sum_ in zip(exact.flatten(1).sum(1), official, rounded, strict=True):
        _expect(case, "nats of an image", ours, float(theirs), 1e-6)
        _expect(case, "nats of an image, official sum,", theirs, sum_, FLOAT32_SUM)


def _expect(case: Case, what: str, ours: Tensor, theirs: float, tolerance: float) -> None:
    """Relative, or absolute where nothing is expected."""
    if not abs(float(ours.detach()) - theirs) <= tolerance * (abs(theirs) or 1):
        raise MismatchError(f"{case.name}: {what} is {float(ours)}, officially {theirs}")


def _expect_empty(case: Case, rest: dict[str, Any]) -> None:
    if rest:
        raise MismatchError(f"{case.name}: this check does not know {', '.join(sorted(rest))}")

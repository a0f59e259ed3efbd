"""Time one guided step of GenLab's DiT against diffusers' and the official code, interleaved.

    python benchmarks/dit.py [--peer path/to/DiT] [--sizes S/2 B/2] [--rounds 5]

Latents are 32x32x4, the batch is 2 x 8 (with the class and without), all sides have the same
redrawn weights and see the same latents at one timestep. Every round runs each variant once, one
after the other, and ratios are taken within a round: a machine's speed drifts from minute to
minute, ratios of neighbours do not. Reported are medians over the rounds, and how far the guided
noise estimate is from that of the first variant, in the 2-norm.

The official code is not part of GenLab (its licence is non-commercial): give a checkout of
https://github.com/facebookresearch/DiT.
"""

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from genlab.checkpoints.diffusers_dit import to_diffusers
from genlab.compute import choose
from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete
from genlab.generators import DiffusionGenerator
from genlab.networks import DiT, dit
from genlab.samplers.guidance.classifier_free import ClassifierFree

SCALE, GUIDED, CLASSES, TIMESTEP = 4.0, 3, 1000, 500
GOALS = {
    ("S/2", "fp32"): 0.68,
    ("B/2", "fp32"): 0.55,
    ("S/2", "bf16"): 0.45,
    ("B/2", "bf16"): 0.40,
}


@dataclass
class Variant:
    """One way to take a step: its seconds in each round, and its first guided estimate."""

    name: str
    step: Callable[[], Tensor]
    seconds: list[float] = field(default_factory=list)
    eps: Tensor | None = None


@torch.no_grad()
def redraw(network: nn.Module, seed: int = 0) -> None:
    """Unit-gain random weights in every layer: at their first values many branches are silent."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
        parameter.copy_(gain * noise)


def latents(args: argparse.Namespace) -> Tensor:
    return torch.randn(args.batch, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def labels(args: argparse.Namespace) -> Tensor:
    return torch.arange(args.batch) % CLASSES


def doubled(args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """The batch as the peers want it: latents twice, timesteps, classes and null classes."""
    x, y = latents(args), labels(args)
    t = torch.full((2 * args.batch,), TIMESTEP)
    return torch.cat([x, x]), t, torch.cat([y, torch.full_like(y, CLASSES)])


def official(network: DiT, size: str, args: argparse.Namespace) -> Variant:
    """The official network and its guided forward pass."""
    sys.path.insert(0, str(args.peer))
    from models import DiT_models

    net = DiT_models[f"DiT-{size}"](input_size=32, num_classes=CLASSES).eval().requires_grad_(False)
    net.load_state_dict(network.state_dict())
    x, t, y = doubled(args)

    def step() -> Tensor:
        with torch.no_grad():
            out: Tensor = net.forward_with_cfg(x, t, y, SCALE)
        return out[: args.batch, :4]

    return Variant("official", step)


def theirs(network: DiT, args: argparse.Namespace) -> Variant:
    """The transformer of diffusers, guided as its pipeline does it (in the first channels)."""
    config, state = to_diffusers(network)
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    net: Any = DiTTransformer2DModel(**known).eval().requires_grad_(False)
    net.load_state_dict(state, strict=False)  # the positional table is no part of its file
    x, t, y = doubled(args)

    def step() -> Tensor:
        with torch.no_grad():
            out: Tensor = net(x, timestep=t, class_labels=y).sample
            cond, null = out.chunk(2)
            guided = null[:, :GUIDED] + SCALE * (cond[:, :GUIDED] - null[:, :GUIDED])
        return torch.cat([guided, cond[:, GUIDED:4]], dim=1)

    return Variant("diffusers", step)


def ours(name: str, network: DiT, args: argparse.Namespace) -> Variant:
    """GenLab's denoiser under guidance, as a solver calls it."""
    model = Discrete(variance="learned_range")
    generator = DiffusionGenerator(copy.deepcopy(network), model, has_null_class=True)
    generator.to(dtype=torch.bfloat16 if name == "bf16" else torch.float32)
    generator.prepare()
    guided = ClassifierFree(scale=SCALE, channels=GUIDED)(generator.denoiser)
    sigma = model.levels[TIMESTEP]
    x = latents(args) * (1 + sigma**2).sqrt()
    condition = Condition(labels=labels(args))

    def step() -> Tensor:
        with torch.no_grad():
            said = guided.predict(x, sigma, condition)
        return (x - said.x0) / sigma

    return Variant(name, step)


def measure(variants: list[Variant], rounds: int) -> None:
    for index in range(rounds + 1):
        for variant in variants:
            started = time.perf_counter()
            eps = variant.step()
            seconds = time.perf_counter() - started
            if index == 0:  # warm-up: fills caches, gives the estimates to compare
                variant.eps = eps.float()
                continue
            variant.seconds.append(seconds)
        print(f"round {index} of {rounds}", file=sys.stderr)


def report(size: str, variants: list[Variant]) -> None:
    base = variants[0]
    print(f"DiT-{size:<6} {'s/step':>8} {'ratio':>7} {'range':>13} {'goal':>5} {'rel. error':>10}")
    for variant in variants:
        pairs = zip(variant.seconds, base.seconds, strict=True)
        ratios = sorted(mine / peer for mine, peer in pairs)
        assert variant.eps is not None
        assert base.eps is not None
        error = (variant.eps - base.eps).norm() / base.eps.norm()
        spread = f"{ratios[0]:.3f}-{ratios[-1]:.3f}"
        goal = GOALS.get((size, variant.name), "-")
        print(
            f"{variant.name:<10} {statistics.median(variant.seconds):>8.3f}"
            f" {statistics.median(ratios):>7.3f} {spread:>13} {goal:>5} {error:>10.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", type=Path, help="checkout of facebookresearch/DiT")
    parser.add_argument("--sizes", nargs="+", default=["S/2", "B/2"], help="S/2 ... XL/8")
    parser.add_argument("--variants", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=8, help="images; the networks see two of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for key, value in choose(torch.device("cpu")).describe().items():
        print(f"{key}: {value}")
    print(f"torch {torch.__version__}, {args.threads} threads, batch 2 x {args.batch}")
    for size in args.sizes:
        build = getattr(dit, "DiT_" + size.replace("/", "_"))
        network = build(img_resolution=32, in_channels=4, out_channels=8, label_dim=CLASSES)
        network.eval().requires_grad_(False)
        redraw(network)
        variants = [official(network, size, args)] if args.peer else []
        variants += [theirs(network, args), *(ours(name, network, args) for name in args.variants)]
        measure(variants, args.rounds)
        report(size, variants)


if __name__ == "__main__":
    main()

"""Time GenLab's Heun sampler against the official EDM code, interleaved in one run.

    python benchmarks/edm_sampler.py --peer path/to/edm [--rounds 5] [--variants fp32 compiled bf16]

The network is the CIFAR-10 DDPM++ configuration (55.7M parameters) with redrawn weights, the same
in all variants, and both sides draw the same images from the same latents. Every round runs each
variant once, one after the other, and ratios are taken within a round: a machine's speed drifts
from minute to minute, ratios of neighbours do not. Reported are medians over the rounds.

The official code is not part of GenLab (its licence is non-commercial): give a checkout of
https://github.com/NVlabs/edm.
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
from torch import Tensor, nn

from genlab.compute import choose
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.preconditioning import EDM
from genlab.generators import DiffusionGenerator
from genlab.networks import SongUNet
from genlab.samplers import run

CONFIG: dict[str, Any] = {
    "img_resolution": 32,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 10,
    "augment_dim": 9,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
}
GOALS = {"fp32": 0.87, "compiled": 0.80, "bf16": 0.52}


@dataclass
class Variant:
    """One way to sample: seconds per network evaluation in each round, and its first images."""

    name: str
    sample: Callable[[], tuple[Tensor, float]]
    seconds: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    images: Tensor | None = None


class Stopwatch:
    """Sums up the time that a network takes."""

    def __init__(self, network: nn.Module) -> None:
        self.total = 0.0
        self._started = 0.0
        network.register_forward_pre_hook(self._start)
        network.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.total += time.perf_counter() - self._started


@torch.no_grad()
def redraw(network: nn.Module, seed: int = 0) -> None:
    """Unit-gain random weights in every layer: at their first values many branches are silent."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        else:
            norm_weight = "norm" in name and name.endswith("weight")
            parameter.copy_(0.1 * noise + norm_weight)


def official(peer: Path, weights: dict[str, Tensor], args: argparse.Namespace) -> Variant:
    """The official network behind its preconditioning, in the official sampler."""
    sys.path.insert(0, str(peer))
    from generate import edm_sampler
    from training.networks import EDMPrecond

    options = {k: v for k, v in CONFIG.items() if k not in ("in_channels", "out_channels")}
    net = EDMPrecond(img_channels=3, model_type="SongUNet", **options).eval().requires_grad_(False)
    net.model.load_state_dict(weights)
    watch = Stopwatch(net.model)
    noise, labels = latents(args), torch.eye(10)[torch.arange(args.batch) % 10]

    def sample() -> tuple[Tensor, float]:
        watch.total = 0.0
        with torch.no_grad():
            images = edm_sampler(net, noise, labels, num_steps=args.steps)
        return images, watch.total

    return Variant("official", sample)


def ours(
    name: str,
    network: SongUNet,
    args: argparse.Namespace,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Variant:
    """GenLab's generator, as ``genlab sample`` runs it."""
    generator = DiffusionGenerator(copy.deepcopy(network), EDM()).to(dtype=dtype)
    if compiled:
        generator.compile()
    watch = Stopwatch(generator.network)
    seeds = range(args.batch)
    stack = run.build({"schedule": {"name": "karras", "num_steps": args.steps}})
    noise, labels = latents(args), [seed % 10 for seed in seeds]

    def sample() -> tuple[Tensor, float]:
        watch.total = 0.0
        with torch.no_grad():
            *_, last = generator.steps(NoiseStream(seeds), labels, stack, noise)
        return last.x, watch.total

    return Variant(name, sample)


def latents(args: argparse.Namespace) -> Tensor:
    return NoiseStream(range(args.batch)).randn((3, 32, 32))


def measure(variants: list[Variant], args: argparse.Namespace) -> None:
    evaluations = 2 * args.steps - 1
    for index in range(args.rounds + 1):
        for variant in variants:
            started = time.perf_counter()
            images, network = variant.sample()
            seconds = time.perf_counter() - started
            if index == 0:  # warm-up: compiles, fills caches, gives the images to compare
                variant.images = images
                continue
            variant.seconds.append(seconds / evaluations)
            variant.outside.append(1 - network / seconds)
        print(f"round {index} of {args.rounds}", file=sys.stderr)


def report(variants: list[Variant]) -> None:
    base = variants[0]
    print(f"{'variant':<10} {'s/evaluation':>12} {'ratio':>7} {'range':>13} {'goal':>5}", end="")
    print(f" {'rel. error':>10} {'loop':>6}")
    for variant in variants:
        pairs = zip(variant.seconds, base.seconds, strict=True)
        ratios = sorted(mine / theirs for mine, theirs in pairs)
        assert variant.images is not None
        assert base.images is not None
        error = (variant.images - base.images).norm() / base.images.norm()
        spread = f"{ratios[0]:.3f}-{ratios[-1]:.3f}"
        print(
            f"{variant.name:<10} {statistics.median(variant.seconds):>12.3f}"
            f" {statistics.median(ratios):>7.3f} {spread:>13} {GOALS.get(variant.name, '-'):>5}"
            f" {error:>10.1e} {statistics.median(variant.outside):>6.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", type=Path, required=True, help="checkout of NVlabs/edm")
    parser.add_argument("--variants", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, default=2, help="Heun steps a round, 2 n - 1 evaluations"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    network = SongUNet(**CONFIG).eval().requires_grad_(False)
    redraw(network)
    builders = {
        "fp32": lambda: ours("fp32", network, args),
        "compiled": lambda: ours("compiled", network, args, compiled=True),
        "bf16": lambda: ours("bf16", network, args, dtype=torch.bfloat16),
    }
    variants = [official(args.peer, network.state_dict(), args)]
    variants += [builders[name]() for name in args.variants]
    for key, value in choose(torch.device("cpu")).describe().items():
        print(f"{key}: {value}")
    print(f"torch {torch.__version__}, {args.threads} threads, batch {args.batch}")
    measure(variants, args)
    report(variants)


if __name__ == "__main__":
    main()

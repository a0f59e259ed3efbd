"""Time GenLab's BigGAN-deep against Hugging Face's code, interleaved in one run.

    python benchmarks/biggan.py --peer path/to/pytorch-pretrained-BigGAN [--batch 1 8] [--rounds 5]

The network is BigGAN-deep for 128x128 pixels (50.4M parameters) with redrawn weights, the same in
all variants; their spectral norms have converged, without which nothing finite comes out. Every
round runs each variant once, one after the other, and ratios are taken within a round: a machine's
speed drifts from minute to minute, ratios of neighbours do not. Reported are medians over the
rounds.

Give a checkout of https://github.com/huggingface/pytorch-pretrained-BigGAN. GenLab's side is what
``genlab sample`` runs, from latents to images.
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
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from genlab.checkpoints.biggan_deep_hf import generator_network
from genlab.compute import choose
from genlab.diffusion.noise import NoiseStream
from genlab.generators.gan import GanGenerator
from genlab.samplers.gan import GanSampler

GOALS = {("fp32", 1): 0.77, ("compiled", 8): 0.55}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
TRUNCATION = 0.4
POWER_ITERATIONS = 30


@dataclass
class Variant:
    """One way to make a batch of images: its seconds in each round, and its first images."""

    name: str
    sample: Callable[[], Tensor]
    seconds: list[float] = field(default_factory=list)
    images: Tensor | None = None


def official_module(peer: Path) -> Any:
    """The official model's module, without its downloads and their dependencies."""
    package, downloads = (ModuleType(n) for n in ("pytorch_pretrained_biggan", "file_utils"))
    package.__path__ = [str(peer / package.__name__)]
    downloads.cached_path = None  # type: ignore[attr-defined]
    sys.modules[package.__name__] = package
    sys.modules[f"{package.__name__}.file_utils"] = downloads
    from pytorch_pretrained_biggan import model

    return model


@torch.no_grad()
def official_network(peer: Path) -> nn.Module:
    """The official network with redrawn weights."""
    model = official_module(peer)
    network: nn.Module = model.BigGAN(model.BigGANConfig())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        else:
            parameter.copy_(0.1 * noise + name.endswith("bn.weight"))
    for layer in network.modules():
        if hasattr(layer, "weight_u"):
            converge(layer)
    return network.eval()


def converge(layer: Any) -> None:
    """Bring a layer's singular vectors to where training would have brought them."""
    matrix = layer.weight_orig.flatten(1)
    for _ in range(POWER_ITERATIONS):
        layer.weight_v.copy_(nn.functional.normalize(matrix.T @ layer.weight_u, dim=0))
        layer.weight_u.copy_(nn.functional.normalize(matrix @ layer.weight_v, dim=0))


def latents(batch: int) -> Tensor:
    return GanSampler(truncation=TRUNCATION).latents(NoiseStream(range(batch)), 128)


def classes(batch: int) -> Tensor:
    return torch.eye(1000)[torch.arange(batch)]


def official(network: nn.Module, batch: int) -> Variant:
    z, y = latents(batch), classes(batch)

    def sample() -> Tensor:
        with torch.no_grad():
            images: Tensor = network(z, y, TRUNCATION)
        return images

    return Variant("official", sample)


def ours(name: str, generator: GanGenerator, batch: int) -> Variant:
    """GenLab's generator, as ``genlab sample`` runs it."""
    sampler = generator.build_sampler({"truncation": TRUNCATION})
    seeds = range(batch)

    def sample() -> Tensor:
        with torch.no_grad():
            [step] = generator.steps(NoiseStream(seeds), list(seeds), sampler)
        return generator.decode(step.x)

    return Variant(name, sample)


def generators(network: nn.Module, names: list[str]) -> dict[str, GanGenerator]:
    own = generator_network(network.state_dict(), {})
    made = {name: GanGenerator(copy.deepcopy(own)) for name in names}
    if "bf16" in made:
        made["bf16"].to(dtype=torch.bfloat16)
    if "compiled" in made:
        made["compiled"].compile()
    return made


def measure(variants: list[Variant], rounds: int, clock: Callable[[], float]) -> None:
    for index in range(rounds + 1):
        for variant in variants:
            started = clock()
            images = variant.sample()
            seconds = clock() - started
            if index == 0:  # warm-up: compiles, fills caches, gives the images to compare
                variant.images = images
            else:
                variant.seconds.append(seconds)
        print(f"round {index} of {rounds}", file=sys.stderr)


def report(variants: list[Variant], batch: int) -> None:
    base = variants[0]
    print(f"batch {batch:<3} {'s/batch':>9} {'ratio':>7} {'range':>13} {'goal':>5}", end="")
    print(f" {'rel. error':>10} {'max error':>10}")
    for variant in variants:
        pairs = zip(variant.seconds, base.seconds, strict=True)
        ratios = sorted(mine / theirs for mine, theirs in pairs)
        assert variant.images is not None
        assert base.images is not None
        difference = variant.images - base.images
        spread = f"{ratios[0]:.3f}-{ratios[-1]:.3f}"
        print(
            f"{variant.name:<9} {statistics.median(variant.seconds):>9.3f}"
            f" {statistics.median(ratios):>7.3f} {spread:>13}"
            f" {GOALS.get((variant.name, batch), '-'):>5}"
            f" {difference.norm() / base.images.norm():>10.1e} {difference.abs().max():>10.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--peer", type=Path, required=True, help="checkout of huggingface/pytorch-pretrained-BigGAN"
    )
    names = ["fp32", "compiled", "bf16"]
    parser.add_argument("--variants", nargs="+", default=names[:2], choices=names)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="processor time suits a busy machine; take one thread then, for waiting ones count",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    network = official_network(args.peer)
    made = generators(network, args.variants)
    for key, value in choose(torch.device("cpu")).describe().items():
        print(f"{key}: {value}")
    print(f"torch {torch.__version__}, {args.threads} threads, {args.clock} time")
    for batch in args.batch:
        variants = [official(network, batch)]
        variants += [ours(name, generator, batch) for name, generator in made.items()]
        measure(variants, args.rounds, CLOCKS[args.clock])
        report(variants, batch)


if __name__ == "__main__":
    main()

"""Time GenLab's BigGAN-deep against Hugging Face's code, interleaved in one run.

    python benchmarks/biggan.py --peer path/to/pytorch-pretrained-BigGAN [--batch 1 8] [--rounds 5]

The network is BigGAN-deep for 128x128 pixels (50.4M parameters) with redrawn weights, the same in
all variants; their spectral norms have converged, without which nothing finite comes out. How it is
timed: ``interleaved.py``.

Give a checkout of https://github.com/huggingface/pytorch-pretrained-BigGAN. GenLab's side is what
``genlab sample`` runs, from latents to images.
"""

import copy
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from interleaved import Variant, describe, greatest_error, measure, parser, relative_error, report
from redrawn import redraw
from torch import Tensor, nn

from genlab.checkpoints.readers.biggan_deep_hf import generator_network
from genlab.diffusion.noise import NoiseStream
from genlab.generators.gan import GanGenerator
from genlab.samplers.gan.sampler import GanSampler

GOALS = {("fp32", 1): 0.77, ("compiled", 8): 0.55}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
TRUNCATION = 0.4
POWER_ITERATIONS = 30


def official_module(peer: Path) -> Any:
    """The official model's module, without its downloads and their dependencies."""
    package, downloads = (ModuleType(n) for n in ("pytorch_pretrained_biggan", "file_utils"))
    package.__path__ = [str(peer / package.__name__)]
    # The model's module imports this name, and calls it only to download weights.
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
    redraw(network, lambda name: name.endswith("bn.weight"))
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


def main() -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument(
        "--peer", type=Path, required=True, help="checkout of huggingface/pytorch-pretrained-BigGAN"
    )
    names = ["fp32", "compiled", "bf16"]
    options.add_argument("--variants", nargs="+", default=names[:2], choices=names)
    options.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    options.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="processor time suits a busy machine; take one thread then, for waiting ones count",
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)

    network = official_network(args.peer)
    made = generators(network, args.variants)
    describe(f"{args.clock} time")
    columns = {"rel. error": relative_error, "max error": greatest_error}
    for batch in args.batch:
        variants = [official(network, batch)]
        variants += [ours(name, generator, batch) for name, generator in made.items()]
        measure(variants, args.rounds, CLOCKS[args.clock])
        goals = {name: goal for (name, size), goal in GOALS.items() if size == batch}
        report(f"batch {batch}", "s/batch", variants, goals, columns)


if __name__ == "__main__":
    main()

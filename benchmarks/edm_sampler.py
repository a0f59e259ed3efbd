"""Time GenLab's Heun sampler against the official EDM code, interleaved in one run.

    python benchmarks/edm_sampler.py --peer path/to/edm [--rounds 5] [--variants fp32 compiled bf16]

The network is the CIFAR-10 DDPM++ configuration (55.7M parameters) with redrawn weights, the same
in all variants, and both sides draw the same images from the same latents. How it is timed:
``interleaved.py``. Reported is, too, the share of the time that is spent outside the network.

The official code is not part of GenLab (its licence is non-commercial): give a checkout of
https://github.com/NVlabs/edm.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from interleaved import (
    Sampling,
    Variant,
    describe,
    measure,
    outside,
    parser,
    relative_error,
    report,
)
from redrawn import redraw
from torch import Tensor

from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.preconditioning import EDM
from genlab.generators import DiffusionGenerator
from genlab.networks import SongUNet

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


def official(peer: Path, weights: dict[str, Tensor], args: argparse.Namespace) -> Variant:
    """The official network behind its preconditioning, in the official sampler."""
    sys.path.insert(0, str(peer))
    from generate import edm_sampler
    from training.networks import EDMPrecond

    options = {k: v for k, v in CONFIG.items() if k not in ("in_channels", "out_channels")}
    net = EDMPrecond(img_channels=3, model_type="SongUNet", **options).eval().requires_grad_(False)
    net.model.load_state_dict(weights)
    noise, labels = latents(args), torch.eye(10)[torch.arange(args.batch) % 10]

    def sample() -> Tensor:
        images: Tensor = edm_sampler(net, noise, labels, num_steps=args.steps)
        return images

    return Sampling("official", sample, net.model, per=2 * args.steps - 1)


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
    seeds = range(args.batch)
    sampler = generator.build_sampler({"schedule": {"name": "karras", "num_steps": args.steps}})
    noise, labels = latents(args), [seed % 10 for seed in seeds]

    def sample() -> Tensor:
        *_, last = generator.steps(NoiseStream(seeds), labels, sampler, noise)
        return last.x

    return Sampling(name, sample, generator.network, per=2 * args.steps - 1)


def latents(args: argparse.Namespace) -> Tensor:
    return NoiseStream(range(args.batch)).randn((3, 32, 32))


def main() -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument("--peer", type=Path, required=True, help="checkout of NVlabs/edm")
    options.add_argument("--variants", nargs="+", default=list(GOALS), choices=list(GOALS))
    options.add_argument("--batch", type=int, default=16)
    options.add_argument(
        "--steps", type=int, default=2, help="Heun steps a round, 2 n - 1 evaluations"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)

    network = SongUNet(**CONFIG).eval().requires_grad_(False)
    redraw(network, lambda name: "norm" in name and name.endswith("weight"))
    builders = {
        "fp32": lambda: ours("fp32", network, args),
        "compiled": lambda: ours("compiled", network, args, compiled=True),
        "bf16": lambda: ours("bf16", network, args, dtype=torch.bfloat16),
    }
    variants = [official(args.peer, network.state_dict(), args)]
    variants += [builders[name]() for name in args.variants]
    describe(f"batch {args.batch}")
    measure(variants, args.rounds)
    columns = {"rel. error": relative_error, "loop": outside}
    report("variant", "s/evaluation", variants, GOALS, columns)


if __name__ == "__main__":
    main()

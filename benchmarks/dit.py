"""Time one guided step of GenLab's DiT against diffusers' and the official code, interleaved.

    python benchmarks/dit.py [--peer path/to/DiT] [--sizes S/2 B/2] [--rounds 5]

Latents are 32x32x4, the batch is 2 x 8 (with the class and without), all sides have the same
redrawn weights and see the same latents at one timestep. How it is timed: ``interleaved.py``.
Reported is, too, how far the guided noise estimate is from that of the first variant, in the
2-norm: compare with the official code, since diffusers has other time features (see
``genlab.networks.diffusers_dit``), which random weights make much of.

The official code is not part of GenLab (its licence is non-commercial): give a checkout of
https://github.com/facebookresearch/DiT.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from interleaved import Variant, describe, measure, parser, relative_error, report
from redrawn import redraw
from torch import Tensor

from genlab.checkpoints.readers.diffusers_dit import to_diffusers
from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete
from genlab.generators import DiffusionGenerator
from genlab.networks import DiT, dit
from genlab.samplers.guidance.classifier_free import ClassifierFree

SCALE, GUIDED, CLASSES, TIMESTEP = 4.0, 3, 1000, 500
GOALS = {"S/2": {"fp32": 0.68, "bf16": 0.45}, "B/2": {"fp32": 0.55, "bf16": 0.40}}


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
    if name == "compiled":
        generator.compile()
    guided = ClassifierFree(scale=SCALE, channels=GUIDED)(generator.denoiser)
    sigma = model.levels[TIMESTEP]
    x = latents(args) * (1 + sigma**2).sqrt()
    condition = Condition(labels=labels(args))

    def step() -> Tensor:
        with torch.no_grad():
            said = guided.predict(x, sigma, condition)
        return (x - said.x0) / sigma

    return Variant(name, step)


def main() -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument("--peer", type=Path, help="checkout of facebookresearch/DiT")
    options.add_argument("--sizes", nargs="+", default=["S/2", "B/2"], help="S/2 ... XL/8")
    names = ["fp32", "compiled", "bf16"]
    options.add_argument("--variants", nargs="+", default=names, choices=names)
    options.add_argument(
        "--batch", type=int, default=8, help="images; the networks see two of each"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    describe(f"batch 2 x {args.batch}")
    for size in args.sizes:
        build = getattr(dit, "DiT_" + size.replace("/", "_"))
        network = build(img_resolution=32, in_channels=4, out_channels=8, label_dim=CLASSES)
        network.eval().requires_grad_(False)
        redraw(network)
        variants = [official(network, size, args)] if args.peer else []
        variants += [theirs(network, args), *(ours(name, network, args) for name in args.variants)]
        measure(variants, args.rounds)
        columns = {"rel. error": relative_error}
        report(f"DiT-{size}", "s/step", variants, GOALS.get(size, {}), columns)


if __name__ == "__main__":
    main()

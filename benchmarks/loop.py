"""Time what a sampling run costs outside the network, for several solvers and stacks of guidance.

    python benchmarks/loop.py [--size B/2] [--batch 4] [--steps 4] [--rounds 3]

The network is a DiT over latents of 32x32x4 with redrawn weights. A run goes on in one process; the
column "loop" is the share of its wall-clock time during which no thread is inside the network: the
sampler, the guidance, the noise, and moving the batch in and out. How it is timed:
``interleaved.py``; the ratio is that of seconds a step to the first row's.
"""

from typing import Any

import torch
from interleaved import Sampling, describe, measure, outside, parser, report
from redrawn import redraw
from torch import Tensor

from genlab.diffusion.discrete import Discrete
from genlab.diffusion.noise import NoiseStream
from genlab.generators import DiffusionGenerator
from genlab.networks import dit

CLASSES, SCALE = 1000, 4.0
CFG = {"name": "cfg", "scale": SCALE, "channels": 3}
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {"solver": {"name": "ddim"}},
    "ddim, cfg": {"solver": {"name": "ddim"}, "guidance": [CFG]},
    "ddpm, cfg": {"solver": {"name": "ddpm"}, "guidance": [CFG]},
    "dpmpp 2, cfg": {"solver": {"name": "dpmpp"}, "guidance": [CFG]},
    "unipc 3, cfg": {"solver": {"name": "unipc", "max_order": 3}, "guidance": [CFG]},
    "ddim, apg": {"solver": {"name": "ddim"}, "guidance": [{"name": "apg", "scale": SCALE}]},
    "ddim, cfg, cads": {"solver": {"name": "ddim"}, "guidance": [CFG, {"name": "cads"}]},
}


def sampling(name: str, generator: DiffusionGenerator, batch: int, steps: int) -> Sampling:
    """A run as ``genlab sample`` makes it."""
    schedule = {"name": "respaced", "steps": steps}
    sampler = generator.build_sampler({"schedule": schedule, "guidance": []} | SAMPLERS[name])
    seeds = range(batch)
    latents = NoiseStream(seeds).randn(generator.state_shape)

    def sample() -> Tensor:
        *_, last = generator.steps(NoiseStream(seeds), list(seeds), sampler, latents)
        return last.x

    return Sampling(name, sample, generator.network, per=steps)


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--size", default="B/2", help="S/2 ... XL/8; default: %(default)s")
    options.add_argument("--batch", type=int, default=4, help="default: %(default)s")
    options.add_argument("--steps", type=int, default=4, help="default: %(default)s")
    options.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    build = getattr(dit, "DiT_" + args.size.replace("/", "_"))
    network = build(img_resolution=32, in_channels=4, out_channels=8, label_dim=CLASSES)
    network.eval().requires_grad_(False)
    redraw(network)
    generator = DiffusionGenerator(network, Discrete(variance="learned_range"), has_null_class=True)
    variants = [sampling(name, generator, args.batch, args.steps) for name in args.samplers]
    describe(f"DiT-{args.size}, batch {args.batch}, {args.steps} steps")
    measure(variants, args.rounds)
    report("sampler", "s/step", variants, {}, {"loop": outside})


if __name__ == "__main__":
    main()

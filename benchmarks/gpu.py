"""One prepared run on a GPU: its tests, equality with the CPU, waits for the host, and speed.

    python benchmarks/gpu.py -o gpu.json [--minutes 8] [--edm PATH] [--dit PATH] [--biggan PATH]
    python benchmarks/gpu.py --tiny                # the same on small networks, on any machine

Every section prints a table as it ends, and all of them are written to the JSON file after each, so
that a run which is cut short keeps what it has. A section that fails says why, and the next one
begins; those for which no time is left are named. The exit code is 1 where anything failed.

What is timed runs in interleaved rounds (``interleaved.py``), each waiting for the device. "roof"
is the share of the operations per second that torch's product of two large matrices of that type
reaches on this device in this run.

Give checkouts of the official code to compare with (NVlabs/edm, facebookresearch/DiT,
huggingface/pytorch-pretrained-BigGAN); none is part of GenLab.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from extractors import redrawn
from interleaved import Ratios, Variant, measure
from redrawn import redraw
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import genlab
from genlab.data.pixels import to_uint8
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import Flow
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.preconditioning import EDM
from genlab.eval.extractors.inception import Inception
from genlab.generators import AutoregressiveGenerator, DiffusionGenerator
from genlab.generators.gan import GanGenerator
from genlab.networks import DiT, SongUNet
from genlab.networks.pixelcnnpp import PixelCNNPP
from genlab.samplers.base import SOLVERS
from genlab.samplers.guidance.base import GUIDANCE

CHECKOUT = Path(__file__).resolve().parents[1]

PARTS = {
    "classifier": {"classifier": "classifier-fmnist"},
    "auto": {"guide": "dit-fmnist-s"},
}
"""Guidance -> options without which it cannot be built."""

LARGEST_DIFFERENCE, MEAN_DIFFERENCE = 0.1, 1e-3
"""What float32 images may differ by between CPU and GPU, in [-1, 1]: the largest and the mean.
Rounding grows along a run, most in the last steps of dark edges."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is."""

    rounds: int
    matrix: int
    edm: Mapping[str, Any]
    edm_batch: int
    edm_steps: int
    dit: Mapping[str, Any]
    dit_small: Mapping[str, Any]
    dit_batch: int
    dit_steps: int
    pixelcnn: Mapping[str, Any]
    pixelcnn_size: int
    pixelcnn_batch: int
    features: int
    seeds: int


_EDM = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 10}
_DIT = {"img_resolution": 32, "in_channels": 4, "out_channels": 8, "label_dim": 1000}
FULL = Sizes(
    rounds=5,
    matrix=8192,
    edm={
        **_EDM,
        "augment_dim": 9,
        "model_channels": 128,
        "channel_mult": [2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
    },
    edm_batch=64,
    edm_steps=5,
    dit={**_DIT, "patch_size": 2, "hidden_size": 1152, "depth": 28, "num_heads": 16},
    dit_small={**_DIT, "patch_size": 2, "hidden_size": 384, "depth": 12, "num_heads": 6},
    dit_batch=32,
    dit_steps=10,
    pixelcnn={"num_blocks": 5, "num_filters": 160},
    pixelcnn_size=32,
    pixelcnn_batch=16,
    features=2000,
    seeds=16,
)
TINY = Sizes(
    rounds=1,
    matrix=256,
    edm={**_EDM, "model_channels": 16, "channel_mult": [1, 1], "num_blocks": 1}
    | {"attn_resolutions": [16]},
    edm_batch=2,
    edm_steps=2,
    dit={**_DIT, "img_resolution": 8, "patch_size": 2, "hidden_size": 64, "depth": 2}
    | {"num_heads": 2},
    dit_small={**_DIT, "img_resolution": 8, "patch_size": 2, "hidden_size": 32, "depth": 1}
    | {"num_heads": 2},
    dit_batch=2,
    dit_steps=5,
    pixelcnn={"num_blocks": 1, "num_filters": 8},
    pixelcnn_size=8,
    pixelcnn_batch=1,
    features=4,
    seeds=2,
)


@dataclass(kw_only=True)
class Bench:
    """What the sections share.

    Attributes:
        device: where to compute.
        sizes: how large everything is.
        peers: name -> checkout of the official code.
        compiles: whether networks are compiled, too.
        peaks: type -> FLOP/s of a product of two large matrices, measured once.
    """

    device: torch.device
    sizes: Sizes
    peers: Mapping[str, Path]
    compiles: bool
    peaks: dict[torch.dtype, float] = field(default_factory=dict)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def waiting(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same function, which returns when the device is done."""

        @torch.no_grad()
        def finished() -> Any:
            result = run()
            self.wait()
            return result

        return finished

    def peak(self, dtype: torch.dtype) -> float:
        """FLOP/s of a product of two large matrices."""
        if dtype not in self.peaks:
            n = self.sizes.matrix
            a = torch.randn(n, n, device=self.device).to(dtype)
            multiply = self.waiting(lambda: a @ a)
            multiply()
            seconds = []
            for _ in range(5):
                started = time.perf_counter()
                multiply()
                seconds.append(time.perf_counter() - started)
            self.peaks[dtype] = 2 * n**3 / statistics.median(seconds)
        return self.peaks[dtype]

    def time(
        self, variants: Sequence["Timed"], unit: str = "images/s", base: int = 0
    ) -> list[dict[str, Any]]:
        """A row for each way to compute something: its speed, its ratio, its share of the roof."""
        timed = [
            Variant(variant.name, self.waiting(variant.run), per=variant.per)
            for variant in variants
        ]
        measure(timed, self.sizes.rounds)
        rows = []
        for variant, result in zip(variants, timed, strict=True):
            seconds = statistics.median(result.seconds)
            rows.append(
                {
                    "what": variant.name,
                    unit: 1 / seconds,
                    "time": f"{Ratios(result.seconds, timed[base].seconds):.3f}",
                    "roof": _share(variant, seconds, self),
                }
            )
        return rows


@dataclass(kw_only=True)
class Timed:
    """One way to compute something.

    Attributes:
        name: in the table.
        run: computes it once, without waiting for the device.
        per: images of a run.
        dtype: that its products are in.
        flops: of a run; None where they are not counted.
    """

    name: str
    run: Callable[[], Any]
    per: int
    dtype: torch.dtype = torch.float32
    flops: float | None = None


def _share(variant: Timed, seconds: float, bench: Bench) -> str:
    if variant.flops is None:
        return "-"
    return f"{variant.flops / variant.per / seconds / bench.peak(variant.dtype):.1%}"


@torch.no_grad()
def count_flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of products, convolutions and attention."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what is shared out over threads is counted in one of them only
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.set_num_threads(threads)
    return float(counter.get_total_flops())


# What is checked.


def tests(bench: Bench) -> list[dict[str, Any]]:
    """The tests marked ``gpu``."""
    files = [
        str(path)
        for path in sorted((CHECKOUT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", *files]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    if done.returncode:
        raise RuntimeError("\n".join(lines[-30:]))
    return [{"what": f"{len(files)} files", "result": lines[-1].strip("= ")}]


def equality(bench: Bench) -> list[dict[str, Any]]:
    """Images of the same seeds on the CPU and on the device."""
    rows = []
    seeds = range(bench.sizes.seeds)
    for name in ("edm-fmnist", "dit-fmnist", "biggan-fmnist", "pixelcnnpp-fmnist"):
        generator = genlab.load(name)
        here = generator.sample(seeds)
        there = generator.to(bench.device).sample(seeds).cpu()
        difference = (here - there).abs()
        equal = (to_uint8(here) == to_uint8(there)).float().mean()
        largest, mean = float(difference.max()), float(difference.mean())
        rows.append(
            {
                "what": name,
                "largest difference": largest,
                "mean difference": mean,
                "equal bytes": f"{float(equal):.2%}",
            }
        )
        if largest > LARGEST_DIFFERENCE or mean > MEAN_DIFFERENCE:
            raise RuntimeError(
                f"{name}: images differ by {largest:.3g} at most and {mean:.3g} on average, allowed"
                f" are {LARGEST_DIFFERENCE} and {MEAN_DIFFERENCE}"
            )
    return rows


def synchronisation(bench: Bench) -> list[dict[str, Any]]:
    """Whether the loop waits for the device, for every solver and every guidance.

    Without a GPU the tensors have no values at all (``meta``): whoever reads one fails.
    """
    device = bench.device if bench.device.type == "cuda" else torch.device("meta")
    rows, failed = [], []
    for kind, name, sampler in _samplers():
        generator = genlab.load("dit-fmnist")
        assert isinstance(generator, DiffusionGenerator)
        if kind == "guidance" and GUIDANCE[name].suits.startswith("flow matching"):
            generator = DiffusionGenerator(generator.network, Flow(), has_null_class=True)
        generator.to(device)
        built = generator.build_sampler(sampler)
        seeds = [0, 1]
        steps = generator.steps(NoiseStream(seeds, device), seeds, built)
        with torch.no_grad():
            next(steps)  # labels and parts are moved before it
            try:
                with _no_waits(device):
                    for _ in steps:
                        pass
                result = "none"
            except (RuntimeError, NotImplementedError) as error:
                result = str(error).splitlines()[0]
                failed.append(name)
        rows.append({"what": f"{kind} {name}", "waits": result})
    if failed:
        raise RuntimeError(f"the loop waits for the device under {', '.join(failed)}: {rows}")
    return rows


def _samplers() -> Iterator[tuple[str, str, dict[str, Any]]]:
    schedule = {"name": "karras", "num_steps": 4}
    for name in SOLVERS:
        if _reads_error_estimates(name):
            continue
        own = {**schedule, "name": "diffusers"} if name == "diffusers" else schedule
        yield "solver", name, {"solver": {"name": name}, "schedule": own}
    for name in GUIDANCE:
        entry = {"name": name, **PARTS.get(name, {})}
        if GUIDANCE[name].by_class and hasattr(GUIDANCE[name], "scale"):
            entry["scale"] = 2.0  # the bundled model has none of its own
        stack = [{"name": "cfg", "scale": 2.0}, entry] if name == "cads" else [entry]
        yield "guidance", name, {"schedule": schedule, "guidance": stack}


def _reads_error_estimates(solver: str) -> bool:
    """Whether a solver chooses its steps by what it computes, which is a wait for the device."""
    return solver == "adaptive"


@contextmanager
def _no_waits(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# What is timed.


def edm(bench: Bench) -> list[dict[str, Any]]:
    """EDM's DDPM++ with Heun's method."""
    sizes = bench.sizes
    network = SongUNet(**sizes.edm).eval().requires_grad_(False)
    redraw(network, lambda name: "norm" in name and name.endswith("weight"))
    variants = []
    if "edm" in bench.peers:
        variants.append(_official_edm(bench, network))
    modes = [("float32", torch.float32, None), ("bfloat16", torch.bfloat16, None)]
    modes += [("bfloat16 compiled", torch.bfloat16, "default")] if bench.compiles else []
    for name, dtype, compiled in modes:
        generator = DiffusionGenerator(copy.deepcopy(network), EDM())
        sampler = {"schedule": {"name": "karras", "num_steps": sizes.edm_steps}}
        variants.append(
            _sampling(bench, name, generator, sampler, sizes.edm_batch, dtype, compiled)
        )
    return bench.time(variants)


def _official_edm(bench: Bench, network: SongUNet) -> Timed:
    sys.path.insert(0, str(bench.peers["edm"]))
    from generate import edm_sampler
    from training.networks import EDMPrecond

    sizes = bench.sizes
    options = {k: v for k, v in sizes.edm.items() if k not in ("in_channels", "out_channels")}
    net = EDMPrecond(img_channels=3, model_type="SongUNet", **options).eval().requires_grad_(False)
    net.model.load_state_dict(network.state_dict())
    net.to(bench.device)
    noise = NoiseStream(range(sizes.edm_batch), bench.device).randn((3, 32, 32))
    labels = torch.eye(10, device=bench.device)[torch.arange(sizes.edm_batch) % 10]

    def run() -> Tensor:
        images: Tensor = edm_sampler(net, noise, labels, num_steps=sizes.edm_steps)
        return images

    return Timed(name="official float32", run=run, per=sizes.edm_batch, flops=count_flops(run))


def dit(bench: Bench) -> list[dict[str, Any]]:
    """DiT-XL/2 with classifier-free guidance of 4 in 3 channels, DDIM."""
    sizes = bench.sizes
    network = _dit(sizes.dit)
    variants = []
    if "dit" in bench.peers:
        variants.append(_official_dit(bench, network))
    modes: list[tuple[str, torch.dtype, str | None]] = [
        ("float32", torch.float32, None),
        ("bfloat16", torch.bfloat16, None),
    ]
    if bench.compiles:
        modes.append(("bfloat16 compiled", torch.bfloat16, "default"))
    if bench.compiles and bench.device.type == "cuda":
        modes.append(("bfloat16 compiled, CUDA graphs", torch.bfloat16, "reduce-overhead"))
    for name, dtype, compiled in modes:
        generator = _latent_model(copy.deepcopy(network))
        variants.append(
            _sampling(bench, name, generator, _dit_sampler(sizes), sizes.dit_batch, dtype, compiled)
        )
    return bench.time(variants)


def _dit(options: Mapping[str, Any]) -> DiT:
    network = DiT(**options).eval().requires_grad_(False)
    redraw(network)
    return network


def _latent_model(network: DiT) -> DiffusionGenerator:
    return DiffusionGenerator(network, Discrete(variance="learned_range"), has_null_class=True)


def _dit_sampler(sizes: Sizes, **changes: Any) -> dict[str, Any]:
    guidance = {"name": "cfg", "scale": 4.0, "channels": 3, **changes.pop("cfg", {})}
    return {
        "solver": {"name": "ddim"},
        "schedule": {"name": "respaced", "steps": sizes.dit_steps},
        "guidance": [guidance],
        **changes,
    }


def _official_dit(bench: Bench, network: DiT) -> Timed:
    sys.path.insert(0, str(bench.peers["dit"]))
    from diffusion import create_diffusion
    from models import DiT as Official

    sizes = bench.sizes
    options = {k: v for k, v in sizes.dit.items() if k in ("patch_size", "hidden_size", "depth")}
    net = Official(
        input_size=sizes.dit["img_resolution"], num_heads=sizes.dit["num_heads"], **options
    )
    net.load_state_dict(network.state_dict())
    net.to(bench.device).eval().requires_grad_(False)
    diffusion = create_diffusion(str(sizes.dit_steps))
    size = sizes.dit["img_resolution"]
    z = NoiseStream(range(sizes.dit_batch), bench.device).randn((4, size, size))
    labels = torch.arange(sizes.dit_batch, device=bench.device) % 1000
    both = {"y": torch.cat([labels, torch.full_like(labels, 1000)]), "cfg_scale": 4.0}

    def run() -> Tensor:
        start = torch.cat([z, z])
        images: Tensor = diffusion.ddim_sample_loop(
            net.forward_with_cfg,
            start.shape,
            start,
            clip_denoised=False,
            model_kwargs=both,
            device=bench.device,
        )
        return images

    return Timed(name="official float32", run=run, per=sizes.dit_batch, flops=count_flops(run))


def _sampling(
    bench: Bench,
    name: str,
    generator: DiffusionGenerator,
    sampler: Mapping[str, Any],
    batch: int,
    dtype: torch.dtype = torch.float32,
    compiled: str | None = None,
) -> Timed:
    """GenLab's generator, as ``genlab sample`` runs it."""
    generator.to(bench.device, dtype)
    seeds = range(batch)
    built = generator.build_sampler(sampler)
    latents = NoiseStream(seeds).randn(generator.state_shape)
    labels = [seed % generator.num_classes for seed in seeds]

    def run() -> Tensor:
        *_, last = generator.steps(NoiseStream(seeds, bench.device), labels, built, latents)
        return last.x

    flops = count_flops(run)
    if compiled is not None:
        generator.prepare()
        generator.network.compile(mode=compiled)
    return Timed(name=name, run=run, per=batch, dtype=dtype, flops=flops)


def saved(bench: Bench) -> list[dict[str, Any]]:
    """What T-Stitch (DiT-S/2, then DiT-XL/2) and a guidance interval save of the time."""
    sizes = bench.sizes
    large, small = (_latent_model(_dit(options)) for options in (sizes.dit, sizes.dit_small))
    small.to(bench.device, torch.bfloat16)

    def variant(name: str, **changes: Any) -> Timed:
        sampler = _dit_sampler(sizes, **changes)
        return _sampling(bench, name, large, sampler, sizes.dit_batch, torch.bfloat16)

    stitched = [
        variant(f"small model for {share:.0%}", stitch=[{"model": small, "fraction": share}])
        for share in (0.2, 0.4, 0.6)
    ]
    interval = variant("guided in time [0, 0.7]", cfg={"when": {"time": [0.0, 0.7]}})
    return bench.time([variant("large model, guided"), *stitched, interval])


def biggan(bench: Bench) -> list[dict[str, Any]]:
    """BigGAN-deep for 128x128 pixels; with the official code only, whose weights it takes."""
    if "biggan" not in bench.peers:
        return _bundled_gan(bench)
    from biggan import TRUNCATION, classes, generators, latents, official_network

    network = official_network(bench.peers["biggan"])
    variants, batch = [], 32
    z, y = latents(batch).to(bench.device), classes(batch).to(bench.device)
    names = ["fp32", "bf16"] + (["compiled"] if bench.compiles else [])
    made = generators(network, names)
    network.to(bench.device)

    def official() -> Tensor:
        images: Tensor = network(z, y, TRUNCATION)
        return images

    variants.append(Timed(name="official", run=official, per=batch, flops=count_flops(official)))
    for name, generator in made.items():
        variants.append(_gan(bench, name, generator, batch, {"truncation": TRUNCATION}))
    return bench.time(variants)


def _bundled_gan(bench: Bench) -> list[dict[str, Any]]:
    generator = genlab.load("biggan-fmnist")
    assert isinstance(generator, GanGenerator)
    return bench.time([_gan(bench, "biggan-fmnist", generator, bench.sizes.edm_batch, {})])


def _gan(
    bench: Bench, name: str, generator: GanGenerator, batch: int, sampler: Mapping[str, Any]
) -> Timed:
    generator.to(bench.device)
    built = generator.build_sampler(sampler)
    labels = [seed % generator.num_classes for seed in range(batch)]

    def run() -> Tensor:
        [step] = generator.steps(NoiseStream(range(batch), bench.device), labels, built)
        return generator.decode(step.x)

    return Timed(name=name, run=run, per=batch, flops=count_flops(run))


def pixelcnn(bench: Bench) -> list[dict[str, Any]]:
    """PixelCNN++ of the published depth with cached decoding, in float64 and float32."""
    sizes, size = bench.sizes, bench.sizes.pixelcnn_size
    torch.manual_seed(0)
    network = PixelCNNPP(size, 3, 0, **sizes.pixelcnn)
    network.initialise(torch.rand(4, 3, size, size) * 2 - 1)
    variants = []
    for name, precision in (("float64", "float64"), ("float32", "network")):
        generator = AutoregressiveGenerator(copy.deepcopy(network).eval().requires_grad_(False))
        generator.to(bench.device)
        sampler = generator.build_sampler({"decoder": {"name": "cached", "precision": precision}})
        variants.append(_decoding(bench, name, generator, sampler))
    return bench.time(variants)


def _decoding(bench: Bench, name: str, generator: AutoregressiveGenerator, sampler: Any) -> Timed:
    seeds = range(bench.sizes.pixelcnn_batch)

    def run() -> Tensor:
        *_, last = generator.steps(NoiseStream(seeds, bench.device), None, sampler)
        return last.x

    return Timed(name=f"cached {name}", run=run, per=len(seeds))


def features(bench: Bench) -> list[dict[str, Any]]:
    """Features of the Inception network with redrawn weights, and the time of 50,000 of them."""
    count = bench.sizes.features
    images = torch.randint(0, 256, (min(count, 250), 3, 32, 32), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(redrawn(), path)
        extractor = Inception(path)
    move: Any = extractor
    move.to(bench.device)
    images = images.to(bench.device)

    def run() -> None:
        for _ in range(max(1, count // len(images))):
            extractor(images, ["features"])

    rows = bench.time([Timed(name="Inception", run=run, per=count)], unit="features/s")
    rows[0]["50,000 features, s"] = 50_000 / rows[0]["features/s"]
    return rows


SECTIONS: Mapping[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "tests": tests,
    "equality": equality,
    "synchronisation": synchronisation,
    "dit": dit,
    "edm": edm,
    "saved": saved,
    "biggan": biggan,
    "pixelcnn": pixelcnn,
    "features": features,
}
"""In the order of what would be missed most."""


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    metadata = {"torch": torch.__version__, "genlab": genlab.__version__, "device": str(device)}
    if device.type == "cuda":
        metadata |= {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)}
    return metadata


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    heads = list(rows[0])
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print("| " + " | ".join(cells) + " |")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("-o", "--output", type=Path, help="JSON file for all figures")
    options.add_argument("--minutes", type=float, default=8, help="default: %(default)s")
    options.add_argument("--tiny", action="store_true", help="small networks, to try the script")
    options.add_argument("--no-compile", action="store_true", help="leave compiled networks out")
    options.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    for peer in ("edm", "dit", "biggan"):
        options.add_argument(f"--{peer}", type=Path, metavar="PATH", help="official checkout")
    args = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.tiny:
        options.error("there is no CUDA device here; --tiny tries the script on small networks")
    peers = {name: getattr(args, name) for name in ("edm", "dit", "biggan") if getattr(args, name)}
    bench = Bench(
        device=device,
        sizes=TINY if args.tiny else FULL,
        peers=peers,
        compiles=not (args.no_compile or args.tiny),
    )
    results: dict[str, Any] = {"machine": machine(device), "sections": {}}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    deadline = time.monotonic() + 60 * args.minutes
    failed = False
    for name in args.sections:
        print(f"\n## {name}\n")
        if time.monotonic() > deadline:
            print("no time is left for it")
            results["sections"][name] = {"left out": "no time"}
            continue
        started = time.monotonic()
        try:
            rows = SECTIONS[name](bench)
            show(rows)
            results["sections"][name] = {"rows": rows}
        except Exception as error:  # the next sections are worth having
            failed = True
            traceback.print_exc()
            results["sections"][name] = {"failed": f"{type(error).__name__}: {error}"}
        results["sections"][name]["seconds"] = round(time.monotonic() - started, 1)
        if args.output is not None:
            args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

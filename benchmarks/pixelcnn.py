"""Time the decoders of PixelCNN++ against one another, interleaved in one run.

    python benchmarks/pixelcnn.py [--filters 80 160] [--rounds 3] [--plot growth.png]

First table: networks of the published depth (5 blocks) with first weights by data, 32x32 colour
images. Naive decoding, an evaluation of the whole network for every pixel, would take most of an
hour: it is timed on a few pixels and multiplied. Cached decoding is timed whole. Every round runs
each variant once, and ratios are taken within a round: a machine's speed drifts from minute to
minute. "as published" is what the ratio is taken to: naive decoding in float32.

Second table: a small network over growing images. Naive decoding grows with the square of the
number of pixels, cached decoding with the number. Jacobi iterations are those of these weights: a
trained network needs another number (--model takes a trained generator's folder or name).
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import genlab
from genlab.compute import choose
from genlab.diffusion.noise import NoiseStream
from genlab.generators import AutoregressiveGenerator
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.networks.pixelcnnpp import PixelCNNPP
from genlab.samplers.autoregressive.base import DECODERS, Canvas, PixelModel

CHANNELS = 3
clock = time.perf_counter


def network(num_filters: int, num_blocks: int) -> PixelCNNPP:
    """Random weights, scaled so that every layer has something to say."""
    torch.manual_seed(0)
    made = PixelCNNPP(32, CHANNELS, 0, num_blocks=num_blocks, num_filters=num_filters)
    made.initialise(torch.rand(4, CHANNELS, 16, 16) * 2 - 1)
    choose(torch.device("cpu")).prepare(made.eval())
    return made.requires_grad_(False)


def uniforms(model: AutoregressiveNetwork, size: int, batch: int) -> Tensor:
    return NoiseStream(range(batch)).rand((model.distribution.num_uniforms, size, size))


def decode(
    model: AutoregressiveNetwork, numbers: Tensor, name: str, precision: str
) -> tuple[Tensor, float, int]:
    """Images, seconds, evaluations for each image."""
    asked = PixelModel(model, torch.full((len(numbers),), -1))
    started = clock()
    *_, last = DECODERS.build(name, precision=precision)(asked, Canvas(uniforms=numbers))
    return last.x, clock() - started, asked.evaluations // len(numbers)


def naive_pixels(
    model: AutoregressiveNetwork, numbers: Tensor, precision: str, count: int
) -> tuple[Tensor, float]:
    """The first pixels by naive decoding, and what all would take."""
    asked = PixelModel(model, torch.full((len(numbers),), -1))
    asked.compute_in(torch.float64 if precision == "float64" else torch.float32)
    canvas = Canvas(uniforms=numbers)
    x = asked.blank(canvas)
    width = x.shape[3]
    started = clock()
    for place in range(count):
        i, j = divmod(place, width)
        params = asked.params(x)[:, :, i, j]
        x[:, :, i, j] = asked.distribution.sample(params, numbers[:, :, i, j])
    seconds = clock() - started
    return x.flatten(2)[:, :, :count], seconds / count * width * x.shape[2]


def compare(num_filters: int, args: argparse.Namespace) -> None:
    """Print the first table for one width of the network."""
    model, size = network(num_filters, 5), 32
    numbers = uniforms(model, size, args.batch)
    names = ["naive float32", "cached float32", "cached float64"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    pixels, _ = naive_pixels(model, numbers, "float64", args.pixels)
    for _ in range(args.rounds):
        _, naive = naive_pixels(model, numbers, "network", args.pixels)
        seconds[names[0]].append(naive)
        for name, precision in zip(names[1:], ("network", "float64"), strict=True):
            images, spent, _ = decode(model, numbers, "cached", precision)
            seconds[name].append(spent)
    same = torch.equal(images.flatten(2)[:, :, : args.pixels], pixels)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"\n{num_filters} filters, {parameters:.1f} M parameters, {args.batch} images 32x32")
    for name in names:
        ratios = [a / b for a, b in zip(seconds[names[0]], seconds[name], strict=True)]
        spread = f"{min(ratios):.0f}-{max(ratios):.0f}"
        median = statistics.median(seconds[name])
        print(f"  {name:<15} {median:>9.1f} s  ratio {statistics.median(ratios):>6.1f} ({spread})")
    print(f"  naive and cached draw the same first {args.pixels} pixels in float64: {same}")


def grow(model: AutoregressiveNetwork, sizes: list[int], args: argparse.Namespace) -> None:
    """Print the second table, and plot it."""
    curves: dict[str, list[float]] = {"naive": [], "cached": [], "jacobi": []}
    print(f"\n{'size':>5} {'naive s':>9} {'cached s':>9} {'jacobi s':>9} {'iterations':>10} same")
    for size in sizes:
        numbers = uniforms(model, size, args.batch)
        by_cached, cached, _ = decode(model, numbers, "cached", "float64")
        by_jacobi, jacobi, iterations = decode(model, numbers, "jacobi", "float64")
        first, naive = naive_pixels(model, numbers, "float64", args.growth_pixels)
        same = torch.equal(by_cached, by_jacobi)
        same &= torch.equal(by_cached.flatten(2)[:, :, : args.growth_pixels], first)
        for curve, spent in zip(curves.values(), (naive, cached, jacobi), strict=True):
            curve.append(spent)
        print(f"{size:>5} {naive:>9.2f} {cached:>9.2f} {jacobi:>9.2f} {iterations:>10} {same}")
    if len(sizes) > 1:
        for name, curve in curves.items():
            pixels = math.log((sizes[-1] / sizes[0]) ** 2)
            power = math.log(curve[-1] / curve[0]) / pixels
            print(f"  {name} grows like (number of pixels)^{power:.2f}")
        plot(sizes, curves, args.plot)


def plot(sizes: list[int], curves: dict[str, list[float]], file: Path) -> None:
    """Draw the curves, where matplotlib is there."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("  no plot: matplotlib is not installed")
        return
    figure, axes = pyplot.subplots(figsize=(5, 4))
    for name, curve in curves.items():
        axes.loglog([size**2 for size in sizes], curve, "o-", label=name)
    axes.set(xlabel="pixels", ylabel="seconds a batch", title="Decoding PixelCNN++")
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")
    print(f"  plot: {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--filters", type=int, nargs="*", default=[80, 160])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=3, help="naive pixels in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="*", default=[8, 12, 16, 24, 32])
    parser.add_argument("--growth-pixels", type=int, default=32, help="naive pixels of each size")
    parser.add_argument("--plot", type=Path, default=Path("pixelcnn_growth.png"))
    parser.add_argument("--model", help="a trained generator: the second table for its own size")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count this thread's own seconds: for a busy machine, with --threads 1",
    )
    args = parser.parse_args()
    if args.processor_time:
        global clock
        clock = time.thread_time
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, batch {args.batch}")
    tables: list[Callable[[], None]] = [
        lambda filters=filters: compare(filters, args) for filters in args.filters
    ]
    if args.model is None:
        tables.append(lambda: grow(network(16, 1), args.sizes, args))
    else:
        generator = genlab.load(args.model)
        assert isinstance(generator, AutoregressiveGenerator)
        generator.prepare()
        tables.append(lambda: grow(generator.network, [generator.image_shape[1]], args))
    with torch.no_grad():
        for table in tables:
            table()


if __name__ == "__main__":
    main()

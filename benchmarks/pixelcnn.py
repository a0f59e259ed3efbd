"""Time the decoders of PixelCNN++ against one another, interleaved in one run.

    python benchmarks/pixelcnn.py [--filters 80 160] [--rounds 3] [--plot growth.png]

First table: networks of the published depth (5 blocks) with first weights by data, 32x32 colour
images. Naive decoding, an evaluation of the whole network for every pixel, would take most of an
hour: it is timed on a few pixels and multiplied. Cached decoding is timed whole. How it is timed:
``interleaved.py``, without a warm-up. The ratio is that of naive decoding in float32, as published,
to each: how many times as fast it is.

Second table, and plot: a small network over growing images, in float64. Naive decoding grows with
the square of the number of pixels, cached decoding with the number. Jacobi iterations are those of
these weights: a trained network needs another number (--model takes a trained generator's folder or
name).
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from interleaved import Ratios, Variant, describe, measure, parser
from torch import Tensor

import genlab
from genlab.compute import choose
from genlab.diffusion.noise import NoiseStream
from genlab.generators import AutoregressiveGenerator
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.networks.pixelcnnpp import PixelCNNPP
from genlab.samplers.autoregressive.base import DECODERS, Canvas, PixelModel

CHANNELS = 3
SLOPES = {"naive": 2, "cached": 1, "jacobi": None}
"""Power of the number of pixels that a decoder's cost follows; Jacobi's depends on the weights."""


def network(num_filters: int, num_blocks: int) -> PixelCNNPP:
    """Random weights, scaled so that every layer has something to say."""
    torch.manual_seed(0)
    made = PixelCNNPP(32, CHANNELS, 0, num_blocks=num_blocks, num_filters=num_filters)
    made.initialise(torch.rand(4, CHANNELS, 16, 16) * 2 - 1)
    choose(torch.device("cpu")).prepare(made.eval())
    return made.requires_grad_(False)


def uniforms(model: AutoregressiveNetwork, size: int, batch: int) -> Tensor:
    return NoiseStream(range(batch)).rand((model.distribution.num_uniforms, size, size))


def model_of(network: AutoregressiveNetwork, batch: int) -> PixelModel:
    return PixelModel(network, torch.full((batch,), -1))


def naive(name: str, network: AutoregressiveNetwork, numbers: Tensor, count: int) -> Variant:
    """Naive decoding of the first pixels, timed as if it were all."""
    asked, canvas = model_of(network, len(numbers)), Canvas(uniforms=numbers)
    height, width = numbers.shape[2:]

    def run() -> Tensor:
        x = asked.blank(canvas)
        for place in range(count):
            i, j = divmod(place, width)
            params = asked.params(x)[:, :, i, j]
            x[:, :, i, j] = asked.distribution.sample(params, numbers[:, :, i, j])
        return first_pixels(x, count)

    return Variant(name, run, per=count / (height * width))


def decoding(
    name: str, network: AutoregressiveNetwork, numbers: Tensor, decoder: str, precision: str
) -> Variant:
    """Decoding of whole images, and its evaluations of the network for each."""
    decode = DECODERS.build(decoder, precision=precision)

    def run() -> tuple[Tensor, int]:
        asked = model_of(network, len(numbers))
        *_, last = decode(asked, Canvas(uniforms=numbers))
        return last.x, asked.evaluations // len(numbers)

    return Variant(name, run)


def first_pixels(images: Tensor, count: int) -> Tensor:
    return images.flatten(2)[:, :, :count]


def in_float64(network: AutoregressiveNetwork) -> AutoregressiveNetwork:
    """A copy in float64."""
    asked = model_of(network, 1)
    asked.compute_in(torch.float64)
    return asked.network


def compare(num_filters: int, args: argparse.Namespace) -> None:
    """Print the first table for one width of the network."""
    model = network(num_filters, 5)
    numbers = uniforms(model, 32, args.batch)
    variants = [
        naive("naive float32", model, numbers, args.pixels),
        decoding("cached float32", model, numbers, "cached", "network"),
        decoding("cached float64", model, numbers, "cached", "float64"),
    ]
    measure(variants, args.rounds, args.clock, warm_up=False)
    expected = naive("naive float64", in_float64(model), numbers, args.pixels).run()
    same = torch.equal(first_pixels(variants[-1].result[0], args.pixels), expected)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"\n{num_filters} filters, {parameters:.1f} M parameters, {args.batch} images 32x32")
    for variant in variants:
        ratios = Ratios(variants[0].seconds, variant.seconds)
        print(f"  {variant.name:<15} {median(variant):>9.1f} s  ratio {ratios:.1f}")
    print(f"  naive and cached draw the same first {args.pixels} pixels in float64: {same}")


def median(variant: Variant) -> float:
    return statistics.median(variant.seconds)


def grow(model: AutoregressiveNetwork, sizes: list[int], args: argparse.Namespace) -> None:
    """Print the second table, and plot it."""
    curves: dict[str, list[float]] = {"naive": [], "cached": [], "jacobi": []}
    count, double = args.growth_pixels, in_float64(model)
    print(f"\n{'size':>5} {'naive s':>9} {'cached s':>9} {'jacobi s':>9} {'iterations':>10} same")
    for size in sizes:
        numbers = uniforms(model, size, args.batch)
        variants = [
            naive("naive", double, numbers, count),
            decoding("cached", double, numbers, "cached", "float64"),
            decoding("jacobi", double, numbers, "jacobi", "float64"),
        ]
        measure(variants, args.rounds, args.clock, warm_up=False)
        pixels, (by_cached, _), (by_jacobi, iterations) = (v.result for v in variants)
        same = torch.equal(by_cached, by_jacobi)
        same &= torch.equal(first_pixels(by_cached, count), pixels)
        for variant in variants:
            curves[variant.name].append(median(variant))
        seconds = "".join(f" {curve[-1]:>9.3g}" for curve in curves.values())
        print(f"{size:>5}{seconds} {iterations:>10} {same}")
    if len(sizes) > 1:
        for name, curve in curves.items():
            power = math.log(curve[-1] / curve[0]) / math.log((sizes[-1] / sizes[0]) ** 2)
            print(f"  {name} grows like (number of pixels)^{power:.2f}")
        plot(sizes, curves, args)


def plot(sizes: Sequence[int], curves: dict[str, list[float]], args: argparse.Namespace) -> None:
    """Draw the curves, where matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("  no plot: matplotlib is not installed (pip install matplotlib)")
        return
    pixels = [size**2 for size in sizes]
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, power), marker in zip(SLOPES.items(), "os^", strict=True):
        curve = curves[name]
        [line] = axes.loglog(pixels, curve, marker + "-", label=name)
        if power is not None:
            guide = [curve[-1] * (n / pixels[-1]) ** power for n in pixels]
            label = f"proportional to N{'' if power == 1 else f'$^{power}$'}"
            axes.loglog(pixels, guide, "--", color=line.get_color(), alpha=0.5, label=label)
    axes.set_xticks(pixels, [f"{size}x{size}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set(
        xlabel="image of N pixels",
        ylabel=f"seconds for {args.batch} images",
        title="Decoding a small PixelCNN++",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=150)
    print(f"  plot: {args.plot}")


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument(
        "--filters", type=int, nargs="*", default=[80, 160], help="none: no first table"
    )
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--pixels", type=int, default=3, help="naive pixels in a round")
    options.add_argument(
        "--sizes", type=int, nargs="*", default=[8, 12, 16, 24, 32], help="of the second table"
    )
    options.add_argument("--growth-pixels", type=int, default=32, help="naive pixels of each size")
    options.add_argument(
        "--plot",
        type=Path,
        default=Path("pixelcnn_growth.png"),
        help="image file of the second table (needs matplotlib); default: %(default)s",
    )
    options.add_argument("--model", help="a trained generator: the second table for its own size")
    options.add_argument(
        "--processor-time",
        dest="clock",
        action="store_const",
        const=time.thread_time,
        default=time.perf_counter,
        help="count this thread's own seconds: for a busy machine, with --threads 1",
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    describe(f"batch {args.batch}")
    with torch.no_grad():
        for filters in args.filters:
            compare(filters, args)
        if args.model is None:
            grow(network(16, 1), args.sizes, args)
        else:
            generator = genlab.load(args.model)
            assert isinstance(generator, AutoregressiveGenerator)
            generator.prepare()
            grow(generator.network, [generator.image_shape[1]], args)


if __name__ == "__main__":
    main()

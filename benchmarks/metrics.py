"""Time GenLab's metrics against torch-fidelity's and scipy's formulas, interleaved in one run.

    python benchmarks/metrics.py frechet [--dim 2048] [--rounds 3]
    python benchmarks/metrics.py manifold [--count 10000] [--rounds 3]

How it is timed: ``interleaved.py``.

``frechet`` works on covariances of full rank with a falling spectrum. Its truth is the sum of
singular values of a product of Cholesky factors, which squares nothing. ``manifold`` is precision
and recall of two overlapping sets; each variant runs in a process of its own, so that peak memory
is its own, and what the process held before the call is taken off. scipy is no dependency of
GenLab; without it its variant is left out.
"""

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from interleaved import Ratios, Variant, describe, measure, parser
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from genlab.eval.metrics.base import FeatureSet
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.metrics.manifold import PrecisionRecall
from genlab.eval.moments import Moments

GOALS = {"scipy sqrtm": 1 / 12, "torch-fidelity": 1 / 3}
"""Of GenLab's share of each peer's time for the Fréchet distance."""

MANIFOLD_GOAL = 0.5
"""Of torch-fidelity's time and memory for precision and recall."""


def rows(count: int, dim: int, seed: int) -> Tensor:
    """Correlated rows with a power law of standard deviations: a condition number of some 1e5."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dim + 1) ** -0.6
    mix = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)))[0]
    return (torch.randn(count, dim, generator=generator) * scale) @ mix + 0.002 * seed


def truth(a: Moments, b: Moments) -> float:
    factors = [torch.linalg.cholesky(m.cov) for m in (a, b)]
    root = torch.linalg.svdvals(factors[0].T @ factors[1]).sum()
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.cov.trace() + b.cov.trace() - 2 * root)


def frechet_variants(a: Moments, b: Moments) -> list[Variant]:
    arrays = [{"mu": m.mean.numpy(), "sigma": m.cov.numpy()} for m in (a, b)]

    def by_torch_fidelity() -> float:
        found: float = fid_statistics_to_metric(*arrays, False)["frechet_inception_distance"]
        return found

    variants = [
        Variant("genlab", lambda: frechet_distance(a, b)),
        Variant("torch-fidelity", by_torch_fidelity),
    ]
    if importlib.util.find_spec("scipy") is None:
        print("scipy is not installed: its variant is left out (pip install scipy)")
        return variants
    from scipy.linalg import sqrtm

    def by_sqrtm() -> float:
        (mu1, S1), (mu2, S2) = ((s["mu"], s["sigma"]) for s in arrays)
        root = np.trace(sqrtm(S1 @ S2)).real
        return float(((mu1 - mu2) ** 2).sum() + np.trace(S1) + np.trace(S2) - 2 * root)

    return [*variants, Variant("scipy sqrtm", by_sqrtm)]


def frechet(args: argparse.Namespace) -> None:
    a, b = (Moments.of(rows(4 * args.dim, args.dim, seed)) for seed in (1, 2))
    expected = truth(a, b)
    variants = frechet_variants(a, b)
    measure(variants, args.rounds, warm_up=False)
    describe(f"Fréchet distance, d = {args.dim}, full rank")
    for variant in variants:
        ratios = Ratios(variants[0].seconds, variant.seconds)
        print(
            f"{variant.name:<15} {statistics.median(variant.seconds):7.2f} s   genlab takes "
            f"{ratios:.3f} of it, goal {GOALS.get(variant.name, 1):.3f}   "
            f"relative error {abs(variant.result / expected - 1):.1e}"
        )


def peak() -> int:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def manifold_child(args: argparse.Namespace) -> None:
    """One variant once, in this process: seconds, MiB beyond what was there before, scores."""
    fake, real = (rows(args.count, args.dim, seed) for seed in (1, 2))
    # Libraries are loaded and threads started; now what the call itself needs.
    small = fake[:100], real[:100]
    for sets in (small, (fake, real)):
        before, started = peak(), time.perf_counter()
        if args.child == "genlab":
            wrapped = [FeatureSet(count=len(s), rows={"features": s}) for s in sets]
            found = PrecisionRecall()(*wrapped)
        else:
            found = prc_features_to_metric(
                *sets, prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False
            )
        seconds = time.perf_counter() - started
    print(seconds, peak() - before, found["precision"], found["recall"])


def manifold(args: argparse.Namespace) -> None:
    names = ("genlab", "torch-fidelity")
    runs: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, "manifold", "--child", name]
            for option in ("count", "dim", "threads"):
                command += [f"--{option}", str(getattr(args, option))]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[name].append([float(number) for number in out.split()])
    describe(f"precision and recall, N = {args.count}, d = {args.dim}")
    for name, found in runs.items():
        seconds, memory, precision, recall = (
            statistics.median(c) for c in zip(*found, strict=True)
        )
        print(
            f"{name:<15} {seconds:6.2f} s  {memory:6.0f} MiB   precision {precision:.4f} "
            f"recall {recall:.4f}"
        )
    ours, theirs = (list(zip(*found, strict=True)) for found in runs.values())
    for column, what in enumerate(("time", "memory")):
        ratios = Ratios(ours[column], theirs[column])
        print(f"genlab / torch-fidelity, {what}: {ratios:.3f}, goal {MANIFOLD_GOAL}")


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("what", choices=("frechet", "manifold"))
    options.add_argument("--dim", type=int, default=2048)
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--child", choices=("genlab", "torch-fidelity"), help=argparse.SUPPRESS)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        manifold_child(args)
    else:
        {"frechet": frechet, "manifold": manifold}[args.what](args)


if __name__ == "__main__":
    main()

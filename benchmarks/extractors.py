"""Time GenLab's Inception extractor against torch-fidelity's own, interleaved in one run.

    python benchmarks/extractors.py [--rounds 7] [--batch 16] [--size 32] [--threads 2]

Both read one file with all 566 tensors, redrawn at random, and the same random images. Every round
runs each side once, one after the other, and ratios are taken within a round: a machine's speed
drifts from minute to minute, ratios of neighbours do not. Reported are medians over the rounds, and
the largest relative error (in norm) of any image against torch-fidelity's features.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from genlab.eval.extractors.inception import Inception
from genlab.eval.extractors.inception_network import official_layers

GOAL_RATIO, GOAL_ERROR = 0.55, 1e-4


@dataclass
class Side:
    """One extractor: seconds in each round, and what it gives."""

    name: str
    run: Callable[[], dict[str, Tensor]]
    seconds: list[float] = field(default_factory=list)
    features: dict[str, Tensor] = field(default_factory=dict)


def redrawn(seed: int = 0) -> dict[str, Tensor]:
    """A whole state dict whose features neither vanish nor blow up on the way."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, value in official_layers().state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
        elif value.ndim > 1:
            tensors[name] = noise * math.sqrt(2 / value[0].numel())
        else:
            scale = name.endswith(("bn.weight", "running_var"))
            tensors[name] = (1 + 0.1 * noise).abs() if scale else 0.1 * noise
    return tensors


def published(path: Path, images: Tensor, outputs: dict[str, str]) -> Side:
    extractor = FeatureExtractorInceptionV3("inception", list(outputs.values()), str(path))

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        return dict(zip(outputs, extractor(images), strict=True))

    return Side("torch-fidelity", run)


def ours(path: Path, images: Tensor, outputs: dict[str, str]) -> Side:
    extractor = Inception(path)
    return Side("genlab", lambda: extractor(images, list(outputs)))


def measure(sides: list[Side], rounds: int) -> None:
    for index in range(rounds + 1):
        for side in sides:
            started = time.perf_counter()
            features = side.run()
            if index == 0:  # warm-up: loads libraries, gives the features to compare
                side.features = features
            else:
                side.seconds.append(time.perf_counter() - started)


def report(sides: list[Side], batch: int) -> None:
    base = sides[0]
    for side in sides:
        ratios = [a / b for a, b in zip(side.seconds, base.seconds, strict=True)]
        print(
            f"{side.name:15s} {1e3 * statistics.median(side.seconds) / batch:7.1f} ms/image   "
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        )
    for name, expected in base.features.items():
        error = (sides[1].features[name] - expected).norm(dim=1) / expected.norm(dim=1)
        print(f"error of {name}: {float(error.max()):.2g} (goal {GOAL_ERROR:g})")
    print(f"goal: ratio {GOAL_RATIO}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.batch, 3, args.size, args.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    outputs = {"features": "2048", "logits": "logits_unbiased", "768": "768"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(redrawn(), path)
        sides = [published(path, images, outputs), ours(path, images, outputs)]
    print(f"PyTorch {torch.__version__}, {args.threads} threads, {args.batch} images, float32")
    measure(sides, args.rounds)
    report(sides, args.batch)


if __name__ == "__main__":
    main()

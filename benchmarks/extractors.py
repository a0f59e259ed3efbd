"""Time GenLab's Inception extractor against torch-fidelity's own, interleaved in one run.

    python benchmarks/extractors.py [--rounds 7] [--batch 16] [--size 32] [--threads 2]

Both read one file with all 566 tensors, redrawn at random, and the same random images. How it is
timed: ``interleaved.py``. Reported is, too, the largest relative error (in norm) of any image
against torch-fidelity's features.
"""

import math
import tempfile
from pathlib import Path

import torch
from interleaved import Variant, describe, measure, parser, report
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from genlab.eval.extractors.inception import Inception
from genlab.eval.extractors.inception_network import official_layers

GOAL_RATIO, GOAL_ERROR = 0.55, 1e-4


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


def published(path: Path, images: Tensor, outputs: dict[str, str]) -> Variant:
    extractor = FeatureExtractorInceptionV3("inception", list(outputs.values()), str(path))

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        return dict(zip(outputs, extractor(images), strict=True))

    return Variant("torch-fidelity", run, per=len(images))


def ours(path: Path, images: Tensor, outputs: dict[str, str]) -> Variant:
    extractor = Inception(path)
    return Variant("genlab", lambda: extractor(images, list(outputs)), per=len(images))


def main() -> None:
    options = parser(__doc__, rounds=7)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--size", type=int, default=32)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.batch, 3, args.size, args.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    outputs = {"features": "2048", "logits": "logits_unbiased", "768": "768"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(redrawn(), path)
        sides = [published(path, images, outputs), ours(path, images, outputs)]
    describe(f"{args.batch} images, float32")
    measure(sides, args.rounds)
    report("extractor", "s/image", sides, {"genlab": GOAL_RATIO}, {})
    for name, expected in sides[0].result.items():
        error = (sides[1].result[name] - expected).norm(dim=1) / expected.norm(dim=1)
        print(f"error of {name}: {float(error.max()):.2g} (goal {GOAL_ERROR:g})")


if __name__ == "__main__":
    main()

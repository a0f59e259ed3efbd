"""Give a GAN two classes that it was not trained on, by a classifier and by images, and judge it.

    python benchmarks/class_split.py fashion-mnist/ sandal,bag split/
    genlab train --config biggan-fmnist data.path=split/base.zip -o runs/base
    genlab train export runs/base -o G/
    genlab train export runs/base -o D/ --discriminator
    python benchmarks/retargeting.py G/ D/ split/train.zip split/test.zip -o retargeting/

Compared are the untouched model, asked for the class of its own that the tuning classifier takes
most for the wanted one (``nearest``) or for the mean of its classes (``mean``); the model whose
class vectors a classifier moved (``genlab retarget``, no images); and the one whose class table was
trained on a few images against the discriminator (``genlab finetune --config gan``). Another
classifier judges: class consistency, and the Fréchet distance of its features from the test images
of these classes. Everything is repeated with other seeds, of tuning, choice of images and samples;
shown are mean and 95 % interval (Student's t). Seconds are those of the processor, samples aside.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from class_split import ClassSubset
from torch import Tensor

import genlab
from genlab.config import load
from genlab.data.dataset import ImageDataset
from genlab.data.labels import class_index
from genlab.data.pixels import to_uint8
from genlab.data.prepare import prepare
from genlab.data.sources.opening import open_source
from genlab.data.writing import pictures
from genlab.eval.extractors.cnn import CNNExtractor, cnn_fmnist
from genlab.eval.image_classifiers import load_image_classifier
from genlab.eval.metrics.classification import class_consistency
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.moments import Moments
from genlab.eval.samples import as_rgb
from genlab.files import write_text
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.gan.classifier import ImageClassifier
from genlab.finetuning.gan.retarget import draw_vectors, retarget
from genlab.finetuning.gan.search import ClassSearch, RetargetConfig, class_vectors
from genlab.finetuning.run import open_run
from genlab.finetuning.trainer import FinetuneTrainer
from genlab.generators.gan import GanGenerator
from genlab.training.export import Choice, make_product

BATCH = 50
COLUMNS = 10
ROWS = ("untouched", "classifier", "images", "real")
STUDENT_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""Degrees of freedom -> two-sided 95 % quantile of Student's t."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The judge's verdict on one set of samples.

    Attributes:
        consistency: share taken for their class, 0 to 1.
        by_class: the same for each class.
        fd: Fréchet distance of features from the test images.
        seconds: processor time of the tuning; 0 for an untouched model.
    """

    consistency: float
    by_class: Sequence[float]
    fd: float
    seconds: float


Draw = Callable[[int, Sequence[int]], Tensor]
"""Number of a class, seeds -> images (N, C, H, W) in [-1, 1]."""


class Judge:
    """A classifier that nothing is tuned by, and the test images of the new classes."""

    def __init__(self, extractor: CNNExtractor, test: ImageDataset, samples: int) -> None:
        names = extractor.class_names
        assert test.class_names is not None
        self.extractor, self.names, self.samples = extractor, test.class_names, samples
        self.numbers = [class_index(n, extractor.outputs["logits"], names) for n in self.names]
        self.test, self.test_labels = test.load_all()
        self.reference = Moments.of(self._features(self.test)["features"])

    def _features(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.extractor(as_rgb(pixels), ("features", "logits"))

    def score(self, draw: Draw, first_seed: int, seconds: float) -> Score:
        """Judge as many samples of each class."""
        seeds = range(first_seed, first_seed + self.samples)
        batches = [seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)]
        found = [
            self._features(torch.cat([to_uint8(draw(label, batch)) for batch in batches]))
            for label in range(len(self.names))
        ]
        return self._score(found, seconds)

    def score_real(self, images: ImageDataset, chosen: Sequence[Sequence[int]]) -> Score:
        """Judge real images: what a perfect model would reach."""
        pixels = [torch.stack([images[row][0] for row in rows]) for rows in chosen]
        return self._score([self._features(each) for each in pixels], 0.0)

    def _score(self, found: Sequence[Mapping[str, Tensor]], seconds: float) -> Score:
        shares = [
            class_consistency(each["logits"], torch.full((len(each["logits"]),), number))
            for each, number in zip(found, self.numbers, strict=True)
        ]
        features = torch.cat([each["features"] for each in found])
        return Score(
            consistency=statistics.fmean(shares),
            by_class=shares,
            fd=frechet_distance(Moments.of(features), self.reference),
            seconds=seconds,
        )


def of_vectors(base: GanGenerator, vectors: Sequence[Tensor]) -> Draw:
    return lambda label, seeds: draw_vectors(base, [vectors[label]], seeds)


def of_model(model: Any) -> Draw:
    def draw(label: int, seeds: Sequence[int]) -> Tensor:
        images: Tensor = model.sample(seeds, [label] * len(seeds), batch_size=len(seeds))
        return images

    return draw


def nearest(base: GanGenerator, classifier: ImageClassifier, names: Sequence[str]) -> list[int]:
    """For each new class, the base's class that the classifier takes most for it."""
    search = ClassSearch(base, classifier, RetargetConfig(), None)
    targets = [classifier.find_class(name) for name in names]
    rows = [[search.probability(row, target) for row in search.table] for target in targets]
    return [each.index(max(each)) for each in rows]


def by_images(
    options: argparse.Namespace, images: Sequence[int], seed: int, folder: Path
) -> GanGenerator:
    """The base with its class table trained on some images against the discriminator."""
    data = folder / "images.zip"
    prepare(ClassRows(options.train, images), data)
    overrides = [
        f"base={options.generator}",
        f"data.path={data}",
        "data.fit=pad",
        f"objective.discriminator.path={options.discriminator}",
        f"duration_kimg={options.kimg}",
        f"seed={seed}",
        "data.num_workers=0",
        "copying.check=false",
        "output.preview_kimg=null",
        "output.snapshot_kimg=null",
        "output.tensorboard=false",
        *options.settings,
    ]
    config = load(FinetuneConfig, "gan", "finetune", overrides)
    FinetuneTrainer(config, folder / "run", device="cpu").train()
    product, _ = make_product(open_run(folder / "run"), Choice())
    assert isinstance(product, GanGenerator)
    return product


class ClassRows(ClassSubset):
    """Some images of a data set, by their numbers."""

    def __init__(self, path: Path, images: Sequence[int]) -> None:
        source = open_source(path)
        super().__init__(source, range(source.num_classes))
        assert self.labels is not None
        self.indices = self.indices[list(images)]
        self.labels = self.labels[list(images)]


def choose(labels: Tensor, count: int, seed: int) -> list[list[int]]:
    """Images of each class, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(labels == label).nonzero()[:, 0] for label in range(int(labels.max()) + 1)]
    return [row[torch.randperm(len(row), generator=generator)[:count]].tolist() for row in rows]


def spread(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean."""
    if len(values) < 2:
        return float("nan")
    quantile = STUDENT_95[len(values) - 1]
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def table(scores: Mapping[str, Sequence[Score]]) -> str:
    """Markdown."""
    lines = ["| model | consistency | fd | processor seconds |", "| --- | --- | --- | --- |"]
    for name, repeats in scores.items():
        shares = [100 * each.consistency for each in repeats]
        distances = [each.fd for each in repeats]
        seconds = statistics.fmean(each.seconds for each in repeats)
        lines.append(
            f"| {name} | {statistics.fmean(shares):.1f} ± {spread(shares):.1f} % "
            f"| {statistics.fmean(distances):.3f} ± {spread(distances):.3f} "
            f"| {f'{seconds:.0f}' if seconds else ''} |"
        )
    return "\n".join(lines)


def picture(judge: Judge, draws: Mapping[str, Draw], path: Path) -> None:
    """Real images of each class, and below them those of each model."""
    rows: dict[str, Any] = {}
    for label, name in enumerate(judge.names):
        real = judge.test[judge.test_labels == label][:COLUMNS]
        drawn = {row: to_uint8(draw(label, range(COLUMNS))) for row, draw in draws.items()}
        for row, pixels in {"real": real, **drawn}.items():
            rows[f"{name}: {row}"] = list(pixels.permute(0, 2, 3, 1).numpy())
    pictures.write_grid(path, pictures.rows(rows, least=32))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    before = time.process_time()
    result = work()
    return result, time.process_time() - before


def main() -> None:
    options = _options()
    torch.set_num_threads(1)  # so that processor time is what one thread takes
    base = genlab.load(options.generator)
    assert isinstance(base, GanGenerator)
    classifier = load_image_classifier(options.classifier)
    size = {"image_size": base.image_shape[1], "fit": "pad"}
    train, test = (ImageDataset(path, **size) for path in (options.train, options.test))
    judge = Judge(cnn_fmnist(), test, options.samples)
    config = load(RetargetConfig, None, "retarget", options.search)
    vectors = class_vectors(base)
    rows = nearest(base, classifier, judge.names)
    named = [(base.class_names or ())[row] for row in rows]
    scores: dict[str, list[Score]] = {}
    draws: dict[str, Draw] = {}

    def note(name: str, draw: Draw, repeat: int, seconds: float = 0.0) -> None:
        scores.setdefault(name, []).append(judge.score(draw, repeat * options.samples, seconds))
        draws.setdefault(name, draw)
        print(f"repeat {repeat}, {name}: {scores[name][-1]}", flush=True)

    for repeat in range(options.repeats):
        if "untouched" in options.rows:
            best, mean = [vectors[row] for row in rows], [vectors.mean(0)] * len(rows)
            note("untouched, nearest class", of_vectors(base, best), repeat)
            note("untouched, mean of classes", of_vectors(base, mean), repeat)
        if "classifier" in options.rows:
            seeded = RetargetConfig(**{**asdict(config), "seed": 1000 * repeat})
            work: Any = partial(retarget, base, classifier, judge.names, seeded)
            moved, seconds = timed(work)
            note("by a classifier", of_model(moved.generator), repeat, seconds)
        if "images" in options.rows:
            chosen = choose(train.labels, options.images, repeat)
            images = [row for each in chosen for row in each]
            with tempfile.TemporaryDirectory() as folder:
                work = partial(by_images, options, images, repeat, Path(folder))
                tuned, seconds = timed(work)
            note("by images", of_model(tuned), repeat, seconds)
        if "real" in options.rows:
            real = choose(train.labels, options.samples, repeat)
            scores.setdefault("real training images", []).append(judge.score_real(train, real))
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "classes": judge.names,
        "nearest": named,
        "classifier": options.classifier,
        "judge": judge.extractor.identity(),
        "base_sha256": base.weights_sha256(),
        "samples_per_class": options.samples,
        "images_per_class": options.images,
        "kimg": options.kimg,
        "finetune": options.settings,
        "retarget": asdict(config),
        "scores": {name: [asdict(each) for each in repeats] for name, repeats in scores.items()},
    }
    write_text(options.output / "retargeting.json", json.dumps(record, indent=1) + "\n")
    picture(judge, draws, options.output / "retargeting.png")
    print(f"nearest: {dict(zip(judge.names, named, strict=True))}\n\n{table(scores)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generator", help="a GAN that was not trained on the new classes")
    parser.add_argument("discriminator", help="the one that it was trained with")
    parser.add_argument("train", type=Path, help="training images of the new classes")
    parser.add_argument("test", type=Path, help="test images of the new classes")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--classifier", default="classifier-fmnist", help="to tune by")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=500, help="of each class")
    parser.add_argument("--images", type=int, default=100, help="of each class, to train on")
    parser.add_argument("--kimg", type=float, default=6.0, help="training by images")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, help="what to measure")
    parser.add_argument("--search", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()

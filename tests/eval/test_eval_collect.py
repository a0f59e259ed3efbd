"""Collecting features: batches, parts, interruptions, and what comes out in the end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_extractor import TinyExtractor
from torch import Tensor, nn

from genlab import DiffusionGenerator
from genlab.errors import EvaluationError, OutputError
from genlab.eval.collect import FIRST_IMAGES, Collected, collect
from genlab.eval.metrics.base import Need
from genlab.eval.samples import Drawn, GeneratedImages, Samples
from genlab.runs.processes import Processes

NEEDS = (
    Need("moments", "features"),
    Need("rows", "features"),
    Need("rows", "logits"),
    Need("images"),
    Need("labels"),
)
STEPS = {"schedule": {"name": "karras", "num_steps": 2}}


class Broken(Samples):
    """Some images, until one batch cannot be read."""

    def __init__(self, inner: Samples, last: int) -> None:
        self._inner, self._last = inner, last
        self.count, self.image_shape = inner.count, inner.image_shape
        self.labels, self.class_names = inner.labels, inner.class_names

    def read(self, start: int, stop: int) -> Drawn:
        if start >= self._last:
            raise KeyboardInterrupt
        return self._inner.read(start, stop)

    def identity(self) -> dict[str, object]:
        return self._inner.identity()


@pytest.fixture
def samples(tiny_generator: DiffusionGenerator) -> GeneratedImages:
    labels = [seed % 3 for seed in range(57)]
    sampler = tiny_generator.build_sampler(STEPS)
    return GeneratedImages(tiny_generator, range(57), labels, sampler)


def gather(samples: Samples, folder: Path | None = None, **options: object) -> Collected:
    found = collect(samples, TinyExtractor(), NEEDS, batch_size=8, folder=folder, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def assert_same(a: Collected, b: Collected) -> None:
    assert torch.equal(a.features.rows["features"], b.features.rows["features"])
    assert torch.equal(a.features.rows["logits"], b.features.rows["logits"])
    assert torch.equal(images_of(a), images_of(b))
    assert torch.equal(a.first, b.first)
    ours, theirs = a.features.moments["features"], b.features.moments["features"]
    assert ours.count == theirs.count == 57
    # Parts are merged in another order: float64 rounding.
    assert torch.allclose(ours.mean, theirs.mean, rtol=1e-12, atol=0)
    assert torch.allclose(ours.cov, theirs.cov, rtol=1e-9, atol=1e-15)


def images_of(collected: Collected) -> Tensor:
    assert collected.features.images is not None
    return collected.features.images


def test_everything_is_in_the_order_of_the_images(samples: GeneratedImages) -> None:
    found = gather(samples)
    features = found.features
    assert features.count == 57
    assert images_of(found).shape == (57, 3, 8, 8)
    assert torch.equal(images_of(found)[20:30], samples.read(20, 30).images)
    again = TinyExtractor()(images_of(found), ["features"])["features"]
    assert torch.allclose(features.rows["features"], again, atol=1e-6)
    assert features.labels is not None
    assert features.labels.tolist() == [seed % 3 for seed in range(57)]
    assert torch.equal(found.first, images_of(found)[:FIRST_IMAGES])
    assert found.nfe == 3  # two Heun steps, the last one without its correction
    assert found.seconds > 0
    rows = features.rows["features"].double()
    assert torch.allclose(features.moments["features"].mean, rows.mean(0), rtol=1e-12)
    assert torch.allclose(features.moments["features"].cov, rows.T.cov(), rtol=1e-9, atol=1e-18)


def test_an_interrupted_run_goes_on(samples: GeneratedImages, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        gather(Broken(samples, 32), folder, part_seconds=0.0)
    assert list(folder.glob("part-*"))
    seen: list[int] = []
    found = gather(samples, folder, on_progress=seen.append)
    assert seen[0] == 32
    assert sum(seen) == 57
    assert_same(found, gather(samples))
    assert not folder.exists()


class Slow(Broken):
    """Samples whose every batch took so many seconds to draw, it says."""

    def __init__(self, inner: Samples, last: int, seconds: float) -> None:
        super().__init__(inner, last)
        self._seconds = seconds

    def read(self, start: int, stop: int) -> Drawn:
        return replace(super().read(start, stop), seconds=self._seconds)


def test_the_time_is_that_of_what_this_run_has_drawn(
    samples: GeneratedImages, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):  # after 4 of 8 batches, on a busy machine
        gather(Slow(samples, 32, seconds=1000.0), tmp_path, part_seconds=0.0)
    resumed = gather(Slow(samples, 57, seconds=2.0), tmp_path, keep=True)
    assert (resumed.seconds, resumed.timed) == (8.0, 57 - 32)
    again = gather(Slow(samples, 57, seconds=2.0), tmp_path)
    assert (again.seconds, again.timed) == (0.0, 0)
    whole = gather(Slow(samples, 57, seconds=2.0))
    assert (whole.seconds, whole.timed) == (16.0, 57)


def test_a_damaged_part_is_computed_again(samples: GeneratedImages, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        gather(Broken(samples, 32), folder, part_seconds=0.0)
    (part,) = folder.glob("part-*")
    part.write_bytes(part.read_bytes()[:-100])
    assert_same(gather(samples, folder), gather(samples))


def test_parts_of_other_samples_are_not_mixed_in(
    samples: GeneratedImages, tiny_generator: DiffusionGenerator, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        gather(Broken(samples, 32), folder, part_seconds=0.0)
    sampler = tiny_generator.build_sampler(STEPS)
    others = GeneratedImages(tiny_generator, range(100, 157), [0] * 57, sampler)
    assert_same(gather(others, folder), gather(others))


def test_two_processes_share_the_batches(samples: GeneratedImages, tmp_path: Path) -> None:
    folder, options = tmp_path / "work", {"batch_size": 8, "folder": tmp_path / "work"}
    (folder).mkdir()
    # In turn: the second process finds its peer's part and does its own share.
    second = Processes(rank=1, count=2)
    assert collect(samples, TinyExtractor(), NEEDS, processes=second, **options) is None  # type: ignore[arg-type]
    assert_same(gather(samples, folder), gather(samples))


def test_one_run_at_a_time(samples: GeneratedImages, tmp_path: Path) -> None:
    folder = tmp_path / "work"

    def again(images: int) -> None:
        with pytest.raises(OutputError, match="another run is writing"):
            gather(samples, folder)

    gather(samples, folder, on_progress=again)


def test_features_that_are_not_finite_are_refused(samples: GeneratedImages) -> None:
    extractor = TinyExtractor()
    nn.init.constant_(extractor.head.weight, float("nan"))
    with pytest.raises(EvaluationError, match=r"images 0 \.\.\. 7 are not finite"):
        collect(samples, extractor, [Need("rows", "logits")], batch_size=8)


def test_one_image_is_too_few(tiny_generator: DiffusionGenerator) -> None:
    one = GeneratedImages(tiny_generator, [0], [0], tiny_generator.sampler)
    with pytest.raises(EvaluationError, match="at least two images, got 1"):
        collect(one, TinyExtractor(), NEEDS)

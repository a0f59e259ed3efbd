"""Our generators in torch-fidelity, beside our own way."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch_fidelity
from tiny_extractor import TinyExtractor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from genlab import DiffusionGenerator
from genlab.data.pixels import to_uint8
from genlab.errors import EvaluationError, LabelError, UnknownNameError
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.moments import Moments
from genlab.eval.samples import Drawn
from genlab.eval.torch_fidelity_input import GeneratedDataset, as_torch_fidelity_input

STEPS = {"schedule": {"name": "karras", "num_steps": 2}}


class Wrapped(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """`TinyExtractor` as torch-fidelity wants it."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.inner = TinyExtractor()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.inner(images, self.features_list)
        return tuple(found[name] for name in self.features_list)


class Pixels(Dataset[Tensor]):
    """Stored images."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.fixture
def registered() -> Iterator[str]:
    torch_fidelity.register_feature_extractor("genlab-tiny", Wrapped)
    yield "genlab-tiny"
    del FEATURE_EXTRACTORS_REGISTRY["genlab-tiny"]


def drawn(generator: DiffusionGenerator, seeds: range, labels: list[int] | None) -> Tensor:
    return to_uint8(generator.sample(seeds, labels, STEPS)).expand(-1, 3, -1, -1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker:UserWarning")
@pytest.mark.parametrize("workers", [False, True])
def test_torch_fidelity_sees_what_we_see(
    tiny_generator: DiffusionGenerator, registered: str, workers: bool
) -> None:
    labels = [seed % 3 for seed in range(60)]
    images = as_torch_fidelity_input(tiny_generator, 60, labels, STEPS, batch_size=16)
    real = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8)
    found = torch_fidelity.calculate_metrics(
        input1=images, input2=Pixels(real), feature_extractor=registered, cuda=False,
        batch_size=16, fid=True, isc=True, isc_splits=1, verbose=False, cache=False,
        save_cpu_ram=not workers,
    )  # fmt: skip
    extractor = TinyExtractor()
    ours = extractor(drawn(tiny_generator, range(60), labels), ["features", "logits"])
    a, b = Moments.of(ours["features"]), Moments.of(extractor(real)["features"])
    # torch-fidelity keeps the means in float32.
    assert found["frechet_inception_distance"] == pytest.approx(frechet_distance(a, b), rel=1e-4)
    p = ours["logits"].double().softmax(1)
    score = (p * (p.log() - p.mean(0).log())).sum(1).mean().exp()
    assert found["inception_score_mean"] == pytest.approx(float(score), rel=1e-6)


def test_an_image_follows_from_its_seed(tiny_generator: DiffusionGenerator) -> None:
    seeds = [5, 900, 7, 12, 3]
    labels = [2, 0, 1, 1, 0]
    images = as_torch_fidelity_input(tiny_generator, seeds, labels, STEPS, batch_size=2)
    assert isinstance(images, GeneratedDataset)
    assert len(images) == 5
    backwards = [images[i] for i in (4, 3, 2, 1, 0)][::-1]
    assert all(image.shape == (3, 8, 8) and image.dtype == torch.uint8 for image in backwards)
    for image, seed, label in zip(backwards, seeds, labels, strict=True):
        alone = as_torch_fidelity_input(tiny_generator, [seed], [label], STEPS)[0]
        # A pixel may round the other way: batches of another size are summed in another order.
        assert (image.int() - alone.int()).abs().max() <= 1
    assert torch.equal(images[-1], images[4])
    with pytest.raises(IndexError):
        images[5]


def test_blocks_are_drawn_once(
    tiny_generator: DiffusionGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = as_torch_fidelity_input(tiny_generator, 10, None, STEPS, batch_size=4)
    asked: list[tuple[int, int]] = []
    read = images._images.read

    def noted(start: int, stop: int) -> Drawn:
        asked.append((start, stop))
        return read(start, stop)

    monkeypatch.setattr(images._images, "read", noted)
    batches = list(DataLoader(images, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert asked == [(0, 4), (4, 8), (8, 10)]


def test_wrong_calls_are_refused_at_once(tiny_generator: DiffusionGenerator) -> None:
    with pytest.raises(LabelError, match="3 seeds need as many labels, got 2"):
        as_torch_fidelity_input(tiny_generator, 3, [0, 1])
    with pytest.raises(EvaluationError, match="got 0 seeds"):
        as_torch_fidelity_input(tiny_generator, 0)
    with pytest.raises(UnknownNameError, match="did you mean 'heun'"):
        as_torch_fidelity_input(tiny_generator, 3, None, {"solver": {"name": "huen"}})

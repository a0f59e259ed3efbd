"""Extractors of somebody else, through the door of the built-in ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genlab.errors import ConfigError, UnknownNameError
from genlab.eval.extractors.base import EXTRACTORS, FeatureExtractor, build_extractor
from genlab.eval.metrics.frechet import FrechetDistance

BUILT_IN = {
    "cnn-cifar10", "cnn-fmnist", "dinov2-vitl14", "inception", "inception-192", "inception-64",
    "inception-768", "inception-clean", "inception-legacy",
}  # fmt: skip


class MeanColour(FeatureExtractor):
    """The mean of each channel, times a number from the weights file."""

    name = "mean-colour"
    outputs: Mapping[str, int] = {"features": 3}
    resize = "none"

    def __init__(self, weights: Path | None) -> None:
        text = "1" if weights is None else weights.read_text()
        self.scale, self.weights_sha256 = torch.tensor(float(text)), f"{int(text):064x}"

    def __call__(self, images: Tensor, outputs: Sequence[str] = ("features",)) -> dict[str, Tensor]:
        return {"features": self.scale * images.float().mean((2, 3))}

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def to(self, device: torch.device | str) -> "MeanColour":
        self.scale = self.scale.to(device)
        return self


EXTRACTORS.register("mine")(MeanColour)


def test_a_registered_extractor_is_built_by_name(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("3")
    extractor = build_extractor("mine", tmp_path / "weights.txt")
    images = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    assert torch.equal(extractor(images)["features"], torch.full((2, 3), 21.0))
    assert extractor.identity()["weights_sha256"] == f"{3:064x}"
    assert build_extractor("mine").identity() != extractor.identity()


def test_its_scores_are_not_called_fid() -> None:
    extractor = build_extractor("mine")
    assert FrechetDistance().score_name("fd", extractor) == "fd[mean-colour]"


def test_what_builds_no_extractor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EXTRACTORS, "_loaded", {"wrong": lambda weights: torch.nn.Identity()})
    with pytest.raises(
        ConfigError, match="the extractor 'wrong' builds an object of the type Identity; register"
    ):
        build_extractor("wrong")


def test_names_are_taken_once_and_misspelt_ones_are_named() -> None:
    with pytest.raises(ConfigError, match="'inception' is already registered"):
        EXTRACTORS.register("inception")(MeanColour)
    with pytest.raises(UnknownNameError, match="did you mean 'inception-768'"):
        build_extractor("inception-786")


def test_the_built_in_ones_are_there() -> None:
    assert set(EXTRACTORS) >= BUILT_IN

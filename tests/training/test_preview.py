"""What a preview shows."""

from pathlib import Path
from typing import Any

import pytest

from genlab.data.writing import pictures
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.preconditioning import EDM
from genlab.generators import DiffusionGenerator
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ADMClassifier, SongUNet
from genlab.training.loop import preview


def test_a_model_without_classes_is_shown_in_those_that_guide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = SongUNet(8, 1, 1, model_channels=8, channel_mult=[1], num_blocks=1)
    generator = DiffusionGenerator(network.eval(), EDM())
    classifier = ADMClassifier(
        8, 1, 3, model_channels=32, channel_mult=[1], num_blocks=1, num_head_channels=32
    )
    guidance: dict[str, Any] = {
        "name": "classifier",
        "classifier": NoisyClassifier(classifier.eval(), Discrete(T=50)),
    }
    shown: list[Any] = []
    draw = pictures.grid

    def grid(images: Any, labels: Any, *more: Any) -> Any:
        shown.append(labels)
        return draw(images, labels, *more)

    monkeypatch.setattr(preview, "grid", grid)
    for stack in ([], [guidance]):
        sampler = {"schedule": {"name": "karras", "num_steps": 2}, "guidance": stack}
        preview.draw_preview(generator, 4, sampler, tmp_path / "p.png", "title")
    assert shown == [None, [0, 1, 2, 0]]

"""Every bundled model is drawn from by its name with the same flags, scored, and guides."""

import json
from pathlib import Path

import numpy as np
import pytest

from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.classifiers import is_classifier
from genlab.cli import main

GENERATORS = [name for name in bundled_names() if not is_classifier(bundled_folder(name))]
CLASSIFIERS = sorted(set(bundled_names()) - set(GENERATORS))


@pytest.mark.parametrize("name", GENERATORS)
def test_sample(name: str, tmp_path: Path) -> None:
    command = ["sample", name, "--seeds", "3-4", "--classes", "trouser,bag", "--format", "npz"]
    assert main([*command, "-o", str(tmp_path / "two")]) == 0
    metadata = json.loads((tmp_path / "two" / "manifest.json").read_text())
    with np.load(tmp_path / "two" / metadata["images"]["path"]) as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    assert labels.tolist() == [1, 8]
    # Trousers are narrow and bags are wide: the outer columns of a picture tell them apart.
    side = images.shape[2] // 4
    trouser, bag = (float(i[:, :side].mean() + i[:, -side:].mean()) for i in images)
    assert trouser < bag / 2


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_guide(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", name, "-o", str(tmp_path / "none")]) == 2
    assert "draws nothing itself" in capfd.readouterr().err
    guidance = f"sampler.guidance=[{{name: classifier, classifier: {name}, scale: 4}}]"
    command = ["sample", "edm-fmnist", "--seeds", "0", "--classes", "bag", "--steps", "2"]
    assert main([*command, "-o", str(tmp_path / "one"), guidance]) == 0


def test_one_leaderboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What anybody sees first: all families, scored alike."""
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "show", "--dataset", "fmnist", "--protocol", "offline-2k"]) == 0
    shown = capfd.readouterr().out
    assert all(name in shown for name in GENERATORS)
    assert main(["leaderboard", "csv", "--protocol", "offline-2k", "--score", "fd"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len({line.split(",")[0] for line in lines[1:]}) == 1

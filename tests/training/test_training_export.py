"""From a run to a generator."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import train, write_config, write_slice

import genlab
from genlab.errors import ConfigError, GenLabError, TrainingError
from genlab.training.export import Choice, export
from genlab.training.loop.snapshots import list_snapshots
from genlab.training.loop.state import states
from genlab.training.run import Run


@pytest.fixture(scope="module")
def run(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("export")
    config = write_config(folder, write_slice(fashion_mnist, folder))
    names = ",".join("abcdefghij")
    train(
        config,
        folder / "run",
        f"class_names=[{names}]",
        "output.snapshot_kimg=0.008",
        "output.snapshot_dtype=float32",
        "sampler.schedule.num_steps=3",
        "license=mit",
    )
    return Run(folder / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "network" / "diffusion_pytorch_model.safetensors")


def state_file(run: Run, name: str) -> dict[str, torch.Tensor]:
    return load_file(states(run.states)[-1] / f"{name}.safetensors")


def test_the_folder_is_a_generator(run: Run, tmp_path: Path) -> None:
    chosen = export(run, tmp_path / "out", Choice())
    assert (chosen.images, chosen.error) == (24, 0)
    expected = state_file(run, "average-halflife")
    found = weights(tmp_path / "out")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    generator = genlab.load(str(tmp_path / "out"))
    assert generator.class_names == tuple("abcdefghij")
    assert generator.image_shape == (1, 16, 16)
    assert generator.sample([0, 1], [3, 4]).isfinite().all()
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["has_null_class"] is True
    assert index["sampler"]["schedule"]["num_steps"] == 3


def test_the_model_card_tells_how_it_was_made(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path, Choice(), extra_rows={"Score": "97 %"})
    card = (tmp_path / "README.md").read_text()
    for text in (
        'license: "mit"',
        "| Score | 97 % |",
        "| Data | slice.npz, 32 images, 16x16, grey |",
        "| Classes | 10: a, b,",
        "| Steps | 6 of 4 images: 24 images |",
        "CPU cores",
        "model_channels: 8",
    ):
        assert text in card
    assert "path: slice.npz" in card  # and not where it lies on this machine


def test_half_precision_halves_the_file(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path / "full", Choice())
    export(run, tmp_path / "half", Choice(), dtype="float16")
    half, full = weights(tmp_path / "half"), weights(tmp_path / "full")
    assert {value.dtype for value in half.values()} == {torch.float16}
    for name, value in full.items():
        # Rounding to 11 bits; below 6e-5 the steps of float16 stay equal.
        assert torch.allclose(half[name].float(), value, rtol=2**-11, atol=2**-25)


def test_any_average_can_be_had(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path / "raw", Choice.parse("none"))
    raw = state_file(run, "network-network")
    assert all(torch.equal(value, raw[key]) for key, value in weights(tmp_path / "raw").items())
    export(run, tmp_path / "stored", Choice.parse("sigma_rel=0.1"))
    stored = state_file(run, "average-power-0.100")
    found = weights(tmp_path / "stored")
    for name, value in stored.items():
        assert torch.allclose(found[name], value, atol=1e-6)
    chosen = export(run, tmp_path / "new", Choice.parse("0.08"))
    assert 0 < chosen.error < 0.1
    early = export(run, tmp_path / "early", Choice.parse("halflife", images=8))
    assert early.images == 8
    snapshot = next(s for s in list_snapshots(run.snapshots) if s.average == "halflife")
    found = weights(tmp_path / "early")
    assert all(torch.equal(found[key], value) for key, value in load_file(snapshot.path).items())


def test_a_snapshot_newer_than_the_state_counts(run: Run, tmp_path: Path) -> None:
    newer = run.snapshot_path(28, "halflife")
    newer.write_bytes(run.snapshot_path(8, "halflife").read_bytes())
    try:
        assert export(run, tmp_path, Choice()).images == 28
    finally:
        newer.unlink()


@pytest.mark.parametrize(
    ("text", "images", "error", "named"),
    [
        ("nope", None, ConfigError, "write halflife, none"),
        ("width=0.1", None, ConfigError, "write halflife, none"),
        ("0.9", None, TrainingError, r"between 0 and 0\.28"),
        ("halflife", 9, TrainingError, "8, 16, 24"),
        ("none", 8, TrainingError, "last state only"),
        ("0.08", 3, TrainingError, "no power-function averages"),
    ],
)
def test_what_is_not_there_is_named(
    run: Run, tmp_path: Path, text: str, images: int | None, error: type[GenLabError], named: str
) -> None:
    with pytest.raises(error, match=named):
        export(run, tmp_path / "out", Choice.parse(text, images))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training run"):
        export(Run(tmp_path), tmp_path / "out", Choice())

"""Generators on disk: what is saved comes back, and damage is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import genlab
from genlab import DiffusionGenerator, Generator
from genlab.diffusion.preconditioning import IDDPM
from genlab.errors import CheckpointError, OutputError
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ClassifierCNN, DhariwalUNet
from genlab.saving.folder import write_folder

FEW = {"schedule": {"num_steps": 3}}
WEIGHTS = Path("network") / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_what_is_saved_comes_back(tiny_generator: DiffusionGenerator, tiny_model: Path) -> None:
    loaded = genlab.load(tiny_model)
    assert isinstance(loaded, DiffusionGenerator)
    assert loaded.metadata() == tiny_generator.metadata()
    assert loaded.weights_sha256() == tiny_generator.weights_sha256()
    assert torch.equal(loaded.sample([3], sampler=FEW), tiny_generator.sample([3], sampler=FEW))


def test_all_facts_are_kept(tmp_path: Path) -> None:
    network = DhariwalUNet(8, 1, 2, model_channels=8, channel_mult=[1], num_blocks=1)
    sampler = {"solver": {"name": "euler"}, "schedule": {"name": "iddpm", "num_steps": 5}}
    made = DiffusionGenerator(network, IDDPM(M=100), sampler=sampler, card="# A model\n")
    made.save_pretrained(tmp_path / "a")
    read = DiffusionGenerator.from_pretrained(tmp_path / "a")
    assert read.metadata() == made.metadata()
    assert read.card == "# A model\n"
    assert isinstance(read.network, DhariwalUNet)
    # Saved again it is the same, with no trace of where it was read from.
    read.save_pretrained(tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*"))
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*"))
    for name in filter(lambda name: (tmp_path / "a" / name).is_file(), files):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saving_over_an_older_model_replaces_it_and_keeps_other_files(
    tiny_generator: DiffusionGenerator, tmp_path: Path
) -> None:
    network = DhariwalUNet(8, 1, 1, model_channels=8, channel_mult=[1], num_blocks=1)
    folder = tmp_path / "model"
    DiffusionGenerator(network, IDDPM()).save_pretrained(folder)
    (folder / "network" / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"old")
    (folder / "notes.txt").write_text("mine")
    tiny_generator.save_pretrained(folder)
    assert genlab.load(folder).metadata() == tiny_generator.metadata()
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]
    assert len(list((folder / "network").iterdir())) == 2


def test_half_precision_weights_are_read_as_float32(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    save_file({name: t.half() for name, t in tensors.items()}, model / WEIGHTS, {"format": "pt"})
    assert DiffusionGenerator.from_pretrained(model).dtype == torch.float32


def cut(model: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])


def drop_a_tensor(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, model / WEIGHTS, {"format": "pt"})


def add_a_tensor(model: Path) -> None:
    tensors = load_file(model / WEIGHTS) | {"extra": torch.zeros(1)}
    save_file(tensors, model / WEIGHTS, {"format": "pt"})


def edit(name: str, **changes: Any) -> Any:
    def change(model: Path) -> None:
        content = json.loads((model / name).read_text()) | changes
        (model / name).write_text(json.dumps(content))

    return change


DAMAGE = {
    "cut short": (cut, "cut short"),
    "no weights": (lambda model: (model / WEIGHTS).unlink(), "cannot be read"),
    "no network": (lambda model: shutil.rmtree(model / "network"), "cannot be read"),
    "tensor missing": (drop_a_tensor, "missing keys"),
    "tensor too many": (add_a_tensor, "unexpected keys"),
    "other width": (edit("network/config.json", model_channels=16), "does not fit"),
    "no index": (lambda model: (model / "model_index.json").unlink(), "model_index.json"),
    "not JSON": (lambda model: (model / "model_index.json").write_text("{"), "cannot be read"),
    "deep JSON": (lambda model: (model / "model_index.json").write_text("[" * 10**5), "cannot be"),
    "no component": (edit("model_index.json", network="SongUNet"), "names no network"),
    "foreign class": (edit("model_index.json", network=["os", "system"]), "has no model system"),
    "not imported": (edit("model_index.json", network=["antigravity", "x"]), "not GenLab's"),
    "future class": (edit("model_index.json", network=["genlab.networks.x", "X"]), "update GenLab"),
    "other family": (edit("model_index.json", family="gan"), "SongUNet is no GAN"),
    "unknown family": (edit("model_index.json", family="vae"), "family 'vae'"),
    "no preconditioning": (edit("model_index.json", preconditioning=None), "lacks preconditioning"),
    "other preconditioning": (
        edit("model_index.json", preconditioning="edm"),
        "object with a name",
    ),
    "preconditioning of the future": (
        edit("model_index.json", preconditioning={"name": "new"}),
        r"model_index\.json does not fit: there is no preconditioning 'new'",
    ),
    "no names": (edit("model_index.json", class_names=3), "class_names in .* must be a list"),
    "few names": (edit("model_index.json", class_names=["one"]), "does not fit: 1 class names"),
    "null class in words": (
        edit("model_index.json", has_null_class="no"),
        "true or false, got 'no'",
    ),
    "no sampler": (edit("model_index.json", sampler=[1]), "sampler in .* must be an object"),
    "other sampler": (
        edit("model_index.json", sampler={"solver": 3}),
        "does not fit: the model's own sampler: solver takes a mapping",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(model: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(model)
    with pytest.raises(CheckpointError, match=message):
        genlab.load(model)


def test_a_family_from_elsewhere_need_not_say_more_than_its_name(model: Path) -> None:
    class Elsewhere(Generator):
        family = "elsewhere"

    with pytest.raises(CheckpointError, match=r"no model of this family but .* 'diffusion'"):
        Elsewhere.from_pretrained(model)


@pytest.mark.parametrize("kind", ["no index", "unknown family", "no preconditioning"])
def test_pipelines_name_it_too(model: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(model)
    with pytest.raises(CheckpointError, match=message):
        genlab.GenLabPipeline.from_pretrained(model)


@pytest.mark.parametrize(
    "network",
    [
        DhariwalUNet(8, 1, 1, model_channels=8, channel_mult=[1], num_blocks=1),
        ClassifierCNN(8, 1, 3, channels=[8]),
    ],
    ids=lambda network: type(network).__name__,
)
def test_only_classifiers_of_noisy_images_call_themselves_so(
    network: nn.Module, tmp_path: Path
) -> None:
    metadata = {"family": "noisy-classifier", "preconditioning": IDDPM().to_config()}
    write_folder(tmp_path / "model", network, metadata)
    with pytest.raises(CheckpointError, match="is no classifier of noisy images"):
        NoisyClassifier.from_pretrained(tmp_path / "model")


def test_a_folder_that_cannot_be_written(
    tiny_generator: DiffusionGenerator, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the model"):
        tiny_generator.save_pretrained(tmp_path / "file" / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

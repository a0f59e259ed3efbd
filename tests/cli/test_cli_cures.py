"""A cure that a message names is taken: each is read out of the message, and run."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_adapters import write_base, write_small_adapter
from tiny_autoencoder import tiny_kl

import genlab
from genlab import DiffusionGenerator, cli
from genlab.data.writing.writers import write_npz
from genlab.networks import DiT
from genlab.training.recommend.speed import Speed

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder: exit code, and all that it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        code = cli.main([*map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out + err

    return call


def refused(answer: tuple[int, str]) -> str:
    """The sentence of a refusal."""
    code, text = answer
    assert code == 2, text
    assert len(text.splitlines()) == 1
    return text


def command_in(text: str, **values: str) -> list[str]:
    """The command in a message, with values for the words that stand for them."""
    found = re.search(r"'genlab ([^']*)'", text)
    assert found is not None, text
    words = shlex.split(found[1])
    for placeholder, value in values.items():
        assert any(placeholder in word for word in words), (placeholder, words)
        words = [re.sub(rf"\b{placeholder}\b", value, word) for word in words]
    return words


def setting_in(text: str, pattern: str) -> list[str]:
    """A setting or an option in a message, as words of a command line."""
    found = re.search(pattern, text)
    assert found is not None, text
    return shlex.split(found[0]) if found[0].startswith("--") else [found[0]]


# Files that do not tell all that a network needs.


def write_dit() -> None:
    """``official.pt``, whose heads leave no trace in it."""
    network = DiT(4, 4, 8, 3, patch_size=2, hidden_size=24, depth=1, num_heads=2)
    torch.save(network.state_dict(), "official.pt")


@pytest.mark.parametrize("command", ["sample", "doctor", "eval"])
def test_arguments_that_a_file_lacks_are_given_to_convert(run: Run, command: str) -> None:
    write_dit()
    text = refused(run(command, "official.pt"))
    assert run(*command_in(text, FOLDER="model", NAME="dit"), "num_heads=2")[0] == 0
    assert genlab.load("model").num_classes == 3


def test_a_missing_number_of_heads_is_given_to_convert(run: Run) -> None:
    write_dit()
    Path("official.pt").rename("DiT-official.pt")
    text = refused(run("doctor", "DiT-official.pt"))
    assert "the attention heads leave no trace" in text
    assert run(*command_in(text, FOLDER="model", N="2"))[0] == 0
    assert run("doctor", "model")[0] == 0


# Classes and guidance.


def write_set(classes: int = 0, count: int = 60, size: int = 16) -> str:
    """Grey noise as ``set.npz``."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    labels: dict[str, Any] = {"arr_1": np.arange(count) % classes} if classes else {}
    np.savez("set.npz", arr_0=pixels, **labels)
    return "set.npz"


def test_images_without_classes_are_trained_on_without(run: Run) -> None:
    told = ["train", "dit-cifar10", "--dry-run", f"data.path={write_set()}"]
    text = refused(run(*told))
    told += setting_in(text, r"data\.labels=false")
    text = refused(run(*told))
    told += setting_in(text, r"sampler\.guidance=\[\]")
    assert run(*told)[0] == 0


def test_images_without_classes_are_encoded_without(run: Run) -> None:
    tiny_kl().save_pretrained("kl")
    told = ["data", "encode", write_set(), "-o", "latents", "--autoencoder", "kl"]
    text = refused(run(*told))
    assert run(*told, *setting_in(text, "--no-labels"))[0] == 0
    text = refused(run("train", "dit-cifar10", "--dry-run", "data.path=latents"))
    without = [*setting_in(text, r"data\.labels=false"), "sampler.guidance=[]"]
    told = ["train", "dit-cifar10", "--dry-run", "data.path=latents", *without]
    assert run(*told)[0] == 0


def test_guidance_without_a_scale_gets_one(run: Run, tiny_model: Path) -> None:
    told = ["sample", tiny_model, "--seeds", "0", "--steps", "2", "-o", "out"]
    told += ["sampler.guidance=cfg"]
    text = refused(run(*told))
    assert run(*told, *setting_in(text, r"sampler\.guidance\.0\.scale=2"))[0] == 0


def test_guidance_without_a_scale_takes_that_of_the_base(tmp_path: Path) -> None:
    """In fine-tuning too, where the sampler is laid over the base's own."""
    base = genlab.load(write_base(tmp_path / "base"))
    assert isinstance(base, DiffusionGenerator)
    base.changed(sampler={"guidance": [{"name": "cfg", "scale": 3.0}]}).save_pretrained(
        tmp_path / "guided"
    )
    write_small_adapter(tmp_path / "adapter", tmp_path / "guided", "bitfit", "sampler.guidance=apg")
    sampler: Any = genlab.load(tmp_path / "adapter").sampler
    assert [(each["name"], each["scale"]) for each in sampler.config["guidance"]] == [("apg", 3.0)]


def test_fewer_labels_than_seeds_take_turns(run: Run, tiny_model: Path) -> None:
    told = ["sample", tiny_model, "--seeds", "0-4", "--steps", "1", "-o", "out"]
    text = refused(run(*told, "--labels", "1,2"))
    assert run(*told, *setting_in(text, r"--classes \S+"))[0] == 0


# Data, recommendations, output.


def test_a_transformer_is_trained_on_latents(run: Run) -> None:
    tiny_kl().save_pretrained("kl")
    assert run("data", "encode", write_set(3), "-o", "lat", "--autoencoder", "kl")[0] == 0
    text = refused(run("presets", "recommend", "lat"))
    short = ["duration_kimg=0.016", "batch_size=8", "network.depth=1", "network.hidden_size=16"]
    short += ["mixed_precision=no", "output.tensorboard=false", "-o", "run", "--device", "cpu"]
    assert run(*command_in(text), *short)[0] == 0
    assert run("train", "export", "run", "-o", "model")[0] == 0
    assert genlab.load("model").image_shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("size", "classes", "options", "cure"),
    [
        (32, 3, ["--minutes", "1"], r"--minutes \d+"),
        (32, 3, ["--size", "20"], r"--size \d+"),
        (300, 3, [], r"--size \d+"),
        (32, 0, ["--family", "biggan"], r"--family edm"),
    ],
)
def test_what_a_recommendation_asks_for(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    classes: int,
    options: list[str],
    cure: str,
) -> None:
    monkeypatch.setattr(
        "genlab.training.recommend.recommendation.measure_speed",
        lambda config, facts, device: Speed(images_per_second=100.0, steps=3, seconds=1.0),
    )
    told = ["presets", "recommend", write_set(classes, 50, size), "-o", "own.yaml"]
    text = refused(run(*told, *options))
    instead = re.findall(cure, text)[-1].split()  # the first may be what was asked for
    kept = [] if options[:1] == instead[:1] else options
    assert run(*told, *kept, *instead)[0] == 0
    assert run("train", "own.yaml", "--dry-run")[0] == 0


def test_an_archive_is_a_format_and_no_name(run: Run, tiny_model: Path) -> None:
    told = ["sample", tiny_model, "--seeds", "0-1", "--steps", "1"]
    text = refused(run(*told, "-o", "mine.npz"))
    found = re.search(r"(-o mine --format npz) writes (\S+)", text)
    assert found is not None
    assert run(*told, *found[1].split())[0] == 0
    assert Path(found[2]).is_file()


def test_a_list_of_levels_is_made_again(run: Run, tiny_model: Path) -> None:
    told = ["sample", tiny_model, "--seeds", "0", "-o", "out"]
    levels = "sampler.schedule={name: levels, sigmas: [9, 3, 1]}"
    text = refused(run(*told, levels, "--steps", "4"))
    quick = ["--teacher-steps", "8", "--seeds", "0-3"]
    words = command_in(text, MODEL=str(tiny_model))
    assert run(*words, *quick, "-o", "levels.yaml")[0] == 0
    assert run(*told, "sampler.schedule=levels.yaml")[0] == 0


# Scores.


@pytest.mark.parametrize("cure", [r"metrics=\[\{name: kd, subset_size: \d+\}\]",
                                  r"metrics=\[\{name: kd, variant: exact\}\]"])  # fmt: skip
def test_subsets_that_cannot_be_drawn(run: Run, tiny_model: Path, cure: str) -> None:
    import tiny_extractor  # noqa: F401 - registers the extractor "tiny"

    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    write_npz(Path("real.npz"), iter(pixels), pixels.shape, [i % 3 for i in range(40)])
    told = ["eval", tiny_model, "--reference", "real.npz", "--count", "40", "--dataset", "toys"]
    told += ["extractor=tiny", "sampler.schedule.num_steps=1", "-o", "board", "-q"]
    text = refused(run(*told, "--metrics", "kd"))
    assert run(*told, *setting_in(text, cure))[0] == 0


def test_an_adapter_becomes_a_whole_model(run: Run) -> None:
    base = write_base(Path("base"))
    write_small_adapter(Path("mine"), base)
    for told in (["convert", "mine", "-o", "out"], ["finetune", "./mine", "--data", write_set(3)]):
        words = command_in(refused(run(*told)))
        words[-1] = f"whole-{told[0]}"
        assert run(*words)[0] == 0
        assert genlab.load(words[-1]).num_classes == 3

"""``genlab retarget``: the folder that it writes, and what it says of settings that are wrong."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from toy_gan import toy_gan

import genlab
from genlab.cli import main
from genlab.data.writing import pictures
from genlab.eval.image_classifiers import load_image_classifier
from genlab.finetuning.gan.retarget import retarget
from genlab.finetuning.gan.search import ClassSearch, RetargetConfig
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan import BigGANGenerator
from genlab.networks.classifier_cnn import ClassifierCNN

CARD = "---\nlicense: MIT\nlibrary_name: genlab\n---\n# small\n"
SHORT = ("rounds=2", "steps=2", "latents=2", "starts=1")


def small_gan(**options: Any) -> GanGenerator:
    settings = {"channels": 4, "dim_z": 16, "shared_dim": 8, "img_channels": 1, **options}
    network: Any = BigGANGenerator(32, 3, **settings).eval()
    with torch.no_grad():  # so that classes and latents show
        network.output_layer[2].weight *= 4
    return GanGenerator(network, class_names=["one", "two", "bag"], card=CARD)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GAN, one in colour, one without class vectors, and a small classifier."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    small_gan().save_pretrained(folder / "gan")
    small_gan(img_channels=3).save_pretrained(folder / "colour")
    toy_gan().save_pretrained(folder / "toy")
    network = ClassifierCNN(32, 3, 3, channels=(4, 8), class_names=["dark", "light", "Bag"])
    network.eval().save_pretrained(folder / "cnn")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> tuple[int, str, str]:
        code = main(["retarget", *map(str, words), "--device", "cpu"])
        return code, *capsys.readouterr()

    return call


def test_the_folder_holds_the_generator_that_the_function_makes(
    models: Path, run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    options = ["--classifier", models / "cnn", "--classes", "light,dark", "-o", folder, "--json"]
    code, out, _ = run(models / "gan", *options, "--seed", 3, *SHORT)
    assert code == 0
    report = json.loads(out)
    base, classifier = genlab.load(models / "gan"), load_image_classifier(str(models / "cnn"))
    assert isinstance(base, GanGenerator)
    config = RetargetConfig(rounds=2, steps=2, latents=2, starts=1, seed=3)
    expected = retarget(base, classifier, ["light", "dark"], config)
    made = genlab.load(folder)
    assert made.class_names == ("light", "dark")
    seeds, labels = range(6), [0, 1] * 3
    assert torch.equal(made.sample(seeds, labels), expected.generator.sample(seeds, labels))
    assert [each["probability"] for each in report["classes"]] == [
        each.probability for each in expected.found
    ]
    assert [each["target"] for each in report["classes"]] == [1, 0]
    assert report["base"] == {"name": "gan", "sha256": base.weights_sha256()}
    assert json.loads((folder / "retarget.json").read_text()) == {
        key: value for key, value in report.items() if key != "folder"
    }
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "before-after.png", "model_index.json", "network", "retarget.json"
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_card_says_what_was_done_and_the_picture_shows_it(
    models: Path, run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    classes = ["--classes", "purse=bag", "--judge", models / "cnn", "--lr", 0.05]
    options = ["--classifier", "classifier-fmnist", *classes, "-o", folder, "--keep"]
    code, out, err = run(models / "gan", *options, *SHORT, "sampler.truncation=0.4")
    assert code == 0, err
    judge = load_image_classifier(str(models / "cnn"))  # calls it Bag
    classifier = load_image_classifier("classifier-fmnist")
    made = genlab.load(folder)
    assert made.class_names == ("one", "two", "bag", "purse")
    assert made.sampler.config["truncation"] == 0.4
    card = (folder / "README.md").read_text()
    for part in (
        'license: "mit"', "# new", "one, two, bag, purse", f"classifier-fmnist, SHA-256 "
        f"{classifier.sha256}", "gan, SHA-256", "lr: 0.05", "truncation: 0.4", "can be fooled",
        "| purse | ", "taken for it by cnn before", "before-after.png",
    ):  # fmt: skip
        assert part in card, part
    assert judge.sha256 is not None
    assert json.loads((folder / "retarget.json").read_text())["judge"]["sha256"] == judge.sha256
    assert "purse: from " in out
    assert "; cnn takes " in out
    assert f"{folder}: one, two, bag, purse" in out
    with Image.open(folder / "before-after.png") as picture:
        assert picture.height >= 2 * pictures.MIN_TILE
        assert picture.width >= 8 * pictures.MIN_TILE


def test_a_dry_run_says_what_would_be_done(models: Path, run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    words = [models / "gan", "--classifier", "cnn-fmnist", "--classes", "shoe=7,bag", "--dry-run"]
    code, out, err = run(*words, "-o", folder, "--start", "mean", "--starts", 2)
    assert code == 0
    assert "start: mean" in out
    assert "truncation: null" in out
    assert "shoe (as sneaker), bag by cnn-fmnist" in err
    assert "2 attempts of 200 steps for each class, 8,000 images in all" in err
    assert "images for the classifier: grey repeated as RGB" in err
    code, out, _ = run(*words, "-o", folder, "--json")
    plan = json.loads(out)
    # The GAN has three classes to begin at.
    assert (plan["classes"], plan["steps"]) == ({"shoe": 7, "bag": 8}, 2 * 3 * 200)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["search", "picture"])
def test_a_stopped_run_leaves_nothing(
    where: str, models: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if where == "search":
        monkeypatch.setattr(ClassSearch, "probability", stop)
    else:
        monkeypatch.setattr(pictures, "write_grid", stop)
    words = ["--classifier", models / "cnn", "--classes", "dark", "-o", tmp_path / "new", *SHORT]
    code, _, err = run(models / "gan", *words)
    assert code == 130
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gan", "--classes", "light,shoe"], "the classifier cnn: .* no class 'shoe'"),
        (["gan", "--classes", "light,Light"], "name 'light' twice"),
        (["gan", "--classes", "light,"], "'' names no class"),
        (["gan", "--classes", "light="], "'light=' names no class"),
        (["gan", "--classes", "night=3"], "class 3 is out of range: .* 0 ... 2"),
        (["gan", "--classes", "light", "--start", "own"], "no class 'light' to begin with"),
        (["gan", "--classes", "light", "rate=1"], "rate"),
        (["gan", "--classes", "light", "--steps", "0"], "steps must be at least 1"),
        (["gan", "--classes", "light", "sampler.psi=1"], "psi"),
        (["gan", "--classes", "light", "-o", "{models}"], "holds other files"),
        (["gan", "--classes", "light", "-o", "{models}/gan"], "holds a model already"),
        (["gan", "--classes", "light", "--judge", "cnn-fmnist"], "cnn-fmnist: .* 'light'"),
        (["toy", "--classes", "light"], "has a table of classes in every layer, so"),
        (["edm-fmnist", "--classes", "light"], "family 'diffusion', .*'genlab finetune edm-fmnist"),
        (["colour", "--classes", "bag", "--classifier", "classifier-fmnist"], "images of 1 chan"),
        (["gan", "--classes", "bag", "--classifier", "cnn-fminst"], "no classifier .*cnn-fmnist"),
        (["gan", "--classes", "bag", "--classifier", "inception"], "inception gives no gradients"),
        (["gan", "--classes", "bag", "--classifier", "{models}/gan"], "no classifier of noisy"),
        (["gan", "--classes", "bag", "--classifier", "{models}"], "config.json cannot be read"),
        (["--classes", "bag"], "which MODEL?"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: Sequence[str],
    message: str,
    models: Path,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("{models}", str(models)) for word in words]
    if arguments[0] in ("gan", "toy", "colour"):
        arguments[0] = str(models / arguments[0])
    if "--classifier" not in arguments:
        arguments += ["--classifier", str(models / "cnn")]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert list(tmp_path.iterdir()) == []

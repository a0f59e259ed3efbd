"""An adapter's folder is read again: what a run has trained, on the base that it names."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import BASE_NAMES, FEW, NAMES, draw, write_base, write_small_adapter

import genlab
from genlab.config import load as load_config
from genlab.errors import CheckpointError, ConfigError, UnknownNameError
from genlab.finetuning.adapters.folders import (
    adapters_under,
    find_adapter,
    forget,
    is_adapter,
    keep,
)
from genlab.finetuning.adapters.loading import load_adapter
from genlab.finetuning.adapters.merging import merged
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.methods.base import METHODS
from genlab.finetuning.trainer import FinetuneTrainer
from genlab.saving.adapted import adaptation_of

UNMERGEABLE = ("adapter", "vpt")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter; tests copy what they spoil."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    write_small_adapter(folder, base, "lora")
    return folder


@pytest.mark.parametrize("method", METHODS.in_order())
def test_every_method_is_read_as_it_was_trained(method: str, base: Path, tmp_path: Path) -> None:
    expected = write_small_adapter(tmp_path / "lamps", base, method)
    generator: Any = genlab.load(tmp_path / "lamps")
    assert torch.equal(draw(generator), draw(expected))
    assert (draw(generator) - draw(genlab.load(base))).abs().max() > 0.01
    assert generator.class_names == NAMES
    assert generator.metadata() == expected.metadata()
    assert generator.card.startswith("---\nlicense")
    marked = adaptation_of(generator.network)
    assert marked is not None
    assert generator.identity()["adapted_by"] == {"method": marked.method, "sha256": marked.sha256}
    assert marked.method["name"] == method
    if method in UNMERGEABLE:
        with pytest.raises(ConfigError, match="cannot be merged"):
            merged(generator)
        return
    plain = merged(generator)
    assert (draw(plain) - draw(generator)).abs().max() < 1e-3
    assert adaptation_of(plain.network) is None
    plain.save_pretrained(tmp_path / "plain")
    assert torch.equal(draw(genlab.load(tmp_path / "plain")), draw(plain))


def test_classes_of_the_base_and_none_at_all(base: Path, tmp_path: Path) -> None:
    expected = write_small_adapter(tmp_path / "same", base, "bitfit", names=BASE_NAMES)
    same = genlab.load(tmp_path / "same")
    assert same.class_names == BASE_NAMES
    assert torch.equal(draw(same), draw(expected))
    assert json.loads((tmp_path / "same/adapter_config.json").read_text())["classes"] == []
    expected = write_small_adapter(tmp_path / "none", base, "bitfit", names=None)
    none = genlab.load(tmp_path / "none")
    assert (none.num_classes, none.class_names) == (0, None)
    assert torch.equal(draw(none), draw(expected))


def test_forgotten_classes_keep_their_names(base: Path, tmp_path: Path) -> None:
    kept = ("T-shirt/top", "Sneaker", "Ankle boot")
    expected = write_small_adapter(tmp_path, base, "bitfit", "forget.classes=[bag]", names=kept)
    assert genlab.load(tmp_path).class_names == BASE_NAMES
    assert torch.equal(draw(genlab.load(tmp_path)), draw(expected))


@pytest.mark.parametrize("initial", ["{cat: sneaker, frog: bag, ship: 0}", "random", "nearest"])
def test_where_classes_began_and_the_resolution_are_repeated(
    initial: str, base: Path, tmp_path: Path
) -> None:
    """The table does not train here: it is made again from the base's."""
    settings = ("resolution=12", f"classes.initial={initial}", "method.class_table=false")
    expected = write_small_adapter(tmp_path, base, "lora", *settings)
    generator = genlab.load(tmp_path)
    assert generator.image_shape == (1, 12, 12)
    assert torch.equal(draw(generator), draw(expected))


def test_a_null_class_that_the_run_has_trained(base: Path, tmp_path: Path) -> None:
    without = genlab.load(base).changed(has_null_class=False)
    without.save_pretrained(tmp_path / "without")
    dropout = "objective.label_dropout=0.1"
    write_small_adapter(tmp_path / "lamps", tmp_path / "without", "diffit", dropout)
    generator: Any = genlab.load(tmp_path / "lamps")
    assert generator.has_null_class


def test_two_adapters_of_one_base_are_two_models(lora: Path, tmp_path: Path) -> None:
    """Options that stand in no tensor count, too; the place does not."""
    shutil.copytree(lora, tmp_path / "other")
    for name, key in (("genlab.json", "alpha"), ("adapter_config.json", "lora_alpha")):
        path = tmp_path / "other" / name
        values = json.loads(path.read_text())
        (values["method"] if name == "genlab.json" else values)[key] = 7
        path.write_text(json.dumps(values))
    first, second = genlab.load(lora), genlab.load(tmp_path / "other")
    assert first.weights_sha256() == second.weights_sha256()
    assert first.identity() != second.identity()
    assert not torch.equal(draw(first), draw(second))
    shutil.copytree(lora, tmp_path / "copy")
    assert genlab.load(tmp_path / "copy").identity() == first.identity()


def test_an_adapted_model_is_not_written_as_a_plain_one(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has the adapter 'lora' beside its weights.*merge"):
        genlab.load(lora).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_by_another_name(base: Path, lora: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    expected = draw(genlab.load(lora))
    assert torch.equal(draw(genlab.load(tmp_path / "base", adapter=lora)), expected)
    values = json.loads((lora / "genlab.json").read_text())
    shutil.copytree(lora, tmp_path / "moved")
    (tmp_path / "moved" / "genlab.json").write_text(json.dumps({**values, "base": "no/where"}))
    with pytest.raises(CheckpointError, match=r"belongs to the model no/where, which.*--adapter"):
        genlab.load(tmp_path / "moved")
    assert torch.equal(draw(genlab.load(base, adapter=tmp_path / "moved")), expected)


def test_another_base_is_refused_with_both_hashes(base: Path, lora: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", seed=5)
    digests = [genlab.load(folder).weights_sha256()[:12] for folder in (base, other)]
    with pytest.raises(CheckpointError, match=f"{digests[0]}, and those of .* have {digests[1]}"):
        genlab.load(other, adapter=lora)


def test_an_adapter_is_no_base(base: Path, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is an adapter, and a base must be a whole model; merge"):
        genlab.load(lora, adapter=lora)
    with pytest.raises(ConfigError, match="has the adapter 'lora' already"):
        load_adapter(lora, genlab.load(lora))
    settings = [f"base={lora}", "data.path=photographs/"]
    config = load_config(FinetuneConfig, "diffit", "finetune", settings)
    with pytest.raises(ConfigError, match=r"is an adapter.*genlab adapter merge"):
        FinetuneTrainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_kept_adapter_is_found_by_its_name(base: Path, lora: Path) -> None:
    keep(lora, "kept-lora")
    folder = find_adapter("kept-lora")
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "genlab.json",
    ]  # fmt: skip
    expected = draw(genlab.load(lora))
    assert torch.equal(draw(genlab.load("kept-lora")), expected)
    assert torch.equal(draw(genlab.load(base, adapter="kept-lora")), expected)
    with pytest.raises(UnknownNameError, match="did you mean 'kept-lora'"):
        genlab.load("kept-lorra")
    with pytest.raises(ConfigError, match="is kept as kept-lora already"):
        keep(lora, "kept-lora")
    for name, message in (("../up", "cannot be the name"), ("dit-fmnist", "the name of a model")):
        with pytest.raises(ConfigError, match=message):
            keep(lora, name)
    forget("kept-lora")
    assert find_adapter("kept-lora") is None
    with pytest.raises(UnknownNameError, match="no adapter is kept as 'kept-lora'"):
        forget("kept-lora")


def test_a_kept_adapter_finds_a_base_by_a_path_that_was_relative(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    write_small_adapter(tmp_path / "lamps", Path("base"), "bitfit")
    keep(tmp_path / "lamps", "relative")
    monkeypatch.chdir(tmp_path)
    assert genlab.load("relative").num_classes == 3
    forget("relative")


def test_where_adapters_lie(lora: Path, tmp_path: Path) -> None:
    for place in ("a/one", "b/c/two", "b/c/d/e/too-deep", ".hidden/three"):
        shutil.copytree(lora, tmp_path / place)
    found = adapters_under(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/one", "b/c/two"]
    assert is_adapter(tmp_path / "a/one")
    assert not is_adapter(tmp_path)
    (tmp_path / "a/one/adapter_config.json").unlink()  # a run that has not come so far
    for name in ("config.yaml", "base.json"):
        (tmp_path / "a/one" / name).touch()
    with pytest.raises(CheckpointError, match="has stored no adapter yet; wait"):
        genlab.load(tmp_path / "a/one")
    with pytest.raises(UnknownNameError, match="there is no adapter 'nothing'"):
        load_adapter("nothing")


def test_a_model_that_guides_may_be_an_adapter(base: Path, lora: Path) -> None:
    guidance = {"name": "autoguidance", "guide": str(lora), "scale": 2}
    with pytest.raises(ConfigError, match="classes"):  # 3 and 4: it was read
        genlab.load(base).sample([0], [0], {"guidance": [guidance], **FEW})
    adapted = genlab.load(lora)
    guided = adapted.sample([0, 1, 2], [0, 1, 2], {"guidance": [guidance], **FEW})
    assert torch.allclose(guided, draw(adapted), atol=1e-3)  # a model guided by itself

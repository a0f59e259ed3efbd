"""What goes up to a hub, with which card; and back, in a process that knows the name alone."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_server
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from small_adapters import draw, write_base, write_small_adapter
from small_records import make_record

import genlab
from genlab import cli
from genlab.checkpoints.bundled import card_header
from genlab.checkpoints.hub.names import HubName, kept_copy
from genlab.errors import CheckpointError, ConfigError, DownloadError
from genlab.eval.extractors.cnn import bundled_classifier
from genlab.eval.image_classifiers import load_image_classifier
from genlab.eval.leaderboard.records import read_record, write_record
from genlab.publishing.push import plan_push, push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""How the hub's library gives a file to its own HTTP library, when it uploads by LFS."""

MODEL = HubName(repository="ada/tiny")
LAMPS = HubName(repository="ada/lamps")
FILES = [
    "README.md", "model_index.json", "network/config.json",
    "network/diffusion_pytorch_model.safetensors",
]  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with hub_server.hub() as server:
        hub_server.use(server, monkeypatch)
        yield server


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def test_round_trip_in_a_fresh_process(
    hub: HubServer, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model and an adapter of it, by name alone: the same pictures bit for bit."""
    drawn = [draw(genlab.load(base)), draw(write_small_adapter(tmp_path / "lamps", base))]
    assert cli.main(["push", "base", "ada/tiny"]) == 0
    assert cli.main(["push", "lamps", "ada/lamps", "--base", "ada/tiny"]) == 0
    out = capfd.readouterr().out
    assert "use it as 'ada/lamps'" in out
    assert hub.repositories["ada/lamps"].branches["main"] in out
    shutil.rmtree(base)
    shutil.rmtree(tmp_path / "lamps")
    code = (
        "import torch, genlab\n"
        "draw = lambda name: genlab.load(name).sample("
        "[0, 1, 2], [0, 1, 2], {'schedule': {'num_steps': 2}})\n"
        "torch.save([draw('ada/tiny'), draw('ada/lamps')], 'drawn.pt')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **hub_server.environment(hub)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "drawn.pt", weights_only=True)
    assert all(torch.equal(one, other) for one, other in zip(drawn, found, strict=True))


def test_what_goes_up_and_what_stays(hub: HubServer, model: Path) -> None:
    (model / "README.md").write_text("# x\n\n![before](before.png) ![](../secret.png)\n")
    for name in ("log.jsonl", "before.png", "secret.png"):
        (model / name).write_bytes(b"{}")
    for name in ("state.pt", "train.py", ".env", "states/1/optimizer.safetensors",
                 "network/diffusion_pytorch_model.bin", ".git/config"):  # fmt: skip
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"x")
    plan = plan_push(model, MODEL)
    assert list(plan.files) == sorted([*FILES, "before.png", "log.jsonl"])
    assert plan.left == 7
    assert not hub.requests
    push(plan)
    sent = hub.repositories["ada/tiny"].files()
    assert sent.keys() == {*plan.files, ".gitattributes"}
    assert {path: len(sent[path]) for path in plan.files} == plan.sizes()


def test_a_dry_run_lists_and_sends_nothing(
    hub: HubServer, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", str(model), "ada/tiny", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "network/diffusion_pytorch_model.safetensors" in out
    assert "library_name: genlab" in out
    assert cli.main(["push", str(model), "ada/tiny", "--dry-run", "--json"]) == 0
    assert list(json.loads(capfd.readouterr().out)["files"]) == FILES
    assert not hub.requests


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_unless_it_shall_not_be(
    private: bool, hub: HubServer, model: Path
) -> None:
    arguments = ["push", str(model), "ada/tiny", *([] if private else ["--public"])]
    assert cli.main(arguments) == 0
    assert hub.repositories["ada/tiny"].private == private


def test_a_second_push_replaces_the_first(hub: HubServer, model: Path) -> None:
    """In one commit; what is not a model's stays, and a copy here is not taken for the new one."""
    push(plan_push(model, MODEL))
    genlab.load("ada/tiny")
    there = hub.repositories["ada/tiny"]
    shards = ["network/diffusion_pytorch_model-00001-of-00002.safetensors", "records/old.json"]
    old = there.commit({**there.files(), **dict.fromkeys([*shards, "notes.txt"], b"x")})
    facts = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**facts, "class_names": ["a", "b", "c"]}))
    pushed = push(plan_push(model, MODEL))
    assert sorted(pushed.removed) == shards
    assert set(there.files()) == {*FILES, ".gitattributes", "notes.txt"}
    assert pushed.commit == there.branches["main"] != old
    assert kept_copy(MODEL) is None
    again: Any = genlab.load("ada/tiny")
    assert again.class_names == ("a", "b", "c")


def test_a_branch(hub: HubServer, model: Path) -> None:
    assert cli.main(["push", str(model), "ada/tiny", "--revision", "longer"]) == 0
    there = hub.repositories["ada/tiny"]
    assert set(there.files("longer")) > set(FILES)
    assert set(there.files()) == {".gitattributes"}
    assert genlab.load("ada/tiny@longer").num_classes == 3


def test_a_repository_of_something_else_is_left_alone(hub: HubServer, model: Path) -> None:
    hub.put("ada/tiny", {"train.py": b"x", "data.csv": b"x", "README.md": b"x"})
    with pytest.raises(ConfigError, match=r"holds 2 files and no model \(train.py, data.csv\)"):
        push(plan_push(model, MODEL))
    assert len(hub.repositories["ada/tiny"].commits) == 1


def test_who_may_not_write_is_told(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(DownloadError, match=r"does not let you write to ada/tiny \(401\); log in"):
        push(plan_push(model, MODEL))
    assert not hub.repositories
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        push(plan_push(model, MODEL))


def test_only_scores_of_these_weights_go_along(hub: HubServer, model: Path, tmp_path: Path) -> None:
    digest = genlab.load(model).weights_sha256()
    ours = make_record("tiny", fd=(0.5, 0.4, 0.6), nfe=38.0)
    ours = replace(ours, provenance={"family": "diffusion", "weights_sha256": digest})
    write_record(tmp_path / "board", make_record("another", fd=0.1))
    with pytest.raises(ConfigError, match=r"none of the 1 records is of the weights .*genlab eval"):
        plan_push(model, MODEL, records=[tmp_path / "board"])
    file = write_record(tmp_path / "board", ours)
    plan = plan_push(model, MODEL, records=[tmp_path / "board", file])
    assert [path for path in plan.files if path.startswith("records/")] == [f"records/{file.name}"]
    push(plan)
    sent = hub.repositories["ada/tiny"].files()
    (tmp_path / "back.json").write_bytes(sent[f"records/{file.name}"])
    assert read_record(tmp_path / "back.json") == read_record(file)
    data: Any = ModelCard(sent["README.md"].decode()).data
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("fd", 0.5, "fmnist")
    assert result.metric_name == "fd[cnn] (quick, 2,000 images, 2026-01-02)"
    assert result.metric_args == {
        "protocol": "quick", "extractor": "cnn", "reference": "fmnist-train", "count": 2000,
        "nfe": 38.0, "low": 0.4, "high": 0.6,
    }  # fmt: skip


def test_a_card_keeps_what_its_author_wrote(model: Path) -> None:
    (model / "README.md").write_text(
        '---\nlicense: "MIT"\ndatasets: [clothes]\ntags: [mine]\nown_key: 7\n---\n# My model\n\n'
        "Made with care.\n\n```\ngenlab sample PATH_TO_THIS_FOLDER\n```\n"
    )
    card = ModelCard(plan_push(model, MODEL).card)
    data: Any = card.data
    assert data.to_dict() == {
        "license": "mit", "datasets": ["clothes"], "tags": ["mine", "genlab"], "own_key": 7,
        "library_name": "genlab", "pipeline_tag": "unconditional-image-generation",
    }  # fmt: skip
    assert "Made with care." in card.text
    assert "genlab sample ada/tiny\n" in card.text
    (model / "README.md").unlink()
    assert "# tiny" in plan_push(model, MODEL).card
    assert card_header(plan_push(model, MODEL).card)["tags"] == ["genlab"]
    (model / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(ConfigError, match=r"header of the model card README\.md cannot be read"):
        plan_push(model, MODEL)


def test_an_adapter_names_a_base_that_others_have(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lamps"
    write_small_adapter(folder, base)
    with pytest.raises(ConfigError, match=r"means nothing on other machines.*--base OWNER/NAME"):
        plan_push(folder, LAMPS)
    with pytest.raises(ConfigError, match="means nothing on other machines"):
        plan_push(folder, LAMPS, base=str(base))
    plan = plan_push(folder, LAMPS, base="ada/tiny")
    contents = {
        path: each if isinstance(each, bytes) else each.read_bytes()
        for path, each in plan.files.items()
    }
    assert json.loads(contents["genlab.json"])["base"] == "ada/tiny"
    assert json.loads(contents["adapter_config.json"])["base_model_name_or_path"] == "ada/tiny"
    assert card_header(plan.card)["base_model"] == "ada/tiny"
    assert not any(str(tmp_path).encode() in content for content in contents.values())
    assert str(base) in (folder / "genlab.json").read_text()  # the folder here is as it was


def test_an_adapter_of_a_run_leaves_the_run_behind(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lamps"
    write_small_adapter(folder, base, "bitfit")
    for name in ("config.yaml", "base.json", "states/1/state.pt", "log.jsonl", "previews/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    plan = plan_push(folder, LAMPS, base="dit-fmnist")
    assert list(plan.files) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "log.jsonl"
    ]  # fmt: skip
    assert plan.base == "dit-fmnist"
    assert "base_model" not in card_header(plan.card)


def test_a_classifier(hub: HubServer) -> None:
    """An image classifier's folder: what it says of an image comes back bit for bit."""
    folder = bundled_classifier("cnn-fmnist")
    name = HubName(repository="ada/judge")
    plan = plan_push(folder, name)
    assert card_header(plan.card)["pipeline_tag"] == "image-classification"
    push(plan)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    here, there = (load_image_classifier(str(each)) for each in ("cnn-fmnist", "ada/judge"))
    assert torch.equal(here.logits(images), there.logits(images))


def test_a_noisy_classifier(hub: HubServer) -> None:
    from genlab.checkpoints.bundled import bundled_folder
    from genlab.checkpoints.classifiers import load_classifier

    push(plan_push(bundled_folder("classifier-fmnist"), HubName(repository="ada/noisy")))
    there = load_classifier("ada/noisy")
    assert there.sha256() == load_classifier("classifier-fmnist").sha256()
    with pytest.raises(CheckpointError, match="ada/noisy is a classifier of noisy images"):
        genlab.load("ada/noisy")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("absent", "there is no folder"),
        ("empty", "holds no model"),
        ("run", "is a training run.*genlab train export"),
        ("link", "is no ordinary file"),
        ("damaged", "cannot be read"),
        ("pickle", "cannot be read"),
        ("weightless", "no weights as safetensors"),
        ("pipeline", "a StableDiffusionPipeline, which GenLab does not read"),
        ("base", "is no adapter, for which --base has no effect"),
    ],
)
def test_what_is_not_pushed(kind: str, sentence: str, model: Path, tmp_path: Path) -> None:
    weights = model / FILES[-1]
    folder = model
    if kind in ("absent", "empty", "run"):
        folder = tmp_path / "other"
    if kind in ("empty", "run"):
        folder.mkdir()
    if kind == "run":
        (folder / "config.yaml").write_text("seed: 0\n")
    if kind == "link":
        (model / "README.md").symlink_to("/etc/hostname")
    if kind == "damaged":
        (model / "model_index.json").write_text("{")
    if kind == "pipeline":
        (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    if kind == "pickle":
        weights.write_bytes(pickle.dumps({"a": 1}))
    if kind == "weightless":
        weights.unlink()
    with pytest.raises((CheckpointError, ConfigError), match=sentence):
        plan_push(folder, MODEL, base="ada/x" if kind == "base" else None)


def test_pull_tells_and_copies(
    hub: HubServer, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commit = push(plan_push(model, MODEL)).commit
    assert cli.main(["pull", "ada/tiny", "--dry-run"]) == 0
    assert f"1 other files of the repository stay there; commit {commit}" in capfd.readouterr().out
    assert kept_copy(MODEL) is None
    assert cli.main(["pull", "ada/tiny", "--to", "mine"]) == 0
    assert f"ada/tiny: commit {commit}, 4 files" in capfd.readouterr().out
    assert sorted(path.name for path in (tmp_path / "mine").rglob("*") if path.is_file()) == sorted(
        path.rpartition("/")[2] for path in FILES
    )
    assert cli.main(["pull", "ada/tiny", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["commit"] == commit
    assert cli.main(["pull", "ada/tiny", "--to", "mine"]) == 2
    assert "mine holds files" in capfd.readouterr().err
    for name, sentence in {
        "edm-fmnist": "comes with GenLab",
        "edm-cifar10-32x32-cond-vp": "'genlab zoo pull edm-cifar10-32x32-cond-vp'",
        "nothing": "write OWNER/NAME",
    }.items():
        assert cli.main(["pull", name]) == 2
        assert sentence in capfd.readouterr().err
    assert cli.main(["zoo", "pull", "ada/tiny"]) == 2
    assert "'genlab pull ada/tiny'" in capfd.readouterr().err


def test_a_model_argument_takes_a_name_of_the_hub(
    hub: HubServer, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    push(plan_push(model, MODEL))
    steps = "sampler.schedule.num_steps=2"
    assert cli.main(["sample", "ada/tiny", "--seeds", "0-1", "-o", "out", steps]) == 0
    (record,) = (tmp_path / "out").glob("*.json")
    assert "ada/tiny" in record.read_text()
    assert cli.main(["doctor", "ada/tiny"]) == 0
    assert genlab.load(model).weights_sha256() in capfd.readouterr().out
    assert cli.main(["sample", "ada/none", "--seeds", "0-1", "-o", "other"]) == 2
    assert "there is no repository ada/none" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()

"""Models of a hub by name, from a hub on 127.0.0.1."""

import json
import logging
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hub_server
import pytest
import torch
from hub_server import HubServer

import genlab
from genlab.checkpoints.hub import names
from genlab.checkpoints.hub.fetch import fetch, list_files, locate
from genlab.checkpoints.hub.layout import LAYOUTS, layout_of
from genlab.checkpoints.hub.names import HubName, kept_copy, kept_names, parse
from genlab.checkpoints.places import find_folder
from genlab.cli.common import show_fetches
from genlab.errors import CheckpointError, ConfigError, DownloadError, GenLabError, OutputError
from genlab.pipelines import GenLabPipeline

NAME = "ada/tiny"
WEIGHTS = "network/diffusion_pytorch_model.safetensors"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server.hub() as server:
        hub_server.use(server, monkeypatch, token=False)
        yield server


@pytest.fixture
def files(tiny_model: Path) -> dict[str, bytes]:
    """Of the repository of a tiny model."""
    paths = [path for path in tiny_model.rglob("*") if path.is_file()]
    return {path.relative_to(tiny_model).as_posix(): path.read_bytes() for path in paths}


def kept_files(home: Path) -> list[str]:
    """All that lies in the cache of the hub's models, but for locks."""
    found = (path for path in (home / "hub").rglob("*") if not path.is_dir())
    return sorted(path.name for path in found if path.name != ".lock")


def asked_for(hub: HubServer) -> set[str]:
    """The files whose content was asked for."""
    marks = [line.partition("/resolve/")[2] for line in hub.requests if line.startswith("GET")]
    return {mark.partition("/")[2] for mark in marks if mark}


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("ada/tiny", ("ada/tiny", None)),
        ("ada/tiny-2.0_b@v1", ("ada/tiny-2.0_b", "v1")),
        ("ada/tiny@refs/pr/3", ("ada/tiny", "refs/pr/3")),
        *((text, None) for text in (
            "tiny", "a/b/c", "./tiny", "../tiny", "/a/b", "a/", "a/b@", "a/b@..", "a/b@x..y",
            "a--b/c", "a/b..c", "a/.b", "-a/b", "a/b.pkl", "a/b.SAFETENSORS", "a/" + "b" * 95,
            "a/b\n", "a/b@v=1", "a b/c", "ä/b", "a/b@-rf", "DiT-XL/2", "sit-b/4-256x256",
        )),
    ],
)  # fmt: skip
def test_what_a_name_of_the_hub_is(text: str, means: tuple[str, str | None] | None) -> None:
    found = parse(text)
    assert (None if found is None else (found.repository, found.revision)) == means
    assert found is None or str(found) == text


def test_layouts_name_all_files_that_genlab_writes() -> None:
    """And none that could run or lie hidden."""
    wanted = {
        "model": ["model_index.json", "README.md", WEIGHTS, "network/config.json",
                  "autoencoder/config.json", "scheduler/scheduler_config.json",
                  "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
                  "network/diffusion_pytorch_model.safetensors.index.json"],
        "adapter": ["adapter_config.json", "adapter_model.safetensors", "genlab.json"],
        "network": ["config.json", "diffusion_pytorch_model.safetensors"],
    }  # fmt: skip
    refused = [
        "model.pkl", "network/diffusion_pytorch_model.bin", "network/modeling.py", ".env",
        "../README.md", "network/../../x.safetensors", "/README.md", "network\\config.json",
        "network/sub/config.json", "text_encoder/model.safetensors", "README.md\n",
        "network/diffusion_pytorch_model.fp16.safetensors", "C:README.md", "tokenizer.json",
    ]  # fmt: skip
    for layout in LAYOUTS:
        assert all(map(layout.wants, wanted[layout.kind]))
        assert not any(map(layout.wants, refused))
    assert layout_of(["train.py"]) is None


def test_a_name_is_fetched_once_and_then_needs_no_network(
    hub: HubServer, home: Path, files: dict[str, bytes], tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    commit = hub.put(NAME, {**files, "train.py": b"print()", "notes/x.txt": b"x"})
    drawn = genlab.load(NAME).sample([0, 1], [0, 2])
    assert torch.equal(drawn, genlab.load(tiny_model).sample([0, 1], [0, 2]))
    assert asked_for(hub) == set(files)
    copy = kept_copy(HubName(repository=NAME))
    assert copy is not None
    assert copy.commit == commit
    assert copy.folder == home / "hub" / "ada--tiny" / commit / "tiny"
    source = json.loads((copy.folder.parent / "source.json").read_text())
    assert source["commit"] == commit
    assert source["files"] == {path: len(content) for path, content in files.items()}
    assert {path.name for path in copy.folder.rglob("*") if path.is_file()} == {
        Path(path).name for path in files
    }
    assert kept_names() == [NAME]

    requests = len(hub.requests)
    changed = json.loads(files["model_index.json"]) | {"class_names": ["a", "b", "c"]}
    newer = hub.put(NAME, {**files, "model_index.json": json.dumps(changed).encode()})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again: Any = genlab.load(NAME)  # the name means what it meant
    assert torch.equal(drawn, again.sample([0, 1], [0, 2]))
    assert find_folder(NAME) == copy.folder
    assert len(hub.requests) == requests
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        genlab.load(f"{NAME}@{newer}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.requests.clear()
    assert fetch(HubName(repository=NAME)).commit == newer
    loaded: Any = genlab.load(NAME)
    assert loaded.class_names == ("a", "b", "c")
    pinned: Any = genlab.load(f"{NAME}@{commit}")
    assert pinned.class_names == again.class_names


def test_a_fetch_that_a_name_causes_is_shown(
    hub: HubServer, home: Path, files: dict[str, bytes], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With the commit, once; a library prints nothing."""
    logger = logging.getLogger("genlab.hub")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(logger, "level", logger.level)
    hub.put(NAME, files)
    find_folder(NAME)
    assert capfd.readouterr().err == ""
    commit = hub.put("ada/other", files)
    show_fetches()
    find_folder("ada/other")
    find_folder("ada/other")
    size = sum(map(len, files.values())) / 1e6
    assert capfd.readouterr().err == (
        f"ada/other: fetching commit {commit}, {len(files)} files, {size:.1f} MB from {hub.url}\n"
    )


def test_a_copy_of_the_newest_commit_is_not_fetched_again(
    hub: HubServer, home: Path, files: dict[str, bytes]
) -> None:
    hub.put(NAME, files)
    name = HubName(repository=NAME)
    folder = fetch(name).folder
    hub.requests.clear()
    assert fetch(name).folder == folder
    assert not asked_for(hub)
    fetch(name, again=True)
    assert asked_for(hub) == set(files)


def test_who_comes_second_waits_for_the_copy(
    hub: HubServer, home: Path, files: dict[str, bytes]
) -> None:
    """As the processes of one run do, which all load the model."""
    hub.put(NAME, files)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(locate, [NAME] * 3))
    assert len(folders) == 1
    fetched = [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
    assert len(fetched) == len(files)


def test_the_pipeline_object_uses_the_same_copy(
    hub: HubServer, home: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(NAME, files, "v1")
    pipe = GenLabPipeline.from_pretrained(NAME, revision="v1")
    hub.requests.clear()
    generator: Any = genlab.load(f"{NAME}@v1")
    assert generator.class_names == pipe.as_generator().class_names
    assert not hub.requests


def test_what_exists_here_wins_over_the_hub(
    hub: HubServer, home: Path, files: dict[str, bytes], tiny_model: Path
) -> None:
    """And what looks like a slip in a path is not sent to a server."""
    hub.put(NAME, files)
    Path("ada").mkdir()
    with pytest.raises(CheckpointError, match=r"there is no file or folder ada/tiny; check"):
        genlab.load(NAME)
    assert not hub.requests
    Path(NAME).symlink_to(tiny_model)
    assert find_folder(NAME) == Path(NAME)
    assert not hub.requests


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("none", "there is no repository ada/tiny at http://127.0.0.1"),
        ("private", "there is no repository ada/tiny .*hf auth login"),
        ("gated", "accept its terms at http://127.0.0.1:.*/ada/tiny"),
        ("revision", "ada/tiny has no revision 'v7'; give a branch"),
        ("status", "answers 500 for ada/tiny"),
        ("refused", "does not let you read ada/tiny"),
        ("offline", "HF_HUB_OFFLINE is set.*unset it"),
        ("down", "cannot be reached or broke off"),
    ],
)
def test_one_sentence_says_why_there_is_none(
    change: str, sentence: str, hub: HubServer, home: Path, files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name = NAME
    if change != "none":
        hub.put(NAME, files)
        repository = hub.repositories[NAME]
        repository.private, repository.gated = change == "private", change == "gated"
    if change == "revision":
        name = f"{NAME}@v7"
    hub.status = {"status": 500, "refused": 403}.get(change)
    if change == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if change == "down":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=f"no file or folder {name}, nor can it be had from"
    ) as error:
        genlab.load(name)
    assert isinstance(error.value.__cause__, DownloadError)
    with pytest.raises(CheckpointError, match=sentence):
        find_folder(name)
    assert kept_files(home) == []


def test_a_token_opens_what_is_private(
    hub: HubServer, home: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(NAME, files)
    hub.repositories[NAME].private = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert locate(NAME) == str(fetch(HubName(repository=NAME)).folder)


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


OWNER = {
    "script": {"__init__.py": b"open('executed', 'w')", "network/modeling.py": b"1/0"},
    "pickle": {"network/diffusion_pytorch_model.bin": pickle.dumps(Evil())},
    "hidden": {".git/hooks/post-checkout": b"#!/bin/sh\ntouch executed", ".env": b"x"},
    "path": {"../../evil.safetensors": b"x", "/tmp/evil/README.md": b"x", "a\\..\\README.md": b"x"},
}


def test_what_else_a_repository_holds_stays_there(
    hub: HubServer, home: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    """Scripts, pickles, hidden files and names that lead out of the folder are never asked for."""
    extra = {path: content for each in OWNER.values() for path, content in each.items()}
    hub.put(NAME, {**files, **extra})
    genlab.load(NAME)
    assert asked_for(hub) == set(files)
    assert list_files(HubName(repository=NAME)).left == len(extra)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def _config(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    config = {**json.loads(files["network/config.json"]), **changes}
    return {**files, "network/config.json": json.dumps(config).encode()}


def _index(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    index = {**json.loads(files["model_index.json"]), **changes}
    return {**files, "model_index.json": json.dumps(index).encode()}


def _header(files: dict[str, bytes], size: int) -> dict[str, bytes]:
    return {**files, WEIGHTS: size.to_bytes(8, "little") + files[WEIGHTS][8:]}


HOSTILE: dict[str, Any] = {
    "pickle under the name of weights": (
        lambda files: {**files, WEIGHTS: pickle.dumps(Evil())}, "cannot be read"
    ),
    "head of a terabyte": (lambda files: _header(files, 1 << 40), "cannot be read"),
    "link for a config": (
        lambda files: {**files, "network/config.json": b"../../../../../etc/passwd"},
        "cannot be read",
    ),
    "index of another module": (
        lambda files: _index(files, network=["evil", "Network"]), "not GenLab's"
    ),
    "another program's pipeline": (
        lambda files: _index(files, _class_name="StableDiffusionPipeline"),
        "StableDiffusionPipeline, which GenLab does not read",
    ),
    "another program's config": (
        lambda files: {"config.json": b'{"architectures": ["Llama"]}', "a.safetensors": b"x",
                       "diffusion_pytorch_model.safetensors": b"x"},
        "another program's model",
    ),
    "pickles alone": (
        lambda files: {"pytorch_model.bin": b"x", "README.md": b"x"},
        r"no model of GenLab.*pickles \(pytorch_model.bin\)",
    ),
    "index without weights": (
        lambda files: {"model_index.json": files["model_index.json"]}, "no weights as safetensors"
    ),
    "billion channels": (
        lambda files: _config(files, model_channels=10**9), "more than any network has"
    ),
    "adapter that has peft import a module": (
        lambda files: {
            "adapter_config.json": json.dumps({
                "peft_type": "LORA", "base_model_name_or_path": "dit-fmnist",
                "megatron_config": {"a": 1}, "megatron_core": "executed",
            }).encode(),
            "adapter_model.safetensors": files[WEIGHTS],
        },
        "lets peft import a module",
    ),
    "empty repository": (lambda files: {}, "no model of GenLab"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_repository_runs_nothing(
    kind: str, hub: HubServer, home: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    """It is refused in a sentence, and nothing is written outside the cache."""
    change, sentence = HOSTILE[kind]
    hub.put(NAME, change(files))
    with pytest.raises(CheckpointError, match=sentence):
        genlab.load(NAME)
    assert not Path("executed").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) in (["home"], [])


def test_a_config_reads_no_environment(
    hub: HubServer, home: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden-word")
    text = "${oc.env:SECRET}"
    hub.put(NAME, _index(files, class_names=[text, "b", "c"]))
    generator: Any = genlab.load(NAME)
    assert generator.class_names == (text, "b", "c")
    hub.put(NAME, _index(files, sampler={"solver": {"name": text}}))
    fetch(HubName(repository=NAME))
    with pytest.raises(GenLabError, match=r"oc\.env:SECRET") as error:
        genlab.load(NAME)
    assert "hidden-word" not in str(error.value)


LIES: dict[str, Any] = {
    "size": ({WEIGHTS: {"size": 3}}, "cannot be reached or broke off|has .* bytes and 3 were"),
    "content": ({WEIGHTS: {"sha256": "0" * 64}}, "its SHA-256 is another"),
    "commit": ({"commit": {"sha": "../../../evil"}}, "which is none; check HF_ENDPOINT"),
    "card of gigabytes": ({"model_index.json": {"size": 1 << 33}}, "such files have at most"),
    "more than the disk has": ({WEIGHTS: {"size": 1 << 60}}, "has room for"),
}


@pytest.mark.parametrize("kind", LIES)
def test_what_arrives_is_what_was_announced(
    kind: str, hub: HubServer, home: Path, files: dict[str, bytes]
) -> None:
    hub.put(NAME, files)
    hub.lie, sentence = LIES[kind]
    with pytest.raises((CheckpointError, DownloadError, OutputError), match=sentence):
        fetch(HubName(repository=NAME))
    assert kept_copy(HubName(repository=NAME)) is None


def test_an_interrupted_download_passes_for_nothing(
    hub: HubServer, home: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what came whole is not fetched twice."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.put(NAME, files)
    hub.cut = WEIGHTS
    with pytest.raises(DownloadError, match="broke off"):
        fetch(HubName(repository=NAME))
    assert kept_copy(HubName(repository=NAME)) is None
    assert kept_names() == []
    hub.cut = None
    hub.requests.clear()
    fetch(HubName(repository=NAME))
    assert asked_for(hub) == {WEIGHTS}
    assert kept_names() == [NAME]
    assert not list((home / "hub" / "ada--tiny").glob(".*.part"))


def test_damaged_notes_of_revisions_count_as_none(
    hub: HubServer, home: Path, files: dict[str, bytes]
) -> None:
    hub.put(NAME, files)
    name = HubName(repository=NAME)
    fetch(name)
    notes = names.repository_folder(NAME) / names.REVISIONS
    for text in ("{", '{"main": "../../.."}', '{"main": 7}', "[]"):
        notes.write_text(text)
        assert kept_copy(name) is None
    fetch(name)
    assert kept_copy(name) is not None


@pytest.mark.parametrize(
    ("text", "revision", "sentence"),
    [
        ("tiny", None, "write OWNER/NAME"),
        ("a/b@v1", "v2", "name two revisions"),
        ("a/b", "x y", "no branch, tag or commit"),
    ],
)
def test_commands_take_names_of_the_hub_alone(
    text: str, revision: str | None, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        names.named(text, revision)

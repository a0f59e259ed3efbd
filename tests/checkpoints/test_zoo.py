"""The zoo's table, and pulling from a local server."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from network_pickles import official_weights, write_network
from range_server import RangeServer, serving

import genlab
from genlab.checkpoints import READERS, zoo
from genlab.checkpoints.edm_config import parse
from genlab.checkpoints.pull import pull, recognise
from genlab.errors import CheckpointError, DownloadError, OutputError, UnknownNameError
from genlab.generators.lock import lock_folder
from genlab.generators.sampler import resolve_sampler
from genlab.networks import DhariwalUNet, SongUNet

NAME = "edm-cifar10-32x32-cond-vp"


def test_table() -> None:
    """Every entry is complete: an address, a licence, a known format, arguments that parse."""
    table = zoo.entries()
    assert len(table) == 12
    for name, entry in table.items():
        assert entry.url.startswith("https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/")
        assert entry.file == f"{name}.pkl"
        assert entry.format in READERS
        assert entry.licence == "CC BY-NC-SA 4.0"
        assert not entry.commercial_use
        assert entry.sha256 is None or len(entry.sha256) == 64
        assert entry.scores
        assert all(1 < score.value < 4 and score.source for score in entry.scores)
        assert resolve_sampler(entry.sampler)
        assert entry.class_names is None or len(entry.class_names) == entry.num_classes


@pytest.mark.parametrize("name", [n for n, e in zoo.entries().items() if e.config is not None])
def test_published_arguments(name: str) -> None:
    """They give networks of the published size and of the facts beside them."""
    import torch

    entry = zoo.find(name)
    model = parse(entry.config or {})
    assert (model.network["in_channels"], model.network["img_resolution"]) == tuple(
        entry.image_shape[:2]
    )
    assert model.network["label_dim"] == entry.num_classes
    assert not model.has_null_class
    with torch.device("meta"):
        network = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[model.network_class](
            **model.network
        )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # About 56M at 32 x 32, 62M at 64 x 64 (DDPM++ and NCSN++), 296M (ADM).
    size = (
        296e6
        if model.network_class == "DhariwalUNet"
        else {32: 56e6, 64: 62e6}[entry.image_shape[1]]
    )
    assert abs(parameters / size - 1) < 0.02


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{NAME}'"):
        zoo.find("edm-cifar10-32x32-cond-v")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def cifar_like(path: Path, **changes: Any) -> bytes:
    """A tiny network with the images and classes of the zoo's entry."""
    wanted = {"img_resolution": 32, "label_dim": 10, **changes}
    kwargs, weights = official_weights("EDMPrecond", **wanted)
    return write_network(path / "net.pkl", "EDMPrecond", weights, kwargs).read_bytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    with serving() as server:
        server.files[f"/mirror/{NAME}.pkl"] = cifar_like(tmp_path)
        yield server


def get(server: RangeServer, **options: Any) -> Any:
    return pull(NAME, base_url=f"{server.url}mirror", retry_seconds=0.01, **options)


def test_pull(server: RangeServer, home: Path) -> None:
    server.cut_after = 20_000  # and resumed
    data = server.files[f"/mirror/{NAME}.pkl"]
    pulled = get(server)
    assert pulled.folder == zoo.pulled_folder(NAME) == home / "zoo" / NAME
    assert pulled.first_use
    assert pulled.sha256 == hashlib.sha256(data).hexdigest()
    assert zoo.recorded_checksum(zoo.find(NAME)) == pulled.sha256
    assert [path.name for path in (home / "downloads").iterdir()] == [f"{NAME}.pkl.lock"]

    generator: Any = genlab.load(NAME)
    assert generator.class_names[:2] == ("airplane", "automobile")
    assert generator.sampler["schedule"]["num_steps"] == 18
    card = (pulled.folder / "README.md").read_text()
    for fact in (
        "license: cc-by-nc-sa-4.0",
        pulled.sha256,
        f"`{NAME}.pkl`",
        "FID 1.79",
        "2206.00364",
    ):
        assert fact in card

    requests = len(server.requests)
    assert get(server).sha256 is None  # there already
    assert len(server.requests) == requests


def test_first_use_is_trusted_and_then_held_to(
    server: RangeServer, home: Path, tmp_path: Path
) -> None:
    first = get(server)
    server.files[f"/mirror/{NAME}.pkl"] = cifar_like(tmp_path, dropout=0.2)
    with pytest.raises(DownloadError, match=f"expected {first.sha256}"):
        get(server, again=True)
    assert genlab.load(NAME).num_classes == 10  # the model that was there still is


def test_pull_elsewhere(server: RangeServer, home: Path, tmp_path: Path) -> None:
    pulled = get(server, to=tmp_path / "mine")
    assert genlab.load(pulled.folder).num_classes == 10
    assert zoo.pulled_folder(NAME) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>please log in</html>", "cut short or no well-formed pickle"),
        (b"cos\nsystem\n(S'id'\ntR.", r"asks for os\.system"),
    ],
)
def test_wrong_content(content: bytes, message: str, server: RangeServer, home: Path) -> None:
    """Refused, not kept, and not recorded as the checksum to hold others against."""
    good = server.files[f"/mirror/{NAME}.pkl"]
    server.files[f"/mirror/{NAME}.pkl"] = content
    with pytest.raises(CheckpointError, match=message):
        get(server)
    assert zoo.pulled_folder(NAME) is None
    assert zoo.recorded_checksum(zoo.find(NAME)) is None
    server.files[f"/mirror/{NAME}.pkl"] = good
    assert get(server).first_use


def test_another_network(server: RangeServer, home: Path, tmp_path: Path) -> None:
    server.files[f"/mirror/{NAME}.pkl"] = cifar_like(tmp_path, label_dim=3)
    with pytest.raises(CheckpointError, match=r"and 3 classes, expected \(3, 32, 32\) and 10"):
        get(server)


def test_missing_file(server: RangeServer, home: Path) -> None:
    with pytest.raises(DownloadError, match="the server answers 404"):
        pull(NAME, base_url=server.url)
    assert zoo.pulled_folder(NAME) is None


def test_one_pull_at_a_time(server: RangeServer, home: Path) -> None:
    with (
        lock_folder(home / "downloads" / f"{NAME}.pkl.lock", "x"),
        pytest.raises(OutputError, match="another run is writing"),
    ):
        get(server)


def test_damaged_record_of_checksums(server: RangeServer, home: Path) -> None:
    (home / "zoo").mkdir(parents=True)
    (home / "zoo" / "checksums.json").write_text("{")
    assert get(server).first_use
    assert json.loads((home / "zoo" / "checksums.json").read_text())


def test_a_file_that_one_has_is_recognised(home: Path, tmp_path: Path) -> None:
    """By its name while no checksum is known, by the checksum alone afterwards."""
    entry = zoo.find(NAME)
    origin = recognise(tmp_path / entry.file, "a" * 64)
    assert origin is not None
    assert origin.licence == "CC BY-NC-SA 4.0"
    assert recognise(tmp_path / "mine.pkl", "a" * 64) is None
    zoo.record_checksum(entry, "b" * 64)
    assert recognise(tmp_path / entry.file, "a" * 64) is None
    assert recognise(tmp_path / "mine.pkl", "b" * 64) is not None

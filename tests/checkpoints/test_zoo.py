"""The zoo's table, and pulling from a local server."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import official_weights, write_network
from omegaconf import OmegaConf
from range_server import RangeServer, serving
from safetensors.torch import load_file
from tiny_autoencoder import tiny_kl

import genlab
from genlab.checkpoints import READERS
from genlab.checkpoints.classifiers import load_classifier
from genlab.checkpoints.readers.edm_config import parse
from genlab.checkpoints.readers.guided_diffusion_config import parse as parse_flags
from genlab.checkpoints.readers.guided_diffusion_config import parse_classifier
from genlab.checkpoints.zoo import catalogue as zoo
from genlab.checkpoints.zoo.pull import pull, recognise
from genlab.errors import CheckpointError, DownloadError, OutputError, UnknownNameError
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ADMClassifier, ADMUNet, DhariwalUNet, SongUNet
from genlab.runs.lock import lock_folder
from genlab.samplers.sampler import Sampler

NAME = "edm-cifar10-32x32-cond-vp"


def test_table() -> None:
    """Every entry is complete: an address, a licence, a known format, a sampler that builds."""
    table = zoo.entries()
    assert len(table) == 35
    for name, entry in table.items():
        assert entry.url.startswith("https://") or not entry.direct
        assert entry.format in READERS, name
        assert entry.licence
        assert entry.licence_id in ("other", entry.licence.lower().replace(" ", "-"))
        assert entry.commercial_use == (entry.licence == "MIT")
        assert entry.sha256 is None or len(entry.sha256) == 64
        assert all(score.value > 1 and score.source and score.setting for score in entry.scores)
        assert entry.class_names is None or len(entry.class_names) == entry.num_classes
        assert entry.needs_config <= (entry.config is not None)
        if entry.sampler is not None:
            assert Sampler.from_config(entry.sampler).config
        typed = OmegaConf.merge(OmegaConf.structured(zoo.ZooEntry), asdict(entry))
        assert OmegaConf.to_object(typed) == entry  # zoo.yaml is read without a look at types


def test_lsun_is_sampled_as_its_scores_were() -> None:
    """250 steps give FID 2.31 on bedrooms where 1000 give the published 1.90."""
    for name in ("adm-lsun-bedroom", "adm-lsun-cat", "adm-lsun-horse"):
        sampler = zoo.entries()[name].sampler
        assert sampler is not None
        assert sampler["schedule"]["steps"] == 1000


EDM = {name: entry for name, entry in zoo.entries().items() if entry.format == "edm"}


def test_edm_entries() -> None:
    assert len(EDM) == 12
    for name, entry in EDM.items():
        assert entry.url.startswith("https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/")
        assert entry.file == f"{name}.pkl"
        assert entry.scores


@pytest.mark.parametrize("name", [n for n, e in EDM.items() if e.config is not None])
def test_published_arguments(name: str) -> None:
    """They give networks of the published size and of the facts beside them."""
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


MULTIPLIERS = {
    64: [1, 2, 3, 4],
    128: [1, 1, 2, 3, 4],
    256: [1, 1, 2, 2, 4, 4],
    512: [0.5, 1, 1, 2, 2, 4, 4],
}
"""Of channels by level (arXiv:2105.05233, Table 11), which no flag gives."""


@pytest.mark.parametrize(
    ("size", "millions"), [(64, (296, 65)), (128, (422, 43)), (256, (554, 54)), (512, (559, 54))]
)
def test_flags_of_guided_diffusion(size: int, millions: tuple[int, int]) -> None:
    """They describe networks of the published sizes (Tables 11 and 12)."""
    for suffix, cls, count in (
        ("", ADMUNet, millions[0]),
        ("-classifier", ADMClassifier, millions[1]),
    ):
        flags = zoo.find(f"adm-imagenet-{size}x{size}{suffix}").config or {}
        head = "num_heads" if "num_heads" in flags else "num_head_channels"
        prefix = "classifier_" if suffix else ""
        blocks = flags["classifier_depth" if suffix else "num_res_blocks"]
        arguments = {
            "img_resolution": size,
            "in_channels": 3,
            "model_channels": flags["classifier_width" if suffix else "num_channels"],
            "channel_mult": MULTIPLIERS[size],
            "num_blocks": blocks,
            "attn_resolutions": [
                int(n) for n in flags[f"{prefix}attention_resolutions"].split(",")
            ],
            "resblock_updown": flags[f"{prefix}resblock_updown"],
            "scale_shift": flags[f"{prefix}use_scale_shift_norm"],
            "new_attention_order": flags.get("use_new_attention_order", False),
            head: flags.get(head, 64),
            **({"num_classes": 1000} if suffix else {"out_channels": 6, "label_dim": 1000}),
        }
        make: Any = cls
        with torch.device("meta"):
            network = make(**arguments)
        assert abs(_size(network) / 1e6 / count - 1) < 0.02
        read = (parse_classifier if suffix else parse_flags)(
            {"num_head_channels": 64, **flags} if suffix else flags, network.state_dict(), "x"
        )
        assert {key: read.network[key] for key in arguments} == arguments


def _size(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


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
    assert generator.sampler.config["schedule"]["num_steps"] == 18
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


KINDS = {
    "adm-imagenet-64x64": "adm_unet_new_order",
    "adm-imagenet-64x64-classifier": "adm_classifier_attention",
    "dit-xl-2-256x256": "dit_tiny",
    "sit-xl-2-256x256": "sit_tiny",
    "biggan-deep-128": "biggan_deep_hf",
}
"""One entry of each format -> the golden case with the official weights of a tiny network."""


@pytest.mark.parametrize("name", KINDS)
def test_every_format_is_pulled_and_converted(
    name: str, home: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = shared / "golden" / KINDS[name]
    if not case.is_dir():
        pytest.skip(f"no golden case {case.name}")
    meta = json.loads((case / "meta.json").read_text())
    entry = tiny_entry(zoo.find(name), meta)
    monkeypatch.setitem(zoo.entries(), name, entry)
    with serving() as server:
        torch.save(load_file(case / "weights.safetensors"), tmp_path / "w.pt")
        server.files[f"/{entry.file}"] = (tmp_path / "w.pt").read_bytes()
        if entry.config_url is not None:
            config = entry.config_url.rpartition("/")[2]
            server.files[f"/{config}"] = json.dumps(meta["config"]).encode()
        if entry.autoencoder is not None:
            tiny_kl(channels=3, latent_channels=4).save_pretrained(tmp_path / "vae")
            for path in (tmp_path / "vae").iterdir():
                server.files[f"/sd-vae-ft-ema/{path.name}"] = path.read_bytes()
        pulled = pull(name, base_url=server.url, retry_seconds=0.01)
    card = (pulled.folder / "README.md").read_text()
    assert entry.url in card
    if entry.format == "guided-diffusion-classifier":
        judge = NoisyClassifier.from_pretrained(pulled.folder)
        assert judge.num_classes == entry.num_classes
        found, kept = load_classifier(name).network.state_dict(), judge.network.state_dict()
        assert all(torch.equal(found[key], kept[key]) for key in kept)
        return
    generator: Any = genlab.load(name)
    assert generator.image_shape == tuple(entry.image_shape)
    few = {"schedule": {"num_steps": 2}} if generator.family == "diffusion" else None
    assert generator.sample([0], [1], few).shape == (1, *entry.image_shape)


def test_a_bad_autoencoder_leaves_the_model_s_file(
    home: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = shared / "golden" / KINDS["dit-xl-2-256x256"]
    if not case.is_dir():
        pytest.skip(f"no golden case {case.name}")
    name = "dit-xl-2-256x256"
    entry = tiny_entry(zoo.find(name), json.loads((case / "meta.json").read_text()))
    monkeypatch.setitem(zoo.entries(), name, entry)
    torch.save(load_file(case / "weights.safetensors"), tmp_path / "w.pt")
    tiny_kl(channels=3, latent_channels=4).save_pretrained(tmp_path / "vae")
    with serving() as server:
        server.files[f"/{entry.file}"] = (tmp_path / "w.pt").read_bytes()
        for path in (tmp_path / "vae").iterdir():
            server.files[f"/sd-vae-ft-ema/{path.name}"] = b"{}"
        with pytest.raises(CheckpointError, match="autoencoder"):
            pull(name, base_url=server.url, retry_seconds=0.01)
        assert (home / "downloads" / entry.file).is_file()
        for path in (tmp_path / "vae").iterdir():
            server.files[f"/sd-vae-ft-ema/{path.name}"] = path.read_bytes()
        lock = home / "downloads" / f"{str(entry.autoencoder).replace('/', '--')}.lock"
        with lock_folder(lock, "x"), pytest.raises(OutputError, match="another run is writing"):
            pull(name, base_url=server.url, retry_seconds=0.01)
        pulled = pull(name, base_url=server.url, retry_seconds=0.01)
    assert genlab.load(pulled.folder).image_shape == tuple(entry.image_shape)


def test_a_classifier_that_is_not_there(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="genlab zoo pull adm-imagenet-64x64-classifier"):
        load_classifier("adm-imagenet-64x64-classifier")
    (tmp_path / "official.pt").touch()
    with pytest.raises(CheckpointError, match=r"genlab convert .*official\.pt -o FOLDER' first"):
        load_classifier(tmp_path / "official.pt")
    meant = "did you mean 'adm-imagenet-64x64-classifier'"
    with pytest.raises(UnknownNameError, match=meant) as caught:
        load_classifier("adm-imagenet-64x64-clasifier")
    assert "edm-" not in str(caught.value)


def tiny_entry(entry: zoo.ZooEntry, meta: dict[str, Any]) -> zoo.ZooEntry:
    """The entry as it would be for a tiny network of its kind."""
    if "config" in meta:
        size = meta["config"]["output_dim"]
        return replace(
            entry, image_shape=[3, size, size], num_classes=meta["config"]["num_classes"]
        )
    made = meta["constructors"]["net"]
    official = made["kwargs"]
    if entry.autoencoder is not None:  # which shrinks images twice in this test
        size = 2 * official["input_size"]
        entry = replace(entry, needs_config=True, config={"num_heads": official["num_heads"]})
        return replace(entry, image_shape=[3, size, size], num_classes=official["num_classes"])
    size = official["image_size"]
    classes = official.get("num_classes") or official["out_channels"]
    config = {"cls": made["cls"], **official}
    return replace(entry, image_shape=[3, size, size], num_classes=classes, config=config)


def test_what_has_no_direct_address_is_fetched_by_hand(home: Path) -> None:
    with pytest.raises(DownloadError, match=r"fetch it by hand from https://drive\.google"):
        pull("biggan-pytorch-128")

"""A data set is encoded once, whole or in pieces, and read back."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_autoencoder import tiny_deterministic, tiny_kl

from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.data.sources.latents import LatentDataset, draw_latents, is_latents, read_metadata
from genlab.errors import ConfigError, DataError, OutputError
from genlab.generators.autoencoder import Autoencoder
from genlab.runs.encoding import encode_dataset
from genlab.runs.processes import Processes

OPTIONS: dict[str, Any] = {"image_size": 16, "fit": "resize"}


@pytest.fixture(scope="module")
def images(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten real images."""
    pixels, labels = ImageDataset(fashion_mnist).load_all()
    path = tmp_path_factory.mktemp("data") / "ten.npz"
    np.savez(path, arr_0=pixels[:10].permute(0, 2, 3, 1).numpy(), arr_1=labels[:10].numpy())
    return path


def encode(images: Path, folder: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"options": OPTIONS, "batch_size": 3, "shard_size": 4, **changes}
    autoencoder = arguments.pop("autoencoder", None) or tiny_kl()
    return encode_dataset(ImageDataset(images, **OPTIONS), autoencoder, folder, **arguments)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shards/*.npy"))}


def test_encoded_once(images: Path, tmp_path: Path) -> None:
    autoencoder = tiny_kl()
    metadata = encode(images, tmp_path / "out")
    assert (metadata.image_shape, metadata.latent_shape) == ((1, 16, 16), (2, 8, 8))
    assert metadata.autoencoder_sha256 == autoencoder.sha256()
    assert sorted(shards(tmp_path / "out")) == ["00000.npy", "00001.npy", "00002.npy"]
    assert is_latents(tmp_path / "out")
    assert not is_latents(images)

    dataset = LatentDataset(tmp_path / "out")
    assert dataset.image_shape == (2, 8, 8)
    pixels, labels = ImageDataset(images, **OPTIONS).load_all()
    assert torch.equal(dataset.labels, labels)
    expected = autoencoder.encode(from_uint8(pixels))
    assert expected.std is not None
    stored, _ = dataset.load_all()
    assert stored.nelement() * 2 == dataset.num_bytes
    both = torch.cat([expected.mean, expected.std], dim=1)
    torch.testing.assert_close(stored.float(), both, rtol=1e-3, atol=1e-3)  # float16
    row, label = dataset[7]
    assert torch.equal(row, stored[7])
    assert label == int(labels[7])
    copied: LatentDataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301  # as loaders do
    assert torch.equal(copied[9][0], stored[9])
    loaded = Autoencoder.from_pretrained(tmp_path / "out" / "autoencoder")
    assert loaded.sha256() == autoencoder.sha256()


def test_draws() -> None:
    stored = torch.stack([torch.full((2, 4, 4), 3.0), torch.full((2, 4, 4), 0.5)]).half()
    stored = stored.reshape(1, 4, 4, 4)
    draws = [draw_latents(stored, 2, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws[0], 3 + 0.5 * noise)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(draw_latents(stored, 4, generator), stored.float())
    assert torch.equal(torch.rand(1, generator=generator), torch.rand(
        1, generator=torch.Generator().manual_seed(0)))  # fmt: skip


def test_goes_on_where_it_stopped(images: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    encode(images, whole)

    class StopError(Exception):
        pass

    def stop(count: int) -> None:
        raise StopError

    broken = tmp_path / "broken"
    with pytest.raises(StopError):
        encode(images, broken, on_progress=stop)
    with pytest.raises(DataError, match=r"2 of 3 shards are missing; run the same"):
        LatentDataset(broken)
    first = (broken / "shards" / "00000.npy").stat().st_mtime_ns
    encode(images, broken)
    assert (broken / "shards" / "00000.npy").stat().st_mtime_ns == first
    assert shards(broken) == shards(whole)
    LatentDataset(broken)


def test_processes_share_the_shards(images: Path, tmp_path: Path) -> None:
    encode(images, tmp_path / "one", batch_size=4)
    for rank in (0, 1):
        encode(images, tmp_path / "two", batch_size=4, processes=Processes(rank=rank, count=2))
        assert len(shards(tmp_path / "two")) == 2 + rank
    assert shards(tmp_path / "one") == shards(tmp_path / "two")


def test_other_latents_are_not_overwritten(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(images, out)
    for other in ({"autoencoder": tiny_kl(seed=9)}, {"shard_size": 5}):
        with pytest.raises(OutputError, match="other images, options or another autoencoder"):
            encode(images, out, **other)
    encode(images, out, autoencoder=tiny_kl(seed=9), overwrite=True)
    assert LatentDataset(out).metadata.autoencoder_sha256 == tiny_kl(seed=9).sha256()
    assert Autoencoder.from_pretrained(out / "autoencoder").sha256() == tiny_kl(seed=9).sha256()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(OutputError, match="holds other files"):
        encode(images, tmp_path / "mine")
    with pytest.raises(ConfigError, match="made for images of 3 channels"):
        encode(images, tmp_path / "rgb", autoencoder=tiny_deterministic())


DAMAGE: dict[str, tuple[Any, str]] = {
    "facts cut": (lambda f: (f / "latents.json").write_text("{"), "is damaged"),
    "facts of another version": ("version", "is of version 7"),
    "unknown fact": ("surprise", "is damaged"),
    "shard cut": (lambda f: (f / "shards" / "00001.npy").write_bytes(b"\x93NUMPY"), "is damaged"),
    "shard of pickles": (
        lambda f: np.save(f / "shards" / "00001.npy", np.array([{}], object)),
        "is damaged",
    ),
    "shard of another shape": (
        lambda f: np.save(f / "shards" / "00001.npy", np.zeros((4, 4, 8, 9), np.float16)),
        r"holds float16 \(4, 4, 8, 9\)",
    ),
    "labels beyond the classes": (
        lambda f: np.save(f / "labels.npy", np.full(10, 10)),
        "does not fit",
    ),
    "no labels": (lambda f: (f / "labels.npy").unlink(), "labels.npy is damaged"),
    "no autoencoder": (lambda f: (f / "autoencoder" / "config.json").unlink(), "not complete"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, images: Path, tmp_path: Path) -> None:
    encode(images, tmp_path)
    damage, message = DAMAGE[kind]
    if isinstance(damage, str):
        content = json.loads((tmp_path / "latents.json").read_text())
        (tmp_path / "latents.json").write_text(json.dumps({**content, damage: 7}))
    else:
        damage(tmp_path)
    with pytest.raises(DataError, match=message):
        LatentDataset(tmp_path).load_all()


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"shard_size": float("inf")}, "shard_size is no whole number"),
        ({"num_classes": True}, "num_classes is no whole number"),
        ({"num_images": 10**20}, "num_images is no whole number up to"),
        ({"num_images": 10**12}, r"is not complete: 249,999,999,997 of 250,000,000,000 shards"),
        ({"num_images": 10**12, "shard_size": 10**12}, r"holds float16 .*, expected float16"),
    ],
)
def test_claims_of_latents_are_held_against_the_files(
    claims: dict[str, Any], message: str, images: Path, tmp_path: Path
) -> None:
    """Nothing is counted to a claimed number, nor is memory taken for it."""
    encode(images, tmp_path)
    content = json.loads((tmp_path / "latents.json").read_text())
    (tmp_path / "latents.json").write_text(json.dumps({**content, **claims}))
    with pytest.raises(DataError, match=message):
        LatentDataset(tmp_path, labels=False)


def test_without_labels(images: Path, tmp_path: Path) -> None:
    dataset = ImageDataset(images, labels=False, **OPTIONS)
    encode_dataset(dataset, tiny_kl(), tmp_path, options=OPTIONS)
    with pytest.raises(DataError, match="has no labels"):
        LatentDataset(tmp_path)
    assert LatentDataset(tmp_path, labels=False).num_classes == 0
    assert dataclasses.replace(read_metadata(tmp_path), num_classes=3).num_shards == 1

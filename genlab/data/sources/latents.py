"""Latents on disk: a data set that an autoencoder has encoded once, for all epochs.

A folder holds

- ``latents.json``: what was encoded, by which autoencoder, and how;
- ``shards/00000.npy``, ...: float16 arrays (n, K, H, W), mapped into memory rather than read. Along
  K lie the means and, where the encoder gives a Gaussian, its standard deviations;
- ``labels.npy``: (N,), int64, where the images have labels;
- ``autoencoder/``: the autoencoder itself, without which latents are worth nothing.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset

from genlab.data.conform import KEYWORDS, Wording
from genlab.data.sources.base import NO_LABEL
from genlab.data.sources.limits import check_class_names, check_range
from genlab.data.sources.npy import read_npy
from genlab.errors import DataError, OutputError, reason

METADATA = "latents.json"
LABELS = "labels.npy"
AUTOENCODER = "autoencoder"
VERSION = 1

MOST_IMAGES = 10**12
"""Of a set that anybody could encode."""


@dataclass(frozen=True, kw_only=True)
class LatentMetadata:
    """What ``latents.json`` says.

    Attributes:
        autoencoder_sha256: of its config and weights.
        data: name of what was encoded.
        data_sha256: of its bytes.
        options: how the images were brought into shape.
        num_images: how many there are.
        image_shape: (C, H, W) of the images.
        latent_shape: (C, H, W) of the latents.
        gaussian: whether shards hold standard deviations behind the means.
        shard_size: images in each shard but the last.
        num_classes: 0 without labels.
        class_names: or None where they have none.
        version: of this format.
    """

    autoencoder_sha256: str
    data: str
    data_sha256: str
    options: dict[str, Any]
    num_images: int
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    gaussian: bool
    shard_size: int
    num_classes: int
    class_names: tuple[str, ...] | None
    version: int = VERSION

    @property
    def num_shards(self) -> int:
        """How many shards a complete set has."""
        return -(-self.num_images // self.shard_size)

    def rows(self, shard: int) -> range:
        """The images of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_images))

    def shard_shape(self, shard: int) -> tuple[int, int, int, int]:
        """The shape of a shard's array."""
        channels, height, width = self.latent_shape
        return len(self.rows(shard)), channels * (1 + self.gaussian), height, width

    def to_json(self) -> str:
        """The text of ``latents.json``."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def is_latents(path: Path | str) -> bool:
    """Whether this is a folder of latents, complete or not."""
    return (Path(path) / METADATA).is_file()


def read_metadata(folder: Path) -> LatentMetadata:
    """Read ``latents.json``.

    Raises:
        DataError: it is damaged, or of another version.
    """
    path = folder / METADATA
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("version") != VERSION:
            raise DataError(
                f"{path} is of version {content.get('version')}, this GenLab reads {VERSION}; "
                "encode the data again"
            )
        content["image_shape"] = _shape(content["image_shape"])
        content["latent_shape"] = _shape(content["latent_shape"])
        names = content["class_names"]
        content["class_names"] = None if names is None else tuple(map(str, names))
        for name in ("num_images", "shard_size", "num_classes"):
            # Python's bool and JSON's 1e999 are numbers, too.
            if type(content[name]) is not int or content[name] > MOST_IMAGES:
                raise ValueError(f"{name} is no whole number up to {MOST_IMAGES:,}")
        metadata = LatentMetadata(**content)
        if metadata.num_images < 1 or metadata.shard_size < 1:
            raise ValueError("no images")
        check_range(0, max(metadata.num_classes - 1, 0), f"{path} has")
        check_class_names(metadata.class_names or (), f"{path} has", "encode the data again")
    except DataError:
        raise
    except Exception as error:  # JSON may hold anything in any place
        raise DataError(f"{path} is damaged ({reason(error)}); encode the data again") from error
    return metadata


def _shape(value: Any) -> tuple[int, int, int]:
    channels, height, width = (int(side) for side in value)
    return channels, height, width


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / "shards" / f"{shard:05d}.npy"


class LatentDataset(Dataset[tuple[Tensor, int]]):
    """Encoded images and their labels; small to pickle, so that loader workers can have it.

    Args:
        folder: what ``genlab data encode`` wrote.
        labels: whether labels are wanted; False gives every image `NO_LABEL`.
        wording: how messages name that setting.

    Attributes:
        image_shape: (C, H, W) of the latents.
        labels: (N,), int64.
        num_classes: 0 when labels are not wanted.
        class_names: or None where they have none.
        metadata: those stored in the folder.

    Raises:
        DataError: the folder is not complete, damaged, or has no labels though they are wanted.
    """

    def __init__(
        self, folder: Path | str, labels: bool = True, wording: Wording = KEYWORDS
    ) -> None:
        self.folder = Path(folder)
        self.metadata = read_metadata(self.folder)
        self._check_complete()
        if labels and self.metadata.num_classes == 0:
            raise DataError(
                f"{self.folder} has no labels; encode labelled images, or go on without classes "
                f"({wording.no_labels})"
            )
        self.image_shape = self.metadata.latent_shape
        self.num_classes = self.metadata.num_classes if labels else 0
        self.class_names = self.metadata.class_names if labels else None
        self.labels: Int64[Tensor, " N"] = (
            self._read_labels() if labels else torch.full((len(self),), NO_LABEL)
        )
        self._shards: dict[int, Float16[np.ndarray, "n K H W"]] = {}

    def _check_complete(self) -> None:
        shards = range(self.metadata.num_shards)
        # Of the files, which are there: how many there should be is what the folder claims.
        there = (path.stem for path in shard_path(self.folder, 0).parent.glob("*.npy"))
        missing = len(shards) - sum(name.isdecimal() and int(name) in shards for name in there)
        if missing or not (self.folder / AUTOENCODER / "config.json").is_file():
            raise DataError(
                f"{self.folder} is not complete: {missing:,} of {len(shards):,} shards "
                "are missing; run the same genlab data encode again, it goes on where it stopped"
            )
        for shard in {0, len(shards) - 1}:  # before memory is taken for so many labels
            open_shard(self.folder, self.metadata, shard)

    def _read_labels(self) -> Int64[Tensor, " N"]:
        path = self.folder / LABELS
        try:
            labels = read_npy(path)
        except Exception as error:  # whatever a damaged file makes NumPy raise
            raise DataError(
                f"{path} is damaged ({reason(error)}); encode the data again"
            ) from error
        good = labels.shape == (len(self),) and labels.dtype.kind in "iu"
        if not good or labels.min() < 0 or labels.max() >= self.metadata.num_classes:
            raise DataError(f"{path} does not fit {METADATA}; encode the data again")
        return torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return self.metadata.num_images

    @property
    def num_bytes(self) -> int:
        """What all latents take in memory."""
        channels, height, width = self.metadata.shard_shape(0)[1:]
        return 2 * len(self) * channels * height * width

    def __getitem__(self, index: int) -> tuple[Float16[Tensor, "K H W"], int]:
        """One image's means (and standard deviations), and its label."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard, row = divmod(index, self.metadata.shard_size)
        return torch.from_numpy(self._shard(shard)[row].copy()), int(self.labels[index])

    def _shard(self, shard: int) -> Float16[np.ndarray, "n K H W"]:
        if shard not in self._shards:
            self._shards[shard] = open_shard(self.folder, self.metadata, shard)
        return self._shards[shard]

    def load_all(self) -> tuple[Float16[Tensor, "N K H W"], Int64[Tensor, " N"]]:
        """All latents in one tensor, and the labels."""
        parts = [np.asarray(self._shard(i)) for i in range(self.metadata.num_shards)]
        return torch.from_numpy(np.concatenate(parts)), self.labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}


def open_shard(
    folder: Path, metadata: LatentMetadata, shard: int
) -> Float16[np.ndarray, "n K H W"]:
    """Map a shard into memory.

    Raises:
        DataError: it is damaged or of another shape.
    """
    path = shard_path(folder, shard)
    try:
        array = read_npy(path, mapped=True)
    except Exception as error:  # whatever a damaged file makes NumPy raise
        raise DataError(
            f"{path} is damaged ({reason(error)}); remove it and run genlab data encode again"
        ) from error
    if array.shape != metadata.shard_shape(shard) or array.dtype != np.float16:
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}, expected float16 "
            f"{metadata.shard_shape(shard)}; remove it and run genlab data encode again"
        )
    return array


def draw_latents(
    stored: Float16[Tensor, "B K H W"], channels: int, generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    """Latents of a batch in float32: a fresh draw of each image's Gaussian.

    Args:
        stored: means, and standard deviations behind them where the encoder has any.
        channels: of the latents.
        generator: where the noise comes from; means alone draw none.
    """
    values = stored.to(torch.float32)
    mean, std = values[:, :channels], values[:, channels:]
    if std.shape[1] == 0:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device)
    return mean + std * noise.to(mean.device)


def keep_autoencoder(folder: Path, write: Callable[[Path], object]) -> None:
    """Have a folder hold its autoencoder, whole or not at all; one that is there stays.

    Args:
        folder: of latents, or of a run on them.
        write: writes it to the folder that it is given.

    Raises:
        OutputError: it cannot be written.
    """
    target, unfinished = folder / AUTOENCODER, folder / f".{AUTOENCODER}.tmp"
    if target.is_dir():
        return
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        write(unfinished)
        unfinished.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write the autoencoder to {target}: {reason}") from error

"""Encode a data set once: what ``genlab data encode`` does, callable from a program."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.data.sources.latents import (
    AUTOENCODER,
    LABELS,
    METADATA,
    LatentMetadata,
    is_latents,
    keep_autoencoder,
    open_shard,
    read_metadata,
    shard_path,
)
from genlab.errors import DataError, OutputError
from genlab.files import atomic_path, content_sha256, write_text
from genlab.generators.autoencoder import Autoencoder
from genlab.runs.lock import lock_folder
from genlab.runs.processes import Processes

SHARD_SIZE = 1024
"""Images in a shard: 16 MiB of 32x32 latents of four channels with their deviations."""


def encode_dataset(
    dataset: ImageDataset,
    autoencoder: Autoencoder,
    folder: Path,
    *,
    options: Mapping[str, Any],
    batch_size: int = 16,
    shard_size: int = SHARD_SIZE,
    processes: Processes | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> LatentMetadata:
    """Encode every image, in shards; those that are there already are kept.

    Args:
        dataset: the images.
        autoencoder: on its device.
        folder: gets latents, labels and the autoencoder; see `genlab.data.sources.latents`.
        options: how the images were brought into shape; other options are another set.
        batch_size: images at a time; it changes speed and memory, not the latents.
        shard_size: images in a file.
        processes: this process and its peers, which share the shards out.
        overwrite: replace latents that were made otherwise.
        on_progress: called with the number of images just encoded or found.

    Raises:
        OutputError: the folder holds other things, or cannot be written.
        ConfigError: the autoencoder does not suit the images.
    """
    processes = processes or Processes()
    metadata = _metadata(dataset, autoencoder, options, shard_size)
    lock = lock_folder(folder / ".lock", str(folder)) if processes.rank == 0 else None
    try:
        if processes.rank == 0:
            _begin(folder, metadata, overwrite)
            _write_labels(folder, dataset, metadata)
        processes.wait()
        for shard in range(processes.rank, metadata.num_shards, processes.count):
            if not _is_there(folder, metadata, shard):
                _encode_shard(dataset, autoencoder, folder, metadata, shard, batch_size)
            if on_progress is not None:
                on_progress(len(metadata.rows(shard)))
        processes.wait()
        if processes.rank == 0:
            # Last of all: a folder that has it and all shards is complete.
            keep_autoencoder(folder, autoencoder.save_pretrained)
        processes.wait()
    finally:
        if lock is not None:
            lock.release()
    return metadata


def _metadata(
    dataset: ImageDataset, autoencoder: Autoencoder, options: Mapping[str, Any], shard_size: int
) -> LatentMetadata:
    latent_shape = autoencoder.latent_shape(dataset.image_shape)
    names = dataset.class_names
    return LatentMetadata(
        autoencoder_sha256=autoencoder.sha256(),
        data=dataset.source.path.name,
        data_sha256=content_sha256(dataset.source.path),
        options=dict(options),
        num_images=len(dataset),
        image_shape=dataset.image_shape,
        latent_shape=latent_shape,
        gaussian=autoencoder.is_gaussian,
        shard_size=shard_size,
        num_classes=dataset.num_classes,
        class_names=None if names is None else tuple(names),
    )


def _begin(folder: Path, metadata: LatentMetadata, overwrite: bool) -> None:
    if is_latents(folder):
        try:
            same = read_metadata(folder) == metadata
        except DataError:
            same = False
        if not same:
            if not overwrite:
                raise OutputError(
                    f"{folder} holds latents of other images, options or another autoencoder; "
                    "choose another folder, or give --overwrite"
                )
            for path in (*(folder / "shards").glob("*.npy"), folder / LABELS):
                path.unlink(missing_ok=True)
            shutil.rmtree(folder / AUTOENCODER, ignore_errors=True)
    elif any(path.name != ".lock" for path in folder.iterdir()):
        raise OutputError(f"{folder} holds other files; choose a new or empty folder")
    write_text(folder / METADATA, metadata.to_json())


def _write_labels(folder: Path, dataset: ImageDataset, metadata: LatentMetadata) -> None:
    if metadata.num_classes:
        with atomic_path(folder / LABELS) as temporary, temporary.open("wb") as file:
            np.save(file, dataset.labels.numpy())


def _is_there(folder: Path, metadata: LatentMetadata, shard: int) -> bool:
    try:
        open_shard(folder, metadata, shard)
    except DataError:
        return False
    return True


def _encode_shard(
    dataset: ImageDataset,
    autoencoder: Autoencoder,
    folder: Path,
    metadata: LatentMetadata,
    shard: int,
    batch_size: int,
) -> None:
    rows = metadata.rows(shard)
    encoded = np.empty(metadata.shard_shape(shard), np.float16)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        images = from_uint8(torch.stack([dataset[row][0] for row in part]))
        moments = autoencoder.encode(images)
        parts = [moments.mean] if moments.std is None else [moments.mean, moments.std]
        encoded[start : start + len(part)] = torch.cat(parts, dim=1).cpu().numpy()
    if not np.isfinite(encoded).all():
        raise DataError(
            f"the latents of images {rows[0]} to {rows[-1]} are not finite; the autoencoder does "
            "not suit these images, or overflows in its type"
        )
    with atomic_path(shard_path(folder, shard)) as temporary, temporary.open("wb") as file:
        np.save(file, encoded)

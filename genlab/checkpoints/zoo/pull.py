"""Fetch an official checkpoint of the zoo: download, check, convert, keep."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from genlab.checkpoints.arguments import read_arguments
from genlab.checkpoints.autoencoders import read_autoencoder, repository_folder
from genlab.checkpoints.card import Origin, with_card
from genlab.checkpoints.conversion import convert
from genlab.checkpoints.zoo.catalogue import (
    ZooEntry,
    checksums_file,
    entries,
    find,
    home,
    model_folder,
    record_checksum,
    recorded_checksum,
)
from genlab.checkpoints.zoo.download import OnProgress, check_address, download
from genlab.errors import CheckpointError, DownloadError
from genlab.generators.autoencoder import Autoencoder
from genlab.generators.diffusion import DiffusionGenerator
from genlab.runs.lock import lock_folder
from genlab.saving.folder import remove_unfinished
from genlab.saving.index import INDEX


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What `pull` did.

    Attributes:
        folder: the model.
        sha256: of the official file; None when nothing was fetched because the model was there
            already.
        first_use: no checksum was known, so this download was trusted and its checksum recorded.
    """

    folder: Path
    sha256: str | None = None
    first_use: bool = False


def origin_of(entry: ZooEntry, checksum: str) -> Origin:
    """The entry's metadata for the model card."""
    return Origin(
        file=entry.file,
        sha256=checksum,
        url=entry.url,
        licence=entry.licence,
        licence_id=entry.licence_id,
        commercial_use=entry.commercial_use,
        paper=entry.paper,
        data=entry.data,
        scores=tuple(map(str, entry.scores)),
    )


def recognise(source: Path, checksum: str) -> Origin | None:
    """The zoo's metadata of a file, found by checksum where that is known, else by name.

    Raises:
        CheckpointError: the record of first downloads is damaged.
    """
    for entry in entries().values():
        expected = entry.sha256 or recorded_checksum(entry)
        if expected == checksum or (expected is None and entry.file == source.name):
            return origin_of(entry, checksum)
    return None


def pull(
    name: str,
    to: Path | None = None,
    *,
    base_url: str | None = None,
    again: bool = False,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Pulled:
    """Fetch an official checkpoint and convert it.

    A pull that was interrupted goes on where it stopped.

    Args:
        name: of the zoo.
        to: the model's folder; by default it goes to the cache, where `genlab.load` finds it by its
            name.
        base_url: a mirror: the folder that holds a file of the same name; of Hugging Face's files,
            ``<repository>/<file>``.
        again: fetch it although it is there already.
        on_progress: called as bytes arrive.
        options: further ones of `genlab.checkpoints.zoo.download.download`.

    Raises:
        UnknownNameError: the zoo has no such model.
        DownloadError: the file cannot be fetched, or is not the expected one.
        CheckpointError: the file, or the autoencoder's, is not what the zoo says it is.
        OutputError: the model cannot be written, or another process is pulling it or its
            autoencoder.
    """
    entry = find(name)
    if base_url is not None:
        _check_base(base_url)
    if not entry.direct:
        raise DownloadError(
            f"{name} has no direct address: fetch it by hand from {entry.url}, then run genlab "
            f"convert FILE -o FOLDER --format {entry.format}"
        )
    folder = to or model_folder(name)
    file = home() / "downloads" / entry.file
    if (folder / INDEX).is_file() and not again and not file.exists():
        return Pulled(folder=folder)
    with lock_folder(file.with_name(f"{file.name}.lock"), str(file)):
        _remove_leftovers(folder, file)
        if (folder / INDEX).is_file() and not again:
            file.unlink(missing_ok=True)  # a pull was killed between its last two lines
            return Pulled(folder=folder)

        def fetch(url: str, to: Path, checksum: str | None = None) -> str:
            where = url if base_url is None else f"{base_url.rstrip('/')}/{_last_parts(url)}"
            return download(where, to, checksum=checksum, on_progress=on_progress, **options)

        expected = entry.sha256 or recorded_checksum(entry)
        checksum = fetch(entry.url, file, expected)
        try:
            product = convert(file, entry.format, _config(entry, file, fetch))
        except CheckpointError:
            file.unlink(missing_ok=True)  # or the next pull would find the same wrong file
            raise
        if entry.autoencoder is not None and isinstance(product, DiffusionGenerator):
            autoencoder = _autoencoder(entry.autoencoder, fetch)
            product = product.changed(autoencoder=autoencoder.model)
        try:
            _check_metadata(name, entry, product)
        except CheckpointError:
            file.unlink(missing_ok=True)
            raise
        origin = origin_of(entry, checksum)
        with_metadata = with_card(product, name, origin, entry.class_names, entry.sampler)
        record_checksum(entry, checksum)
        with_metadata.save_pretrained(folder)
        file.unlink(missing_ok=True)
    return Pulled(folder=folder, sha256=checksum, first_use=expected is None)


def _check_base(base_url: str) -> None:
    """Refuse mirrors whose files would have no address.

    Raises:
        DownloadError: says what is wrong with it.
    """
    check_address(base_url)
    if "?" in base_url or "#" in base_url:
        raise DownloadError(
            f"--base-url {base_url} is no folder: leave out what begins with ? or #"
        )


def _remove_leftovers(folder: Path, file: Path) -> None:
    """Remove what pulls that were killed have left; the caller holds the lock of the file."""
    remove_unfinished(folder)
    file.with_name(f"{file.name}.config.json").unlink(missing_ok=True)
    for path in checksums_file().parent.glob(f".{checksums_file().name}.*.tmp"):
        path.unlink(missing_ok=True)


Fetch = Callable[[str, Path], str]


def _last_parts(url: str) -> str:
    """Name of a file on a mirror; a repository's files keep the repository's name."""
    path = urlsplit(url).path
    if "/resolve/main/" in path:
        repository, _, file = path.partition("/resolve/main/")
        return f"{repository.rpartition('/')[2]}/{file}"
    return path.rpartition("/")[2]


def _config(entry: ZooEntry, file: Path, fetch: Fetch) -> dict[str, Any] | None:
    """The config that reading an entry's file takes; None where the file tells all."""
    if entry.config_url is None:
        return entry.config if entry.needs_config else None
    path = file.with_name(f"{file.name}.config.json")
    fetch(entry.config_url, path)
    try:
        return read_arguments(path, ())
    finally:
        path.unlink(missing_ok=True)


def _autoencoder(repository: str, fetch: Fetch) -> Autoencoder:
    """Fetch an autoencoder of the hub, once for all models that share it."""
    where = repository_folder(repository)
    files = [where / name for name in ("config.json", "diffusion_pytorch_model.safetensors")]
    with lock_folder(where.with_name(f"{where.name}.lock"), str(where)):
        for file in files:
            if not file.is_file():
                fetch(f"https://huggingface.co/{repository}/resolve/main/{file.name}", file)
        try:
            return read_autoencoder(where)
        except CheckpointError:
            for file in files:
                file.unlink(missing_ok=True)  # or the next pull would find the same wrong files
            raise


def _check_metadata(name: str, entry: ZooEntry, generator: Any) -> None:
    expected, actual = tuple(entry.image_shape), tuple(generator.image_shape)
    if actual != expected or generator.num_classes != entry.num_classes:
        raise CheckpointError(
            f"the file fetched for {name} holds a model of {actual} images and "
            f"{generator.num_classes} classes, expected {expected} and {entry.num_classes}; "
            "it was removed"
        )

"""Fetch an official checkpoint of the zoo: download, check, convert, keep."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.checkpoints.bundled import INDEX
from genlab.checkpoints.card import Origin, with_card
from genlab.checkpoints.conversion import convert
from genlab.checkpoints.download import OnProgress, download
from genlab.checkpoints.zoo import (
    ZooEntry,
    entries,
    find,
    home,
    model_folder,
    record_checksum,
    recorded_checksum,
)
from genlab.errors import CheckpointError
from genlab.generators.lock import lock_folder


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
    """The entry's facts for the model card."""
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
    """The zoo's facts about a file: told by checksum where that is known, else by name."""
    for entry in entries().values():
        known = entry.sha256 or recorded_checksum(entry)
        if known == checksum or (known is None and entry.file == source.name):
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
        base_url: a mirror: the folder that holds a file of the same name.
        again: fetch it although it is there already.
        on_progress: hears how far the download has come.
        options: further ones of `genlab.checkpoints.download.download`.

    Raises:
        UnknownNameError: the zoo has no such model.
        DownloadError: the file cannot be fetched, or is not the expected one.
        CheckpointError: the file is not what the zoo says it is.
        OutputError: the model cannot be written, or another process is pulling it.
    """
    entry = find(name)
    folder = to or model_folder(name)
    if (folder / INDEX).is_file() and not again:
        return Pulled(folder=folder)
    file = home() / "downloads" / entry.file
    with lock_folder(file.with_name(f"{file.name}.lock"), str(file)):
        url = entry.url if base_url is None else f"{base_url.rstrip('/')}/{entry.file}"
        known = entry.sha256 or recorded_checksum(entry)
        checksum = download(url, file, checksum=known, on_progress=on_progress, **options)
        try:
            generator = convert(file, entry.format)
            _check_facts(name, entry, generator)
        except CheckpointError:
            file.unlink(missing_ok=True)  # or the next pull would find the same wrong file
            raise
        origin = origin_of(entry, checksum)
        dressed = with_card(generator, name, origin, entry.class_names, entry.sampler)
        dressed.save_pretrained(folder)
        record_checksum(entry, checksum)
        file.unlink(missing_ok=True)
    return Pulled(folder=folder, sha256=checksum, first_use=known is None)


def _check_facts(name: str, entry: ZooEntry, generator: Any) -> None:
    wanted, found = tuple(entry.image_shape), tuple(generator.image_shape)
    if found != wanted or generator.num_classes != entry.num_classes:
        raise CheckpointError(
            f"the file fetched for {name} holds a model of {found} images and "
            f"{generator.num_classes} classes, expected {wanted} and {entry.num_classes}; "
            "it was removed"
        )

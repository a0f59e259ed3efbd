"""Fetch a model from the hub: one commit, the files of a model only, each checked, whole or not.

What the hub says is a claim: which files there are, how they are called, how large they are. Names
are compared with a list before any file is asked for; what has arrived is compared with what was
announced; and the copy gets its name only then. Nothing in it is executed or imported.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.checkpoints.hub.kinds import check_kind
from genlab.checkpoints.hub.layout import CARD, Layout, layout_of
from genlab.checkpoints.hub.names import (
    COMMIT,
    DEFAULT_REVISION,
    SOURCE,
    HubCopy,
    HubName,
    copy_folder,
    kept_copy,
    parse,
    remember,
    repository_folder,
)
from genlab.checkpoints.hub.talk import endpoint, talking
from genlab.errors import CheckpointError, DownloadError, OutputError, printable, reading, reason
from genlab.files import MAX_JSON, read_json_object, sha256

MOST_FILES = 2_000
"""Of one model; a shard holds gigabytes."""

_log = logging.getLogger("genlab.hub")
"""Says what is fetched because a name was used; the command line shows it."""

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")

_TOOLS_FOLDER = ".cache"
"""What the hub's library keeps beside files that it fetches into a folder."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file that a repository announces.

    Attributes:
        path: relative, with forward slashes.
        size: in bytes; None where the hub does not say.
        sha256: of its content, where the hub says.
    """

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a revision holds, before any file is fetched.

    Attributes:
        name: what was asked for.
        commit: what the revision means now.
        layout: which kind of folder it is.
        files: those that belong to the model.
        left: how many others there are, which stay where they are.
    """

    name: HubName
    commit: str
    layout: Layout
    files: tuple[RemoteFile, ...]
    left: int

    @property
    def size(self) -> int:
        """Bytes of the model's files."""
        return sum(file.size or 0 for file in self.files)


def locate(name: str) -> str:
    """A name as the rest of GenLab takes it: that of a hub's model becomes the folder of its copy.

    A copy that is here is used without asking the hub; else the model is fetched. Whatever exists
    under this name wins, and what begins with a folder that exists is a path.

    Args:
        name: what `genlab.load` takes.

    Raises:
        CheckpointError: there is neither such a file nor such a repository, or what the repository
            holds is no model.
        OutputError: the copy cannot be written.
    """
    wanted = parse(name)
    if wanted is None or os.path.lexists(name):
        return name
    copy = kept_copy(wanted)
    if copy is not None:
        return str(copy.folder)
    if Path(wanted.repository).parent.is_dir() or os.path.lexists(wanted.repository):
        return name  # a slip in a path, or a training run and which of its weights
    try:
        return str(fetch(wanted, on_listing=_announce).folder)
    except DownloadError as error:
        raise CheckpointError(
            f"there is no file or folder {name}, nor can it be had from the hub: {error}"
        ) from error


def _announce(listing: "Listing") -> None:
    _log.info(
        "%s: fetching commit %s, %d files, %.1f MB from %s",
        listing.name, listing.commit, len(listing.files), listing.size / 1e6, endpoint(),
    )  # fmt: skip


def list_files(name: HubName) -> Listing:
    """Ask the hub what a revision holds.

    Raises:
        DownloadError: the hub is not reached, or has no such repository or revision.
        CheckpointError: it holds no model that GenLab reads.
    """
    with talking(name):
        from huggingface_hub import HfApi

        info = HfApi(endpoint=endpoint()).model_info(
            name.repository, revision=name.revision, files_metadata=True
        )
        listed = [_remote_file(sibling) for sibling in info.siblings or ()]
        commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise DownloadError(
            f"the hub at {endpoint()} names the commit {printable(commit, 60)!r} of {name}, which "
            "is none; check HF_ENDPOINT"
        )
    layout = layout_of(file.path for file in listed)
    if layout is None:
        raise CheckpointError(_no_model(name, listed))
    wanted = tuple(file for file in listed if layout.wants(file.path))
    _check_listing(name, wanted)
    return Listing(
        name=name, commit=commit, layout=layout, files=wanted, left=len(listed) - len(wanted)
    )


def _remote_file(sibling: Any) -> RemoteFile:
    lfs = getattr(sibling, "lfs", None)
    digest = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
    size = sibling.size if isinstance(sibling.size, int) else None
    return RemoteFile(path=str(sibling.rfilename), size=size, sha256=digest)


def _no_model(name: HubName, found: Iterable[RemoteFile]) -> str:
    pickles = sorted(file.path for file in found if file.path.endswith(_PICKLES))
    why = f"; its weights are pickles ({printable(pickles[0], 80)})" if pickles else ""
    return (
        f"{name} holds no model of GenLab, diffusers or peft: there is no model_index.json, "
        f"adapter_config.json or config.json{why}; 'genlab push FOLDER OWNER/NAME' makes such a "
        "repository"
    )


def _check_listing(name: HubName, files: tuple[RemoteFile, ...]) -> None:
    weights = [file.path for file in files if file.path.endswith(".safetensors")]
    if not weights:
        raise CheckpointError(
            f"{name} holds no weights as safetensors, and no others are fetched; ask its owner to "
            "save them so"
        )
    if len(files) > MOST_FILES:
        raise CheckpointError(
            f"{name} announces {len(files):,} files of a model, more than any has "
            f"({MOST_FILES:,}); fetch another one"
        )
    for file in files:
        if file.path not in weights and (file.size or 0) > MAX_JSON:
            raise CheckpointError(
                f"{name} announces {file.path} of {file.size:,} bytes, and such files have at most "
                f"{MAX_JSON:,}; fetch another revision"
            )


def fetch(
    name: HubName, *, again: bool = False, on_listing: Callable[[Listing], None] | None = None
) -> HubCopy:
    """Fetch what a revision means now; a copy of that commit is used as it is.

    Files that came whole before a connection broke are not fetched twice.

    Args:
        name: the repository, and which revision.
        again: fetch it although a copy of the commit is here.
        on_listing: called before files are fetched.

    Returns:
        The copy, which `genlab.load` uses from now on for this name.

    Raises:
        DownloadError: the hub is not reached, or has no such repository or revision.
        CheckpointError: it holds no model, or a file that is none.
        OutputError: the copy cannot be written.
    """
    listing = list_files(name)
    folder = copy_folder(name.repository, listing.commit)
    copy = HubCopy(folder=folder, name=name, commit=listing.commit)
    with _alone(name):
        if again or not folder.is_dir():
            if on_listing is not None:
                on_listing(listing)
            _fetch_files(listing, folder)
        remember(name, listing.commit)
    return copy


@contextmanager
def _alone(name: HubName) -> Iterator[None]:
    """One process at a time in a repository's folder; the others wait, and find the copy."""
    # Public, but in no __all__.
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    root = repository_folder(name.repository)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {root}: {reason(error)}; set GENLAB_HOME") from error
    with WeakFileLock(root / ".lock"):
        yield


def _fetch_files(listing: Listing, folder: Path) -> None:
    part = folder.parent.with_name(f".{listing.commit}.part")
    inside = part / folder.name
    for other in part.parent.glob(".*.part"):  # of commits that nobody will ask for again
        if other != part:
            shutil.rmtree(other, ignore_errors=True)
    _check_room(listing, part.parent)
    try:
        inside.mkdir(parents=True, exist_ok=True)
        texts = [file for file in listing.files if not file.path.endswith(".safetensors")]
        _download(listing, texts, inside)
        # Before gigabytes are fetched for nothing.
        check_kind(listing.layout, inside, str(listing.name))
        _download(listing, listing.files, inside)
        shutil.rmtree(inside / _TOOLS_FOLDER, ignore_errors=True)
        _check_copy(listing, inside)
        (part / SOURCE).write_text(json.dumps(_source(listing), indent=2) + "\n", encoding="utf-8")
        if folder.parent.exists():
            shutil.rmtree(folder.parent)
        part.rename(folder.parent)
    except CheckpointError:
        shutil.rmtree(part, ignore_errors=True)  # or the next attempt would find the same files
        raise
    except OSError as error:
        if isinstance(error, DownloadError | OutputError):
            raise
        raise OutputError(f"cannot write to {part}: {reason(error)}; set GENLAB_HOME") from error


def _check_room(listing: Listing, root: Path) -> None:
    free = shutil.disk_usage(root).free
    if listing.size > free:
        raise OutputError(
            f"{listing.name} takes {listing.size:,} bytes and {root} has room for {free:,}; free "
            "some, or set GENLAB_HOME to another disk"
        )


def _download(listing: Listing, files: Iterable[RemoteFile], to: Path) -> None:
    with talking(listing.name):
        from huggingface_hub import snapshot_download

        snapshot_download(
            listing.name.repository,
            revision=listing.commit,
            # Whole names from our own list, which have none of the characters of patterns.
            allow_patterns=[file.path for file in files],
            local_dir=to,
            endpoint=endpoint(),
            library_name="genlab",
        )


def _check_copy(listing: Listing, folder: Path) -> None:
    """Hold what has arrived against what was announced, and each file against its kind."""
    announced = {file.path: file for file in listing.files}
    there = {path.relative_to(folder).as_posix(): path for path in _files_below(folder)}
    if there.keys() != announced.keys():
        odd = min(there.keys() ^ announced.keys())
        raise CheckpointError(
            f"the files of {listing.name} are not those that the hub announced "
            f"({printable(odd, 80)}); fetch it again"
        )
    for path, file in announced.items():
        _check_file(listing.name, file, there[path])


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        for name in (*names, *folders):
            path = Path(place) / name
            if path.is_symlink() or name in names:
                yield path


def _check_file(name: HubName, file: RemoteFile, path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{file.path} of {name} is no ordinary file; fetch it again")
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise CheckpointError(
            f"{file.path} of {name} has {size:,} bytes and {file.size:,} were announced; fetch it "
            "again"
        )
    if file.sha256 is not None and sha256(path) != file.sha256:
        raise CheckpointError(
            f"{file.path} of {name} is not what was announced: its SHA-256 is another; fetch it "
            "again"
        )
    if path.suffix == ".json":
        read_json_object(path, "fetch another revision")
    elif path.suffix == ".safetensors":
        from safetensors import safe_open

        with reading(path, cure="fetch another revision"), safe_open(path, framework="np"):
            pass  # its head is read, and held against its size
    elif file.path == CARD and size > MAX_JSON:
        raise CheckpointError(f"{file.path} of {name} is too large for a model card")


def _source(listing: Listing) -> dict[str, Any]:
    return {
        "repository": listing.name.repository,
        "revision": listing.name.revision or DEFAULT_REVISION,
        "commit": listing.commit,
        "hub": endpoint(),
        "files": {file.path: file.size for file in sorted(listing.files, key=lambda f: f.path)},
    }

"""Names of models on the hub, and the copies of them that are kept on this machine.

A copy is one commit of a repository. It lies in ``$GENLAB_HOME/hub/owner--name/<commit>/name``,
beside it `SOURCE`, which says where it came from; ``revisions.json`` says which commit a branch or
tag meant when it was last asked for. So a name means the same weights until somebody pulls anew.
Nothing heavy is imported, and nothing here talks to the hub.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from genlab.checkpoints.zoo.catalogue import home
from genlab.errors import CheckpointError, ConfigError
from genlab.files import read_json_object, write_text

DEFAULT_REVISION = "main"
SOURCE = "source.json"
"""Beside a copy: repository, revision, commit, address of the hub, files with their sizes."""
REVISIONS = "revisions.json"

COMMIT = re.compile(r"[0-9a-f]{40}")

_REPOSITORY = re.compile(
    r"(?=.{3,96}\Z)(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    r"/[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
)
"""As the hub has it: ``--`` and ``..`` stand in no name."""

_ARCHITECTURE = re.compile(r"[DS]iT-\w+/\d.*", re.IGNORECASE)
"""``DiT-XL/2``: what papers call a transformer and its patches is no repository."""

_REVISION = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}")

_ENDINGS = (
    *(".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".h5", ".safetensors"),
    *(".npy", ".npz", ".gz", ".tar", ".zip", ".png", ".json", ".yaml", ".yml"),
)
"""Of files: who writes one of these means a path."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A repository of the hub, and perhaps which revision of it.

    Attributes:
        repository: ``owner/name``.
        revision: a branch, tag or commit; None is the hub's default branch.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, kw_only=True)
class HubCopy:
    """A copy of a repository that is whole.

    Attributes:
        folder: that holds the model.
        name: what was asked for.
        commit: what the revision meant when it was asked for.
    """

    folder: Path
    name: HubName
    commit: str


def parse(text: str) -> HubName | None:
    """The repository that ``owner/name`` or ``owner/name@revision`` means; None for other text.

    >>> parse("ada/tiny-edm@v1")
    HubName(repository='ada/tiny-edm', revision='v1')
    >>> parse("weights/net.pkl"), parse("./ada/tiny-edm"), parse("runs/mine@sigma_rel=0.15")
    (None, None, None)
    """
    repository, at, revision = text.partition("@")
    if not _REPOSITORY.fullmatch(repository) or _ARCHITECTURE.fullmatch(repository):
        return None
    if Path(repository).suffix.lower() in _ENDINGS:
        return None
    if at and not _REVISION.fullmatch(revision):
        return None
    return HubName(repository=repository, revision=revision or None)


def named(text: str, revision: str | None = None) -> HubName:
    """The repository that a command is given, which cannot be anything else.

    Args:
        text: ``owner/name`` or ``owner/name@revision``.
        revision: given apart.

    Raises:
        ConfigError: it is no such name, or the revision stands twice.
    """
    name = parse(text)
    if name is None:
        raise ConfigError(
            f"{text!r} is no repository of the hub; write OWNER/NAME, for instance ada/tiny-edm"
        )
    if revision is None:
        return name
    if name.revision is not None and name.revision != revision:
        raise ConfigError(
            f"{text!r} and --revision {revision} name two revisions; leave one of them out"
        )
    if not _REVISION.fullmatch(revision):
        raise ConfigError(
            f"--revision {revision!r} is no branch, tag or commit; check it on the hub's page"
        )
    return HubName(repository=name.repository, revision=revision)


def repository_folder(repository: str) -> Path:
    """Where the copies of a repository are kept, fetched or not."""
    return home() / "hub" / repository.replace("/", "--")


def copy_folder(repository: str, commit: str) -> Path:
    """Where the copy of one commit is kept; its last part is the model's own name."""
    return repository_folder(repository) / commit / repository.partition("/")[2]


def kept_copy(name: HubName) -> HubCopy | None:
    """The copy that a name means on this machine, if there is one."""
    revision = name.revision or DEFAULT_REVISION
    commit = revision if COMMIT.fullmatch(revision) else _revisions(name.repository).get(revision)
    if commit is None:
        return None
    folder = copy_folder(name.repository, commit)
    return HubCopy(folder=folder, name=name, commit=commit) if folder.is_dir() else None


def kept_names() -> list[str]:
    """The repositories whose default branch has a copy here, sorted."""
    root = home() / "hub"
    if not root.is_dir():
        return []
    names = (path.name.replace("--", "/") for path in root.iterdir())
    repositories = (name for name in map(parse, names) if name is not None)
    return sorted(name.repository for name in repositories if kept_copy(name) is not None)


def remember(name: HubName, commit: str) -> None:
    """Note which commit a branch or tag means from now on.

    Raises:
        OutputError: it cannot be written.
    """
    revision = name.revision or DEFAULT_REVISION
    if COMMIT.fullmatch(revision):
        return
    _write_revisions(name.repository, {**_revisions(name.repository), revision: commit})


def forget(name: HubName) -> None:
    """Let a branch or tag mean no commit any more: the next use asks the hub.

    Raises:
        OutputError: it cannot be written.
    """
    revision = name.revision or DEFAULT_REVISION
    commits = _revisions(name.repository)
    if commits.pop(revision, None) is not None:
        _write_revisions(name.repository, commits)


def _write_revisions(repository: str, commits: dict[str, str]) -> None:
    path = repository_folder(repository) / REVISIONS
    write_text(path, json.dumps(commits, indent=2, sort_keys=True) + "\n")


def _revisions(repository: str) -> dict[str, str]:
    """Branch or tag -> commit; a file that was damaged counts as none, and is written anew."""
    try:
        commits = read_json_object(repository_folder(repository) / REVISIONS)
    except CheckpointError:
        return {}
    return {k: v for k, v in commits.items() if isinstance(v, str) and COMMIT.fullmatch(v)}

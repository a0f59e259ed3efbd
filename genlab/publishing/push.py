"""Put a model on the hub: a plan that can be looked at, then one commit with all of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genlab.checkpoints.hub.layout import CARD, layout_of
from genlab.checkpoints.hub.names import DEFAULT_REVISION, HubName, forget
from genlab.checkpoints.hub.talk import endpoint, talking
from genlab.errors import ConfigError, printable
from genlab.eval.leaderboard.records import file_name, to_text
from genlab.publishing.base import named_base
from genlab.publishing.card import hub_card
from genlab.publishing.files import RECORDS, Published, may_be_ours, published_files
from genlab.publishing.model_index import TASK, eval_results

JUDGES = frozenset({"noisy-classifier", "discriminator"})
"""Families that judge images, as a folder's index names them."""
CLASSIFIER = "ClassifierCNN"
MOST_NAMED = 3
_BESIDE = (".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt", CARD)
"""What a repository without a model may hold already: the hub's own forms make them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a push sends.

    Attributes:
        name: the repository, and which branch of it.
        kind: ``model``, ``adapter`` or ``network``.
        files: path in the repository -> the file, or the content of one that is made for it.
        card: text of the model card, which is among the files.
        left: how many files of the folder stay where they are.
        base: of an adapter.
    """

    name: HubName
    kind: str
    files: dict[str, Path | bytes]
    card: str
    left: int
    base: str | None = None

    def sizes(self) -> dict[str, int]:
        """Path -> bytes."""
        return {
            path: len(each) if isinstance(each, bytes) else each.stat().st_size
            for path, each in self.files.items()
        }


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push has done.

    Attributes:
        commit: its name; the newest one where nothing had changed.
        url: of its page.
        removed: files of an earlier push that the model has no more.
    """

    commit: str
    url: str
    removed: tuple[str, ...]


def plan_push(
    folder: Path, name: HubName, *, records: Sequence[Path] = (), base: str | None = None
) -> Plan:
    """Find out what a push would send; the hub is not asked.

    Args:
        folder: of a model, an adapter or a classifier.
        name: the repository, and which branch.
        records: files or folders of evaluation records; those of these very weights go with it.
        base: of an adapter, the name that others find its base by.

    Raises:
        ConfigError: the folder is a training run, the base has no such name, or no record is of
            this model.
        CheckpointError: it holds no model, or a damaged file.
    """
    found = published_files(folder)
    files: dict[str, Path | bytes] = dict(found.paths)
    on_hub = None
    if found.layout.kind == "adapter":
        base, changed = named_base(folder, base)
        files |= changed
        on_hub = base if "/" in base else None
    elif base is not None:
        raise ConfigError(f"{folder} is no adapter, for which --base has no effect; leave it out")
    scored = []
    if records:
        from genlab.publishing.scores import records_of

        scored = records_of(folder, records)
        files |= {f"{RECORDS}/{file_name(each)}": to_text(each).encode() for each in scored}
    card = hub_card(
        found.card,
        name.repository,
        task=_task(found),
        base=on_hub,
        results=eval_results(scored),
    )
    files[CARD] = card.encode()
    return Plan(
        name=name,
        kind=found.layout.kind,
        files=dict(sorted(files.items())),
        card=card,
        left=found.left,
        base=base,
    )


def _task(found: Published) -> str | None:
    """The hub's word for what a model does; it has none for autoencoders."""
    if found.metadata.get("family") in JUDGES or found.metadata.get("_class_name") == CLASSIFIER:
        return "image-classification"
    return None if str(found.metadata.get("_class_name")).startswith("Autoencoder") else TASK


def push(plan: Plan, *, private: bool = True, message: str | None = None) -> Pushed:
    """Send it: all files in one commit, or none.

    Files of an earlier push that the model has no more are removed by the same commit; whatever
    else the repository holds stays.

    Args:
        plan: what `plan_push` found.
        private: of a repository that is made for it; one that is there stays as it is.
        message: of the commit.

    Raises:
        DownloadError: the hub is not reached, or does not let you write.
        ConfigError: the repository holds something else, or the hub refuses the card.
    """
    name = plan.name
    branch = name.revision or DEFAULT_REVISION
    with talking(name, writing=True):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(endpoint=endpoint(), library_name="genlab")
        api.create_repo(name.repository, private=private, exist_ok=True)
        if branch != DEFAULT_REVISION:
            api.create_branch(name.repository, branch=branch, exist_ok=True)
        there = api.list_repo_files(name.repository, revision=branch)
        stale = _stale(plan, there)
        info = api.create_commit(
            name.repository,
            operations=[
                *(CommitOperationAdd(path, each) for path, each in plan.files.items()),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=message or f"Upload {plan.kind} with GenLab",
            revision=branch,
        )
    forget(name)  # a copy here would go on being the old model
    return Pushed(commit=str(info.oid), url=str(info.commit_url), removed=tuple(stale))


def _stale(plan: Plan, there: Sequence[str]) -> list[str]:
    """What an earlier push has left in a repository.

    Raises:
        ConfigError: it holds something else than a model.
    """
    layout = layout_of(there)
    if layout is None:
        others = [path for path in there if path not in _BESIDE]
        if others:
            some = ", ".join(printable(path, 60) for path in others[:MOST_NAMED])
            raise ConfigError(
                f"{plan.name.repository} holds {len(others)} files and no model ({some}); choose "
                "another repository, so that nobody's files are mixed with a model's"
            )
        return []
    return [path for path in there if path not in plan.files and may_be_ours(path, layout)]

"""Which evaluation records are those of the very weights that are published."""

from collections.abc import Sequence
from pathlib import Path

from genlab.errors import ConfigError
from genlab.eval.leaderboard.records import Record, read_record
from genlab.finetuning.adapters.loading import load


def records_of(folder: Path, places: Sequence[Path]) -> list[Record]:
    """Read records, and keep those that were made with the model in a folder.

    Args:
        folder: of the model or adapter; it is loaded to hash its weights.
        places: files of records, or folders of them.

    Raises:
        ConfigError: none is of this model, or a place is not there.
        EvaluationError: a file is no record.
        CheckpointError: the folder holds no generator, or is damaged.
    """
    files = [file for place in places for file in _files(place)]
    records = [read_record(file) for file in files]
    digest = load(folder.resolve()).weights_sha256()
    ours = [each for each in records if each.provenance.get("weights_sha256") == digest]
    if not ours:
        raise ConfigError(
            f"none of the {len(records)} records is of the weights in {folder} (SHA-256 "
            f"{digest[:12]}), and no others go with it; score it first: 'genlab eval {folder}'"
        )
    unique = {(each.protocol.get("name"), each.created, *each.scores): each for each in ours}
    return list(unique.values())


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(place.glob("*.json"))
    if not place.is_file():
        raise ConfigError(f"there is no record {place}; 'genlab eval' writes them to leaderboard/")
    return [place]

"""Find the classifier that classifier guidance uses: a bundled name or a folder."""

from pathlib import Path

from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.hub.fetch import locate
from genlab.checkpoints.zoo.catalogue import entries, pulled_folder
from genlab.errors import CheckpointError, GenLabError, UnknownNameError, nearest
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.saving.index import read_index

_FORMAT = "guided-diffusion-classifier"
"""That of the zoo's classifiers."""


def load_classifier(name_or_path: Path | str) -> NoisyClassifier:
    """Load a classifier of noisy images, in float32 on the CPU.

    Args:
        name_or_path: a bundled one, one of the zoo that was pulled, a folder that ``genlab train``
            or ``genlab convert`` wrote, or ``owner/name`` of the hub. Names win; ``./name`` is
            always the folder.

    Raises:
        UnknownNameError: there is neither.
        CheckpointError: it is no classifier, is damaged, or was not pulled or converted yet.
    """
    name = str(name_or_path)
    if name in bundled_names():
        return NoisyClassifier.from_pretrained(bundled_folder(name))
    pulled = pulled_folder(name) if name in entries() else None
    if pulled is not None:
        return NoisyClassifier.from_pretrained(pulled)
    name = locate(name)
    if Path(name).is_dir():
        return NoisyClassifier.from_pretrained(name)
    raise _not_here(name)


def _not_here(name: str) -> GenLabError:
    zoo = [each for each, entry in entries().items() if entry.format == _FORMAT]
    if name in zoo:
        return CheckpointError(
            f"the zoo's classifier {name} is not on this machine yet; fetch it with "
            f"'genlab zoo pull {name}' (licence {entries()[name].licence})"
        )
    if Path(name).is_file():
        return CheckpointError(
            f"{name} is a file; write it to a folder with 'genlab convert {name} -o FOLDER' first, "
            "and name the folder"
        )
    bundled = [each for each in bundled_names() if is_classifier(bundled_folder(each))]
    return UnknownNameError(f"there is no classifier {name!r}; {nearest(name, [*bundled, *zoo])}")


def is_classifier(folder: Path) -> bool:
    """Whether a model's folder holds a classifier of noisy images rather than a generator.

    Raises:
        CheckpointError: its index is missing or damaged.
    """
    return read_index(folder).get("family") == NoisyClassifier.family

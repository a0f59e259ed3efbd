"""Where classifier guidance finds its classifier: a bundled name or a folder."""

from pathlib import Path

from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.zoo import entries, pulled_folder
from genlab.errors import UnknownNameError, nearest
from genlab.generators.noisy_classifier import NoisyClassifier


def load_classifier(name_or_path: Path | str) -> NoisyClassifier:
    """Load a classifier of noisy images, in float32 on the CPU.

    Args:
        name_or_path: a bundled one (``classifier-fmnist``), one of the zoo that was pulled, or a
            folder that ``genlab train`` or ``genlab convert`` wrote. Names win; ``./name`` is
            always the folder.

    Raises:
        UnknownNameError: there is neither.
        CheckpointError: it is no classifier, or is damaged.
    """
    name = str(name_or_path)
    if name in bundled_names():
        return NoisyClassifier.from_pretrained(bundled_folder(name))
    pulled = pulled_folder(name) if name in entries() else None
    if pulled is not None:
        return NoisyClassifier.from_pretrained(pulled)
    if Path(name).is_dir():
        return NoisyClassifier.from_pretrained(name)
    raise UnknownNameError(f"there is no classifier {name!r}; {nearest(name, bundled_names())}")

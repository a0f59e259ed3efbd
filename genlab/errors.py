"""The one exception family of GenLab.

Every message says what was wrong, where, and what to do about it. The command line prints that
sentence and exits with 2; a traceback is a bug. Each class also derives from the built-in exception
that a caller would expect.
"""

import sys
from collections.abc import Iterable
from difflib import get_close_matches


class GenLabError(Exception):
    """Base of everything that a user can cause and mend."""


class ConfigError(GenLabError, ValueError):
    """A setting has a wrong name, type or value, or has no effect where it stands."""


class UnknownNameError(GenLabError, LookupError):
    """A name (preset, solver, model, class) that nothing is registered under."""


class CheckpointError(GenLabError, ValueError):
    """A checkpoint is missing, damaged, of another format, or tries to run code."""


class DataError(GenLabError, ValueError):
    """A data set is missing, damaged or not laid out as needed."""


class LabelError(GenLabError, ValueError):
    """A class label that the generator does not know, or labels that do not match the seeds."""


class OutputError(GenLabError, OSError):
    """A result could not be written (folder not writable, disk full, made with other settings)."""


class SamplingError(GenLabError, RuntimeError):
    """Sampling went wrong (images are not finite, settings do not fit the model)."""


class TrainingError(GenLabError, RuntimeError):
    """Training cannot go on (loss is not finite, state does not match the run)."""


class EvaluationError(GenLabError, ValueError):
    """A score cannot be computed (too few images, features not finite, statistics do not fit)."""


class DownloadError(GenLabError, OSError):
    """A file could not be fetched, or what arrived is not what was promised."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: on a GPU torch has a class for it, on the CPU it has not."""
    torch = sys.modules.get("torch")  # without torch it is not torch's error
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    return isinstance(error, MemoryError)


def nearest(name: str, known: Iterable[str]) -> str:
    """End an error message with the nearest known name, or with all of them.

    >>> nearest("huen", ["euler", "heun"])
    "did you mean 'heun'? known: euler, heun"
    """
    names = sorted(known)
    listed = f"known: {', '.join(names) or 'none'}"
    match = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}? {listed}" if match else listed

"""The contract of an image source."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8

from genlab.errors import printable

NO_LABEL = -1
"""The label of an image without one; networks read it as the null class."""


@dataclass(frozen=True)
class Finding:
    """One thing that a look at a data set brought up.

    Attributes:
        level: ``error`` (it cannot be trained on like this), ``warning`` (it can, but see to it) or
            ``note``.
        code: a short stable name, for programs.
        message: one sentence with the cure.
    """

    level: Literal["error", "warning", "note"]
    code: str
    message: str

    @classmethod
    def error(cls, code: str, message: str) -> "Finding":
        """It cannot be trained on like this."""
        return cls("error", code, message)

    @classmethod
    def warning(cls, code: str, message: str) -> "Finding":
        """It can be trained on, but see to it."""
        return cls("warning", code, message)

    @classmethod
    def note(cls, code: str, message: str) -> "Finding":
        """Good to know."""
        return cls("note", code, message)


def some(items: Iterable[str], count: int = 3) -> str:
    """A few names for a message, made `printable`.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    listed = list(items)
    more = f" and {len(listed) - count:,} more" if len(listed) > count else ""
    return ", ".join(map(printable, listed[:count])) + more


class ImageSource(ABC):
    """Images and labels on disk: opened once, cheap to pickle, read one by one in any process.

    Attributes:
        path: the file or folder.
        kind: what it is, in words.
        labels: one class for each image, (N,), or None where the source has no labels.
        class_names: where the classes have names; ``class_names[label]``.
        findings: what opening it brought up, none of them an error.
        split: the part of the set that was read; None where the set has no parts.
    """

    path: Path
    kind: str
    split: str | None = None
    labels: Int64[np.ndarray, " N"] | None
    class_names: tuple[str, ...] | None
    findings: tuple[Finding, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call the image ``index``."""

    @abstractmethod
    def read(self, index: int) -> UInt8[np.ndarray, "C H W"]:
        """One image as it is stored.

        Returns:
            (C, H, W), 0 to 255, with C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.

        Raises:
            DataError: the image is damaged.
        """

    def read_all(self) -> UInt8[np.ndarray, "N C H W"] | None:
        """All images at once where they lie as one array anyway, else None."""
        return None

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart; 0 without labels."""
        if self.labels is None:
            return 0
        if self.class_names is not None:
            return len(self.class_names)
        return int(self.labels.max()) + 1 if len(self.labels) else 0

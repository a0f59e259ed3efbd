"""Limits on labels and class names, whatever kind of file they stand in."""

import unicodedata
from collections.abc import Sequence

from genlab.errors import DataError, printable

MAX_CLASSES = 1_000_000
"""Most classes of a data set.

A network has a row for each, whether or not an image has it: a slip such as a file's date among the
labels should not fill memory.
"""

MAX_NAME = 1000
"""Most characters in the name of a class; ImageNet's longest has 131."""


def check_range(lowest: int, highest: int, where: str) -> None:
    """Refuse labels that no model can have.

    Args:
        lowest: of the labels.
        highest: of the labels.
        where: what holds them, for the message.

    Raises:
        DataError: one is negative, or as large as `MAX_CLASSES`.
    """
    wrong = lowest if lowest < 0 else highest
    if not 0 <= wrong < MAX_CLASSES:
        raise DataError(
            f"{where} the label {printable(f'{wrong:,}', 100)}; labels are whole numbers from 0 to "
            f"{MAX_CLASSES - 1:,}: number the classes 0, 1, 2, ..."
        )


def check_class_names(names: Sequence[str], where: str, cure: str) -> None:
    """Refuse names that cannot be shown or written.

    Args:
        names: of classes.
        where: what holds them, for the message.
        cure: what to do about it.

    Raises:
        DataError: one has more than `MAX_NAME` characters, or some that are no text: control
            characters, or halves of one that UTF-8 cannot store.
    """
    if len(names) > MAX_CLASSES:
        raise DataError(f"{where} {len(names):,} classes, more than {MAX_CLASSES:,}; {cure}")
    for name in names:
        if len(name) > MAX_NAME or any(unicodedata.category(letter) in _NO_TEXT for letter in name):
            kind = "longer than a name" if len(name) > MAX_NAME else "no text"
            raise DataError(f"{where} the class name '{printable(name)}', which is {kind}; {cure}")


_NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, surrogates and line ends."""

"""Class names: looked up, compared, and matched between models and data sets."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from genlab.data.sources.base import some
from genlab.errors import LabelError


def find_name(name: str, class_names: Sequence[str]) -> int | None:
    """The number of the class that a name means; None where there is none.

    A name that matches to the letter comes first. Otherwise case does not count, and spaces,
    hyphens, underscores and slashes are taken as equal (no folder has a slash in its name).

    Raises:
        LabelError: several classes match equally well (ImageNet has two cranes).

    >>> find_name("a", ["A", "a"]), find_name("b", ["A", "a"])
    (1, None)
    """
    [index] = find_names([name], class_names)
    return index


def find_names(names: Sequence[str], class_names: Sequence[str]) -> list[int | None]:
    """The number of the class that each name means; see `find_name`.

    Raises:
        LabelError: several classes match a name equally well.
    """
    exact = _places(class_names)
    plain = _places([plain_name(each) for each in class_names])
    numbers: list[int | None] = []
    for name in names:
        key = plain_name(name)
        matches = exact.get(name) or (plain.get(key, []) if key else [])
        if len(matches) > 1:
            listed = [f"{number} ({class_names[number]!r})" for number in matches]
            raise LabelError(
                f"{name!r} names {len(matches)} classes, {some(listed, 5)}; give the number of the "
                "one that is meant"
            )
        numbers.append(matches[0] if matches else None)
    return numbers


def match_classes(
    count: int,
    names: Sequence[str] | None,
    other_count: int,
    other_names: Sequence[str] | None,
) -> list[int | None]:
    """The class of another numbering that each class is; None where it has no such class.

    Classes are matched by name where both sides have names, and by number otherwise. Names that are
    plain numbers (folders called 0 to 9) are numbers.

    Args:
        count: of the classes.
        names: of the classes, or None.
        other_count: of the other side's.
        other_names: of the other side's, or None.

    Raises:
        LabelError: several classes of the other side match a name equally well.

    >>> match_classes(2, ["bag", "Sneaker"], 3, ["sneaker", "boot", "bag"])
    [2, 0]
    >>> match_classes(2, ["0", "2"], 3, ["sneaker", "boot", "bag"])
    [0, 2]
    """
    if names is not None and other_names is not None:
        if same_names(names, other_names):
            return list(range(count))
        if not are_numbers(names) and not are_numbers(other_names):
            return find_names(names, other_names)
    numbers = _numbers(count, names)
    places = {number: place for place, number in enumerate(_numbers(other_count, other_names))}
    return [places.get(number) for number in numbers]


def are_numbers(names: Sequence[str] | None) -> bool:
    """Whether the names are plain numbers, as of folders called 0 to 9."""
    return names is not None and all(re.fullmatch(r"[0-9]{1,9}", name) for name in names)


def _numbers(count: int, names: Sequence[str] | None) -> list[int]:
    """The number that each class stands for."""
    if names is None or not are_numbers(names):
        return list(range(count))
    return [int(name) for name in names]


def same_names(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order.

    >>> same_names(["Ankle boot"], ["ankle_boot"]), same_names(["A", "a"], ["a", "A"])
    (True, False)
    """
    if list(a) == list(b):
        return True
    plain = [plain_name(name) for name in a]
    # Names that differ only in spelling tell classes apart by their spelling alone.
    return plain == [plain_name(name) for name in b] and len(set(plain)) == len(plain)


def _places(values: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        places[value].append(index)
    return dict(places)


def plain_name(name: str) -> str:
    """What two spellings of a class's name have in common.

    Letters with marks count as equal whether they are stored as one character or as two, as file
    systems differ in this.

    >>> plain_name("Ankle_boot ")
    'ankle boot'
    """
    composed = unicodedata.normalize("NFC", name)
    return re.sub(r"[\s_/-]+", " ", composed).strip().casefold()

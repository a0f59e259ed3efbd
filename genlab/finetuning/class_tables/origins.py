"""Where the classes of a fine-tuned model begin: which classes of the base they start as."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, TypeAlias

from genlab.data.labels import class_index, plain_name
from genlab.errors import ConfigError, LabelError
from genlab.saving.saved import SavedModel

ORIGIN_RULES = ("mean", "nearest", "nothing near", "chosen", "random", "zero")
"""How a class may begin, see `ClassOrigin`."""

Classes: TypeAlias = int | str | Sequence[int | str]
"""One class or several, by number or name."""

Initial: TypeAlias = str | Mapping[Any, Classes]
"""One of `RULES`, or new class -> old class or classes; see `class_origins`."""

RULES = ("mean", "nearest", "random")
"""What `class_origins` knows by name."""

SIMILAR = 0.85
"""Least similarity (difflib's ratio) of near names: 'trowser' is near 'trouser' (0.86), 'house' is
not near 'horse' (0.8)."""

SIMILAR_LETTERS = 5
"""Letters that names need to be near by similarity: among short ones, a cat is near a coat."""

SHARED_LETTERS = 3
"""Letters of the last words that two near names share."""


@dataclass(frozen=True, kw_only=True)
class ClassOrigin:
    """Where one class of a new table begins.

    Attributes:
        name: of the class; its number where it has no name.
        rule: "mean": of all classes of the base. "nearest": the class of the base with the nearest
            name. "nothing near": no class of the base has a near name, so the mean. "chosen": by a
            mapping; the mean of several. "random": as the network draws its first table. "zero":
            the base has no classes, and the class begins as what it draws without any.
        old: numbers of the base's classes, of the rules "nearest" and "chosen".
        old_names: their names, where the base has names.
        seed: of the rule "random".
    """

    name: str
    rule: str
    old: Sequence[int] = ()
    old_names: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in ORIGIN_RULES:
            rules = ", ".join(ORIGIN_RULES)
            raise ConfigError(f"the rule of a class must be one of {rules}, got {self.rule!r}")
        # JSON has lists.
        object.__setattr__(self, "old", tuple(self.old))
        object.__setattr__(self, "old_names", tuple(self.old_names))
        if (self.rule in ("nearest", "chosen")) != bool(self.old):
            raise ConfigError(
                f"the class {self.name!r} with the rule {self.rule!r} names "
                f"{len(self.old)} classes to begin with; only nearest and chosen name some"
            )
        if (self.rule == "random") != (self.seed is not None):
            raise ConfigError(
                f"the class {self.name!r} with the rule {self.rule!r} has the seed {self.seed}; "
                "random alone has one"
            )

    def describe(self) -> str:
        """In words, as a command prints it.

        >>> ClassOrigin(name="boot", rule="nearest", old=(9,), old_names=("ankle boot",)).describe()
        'boot: begins as ankle boot, the nearest name'
        """
        named = self.old_names or tuple(f"class {number}" for number in self.old)
        words = {
            "mean": "the mean of all classes",
            "nearest": f"{named[0] if named else ''}, the nearest name",
            "nothing near": "the mean of all classes, none of which has a near name",
            "chosen": named[0] if len(named) == 1 else f"the mean of {', '.join(named)}",
            "random": f"random numbers (seed {self.seed})",
            "zero": "what the base draws, which has no classes",
        }
        return f"{self.name}: begins as {words[self.rule]}"


def class_origins(
    model: SavedModel, names: Sequence[str] | int, initial: Initial = "mean", *, seed: int = 0
) -> tuple[ClassOrigin, ...]:
    """Say where each class of a new table is to begin; `with_classes` takes it as ``initial``.

    Args:
        model: the base.
        names: of the new classes, or their number where they have no names.
        initial: "mean" of all classes of the base; the "nearest" by name (see `nearest_class`),
            else the mean; "random", as the network draws its first table; or new class -> old class
            or classes (their mean), by name or number, for every new class. A base without classes
            takes "mean" (which is what it draws) and "random".
        seed: of "random".

    Raises:
        LabelError: a class is unknown, left out or named twice, or there are no names to match.
        ConfigError: there is no such ``initial``, or it means nothing here.
    """
    count, named = read_names(names)
    labels = named or tuple(map(str, range(count)))
    if isinstance(initial, str) and initial not in RULES:
        raise ConfigError(
            f"initial must be one of {', '.join(RULES)}, or a mapping from new classes to old "
            f"ones, got {initial!r}"
        )
    if count == 0 and initial != "mean":
        raise ConfigError("without classes nothing begins by initial; leave it out")
    if initial == "random":
        return tuple(ClassOrigin(name=name, rule="random", seed=seed) for name in labels)
    if model.num_classes == 0:
        if initial != "mean":
            raise ConfigError(
                "the base has no classes to begin with; set initial to mean (each class begins as "
                "what the base draws) or random"
            )
        return tuple(ClassOrigin(name=name, rule="zero") for name in labels)
    if isinstance(initial, Mapping):
        return _chosen(model, labels, named, initial)
    if initial == "nearest":
        return _nearest(model, labels, named)
    return tuple(ClassOrigin(name=name, rule="mean") for name in labels)


def read_names(names: Sequence[str] | int) -> tuple[int, tuple[str, ...] | None]:
    """Number and names of new classes.

    Raises:
        LabelError: no names, an empty one, one twice, or a number below 0.
    """
    if isinstance(names, int):
        if isinstance(names, bool) or names < 0:
            raise LabelError(f"the number of classes must be at least 0, got {names}")
        return names, None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise LabelError(
            f"the classes must be a list of names or their number, got {names!r}; write one class "
            "as a list, too"
        )
    if not names:
        raise LabelError("no class is named; give at least one name, or 0 for a model without any")
    seen: dict[str, str] = {}
    for name in names:
        plain = plain_name(name)
        if not plain:
            raise LabelError("the name of a class is empty; give every class a name")
        if plain in seen:
            raise LabelError(
                f"two classes have the names {seen[plain]!r} and {name!r}, which mean the same; "
                "rename one of them"
            )
        seen[plain] = name
    return len(names), tuple(names)


def nearest_class(name: str, class_names: Sequence[str]) -> int | None:
    """The class with the nearest name; None where no name is near.

    Case, punctuation and a plural's s do not count, and a name of several synonyms ("T-shirt/top",
    "tench, Tinca tinca") stands for each of them. In this order: the same name; a name that ends in
    the other, as compound words do; the most similar one, if it is about the same (`SIMILAR`,
    `SIMILAR_LETTERS`). Of equally near ones the first counts.

    >>> nearest_class("Sneakers", ["coat", "sneaker"])
    1
    >>> nearest_class("hand bag", ["bag", "sandal"])
    0
    >>> nearest_class("zebra", ["bag", "sandal"]) is None
    True
    """
    words = _words(name)
    forms = [
        (index, form)
        for index, whole in enumerate(class_names)
        for form in dict.fromkeys(_words(part) for part in (whole, *re.split(r"[/,;]", whole)))
        if form
    ]
    if not words:
        return None
    for index, form in forms:
        if "".join(form) == "".join(words):
            return index
    shared = {(index, form): _shared_end(words, form) for index, form in forms}
    best = max(shared.values(), default=0)
    if best >= SHARED_LETTERS:
        return min(index for (index, _), letters in shared.items() if letters == best)
    text = " ".join(words)
    alike = [
        (SequenceMatcher(None, other, text).ratio(), -index)
        for index, form in forms
        if min(len(other := " ".join(form)), len(text)) >= SIMILAR_LETTERS
    ]
    ratio, index = max(alike, default=(0.0, 0))
    return -index if ratio >= SIMILAR else None


def _words(name: str) -> tuple[str, ...]:
    words = re.findall(r"[^\W_]+", name.casefold())
    return tuple(re.sub(r"(?<=..[^su])s$", "", word) for word in words)


def _shared_end(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Letters of the shorter name where the longer one ends in it, word by word; else 0."""
    short, long = sorted((a, b), key=len)
    return sum(map(len, short)) if long[len(long) - len(short) :] == short else 0


def _nearest(
    model: SavedModel, labels: tuple[str, ...], named: tuple[str, ...] | None
) -> tuple[ClassOrigin, ...]:
    old_names = model.class_names
    if named is None or old_names is None:
        whose = "the new classes" if named is None else "the base's classes"
        raise LabelError(f"{whose} have no names to be near by; give names, or set initial to mean")
    origins = []
    for name in labels:
        index = nearest_class(name, old_names)
        if index is None:
            origins.append(ClassOrigin(name=name, rule="nothing near"))
        else:
            origins.append(
                ClassOrigin(name=name, rule="nearest", old=(index,), old_names=(old_names[index],))
            )
    return tuple(origins)


def _chosen(
    model: SavedModel,
    labels: tuple[str, ...],
    named: tuple[str, ...] | None,
    chosen: Mapping[Any, Classes],
) -> tuple[ClassOrigin, ...]:
    sources: dict[int, Classes] = {}
    for new, old in chosen.items():
        number = _number(new, len(labels), named, "new")
        if number in sources:
            raise LabelError(f"initial names the new class {labels[number]!r} twice; keep one")
        sources[number] = old
    missing = [label for number, label in enumerate(labels) if number not in sources]
    if missing:
        raise LabelError(
            f"initial does not say where the new class {missing[0]!r} begins; name a class of the "
            "base for every new one"
        )
    origins = []
    for number, label in enumerate(labels):
        source = sources[number]
        several = [source] if isinstance(source, str | int) else list(source)
        if not several:
            raise LabelError(f"initial names no class of the base for {label!r}; name at least one")
        old = tuple(_number(each, model.num_classes, model.class_names, "old") for each in several)
        names = () if model.class_names is None else tuple(model.class_names[i] for i in old)
        origins.append(ClassOrigin(name=label, rule="chosen", old=old, old_names=names))
    return tuple(origins)


def _number(key: object, count: int, names: Sequence[str] | None, which: str) -> int:
    """The number of a class given by name or number."""
    if isinstance(key, str):
        try:
            return class_index(key, count, names)
        except LabelError as error:
            raise LabelError(f"initial, {which} class {key!r}: {error}") from error
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < count:
        raise LabelError(
            f"initial names the {which} class {key!r}, which is none of 0 ... {count - 1}"
        )
    return key

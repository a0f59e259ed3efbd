"""Seeds and class labels as people write them: ``0-63,100``, ``balanced``, ``sneaker,bag``."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256

from genlab.data.class_names import find_name, plain_name
from genlab.errors import ConfigError, LabelError, nearest

__all__ = [
    "MAX_IMAGES",
    "MAX_SEED",
    "check_labels",
    "class_index",
    "cycle_classes",
    "format_seeds",
    "parse_classes",
    "parse_labels",
    "parse_seeds",
    "plain_name",
    "random_label",
]

MAX_IMAGES = 10_000_000
"""Most seeds that a text may stand for: a slip like ``0-5000000000`` should not fill memory."""

MAX_SEED = 2**63 - 1

MAX_DIGITS = 20
"""Digits of a number that is read at all: 2**63 has 19, and Python refuses thousands of them."""

_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read a list of seeds.

    Args:
        text: numbers and ranges with both ends included, separated by commas.

    Raises:
        ConfigError: not such a list, a seed twice, or a seed of 2**63 or more.

    >>> parse_seeds("0-3,100")
    (0, 1, 2, 3, 100)
    """
    ranges = [_parse_range(part.strip(), text) for part in text.split(",")]
    if sum(part.stop - part.start for part in ranges) > MAX_IMAGES:  # len() ends below 2**63
        raise ConfigError(f"seeds {text!r} ask for more than {MAX_IMAGES:,} images; split the run")
    seeds = tuple(seed for part in ranges for seed in part)
    if len(set(seeds)) < len(seeds):
        twice = Counter(seeds).most_common(1)[0][0]
        raise ConfigError(f"seeds {text!r} hold {twice} twice; a seed stands for one image")
    return seeds


def _parse_range(part: str, text: str) -> range:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise ConfigError(
            f"seeds {text!r}: {part!r} is neither a number nor a range; write for instance 0-63,100"
        )
    if max(len(digits) for digits in match.groups(default="")) > MAX_DIGITS:
        raise ConfigError(f"seeds must lie in 0 ... 2**63 - 1, got {part[:MAX_DIGITS]}...")
    first = int(match[1])
    last = int(match[2] or match[1])
    if last < first:
        raise ConfigError(f"seeds {text!r}: the range {part} runs backwards; write {last}-{first}")
    if last > MAX_SEED:
        raise ConfigError(f"seeds must lie in 0 ... 2**63 - 1, got {last}")
    return range(first, last + 1)


def format_seeds(seeds: Sequence[int]) -> str:
    """Write seeds the short way; `parse_seeds` reads it back.

    >>> format_seeds([0, 1, 2, 3, 100])
    '0-3,100'
    """
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def random_label(seed: int, num_classes: int) -> int:
    """The class that a sample draws for itself, uniform over the classes.

    It comes from a sub-stream of the sample's own: a hash of the seed. So it depends on nothing but
    the seed, and whether the class was drawn or given, the latents and every later draw of the
    sample's stream stay the same.

    Args:
        seed: of the sample.
        num_classes: > 0.

    Returns:
        0 <= label < num_classes.
    """
    digest = sha256(b"genlab label %d" % seed).digest()
    return int.from_bytes(digest[:8], "big") % num_classes


def parse_labels(
    text: str, seeds: Sequence[int], num_classes: int, class_names: Sequence[str] | None = None
) -> tuple[int, ...] | None:
    """Read what ``--labels`` says.

    Args:
        text: ``random`` (each sample's own draw), ``balanced`` (0, 1, 2, ... over the seeds, so
            that the classes are equally frequent), or one class for each seed, by number or name.
        seeds: of the run.
        num_classes: 0 for an unconditional model.
        class_names: where the classes have names.

    Returns:
        One class for each seed, or None for an unconditional model.

    Raises:
        LabelError: a class that the model does not know, or not as many as there are seeds.
    """
    if text in ("random", "balanced") and num_classes == 0:
        return None
    if text == "random":
        return tuple(random_label(seed, num_classes) for seed in seeds)
    if text == "balanced":
        return tuple(i % num_classes for i in range(len(seeds)))
    labels = parse_classes(text, num_classes, class_names)
    if len(labels) != len(seeds):
        raise LabelError(
            f"{len(labels)} labels for {len(seeds)} seeds; give one for each seed, or let them "
            f"take turns with --classes {text}"
        )
    return labels


def cycle_classes(
    text: str, seeds: Sequence[int], num_classes: int, class_names: Sequence[str] | None = None
) -> tuple[int, ...]:
    """Read what ``--classes`` says: the classes take turns over the seeds.

    >>> cycle_classes("7,8", range(5), 10)
    (7, 8, 7, 8, 7)
    """
    classes = parse_classes(text, num_classes, class_names)
    return tuple(classes[i % len(classes)] for i in range(len(seeds)))


def parse_classes(
    text: str, num_classes: int, class_names: Sequence[str] | None = None
) -> tuple[int, ...]:
    """Read a list of classes, by number or name, separated by commas.

    A name may itself hold commas, as those of ImageNet do, if it is written out.

    Raises:
        LabelError: see `class_index`; or the model is unconditional.
    """
    if num_classes == 0:
        raise LabelError(
            f"the model is unconditional and knows no class {text!r}; leave the labels out"
        )
    parts = list(_parts(text, class_names or ()))
    numbers = {part: class_index(part, num_classes, class_names) for part in set(parts)}
    return tuple(numbers[part] for part in parts)


def _parts(text: str, class_names: Sequence[str]) -> Iterator[str]:
    """What stands between commas, but for those inside the name of a class."""
    words = text.split(",")
    longer = {name for name in class_names if "," in name}
    most = max((name.count(",") for name in longer), default=0)
    place = 0
    while place < len(words):
        ends = range(min(place + most + 1, len(words)), place, -1)
        joined = (",".join(words[place:end]).strip() for end in ends)
        size, part = next(
            (end - place, part)
            for end, part in zip(ends, joined, strict=True)
            if part in longer or end == place + 1
        )
        yield part
        place += size


def class_index(name: str, num_classes: int, class_names: Sequence[str] | None = None) -> int:
    """The number of a class given by number or name.

    See `find_name` for what a name matches; a name comes before a number.

    Raises:
        LabelError: there is no such class, or several have the name.

    >>> class_index("ankle_boot", 2, ["bag", "Ankle boot"])
    1
    """
    index = find_name(name, class_names or ())
    if index is not None:
        return index
    if re.fullmatch(r"[0-9]+", name):
        if len(name) <= MAX_DIGITS and int(name) < num_classes:
            return int(name)
        raise LabelError(
            f"class {name[:MAX_DIGITS]} is out of range: the model knows 0 ... {num_classes - 1}"
        )
    if class_names is None:
        raise LabelError(
            f"the model's classes have no names, got {name!r}; "
            f"give numbers, 0 ... {num_classes - 1}"
        )
    raise LabelError(f"the model knows no class {name!r}; {nearest(name, class_names)}")


def check_labels(labels: Sequence[int], seeds: Sequence[int], num_classes: int) -> None:
    """Refuse labels that do not fit the seeds or the model.

    Raises:
        LabelError: wrong number of labels, a class out of range, or any label for an unconditional
            model.
    """
    if num_classes == 0:
        raise LabelError("the model is unconditional; leave the labels out")
    if len(labels) != len(seeds):
        raise LabelError(f"{len(labels)} labels for {len(seeds)} seeds; give one for each seed")
    bad = next((label for label in labels if not 0 <= label < num_classes), None)
    if bad is not None:
        raise LabelError(f"class {bad} is out of range: the model knows 0 ... {num_classes - 1}")

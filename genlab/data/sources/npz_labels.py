"""Which array of an npz file holds the labels, and what its values mean."""

import re
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int64

from genlab.data.sources.base import Finding, some
from genlab.data.sources.limits import check_class_names, check_range
from genlab.data.sources.manifest import Labelled
from genlab.data.sources.npy import Array, Header
from genlab.errors import DataError, printable

_LABELS = re.compile(
    r"(.*[_.-])?(labels?|y|targets?|class(es)?|class_?(ids?|idx|ind(ex|ices))|categor(y|ies)|cls)"
    r"([_.-](train(ing)?|test(ing)?|val(id|idation)?))?",
    re.IGNORECASE,
)
"""Names of labels: ``labels``, ``y``, ``train_labels``, ``class_idx``, ..."""

_OBJECTS = "objects, which are never loaded; store whole numbers, one for each image"
CURE = "store whole numbers from 0, one for each image, as 'labels' or 'arr_1'"


def find_labels(
    headers: Mapping[str, Header], images: str, split: str
) -> tuple[str | None, tuple[Finding, ...]]:
    """The name of the array of labels; None where there is none.

    An array is taken by its name: ``arr_1`` behind images in ``arr_0``, as ADM writes them, or a
    word for labels. Others with an entry for each image may be anything (seeds, indices, times)
    and are passed over with a note.

    Args:
        headers: of all arrays.
        images: the name of the images.
        split: the part of the set that the images are, where there are several.

    Returns:
        The name, and what is worth knowing.

    Raises:
        DataError: several could be the labels.
    """
    count = headers[images].shape[0]
    named = [name for name in headers if name != images and _LABELS.fullmatch(name)]
    if not named and images == "arr_0" and "arr_1" in headers:
        named = ["arr_1"]
    objects = [name for name in named if headers[name].dtype.hasobject]
    if objects:
        return None, (Finding.warning("labels", f"{some(objects)} holds pickled {_OBJECTS}"),)
    if named:
        return _choose(named, headers, count, split), ()
    others = [
        name
        for name, header in headers.items()
        if name != images and header.shape == (count,) and header.dtype.kind in "iub"
    ]
    note = Finding.note(
        "labels",
        f"the numbers in {some(others)} are not taken for labels; if they are the classes of the "
        "images, call the array 'labels'",
    )
    return None, (note,) if others else ()


def _choose(named: list[str], headers: Mapping[str, Header], count: int, split: str) -> str:
    """The one of several arrays with names of labels."""
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: _is_of(name, split),
        lambda name: headers[name].shape[:1] == (count,),
        lambda name: name.casefold() in ("labels", "label", "y"),
    )
    for test in tests:
        named = [name for name in named if test(name)] or named
    if len(named) > 1:
        raise DataError(
            f"the arrays {some(named)} could all be the labels; leave one of them, or call it "
            "'labels'"
        )
    return named[0]


def _is_of(name: str, split: str) -> bool:
    """Whether an array's name says that it belongs to a part of the set: ``x_train``."""
    return split in re.split(r"[_.-]", name.casefold())


def read_labels(values: Array, count: int, where: str) -> Labelled:
    """Labels out of an array of whole numbers, one-hot rows or names.

    Args:
        values: the array.
        count: of images.
        where: what holds them, for messages.

    Returns:
        Labels, (N,), and the names of the classes, where the array holds names.

    Raises:
        DataError: the array is of another kind, and says which.
    """
    shape = " x ".join(f"{axis:,}" for axis in values.shape)
    if values.ndim == 0 or len(values) != count:
        size = f"{len(values):,} entries" if values.ndim == 1 else f"the shape {shape or '()'}"
        raise DataError(f"{where} has {size} for {count:,} images; {CURE}")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind in "US" and values.ndim == 1:
        return _from_names(values, where)
    if values.dtype.kind not in "iubf":
        raise DataError(f"{where} is of type {values.dtype}; {CURE}")
    if values.ndim == 2:
        return _from_one_hot(values, where), None
    if values.ndim != 1:
        raise DataError(f"{where} has the shape {shape}; {CURE}")
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        wrong = values[~(np.isfinite(values) & (values == np.rint(values)))][0]
        raise DataError(f"{where} holds {wrong}, which is no class; {CURE}")
    check_range(int(values.min()), int(values.max()), f"{where} holds")
    return values.astype(np.int64), None


def _from_one_hot(values: Array, where: str) -> Int64[np.ndarray, " N"]:
    sound = ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()
    if not sound:
        raise DataError(
            f"{where} has rows of {values.shape[1]:,} numbers that are not one-hot (a single 1, "
            f"all others 0); {CURE}"
        )
    check_range(0, values.shape[1] - 1, f"{where} holds")
    return values.argmax(1).astype(np.int64)


def _from_names(values: Array, where: str) -> Labelled:
    try:
        texts = [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
    except ValueError as error:  # bytes that are no UTF-8, numbers that are no characters
        raise DataError(f"{where} holds names that are no text; {CURE}") from error
    names = sorted(set(texts))
    check_class_names(names, f"{where} holds", CURE)
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[text] for text in texts], np.int64), tuple(names)


def pick_images(headers: Mapping[str, Header], split: str, where: str) -> tuple[str, str | None]:
    """The name of the array of images, and the part of the set that its name tells.

    Args:
        headers: of all arrays.
        split: the part wanted, where there are several (``x_train``, ``x_test``).
        where: what holds them, for messages.

    Raises:
        DataError: there are none, or several and no telling which.
    """
    fitting = [name for name, header in headers.items() if _are_images(header)]
    if "arr_0" in fitting:
        return "arr_0", None
    if len(fitting) == 1:
        return fitting[0], None
    parts = [name for name in fitting if _is_of(name, split)]
    if len(parts) == 1:
        return parts[0], split
    if fitting:
        raise DataError(
            f"{where} has several arrays that could be the images ({some(fitting)}), and not one "
            f"of them is named as the part {split!r}; call the one that is meant arr_0"
        )
    listed = ", ".join(f"{printable(name)} {header}" for name, header in [*headers.items()][:8])
    raise DataError(
        f"{where} has no images: wanted is arr_0 of type uint8 and shape (N, H, W, 1 or 3), found "
        f"{listed or 'nothing'}"
    )


def _are_images(header: Header) -> bool:
    shape = header.shape
    batch = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    return header.dtype == np.uint8 and batch and 0 not in shape

"""Split a labelled data set by class: a model is trained on some classes and never sees the others.

``python benchmarks/class_split.py fashion-mnist sandal,bag split/`` writes three zips that train as
they are: ``split/base.zip``, the training images of all classes but these; ``split/train.zip`` and
``split/test.zip``, the training and test images of these.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from genlab.data.labels import parse_classes
from genlab.data.prepare import prepare
from genlab.data.sources.base import ImageSource
from genlab.data.sources.opening import open_source


class ClassSubset(ImageSource):
    """The images of some classes, which are numbered anew in the order given."""

    def __init__(self, source: ImageSource, classes: Sequence[int]) -> None:
        if source.labels is None:
            raise SystemExit(f"{source.path} has no labels; name a data set of classes")
        self.source = source
        self.path, self.kind = source.path, source.kind
        self.indices = np.flatnonzero(np.isin(source.labels, classes))
        new = {old: label for label, old in enumerate(classes)}
        self.labels = np.array([new[int(source.labels[i])] for i in self.indices], dtype=np.int64)
        names = source.class_names
        self.class_names = tuple(str(c) if names is None else names[c] for c in classes)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """See `ImageSource.name`."""
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> UInt8[np.ndarray, "C H W"]:
        """See `ImageSource.read`."""
        return self.source.read(int(self.indices[index]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="the data set, with a training and a test part")
    parser.add_argument("classes", help="the classes to hold back: sandal,bag")
    parser.add_argument("output", type=Path, help="the folder to write")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    train, test = (open_source(options.data, split) for split in ("train", "test"))
    held = parse_classes(options.classes, train.num_classes, train.class_names)
    others = [c for c in range(train.num_classes) if c not in held]
    for name, source, classes in (
        ("base", train, others),
        ("train", train, held),
        ("test", test, held),
    ):
        packed = prepare(ClassSubset(source, classes), options.output / f"{name}.zip")
        print(f"{packed.path}: {packed.num_images:,} images of {packed.num_classes} classes")


if __name__ == "__main__":
    main()

"""Data sets that GenLab knows by name, and how their images are prepared."""

from collections.abc import Mapping
from dataclasses import dataclass

from genlab.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """A data set that scores are often made against.

    Attributes:
        aliases: other names of it, in lower case, as they stand on model cards and as folders.
        classifier: the extractor of a small classifier of this set, for use without a network.
        image_size: height and width at which it is generated.
        fit: how its images get there, see `genlab.data.conform.Conform`.
    """

    aliases: tuple[str, ...]
    classifier: str
    image_size: int
    fit: str = "none"


DATASETS: Mapping[str, KnownDataset] = {
    "fmnist": KnownDataset(
        aliases=("fashion-mnist", "fashionmnist", "fashion_mnist"),
        classifier="cnn-fmnist",
        image_size=32,
        fit="pad",
    ),
    "cifar10": KnownDataset(
        aliases=("cifar-10", "cifar10-train-a"), classifier="cnn-cifar10", image_size=32
    ),
}


def dataset_name(text: str) -> str:
    """The short name of a data set; a name that is not known stays as it is.

    >>> dataset_name("Fashion-MNIST")
    'fmnist'
    """
    plain = text.strip().casefold()
    for name, dataset in DATASETS.items():
        if plain == name or plain in dataset.aliases:
            return name
    return plain


def known_dataset(name: str | None, use: str) -> KnownDataset:
    """A known data set, or an error that says what it was needed for."""
    if name is None or name not in DATASETS:
        which = "the data set is not known" if name is None else f"{name!r} is not a known data set"
        raise EvaluationError(
            f"{which}, so {use} has to be said; known data sets: {', '.join(DATASETS)} (--dataset)"
        )
    return DATASETS[name]

"""Differentiable image classifiers by name: noisy classifiers and feature extractors."""

from pathlib import Path

import torch

from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.classifiers import is_classifier, load_classifier
from genlab.checkpoints.hub.fetch import locate
from genlab.checkpoints.zoo.catalogue import entries
from genlab.errors import ConfigError, UnknownNameError, nearest
from genlab.eval.extractors.base import EXTRACTORS, build_extractor
from genlab.eval.extractors.cnn import CNNExtractor
from genlab.finetuning.gan.classifier import ImageClassifier, from_cnn, from_noisy
from genlab.saving.index import INDEX

CNNS = ("cnn-fmnist", "cnn-cifar10")
"""Extractors whose networks are classifiers that gradients run through."""


def load_image_classifier(name: str, device: torch.device | str | None = None) -> ImageClassifier:
    """Load a classifier that a generator can be tuned by.

    Args:
        name: a classifier of noisy images (bundled, of the zoo, or the folder of one), which is
            then told that there is no noise; or a `ClassifierCNN` (``cnn-fmnist``, ``cnn-cifar10``,
            or the folder that ``genlab train export`` wrote of one); or ``owner/name`` of the hub.
            Names win; ``./name`` is always the folder.
        device: where it computes; None is the CPU.

    Raises:
        UnknownNameError: there is none of this name.
        ConfigError: the extractor of this name is no classifier that gradients run through.
        CheckpointError: the folder holds no classifier, or is damaged.
    """
    name = locate(name)
    folder = Path(name)
    place = torch.device(device or "cpu")
    if name in EXTRACTORS and name not in bundled_names():
        return _from_extractor(name, place)
    if name not in (*bundled_names(), *entries()):
        if folder.is_dir() and not (folder / INDEX).is_file():
            extractor = CNNExtractor(folder, folder.resolve().name).to(place)
            return from_cnn(extractor.network, extractor.name, extractor.weights_sha256)
        if not folder.exists():
            raise UnknownNameError(f"there is no classifier {name!r}; {nearest(name, _names())}")
    shown = folder.resolve().name if folder.is_dir() else name
    return from_noisy(load_classifier(name).to(place), shown)


def _from_extractor(name: str, device: torch.device) -> ImageClassifier:
    if name not in CNNS:
        raise ConfigError(
            f"the extractor {name} gives no gradients, so nothing can be tuned by it; take one of "
            f"{', '.join(_names())}, or the folder of a classifier of your own"
        )
    extractor = build_extractor(name)
    assert isinstance(extractor, CNNExtractor)
    extractor.to(device)
    return from_cnn(extractor.network, extractor.name, extractor.weights_sha256)


def _names() -> list[str]:
    """Classifiers that come with the package."""
    noisy = [name for name in bundled_names() if is_classifier(bundled_folder(name))]
    return [*noisy, *CNNS]

"""Validation images: scored during training, never trained on."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from genlab.data.class_names import same_names
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.data.sources.base import some
from genlab.data.sources.latents import LatentDataset
from genlab.errors import ConfigError
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import DataMetadata, open_dataset
from genlab.training.objectives.base import Objective

BATCH_SIZE = 250


def build_validation(
    config: TrainConfig, objective: Objective, data: DataMetadata, device: torch.device
) -> Callable[[nn.Module], dict[str, float]] | None:
    """Build the validation of the main network; None where there is none.

    Args:
        config: of the run; the images are brought into shape as those in training.
        objective: judges.
        data: metadata of the training images, which these must fit.
        device: where the network is.

    Raises:
        ConfigError: the objective has no scores, or the images are of other classes or shape.
        DataError: the images cannot be read.
    """
    settings = config.validation
    if settings.path is None and settings.split is None:
        return None
    if not objective.scores:
        raise ConfigError(
            f"validation has no effect: the objective {config.objective.get('name')!r} has no "
            "score of its own; leave it out"
        )
    path, split = settings.path or config.data.path, settings.split or "train"
    if (path, split) == (config.data.path, config.data.split):
        raise ConfigError(
            f"the validation images are those in training ({path}, {split}); name others with "
            "validation.path or validation.split"
        )
    dataset = open_dataset(replace(config.data, path=path, split=split))
    if isinstance(dataset, LatentDataset) and (
        dataset.metadata.autoencoder_sha256 != data.autoencoder
    ):
        raise ConfigError(
            f"the validation latents of {path} were made by another autoencoder than those in "
            "training; encode the images with the same one"
        )
    if (dataset.image_shape, dataset.num_classes) != (data.image_shape, data.num_classes):
        raise ConfigError(
            f"the validation images are {dataset.image_shape} of {dataset.num_classes} classes, "
            f"those in training {data.image_shape} of {data.num_classes}; check validation.path"
        )
    ours, theirs = dataset.class_names, data.class_names
    if ours is not None and theirs is not None and not same_names(ours, theirs):
        raise ConfigError(
            f"the classes of the validation images ({some(ours)}) are not those in training "
            f"({some(theirs)}), or in another order; name and number them alike"
        )
    return lambda network: objective.evaluate(network, _batches(dataset, device))


def _batches(
    dataset: ImageDataset | LatentDataset, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in [-1, 1], or the means of latents, and labels."""
    stored, labels = dataset.load_all()
    channels = dataset.image_shape[0]
    for start in range(0, len(stored), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        batch = stored[part].to(device)
        images = from_uint8(batch) if batch.dtype == torch.uint8 else batch[:, :channels].float()
        yield images, labels[part].to(device)

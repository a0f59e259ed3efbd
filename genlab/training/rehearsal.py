"""The dry run of training: find every error that can be found before anything is built."""

from pathlib import Path

import torch

from genlab.errors import ConfigError, nearest
from genlab.generators.base import Generator
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import Batches, DataMetadata, Share
from genlab.training.loop.logs import tracker_names
from genlab.training.loop.loop import build_accelerator
from genlab.training.loop.validation import build_validation
from genlab.training.objectives.base import Objective, build_objective, network_parameters
from genlab.training.run import Run


def rehearse(
    config: TrainConfig, folder: Path, device: str | None = None, *, with_data: bool = True
) -> None:
    """Check a training run's settings against each other, its images, its folder and the machine.

    Networks are built without their weights, images are opened and not read through.

    Args:
        config: merged.
        folder: of the run, which may hold one.
        device: where it would train; None is the best there is.
        with_data: whether the images are there; without them the shapes of networks, which follow
            from them, are not checked.

    Raises:
        GenLabError: what the run itself would raise.
    """
    tracker_names(config)
    accelerator = build_accelerator(config, device)
    objective = build_objective(config.objective)
    Share(
        config.batch_size,
        accelerator.num_processes,
        accelerator.process_index,
        config.gradient_accumulation,
    )
    _check_optimizers(config, objective)
    network_parameters(config.network)
    if with_data:
        metadata = Batches(config.data, config.seed).metadata
        _check_product(config, objective, metadata)
        build_validation(config, objective, metadata, torch.device("cpu"))
        Run(folder).check(config, metadata, objective.recuttable)


def _check_optimizers(config: TrainConfig, objective: Objective) -> None:
    for name in config.optimizer.networks:
        if name not in objective.phases:
            raise ConfigError(
                f"optimizer.networks has settings for {name!r}, which this objective does not "
                f"train; {nearest(name, objective.phases)}"
            )
    for name in objective.phases:
        config.optimizer.of(name)


def _check_product(config: TrainConfig, objective: Objective, metadata: DataMetadata) -> None:
    """Shapes of the networks, the default sampler, and that of previews."""
    with torch.device("meta"):  # shapes alone: no memory, no random numbers
        network = objective.build(config.network, metadata)[objective.main]
    names = metadata.class_names if config.class_names is None else tuple(config.class_names)
    product = objective.product(network, names, config.sampler)
    if isinstance(product, Generator):
        product.build_sampler(config.output.preview_sampler)
    elif config.sampler or config.output.preview_sampler:
        raise ConfigError(
            f"sampler and output.preview_sampler have no effect: the objective "
            f"{config.objective['name']!r} trains no generator; leave them out"
        )

"""Export the discriminator of a GAN's run, calibrated against the generator of the same run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genlab.errors import ConfigError, TrainingError
from genlab.generators.analysis.calibration import calibrate
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.training.card import model_card
from genlab.training.export import Choice, make_product
from genlab.training.loop.batches import Batches
from genlab.training.loop.state import load_state, states
from genlab.training.objectives.base import build_objective
from genlab.training.objectives.gan.objective import DISCRIMINATOR, GanObjective
from genlab.training.run import Run

CALIBRATION_IMAGES = 4096

USAGE = (
    "To draw images of the generator of the same run that this discriminator accepts:\n\n```\n"
    "genlab sample GENERATOR sampler.rejection.discriminator=PATH_TO_THIS_FOLDER -o samples/\n```"
)


def export_discriminator(
    run: Run,
    folder: Path,
    choice: Choice,
    calibration_images: int = CALIBRATION_IMAGES,
    dtype: str | None = None,
    extra_rows: Mapping[str, Any] | None = None,
) -> GanDiscriminator:
    """Write the discriminator of a GAN's run as a folder.

    Its weights are the last ones of the run: of discriminators no average is kept.

    Args:
        run: finished or not.
        folder: what to write.
        choice: which weights of the generator it is calibrated against, those that will be sampled.
        calibration_images: training images, the first that the run saw, that it is calibrated by;
            0 leaves it uncalibrated.
        dtype: what the weights are stored in; None is float32.
        extra_rows: more rows for the model card's table.

    Raises:
        TrainingError: there is no such run, or it has not stored the weights.
        ConfigError: the run is not one of a GAN, or its discriminator judges whole batches.
        DataError: the training images cannot be read.
    """
    config, data = run.read_config(), run.read_data()
    objective = build_objective(config.objective)
    if not isinstance(objective, GanObjective):
        raise ConfigError(
            f"the run in {run.folder} trains no discriminator: its objective is "
            f"{config.objective.get('name')!r} and not gan; leave --discriminator out"
        )
    saved = states(run.states)
    if not saved:
        raise TrainingError(
            f"the run in {run.folder} has saved no weights yet; wait for its first state"
        )
    state = load_state(saved[-1])
    images = state.progress.images
    if choice.images not in (None, images):
        raise TrainingError(
            f"{run.folder} holds the discriminator of its last state only, after {images} images; "
            "leave --images out"
        )
    network: Any = objective.build(config.network, data)[DISCRIMINATOR]
    network.load_state_dict(state.networks[DISCRIMINATOR])
    network.eval()
    names = data.class_names if config.class_names is None else tuple(config.class_names)
    discriminator = GanDiscriminator(network, class_names=names)
    rows = dict(extra_rows or {})
    if calibration_images:
        generator, _ = make_product(run, choice)
        assert isinstance(generator, GanGenerator)
        real, labels = Batches(config.data, config.seed).first(calibration_images)
        discriminator = calibrate(discriminator, generator, real, labels)
        assert discriminator.calibration is not None
        rows["Calibration"] = f"{discriminator.calibration.describe()}; on training images"
    discriminator.card = model_card(
        run, config, data, objective, "last weights, not averaged", images, rows, USAGE
    )
    if dtype is not None:
        discriminator.to(dtype=getattr(torch, dtype))
    discriminator.save_pretrained(folder)
    return discriminator

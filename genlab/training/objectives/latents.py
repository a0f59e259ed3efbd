"""Training on latents: what comes out carries the autoencoder, so that its samples are images."""

from pathlib import Path

import torch

from genlab.errors import ConfigError
from genlab.generators.autoencoder import Autoencoder
from genlab.generators.diffusion import DiffusionGenerator
from genlab.training.objectives.base import Product


def with_autoencoder(product: Product, folder: Path, device: torch.device | str = "cpu") -> Product:
    """The same product with the autoencoder whose latents it was trained on.

    Args:
        product: of a run on latents.
        folder: of the autoencoder.
        device: where to put it.

    Raises:
        ConfigError: the family does not work on latents.
        CheckpointError: the autoencoder is damaged.
    """
    if not isinstance(product, DiffusionGenerator):
        raise ConfigError(
            "only diffusion models can be trained on latents; give the images themselves as "
            "data.path, or take objective.name=diffusion"
        )
    autoencoder = Autoencoder.from_pretrained(folder).to(device)
    return product.changed(autoencoder=autoencoder.model)

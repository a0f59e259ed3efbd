"""Real autoencoders of a few thousand random weights."""

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from genlab.generators.autoencoder import Autoencoder


def tiny_kl(channels: int = 1, seed: int = 2, **config: object) -> Autoencoder:
    """An AutoencoderKL that shrinks images twice, to two channels."""
    options = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [4, 8],
        "norm_num_groups": 2,
        "latent_channels": 2,
        "sample_size": 8,
        "scaling_factor": 0.5,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoencoderKL(**options)
    return Autoencoder(model.eval())


def tiny_deterministic(seed: int = 3) -> Autoencoder:
    """An AutoencoderTiny that shrinks RGB images twice, to four channels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoencoderTiny(
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    return Autoencoder(model.eval())

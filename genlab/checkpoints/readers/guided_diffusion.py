"""Readers of guided-diffusion's files: the U-Nets and the noisy classifiers of ADM."""

from pathlib import Path

from genlab.checkpoints.readers.base import Config
from genlab.checkpoints.readers.guided_diffusion_config import parse, parse_classifier
from genlab.checkpoints.readers.options import MissingArgumentError
from genlab.checkpoints.weights import build_network, mentions, read_state_dict
from genlab.diffusion.preconditioning import from_config
from genlab.generators import DiffusionGenerator
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ADMClassifier, ADMUNet

_ENCODER = "input_blocks.1.0.emb_layers.1.weight"
_DECODER = "output_blocks.0.0.emb_layers.1.weight"


class GuidedDiffusionReader:
    """Reads the U-Nets, super-resolution ones included."""

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Tensors under the names of both halves of the U-Net."""
        return mentions(source, _ENCODER) and mentions(source, _DECODER)

    def read(self, source: Path, config: Config | None) -> DiffusionGenerator:
        """Read a U-Net; see `genlab.checkpoints.readers.base.Reader`.

        ``config`` holds the official flags; it needs the image size (``image_size``, or
        ``large_size`` for super-resolution) and ``num_heads`` or ``num_head_channels``.
        """
        flags = _needed(config, source, "image_size=256 num_head_channels=64 ...")
        state = read_state_dict(source)
        model = parse(flags, state, str(source))
        return DiffusionGenerator(
            build_network(ADMUNet, model.network, state, f"{source} (UNetModel)"),
            from_config(model.preconditioning),
            sampler=model.sampler,
        )


class GuidedDiffusionClassifierReader:
    """Reads the noisy classifiers."""

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Tensors under the names of the U-Net's first half alone."""
        return mentions(source, _ENCODER) and not mentions(source, _DECODER)

    def read(self, source: Path, config: Config | None) -> NoisyClassifier:
        """Read a classifier; see `GuidedDiffusionReader.read`.

        The flags of the diffusion model belong in ``config``, too (``diffusion_steps``,
        ``noise_schedule``): they say what noise the classifier knows.
        """
        flags = _needed(config, source, "image_size=256 classifier_pool=attention ...")
        if not {"num_heads", "num_head_channels", "kwargs"} & set(flags):
            flags = {**flags, "num_head_channels": 64}  # no flag: all official classifiers have it
        state = read_state_dict(source)
        model = parse_classifier(flags, state, str(source))
        return NoisyClassifier(
            build_network(ADMClassifier, model.network, state, f"{source} (EncoderUNetModel)"),
            from_config(model.preconditioning),
        )


def _needed(config: Config | None, source: Path, example: str) -> Config:
    if config is None:
        raise MissingArgumentError(
            f"{source} holds tensors only",
            f"give the official flags as config, for instance {example}",
            example,
        )
    return config

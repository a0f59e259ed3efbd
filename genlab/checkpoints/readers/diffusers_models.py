"""Reader of diffusers' folders: pipelines and models of UNet2DModel and DiTTransformer2DModel.

And the way back: a DiT as a folder that diffusers' DiTPipeline reads.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel
from safetensors.torch import save_file

from genlab.checkpoints.autoencoders import read_autoencoder
from genlab.checkpoints.readers import diffusers_dit
from genlab.checkpoints.readers.base import Config, Product
from genlab.checkpoints.readers.diffusers_folder import (
    WEIGHTS,
    class_of,
    known_options,
    read_metadata,
    read_weights,
)
from genlab.checkpoints.readers.diffusers_schedulers import parse_scheduler, scheduler_config
from genlab.checkpoints.readers.options import MissingArgumentError
from genlab.checkpoints.weights import build_network
from genlab.diffusion.discrete import Discrete
from genlab.errors import CheckpointError, ConfigError
from genlab.files import make_public, read_json_object, write_text
from genlab.generators import DiffusionGenerator
from genlab.generators.autoencoder import Autoencoder
from genlab.networks import DiT
from genlab.networks.diffusers_dit import DiffusersDiT
from genlab.networks.diffusers_unet import DiffusersUNet
from genlab.samplers.diffusers_schedulers import defaults_of
from genlab.saving.index import INDEX
from genlab.saving.models import MODEL_CONFIG, read_config

UNET, DIT = "UNet2DModel", "DiTTransformer2DModel"
MODELS = (UNET, DIT)
SCHEDULER = "scheduler_config.json"

_PARTS = ("unet", "transformer")
"""Where pipelines keep their network."""

_NULL_CLASS = 1000
"""What diffusers' DiTPipeline takes for it, whatever the network."""

_OFFICIAL_TIMES = "genlab_official_time_features"
"""Marks, in the metadata of their file, weights of a DiT whose time features are the paper's.
Whoever writes the weights anew, such as diffusers, leaves it out: they are then those of diffusers'
class, with its time features."""


class DiffusersReader:
    """Reads a pipeline's folder, or a model's with its scheduler's config beside or given.

    The config that `genlab.convert` takes goes over that of the scheduler; its ``num_steps`` is
    that of the sampler.
    """

    reads_folders = True

    def recognises(self, source: Path, config: Config | None) -> bool:
        """A folder whose config.json, or that of its unet/ or transformer/, names a known class."""
        return source.is_dir() and _network_folder(source) is not None

    def read(self, source: Path, config: Config | None) -> DiffusionGenerator:
        """Read a folder; see `genlab.checkpoints.readers.base.Reader`."""
        where = _network_folder(source)
        if where is None:
            raise CheckpointError(
                f"{source} holds no model of diffusers that GenLab reads: wanted is a folder with "
                f"the config.json of a {' or '.join(MODELS)}, or a pipeline's with unet/ or "
                "transformer/"
            )
        network = _read_network(where)
        predicts_variance = network.config.out_channels == 2 * network.config.in_channels
        scheduler, num_steps = _scheduler(source, where, config)
        scheduling = parse_scheduler(
            scheduler, predicts_variance=predicts_variance, num_steps=num_steps
        )
        return DiffusionGenerator(
            network,
            scheduling.preconditioning,
            class_names=_class_names(source, network.label_dim),
            sampler=scheduling.sampler,
            has_null_class=isinstance(network, DiT | DiffusersDiT),
            autoencoder=_find_autoencoder(source),
        )


def _network_folder(source: Path) -> Path | None:
    for folder in (source, *(source / part for part in _PARTS)):
        if class_of(folder) in MODELS:
            return folder
    return None


def _scheduler(
    source: Path, where: Path, config: Config | None
) -> tuple[dict[str, Any], int | None]:
    """The scheduler's config, changed by what was given; and the number of steps."""
    overrides = dict(config or {})
    num_steps = overrides.pop("num_steps", None)
    if num_steps is not None and (not isinstance(num_steps, int) or num_steps < 1):
        raise ConfigError(f"num_steps must be a whole number above 0, got {num_steps!r}")
    for path in (source / "scheduler" / SCHEDULER, where / SCHEDULER):
        if path.is_file():
            return {**read_json_object(path), **overrides}, num_steps
    if not overrides:
        example = "beta_schedule=linear beta_start=0.0001 beta_end=0.02"
        raise MissingArgumentError(
            f"{source} does not say how its model was trained: there is no scheduler/{SCHEDULER}",
            f"give the scheduler's arguments as config, for instance {example}",
            example,
        )
    return overrides, num_steps


def _read_network(folder: Path) -> Any:
    config = read_config(folder)
    state = read_weights(folder)
    if config["_class_name"] == UNET:
        return _read_unet(folder, config, state)
    options = diffusers_dit.options_of(config, state, folder)
    converted = diffusers_dit.from_diffusers(state)
    if read_metadata(folder).get(_OFFICIAL_TIMES) == "true":
        plain = diffusers_dit.as_plain(converted)
        if plain is None:
            raise CheckpointError(
                f"the weights in {folder} are marked as those of the paper's DiT, but its blocks "
                f"have different embedders; take {_OFFICIAL_TIMES} out of their metadata"
            )
        options.pop("norm_eps")
        return build_network(DiT, options, plain, f"{folder} (DiT)", computed=["pos_embed"])
    return build_network(DiffusersDiT, options, converted, f"{folder} (DiffusersDiT)")


def _read_unet(folder: Path, config: dict[str, Any], state: dict[str, Any]) -> Any:
    options = known_options(UNet2DModel, config)
    size = options.pop("sample_size", None)
    if not isinstance(size, int):
        raise CheckpointError(
            f"the config of {folder} says sample_size = {size!r}; GenLab reads U-Nets of square "
            "images, whose sample_size is a whole number"
        )
    if options.pop("class_embed_type", None) is not None:
        raise CheckpointError(
            f"the U-Net in {folder} is conditioned on other things than classes; GenLab reads "
            "those with class_embed_type null"
        )
    own = {
        "img_resolution": size,
        "in_channels": options.pop("in_channels", 3),
        "out_channels": options.pop("out_channels", 3),
        "label_dim": options.pop("num_class_embeds", None) or 0,
        "options": options,
    }
    renamed = {
        name if name.startswith("class_embedding.") else f"unet.{name}": value
        for name, value in state.items()
    }
    return build_network(DiffusersUNet, own, renamed, f"{folder} (DiffusersUNet)")


def _class_names(source: Path, num_classes: int) -> list[str] | None:
    """The names in a pipeline's ``id2label``, where they are as many as classes."""
    path = source / INDEX
    names = read_json_object(path).get("id2label") if path.is_file() else None
    if not isinstance(names, Mapping) or sorted(names) != sorted(map(str, range(num_classes))):
        return None
    return [str(names[str(label)]).split(",")[0] for label in range(num_classes)]


def _find_autoencoder(source: Path) -> Autoencoder | None:
    """The autoencoder of a pipeline, where it has one.

    Raises:
        CheckpointError: it has one that GenLab does not know.
    """
    for part in ("vae", "vqvae"):
        if (source / part).is_dir():
            return read_autoencoder(source / part)
    return None


def export_dit(generator: Product, folder: Path | str) -> list[str]:
    """Write a DiT as a folder for diffusers: a DiTPipeline, where it has an AutoencoderKL.

    Args:
        generator: of a `DiT` or `DiffusersDiT` with discrete preconditioning.
        folder: gets transformer/, scheduler/, and vae/ with model_index.json.

    Returns:
        What the reader of the folder should know, in sentences.

    Raises:
        ConfigError: diffusers' class cannot express the model.
    """
    if not isinstance(generator, DiffusionGenerator):
        raise ConfigError(f"diffusers has no class for the family {generator.family!r}")
    network, preconditioning = generator.network, generator.preconditioning
    if not isinstance(network, DiT | DiffusersDiT):
        raise ConfigError(
            f"only DiTs can be written for diffusers, not {type(network).__name__}; GenLab's own "
            "folders are read by genlab.GenLabPipeline"
        )
    if not isinstance(preconditioning, Discrete):
        raise ConfigError(
            f"diffusers' DiTPipeline needs discrete timesteps, and this model's preconditioning is "
            f"{preconditioning.name!r}"
        )
    folder = Path(folder)
    config, state = diffusers_dit.to_diffusers(network)
    notes, metadata = [], {"format": "pt"}
    if isinstance(network, DiT):
        metadata[_OFFICIAL_TIMES] = "true"
        notes.append(
            "diffusers computes a DiT's time features at frequencies of its own, so it does not "
            "draw the images that GenLab draws with these weights"
        )
    _write_model(folder / "transformer", config, state, metadata)
    scheduling = scheduler_config(preconditioning, clip=_clips(generator))
    _write_json(folder / "scheduler" / SCHEDULER, scheduling)
    if generator.num_classes != _NULL_CLASS:
        notes.append(
            f"DiTPipeline takes class {_NULL_CLASS} for the null class, so this model of "
            f"{generator.num_classes} classes can only be drawn from with guidance_scale=1 there"
        )
    if generator.autoencoder is None:
        notes.append("the model has no autoencoder, so there is no DiTPipeline to load it as")
        return notes
    generator.autoencoder.save_pretrained(folder / "vae")
    _write_json(folder / INDEX, _pipeline_index(generator.autoencoder, generator.class_names))
    return notes


def _clips(generator: DiffusionGenerator) -> bool:
    """Whether a scheduler may clip the denoised estimate to [-1, 1]: never where it is of latents.

    Of images it does where the model's own sampler does, or does not say.
    """
    is_image = generator.autoencoder is None and not generator.draws_latents
    solver = generator.sampler.config["solver"]
    if solver["name"] == "diffusers":
        settings = {**defaults_of(solver["scheduler"]), **solver.get("config", {})}
        return is_image and bool(settings.get("clip_sample"))
    return is_image and bool(solver.get("clip", True))


def _pipeline_index(autoencoder: Autoencoder, names: Sequence[str] | None) -> dict[str, Any]:
    return {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", DiTTransformer2DModel.__name__],
        "vae": ["diffusers", type(autoencoder.model).__name__],
        "scheduler": ["diffusers", DDIMScheduler.__name__],
        "id2label": None if names is None else {str(i): name for i, name in enumerate(names)},
    }


def _write_model(
    folder: Path, config: Mapping[str, Any], state: dict[str, Any], metadata: dict[str, str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{WEIGHTS}.safetensors"
    save_file(state, weights, metadata=metadata)
    make_public(weights)
    _write_json(folder / MODEL_CONFIG, config)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")

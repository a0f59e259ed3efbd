"""Autoencoders of latent diffusion models: found by name or folder, read, and given to a model."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, not in __all__

from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.hub.names import kept_copy, parse
from genlab.checkpoints.readers.diffusers_folder import WEIGHTS, known_options, read_weights
from genlab.checkpoints.weights import build_network
from genlab.checkpoints.zoo.catalogue import entries, home, pulled_folder
from genlab.errors import CheckpointError, ConfigError, UnknownNameError, printable, reading
from genlab.generators.autoencoder import CLASSES, Autoencoder, autoencoder_classes
from genlab.generators.diffusion import DiffusionGenerator
from genlab.saving.claims import check_config
from genlab.saving.index import INDEX
from genlab.saving.models import MODEL_CONFIG, read_config
from genlab.saving.saved import SavedModel

_PARTS = ("vae", "autoencoder")
"""Where pipelines and generators keep theirs."""


def attach_autoencoder(
    generator: SavedModel, source: Path | str | Autoencoder
) -> DiffusionGenerator:
    """The same model with another autoencoder to decode its latents.

    Args:
        generator: a diffusion model; others are refused.
        source: an autoencoder, or what `find_autoencoder` finds one by.

    Raises:
        ConfigError: the model is of another family, or its latents are not the autoencoder's.
        CheckpointError: the autoencoder is not here, damaged or of an unknown class.
        UnknownNameError: nothing is known by this name.
    """
    if not isinstance(generator, DiffusionGenerator):
        raise ConfigError(
            f"only diffusion models work on an autoencoder's latents; this one is of the family "
            f"{generator.family!r}, so leave autoencoder out"
        )
    autoencoder = source if isinstance(source, Autoencoder) else find_autoencoder(source)
    autoencoder.image_shape(generator.state_shape)
    return generator.changed(autoencoder=autoencoder.model)


def find_autoencoder(name_or_folder: Path | str) -> Autoencoder:
    """Read an autoencoder that is on this machine; only safetensors, and nothing is fetched.

    Args:
        name_or_folder: the folder of an AutoencoderKL or AutoencoderTiny of diffusers, or of a
            pipeline or model that has one; a bundled model or a zoo model that has been pulled; or
            a repository of the Hugging Face hub (``stabilityai/sd-vae-ft-ema``) that a pull or
            ``hf download`` has put into a cache. Names win over folders; ``./name`` is always the
            folder.

    Raises:
        CheckpointError: it is damaged or of an unknown class, or has yet to be fetched.
        UnknownNameError: nothing is known by this name.
    """
    return read_autoencoder(_place(str(name_or_folder)), pickled=False)


def _place(name: str) -> Path:
    if name in bundled_names():
        return bundled_folder(name)
    if name in entries():
        if (pulled := pulled_folder(name)) is None:
            raise CheckpointError(
                f"the zoo's model {name} is not on this machine yet, nor is its autoencoder; fetch "
                f"it with 'genlab zoo pull {name}'"
            )
        return pulled
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        is_file = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, no path at all
        is_file = False
    if is_file:
        raise CheckpointError(
            f"{name} is no folder; an autoencoder is one, with {MODEL_CONFIG} and "
            f"{WEIGHTS}.safetensors, as save_pretrained of diffusers writes it"
        )
    if not _may_be_repository(name):
        raise UnknownNameError(
            f"there is no autoencoder {printable(name)}: no folder of this name, and no model; "
            "give the folder of an AutoencoderKL or AutoencoderTiny of diffusers"
        )
    if (cached := cached_repository(name)) is None:
        raise CheckpointError(
            f"the autoencoder {name} is not on this machine: it is no folder, and in no cache; "
            f"if it is a repository of the Hugging Face hub, fetch it with 'hf download {name}' or "
            f"'genlab pull {name}'"
        )
    return cached


def _may_be_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def repository_folder(name: str) -> Path:
    """Where ``genlab zoo pull`` keeps an autoencoder of the hub, fetched or not."""
    return home() / "downloads" / name.replace("/", "--")


def cached_repository(name: str) -> Path | None:
    """A repository's autoencoder in our cache or in that of the hub's own tools, if it is there."""
    ours = repository_folder(name)
    if (ours / MODEL_CONFIG).is_file():
        return ours
    wanted = parse(name)
    if wanted is not None and (copy := kept_copy(wanted)) is not None:
        return copy.folder
    for file in (MODEL_CONFIG, *(f"{part}/{MODEL_CONFIG}" for part in _PARTS)):
        cached = try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def read_autoencoder(folder: Path | str, *, pickled: bool = True) -> Autoencoder:
    """Read an autoencoder: its own folder, or a pipeline's or generator's that has one.

    Its config is checked against the shapes of its weights before anything is built.

    Args:
        folder: where it lies.
        pickled: whether weights may be a pickled ``.bin``, of which only tensors are read.

    Raises:
        CheckpointError: there is none, it is of an unknown class, or it is damaged.
    """
    with reading(folder):
        return _read(Path(folder), pickled)


def _read(source: Path, pickled: bool) -> Autoencoder:
    inside = (source / part for part in _PARTS)
    where = next((part for part in inside if (part / MODEL_CONFIG).is_file()), source)
    if where == source and (source / INDEX).is_file() and not (source / MODEL_CONFIG).is_file():
        raise CheckpointError(
            f"{source} holds a model without an autoencoder; give the folder of the autoencoder"
        )
    config = read_config(where)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise CheckpointError(
            f"{where / MODEL_CONFIG} names the class {printable(name)!r}; GenLab knows the "
            f"autoencoders {', '.join(CLASSES)}"
        )
    check_config(config, str(where / MODEL_CONFIG))
    cls = autoencoder_classes()[name]
    options, state = known_options(cls, config), read_weights(where, pickled=pickled)
    model = build_network(cls, options, state, f"{where} ({name})")
    with reading(where / MODEL_CONFIG):
        return Autoencoder(model)

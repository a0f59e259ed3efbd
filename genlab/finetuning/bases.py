"""The base that a user names, as a plain network without weights, for counting and planning.

Only configurations are read (JSON and YAML); networks stand on the meta device, where a tensor has
a shape and no memory.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.hub.fetch import locate
from genlab.checkpoints.loading import load
from genlab.checkpoints.readers import edm_config
from genlab.checkpoints.readers.edm import NETWORKS as EDM_NETWORKS
from genlab.checkpoints.zoo.catalogue import ZooEntry, entries, pulled_folder
from genlab.errors import CheckpointError, ConfigError, UnknownNameError, nearest
from genlab.finetuning.adapters.folders import check_no_adapter
from genlab.finetuning.class_tables.classes import network_with_classes
from genlab.finetuning.class_tables.origins import ClassOrigin
from genlab.finetuning.class_tables.rebuilding import rebuild
from genlab.finetuning.class_tables.resolution import POSITIONS
from genlab.generators.base import Generator
from genlab.networks import ADMUNet, DiT
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.networks.base import DiffusionNetwork, Network
from genlab.networks.dit import SIZES
from genlab.networks.gan_base import GeneratorNetwork
from genlab.saving.folder import network_class
from genlab.saving.index import INDEX, NETWORK, read_index
from genlab.saving.models import own_config, read_config
from genlab.training.objectives.base import NETWORKS

LATENT_FACTOR = 8
"""Pixels for each number of a latent, along one side, of the autoencoder that DiT and SiT use."""

IMAGENET_CLASSES = 1000

PATCHES = (2, 4, 8)

ARCHITECTURES = tuple(
    f"{kind}-{size}/{patch}" for kind in ("DiT", "SiT") for size in SIZES for patch in PATCHES
)
"""The published transformers, as their papers write them; behind a dash the size of the images may
stand: ``DiT-XL/2-512``. They work on latents of images of 256x256, of 1000 classes."""

_TRANSFORMER = re.compile(r"([DS]iT)-(S|B|L|XL)/(\d+)(?:-(\d+)(?:x(\d+))?)?", re.IGNORECASE)

IMAGES = {"dhariwal-unet": (3, 64), "adm-unet": (3, 64), "gated-pixelcnn": (1, 28)}
"""Channels and size of the images that networks are published for, where not CIFAR-10's."""

ADM_WIDTHS = {
    512: [0.5, 1, 1, 2, 2, 4, 4],
    256: [1, 1, 2, 2, 4, 4],
    128: [1, 1, 2, 3, 4],
    64: [1, 2, 3, 4],
}
"""guided-diffusion's ``channel_mult`` by image size, where no flag says it."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A generator as far as its configuration tells.

    Attributes:
        name: as the user wrote it.
        network: plain, on the meta device.
        image_shape: (C, H, W) of what the network works on: images, or latents.
        factor: pixels of an image for each number of a latent, along one side; 1 = images.
    """

    name: str
    network: Network
    image_shape: tuple[int, int, int]
    factor: int = 1

    @property
    def num_classes(self) -> int:
        """Classes of the network; 0 where it has none."""
        config = own_config(self.network)
        # A plain conditional GAN calls the width of its class vectors label_dim.
        return int(config.get("num_classes", config.get("label_dim", 0)))


def resolve_base(
    name: str, *, num_classes: int | None = None, resolution: int | None = None
) -> Base:
    """Find out what network a name means; no weights are read and nothing is allocated.

    Args:
        name: a bundled model, one of the zoo (fetched or not), a folder that ``save_pretrained``
            wrote, a published architecture (`ARCHITECTURES`), or a network of
            `genlab.training.objectives.base.NETWORKS`. An official file tells its network by its
            tensors, so it alone is loaded.
        num_classes: the class tables are made anew for so many; None keeps them.
        resolution: height and width in pixels that a DiT is brought to; None keeps its own.

    Raises:
        UnknownNameError: nothing of this name is known; names the nearest.
        CheckpointError: a configuration cannot be read, or the zoo does not know the model's.
        ConfigError: what the name means is no generator, or cannot be changed as wanted.
    """
    base = _find(name)
    if resolution is not None:
        base = _at_resolution(base, resolution)
    if num_classes is not None and num_classes != base.num_classes:
        rule = "mean" if base.num_classes else "zero"
        origins = [ClassOrigin(name=str(number), rule=rule) for number in range(num_classes)]
        base = replace(base, network=network_with_classes(base.network, origins))
    return base


def check_has_weights(name: str) -> None:
    """Refuse what is no trained model by itself: the name of an architecture, or an adapter.

    Raises:
        ConfigError: says what to give.
    """
    check_no_adapter(name)
    if _TRANSFORMER.fullmatch(name) and not Path(name).exists():
        raise ConfigError(
            f"{name} is an architecture without weights, enough for --dry-run; to train give a "
            "model: one of 'genlab zoo list', or a folder that 'genlab convert' wrote"
        )


def base_of(name: str, generator: Generator) -> Base:
    """A loaded generator, as `resolve_base` describes one; its weights are not kept."""
    network: Any = generator.network
    factor = getattr(getattr(generator, "autoencoder", None), "factor", 1)
    return _base(name, type(network), own_config(network), factor)


def _find(name: str) -> Base:
    """In the order in which `genlab.load` looks, then architectures."""
    check_no_adapter(name)
    table = entries()
    folder = bundled_folder(name) if name in bundled_names() else None
    if folder is None and name in table:
        folder = pulled_folder(name)
    path = Path(locate(name))
    if folder is None and (path / INDEX).is_file():
        folder = path
    if folder is not None:
        return _of_folder(name, folder)
    if name in table:
        return _of_zoo(name, table[name])
    if match := _TRANSFORMER.fullmatch(name):
        return _of_transformer(name, match)
    if name in NETWORKS:
        return _of_network(name)
    if path.exists() or path.suffix or path.is_absolute():
        return base_of(name, load(name))
    names = [*bundled_names(), *table, *ARCHITECTURES, *_generators()]
    raise UnknownNameError(f"there is no model or architecture {name!r}; {nearest(name, names)}")


def _of_folder(name: str, folder: Path) -> Base:
    index = read_index(folder)
    config = read_config(folder / NETWORK)
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    base = _base(name, network_class(folder, index), own)
    pixels: Any = index.get("image_shape")
    latent = index.get("autoencoder") is not None and isinstance(pixels, list) and len(pixels) == 3
    return replace(base, factor=int(pixels[1]) // base.image_shape[1]) if latent else base


def _of_zoo(name: str, entry: ZooEntry) -> Base:
    """By what the published training command gives the constructor."""
    config = entry.config or {}
    if entry.format in ("dit", "sit") and "model" in config:
        match = _TRANSFORMER.fullmatch(str(config["model"]))
        assert match is not None
        return _of_transformer(name, match, int(config["input_size"]))
    if entry.format == "edm" and config:
        model = edm_config.parse(config)
        return _base(name, EDM_NETWORKS[model.network_class], model.network)
    if entry.format == "guided-diffusion" and config:
        return _base(name, ADMUNet, _adm_arguments(config, entry.num_classes))
    if entry.format == "guided-diffusion-classifier":
        raise ConfigError(
            f"{name} is a classifier, which draws nothing itself; choose a generator to fine-tune"
        )
    raise CheckpointError(
        f"what network {name} is stands in its file alone; fetch it with 'genlab zoo pull {name}'"
    )


def _of_transformer(name: str, match: re.Match[str], input_size: int | None = None) -> Base:
    kind, size, patch, pixels, width = match.groups()
    if int(patch) not in PATCHES or width not in (None, pixels):
        raise UnknownNameError(
            f"{kind}-{size}/{patch}{f'-{pixels}x{width}' if width else ''} is no published "
            f"architecture; {nearest(name, ARCHITECTURES)}"
        )
    factor = LATENT_FACTOR
    if input_size is None:
        input_size, rest = divmod(int(pixels or 256), factor)
        if rest or input_size % int(patch):
            raise ConfigError(
                f"{name}: images of {pixels}x{pixels} make no latents that patches of {patch} "
                f"tile; choose a multiple of {factor * int(patch)}"
            )
    arguments = {
        "img_resolution": input_size,
        "in_channels": 4,
        "out_channels": 8,  # the second half is a variance, which SiT has and ignores
        "label_dim": IMAGENET_CLASSES,
        "patch_size": int(patch),
        **dict(zip(("hidden_size", "depth", "num_heads"), SIZES[size.upper()], strict=True)),
    }
    return _base(name, DiT, arguments, factor)


def _of_network(name: str) -> Base:
    """A registered network with its default sizes, on the images that it is published for."""
    if match := re.fullmatch(r"dit-(s|b|l|xl)(\d)", name):
        published = _TRANSFORMER.fullmatch(f"DiT-{match[1]}/{match[2]}")
        assert published is not None
        return _of_transformer(name, published)
    channels, size = IMAGES.get(name, (3, 32))
    arguments: dict[str, Any] = {"img_resolution": size}
    cls: Any = NETWORKS[name]
    if not (isinstance(cls, type) and issubclass(cls, _FAMILIES)):
        raise ConfigError(
            f"{name} is no generator, so there is nothing to fine-tune; "
            f"{nearest(name, _generators())}"
        )
    if issubclass(cls, DiffusionNetwork):
        arguments |= {"in_channels": channels, "out_channels": channels}
    elif issubclass(cls, AutoregressiveNetwork):
        arguments["in_channels"] = channels
    else:
        arguments |= {"img_channels": channels, "num_classes": 10}
    return _base(name, cls, arguments)


_FAMILIES = (DiffusionNetwork, AutoregressiveNetwork, GeneratorNetwork)


def _generators() -> list[str]:
    """Registered networks that draw images."""
    others = ("classifier", "discriminator")
    return [name for name in NETWORKS if not any(word in name for word in others)]


def _base(name: str, cls: type[nn.Module], arguments: Mapping[str, Any], factor: int = 1) -> Base:
    if not issubclass(cls, _FAMILIES):
        raise ConfigError(f"{name} is no generator, so there is nothing to fine-tune")
    try:
        with torch.device("meta"):
            network = cls(**arguments)
    except TypeError as error:
        raise CheckpointError(
            f"the configuration of {name} does not fit {cls.__name__} ({error}); it was written by "
            "another version of GenLab"
        ) from error
    config = own_config(network)
    channels = config["img_channels" if "img_channels" in config else "in_channels"]
    size = int(config["img_resolution"])
    return Base(name=name, network=network, image_shape=(int(channels), size, size), factor=factor)


def _at_resolution(base: Base, pixels: int) -> Base:
    network = base.network
    if not isinstance(network, DiT):
        raise ConfigError(
            f"a {type(network).__name__} cannot change its resolution; only a DiT or SiT can"
        )
    step = base.factor * network.patch_size
    if pixels < 1 or pixels % step:
        raise ConfigError(
            f"images of {pixels}x{pixels} cannot be cut into the network's patches; choose a "
            f"multiple of {step}"
        )
    size = pixels // base.factor
    trained = network.trained_grid * network.patch_size
    built = rebuild(network, new=[POSITIONS], img_resolution=size, position_resolution=trained)
    return replace(base, network=built, image_shape=(base.image_shape[0], size, size))


def _adm_arguments(flags: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The constructor's arguments of official flags.

    Source: openai/guided-diffusion, script_util.py (names and default values).
    """
    size = int(flags.get("large_size", flags.get("image_size", 64)))
    mult = flags.get("channel_mult") or ADM_WIDTHS[size]
    attention = str(flags.get("attention_resolutions", "16,8")).split(",")  # in pixels, in flags
    heads, head_channels = (flags.get(f"num_head{end}", -1) for end in ("s", "_channels"))
    return {
        "img_resolution": size,
        "in_channels": 3,
        "out_channels": 6 if flags.get("learn_sigma", False) else 3,
        "label_dim": num_classes if flags.get("class_cond", False) else 0,
        "model_channels": int(flags.get("num_channels", 128)),
        "channel_mult": [float(m) for m in mult.split(",")] if isinstance(mult, str) else mult,
        "num_blocks": int(flags.get("num_res_blocks", 2)),
        "attn_resolutions": [int(resolution) for resolution in attention],
        "dropout": float(flags.get("dropout", 0.0)),
        "num_heads": 4 if heads == -1 else int(heads),
        "num_head_channels": None if head_channels == -1 else int(head_channels),
        "scale_shift": bool(flags.get("use_scale_shift_norm", True)),
        "resblock_updown": bool(flags.get("resblock_updown", False)),
        "new_attention_order": bool(flags.get("use_new_attention_order", False)),
        "super_resolution": "small_size" in flags,
    }

"""EDM's official constructor arguments, with their official defaults, turned into ours.

A released file records how its network was constructed, and a bare state dict comes with the same
arguments written by hand. Both are unchecked input, so every value is checked for type and
range before anything is built
from it: a file cannot ask for a network of absurd size.

Source: the constructors in NVlabs/edm, training/networks.py (argument names and default values).
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genlab.checkpoints.readers.options import (
    Option,
    flag,
    integer,
    number,
    one_of,
    refuse_unknown,
    several,
    values_of,
)
from genlab.errors import ConfigError, nearest

# Every argument of the official constructors. The upper ends are far beyond any published network;
# they only keep a forged file from asking for more than a machine can hold.
_BOTH_NETWORKS = {
    "augment_dim": Option(0, integer(0, 1024)),
    "channel_mult_emb": Option(4, integer(1, 64)),
    "dropout": Option(0.10, number(0, 1)),
    "label_dropout": Option(0.0, number(0, 1)),
}
_MULTIPLIERS = several(integer(1, 64), longest=12)
_RESOLUTIONS = several(integer(1, 8192), longest=64, shortest=0)

_NETWORKS: dict[str, dict[str, Option]] = {
    "SongUNet": {
        **_BOTH_NETWORKS,
        "model_channels": Option(128, integer(1, 8192)),
        "channel_mult": Option([1, 2, 2, 2], _MULTIPLIERS),
        "num_blocks": Option(4, integer(1, 64)),
        "attn_resolutions": Option([16], _RESOLUTIONS),
        "embedding_type": Option("positional", one_of("positional", "fourier")),
        "channel_mult_noise": Option(1, integer(1, 64)),
        "encoder_type": Option("standard", one_of("standard", "skip", "residual")),
        "decoder_type": Option("standard", one_of("standard", "skip")),
        "resample_filter": Option([1, 1], several(number(-1e3, 1e3), longest=16)),
    },
    "DhariwalUNet": {
        **_BOTH_NETWORKS,
        "model_channels": Option(192, integer(1, 8192)),
        "channel_mult": Option([1, 2, 3, 4], _MULTIPLIERS),
        "num_blocks": Option(3, integer(1, 64)),
        "attn_resolutions": Option([32, 16, 8], _RESOLUTIONS),
    },
}

_INTERFACE = {
    "img_resolution": Option(None, integer(1, 8192)),
    "img_channels": Option(None, integer(1, 1024)),
    "label_dim": Option(0, integer(0, 1_000_000)),
    "use_fp16": Option(False, flag),
}


@dataclass(frozen=True)
class _Wrapper:
    """One official preconditioning class.

    Attributes:
        name: what we call the preconditioning.
        model_type: the network class when nothing else is said.
        options: its own arguments, in the order of the official constructor.
        output_factor: network output channels for each image channel (iDDPM's second half is a
            variance).
    """

    name: str
    model_type: str
    options: dict[str, Option]
    output_factor: int = 1


_POSITIVE = number(1e-12, 1e12)
_WRAPPERS = {
    "EDMPrecond": _Wrapper(
        "edm",
        "DhariwalUNet",
        {
            "sigma_min": Option(0.0, number(0)),
            "sigma_max": Option(math.inf, number(0)),
            "sigma_data": Option(0.5, _POSITIVE),
        },
    ),
    "VPPrecond": _Wrapper(
        "vp",
        "SongUNet",
        {
            "beta_d": Option(19.9, _POSITIVE),
            "beta_min": Option(0.1, _POSITIVE),
            "M": Option(1000, integer(1, 10_000)),
            "epsilon_t": Option(1e-5, number(0, 1)),
        },
    ),
    "VEPrecond": _Wrapper(
        "ve",
        "SongUNet",
        {"sigma_min": Option(0.02, _POSITIVE), "sigma_max": Option(100.0, _POSITIVE)},
    ),
    "iDDPMPrecond": _Wrapper(
        "iddpm",
        "DhariwalUNet",
        {
            "C_1": Option(0.001, _POSITIVE),
            "C_2": Option(0.008, _POSITIVE),
            "M": Option(1000, integer(1, 10_000)),
        },
        output_factor=2,
    ),
}

EDM_CLASSES = tuple(_WRAPPERS)
"""The official preconditioning classes: ``cls`` in a config, the recorded class in a file."""


@dataclass(frozen=True, kw_only=True)
class EDMModel:
    """The description of an official EDM network, in our terms.

    Attributes:
        network_class: ``SongUNet`` or ``DhariwalUNet``.
        network: the arguments of that class.
        preconditioning: ``name`` and fields of the preconditioning.
        label_dropout: share of training samples whose class was hidden; 0 means that there is no
            trained null class.
        use_fp16: the official code runs this network in half precision on a GPU. The stored weights
            are float32 all the same, and so is what we build; ``generator.to(dtype=torch.float16)``
            does the rest.
    """

    network_class: str
    network: dict[str, Any] = field(default_factory=dict)
    preconditioning: dict[str, Any] = field(default_factory=dict)
    label_dropout: float = 0.0
    use_fp16: bool = False

    @property
    def has_null_class(self) -> bool:
        """Whether the network can denoise without a class, as classifier-free guidance needs."""
        return self.network["label_dim"] > 0 and self.label_dropout > 0


def split_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Separate the class from its arguments, which may be flat or under ``kwargs``."""
    rest = dict(config)
    cls = rest.pop("cls", "EDMPrecond")
    if "kwargs" in rest:
        kwargs = rest.pop("kwargs")
        if rest.get("builder") == "edm_precond":  # reference data name the family of classes, too
            del rest["builder"]
        if rest or not isinstance(kwargs, Mapping):
            raise ConfigError(
                "a config with 'kwargs' holds 'cls' and 'kwargs' (constructor arguments) "
                f"and nothing else, got {', '.join(rest) or type(kwargs).__name__}"
            )
        rest = dict(kwargs)
    if not isinstance(cls, str) or cls not in _WRAPPERS:
        raise ConfigError(
            f"EDM has no class {reprlib.repr(cls)}; {nearest(reprlib.repr(cls), _WRAPPERS)}"
        )
    return cls, rest


def positional_names(cls: str) -> list[str]:
    """The official constructor's arguments in their order, for files that recorded no names."""
    return [*_INTERFACE, *_WRAPPERS[cls].options, "model_type"]


def parse(config: Mapping[str, Any]) -> EDMModel:
    """Read the official constructor's arguments.

    Args:
        config: the arguments, flat (with an optional ``cls``, ``EDMPrecond`` if absent) or as
            ``{"cls": "VPPrecond", "kwargs": {...}}``. What is absent has the official default.

    Raises:
        ConfigError: an argument is unknown to that class, missing, or out of range.
    """
    cls, arguments = split_config(config)
    wrapper = _WRAPPERS[cls]
    model_type = arguments.pop("model_type", wrapper.model_type)
    if not isinstance(model_type, str) or model_type not in _NETWORKS:
        shown = reprlib.repr(model_type)
        raise ConfigError(f"EDM has no network {shown}; {nearest(shown, _NETWORKS)}")
    groups = (_INTERFACE, wrapper.options, _NETWORKS[model_type])
    names = [name for group in groups for name in group]
    refuse_unknown(f"{cls} with {model_type}", arguments, names)
    interface, own, network = (values_of(cls, group, arguments) for group in groups)
    label_dropout = network.pop("label_dropout")
    channels = interface["img_channels"]
    return EDMModel(
        network_class=model_type,
        network={
            "img_resolution": interface["img_resolution"],
            "in_channels": channels,
            "out_channels": channels * wrapper.output_factor,
            "label_dim": interface["label_dim"],
            **network,
        },
        preconditioning={"name": wrapper.name, **own},
        label_dropout=label_dropout,
        use_fp16=interface["use_fp16"],
    )

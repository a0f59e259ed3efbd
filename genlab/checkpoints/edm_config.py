"""EDM's official constructor arguments, with their official defaults, turned into ours.

A released file records how its network was constructed, and a bare state dict comes with the same
arguments written by hand. Both are claims of somebody else, so every value is checked for type and
range before anything is built
from it: a file cannot ask for a network of absurd size.

Source: the constructors in NVlabs/edm, training/networks.py (argument names and default values).
"""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from genlab.errors import ConfigError, nearest

Check = Callable[[Any], Any]
"""Returns the value in its own type, or raises ValueError with what is allowed."""


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number in {low} ... {high}")
        return value

    return check


def _number(low: float, high: float = math.inf) -> Check:
    def check(value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise ValueError(f"a number in {low:g} ... {high:g}")
        return float(value)

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004  # every check speaks through ValueError
    return value


def _one_of(*names: str) -> Check:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return str(value)

    return check


def _several(each: Check, longest: int, shortest: int = 1) -> Check:
    def check(value: Any) -> list[Any]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError("a list")  # noqa: TRY004
        if not shortest <= len(value) <= longest:
            raise ValueError(f"a list of {shortest} ... {longest} values")
        try:
            return [each(item) for item in value]
        except ValueError as error:
            raise ValueError(f"a list of values, each {error}") from None

    return check


@dataclass(frozen=True)
class _Option:
    """One constructor argument: its official default and what it may be."""

    default: Any
    check: Check


# Every argument of the official constructors. The upper ends are far beyond any published network;
# they only keep a forged file from asking for more than a machine can hold.
_BOTH_NETWORKS = {
    "augment_dim": _Option(0, _integer(0, 1024)),
    "channel_mult_emb": _Option(4, _integer(1, 64)),
    "dropout": _Option(0.10, _number(0, 1)),
    "label_dropout": _Option(0.0, _number(0, 1)),
}
_MULTIPLIERS = _several(_integer(1, 64), longest=12)
_RESOLUTIONS = _several(_integer(1, 8192), longest=64, shortest=0)

_NETWORKS: dict[str, dict[str, _Option]] = {
    "SongUNet": {
        **_BOTH_NETWORKS,
        "model_channels": _Option(128, _integer(1, 8192)),
        "channel_mult": _Option([1, 2, 2, 2], _MULTIPLIERS),
        "num_blocks": _Option(4, _integer(1, 64)),
        "attn_resolutions": _Option([16], _RESOLUTIONS),
        "embedding_type": _Option("positional", _one_of("positional", "fourier")),
        "channel_mult_noise": _Option(1, _integer(1, 64)),
        "encoder_type": _Option("standard", _one_of("standard", "skip", "residual")),
        "decoder_type": _Option("standard", _one_of("standard", "skip")),
        "resample_filter": _Option([1, 1], _several(_number(-1e3, 1e3), longest=16)),
    },
    "DhariwalUNet": {
        **_BOTH_NETWORKS,
        "model_channels": _Option(192, _integer(1, 8192)),
        "channel_mult": _Option([1, 2, 3, 4], _MULTIPLIERS),
        "num_blocks": _Option(3, _integer(1, 64)),
        "attn_resolutions": _Option([32, 16, 8], _RESOLUTIONS),
    },
}

_INTERFACE = {
    "img_resolution": _Option(None, _integer(1, 8192)),
    "img_channels": _Option(None, _integer(1, 1024)),
    "label_dim": _Option(0, _integer(0, 1_000_000)),
    "use_fp16": _Option(False, _flag),
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
    options: dict[str, _Option]
    output_factor: int = 1


_POSITIVE = _number(1e-12, 1e12)
_WRAPPERS = {
    "EDMPrecond": _Wrapper(
        "edm",
        "DhariwalUNet",
        {
            "sigma_min": _Option(0.0, _number(0)),
            "sigma_max": _Option(math.inf, _number(0)),
            "sigma_data": _Option(0.5, _POSITIVE),
        },
    ),
    "VPPrecond": _Wrapper(
        "vp",
        "SongUNet",
        {
            "beta_d": _Option(19.9, _POSITIVE),
            "beta_min": _Option(0.1, _POSITIVE),
            "M": _Option(1000, _integer(1, 10_000)),
            "epsilon_t": _Option(1e-5, _number(0, 1)),
        },
    ),
    "VEPrecond": _Wrapper(
        "ve",
        "SongUNet",
        {"sigma_min": _Option(0.02, _POSITIVE), "sigma_max": _Option(100.0, _POSITIVE)},
    ),
    "iDDPMPrecond": _Wrapper(
        "iddpm",
        "DhariwalUNet",
        {
            "C_1": _Option(0.001, _POSITIVE),
            "C_2": _Option(0.008, _POSITIVE),
            "M": _Option(1000, _integer(1, 10_000)),
        },
        output_factor=2,
    ),
}

EDM_CLASSES = tuple(_WRAPPERS)
"""The official preconditioning classes: ``cls`` in a config, the recorded class in a file."""


@dataclass(frozen=True, kw_only=True)
class EDMModel:
    """What an official EDM network is, in our words.

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
    """Tell the class from its arguments, which may be flat or under ``kwargs``."""
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
    cls, given = split_config(config)
    wrapper = _WRAPPERS[cls]
    model_type = given.pop("model_type", wrapper.model_type)
    if not isinstance(model_type, str) or model_type not in _NETWORKS:
        shown = reprlib.repr(model_type)
        raise ConfigError(f"EDM has no network {shown}; {nearest(shown, _NETWORKS)}")
    groups = (_INTERFACE, wrapper.options, _NETWORKS[model_type])
    known = [name for group in groups for name in group]
    for name in given:
        if name not in known:
            shown = str(name)[:40]
            raise ConfigError(
                f"{cls} with {model_type} has no argument {shown!r}; {nearest(shown, known)}"
            )
    interface, own, network = (_values(cls, group, given) for group in groups)
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


def _values(cls: str, options: Mapping[str, _Option], given: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for name, option in options.items():
        value = given.get(name, option.default)
        if value is None:
            raise ConfigError(f"{cls} needs {name}; give it in the config, for instance {name}=32")
        try:
            values[name] = option.check(value)
        except ValueError as error:
            # reprlib, because the value may be a forged nest of shared lists.
            raise ConfigError(
                f"{name} of {cls} must be {error}, got {reprlib.repr(value)}"
            ) from None
    return values

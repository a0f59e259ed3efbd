"""guided-diffusion's arguments, turned into ours or inferred from tensor shapes.

Two official spellings are read: the flags of the scripts (``num_channels``, ``attention_resolutions
16,8`` in pixels) and the constructors' keyword arguments (``model_channels``, a list of factors of
downsampling). What neither says is inferred from the shapes of the weights; the image size and the
attention heads leave no trace there.

Source: openai/guided-diffusion, script_util.py and unet.py (names and default values).
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from genlab.checkpoints.readers.options import (
    MissingArgumentError,
    Option,
    flag,
    integer,
    number,
    one_of,
    refuse_unknown,
    several,
    values_of,
)
from genlab.errors import CheckpointError, ConfigError
from genlab.networks.noisy_classifier import POOLS

Shapes = Mapping[str, Shaped[Tensor, "..."]]

_SIZES = integer(1, 8192)
# The flags say -1 for "not given".
_OR_MINUS_ONE = integer(-1, 8192)


def _respacing(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or len(str(value)) > 1000:
        raise ValueError("a number, sections such as '10,15,20', or 'ddim25'")
    return str(value)


_NETWORK = {
    "image_size": Option(None, _SIZES),
    "dropout": Option(0.0, number(0, 1)),
    "num_heads": Option(-1, _OR_MINUS_ONE),
    "num_head_channels": Option(-1, _OR_MINUS_ONE),
    "num_heads_upsample": Option(-1, _OR_MINUS_ONE),
    "use_new_attention_order": Option(False, flag),
    "pool": Option("attention", one_of(*POOLS)),
}
_INFERRED = {
    "in_channels": integer(1, 1024),
    "out_channels": integer(1, 1_000_000),
    "model_channels": integer(1, 8192),
    "num_res_blocks": integer(1, 64),
    "num_classes": integer(1, 1_000_000),
    "use_scale_shift_norm": flag,
    "resblock_updown": flag,
    "conv_resample": flag,
}
_LISTS = ("attention_resolutions", "channel_mult")
_DIFFUSION = {
    "diffusion_steps": Option(1000, integer(1, 100_000)),
    "noise_schedule": Option("linear", one_of("linear", "cosine")),
    "timestep_respacing": Option("", _respacing),
    "sigma_small": Option(False, flag),
    "predict_xstart": Option(False, flag),
    "rescale_timesteps": Option(False, flag),
}
# Of training or of speed only, or said by the shapes.
_UNUSED = (
    "class_cond",
    "dims",
    "learn_sigma",
    "rescale_learned_sigmas",
    "small_size",
    "use_checkpoint",
    "use_fp16",
    "use_kl",
)
# Other names of the same things: those of the scripts, of the classifier's flags, of functions.
_ALIASES = {
    "large_size": "image_size",
    "num_channels": "model_channels",
    "steps": "diffusion_steps",
    "classifier_attention_resolutions": "attention_resolutions",
    "classifier_depth": "num_res_blocks",
    "classifier_pool": "pool",
    "classifier_resblock_updown": "resblock_updown",
    "classifier_use_fp16": "use_fp16",
    "classifier_use_scale_shift_norm": "use_scale_shift_norm",
    "classifier_width": "model_channels",
}
CLASSES = ("UNetModel", "SuperResModel", "EncoderUNetModel")


@dataclass(frozen=True, kw_only=True)
class ADMModel:
    """The description of a network of guided-diffusion.

    Attributes:
        network: keyword arguments of `ADMUNet` or `ADMClassifier`.
        preconditioning: for `genlab.diffusion.preconditioning.from_config`.
        sampler: as the official script samples.
    """

    network: dict[str, Any]
    preconditioning: dict[str, Any]
    sampler: dict[str, Any]


def parse(config: Mapping[str, Any], shapes: Shapes, where: str) -> ADMModel:
    """Infer the description of a U-Net.

    Args:
        config: official flags or constructor arguments, flat or under ``kwargs``.
        shapes: the official state dict; only shapes are looked at.
        where: the file, for messages.

    Raises:
        ConfigError: an argument is unknown or out of range, or a needed one is missing.
        CheckpointError: these are no weights of a U-Net of guided-diffusion.
    """
    settings = _flat(config)
    inferred = _Inferred(shapes, where)
    values = _network_values("UNetModel", settings, inferred)
    in_channels = values.pop("in_channels")
    seen = inferred.in_channels
    if seen not in (in_channels, 2 * in_channels):
        raise ConfigError(
            f"{where} takes {seen} channels, neither in_channels = {in_channels} nor twice that"
        )
    del values["pool"]  # a classifier's
    label_dim = values.pop("num_classes", 0)
    learned = values["out_channels"] == 2 * in_channels
    if settings.get("learn_sigma", learned) != learned:
        raise ConfigError(
            f"{where} has {values['out_channels']} output channels for {in_channels} of the image, "
            f"which contradicts learn_sigma = {settings['learn_sigma']}"
        )
    network = {
        **values,
        "in_channels": in_channels,
        "label_dim": label_dim,
        "super_resolution": seen == 2 * in_channels,
    }
    return ADMModel(network=network, **_diffusion(settings, learned))


def parse_classifier(config: Mapping[str, Any], shapes: Shapes, where: str) -> ADMModel:
    """Infer the description of a noisy classifier; see `parse`."""
    settings = _flat(config)
    values = _network_values("EncoderUNetModel", settings, _Inferred(shapes, where, settings))
    values["num_classes"] = values.pop("out_channels")
    del values["num_heads_upsample"]
    return ADMModel(network=values, **_diffusion(settings, learned=False))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(config)
    arguments = settings.pop("kwargs", {})
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"kwargs must be a mapping of arguments, got {type(arguments).__name__}")
    settings.update(arguments)
    settings.pop("builder", None)  # reference data name the family of classes
    cls = settings.pop("cls", CLASSES[0])
    if cls not in CLASSES:
        raise ConfigError(f"guided-diffusion has no class {cls!r}; known: {', '.join(CLASSES)}")
    refuse_unknown(
        "guided-diffusion",
        settings,
        [*_NETWORK, *_INFERRED, *_LISTS, *_DIFFUSION, *_UNUSED, *_ALIASES],
    )
    # What is None was not said; the constructors' way of leaving a class table out.
    return {_ALIASES.get(k, k): value for k, value in settings.items() if value is not None}


def _network_values(cls: str, config: Mapping[str, Any], inferred: "_Inferred") -> dict[str, Any]:
    """Our constructor's arguments: given ones first, else inferred from the shapes."""
    explicit = values_of(cls, _NETWORK, config)
    heads = {
        name: None if (value := explicit.pop(name)) == -1 else value
        for name in ("num_heads", "num_head_channels", "num_heads_upsample")
    }
    if heads["num_head_channels"] is not None:
        heads["num_heads_upsample"] = None  # overruled, as in the official code
    if heads["num_heads"] is None and heads["num_head_channels"] is None:
        raise MissingArgumentError(
            f"{cls} needs num_heads or num_head_channels, which leave no trace in the weights",
            "give it in the config, for instance num_head_channels=64",
            "num_head_channels=64",
        )
    options = {name: Option(getattr(inferred, name), check) for name, check in _INFERRED.items()}
    if inferred.num_classes is None and "num_classes" not in config:
        del options["num_classes"]
    values = values_of(cls, options, config)
    size = explicit.pop("image_size")
    mult = _numbers(config.get("channel_mult", ""), "channel_mult", float)
    attention = config.get("attention_resolutions")
    return {
        "img_resolution": size,
        "in_channels": values["in_channels"]
        if "in_channels" in config
        else inferred.image_channels,
        "out_channels": values["out_channels"],
        **({"num_classes": values["num_classes"]} if "num_classes" in values else {}),
        "model_channels": values["model_channels"],
        "channel_mult": mult or inferred.channel_mult,
        "num_blocks": values["num_res_blocks"],
        "attn_resolutions": _attention(attention, size, inferred),
        "scale_shift": values["use_scale_shift_norm"],
        "resblock_updown": values["resblock_updown"],
        "conv_resample": values["conv_resample"],
        "new_attention_order": explicit.pop("use_new_attention_order"),
        **explicit,
        **heads,
        "num_heads": heads["num_heads"] or 1,
    }


def _attention(value: Any, size: int, inferred: "_Inferred") -> list[int]:
    if value is None:
        return [size >> level for level in inferred.attention_levels]
    numbers = [int(n) for n in _numbers(value, "attention_resolutions", int)]
    # The scripts' text is in pixels, the constructors' list in factors of downsampling. A text of
    # one number has become a number on its way through YAML.
    if isinstance(value, str | int):
        return numbers
    return [size // factor for factor in numbers if factor]


def _numbers(value: Any, name: str, kind: type[float] | type[int]) -> list[float]:
    """A list, or the scripts' text with commas; empty where nothing is said."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    try:
        parts = [kind(p) for p in value.split(",") if p] if isinstance(value, str) else value
        return [
            int(n) if n == int(n) else n
            for n in several(number(0, 8192), longest=64, shortest=0)(parts)
        ]
    except ValueError as error:
        raise ConfigError(
            f"{name} must be numbers with commas or a list, got {reprlib.repr(value)}"
        ) from error


def _diffusion(settings: Mapping[str, Any], learned: bool) -> dict[str, dict[str, Any]]:
    values = values_of("guided-diffusion", _DIFFUSION, settings)
    T, steps = values["diffusion_steps"], values["timestep_respacing"]
    fixed = "fixed_small" if values["sigma_small"] else "fixed_large"
    solver = "ddim" if steps.startswith("ddim") else "ddpm"
    return {
        "preconditioning": {
            "name": "discrete",
            "schedule": values["noise_schedule"],
            "T": T,
            "prediction": "x0" if values["predict_xstart"] else "epsilon",
            "variance": "learned_range" if learned else fixed,
            "rescale_timesteps": values["rescale_timesteps"],
        },
        "sampler": {
            "solver": {"name": solver, "clip": True},
            "schedule": {"name": "respaced", "steps": steps or min(T, 250)},
        },
    }


class _Inferred:
    """Arguments inferred from the shapes of an official state dict, one for each attribute."""

    def __init__(self, shapes: Shapes, where: str, config: Mapping[str, Any] | None = None) -> None:
        self.shapes, self.where = shapes, where
        self.is_classifier = config is not None
        self.model_channels = self._size("time_embed.0.weight", 1)
        self.in_channels = self._size("input_blocks.0.0.weight", 1)
        self.out_channels = self._out_channels()
        classes = shapes.get("label_emb.weight")
        self.num_classes = None if classes is None else int(classes.shape[0])
        strided = self._count(r"input_blocks\.\d+\.0\.op\.weight")
        # Six digits, since a forged name may carry more than int() reads.
        blocks = (re.match(r"input_blocks\.(\d{1,6})\.", name) for name in shapes)
        numbers = {int(match[1]) for match in blocks if match}
        self.num_input_blocks = max(numbers, default=0) + 1
        pooled = self.num_input_blocks - len(numbers)
        self.conv_resample = pooled == 0
        self.resblock_updown = strided == 0 and pooled == 0
        self.num_levels = 1 + (strided or pooled or self._resampling_blocks(config or {}))
        per_level, rest = divmod(self.num_input_blocks, self.num_levels)
        self.num_res_blocks = per_level - 1
        if rest or self.num_res_blocks < 1:
            raise CheckpointError(
                f"{where}: {self.num_input_blocks} input blocks do not make {self.num_levels} equal"
                " levels; these are no weights of guided-diffusion"
            )
        firsts = [1 + level * per_level for level in range(self.num_levels)]
        ratios = [
            self._size(f"input_blocks.{i}.0.in_layers.2.weight", 0) / self.model_channels
            for i in firsts
        ]
        self.channel_mult = [int(r) if r == int(r) else r for r in ratios]
        self.attention_levels = [
            level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes
        ]
        affine = self._size("input_blocks.1.0.emb_layers.1.weight", 0)
        width = self._size("input_blocks.1.0.in_layers.2.weight", 0)
        self.use_scale_shift_norm = affine == 2 * width

    @property
    def image_channels(self) -> int:
        """Channels of the image: a super-resolution network sees those of two images."""
        of_two = self.in_channels in (2, 6) and not self.is_classifier
        return self.in_channels // 2 if of_two else self.in_channels

    def _size(self, name: str, axis: int) -> int:
        shape = self.shapes[name].shape if name in self.shapes else ()
        if len(shape) <= axis or not shape[axis]:
            raise CheckpointError(
                f"{self.where} has no usable {name}, so these are no weights of guided-diffusion; "
                "check the file"
            )
        return int(shape[axis])

    def _count(self, pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in self.shapes)

    def _out_channels(self) -> int:
        if not self.is_classifier:
            return self._size("out.2.weight", 0)
        last = [
            name
            for name in ("out.2.c_proj.weight", "out.3.weight", "out.2.weight")
            if name in self.shapes
        ]
        return self._size(last[0] if last else "out.2.weight", 0)

    def _resampling_blocks(self, config: Mapping[str, Any]) -> int:
        """How often residual blocks resample: the decoder shows it, the classifier's head may."""
        ups = self._count(r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight")
        if not self.is_classifier:
            return ups
        if "num_res_blocks" in config:
            depth = {"num_res_blocks": Option(None, _INFERRED["num_res_blocks"])}
            blocks = values_of("EncoderUNetModel", depth, config)["num_res_blocks"]
            return max(self.num_input_blocks // (blocks + 1) - 1, 0)
        if "out.2.positional_embedding" in self.shapes and "image_size" in config:
            size = values_of("EncoderUNetModel", {"image_size": _NETWORK["image_size"]}, config)
            tokens = self._size("out.2.positional_embedding", 1) - 1
            ratio = size["image_size"] / max(tokens, 1) ** 0.5
            return max(int(ratio).bit_length() - 1, 0)
        raise MissingArgumentError(
            f"the weights in {self.where} do not tell how many blocks a level has",
            "give classifier_depth in the config",
            "classifier_depth=N",
        )

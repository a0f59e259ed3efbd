"""BigGAN-PyTorch's constructor arguments, turned into ours or inferred from tensor shapes.

A file of weights tells all but the two eps and the rounds of power iteration: what is not given is
read off the shapes, and what is given wins and has to fit them.

Source: the constructors in ajbrock/BigGAN-PyTorch, BigGAN.py and BigGANdeep.py (argument names and
default values).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from genlab.checkpoints.readers.options import (
    Check,
    MissingArgumentError,
    Option,
    flag,
    integer,
    number,
    one_of,
    refuse_unknown,
    values_of,
)
from genlab.networks import biggan, biggan_deep
from genlab.networks.gan_base import BOTTOM

State = Mapping[str, Tensor]


def _only(expected: Any) -> Check:
    def check(value: Any) -> Any:
        if value != expected:
            raise ValueError(f"{expected}, GenLab builds nothing else")
        return value

    return check


_POWERS = (0, *(1 << power for power in range(2, 14)))


def _resolutions(value: Any) -> list[int]:
    """Officially resolutions joined by ``_``; "0" is none.

    YAML reads a single one as a number, which is meant, and ``32_64`` as 3264, which is not.
    """
    if not isinstance(value, bool) and value in _POWERS:
        value = str(value)
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,4}(_\d{1,4}){0,15}", value):
        raise ValueError("resolutions joined by _, for instance '32_64' in quotes, or 0 for none")
    return [int(part) for part in value.split("_")]


_COUNT = integer(1, 1024)
_EPS = number(0, 1)

# The upper ends are far beyond any published network; see `genlab.checkpoints.readers.options`.
_GENERATOR = {
    "G_ch": Option(64, integer(1, 4096)),
    "dim_z": Option(128, integer(1, 65536)),
    "bottom_width": Option(BOTTOM, _only(BOTTOM)),
    "resolution": Option(128, integer(1, 8192)),
    "G_kernel_size": Option(3, _only(3)),
    "G_attn": Option("64", _resolutions),
    "n_classes": Option(1000, integer(1, 1_000_000)),
    "num_G_SVs": Option(1, _COUNT),
    "num_G_SV_itrs": Option(1, _COUNT),
    "G_shared": Option(True, flag),
    "shared_dim": Option(0, integer(-1, 65536)),
    "hier": Option(False, flag),
    "cross_replica": Option(False, _only(False)),
    "mybn": Option(False, flag),
    "BN_eps": Option(1e-5, _EPS),
    "SN_eps": Option(1e-12, _EPS),
    "G_param": Option("SN", one_of("SN", "none")),
    "norm_style": Option("bn", _only("bn")),
}
_DISCRIMINATOR = {
    "D_ch": Option(64, integer(1, 4096)),
    "D_wide": Option(True, flag),
    "resolution": Option(128, integer(1, 8192)),
    "D_kernel_size": Option(3, _only(3)),
    "D_attn": Option("64", _resolutions),
    "n_classes": Option(1000, integer(1, 1_000_000)),
    "num_D_SVs": Option(1, _COUNT),
    "num_D_SV_itrs": Option(1, _COUNT),
    "SN_eps": Option(1e-12, _EPS),
    "output_dim": Option(1, _only(1)),
    "D_param": Option("SN", _only("SN")),
}
_DEEPEST = 64
_DEPTH = Option(2, integer(1, _DEEPEST))

_TRAINING = ("lr", "B1", "B2", "mixed_precision", "fp16", "init", "activation", "nl")
_IGNORED = ("adam_eps", "skip_init", "no_optim")
"""Arguments that change nothing about a network that is read from a file."""

OWN_NAMES = ("G_ch", "G_attn", "G_shared", "D_ch", "D_attn", "D_wide")
"""Arguments that no other project's constructors have."""


def generator_arguments(config: Mapping[str, Any], state: State, *, deep: bool) -> dict[str, Any]:
    """Arguments of our generator.

    Args:
        config: official arguments, perhaps none.
        state: the official state dict.
        deep: whether it is BigGAN-deep.

    Raises:
        ConfigError: an argument is unknown or out of range.
        LookupError, ValueError, ArithmeticError: the shapes are those of no BigGAN.
    """
    official = _official("G", deep, _GENERATOR, config, _generator_shapes(state, deep, config))
    num_blocks = len(biggan.GENERATOR_WIDTHS.get(official["resolution"], ()))
    arguments = {
        "img_resolution": official["resolution"],
        "num_classes": official["n_classes"],
        "channels": official["G_ch"],
        "dim_z": official["dim_z"],
        "attn_resolutions": _known(official["G_attn"], biggan.generator_resolutions(num_blocks)),
        "shared_dim": official["shared_dim"] if official["shared_dim"] > 0 else official["dim_z"],
        "own_batch_norm": official["mybn"],
        "bn_eps": official["BN_eps"],
        "spectral_norm": official["G_param"] == "SN",
        "num_svs": official["num_G_SVs"],
        "num_itrs": official["num_G_SV_itrs"],
        "sn_eps": official["SN_eps"],
    }
    if deep:
        return {**arguments, "depth": official["G_depth"]}
    if official["hier"]:
        arguments["dim_z"] -= official["dim_z"] % (num_blocks + 1)  # officially the rest is lost
    return {
        **arguments,
        "shared_embedding": official["G_shared"],
        "hierarchical": official["hier"],
    }


def discriminator_arguments(
    config: Mapping[str, Any], state: State, *, deep: bool
) -> dict[str, Any]:
    """Arguments of our discriminator; see `generator_arguments`."""
    shapes = _discriminator_shapes(state, deep)
    official = _official("D", deep, _DISCRIMINATOR, config, shapes)
    own = {"depth": official["D_depth"]} if deep else {"wide": official["D_wide"]}
    resolution = official["resolution"]
    return {
        "img_resolution": resolution,
        "num_classes": official["n_classes"],
        "channels": official["D_ch"],
        "attn_resolutions": _known(official["D_attn"], _discriminator_table(resolution, deep)),
        "official_attention_table": True,
        "num_svs": official["num_D_SVs"],
        "num_itrs": official["num_D_SV_itrs"],
        "sn_eps": official["SN_eps"],
        **own,
    }


def _official(
    role: str,
    deep: bool,
    options: Mapping[str, Option],
    config: Mapping[str, Any],
    shapes: Mapping[str, Any],
) -> dict[str, Any]:
    """Every official argument: given, or read off the shapes, or official default."""
    title = f"BigGAN{'-deep' if deep else ''}'s {role}"
    options = {**options, **({f"{role}_depth": _DEPTH} if deep else {})}
    ignored = [*_IGNORED, *(f"{role}_{name}" for name in _TRAINING)]
    refuse_unknown(title, config, [*options, *ignored])
    return values_of(title, options, {**shapes, **config})


def _known(resolutions: Sequence[int], table: Sequence[int]) -> list[int]:
    """Officially other resolutions are passed over."""
    return sorted(set(resolutions) & set(table))


def _discriminator_table(resolution: int, deep: bool) -> list[int]:
    widths = (biggan_deep if deep else biggan).DISCRIMINATOR_WIDTHS.get(resolution, ())
    num_halves = len(widths) - (not deep)
    halves = [index < num_halves for index in range(len(widths))]
    return biggan.discriminator_resolutions(resolution, halves, official_table=True)


def _generator_shapes(state: State, deep: bool, config: Mapping[str, Any]) -> dict[str, Any]:
    num_blocks = _length(state, r"blocks\.(\d+)\.0\.conv1\.weight")
    depth = _generator_depth(state, num_blocks, config) if deep else 1
    resolution = BOTTOM << (num_blocks // depth)
    multiples = biggan.GENERATOR_WIDTHS[resolution]
    shared = state.get("shared.weight")
    first, gain = state["linear.weight"], state["blocks.0.0.bn1.gain.weight"]
    options: dict[str, Any] = {
        "resolution": resolution,
        "G_ch": first.shape[0] // (BOTTOM**2 * multiples[0]),
        "G_attn": _attention(
            state, [BOTTOM << (index // depth + 1) for index in range(num_blocks)]
        ),
        "n_classes": (gain if shared is None else shared).shape[0],
        "num_G_SVs": max(1, _length(state, r"linear\.u(\d+)")),
        "G_shared": shared is not None,
        "mybn": "output_layer.0.bn.stored_mean" in state,
        "G_param": "SN" if "linear.u0" in state else "none",
    }
    if shared is None:
        return {**options, "dim_z": first.shape[1]}
    options["shared_dim"] = shared.shape[1]
    if deep:
        return {**options, "hier": True, "dim_z": first.shape[1] - shared.shape[1]}
    hier = gain.shape[1] > shared.shape[1]
    num_chunks = num_blocks + 1 if hier else 1
    return {**options, "hier": hier, "dim_z": first.shape[1] * num_chunks}


def _generator_depth(state: State, num_blocks: int, config: Mapping[str, Any]) -> int:
    """Blocks for each resolution: given, or the official default; the widths have to allow it.

    Raises:
        ConfigError: they do not; names the depths that they do allow.
    """
    [depth] = values_of("BigGAN-deep's G", {"G_depth": _DEPTH}, config).values()
    depths = range(1, min(num_blocks, _DEEPEST) + 1)
    fitting = [each for each in depths if _fits_depth(state, num_blocks, each)]
    if fitting and depth not in fitting:
        allowed = " or ".join(f"G_depth={each}" for each in fitting)
        default = "" if "G_depth" in config else ", the official default"
        raise MissingArgumentError(
            f"the {num_blocks} blocks of this BigGAN-deep generator are not those of "
            f"G_depth={depth}{default}",
            f"give {allowed} in the config",
            f"G_depth={fitting[0]}",
        )
    return int(depth)


def _fits_depth(state: State, num_blocks: int, depth: int) -> bool:
    """Whether the blocks' widths are those of a resolution with so many blocks each."""
    widths = next(
        (each for each in biggan.GENERATOR_WIDTHS.values() if len(each) * depth == num_blocks),
        None,
    )
    if widths is None:
        return False
    inputs = [state[f"blocks.{index}.0.conv1.weight"].shape[1] for index in range(num_blocks)]
    channels = inputs[0] // widths[0]
    # Only the last block of a resolution changes the width.
    each = [widths[0], *widths]
    return inputs == [channels * each[index // depth] for index in range(num_blocks)]


def _discriminator_shapes(state: State, deep: bool) -> dict[str, Any]:
    tables = (biggan_deep if deep else biggan).DISCRIMINATOR_WIDTHS
    num_blocks = _length(state, r"blocks\.(\d+)\.0\.conv1\.weight")
    [resolution] = [size for size, widths in tables.items() if len(widths) == num_blocks]
    multiple = tables[resolution][-1]
    options = {
        "resolution": resolution,
        "D_ch": state["linear.weight"].shape[1] // multiple,
        "D_attn": _attention(state, _discriminator_table(resolution, deep)),
        "n_classes": state["embed.weight"].shape[0],
        "num_D_SVs": max(1, _length(state, r"linear\.u(\d+)")),
    }
    if deep:
        return {**options, "D_depth": _length(state, r"blocks\.0\.(\d+)\.conv1\.weight")}
    # Any block tells it whose two widths differ, as those of the first do: it takes the image.
    widths = [
        {state[f"blocks.{index}.0.{conv}.weight"].shape[0] for conv in ("conv1", "conv2")}
        for index in range(num_blocks)
    ]
    return {**options, "D_wide": all(len(block_widths) == 1 for block_widths in widths)}


def _length(state: State, pattern: str) -> int:
    """How many tensors of this name there are, counted from 0."""
    numbers = {match[1] for name in state if (match := re.fullmatch(pattern, name))}
    return len(numbers)


def _attention(state: State, resolutions: Sequence[int]) -> str:
    """The official string of the resolutions whose blocks have self-attention behind them."""
    with_attention = {
        str(resolution)
        for index, resolution in enumerate(resolutions)
        if any(re.fullmatch(rf"blocks\.{index}\.\d+\.theta\.weight", name) for name in state)
    }
    return "_".join(sorted(with_attention, key=int)) or "0"

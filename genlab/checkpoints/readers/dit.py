"""Readers of DiT's and SiT's files: bare state dicts and whole training checkpoints.

Both are the same network under the same names. What sets them apart are the training script's own
arguments, where the file has them, and otherwise its name or the caller's word.

REPA trains a SiT whose time runs the other way: 0 is data, and its velocity leads to noise. Nothing
in the weights says so once its projectors are taken out, and such a file is read as SiT's.

Source: the constructors in facebookresearch/DiT and willisma/SiT, models.py, and their
``create_diffusion`` and ``create_transport`` (argument names and default values); sihyun-yu/REPA,
train.py and loss.py, for REPA's arguments and its time.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genlab.checkpoints.readers.base import Config
from genlab.checkpoints.readers.options import (
    MissingArgumentError,
    Option,
    flag,
    integer,
    number,
    one_of,
    refuse_unknown,
    values_of,
)
from genlab.checkpoints.weights import (
    Checkpoint,
    StateDict,
    build_network,
    mentions,
    read_checkpoint,
)
from genlab.diffusion.preconditioning import from_config
from genlab.errors import CheckpointError, ConfigError
from genlab.generators import DiffusionGenerator
from genlab.networks import DiT
from genlab.networks.dit import SIZES

_MARKS = ("x_embedder.proj.weight", "final_layer.adaLN_modulation.1.weight")
_HEADS = {hidden_size: num_heads for hidden_size, _, num_heads in SIZES.values()}

_PROJECTORS = "projectors."
_REPA_PATHS = ("linear", "cosine")
_REPA_ARGUMENTS = ("enc_type", "proj_coeff")

_NETWORK = {
    "input_size": integer(1, 8192),
    "patch_size": integer(1, 1024),
    "in_channels": integer(1, 1024),
    "hidden_size": integer(1, 65536),
    "depth": integer(1, 1024),
    "num_heads": integer(1, 1024),
    "mlp_ratio": number(1e-3, 64),
    "class_dropout_prob": number(0, 1),
    "num_classes": integer(1, 1_000_000),
    "learn_sigma": flag,
}
_DIFFUSION = {
    "diffusion_steps": Option(1000, integer(1, 100_000)),
    "noise_schedule": Option("linear", one_of("linear", "squaredcos_cap_v2")),
    "predict_xstart": Option(False, flag),
    "sigma_small": Option(False, flag),
}
_TRANSPORT = {
    "path_type": Option("Linear", one_of("Linear", "GVP", "VP")),
    "prediction": Option("velocity", one_of("velocity", "noise", "score")),
}


class DiTReader:
    """Reads DiT's networks as discrete diffusion models."""

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Tensors under DiT's names, unless something says that it is SiT."""
        return _is_transformer(source) and _hint(source, config) != "sit"

    def read(self, source: Path, config: Config | None) -> DiffusionGenerator:
        """Read a checkpoint; see `genlab.checkpoints.readers.base.Reader`.

        ``config`` may hold the arguments of the constructor, which the shapes mostly tell, and of
        ``create_diffusion`` (``noise_schedule``, ``diffusion_steps``, ...).
        """
        state, arguments = _read(source, config, "DiT", _DIFFUSION)
        chain = values_of("create_diffusion", _DIFFUSION, arguments)
        network = _build(state, arguments, f"{source} (DiT)")
        learned = network.config["out_channels"] == 2 * network.config["in_channels"]
        fixed = "fixed_small" if chain["sigma_small"] else "fixed_large"
        preconditioning = {
            "name": "discrete",
            "schedule": {"squaredcos_cap_v2": "cosine"}.get(
                chain["noise_schedule"], chain["noise_schedule"]
            ),
            "T": chain["diffusion_steps"],
            "prediction": "x0" if chain["predict_xstart"] else "epsilon",
            "variance": "learned_range" if learned else fixed,
        }
        steps = min(250, chain["diffusion_steps"])
        sampler = {"solver": {"name": "ddpm"}, "schedule": {"name": "respaced", "steps": steps}}
        return _generator(network, preconditioning, sampler)


class SiTReader:
    """Reads SiT's networks as flow-matching models."""

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Tensors under DiT's names, unless something says that it is DiT."""
        return _is_transformer(source) and _hint(source, config) != "dit"

    def read(self, source: Path, config: Config | None) -> DiffusionGenerator:
        """Read a checkpoint; see `DiTReader.read`.

        Beside the constructor's arguments ``config`` may hold ``path_type`` and ``prediction``.
        """
        state, arguments = _read(source, config, "SiT", _TRANSPORT)
        transport = values_of("create_transport", _TRANSPORT, arguments)
        path = transport["path_type"].lower()
        preconditioning = {"name": "flow", "path": path, "prediction": transport["prediction"]}
        sampler = {
            "solver": {"name": "flow", "path": path, "full_last_step": path != "vp"},
            "schedule": {"name": "flow", "path": path, "num_steps": 125},
        }
        return _generator(_build(state, arguments, f"{source} (SiT)"), preconditioning, sampler)


def _is_transformer(source: Path) -> bool:
    return all(mentions(source, name) for name in _MARKS)


def _hint(source: Path, config: Config | None) -> str | None:
    """The class, dit or sit, by name or marks in the file; None where neither tells."""
    cls = str((config or {}).get("cls", "")).lower()
    if cls in ("dit", "sit"):
        return cls
    signs = {
        "sit": "sit" in source.stem.lower()
        or any(mentions(source, mark) for mark in ("path_type", _PROJECTORS)),
        "dit": "dit" in source.stem.lower() or mentions(source, "DiT-"),
    }
    names = [name for name, sign in signs.items() if sign]
    return names[0] if len(names) == 1 else None


def _read(
    source: Path, config: Config | None, cls: str, others: Mapping[str, Option]
) -> tuple[StateDict, dict[str, Any]]:
    """The weights, and the arguments of file and caller; those of the caller win."""
    overrides = dict(config or {})
    nested = overrides.pop("kwargs", {})
    if not isinstance(nested, Mapping):
        raise ConfigError(f"kwargs must be a mapping of arguments, got {type(nested).__name__}")
    overrides.update(nested)
    named_cls = overrides.pop("cls", cls)
    if named_cls != cls:
        raise ConfigError(f"{source} is read as {cls}, but the config says cls={named_cls}")
    refuse_unknown(cls, overrides, [*_NETWORK, *others, "model"])
    checkpoint = read_checkpoint(source)
    _refuse_repa(source, checkpoint, overrides)
    names = [*others, "num_classes", "model"]  # the script's other arguments are about training
    own = {key: checkpoint.arguments[key] for key in names if key in checkpoint.arguments}
    try:
        arguments = {**own, **overrides}
        for name, check in _NETWORK.items():
            if name in arguments:
                values_of(cls, {name: Option(None, check)}, arguments)
        return checkpoint.state, {**own, **overrides}
    except ConfigError as error:
        if any(name in str(error) for name in overrides):
            raise
        raise CheckpointError(f"{source} records odd arguments: {error}") from error


def _refuse_repa(source: Path, checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> None:
    """Refuse REPA's networks, which pass for SiT's.

    Raises:
        CheckpointError: says by what.
    """
    path_type = overrides.get("path_type", checkpoint.arguments.get("path_type"))
    signs = {
        "projectors": any(name.startswith(_PROJECTORS) for name in checkpoint.state),
        **{f"path_type {name}": path_type == name for name in _REPA_PATHS},
        **{f"argument {name}": name in checkpoint.arguments for name in _REPA_ARGUMENTS},
    }
    for sign, present in signs.items():
        if present:
            raise CheckpointError(
                f"{source} is REPA's, to go by its {sign}: a SiT whose time and velocity run the "
                "other way (time 0 is data), which GenLab does not read; taking the projectors out "
                "would only let it pass for SiT's and draw noise. SiT's own path_type is Linear, "
                "GVP or VP"
            )


def _build(state: StateDict, overrides: Mapping[str, Any], where: str) -> DiT:
    arguments = {**_inferred(state, where), **overrides}
    network = {
        "img_resolution": arguments["input_size"],
        "in_channels": arguments["in_channels"],
        "out_channels": arguments["in_channels"] * (2 if arguments["learn_sigma"] else 1),
        **_classes(arguments),
        **{key: arguments[key] for key in ("patch_size", "hidden_size", "depth", "mlp_ratio")},
        "num_heads": _num_heads(arguments, where),
    }
    return build_network(DiT, network, state, where)


def _inferred(state: StateDict, where: str) -> dict[str, Any]:
    """The constructor's arguments, inferred from the shapes."""
    try:
        hidden_size, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
        _, num_patches, _ = state["pos_embed"].shape
        width, _ = state["blocks.0.mlp.fc1.weight"].shape
        features, _ = state["final_layer.linear.weight"].shape
        rows, _ = state["y_embedder.embedding_table.weight"].shape
    except KeyError as error:
        raise CheckpointError(f"{where} does not fit: missing: {error.args[0]}") from error
    except ValueError as error:
        raise CheckpointError(f"{where} does not fit: its tensors have odd ranks") from error
    grid = math.isqrt(num_patches)
    if grid**2 != num_patches or 0 in (hidden_size, in_channels, patch_size, grid):
        raise CheckpointError(
            f"{where} does not fit: pos_embed has {num_patches} rows, which make no square grid"
        )
    # Names are counted, since a forged one may carry any number.
    numbers = {match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "input_size": grid * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "hidden_size": hidden_size,
        "depth": len(numbers),
        "mlp_ratio": width / hidden_size,
        "learn_sigma": features == 2 * in_channels * patch_size**2,
        "rows": rows,
    }


def _classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Number of classes, and whether the table has a row for none."""
    if "num_classes" in arguments:
        without = arguments["rows"] == arguments["num_classes"]
        return {"label_dim": arguments["num_classes"], "null_class": not without}
    null_class = arguments.get("class_dropout_prob", 0.1) > 0
    return {"label_dim": arguments["rows"] - null_class, "null_class": null_class}


def _num_heads(arguments: Mapping[str, Any], where: str) -> int:
    """As given, as the model's name says, or as the published model of this width has."""
    if "num_heads" in arguments:
        return int(arguments["num_heads"])
    model = arguments.get("model")
    # Not str(): a file's value may be a forged nest of shared lists.
    size = re.fullmatch(r"[DS]iT-(S|B|L|XL)/\d+", model) if isinstance(model, str) else None
    if size:
        return SIZES[size[1]][2]
    if arguments["hidden_size"] in _HEADS:
        return _HEADS[arguments["hidden_size"]]
    raise MissingArgumentError(
        f"{where} has {arguments['hidden_size']} features a token, as no published model has, and "
        "the attention heads leave no trace in the weights",
        "give num_heads in the config",
        "num_heads=N",
    )


def _generator(
    network: DiT, preconditioning: Mapping[str, Any], sampler: Mapping[str, Any]
) -> DiffusionGenerator:
    """The generator with the official guidance: of three channels, at the published scale."""
    guidance = [{"name": "cfg", "scale": 1.5, "channels": 3}] if network.null_class else []
    return DiffusionGenerator(
        network,
        from_config(preconditioning),
        sampler={**sampler, "guidance": guidance},
        has_null_class=network.null_class,
    )

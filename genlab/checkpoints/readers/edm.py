"""Reader of EDM networks: official pickles, and state dicts with the constructor's arguments."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from genlab.checkpoints.pickles.torch_storage import TensorRecord
from genlab.checkpoints.readers.base import Config
from genlab.checkpoints.readers.edm_config import EDM_CLASSES, EDMModel, parse
from genlab.checkpoints.readers.edm_pickle import read_pickle
from genlab.checkpoints.readers.options import MissingArgumentError
from genlab.checkpoints.weights import (
    SAFETENSORS,
    build_network,
    own_names,
    read_state_dict,
    unwrapped,
)
from genlab.diffusion import preconditioning
from genlab.diffusion.preconditioning import IDDPM, Preconditioning
from genlab.errors import CheckpointError, ConfigError
from genlab.generators import DiffusionGenerator
from genlab.networks import DhariwalUNet, SongUNet

Weight = Tensor | TensorRecord

PICKLES = (".pkl", ".pickle")

NETWORKS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
}
_PREFIX = "model."
_FIRST = "model.map_layer0.weight"


class EDMReader:
    """Reads EDM's networks with VP, VE, iDDPM or EDM preconditioning."""

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Any pickle, and tensors that come with EDM's arguments or under its names."""
        if source.suffix in PICKLES:
            return True
        if config is not None and (config.get("cls") in EDM_CLASSES or "img_resolution" in config):
            return True
        return source.suffix in SAFETENSORS and any(
            name.endswith(_FIRST) for name in unwrapped(_names(source))
        )

    def read(self, source: Path, config: Config | None) -> DiffusionGenerator:
        """Read a checkpoint; see `genlab.checkpoints.readers.base.Reader`."""
        if source.suffix in PICKLES:
            return _read_pickle(source, config)
        return build(parse(_needed(config, source)), read_state_dict(source), str(source))


def _read_pickle(source: Path, config: Config | None) -> DiffusionGenerator:
    pickled = read_pickle(source)
    if pickled.kwargs is None:
        model = parse({"cls": pickled.class_name, **_needed(config, source)})
    elif config is not None:
        raise ConfigError(f"{source} carries its constructor's arguments; leave the config out")
    else:
        try:
            model = parse({"cls": pickled.class_name, "kwargs": pickled.kwargs})
        except MissingArgumentError as error:  # the file alone can say it
            raise CheckpointError(
                f"{source} records odd arguments: {error.what}; fetch or save it again"
            ) from error
        except ConfigError as error:
            raise CheckpointError(f"{source} records odd arguments: {error}") from error
    return build(model, pickled.tensors, str(source))


def _needed(config: Config | None, source: Path) -> Config:
    if config is None:
        example = "cls=EDMPrecond img_resolution=32 img_channels=3 model_type=SongUNet"
        raise MissingArgumentError(
            f"{source} holds tensors only",
            f"give the official constructor's arguments as config, for instance {example}",
            example,
        )
    return config


def _names(source: Path) -> set[str]:
    try:
        with safe_open(source, framework="pt") as file:
            return set(file.keys())
    except Exception:  # a damaged file is of no format that this tells
        return set()


def build(model: EDMModel, weights: Mapping[str, Weight], where: str) -> DiffusionGenerator:
    """Build the generator from the network's description and its weights.

    Args:
        model: architecture and preconditioning.
        weights: the official state dict, with or without the prefix ``model.``; iDDPM's table ``u``
            may be in it. Floating-point weights of any precision become float32.
        where: the file, for error messages.
    """
    state = {name.removeprefix(_PREFIX): value for name, value in own_names(weights).items()}
    precond = preconditioning.from_config(model.preconditioning)
    _drop_table(state, precond, where)
    network = build_network(
        NETWORKS[model.network_class],
        model.network,
        {name: _tensor(weight) for name, weight in state.items()},
        f"{where} ({model.network_class})",
    )
    return DiffusionGenerator(network, precond, has_null_class=model.has_null_class)


def _tensor(weight: Weight) -> Tensor:
    return weight.to_tensor() if isinstance(weight, TensorRecord) else weight


def _drop_table(state: dict[str, Weight], precond: Preconditioning, where: str) -> None:
    """Take iDDPM's table of noise levels out, having made sure that it is the one we compute."""
    if "u" not in state:
        return
    if not isinstance(precond, IDDPM):
        raise CheckpointError(
            f"{where} holds iDDPM's table of noise levels 'u'; give cls=iDDPMPrecond in the config"
        )
    table = _tensor(state.pop("u")).to(precond.u.dtype)
    # Recomputed on another machine the levels differ in the last bits, which the recursion
    # amplifies.
    if table.shape != precond.u.shape or not torch.allclose(precond.u, table, rtol=1e-3):
        raise CheckpointError(
            f"{where}: its table of noise levels 'u' is not the one that C_1, C_2 and M give; "
            "check the config"
        )

"""Writes network pickles in the record layout of NVIDIA's files, without any program text.

The objects are real modules and tensors that Python's own pickle writes; only the two modules that
the layout names (``torch_utils.persistence`` and ``dnnlib.util``) are stood in for, for as long as
the writing takes.
"""

import collections
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genlab.checkpoints.readers.edm_config import parse
from genlab.diffusion.preconditioning import IDDPM
from genlab.networks import DhariwalUNet, SongUNet

HARMLESS = "This text stands where a network file keeps its program.\n"


class EasyDict(dict[str, Any]):
    """As ``dnnlib.util.EasyDict``: only the name matters to a reader."""


EasyDict.__module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("only the name of this function goes into a file")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent(nn.Module):
    """A module that pickles as one persistent record, however it was built."""

    def __init__(self, class_name: str, **attributes: Any) -> None:
        super().__init__()
        self.class_name = class_name
        for name, value in attributes.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "class_name"}
        meta = {
            "type": "class",
            "version": 6,
            "module_src": HARMLESS,
            "class_name": self.class_name,
            "state": state,
        }
        return _reconstruct_persistent_obj, (meta,), None


def module_tree(
    class_name: str, tensors: Mapping[str, Tensor], kwargs: Mapping[str, Any] | None
) -> Persistent:
    """A tree of persistent modules that holds a state dict, as an official network holds it."""
    recorded = None if kwargs is None else EasyDict(kwargs)
    root = Persistent(class_name, _init_args=(), _init_kwargs=recorded)
    for name, value in tensors.items():
        *parents, leaf = name.split(".")
        module: nn.Module = root
        for parent in parents:
            module = _child(module, parent)
        if leaf in ("resample_filter", "freqs", "u"):
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    return root.eval()


def _child(module: nn.Module, name: str) -> nn.Module:
    if name not in module._modules:
        module.add_module(name, nn.ModuleDict() if name in ("enc", "dec") else _block())
    return module._modules[name]  # type: ignore[return-value]


def _block() -> Persistent:
    """What official modules keep besides weights: NumPy numbers, lists, absent parts, scratch."""
    block = Persistent(
        "UNetBlock",
        skip_scale=np.sqrt(0.5),
        taps=[1, 1],
        absent=None,
        _init_args=(),
        _init_kwargs={"init": {"init_weight": np.float64(0.5)}},
    )
    block.register_buffer("scratch", torch.zeros(3), persistent=False)
    return block


@contextmanager
def stand_ins() -> Iterator[None]:
    """Let pickle find the two names while it writes; they are gone afterwards."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    added = {
        "torch_utils": ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": ModuleType("dnnlib"),
        "dnnlib.util": util,
    }
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def write_pickle(path: Path, content: Any, protocol: int = 4) -> Path:
    """Write any content in which `Persistent` and `EasyDict` objects may occur."""
    with stand_ins():
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_network(
    path: Path,
    class_name: str,
    tensors: Mapping[str, Tensor],
    kwargs: Mapping[str, Any] | None,
    protocol: int = 4,
) -> Path:
    """Write a network snapshot with all that a training loop puts beside the network."""
    content = {
        "ema": module_tree(class_name, tensors, kwargs),
        "loss_fn": Persistent("EDMLoss", P_mean=-1.2, _init_args=(), _init_kwargs={}),
        "augment_pipe": Persistent("AugmentPipe", p=0.12, Hz=np.arange(6.0).reshape(2, 3)),
        "dataset_kwargs": EasyDict(path="data.zip", extra=collections.OrderedDict(xflip=False)),
        "rare": [np.float32(2.5), torch.Size([1, 2]), torch.float16, {1, 2}, torch.device("cpu")],
    }
    return write_pickle(path, content, protocol)


TINY = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 3,
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1],
    "channel_mult_emb": 1,
    "num_blocks": 1,
    "attn_resolutions": [],
}
"""Official arguments of a network that is made in milliseconds."""


def official_weights(cls: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Official arguments, and random weights of such a network under official names."""
    kwargs = {**TINY, **changes}
    model = parse({"cls": cls, "kwargs": kwargs})
    network = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[model.network_class]
    weights = {
        f"model.{name}": value if name.endswith("resample_filter") else torch.randn_like(value) / 8
        for name, value in network(**model.network).state_dict().items()
    }
    if cls == "iDDPMPrecond":
        weights["u"] = IDDPM(M=kwargs.get("M", 1000)).u.clone()
    return kwargs, weights

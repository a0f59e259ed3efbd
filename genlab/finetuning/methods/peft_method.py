"""Methods of the library peft: it adapts, merges and saves; GenLab says where and keeps its rules.

A prepared network stays the object that it was: peft puts its layers into it. What peft needs to
merge and to save, its ``PeftModel`` around the network, is kept beside the network's modules.
"""

import copy
import json
import re
import tempfile
import textwrap
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from genlab.errors import CheckpointError, ConfigError, nearest
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.base import Method, check_same, unfreeze
from genlab.networks.layout import LINEAR_LAYERS, paths_of

ADAPTER = "default"
"""peft's name of the one adapter that a network has; several adapters are several networks, which
share the base's tensors."""

PREFIX = "base_model.model."
"""What stands before a network's own names in peft's files."""

HELD = "_peft_model"

RECORDED = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
}
"""Keys of peft's file about the run and the base, not the options; its type is the method."""

LEAVE_BASE = ("True", "False", "gaussian", "orthogonal")
"""Ways of peft's LoRA to begin that change no weight; others, as PiSSA, take parts of the base."""

UNFIT = {
    "ADALORA": "the training loop must shift its ranks, which only peft's own trainers do",
    "POLY": "it wants the number of a task with every batch",
    "XLORA": "it mixes adapters of a language model",
}
"""Types of peft that prepare a network here but would not do what they are for."""


class ThroughPeft(Method):
    """A method that peft carries out; see `PeftMethod` for what subclasses have in common."""

    @abstractmethod
    def peft_config(self, network: nn.Module) -> Any:
        """The ``PeftConfig`` for a network, a new object.

        Raises:
            ConfigError: an option names a part that the network has not, or peft refuses it.
        """

    @override
    def prepare(self, network: nn.Module) -> list[str]:
        """Add what the method adds, and let only what trains have gradients.

        Raises:
            ConfigError: see `Method.prepare`; or peft is not installed, it refuses the network, or
                the network is prepared already. What peft refuses midway is left half prepared.
        """
        config = self.peft_config(network)
        _check_network(config, network)
        if str(getattr(config, "init_lora_weights", True)) not in LEAVE_BASE:
            own_parameters(network, paths_of(network, *LINEAR_LAYERS))
        with _refusals(config, network):
            model = load_peft().get_peft_model(network, config, ADAPTER)
        network.train(network.training)  # peft's new layers begin in training
        network.__dict__[HELD] = model  # beside the modules: as one of them it would be a circle
        return [name for name, each in network.named_parameters() if each.requires_grad]

    @override
    def merge(self, network: nn.Module) -> nn.Module:
        """Weights that the network shares with others are copied first.

        Raises:
            ConfigError: peft cannot merge this kind.
        """
        model = peft_model(network)
        layers = {path for path, each in network.named_modules() if hasattr(each, "get_base_layer")}
        own_parameters(network, [f"{path}.base_layer" for path in layers])
        kind = _title(model.peft_config[ADAPTER])
        try:
            model.merge_and_unload()
        except Exception as error:  # peft's kinds fail in many ways
            raise ConfigError(
                f"peft cannot merge {kind} ({_text(error)}); keep it as an adapter"
            ) from error
        del network.__dict__[HELD]
        return unfreeze(network)

    @override
    def saved(self, network: nn.Module) -> dict[str, Tensor]:
        """Under the names of peft's file, which lead with `PREFIX`."""
        # peft would look for the base's name on the hub to find out about its vocabulary.
        state = load_peft().get_peft_model_state_dict(
            peft_model(network), adapter_name=ADAPTER, save_embedding_layers=False
        )
        own = network.state_dict()
        statistics = {
            PREFIX + name: own[name]
            for name in layout_of(network).statistics
            if not {"original_module", "modules_to_save"} & set(name.split("."))
        }
        return {name: value.detach() for name, value in {**state, **statistics}.items()}

    @torch.no_grad()
    @override
    def load(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        check_same(self.saved(network), tensors)
        load_peft().set_peft_model_state_dict(
            peft_model(network), dict(tensors), adapter_name=ADAPTER
        )

    def adapter_config(self, network: nn.Module, base: str | None) -> dict[str, Any]:
        """What peft writes to ``adapter_config.json``; see `Method.adapter_config`."""
        config = copy.copy(peft_model(network).peft_config[ADAPTER])
        config.base_model_name_or_path = base
        config.inference_mode = True
        made_of = {
            "base_model_class": type(network).__name__,
            "parent_library": type(network).__module__,
        }
        with tempfile.TemporaryDirectory() as folder:
            mapping = made_of if config.task_type is None else None
            config.save_pretrained(folder, auto_mapping_dict=mapping)
            values = json.loads((Path(folder) / "adapter_config.json").read_text())
        for name in ("target_modules", "exclude_modules"):
            if isinstance(values.get(name), list):  # a set in peft, in another order every time
                values[name] = sorted(values[name])
        return dict(values)

    @override
    def notes(self, network: nn.Module) -> list[str]:
        config = peft_model(network).peft_config[ADAPTER]
        if getattr(config, "bias", "none") in ("none", False, None):
            return []
        return [
            f"bias={config.bias} trains the base's own biases, so the network with its adapter "
            "switched off is not the base"
        ]


@dataclass(frozen=True, kw_only=True)
class PeftMethod(ThroughPeft):
    """Trains what a method of the library peft adds: LoHa, LoKr, OFT, BOFT, VeRA, IA3, DeLoRA, ...

    Choose it for a method that GenLab has no name for, for an option of peft's LoRA that ``lora``
    has not, or for an adapter that peft itself has written.

    Trains what the method adds, and the class table. Most kinds leave the output bit for bit as it
    was at the start; OSF, FRoD, HRA and DEFT but for rounding; C3A, FourierFT, UniLoRA and VB-LoRA
    do not.

    Merging: peft merges, where the kind can be merged.

    Attributes:
        config: peft's own configuration: ``peft_type`` (or ``name``) says which, for instance LOHA,
            the rest are its options, such as ``r`` and ``target_modules``. A path in
            ``target_modules`` stands for all that end with it: ``proj`` is the patch embedding's
            layer, too, ``attn.proj`` is not.
        class_table: whether the class table trains, too, in a copy of its own (peft's
            ``modules_to_save``).

    Source: https://github.com/huggingface/peft, where each method names its paper.
    """

    config: dict[str, Any] = field(default_factory=dict)
    class_table: bool = True

    def __post_init__(self) -> None:
        if self.config and not isinstance(self._type, str):
            raise ConfigError(
                f"config.peft_type takes the name of a method of peft, such as LOHA, not "
                f"{self._type!r}"
            )

    @classmethod
    def of_file(cls, values: Mapping[str, Any]) -> "PeftMethod":
        """The method that an ``adapter_config.json`` of peft describes.

        Args:
            values: what the file holds, also one that a newer peft has written.

        Raises:
            ConfigError: there is no such type in this peft.
            CheckpointError: it has an option that this peft does not know, or that would run code.
        """
        method = cls(config={"peft_type": values.get("peft_type")}, class_table=False)
        names = set(method._class().__dataclass_fields__)
        options = {key: value for key, value in values.items() if key not in RECORDED}
        if options.get("megatron_config"):  # peft imports the module that the file names
            raise CheckpointError(
                "the adapter lets peft import a module (megatron_config), which GenLab does not do"
            )
        for key, value in options.items():
            if key not in names and value not in (None, False, "", [], {}):  # else off: no loss
                raise CheckpointError(
                    f"the adapter was written with the option {key}={value!r}, which peft "
                    f"{load_peft().__version__} does not know; install a newer peft"
                )
        config = {key: value for key, value in options.items() if key in names}
        return cls(config={**method.config, **config}, class_table=False)

    @override
    def peft_config(self, network: nn.Module) -> Any:
        kind = self._class()
        options = {key: v for key, v in self.config.items() if key not in {*RECORDED, "name"}}
        tables = table_paths(network) if self.class_table else []
        if tables:
            saved = options.get("modules_to_save") or []
            options["modules_to_save"] = [*saved, *(path for path in tables if path not in saved)]
        try:
            config = kind(**options)
        except Exception as error:  # peft checks options in many ways
            raise ConfigError(
                f"peft refuses the options of {self._type}: {_text(error)}"
            ) from error
        _check_table(config, tables)
        return config

    @property
    def _type(self) -> Any:
        return self.config.get("peft_type", self.config.get("name"))

    def _class(self) -> Any:
        """The class of the configuration.

        Raises:
            ConfigError: there is none, or its method does not fit here.
        """
        kinds = load_peft().mapping.PEFT_TYPE_TO_CONFIG_MAPPING
        by_name = {kind.value: cls for kind, cls in kinds.items()}
        if self._type is None:
            raise ConfigError(
                "the method peft needs config.peft_type, such as LOHA, and its options; "
                f"known: {', '.join(sorted(by_name))}"
            )
        name = self._type.upper()
        if name not in by_name:
            raise ConfigError(f"peft has no method {self._type!r}; {nearest(name, by_name)}")
        if name in UNFIT:
            raise ConfigError(f"peft's {name} does not fit here: {UNFIT[name]}; choose another")
        return by_name[name]


def table_paths(network: nn.Module) -> list[str]:
    """Paths of the class tables, as peft's ``modules_to_save`` takes them.

    Raises:
        ConfigError: peft, which takes all modules whose path ends so, would take others, too.
    """
    tables = [table.layer for table in layout_of(network).tables]
    for path, module in network.named_modules():
        others = path not in tables and path.endswith(tuple(tables))
        if others and any(True for _ in module.parameters()):
            raise ConfigError(
                f"peft cannot tell the class table from {path}; write class_table=false"
            )
    return tables


def exact_targets(network: nn.Module, paths: Sequence[str]) -> list[str] | str:
    """Paths as peft's ``target_modules``: a list, or an expression where a list says too much."""
    ends = tuple(f".{path}" for path in paths)
    others = [path for path, _ in network.named_modules() if path not in paths]
    if any(path.endswith(ends) for path in others):
        return "|".join(map(re.escape, paths))
    return list(paths)


def peft_model(network: nn.Module) -> Any:
    """The ``PeftModel`` that peft has put around a prepared network.

    Raises:
        ConfigError: none did.
    """
    if HELD not in network.__dict__:
        raise ConfigError(f"{type(network).__name__} holds no adapter of peft; prepare it first")
    return network.__dict__[HELD]


@contextmanager
def switched_off(network: nn.Module) -> Iterator[None]:
    """Within the block the network computes without its adapter, as the base does."""
    with peft_model(network).disable_adapter():
        yield


def own_parameters(network: nn.Module, paths: Iterable[str]) -> None:
    """Give some modules copies of their parameters, since peft changes weights in place."""
    for path in paths:
        module = network.get_submodule(path)
        for name, parameter in list(module.named_parameters(recurse=False)):
            own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(module, name, own)


def layer_names(network: nn.Module) -> list[str]:
    """Short names of the layers that can be adapted, as ``target_modules`` takes them."""
    kinds = (*LINEAR_LAYERS, nn.Embedding)
    names = set()
    for path, module in network.named_modules():
        if isinstance(module, kinds):
            before, _, last = path.rpartition(".")
            parent = before.rpartition(".")[2]
            short = not last.isdigit() and (not parent or any(map(str.isdigit, parent)))
            names.add(last if short else f"{parent}.{last}")
    return sorted(names)


def _check_network(config: Any, network: nn.Module) -> None:
    """Refuse what peft would accept silently, or with an unhelpful message."""
    modules = [path for path, _ in network.named_modules() if path]
    if HELD in network.__dict__:
        raise ConfigError("the network holds an adapter of peft already; merge that one first")
    if ADAPTER in {segment for path in modules for segment in path.split(".")}:
        raise ConfigError(
            f"a module of {type(network).__name__} is called {ADAPTER!r}, which is peft's name of "
            "the adapter, so peft would lose tensors; rename the module"
        )
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ConfigError(
            f"peft's {_title(config)} is for language models; for learned prompts choose vpt"
        )
    targets = getattr(config, "target_modules", None)
    names = layer_names(network)
    for target in sorted(targets) if isinstance(targets, list | set | tuple) else []:
        if not ending_with(target, modules):
            raise ConfigError(
                f"target_modules: no layer of {type(network).__name__} is called {target!r}; "
                f"{nearest(target, names)}"
            )
    if isinstance(targets, str) and targets != "all-linear":  # a word of peft's
        with _refusals(config, network):
            matches = any(re.fullmatch(targets, path) for path in modules)
        if not matches:
            raise ConfigError(
                f"target_modules: {targets!r} is an expression that no layer of "
                f"{type(network).__name__} matches as a whole; they end with {', '.join(names)}"
            )


def ending_with(target: str, paths: Iterable[str]) -> list[str]:
    """The paths that peft means by one of its targets."""
    return [path for path in paths if f".{path}".endswith(f".{target}")]


def _check_table(config: Any, tables: Sequence[str]) -> None:
    targets = getattr(config, "target_modules", None)
    for target in targets if isinstance(targets, list | set | tuple) else []:
        if ending_with(target, tables):
            raise ConfigError(
                f"{target} is the class table, which trains whole; to adapt it instead, write "
                "class_table=false"
            )


@contextmanager
def _refusals(config: Any, network: nn.Module) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each of peft's methods refuses in its own way
        names = ", ".join(layer_names(network))
        raise ConfigError(
            f"peft refuses {_title(config)} for {type(network).__name__}: {_text(error)}; its "
            f"layers are called {names}"
        ) from error


def _title(config: Any) -> str:
    return str(config.peft_type.value)


def _text(error: Exception) -> str:
    words = textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".")
    return words or type(error).__name__


def load_peft() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import peft  # an extra, and slow to import
    except ImportError as error:
        raise ConfigError(
            "LoRA and its kin need the package peft, which is not installed; "
            "pip install 'genlab[peft]' brings it"
        ) from error
    return peft

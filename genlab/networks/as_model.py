"""Networks are models of diffusers as soon as anybody imports those, and not before.

Drawing needs none of what diffusers gives a model, and importing it takes longer than importing
torch. So `Model`, the base of all networks, is a plain module that remembers its constructor's
arguments; once diffusers' ``ModelMixin`` is there, it and ``ConfigMixin`` take the place of the
plain base. From then on ``isinstance(network, ModelMixin)`` holds, also for networks made before,
and ``save_pretrained``, ``from_pretrained``, ``push_to_hub`` and the rest are diffusers' own; the
first call of one of them imports it.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
from torch import nn

from genlab.after_import import after_import

MODELS = "diffusers.models.modeling_utils"
_HOOKS = "diffusers.hooks"

Constructor = TypeVar("Constructor", bound=Callable[..., None])


class Config(dict[str, Any]):
    """The arguments of a network's constructor, also as attributes, as diffusers has them."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the config has no entry {name!r}")


def register_to_config(init: Constructor) -> Constructor:
    """Keep a constructor's arguments in the network's config, defaults included.

    Arguments that begin with an underscore are kept and not handed on, as diffusers does it.
    """
    defaults = {
        name: parameter.default
        for name, parameter in list(inspect.signature(init).parameters.items())[1:]
    }

    @functools.wraps(init)
    def remember(self: "Model", *args: Any, **kwargs: Any) -> None:
        private = {name: value for name, value in kwargs.items() if name.startswith("_")}
        own = {name: value for name, value in kwargs.items() if name not in private}
        passed = {**dict(zip(defaults, args, strict=False)), **own}
        left_out = [name for name in defaults if name not in passed]
        notes = {"_use_default_values": left_out} if left_out else {}
        arguments = {name: passed.get(name, default) for name, default in defaults.items()}
        self.register_to_config(**private, **arguments, **notes)
        init(self, *args, **own)

    return cast(Constructor, remember)


class Model(nn.Module):
    """A module whose folder tells how to build it again; see the module's docstring.

    Subclasses decorate their constructor with `register_to_config`.
    """

    _internal_dict: Mapping[str, Any]  # diffusers' name
    _gradient_checkpointing_func: Any = None
    config_name: ClassVar[str] = "config.json"

    if TYPE_CHECKING:  # modules and buffers, and what diffusers adds

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if is_adopted():
            _show_mixin(cls)

    def register_to_config(self, **kwargs: Any) -> None:
        """Add entries to the config, or change some."""
        self._internal_dict = Config({**getattr(self, "_internal_dict", {}), **kwargs})

    @property
    def config(self) -> Mapping[str, Any]:
        """What the network was constructed with; keys with an underscore are diffusers' notes."""
        return self._internal_dict

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **kwargs: Any) -> Any:
        """Build a network with fresh weights from a config, in which others may have left notes."""
        if is_adopted():
            return _adopted(super()).from_config(config, **kwargs)
        parameters = list(inspect.signature(cls.__init__).parameters)[1:]
        return cls(**{name: config[name] for name in parameters if name in config})

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a folder as diffusers' ``ModelMixin.from_pretrained`` does."""
        adopt()
        return _adopted(super()).from_pretrained(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write a folder as diffusers' ``ModelMixin.save_pretrained`` does."""
        adopt()
        _adopted(super()).save_pretrained(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push to the hub as diffusers' ``PushToHubMixin`` does."""
        adopt()
        return _adopted(super()).push_to_hub(*args, **kwargs)

    def enable_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """Compute activations again in the backward pass, see diffusers' ``ModelMixin``."""
        adopt()
        _adopted(super()).enable_gradient_checkpointing(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the weights, as `torch.nn.Module.to` does.

        diffusers' own ``to`` first asks whether its hooks hold the weights elsewhere (group
        offloading), and for that imports them all, peft and transformers included. Where nobody has
        imported the hooks, none holds anything.
        """
        move = super().to if _has_hooks() else functools.partial(nn.Module.to, self)
        move(*args, **kwargs)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network computes; see `to` on diffusers' hooks."""
        first = None if _has_hooks() else next(self.parameters(), None)
        where: torch.device = _adopted(super()).device if first is None else first.device
        return where

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in: the type of its first floating-point parameter."""
        if _has_hooks():  # they may keep weights in another type than they compute in
            computes: torch.dtype = _adopted(super()).dtype
            return computes
        return next(p.dtype for p in self.parameters() if p.is_floating_point())


def is_adopted() -> bool:
    """Whether networks are models of diffusers by now."""
    return Model.__bases__ != (nn.Module,)


def adopt() -> None:
    """Make networks models of diffusers now."""
    _adopt(import_module(MODELS))


def _adopt(models: ModuleType) -> None:
    if is_adopted():
        return
    from diffusers.configuration_utils import ConfigMixin

    Model.__bases__ = (models.ModelMixin, ConfigMixin)
    pending = [Model]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        _show_mixin(cls)


def _show_mixin(cls: type[Model]) -> None:
    """Let diffusers' loader find its base beside a network: it asks the network's module for it."""
    module = sys.modules.get(cls.__module__)
    if module is not None and module.__name__.startswith("genlab."):
        vars(module).setdefault("ModelMixin", sys.modules[MODELS].ModelMixin)


def _has_hooks() -> bool:
    return is_adopted() and _HOOKS in sys.modules


def _adopted(model: Any) -> Any:
    """``super()``, whose base type checkers do not know."""
    return model


after_import(MODELS, _adopt)

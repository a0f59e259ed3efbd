"""A network that is saved in a folder with its metadata: generator or classifier."""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from genlab.errors import CheckpointError, GenLabError, LabelError, printable, reading
from genlab.saving.adapted import check_plain
from genlab.saving.folder import read_card, read_network, read_parts, write_folder
from genlab.saving.index import INDEX, read_index

M = TypeVar("M", bound="SavedModel")

_KINDS: Mapping[str, tuple[type | UnionType, str]] = {
    "calibration": (dict | None, "an object, or null"),
    "class_names": (list | None, "a list of names, or null"),
    "has_null_class": (bool, "true or false"),
    "preconditioning": (dict | None, "an object with a name"),
    "sampler": (dict | None, "an object, or null"),
}
"""Key of ``model_index.json`` -> what it must be, in types and in words."""


class SavedModel(ABC):
    """A network, its metadata in ``model_index.json``, and its model card.

    Args:
        network: the plain network, as in its paper, a diffusers ``ModelMixin``.
        image_shape: (C, H, W).
        num_classes: 0 for an unconditional model.
        class_names: one name for each class, or None where there are no names.
        card: text of the model card, written beside the weights.

    Attributes:
        family: what the folder says it holds.
        kind: the same in words, for messages.
        source: how to get one, for those who name another model's folder.
        needs: metadata that the folder must hold.
    """

    family: ClassVar[str]
    kind: ClassVar[str] = "model of this family"
    source: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        network: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        card: str | None = None,
    ) -> None:
        if class_names is not None and len(class_names) != num_classes:
            raise LabelError(
                f"{len(class_names)} class names for a model of {num_classes} classes; "
                "give one for each class"
            )
        self.network = network
        self.image_shape = image_shape
        self.num_classes = num_classes
        # Names come from files; what they are printed on must not take them for commands.
        self.class_names = None if class_names is None else tuple(map(printable, class_names))
        self.card = card

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

    def metadata(self) -> dict[str, Any]:
        """All that the network does not know itself, as ``model_index.json`` holds it."""
        return {
            "family": self.family,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
        }

    def parts(self) -> dict[str, nn.Module]:
        """The models beside the network, by their names in `genlab.saving.folder.PARTS`."""
        return {}

    @classmethod
    @abstractmethod
    def from_metadata(
        cls: type[M], network: nn.Module, metadata: Mapping[str, Any], card: str | None = None
    ) -> M:
        """Make the model again from its network and what `metadata` gave.

        Args:
            network: the network.
            metadata: what `metadata` gave, and the models of `parts` by their names.
            card: text of the model card.

        Raises:
            ConfigError: a value is wrong.
        """

    @classmethod
    @abstractmethod
    def suits(cls, network: nn.Module) -> bool:
        """Whether a network is one of this family."""

    @classmethod
    def check_metadata(cls, folder: Path, index: Mapping[str, Any]) -> None:
        """Validate the metadata in an index: their presence and types.

        Raises:
            CheckpointError: names the file and the key.
        """
        for key, (kind, expected) in _KINDS.items():
            if key in cls.needs and index.get(key) is None:
                raise CheckpointError(
                    f"{folder / INDEX} lacks {key}, without which a {cls.kind} cannot be used; "
                    "fetch or save the model again"
                )
            if key in index and not isinstance(index[key], kind):
                raise CheckpointError(
                    f"{key} in {folder / INDEX} must be {expected}, got "
                    f"{reprlib.repr(index[key])}; fetch or save the model again"
                )

    def changed(self: M, card: str | None = None, **metadata: Any) -> M:
        """The same network with other metadata, for instance its class names."""
        current = {**self.metadata(), **self.parts()}
        return self.from_metadata(self.network, {**current, **metadata}, card or self.card)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the folder that `from_pretrained` reads; safetensors and JSON only.

        Raises:
            ConfigError: the network has an adapter that is not part of its weights.
            OutputError: the folder is not writable or the disk is full.
        """
        check_plain(self.network, "this model")
        write_folder(Path(folder), self.network, self.metadata(), self.card, self.parts())

    @classmethod
    def from_pretrained(cls: type[M], folder: Path | str) -> M:
        """Read a model of this family from its folder, in float32 on the CPU.

        Raises:
            CheckpointError: something is missing, damaged, of another family, or does not fit
                together.
        """
        folder = Path(folder)
        index = read_index(folder)
        if index.get("family") != cls.family:
            raise CheckpointError(
                f"{folder} holds no {cls.kind} but a model of the family "
                f"{reprlib.repr(index.get('family'))}; {cls.source}"
            )
        cls.check_metadata(folder, index)
        network = read_network(folder, index)
        if not cls.suits(network):
            raise CheckpointError(
                f"{folder} calls itself of the family {cls.family!r}, but {type(network).__name__} "
                f"is no {cls.kind}; fetch or save the model again"
            )
        metadata = {**index, **read_parts(folder, index)}
        with reading(folder / INDEX, cure="fetch or save the model again"):
            try:
                return cls.from_metadata(network, metadata, read_card(folder))
            except GenLabError as error:
                raise CheckpointError(f"{folder / INDEX} does not fit: {error}") from error

"""An adapter as it is read from its folder, and its application to a base.

Nothing in a folder is executed or believed: what it says is typed and bounded, and the shapes of
its tensors are checked against the base on the meta device before memory is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genlab.errors import CheckpointError, ConfigError, GenLabError, printable
from genlab.files import text_sha256
from genlab.finetuning.adapters import peft_files
from genlab.finetuning.adapters.facts import CURE, AdapterMetadata, read_files
from genlab.finetuning.adapters.folders import CARD, CONFIG, METADATA, TENSORS, is_adapter
from genlab.finetuning.class_tables.classes import with_classes
from genlab.finetuning.class_tables.rebuilding import own_tensors, rebuild
from genlab.finetuning.class_tables.resolution import with_resolution
from genlab.finetuning.methods.base import METHODS, Method, Selection, check_same
from genlab.finetuning.products import product_of
from genlab.generators.base import Generator
from genlab.saving.adapted import Adaptation, adaptation_of, mark
from genlab.saving.models import own_config, weights_sha256

MOST_LARGER = 16
"""Times that an adapter may enlarge the side of its base's images: positions are made for them."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter, as read from its folder.

    Attributes:
        name: of its folder.
        folder: that it was read from.
        metadata: as its folder holds them.
        method: that made it.
        tensors: its numbers, as they are stored.
        theirs: peft's configuration, where there is one beside GenLab's metadata.
        card: text of its model card.
    """

    name: str
    folder: Path
    metadata: AdapterMetadata
    method: Method
    tensors: Mapping[str, Tensor]
    theirs: Mapping[str, Any] | None = None
    card: str | None = None

    @property
    def trained(self) -> int:
        """Numbers that it stores."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def sha256(self) -> str:
        """SHA-256 over its numbers and all that decides how they act."""
        return text_sha256([self.metadata.identity(), weights_sha256(self.tensors.items())])

    def adaptation(self) -> Adaptation:
        """The mark of a network that has it."""
        return Adaptation(
            name=self.name,
            base=self.metadata.base or "",
            method=dict(self.metadata.method),
            sha256=self.sha256(),
            plain=isinstance(self.method, Selection),
        )


def read_adapter(folder: Path | str) -> Adapter:
    """Read an adapter that GenLab or peft wrote. Nothing in it is executed.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        CheckpointError: there is none, a file is damaged, what it says is impossible, or its method
            or an option of it is unknown here.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        raise CheckpointError(
            f"{folder} holds no adapter (no {CONFIG}); give the folder that genlab finetune or "
            "peft wrote"
        )
    metadata, theirs = read_files(folder)
    if metadata is None:
        assert theirs is not None  # else there would be metadata
        method: Method = peft_files.method_of(theirs, folder / CONFIG)
        base = theirs.get("base_model_name_or_path")
        name = printable(base, 4096) if isinstance(base, str) and base else None
        metadata, theirs = AdapterMetadata(base=name, method=METHODS.entry_of(method)), None
    else:
        method = _method_of(metadata, folder)
    card = folder / CARD
    return Adapter(
        name=folder.resolve().name,
        folder=folder,
        metadata=metadata,
        method=method,
        tensors=_read_tensors(folder / TENSORS),
        theirs=theirs,
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
    )


def _method_of(metadata: AdapterMetadata, folder: Path) -> Method:
    config = metadata.method.get("config")
    for options in (metadata.method, config):
        if isinstance(options, Mapping):
            peft_files.check_options(options, folder / METADATA)
    try:
        method: Method = METHODS.build_named(dict(metadata.method))
    except GenLabError as error:
        raise CheckpointError(f"the adapter in {folder}: {printable(str(error), 600)}") from error
    return method


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, copied out of it: matrix libraries round by where memory begins."""
    if not path.is_file():
        raise CheckpointError(f"the adapter lacks its numbers, {path}; {CURE}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            for name in names:
                if not name.isprintable() or len(name) > 500:
                    raise CheckpointError(
                        f"{path} names a tensor '{printable(name, 60)}', which no network has; "
                        f"{CURE}"
                    )
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        reason = printable(str(error), 200).rstrip(".")
        raise CheckpointError(f"{path} is cut short or damaged ({reason}); {CURE}") from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{name} in {path} holds numbers that are not finite: the adapter was broken when "
                "it was stored; take an earlier one, or train it again"
            )
    return tensors


@torch.no_grad()
def apply(adapter: Adapter, base: Generator, name: str | None = None) -> Generator:
    """Make the model that an adapter was trained to be; it shares the base's other tensors.

    Args:
        adapter: read.
        base: the model that it belongs to, where and in which type it is. It is not changed.
        name: of the base, for messages; None takes the adapter's word.

    Raises:
        ConfigError: the base has an adapter itself.
        CheckpointError: the adapter belongs to another base, or does not fit together.
    """
    name = name or adapter.metadata.base or "the base"
    _check_base(adapter, base, name)
    try:
        start = start_of(adapter.metadata, base)
        _check_tensors(adapter, start)
        network: Any = rebuild(start.network)  # type: ignore[type-var]  # has a layout, or is refused
        own_tensors(network, adapter.method.prepare(network))
        adapter.method.load(network, adapter.tensors)
        product = product_of(
            start,
            network.eval(),
            class_names=adapter.metadata.class_names,
            has_null_class=adapter.metadata.has_null_class,
            sampler=adapter.metadata.sampler,
            card=adapter.card,
        )
    except GenLabError as error:
        reason = printable(str(error), 600)
        raise CheckpointError(
            f"the adapter in {adapter.folder} does not fit {name}: {reason}"
        ) from error
    mark(network, adapter.adaptation())
    return product


def start_of(metadata: AdapterMetadata, base: Generator) -> Generator:
    """The base at the resolution and with the classes that an adapter was trained for.

    Raises:
        ConfigError: the base cannot be brought there.
        LabelError: the classes are not those of such a base.
    """
    size = metadata.resolution
    if size is not None and size != base.image_shape[1]:
        if size > MOST_LARGER * base.image_shape[1]:
            raise ConfigError(
                f"images of {size}x{size} are more than {MOST_LARGER} times as large as the base's "
                f"{base.image_shape[1]}x{base.image_shape[1]}"
            )
        base = with_resolution(base, size)
    if not metadata.changes_classes(base.num_classes):
        return base
    count = len(metadata.classes)
    if metadata.num_classes != count:
        raise ConfigError(
            f"it has {metadata.num_classes} classes and does not say where they begin; the base "
            f"has {base.num_classes}"
        )
    names = [origin.name for origin in metadata.classes]
    classes = count if metadata.class_names is None else names
    return with_classes(base, classes, initial=metadata.classes)


def _check_base(adapter: Adapter, base: Generator, name: str) -> None:
    other = adaptation_of(base.network)
    if other is not None:
        raise ConfigError(
            f"{name} has the adapter {other.name!r} already; give the plain base, or merge that "
            "one first ('genlab adapter merge FOLDER -o merged/')"
        )
    expected = adapter.metadata.base_sha256
    if expected is None or base.dtype != torch.float32:  # the hash is of float32 numbers
        return
    own = base.weights_sha256()
    if own != expected:
        raise CheckpointError(
            f"the adapter in {adapter.folder} was trained on {adapter.metadata.base}, whose "
            f"weights have the SHA-256 {expected[:12]}, and those of {name} have {own[:12]}; give "
            "that base"
        )


def _check_tensors(adapter: Adapter, start: Generator) -> None:
    """Check names, shapes and types of tensors against a network on the meta device."""
    for key, tensor in adapter.tensors.items():
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise ConfigError(f"its {key} is of the type {tensor.dtype}, which no network has")
    metadata = adapter.metadata
    with torch.device("meta"):
        network: Any = type(start.network)(**own_config(start.network))
        method = peft_files.without_start(adapter.method)
        try:
            method.prepare(network)
        except ConfigError:  # some of peft's kinds compute with numbers while they begin
            peft_files.check_bounded(metadata.method)
            return
    own = method.saved(network)
    check_same(own, adapter.tensors)
    for key, tensor in own.items():
        saved = adapter.tensors[key]
        if tensor.is_floating_point() != saved.is_floating_point():
            raise ConfigError(f"its {key} is of the type {saved.dtype}, the model's {tensor.dtype}")
    peft_files.check_agrees(method, network, adapter.theirs)

"""The description of an adapter: what it is, whether its base is here, what it changes."""

from dataclasses import dataclass
from typing import Any

from genlab.errors import GenLabError, printable
from genlab.finetuning.adapters.adapter import Adapter
from genlab.finetuning.adapters.folders import TENSORS
from genlab.finetuning.adapters.loading import load_adapter, load_base
from genlab.finetuning.objective import describe_origins
from genlab.generators.base import Generator

MAX_NAMED = 20
"""Classes that are named one by one."""


@dataclass(frozen=True, kw_only=True)
class BaseState:
    """Whether the base of an adapter is here.

    Attributes:
        state: "matches": it has the weights that the adapter was trained on. "fits": no hash is
            recorded, and the adapter goes onto it. "differs": it is another model. "missing": it
            cannot be loaded.
        detail: why, where it is of no use.
    """

    state: str
    detail: str = ""


def base_state(adapter: Adapter, base: Generator | str | None = None) -> BaseState:
    """Load the base and put the adapter onto it, to see whether that works.

    Args:
        adapter: read.
        base: in place of the one that it names.
    """
    try:
        model = base if isinstance(base, Generator) else load_base(adapter, base)
    except GenLabError as error:
        return BaseState(state="missing", detail=str(error))
    try:
        load_adapter(adapter, model)
    except GenLabError as error:
        return BaseState(state="differs", detail=str(error))
    return BaseState(state="fits" if adapter.metadata.base_sha256 is None else "matches")


def describe_adapter(adapter: Adapter, base: BaseState | None = None) -> dict[str, Any]:
    """All that is known of an adapter, in plain values.

    Args:
        adapter: read.
        base: what `base_state` found; None leaves it out.
    """
    metadata = adapter.metadata
    names = metadata.class_names
    path = adapter.folder / TENSORS
    return {
        "name": printable(adapter.name),
        "folder": str(adapter.folder),
        "method": dict(metadata.method),
        "base": metadata.base,
        "base_sha256": metadata.base_sha256,
        **({} if base is None else {"base_state": base.state, "base_detail": base.detail}),
        "trained_numbers": adapter.trained,
        "bytes": path.stat().st_size,
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in adapter.tensors.values()}),
        "num_classes": metadata.num_classes,
        "class_names": None if names is None else list(names),
        "classes": [origin.describe() for origin in metadata.classes],
        "classes_begin": describe_origins(metadata.classes) if metadata.classes else None,
        "resolution": metadata.resolution,
        "sampler": dict(metadata.sampler),
        "forget": metadata.forget,
        "trained_on_images": metadata.trained_on_images,
        "sha256": adapter.sha256(),
    }


def describe_lines(metadata: dict[str, Any]) -> dict[str, str]:
    """The same for a terminal: row -> text; what is not known has no row."""
    method = metadata["method"]
    options = [f"{key}={printable(str(v), 80)}" for key, v in method.items() if key != "name"]
    rows = {
        "adapter": metadata["name"],
        "method": " ".join([str(method["name"]), *options]),
        "base": _base(metadata),
        "trained": f"{metadata['trained_numbers']:,} numbers, {metadata['bytes']:,} bytes "
        f"({', '.join(metadata['dtypes'])})",
        "classes": _classes(metadata),
        "resolution": metadata["resolution"]
        and f"{metadata['resolution']}x{metadata['resolution']}",
        "sampler": metadata["sampler"] and printable(str(metadata["sampler"]), 200),
        "forgotten": metadata["forget"] and printable(str(metadata["forget"].get("classes")), 200),
        "trained on": metadata["trained_on_images"] and f"{metadata['trained_on_images']:,} images",
        "sha256": metadata["sha256"],
    }
    return {row: str(text) for row, text in rows.items() if text}


def _base(metadata: dict[str, Any]) -> str:
    name = metadata["base"] or "not named"
    digest = f" (SHA-256 {metadata['base_sha256'][:12]})" if metadata["base_sha256"] else ""
    words = {
        "matches": ": it is here, with these weights",
        "fits": ": it is here; which weights it must have is not recorded",
        "differs": f": what is here does not fit: {metadata.get('base_detail')}",
        "missing": f": {metadata.get('base_detail')}",
    }
    return f"{name}{digest}{words.get(metadata.get('base_state', ''), '')}"


def _classes(metadata: dict[str, Any]) -> str:
    names, count = metadata["class_names"], metadata["num_classes"]
    if count is None:
        return "as of the base"
    if count == 0:
        return "none (unconditional)"
    if metadata["classes_begin"]:
        return f"{count}, {metadata['classes_begin']}"
    more = f" ... ({count})" if count > MAX_NAMED else ""
    return f"{count}, the base's" + (f": {', '.join(names[:MAX_NAMED])}{more}" if names else "")

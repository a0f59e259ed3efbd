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
    return BaseState(state="fits" if adapter.facts.base_sha256 is None else "matches")


def describe_adapter(adapter: Adapter, base: BaseState | None = None) -> dict[str, Any]:
    """All that is known of an adapter, in plain values.

    Args:
        adapter: read.
        base: what `base_state` found; None leaves it out.
    """
    facts = adapter.facts
    names = facts.class_names
    path = adapter.folder / TENSORS
    return {
        "name": printable(adapter.name),
        "folder": str(adapter.folder),
        "method": dict(facts.method),
        "base": facts.base,
        "base_sha256": facts.base_sha256,
        **({} if base is None else {"base_state": base.state, "base_detail": base.detail}),
        "trained_numbers": adapter.trained,
        "bytes": path.stat().st_size,
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in adapter.tensors.values()}),
        "num_classes": facts.num_classes,
        "class_names": None if names is None else list(names),
        "classes": [origin.describe() for origin in facts.classes],
        "classes_begin": describe_origins(facts.classes) if facts.classes else None,
        "resolution": facts.resolution,
        "sampler": dict(facts.sampler),
        "forget": facts.forget,
        "trained_on_images": facts.trained_on_images,
        "sha256": adapter.sha256(),
    }


def describe_lines(facts: dict[str, Any]) -> dict[str, str]:
    """The same for a terminal: row -> text; what is not known has no row."""
    method = facts["method"]
    options = [f"{key}={printable(str(v), 80)}" for key, v in method.items() if key != "name"]
    rows = {
        "adapter": facts["name"],
        "method": " ".join([str(method["name"]), *options]),
        "base": _base(facts),
        "trained": f"{facts['trained_numbers']:,} numbers, {facts['bytes']:,} bytes "
        f"({', '.join(facts['dtypes'])})",
        "classes": _classes(facts),
        "resolution": facts["resolution"] and f"{facts['resolution']}x{facts['resolution']}",
        "sampler": facts["sampler"] and printable(str(facts["sampler"]), 200),
        "forgotten": facts["forget"] and printable(str(facts["forget"].get("classes")), 200),
        "trained on": facts["trained_on_images"] and f"{facts['trained_on_images']:,} images",
        "sha256": facts["sha256"],
    }
    return {row: str(text) for row, text in rows.items() if text}


def _base(facts: dict[str, Any]) -> str:
    name = facts["base"] or "not named"
    digest = f" (SHA-256 {facts['base_sha256'][:12]})" if facts["base_sha256"] else ""
    words = {
        "matches": ": it is here, with these weights",
        "fits": ": it is here; which weights it must have is not recorded",
        "differs": f": what is here does not fit: {facts.get('base_detail')}",
        "missing": f": {facts.get('base_detail')}",
    }
    return f"{name}{digest}{words.get(facts.get('base_state', ''), '')}"


def _classes(facts: dict[str, Any]) -> str:
    names, count = facts["class_names"], facts["num_classes"]
    if count is None:
        return "as of the base"
    if count == 0:
        return "none (unconditional)"
    if facts["classes_begin"]:
        return f"{count}, {facts['classes_begin']}"
    more = f" ... ({count})" if count > MAX_NAMED else ""
    return f"{count}, the base's" + (f": {', '.join(names[:MAX_NAMED])}{more}" if names else "")

"""The models that come with the package: pipeline folders under ``bundled/``."""

import atexit
from contextlib import ExitStack
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from genlab import yaml_text
from genlab.errors import ConfigError, UnknownNameError, nearest
from genlab.files import read_json_object
from genlab.saving.index import INDEX


def bundled_names() -> list[str]:
    """Names of the bundled models, sorted."""
    root = files("genlab.checkpoints").joinpath("bundled")
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if entry.joinpath(INDEX).is_file())


@cache
def bundled_folder(name: str) -> Path:
    """The folder of a bundled model.

    It lasts until the program ends, also where the package itself lies in an archive.

    Raises:
        UnknownNameError: there is no bundled model of this name.
    """
    names = bundled_names()
    if name not in names:
        raise UnknownNameError(f"there is no bundled model {name!r}; {nearest(name, names)}")
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(as_file(files("genlab.checkpoints").joinpath("bundled", name)))


def bundled_card(name: str) -> str:
    """The model card of a bundled model; empty where it has none."""
    path = bundled_folder(name) / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def card_header(card: str) -> dict[str, Any]:
    """What a model card says between its first two lines of dashes, as model hubs read it."""
    opening, _, rest = card.partition("---\n")
    if opening.strip():
        return {}
    try:
        header = yaml_text.parse(rest.partition("\n---")[0], "the model card")
    except ConfigError:
        return {}  # a card is for people; what it fails to say is asked for elsewhere
    return {str(key): value for key, value in header.items()} if isinstance(header, dict) else {}


def bundled_metadata(name: str) -> dict[str, Any]:
    """A bundled model in a few words, without loading it."""
    folder = bundled_folder(name)
    index = read_json_object(folder / INDEX)
    header = card_header(bundled_card(name))
    data = header.get("datasets") or []
    return {
        "name": name,
        "data": ", ".join(map(str, data)) if isinstance(data, list) else str(data),
        "images": "x".join(map(str, index["image_shape"])),
        "classes": index["num_classes"],
        "licence": str(header.get("license") or ""),
        "published score": "",
    }

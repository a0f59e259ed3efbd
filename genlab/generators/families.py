"""The families of generators, and which of them a folder holds."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genlab.errors import CheckpointError
from genlab.generators.base import Generator
from genlab.registry import Registry
from genlab.saving.index import INDEX, read_index

FAMILIES: Registry[type[Generator]] = Registry(
    "genlab.generators",
    {
        "autoregressive": "genlab.generators.autoregressive:AutoregressiveGenerator",
        "diffusion": "genlab.generators.diffusion:DiffusionGenerator",
        "gan": "genlab.generators.gan:GanGenerator",
    },
    kind="family of generators",
)


def family_of(folder: Path, index: Mapping[str, Any]) -> type[Generator]:
    """The family that a folder's index names.

    Raises:
        CheckpointError: it names none that is known.
    """
    family = index.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(
            f"{folder / INDEX} names the family {reprlib.repr(family)}, which is none of "
            f"generators; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[family]


def read_generator(folder: Path | str) -> Generator:
    """Read a generator of any family from its folder, in float32 on the CPU.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit together.
    """
    folder = Path(folder)
    return family_of(folder, read_index(folder)).from_pretrained(folder)

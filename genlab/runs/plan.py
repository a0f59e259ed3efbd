"""The plan of a sampling run, and whether a folder's samples were made by the same plan."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from genlab.data.labels import format_seeds, parse_seeds
from genlab.data.pixels import PICTURE_CHANNELS
from genlab.data.writing.formats import ARCHIVES, FORMATS
from genlab.data.writing.sample_kinds import IMAGES, SampleKind, kind_named
from genlab.data.writing.writers import Pixels
from genlab.errors import ConfigError, OutputError
from genlab.samplers.base import PICTURES

ANIMATIONS = ("gif", "webp")
ANIMATION_STEMS = {"estimate": "animation", "state": "animation-state"}
"""What an animation shows -> the name of its file, without the ending."""


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """One run of the sample ledger.

    Attributes:
        seeds: one for each image, in the order of archives and pictures.
        labels: one class for each seed; None for an unconditional model.
        image_shape: (C, H, W) of a sample.
        identity: everything else that decides the images (model, weights, sampler, dtype): a run
            goes on only where it is equal.
        kind: whether samples are images or latents.
        format: ``png`` (a folder), ``zip`` (EDM's layout) or ``npz`` (ADM's layout) of images;
            ``npy`` (a folder), ``zip`` or ``npz`` of latents, see
            `genlab.data.writing.sample_kinds`.
        class_names: for the grid.
        grid: whether to lay the first images out in a picture.
        animation: ``gif`` or ``webp`` for an animation of how the first images form; None for none.
        animation_of: what it shows, one of `genlab.samplers.base.PICTURES`.
        title: what stands above grid and animation.
        inputs: what each seed's image is made from, (H, W, C): shown beside it in the grid.
        round_trip: whether the images should be their inputs again: the manifest tells how far they
            are from them.
    """

    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    image_shape: tuple[int, int, int]
    identity: Mapping[str, Any]
    kind: SampleKind = IMAGES
    format: str = "png"
    class_names: tuple[str, ...] | None = None
    grid: bool = True
    animation: str | None = None
    animation_of: str = "estimate"
    title: str = ""
    inputs: Mapping[int, Pixels] | None = None
    round_trip: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"there is no format {self.format!r}; known: {', '.join(FORMATS)}")
        if self.animation is not None and self.animation not in ANIMATIONS:
            raise ConfigError(
                f"there is no animation format {self.animation!r}; known: {', '.join(ANIMATIONS)}"
            )
        if self.animation_of not in PICTURES:
            raise ConfigError(
                f"an animation shows the {' or the '.join(PICTURES)}, not {self.animation_of!r}"
            )
        if self.format not in self.kind.formats:
            raise ConfigError(_misfit(self.format, self.kind, self.image_shape))
        if self.kind is IMAGES and self.image_shape[0] not in PICTURE_CHANNELS:
            raise ConfigError(
                f"images with {self.image_shape[0]} channels are neither grey nor RGB, and cannot "
                "be written"
            )

    @property
    def is_folder(self) -> bool:
        """Whether each sample stays a file of its own."""
        return self.format not in ARCHIVES

    @property
    def place(self) -> str:
        """Name of the folder or archive that holds the samples."""
        return self.kind.name if self.is_folder else f"{self.kind.name}.{self.format}"

    @property
    def animation_file(self) -> str:
        """Name of the animation in the folder."""
        return f"{ANIMATION_STEMS[self.animation_of]}.{self.animation}"

    def record(self) -> dict[str, Any]:
        """The part that is kept on disk and compared when the run is taken up again."""
        return {
            **({} if self.kind is IMAGES else {"kind": self.kind.name}),
            "identity": json.loads(json.dumps(self.identity)),  # as it comes back from the disk
            "format": self.format,
            "seeds": format_seeds(self.seeds),
            "labels": None if self.labels is None else list(self.labels),
        }

    def check(self, record: Mapping[str, Any], where: str) -> None:
        """Refuse to add to images that were made by another plan.

        More seeds than before are fine for a folder of files, as long as the earlier samples keep
        their classes.

        Raises:
            OutputError: names the first setting that differs.
        """
        ours, held = self.record(), kind_named(record.get("kind"))
        for key in ("identity", "format"):
            for name, old, new in _differences(
                record[key], ours[key], "" if key == "identity" else key
            ):
                raise OutputError(
                    f"{where} holds {held.name} made with other settings: {name} was {old}, "
                    f"now {new}; choose another folder with -o, or start again with --overwrite"
                )
        before = _classes(parse_seeds(record["seeds"]), record["labels"])
        now = _classes(self.seeds, self.labels)
        changed = [seed for seed, label in before.items() if now.get(seed, "") != label]
        if changed or (not self.is_folder and list(before) != list(now)):
            difference = (
                f"the class of seed {changed[0]}"
                if changed and changed[0] in now
                else f"seeds were {record['seeds']}, now {ours['seeds']}"
            )
            verb = " differs" if difference.startswith("the class") else ""
            raise OutputError(
                f"{where} holds {held.name} of another run: {difference}{verb}; choose another "
                "folder with -o, or start again with --overwrite"
            )


def _misfit(format_: str, kind: SampleKind, shape: tuple[int, int, int]) -> str:
    """Why a format cannot hold samples of a kind, and which can."""
    fitting = ", ".join(kind.formats[:-1]) + f" or {kind.formats[-1]}"
    if kind is IMAGES:
        return f"{format_} is a format of latents, and these are images; choose {fitting}"
    size = "x".join(map(str, shape))
    return (
        f"these are latents ({size}), of which no {format_} is made; choose the format {fitting}, "
        "which keep latents, or give the autoencoder that makes images of them: --autoencoder "
        "FOLDER"
    )


def _classes(seeds: tuple[int, ...], labels: Any) -> dict[int, int | None]:
    return dict(zip(seeds, labels or [None] * len(seeds), strict=True))


def _differences(old: Any, new: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted names of the leaves that differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _differences(
                old.get(key, "not set"),
                new.get(key, "not set"),
                f"{name}.{key}" if name else str(key),
            )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{name}.{i}")
    elif old != new:
        yield name, old, new

"""The schema of ``genlab sample``: what a preset in configs/sample/ may say."""

from dataclasses import dataclass, field
from typing import Any

from genlab.errors import ConfigError


@dataclass(kw_only=True)
class SampleConfig:
    """One run of ``genlab sample``.

    Attributes:
        model: a bundled model, a zoo model, a folder or an official file.
        seeds: one for each image, as numbers and ranges: ``0-63,100``.
        labels: ``random`` (each sample draws its own), ``balanced`` (the classes take turns), or
            one class for each seed, by number or name.
        classes: classes that take turns over the seeds, by number or name; in place of ``labels``.
        complete: images whose upper part is kept and whose lower part is drawn (autoregressive
            models only); with ``labels: random`` each keeps its own class, where it has one.
        keep: rows of ``complete`` that are kept; null is half of them.
        low_res: small images that are enlarged (super-resolution models only); with ``labels:
            random`` each keeps its own class, where it has one.
        sampler: changes to the model's own sampler, or the name of a sampler preset.
        output: the folder for images, pictures and manifest; null is ``samples/<model>``.
        format: ``png`` (a folder), ``zip`` (as EDM's tools write) or ``npz`` (as ADM's tools read).
        grid: whether to lay the first 100 images out in one labelled picture.
        animation: ``gif`` or ``webp`` for an animation of how the first 16 images form; null for
            none.
        animation_of: what it shows: the denoised ``estimate`` of each step, or the noisy ``state``.
        batch_size: images at a time; null is 16 on a CPU and 128 on a GPU. It changes speed and
            memory, not the images.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; null is the best there is.
        dtype: what the network computes in: ``float32``, ``bfloat16`` or ``float16``.
        compile: whether to compile the network first, which pays for many images.
    """

    model: str | None = None
    seeds: str = "0-15"
    labels: str = "random"
    classes: str | None = None
    complete: str | None = None
    keep: int | None = None
    low_res: str | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    format: str = "png"
    grid: bool = True
    animation: str | None = None
    animation_of: str = "estimate"
    batch_size: int | None = None
    device: str | None = None
    dtype: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.keep is not None and self.complete is None:
            raise ConfigError("keep has no effect without complete, which names the images")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}")

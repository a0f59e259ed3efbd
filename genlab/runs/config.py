"""The schema of ``genlab sample``: what a preset in configs/sample/ may say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from genlab.choices import DTYPES, check_choice, check_least
from genlab.data.labels import cycle_classes, parse_labels, parse_seeds
from genlab.errors import ConfigError
from genlab.samplers.editing.options import Edit


@dataclass(kw_only=True)
class SampleConfig:
    """One run of ``genlab sample``.

    Attributes:
        model: a bundled model, a zoo model, a folder or an official file.
        adapter: one that was trained on ``model``: its folder, or the name that it is kept under.
        autoencoder: makes images of a latent model's latents: its folder or name; in place of the
            model's own, where it has one. Without any, latents are drawn.
        seeds: one for each image, as numbers and ranges: ``0-63,100``.
        labels: ``random`` (each sample draws its own), ``balanced`` (the classes take turns), or
            one class for each seed, by number or name.
        classes: classes that take turns over the seeds, by number or name; in place of ``labels``.
        images: what is edited: images that a run starts from (diffusion models) or keeps a part of;
            with ``labels: random`` each keeps its own class, where it has one.
        fit: what to do with images and masks of another size than the model's: ``none`` (refuse
            them), ``pad``, ``resize`` or ``crop``.
        mask: which pixels of ``images`` are drawn (inpainting): a picture for all, or a set of
            them; white is drawn.
        keep: rows of ``images`` from the top that are kept, in place of a mask.
        edit: how much of ``images`` is drawn anew.
        source_classes: the classes of ``images``, which ``edit.invert`` inverts them under, by
            number or name, taking turns; ``none`` is no class; null is the class that each image
            has, or where it has none the one that it is drawn as.
        complete: as ``images``, of autoregressive models; half the rows are kept unless ``keep``
            says how many.
        between: seeds that images are drawn between (interpolation), such as ``3,7``, in place of
            ``seeds``; ``classes`` are then theirs.
        frames: how many images are drawn between them.
        low_res: small images that are enlarged (super-resolution models only); with ``labels:
            random`` each keeps its own class, where it has one.
        sampler: changes to the model's own sampler, or the name of a sampler preset.
        output: the folder for images, pictures and manifest; null is ``samples/<model>``.
        format: ``png`` (a folder), ``zip`` (as EDM's tools write) or ``npz`` (as ADM's tools read)
            of images; ``npy`` (a folder), ``zip`` or ``npz`` of latents; null is the folder.
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
    adapter: str | None = None
    autoencoder: str | None = None
    seeds: str = "0-15"
    labels: str = "random"
    classes: str | None = None
    images: str | None = None
    fit: str = "none"
    mask: str | None = None
    keep: int | None = None
    edit: Edit = field(default_factory=Edit)
    source_classes: str | None = None
    complete: str | None = None
    between: str | None = None
    frames: int | None = None
    low_res: str | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    format: str | None = None
    grid: bool = True
    animation: str | None = None
    animation_of: str = "estimate"
    batch_size: int | None = None
    device: str | None = None
    dtype: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_least(self, batch_size=1)
        check_choice("dtype", self.dtype, DTYPES)

    def check_inputs(self) -> None:
        """Refuse settings of inputs that are missing, once the configuration is complete.

        Raises:
            ConfigError: names them.
        """
        named = [n for n in ("images", "complete", "low_res", "between") if getattr(self, n)]
        if len(named) > 1:
            raise ConfigError(f"{named[0]} and {named[1]} exclude each other; leave one out")
        edited = self.images is not None
        if self.keep is not None and not (edited or self.complete is not None):
            raise ConfigError("keep has no effect without images, which names what is kept of")
        idle = {
            "mask": self.mask is not None and not edited,
            "fit": self.fit != "none" and not edited,
            "edit": self.edit != Edit() and not edited,
        }
        for name, without_effect in idle.items():
            if without_effect:
                raise ConfigError(
                    f"{name} has no effect without images, which names what is edited"
                )
        if self.source_classes is not None and not self.edit.invert:
            raise ConfigError("source_classes has no effect without edit.invert; leave it out")
        if self.mask is not None and self.keep is not None:
            raise ConfigError("mask and keep say the same in two ways; leave one out")
        if self.frames is not None and self.between is None:
            raise ConfigError("frames has no effect without between, which names the seeds")

    def check_classes(self, num_classes: int, class_names: Sequence[str] | None) -> None:
        """Refuse classes that a model does not have, and invalid seeds.

        Args:
            num_classes: of the model.
            class_names: where they have names.

        Raises:
            LabelError: names the class.
            ConfigError: the seeds cannot be read.
        """
        if self.between is not None:
            return
        seeds = parse_seeds(self.seeds)
        if self.classes is not None:
            cycle_classes(self.classes, seeds, num_classes, class_names)
        else:
            parse_labels(self.labels, seeds, num_classes, class_names)

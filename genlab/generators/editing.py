"""Editing with diffusion models: image-to-image, inpainting, inversion and interpolation."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from genlab.data.labels import check_labels
from genlab.data.pixels import to_uint8
from genlab.data.writing.writers import Pixels
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.noise import Noise, NoiseStream
from genlab.errors import ConfigError, LabelError
from genlab.generators.base import Batch
from genlab.generators.diffusion import DiffusionGenerator, SharedNetwork
from genlab.generators.given import by_seed
from genlab.samplers.base import AnySampler, Hook, SamplerLike, SolverStep
from genlab.samplers.editing.interpolation import NoiseBetween, slerp
from genlab.samplers.editing.options import Edit
from genlab.samplers.editing.runs import check_edit, edit_steps, latents_of
from genlab.samplers.sampler import Sampler
from genlab.saving.models import weights_sha256

Images = Float[Tensor, "N C H W"]


class _Sharing(SharedNetwork):
    """A generator that shares the network of one that draws from noise."""

    def __init__(self, generator: DiffusionGenerator) -> None:
        super().__init__(generator)
        if self.enlarges:
            raise ConfigError(
                "a super-resolution model draws from small images and edits none; take low_res "
                "(genlab sample --low-res)"
            )


class Editing(_Sharing):
    """A diffusion model whose samples are edited images, one for each seed.

    Args:
        generator: whose network and settings it shares.
        images: one for each seed, in [-1, 1], of the model's shape.
        seeds: those that it can be asked for, all different.
        edit: how much is drawn anew.
        masks: true where pixels are drawn, (H, W) for all images or (N, H, W), one for each; None
            draws all of them.
        source_labels: the classes of the images, for inversion; None is no class.

    Raises:
        ConfigError: shapes or numbers do not fit, or a seed stands twice.
        LabelError: the model does not know a class.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        images: Images,
        seeds: Sequence[int],
        edit: Edit,
        *,
        masks: Bool[Tensor, "*rows H W"] | None = None,
        source_labels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(generator)
        check_images(images, self.image_shape)
        self.edit = edit
        self._images = by_seed(images, seeds)
        self._masks: dict[int, Tensor] | None = None
        if masks is not None:
            rows = check_masks(masks, len(images), self.image_shape)
            self._masks = dict(zip(seeds, rows, strict=True))
        self._source: dict[int, int] | None = None
        self.set_source(source_labels)

    def set_source(self, labels: Sequence[int] | None) -> None:
        """Say which classes the images have, for inversion; None is no class.

        Raises:
            LabelError: the model does not know one, or there are not as many as images.
        """
        self._source = None
        if labels is not None:
            check_labels(labels, list(self._images), self.num_classes)
            self._source = dict(zip(self._images, labels, strict=True))

    @override
    def check_sampler(self, sampler: Sampler) -> None:
        """The edit has to fit, too."""
        super().check_sampler(sampler)
        check_edit(sampler, self.denoiser, self.edit, inpaints=self._masks is not None)

    @override
    def inputs(self, seeds: Sequence[int]) -> dict[str, Any]:
        rows: dict[str, Any] = {"images": torch.stack([self._images[seed] for seed in seeds])}
        if self._masks is not None:
            rows["masks"] = torch.stack([self._masks[seed] for seed in seeds])
        if self._source is not None:
            rows["source_labels"] = [self._source[seed] for seed in seeds]
        return rows

    def steps(  # type: ignore[override]  # it takes images, which `inputs` gives
        self,
        noise: Noise,
        labels: Sequence[int] | Float[Tensor, "B K"] | None,
        sampler: Sampler,
        latents: Float[Tensor, "B C H W"] | None = None,
        *,
        images: Images,
        masks: Bool[Tensor, "N 1 H W"] | None = None,
        source_labels: Sequence[int] | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Iterator[SolverStep]:
        """Edit one batch step by step; see `DiffusionGenerator.steps`.

        Args:
            noise: one stream for each image.
            labels: one class for each image, or rows of class weights.
            sampler: what `build_sampler` made.
            latents: unit normal noise; None draws it from the streams.
            images: the batch's.
            masks: true where pixels are drawn.
            source_labels: the classes of the images.
            hooks: look at each step before it is yielded, or replace its state.
        """
        parts = self.prepare_parts(sampler)
        steps = edit_steps(
            sampler,
            self.denoiser,
            self.encode(images),
            self.edit,
            noise=noise,
            condition=self.condition(labels),
            device=self.device,
            mask=None if masks is None else self._of_states(masks),
            source=self._source_condition(source_labels, labels),
            latents=latents,
            hooks=hooks,
        )
        return self._counted(steps, parts)

    @override
    def draw(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None,
        sampler: AnySampler,
        on_step: Hook | None = None,
    ) -> Batch:
        """Kept parts of an image are kept exactly."""
        batch = super().draw(seeds, labels, sampler, on_step)
        return replace(batch, images=self.keep(batch.images, **self.inputs(seeds)))

    def keep(
        self,
        drawn: Images,
        images: Images,
        masks: Bool[Tensor, "N 1 H W"] | None = None,
        source_labels: Sequence[int] | None = None,
    ) -> Images:
        """Drawn images with the kept pixels of the given ones, which an autoencoder changes."""
        if masks is None:
            return drawn
        return torch.where(masks.to(drawn.device), drawn, images.to(drawn))

    @override
    def pictures(self, seeds: Sequence[int]) -> dict[int, Pixels]:
        """Grey where pixels are drawn."""
        shown: dict[int, Pixels] = {}
        for seed in seeds:
            image = self._images[seed]
            if self._masks is not None:
                image = torch.where(self._masks[seed], torch.zeros_like(image), image)
            shown[seed] = to_uint8(image).permute(1, 2, 0).numpy()
        return shown

    @override
    def describe_sampler(self, sampler: AnySampler) -> str:
        """How images are edited, too."""
        parts = [super().describe_sampler(sampler)]
        edit = self.edit
        if self._masks is not None:
            share = float(torch.stack([*self._masks.values()]).float().mean())
            parts.append(f"{share:.0%} inpainted, {edit.resample} times")
        if edit.invert:
            parts.append("inverted")
        if edit.strength is not None:
            parts.append(f"strength {edit.strength:g}")
        if edit.start_sigma is not None:
            parts.append(f"from sigma {edit.start_sigma:g}")
        return ", ".join(parts)

    @override
    def identity(self, sampler: AnySampler | None = None) -> dict[str, Any]:
        """The edited images and the options are part of the identity."""
        named = [(f"image {seed}", image) for seed, image in self._images.items()]
        named += [(f"mask {seed}", mask) for seed, mask in (self._masks or {}).items()]
        named += [(f"class {s}", torch.tensor(c)) for s, c in (self._source or {}).items()]
        return {
            **super().identity(sampler),
            "edit": asdict(self.edit),
            "edits_sha256": weights_sha256(named),
        }

    def _of_states(self, masks: Bool[Tensor, "N 1 H W"]) -> Bool[Tensor, "N 1 h w"]:
        """Masks of latents: one is drawn where any of its pixels is."""
        if self.autoencoder is None:
            return masks
        return F.max_pool2d(masks.float(), self.autoencoder.factor) > 0

    def _source_condition(
        self, source_labels: Sequence[int] | None, labels: Any
    ) -> Condition | None:
        if not self.edit.invert:
            return None
        return source_condition(self, source_labels, 0 if labels is None else len(labels), labels)


class Interpolation(_Sharing):
    """A diffusion model whose samples lie between others.

    Its seeds count the frames: 0 to ``frames - 1``. A frame's latents, and every later draw of a
    stochastic sampler, lie on the arc between those of the two samples that it stands between; its
    class weights lie on the line between theirs.

    Args:
        generator: whose network and settings it shares.
        seeds: of the samples that are gone through, two or more; one may stand several times.
        labels: the class of each of them, or one for all; None is no class, or each seed's own.
        frames: images, evenly spread; those of ``seeds`` are among them where
            ``frames - 1`` is a multiple of ``len(seeds) - 1``.
        latents: of the samples, (K, C, H, W), in place of drawing them.

    Raises:
        ConfigError: there is nothing to go between, or numbers do not fit.
        LabelError: the model does not know a class.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        seeds: Sequence[int],
        labels: Sequence[int] | None,
        frames: int,
        *,
        latents: Float[Tensor, "K C H W"] | None = None,
    ) -> None:
        super().__init__(generator)
        if len(seeds) < 2:
            raise ConfigError(
                f"interpolation goes between at least two seeds, got {len(seeds)}; name them, for "
                "instance 3,7"
            )
        if frames < 2:
            raise ConfigError(f"interpolation needs at least two frames, got {frames}")
        if latents is not None and tuple(latents.shape) != (len(seeds), *self.state_shape):
            raise ConfigError(
                f"latents of {len(seeds)} samples are of shape {(len(seeds), *self.state_shape)}, "
                f"got {tuple(latents.shape)}"
            )
        if labels is not None and len(labels) == 1:
            labels = [*labels] * len(seeds)
        self._seeds = tuple(seeds)
        self._labels = self.choose_labels(seeds, labels)
        self._latents = latents
        self.frames = frames

    def place(self, frame: int) -> tuple[int, float]:
        """(index of the sample before a frame, share of the way to the next one)."""
        if not 0 <= frame < self.frames:
            raise ConfigError(f"there is no frame {frame} of {self.frames}")
        stretches = len(self._seeds) - 1
        # In whole numbers, so that the samples themselves are met exactly.
        before, rest = divmod(frame * stretches, self.frames - 1)
        if before == stretches:
            return stretches - 1, 1.0
        return before, rest / (self.frames - 1)

    def nearest_labels(self) -> tuple[int, ...] | None:
        """The class of the sample that is nearest to each frame."""
        if self._labels is None:
            return None
        places = [self.place(frame) for frame in range(self.frames)]
        return tuple(self._labels[before + (share >= 0.5)] for before, share in places)

    @override
    def noise(self, seeds: Sequence[int]) -> Noise:
        places = [self.place(frame) for frame in seeds]
        start, end = (
            NoiseStream([self._seeds[before + ahead] for before, _ in places], self.device)
            for ahead in (0, 1)
        )
        share = torch.tensor([share for _, share in places], dtype=torch.float64)
        return NoiseBetween(start, end, share)

    @override
    def inputs(self, seeds: Sequence[int]) -> dict[str, Any]:
        places = [self.place(frame) for frame in seeds]
        share = torch.tensor([share for _, share in places], dtype=torch.float64)
        rows: dict[str, Any] = {"class_weights": None}
        if self._labels is not None:
            one_hot = F.one_hot(torch.tensor(self._labels), self.num_classes).double()
            ends = [one_hot[[before + ahead for before, _ in places]] for ahead in (0, 1)]
            weights = (1 - share[:, None]) * ends[0] + share[:, None] * ends[1]
            rows["class_weights"] = weights.float()
        if self._latents is not None:
            ends = [self._latents[[before + ahead for before, _ in places]] for ahead in (0, 1)]
            rows["latents"] = slerp(ends[0], ends[1], share)
        return rows

    def steps(  # type: ignore[override]  # the classes of frames are rows of weights
        self,
        noise: Noise,
        labels: Sequence[int] | Float[Tensor, "B K"] | None,
        sampler: Sampler,
        latents: Float[Tensor, "B C H W"] | None = None,
        *,
        class_weights: Float[Tensor, "B K"] | None,
        hooks: Sequence[Hook] = (),
    ) -> Iterator[SolverStep]:
        """Sample one batch of frames; see `DiffusionGenerator.steps`.

        Args:
            noise: what `noise` gives.
            labels: for the record; what counts are ``class_weights``.
            sampler: what `build_sampler` made.
            latents: unit normal start; None draws it from ``noise``.
            class_weights: of each frame; None for an unconditional model.
            hooks: look at each step before it is yielded, or replace its state.
        """
        return super().steps(noise, class_weights, sampler, latents, hooks=hooks)

    @override
    def describe_sampler(self, sampler: AnySampler) -> str:
        """The interpolated samples, too."""
        between = ", ".join(map(str, self._seeds))
        return f"{super().describe_sampler(sampler)}, between seeds {between}"

    @override
    def identity(self, sampler: AnySampler | None = None) -> dict[str, Any]:
        """The interpolated samples are part of the identity."""
        between: dict[str, Any] = {
            "seeds": list(self._seeds),
            "labels": None if self._labels is None else list(self._labels),
            "frames": self.frames,
        }
        if self._latents is not None:
            between["latents_sha256"] = weights_sha256([("latents", self._latents)])
        return {**super().identity(sampler), "between": between}


def edit(
    generator: DiffusionGenerator,
    images: Images,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    sampler: SamplerLike = None,
    batch_size: int | None = None,
    *,
    source_labels: Sequence[int] | None = None,
    **options: Any,
) -> Images:
    """Draw images anew from a noise level on (image-to-image, SDEdit).

    Args:
        generator: a diffusion model; images of a latent one are encoded by its autoencoder.
        images: one for each seed, in [-1, 1], of the model's shape.
        seeds: one for each image, all different.
        labels: the class that each becomes; None draws each sample's class from its own stream.
        sampler: how to sample; None is the generator's own default.
        batch_size: images at a time; it changes speed and memory, the images by rounding alone.
        source_labels: the classes of ``images``, with ``invert=True``; None is no class.
        options: those of `genlab.samplers.editing.runs.Edit`: ``strength=0.6`` (1 is all noise), or
            ``start_sigma``; ``invert=True`` to start from the images' own noise.

    Returns:
        (N, C, H, W), float32, in [-1, 1].

    Raises:
        ConfigError: shapes, numbers or options do not fit, or a seed stands twice.

    Example::

        edit(genlab.load("edm-fmnist"), images, seeds=range(16), labels=[8] * 16, strength=0.6)
    """
    made = Editing(generator, images, seeds, Edit(**options), source_labels=source_labels)
    return made.sample(seeds, labels, sampler, batch_size)


def inpaint(
    generator: DiffusionGenerator,
    images: Images,
    masks: Bool[Tensor, "*rows H W"],
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    sampler: SamplerLike = None,
    batch_size: int | None = None,
    **options: Any,
) -> Images:
    """Draw a part of images so that it fits the rest (RePaint).

    Args:
        generator: see `edit`.
        images: one for each seed, in [-1, 1]; what they show where they are drawn matters only with
            a ``strength``.
        masks: true where pixels are drawn, (H, W) for all images or (N, H, W).
        seeds: one for each image, all different.
        labels: one class for each image; None draws each sample's class from its own stream.
        sampler: how to sample; None is the generator's own default.
        batch_size: images at a time; it changes speed and memory, the images by rounding alone.
        options: those of `genlab.samplers.editing.options.Edit`: ``resample`` and
            ``jump_length``; a run costs about ``resample`` times as much as sampling.

    Returns:
        The images, float32, exactly as they were where they are kept.

    Raises:
        ConfigError: shapes, numbers or options do not fit, or a seed stands twice.
    """
    made = Editing(generator, images, seeds, Edit(**options), masks=masks)
    return made.sample(seeds, labels, sampler, batch_size)


@torch.no_grad()
def invert(
    generator: DiffusionGenerator,
    images: Images,
    labels: Sequence[int] | None = None,
    sampler: SamplerLike = None,
    batch_size: int = 16,
    **options: Any,
) -> Float[Tensor, "N C2 H2 W2"]:
    """Find the latents from which a deterministic sampler comes back to images, nearly.

    They are the ``latents`` of `DiffusionGenerator.steps`, of the pipeline object and of
    `interpolate`. With Heun's method, the Karras schedule with ``rho = 3`` spreads the error best.

    Args:
        generator: see `edit`.
        images: in [-1, 1], of the model's shape.
        labels: their classes; None is no class.
        sampler: to come back by; one that draws no noise.
        batch_size: images at a time.
        options: ``guided`` and ``ask`` of `genlab.samplers.editing.runs.Edit`.

    Returns:
        Standard normal up to the model's error, float32, of the shape of the model's state.

    Raises:
        ConfigError: the images are of another shape, or the sampler draws noise.
        LabelError: the model does not know a class, or has no null class and there are no labels.
    """
    check_images(images, generator.image_shape)
    if labels is not None:
        check_labels(labels, range(len(images)), generator.num_classes)
    how, built = Edit(invert=True, **options), generator.build_sampler(sampler)
    generator.prepare_parts(built)
    latents = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        batch = generator.encode(images[rows])
        condition = source_condition(generator, labels and labels[rows], len(batch))
        device = generator.device
        latents.append(
            latents_of(built, generator.denoiser, batch, how, condition=condition, device=device)
        )
    return torch.cat(latents).to(torch.float32)


def interpolate(
    generator: DiffusionGenerator,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    frames: int = 16,
    sampler: SamplerLike = None,
    batch_size: int | None = None,
    *,
    latents: Float[Tensor, "K C H W"] | None = None,
) -> Images:
    """Draw images between others.

    Args:
        generator: a diffusion model.
        seeds: of the samples that are gone through, two or more.
        labels: the class of each of them, or one for all; None draws each one's from its seed.
        frames: images, evenly spread from the first sample to the last.
        sampler: how to sample; None is the generator's own default.
        batch_size: images at a time; it changes speed and memory, the images by rounding alone.
        latents: of the samples, (K, C, H, W), of `invert` for instance, in place of drawing them.

    Raises:
        ConfigError: there is nothing to go between, or numbers do not fit.
        LabelError: the model does not know a class.
    """
    made = Interpolation(generator, seeds, labels, frames, latents=latents)
    return made.sample(range(frames), made.nearest_labels(), sampler, batch_size)


def source_condition(
    generator: DiffusionGenerator, source_labels: Any, count: int, labels: Any = None
) -> Condition:
    """The condition of inversion: the images' classes, else none, else ``labels``.

    Raises:
        LabelError: the model has no null class, and nothing says which class they have.
    """
    if source_labels is None and generator.num_classes:
        if generator.has_null_class:
            source_labels = [NULL_CLASS] * count
        elif labels is None:
            raise LabelError(
                "this model has no null class, so inversion needs the classes of the images; give "
                "one for each"
            )
        else:
            source_labels = labels
    return generator.condition(source_labels)


def check_images(images: Images, image_shape: tuple[int, int, int]) -> None:
    """Refuse images of another shape.

    Raises:
        ConfigError: they are.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != image_shape:
        raise ConfigError(
            f"the model edits images of shape {image_shape}, got {tuple(images.shape[1:])}; bring "
            "them to its size and channels"
        )


def check_masks(
    masks: Bool[Tensor, "*rows H W"], count: int, image_shape: tuple[int, int, int]
) -> Bool[Tensor, "N 1 H W"]:
    """Masks, one for each image.

    Raises:
        ConfigError: they are of another shape or number, or one draws nothing.
    """
    if masks.dtype != torch.bool or tuple(masks.shape[-2:]) != image_shape[1:]:
        raise ConfigError(
            "a mask holds true or false for each pixel of "
            f"{image_shape[1]}x{image_shape[2]}, got {tuple(masks.shape)} of {masks.dtype}"
        )
    rows = masks.expand(count, *masks.shape) if masks.ndim == 2 else masks
    if rows.ndim != 3 or len(rows) != count:
        raise ConfigError(
            f"masks are for all images at once or one for each of {count}, got {tuple(masks.shape)}"
        )
    if not rows.flatten(1).any(1).all():
        raise ConfigError("a mask draws no pixel; make those white that are to be drawn")
    return rows[:, None]

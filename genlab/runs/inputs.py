"""Read input images from files, and make the generator that uses them."""

from collections.abc import Sequence

from genlab.data.labels import parse_classes, parse_seeds
from genlab.errors import ConfigError, LabelError
from genlab.generators.autoregressive import AutoregressiveGenerator, Inpainting
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator, Enlargement
from genlab.generators.editing import Editing, Interpolation
from genlab.generators.given import read_given, read_masks
from genlab.generators.latents import check_draws_images
from genlab.samplers.autoregressive.inpainting import mask as rows_kept
from genlab.samplers.editing.options import Edit

Labels = tuple[int, ...] | None
"""The class of each seed's image, where the images have the model's classes."""


def inpainting(
    generator: Generator,
    path: str,
    seeds: Sequence[int],
    *,
    keep: int | None = None,
    mask: str | None = None,
    fit: str = "none",
) -> tuple[Inpainting, Labels]:
    """Make an autoregressive generator that inpaints the images of a set.

    Args:
        generator: of the autoregressive family.
        path: images of the model's size, see `read_given`.
        seeds: see `read_given`.
        keep: how many rows from the top stand; None is half of them, where there is no mask.
        mask: which pixels are drawn, see `read_masks`.
        fit: see `read_given`.

    Returns:
        The generator, and the classes of the images.

    Raises:
        ConfigError: the model is of another family, or ``keep`` is out of range.
        DataError: the images cannot be read or are of another size.
    """
    if not isinstance(generator, AutoregressiveGenerator):
        raise ConfigError(
            f"only autoregressive models complete images; this one is of the family "
            f"{generator.family!r}, so leave complete out"
        )
    size = generator.image_shape[1]
    images, labels = read_given(generator, path, seeds, size, fit)
    if mask is not None:
        return Inpainting(generator, images, ~read_masks(mask, seeds, size, fit), seeds), labels
    return Inpainting(generator, images, size // 2 if keep is None else keep, seeds), labels


def editing(
    generator: Generator,
    path: str,
    seeds: Sequence[int],
    edit: Edit,
    *,
    keep: int | None = None,
    mask: str | None = None,
    fit: str = "none",
) -> tuple[Editing | Inpainting, Labels]:
    """Make a generator that edits the images of a set.

    Args:
        generator: of the diffusion family; or of the autoregressive one, which inpaints.
        path: images of the model's size, see `read_given`.
        seeds: see `read_given`.
        edit: how much of them is drawn anew.
        keep: how many rows from the top stand, in place of a mask.
        mask: which pixels are drawn, see `read_masks`.
        fit: see `read_given`.

    Returns:
        The generator, and the classes of the images.

    Raises:
        ConfigError: the model is of another family, or the options do not fit it.
        DataError: the images cannot be read or are of another size.
    """
    if isinstance(generator, AutoregressiveGenerator):
        if edit != Edit():
            raise ConfigError(
                "an autoregressive model draws pixels one by one and knows no noise levels; leave "
                "strength, invert and the other settings of edit out, or take a diffusion model"
            )
        return inpainting(generator, path, seeds, keep=keep, mask=mask, fit=fit)
    if not isinstance(generator, DiffusionGenerator):
        raise ConfigError(
            f"only diffusion and autoregressive models draw from images; this one is of the family "
            f"{generator.family!r}, so leave images out"
        )
    check_draws_images(generator, "editing is of images")
    size = generator.image_shape[1]
    images, labels = read_given(generator, path, seeds, size, fit)
    masks = None
    if mask is not None:
        masks = read_masks(mask, seeds, size, fit)
    elif keep is not None:
        masks = ~rows_kept(keep, generator.image_shape)
    return Editing(generator, images, seeds, edit, masks=masks), labels


def interpolating(
    generator: Generator, between: str, frames: int, classes: str | None
) -> Interpolation:
    """Make a generator of the images between others.

    Args:
        generator: of the diffusion family.
        between: seeds, separated by commas; one may stand several times.
        frames: how many images.
        classes: one for all seeds, or one for each, separated by commas; None is each seed's own.

    Raises:
        ConfigError: the model is of another family, or there is nothing to go between.
        LabelError: the model does not know a class, or there are not as many as seeds.
    """
    if not isinstance(generator, DiffusionGenerator):
        raise ConfigError(
            f"only diffusion models are interpolated; this one is of the family "
            f"{generator.family!r}, so leave between out"
        )
    seeds = [seed for part in between.split(",") for seed in parse_seeds(part.strip())]
    labels = None
    if classes is not None:
        labels = parse_classes(classes, generator.num_classes, generator.class_names)
        if len(labels) not in (1, len(seeds)):
            raise LabelError(
                f"{len(labels)} classes for {len(seeds)} seeds to go between; give one for each, "
                "or one for all"
            )
    return Interpolation(generator, seeds, labels, frames)


def enlarging(generator: Generator, path: str, seeds: Sequence[int]) -> tuple[Enlargement, Labels]:
    """Make a generator that enlarges the images of a set.

    Args:
        generator: a super-resolution diffusion model.
        path: images smaller than the model's, see `read_given`.
        seeds: see `read_given`.

    Returns:
        The generator, and the classes of the images.

    Raises:
        ConfigError: the model enlarges nothing, or the images are too large.
        DataError: the images cannot be read or are of different sizes.
    """
    if not isinstance(generator, DiffusionGenerator):
        raise ConfigError(
            f"only super-resolution diffusion models enlarge images; this one is of the family "
            f"{generator.family!r}, so leave low_res out"
        )
    check_draws_images(generator, "what is enlarged are images")
    images, labels = read_given(generator, path, seeds, None)
    return Enlargement(generator, images, seeds), labels

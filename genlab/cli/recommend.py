"""``genlab presets recommend``: a training configuration for one's own images and this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import (
    ANY_PATH,
    device_option,
    duration,
    echo_json,
    json_option,
    plain_warnings,
    wrapped,
)

if TYPE_CHECKING:
    from genlab.training.recommend.choosing import SetMetadata
    from genlab.training.recommend.recommendation import Recommendation

FAMILIES = ("edm", "dit", "biggan", "pixelcnn")

MINUTES = 90.0

SAMPLE = 64
"""Images that are looked at beside the first: a set of several sizes is found out before it is
trained on."""

EPILOG = """\b
Examples:
  genlab data prepare my_images/ mine.zip --size 32 --fit crop
  genlab presets recommend mine.zip -o mine.yaml
  genlab train mine.yaml                                   # trains into runs/mine
  genlab presets recommend mine.zip --family dit --minutes 600 > mine.yaml

docs/training.md has the rules and their reasons."""


@click.command("recommend", epilog=EPILOG)
@click.argument("data", type=ANY_PATH)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The YAML file to write; without it the YAML is printed.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help=f"How long the run may take on this machine. Default: {MINUTES:g}.",
)
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    default="edm",
    show_default=True,
    help="edm: a diffusion U-Net, the first to try; dit: a diffusion transformer; biggan: a GAN, "
    "draws in one step; pixelcnn: pixel by pixel, with exact likelihoods.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Height and width to train at, the centre of the images; default: theirs.",
)
@click.option(
    "--no-measure",
    is_flag=True,
    help="Do not time some steps of training; minutes are unknown then.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file of -o.")
@device_option
@json_option
def recommend(
    data: Path,
    out: Path | None,
    minutes: float | None,
    family: str,
    size: int | None,
    no_measure: bool,
    overwrite: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Recommend a configuration to train on DATA with, and say what to expect of it.

    DATA are images as 'genlab data prepare' packs them, or as any command takes them. How many
    there are, their size and classes, and how fast this machine trains (measured for some seconds)
    decide on the network, its settings and the length of the run; the YAML says why.
    """
    from genlab.errors import OutputError
    from genlab.training.recommend.choosing import Wish
    from genlab.training.recommend.recipe import recipe_text
    from genlab.training.recommend.recommendation import recommend as choose

    if no_measure and minutes is not None:
        raise click.UsageError("--minutes takes a measured speed; leave --no-measure out")
    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise click.UsageError(f"-o {out}: 'genlab train' takes files that end in .yaml")
    if out is not None and out.exists() and not overwrite:
        raise OutputError(f"{out} is there already; choose another file, or give --overwrite")
    metadata = set_metadata(data)
    wish = Wish(family=family, minutes=minutes or MINUTES, size=size)
    with plain_warnings():
        fast = not no_measure and _bfloat16_is_fast(device)
        recipe = choose(metadata, wish, measured=not no_measure, fast=fast, device=device)
    text = recipe_text(recipe, f"genlab train {out or 'FILE.yaml'}")
    if out is not None:
        _write(out, text)
    if as_json:
        echo_json(_as_json(recipe, out))
        return
    if out is None:
        click.echo(text, nl=False)
    _report(recipe, out)


def set_metadata(path: Path) -> "SetMetadata":
    """The metadata of a data set for a recommendation, with warnings on stderr.

    Raises:
        DataError: it cannot be opened, holds latents, or images that are not alike.
    """
    import numpy as np

    from genlab.data.dataset import ImageDataset
    from genlab.data.sources.latents import is_latents
    from genlab.data.sources.opening import open_source
    from genlab.errors import DataError
    from genlab.training.recommend.choosing import SetMetadata

    if is_latents(path):
        raise DataError(
            f"{path} holds latents, and what is recommended here draws pixels; give the images "
            "that were encoded, or train a transformer on the latents: 'genlab train dit-cifar10 "
            f"data.path={path} network.patch_size=2'"
        )
    source = open_source(path)
    for finding in source.findings:
        if finding.level == "warning":
            click.echo(f"warning: {finding.message}", err=True)
    dataset = ImageDataset(source, labels=source.labels is not None, wording=_wording())
    for index in np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int):
        dataset[int(index)]
    used = 0 if source.labels is None else len(np.unique(source.labels))
    return SetMetadata(
        path=str(path),
        num_images=len(dataset),
        image_shape=dataset.image_shape,
        num_classes=source.num_classes,
        used_classes=used,
        class_names=None if source.class_names is None else tuple(source.class_names),
        held_out=_held_out(path, source.split),
    )


def _wording() -> Any:
    """Messages send to 'genlab data prepare', which settles size and transparency."""
    from genlab.data.conform import Wording

    return Wording("--", has_alpha=False, has_fit=False)


def _held_out(path: Path, split: str | None) -> str | None:
    """The other part of a set that has several."""
    from genlab.data.sources.opening import open_source
    from genlab.errors import DataError

    if split != "train":
        return None
    try:
        return "test" if open_source(path, "test").split == "test" else None
    except DataError:
        return None


def _bfloat16_is_fast(device: str | None) -> bool:
    import torch

    from genlab import compute
    from genlab.cli.common import best_device

    return torch.bfloat16 in compute.choose(torch.device(device or best_device())).fast_dtypes


def _write(out: Path, text: str) -> None:
    from genlab.files import write_text

    write_text(out, text)


def _as_json(recipe: "Recommendation", out: Path | None) -> dict[str, Any]:
    return {
        "path": None if out is None else str(out),
        "family": recipe.family,
        "parameters": recipe.parameters,
        "image_shape": list(recipe.image_shape),
        "images": recipe.num_images,
        "kimg": recipe.kimg,
        "passes": round(recipe.passes, 1),
        "images_per_second": recipe.images_per_second,
        "minutes": recipe.minutes,
        "disk_bytes": recipe.disk_bytes,
        "expect": list(recipe.expect),
        "reasons": {key: why for key, why in recipe.reasons.items() if _is_set(recipe, key)},
        "settings": dict(recipe.settings),
    }


def _is_set(recipe: "Recommendation", key: str) -> bool:
    first, _, rest = key.partition(".")
    return first in recipe.settings and (not rest or rest in recipe.settings[first])


def _report(recipe: "Recommendation", out: Path | None) -> None:
    """The table and what to expect; on stderr where stdout is the YAML."""
    for line in _lines(recipe):
        click.echo(line, err=out is None)


def _lines(recipe: "Recommendation") -> list[str]:
    channels, height, width = recipe.image_shape
    output = recipe.settings["output"]
    every = f"{output['preview_kimg']:g} kimg"
    if recipe.minutes is not None:
        every = f"{duration(60 * recipe.minutes * output['preview_kimg'] / recipe.kimg)} ({every})"
    rows = {
        "network": recipe.settings["network"]["name"],
        "parameters": f"{recipe.parameters / 1e6:.1f} million",
        "resolution": f"{width}x{height} {'grey' if channels == 1 else 'RGB'}",
        "images seen": f"{recipe.kimg:g} kimg (thousands)",
        "passes": f"{recipe.passes:,.1f} over {recipe.num_images:,} images",
        "time here": "not measured" if recipe.minutes is None else duration(60 * recipe.minutes),
        "a preview every": every,
        "disk": f"{recipe.disk_bytes / 2**20:,.0f} MiB",
    }
    table = [f"  {name:<16}{value}" for name, value in rows.items()]
    return [*table, "", *(wrapped(f"- {text}", "  ").strip() for text in recipe.expect)]

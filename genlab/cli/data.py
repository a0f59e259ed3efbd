"""``genlab data``: look at a data set, pack it into a zip, or encode it for latent diffusion."""

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.choices import ALPHAS, FITS
from genlab.cli.common import (
    ANY_PATH,
    FOLDER,
    Bars,
    Decorator,
    best_device,
    echo_json,
    json_option,
    progress,
)
from genlab.errors import DataError

if TYPE_CHECKING:
    from genlab.data.check.checks import Report
    from genlab.data.conform import Conform

MAX_CLASSES_SHOWN = 20
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}

size_option: Decorator = click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Height and width wanted, in pixels; default: as they are.",
)
fit_option: Decorator = click.option(
    "--fit",
    type=click.Choice(FITS),
    default="none",
    show_default=True,
    help="What to do with images of another size: refuse them; pad with black (larger ones shrink "
    "first); resize, whatever the shape; crop the centre.",
)
channels_option: Decorator = click.option(
    "--channels", type=click.Choice(["1", "3"]), help="Make all grey (1) or RGB (3)."
)
alpha_option: Decorator = click.option(
    "--alpha",
    type=click.Choice(ALPHAS),
    default="refuse",
    show_default=True,
    help="What lies behind transparent images.",
)
split_option: Decorator = click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Which part, where the data have several.",
)


def _workers_option(help_text: str) -> Decorator:
    return click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=lambda: min(8, os.cpu_count() or 1),
        show_default="one for each core, 8 at most",
        help=help_text,
    )


EPILOG = """\b
Examples:
  genlab data check my_images/ --size 32 --fit crop --grid look.png
  genlab data prepare my_images/ my_images.zip --size 32 --fit crop
  genlab data encode my_images.zip --autoencoder sd-vae/ -o latents/
  genlab presets recommend my_images.zip -o mine.yaml      # what to train on them here
  genlab train CONFIG data.path=my_images.zip              # or data.path=latents/"""


@click.group(epilog=EPILOG)
def command() -> None:
    """Check a data set, pack it into a zip, or encode it for latent diffusion.

    A data set is a folder with one folder of images for each class; a folder or zip of images with
    labels in a dataset.json, as EDM's; a folder with idx(.gz) files, as MNIST's; or an npz with
    images in arr_0 and labels in arr_1.
    """


@command.command(short_help="Say whether images can be trained on, and why not.")
@click.argument("path", type=ANY_PATH)
@size_option
@fit_option
@channels_option
@alpha_option
@split_option
@_workers_option("Threads that decode images.")
@click.option(
    "--grid",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw some images of each class.",
)
@json_option
def check(
    path: Path,
    size: int | None,
    fit: str,
    channels: str | None,
    alpha: str,
    split: str,
    workers: int,
    grid: Path | None,
    as_json: bool,
) -> int:
    """Read every image of PATH and say what stands in the way of training.

    The exit code is 2 if the data cannot be trained on with these settings, otherwise 0.
    """
    from genlab.data.check.checks import check as check_data
    from genlab.data.conform import OPTIONS, Conform

    conform = Conform(
        image_size=size,
        fit=fit,
        channels=int(channels) if channels else None,
        alpha=alpha,
        wording=OPTIONS,
    )
    with ExitStack() as stack:
        report = check_data(
            path,
            conform=conform,
            split=split,
            threads=workers,
            progress=partial(Bars(stack).advance, "reading"),
        )
    if as_json:
        echo_json(report.to_dict())
    else:
        _print_report(report)
    if grid is not None:
        _draw(path, split, conform, grid)
    return 0 if report.trainable else 2


def _draw(path: Path, split: str, conform: "Conform", file: Path) -> None:
    from genlab.data.check.contact_sheet import contact_sheet
    from genlab.data.sources.opening import open_source
    from genlab.data.writing.pictures import write_grid

    try:
        source = open_source(path, split)
    except DataError:
        click.echo(f"{file} is not drawn: the data cannot be opened", err=True)
        return
    write_grid(file, contact_sheet(source, conform))
    click.echo(f"drew {file}", err=True)


def _print_report(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    metadata = Table.grid(padding=(0, 2))
    for name, value in _metadata(report).items():
        metadata.add_row(Text(name, style="bold"), Text(value))
    console.print(Text(f"{report.path}: {report.kind}", style="bold"))
    console.print(metadata)
    for finding in report.findings:
        line = Text(f"{finding.level}: ", style=STYLES[finding.level])
        console.print(line.append(finding.message, style="default"))
    console.print(_verdict(report))


def _metadata(report: "Report") -> dict[str, str]:
    metadata = {"images": f"{report.num_images:,}"}
    for name, counts in (
        ("sizes", report.sizes),
        ("channels", report.modes),
        ("files", report.formats),
    ):
        if counts:
            metadata[name] = _counts(counts, 5)
    if report.classes is not None:
        metadata[f"{len(report.classes):,} classes"] = _counts(report.classes, MAX_CLASSES_SHOWN)
    return metadata


def _counts(counts: dict[str, int], most: int) -> str:
    parts = [f"{name} {count:,}" for name, count in list(counts.items())[:most]]
    more = f", ... ({len(counts) - most:,} more)" if len(counts) > most else ""
    return ", ".join(parts) + more


def _verdict(report: "Report") -> str:
    levels = [finding.level for finding in report.findings]
    if not report.trainable:
        errors = levels.count("error")
        return f"cannot be trained on like this: {errors} error{'s' * (errors > 1)}"
    warnings = levels.count("warning")
    return f"can be trained on{f', {warnings} warning' + 's' * (warnings > 1) if warnings else ''}"


@command.command(short_help="Pack images into a zip, all of one size.")
@click.argument("source", type=ANY_PATH)
@click.argument("dest", type=ANY_PATH)
@size_option
@fit_option
@channels_option
@alpha_option
@split_option
@click.option(
    "--encoding",
    type=click.Choice(["png", "webp"]),
    default="png",
    show_default=True,
    help="How images are stored, both without loss; webp is smaller but knows no grey.",
)
@_workers_option("Processes that decode and encode.")
@click.option("--skip-broken", is_flag=True, help="Leave images out that cannot be read.")
@click.option("--overwrite", is_flag=True, help="Replace DEST.")
@json_option
def prepare(
    source: Path,
    dest: Path,
    size: int | None,
    fit: str,
    channels: str | None,
    alpha: str,
    split: str,
    encoding: str,
    workers: int,
    skip_broken: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Pack the images of SOURCE into DEST, an EDM-style zip of one size and without loss.

    The same images give the same bytes, and DEST is there whole or not at all.
    """
    from genlab.data.conform import OPTIONS, Conform
    from genlab.data.prepare import prepare as pack
    from genlab.data.sources.opening import open_source

    conform = Conform(
        image_size=size,
        fit=fit,
        channels=int(channels) if channels else None,
        alpha=alpha,
        wording=OPTIONS,
    )
    opened = open_source(source, split)
    for finding in opened.findings:
        if finding.level == "warning":
            click.echo(f"warning: {finding.message}", err=True)
    with progress("packing", len(opened)) as bar:
        done = pack(
            opened,
            dest,
            conform=conform,
            encoding=encoding,
            workers=workers,
            skip_broken=skip_broken,
            overwrite=overwrite,
            progress=bar.advance,
        )
    for reason in done.skipped:
        click.echo(f"left out: {reason.partition(';')[0]}", err=True)
    size_bytes = done.path.stat().st_size
    metadata = {
        "path": str(done.path),
        "images": done.num_images,
        "image_shape": list(done.image_shape),
        "classes": done.num_classes,
        "bytes": size_bytes,
        "skipped": len(done.skipped),
    }
    if as_json:
        echo_json(metadata)
        return
    depth, height, width = done.image_shape
    colour = "grey" if depth == 1 else "RGB"
    classes = f"{done.num_classes:,} classes" if done.num_classes else "no labels"
    click.echo(
        f"wrote {dest}: {done.num_images:,} images, {width}x{height} {colour}, {classes}, "
        f"{size_bytes / 2**20:,.1f} MiB"
        + (f", {len(done.skipped):,} left out" if done.skipped else "")
    )


@command.command(short_help="Encode images once, to train on their latents.")
@click.argument("source", type=ANY_PATH)
@click.option(
    "--autoencoder",
    type=ANY_PATH,
    required=True,
    metavar="FOLDER",
    help="An AutoencoderKL or AutoencoderTiny of diffusers, or a model's folder that has one.",
)
@click.option("-o", "--out", type=FOLDER, required=True, help="The folder to write.")
@size_option
@fit_option
@channels_option
@alpha_option
@split_option
@click.option("--no-labels", is_flag=True, help="Leave the classes out.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Images at a time; it changes speed and memory, not the latents.",
)
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: the best there is.")
@click.option(
    "--overwrite", is_flag=True, help="Replace latents that were made with other settings."
)
@json_option
def encode(
    source: Path,
    autoencoder: Path,
    out: Path,
    size: int | None,
    fit: str,
    channels: str | None,
    alpha: str,
    split: str,
    no_labels: bool,
    batch_size: int,
    device: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Encode the images of SOURCE once, so that training on latents need not.

    Train on the result with data.path=OUT; what comes out carries the autoencoder and draws images.
    An interrupted run goes on where it stopped, and under accelerate launch processes share it.
    """
    from dataclasses import asdict, replace

    from genlab.checkpoints.autoencoders import read_autoencoder
    from genlab.data.conform import OPTIONS
    from genlab.data.dataset import ImageDataset
    from genlab.runs.encoding import encode_dataset
    from genlab.runs.processes import join

    options: dict[str, Any] = {
        "image_size": size,
        "channels": int(channels) if channels else None,
        "fit": fit,
        "alpha": alpha,
        "split": split,
    }
    wording = replace(OPTIONS, no_labels="--no-labels")
    dataset = ImageDataset(source, labels=not no_labels, wording=wording, **options)
    processes = join(device)
    model = read_autoencoder(autoencoder).to(processes.device or device or best_device())
    model.prepare()
    with progress("encoding", len(dataset)) as bar:
        metadata = encode_dataset(
            dataset,
            model,
            out,
            options=options,
            batch_size=batch_size,
            processes=processes,
            overwrite=overwrite,
            on_progress=bar.advance,
        )
    if processes.rank > 0:
        return
    if as_json:
        echo_json({"path": str(out), **asdict(metadata)})
        return
    shape = "x".join(map(str, metadata.latent_shape))
    click.echo(
        f"{out}: {metadata.num_images:,} latents of {shape}; train on them with data.path={out}"
    )

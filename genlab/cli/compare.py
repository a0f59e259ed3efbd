"""``genlab compare``: the pictures of several runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from genlab.cli.common import ANY_PATH

if TYPE_CHECKING:
    from genlab.data.writers import Pixels
    from genlab.eval.subject import Subject

EPILOG = """\b
Examples:
  genlab sample edm-fmnist --seeds 0-9 --labels balanced -o out/heun
  genlab sample edm-fmnist --seeds 0-9 --labels balanced -o out/euler sampler=euler
  genlab compare out/heun out/euler -o solvers.png

The rows bear the names of the folders. Where all runs drew the same classes in the same order,
their names stand above the columns: draw them with equal --seeds and --labels."""


@click.command("compare", epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=ANY_PATH)
@click.option(
    "-o",
    "--output",
    type=ANY_PATH,
    default="compare.png",
    show_default=True,
    help="The picture, a PNG.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Images of each run, the first ones.",
)
def command(runs: tuple[Path, ...], output: Path, count: int) -> None:
    """Lay the images of several runs out in one picture, a row for each.

    RUN is a folder that genlab sample wrote, or any folder, zip or npz of images.
    """
    from genlab.data import pictures
    from genlab.errors import ConfigError

    if output.suffix.lower() != ".png":
        raise ConfigError(f"-o {output}: the picture is a PNG, name it something.png")
    subjects = {_name(run, runs): _subject(run) for run in runs}
    rows = {name: _images(subject, count) for name, subject in subjects.items()}
    pictures.write_grid(output, pictures.rows(rows, _captions(list(subjects.values()), count)))
    click.echo(f"wrote {output}: {len(rows)} rows of {max(map(len, rows.values()))} images")


def _name(run: Path, runs: tuple[Path, ...]) -> str:
    """A folder's own name, or its whole path where two have the same."""
    names = [other.resolve().name for other in runs]
    name = run.resolve().name
    return name if names.count(name) == 1 else str(run)


def _subject(run: Path) -> "Subject":
    from genlab.errors import DataError
    from genlab.eval.subject import Subject

    if not run.exists():
        raise DataError(f"there are no images at {run}; draw some with 'genlab sample MODEL -o'")
    return Subject.of_folder(run)


def _images(subject: "Subject", count: int) -> "list[Pixels]":
    assert subject.images is not None
    drawn = subject.images.read(0, min(count, subject.images.count)).images
    return list(drawn.permute(0, 2, 3, 1).numpy())


def _captions(subjects: "list[Subject]", count: int) -> list[str]:
    """The classes of the columns, where all runs agree in them."""
    found = {tuple(_classes(subject)[:count]) for subject in subjects}
    return list(found.pop()) if len(found) == 1 else []


def _classes(subject: "Subject") -> list[str]:
    images = subject.images
    if images is None or images.labels is None:
        return []
    names = subject.manifest.get("model", {}).get("class_names") or images.class_names
    return [names[c] if names else f"class {c}" for c in images.labels.tolist()]

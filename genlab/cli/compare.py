"""``genlab compare``: the pictures of several runs, or of one model under several samplers."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import (
    ANY_PATH,
    FOLDER,
    autoencoder_option,
    device_option,
    dtype_option,
    progress,
)
from genlab.cli.completion import complete_models
from genlab.cli.sample import SamplingRun

if TYPE_CHECKING:
    from genlab.data.writing.writers import Pixels
    from genlab.eval.subject import Subject
    from genlab.generators.base import Generator

TILE = 96
"""Pixels of an image's shorter side, at least, where columns bear the settings of samplers."""

EPILOG = """\b
Examples:
  genlab compare edm-fmnist --sampler "heun steps=18" --sampler "unipc steps=6" -o solvers.png
  genlab compare dit-fmnist --seeds 0-5 --labels sneaker --sampler guidance=1 --sampler guidance=4
  genlab compare edm-fmnist --sampler solver.S_churn=0 --sampler solver.S_churn=30
\b
  genlab sample edm-fmnist --seeds 0-9 --labels balanced -o out/heun
  genlab sample edm-fmnist --seeds 0-9 --labels balanced -o out/euler sampler=euler
  genlab compare out/heun out/euler -o solvers.png

A SPEC names a preset or a solver ('genlab samplers'; solver:euler where both have the name), then
changes: KEY=VALUE below 'sampler', steps=N, guidance=S, stitch=MODEL:SHARE. What it leaves out is
the model's own. Its column says what differs, and how many network evaluations an image took. The
images stay in the cache ($GENLAB_HOME, or --cache): no column is drawn twice, and a stopped one
goes on.

Of runs, the rows bear the names of the folders. Where all drew the same classes in the same order,
their names stand above the columns: draw them with equal --seeds and --labels."""


@click.command("compare", epilog=EPILOG)
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    metavar="RUN... | MODEL",
    type=ANY_PATH,
    shell_complete=complete_models,
)
@click.option(
    "-s", "--sampler", "samplers", metavar="SPEC", multiple=True,
    help="A column of MODEL's images; give it several times.",
)  # fmt: skip
@click.option("--seeds", metavar="LIST", help="Rows, with --sampler. Default: 0-7.")
@click.option(
    "--labels", metavar="LIST", help="As of genlab sample, with --sampler. Default: balanced."
)
@click.option(
    "-o",
    "--output",
    type=ANY_PATH,
    default="compare.png",
    show_default=True,
    help="The picture, a PNG.",
)
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N",
    help="Images of each run, the first ones. Default: 10.",
)  # fmt: skip
@click.option(
    "--alpha",
    type=click.Choice(["refuse", "black", "white"]),
    help="What lies behind transparent images of a RUN. Default: refuse.",
)
@click.option("--cache", type=FOLDER, help="Where the images of --sampler are kept.")
@autoencoder_option
@device_option
@dtype_option
def command(
    runs: tuple[Path, ...],
    samplers: tuple[str, ...],
    output: Path,
    count: int | None,
    alpha: str | None,
    cache: Path | None,
    **flags: Any,
) -> None:
    """Lay images out in one picture: a row for each RUN, or a column for each sampler of a MODEL.

    RUN is a folder that genlab sample wrote, or any folder, zip or npz of images. With --sampler,
    MODEL draws the same seeds with each sampler, so that a row shows what the settings do.
    """
    from genlab.data.writing import pictures
    from genlab.data.writing.pictures import MIN_TILE
    from genlab.errors import ConfigError

    if output.suffix.lower() != ".png":
        raise ConfigError(f"-o {output}: the picture is a PNG, name it something.png")
    flags = {key: value for key, value in flags.items() if value is not None}
    if samplers:
        if len(runs) > 1:
            raise click.UsageError(f"--sampler draws with one model, got {len(runs)}")
        if count is not None:
            raise click.UsageError("--count is of runs; with --sampler, --seeds says how many")
        if alpha is not None:
            raise click.UsageError("--alpha is of runs; a model draws no transparent images")
        rows, captions = _columns(str(runs[0]), samplers, flags, cache)
    else:
        if unused := [*flags, *(["cache"] if cache else [])]:
            raise click.UsageError(f"--{unused[0]} has no effect without --sampler; leave it out")
        rows, captions = _of_runs(runs, 10 if count is None else count, alpha or "refuse")
    pictures.write_grid(output, pictures.rows(rows, captions, TILE if samplers else MIN_TILE))
    click.echo(f"wrote {output}: {len(rows)} rows of {max(map(len, rows.values()))} images")


def _of_runs(
    runs: tuple[Path, ...], count: int, alpha: str
) -> "tuple[dict[str, list[Pixels]], Sequence[str]]":
    """A row for each run, and what stands above the columns."""
    subjects = {_name(run, runs): _subject(run, alpha) for run in runs}
    rows = {name: _images(subject, count) for name, subject in subjects.items()}
    return rows, _captions(list(subjects.values()), count)


def _columns(
    model: str, specs: Sequence[str], flags: Mapping[str, Any], cache: Path | None
) -> "tuple[dict[str, list[Pixels]], Sequence[str]]":
    """A row for each seed, and what stands above the columns: what tells the samplers apart."""
    from genlab import load
    from genlab.runs.ledger import SampleLedger

    defaults = {"model": model, "seeds": "0-7", "labels": "balanced", "grid": False}
    generator = load(model, autoencoder=flags.get("autoencoder"))
    columns = [_Column.parse(spec) for spec in specs]
    runs = [column.run({**defaults, **flags}, generator) for column in columns]
    described = [generator.describe_sampler(run.sampler) for run in runs]
    shown, evaluations = [], []
    with progress("drawing", len(runs)) as bar:
        for run in runs:
            folder = _cached(run, cache)
            run.config.output = str(folder)
            run.draw(overwrite=False, quiet=True)
            bar.advance(1)
            shown.append(list(SampleLedger(folder, run.plan).first_pictures(len(run.plan.seeds))))
            evaluations.append(json.loads((folder / "manifest.json").read_text())["spent"]["nfe"])
    titles = [runs[0].kind.title(title) for title in _titles(described, specs)]
    captions = [f"{title}\nNFE {nfe}" for title, nfe in zip(titles, evaluations, strict=True)]
    plan = runs[0].plan
    labels: Sequence[Any] = plan.labels or [None] * len(plan.seeds)
    names = [
        _row(seed, label, plan.class_names) for seed, label in zip(plan.seeds, labels, strict=True)
    ]
    rows = {name: [images[i] for images in shown] for i, name in enumerate(names)}
    return rows, captions


@dataclass(frozen=True, kw_only=True)
class _Column:
    """What a SPEC says: settings below ``sampler``, and those that have short names."""

    overrides: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    stitch: tuple[str, ...] = ()

    @classmethod
    def parse(cls, spec: str) -> "_Column":
        """Read a SPEC.

        Raises:
            UsageError: it is none; says what one looks like.
            UnknownNameError: there is no preset and no solver of a name.
        """
        try:
            words = shlex.split(spec)
        except ValueError as error:
            raise click.UsageError(f"--sampler {spec!r}: {error}") from error
        overrides: list[str] = []
        short: dict[str, Any] = {}
        stitch: list[str] = []
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                overrides.append(_named(word))
            elif key in ("steps", "guidance"):
                kind: Any = click.IntRange(1) if key == "steps" else click.FLOAT
                try:
                    short[key] = kind.convert(value, None, None)
                except click.BadParameter as error:
                    raise click.UsageError(f"--sampler {spec!r}: {key}: {error.message}") from error
            elif key == "stitch":
                stitch.append(value)
            elif key == "sampler" or key.startswith("sampler."):
                overrides.append(word)
            else:
                overrides.append(f"sampler.{word}")
        # A preset takes the place of the whole sampler, so that it comes before changes.
        overrides.sort(key=lambda override: not override.startswith("sampler="))
        return cls(overrides=tuple(overrides), stitch=tuple(stitch), **short)

    def run(self, flags: Mapping[str, Any], generator: "Generator") -> SamplingRun:
        """The sampling run of this column."""
        return SamplingRun(
            None,
            self.overrides,
            flags,
            self.steps,
            self.guidance,
            self.stitch,
            generator=generator,
        )


def _named(word: str) -> str:
    """A preset or a solver as a setting; the preset where both have the name."""
    from genlab.config import preset_names
    from genlab.errors import UnknownNameError, nearest
    from genlab.samplers.registries import SOLVERS

    kind, _, name = word.rpartition(":")
    presets = preset_names("sampler")
    if kind in ("", "preset") and name in presets:
        return f"sampler={name}"
    if kind in ("", "solver") and name in SOLVERS:
        return f"sampler.solver.name={name}"
    names = sorted({*(presets if kind != "solver" else ()), *(SOLVERS if kind != "preset" else ())})
    raise UnknownNameError(
        f"--sampler {word}: there is no preset and no solver of this name; {nearest(name, names)}"
    )


def _cached(run: SamplingRun, cache: Path | None) -> Path:
    """A folder of the run's own: what decides its images decides its name."""
    from genlab.checkpoints.zoo.catalogue import home

    record = json.dumps(run.plan.record(), sort_keys=True)
    digest = hashlib.sha256(record.encode()).hexdigest()[:16]
    return (cache or home() / "compare") / f"{run.name}-{digest}"


def _titles(described: Sequence[str], specs: Sequence[str]) -> list[str]:
    """What tells samplers apart, without what all of them share; else the words of the user."""
    parts = [_parts(text) for text in described]
    shared = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    titles = [", ".join(part for part in each if part not in shared) for each in parts]
    if len(set(titles)) == len(titles) and all(titles):
        return titles
    return [spec.strip() or "the model's own" for spec in specs]


def _parts(text: str) -> list[str]:
    """A description's parts: split at commas that no bracket holds."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _row(seed: int, label: int | None, class_names: Sequence[str] | None) -> str:
    name = None if label is None else class_names[label] if class_names else f"class {label}"
    return f"seed {seed}" if name is None else f"{name}, seed {seed}"


def _name(run: Path, runs: tuple[Path, ...]) -> str:
    """A folder's own name, or its whole path where two have the same."""
    names = [other.resolve().name for other in runs]
    name = run.resolve().name
    return name if names.count(name) == 1 else str(run)


def _subject(run: Path, alpha: str = "refuse") -> "Subject":
    from genlab.data.conform import Wording
    from genlab.errors import DataError
    from genlab.eval.subject import Subject

    if not run.exists():
        raise DataError(
            f"there are no images at {run}; draw some with 'genlab sample MODEL -o', or compare "
            "the samplers of a model: --sampler SPEC"
        )
    return Subject.of_folder(run, alpha=alpha, wording=Wording("--", has_fit=False))


def _images(subject: "Subject", count: int) -> "list[Pixels]":
    assert subject.images is not None
    drawn = subject.images.read(0, min(count, subject.images.count)).images
    return list(drawn.permute(0, 2, 3, 1).numpy())


def _captions(subjects: "list[Subject]", count: int) -> list[str]:
    """The classes of the columns, where all runs agree in them."""
    captions = {tuple(_classes(subject)[:count]) for subject in subjects}
    return list(captions.pop()) if len(captions) == 1 else []


def _classes(subject: "Subject") -> list[str]:
    images = subject.images
    if images is None or images.labels is None:
        return []
    names = subject.manifest.get("model", {}).get("class_names") or images.class_names
    return [names[c] if names else f"class {c}" for c in images.labels.tolist()]

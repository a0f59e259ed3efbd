"""``genlab train``: train a generator or a classifier, resume a run, export its model."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import (
    ANY_PATH,
    DTYPE,
    FOLDER,
    config_option,
    device_option,
    dry_run_option,
    duration,
    echo_settings,
    plain_warnings,
    progress,
)
from genlab.cli.completion import complete_training
from genlab.cli.groups import DefaultGroup

if TYPE_CHECKING:  # torch is imported only when training starts: --help answers at once
    from genlab.training.config import TrainConfig
    from genlab.training.export import Choice
    from genlab.training.loop.loop import Outcome, Trainer
    from genlab.training.loop.state import Progress
    from genlab.training.run import Run


EPILOG = """\b
Examples:
  genlab train edm-fmnist data.path=fashion-mnist/         # CONFIG: a shipped one, or a YAML file
  genlab train my.yaml batch_size=256 optimizer.lr=2e-3 -o runs/mine
  accelerate launch --multi_gpu -m genlab train edm-cifar10 data.path=cifar10.zip
  genlab train export runs/mine -o my-model/ --ema sigma_rel=0.08
  genlab train export runs/my-gan -o my-discriminator/ --discriminator

\b
The same command again goes on where the run stopped, even after kill -9. Ctrl-C and SIGTERM save
the state and stop with exit code 130 and 143. 'genlab train export --help' tells about weights."""


@click.command("run", epilog=EPILOG, short_help="Train by CONFIG ('run' may be left out).")
@click.argument(
    "arguments", nargs=-1, metavar="CONFIG [KEY=VALUE]...", shell_complete=complete_training
)
@config_option
@click.option("-o", "--output", type=FOLDER, help="The run's folder. Default: runs/CONFIG.")
@device_option
@dry_run_option
def run(
    arguments: tuple[str, ...],
    config: str | None,
    output: Path | None,
    device: str | None,
    dry_run: bool,
) -> None:
    """Train by CONFIG, or go on with the run in its folder; 'run' may be left out."""
    from genlab.config import load
    from genlab.training.config import TrainConfig

    spec, overrides = _split(arguments, config)
    settings = load(TrainConfig, spec, "train", overrides)
    folder = output or Path("runs") / Path(spec).stem
    if dry_run:
        own = Path(spec).is_file() or any(text.startswith("data.path=") for text in overrides)
        _rehearse(settings, folder, device, data_is_named=own)
        return
    _train(settings, folder, device)


@click.group(
    "train",
    cls=DefaultGroup,
    default=run,
    listed=True,
    subcommand_metavar="CONFIG [KEY=VALUE]... | COMMAND",
    epilog=EPILOG,
)
def command() -> None:
    """Train a generator or a classifier, or go on with a run.

    CONFIG is a configuration that 'genlab presets' lists, or a YAML file; KEY=VALUE changes one of
    its settings, and 'genlab train CONFIG --dry-run' prints them all. 'genlab train run --help'
    tells the options.
    """


def _rehearse(
    settings: "TrainConfig", folder: Path, device: str | None, *, data_is_named: bool
) -> None:
    """Check the settings as the run would, and print them."""
    from genlab.training.rehearsal import rehearse
    from genlab.training.settings import left_out

    exists = Path(settings.data.path).expanduser().exists()
    with plain_warnings():
        rehearse(settings, folder, device, with_data=exists or data_is_named)
    if not (exists or data_is_named):
        click.echo(
            f"genlab: there is nothing at {settings.data.path}, the data.path of the "
            "configuration, so what follows from the images was not checked",
            err=True,
        )
    echo_settings(settings, left_out(settings))


def _split(arguments: tuple[str, ...], config: str | None) -> tuple[str, tuple[str, ...]]:
    """The configuration (from ``--config``, or the first argument) and its overrides."""
    spec, overrides = config, arguments
    if spec is None and arguments and "=" not in arguments[0]:
        spec, overrides = arguments[0], arguments[1:]
    if spec is None:
        raise click.UsageError("which CONFIG? a YAML file, or one that 'genlab presets' lists")
    for text in overrides:
        if "=" not in text:
            raise click.UsageError(f"{text!r} is not a setting: write KEY=VALUE")
    return spec, overrides


def _train(settings: "TrainConfig", folder: Path, device: str | None) -> None:
    from genlab.training.loop.loop import Trainer

    lines: list[dict[str, Any]] = []
    trainer = Trainer(settings, folder, device=device, watch=lines.append)
    outcome = follow(trainer, lines)
    if trainer.is_main:
        done = f"{outcome.progress.images:,} images"
        if outcome.signal is None:
            loss = "" if math.isnan(outcome.loss) else f", loss {outcome.loss:.4f}"
            click.echo(f"{folder}: {done}{loss}")
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)


def follow(trainer: "Trainer", lines: list[dict[str, Any]]) -> "Outcome":
    """Train to the end or to a signal, and show the progress on stderr.

    Args:
        trainer: ready to begin.
        lines: what its ``watch`` appends to.
    """
    from genlab.training.machine import slow_precision

    settings, folder = trainer.config, trainer.run.folder
    images, total = trainer.progress.images, settings.num_steps * settings.batch_size
    if trainer.is_main:
        verb = "going on with" if images else "training into"
        click.echo(f"{verb} {folder} at image {images:,} of {total:,}", err=True)
        if (slow := slow_precision(settings.mixed_precision, trainer.device)) is not None:
            click.echo(f"genlab: {slow}", err=True)
    with progress("training", total, images, lines=False) as bar:

        def show(now: "Progress") -> None:
            bar.advance(settings.batch_size)
            if not lines:
                return
            line = lines.pop()
            text = f"loss {line['loss']:.4f}, {line['images_per_second']:.0f} images/s"
            for name, score in trainer.recorder.scores.items():
                text += f", {name} {line[name]:{score.form}}" if name in line else ""
            bar.describe(text)
            if not sys.stderr.isatty():
                rest = _rest(now.images, total, line["images_per_second"])
                click.echo(f"{now.images / 1000:.1f} kimg, {text}, {rest}", err=True)

        with plain_warnings():
            outcome = trainer.train(show)
    if trainer.is_main and outcome.early_stop is not None:
        click.echo(f"genlab: {outcome.early_stop.describe()}", err=True)
    if trainer.is_main and outcome.signal is not None:
        done = f"{outcome.progress.images:,} images"
        again = "the state is saved; the same command goes on"
        click.echo(f"genlab: stopped after {done}, {again}", err=True)
    return outcome


def _rest(images: int, total: int, rate: float) -> str:
    """How far it is: the share of all images, and how long the rest takes."""
    left = f", {duration((total - images) / rate)} left" if rate > 0 and total > images else ""
    return f"{images / max(1, total):.0%} of {total / 1000:.1f} kimg{left}"


@command.command("export", short_help="Write what a run has trained as a model's folder.")
@click.argument("run_folder", metavar="RUN", type=ANY_PATH)
@click.option("-o", "--output", type=FOLDER, required=True, help="The folder to write.")
@click.option(
    "--ema",
    default="halflife",
    show_default=True,
    metavar="AVERAGE",
    help="Which weights: halflife, the running average that previews show; none, the last ones as "
    "they are; sigma_rel=0.08, an average of that width (EDM2), made of the run's snapshots.",
)
@click.option(
    "--images",
    type=int,
    metavar="N",
    help="The weights after N images, where a snapshot has them; default: the latest, or with "
    "stopping.metric the best.",
)
@click.option(
    "--posthoc",
    metavar="RULE",
    help="How snapshots make a sigma_rel: constrained (the default), the nearest average of "
    "coefficients that sum to 1; edm2, NVIDIA's, the nearest of all over the sum.",
)
@click.option("--dtype", type=DTYPE, help="What the weights are stored in; default: float32.")
@click.option(
    "--discriminator",
    is_flag=True,
    help="Write a GAN's discriminator, calibrated against the generator that --ema names, for "
    "sampler.rejection.",
)
@click.option(
    "--calibration-images",
    type=click.IntRange(0),
    metavar="N",
    help="Training images that it is calibrated by; default: 4096. 0 leaves that to 'genlab "
    "calibrate', which takes other images.",
)
@click.option(
    "--fact",
    "facts",
    multiple=True,
    metavar="NAME=TEXT",
    help="One more row of the model card's table, for instance FID=4.2; repeat it for more.",
)
def export(
    run_folder: Path,
    output: Path,
    ema: str,
    images: int | None,
    posthoc: str | None,
    dtype: str | None,
    discriminator: bool,
    calibration_images: int | None,
    facts: tuple[str, ...],
) -> None:
    """Write what RUN has trained as a folder, with a model card.

    RUN is the folder of a run, finished or not. What is written no longer needs it: give the new
    folder to 'genlab sample' and the other commands.
    """
    from genlab.finetuning.run import open_run
    from genlab.training.export import Choice, export

    for fact in facts:
        if "=" not in fact:
            raise click.UsageError(f"--fact {fact!r}: write NAME=TEXT")
    rows = {name: text for name, _, text in (fact.partition("=") for fact in facts)}
    choice = Choice.parse(ema, images, posthoc)
    if calibration_images is not None and not discriminator:
        raise click.UsageError("--calibration-images goes with --discriminator")
    if discriminator:
        _export_discriminator(open_run(run_folder), output, choice, calibration_images, dtype, rows)
        return
    chosen = export(open_run(run_folder), output, choice, dtype, rows)
    error = f"; its profile is within {chosen.error:.1%} of the wanted one" if chosen.error else ""
    click.echo(f"{output}: {choice} after {chosen.images:,} images{error}")


def _export_discriminator(
    run: "Run",
    output: Path,
    choice: "Choice",
    calibration_images: int | None,
    dtype: str | None,
    rows: dict[str, str],
) -> None:
    from genlab.training.objectives.gan.export import CALIBRATION_IMAGES, export_discriminator

    count = CALIBRATION_IMAGES if calibration_images is None else calibration_images
    made = export_discriminator(run, output, choice, count, dtype, rows)
    note = "not calibrated" if made.calibration is None else made.calibration.describe()
    click.echo(f"{output}: discriminator, {note}")

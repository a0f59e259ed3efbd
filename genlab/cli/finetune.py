"""``genlab finetune``: adapt a trained generator to images of one's own."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import (
    FOLDER,
    config_option,
    device_option,
    dry_run_option,
    echo_json,
    json_option,
    split_arguments,
)
from genlab.cli.completion import complete_finetuning, complete_methods

if TYPE_CHECKING:  # torch is imported only when training starts: --help answers at once
    from genlab.finetuning.bases import Base
    from genlab.finetuning.config import FinetuneConfig
    from genlab.finetuning.costs import DryRun
    from genlab.finetuning.trainer import FinetuneTrainer
    from genlab.training.loop.evaluation import Evaluation

EXAMPLE_DATA = "my_images/"

EPILOG = """\b
Examples:
  genlab finetune dit-fmnist --data my_images/ -o my-model/ data.fit=crop data.channels=1
  genlab finetune dit-fmnist --method lora --data my_images.zip -o my-lora/ method.r=16
  genlab finetune dit-fmnist --data my_images/ classes.initial=nearest duration_kimg=16
  genlab finetune dit-fmnist --method bitfit --num-classes 3 --dry-run --json
  genlab finetune dit-fmnist --data train.zip validation.path=test.zip --score cnn-fmnist \\
    'stopping.metric=fd[cnn-fmnist]'
  accelerate launch --multi_gpu -m genlab finetune MODEL --data latents/ mixed_precision=bf16
  genlab sample my-model/ --seeds 0-63 -o samples/         # the adapter, on its base
  genlab adapter merge my-model/ -o merged/                # one plain model, nothing beside it

\b
Methods (each is a preset, too: 'genlab presets show finetune/diffit'):
  diffit       biases, normalisations, class table, a factor a channel; the first to try
  bitfit       biases and class table
  norm         normalisations and class table
  lora         thin matrices beside weights, by peft; its file loads in peft
  peft         any other method of the library peft: method.config.peft_type=LOHA ...
  adapter      a small bottleneck beside every block
  vpt          learned tokens before those of the image
  class-table  the class table alone
  last         the output layer, and method.blocks=N of the last blocks
  full         everything; for thousands of images

\b
Images: a folder with one folder for each class (their names are the classes), a zip, an npz, a
folder with idx files, or latents of 'genlab data encode'. Other sizes and colours are refused until
data.fit=crop (pad, resize) and data.channels=1 (3) say how to convert them.

The folder holds the adapter from its first snapshot on; previews/ shows fixed seeds before the
first step, in between and at the end. The same command again goes on where the run stopped, even
after kill -9. Ctrl-C and SIGTERM save the state and stop with exit code 130 and 143."""


@click.command("finetune", epilog=EPILOG)
@click.argument(
    "arguments", nargs=-1, metavar="[MODEL] [KEY=VALUE]...", shell_complete=complete_finetuning
)
@click.option(
    "--method",
    metavar="NAME",
    shell_complete=complete_methods,
    help="Fine-tuning method; default: diffit. Its preset sets the learning rate.",
)
@click.option("--data", metavar="PATH", help="The images (data.path).")
@config_option
@click.option("-o", "--output", type=FOLDER, help="The run's folder. Default: runs/MODEL-METHOD.")
@click.option(
    "--num-classes",
    type=click.IntRange(0),
    metavar="N",
    help="How many classes the images must have; with --dry-run, how many to count with.",
)
@click.option(
    "--resolution",
    type=click.IntRange(1),
    metavar="SIZE",
    help="Bring the model to images of this height and width first (DiT, SiT).",
)
@click.option(
    "--forget",
    metavar="CLASSES",
    help="Classes of the model to forget, separated by commas; the images are of the others. "
    "'genlab forgetting' measures what is left of them.",
)
@click.option(
    "--score",
    metavar="EXTRACTOR",
    help="Draw samples each time snapshots are stored and score them by fd[EXTRACTOR], precision, "
    "recall and nearest training images; against validation images where there are some.",
)
@click.option(
    "--score-images",
    type=click.IntRange(4),
    default=500,
    show_default=True,
    metavar="N",
    help="How many samples --score draws.",
)
@device_option
@dry_run_option
@json_option
def command(
    arguments: tuple[str, ...],
    method: str | None,
    data: str | None,
    config: str | None,
    output: Path | None,
    num_classes: int | None,
    resolution: int | None,
    forget: str | None,
    score: str | None,
    score_images: int,
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Adapt a trained generator to your own images, by training a small part of it.

    MODEL is a bundled model, one of the zoo, or a path. KEY=VALUE changes a setting; --dry-run
    prints them all. What is written is an adapter: the part that was trained, and the name of the
    model that it belongs to. Without MODEL the run in the folder of -o goes on.
    """
    model, overrides = split_arguments(arguments)
    options = {
        "base": model,
        "method.name": method,
        "data.path": data or (EXAMPLE_DATA if dry_run else None),
        "classes.number": num_classes,
        "resolution": resolution,
        "forget.classes": None if forget is None else json.dumps(forget.split(",")),
    }
    if data is None and any(text.startswith("data.path=") for text in overrides):
        options["data.path"] = None
    from_options = [f"{key}={value}" for key, value in options.items() if value is not None]
    settings = _settings(config, output, model, [*from_options, *overrides])
    if dry_run:
        _dry_run(settings, as_json, has_data=settings.data.path != EXAMPLE_DATA)
        return
    scores = [] if score is None else [_scores(settings, score, score_images)]
    _finetune(settings, output or _default_folder(settings), device, as_json, scores)


def _settings(
    config: str | None, output: Path | None, model: str | None, overrides: Sequence[str]
) -> "FinetuneConfig":
    """The merged configuration: a file, the run's own, or the preset of the method."""
    from genlab.config import load, preset_names
    from genlab.finetuning.config import FinetuneConfig

    own = None if output is None else output / "config.yaml"
    if config is None and model is None and own is not None and own.is_file():
        config = str(own)
    if config is None:
        if not any(text.startswith("base=") for text in overrides):
            raise click.UsageError("which MODEL? a bundled one such as dit-fmnist, or a path")
        name = _method_in(overrides) or "diffit"
        config = name if name in preset_names("finetune") else None
    return load(FinetuneConfig, config, "finetune", overrides)


def _method_in(overrides: Sequence[str]) -> str | None:
    """The last method that settings name."""
    named = [
        text.partition("=")[2] for text in overrides if text.startswith(("method=", "method.name="))
    ]
    return named[-1] if named else None


def _default_folder(settings: "FinetuneConfig") -> Path:
    return Path("runs") / f"{Path(settings.base).stem}-{settings.method['name']}"


def _dry_run(settings: "FinetuneConfig", as_json: bool, *, has_data: bool) -> None:
    """Print the settings and what would train; with data, after looking at the images."""
    from genlab.config import to_yaml

    report = _report_of(settings, has_data=has_data)
    if as_json:
        echo_json(report.to_json())
        return
    click.echo(to_yaml(settings), nl=False)
    click.echo(report.table(), err=True)


def _report_of(settings: "FinetuneConfig", *, has_data: bool) -> "DryRun":
    """Without data the base's configuration is enough; with data all that can be wrong is found."""
    from genlab.checkpoints.loading import load
    from genlab.finetuning.bases import base_of, check_has_weights, resolve_base
    from genlab.finetuning.images import conform_to
    from genlab.finetuning.objective import FinetuneObjective
    from genlab.training.loop.batches import Batches

    if not has_data:
        if settings.forget.classes:  # what they are called, only the base itself tells
            FinetuneObjective(settings, load(settings.base))
        number, size = settings.classes.number, settings.resolution
        return _costs(settings, resolve_base(settings.base, num_classes=number, resolution=size))
    check_has_weights(settings.base)
    objective = FinetuneObjective(settings, load(settings.base))
    data, _ = conform_to(settings.data, objective.base, settings.base)
    objective.build({}, Batches(data, settings.seed).metadata)
    return _costs(settings, base_of(settings.base, objective.start))


def _costs(settings: "FinetuneConfig", base: "Base", processes: int = 1) -> "DryRun":
    from genlab.finetuning.costs import dry_run_report

    return dry_run_report(
        base,
        settings.method,
        batch_size=settings.batch_size // processes,
        gradient_accumulation=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        mixed_precision=settings.mixed_precision.value,
        averages=1 + len(settings.ema.sigma_rels),
    )


def _scores(settings: "FinetuneConfig", extractor: str, count: int) -> "Evaluation":
    """What scores samples against the validation images, or else those in training."""
    from dataclasses import replace

    from genlab.eval.extractors.base import build_extractor
    from genlab.eval.in_training import SampleScores

    build_extractor(extractor)  # an unknown name is refused before anything is computed
    data, held_out = settings.data, settings.validation
    path, split = held_out.path or data.path, held_out.split or data.split
    reference = replace(data, path=path, split=split)
    return SampleScores(extractor=extractor, reference=reference, training=data, count=count)


def _finetune(
    settings: "FinetuneConfig",
    folder: Path,
    device: str | None,
    as_json: bool,
    evaluations: Sequence["Evaluation"] = (),
) -> None:
    from genlab.cli.train import follow
    from genlab.finetuning.trainer import FinetuneTrainer

    lines: list[dict[str, Any]] = []
    trainer = FinetuneTrainer(
        settings, folder, device=device, watch=lines.append, evaluations=evaluations
    )
    report = _show(trainer)
    outcome = follow(trainer, lines)
    early = outcome.early_stop
    if trainer.is_main and as_json:
        echo_json(
            {
                "folder": folder,
                **report.to_json(),
                "images": outcome.progress.images,
                "steps": outcome.progress.step,
                "loss": None if math.isnan(outcome.loss) else outcome.loss,
                "signal": outcome.signal,
                "early_stop": None if early is None else early.describe(),
            }
        )
    elif trainer.is_main and outcome.signal is None:
        loss = "" if math.isnan(outcome.loss) else f", loss {outcome.loss:.4f}"
        click.echo(f"{folder}: {outcome.progress.images:,} images{loss}")
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)


def _show(trainer: "FinetuneTrainer") -> "DryRun":
    """Say on stderr what will train, and what is done to images and classes."""
    from genlab.finetuning.bases import base_of
    from genlab.finetuning.objective import describe_method, describe_origins

    config, objective = trainer.config, trainer.objective
    report = _costs(config, base_of(config.base, objective.start), trainer.share.processes)
    rate = config.optimizer.lr
    head = f"{config.base} by {describe_method(objective.method)}, learning rate {rate:g}"
    lines = [f"{head}, {config.num_steps:,} steps of {config.batch_size} images", report.table()]
    if trainer.conversion.changes:
        lines.append(f"images: {trainer.conversion.describe()}")
    if objective.origins:
        lines.append(f"new classes: {describe_origins(objective.origins)}")
    lines += [f"{name.lower()}: {text}" for name, text in objective.variance().items()]
    for line in lines:
        if trainer.is_main:
            click.echo(line, err=True)
    return report

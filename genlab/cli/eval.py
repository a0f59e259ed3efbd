"""``genlab eval``: score a model or a set of images; ``genlab eval reference``: the real ones."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import (
    ANY_PATH,
    FOLDER,
    Bars,
    Decorator,
    adapter_option,
    autoencoder_option,
    best_device,
    check_model,
    device_option,
    dry_run_option,
    dtype_option,
    echo_json,
    echo_settings,
    json_option,
    plain_warnings,
    refuse_duplicates,
    split_arguments,
    stitch_option,
)
from genlab.cli.completion import complete_sampling
from genlab.cli.data import alpha_option, fit_option
from genlab.cli.groups import DefaultGroup

if TYPE_CHECKING:  # torch is imported only when something is scored: --help answers at once
    from genlab.eval.config import EvalConfig
    from genlab.eval.leaderboard.records import Record
    from genlab.eval.subject import Subject
    from genlab.runs.processes import Processes

EPILOG = """\b
Examples:
  genlab eval edm-fmnist --protocol offline-2k             # nothing to fetch, a few minutes
  genlab eval out/ --reference cifar10.zip --dataset cifar10 --metrics fid,is
  genlab eval my-model/ --protocol edm-50k --reference cifar10-32x32.npz
  genlab eval dit-fmnist --adapter my-adapter/ --reference photos/ --metrics fd
  genlab eval my-dit/ --autoencoder sd-vae/ --reference photos/ --metrics fd
  genlab eval edm-fmnist --protocol offline-2k --steps 6 --name edm-fmnist-6-steps
  genlab eval dit-fmnist --protocol offline-2k --stitch dit-fmnist-s:0.4 --name dit-stitched
  accelerate launch --multi_gpu -m genlab eval my-model/ --protocol quick-5k --reference data.zip
  genlab eval reference data.zip -o reference.npz --layout edm
  genlab leaderboard show

Protocols (genlab presets list eval): adm-50k, edm-50k, quick-5k, offline-2k. Metrics: fd (fid), sfd
(sfid), cs (is), kd (kid), pr, dc (both: prdc), vendi, similarity, fd-infinity, nearest,
consistency, cas, bpd. The official names in brackets belong to the official Inception network; with
any other extractor a score carries the extractor's name: fd[cnn-fmnist].

The record goes into ./leaderboard, one file a record; its protocol card says how the score was
made. A run that was stopped, even killed, goes on where it was when the same command is given
again."""


def _after(function: Any, *options: Decorator) -> Any:
    for option in reversed(options):
        function = option(function)
    return function


def protocol_options(function: Any) -> Any:
    """Options of every command that scores: what is measured, how, and on what machine."""
    return _after(
        function,
        click.option(
            "--protocol",
            metavar="SPEC",
            help="A frozen protocol, or a YAML file ('genlab presets').",
        ),
        click.option(
            "--reference", metavar="WHAT", help="train, test, a file of statistics, or images."
        ),
        click.option(
            "--metrics", metavar="LIST", multiple=True, help="For instance fd,cs,kd,prdc."
        ),
        click.option("--extractor", metavar="NAME", help="The feature extractor."),
        click.option("--weights", metavar="FILE", help="A local file of the extractor's weights."),
        click.option(
            "--dataset", metavar="NAME", help="What the model generates: fmnist, cifar10, ..."
        ),
        click.option("--count", type=click.IntRange(2), metavar="N", help="Images to draw."),
        click.option("--repeats", type=click.IntRange(1), metavar="N", help="Independent draws."),
        click.option("--labels", type=click.Choice(["random", "balanced"])),
        click.option("--steps", type=click.IntRange(1), metavar="N", help="Solver steps."),
        click.option(
            "--guidance", type=float, metavar="S", help="Classifier-free guidance; 1 is off."
        ),
        click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images at a time."),
        device_option,
        dtype_option,
        click.option(
            "--compile/--no-compile", "compile_", default=None, help="Compile the network first."
        ),
    )


def settings_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of `protocol_options`, as fields of the configuration."""
    chosen = {key.rstrip("_"): value for key, value in flags.items() if value not in (None, ())}
    if "metrics" in chosen:
        chosen["metrics"] = ",".join(chosen["metrics"]).split(",")
    return chosen


@click.command("eval", epilog=EPILOG)
@click.argument(
    "arguments", nargs=-1, metavar="SOURCE [KEY=VALUE]...", shell_complete=complete_sampling
)
@protocol_options
@adapter_option
@autoencoder_option
@stitch_option
@click.option("--name", metavar="NAME", help="How the leaderboard calls the model.")
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    default=Path("leaderboard"),
    show_default=True,
    help="Folder of records.",
)
@click.option(
    "--pictures", type=FOLDER, help="Folder for nearest.png: samples beside training images."
)
@click.option("--no-record", is_flag=True, help="Only print the scores.")
@dry_run_option
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def run(
    arguments: tuple[str, ...],
    protocol: str | None,
    steps: int | None,
    guidance: float | None,
    adapter: str | None,
    autoencoder: str | None,
    stitch: tuple[str, ...],
    name: str | None,
    output: Path,
    pictures: Path | None,
    no_record: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Score a model or a set of images.

    SOURCE is a model (bundled, of the zoo, a folder, an adapter, an official file) or images (a
    folder that genlab sample wrote, any folder of images, a zip, an npz file). KEY=VALUE changes
    any setting; --dry-run prints them all. 'genlab eval reference --help' tells about statistics of
    real images.
    """
    source, overrides = split_arguments(arguments)
    if source is None:
        raise click.UsageError("what is to be scored? name a model or a folder of images")
    check_model(source)
    from genlab.eval.leaderboard.records import to_json, write_record
    from genlab.eval.prepare import merge_settings
    from genlab.files import check_writable
    from genlab.runs.processes import join

    chosen = settings_of(flags)
    refuse_duplicates(overrides, chosen)
    config = merge_settings(protocol, overrides, chosen)
    processes = join(config.device)

    def with_own(sampler: Mapping[str, Any]) -> "EvalConfig":
        return merge_settings(protocol, overrides, chosen, sampler)

    subject, config = _subject(
        source, config, with_own, processes, name, steps, guidance, stitch, adapter, autoencoder
    )
    if dry_run:
        left_out = {} if subject.sampler is None else subject.sampler.left_out()
        echo_settings(config, {f"sampler.{key}": value for key, value in left_out.items()})
        return
    if not no_record:
        check_writable(output)
    record = _evaluate(subject, config, processes, quiet, pictures)
    if record is None:
        return
    # The scores come first: a full disk must not swallow them.
    if as_json:
        echo_json(to_json(record))
    else:
        click.echo(_summary(record))
    if not no_record:
        path = write_record(output, record)
        click.echo(f"record: {path}", err=as_json)


def _subject(
    source: str,
    config: "EvalConfig",
    with_own: "Callable[[Mapping[str, Any]], EvalConfig]",
    processes: "Processes",
    name: str | None,
    steps: int | None,
    guidance: float | None,
    stitch: Sequence[str],
    adapter: str | None,
    autoencoder: str | None,
) -> "tuple[Subject, EvalConfig]":
    """The model or the images, and the configuration with the model's own sampler below it."""
    from genlab.eval.prepare import load_model, model_name, model_subject
    from genlab.eval.subject import Subject, holds_images

    if holds_images(Path(source)):
        if steps is not None or guidance is not None or stitch:
            raise click.UsageError(
                f"{source} holds images: --steps, --guidance and --stitch need a model"
            )
        for option, value in {"adapter": adapter, "autoencoder": autoencoder}.items():
            if value is not None:
                raise click.UsageError(f"{source} holds images: --{option} needs a model")
        return Subject.of_folder(Path(source), name, config.alpha), config
    device = processes.device or config.device or best_device()
    generator = load_model(source, config, device, adapter, autoencoder)
    # Once more, now that the model's own sampler can stand below the changes to it.
    config = with_own(generator.sampler.config)
    name = name or model_name(adapter or source)
    return model_subject(generator, config, name, steps=steps, guidance=guidance, stitch=stitch)


def _evaluate(
    subject: "Subject",
    config: "EvalConfig",
    processes: "Processes",
    quiet: bool,
    pictures: Path | None,
) -> "Record | None":
    from genlab.eval.evaluate import evaluate

    with plain_warnings(), ExitStack() as stack:
        bars = Bars(stack, quiet or processes.rank > 0)
        return evaluate(
            subject, config, processes=processes, on_progress=bars.advance, pictures=pictures
        )


def _summary(record: "Record") -> str:
    """The scores as lines, with their intervals, and what they were made with."""
    metadata = record.protocol
    reference = metadata["reference"]
    against = f" against {reference['name']}" if reference else ""
    frozen = f", protocol {metadata['name']}" if metadata["name"] else ""
    lines = [
        f"{record.model}: {metadata['count']:,} images{against}, extractor "
        f"{metadata['extractor']['name']}{frozen}"
    ]
    width = max(map(len, record.scores))
    for name, score in record.scores.items():
        interval = "" if score.low is None else f"   95 %: {score.low:.4f} ... {score.high:.4f}"
        lines.append(f"  {name:<{width}}  {score.value:>10.4f}{interval}")
    if record.cost:
        lines.append("  " + _cost(record.cost))
    lines += [
        f"  classes are compared with those of {other} by number: one side alone has names"
        for other in record.sampling.get("classes_by_number", [])
    ]
    saved = record.sampling.get("stitch", {}).get("time_saved")
    if saved is not None:
        lines.append(f"  {saved:.0%} of the time saved by stitching")
    return "\n".join(lines)


def _cost(cost: Mapping[str, float]) -> str:
    words: Sequence[tuple[str, str]] = (
        ("nfe", "{:.0f} network evaluations an image"),
        ("seconds_per_image", "{:.3g} s an image"),
        ("peak_memory_mib", "peak memory {:,.0f} MiB"),
    )
    return ", ".join(text.format(cost[key]) for key, text in words if key in cost)


@click.group("eval", cls=DefaultGroup, default=run)
def command() -> None:
    """Score a model or a set of images."""


@command.command("reference")
@click.argument("data", type=ANY_PATH)
@click.option("-o", "--output", type=ANY_PATH, required=True, help="The file to write.")
@click.option(
    "--layout",
    type=click.Choice(["genlab", "edm", "adm"]),
    help="edm: mu, sigma; adm: with mu_s, sigma_s and images. Default: by the file's name.",
)
@click.option("--extractor", default="inception", show_default=True, metavar="NAME")
@click.option("--weights", metavar="FILE", help="A local file of the extractor's weights.")
@click.option("--size", type=click.IntRange(1), metavar="N", help="Bring images to this size.")
@fit_option
@alpha_option
@click.option("--split", default="train", show_default=True, help="Part of the data.")
@click.option("--name", metavar="NAME", help="How protocol cards call it.")
@click.option(
    "--rows",
    type=click.IntRange(0),
    metavar="N",
    help="Keep the features of N images, for precision and the like; default: of all.",
)
@click.option("--outputs", metavar="LIST", help="Of the extractor; default: all of them.")
@device_option
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def reference(
    data: Path,
    output: Path,
    layout: str | None,
    extractor: str,
    weights: str | None,
    size: int | None,
    fit: str,
    alpha: str,
    split: str,
    name: str | None,
    rows: int | None,
    outputs: str | None,
    device: str | None,
    quiet: bool,
) -> None:
    """Make a file of reference statistics from real images.

    DATA is a folder of images, a zip, a folder with idx files or an npz file. The file is what
    'genlab eval --reference FILE' takes; the layouts edm and adm are read by those projects' tools.
    """
    from genlab.data.conform import OPTIONS
    from genlab.eval.extractors.base import build_extractor
    from genlab.eval.references.building import compute_reference, everything, with_fewer_rows
    from genlab.eval.references.files import write_reference
    from genlab.eval.samples import StoredImages

    images = StoredImages(data, size, fit, split, alpha, OPTIONS)
    network = build_extractor(extractor, weights).to(device or best_device())
    needs = everything(network, None if outputs is None else outputs.split(","))
    with ExitStack() as stack:
        bars = Bars(stack, quiet)
        made = compute_reference(
            images,
            network,
            needs,
            name=name,
            on_progress=lambda done, total: bars.advance("reading images", done, total),
        )
    if rows is not None:
        made = with_fewer_rows(made, rows)
    chosen = layout or ("edm" if output.suffix == ".npz" else "genlab")
    write_reference(output, made, chosen)
    click.echo(f"{output}: {images.count:,} images, extractor {network.name}, layout {chosen}")

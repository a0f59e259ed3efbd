"""``genlab sample``: draw images from a generator."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import (
    FOLDER,
    Progress,
    adapter_option,
    autoencoder_option,
    best_device,
    config_option,
    device_option,
    dry_run_option,
    dtype_option,
    echo_settings,
    progress,
    refuse_duplicates,
    split_arguments,
    stitch_option,
)
from genlab.cli.completion import complete_sampling
from genlab.data.writing.formats import ARCHIVES, FORMATS

if TYPE_CHECKING:  # torch is imported only when images are drawn: --help answers at once
    from genlab.generators.base import Generator
    from genlab.runs.config import SampleConfig
    from genlab.runs.plan import SamplePlan
    from genlab.samplers.base import AnySampler

EPILOG = """\b
Examples:
  genlab sample edm-fmnist                               # 16 images, random classes
  genlab sample edm-fmnist --seeds 0-63 --classes sneaker,bag -o out/
  genlab sample edm-fmnist --labels balanced --seeds 0-79 --guidance 2 --animation gif
  genlab sample dit-fmnist --stitch dit-fmnist-s:0.4     # a small model takes the first steps
  genlab sample edm-fmnist --seeds 0-49999 --format npz  # for FID tools; goes on after a stop
  genlab sample edm-fmnist --images shoes/ --strength 0.6 --classes bag
  genlab sample edm-fmnist --images shoes/ --mask hole.png   # white is drawn
  genlab sample edm-fmnist --images shoes/ --invert --guidance 1
  genlab sample edm-fmnist --between 3,7 --classes sneaker,bag --frames 12
  genlab sample my-adapter/ --seeds 0-63                 # what genlab finetune wrote
  genlab sample dit-fmnist --adapter my-adapter/         # the same, where its base has moved
  genlab sample my-dit/ --format npz                     # a latent model draws latents...
  genlab sample my-dit/ --autoencoder sd-vae/            # ...and images with its autoencoder
  genlab sample my-pixelcnn/ --images shoes/ --keep 14
  genlab sample my-upsampler/ --low-res small/ --seeds 0-63
  genlab sample my-model/ sampler.schedule.num_steps=40 sampler.solver.S_churn=20
  genlab sample --config configs/sample/edm-fmnist.yaml --seeds 0-3 -o there/
  accelerate launch --multi_gpu -m genlab sample edm-fmnist --seeds 0-49999

The folder gets images/ (or images.zip, images.npz), grid.png and manifest.json. A latent model
without an autoencoder draws latents: latents/ with a .npy for each (or latents.zip; or latents.npz
with the arrays latents, seeds and labels), as the network gives them: vae.decode(latents /
scaling_factor). Their grid shows the channels side by side in grey. The same seed gives the same
image for any number of processes; another batch size or device rounds otherwise, which in
float32 on a CPU moves a few pixels by one of 256 levels, and more in bfloat16. A run that was
stopped, even killed, goes on where it was when the same command is given again."""


@click.command("sample", epilog=EPILOG)
@click.argument(
    "arguments", nargs=-1, metavar="[MODEL] [KEY=VALUE]...", shell_complete=complete_sampling
)
@config_option
@adapter_option
@autoencoder_option
@click.option("--seeds", metavar="LIST", help="One for each image: 0-63,100. Default: 0-15.")
@click.option(
    "--labels",
    metavar="LIST",
    help="random (default), balanced, or one class for each seed: 3,1,sneaker.",
)
@click.option(
    "--classes", metavar="LIST", help="Classes that take turns over the seeds: sneaker,bag."
)
@click.option(
    "--images",
    metavar="IMAGES",
    help="Edit these images (diffusion models, or inpaint by autoregressive ones): a picture, a "
    "folder, zip or npz.",
)
@click.option(
    "--strength",
    type=float,
    metavar="T",
    help="Draw the images anew from this share of the way to noise, 0 to 1.",
)
@click.option(
    "--mask", metavar="PATH", help="Inpaint: draw where this is white; one for all, or a set."
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="ROWS",
    help="Inpaint all but so many rows from the top.",
)
@click.option("--invert", is_flag=True, help="Start from the noise that leads to the images.")
@click.option(
    "--complete",
    metavar="IMAGES",
    help="As --images, of autoregressive models; half the rows are kept.",
)
@click.option(
    "--between",
    metavar="SEEDS",
    help="Interpolate: 3,7 goes from the image of seed 3 to that of 7; --classes is one for each.",
)
@click.option(
    "--frames", type=click.IntRange(2), metavar="N", help="Images between them. Default: 16."
)
@click.option(
    "--low-res",
    metavar="IMAGES",
    help="Enlarge these images (super-resolution models): a folder, zip or npz.",
)
@click.option("-o", "--output", type=FOLDER, help="Folder to write to. Default: samples/MODEL.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="Default: a folder, of png images or npy latents.",
)
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Solver steps (diffusion).")
@click.option(
    "--guidance", type=float, metavar="S", help="Guidance scale (by the null class); 1 is off."
)
@stitch_option
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images at a time.")
@click.option("--grid/--no-grid", default=None, help="Lay the first images out in grid.png.")
@click.option(
    "--animation", type=click.Choice(["gif", "webp"]), help="Animate how the first images form."
)
@click.option("--film", type=click.Choice(["gif", "webp"]), hidden=True)  # the old name
@click.option(
    "--animation-of",
    type=click.Choice(["estimate", "state"]),
    help="The denoised estimate of each step (default), or the noisy state.",
)
@device_option
@dtype_option
@click.option("--compile/--no-compile", "compile_", default=None, help="Compile the network first.")
@dry_run_option
@click.option("--overwrite", is_flag=True, help="Delete what an earlier run left in the folder.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")
def command(
    arguments: tuple[str, ...],
    config: str | None,
    steps: int | None,
    guidance: float | None,
    stitch: tuple[str, ...],
    strength: float | None,
    invert: bool,
    dry_run: bool,
    overwrite: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Draw images from a generator.

    MODEL is a bundled model (genlab doctor lists them), a zoo model, a folder, an adapter or an
    official checkpoint. KEY=VALUE changes any setting of the configuration; --dry-run prints them
    all.
    """
    model, overrides = split_arguments(arguments)
    flags = {key.rstrip("_"): value for key, value in flags.items() if value is not None}
    if model is not None:
        flags["model"] = model
    if "film" in flags:
        flags.setdefault("animation", flags.pop("film"))
    if "output" in flags:
        flags["output"] = str(flags["output"])
    if {"labels", "classes"} <= flags.keys():
        raise click.UsageError("--labels and --classes exclude each other")
    if "between" in flags:
        _check_between(flags)
    overrides += [f"edit.strength={strength}"] * (strength is not None)
    overrides += ["edit.invert=true"] * invert
    refuse_duplicates(overrides, flags)
    run = SamplingRun(config, overrides, flags, steps, guidance, stitch)
    if dry_run:
        run.show()
        return
    run.draw(overwrite, quiet)


class SamplingRun:
    """The merged configuration with its model; what is wrong with them is found out here.

    Args:
        spec: what ``--config`` names.
        overrides: ``KEY=VALUE`` settings.
        flags: fields of `SampleConfig` that options give.
        steps: solver steps.
        guidance: the guidance scale.
        generator: the model, where it is loaded already.
    """

    def __init__(
        self,
        spec: str | None,
        overrides: Sequence[str],
        flags: Mapping[str, Any],
        steps: int | None,
        guidance: float | None,
        stitch: Sequence[str] = (),
        generator: "Generator | None" = None,
    ) -> None:
        from genlab import config, load
        from genlab.errors import ConfigError
        from genlab.runs.config import SampleConfig

        def merged(defaults: Mapping[str, Any] | None = None) -> "SampleConfig":
            return replace(config.load(SampleConfig, spec, "sample", overrides, defaults), **flags)

        first = merged()
        if first.model is None:
            raise ConfigError("which model? name one, for instance genlab sample edm-fmnist")
        first.check_inputs()
        _check_output(first.output)
        if generator is None:
            _check_without_torch(first)
        from genlab.generators.latents import kind_of
        from genlab.runs.processes import join

        self.processes = join(first.device)
        self.generator: Generator = generator or load(
            first.model, adapter=first.adapter, autoencoder=first.autoencoder
        )
        # Once more, now that the model's own sampler can stand below the changes to it.
        self.config = merged({"sampler": self.generator.sampler.config})
        self.sampler: AnySampler = self.generator.build_sampler(
            self.config.sampler,
            num_steps=steps,
            guidance_scale=guidance,
            stitch=stitch or None,
            over_own=False,
        )
        self.config.sampler = dict(self.sampler.config)
        self.kind = kind_of(self.generator)
        if self.config.format is None:
            self.config.format = self.kind.ending
        if self.config.output is None:
            self.config.output = str(Path("samples") / self.name)
        self.own_labels: tuple[int, ...] | None = None
        self.round_trip = False  # whether images are inverted and drawn again as they were
        if self.config.complete is not None or self.config.images is not None:
            self._edit()
        if self.config.between is not None:
            self._interpolate(self.config.between)
        self._enlarge(self.config.low_res)
        self.generator.check_sampler(self.sampler)  # what is edited decides what fits
        self.plan = self._plan()

    def _edit(self) -> None:
        """Let the generator edit images rather than draw new ones."""
        from genlab.data.labels import parse_seeds
        from genlab.generators.editing import Editing
        from genlab.runs.inputs import editing, inpainting

        config = self.config
        seeds = parse_seeds(config.seeds)
        if config.complete is not None:
            self.generator, self.own_labels = inpainting(
                self.generator, config.complete, seeds, keep=config.keep
            )
        elif config.images is not None:
            kept: Any = {"keep": config.keep, "mask": config.mask, "fit": config.fit}
            self.generator, self.own_labels = made, _ = editing(
                self.generator, config.images, seeds, config.edit, **kept
            )
            if isinstance(made, Editing) and config.edit.invert:
                source = self._source_labels(seeds)
                made.set_source(source)
                self.round_trip = source == self._labels(seeds)

    def _source_labels(self, seeds: tuple[int, ...]) -> tuple[int, ...] | None:
        """The classes that images are inverted under."""
        from genlab.data.labels import cycle_classes

        classes = self.config.source_classes
        if classes is None:
            return self.own_labels or self._labels(seeds)
        if classes == "none":
            return None
        return cycle_classes(classes, seeds, self.generator.num_classes, self.generator.class_names)

    def _interpolate(self, between: str) -> None:
        """Let the generator draw images between others; their seeds count them."""
        from genlab.runs.inputs import interpolating

        made = interpolating(self.generator, between, self.config.frames or 16, self.config.classes)
        self.generator, self.own_labels = made, made.nearest_labels()
        self.config.seeds, self.config.classes = f"0-{made.frames - 1}", None

    def _enlarge(self, images: str | None) -> None:
        """Let the generator enlarge images, where there are any."""
        from genlab.data.labels import parse_seeds
        from genlab.errors import ConfigError
        from genlab.runs.inputs import enlarging

        if images is None:
            if getattr(self.generator, "enlarges", False):
                raise ConfigError("this model enlarges images; name the small ones: --low-res PATH")
            return
        seeds = parse_seeds(self.config.seeds)
        self.generator, self.own_labels = enlarging(self.generator, images, seeds)

    def show(self) -> None:
        """Print the merged configuration, ready for --config."""
        if self.processes.rank == 0:
            left_out = self.sampler.left_out().items()
            echo_settings(self.config, {f"sampler.{key}": value for key, value in left_out})

    def _plan(self) -> "SamplePlan":
        from genlab.data.labels import format_seeds, parse_seeds
        from genlab.runs.plan import SamplePlan

        config, generator = self.config, self.generator
        seeds = parse_seeds(config.seeds)
        return SamplePlan(
            seeds=seeds,
            labels=self._labels(seeds),
            image_shape=generator.image_shape,
            identity={
                "weights_sha256": generator.weights_sha256(),
                **generator.identity(self.sampler),
                "sampler": self.config.sampler,
                "dtype": config.dtype,
            },
            kind=self.kind,
            format=str(config.format),  # chosen where it was left out
            class_names=generator.class_names,
            grid=config.grid,
            animation=config.animation,
            animation_of=config.animation_of,
            title=f"{self.name}: {generator.describe_sampler(self.sampler)}"
            + ("" if config.between else f", seeds {format_seeds(seeds)}"),
            inputs=generator.pictures(seeds),
            round_trip=self.round_trip,
        )

    @property
    def name(self) -> str:
        """What the model is called in titles and folders."""
        path = Path(str(self.config.adapter or self.config.model))
        return path.stem if path.is_file() else path.resolve().name

    def _labels(self, seeds: tuple[int, ...]) -> tuple[int, ...] | None:
        from genlab.data.labels import cycle_classes, parse_labels

        class_table = self.generator.sampled_classes(self.sampler), self.generator.class_names
        if self.config.classes is not None:
            return cycle_classes(self.config.classes, seeds, *class_table)
        if self.own_labels is not None and self.config.labels == "random":
            return self.own_labels
        return parse_labels(self.config.labels, seeds, *class_table)

    def draw(self, overwrite: bool, quiet: bool) -> None:
        """Sample what is missing, and say what is there."""
        from genlab.runs.drawing import draw_samples

        quiet = quiet or self.processes.rank > 0
        generator, batch_size = self._placed()
        folder = Path(str(self.config.output))
        with ExitStack() as stack:
            bar = _Bar(stack, quiet)
            fresh = draw_samples(
                generator,
                self.plan,
                folder,
                sampler=self.sampler,
                batch_size=batch_size,
                config=asdict(self.config),
                processes=self.processes,
                overwrite=overwrite,
                on_start=bar.start,
                on_progress=bar.advance,
            )
        if not quiet:
            click.echo(_summary(self.plan, folder, fresh))

    def _placed(self) -> "tuple[Generator, int]":
        from genlab.runs.placing import dtype_of, place

        device = self.processes.device or self.config.device or best_device()
        generator, dtype = self.generator, dtype_of(self.config.dtype)
        place(generator, self.sampler, device, dtype, compiled=self.config.compile)
        size = self.config.batch_size or (16 if generator.device.type == "cpu" else 128)
        return generator, size


def _check_between(flags: Mapping[str, Any]) -> None:
    for option in ("seeds", "labels"):
        if option in flags:
            raise click.UsageError(
                f"--between and --{option} exclude each other: --between names the seeds, and "
                "--classes gives one class for each of them"
            )


def _check_without_torch(config: "SampleConfig") -> None:
    """Refuse an invalid model, class or seed at once.

    Whatever needs the model itself is checked once it is loaded, which takes seconds.
    """
    from genlab.checkpoints.places import find_folder
    from genlab.saving.index import read_index

    folder = find_folder(str(config.model))
    if folder is None or config.adapter is not None:
        return
    index = read_index(folder)
    num_classes, names = index.get("num_classes"), index.get("class_names")
    # Another program's index is taken at its word only where it is well-formed; a model without
    # classes may get those of a classifier that guides it.
    if isinstance(num_classes, int) and num_classes > 0 and _is_list_of_names(names, num_classes):
        config.check_classes(num_classes, names)


def _is_list_of_names(names: object, num_classes: int) -> bool:
    if names is None:
        return True
    return (
        isinstance(names, list)
        and len(names) == num_classes
        and all(isinstance(name, str) for name in names)
    )


def _check_output(output: str | None) -> None:
    from genlab.errors import ConfigError

    for end in (f".{archive}" for archive in ARCHIVES):
        if output is not None and output.endswith(end):
            name = output.removesuffix(end)
            raise ConfigError(
                f"-o {output} names a file; name a folder and the format: "
                f"-o {name} --format {end[1:]} writes {name}/images{end}"
            )


class _Bar:
    """A progress bar that appears when sampling starts and tells the speed."""

    def __init__(self, stack: ExitStack, quiet: bool) -> None:
        self._stack, self._quiet = stack, quiet
        self._done = self._started = 0.0
        self._bar: Progress | None = None

    def start(self, todo: int, total: int) -> None:
        """Begin to count: ``todo`` of ``total`` images are to be computed here."""
        if self._quiet or todo == 0:
            return
        self._started = time.perf_counter()
        self._bar = self._stack.enter_context(progress("sampling", todo))

    def advance(self, images: float) -> None:
        """Count images, or the fraction of one that a solver step is."""
        if self._bar is None:
            return
        before, self._done = round(self._done), self._done + images
        rate = self._done / (time.perf_counter() - self._started)
        self._bar.describe(f"sampling, {rate:.3g} images/s")
        self._bar.advance(round(self._done) - before)


def _summary(plan: "SamplePlan", folder: Path, fresh: bool) -> str:
    import json

    where = folder / plan.place
    count = f"{len(plan.seeds)} {plan.kind.noun}{'s' if len(plan.seeds) > 1 else ''}"
    if not fresh:
        return f"{count} in {where}: all there already, nothing to do"
    manifest = json.loads((folder / "manifest.json").read_text())
    spent, saved = manifest["spent"], manifest.get("stitch", {}).get("time_saved")
    nfe = f"{manifest['nfe']:.4g}" if isinstance(manifest["nfe"], float) else manifest["nfe"]
    animation = [folder / plan.animation_file] if plan.animation else []
    pictures = [folder / "grid.png"] * plan.grid + animation
    also = "".join(f", {picture}" for picture in pictures)
    drawn = spent["timed"]
    some = f" for the {drawn} drawn now" * (0 < drawn < len(plan.seeds))
    seconds = f", {spent['seconds']:.1f} s{some}" if drawn else ""
    return (
        f"{count} in {where}{also} ({nfe} network evaluations {plan.kind.each}"
        f"{seconds}{'' if saved is None else f', {saved:.0%} of the time saved'})"
        + _rejection(manifest)
        + _round_trip(manifest)
        + _latents(plan)
    )


def _rejection(manifest: Mapping[str, Any]) -> str:
    """How many images a discriminator accepted."""
    counts = manifest.get("rejection")
    if counts is None:
        return ""
    text = f"\nrejection: {counts['accepted']} of {counts['tries']} images accepted"
    if counts["exhausted"]:
        text += f"; {counts['exhausted']} samples ran out of tries and took their best"
    return text


def _latents(plan: "SamplePlan") -> str:
    """A note on samples that are latents."""
    from genlab.data.writing.sample_kinds import LATENTS

    if plan.kind is not LATENTS:
        return ""
    shape = " x ".join(map(str, plan.image_shape))
    return (
        f"\nthese are latents ({shape}): the model has no autoencoder to make images of them; "
        "--autoencoder FOLDER attaches one"
    )


def _round_trip(manifest: Mapping[str, Any]) -> str:
    """How far the images are from those that were inverted."""
    error = manifest.get("round_trip")
    if error is None:
        return ""
    edit, sampler = manifest["config"]["edit"], manifest["config"]["sampler"]
    text = (
        f"\nround trip: the images are {error['rmse']:.4f} from the originals (RMSE, of 1; at most "
        f"{error['worst_rmse']:.4f}, seed {error['worst_seed']})"
    )
    if sampler["guidance"] and not edit["guided"]:
        text += "; guidance acted on the way back only, --guidance 1 leaves it out"
    return text

"""``genlab retarget``: give a GAN classes that a classifier knows, without images of them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import (
    FOLDER,
    best_device,
    check_model_folder,
    device_option,
    dry_run_option,
    echo_json,
    json_option,
    progress,
    split_arguments,
)
from genlab.cli.completion import complete_classifiers, complete_finetuning

if TYPE_CHECKING:  # torch is imported only when the search begins: --help answers at once
    from genlab.finetuning.gan.classifier import ImageClassifier
    from genlab.finetuning.gan.retarget import Retargeted
    from genlab.finetuning.gan.saving import Named, RetargetRecord
    from genlab.finetuning.gan.search import RetargetConfig
    from genlab.generators.gan import GanGenerator

SAMPLER = "sampler"

EPILOG = """\b
Examples:
  genlab retarget my-gan/ --classifier classifier-fmnist --classes sandal,bag -o sandals/
  genlab retarget my-gan/ --classifier cnn-fmnist --classes purse=bag,slipper=5 --keep -o more/
  genlab retarget biggan-fmnist --classifier classifier-fmnist --classes shirt --start own \\
      --judge cnn-fmnist -o better-shirts/ lr=0.05 diversity=0.1
  genlab retarget my-gan/ --classifier my-classifier/ --classes bag --dry-run
  genlab sample sandals/ --seeds 0-63 -o samples/

For each class one vector of the class table is moved, down the classifier's cross-entropy; nothing
else of the model changes, and no image is needed. The model must have a vector for each class, as
a BigGAN with a shared embedding has. With images of the classes, 'genlab finetune' is the other
way.

\b
CLASSIFIER is one of
  classifier-fmnist          or another classifier of noisy images: of the zoo, or a folder
  cnn-fmnist, cnn-cifar10    or the folder that 'genlab train export' wrote of a classifier

It may be fooled by images that only it takes for the class: --judge names another one, and
before-after.png in the folder shows them.

The folder is written at the end, whole: a search that is stopped leaves nothing behind."""


@click.command("retarget", epilog=EPILOG)
@click.argument(
    "arguments", nargs=-1, metavar="MODEL [KEY=VALUE]...", shell_complete=complete_finetuning
)
@click.option(
    "--classifier", required=True, metavar="CLASSIFIER", shell_complete=complete_classifiers,
    help="The classifier that knows the classes: a name or a folder.",
)  # fmt: skip
@click.option(
    "--classes", required=True, metavar="LIST",
    help="The new classes: sandal,bag; or NAME=CLASS of the classifier, by name or number.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=FOLDER, help="The folder to write. Default: runs/MODEL-CLASSES."
)
@click.option("--keep", is_flag=True, help="Keep the model's classes; the new ones come behind.")
@click.option(
    "--judge", metavar="CLASSIFIER", shell_complete=complete_classifiers,
    help="Another classifier, which only judges the images.",
)  # fmt: skip
@click.option(
    "--start", type=click.Choice(["top", "mean", "own"]),
    help="Where vectors begin: at the classes that look most like it to the classifier (default), "
    "at the mean of all, or at the class of the same name.",
)  # fmt: skip
@click.option("--starts", type=int, metavar="N", help="Attempts for each class. Default: 5.")
@click.option("--rounds", type=int, metavar="N", help="Times that latents are drawn. Default: 10.")
@click.option("--steps", type=int, metavar="N", help="Steps with the same latents. Default: 20.")
@click.option("--latents", type=int, metavar="N", help="Latents of a step. Default: 10.")
@click.option("--lr", type=float, metavar="RATE", help="Learning rate of Adam. Default: 0.1.")
@click.option(
    "--diversity", type=float, metavar="STRENGTH",
    help="Weight of a loss that makes images of different latents differ (paper: 0.1). Default: 0.",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Seed of latents and noise. Default: 0.")
@device_option
@dry_run_option
@json_option
def command(
    arguments: tuple[str, ...],
    classifier: str,
    classes: str,
    output: Path | None,
    keep: bool,
    judge: str | None,
    device: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Give a GAN classes that a classifier knows, without any image of them.

    MODEL is a bundled GAN, one of the zoo, or a path. KEY=VALUE changes any setting of the search
    (weight_decay, noise, distance and those above) or of the sampler that latents are drawn by
    (sampler.truncation=0.5), which the new model keeps.
    """
    model, overrides = split_arguments(arguments)
    if model is None:
        raise click.UsageError("which MODEL? a bundled GAN such as biggan-fmnist, or a path")
    from_options = [f"{key}={value}" for key, value in options.items() if value is not None]
    folder = output or Path("runs") / f"{Path(model).name}-{_words(classes)}"
    check_model_folder(folder)
    search = _Search(model, classifier, judge, classes, [*from_options, *overrides], keep, device)
    if dry_run:
        search.show(folder, as_json)
        return
    record = search.run(folder)
    if as_json:
        echo_json({"folder": folder, **record.to_json()})
        return
    for line in record.lines():
        click.echo(line)
    click.echo(f"{folder}: {', '.join(record.classes)}; see {folder / 'before-after.png'}")


class _Search:
    """One run of the command; what is wrong with its settings is found out here."""

    def __init__(
        self,
        model: str,
        classifier: str,
        judge: str | None,
        classes: str,
        overrides: Sequence[str],
        keep: bool,
        device: str | None,
    ) -> None:
        from genlab.eval.image_classifiers import load_image_classifier
        from genlab.finetuning.gan.retarget import check_retargeting

        place = device or best_device()
        self.model, self.keep = model, keep
        self.config = _config(overrides)
        self.generator = _generator(model, overrides, place)
        self.classifier = load_image_classifier(classifier, place)
        self.targets = self.classifier.read_targets(classes)
        self.judge = None if judge is None else load_image_classifier(judge, place)
        self.judged = {} if self.judge is None else self._judged(self.judge)
        check_retargeting(self.generator, self.classifier, self.targets, self.config)

    def _judged(self, judge: "ImageClassifier") -> dict[str, int]:
        """Numbers of the judge's classes, by the new names or the tuning classifier's."""
        from genlab.errors import LabelError

        judge.check_shape(self.generator.image_shape)
        names = self.classifier.class_names
        targets: dict[str, int] = {}
        for name, number in self.targets.items():
            try:
                targets[name] = judge.find_class(name)
            except LabelError:
                if names is None:
                    raise
                targets[name] = judge.find_class(names[number])
        return targets

    @property
    def num_steps(self) -> int:
        """Steps of all attempts for all classes."""
        from genlab.finetuning.gan.search import attempts

        tries = attempts(self.generator, self.config)
        return len(self.targets) * tries * self.config.steps_in_all

    def show(self, folder: Path, as_json: bool) -> None:
        """Print the settings, and in words what would be done."""
        from genlab.config import to_yaml

        settings = self._settings()
        if as_json:
            images = self.num_steps * self.config.latents
            plan = {"classes": self.targets, "steps": self.num_steps, "images": images}
            echo_json({"folder": folder, **plan, "keep": self.keep, "settings": settings})
            return
        click.echo(to_yaml(settings), nl=False)
        for line in self._plan(folder):
            click.echo(line, err=True)

    def _settings(self) -> dict[str, Any]:
        from genlab.config import to_plain

        return {**to_plain(self.config), SAMPLER: dict(self.generator.sampler.config)}

    def _plan(self, folder: Path) -> list[str]:
        from genlab.finetuning.gan.search import attempts

        config, classifier = self.config, self.classifier
        names = classifier.class_names
        classes = [
            name if names is None or names[number] == name else f"{name} (as {names[number]})"
            for name, number in self.targets.items()
        ]
        fit = classifier.describe_fit(self.generator.image_shape)
        own = f", beside the {self.generator.num_classes} of the model" if self.keep else ""
        return [
            f"{self.model}: {', '.join(classes)} by {classifier.name}{own}",
            f"{attempts(self.generator, config)} attempts of {config.steps_in_all} steps for each "
            f"class, {self.num_steps * config.latents:,} images in all",
            *([f"images for the classifier: {fit}"] if fit else []),
            f"would write {folder}",
        ]

    def run(self, folder: Path) -> "RetargetRecord":
        """Search, judge, draw and write."""
        from genlab.files import check_writable
        from genlab.finetuning.gan.retarget import retarget
        from genlab.finetuning.gan.saving import before_after, save_retargeted

        check_writable(folder)
        started = time.monotonic()
        with progress("moving class vectors", self.num_steps) as bar:
            result = retarget(
                self.generator,
                self.classifier,
                self.targets,
                self.config,
                keep=self.keep,
                on_step=bar.advance,
            )
        record = self._record(result, time.monotonic() - started)
        picture = before_after(self.generator, result.found)
        result.generator.to("cpu")
        save_retargeted(result, record, picture, folder)
        return record

    def _record(self, result: "Retargeted", seconds: float) -> "RetargetRecord":
        from genlab.finetuning.gan.retarget import recognised
        from genlab.finetuning.gan.saving import Judgement, Named, RetargetRecord, licence_of

        generator, judge = self.generator, self.judge
        judgements = {}
        for each in result.found if judge else ():
            assert judge is not None
            target = self.judged[each.name]
            judgements[each.name] = Judgement(
                before=recognised(generator, each.start, judge, target),
                after=recognised(generator, each.vector, judge, target),
            )
        return RetargetRecord(
            base=Named(name=_shown(self.model), sha256=generator.weights_sha256()),
            classifier=_named(self.classifier),
            config=self.config,
            sampler=dict(generator.sampler.config),
            classes=tuple(result.generator.class_names or ()),
            kept=self.keep,
            seconds=seconds,
            found=result.found,
            judge=None if judge is None else _named(judge),
            judgements=judgements,
            licence=licence_of(generator.card),
        )


def _config(overrides: Sequence[str]) -> "RetargetConfig":
    """The settings of the search."""
    from genlab import config
    from genlab.finetuning.gan.search import RetargetConfig

    own = [text for text in overrides if not _of_sampler(text)]
    return config.load(RetargetConfig, None, "retarget", own)


def _generator(model: str, overrides: Sequence[str], device: str) -> "GanGenerator":
    """The base, with the sampler that it is to be drawn by."""
    from genlab import config, load
    from genlab.errors import ConfigError
    from genlab.generators.gan import GanGenerator
    from genlab.runs.config import SampleConfig

    generator = load(model)
    if not isinstance(generator, GanGenerator):
        raise ConfigError(
            f"{model} is of the family {generator.family!r}, and the classes of GANs alone are "
            f"moved by a classifier; adapt it to images with 'genlab finetune {model} --data "
            "IMAGES'"
        )
    changes = [text for text in overrides if _of_sampler(text)]
    if changes:
        own = {SAMPLER: generator.sampler.config}
        settings = config.load(SampleConfig, None, "sample", changes, own)
        generator = generator.changed(sampler=settings.sampler)
    generator.to(device)
    return generator


def _of_sampler(text: str) -> bool:
    return text.startswith((f"{SAMPLER}=", f"{SAMPLER}."))


def _named(classifier: "ImageClassifier") -> "Named":
    from genlab.finetuning.gan.saving import Named

    return Named(name=classifier.name, sha256=classifier.sha256)


def _shown(model: str) -> str:
    """A model's name, without the private path of its folder."""
    return Path(model).resolve().name if Path(model).exists() else model


def _words(classes: str) -> str:
    """Names of classes as a folder's name has them."""
    names = [part.partition("=")[0].strip() for part in classes.split(",")]
    return "-".join("".join(c if c.isalnum() else "_" for c in name) for name in names)

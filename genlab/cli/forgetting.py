"""``genlab forgetting``: what is left of the classes that a model was made to forget."""

from typing import TYPE_CHECKING

import click

from genlab.cli.common import best_device, device_option, echo_json, json_option
from genlab.cli.data import fit_option

if TYPE_CHECKING:  # torch is imported only when models are asked: --help answers at once
    from torch import Tensor

    from genlab.generators.base import Generator

EPILOG = """\b
Examples:
  genlab finetune dit-fmnist-s --forget bag --data fashion-mnist/ -o no-bag/ data.fit=pad
  genlab forgetting dit-fmnist-s no-bag/ --forget bag --data fashion-mnist/ --fit pad

BASE is the model before, MODEL the one after, or its adapter. Asked of both:

\b
  1. does a classifier see the class in samples at its label?
  2. are the other classes as they were (consistency, fd)?
  3. does the class come back when its row of the class table alone is trained on a few images?
  4. does a linear probe on a middle block still tell the class from the others?

Forgetting changes what comes out at a label. It is no erasure: where 3 or 4 stay high, the model
still knows the class, and whoever has its weights can bring it back."""


@click.command("forgetting", epilog=EPILOG)
@click.argument("base")
@click.argument("model")
@click.option(
    "--forget", required=True, metavar="CLASSES", help="What was forgotten: names or numbers."
)
@click.option("--data", required=True, metavar="PATH", help="Real labelled images of all classes.")
@fit_option
@click.option("--extractor", default="cnn-fmnist", show_default=True, metavar="NAME")
@click.option("--weights", metavar="PATH", help="The classifier's weights, for --extractor cnn.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Samples of each class.",
)
@click.option(
    "--real",
    type=click.IntRange(4),
    default=100,
    show_default=True,
    metavar="N",
    help="Real images of each class.",
)
@click.option("--relearn-images", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--relearn-steps",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="On the forgotten rows of the class table; 0 leaves question 3 out.",
)
@click.option("--probe-sigma", type=float, default=0.3, show_default=True)
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Sampler steps of both models.")
@device_option
@json_option
def command(
    base: str,
    model: str,
    forget: str,
    data: str,
    fit: str,
    extractor: str,
    weights: str | None,
    samples: int,
    real: int,
    relearn_images: int,
    relearn_steps: int,
    probe_sigma: float,
    steps: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure how far a model has forgotten classes: what it draws, and what it still knows."""
    from genlab import load
    from genlab.data.labels import parse_classes
    from genlab.eval.extractors.base import build_extractor
    from genlab.eval.forgetting import ForgettingCheck, measure_forgetting

    check = ForgettingCheck(
        samples=samples,
        relearn_images=relearn_images,
        relearn_steps=relearn_steps,
        probe_sigma=probe_sigma,
    )
    before, after = (load(name).to(device or best_device()) for name in (base, model))
    classes = parse_classes(forget, before.num_classes, before.class_names)
    images, labels = _real_images(data, fit, before, real)
    report = measure_forgetting(
        before,
        after,
        classes,
        build_extractor(extractor, weights),
        images,
        labels,
        check=check,
        sampler=None if steps is None else {"schedule": {"num_steps": steps}},
        on_stage=lambda stage: click.echo(stage, err=True),
    )
    if as_json:
        echo_json({"base": base, "model": model, **report.to_json()})
        return
    for line in report.lines():
        click.echo(line)


def _real_images(data: str, fit: str, base: "Generator", count: int) -> tuple["Tensor", "Tensor"]:
    """The first images of each class, with the base's labels."""
    import torch

    from genlab.data.conform import Wording
    from genlab.data.dataset import ImageDataset
    from genlab.data.labels import class_index

    channels, size, _ = base.image_shape
    wording = Wording("--", has_alpha=False)
    dataset = ImageDataset(data, image_size=size, channels=channels, fit=fit, wording=wording)
    labels = dataset.labels
    if dataset.class_names is not None and base.class_names is not None:
        numbers = [
            class_index(name, base.num_classes, base.class_names) for name in dataset.class_names
        ]
        labels = torch.tensor(numbers)[labels]
    rows = [
        row
        for label in range(base.num_classes)
        for row in (labels == label).nonzero()[:count, 0].tolist()
    ]
    return torch.stack([dataset[row][0] for row in rows]), labels[rows]

"""``genlab calibrate``: make the logits of a GAN's discriminator log density ratios."""

from pathlib import Path

import click

from genlab.cli.common import ANY_PATH, FOLDER, best_device, device_option, overrides_argument
from genlab.cli.data import alpha_option, fit_option, split_option

EPILOG = """\b
Examples:
  genlab calibrate my-discriminator/ my-gan/ fashion-mnist/ --split test --fit pad
  genlab calibrate D/ G/ images.zip sampler.truncation=0.5 -o D-truncated/

Calibrate with images that the discriminator was not trained on, where there are some: it is too
sure of those that it knows."""


@click.command("calibrate", epilog=EPILOG)
@click.argument("discriminator", type=FOLDER)
@click.argument("generator")
@click.argument("images", type=ANY_PATH)
@overrides_argument
@click.option("-o", "--output", type=FOLDER, help="Default: the discriminator's own folder.")
@click.option(
    "--count",
    type=click.IntRange(2),
    default=4096,
    show_default=True,
    metavar="N",
    help="Number of real images, and of drawn ones.",
)
@split_option
@fit_option
@alpha_option
@device_option
def command(
    discriminator: Path,
    generator: str,
    images: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    count: int,
    split: str,
    fit: str,
    alpha: str,
    device: str | None,
) -> None:
    """Calibrate DISCRIMINATOR by real IMAGES and as many that GENERATOR draws.

    A logistic regression on its logits tells how much more likely an image is real than drawn,
    which rejection sampling (sampler.rejection) uses. KEY=VALUE settings such as
    sampler.truncation=0.5 change how GENERATOR draws: give those that you will sample with.
    """
    import torch

    from genlab import config, load
    from genlab.checkpoints.discriminators import load_discriminator
    from genlab.data.conform import OPTIONS
    from genlab.data.dataset import ImageDataset
    from genlab.errors import ConfigError
    from genlab.generators.analysis.calibration import calibrate
    from genlab.generators.gan import GanGenerator
    from genlab.runs.config import SampleConfig

    judge, model = load_discriminator(discriminator), load(generator)
    if not isinstance(model, GanGenerator):
        raise ConfigError(
            f"{generator} is of the family {model.family!r}, and a discriminator judges the images "
            "of a GAN; name the generator that it was trained with"
        )
    for text in overrides:
        if not text.startswith("sampler."):
            raise ConfigError(f"{text!r} has no effect here; only settings of the sampler have")
    own = {"sampler": model.sampler.config}
    settings = config.load(SampleConfig, None, "sample", overrides, own)
    channels, size, _ = model.image_shape
    dataset = ImageDataset(
        images,
        image_size=size,
        channels=channels,
        fit=fit,
        split=split,
        alpha=alpha,
        wording=OPTIONS,
    )
    # Any of them, always the same ones: sets are often sorted by class.
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    pixels, labels = zip(*(dataset[row] for row in rows.tolist()), strict=True)
    model.to(device or best_device())
    calibrated = calibrate(
        judge, model, torch.stack(pixels), torch.tensor(labels), settings.sampler
    )
    assert calibrated.calibration is not None
    folder = output or discriminator
    calibrated.save_pretrained(folder)
    click.echo(f"{folder}: {calibrated.calibration.describe()}")

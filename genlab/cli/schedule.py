"""``genlab schedule``: noise levels made for one model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from genlab.cli.common import best_device, device_option, split_arguments

EPILOG = """\b
Examples:
  genlab schedule edm-fmnist --steps 8 -o levels.yaml
  genlab sample edm-fmnist sampler.schedule=levels.yaml
  genlab schedule my-dit/ --steps 10 --guidance 2 --teacher-steps 100 -o levels.yaml

The levels suit the model and the guidance that they were made for. The more seeds, the less they
depend on them."""


@dataclass(kw_only=True)
class TeacherConfig:
    """What the settings of ``genlab schedule`` change.

    Attributes:
        sampler: changes to the model's own sampler, or the name of a sampler preset.
    """

    sampler: dict[str, Any] = field(default_factory=dict)


@click.command("schedule", epilog=EPILOG)
@click.argument("arguments", nargs=-1, metavar="MODEL [KEY=VALUE]...")
@click.option(
    "--steps", type=click.IntRange(1), required=True, metavar="N", help="How many noise levels."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The YAML file to write. Default: it is printed.",
)
@click.option("--seeds", metavar="LIST", default="0-63", help="Teacher's images. Default: 0-63.")
@click.option("--labels", metavar="LIST", default="random", help="As in 'genlab sample'.")
@click.option("--guidance", type=float, metavar="S", help="Guidance scale of the teacher.")
@click.option(
    "--teacher-steps",
    type=click.IntRange(2),
    default=61,
    metavar="N",
    help="Noise levels to choose among. Default: 61.",
)
@click.option(
    "--metric",
    type=click.Choice(["dev", "l2", "l1"]),
    default="dev",
    help="What a step costs: how far it leaves the teacher's line (dev, default) or state.",
)
@click.option(
    "--coeff",
    type=float,
    default=1.15,
    metavar="C",
    help="Above 1 the last steps weigh more. Default: 1.15.",
)
@click.option("--batch-size", type=click.IntRange(1), default=16, metavar="N", help="Default: 16.")
@device_option
def command(
    arguments: tuple[str, ...],
    steps: int,
    output: Path | None,
    seeds: str,
    labels: str,
    guidance: float | None,
    teacher_steps: int,
    metric: str,
    coeff: float,
    batch_size: int,
    device: str | None,
) -> None:
    """Make a noise schedule for one model (GITS).

    MODEL samples a few images with many Euler steps, its teacher. Of their noise levels those are
    chosen between which straight steps stay nearest to the teacher's trajectories. KEY=VALUE
    changes the teacher's sampler: sampler.schedule says which levels there are to choose among.
    """
    from genlab import config, load
    from genlab.data.labels import parse_labels, parse_seeds
    from genlab.errors import ConfigError
    from genlab.files import write_text
    from genlab.generators.analysis.gits import make_levels

    model, overrides = split_arguments(arguments)
    if model is None:
        raise ConfigError("which model? name one: genlab schedule edm-fmnist --steps 8")
    generator = load(model).to(device or best_device())
    own = {"sampler": generator.sampler.config}
    settings = config.load(TeacherConfig, None, "sampler", overrides, own)
    teacher = generator.build_sampler(settings.sampler, over_own=False)
    numbers = parse_seeds(seeds)
    classes = parse_labels(labels, numbers, generator.num_classes, generator.class_names)
    made = make_levels(
        generator,
        steps,
        seeds=numbers,
        labels=classes,
        sampler=teacher,
        guidance_scale=guidance,
        teacher_steps=teacher_steps,
        metric=metric,
        coeff=coeff,
        batch_size=batch_size,
    )
    scale = "" if guidance is None else f", guidance {guidance:g}"
    about = f"{steps} noise levels for {model}, chosen among {len(made.teacher)} (metric {metric}, "
    about += f"coeff {coeff:g}{scale}, seeds {seeds}); take them with sampler.schedule=FILE"
    sigmas = ", ".join(repr(sigma) for sigma in made.schedule.sigmas)
    text = f"# {about}\nname: levels\nnum_steps: {len(made.chosen)}\nsigmas: [{sigmas}]\n"
    if output is None:
        click.echo(text, nl=False)
        return
    write_text(output, text)
    listed = " ".join(f"{sigma:.3g}" for sigma in made.schedule.sigmas)
    click.echo(f"{output}: {listed} (and 0), after {made.nfe} network evaluations an image")

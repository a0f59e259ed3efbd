"""``genlab stitch-similarity``: up to where two models agree, as a picture and as numbers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from genlab.cli.common import (
    ANY_PATH,
    best_device,
    device_option,
    dtype_option,
    overrides_argument,
    progress,
)

if TYPE_CHECKING:  # torch is imported only when models are asked: --help answers at once
    from genlab.generators.analysis.similarity import Similarity
    from genlab.generators.diffusion import DiffusionGenerator

EPILOG = """\b
Examples:
  genlab stitch-similarity dit-fmnist-s dit-fmnist
  genlab stitch-similarity dit-fmnist-s dit-fmnist --seeds 0-63 --steps 20 --above 0.98
  genlab stitch-similarity edm-fmnist dit-fmnist -o out/edm-beside-dit.svg

LARGE is sampled as it is; at the beginning of each step SMALL is evaluated, too, on the same noisy
images and classes. Shown is the cosine of the two noise estimates of a sample, its mean over the
seeds and the band that holds 90 % of them. The numbers go into a JSON file beside the picture."""


@click.command("stitch-similarity", epilog=EPILOG)
@click.argument("small")
@click.argument("large")
@overrides_argument
@click.option("--seeds", default="0-15", show_default=True, metavar="LIST", help="As 0-63,100.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Solver steps.")
@click.option(
    "--guidance", type=float, metavar="S", help="Guidance scale of the trajectory; 1 is off."
)
@click.option(
    "--above",
    type=click.FloatRange(-1, 1),
    default=0.99,
    show_default=True,
    metavar="COSINE",
    help="Name the last step up to which the mean is above this.",
)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, metavar="N")
@click.option(
    "-o",
    "--output",
    type=ANY_PATH,
    default="similarity.png",
    show_default=True,
    help="The picture, a PNG or an SVG.",
)
@device_option
@dtype_option
def command(
    small: str,
    large: str,
    overrides: tuple[str, ...],
    seeds: str,
    steps: int | None,
    guidance: float | None,
    above: float,
    batch_size: int,
    output: Path,
    device: str | None,
    dtype: str | None,
) -> None:
    """Draw how alike two diffusion models are at each step of a run (for --stitch SMALL:SHARE).

    KEY=VALUE changes the sampler of LARGE: sampler.solver=euler.
    """
    from genlab.charts import FORMATS, require_matplotlib
    from genlab.data.labels import parse_seeds
    from genlab.errors import ConfigError
    from genlab.files import write_text
    from genlab.generators.analysis.similarity import stitch_similarity
    from genlab.runs.placing import dtype_of, place

    ending = output.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ConfigError(f"-o {output}: the picture is a PNG or an SVG, name it something.png")
    require_matplotlib()
    models = [_diffusion(name) for name in (small, large)]
    sampler = models[1].build_sampler(
        _sampler(overrides, models[1]), num_steps=steps, guidance_scale=guidance, over_own=False
    )
    for model in models:
        place(model, sampler, device or best_device(), dtype_of(dtype or "float32"))
    chosen = parse_seeds(seeds)
    with progress("comparing", len(chosen)) as bar:
        similarity = stitch_similarity(
            models[0],
            models[1],
            chosen,
            sampler=sampler,
            batch_size=batch_size,
            on_batch=bar.advance,
        )
    about = {
        "small": small,
        "large": large,
        "seeds": seeds,
        "sampler": dict(sampler.config),
        **similarity.to_json(above),
    }
    write_text(output.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    title = f"{small} beside {large}: {sampler.describe()}"
    _draw(similarity, output, title, above)
    click.echo(_sentence(similarity, above, small))
    click.echo(f"wrote {output} and {output.with_suffix('.json')}")


def _diffusion(name: str) -> "DiffusionGenerator":
    from genlab import load
    from genlab.errors import ConfigError
    from genlab.generators.diffusion import DiffusionGenerator

    model = load(name)
    if not isinstance(model, DiffusionGenerator):
        raise ConfigError(
            f"{name} is of the family {model.family!r}, and only diffusion models say something "
            "about noisy images; name one"
        )
    return model


def _sampler(overrides: tuple[str, ...], large: "DiffusionGenerator") -> dict[str, object]:
    """The model's own sampler with the settings over it."""
    from genlab import config
    from genlab.runs.config import SampleConfig

    wrong = [text for text in overrides if not text.startswith("sampler")]
    if wrong:
        raise click.UsageError(f"{wrong[0]!r} is no setting here; sampler.KEY=VALUE changes it")
    own = {"sampler": large.sampler.config}
    return config.load(SampleConfig, None, "sample", overrides, own).sampler


def _sentence(similarity: "Similarity", above: float, small: str) -> str:
    count = similarity.steps[-1] + 1
    last = similarity.last_above(above)
    if last is None:
        return f"the mean is above {above:g} at none of the {count} steps, not even the first"
    level, share = float(similarity.levels[last]), similarity.fraction(last)
    return (
        f"the mean is above {above:g} up to step {similarity.steps[last] + 1} of {count} (noise "
        f"level {level:.4g}): --stitch {small}:{share:g}"
    )


def _draw(similarity: "Similarity", output: Path, title: str, above: float) -> None:
    from genlab.charts import Line, Panel, draw

    steps = [float(step + 1) for step in similarity.steps]
    low, high = (edge.tolist() for edge in similarity.band)
    last = similarity.last_above(above)
    lines = [
        Line(
            label="cosine",
            x=steps,
            y=similarity.mean.tolist(),
            low=low,
            high=high,
            band=True,
            marked=() if last is None else (last,),
        ),
        Line(label=f"{above:g}", x=[steps[0], steps[-1]], y=[above, above]),
    ]
    panel = Panel(lines=lines, x_label="step of the large model", y_label="cosine of the noise")
    note = f"mean of {similarity.cosines.shape[1]} samples, band of 90 % of them"
    draw([panel], output.with_suffix(""), title=title, note=note, formats=(output.suffix[1:],))

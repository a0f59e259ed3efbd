"""How similar two diffusion models are at each noise level: the premise of T-Stitch.

Source: Pan et al. (arXiv:2402.14167), Section 3, whose figure shows the same for DiT.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from genlab import compute
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State, StepInfo
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.spaces import space_of
from genlab.errors import ConfigError
from genlab.generators.diffusion import DiffusionGenerator
from genlab.samplers.combining import check_combinable
from genlab.samplers.guidance.base import Guidance, GuidanceOptions
from genlab.samplers.sampler import Sampler
from genlab.samplers.stitching import Stitch, check_run

BAND = (0.05, 0.95)
"""The quantiles over seeds between which the band lies."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The cosine of two models' noise estimates along the trajectory of the large one.

    Steps that ask no model, because they only add noise, are left out.

    Attributes:
        steps: their numbers in the run, N of them.
        levels: the noise level that each starts from, (N,).
        times: the large model's time there, (N,).
        cosines: of each sample, flattened, at each step, (N, S).
    """

    steps: tuple[int, ...]
    levels: Float64[Tensor, " N"]
    times: Float64[Tensor, " N"]
    cosines: Float64[Tensor, "N S"]

    @property
    def mean(self) -> Float64[Tensor, " N"]:
        """Over the samples."""
        return self.cosines.mean(1)

    @property
    def band(self) -> tuple[Float64[Tensor, " N"], Float64[Tensor, " N"]]:
        """The quantiles `BAND` over the samples."""
        low, high = (self.cosines.quantile(q, dim=1) for q in BAND)
        return low, high

    def last_above(self, value: float) -> int | None:
        """The last leading step whose mean is above a value, as an index here; None for none.

        A later stretch counts for nothing: a small model takes the first steps and no others.
        """
        above = (self.mean > value).tolist()
        first_below = above.index(False) if False in above else len(above)
        return first_below - 1 if first_below else None

    def fraction(self, step: int) -> float:
        """The fraction of a stitch, by time, that gives the small model all steps up to one."""
        if step + 1 == len(self.times):
            return 1.0
        between = float(self.times[step] + self.times[step + 1]) / 2
        return round(1 - between, 4)

    def to_json(self, above: float) -> dict[str, Any]:
        """Everything as plain values.

        Args:
            above: see `last_above`.
        """
        low, high = self.band
        columns = {
            "level": self.levels,
            "time": self.times,
            "mean": self.mean,
            "low": low,
            "high": high,
        }
        last = self.last_above(above)
        return {
            "above": {
                "value": above,
                "last_step": None if last is None else self.steps[last],
                "fraction": 0.0 if last is None else self.fraction(last),
            },
            "quantiles": list(BAND),
            "steps": [
                {"step": step, **{name: float(column[i]) for name, column in columns.items()}}
                for i, step in enumerate(self.steps)
            ],
        }


@torch.no_grad()
def stitch_similarity(
    small: DiffusionGenerator,
    large: DiffusionGenerator,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    batch_size: int = 16,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Similarity:
    """Compare the predictions of two models for the same noisy images, step by step.

    The large model is sampled as it is; at the beginning of each step the small one is evaluated on
    the same state and class. Guidance takes part in the trajectory, not in the comparison.

    Args:
        small: on the device of the large one.
        large: whose trajectories they are.
        seeds: one for each sample.
        labels: one class for each seed; None draws each sample's class from its own stream.
        sampler: what the large model's `build_sampler` made; None is its own.
        batch_size: samples at a time.
        on_batch: called with the number of samples just compared.

    Raises:
        ConfigError: the models do not go together, levels of the run lie outside of the small
            model's range, or the sampler stitches already.
    """
    sampler = large.build_sampler() if sampler is None else sampler
    assert isinstance(sampler, Sampler)
    if sampler.stitch:
        raise ConfigError(
            "models are compared along the large one's own trajectory; leave sampler.stitch out"
        )
    check_combinable(large, small, "the small model")
    grid = sampler.grid(sampler.guide(large.denoiser).noise_levels)
    check_run([Stitch(model=small, fraction=1.0, name="small")], grid, sampler.solver)
    classes = large.choose_labels(seeds, labels, large.sampled_classes(sampler))
    steps: tuple[int, ...] = ()
    batches = []
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        compare = _Compare(small=small)
        comparing = replace(sampler, guidance=(compare, *sampler.guidance))
        noise = NoiseStream(seeds[part], large.device)
        for _ in large.steps(noise, None if classes is None else classes[part], comparing):
            pass
        steps, cosines = compare.made[-1].cosines()
        batches.append(cosines)
        on_batch(len(seeds[part]))
    levels = grid.sigmas[list(steps)]
    return Similarity(
        steps=steps,
        levels=levels,
        times=grid.noise_levels.time(levels),
        cosines=torch.cat(batches, dim=1),
    )


@dataclass(frozen=True, kw_only=True)
class _Compare(GuidanceOptions):
    """Puts `Beside` below all guidance; the small model is moved and prepared as any part is."""

    parts: ClassVar[Mapping[str, str]] = {"small": "generator"}

    small: DiffusionGenerator
    made: list["Beside"] = field(default_factory=list)

    def __call__(self, denoiser: Denoiser) -> "Beside":
        self.made.append(Beside(denoiser, self.small.denoiser))
        return self.made[-1]


class Beside(Guidance):
    """A model that passes everything on, and compares another one's estimates in each step.

    Args:
        large: the model that is sampled.
        small: the model that is compared once a step.
    """

    def __init__(self, large: Denoiser, small: Denoiser) -> None:
        super().__init__(large, others=[small])
        self.small = small
        self._found: list[Float[Tensor, " B"] | None] = []

    @override
    def begin_step(self, step: StepInfo) -> None:
        super().begin_step(step)
        self._found.append(None)

    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """The large model's predictions; the first of a step is compared."""
        predictions = self.inner.predict_each(x, sigma, conditions)
        if self._found and self._found[-1] is None:
            other = self.small.predict_each(x, sigma, conditions[:1])
            self._found[-1] = cosine(x, sigma, predictions[0].x0, other[0].x0)
        return predictions

    def cosines(self) -> tuple[tuple[int, ...], Float64[Tensor, "N B"]]:
        """The numbers of the compared steps, and the cosines of each sample, on the CPU."""
        cosines = {step: each for step, each in enumerate(self._found) if each is not None}
        return tuple(cosines), torch.stack(list(cosines.values())).cpu().to(torch.float64)


def cosine(x: State, sigma: Sigma, a: State, b: State) -> Float[Tensor, " B"]:
    """The cosine of two noise estimates, ``eps = (x - x0) / sigma``, of each sample flattened.

    Args:
        x: noisy images, (B, C, H, W).
        sigma: their noise level, > 0.
        a: one model's denoised estimate.
        b: the other's.
    """
    eps, wide = space_of("eps"), compute.widest(x.device)
    one, other = (eps.express(each, x, sigma).flatten(1).to(wide) for each in (a, b))
    return torch.nn.functional.cosine_similarity(one, other, dim=1)

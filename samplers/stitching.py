"""T-Stitch: small models take the first steps of a run, the large one takes the rest.

Models of all sizes say nearly the same about images that are mostly noise, so a small one may
decide the coarse things, which costs little, and the large one the fine things.

Source: Pan et al. (arXiv:2402.14167), Section 3. The rule is that of the official code for DiT.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from math import floor, inf, isnan, nan
from pathlib import Path
from typing import Any

from genlab import schema
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State, StepInfo
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError, nearest
from genlab.samplers import combining, parts
from genlab.samplers.base import Grid, Solver
from genlab.samplers.combining import Combinable, check_classes
from genlab.samplers.guidance.base import Guidance

RULES = ("time", "step", "sigma")

TOLERANCE = 1e-9
"""A level on the border of two models is the second one's, whatever the rounding."""


@dataclass(frozen=True, kw_only=True)
class Stitch:
    """A small model that takes steps in place of the large one: one entry of ``sampler.stitch``.

    Choose it to sample faster: a model with a quarter of the cost that takes 40 % of the steps
    saves 30 % of the time. ``genlab stitch-similarity`` tells up to where two models agree.

    Entries act in their order, the noisiest steps first; what they leave is the large model's.
    Which model takes a step is decided once, from the level that it starts from, before churn.

    Attributes:
        model: a bundled name, a folder or a file; or a generator.
        fraction: share of the run in 0 ... 1 that the model takes after those before it; all of
            them together take at most 1.
        by: ``time``: while the large model's own time is above 1 minus the sum of the fractions so
            far; a share of time is one of its timesteps where it has them, of EDM's standard
            schedule where it is an EDM model. ``step``: the first floor(f N + 1/2) of N steps for a
            sum of fractions f. ``sigma``: while the noise level is above ``until_sigma``. The same
            for all entries.
        until_sigma: noise level, >= 0; for ``by: sigma``, in place of ``fraction``. A level that is
            equal to it is the next model's.
        name: what records call the model; by default the last part of ``model``.

    Source: Pan et al. (arXiv:2402.14167), Section 3; ``time`` is the official code's rule, ``step``
    the paper's.
    """

    model: Any
    fraction: float | None = None
    by: str = "time"
    until_sigma: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str | Path | Combinable):
            raise ConfigError(
                "a stitch needs a model: the name or folder of a diffusion model, or a "
                f"DiffusionGenerator, got {type(self.model).__name__}"
            )
        if self.by not in RULES:
            raise ConfigError(f"a stitch has no rule by {self.by!r}; {nearest(self.by, RULES)}")
        if self.by == "sigma":
            if self.until_sigma is None or self.fraction is not None:
                raise ConfigError(
                    "a stitch by sigma takes until_sigma, the noise level down to which the model "
                    "acts, and no fraction"
                )
            if not 0 <= self.until_sigma < inf:
                raise ConfigError(f"a stitch needs until_sigma >= 0, got {self.until_sigma}")
            return
        if self.until_sigma is not None:
            raise ConfigError("a stitch takes until_sigma only with by: sigma; leave one of them")
        if self.fraction is None or not 0 <= self.fraction <= 1:
            raise ConfigError(
                f"a stitch needs a fraction of the run between 0 and 1, got {self.fraction}"
            )

    @property
    def share(self) -> Fraction:
        """The fraction as it was written: 0.145 is 29/200, which no float is."""
        return Fraction(str(self.fraction))

    @property
    def label(self) -> str:
        """What messages and pictures call the model."""
        if self.name is not None:
            return self.name
        if isinstance(self.model, str | Path):
            return Path(self.model).name or str(self.model)
        return "a small model"

    @property
    def title(self) -> str:
        """What messages call it, with an article."""
        has_name = self.name is not None or isinstance(self.model, str | Path)
        return f"the stitched model {self.label}" if has_name else "the stitched model"

    def describe(self) -> str:
        """Model and share, in a few words: ``stitch dit-fmnist-s 0.4``."""
        if self.by == "sigma":
            return f"stitch {self.label} above sigma {self.until_sigma:g}"
        suffix = " of the steps" if self.by == "step" else ""
        return f"stitch {self.label} {self.fraction:g}{suffix}"

    def to_config(self) -> dict[str, Any]:
        """What differs from the defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["model"] = _plain(self.model)
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in values.items() if value != defaults[name]}


StitchLike = str | Mapping[Any, Any] | Stitch | Sequence[Any]
"""``"dit-s:0.4"``; ``{"dit-s": 0.4}``; one entry of ``sampler.stitch``; or a list of such texts,
entries and pairs (model, fraction), in which a model may be a generator."""


def entries_of(stitch: Any) -> list[dict[str, Any]]:
    """The entries of ``sampler.stitch`` that a `StitchLike` stands for; none for an empty one.

    >>> entries_of({"dit-s": 0.2, "dit-b": 0.3})
    [{'model': 'dit-s', 'fraction': 0.2}, {'model': 'dit-b', 'fraction': 0.3}]
    >>> entries_of("dit-s:0.4") == entries_of([("dit-s", 0.4)])
    True

    Raises:
        ConfigError: it is no such form.
    """
    if isinstance(stitch, Mapping) and "model" not in stitch:
        stitch = list(stitch.items())
    if isinstance(stitch, str | Mapping | Stitch) or _is_pair(stitch):
        stitch = [stitch]
    if not isinstance(stitch, Sequence):
        raise ConfigError(
            f"stitch takes pairs of a model and its fraction, got {type(stitch).__name__}; write "
            "for instance {'dit-fmnist-s': 0.4}"
        )
    return [_entry(each) for each in stitch]


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[1], int | float)
        and not isinstance(value[1], bool)
    )


def _entry(value: Any) -> dict[str, Any]:
    if isinstance(value, Stitch):
        return value.to_config()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if _is_pair(value) or (isinstance(value, list) and len(value) == 2):
        return {"model": _plain(value[0]), "fraction": value[1]}
    if not isinstance(value, str):
        raise ConfigError(
            f"stitch takes a model and its fraction, got {value!r}; write for instance "
            "('dit-fmnist-s', 0.4)"
        )
    model, _, fraction = value.rpartition(":")
    try:
        share = float(fraction)
    except ValueError:
        share = nan
    if not model or isnan(share):
        raise ConfigError(
            f"{value!r} does not tell a model and its share of the run; write MODEL:FRACTION, for "
            "instance dit-fmnist-s:0.4"
        )
    return {"model": model, "fraction": share}


def _plain(value: Any) -> Any:
    """Paths as text, which configurations are written with."""
    return str(value) if isinstance(value, Path) else value


def build(entries: Sequence[Mapping[str, Any]]) -> tuple[Stitch, ...]:
    """Make typed entries of plain ones.

    Raises:
        ConfigError: an option is unknown, missing, of the wrong type or out of range.
    """
    return tuple(
        schema.make(Stitch, entry, f"sampler.stitch.{number}")
        for number, entry in enumerate(entries)
    )


def check(stitches: Sequence[Stitch]) -> None:
    """Refuse entries that do not go together.

    Raises:
        ConfigError: they take more than the whole run, follow several rules, or one could never act
            because those before it go down to lower levels.
    """
    if len({stitch.by for stitch in stitches}) > 1:
        raise ConfigError(
            "all entries of sampler.stitch go by the same rule, got "
            + ", ".join(f"by: {stitch.by}" for stitch in stitches)
        )
    if not stitches or stitches[0].by != "sigma":
        whole = sum(stitch.share for stitch in stitches)
        if whole > 1 + Fraction(str(TOLERANCE)):
            raise ConfigError(
                f"the fractions of sampler.stitch take {float(whole):g} of the run, more than the "
                "whole; what they leave of 1 is the large model's"
            )
        return
    limits = [stitch.until_sigma for stitch in stitches if stitch.until_sigma is not None]
    if limits != sorted(limits, reverse=True):
        raise ConfigError(
            f"until_sigma must fall from one entry of sampler.stitch to the next, got {limits}"
        )


def load(stitches: Sequence[Stitch]) -> tuple[Stitch, ...]:
    """The same entries with models in place of their names; a name that stands twice is read once.

    Raises:
        GenLabError: there is no such model, it is damaged, or it is no diffusion model.
    """
    read: dict[str, Any] = {}
    loaded = []
    for stitch in stitches:
        if isinstance(stitch.model, str | Path):
            source = str(stitch.model)
            if source not in read:
                read[source] = parts.load("generator", source)
            stitch = replace(stitch, model=read[source], name=stitch.label)
        loaded.append(stitch)
    return tuple(loaded)


def acting(
    stitches: Sequence[Stitch],
    *,
    level: float,
    index: int,
    num_steps: int,
    noise_levels: NoiseLevels,
) -> int:
    """Which model takes a step: the number of an entry, or how many there are for the large model.

    Args:
        stitches: the entries, in their order.
        level: noise level that the step starts from, before churn.
        index: number of the step, 0 <= index < num_steps.
        num_steps: steps in the run.
        noise_levels: those of the large model, whose time counts.
    """
    time = noise_levels.time_of(level)
    taken = Fraction(0)
    for number, stitch in enumerate(stitches):
        if stitch.until_sigma is not None:
            mine = level > stitch.until_sigma * (1 + TOLERANCE)
        else:
            taken += stitch.share
            mine = (
                index < floor(taken * num_steps + Fraction(1, 2))
                if stitch.by == "step"
                # A continuous model may ask for levels of time 0, which no comparison puts in a
                # whole run.
                else taken >= 1 - TOLERANCE or time > 1 - float(taken) + TOLERANCE
            )
        if mine:
            return number
    return len(stitches)


class Stitched(Guidance):
    """The large model, replaced by the small ones in their steps.

    It stands below all guidance, which acts on whichever model answers. Until a run says where it
    stands, the large model answers.

    Args:
        large: the model that is sampled: its noise levels, time and kind of variance are the run's.
        stitches: with their models loaded.

    Raises:
        ConfigError: a model knows another number of classes.
    """

    def __init__(self, large: Denoiser, stitches: Sequence[Stitch]) -> None:
        small = [stitch.model.denoiser for stitch in stitches]
        super().__init__(large, others=small)
        for stitch, denoiser in zip(stitches, small, strict=True):
            check_classes(large.num_classes, denoiser.num_classes, stitch.title)
        self.small, self.stitches = small, tuple(stitches)
        self.has_null_class = all(denoiser.has_null_class for denoiser in (large, *small))
        self.acting = len(small)
        self.active = False

    def begin_step(self, step: StepInfo) -> None:
        """Choose the model of a step; see `acting`."""
        super().begin_step(step)
        self.acting = acting(
            self.stitches,
            level=step.level,
            index=step.index,
            num_steps=step.num_steps,
            noise_levels=self.noise_levels,
        )
        self.active = self.acting < len(self.small)

    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """The small model's predictions; a variance of another kind than the large one's goes."""
        small = self.small[self.acting]
        predictions = small.predict_each(x, sigma, conditions)
        if small.noise_levels.variance == self.noise_levels.variance:
            return predictions
        return [replace(prediction, variance=None) for prediction in predictions]


def check_run(stitches: Sequence[Stitch], grid: Grid, solver: Solver) -> None:
    """Refuse a run in which a small model would get noise levels outside of its range.

    A discrete model between two of its levels is not refused: it gets the nearest timestep,
    while its scalings are those of the level itself, so that it goes with models of other levels.

    Args:
        stitches: with their models loaded.
        grid: the levels of the run, made for the large model.
        solver: what will take its steps.

    Raises:
        ConfigError: a level lies outside of the range of the model that takes its step; the steps
            are counted although levels rise again; or the solver needs a variance that only the
            large model predicts.
    """
    if not stitches:
        return
    if stitches[0].by == "step" and grid.restarts:
        raise ConfigError(
            "levels rise again in this run, so that a share of its steps says nothing about noise; "
            "stitch by: time or by: sigma"
        )
    for number, sigma in _levels(stitches, grid, solver):
        _check_range(stitches[number], sigma)
    kind = grid.noise_levels.variance
    if kind.startswith("learned") and getattr(solver, "variance", kind) is None:
        for stitch in stitches:
            if stitch.model.denoiser.noise_levels.variance != kind:
                raise ConfigError(
                    f"the model predicts the variance of a step and {stitch.title} does not, or "
                    "means it otherwise; give the solver a fixed one: "
                    "sampler.solver.variance=fixed_small"
                )


def _levels(stitches: Sequence[Stitch], grid: Grid, solver: Solver) -> Iterator[tuple[int, float]]:
    """(number of a small model, a noise level that it is evaluated at): the ends of its steps."""
    levels, starts = grid.sigmas.tolist(), solver.starts(grid)
    ends_too = not solver.on_grid or solver.nfe(2) != 2
    for index, start in enumerate(starts):
        level, following = levels[index], levels[index + 1]
        if following > level:
            continue  # noise is added, and no model evaluated
        number = acting(
            stitches,
            level=level,
            index=index,
            num_steps=len(starts),
            noise_levels=grid.noise_levels,
        )
        if number < len(stitches):
            yield number, start
            if ends_too and following > 0:
                yield number, following


def _check_range(stitch: Stitch, sigma: float) -> None:
    noise_levels = stitch.model.denoiser.noise_levels
    if sigma < noise_levels.sigma_min * (1 - combining.TOLERANCE):
        raise ConfigError(
            f"{stitch.title} would be asked at the noise level {sigma:.4g}, below the smallest "
            f"that it knows, {noise_levels.sigma_min:.4g}; give it a smaller share of the run"
        )
    if sigma > noise_levels.sigma_max * (1 + combining.TOLERANCE):
        raise ConfigError(
            f"{stitch.title} would be asked at the noise level {sigma:.4g}, above the largest "
            f"that it knows, {noise_levels.sigma_max:.4g}; begin the run there "
            f"(sampler.schedule.sigma_max={noise_levels.sigma_max:.6g}), or stitch another model"
        )

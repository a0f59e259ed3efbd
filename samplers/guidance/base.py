"""The contract of guidance: a denoiser around a denoiser, with a window and other models."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State, StepInfo
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.diffusion.spaces import space_of
from genlab.errors import ConfigError, SamplingError
from genlab.registry import class_path
from genlab.samplers.base import Grid
from genlab.samplers.parts import Counted
from genlab.samplers.registries import GUIDANCE as GUIDANCE

TOLERANCE = 1e-6
"""How near a step may come to the end of a window to count as standing on it: relative for noise
levels, absolute for time and for step numbers. Printed or computed ends then mean what they say."""


@dataclass(frozen=True, kw_only=True)
class When:
    """When a guidance acts: where every window that is given holds. Outside it costs nothing.

    Attributes:
        sigma: (low, high), low < noise level <= high.
        time: (low, high), low <= time <= high in the model's own time: 1 is noise, 0 data.
        steps: (low, high) in shares of the run: from step int(low N) to before step int(high N).

    All are of the level that a step starts from, before churn, and hold for the whole step. A level
    within `TOLERANCE` of an end stands on it: the low end of ``sigma`` is outside, all the others
    are inside.

    Source: Kynkäänniemi et al. (arXiv:2404.07724), for ``sigma``.
    """

    sigma: tuple[float, float] | None = None
    time: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, window in vars(self).items():
            if window is not None and not 0 <= window[0] <= window[1]:
                raise ConfigError(f"when.{name} needs 0 <= low <= high, got {list(window)}")
        for name, window in (("time", self.time), ("steps", self.steps)):
            if window is not None and window[1] > 1:
                raise ConfigError(f"when.{name} lies between 0 and 1, got {list(window)}")

    def holds(self, step: StepInfo, noise_levels: NoiseLevels) -> bool:
        """Whether a step lies in every window."""
        return self.covers(step.level, step.index, step.num_steps, noise_levels)

    def covers(self, level: float, index: int, num_steps: int, noise_levels: NoiseLevels) -> bool:
        """Whether the step of this number, which starts from this level, lies in every window."""
        if self.sigma is not None:
            low, high = (end * (1 + TOLERANCE) for end in self.sigma)
            if not low < level <= high:
                return False
        if self.time is not None:
            low, high = self.time
            if not low - TOLERANCE <= noise_levels.time_of(level) <= high + TOLERANCE:
                return False
        if self.steps is None:
            return True
        first, end = (int(share * num_steps + TOLERANCE) for share in self.steps)
        return first <= index < end

    def is_apart_from(self, other: "When") -> bool:
        """Whether no step can ever lie in both."""
        for name in ("sigma", "time", "steps"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours is None or theirs is None:
                continue
            lower, upper = sorted([ours, theirs])
            # Both ends of a window of time are inside it, of the others only one.
            if lower[1] < upper[0] or (lower[1] == upper[0] and name != "time"):
                return True
        return False


ALWAYS = When()


class Guidance(Denoiser):
    """A denoiser around a denoiser. A guidance is its `guide`; the rest is here.

    Args:
        inner: what is guided.
        when: when it acts; otherwise ``inner`` alone is evaluated.
        space: in which predictions are combined, one of `genlab.diffusion.spaces.SPACES` or
            ``model``, the one that the network predicts in; it matters where the guidance is not
            affine.
        others: denoisers, or other models, that it uses beside ``inner``: they get each step and
            are counted.
    """

    changes_by_step = True  # by its window, its weight, its draws

    def __init__(
        self,
        inner: Denoiser,
        *,
        when: When = ALWAYS,
        space: str = "x0",
        others: Sequence[Counted] = (),
    ) -> None:
        self.inner, self.when, self.others = inner, when, tuple(others)
        self.space = space_of(space, inner.noise_levels)
        self.noise_levels = inner.noise_levels
        self.num_classes = inner.num_classes
        self.has_null_class = inner.has_null_class
        self.active = True  # until a run says where it stands

    @abstractmethod
    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """Predict the images under each of the conditions.

        What is asked of ``inner`` in one call of `predict_each` runs as one batch.

        Args:
            x: noisy images, (B, C, H, W), in the unscaled frame.
            sigma: noise level of the batch or of each sample.
            conditions: of the whole batch: one, or more where a guidance around this one asks.
        """

    def __call__(self, x: State, sigma: Sigma, condition: Condition) -> State:
        """Denoise; see `Denoiser.__call__`."""
        return self.predict(x, sigma, condition).estimate(sigma)

    def predict(self, x: State, sigma: Sigma, condition: Condition) -> Prediction:
        """Denoise and give the variance, too; see `Denoiser.predict`."""
        return self.predict_each(x, sigma, [condition])[0]

    def predict_each(
        self, x: State, sigma: Sigma, conditions: Sequence[Condition]
    ) -> list[Prediction]:
        """Predict under several conditions; see `Denoiser.predict_each`."""
        if not self.active:
            return self.inner.predict_each(x, sigma, conditions)
        predictions = self.guide(x, sigma, conditions)
        if not _are_predictions(predictions, x, len(conditions)):
            raise SamplingError(
                f"the guidance {class_path(type(self))} must return a list of {len(conditions)} "
                f"predictions from guide, each of shape {tuple(x.shape)}"
            )
        return predictions

    def begin_step(self, step: StepInfo) -> None:
        """Decide whether to act in a step, and pass it on."""
        self.active = self.when.holds(step, self.noise_levels)
        for denoiser in (self.inner, *self.others):
            if isinstance(denoiser, Denoiser):
                denoiser.begin_step(step)

    @property
    def evaluations(self) -> int:  # type: ignore[override]  # counted where the networks are
        """Network evaluations so far, in rows, of every model below; each of them counts once."""
        return sum(model.evaluations for model in self._models())

    def _models(self) -> list[Counted]:
        by_id: dict[int, Counted] = {}
        for below in (self.inner, *self.others):
            models = below._models() if isinstance(below, Guidance) else [below]
            by_id |= {id(model): model for model in models}
        return list(by_id.values())


def stack_of(denoiser: Denoiser) -> Iterator[Guidance]:
    """The guidance that a denoiser consists of, outermost first; stitched models are the last."""
    while isinstance(denoiser, Guidance):
        yield denoiser
        denoiser = denoiser.inner


def model_below(denoiser: Denoiser) -> Denoiser:
    """The model that is sampled, under all its guidance."""
    for guidance in stack_of(denoiser):
        denoiser = guidance.inner
    return denoiser


def _are_predictions(predictions: Any, x: State, count: int) -> bool:
    return (
        isinstance(predictions, list)
        and len(predictions) == count
        and all(isinstance(each, Prediction) and each.x0.shape == x.shape for each in predictions)
    )


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(ABC):
    """The options of a guidance: a frozen dataclass that wraps a denoiser when it is called.

    Attributes:
        when: when it acts; by default always.
        outermost: whether no other guidance may stand around it, because it changes what all of
            them ask with.
        parts: option -> kind of the model that it holds (`genlab.samplers.parts`). In a config it
            is a name or a folder; it is loaded before a run, moved with the model, and its hash is
            part of the run's identity.
        by_class: whether it has a ``scale`` by which classes are made clearer at the cost of
            variety, as classifier-free guidance does: the one that a guidance scale given for the
            whole run (``genlab sample --guidance``) is meant for.
        remembers: whether a prediction depends on what was asked earlier in the run. Such guidance
            is refused to solvers that evaluate a batch as often as its slowest sample needs: there
            an image would depend on its batch.
        suits: which models it is for, in a few words.
        example: options of a typical use, for a command to copy.
        below: guidance that stands below it there.
    """

    outermost: ClassVar[bool] = False
    parts: ClassVar[Mapping[str, str]] = {}
    by_class: ClassVar[bool] = False
    suits: ClassVar[str] = "any"
    example: ClassVar[Mapping[str, Any]] = {}
    below: ClassVar[Sequence[Mapping[str, Any]]] = ()

    when: When = field(default_factory=When)

    @property
    def remembers(self) -> bool:
        """Whether a prediction depends on earlier ones of the run."""
        return False

    @abstractmethod
    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: the guidance makes no sense for this model.
        """

    def check_run(self, grid: Grid) -> None:
        """Look at the noise levels of a run, before it begins.

        Raises:
            ConfigError: the guidance makes no sense for this run.
        """
        if grid.restarts and self.when.steps is not None:
            raise ConfigError(
                "when.steps goes by the number of a step, which says nothing about the noise in a "
                "run with restarts; give when.sigma or when.time in its place"
            )

"""DDPM, DDIM and classifier guidance in the unscaled frame, by what is known exactly."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ideal_cases import SEEDS, SHAPE, Listener, Timesteps, mixture, run
from torch import Tensor, nn

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.errors import ConfigError
from genlab.samplers.base import SOLVERS, Grid
from genlab.samplers.editing.inversion import ddim_latents
from genlab.samplers.guidance.base import GUIDANCE
from genlab.samplers.guidance.classifier import ClassifierGuidance, class_gradient
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.solvers.ddpm import DDPM

STD = 0.5


class OneDraw(NoiseStream):
    """In row k of a batch the k-th draw is 1, all others are 0: a linear run takes itself apart."""

    def __init__(self, rows: int) -> None:
        super().__init__([])
        self.rows, self.draw = rows, 0

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        numbers = torch.zeros(self.rows, *shape, dtype=dtype)
        numbers[self.draw] = 1
        self.draw += 1
        return numbers

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        raise AssertionError


def variance_of_samples(solver: dict[str, Any], num_steps: int) -> float:
    """Of what a solver draws from one Gaussian pixel: exact, because every step is linear."""
    ideal = GaussianMixtureDenoiser(
        torch.ones(1).double(), torch.zeros(1, 1, 1, 1).double(), torch.tensor([STD]).double()
    )
    levels = {"name": "karras", "num_steps": num_steps, "sigma_min": 0.02, "sigma_max": 40.0}
    rows = num_steps + 1
    *_, last = sample_steps(
        Sampler.from_config({"solver": solver, "schedule": levels}),
        ideal,
        noise=OneDraw(rows),
        condition=Condition(),
        image_shape=(1, 1, 1),
        device="cpu",
    )
    return float(last.x.square().sum())


@pytest.mark.parametrize(
    "solver",
    [
        {"name": "ddpm", "variance": "fixed_small"},
        {"name": "ddpm", "variance": "fixed_large"},
        {"name": "ddim", "eta": 0.6},
        {"name": "ddim", "eta": 1.0},
    ],
    ids=str,
)
def test_variance_converges_with_order_one(solver: dict[str, Any]) -> None:
    """Random steps converge in distribution: the variance of the samples, to that of the data."""
    errors = [abs(variance_of_samples(solver, n) / STD**2 - 1) for n in (100, 200, 400)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < 0.05
    assert all(abs(slope - 1) < 0.25 for slope in slopes)


@pytest.mark.parametrize("schedule", ["karras", "respaced"])
def test_ddim_with_full_noise_is_ddpm_with_the_small_variance(schedule: str) -> None:
    config = {"schedule": {"name": schedule, "num_steps": 8}}
    a, b = (
        run({**config, "solver": solver}, Timesteps(mixture()))[-1].x
        for solver in ({"name": "ddim", "eta": 1.0}, {"name": "ddpm", "variance": "fixed_small"})
    )
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_ddim_without_noise_is_euler_up_to_its_start() -> None:
    config = {"schedule": {"name": "karras", "num_steps": 10}}
    sigma_max = 80.0
    latents = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)).double()

    def last(solver: str, start: Tensor) -> Tensor:
        *_, step = sample_steps(
            Sampler.from_config({**config, "solver": solver}),
            mixture(),
            noise=NoiseStream(SEEDS),
            condition=Condition(),
            image_shape=SHAPE,
            device="cpu",
            latents=start,
        )
        return step.x

    stretched = latents * math.hypot(1, sigma_max) / sigma_max
    torch.testing.assert_close(last("ddim", latents), last("euler", stretched))


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_clipping_keeps_estimates_in_range(solver: str) -> None:
    steps = run({"solver": {"name": solver, "clip": True}, "schedule": {"num_steps": 6}})
    assert all(float(step.x0.abs().max()) <= 1 for step in steps)
    free = run({"solver": solver, "schedule": {"num_steps": 6}})
    assert any(float(step.x0.abs().max()) > 1 for step in free)


def test_encoding_is_undone_by_sampling() -> None:
    """The error falls with the number of steps: by first-order steps there and back."""
    images = mixture().means + 0.1
    stack_of = {
        n: Sampler.from_config({"solver": "ddim", "schedule": {"num_steps": n}}) for n in (50, 200)
    }
    errors = []
    for stack in stack_of.values():
        model = mixture()
        levels = Grid.of(stack.schedule, model.noise_levels).sigmas
        latents = ddim_latents(model, images, levels, Condition())
        *_, last = sample_steps(
            stack,
            model,
            noise=NoiseStream([0, 1, 2]),
            condition=Condition(),
            image_shape=SHAPE,
            device="cpu",
            latents=latents,
        )
        errors.append(float((last.x - images).norm() / images.norm()))
    assert errors[1] < 0.4 * errors[0] < 0.1


class Predicting(nn.Module):
    """A network whose output is its input, and whose variance channels are all ``v``."""

    label_dim = 2

    def __init__(self, v: float) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.tensor(v))

    def embed_labels(self, labels: Tensor) -> Tensor:
        return labels[:, None].float()

    def forward(self, x: Tensor, c_noise: Tensor, classes: Tensor, augment: None) -> Tensor:
        # The variance channels tell the class, so that the test sees whose they are.
        return torch.cat([x, (self.v + classes[:, :, None, None]).expand_as(x)], dim=1)


def predicting(v: float) -> PreconditionedDenoiser:
    model = Discrete(T=40, variance="learned_range")
    return PreconditionedDenoiser(Predicting(v), model, num_classes=2, has_null_class=True)


@pytest.mark.parametrize(("v", "kind"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_predicted_variance_is_taken(v: float, kind: str) -> None:
    """Minus one is the smaller fixed variance, one is the larger."""
    config = {"schedule": {"name": "respaced", "num_steps": 8}}
    condition = Condition(labels=torch.zeros(4, dtype=torch.int64))
    learned, fixed = (
        run({**config, "solver": {"name": "ddpm", **solver}}, predicting(v), condition=condition)
        for solver in ({}, {"variance": kind})
    )
    with torch.no_grad():
        for a, b in zip(learned[:-1], fixed[:-1], strict=True):  # the last one adds no noise
            torch.testing.assert_close(a.x, b.x, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equal_noise_levels_are_refused_where_the_variance_lies_between_bounds() -> None:
    """Both bounds are 0 there, and so is what lies between them, but not in logarithms."""
    model = predicting(-1.0)
    schedule = {"name": "karras", "num_steps": 100}
    condition = Condition(labels=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="ddpm with a learned variance cannot take such steps"):
        run({"solver": "ddpm", "schedule": schedule}, model, condition=condition)
    fixed = {"name": "ddpm", "variance": "fixed_small"}
    last = run({"solver": fixed, "schedule": schedule}, model, condition=condition)[-1].x
    assert last.isfinite().all()


@torch.no_grad()
def test_guidance_keeps_the_variance_of_the_class() -> None:
    model = predicting(0.25)
    guided = GUIDANCE.build("cfg", scale=3.0)(model)
    labels = torch.tensor([0, 1])
    x, sigma = torch.randn(2, *SHAPE).double(), torch.tensor(1.0).double()
    prediction = guided.predict(x, sigma, Condition(labels=labels))
    assert guided.noise_levels.variance == "learned_range"
    assert prediction.variance is not None
    assert prediction.variance.mean((1, 2, 3)).tolist() == pytest.approx([0.25, 1.25])


def test_guidance_that_loses_the_variance_is_told() -> None:
    condition = Condition(labels=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="a guidance around it has lost it"):
        run(
            {"solver": "ddpm", "schedule": {"name": "respaced", "num_steps": 4}},
            Listener(predicting(0.0)),
            condition=condition,
        )


class IdealClassifier:
    """Knows the mixture: logits are each class's log density at a noise level."""

    num_classes = 3
    evaluations = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        model = mixture()
        variance = model.stds**2 + sigma.reshape(-1, 1) ** 2
        distance = (x[:, None] - model.means).square().sum((2, 3, 4))
        return model.weights.log() - 0.5 * (x[0].numel() * variance.log() + distance / variance)

    def to(self, device: Any = None, dtype: Any = None) -> "IdealClassifier":
        return self

    def prepare(self) -> None:
        pass

    def sha256(self) -> str:
        return "ideal"


def guided(scale: float, denoiser: Denoiser | None = None) -> Denoiser:
    return ClassifierGuidance(classifier=IdealClassifier(), scale=scale)(denoiser or mixture())


class Unlabelled(Listener):
    """The mixture as a model that never looks at classes."""

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return self.inner(x, sigma, Condition())


def test_bayes_rule_makes_a_model_conditional() -> None:
    """``D + sigma^2 grad log p(class | x)`` of the whole mixture is the class's own denoiser."""
    labels = torch.tensor([0, 1, 2, -1])
    x = 2 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3)).double()
    for sigma in (torch.tensor(0.7).double(), torch.tensor([0.2, 0.9, 3.0, 1.0]).double()):
        ours = guided(1.0, Unlabelled(mixture()))(x, sigma, Condition(labels=labels))
        theirs = mixture()(x, sigma, Condition(labels=labels))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # float32 inside


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "heun", "euler"])
def test_every_solver_follows_the_classifier(solver: str) -> None:
    labels = torch.zeros(16, dtype=torch.int64)
    guidance = [{"name": "classifier", "classifier": IdealClassifier(), "scale": 1.0}]
    config = {"solver": solver, "schedule": {"num_steps": 60}, "guidance": guidance}
    x = run(config, Unlabelled(mixture()), range(16), Condition(labels=labels))[-1].x
    standard = (x - mixture().means[0]) / mixture().stds[0]
    assert standard.mean().abs() < 0.35  # 128 numbers: three standard errors and a little bias
    assert 0.7 < standard.std() < 1.3


def test_gradient_is_that_of_differences() -> None:
    classifier, sigma = IdealClassifier(), torch.tensor([0.5, 2.0])
    x = torch.randn(2, *SHAPE)
    rows = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])  # soft labels
    gradient = class_gradient(classifier, x.double(), sigma, rows)
    assert gradient.dtype == torch.float64

    def value(shift: Tensor) -> Tensor:
        return (rows * classifier(x.double() + shift, sigma.double()).log_softmax(1)).sum()

    for position in [(0, 0, 0, 0), (0, 1, 1, 0), (1, 0, 1, 1)]:
        step = torch.zeros_like(x, dtype=torch.float64)
        step[position] = 1e-4
        slope = (value(step) - value(-step)) / 2e-4
        assert float(gradient[position]) == pytest.approx(float(slope), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": IdealClassifier(), "scale": -1.0}, "scale >= 0"),
        ({"classifier": IdealClassifier(), "scale": math.nan}, "scale >= 0"),
        ({"classifier": 3}, "a name, a folder or a NoisyClassifier, got int"),
        ({}, "classifier"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GUIDANCE.build("classifier", **options)


def test_what_does_not_fit_is_refused() -> None:
    four = GaussianMixtureDenoiser(torch.ones(4) / 4, torch.zeros(4, *SHAPE), torch.ones(4))
    with pytest.raises(ConfigError, match="the classifier knows 3 classes and the model 4"):
        guided(1.0, four)
    with pytest.raises(ConfigError, match="give labels"):
        run({"schedule": {"num_steps": 2}}, guided(1.0))
    assert torch.equal(  # off is off
        run({"schedule": {"num_steps": 2}}, guided(0.0))[-1].x,
        run({"schedule": {"num_steps": 2}})[-1].x,
    )


@pytest.mark.parametrize("steps", ["ddim30", "4,4,41", 41, [3], True])
def test_schedule_that_the_model_cannot_give_is_refused(steps: Any) -> None:
    with pytest.raises(ConfigError, match="steps"):
        run({"schedule": {"name": "respaced", "steps": steps}}, Timesteps(mixture()))


def test_number_of_steps_keeps_the_way_of_spacing() -> None:
    def levels(**options: Any) -> list[float]:
        schedule = Sampler.from_config({"schedule": {"name": "respaced", **options}}).schedule
        return Grid.of(schedule, Timesteps(mixture()).noise_levels).sigmas.tolist()

    assert levels(steps="ddim10") == levels(steps="ddim40", num_steps=10)
    assert levels(steps="10") == levels(steps="3,4", num_steps=10) == levels(num_steps=10)
    assert levels(steps="ddim10") != levels(steps=10)
    with pytest.raises(ConfigError, match="take karras"):
        run({"schedule": "respaced"})


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_impossible_eta_is_refused(eta: float) -> None:
    with pytest.raises(ConfigError, match="0 <= eta <= 1"):
        SOLVERS.build("ddim", eta=eta)


def test_unknown_variance_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fixed_small'"):
        DDPM(variance="fixed-small")
    for predicted in ("learned", "learned_range"):  # what the model alone can say
        with pytest.raises(ConfigError, match="none for the model's own, got 'learned"):
            DDPM(variance=predicted)


@pytest.mark.parametrize("name", ["euler-ancestral", "dpm2-ancestral", "dpmpp-2s", "dpmpp-sde"])
def test_more_noise_than_ddpm_keeps_the_level(name: str) -> None:
    solver = SOLVERS.build(name, eta=3.0)
    for sigma, sigma_next in ((5.0, 4.0), (5.0, 0.5), (5.0, 0.0)):
        down, up = solver.split(sigma, sigma_next)
        assert down**2 + up**2 == pytest.approx(sigma_next**2)
        assert 0 <= up <= sigma_next
    assert run({"solver": {"name": name, "eta": 3.0}})[-1].x.isfinite().all()
    with pytest.raises(ConfigError, match="needs eta >= 0"):
        SOLVERS.build(name, eta=-1.0)

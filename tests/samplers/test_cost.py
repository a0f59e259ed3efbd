"""What solvers say of a run's cost and randomness, held against what is counted."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from ideal_cases import FREE_SOLVERS, SEEDS, SHAPE, mixture
from torch import Tensor

from genlab import DiffusionGenerator
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, StepInfo
from genlab.diffusion.flow import Flow
from genlab.diffusion.noise import Noise, NoiseStream
from genlab.samplers.base import SOLVERS, Solver, SolverStep
from genlab.samplers.guidance.base import ALWAYS, GUIDANCE, GuidanceOptions, When
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.solvers.restart import Restart

STEPS = 4
LABELS = torch.tensor([0, 2])

# Options under which a solver draws more, or less, than by default.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FREE_SOLVERS),
    ("euler", {"S_churn": 6}),
    ("heun", {"S_churn": 6}),
    ("dpm2", {"S_churn": 6}),
    ("general", {"S_churn": 6}),
    ("ddim", {"eta": 0.5}),
    ("dpmpp", {"sde": True}),
    ("dpmpp", {"sde": True, "eta": 0.0}),
    ("dpmpp", {"sde": True, "noise": "brownian"}),
    ("dpmpp-2s", {"eta": 0.0}),
    ("dpmpp-sde", {"noise": "independent"}),
    ("dpmpp-sde", {"eta": 0.0}),
    ("euler-ancestral", {"eta": 0.0}),
    ("euler-ancestral", {"noise": "brownian"}),
    ("dpmpp-2s", {"noise": "brownian"}),
    ("flow-sde", {"noise": "brownian"}),
    ("dpm2-ancestral", {"eta": 0.0}),
    ("restart", {"S_churn": 6}),
]
COUNTED = [name for name in FREE_SOLVERS if name != "adaptive"]  # whose cost is told after a run
COSTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in COUNTED),
    ("flow", {"method": "euler"}),
    ("flow", {"method": "midpoint"}),
    ("flow", {"method": "rk4"}),
    ("flow-sde", {"method": "heun"}),
    ("general", {"solver": "euler"}),
]
WHENS = (ALWAYS, When(steps=(0.25, 0.75)), When(sigma=(0.1, 20.0)), When(time=(0.0, 0.5)))


class Counting:
    """Noise that counts draws: those of the samples' streams, and those of forks."""

    def __init__(self, inner: Noise, root: "Counting | None" = None) -> None:
        self.inner, self.root = inner, root
        self.draws = self.forked = 0

    def _count(self) -> None:
        if self.root is None:
            self.draws += 1
        else:
            self.root.forked += 1

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        self._count()
        return self.inner.randn(shape, dtype)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        self._count()
        return self.inner.rand(shape, dtype)

    def fork(self, key: str) -> Noise:
        return Counting(self.inner.fork(key), self.root or self)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_draws_are_those_counted(name: str, options: Mapping[str, Any]) -> None:
    solver: Solver = SOLVERS.build(name, **options)
    noise = Counting(NoiseStream(SEEDS))
    drawn: list[tuple[int, int]] = []
    steps = list(
        sample_steps(
            Sampler(solver=solver, schedule=Karras(num_steps=STEPS)),
            mixture(),
            noise=noise,
            condition=Condition(),
            image_shape=SHAPE,
            device="cpu",
            hooks=[lambda step: drawn.append((noise.draws, noise.forked))],
        )
    )
    # Each step but the last, which ends at 0; the first draw of all is that of the latents.
    counts = [b[0] - a[0] for a, b in itertools.pairwise([(1, 0), *drawn[:-1]])]
    if isinstance(solver, Restart):
        rising = [step.sigma_next > step.level for step in steps[:-1]]
        assert counts == [1 if rises else min(solver.S_churn, 1) for rises in rising]
        assert solver.draws() == 1
    elif getattr(solver, "noise", None) == "brownian":
        assert set(counts) == {0}, "a path draws from forks alone"
        assert (drawn[0][1] > 0) == (solver.draws() > 0)
    else:
        assert set(counts) == {solver.draws()}
    if solver.draws() == 0:
        assert drawn[-1] == (1, 0), "a deterministic run draws its latents only"


def generator_run(generator: DiffusionGenerator, sampler: Sampler) -> list[Any]:
    """Network evaluations a sample of each step, then the steps."""
    models = [generator.denoiser, *(part for parts in sampler.parts.values() for part in parts)]
    before = sum(model.evaluations for model in models)
    counts: list[int] = []

    def note(step: SolverStep) -> None:
        total = sum(model.evaluations for model in models)
        counts.append((total - before) // len(LABELS) - sum(counts))

    with torch.no_grad():
        steps = list(
            sample_steps(
                sampler,
                generator.denoiser,
                noise=NoiseStream(range(len(LABELS))),
                condition=Condition(labels=LABELS),
                image_shape=generator.image_shape,
                device="cpu",
                hooks=[note],
            )
        )
    return [counts, *steps]


@pytest.mark.parametrize(("name", "options"), COSTS, ids=str)
@pytest.mark.parametrize("num_steps", [1, STEPS])
def test_nfe_is_what_is_counted(
    tiny_generator: DiffusionGenerator, name: str, options: Mapping[str, Any], num_steps: int
) -> None:
    solver: Solver = SOLVERS.build(name, **options)
    sampler = Sampler(solver=solver, schedule=Karras(num_steps=num_steps))
    if name == "restart" and num_steps == 1:
        pytest.skip("a restart needs a level to come back to")
    counts = generator_run(tiny_generator, sampler)[0]
    assert sum(counts) == solver.nfe(num_steps)


class Linear:
    """A classifier of noisy images of any shape, that is at once a part of a sampler."""

    num_classes = 3
    evaluations = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.evaluations += len(x)
        return x.flatten(1)[:, :3].float()

    def to(self, device: Any = None, dtype: Any = None) -> "Linear":
        return self

    def prepare(self) -> None: ...

    def sha256(self) -> str:
        return "linear"


def options_of(guidance: str, when: When, generator: DiffusionGenerator) -> GuidanceOptions:
    """A typical use of a guidance, with small models for those that it names."""
    cls = GUIDANCE[guidance]
    models: dict[str, Any] = {"classifier": Linear(), "generator": twin(generator)}
    named = {option: models[kind] for option, kind in cls.parts.items()}
    options: GuidanceOptions = GUIDANCE.build(guidance, **{**cls.example, **named, "when": when})
    return options


def twin(generator: DiffusionGenerator) -> DiffusionGenerator:
    return DiffusionGenerator.from_metadata(copy.deepcopy(generator.network), generator.metadata())


def suited(guidance: str, generator: DiffusionGenerator) -> DiffusionGenerator:
    """The model, trained as the guidance wants it."""
    if GUIDANCE[guidance].suits.startswith("flow matching"):
        return DiffusionGenerator(generator.network, Flow(), has_null_class=True)
    return generator


def calls(options: GuidanceOptions, generator: DiffusionGenerator) -> int:
    """What one estimate under a guidance costs a sample: counted in an Euler step."""
    two = Sampler(solver=SOLVERS.build("euler"), schedule=Karras(num_steps=2), guidance=(options,))
    return int(generator_run(generator, two)[0][0])


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("when", WHENS, ids=["always", "steps", "sigma", "time"])
@pytest.mark.parametrize("solver", COUNTED)
def test_nfe_under_guidance(
    tiny_generator: DiffusionGenerator, solver: str, guidance: str, when: When
) -> None:
    """Each of a solver's estimates costs what the guidance costs, in the steps that it acts in."""
    if solver == "restart" and (when.steps is not None or guidance == "cads"):
        pytest.skip("refused: by steps they mean nothing in a run with restarts")
    model = suited(guidance, tiny_generator)
    plain = Sampler(solver=SOLVERS.build(solver), schedule=Karras(num_steps=STEPS))
    alone, *steps = generator_run(model, plain)
    options = options_of(guidance, when, model)
    guided = Sampler(solver=plain.solver, schedule=plain.schedule, guidance=(options,))
    cost = calls(options_of(guidance, ALWAYS, model), model)
    levels: Denoiser = model.denoiser
    acts = [when.holds(StepInfo(**info_of(step)), levels.noise_levels) for step in steps]
    assert any(acts)
    expected = [count * (cost if active else 1) for count, active in zip(alone, acts, strict=True)]
    assert generator_run(model, guided)[0] == expected


def info_of(step: SolverStep) -> dict[str, Any]:
    return {name: getattr(step, name) for name in StepInfo.__dataclass_fields__}

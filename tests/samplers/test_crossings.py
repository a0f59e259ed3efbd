"""A step of a run on a GPU leaves the program free to go ahead of it."""

from typing import Any

import pytest
import torch
from crossings import META, waits_of
from ideal_cases import FREE_SOLVERS

from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import Flow
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.noise_levels import VARIANCES
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import EDM, IDDPM, VE, VP, Preconditioning
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ADMClassifier, SongUNet
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.diffusers_scheduler import diffusers_sampler

SHAPE = (1, 8, 8)
TIMESTEPS = {"name": "respaced", "steps": 3}
CFG = {"name": "cfg", "scale": 2.0}
CORRECTED = {"rescale": 0.7, "threshold": 0.9, "weight": {"name": "power-cosine"}}


def denoiser(model: Preconditioning) -> PreconditionedDenoiser:
    with META:
        outputs = 2 if model.variance.startswith("learned") else 1
        network = SongUNet(8, 1, outputs, 3, model_channels=8, channel_mult=[1], num_blocks=1)
    return PreconditionedDenoiser(network, model, num_classes=3, has_null_class=True)


def classifier() -> dict[str, Any]:
    with META:
        network = ADMClassifier(
            8, 1, 3, model_channels=32, channel_mult=[1], num_blocks=1, num_head_channels=32
        )
    return {"name": "classifier", "classifier": NoisyClassifier(network, Discrete(T=50))}


class Guide:
    """A second model."""

    evaluations = 0

    def __init__(self, model: Preconditioning) -> None:
        self.denoiser = denoiser(model)

    def to(self, device: Any = None, dtype: Any = None) -> None:
        pass

    def prepare(self) -> None:
        pass

    def sha256(self) -> str:
        return "0"


def waits(model: Preconditioning, sampler: dict[str, Any]) -> list[str]:
    """The copies that wait in all steps but the first, which places tables and labels."""
    steps = sample_steps(
        Sampler.from_config({"schedule": {"name": "karras", "num_steps": 3}, **sampler}),
        denoiser(model),
        noise=NoiseStream([0, 1], META),
        condition=Condition(labels=torch.eye(3, device=META)[:2]),
        image_shape=SHAPE,
        device=META,
    )
    next(steps)
    return waits_of(lambda: list(steps))


# The adaptive one decides after each attempt whether the samples have arrived: it has to wait.
@pytest.mark.parametrize("solver", [name for name in FREE_SOLVERS if name != "adaptive"])
def test_solvers_do_not_wait(solver: str) -> None:
    random = {"S_churn": 4.0} if solver in ("dpm2", "euler", "heun", "general") else {}
    assert waits(EDM(), {"solver": {"name": solver, **random}}) == []


@pytest.mark.parametrize(
    "model",
    [
        VP(),
        VE(),
        IDDPM(M=20),
        Flow(),
        Discrete(T=50),
        Discrete(T=50, interpolate=True),
        Discrete(T=50, interpolate=True, nearest_in_log=True),
    ],
    ids=str,
)
def test_preconditionings_do_not_wait(model: Preconditioning) -> None:
    assert waits(model, {"schedule": {"name": "karras", "num_steps": 3, "sigma_max": 5.0}}) == []


@pytest.mark.parametrize(
    ("solver", "variance"),
    [("ddpm", variance) for variance in VARIANCES] + [("ddim", "learned"), ("heun", "learned")],
)
def test_guided_chains_do_not_wait(solver: str, variance: str) -> None:
    sampler = {"solver": solver, "schedule": TIMESTEPS, "guidance": [CFG, classifier()]}
    with torch.no_grad():
        assert waits(Discrete(T=50, variance=variance), sampler) == []


@pytest.mark.parametrize("space", ["model", "x0", "eps", "v", "flow-v"])
@pytest.mark.parametrize("name", ["cfg", "apg", "fdg", "cfg-zero", "auto"])
def test_guidance_does_not_wait(name: str, space: str) -> None:
    options: dict[str, Any] = {"name": name, "scale": 2.0, "space": space, **CORRECTED}
    if name == "apg":
        options |= {"r": 1.0, "momentum": -0.5}
    if name == "auto":
        options |= {"guide": Guide(Discrete(T=50))}
    sampler = {
        "solver": "heun",
        "schedule": {"name": "karras", "num_steps": 4, "sigma_min": 0.1, "sigma_max": 5.0},
        "guidance": [options],
    }
    assert waits(Flow(), sampler) == []


def test_a_wait_would_be_found() -> None:
    assert waits_of(lambda: torch.zeros(3).to(META)) != []
    assert waits_of(lambda: torch.zeros(3, device=META).copy_(torch.zeros(3))) != []
    assert waits_of(lambda: torch.zeros(3).to(META, non_blocking=True)) == []
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros(1, device=META))


@pytest.mark.parametrize(
    "scheduler",
    ["DEISMultistepScheduler", "DPMSolverMultistepScheduler", "KDPM2DiscreteScheduler",
     "PNDMScheduler"],
)  # fmt: skip
def test_schedulers_of_diffusers_do_not_wait(scheduler: str) -> None:
    sampler = diffusers_sampler(scheduler, num_steps=5)
    assert waits(Discrete(interpolate=True), sampler) == []

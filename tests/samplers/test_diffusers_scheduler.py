"""diffusers' schedulers under our loop, against diffusers' own loop on the closed-form mixture."""

import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from ideal_cases import SEEDS, SHAPE, Listener, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.discrete import Discrete, betas
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError
from genlab.samplers.base import SOLVERS, SolverStep
from genlab.samplers.diffusers_schedulers import KINDS, quiet
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.diffusers_scheduler import diffusers_sampler
from genlab.samplers.solvers.diffusers_scheduler import generators_for

T = 200
NUM_STEPS = 7
MODEL = Discrete(T=T, beta_start=1e-4, beta_end=0.1, interpolate=True)
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *[(name, {}, {}) for name in KINDS if KINDS[name].frame in ("chain", "unscaled")],
    ("DDIMScheduler", {"set_alpha_to_one": False, "timestep_spacing": "linspace"}, {"eta": 0.7}),
    ("DEISMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_exponential_sigmas": True}, {}),
    ("DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": 1.5}, {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "solver_order": 3}, {}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}, {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"s_churn": 2.0}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {}),
    ("HeunDiscreteScheduler", {"use_exponential_sigmas": True}, {}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}, {"order": 3}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, {}),
    ("PNDMScheduler", {"prediction_type": "v_prediction"}, {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "disable_corrector": [1]}, {}),
]


class OfKind(Listener):
    """The mixture as a model with given noise levels."""

    def __init__(self, inner: Denoiser, noise_levels: NoiseLevels = MODEL) -> None:
        super().__init__(inner)
        self.noise_levels = noise_levels


def their_loop(name: str, config: dict[str, Any], step: dict[str, Any]) -> Tensor:
    """As a pipeline of diffusers samples, with the mixture for a network."""
    own = {"num_train_timesteps": T, "trained_betas": betas("linear", T, 1e-4, 0.1).tolist()}
    with quiet():
        scheduler: Any = getattr(diffusers, name)(**{**own, **config})
        scheduler.set_timesteps(NUM_STEPS)
    noise = NoiseStream(SEEDS)
    x = noise.randn(SHAPE) * scheduler.init_noise_sigma
    if KINDS[name].draws({**scheduler.config, **_defaults(scheduler), **step}):
        step = {**step, "generator": generators_for(noise)}
    for t in scheduler.timesteps:
        output = _network(scheduler.scale_model_input(x, t), t, scheduler.config.prediction_type)
        with quiet():
            x = scheduler.step(output, t, x, **step).prev_sample
    return x


def _defaults(scheduler: Any) -> dict[str, Any]:
    return {"eta": 0.3 if isinstance(scheduler, diffusers.TCDScheduler) else 0.0}


def _network(x: Tensor, t: Tensor, prediction: str) -> Tensor:
    """What an epsilon or v network would say of images in the chain's frame."""
    sigma = float(np.interp(float(t), np.arange(T), MODEL.levels.numpy()))
    unscaled = x.double() * (1 + sigma**2) ** 0.5
    x0 = mixture()(unscaled, torch.tensor(sigma, dtype=torch.float64), Condition())
    eps = (unscaled - x0) / sigma
    v = (eps - sigma * x0) * (1 + sigma**2) ** -0.5
    return {"epsilon": eps, "v_prediction": v}[prediction].float()


def ours(
    name: str, config: dict[str, Any], step: dict[str, Any] | None = None, **options: Any
) -> list[SolverStep]:
    sampler = diffusers_sampler(name, config, num_steps=NUM_STEPS, step=step)
    return run(sampler, options.pop("model", None) or OfKind(mixture()), **options)


@pytest.mark.parametrize(("name", "config", "step"), CASES, ids=str)
def test_same_as_in_diffusers(name: str, config: dict[str, Any], step: dict[str, Any]) -> None:
    torch.testing.assert_close(
        ours(name, config, step)[-1].x.float(),
        their_loop(name, config, step),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", KINDS)
def test_contract(name: str) -> None:
    in_chain = KINDS[name].frame in ("chain", "unscaled")

    def model() -> Listener:
        return OfKind(mixture()) if in_chain else Listener(mixture())

    listener = model()
    steps = ours(name, {}, model=listener)
    assert len(steps) == NUM_STEPS
    assert steps[-1].sigma_next == 0
    assert all(a.sigma_next == b.sigma < a.sigma for a, b in itertools.pairwise(steps))
    assert len(listener.sigmas) == SOLVERS.build("diffusers", scheduler=name).nfe(NUM_STEPS)
    assert steps[-1].x.dtype == torch.float64
    assert all(step.x.isfinite().all() and step.x0.isfinite().all() for step in steps)
    [alone] = ours(name, {}, model=model(), seeds=SEEDS[2:3])[-1].x
    torch.testing.assert_close(steps[-1].x[2], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "calls"), [({}, 16), ({"skip_prk_steps": True}, 8)], ids=["Runge-Kutta", "PLMS"]
)
def test_calls_of_pndm(config: dict[str, Any], calls: int) -> None:
    listener = OfKind(mixture())
    assert len(ours("PNDMScheduler", config, model=listener)) == 7
    assert len(listener.sigmas) == calls
    solver = SOLVERS.build("diffusers", scheduler="PNDMScheduler", config=config)
    assert solver.nfe(7) == calls


def copied(step: SolverStep) -> Tensor:
    return step.x.clone()


@pytest.mark.parametrize(
    ("name", "replaced", "same_as"),
    [
        ("UniPCMultistepScheduler", {}, {"disable_corrector": list(range(NUM_STEPS))}),
        (
            "DPMSolverSinglestepScheduler",
            {"lower_order_final": True},
            {"lower_order_final": True, "solver_order": 1},
        ),
        ("DPMSolverMultistepScheduler", {}, {}),
        ("PNDMScheduler", {}, {}),
        ("HeunDiscreteScheduler", {}, {}),
    ],
)
def test_a_hook_has_the_last_word(
    name: str, replaced: dict[str, Any], same_as: dict[str, Any]
) -> None:
    """What a scheduler remembers of the state is dropped once a hook has replaced it."""
    hooked = ours(name, replaced, hooks=[copied])[-1].x
    torch.testing.assert_close(hooked, ours(name, same_as)[-1].x, rtol=1e-5, atol=1e-5)

    def moved(step: SolverStep) -> Tensor | None:
        return step.x + 1.0 if step.index == 2 else None

    def ended(step: SolverStep) -> Tensor | None:
        return torch.full_like(step.x, 0.25) if step.index == NUM_STEPS - 1 else None

    assert (ours(name, replaced, hooks=[moved])[-1].x - hooked).abs().max() > 1e-3
    assert (ours(name, replaced, hooks=[ended])[-1].x == 0.25).all()


def test_a_deterministic_scheduler_draws_nothing() -> None:
    class Silent(NoiseStream):
        def fork(self, key: str) -> NoiseStream:
            raise AssertionError(key)

    sampler = Sampler.from_config(diffusers_sampler("UniPCMultistepScheduler", num_steps=3))
    noise, fresh = Silent(SEEDS), NoiseStream(SEEDS)
    options: Any = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
    list(sample_steps(sampler, OfKind(mixture()), noise=noise, **options))
    fresh.randn(SHAPE)
    assert torch.equal(noise.randn(()), fresh.randn(()))


def test_any_diffusion_model_is_sampled() -> None:
    """A model of every noise level takes the scheduler's own betas, and a flow's times."""
    for name in ("PNDMScheduler", "FlowMatchHeunDiscreteScheduler"):
        labels = torch.zeros(16, dtype=torch.int64)
        sampler = diffusers_sampler(name, num_steps=24)
        x = run(sampler, seeds=range(16), condition=Condition(labels=labels))[-1].x
        standard = (x - mixture().means[0]) / mixture().stds[0]
        assert standard.mean().abs() < 0.35
        assert 0.7 < standard.std() < 1.3


def test_zero_terminal_snr() -> None:
    model = OfKind(mixture(), Discrete(T=T, prediction="v", zero_terminal_snr=True))
    config = {"timestep_spacing": "trailing"}
    steps = ours("DDIMScheduler", config, model=model)
    assert steps[0].level == 2.0**24
    assert steps[-1].x.isfinite().all()


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "no scheduler": ("ModelMixin", {}, {}, "there is no scheduler 'ModelMixin'"),
    "misspelt": ("PNDMSchedular", {}, {}, "PNDMScheduler"),
    "another frame": ("EDMEulerScheduler", {}, {}, "take euler"),
    "own noise": ("DPMSolverSDEScheduler", {}, {}, "take dpmpp-sde"),
    "setting": ("PNDMScheduler", {"skip_prk": True}, {}, "skip_prk_steps"),
    "step": ("DDIMScheduler", {}, {"etta": 1.0}, "no option of its step 'etta'"),
    "type": ("PNDMScheduler", {"skip_prk_steps": 1}, {}, "must be true or false"),
    "number": ("DEISMultistepScheduler", {"solver_order": 10**9}, {}, "a number within"),
    "function": ("SASolverScheduler", {"tau_func": "print"}, {}, "must be left out"),
    "betas": ("PNDMScheduler", {"beta_end": 0.5}, {}, "beta_end of .* is the model's own"),
    "its own refusal": ("DEISMultistepScheduler", {"solver_type": "x"}, {}, "refuses its settings"),
    "no prediction": ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, {}, "refuses"),
    "a flow": ("FlowMatchEulerDiscreteScheduler", {}, {}, r"asks at sigma 1e\+12"),
    "a shift": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {}, "mu"),
    "few steps": ("PNDMScheduler", {"timestep_spacing": "spaced"}, {}, "refuses its settings"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_name_the_cause(kind: str) -> None:
    name, config, step, message = REFUSED[kind]
    with pytest.raises(ConfigError, match=message):
        ours(name, config, step)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "karras", "num_steps": 7},
        {"name": "diffusers", "num_steps": 7, "scheduler": "PNDMScheduler"},
    ],
)
def test_levels_of_another_schedule_are_refused(schedule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs the noise levels of its own scheduler"):
        run({"solver": "diffusers", "schedule": schedule}, OfKind(mixture()))


def test_solvers_of_ours_take_the_levels_of_a_scheduler() -> None:
    config = {"use_exponential_sigmas": True}
    levels = {"name": "diffusers", "scheduler": "HeunDiscreteScheduler", "config": config}
    steps = run({"solver": "heun", "schedule": {**levels, "num_steps": 7}}, OfKind(mixture()))
    theirs = ours("HeunDiscreteScheduler", config)
    assert [step.sigma for step in steps] == [step.sigma for step in theirs]
    torch.testing.assert_close(steps[-1].x, theirs[-1].x, rtol=1e-3, atol=1e-3)

"""Folders with any scheduler of diffusers, drawn from by GenLab and by diffusers' own loop."""

import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.utils.dummy_torch_and_scipy_objects import (
    LMSDiscreteScheduler as LMSWithoutScipy,
)
from torch import Tensor

import genlab
from genlab import DiffusionGenerator
from genlab.checkpoints.diffusers_schedulers import NATIVE, READ, _defaults, parse_scheduler
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.samplers.base import SCHEDULES
from genlab.samplers.diffusers_schedulers import defaults_of, quiet
from genlab.samplers.solvers.diffusers_scheduler import generators_for

SEEDS, LABELS, SHAPE = [3, 1], [2, 0], (2, 4, 4)
OURS, THEIRS = True, False
BETAS = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
# Scheduler, settings, steps, whether it is sampled by a solver of ours.
CASES: list[tuple[str, dict[str, Any], int, bool]] = [
    *[
        (name, {}, 10, name in NATIVE)
        for name in READ
        if name not in ("DDPMParallelScheduler", "DPMSolverSDEScheduler")
    ],
    ("DDPMScheduler", {"thresholding": True}, 10, THEIRS),
    ("DDPMScheduler", {"clip_sample_range": 2.0}, 10, THEIRS),
    ("DDPMScheduler", {"clip_sample_range": 2.0, "clip_sample": False}, 10, OURS),
    ("DDIMScheduler", {"set_alpha_to_one": False}, 10, THEIRS),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}, 10, THEIRS),
    ("DDIMScheduler", {"timestep_spacing": "trailing"}, 10, OURS),
    ("DDIMScheduler", {}, 7, THEIRS),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, 7, OURS),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, 14, THEIRS),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, 16, OURS),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": "heun",
                                     "lower_order_final": False}, 9, OURS),
    ("DPMSolverMultistepScheduler", {"solver_order": 3,
                                     "algorithm_type": "sde-dpmsolver++"}, 16, THEIRS),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, 7, OURS),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 7, OURS),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 7, OURS),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, 7, THEIRS),
    ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}, 7, THEIRS),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, 7, THEIRS),
    ("DPMSolverMultistepScheduler", {"euler_at_final": True}, 7, OURS),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, 7, OURS),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, 7, THEIRS),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, 7, OURS),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, 7, THEIRS),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, 7, THEIRS),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 7, THEIRS),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, 7, THEIRS),
    ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 3}, 7, THEIRS),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, 7,
     THEIRS),
    ("UniPCMultistepScheduler", {"rescale_betas_zero_snr": True,
                                 "prediction_type": "v_prediction"}, 7, THEIRS),
    ("DPMSolverMultistepScheduler", {"rescale_betas_zero_snr": True, "solver_type": "heun",
                                     "prediction_type": "v_prediction"}, 7, THEIRS),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
                       "prediction_type": "v_prediction"}, 10, OURS),
    ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, 7, THEIRS),
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    network: Any = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=2,
        sample_size=4, num_embeds_ada_norm=3,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network.eval()


@pytest.mark.parametrize(("name", "settings", "steps", "native"), CASES, ids=str)
def test_a_folder_is_sampled_as_diffusers_does(
    model: Any,
    name: str,
    settings: dict[str, Any],
    steps: int,
    native: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with quiet():
        scheduler: Any = getattr(diffusers, name)(**{**BETAS, **settings})
        scheduler.set_timesteps(steps)
    model.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    generator = genlab.convert(tmp_path, config={"num_steps": steps})
    assert isinstance(generator, DiffusionGenerator)
    assert (generator.sampler.config["solver"]["name"] != "diffusers") == native
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(8))
    *_, last = generator.steps(NoiseStream(SEEDS), LABELS, generator.build_sampler(), latents)

    noise = NoiseStream(SEEDS)
    if native:  # whose noise is the sample's stream
        draw = lambda shape, **_: noise.randn(shape[1:], torch.float64).float()  # noqa: E731
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", draw, raising=False)
    drawn = their_loop(scheduler, model, latents, {} if native else {"generator": noise})
    error = (last.x - drawn).abs().max()
    assert error < 1e-4 * drawn.abs().max()


def their_loop(scheduler: Any, model: Any, latents: Tensor, options: dict[str, Any]) -> Tensor:
    x = latents * scheduler.init_noise_sigma
    step: dict[str, Any] = {}
    if options and "generator" in scheduler.step.__code__.co_varnames:
        step["generator"] = generators_for(options["generator"])
    with torch.no_grad(), quiet():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            output = model(scaled, t.expand(2), torch.tensor(LABELS)).sample
            x = scheduler.step(output, t, x, **step).prev_sample
    return x.double()


def test_pipelines_steps_are_the_default() -> None:
    steps = {
        name: parse_scheduler({"_class_name": name}, predicts_variance=False).sampler["schedule"]
        for name in ("PNDMScheduler", "UniPCMultistepScheduler", "LCMScheduler")
    }
    assert [each["num_steps"] for each in steps.values()] == [50, 25, 4]


def test_a_stochastic_solver_with_a_source_of_its_own_is_ours() -> None:
    config = {"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 3}
    read = parse_scheduler(config, predicts_variance=False)
    assert read.sampler["solver"] == {"name": "dpmpp-sde"}
    assert read.preconditioning.interpolate_in_log
    with pytest.raises(ConfigError, match="use_beta_sigmas"):
        parse_scheduler({**config, "use_beta_sigmas": True}, predicts_variance=False)


@pytest.mark.parametrize(
    ("option", "schedule"), [("karras", "karras"), ("exponential", "exponential")]
)
def test_its_uneven_levels_span_those_of_the_model(option: str, schedule: str) -> None:
    config = {"_class_name": "DPMSolverSDEScheduler", f"use_{option}_sigmas": True, **BETAS}
    read = parse_scheduler(config, predicts_variance=False, num_steps=6)
    levels = SCHEDULES.build_named(read.sampler["schedule"])(read.preconditioning)
    ends = read.preconditioning.levels[[-1, 0]]
    assert read.sampler["schedule"]["name"] == schedule
    assert len(levels) == 7
    torch.testing.assert_close(levels[[0, -2]], ends)
    told = read.preconditioning.time(levels[1:-2])
    assert not torch.equal(told, told.round())  # as theirs, it tells the network fractions
    with pytest.raises(ConfigError, match=f"trailing timesteps with use_{option}_sigmas"):
        parse_scheduler({**config, "timestep_spacing": "trailing"}, predicts_variance=False)


def test_the_network_predicts_a_variance() -> None:
    config = {"_class_name": "DDPMScheduler", "thresholding": True}
    for steps in (5, 7):  # 7 do not divide 1000
        read = parse_scheduler(config, predicts_variance=True, num_steps=steps)
        assert "variance_type" not in read.sampler["solver"]["config"]  # the folder says none
        learned = {**config, "variance_type": "learned_range"}
        read = parse_scheduler(learned, predicts_variance=True, num_steps=steps)
        assert read.sampler["solver"]["config"]["variance_type"] == "learned_range"


def test_ddims_option_of_a_step_is_handed_on() -> None:
    config = {"_class_name": "DDIMScheduler", "set_alpha_to_one": False,
              "use_clipped_model_output": True}  # fmt: skip
    read = parse_scheduler(config, predicts_variance=False)
    assert read.sampler["solver"]["step_options"] == {"use_clipped_model_output": True}


def test_what_needs_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """LMS is read without scipy, which diffusers wants for it."""
    assert defaults_of("LMSDiscreteScheduler") == _defaults("LMSDiscreteScheduler")
    monkeypatch.setattr(diffusers, "LMSDiscreteScheduler", LMSWithoutScipy)
    config = {"_class_name": "LMSDiscreteScheduler"}
    read = parse_scheduler(config, predicts_variance=False)
    assert read.sampler["solver"]["name"] == "lms"
    with pytest.raises(ConfigError, match="needs the package scipy"):
        parse_scheduler({**config, "use_karras_sigmas": True}, predicts_variance=False)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a flow": ({"use_flow_sigmas": True}, "use_flow_sigmas = True is not supported"),
    "of EDM": (
        {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
        "discrete",
    ),
    "unknown": ({"solver_ordre": 3}, "'solver_ordre' is no setting .* solver_order"),
    "of another type": ({"thresholding": 1.5}, "must be true or false"),
    "vast": ({"solver_order": 10**9}, "a number within"),
    "refused there": ({"solver_type": "x"}, "refuses its settings: x"),
    "a function": ({"_class_name": "SASolverScheduler", "tau_func": "x"}, "tau_func"),
    "another angle": ({"_class_name": "IPNDMScheduler"}, "none of a discrete model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_obeyed_is_refused_by_name(kind: str) -> None:
    config, message = REFUSED[kind]
    config = {"_class_name": "DPMSolverMultistepScheduler", **config}
    with pytest.raises(ConfigError, match=message):
        parse_scheduler(config, predicts_variance=False)


def test_settings_of_other_schedulers_are_passed_over_as_there() -> None:
    """Stable Diffusion's PNDM config has ``clip_sample``, which PNDMScheduler does not know."""
    config = {"_class_name": "PNDMScheduler", "clip_sample": True, "_diffusers_version": "0.6.0"}
    config["rescale_betas_zero_snr"] = True
    plain = parse_scheduler({"_class_name": "PNDMScheduler"}, predicts_variance=False)
    assert parse_scheduler(config, predicts_variance=False) == plain

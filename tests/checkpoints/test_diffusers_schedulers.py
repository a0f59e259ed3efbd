"""Folders with any scheduler of diffusers, drawn from by GenLab and by diffusers' own loop."""

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiTTransformer2DModel, PNDMScheduler, UNet2DModel
from diffusers.utils.dummy_torch_and_scipy_objects import (
    LMSDiscreteScheduler as LMSWithoutScipy,
)
from safetensors.torch import load_file
from torch import Tensor

import genlab
from genlab import DiffusionGenerator
from genlab.checkpoints.readers.diffusers_schedulers import (
    NATIVE,
    READ,
    ReplacedSchedulerWarning,
    Scheduling,
    _defaults,
    parse_scheduler,
)
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
    ("DDIMScheduler", {"timestep_spacing": "trailing"}, 10, THEIRS),
    ("DDIMScheduler", {"timestep_spacing": "trailing"}, 7, THEIRS),
    ("DDIMScheduler", {"num_train_timesteps": 100, "steps_offset": 5}, 30, THEIRS),
    ("DDIMScheduler", {}, 7, OURS),
    ("DDPMScheduler", {"steps_offset": 1, "variance_type": "fixed_large"}, 7, THEIRS),
    ("DDPMScheduler", {"variance_type": "fixed_large"}, 7, OURS),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, 7, OURS),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, 14, THEIRS),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, 16, THEIRS),
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
                       "prediction_type": "v_prediction"}, 10, THEIRS),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, 10,
     OURS),
    ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "use_exponential_sigmas": True,
                                "prediction_type": "v_prediction"}, 7, THEIRS),
    ("HeunDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}, 7, THEIRS),
    ("EulerAncestralDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}, 20, THEIRS),
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
    if native:
        draw_from(noise, scheduler, monkeypatch)
    drawn = their_loop(scheduler, model, latents, {} if native else {"generator": noise})
    error = (last.x - drawn).abs().max()
    assert error < 1e-4 * drawn.abs().max()


def draw_from(noise: NoiseStream, scheduler: Any, patch: pytest.MonkeyPatch) -> None:
    """Give a scheduler the draws of a solver of ours, which are those of the sample's stream."""
    draw = lambda shape, **_: noise.randn(shape[1:], torch.float64).float()  # noqa: E731
    patch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", draw, raising=False)


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


CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    ("DDIMScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    ("PNDMScheduler", {}),
]


@pytest.mark.parametrize(("name", "settings"), CHANGED, ids=str)
def test_the_number_of_steps_may_be_changed_after_a_folder_is_read(
    model: Any, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with quiet():
        scheduler: Any = getattr(diffusers, name)(**{**BETAS, **settings})
        scheduler.set_timesteps(7)
    model.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    generator = genlab.load(tmp_path)
    assert isinstance(generator, DiffusionGenerator)
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(8))
    built = generator.build_sampler(num_steps=7)
    *_, last = generator.steps(NoiseStream(SEEDS), LABELS, built, latents)
    drawn = their_loop(scheduler, model, latents, {})
    assert (last.x - drawn).abs().max() < 1e-4 * drawn.abs().max()


def test_cases_are_drawn_as_diffusers_draws_them_or_refused_by_name(
    shared: Path, tmp_path: Path
) -> None:
    """Settings that lists once forgot: each of them changes the picture."""
    case = shared / "cases" / "scheduler"
    if not case.is_dir():
        pytest.skip("no scheduler cases in the folder of shared data")
    numbers = load_file(case / "io.safetensors")
    runs = json.loads((case / "cases.json").read_text())["runs"]
    assert len(runs) >= 6
    for run in runs:
        folder = tmp_path / run["name"]
        (folder / "scheduler").mkdir(parents=True)
        (folder / "unet").symlink_to(case / "unet")
        config = {"_class_name": run["scheduler"], **run["config"]}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        generator = genlab.convert(folder, config={"num_steps": run["num_inference_steps"]})
        assert isinstance(generator, DiffusionGenerator)
        latents, drawn = (numbers[f"{run['name']}.{part}"] for part in ("latents", "final"))
        steps = generator.steps(
            NoiseStream(range(len(latents))), run["class_labels"], generator.build_sampler(),
            latents,
        )  # fmt: skip
        *_, last = steps
        assert (last.x - drawn).abs().max() < 1e-4 * drawn.abs().max(), run["name"]


def test_no_scheduler_silently_becomes_another(shared: Path) -> None:
    folder = shared / "cases" / "checkpoints" / "diffusers-pndm"
    if not folder.is_dir():
        pytest.skip("no diffusers-pndm in the folder of shared data")
    generator = genlab.load(folder)
    assert isinstance(generator, DiffusionGenerator)
    assert generator.sampler.config["solver"]["scheduler"] == "PNDMScheduler"
    unet: Any = UNet2DModel.from_pretrained(folder / "unet")
    scheduler: Any = PNDMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(4)
    latents = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    x = latents
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    built = generator.build_sampler(num_steps=4)
    *_, last = generator.steps(NoiseStream([0]), None, built, latents)
    assert (last.x - x).abs().max() < 1e-4 * x.abs().max()


OTHER_VALUES: dict[str, list[Any]] = {
    "num_train_timesteps": [500], "beta_start": [0.001], "beta_end": [0.03],
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp"],
    "trained_betas": [[0.001, 0.002] * 500], "steps_offset": [1],
    "prediction_type": ["sample", "v_prediction"], "timestep_spacing": ["leading", "trailing"],
    "variance_type": ["fixed_large", "fixed_small_log", "fixed_large_log", "learned"],
    "sample_max_value": [1.5], "dynamic_thresholding_ratio": [0.5], "clip_sample_range": [0.5],
    "solver_order": [1, 3], "algorithm_type": ["dpmsolver", "sde-dpmsolver++", "noise_prediction"],
    "solver_type": ["heun", "bh1"], "final_sigmas_type": ["sigma_min"], "flow_shift": [3.0],
    "lambda_min_clipped": [-5.1], "time_shift_type": ["linear"], "sigma_min": [0.1],
    "sigma_max": [20.0], "timestep_type": ["continuous"], "interpolation_type": ["log_linear"],
    "original_inference_steps": [20], "timestep_scaling": [5.0], "predictor_order": [1],
    "corrector_order": [1], "disable_corrector": [[0, 1]], "shift_terminal": [0.1],
    "tau_func": ["x"], "solver_p": ["UniPCMultistepScheduler"],
}  # fmt: skip
"""Settings that are no switches -> values other than the default; a switch is turned."""


def others(default: Any, setting: str) -> list[Any]:
    return [not default] if isinstance(default, bool) else OTHER_VALUES[setting]


def parsed(config: dict[str, Any]) -> tuple[Scheduling | None, str]:
    """What a config is read as, or why it is refused."""
    try:
        return parse_scheduler(config, predicts_variance=False, num_steps=4), ""
    except ConfigError as error:
        return None, str(error)


@pytest.fixture(scope="module")
def network(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("dit")
    model.save_pretrained(folder)
    return genlab.convert(folder, config=BETAS).network


@pytest.mark.parametrize("name", [name for name in READ if name != "DPMSolverSDEScheduler"])
def test_every_setting_of_every_scheduler_is_obeyed_or_refused_by_name(
    model: Any, network: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that diffusers adds fails here until somebody has thought of it."""
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(8))
    for setting, default in _defaults(name).items():
        for value in others(default, setting):
            config = {"_class_name": name, **BETAS, setting: value}
            read, refusal = parsed(config)
            if read is None:
                assert setting in refusal or str(value) in refusal, f"{setting}: {refusal}"
                continue
            generator = DiffusionGenerator(
                network, read.preconditioning, sampler=read.sampler, has_null_class=True
            )
            with quiet():
                scheduler: Any = getattr(diffusers, name).from_config(config)
                scheduler.set_timesteps(4)
            native = read.sampler["solver"]["name"] != "diffusers"
            built = generator.build_sampler()
            *_, last = generator.steps(NoiseStream(SEEDS), LABELS, built, latents)
            with monkeypatch.context() as patch:
                noise = NoiseStream(SEEDS)
                if native:
                    draw_from(noise, scheduler, patch)
                drawn = their_loop(
                    scheduler, model, latents, {} if native else {"generator": noise}
                )
            error = (last.x - drawn).abs().max()
            # Between two timesteps diffusers finds the time in float32, and the network of this
            # test, which nobody has trained, magnifies what is lost.
            between = bool((torch.as_tensor(scheduler.timesteps).double() % 1).any())
            bound = 3e-4 if between else 1e-4
            assert error < bound * drawn.abs().max(), f"{setting} = {value!r}"


def test_pipelines_steps_are_the_default() -> None:
    steps = {
        name: parse_scheduler({"_class_name": name}, predicts_variance=False).sampler["schedule"]
        for name in ("PNDMScheduler", "UniPCMultistepScheduler", "LCMScheduler")
    }
    assert [each["num_steps"] for each in steps.values()] == [50, 25, 4]


def test_a_stochastic_solver_with_a_source_of_its_own_is_ours() -> None:
    config = {"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 3}
    with pytest.warns(ReplacedSchedulerWarning, match="DPMSolverSDEScheduler .* dpmpp-sde"):
        read = parse_scheduler(config, predicts_variance=False)
    assert read.sampler["solver"] == {"name": "dpmpp-sde"}
    assert read.preconditioning.interpolate_in_log
    with pytest.raises(ConfigError, match="use_beta_sigmas"):
        parse_scheduler({**config, "use_beta_sigmas": True}, predicts_variance=False)


@pytest.mark.filterwarnings(
    "ignore::genlab.checkpoints.readers.diffusers_schedulers.ReplacedSchedulerWarning"
)
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


def test_null_is_what_diffusers_takes_it_for() -> None:
    def read(**config: Any) -> Any:
        return parse_scheduler(config, predicts_variance=False)

    plain = read(_class_name="DDPMScheduler", clip_sample=False)
    assert read(_class_name="DDPMScheduler", clip_sample=None) == plain
    assert read(_class_name="DDPMScheduler", clip_sample=False, timestep_values=None) == plain
    with pytest.raises(ConfigError, match="beta_start is null"):
        read(_class_name="DDPMScheduler", beta_start=None)


def test_more_steps_than_timesteps_are_refused() -> None:
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 40}
    assert parse_scheduler(config, predicts_variance=False).sampler["schedule"]["num_steps"] == 40
    with pytest.raises(ConfigError, match="num_steps 41 is more than the model's 40 timesteps"):
        parse_scheduler(config, predicts_variance=False, num_steps=41)


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
    "noise alone": (
        {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True},
        "rescale_betas_zero_snr .* v_prediction",
    ),
    "not a number": (
        {"_class_name": "UniPCMultistepScheduler", "lower_order_final": False},
        "not a number .*lower_order_final",
    ),
    "log of a variance": (
        {"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"},
        "variance_type",
    ),
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

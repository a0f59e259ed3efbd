"""Guidance: EDM2's and REPA's samplers, intervals, diffusers' guiders, adaptive projections."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from golden_cases import Case, MismatchError, Run
from golden_noise import RecordedNoise
from golden_solvers import Noting, mixture, solve_given
from torch import Tensor

from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, StepInfo
from genlab.diffusion.flow import Flow
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.generators import DiffusionGenerator
from genlab.samplers.base import SCHEDULES, SOLVERS, Schedule, Solver, SolverStep
from genlab.samplers.guidance.autoguidance import Autoguidance
from genlab.samplers.guidance.base import GUIDANCE, GuidanceOptions, When
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler

Networks = Callable[[Case, str], DiffusionGenerator]
"""The network that has a role in a case."""


class Part:
    """A denoiser as the second model of a guidance."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations

    def to(self, device: Any = None, dtype: Any = None) -> None:
        pass

    def prepare(self) -> None:
        pass

    def sha256(self) -> str:
        return "0"


class Calls(Noting):
    """Notes how many rows each call has, too, and predicts no variance."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.rows: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.rows.append(len(x))
        return super().__call__(x, sigma, condition)

    def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
        return Prediction(x0=self(x, sigma, condition))

    @property
    def levels(self) -> Tensor:
        return torch.tensor(self.sigmas, dtype=torch.float64)


def edm2_sampler(run: Run, network: Networks) -> None:
    """EDM2's sampler, whose guide is any second network."""
    params = run.params("guidance", "guide_labels", "num_steps", "guide")
    run.params("sampler", "dtype", "trace")  # ours keeps float64; the others say what is recorded
    model = Calls(_model(run, network, "net"))
    scale = params.get("guidance", 1)
    guidance, weak = _guide(run, network, scale)
    solver = SOLVERS.build("heun", **run.params("S_churn", "S_min", "S_max", "S_noise"))
    schedule = SCHEDULES.build("karras", **run.params("num_steps", "sigma_min", "sigma_max", "rho"))
    levels = schedule(model.noise_levels)
    noise = RecordedNoise(run)
    if solver.S_churn > 0:
        _fill_up(noise, levels, solver, run.input("latents"))
    steps = _steps(run, model, solver, schedule, guidance, noise)
    asked = torch.empty(0, dtype=torch.float64) if weak is None else weak.levels
    if run.reference("guide_calls").ndim == 0:  # only how many there were
        asked = torch.tensor(len(asked))
    run.expect_all(
        {
            "images": steps[-1].x,
            "sigma_calls": model.levels,
            "guide_calls": asked,
            "t_steps": levels,
        }
    )


def _model(run: Run, network: Networks, role: str, prefix: str = "") -> Denoiser:
    """The closed-form model of a run, or the network of that role, which may be asked for no class.

    Official networks answer without a class whether they were trained to or not.
    """
    name = f"{prefix}gmm_" if run.has(f"{prefix}gmm_means") else prefix
    if run.has(f"{name}means"):
        parts = (run.input(f"{name}{what}") for what in ("weights", "means", "stds"))
        return GaussianMixtureDenoiser(*parts)
    if run.has("gmm_means"):
        return mixture(run)
    generator = network(run.case, role)
    return PreconditionedDenoiser(
        generator.network,
        generator.preconditioning,
        num_classes=generator.num_classes,
        has_null_class=generator.num_classes > 0,
    )


def _guide(
    run: Run, network: Networks, scale: float, when: When | None = None
) -> tuple[tuple[GuidanceOptions, ...], Calls | None]:
    """Guidance by the second model of a run, where it has one."""
    roles = [role for role in run.case.meta["constructors"] if role != "net"]
    role = run.params("guide").get("guide", roles[0] if roles else "")
    labelled = run.params("guide_labels").get("guide_labels", True)
    alone = not (role or run.has("gmm_means"))
    weak = None if alone else Calls(_model(run, network, role, "guide_"))
    if weak is None:
        return (), None
    options = Autoguidance(
        guide=Part(weak),
        scale=scale,
        guide_condition="same" if labelled else "null",
        when=when or When(),
    )
    return (options,), weak


def _fill_up(noise: RecordedNoise, levels: Tensor, solver: Any, like: Tensor) -> None:
    """Draws for the steps that officially draw nothing, where ours are multiplied by 0."""
    given = list(noise.rows)
    noise.rows[:] = [
        given.pop(0) if given and solver.S_min <= level <= solver.S_max else torch.zeros_like(like)
        for level in levels[:-1].tolist()
    ]
    if given:
        raise MismatchError(f"{noise.run.id}: officially noise is drawn in steps without churn")


def _steps(
    run: Run,
    model: Denoiser,
    solver: Solver,
    schedule: Schedule,
    guidance: tuple[GuidanceOptions, ...],
    noise: RecordedNoise,
    condition: Condition | None = None,
) -> list[SolverStep]:
    latents = run.input("latents")
    with torch.no_grad():
        steps = list(
            sample_steps(
                Sampler(solver=solver, schedule=schedule, guidance=guidance),
                model,
                noise=noise,
                condition=condition or Condition(labels=run.optional("class_labels")),
                image_shape=latents.shape[1:],
                device="cpu",
                latents=latents,
            )
        )
    noise.expect_end()
    return steps


def guidance_interval(run: Run, network: Networks) -> None:
    """Guidance by an unconditional model in an interval of steps, both ends in."""
    schedule = SCHEDULES.build("karras", **run.params("num_steps", "sigma_min", "sigma_max", "rho"))
    solver = SOLVERS.build("heun", **run.params("S_churn", "S_min", "S_max", "S_noise"))
    model = Calls(_model(run, network, "net"))
    levels = [*schedule(model.noise_levels).tolist(), 0.0]
    first, last = run.params("guidance_interval").get("guidance_interval", (0, len(levels) - 3))
    window = levels[min(last + 1, len(levels) - 1)], levels[first]
    weak = Calls(_unconditional(run, network))
    options = Autoguidance(
        guide=Part(weak),
        scale=run.params("G")["G"],
        guide_condition="null",
        when=When(sigma=window),
    )
    steps = _steps(run, model, solver, schedule, (options,), RecordedNoise(run))
    # With G = 1 theirs asks the unconditional model for nothing; ours does without it.
    asked = run.reference("uncond_calls") if options.scale == 1 else weak.levels
    run.expect_all(
        {
            "images": steps[-1].x,
            "sigma_calls": model.levels,
            "uncond_calls": asked,
            "sigma_interval": torch.tensor(window, dtype=torch.float64),
        }
    )


def _unconditional(run: Run, network: Networks) -> Denoiser:
    if run.has("gmm_means"):
        return mixture(run)
    [role] = (role for role in run.case.meta["constructors"] if role != "net")
    return _model(run, network, role)


REPA_NULL = 1000
"""REPA's null class, whatever the number of classes."""


class InFlowTime(Calls):
    """A closed-form model whose time is that of a straight path."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.noise_levels = Flow()


def repa_sampler(run: Run) -> None:
    """REPA's ODE and SDE with guidance in an interval of the flow's time."""
    model = InFlowTime(mixture(run))
    params = run.params("sampler", "num_steps", "heun")
    method = "heun" if params.get("heun") else "euler"
    times = {"num_steps": params["num_steps"]}
    if params["sampler"] == "euler_sampler":
        solver = SOLVERS.build("flow", method=method)
    elif params["sampler"] == "euler_maruyama_sampler":
        solver, times = SOLVERS.build("flow-sde", last="mean"), {**times, "last_step": 0.04}
    else:
        raise MismatchError(f"{run.id}: unknown sampler {params['sampler']!r}")
    if (path := run.params("path_type").get("path_type", "linear")) != "linear":
        raise MismatchError(f"{run.id}: unknown path {path!r}")
    low, high = (run.params(f"guidance_{end}").get(f"guidance_{end}") for end in ("low", "high"))
    when = When(time=(low or 0.0, 1.0 if high is None else high))
    scale = max(run.params("cfg_scale").get("cfg_scale", 1.0), 1.0)  # less is off there
    y = run.input("y")
    condition = Condition(labels=y.masked_fill(y == REPA_NULL, NULL_CLASS))
    steps = _steps(
        run,
        model,
        solver,
        SCHEDULES.build("flow", **times),
        (GUIDANCE.build("cfg", scale=scale, when={"time": list(when.time or ())}),),
        RecordedNoise(run),
        condition,
    )
    rows = torch.tensor(model.rows, dtype=torch.float64)
    told = model.noise_levels.time(model.levels)
    run.expect_all({"sample": steps[-1].x, "calls": torch.stack([told, rows], dim=1)})


class Told(Denoiser):
    """Answers what a recorded model said at a step: one value with a class, another without."""

    num_classes, has_null_class, evaluations = 1, True, 0

    def __init__(self, with_class: Tensor, without: Tensor) -> None:
        self.with_class, self.without = with_class, without
        self.noise_levels: NoiseLevels = Flow()
        self.step = 0

    def begin_step(self, step: StepInfo) -> None:
        self.step = step.index

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.evaluations += len(x)
        assert condition.labels is not None
        with_class, without = self.with_class[self.step], self.without[self.step]
        times = len(x) // len(with_class)
        null = (condition.labels == NULL_CLASS).reshape(-1, 1, 1, 1)
        return torch.where(
            null, without.repeat(times, 1, 1, 1), with_class.repeat(times, 1, 1, 1)
        ).to(x.dtype)


def hf_guider(run: Run) -> None:
    """A guider of diffusers, to which predictions are just numbers: in the space x0."""
    told = Told(run.input("pred_cond"), run.input("pred_uncond"))
    num_steps, batch, *shape = told.with_class.shape
    name, options = _guider(run)
    guided = GUIDANCE.build(name, **options)(told)
    x, one = torch.zeros(batch, *shape), torch.tensor(1.0, dtype=torch.float64)
    condition = Condition(labels=torch.zeros(batch, dtype=torch.int64))
    said = []
    for index in range(num_steps):
        guided.begin_step(
            StepInfo(
                index=index,
                num_steps=num_steps,
                level=1.0,
                sigma=1.0,
                sigma_next=0.5,
                noise=NoiseStream([]),
            )
        )
        said.append(guided(x, one, condition))
    run.expect_all({"pred": torch.stack(said)})


def _guider(run: Run) -> tuple[str, dict[str, Any]]:
    """Theirs by our name and options; defaults are theirs."""
    params = run.params("guider", "guidance_rescale", "start", "stop", "use_original_formulation")
    guider, from_class = params["guider"], bool(params.get("use_original_formulation"))
    options: dict[str, Any] = {
        "space": "x0",
        "rescale": params.get("guidance_rescale", 0.0),
        "when": {"steps": [params.get("start", 0.0), params.get("stop", 1.0)]},
    }
    # Their "original formulation" counts from the prediction with the class.
    extra = 1 if from_class else 0
    if guider == "FrequencyDecoupledGuidance":
        space = run.params("guidance_rescale_space").get("guidance_rescale_space", "data")
        if options["rescale"] and space != "data":
            raise MismatchError(f"{run.id}: ours rescales the whole estimate, not its bands")
        told = run.params("guidance_scales").get("guidance_scales", [10.0, 5.0])
        largest = max((each + extra for each in told), key=lambda weight: abs(weight - 1))
        bands = [(each + extra - 1) / (largest - 1) for each in told]
        return "fdg", {**options, "scale": largest, "bands": bands}
    options["scale"] = run.params("guidance_scale").get("guidance_scale", 7.5) + extra
    if guider == "ClassifierFreeGuidance":
        return "cfg", options
    if guider == "ClassifierFreeZeroStarGuidance":
        steps = run.params("zero_init_steps").get("zero_init_steps", 1)
        return "cfg-zero", {**options, "zero_init_steps": steps}
    if guider != "AdaptiveProjectedGuidance":
        raise MismatchError(f"{run.id}: unknown guider {guider!r}")
    if run.params("paper_scale").get("paper_scale", options["scale"]) != options["scale"]:
        raise MismatchError(f"{run.id}: the paper's scale is not {options['scale']}")
    momentum, limit = (
        run.params(f"adaptive_projected_guidance_{what}").get(
            f"adaptive_projected_guidance_{what}", default
        )
        for what, default in (("momentum", None), ("rescale", 15.0))
    )
    return "apg", {
        **options,
        "eta": run.params("eta").get("eta", 1.0),
        "momentum": momentum or 0.0,
        "r": limit or None,
        "add_to": "class" if from_class else "null",
    }


def hf_threshold(run: Run) -> None:
    """Dynamic thresholding, which needs no guidance around it."""
    params = run.params("ratio", "max")
    x0 = run.input("x0")
    told = Told(x0[None], x0[None])
    cfg = GUIDANCE.build("cfg", threshold=params["ratio"], threshold_max=params["max"])(told)
    labels = Condition(labels=torch.zeros(len(x0), dtype=torch.int64))
    run.expect_all({"out": cfg(torch.zeros_like(x0), torch.tensor(1.0).double(), labels)})


def apg_sample(run: Run) -> None:
    """k-diffusion's solver around adaptive projected guidance of a closed-form model."""
    params = run.params("sampler", "paper_scale", "momentum", "norm_threshold", "eta")
    apg = GUIDANCE.build(
        "apg",
        scale=params["paper_scale"],
        momentum=params["momentum"] or 0.0,
        r=params["norm_threshold"] or None,
        eta=params["eta"],
    )
    if params["sampler"] not in DETERMINISTIC:
        raise MismatchError(f"{run.id}: unknown sampler {params['sampler']!r}")
    name, options = DETERMINISTIC[params["sampler"]]
    steps = solve_given(
        SOLVERS.build(name, **options),
        apg(mixture(run)),
        run.input("x").double(),
        run.input("sigmas"),
        Condition(labels=run.input("class_labels")),
        RecordedNoise(run),
    )
    run.expect_all({"sample": steps[-1].x})


DETERMINISTIC: Mapping[str, tuple[str, dict[str, Any]]] = {
    "euler": ("euler", {}),
    "heun": ("heun", {}),
    "dpm_2": ("dpm2", {}),
    "lms": ("lms", {"max_order": 4, "full_last_step": True}),
    "dpmpp_2m": ("dpmpp", {}),
}
"""k-diffusion's samplers that draw nothing -> ours with their default options."""


def checks(network: Networks) -> Mapping[str, Callable[[Run], None]]:
    """Kind -> check, with what makes the network of a role."""
    return {
        "apg_sample": apg_sample,
        "edm2_sampler": lambda run: edm2_sampler(run, network),
        "guidance_interval": lambda run: guidance_interval(run, network),
        "hf_guider": hf_guider,
        "hf_threshold": hf_threshold,
        "repa_sampler": repa_sampler,
    }

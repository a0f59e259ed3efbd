"""k-diffusion's and diff-sampler's solvers on a closed-form denoiser or an EDM network."""

import itertools
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from golden_cases import MismatchError, Run
from golden_noise import RecordedNoise
from torch import Tensor
from watching import Watching

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import ConditionedDenoiser, Denoiser, StepInfo
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.samplers.base import SOLVERS, Grid, Solver, SolverStep, StepResult
from genlab.samplers.guidance.base import GUIDANCE
from genlab.samplers.loop import solve
from genlab.samplers.solvers.adams_bashforth import DEIS

NOT_REPRODUCED = {
    "dpm_fast": "singlestep orders by a budget of evaluations: its levels are no schedule's",
    "dpm_adaptive": "adaptive steps of DPM-Solver's formulas; ours are Dormand and Prince's",
    "ipndm_v": "right for order 2 only, which is checked as lms; its other weights are misprinted",
    "afs": "takes the data for standard normal in the first step",
    "TangentialClassifierFreeGuidance": "not offered: it projects to the end that apg serves",
    "MagnitudeAwareGuidance": "not offered: it damps large updates, which apg's limit r does",
}
"""Runs that are left out on purpose: the name of the sampler or the guider, or a parameter that is
set -> why."""


def not_reproduced(run: Run) -> str | None:
    """Why a run is left out, or None."""
    params = run.spec.get("params", {})
    if (
        params.get("sampler") == "ipndm_v"
        and params.get("max_order") == 2
        and not params.get("afs")
    ):
        return None
    for name, reason in NOT_REPRODUCED.items():
        if name in (params.get("sampler"), params.get("guider")) or params.get(name):
            return f"{name}: {reason}"
    return None


class Noting(Watching):
    """Notes the noise levels that a solver asks at."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.sigmas.append(float(sigma))
        return self.inner(x, sigma, condition)


class Recorded:
    """What a Brownian tree returned, in place of our path."""

    def __init__(self, noise: RecordedNoise, shape: Any, low: float, high: float) -> None:
        self.noise, self.shape = noise.fork("brownian"), shape

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        return self.noise.randn(self.shape, torch.float64)


def mixture(run: Run) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(
        *(run.input(f"gmm_{name}") for name in ("weights", "means", "stds"))
    )


def kd_sampler(run: Run, model: Denoiser, condition: Condition) -> None:
    """A function ``sample_*`` of k-diffusion, given the levels themselves."""
    name, options = _kd_solver(run)
    sigmas, x = run.input("sigmas"), run.input("x").double()
    noted, noise = Noting(model), RecordedNoise(run)
    steps = solve_given(SOLVERS.build(name, **options), noted, x, sigmas, condition, noise)
    if options.get("eta") != 0:  # then theirs draws and multiplies by 0
        noise.expect_end()
    levels = sigmas.tolist()
    pairs = [(a, b) for a, b in itertools.pairwise(levels) if b > 0]
    if name == "dpmpp-sde":
        r = options.get("r", 0.5)
        pairs = [pair for a, b in pairs for pair in ((a, a ** (1 - r) * b**r), (a, b))]
    run.expect_all(
        {
            "sample": steps[-1].x,
            "sigma_calls": torch.tensor(noted.sigmas, dtype=torch.float64),
            "trajectory": torch.stack([step.x for step in steps]),
            "noise_between": torch.tensor(pairs, dtype=torch.float64),
        }
    )


def _kd_solver(run: Run) -> tuple[str, dict[str, Any]]:
    """Theirs by our name and options."""
    [sampler] = run.params("sampler").values()
    churn = {"s_churn": "S_churn", "s_tmin": "S_min", "s_tmax": "S_max", "s_noise": "S_noise"}
    ancestral = run.params("eta", "r", *([] if sampler in CHURNED else ["s_noise"]))
    brownian = any(draw["kind"] == "brownian" for draw in run.spec["draws"])
    noise = {"noise": "brownian" if brownian else "independent"}
    if sampler in CHURNED:
        return CHURNED[sampler], {churn[k]: v for k, v in run.params(*churn).items()}
    if sampler == "lms":
        order = run.params("order").get("order", 4)  # 4 is their default
        return "lms", {"max_order": order, "full_last_step": True}
    if sampler in ANCESTRAL:
        return ANCESTRAL[sampler], ancestral
    if sampler == "dpmpp_sde":
        return "dpmpp-sde", {**ancestral, **noise}
    if sampler == "dpmpp_2m":
        return "dpmpp", {}
    if sampler == "dpmpp_2m_sde":
        correction = run.params("solver_type").get("solver_type", "midpoint")
        return "dpmpp", {"sde": True, "correction": correction, **ancestral, **noise}
    if sampler == "dpmpp_3m_sde":
        return "dpmpp", {"sde": True, "max_order": 3, "correction": "heun", **ancestral, **noise}
    raise MismatchError(f"{run.id}: unknown sampler {sampler!r}")


CHURNED = {"euler": "euler", "heun": "heun", "dpm_2": "dpm2"}
ANCESTRAL = {
    "euler_ancestral": "euler-ancestral",
    "dpm_2_ancestral": "dpm2-ancestral",
    "dpmpp_2s_ancestral": "dpmpp-2s",
}


def ds_sampler(run: Run) -> None:
    """A solver of diff-sampler: its levels have no final 0, and its runs may end before it."""
    name, options = _ds_solver(run)
    levels = run.input("t_steps")
    x = run.input("latents").double() * levels[0]
    noted, noise = Noting(_thresholded(run)), RecordedNoise(run)
    solver = Corrected(_given(run, SOLVERS.build(name, **options)))
    sigmas = torch.cat([levels, levels.new_zeros(1)])
    steps = solve_given(solver, noted, x, sigmas, Condition(), noise)
    # Their last step is not corrected: its end is never evaluated.
    states = [*solver.begun[:-1], steps[-2].x]
    if run.params("denoise_to_zero").get("denoise_to_zero"):
        states.append(steps[-1].x)
    else:
        noted.sigmas.pop()
    run.expect_all(
        {
            "trajectory": torch.stack(states),
            "sigma_calls": torch.tensor(noted.sigmas, dtype=torch.float64),
            **_coefficients(run, SOLVERS.build(name, **options), levels.tolist()),
        }
    )


def _thresholded(run: Run) -> Denoiser:
    """The closed-form model, with dynamic thresholding unless the run does without it.

    Theirs is part of the data prediction: estimates that become slopes do not go through it.
    """
    published = run.spec["params"]["sampler"] in ("dpm_pp", "unipc")
    thresholds = run.params("dynamic_thresholding").get("dynamic_thresholding", published)
    if thresholds and run.spec["params"].get("predict_x0", True):
        return Thresholded(mixture(run), last=float(run.input("t_steps")[-1]))
    return mixture(run)


class Thresholded(Watching):
    """Dynamic thresholding above the last level: what ``denoise_to_zero`` returns is unchanged."""

    def __init__(self, inner: Denoiser, last: float) -> None:
        super().__init__(inner)
        self.thresholded: Denoiser = GUIDANCE.build("cfg", threshold=0.995)(inner)
        self.last = last

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        model = self.thresholded if float(sigma) > self.last else self.inner
        return model(x, sigma, condition)


def _ds_solver(run: Run) -> tuple[str, dict[str, Any]]:
    [sampler] = run.params("sampler").values()
    run.params("afs")  # only those runs come here that do not set it
    if sampler in ("euler", "heun"):
        return sampler, {}
    if sampler == "dpm_2":
        return "dpm2", run.params("r")
    options = {"max_order": 4, **run.params("max_order")}  # defaults are theirs
    if sampler == "ipndm_v":
        return "lms", options
    if sampler == "deis" and "deis_max_order" in run.spec["params"]:  # mode rhoab
        return "lms", {"max_order": run.params("deis_max_order")["deis_max_order"] + 1}
    if sampler in ("ipndm", "deis"):
        return sampler, options
    options = {"max_order": 3, "lower_order_final": True, **run.params("max_order")}
    options |= run.params("lower_order_final", "variant")
    options["prediction"] = "x0" if run.params("predict_x0").get("predict_x0", True) else "eps"
    return {"dpm_pp": "dpmpp", "unipc": "unipc"}[sampler], options


def _coefficients(run: Run, solver: Any, levels: list[float]) -> dict[str, Tensor]:
    """Weights of slopes, one row a step; the first step is Euler's there, without any."""
    if "coeff" not in run.spec["outputs"]:
        return {}
    reference = run.reference("coeff")
    table = torch.zeros_like(reference)
    for row in range(1, len(reference)):
        used = levels[max(0, row - solver.max_order + 1) : row + 1][::-1]
        weights = solver.weights(used, levels[row + 1])
        table[row, : len(weights)] = torch.tensor(weights, dtype=table.dtype)
    # Of mode tab theirs are sums of 10,000 points, good to 3e-5 of the largest.
    if not (table - reference).abs().max() <= 1e-4 * reference.abs().max():
        raise MismatchError(f"{run.id}: coeff is off by {(table - reference).abs().max():.3g}")
    return {"coeff": reference}


def _given(run: Run, solver: Any) -> Any:
    """The solver with their weights, where these are only good to a quadrature."""
    if not isinstance(solver, DEIS):
        return solver
    table, levels = run.reference("coeff").tolist(), run.input("t_steps").tolist()

    class Given(DEIS):
        def weights(self, sigmas: Sequence[float], sigma_next: float) -> list[float]:
            row = levels.index(sigmas[0])
            return table[row][: len(sigmas)] if row else [sigma_next - sigmas[0]]

    return Given(max_order=solver.max_order)


class Corrected(Solver):
    """Notes the states that steps begin with: where a step was corrected, after the correction."""

    order = 0

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.begun: list[Tensor] = []

    def begin(self, grid: Grid) -> Any:
        return self.inner.begin(grid)

    def step(
        self, denoiser: ConditionedDenoiser, x: Tensor, step: StepInfo, memory: Any
    ) -> StepResult:
        result: StepResult = self.inner.step(denoiser, x, step, memory)
        self.begun.append(getattr(result.memory, "begun", x))
        return result


def solve_given(
    solver: Solver, model: Denoiser, x: Tensor, sigmas: Tensor, condition: Condition, noise: Any
) -> list[SolverStep]:
    ends = float(sigmas[-2]), float(sigmas[0])
    grid = Grid(sigmas=sigmas, sigma_range=ends, noise_levels=model.noise_levels)
    path = patch("genlab.samplers.solvers.draws.BrownianPath", Recorded)
    with path, torch.no_grad():
        return list(solve(solver, model, x, grid, condition=condition, noise=noise))

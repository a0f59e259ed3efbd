"""T-Stitch: which model takes which step, and what stitched DiTs draw."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from golden_cases import Case, MismatchError, Run
from golden_dit import OfficialHalves, chain_options, like
from golden_noise import RecordedNoise
from golden_told import Told
from torch import Tensor

import genlab
from genlab.compute import choose
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.discrete import Discrete, respaced_timesteps
from genlab.generators import DiffusionGenerator
from genlab.samplers.base import SOLVERS, Grid, SolverStep
from genlab.samplers.guidance.base import GuidanceOptions
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.respaced import Respaced
from genlab.samplers.stitching import Stitch, acting


def table(run: Run) -> None:
    """Two models: the share of the small one."""
    _check_table(run, [[ratio] for ratio in run.params("ratios")["ratios"]])


def multi_table(run: Run) -> None:
    """Several models: the shares of all, of which that of the last is what the others leave."""
    _check_table(run, [each[:-1] for each in run.params("fractions")["fractions"]])


def _check_table(run: Run, shares: list[list[float]]) -> None:
    model = Discrete(variance="learned_range")
    results = {}
    for steps in run.params("steps")["steps"]:
        timesteps = torch.tensor(respaced_timesteps(model.T, str(steps))).flip(0)
        results[f"timesteps_{steps}"] = timesteps
        schedule: Any = Respaced(steps=str(steps))
        grid = Grid.of(schedule, model)
        assert torch.equal(grid.sigmas[:-1], model.levels[timesteps])
        rows = torch.tensor([_who_acts(fractions, grid) for fractions in shares])
        results[f"index_{steps}"] = _as_published(rows, run.reference(f"index_{steps}"))
    run.expect_all(results)


def _who_acts(fractions: list[float], grid: Grid) -> list[int]:
    stitches = [Stitch(model="small", fraction=fraction) for fraction in fractions]
    levels = grid.sigmas[:-1].tolist()
    return [
        acting(
            stitches,
            level=level,
            index=index,
            num_steps=len(levels),
            noise_levels=grid.noise_levels,
        )
        for index, level in enumerate(levels)
    ]


def _as_published(rows: Tensor, reference: Tensor) -> Tensor:
    """-1 where the official code finds no model at all; we must have taken the last one there."""
    nobody = reference == -1
    if bool((rows[nobody] != rows.max()).any()):
        raise MismatchError("where the official code has no model the last one must act")
    return torch.where(nobody, -1, rows)


@lru_cache(maxsize=16)
def _converted(case: Case, role: str, *more: tuple[str, Any]) -> DiffusionGenerator:
    made = case.meta["constructors"][role]
    weights = case.folder / f"{case.meta['weights'][role]}.safetensors"
    generator = genlab.convert(
        weights, format=made["cls"].lower(), config={**made["kwargs"], **dict(more)}
    )
    assert isinstance(generator, DiffusionGenerator)
    choose(torch.device("cpu")).prepare(generator.network)
    return generator


class Watched:
    """A model that notes what its network is told."""

    autoencoder = None

    def __init__(self, generator: DiffusionGenerator) -> None:
        self.denoiser = Told(generator.denoiser, generator.network)
        self.state_shape, self.num_classes = generator.state_shape, generator.num_classes

    @property
    def calls(self) -> int:
        return len(self.denoiser.calls)


@dataclass(frozen=True, kw_only=True)
class Halves(GuidanceOptions):
    """The official doubled batch around whichever model acts."""

    scale: float
    preconditioning: Discrete

    def __call__(self, denoiser: Denoiser) -> Any:
        return OfficialHalves(denoiser, self.preconditioning, self.scale)


def sample(run: Run) -> None:
    params = run.params("denoisers", "ratio", "fractions", "method", "eta", "clip_denoised")
    scale = run.params("cfg_scale").get("cfg_scale")
    diffusion = dict(run.params("diffusion")["diffusion"])
    run.params("trace")  # says only what is recorded
    roles = params["denoisers"]
    models = [_converted(run.case, role, *chain_options(diffusion).items()) for role in roles]
    kind = models[-1].preconditioning
    assert isinstance(kind, Discrete)
    if diffusion.get("learn_sigma", True) != (kind.variance == "learned_range"):
        raise MismatchError(f"{run.id}: learn_sigma is not what the networks have")
    watched = [Watched(model) for model in models]
    shares = [params["ratio"]] if "ratio" in params else params["fractions"][:-1]
    options = {"eta": params["eta"]} if "eta" in params else {}
    schedule: Any = Respaced(steps=str(diffusion["timestep_respacing"]))
    sampler = Sampler(
        solver=SOLVERS.build(params["method"], clip=params.get("clip_denoised", False), **options),
        schedule=schedule,
        guidance=() if scale is None else (Halves(scale=scale, preconditioning=kind),),
        stitch=tuple(
            Stitch(model=model, fraction=share)
            for model, share in zip(watched[:-1], shares, strict=True)
        ),
    )
    steps, who = _steps(run, sampler, watched)
    scaled = [step.x * (1 + step.sigma_next**2) ** -0.5 for step in steps]
    timesteps = torch.zeros(len(steps))
    for number, model in enumerate(watched):
        taken = [index for index, taker in enumerate(who) if taker == number]
        if taken:
            timesteps[taken] = model.denoiser.shared_times(len(taken)).float()
    index = torch.tensor(who)
    run.expect_all(
        {
            "sample": scaled[-1],
            "denoiser_index": like(index, run.reference("denoiser_index")),
            "model_timesteps": like(timesteps, run.reference("model_timesteps")),
            "x_trajectory": torch.stack(scaled),
        }
    )


def _steps(
    run: Run, sampler: Sampler, watched: list[Watched]
) -> tuple[list[SolverStep], list[int]]:
    """The steps, and which model took each."""
    z, y = run.input("z"), run.input("y")
    labels = torch.where(y == watched[-1].num_classes, NULL_CLASS, y)
    who: list[int] = []
    before = [model.calls for model in watched]

    def note(step: SolverStep) -> None:
        nonlocal before
        now = [model.calls for model in watched]
        [taker] = [i for i, (a, b) in enumerate(zip(before, now, strict=True)) if b > a]
        who.append(taker)
        before = now

    noise = RecordedNoise(run)
    with torch.no_grad():
        steps = list(
            sample_steps(
                sampler,
                watched[-1].denoiser,
                noise=noise,
                condition=Condition(labels=labels),
                image_shape=z.shape[1:],
                device="cpu",
                latents=z,
                hooks=[note],
            )
        )
    noise.expect_end()
    for model in watched:
        model.denoiser.notes.remove()
    return steps, who


CHECKS: dict[str, Callable[[Run], None]] = {
    "tstitch_multi_table": multi_table,
    "tstitch_sample": sample,
    "tstitch_table": table,
}

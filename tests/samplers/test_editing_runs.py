"""Runs that begin with images and keep some of them, on the closed-form mixture."""

from typing import Any

import pytest
import torch
from ideal_cases import FREE_SOLVERS, SHAPE, Listener, Timesteps, mixture
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import Flow
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.diffusion.preconditioning import EDM, VE, VP
from genlab.errors import ConfigError
from genlab.samplers.base import Grid
from genlab.samplers.editing.interpolation import NoiseBetween, slerp
from genlab.samplers.editing.options import Edit
from genlab.samplers.editing.runs import begin_at, edit_steps, go_back, level_of_time
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras

IMAGES = torch.linspace(-1, 1, 16).reshape(2, *SHAPE)
MASK = torch.tensor([[True, False], [True, False]]).expand(2, 1, 2, 2)


def run(edit: Edit, config: Any = None, model: Any = None, **options: Any) -> list[Any]:
    options = {"condition": Condition(), "noise": NoiseStream([3, 4]), **options}
    sampler = Sampler.from_config(config or {"schedule": {"num_steps": 8}})
    return list(edit_steps(sampler, model or mixture(), IMAGES, edit, device="cpu", **options))


def grid(*sigmas: float) -> Grid:
    levels = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    return Grid(sigmas=levels, sigma_range=(sigmas[-1], sigmas[0]), noise_levels=EDM())


@pytest.mark.parametrize(
    "levels", [EDM(), VP(), VE(), Discrete(), Discrete(interpolate=True), Flow()], ids=str
)
@pytest.mark.parametrize("time", [0.05, 0.5, 0.85, 1.0])
def test_the_level_of_a_time_has_that_time(levels: NoiseLevels, time: float) -> None:
    sigma = torch.tensor(level_of_time(levels, time), dtype=torch.float64)
    known = levels.round_sigma(sigma)
    assert float(levels.time(known)) == pytest.approx(time, abs=1e-6)


def test_the_rest_of_a_run() -> None:
    whole = grid(80.0, 10.0, 2.0, 0.5)
    assert begin_at(whole, 5.0).sigmas.tolist() == [5.0, 2.0, 0.5, 0.0]
    assert begin_at(whole, 2.0).sigmas.tolist() == [2.0, 0.5, 0.0]
    assert begin_at(whole, 0.1).sigmas.tolist() == [0.1, 0.0]
    restarts = grid(80.0, 10.0, 2.0, 10.0, 3.0, 40.0, 0.5)
    assert begin_at(restarts, 10.0).sigmas.tolist() == [10.0, 2.0, 10.0, 3.0, 0.5, 0.0]
    assert begin_at(whole, 900.0).sigmas.tolist() == whole.sigmas.tolist()


def test_a_run_begins_with_images_under_noise() -> None:
    edit = Edit(start_sigma=3.0)
    steps = run(edit, config={"solver": "euler", "schedule": {"num_steps": 8}})
    assert steps[0].level == 3.0
    latents = NoiseStream([3, 4]).randn(SHAPE).double()
    x = IMAGES.double() + 3.0 * latents
    x0 = mixture()(x, torch.tensor(3.0).double(), Condition())
    expected = x + (steps[0].sigma_next - 3.0) * (x - x0) / 3.0
    torch.testing.assert_close(steps[0].x, expected)
    assert torch.equal(run(edit, latents=latents)[-1].x, run(edit)[-1].x)


def test_more_strength_leads_further_away() -> None:
    x0 = mixture().means[:2]
    sampler = Sampler.from_config({"schedule": {"num_steps": 12}})
    apart = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        options: Any = {"noise": NoiseStream([1, 2]), "condition": Condition(), "device": "cpu"}
        *_, last = edit_steps(sampler, mixture(), x0, Edit(strength=strength), **options)
        apart.append(float((last.x - x0).norm()))
    assert apart == sorted(apart)
    assert apart[0] < 0.2 * apart[-1]


def test_a_discrete_model_is_asked_at_its_timesteps() -> None:
    model = Timesteps(mixture())
    run(
        Edit(strength=0.5), {"solver": "ddim", "schedule": {"name": "respaced", "steps": 10}}, model
    )
    known = model.noise_levels.levels
    assert known is not None
    assert set(model.sigmas) <= set(known.tolist())
    assert model.sigmas[0] == known[19]  # (t + 1) / 40 is 0.5 there


def test_levels_of_repaint() -> None:
    """Jumps of two levels, three times each: after every second level from below."""
    gone = go_back(grid(5.0, 4.0, 3.0, 2.0, 1.0), 2, 3)
    assert gone.sigmas.tolist() == [
        5, 4, 3, 5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 3, 2, 1, 0,
    ]  # fmt: skip
    assert go_back(grid(2.0, 1.0), None, 2).sigmas.tolist() == [2, 1, 2, 1, 0]
    assert go_back(grid(2.0), None, 9).sigmas.tolist() == [2, 0]


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_what_is_kept_is_kept_under_every_solver(solver: str) -> None:
    timesteps = solver in ("ddpm", "ddim")
    schedule = {"name": "respaced", "steps": 8} if timesteps else {"num_steps": 8}
    model = Timesteps(mixture()) if timesteps else mixture()
    config = {"solver": {"name": solver}, "schedule": schedule}
    # The restart solver goes back up by itself.
    edit = Edit(resample=1) if solver == "restart" else Edit(resample=3, jump_length=2)
    steps = run(edit, config, model, mask=MASK)
    drawn = steps[-1].x
    assert torch.equal(drawn[..., 1], IMAGES.double()[..., 1])
    assert drawn.isfinite().all()
    assert (drawn[..., 0] - IMAGES[..., 0]).abs().min() > 1e-4
    if solver != "unipc":  # it may refine a state after its report
        for step in steps:
            assert step.x.isfinite().all()


@pytest.mark.parametrize("S_churn", [0.0, 3.0])
def test_restarts_below_the_start_of_an_edit_are_kept(S_churn: float) -> None:
    solver = {"name": "restart", "intervals": [[0.03, 0.3, 3, 2], [2.0, 9.0, 3, 4]]}
    config = {"solver": {**solver, "S_churn": S_churn}, "schedule": {"num_steps": 8}}
    steps = run(Edit(start_sigma=1.0), config)
    rises = [step.sigma_next for step in steps if step.sigma_next > step.level]
    assert rises == [pytest.approx(0.3)] * 2
    outside = [s.sigma / s.level for s in steps if s.level > 0.3 and s.sigma_next < s.level]
    plain = len(steps) - 2 * 3  # each way back up and down has three steps
    assert outside == [pytest.approx(1 + min(S_churn / plain, 2**0.5 - 1))] * len(outside)


CFG_HALF = {"name": "cfg", "scale": 2.0, "when": {"steps": [0.0, 0.5]}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"guidance": [CFG_HALF]}, "when.steps goes by the number of a step"),
        ({"guidance": [{"name": "cads"}]}, "set time: model"),
        ({"solver": "restart"}, "a solver without restarts"),
        ({"solver": "diffusers", "schedule": {"name": "diffusers"}}, "edits need another solver"),
    ],
    ids=["window", "cads", "restart", "diffusers"],
)
def test_what_goes_by_steps_is_refused_where_a_run_goes_back(config: Any, message: str) -> None:
    labels = Condition(labels=torch.tensor([0, 1]))
    whole, model = {"schedule": {"num_steps": 8}, **config}, None
    if config.get("solver") == "diffusers":
        model = Timesteps(mixture())
    with pytest.raises(ConfigError, match=message):
        run(Edit(), whole, model, mask=MASK, condition=labels)
    steps = {"schedule": {"num_steps": 8}, "guidance": [CFG_HALF]}
    assert run(Edit(resample=1), steps, mask=MASK, condition=labels)


def test_the_known_part_has_fresh_noise_of_the_level_in_each_pass() -> None:
    steps = run(Edit(resample=4, jump_length=1), mask=MASK)
    kept = [(s.x - IMAGES)[..., 1] / s.sigma_next for s in steps if 0 < s.sigma_next < s.level]
    drawn = torch.stack(kept)
    assert len({float(each[0, 0, 0]) for each in kept}) == len(kept), "no draw is used twice"
    assert 0.8 < float(drawn.std()) < 1.2


def test_inpainting_draws_from_the_law_of_the_unknown_part() -> None:
    """A Gaussian whose pixels are independent but for the component: the class is inferred."""
    model = mixture()
    known = model.means[1].expand(64, *SHAPE)
    sampler = Sampler.from_config(
        {"solver": {"name": "ddim", "eta": 1.0}, "schedule": {"num_steps": 30, "sigma_max": 20.0}}
    )
    mask = MASK[:1].expand(64, 1, 2, 2)
    options: Any = {"condition": Condition(), "device": "cpu", "mask": mask}
    *_, last = edit_steps(
        sampler, model, known, Edit(resample=5), noise=NoiseStream(range(64)), **options
    )
    # Exact: the responsibilities of the components given the known pixels alone.
    seen = (model.means - model.means[1])[..., 1].square().sum((1, 2))
    weights = model.weights / model.stds**4 * (-seen / (2 * model.stds**2)).exp()
    mean = ((weights / weights.sum())[:, None, None, None] * model.means).sum(0)
    drawn = last.x[..., 0].mean(0)
    # Five standard errors of 64 draws of standard deviation at most 1.2, and RePaint's own bias.
    assert (drawn - mean[..., 0]).abs().max() < 0.8


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_does_not_decide(batch: int) -> None:
    whole = run(Edit(resample=2), mask=MASK)[-1].x
    sampler = Sampler.from_config({"schedule": {"num_steps": 8}})
    for row in range(0, 2, batch):
        part = slice(row, row + batch)
        options: Any = {"condition": Condition(), "device": "cpu", "mask": MASK[part]}
        noise = NoiseStream([3, 4][part])
        *_, last = edit_steps(
            sampler, mixture(), IMAGES[part], Edit(resample=2), noise=noise, **options
        )
        torch.testing.assert_close(last.x, whole[part], rtol=0, atol=1e-12)


def test_inversion_to_a_level_and_back_changes_little() -> None:
    config = {"schedule": {"num_steps": 60, "sigma_min": 0.02}}
    changed = run(Edit(invert=True, strength=0.6), config)[-1].x
    assert (changed - IMAGES).abs().max() < 0.02
    other = Condition(labels=torch.tensor([2, 2]))
    moved = run(Edit(invert=True, strength=0.6), config, condition=other, source=Condition())[-1].x
    assert (moved - IMAGES).abs().max() > 0.1


@pytest.mark.parametrize("guided", [False, True])
def test_inversion_asks_under_guidance_only_if_it_is_told(guided: bool) -> None:
    model = Listener(mixture())
    config = {"schedule": {"num_steps": 4}, "guidance": [{"name": "cfg", "scale": 2.0}]}
    condition = Condition(labels=torch.tensor([0, 1]))
    run(Edit(invert=True, guided=guided), config, model, condition=condition)
    inverting = model.batches[: 1 + 2 * 3]  # the start, and Heun's two for each step between levels
    assert inverting == [4 if guided else 2] * 7
    assert model.batches[7:] == [4] * 7


def test_hooks_see_the_known_part() -> None:
    seen: list[Tensor] = []
    run(Edit(resample=1), mask=MASK, hooks=[lambda step: seen.append(step.x)])
    assert torch.equal(seen[-1][..., 1], IMAGES.double()[..., 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5, "start_sigma": 1.0}, "say the same in two ways"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"strength": 1.5}, "strength must be above 0 and at most 1"),
        ({"start_sigma": -1.0}, "start_sigma must be a noise level"),
        ({"resample": 0}, "resample must be at least 1"),
        ({"jump_length": 0}, "jump_length must be at least 1"),
        ({"ask": "begin"}, "'begin' of a step"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Edit(**options)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="how much of the images is to be drawn anew"):
        run(Edit())
    with pytest.raises(ConfigError, match="leave the mask or invert out"):
        run(Edit(invert=True), mask=MASK)
    with pytest.raises(ConfigError, match="leave latents or invert out"):
        run(Edit(invert=True), latents=torch.zeros(2, *SHAPE))
    with pytest.raises(ConfigError, match="set jump_length to 7 at most"):
        run(Edit(jump_length=8), mask=MASK)
    with pytest.raises(ConfigError, match="levels that rise already"):
        go_back(grid(5.0, 1.0, 3.0, 0.5), 1, 2)


def test_the_arc_keeps_its_length_and_meets_its_ends() -> None:
    a, b = torch.randn(2, 5, 3, 16, 16)
    share = torch.linspace(0, 1, 5)
    between = slerp(a, b, share)
    assert torch.equal(between[0], a[0])
    assert torch.equal(between[-1], b[-1])
    lengths = between.flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)
    assert (lengths - 1).abs().max() < 0.1
    straight = 0.5 * (a[2] + b[2])
    assert float(straight.norm()) < 0.8 * float(a[2].norm())
    assert torch.equal(slerp(a, a, share), a)


def test_noise_between_streams_is_normal_in_every_draw() -> None:
    share = torch.full((400,), 0.5)
    streams = NoiseStream([1] * 400), NoiseStream(range(2, 402))
    noise = NoiseBetween(*streams, share)
    for draws in (noise.randn((3, 16, 16)), noise.fork("cads").randn((3, 16, 16))):
        assert abs(float(draws.std()) - 1) < 0.02
    uniform = noise.rand((3, 16, 16))
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    ends = NoiseBetween(NoiseStream([5]), NoiseStream([6]), torch.tensor([1.0]))
    assert torch.equal(ends.randn((4,)), NoiseStream([6]).randn((4,)))


def test_samples_between_two_under_a_stochastic_solver() -> None:
    """The ends are the samples themselves, and neighbours are near each other."""
    config = {"solver": {"name": "euler-ancestral"}, "schedule": {"num_steps": 10}}
    common: Any = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
    sampler = Sampler.from_config(config)
    share = torch.linspace(0, 1, 21).double()
    noise = NoiseBetween(NoiseStream([3] * 21), NoiseStream([7] * 21), share)
    *_, frames = sample_steps(sampler, mixture(), noise=noise, **common)
    for row, seed in ((0, 3), (-1, 7)):
        *_, alone = sample_steps(sampler, mixture(), noise=NoiseStream([seed]), **common)
        torch.testing.assert_close(frames.x[row : row + 1 or None], alone.x)
    steps = (frames.x[1:] - frames.x[:-1]).flatten(1).norm(dim=1)
    assert float(steps.max()) < 0.5 * float((frames.x[0] - frames.x[-1]).norm())


def test_karras_levels_are_what_a_run_takes() -> None:
    """The levels below the start are those of the sampler's schedule."""
    sigmas = Karras(num_steps=8)(mixture().noise_levels)
    steps = run(Edit(start_sigma=float(sigmas[3])))
    assert [s.level for s in steps] == sigmas[3:-1].tolist()

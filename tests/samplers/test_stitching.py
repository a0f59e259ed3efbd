"""T-Stitch: which model takes which step, what it is asked, and what goes together."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from crossings import META, waits_of
from ideal_cases import FREE_SOLVERS, SEEDS, SHAPE, Listener, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import EDM, VE, VP, Preconditioning
from genlab.errors import ConfigError, UnknownNameError
from genlab.networks import SongUNet
from genlab.samplers.base import SOLVERS, Grid
from genlab.samplers.combining import check_combinable
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.schedules.respaced import Respaced
from genlab.samplers.solvers.euler import Euler
from genlab.samplers.stitching import Stitch, Stitched, acting, build, check, entries_of

LABELS = Condition(labels=torch.tensor([0, 1, 2, 0]))


@dataclass
class Model:
    """What a generator is to a stitch, around a closed-form denoiser."""

    denoiser: Any
    state_shape: tuple[int, int, int] = SHAPE
    num_classes: int = 3
    autoencoder: Any = None


@dataclass
class Code:
    """An autoencoder with its hash."""

    hash: str

    def sha256(self) -> str:
        return self.hash


def takers(stitches: Sequence[Stitch], grid: Grid) -> list[int]:
    levels = grid.sigmas[:-1].tolist()
    where: dict[str, Any] = {"num_steps": len(levels), "noise_levels": grid.noise_levels}
    return [acting(stitches, level=x, index=i, **where) for i, x in enumerate(levels)]


def respaced(steps: str) -> Grid:
    schedule: Any = Respaced(steps=steps)
    return Grid.of(schedule, Discrete())


def two(fraction: float, **options: Any) -> list[Stitch]:
    return [Stitch(model="small", fraction=fraction, **options)]


# Which model takes which step


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 12, 18, 50, 250])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.25, 0.33, 0.4, 0.55, 0.9, 1.0])
def test_by_time_is_the_official_rule_on_timesteps(steps: int, fraction: float) -> None:
    """``t / 1000 >= 1 - fraction``, here in whole numbers."""
    grid = respaced(str(steps))
    timesteps = Discrete().timestep(grid.sigmas[:-1]).to(torch.int64).tolist()
    border = 1000 - round(1000 * fraction)
    expected = [0 if t >= border else 1 for t in timesteps]
    assert takers(two(fraction), grid) == expected


@pytest.mark.parametrize(("fraction", "small"), [(0.55, 5), (0.25, 3), (0.4, 4), (1, 10), (0, 0)])
def test_by_time_is_not_a_rounded_share_of_the_steps(fraction: float, small: int) -> None:
    grid = respaced("10")
    assert takers(two(fraction), grid).count(0) == small


@pytest.mark.parametrize("steps", [4, 10, 18, 37])
def test_a_share_of_time_is_one_of_edm_s_standard_steps(steps: int) -> None:
    grid = Grid.of(Karras(num_steps=steps), EDM())
    for share in (0.0, 0.25, 0.4, 0.8, 1.0):
        small = takers(two(share), grid).count(0)
        assert abs(small - share * steps) <= 1, "its time falls evenly from 1 to 0"
    assert takers(two(1.0), grid) == [0] * steps, "even at the last level, whose time is 0"
    assert takers(two(0.0), grid) == [1] * steps


@pytest.mark.parametrize("fraction", [0.0, 0.145, 0.25, 0.29, 0.35, 0.5, 0.57, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 100])
def test_by_step_is_exact(fraction: float, steps: int) -> None:
    grid = Grid.of(Karras(num_steps=steps), EDM())
    small = floor(Fraction(str(fraction)) * steps + Fraction(1, 2))
    assert takers(two(fraction, by="step"), grid) == [0] * small + [1] * (steps - small)


def test_floats_would_take_a_step_too_few() -> None:
    assert floor(0.145 * 100 + 0.5) == 14
    grid = Grid.of(Karras(num_steps=100), EDM())
    assert takers(two(0.145, by="step"), grid).count(0) == 15


def test_by_sigma_the_border_is_the_next_model_s() -> None:
    grid = Grid.of(Karras(num_steps=10), EDM())
    levels = grid.sigmas.tolist()
    stitches = [
        Stitch(model=name, by="sigma", until_sigma=levels[index])
        for name, index in (("small", 2), ("middle", 5))
    ]
    assert takers(stitches, grid) == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_three_models_and_one_that_never_acts() -> None:
    grid = respaced("10")
    shares = [Stitch(model=name, fraction=f) for name, f in (("s", 0.3), ("n", 0.0), ("m", 0.3))]
    assert takers(shares, grid) == [0, 0, 0, 2, 2, 2, 3, 3, 3, 3]
    assert takers([Stitch(model="s", fraction=0.6), Stitch(model="m", fraction=0.4)], grid) == [
        0, 0, 0, 0, 0, 0, 1, 1, 1, 1,
    ]  # fmt: skip


def test_levels_that_rise_again_are_the_small_model_s_again() -> None:
    """A restart goes back to where the small model is good enough."""
    levels = [0.02, 0.7, 1.0, 0.3]
    where: dict[str, Any] = {"index": 0, "num_steps": 4, "noise_levels": EDM()}
    limit = [Stitch(model="small", by="sigma", until_sigma=0.5)]
    assert [acting(limit, level=level, **where) for level in levels] == [1, 0, 0, 1]


# What is asked of them


def stitched_run(
    config: dict[str, Any], fraction: float = 0.5, **options: Any
) -> tuple[Listener, Listener, Tensor]:
    """The large model, the small one, and the images of a run of six steps."""
    large, small = Listener(mixture()), Listener(mixture())
    entry = {"model": Model(small), "fraction": fraction, **options}
    steps = run(
        {"schedule": {"name": "karras", "num_steps": 6}, "stitch": [entry], **config},
        large,
        condition=LABELS,
    )
    return large, small, steps[-1].x


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_both_together_cost_what_one_would(solver: str) -> None:
    large, small, x = stitched_run({"solver": {"name": solver}})
    nfe = SOLVERS.build(solver).nfe(6)
    assert nfe in (len(large.batches) + len(small.batches), None)  # an adaptive one cannot tell
    assert large.batches
    assert small.batches
    plain = run(
        {"schedule": {"name": "karras", "num_steps": 6}, "solver": {"name": solver}},
        Listener(mixture()),
        condition=LABELS,
    )
    assert torch.equal(x, plain[-1].x), "the small model says the same here"


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2"])
@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.5, 1.0])
def test_the_model_changes_between_steps_only(solver: str, fraction: float) -> None:
    large, small, _ = stitched_run({"solver": {"name": solver}}, fraction, by="step")
    taken = floor(6 * fraction + 0.5)
    evaluations = 1 if solver == "euler" else 2
    last = 1 if evaluations == 2 else 0  # the step to 0 needs one only
    assert len(small.batches) == evaluations * taken - (last if taken == 6 else 0)
    assert len(large.batches) == evaluations * (6 - taken) - (last if taken < 6 else 0)


def test_churn_does_not_move_the_border() -> None:
    """Raised levels would lie above the border for one step more."""
    grid = Grid.of(Karras(num_steps=6), EDM())
    border = float(grid.sigmas[3])
    entry: dict[str, Any] = {"by": "sigma", "until_sigma": border, "fraction": None}
    churned = {"solver": {"name": "euler", "S_churn": 2.0}}
    large, small, _ = stitched_run(churned, **entry)
    assert (len(small.batches), len(large.batches)) == (3, 3)
    assert large.sigmas[0] > border


def test_guidance_acts_on_both_and_costs_nothing_outside_its_window() -> None:
    cfg = {"name": "cfg", "scale": 2.0}
    large, small, _ = stitched_run({"solver": "euler", "guidance": [cfg]}, by="step")
    assert small.batches == large.batches == [8, 8, 8]
    window = {**cfg, "when": {"steps": [0.34, 0.84]}}
    large, small, _ = stitched_run({"solver": "euler", "guidance": [window]}, by="step")
    assert (small.batches, large.batches) == ([4, 4, 8], [8, 8, 4])
    outside = {**cfg, "when": {"sigma": [0.0005, 0.001]}}
    large, small, _ = stitched_run({"solver": "euler", "guidance": [outside]}, by="step")
    assert (small.batches, large.batches) == ([4, 4, 4], [4, 4, 4])


def test_both_hear_of_every_step_and_all_rows_are_counted() -> None:
    large, small, _ = stitched_run({"solver": "heun"})
    assert len(large.steps) == len(small.steps) == 6
    one, other = mixture(), mixture()
    stitched = Stitched(one, build([{"model": Model(other), "fraction": 0.5}]))
    x, sigma = torch.zeros(4, *SHAPE).double(), torch.tensor(1.0).double()
    stitched(x, sigma, LABELS)
    assert (one.evaluations, other.evaluations, stitched.evaluations) == (4, 0, 4), (
        "until a run says where it stands the large model answers"
    )


# What goes together


def unet(outputs: int = 1) -> SongUNet:
    network = SongUNet(8, 1, outputs, 3, model_channels=8, channel_mult=[1], num_blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def behind(model: Preconditioning, null: bool = True) -> PreconditionedDenoiser:
    outputs = 2 if model.variance.startswith("learned") else 1
    return PreconditionedDenoiser(unet(outputs), model, num_classes=3, has_null_class=null)


def draw(large: Denoiser, small: Denoiser, config: dict[str, Any], fraction: float = 0.5) -> Tensor:
    entry = {"model": Model(small, (1, 8, 8)), "fraction": fraction}
    with torch.no_grad():
        *_, last = sample_steps(
            Sampler.from_config({"stitch": [entry], **config}),
            large,
            noise=NoiseStream(SEEDS),
            condition=LABELS,
            image_shape=(1, 8, 8),
            device="cpu",
        )
    return last.x


def karras(**levels: float) -> dict[str, Any]:
    return {"solver": "heun", "schedule": {"name": "karras", "num_steps": 4, **levels}}


@pytest.mark.parametrize("small", [EDM(), VP(), VE(), Discrete(T=50), Discrete(prediction="v")])
@pytest.mark.parametrize("large", [EDM(), Discrete(T=100)])
def test_models_of_any_two_preconditionings_are_stitched(
    large: Preconditioning, small: Preconditioning
) -> None:
    assert (
        draw(behind(large), behind(small), karras(sigma_min=0.1, sigma_max=20.0)).isfinite().all()
    )


def test_a_discrete_model_between_its_levels_is_told_the_nearest_timestep() -> None:
    """Its scalings are those of the level itself, so that the estimate belongs to the state."""
    model = Discrete(T=30)
    small, told = behind(model), []
    hook = small.network.register_forward_pre_hook(lambda _, args: told.append(args[1]))
    draw(behind(EDM()), small, karras(sigma_min=0.1, sigma_max=20.0), 1.0)
    hook.remove()
    asked = Grid.of(Karras(num_steps=4, sigma_min=0.1, sigma_max=20.0), EDM()).sigmas[:-1]
    timesteps = {float(c) for c in torch.cat([c.reshape(-1) for c in told])}
    assert timesteps == {float(t) for t in model.timestep(asked)}
    assert not torch.equal(model.round_sigma(asked), asked)


def test_a_level_outside_of_a_small_model_s_range_is_refused() -> None:
    low, high = "below the smallest that it knows, 0.02", "above the largest that it knows, 10"
    with pytest.raises(ConfigError, match=low):
        draw(behind(EDM()), behind(VE()), karras(), 1.0)
    with pytest.raises(ConfigError, match=high):
        draw(behind(EDM()), behind(EDM(sigma_max=10.0)), karras())
    # In the steps of the large model the small one's range does not matter.
    assert draw(behind(EDM()), behind(VE()), karras()).isfinite().all()


def test_the_end_of_a_step_counts_where_it_is_asked() -> None:
    """Heun's second evaluation is at the level that the step arrives at; Euler has none."""
    border = float(Grid.of(Karras(num_steps=4), EDM()).sigmas[2])
    small = EDM(sigma_min=border * 1.01)
    with pytest.raises(ConfigError, match="below the smallest"):
        draw(behind(EDM()), behind(small), karras())
    assert draw(behind(EDM()), behind(small), {**karras(), "solver": "euler"}).isfinite().all()


def test_a_variance_that_only_one_predicts() -> None:
    chain = {"schedule": {"name": "respaced", "steps": 4}}
    learned, fixed = Discrete(T=50, variance="learned_range"), Discrete(T=50)
    ddpm: dict[str, Any] = {**chain, "solver": {"name": "ddpm"}}
    with pytest.raises(ConfigError, match=r"variance of a step and .*variance=fixed_small"):
        draw(behind(learned), behind(fixed), ddpm)
    assert draw(behind(fixed), behind(learned), ddpm).isfinite().all()
    assert draw(behind(learned), behind(learned), ddpm).isfinite().all()
    ours = {**chain, "solver": {"name": "ddpm", "variance": "fixed_small"}}
    assert draw(behind(learned), behind(fixed), ours).isfinite().all()
    assert draw(behind(learned), behind(fixed), {**chain, "solver": "ddim"}).isfinite().all()


def test_the_variance_is_that_of_the_model_that_acts() -> None:
    learned = Discrete(T=50, variance="learned_range")
    one, other = behind(learned), behind(learned)
    stitched = Stitched(one, build([{"model": Model(other, (1, 8, 8)), "fraction": 1.0}]))
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor(1.0)
    stitched.acting, stitched.active = 0, True
    with torch.no_grad():
        said, expected = (each.predict(x, sigma, LABELS) for each in (stitched, other))
    assert said.variance is not None
    assert expected.variance is not None
    assert torch.equal(said.variance, expected.variance)


def test_guidance_by_the_null_class_needs_one_in_every_model() -> None:
    guided = {**karras(), "guidance": [{"name": "cfg", "scale": 2.0}]}
    with pytest.raises(ConfigError, match=r"not every stitched model can be guided .* dropout"):
        draw(behind(EDM()), behind(EDM(), null=False), guided)
    with pytest.raises(ConfigError, match=r"^classifier-free guidance needs a model trained"):
        draw(behind(EDM(), null=False), behind(EDM()), guided)
    assert draw(behind(EDM()), behind(EDM(), null=False), karras()).isfinite().all()


def test_other_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="knows 3 classes and the model 5"):
        Stitched(
            PreconditionedDenoiser(unet(), EDM(), num_classes=5, has_null_class=True),
            build([{"model": Model(behind(EDM())), "fraction": 0.5}]),
        )


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Model(None, (2, 4, 4)), r"of shape \(2, 4, 4\), and the model \(2, 2, 2\)"),
        (Model(None, num_classes=4), "4 classes and the model 3"),
        (Model(None, autoencoder=None), "the model denoises latents and the second images"),
        (Model(None, autoencoder=Code("b")), "another autoencoder"),
    ],
)
def test_models_of_other_spaces_are_refused(other: Model, reason: str) -> None:
    check_combinable(Model(None, autoencoder=Code("a")), Model(None, autoencoder=Code("a")), "it")
    with pytest.raises(ConfigError, match=reason):
        check_combinable(Model(None, autoencoder=Code("a")), other, "the second")


def test_steps_that_are_counted_need_levels_that_fall() -> None:
    class Restarting(Karras):
        def __call__(self, noise_levels: Any) -> Tensor:
            return torch.tensor([10.0, 1.0, 5.0, 1.0, 0.0]).double()

    for by, fine in (("step", False), ("time", True)):
        stitch = Stitch(model=Model(mixture()), fraction=0.5, by=by)
        sampler = Sampler(solver=Euler(), schedule=Restarting(num_steps=4), stitch=(stitch,))
        if fine:
            assert len(sampler.grid(mixture().noise_levels).sigmas) == 5
        else:
            with pytest.raises(ConfigError, match="levels rise again"):
                sampler.grid(mixture().noise_levels)


# How it is written


def test_short_forms_say_what_the_entries_say() -> None:
    entries = [{"model": "a", "fraction": 0.25}, {"model": "b:c", "fraction": 0.5}]
    assert entries_of(entries) == entries
    assert entries_of({"a": 0.25, "b:c": 0.5}) == entries
    assert entries_of(["a:0.25", "b:c:0.5"]) == entries
    assert entries_of([("a", 0.25), ["b:c", 0.5]]) == entries
    assert entries_of(build(entries)) == entries
    assert entries_of(entries[0]) == entries_of(("a", 0.25)) == entries_of("a:0.25") == entries[:1]
    assert entries_of([]) == entries_of({}) == []
    assert entries_of({Path("runs/a"): 0.25}) == [{"model": "runs/a", "fraction": 0.25}]


@pytest.mark.parametrize("text", ["a", "a:", ":0.4", "0.4", "a:b", "a:nan", ""])
def test_text_that_tells_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write MODEL:FRACTION"):
        entries_of(text)


@pytest.mark.parametrize("value", [0.4, [0.4], [("a", "b")], 7, [None]])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="stitch takes"):
        entries_of(value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"fraction": 0.4}, "model has no value"),
        ({"model": "a"}, "needs a fraction of the run between 0 and 1, got None"),
        ({"model": "a", "fraction": 1.5}, "between 0 and 1, got 1.5"),
        ({"model": "a", "fraction": -0.1}, "between 0 and 1, got -0.1"),
        ({"model": 3, "fraction": 0.5}, "needs a model"),
        ({"model": "a", "fraction": 0.4, "by": "steps"}, "no rule by 'steps'; did you mean 'step'"),
        ({"model": "a", "fraction": 0.4, "by": "sigma"}, "by sigma takes until_sigma"),
        ({"model": "a", "by": "sigma"}, "by sigma takes until_sigma"),
        ({"model": "a", "by": "sigma", "until_sigma": -1.0}, "until_sigma >= 0"),
        ({"model": "a", "fraction": 0.4, "until_sigma": 1.0}, "only with by: sigma"),
        ({"model": "a", "share": 0.4}, "there is no setting 'share'"),
    ],
)
def test_wrong_entries_are_refused(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=reason):
        Sampler.from_config({"stitch": [entry]})


def test_entries_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"take 1\.1 of the run"):
        check([Stitch(model="a", fraction=0.6), Stitch(model="b", fraction=0.5)])
    check([Stitch(model=name, fraction=0.1) for name in "abcdefghij"])
    with pytest.raises(ConfigError, match="the same rule, got by: time, by: step"):
        check([Stitch(model="a", fraction=0.6), Stitch(model="b", fraction=0.2, by="step")])
    with pytest.raises(ConfigError, match="must fall"):
        check([Stitch(model="a", by="sigma", until_sigma=s) for s in (1.0, 2.0)])


def test_a_sampler_says_what_it_stitches() -> None:
    text = {"stitch": [{"model": "runs/dit-s/", "fraction": 0.4}, "b:0.2"]}
    sampler = Sampler.from_config(text)
    assert sampler.describe() == "heun, 18 steps, stitch dit-s 0.4, stitch b 0.2"
    assert sampler.config["stitch"] == [
        {"model": "runs/dit-s/", "fraction": 0.4},
        {"model": "b", "fraction": 0.2},
    ]
    assert "stitch" not in Sampler.from_config({}).config, "runs without it are told as ever"
    of_objects = Sampler(
        solver=Euler(),
        schedule=Karras(num_steps=3),
        stitch=(Stitch(model="a", fraction=0.5, by="step"),),
    )
    assert of_objects.config["stitch"] == [{"model": "a", "fraction": 0.5, "by": "step"}]
    assert of_objects.describe() == "euler, 3 steps, stitch a 0.5 of the steps"
    limit = Stitch(model="a", by="sigma", until_sigma=1.5)
    assert limit.describe() == "stitch a above sigma 1.5"


def test_an_interval_confines_guidance_by_the_class() -> None:
    cfg = {"name": "cfg", "scale": 2.0, "when": {"time": [0.1, 0.9]}}
    layers = [("the sampler", {"guidance": [cfg]})]
    sampler = Sampler.from_layers(layers, guidance_interval=(0.28, 2.9))
    assert sampler.config["guidance"] == [
        {**cfg, "when": {"time": [0.1, 0.9], "sigma": [0.28, 2.9]}}
    ]
    assert sampler.guidance[0].when.sigma == (0.28, 2.9)
    with pytest.raises(ConfigError, match="needs guidance by the class"):
        Sampler.from_layers([("the sampler", {})], guidance_interval=(0.28, 2.9))
    with pytest.raises(ConfigError, match="two noise levels"):
        Sampler.from_layers(layers, guidance_interval=(0.28,))
    off = Sampler.from_layers(layers, guidance_scale=1, guidance_interval=(0.28, 2.9))
    assert not [each for each in off.guidance if not each.outermost], "off, and so nowhere"


def test_the_loop_does_not_wait_at_the_switch() -> None:
    def meta() -> PreconditionedDenoiser:
        with META:
            network = SongUNet(8, 1, 1, 3, model_channels=8, channel_mult=[1], num_blocks=1)
        return PreconditionedDenoiser(network, EDM(), num_classes=3, has_null_class=True)

    entry = {"model": Model(meta(), (1, 8, 8)), "fraction": 0.5}
    steps = sample_steps(
        Sampler.from_config(
            {**karras(), "stitch": [entry], "guidance": [{"name": "cfg", "scale": 2.0}]}
        ),
        meta(),
        noise=NoiseStream([0, 1], META),
        condition=Condition(labels=torch.eye(3, device=META)[:2]),
        image_shape=(1, 8, 8),
        device=META,
    )
    next(steps)
    assert waits_of(lambda: list(steps)) == []

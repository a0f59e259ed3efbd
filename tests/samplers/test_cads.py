"""CADS: its schedule and formula, whose noise it draws, what it leaves alone, what it refuses."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from crossings import META, waits_of
from ideal_cases import mixture
from torch import Tensor
from watching import Watching

import genlab
from genlab import config as presets
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, StepInfo
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import EDM
from genlab.errors import ConfigError, SamplingError
from genlab.generators import DiffusionGenerator
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ADMClassifier, DiT, SongUNet
from genlab.samplers.base import SolverStep
from genlab.samplers.editing.inversion import invert
from genlab.samplers.guidance.annealing import cads_gamma
from genlab.samplers.guidance.base import Guidance
from genlab.samplers.guidance.cads import CADS, anneal_embedding
from genlab.samplers.guidance.classifier_free import ClassifierFree, ClassifierFreeDenoiser
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.solvers.heun import Heun

SHAPE = (1, 8, 8)
LABELS = torch.tensor([2, 0, 1])
SEEDS = (3, 5, 8)
CFG = {"name": "cfg", "scale": 2.5}
STRONG = {"name": "cads", "tau1": 0.3, "s": 0.5}
BUNDLED = ("dit-fmnist", "dit-fmnist-s", "edm-fmnist")


def network(kind: str = "unet", width: int = 8) -> Any:
    """A tiny network of 3 classes, no branch of which is silent."""
    torch.manual_seed(4)
    if kind == "dit":
        made: Any = DiT(8, 1, 1, 3, hidden_size=24, depth=1, num_heads=2)
    else:
        made = SongUNet(8, 1, 1, 3, model_channels=width, channel_mult=[1], num_blocks=1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def denoiser_of(made: Any, classes: int = 3) -> PreconditionedDenoiser:
    return PreconditionedDenoiser(made, EDM(), num_classes=classes, has_null_class=classes > 0)


class Seen(Watching):
    """Notes the class embedding that the network is given in each evaluation."""

    def __init__(self, inner: PreconditionedDenoiser) -> None:
        super().__init__(inner)
        self.lowest = inner
        self.embeddings: list[Tensor] = []

    def embed(self, condition: Condition) -> Tensor:
        embedding = self.lowest._class_embedding(condition)
        assert embedding is not None
        return embedding

    def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
        self.embeddings.append(self.embed(condition))
        return self.inner.predict(x, sigma, condition)


def run(
    config: dict[str, Any] | Sampler,
    model: Denoiser | None = None,
    seeds: Sequence[int] = SEEDS,
    labels: Tensor | None = LABELS,
    noise: Any = None,
) -> list[SolverStep]:
    common = {"schedule": {"name": "karras", "num_steps": 5}}
    sampler = config if isinstance(config, Sampler) else Sampler.from_config({**common, **config})
    with torch.no_grad():
        return list(
            sample_steps(
                sampler,
                model or denoiser_of(network()),
                noise=noise or NoiseStream(seeds),
                condition=Condition(labels=labels),
                image_shape=SHAPE,
                device="cpu",
            )
        )


# The schedule and the formula


@pytest.mark.parametrize("num_steps", [2, 4, 10, 250])
@pytest.mark.parametrize(("tau1", "tau2"), [(0.6, 0.9), (0.5, 0.5), (0.5, 1.0)])
def test_gamma_rises_from_nothing_to_the_whole(num_steps: int, tau1: float, tau2: float) -> None:
    gammas = [cads_gamma(1 - step / num_steps, tau1, tau2) for step in range(num_steps)]
    assert (gammas[0], gammas[-1]) == (0, 1)
    assert gammas == sorted(gammas)


def test_gamma_is_linear_between() -> None:
    assert cads_gamma(0.75, 0.6, 0.9) == pytest.approx(0.5)
    assert cads_gamma(0.7, 0.6, 0.9) == pytest.approx(2 / 3)


def test_time_is_that_of_the_steps_or_of_the_model() -> None:
    by_step, by_model = CADS(tau1=0.3, tau2=0.8), CADS(tau1=0.3, tau2=0.8, time="model")
    model = denoiser_of(network())
    for step in run({"solver": "heun", "schedule": {"name": "linear", "num_steps": 7}}, model):
        time = float(model.time(torch.tensor(step.level, dtype=torch.float64)))
        told = (step.level, step.index, step.num_steps, model.noise_levels)
        assert by_step.gamma(*told) == cads_gamma(1 - step.index / 7, 0.3, 0.8)
        assert by_model.gamma(*told) == cads_gamma(time, 0.3, 0.8)


@pytest.mark.parametrize("psi", [0.0, 0.3, 1.0])
def test_formula(psi: float) -> None:
    y, n = torch.randn(3, 7), torch.randn(3, 7)
    rows = []
    for clean, fresh in zip(y.double().numpy(), n.double().numpy(), strict=True):
        noised = 0.4**0.5 * clean + 0.7 * 0.6**0.5 * fresh
        unit = (noised - noised.mean()) / noised.std(ddof=1)
        rescaled = unit * clean.std(ddof=1) + clean.mean()
        rows.append(psi * rescaled + (1 - psi) * noised)
    out = anneal_embedding(y, n, 0.4, 0.7, psi)
    torch.testing.assert_close(out.double(), torch.from_numpy(np.stack(rows)), rtol=0, atol=1e-5)
    assert anneal_embedding(y.half(), n, 0.4, 0.7, psi).dtype == torch.float16
    assert anneal_embedding(y.double(), n, 0.4, 0.7, psi).dtype == torch.float64


def test_whole_embedding_is_left_as_it_is() -> None:
    y, n = torch.randn(2, 7), torch.randn(2, 7)
    torch.testing.assert_close(anneal_embedding(y, n, 1.0, 5.0, 1.0), y)


def test_samples_without_spread_are_not_rescaled() -> None:
    """Each by itself: its neighbours are."""
    y = torch.tensor([[0.3, 0.3, 0.3], [0.1, 0.5, -0.2], [0.0, 0.0, 0.0], [torch.inf, 0.0, 1.0]])
    noise = torch.zeros(4, 3)
    out = anneal_embedding(y, noise, 0.25, 0.4, 1.0)
    torch.testing.assert_close(out[0], 0.5 * y[0])
    torch.testing.assert_close(out[1], y[1])
    assert out[2].tolist() == [0, 0, 0]
    torch.testing.assert_close(out[3], 0.5 * y[3])
    # A run that begins at gamma 0 without noise.
    assert anneal_embedding(y[:3], noise[:3], 0.0, 0.0, 1.0).abs().max() == 0
    assert anneal_embedding(torch.ones(2, 1), torch.ones(2, 1), 0.0, 2.0, 1.0).tolist() == [[2]] * 2


# Noise


class Noted(NoiseStream):
    """Notes what is drawn from the streams themselves."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        self.drawn: list[Tensor] = []

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        self.drawn.append(super().randn(shape, dtype))
        return self.drawn[-1]


@pytest.mark.parametrize("s", [0.0, 0.5])
@pytest.mark.parametrize(
    "solver",
    [
        {"name": "heun", "S_churn": 2.0},
        {"name": "euler-ancestral"},
        {"name": "dpmpp", "sde": True},
        {"name": "dpmpp-sde"},
    ],
    ids=lambda solver: solver["name"],
)
def test_noise_of_the_solver_is_not_moved(solver: dict[str, Any], s: float) -> None:
    plain, annealed = Noted(SEEDS), Noted(SEEDS)
    without = run({"solver": solver, "guidance": [CFG]}, noise=plain)
    options = {**STRONG, "s": s, "psi": 0.0, "branches": "both"}
    steps = run({"solver": solver, "guidance": [CFG, options]}, noise=annealed)
    assert len(plain.drawn) == len(annealed.drawn)
    assert all(map(torch.equal, plain.drawn, annealed.drawn))
    assert (steps[-1].x - without[-1].x).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("branches", ["condition", "both"])
def test_an_image_is_the_same_alone_and_in_a_batch(kind: str, branches: str) -> None:
    config = {"solver": "heun", "guidance": [CFG, {**STRONG, "branches": branches}]}
    model = denoiser_of(network(kind))
    whole = run(config, model)[-1].x
    for place, seed in enumerate(SEEDS):
        alone = run(config, model, [seed], LABELS[place : place + 1])[-1].x
        torch.testing.assert_close(alone[0], whole[place], rtol=1e-4, atol=1e-4)  # float32 inside


def test_one_draw_a_step_serves_every_evaluation() -> None:
    """Both of Heun's, and a new one in the next step; the null rows stay as they are."""
    model = Seen(denoiser_of(network()))
    run({"solver": "heun", "guidance": [CFG, {**STRONG, "tau1": 0.25}]}, model)
    pairs = list(zip(model.embeddings[:-1:2], model.embeddings[1::2], strict=True))
    assert len(pairs) == 4
    assert all(torch.equal(first, second) for first, second in pairs)
    steps = [first[:3] for first, _ in pairs]
    assert all((a - b).abs().max() > 1e-2 for a, b in itertools.pairwise(steps))
    nulls = torch.stack([embedding[3:] for embedding in model.embeddings])
    plain = model.embed(Condition(labels=torch.full((3,), NULL_CLASS)))
    assert torch.equal(nulls, plain.expand_as(nulls))
    clean = model.embed(Condition(labels=LABELS))
    assert torch.equal(model.embeddings[-1][:3], clean), "gamma is 1 on the last step"


def test_noise_is_that_of_the_fork_in_its_order() -> None:
    model = Seen(denoiser_of(network()))
    run({"solver": "euler", "guidance": [{**STRONG, "psi": 0.0}]}, model)
    fork, y = NoiseStream(SEEDS).fork("cads"), model.embed(Condition(labels=LABELS))
    for index, seen in enumerate(model.embeddings):
        gamma = cads_gamma(1 - index / 5, 0.3, 0.9)
        expected = y if gamma == 1 else anneal_embedding(y, fork.randn(y.shape[1:]), gamma, 0.5, 0)
        torch.testing.assert_close(seen, expected)


def test_a_guided_model_may_be_used_again() -> None:
    """A second run draws anew, from the same streams as from new ones of the same seeds."""
    model = Seen(denoiser_of(network()))
    guided = CADS(s=0.5)(model)
    config = {"solver": "euler"}
    noise = NoiseStream(SEEDS)
    for seeds, streams in ((SEEDS, noise), (SEEDS, noise), ((9, 5, 1), None)):
        model.embeddings.clear()
        run(config, guided, seeds, noise=streams)
        again, model.embeddings = model.embeddings, []
        run({**config, "guidance": [{"name": "cads", "s": 0.5}]}, model, seeds)
        assert all(map(torch.equal, again, model.embeddings))


class Beside(Guidance):
    """Asks a second model with the same conditions."""

    def __init__(self, inner: Denoiser, other: Denoiser) -> None:
        super().__init__(inner, others=[other])
        self.other = other

    def guide(self, x: Tensor, sigma: Tensor, conditions: Sequence[Condition]) -> list[Prediction]:
        self.other.predict_each(x, sigma, conditions)
        return self.inner.predict_each(x, sigma, conditions)


def test_a_second_model_is_told_the_same_as_far_as_widths_agree() -> None:
    twin, wide = Seen(denoiser_of(network())), Seen(denoiser_of(network(width=12)))
    for other in (twin, wide):
        model = Seen(denoiser_of(network()))
        run({"solver": "heun"}, CADS(s=0.5)(Beside(model, other)))
        own = wide.embed(Condition(labels=LABELS))
        if other is twin:
            assert all(map(torch.equal, model.embeddings, twin.embeddings))
        else:
            assert other.embeddings[0].shape == own.shape
            assert (other.embeddings[0] - own).abs().max() > 1e-2
            assert torch.equal(other.embeddings[0], other.embeddings[1])


# Which rows are annealed


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("branches", ["condition", "both"])
def test_samples_without_a_class(soft: bool, branches: str) -> None:
    """They stay as they are, or are annealed alike in both branches; neither guides them."""
    labels = torch.tensor([1, NULL_CLASS, 0])
    if soft:
        labels = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.5]])
    model = Seen(denoiser_of(network("dit")))
    run({"guidance": [CFG, {**STRONG, "branches": branches}]}, model, labels=labels)
    plain = model.embed(Condition(labels=labels))
    first = model.embeddings[0]
    assert torch.equal(first[1], first[4])
    assert torch.equal(first[1], plain[1]) == (branches == "condition")
    for row in (0, 2):
        assert (first[row] - plain[row]).abs().max() > 1e-2


def test_both_branches_have_noise_of_their_own() -> None:
    model = Seen(denoiser_of(network("dit")))
    options = {**STRONG, "branches": "both", "psi": 0.0}
    run({"solver": "heun", "guidance": [CFG, options]}, model)
    first, second = model.embeddings[:2]
    assert torch.equal(first, second)
    # At gamma 0 all that is left is noise.
    noise = [NoiseStream(SEEDS).fork(key).randn(first.shape[1:]) for key in ("cads", "cads null")]
    torch.testing.assert_close(first, 0.5 * torch.cat(noise))
    clean = model.embed(Condition(labels=LABELS).null())
    assert torch.equal(model.embeddings[-1][3:], clean)


def test_all_guidance_below_sees_the_annealed_class() -> None:
    """A guidance around a guidance asks four times in one batch, once with the class."""
    model = Seen(denoiser_of(network("dit")))
    inner = ClassifierFree(scale=2.0)(model)
    guided = CADS(tau1=0.3, s=0.5)(ClassifierFreeDenoiser(inner, ClassifierFree(scale=3.0)))
    noise = NoiseStream(SEEDS)
    step = StepInfo(index=0, num_steps=2, level=5.0, sigma=5.0, sigma_next=1.0, noise=noise)
    guided.begin_step(step)
    with torch.no_grad():
        guided(torch.zeros(3, *SHAPE), torch.tensor(5.0).double(), Condition(labels=LABELS))
    once, *nulls = model.embeddings[0].chunk(4)
    clean = model.embed(Condition(labels=LABELS))
    assert (once - clean).abs().amax(1).min() > 1e-2
    for null in nulls:
        assert torch.equal(null, model.embed(Condition(labels=LABELS).null()))


def test_window() -> None:
    model = Seen(denoiser_of(network()))
    options = {**STRONG, "tau1": 0.0, "when": {"steps": [0.4, 0.8]}}
    run({"solver": "euler", "guidance": [options]}, model)
    clean = model.embed(Condition(labels=LABELS))
    whole = [torch.equal(embedding, clean) for embedding in model.embeddings]
    assert whole == [True, True, False, False, True]


def test_it_costs_no_evaluation() -> None:
    counts = []
    for guidance in ([CFG], [CFG, {**STRONG, "branches": "both"}]):
        model = denoiser_of(network())
        run({"solver": "heun", "guidance": guidance}, model)
        counts.append(model.evaluations)
    assert counts == [2 * 3 * 9] * 2


def test_without_labels_nothing_is_annealed() -> None:
    model = denoiser_of(network())
    plain = run({"solver": "euler"}, model, labels=None)[-1].x
    annealed = run({"solver": "euler", "guidance": [STRONG]}, model, labels=None)[-1].x
    assert torch.equal(annealed, plain)


@pytest.mark.parametrize("name", BUNDLED)
def test_stack_runs_on_bundled_models(name: str) -> None:
    """The same image alone and in a batch, at the cost of the guidance below."""
    generator = genlab.load(name)
    assert isinstance(generator, DiffusionGenerator)
    guidance = [{**CFG, "scale": 4.0, "when": {"sigma": [0.28, 2.9]}}, {"name": "cads"}]
    stack = {"schedule": {"num_steps": 5}, "guidance": guidance}
    images = generator.sample([4, 7], [1, 8], stack)
    alone = generator.sample([7], [8], stack)
    torch.testing.assert_close(alone[0], images[1], rtol=0, atol=1e-4)
    assert images.isfinite().all()
    before, evaluations = generator.sample([4, 7], [1, 8], {**stack, "guidance": guidance[:1]}), []
    assert (before - images).abs().max() > 1e-2
    for some in (guidance, guidance[:1]):
        start = generator.evaluations
        generator.sample([4], [1], {**stack, "guidance": some})
        evaluations.append(generator.evaluations - start)
    assert evaluations[0] == evaluations[1] > 9


@pytest.mark.parametrize("name", ["cads", "cads-text"])
def test_presets(name: str, tiny_generator: DiffusionGenerator) -> None:
    preset = presets.read_preset("sampler", name)
    assert [each["name"] for each in preset["guidance"]] == ["cfg", "cads"]
    assert "starting point" in presets.preset_path("sampler", name).read_text(encoding="utf-8")
    sampler = tiny_generator.build_sampler(name, num_steps=3)
    assert tiny_generator.sample([0], [1], sampler).isfinite().all()


@pytest.mark.parametrize("branches", ["condition", "both"])
@pytest.mark.parametrize("soft", [False, True])
def test_no_step_waits_for_its_device(branches: str, soft: bool) -> None:
    with META:
        made: Any = SongUNet(8, 1, 1, 3, model_channels=8, channel_mult=[1], num_blocks=1)
    guidance = [CFG, {**STRONG, "tau1": 0.1, "branches": branches}]
    steps = sample_steps(
        Sampler.from_config({"schedule": {"num_steps": 4}, "guidance": guidance}),
        denoiser_of(made),
        noise=NoiseStream([0, 1], META),
        condition=Condition(
            labels=torch.eye(3, device=META)[:2] if soft else torch.tensor([0, 1], device=META)
        ),
        image_shape=SHAPE,
        device=META,
    )
    next(steps)
    assert waits_of(lambda: list(steps)) == []


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau1": 0.9, "tau2": 0.6}, "tau1 <= tau2"),
        ({"tau1": -0.1}, "0 <= tau1"),
        ({"tau2": 1.1}, "tau2 <= 1"),
        ({"tau1": float("nan")}, "got tau1 = nan"),
        ({"s": -0.1}, "s >= 0"),
        ({"s": float("inf")}, "s >= 0"),
        ({"psi": 1.5}, "0 <= psi <= 1"),
        ({"time": "steps"}, "did you mean 'step'"),
        ({"branches": "null"}, "known: .*condition"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CADS(**options)


def test_runs_that_never_see_the_class(tiny_generator: DiffusionGenerator) -> None:
    """When the sampler is checked, before anything is drawn, and in a run without a generator."""
    one: dict[str, Any] = {"schedule": {"num_steps": 1}, "guidance": [{"name": "cads"}]}
    with pytest.raises(ConfigError, match="this run has no other"):
        tiny_generator.build_sampler(one)
    with pytest.raises(ConfigError, match="this run has no other"):
        run(one)
    hidden = {"name": "cads", "tau1": 0.1, "tau2": 0.3}
    with pytest.raises(ConfigError, match="hides the class in all 3 steps"):
        tiny_generator.build_sampler({"schedule": {"num_steps": 3}, "guidance": [hidden]})
    for some in ({**hidden, "when": {"steps": [0, 0.5]}}, {**hidden, "tau2": 0.4}):
        tiny_generator.build_sampler({"schedule": {"num_steps": 3}, "guidance": [some]})


@dataclass(frozen=True, kw_only=True)
class Restarting:
    """A schedule that comes back to a level."""

    num_steps: int = 5

    def sigma_range(self, noise_levels: NoiseLevels) -> tuple[float, float]:
        return 0.1, 20.0

    def __call__(self, noise_levels: NoiseLevels) -> Tensor:
        return torch.tensor([20.0, 5.0, 1.0, 5.0, 1.0, 0.0], dtype=torch.float64)


def test_restarts_need_the_time_of_the_model() -> None:
    stack = Sampler(solver=Heun(), schedule=Restarting(), guidance=(CADS(),))
    with pytest.raises(ConfigError, match="set time: model"):
        run(stack)
    model = Seen(denoiser_of(network()))
    run(Sampler(solver=Heun(), schedule=Restarting(), guidance=(CADS(time="model"),)), model)
    assert len(model.embeddings) == 2 * 4 - 1
    # The level of 5 is gone through twice, the class as hidden as before and with fresh noise.
    first, second = model.embeddings[2], model.embeddings[4]
    assert (first - second).abs().max() > 1e-3
    clean = model.embed(Condition(labels=LABELS))
    for embedding in (first, second):
        assert (embedding - clean).abs().max() > 1e-3


def test_models_without_classes() -> None:
    bare = denoiser_of(SongUNet(8, 1, 1, 0, model_channels=8, channel_mult=[1], num_blocks=1), 0)
    with pytest.raises(ConfigError, match="has no classes"):
        CADS()(bare)
    judge: Any = ADMClassifier(
        8, 1, 3, model_channels=32, channel_mult=[1], num_blocks=1, num_head_channels=32
    )
    config = {"name": "classifier", "classifier": NoisyClassifier(judge, Discrete(T=50))}
    stack = Sampler.from_config({"guidance": [config, {"name": "cads"}]})
    with pytest.raises(ConfigError, match="has no classes"):
        stack.guide(bare)
    without_null = denoiser_of(network())
    without_null.has_null_class = False
    assert CADS()(without_null).num_classes == 3
    with pytest.raises(ConfigError, match="no null class"):
        CADS(branches="both")(without_null)


def test_models_without_an_embedding() -> None:
    """The closed-form mixture knows classes, and does nothing with an embedding."""
    with pytest.raises(SamplingError, match="no effect on this model"):
        list(
            sample_steps(
                Sampler.from_config({"guidance": [{"name": "cads"}]}),
                mixture(),
                noise=NoiseStream([0]),
                condition=Condition(labels=torch.tensor([1])),
                image_shape=(2, 2, 2),
                device="cpu",
            )
        )


@pytest.mark.parametrize("guidance", [["cads", "cfg"], ["cads", "cads"], ["cfg", "cads", "cfg"]])
def test_it_is_the_outermost(guidance: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"the cads guidance .* must be the last one in sampler\.guidance"
    ):
        Sampler.from_config({"guidance": [{"name": name} for name in guidance]})
    with pytest.raises(ConfigError, match="must be the last one"):
        Sampler(solver=Heun(), schedule=Restarting(), guidance=(CADS(), ClassifierFree()))


def test_a_guidance_scale_goes_inside() -> None:
    stack = Sampler.from_layers([("a", {"guidance": [{"name": "cads"}]})], guidance_scale=3.0)
    assert [each["name"] for each in stack.config["guidance"]] == ["cfg", "cads"]
    assert Sampler.from_config(stack.config) == stack


def call(guided: Denoiser) -> None:
    guided(torch.zeros(3, *SHAPE), torch.tensor(1.0), Condition(labels=LABELS))


def reverse(guided: Denoiser) -> None:
    sigmas = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    list(invert(Heun(), guided, torch.zeros(3, *SHAPE), sigmas, Condition(labels=LABELS)))


@pytest.mark.parametrize(
    ("use", "message"), [(call, "none has begun"), (reverse, "a guidance draws noise")]
)
def test_outside_of_a_run_with_noise(use: Callable[[Denoiser], None], message: str) -> None:
    guided = CADS()(denoiser_of(network()))
    with torch.no_grad(), pytest.raises((ConfigError, SamplingError), match=message):
        use(guided)

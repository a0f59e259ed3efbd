"""Autoguidance: two models that never share a batch, and which of them may be combined."""

import copy
from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, Listener, mixture, run
from torch import Tensor

import genlab.checkpoints  # reads parts by their names
from genlab import DiffusionGenerator
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.preconditioning import EDM
from genlab.errors import ConfigError, GenLabError
from genlab.networks import SongUNet
from genlab.samplers.guidance.autoguidance import Autoguidance
from genlab.samplers.guidance.base import GUIDANCE
from genlab.samplers.sampler import Sampler

assert genlab.checkpoints

X = torch.linspace(-2, 2, 3 * 8, dtype=torch.float64).reshape(3, *SHAPE)
SIGMA = torch.tensor(0.7).double()
CONDITION = Condition(labels=torch.tensor([0, 2, 1]))
LABELS = Condition(labels=torch.tensor([0, 2, 1, 0]))


class Guide:
    """A denoiser as a second model."""

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


class Asked(Listener):
    """Notes the conditions, too."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.conditions: list[Condition] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.conditions.append(condition)
        if condition.labels is not None:  # as a network with an embedding of six numbers would
            condition.transform_embedding(torch.zeros(len(condition.labels), 6))
        return super().__call__(x, sigma, condition)


def worse() -> GaussianMixtureDenoiser:
    good = mixture()
    return GaussianMixtureDenoiser(good.weights, good.means * 0.8, good.stds * 1.5)


def unconditional() -> Asked:
    model = Asked(worse())
    model.num_classes, model.has_null_class = 0, False
    return model


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.5])
def test_formula(scale: float) -> None:
    good, bad = (model(X, SIGMA, CONDITION) for model in (mixture(), worse()))
    guided = Autoguidance(guide=Guide(worse()), scale=scale)(mixture())
    torch.testing.assert_close(guided(X, SIGMA, CONDITION), bad + scale * (good - bad))


def test_each_model_has_a_batch_of_its_own_and_off_costs_nothing() -> None:
    model, weak = Listener(mixture()), Listener(worse())
    guided = Autoguidance(guide=Guide(weak), scale=2.0)(model)
    guided(X, SIGMA, CONDITION)
    assert (model.batches, weak.batches, guided.evaluations) == ([3], [3], 6)
    Autoguidance(guide=Guide(weak), scale=1.0)(model)(X, SIGMA, CONDITION)
    assert (model.batches, weak.batches) == ([3, 3], [3])


@pytest.mark.parametrize("has_classes", [True, False])
def test_a_guide_without_the_class(has_classes: bool) -> None:
    """Classifier-free guidance by a second model: with its null class, or without any."""
    weak = Asked(worse()) if has_classes else unconditional()
    condition = "null" if has_classes else "same"
    guided = Autoguidance(guide=Guide(weak), scale=3.0, guide_condition=condition)(mixture())
    good, bad = mixture()(X, SIGMA, CONDITION), worse()(X, SIGMA, Condition())
    torch.testing.assert_close(guided(X, SIGMA, CONDITION), bad + 3 * (good - bad))
    [asked] = weak.conditions
    if has_classes:
        assert asked.labels is not None
        assert asked.labels.tolist() == [NULL_CLASS] * 3
    else:
        assert asked.labels is None


@pytest.mark.parametrize("guide_condition", ["same", "null"])
def test_what_acts_on_the_class_goes_to_the_rows_it_is_for(guide_condition: str) -> None:
    """Under classifier-free guidance each model is asked for both halves, and only with its own."""
    seen: list[int] = []

    def note(embedding: Tensor) -> Tensor:
        seen.append(len(embedding))
        return embedding

    model, weak = Asked(mixture()), Asked(worse())
    auto = Autoguidance(guide=Guide(weak), scale=2.0, guide_condition=guide_condition)(model)
    both = GUIDANCE.build("cfg", scale=3.0)(auto)
    both(X, SIGMA, CONDITION.with_embedding_transform(note))
    [asked] = model.conditions
    assert [rows for rows, _ in asked.embedding_transforms] == [3, 3]
    assert asked.embedding_transforms[0][1] is note
    assert asked.embedding_transforms[1][1] is None
    if guide_condition == "same":
        assert seen == [3, 3]  # once in the model, once in the guide
        assert weak.batches == [6]
    else:
        assert seen == [3]  # the guide was asked without the class, for both alike
        assert weak.batches == [3]


def test_around_it_both_models_are_guided() -> None:
    """cfg around auto: each of them by its own null class."""
    auto = Autoguidance(guide=Guide(worse()), scale=2.0)
    around = GUIDANCE.build("cfg", scale=3.0)(auto(mixture()))(X, SIGMA, CONDITION)
    good, bad = (
        GUIDANCE.build("cfg", scale=3.0)(model)(X, SIGMA, CONDITION)
        for model in (mixture(), worse())
    )
    torch.testing.assert_close(around, bad + 2 * (good - bad))


def test_around_it_both_need_a_null_class() -> None:
    weak = Listener(worse())
    weak.has_null_class = False
    auto = Autoguidance(guide=Guide(weak), scale=2.0)(mixture())
    with pytest.raises(ConfigError, match="label dropout"):
        GUIDANCE.build("cfg", scale=3.0)(auto)
    with pytest.raises(ConfigError, match="guide_condition: null needs"):
        Autoguidance(guide=Guide(weak), guide_condition="null")(mixture())


def test_classes_must_agree() -> None:
    weak = Listener(worse())
    weak.num_classes = 7
    with pytest.raises(ConfigError, match="the guide knows 7 classes and the model 3"):
        Autoguidance(guide=Guide(weak))(mixture())
    assert Autoguidance(guide=Guide(weak), scale=1.0)(mixture()).num_classes == 3


def test_the_guide_must_know_the_levels_that_it_is_asked_at() -> None:
    weak = Listener(worse())
    weak.noise_levels = EDM(sigma_min=0.05, sigma_max=50.0)
    entry = {"name": "auto", "guide": Guide(weak), "scale": 2.0}
    with pytest.raises(ConfigError, match=r"the guide knows noise levels from 0\.05 to 50"):
        run({"guidance": [entry]}, condition=LABELS)
    window = {"when": {"sigma": [0.05, 50.0]}}
    inside = {"schedule": {"sigma_min": 0.05, "sigma_max": 50.0}}
    run({"guidance": [{**entry, **window}]}, condition=LABELS)
    run({**inside, "guidance": [entry]}, condition=LABELS)
    run({"guidance": [{**entry, "scale": 1.0}]}, condition=LABELS)


def test_nfe_counts_both() -> None:
    model, weak = Listener(mixture()), Listener(worse())
    window = {"steps": [0.0, 0.5]}
    entry = {"name": "auto", "guide": Guide(weak), "scale": 2.0, "when": window}
    run({"schedule": {"num_steps": 6}, "guidance": [entry]}, model, condition=LABELS)
    assert model.batches == [4] * 11
    assert weak.batches == [4] * 6


@pytest.fixture
def weak_generator(tiny_generator: DiffusionGenerator) -> DiffusionGenerator:
    """Another network of the same images, another preconditioning too."""
    network = copy.deepcopy(tiny_generator.network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return DiffusionGenerator(network, Discrete(T=500), has_null_class=True)


FEW = {"schedule": {"num_steps": 3, "sigma_min": 0.1, "sigma_max": 20.0}}


def test_a_generator_guides_another(
    tiny_generator: DiffusionGenerator, weak_generator: DiffusionGenerator
) -> None:
    entry = {"name": "auto", "guide": weak_generator, "scale": 2.0}
    sampler = tiny_generator.build_sampler({**FEW, "guidance": [entry]})
    (batch,) = tiny_generator.stream(range(3), sampler=sampler)
    assert batch.nfe == 10
    alone = tiny_generator.sample([1], [batch.labels[1]] if batch.labels else None, sampler)
    torch.testing.assert_close(alone[0], batch.images[1].clamp(-1, 1), rtol=0, atol=1e-4)
    assert tiny_generator.identity(sampler)["generators_sha256"] == [weak_generator.sha256()]
    assert sampler.describe() == "heun, 3 steps, auto 2"


def test_other_data_is_refused(tiny_generator: DiffusionGenerator) -> None:
    network = SongUNet(16, 1, 1, 3, model_channels=8, channel_mult=[1], num_blocks=1)
    larger = DiffusionGenerator(network, EDM())
    with pytest.raises(ConfigError, match=r"the guide denoises states of shape \(1, 16, 16\)"):
        tiny_generator.build_sampler({**FEW, "guidance": [{"name": "auto", "guide": larger}]})


@pytest.mark.parametrize(
    ("guide", "message"),
    [("dit-fmnist-z", "no model 'dit-fmnist-z'"), ("nowhere/model.pkl", "no file or folder")],
)
def test_a_wrong_name_is_told(tiny_generator: DiffusionGenerator, guide: str, message: str) -> None:
    with pytest.raises(GenLabError, match=message):
        tiny_generator.build_sampler({"guidance": [{"name": "auto", "guide": guide}]})


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs guide: a name"):
        GUIDANCE.build("auto", guide=3)
    with pytest.raises(ConfigError, match="no guide_condition 'none'"):
        GUIDANCE.build("auto", guide="dit-fmnist-s", guide_condition="none")


def scales(config: list[dict[str, Any]], scale: float) -> list[Any]:
    layers = [("the sampler", {"guidance": config})]
    built = Sampler.from_layers(layers, guidance_scale=scale)
    return [(entry["name"], entry.get("scale")) for entry in built.config["guidance"]]


@pytest.mark.parametrize("name", ["cfg", "apg", "fdg", "cfg-zero"])
def test_the_scale_of_a_run_is_that_of_its_class_guidance(name: str) -> None:
    auto = {"name": "auto", "guide": "dit-fmnist-s", "scale": 1.4}
    assert scales([auto, {"name": name}], 3.0) == [("auto", 1.4), (name, 3.0)]
    assert scales([auto, {"name": name, "scale": 2.0}], 1.0) == [("auto", 1.4)]
    assert scales([auto], 3.0) == [("auto", 1.4), ("cfg", 3.0)]

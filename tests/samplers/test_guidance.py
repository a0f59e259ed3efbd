"""Classifier-free guidance: the formula, its cost, and where it is refused."""

from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, Listener, mixture, run
from torch import Tensor

from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import Prediction
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import GUIDANCE
from genlab.samplers.guidance.classifier import class_gradient
from genlab.samplers.guidance.classifier_free import ClassifierFree

LABELS = torch.tensor([0, 2, 1])
X = torch.linspace(-2, 2, 3 * 8, dtype=torch.float64).reshape(3, *SHAPE)


@pytest.mark.parametrize(
    "sigma",
    [torch.tensor(0.7).double(), torch.tensor([0.2, 1.0, 5.0]).double()],
    ids=["one", "each"],
)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.5])
def test_formula(sigma: Tensor, soft: bool, scale: float) -> None:
    labels = torch.nn.functional.one_hot(LABELS, 3).double() if soft else LABELS
    condition = Condition(labels=labels)
    with_class, without = (mixture()(X, sigma, c) for c in (condition, condition.null()))
    guided = ClassifierFree(scale=scale)(mixture())(X, sigma, condition)
    torch.testing.assert_close(guided, scale * with_class + (1 - scale) * without)


def test_channels_beyond_those_asked_for_are_left_alone() -> None:
    sigma, condition = torch.tensor(0.7).double(), Condition(labels=LABELS)
    plain, whole, first = (
        ClassifierFree(scale=scale, channels=channels)(mixture())(X, sigma, condition)
        for scale, channels in ((1.0, None), (3.0, None), (3.0, 1))
    )
    torch.testing.assert_close(first[:, :1], whole[:, :1])
    torch.testing.assert_close(first[:, 1:], plain[:, 1:])
    with pytest.raises(ConfigError, match="channels >= 1"):
        ClassifierFree(channels=0)
    for all_of_them in (2, 3):
        guided = ClassifierFree(scale=3.0, channels=all_of_them)(mixture())
        torch.testing.assert_close(guided(X, sigma, condition), whole)


def test_channels_hold_for_the_score_of_a_classifier_underneath() -> None:
    class Scored(Listener):
        def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
            assert condition.labels is not None
            known = (condition.labels >= 0).double().reshape(-1, 1, 1, 1)
            return Prediction(x0=self.inner(x, sigma, condition), score=known.expand_as(x))

    sigma, condition = torch.tensor(0.7).double(), Condition(labels=LABELS)
    prediction = ClassifierFree(scale=4.0, channels=1)(Scored(mixture())).predict(
        X, sigma, condition
    )
    assert prediction.score is not None
    assert prediction.score[:, :1].unique().tolist() == [4.0]
    assert prediction.score[:, 1:].unique().tolist() == [1.0]  # as with the class


def test_both_halves_run_as_one_batch() -> None:
    listener = Listener(mixture())
    ClassifierFree(scale=3.0)(listener)(X, torch.tensor(1.0).double(), Condition(labels=LABELS))
    assert listener.batches == [6]


@pytest.mark.parametrize(("scale", "labels"), [(1.0, LABELS), (3.0, None)])
def test_off_costs_nothing(scale: float, labels: Tensor | None) -> None:
    """A scale of 1, or a batch without any class: the conditional estimate as it is."""
    listener = Listener(mixture())
    sigma, condition = torch.tensor(1.0).double(), Condition(labels=labels)
    guided = ClassifierFree(scale=scale)(listener)(X, sigma, condition)
    assert listener.batches == [3]
    assert torch.equal(guided, mixture()(X, sigma, condition))


def test_null_rows_stay_where_they_are() -> None:
    """A sample without a class is guided nowhere, whatever its neighbours are."""
    sigma = torch.tensor(1.0).double()
    labels = torch.tensor([0, NULL_CLASS, 1])
    guided = ClassifierFree(scale=4.0)(mixture())(X, sigma, Condition(labels=labels))
    plain = mixture()(X, sigma, Condition(labels=labels))
    torch.testing.assert_close(guided[1], plain[1])
    assert (guided[0] - plain[0]).abs().max() > 1e-3


def test_stronger_guidance_makes_classes_clearer() -> None:
    """Where the mixture's components overlap, guided samples move away from the other ones."""
    responsibilities = []
    for scale in (0.0, 1.0, 3.0):
        config = {"guidance": [{"name": "cfg", "scale": scale}]}
        labels = torch.full((32,), 2)
        x = run(config, seeds=range(32), condition=Condition(labels=labels))[-1].x
        distance = (x[:, None] - mixture().means).square().sum((2, 3, 4))
        responsibilities.append((distance.argmin(1) == 2).float().mean())
    assert responsibilities[0] < responsibilities[1] < responsibilities[2]


def test_refused_where_it_means_nothing() -> None:
    no_null = Listener(mixture())
    no_null.has_null_class = False
    with pytest.raises(ConfigError, match="label dropout"):
        ClassifierFree(scale=2.0)(no_null)
    no_classes = Listener(mixture())
    no_classes.num_classes = 0
    with pytest.raises(ConfigError, match="has no classes"):
        ClassifierFree(scale=2.0)(no_classes)
    assert ClassifierFree(scale=1.0)(no_classes).num_classes == 0


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_impossible_scale_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale >= 0"):
        GUIDANCE.build("cfg", scale=scale)


class TowardsZero:
    """A classifier of three classes, of which the first likes dark images."""

    num_classes, evaluations = 3, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        likes = -x.flatten(1).sum(1, keepdim=True)
        return torch.cat([likes, torch.zeros(len(x), 2)], dim=1)

    def to(self, device: Any = None, dtype: Any = None) -> "TowardsZero":
        return self

    def prepare(self) -> None: ...

    def sha256(self) -> str:
        return "dark"


def test_classifier_may_guide_a_model_that_is_not_told_the_class() -> None:
    """In its window and outside; what it adds is for the class all the same."""
    options: Any = GUIDANCE.build("classifier", classifier=TowardsZero(), scale=2, with_class=False)
    sigma, condition = torch.tensor(1.0).double(), Condition(labels=LABELS)
    guided = options(mixture())
    unconditional = mixture()(X, sigma, condition.null())
    prediction = guided.predict(X, sigma, condition)
    assert torch.equal(prediction.x0, unconditional)
    expected = options(mixture()).classifier
    assert prediction.score is not None
    assert torch.equal(prediction.score, 2 * class_gradient(expected, X, sigma, LABELS))
    guided.active = False
    assert torch.equal(guided(X, sigma, condition), unconditional)
    no_null = Listener(mixture())
    no_null.has_null_class = False
    with pytest.raises(ConfigError, match="with_class: false"):
        options(no_null)

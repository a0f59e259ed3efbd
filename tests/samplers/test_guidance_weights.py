"""The weight of a guidance over time: its formulas, and that it is decided once per step."""

import math
from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, Listener, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, StepInfo
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import GUIDANCE, Guidance
from genlab.samplers.guidance.weights import Weight
from genlab.samplers.sampler import Sampler

X = torch.linspace(-2, 2, 3 * 8, dtype=torch.float64).reshape(3, *SHAPE)
SIGMA = torch.tensor(1.0).double()
CONDITION = Condition(labels=torch.tensor([0, 2, 1]))


def test_formulas() -> None:
    assert Weight().at(2.5, 0.3) == 2.5
    cads = Weight(name="cads", tau1=0.4, tau2=0.8)
    assert [cads.at(2.0, t) for t in (0.0, 0.4, 0.6, 0.8, 1.0)] == pytest.approx([2, 2, 1, 0, 0])
    cosine = Weight(name="power-cosine", power=2.0)
    expected = [1 + 3 * (1 - math.cos(math.pi * (1 - t) ** 2)) / 2 for t in (0.0, 0.3, 0.7, 1.0)]
    assert [cosine.at(4.0, t) for t in (0.0, 0.3, 0.7, 1.0)] == pytest.approx(expected)
    assert cosine.at(4.0, 1.0) == 1, "no guidance at noise"
    assert cosine.at(4.0, 0.0) == 4, "all of it at data"
    assert Weight(name="power-cosine").at(4.0, 0.5) == Weight(name="power-cosine", power=4).at(
        4, 0.5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosine"}, "no weight 'cosine'"),
        ({"name": "cads", "tau1": 0.9, "tau2": 0.5}, "tau1 = 0.9"),
        ({"name": "power-cosine", "power": 0.0}, "power > 0"),
        ({"name": "cads", "power": 2.0}, "'cads' has no power"),
        ({"tau1": 0.5}, "'constant' has no tau1"),
    ],
    ids=str,
)
def test_impossible_weights_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampler.from_config({"guidance": [{"name": "cfg", "weight": options}]})


def begun(guided: Denoiser, level: float) -> Tensor:
    """What a guided model says in a step that starts from a level."""
    guided.begin_step(
        StepInfo(
            index=3, num_steps=9, level=level, sigma=1.0, sigma_next=0.5, noise=NoiseStream([])
        )
    )
    return guided(X, SIGMA, CONDITION)


class Flat(Guidance):
    """Estimates that are scaled down: a second model, which is worse."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.denoiser = self

    def guide(self, x: Tensor, sigma: Tensor, conditions: Any) -> Any:
        return [
            type(each)(x0=each.x0 * 0.7) for each in self.inner.predict_each(x, sigma, conditions)
        ]

    def to(self, device: Any = None, dtype: Any = None) -> None:
        pass

    def prepare(self) -> None:
        pass

    def sha256(self) -> str:
        return "0"


@pytest.mark.parametrize(("name", "options"), [("cfg", {}), ("apg", {}), ("auto", {"guide": ...})])
@pytest.mark.parametrize("weight", [{"name": "cads"}, {"name": "power-cosine"}], ids=str)
def test_a_weight_means_the_same_everywhere(
    name: str, options: dict[str, Any], weight: dict[str, Any]
) -> None:
    """In a step, guidance of that weight is guidance with that scale: by level, not by sigma."""
    if "guide" in options:
        options = {"guide": Flat(mixture())}
    level = 5.0
    model = mixture()
    time = float(model.time(torch.tensor(level).double()))
    w = Weight(**weight).at(3.0, time)
    assert 0 < w < 3
    over_time = GUIDANCE.build(name, scale=3.0, weight=weight, **options)(model)
    constant = GUIDANCE.build(name, scale=w, **options)(model)
    torch.testing.assert_close(begun(over_time, level), begun(constant, level))


def test_a_step_of_weight_1_asks_for_one_prediction() -> None:
    """The power cosine begins with 1, so that its first step costs nothing more."""
    model = Listener(mixture())
    config = {
        "solver": "euler",
        "schedule": {"num_steps": 5},
        "guidance": [{"name": "cfg", "scale": 2.0, "weight": {"name": "power-cosine"}}],
    }
    run(config, model, condition=Condition(labels=torch.tensor([0, 2, 1, 0])))
    assert model.batches == [4, 8, 8, 8, 8]

"""Guidance by frequency bands, and with a fitted null prediction."""

from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, Listener, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.flow import Flow
from genlab.diffusion.preconditioning import EDM
from genlab.diffusion.spaces import SPACES
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import GUIDANCE
from genlab.samplers.guidance.cfg_zero import CFGZero
from genlab.samplers.guidance.frequency_decoupled import FrequencyDecoupled, weigh_bands

X = torch.linspace(-2, 2, 3 * 8, dtype=torch.float64).reshape(3, *SHAPE)
SIGMA = torch.tensor(0.7).double()
CONDITION = Condition(labels=torch.tensor([0, 2, 1]))
LABELS = Condition(labels=torch.tensor([0, 2, 1, 0]))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (15, 10)])
@pytest.mark.parametrize("bands", [2, 3])
def test_bands_make_up_the_image(size: tuple[int, int], bands: int) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(weigh_bands(images, [1.0] * bands), images)
    parts = [
        weigh_bands(images, [1.0 if i == band else 0.0 for i in range(bands)])
        for band in range(bands)
    ]
    torch.testing.assert_close(sum(parts, torch.zeros(())), images)


def test_bands_are_what_they_say() -> None:
    """A flat image is all low frequencies, a chess board all high ones."""
    flat = torch.ones(1, 1, 16, 16).double()
    torch.testing.assert_close(weigh_bands(flat, [1.0, 0.0]), 0 * flat)
    torch.testing.assert_close(weigh_bands(flat, [0.0, 1.0]), flat)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = (1 - 2.0 * ((rows + columns) % 2))[None, None].double()
    torch.testing.assert_close(weigh_bands(board, [1.0, 0.0]), board)


class Sized(Listener):
    """A model of larger images: what it predicts hangs on the class alone."""

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.batches.append(len(x))
        assert condition.labels is not None
        classes = condition.labels.double().reshape(-1, 1, 1, 1)
        return (x * (1 + classes)).sin()


def test_equal_bands_are_plain_guidance() -> None:
    x = torch.randn(3, 2, 8, 8).double()
    plain = GUIDANCE.build("cfg", scale=3.0)(Sized(mixture()))(x, SIGMA, CONDITION)
    for space in SPACES:
        same = FrequencyDecoupled(scale=3.0, bands=(1.0, 1.0, 1.0), space=space)
        guided = same(Sized(mixture()))(x, SIGMA, CONDITION)
        torch.testing.assert_close(guided, plain, rtol=1e-9, atol=1e-9)


def test_too_many_bands_are_refused() -> None:
    with pytest.raises(ConfigError, match="2x2 have no 2 bands"):
        FrequencyDecoupled(scale=3.0)(mixture())(X, SIGMA, CONDITION)
    with pytest.raises(ConfigError, match="two bands or more"):
        GUIDANCE.build("fdg", bands=[1.0])


def flow_model() -> Listener:
    model = Listener(mixture())
    model.noise_levels = Flow()
    return model


def test_fitted_null_prediction() -> None:
    space = SPACES["flow-v"]
    c, n = (
        space.express(mixture()(X, SIGMA, each), X, SIGMA) for each in (CONDITION, CONDITION.null())
    )
    s = ((c * n).sum((1, 2, 3)) / (n * n).sum((1, 2, 3)))[:, None, None, None]
    expected = space.estimate(s * n + 2.5 * (c - s * n), X, SIGMA)
    guided = CFGZero(scale=2.5)(flow_model())(X, SIGMA, CONDITION)
    torch.testing.assert_close(guided, expected)


def test_zero_steps_keep_the_path_where_it_is_and_cost_nothing() -> None:
    model = flow_model()
    config = {
        "solver": {"name": "flow", "method": "euler"},
        "schedule": {"name": "flow", "num_steps": 5},
        "guidance": [
            {"name": "cfg-zero", "scale": 2.0, "zero_init_steps": 2, "when": {"steps": [0.8, 1]}}
        ],
    }
    steps = run(config, model, condition=LABELS)
    assert model.batches == [4, 4, 8]
    on_path = [step.x / (1 + step.sigma_next) for step in steps]  # alpha x, alpha = 1/(1 + sigma)
    torch.testing.assert_close(on_path[0], on_path[1])
    assert (on_path[2] - on_path[1]).abs().max() > 1e-3


def test_other_models_than_flows_are_refused() -> None:
    model = Listener(mixture())
    model.noise_levels = EDM()
    with pytest.raises(ConfigError, match="trained by flow matching"):
        CFGZero(scale=2.0)(model)
    with pytest.raises(ConfigError, match="zero_init_steps >= 0"):
        GUIDANCE.build("cfg-zero", zero_init_steps=-1)


@pytest.mark.parametrize("name", ["cfg", "apg", "fdg", "cfg-zero"])
def test_one_around_another_that_is_off_is_fine(name: str) -> None:
    off = GUIDANCE.build(name, scale=1.0)(flow_model())
    assert GUIDANCE.build("cfg", scale=3.0)(off).inner is off


@pytest.mark.parametrize("name", ["cfg", "apg", "fdg", "cfg-zero"])
@pytest.mark.parametrize("around", ["cfg", "apg"])
def test_one_around_another_is_refused(name: str, around: str) -> None:
    """Unless their windows cannot overlap: then each acts where it is told to."""
    options: Any = {"scale": 2.0}
    inner = GUIDANCE.build(name, **options)(flow_model())
    with pytest.raises(ConfigError, match="compound the two scales"):
        GUIDANCE.build(around, **options)(inner)
    low, high = {"sigma": [0.1, 1.0]}, {"sigma": [1.0, 5.0]}
    below = GUIDANCE.build(name, **options, when=low)(flow_model())
    assert GUIDANCE.build(around, **options, when=high)(below).inner is below
    with pytest.raises(ConfigError, match="compound the two scales"):
        GUIDANCE.build(around, **options, when={"sigma": [0.9, 5.0]})(below)


@pytest.mark.parametrize("name", ["cfg", "apg", "fdg", "cfg-zero"])
def test_what_they_need_of_a_model(name: str) -> None:
    no_null, no_classes = flow_model(), flow_model()
    no_null.has_null_class, no_classes.num_classes = False, 0
    for model, message in ((no_null, "label dropout"), (no_classes, "has no classes")):
        with pytest.raises(ConfigError, match=message):
            GUIDANCE.build(name, scale=2.0)(model)
        assert GUIDANCE.build(name, scale=1.0)(model).num_classes == model.num_classes
    with pytest.raises(ConfigError, match="scale >= 0"):
        GUIDANCE.build(name, scale=-1.0)

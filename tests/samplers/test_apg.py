"""Adaptive projected guidance: its formula, and when its momentum moves."""

from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, Listener, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import StepInfo
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.spaces import SPACES, space_of
from genlab.errors import ConfigError
from genlab.samplers.guidance.adaptive_projected import AdaptiveProjected
from genlab.samplers.guidance.base import GUIDANCE
from genlab.samplers.guidance.classifier_free import ClassifierFree

X = torch.linspace(-2, 2, 3 * 8, dtype=torch.float64).reshape(3, *SHAPE)
SIGMA = torch.tensor(0.7).double()
CONDITION = Condition(labels=torch.tensor([0, 2, 1]))
LABELS = Condition(labels=torch.tensor([0, 2, 1, 0]))


def by_hand(c: Tensor, d: Tensor, scale: float, eta: float, r: float | None) -> Tensor:
    """The update of one sample, as the paper writes it."""
    if r is not None:
        d = d * min(1.0, r / float(d.norm()))
    parallel = (d * c).sum() / (c * c).sum() * c
    return (scale - 1) * (d - parallel + eta * parallel)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("eta", "r"), [(0.0, None), (0.3, 0.5), (1.0, 1e-3)])
def test_formula(space: str, eta: float, r: float | None) -> None:
    where = space_of(space)
    c, n = (
        where.express(mixture()(X, SIGMA, each), X, SIGMA) for each in (CONDITION, CONDITION.null())
    )
    values = [a + by_hand(a, a - b, 3.0, eta, r) for a, b in zip(c, n, strict=True)]
    apg = AdaptiveProjected(scale=3.0, eta=eta, r=r, momentum=0.0, space=space)
    expected = where.estimate(torch.stack(values), X, SIGMA)
    torch.testing.assert_close(apg(mixture())(X, SIGMA, CONDITION), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("add_to", ["class", "null"])
def test_without_all_that_is_its_own_it_is_plain_guidance(add_to: str) -> None:
    apg = AdaptiveProjected(scale=3.0, eta=1.0, momentum=0.0, add_to=add_to)
    plain = ClassifierFree(scale=3.0)(mixture())(X, SIGMA, CONDITION)
    torch.testing.assert_close(apg(mixture())(X, SIGMA, CONDITION), plain)


def test_the_limit_of_the_norm_may_be_told_per_dimension() -> None:
    small, same = (
        AdaptiveProjected(scale=3.0, r=0.2),
        AdaptiveProjected(scale=3.0, r_per_sqrt_dim=0.2 / 8**0.5),
    )
    guided = [apg(mixture())(X, SIGMA, CONDITION) for apg in (small, same)]
    torch.testing.assert_close(*guided)


def test_momentum_moves_with_each_evaluation() -> None:
    guided = AdaptiveProjected(scale=3.0, eta=1.0, momentum=-0.5)(mixture())
    c, n = (mixture()(X, SIGMA, each) for each in (CONDITION, CONDITION.null()))
    d, before = c - n, torch.zeros_like(c)
    for _ in range(3):
        before = d - 0.5 * before
        torch.testing.assert_close(guided(X, SIGMA, CONDITION), c + 2 * before)


APG: dict[str, Any] = {"name": "apg", "scale": 3.0, "momentum": -0.5}


def test_a_run_begins_without_momentum() -> None:
    """The same stack may be run again, and gives the same images."""
    guided = GUIDANCE.build_named(APG)
    stack = guided(mixture())
    ends = [run({"schedule": {"num_steps": 5}}, stack, condition=LABELS)[-1].x for _ in range(2)]
    assert torch.equal(*ends)
    without = run(
        {"schedule": {"num_steps": 5}, "guidance": [{**APG, "momentum": 0.0}]}, condition=LABELS
    )[-1].x
    assert (ends[0] - without).abs().max() > 1e-4


def test_a_restart_begins_without_momentum() -> None:
    """As solvers with a history do: what was told near the data says nothing of a higher level."""
    guided = AdaptiveProjected(scale=3.0, momentum=-0.5)(mixture())
    run: Any = {"num_steps": 4, "noise": NoiseStream(range(3)), "restarts": True}
    told = []
    for index, (level, following) in enumerate([(2.0, 1.0), (1.0, 0.5), (0.5, 2.0), (2.0, 0.0)]):
        guided.begin_step(
            StepInfo(index=index, level=level, sigma=level, sigma_next=following, **run)
        )
        if following < level:
            told.append(guided(X, SIGMA, CONDITION))
    assert torch.equal(told[0], told[2])
    assert not torch.equal(told[0], told[1])


def test_outside_its_window_the_momentum_stays() -> None:
    """Euler steps 2 and 3 of 6 are guided: the first of them as if there had been none before."""
    config = {"solver": "euler", "schedule": {"num_steps": 6}}
    window = {"when": {"steps": [1 / 3, 2 / 3]}}
    model = Listener(mixture())
    steps = run({**config, "guidance": [{**APG, **window}]}, model, condition=LABELS)
    assert model.batches == [4, 4, 8, 8, 4, 4]
    plain = run({**config, "guidance": []}, condition=LABELS)
    for k in (0, 1):
        assert torch.equal(steps[k].x, plain[k].x)
    fresh = AdaptiveProjected(scale=3.0, momentum=-0.5)(mixture())
    sigmas = [torch.tensor(step.level).double() for step in steps]
    torch.testing.assert_close(steps[2].x0, fresh(steps[1].x, sigmas[2], LABELS))
    torch.testing.assert_close(steps[3].x0, fresh(steps[2].x, sigmas[3], LABELS))


@pytest.mark.parametrize("seeds", [(3, 5, 8)])
def test_a_sample_ignores_its_batch(seeds: tuple[int, ...]) -> None:
    config = {"schedule": {"num_steps": 6}, "guidance": [{**APG, "r": 0.5, "rescale": 0.5}]}
    labels = torch.tensor([2, 1, 0])
    inside = run(config, seeds=seeds, condition=Condition(labels=labels))[-1].x[1]
    alone = run(config, seeds=seeds[1:2], condition=Condition(labels=labels[1:2]))[-1].x[0]
    torch.testing.assert_close(inside, alone, rtol=0, atol=1e-12)


def test_guidance_around_it_keeps_the_momentum_of_each_condition_apart() -> None:
    """Asked for two conditions at once it answers as if they were asked one after the other."""
    others = Condition(labels=torch.tensor([1, 0, 2]))
    options = AdaptiveProjected(scale=3.0, momentum=-0.5)
    both, one, two = (options(mixture()) for _ in range(3))
    for _ in range(2):
        together = both.predict_each(X, SIGMA, [CONDITION, others])
        torch.testing.assert_close(together[0].x0, one(X, SIGMA, CONDITION))
        torch.testing.assert_close(together[1].x0, two(X, SIGMA, others))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": -0.1}, "eta >= 0"),
        ({"momentum": -1.0}, "-1 < momentum < 1"),
        ({"r": 0.0}, "r > 0"),
        ({"r": 1.0, "r_per_sqrt_dim": 1.0}, "not both"),
        ({"add_to": "zero"}, "no add_to 'zero'"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GUIDANCE.build("apg", **options)

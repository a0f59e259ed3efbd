"""One path for each sample, whatever is asked of it and in which order."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from genlab.diffusion.brownian import BrownianPath
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError

LEVELS = [80.0, 40.0, 12.0, 3.0, 0.7, 0.1, 0.01, 0.002]


def path(seeds: range | list[int] = range(4), numbers: int = 3) -> BrownianPath:
    return BrownianPath(NoiseStream(seeds), (numbers,), 0.002, 80.0)


def test_the_order_of_questions_does_not_matter() -> None:
    forward, backward = path(), path()
    there = {level: forward.value(level) for level in LEVELS}
    back = {level: backward.value(level) for level in reversed(LEVELS)}
    for level in LEVELS:
        assert torch.equal(there[level], back[level])
        assert torch.equal(path().value(level), there[level]), "asked alone"


def test_a_sample_has_its_path_in_any_batch() -> None:
    inside = path(range(4))(12.0, 3.0)
    assert torch.equal(inside[2:3], path([2])(12.0, 3.0))


def test_it_moves_no_stream() -> None:
    used, plain = NoiseStream([5]), NoiseStream([5])
    BrownianPath(used, (3,), 0.1, 10.0)(5.0, 1.0)
    assert torch.equal(used.randn((3,)), plain.randn((3,)))


def test_increments_add_up() -> None:
    """What a run of few steps draws is the sum of what one of many steps draws."""
    brownian = path()
    coarse = brownian(12.0, 0.7) * math.sqrt(12.0 - 0.7)
    fine = brownian(12.0, 3.0) * math.sqrt(9.0) + brownian(3.0, 0.7) * math.sqrt(2.3)
    torch.testing.assert_close(coarse, fine, rtol=1e-12, atol=1e-12)
    assert torch.equal(brownian(3.0, 12.0), -brownian(12.0, 3.0))


def test_increments_are_unit_normal_and_independent() -> None:
    """4,000 numbers over neighbouring pieces from the largest to the smallest level."""
    brownian = path([0], numbers=4000)
    pieces = torch.stack([brownian(high, low)[0] for high, low in itertools.pairwise(LEVELS)])
    covariance = pieces @ pieces.T / 4000
    # Standard errors are sqrt(2 / 4000) on the diagonal and sqrt(1 / 4000) beside it: 4.5 of them.
    errors = (covariance - torch.eye(len(pieces), dtype=covariance.dtype)).abs()
    assert errors.diagonal().max() < 4.5 * math.sqrt(2 / 4000)
    assert (errors - errors.diagonal().diag()).max() < 4.5 * math.sqrt(1 / 4000)
    assert pieces.mean(1).abs().max() < 4.5 * math.sqrt(1 / 4000)


def test_steps_of_a_long_run_have_all_their_variance() -> None:
    """Neighbouring levels of 1,000 steps are far apart for the tree, also at small noise."""
    brownian = path([0], numbers=2000)
    for sigma in (79.0, 1.0, 0.0025):
        assert float(brownian(sigma, 0.99 * sigma).std()) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: path()(1.0, 1.0), "between equal noise levels, 1 twice"),
        (lambda: path()(100.0, 1.0), r"runs from 0\.002 to 80, not to the noise level 100"),
        (lambda: path()(1.0, 0.0), "not to the noise level 0"),
        (lambda: BrownianPath(NoiseStream([0]), (1,), 0.0, 1.0), "0 < sigma_min < sigma_max"),
    ],
)
def test_what_the_path_does_not_know_is_refused(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ask()

"""Predictions in every space, and back."""

import pytest
import torch

from genlab.diffusion.spaces import SPACES, space_of
from genlab.errors import ConfigError

X0 = torch.linspace(-1, 1, 2 * 8, dtype=torch.float64).reshape(2, 2, 2, 2)
EPS = X0.flip(0).cos()


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.tensor([0.02, 30.0])], ids=str)
def test_there_and_back(name: str, sigma: torch.Tensor) -> None:
    space, level = space_of(name), sigma.double().reshape(-1, 1, 1, 1)
    x = X0 + level * EPS
    value = space.express(X0, x, sigma.double())
    expected = {
        "x0": X0,
        "eps": EPS,
        "v": (EPS - level * X0) / (1 + level**2).sqrt(),
        "flow-v": EPS - X0,
    }[name]
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(space.estimate(value, x, sigma.double()), X0, rtol=1e-9, atol=1e-9)


def test_an_unknown_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="no space 'epsilon' of predictions; did you mean 'eps'"):
        space_of("epsilon")

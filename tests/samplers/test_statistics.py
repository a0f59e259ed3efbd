"""Stochastic solvers draw from the distribution: moments of many samples of a mixture."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, mixture
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler

COUNT = 20_000
STEPS = {"name": "karras", "num_steps": 50, "sigma_min": 0.002, "sigma_max": 80.0}


class Batch:
    """One stream for the whole batch: as many samples as rows, without a generator for each."""

    def __init__(self, key: str = "0") -> None:
        self.key = key
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(COUNT, *shape, generator=self.generator, dtype=dtype)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        raise AssertionError("no solver draws uniform numbers")

    def fork(self, key: str) -> "Batch":
        return Batch(f"{self.key} {key}")


def largest_deviation(samples: Tensor) -> float:
    """Of means and covariances from those of the mixture, in standard errors."""
    model = mixture()
    weights = model.weights / model.weights.sum()
    means = model.means.flatten(1)
    mean = weights @ means
    spread = (weights * model.stds**2).sum() * torch.eye(means.shape[1], dtype=torch.float64)
    cov = spread + torch.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    centred = samples.flatten(1) - mean
    products = torch.einsum("ni,nj->nij", centred, centred)
    of_mean = centred.mean(0) / (centred.std(0) / COUNT**0.5)
    of_cov = (products.mean(0) - cov) / (products.std(0) / COUNT**0.5)
    return float(torch.cat([of_mean, of_cov.flatten()]).abs().max())


def draw(solver: dict[str, Any], num_steps: int = 50) -> Tensor:
    sampler = Sampler.from_config({"solver": solver, "schedule": {**STEPS, "num_steps": num_steps}})
    common: Any = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
    with torch.no_grad():
        for step in sample_steps(sampler, mixture(), noise=Batch(), **common):
            x = step.x
    return x


@pytest.mark.parametrize(
    "solver",
    [
        {"name": "dpmpp", "sde": True},
        {"name": "dpmpp", "sde": True, "noise": "brownian"},
        {"name": "dpmpp", "sde": True, "max_order": 3, "correction": "heun"},
        {"name": "dpmpp-2s"},
        {"name": "dpm2-ancestral"},
        {"name": "dpmpp-sde"},
        {"name": "restart"},
        {"name": "restart", "intervals": [[1.0, 5.0, 9, 2], [0.06, 0.3, 5, 2]]},
    ],
    ids=str,
)
def test_samples_are_those_of_the_mixture(solver: dict[str, Any]) -> None:
    """Exact draws give about 3 of these 72 deviations as the largest, 4.5 has a chance of 5e-4."""
    assert largest_deviation(draw(solver)) < 4.5


def test_independent_draws_bias_the_sampler_that_needs_a_path() -> None:
    assert largest_deviation(draw({"name": "dpmpp-sde", "noise": "independent"})) > 9


def test_the_bias_of_euler_ancestral_falls_with_the_steps() -> None:
    few, many = (largest_deviation(draw({"name": "euler-ancestral"}, n)) for n in (25, 200))
    assert many < 0.5 * few


def test_a_path_makes_pictures_that_more_steps_hardly_change() -> None:
    """Of 20 and 40 steps, far more samples end near each other than with independent noise."""

    def same(noise: str) -> float:
        solver = {"name": "dpmpp", "sde": True, "noise": noise}
        few, many = (draw(solver, n).flatten(1) for n in (20, 40))
        return float(((few - many).norm(dim=1) < 0.5).double().mean())

    assert same("brownian") > 0.7
    assert same("independent") < 0.2

"""DDPM's losses and the variational bound, by what is known exactly."""

import math
from typing import Any

import pytest
import torch
from crossings import META, waits_of
from torch import Tensor, nn

from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete, chain_over
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.losses import LossDraws
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.variational import (
    DDPMLoss,
    bound,
    discrete_log_likelihood,
    model_chain,
    posterior_mean,
    variational_bound,
)
from genlab.errors import ConfigError

VALUES = torch.arange(256) / 127.5 - 1
IMAGES = VALUES[torch.randint(256, (4, 1, 6, 6), generator=torch.Generator().manual_seed(0))]


class Constants(nn.Module):
    """A network whose outputs are parameters: one for the image, one for the variance."""

    label_dim = 0

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.outputs = nn.Parameter(torch.linspace(0.1, 0.3, outputs))

    def embed_labels(self, labels: Tensor | None) -> None:
        return None

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.outputs.reshape(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])


def denoiser(variance: str = "learned_range", **options: Any) -> PreconditionedDenoiser:
    network = Constants(2 if variance.startswith("learned") else 1)
    model = Discrete(T=50, variance=variance, **options)
    return PreconditionedDenoiser(network, model, num_classes=0, has_null_class=False)


@pytest.mark.parametrize("std", [0.003, 0.1, 2.0])
@pytest.mark.parametrize("mean", [-1.2, 0.05, 0.99])
def test_probabilities_of_a_pixels_values_add_up_to_one(mean: float, std: float) -> None:
    pixel = VALUES.reshape(-1, 1, 1, 1).double()
    log_std = torch.full_like(pixel, math.log(std))
    log_p = discrete_log_likelihood(pixel, torch.full_like(pixel, mean), log_std)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)  # VALUES are float32
    assert (log_p <= 1e-12).all()


def test_a_model_that_knows_the_image_pays_for_the_last_step_alone() -> None:
    chain = chain_over(Discrete(T=50).levels)
    index = torch.tensor([0, 1, 20, 49])
    log_variance = chain.log_variance(index, "fixed_small").float()
    bits = bound(chain, index, IMAGES, IMAGES, log_variance).mean((1, 2, 3))
    assert bits[1:].abs().max() < 1e-6
    assert 0 < float(bits[0]) < 8


def test_bound_is_the_divergence_of_two_gaussians() -> None:
    """Against torch's own, with means and variances in the scaled frame."""
    chain = chain_over(Discrete(T=50).levels)
    index = torch.tensor([1, 7, 30, 49])
    x, x0 = 3 * torch.randn_like(IMAGES), torch.randn_like(IMAGES)
    log_variance = chain.log_variance(index, "learned_range", torch.rand_like(IMAGES))
    bits = bound(chain, index, IMAGES, x0, log_variance)
    true_std = (0.5 * chain.log_variance(index, "fixed_small").float()).exp()
    true = torch.distributions.Normal(posterior_mean(chain, index, x, IMAGES), true_std)
    ours = torch.distributions.Normal(
        posterior_mean(chain, index, x, x0), (0.5 * log_variance).exp()
    )
    expected = torch.distributions.kl_divergence(true, ours) / math.log(2)
    torch.testing.assert_close(bits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "taught"), [("mse", "mse"), ("rescaled_kl", "vb")])
def test_who_teaches_the_mean(kind: str, taught: str) -> None:
    """With the error in the loss, the bound's gradient stays away from the image's half."""
    model = denoiser()
    draws = LossDraws(level=torch.full((4,), 0.5), noise=torch.randn_like(IMAGES))
    terms = DDPMLoss(kind=kind)(model, IMAGES, Condition(), draws)
    outputs = next(model.network.parameters())
    [gradient] = torch.autograd.grad(terms.loss.mean(), outputs)
    assert gradient.abs().min() > 0
    error = (outputs[0] - draws.noise).square()
    [of_error] = torch.autograd.grad(error.mean(), outputs)
    same = torch.isclose(gradient[0], of_error[0], rtol=1e-4)
    assert bool(same) == (taught == "mse")
    torch.testing.assert_close(
        terms.loss.mean((1, 2, 3)).detach(), torch.stack(list(terms.parts.values())).sum(0)
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_error_is_that_of_the_prediction(prediction: str) -> None:
    model = denoiser("fixed_small", prediction=prediction)
    draws = LossDraws(level=torch.tensor([0.0, 0.3, 0.6, 0.99]), noise=torch.randn_like(IMAGES))
    terms = DDPMLoss()(model, IMAGES, Condition(), draws)
    assert set(terms.parts) == {"mse"}  # a fixed variance is taught nothing
    expected_sigma = model.preconditioning.levels[[0, 15, 30, 49]]  # type: ignore[index]
    torch.testing.assert_close(terms.sigma.double(), expected_sigma, rtol=1e-6, atol=0)
    alpha = (1 + terms.sigma**2).rsqrt().reshape(-1, 1, 1, 1)
    v = alpha * draws.noise - (1 - alpha**2).sqrt() * IMAGES
    target = {"epsilon": draws.noise, "x0": IMAGES, "v": v}[prediction]
    torch.testing.assert_close(terms.loss, (0.1 - target).square(), rtol=1e-3, atol=1e-3)


def test_bound_of_the_best_model_is_near_the_entropy_of_its_data() -> None:
    """Pixels around 0: a Gaussian's entropy in bins of 1 / 127.5, from its ideal denoiser.

    The right variance is beta's for data as wide as the noise; the posterior's belongs to data that
    are a single point and is dear here, which is why improved DDPM learns it.
    """
    std = 0.4
    numbers = torch.Generator().manual_seed(1)
    images = std * torch.randn(16, 1, 16, 16, generator=numbers)
    images = ((images * 127.5 + 127.5).round().clamp(0, 255) - 127.5) / 127.5
    entropy = math.log2(std * math.sqrt(2 * math.pi * math.e) * 127.5)

    def bits(variance: str, steps: int) -> float:
        ideal = GaussianMixtureDenoiser(
            torch.ones(1), torch.zeros(1, 1, 16, 16), torch.full((1,), std)
        )
        ideal.noise_levels = Discrete(variance=variance)
        noise = NoiseStream(range(16))
        terms = variational_bound(ideal, images, Condition(), noise, steps=steps)
        assert float(terms.prior.max()) < 1e-3
        return float(terms.total.mean())

    assert entropy - 0.05 < bits("fixed_large", 250) < entropy + 0.15
    assert bits("fixed_large", 20) > bits("fixed_large", 250) + 0.1
    assert bits("fixed_small", 250) > bits("fixed_large", 250) + 1


def test_chains_are_made_once_for_a_model() -> None:
    model, other = denoiser(), denoiser(schedule="cosine")
    assert model_chain(model, 10) is model_chain(model, 10)
    assert len(model_chain(model, "10")) == 10 < len(model_chain(model)) == 50
    assert not torch.equal(model_chain(other).sigmas, model_chain(model).sigmas)


def test_continuous_models_are_refused() -> None:
    ideal = GaussianMixtureDenoiser(torch.ones(1), torch.zeros(1, 1, 6, 6), torch.ones(1))
    with pytest.raises(ConfigError, match=r"preconditioning\.name=discrete"):
        variational_bound(ideal, IMAGES, Condition(), NoiseStream(range(4)))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rescaled_mse'"):
        DDPMLoss(kind="rescaled-mse")


@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("variance", ["learned_range", "fixed_small", "fixed_large"])
def test_the_loss_does_not_wait_for_its_device(kind: str, variance: str) -> None:
    model = denoiser(variance)
    model.network.to(META)
    images, loss = IMAGES.to(META), DDPMLoss(kind=kind)

    def batch() -> None:
        draws = loss.draw(images, torch.Generator())
        loss(model, images, Condition(), draws).loss.mean().backward()

    batch()  # the first one places tables
    assert waits_of(batch) == []

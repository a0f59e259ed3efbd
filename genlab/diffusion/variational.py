"""The variational bound of discrete models: DDPM's training losses and exact bits per dimension.

Every term compares two Gaussians. Scaling both leaves the comparison as it is, so that the unscaled
frame of the samplers and the scaled one of the literature give the same numbers; means and
variances here are of the scaled one.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import override

from genlab import compute
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.discrete import Chain, chain_over
from genlab.diffusion.losses import DenoisingLoss, LossDraws, LossTerms
from genlab.diffusion.noise import Noise
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.tables import gather
from genlab.errors import ConfigError, nearest

KINDS = ("mse", "rescaled_mse", "kl", "rescaled_kl")
# Half of the distance between two of the 256 values of a pixel.
_HALF_BIN = 1 / 255


@dataclass(frozen=True, kw_only=True)
class ReverseStep:
    """The Gaussian that a model gives a step of the chain.

    Attributes:
        x0: the denoised estimate that the mean is made of, (B, C, H, W).
        mean: (B, C, H, W).
        log_variance: (B, C, H, W), or (B, 1, 1, 1) where it is fixed.
    """

    x0: Float[Tensor, "B C H W"]
    mean: Float[Tensor, "B C H W"]
    log_variance: Float[Tensor, "B c h w"]


def model_chain(denoiser: Denoiser, steps: int | str = "") -> Chain:
    """The chain of a discrete model, perhaps a shorter one.

    Args:
        denoiser: the model.
        steps: see `respaced_timesteps`; nothing keeps every step.

    Raises:
        ConfigError: the model has no discrete noise levels.
    """
    if denoiser.noise_levels.levels is None:
        raise ConfigError(
            "the variational bound needs a model of discrete noise levels; set "
            "preconditioning.name=discrete, or take another loss"
        )
    return chain_over(denoiser.noise_levels.levels, steps)


def posterior_mean(
    chain: Chain,
    index: Int64[Tensor, " B"],
    x: Float[Tensor, "B C H W"],
    x0: Float[Tensor, "B C H W"],
) -> Float[Tensor, "B C H W"]:
    """Mean of ``q(x_next | x, x0)``, in the scaled frame.

    Args:
        chain: the steps.
        index: the step of each sample.
        x: noisy images in the unscaled frame.
        x0: the images without noise, or an estimate of them.
    """
    scaled = x * gather(chain.scale, index, x)
    coef1, coef2 = (
        gather(table, index, x)
        for table in (chain.posterior_mean_coef1, chain.posterior_mean_coef2)
    )
    return coef1 * x0 + coef2 * scaled


def reverse_step(
    denoiser: Denoiser,
    chain: Chain,
    index: Int64[Tensor, " B"],
    x: Float[Tensor, "B C H W"],
    condition: Condition,
    *,
    clip: bool = False,
) -> ReverseStep:
    """The distribution of a step that a model predicts: ``p(x_next | x)``.

    Args:
        denoiser: the model.
        chain: the steps.
        index: the step of each sample.
        x: noisy images in the unscaled frame.
        condition: of the whole batch.
        clip: whether the estimate is clipped to [-1, 1].
    """
    prediction = denoiser.predict(x, gather(chain.sigmas, index, x).flatten(), condition)
    x0 = prediction.x0.clamp(-1, 1) if clip else prediction.x0
    log_variance = chain.log_variance(
        index, denoiser.noise_levels.variance, prediction.variance
    ).to(x)
    return ReverseStep(x0=x0, mean=posterior_mean(chain, index, x, x0), log_variance=log_variance)


def bound(
    chain: Chain,
    index: Int64[Tensor, " B"],
    images: Float[Tensor, "B C H W"],
    x0: Float[Tensor, "B C H W"],
    log_variance: Float[Tensor, "B c h w"],
) -> Float[Tensor, "B C H W"]:
    """One term of the variational bound, in bits for each element.

    Args:
        chain: the steps.
        index: the step of each sample; step 0 decodes the image, the others cost the divergence
            from the posterior.
        images: without noise, in [-1, 1].
        x0: the model's estimate of them.
        log_variance: the model's.

    Source: Nichol and Dhariwal (arXiv:2102.09672), Eq. 4 to 7.
    """
    true = gather(chain.posterior_log_variance_clipped, index, x0)
    apart = gather(chain.posterior_mean_coef1, index, x0) * (images - x0)
    divergence = _divergence(apart, true, log_variance)
    decoder = -discrete_log_likelihood(images, x0, 0.5 * log_variance)
    at_0 = (index.to(x0.device) == 0).reshape(-1, 1, 1, 1)
    return torch.where(at_0, decoder, divergence) / math.log(2)


def discrete_log_likelihood(
    images: Float[Tensor, "B C H W"],
    mean: Float[Tensor, "B C H W"],
    log_std: Float[Tensor, "B c h w"],
) -> Float[Tensor, "B C H W"]:
    """Logarithm of the share of a Gaussian that falls into the bin of each 8-bit value, in nats.

    The first and the last bin are open. Probabilities are at least 1e-12.

    Args:
        images: values ``k / 127.5 - 1``.
        mean: of the Gaussian.
        log_std: logarithm of its standard deviation.

    Source: Ho et al. (arXiv:2006.11239), Eq. 13; the normal distribution function by the tanh
    formula of Page (1977), as in the official code.
    """
    centred, precision = images - mean, (-log_std).exp()
    upper = _normal_cdf(precision * (centred + _HALF_BIN))
    lower = _normal_cdf(precision * (centred - _HALF_BIN))
    share = torch.where(
        images < -0.999, upper, torch.where(images > 0.999, 1 - lower, upper - lower)
    )
    return share.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


@dataclass(frozen=True, kw_only=True)
class DDPMLoss(DenoisingLoss):
    """The losses of DDPM and its successors: the error of the prediction, and the bound.

    Choose it for models of discrete noise levels. Where the model predicts a variance, the bound
    teaches that alone: the mean is taught by the error, whose gradients are less noisy.

    Attributes:
        kind: ``mse`` (error plus bound, DiT), ``rescaled_mse`` (the bound times T / 1000, ADM),
            ``kl`` (the bound alone) or ``rescaled_kl`` (times T).
        steps: the timesteps that are trained, see `respaced_timesteps`; nothing trains them all.

    Source: Ho et al. (arXiv:2006.11239), Eq. 14; Nichol and Dhariwal (arXiv:2102.09672), Eq. 16.
    """

    kind: str = "mse"
    steps: int | str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"there is no kind {self.kind!r}; {nearest(self.kind, KINDS)}")

    @override
    def __call__(
        self,
        denoiser: Denoiser,
        images: Float[Tensor, "B C H W"],
        condition: Condition,
        draws: LossDraws,
    ) -> LossTerms:
        """The mean over a sample's elements is the official loss.

        Raises:
            ConfigError: the model has no discrete noise levels.
        """
        assert isinstance(denoiser, PreconditionedDenoiser)
        chain = model_chain(denoiser, self.steps)
        level = draws.level.to(compute.widest(draws.level.device))
        index = (level * len(chain)).to(torch.int64)
        sigma = gather(chain.sigmas, index, images)
        x = images + sigma * draws.noise
        prediction = denoiser.predict(x, sigma.flatten(), condition)
        learned = denoiser.noise_levels.variance.startswith("learned")
        alone = "kl" in self.kind
        parts = {}
        loss = torch.zeros_like(images)
        if alone or learned:
            x0 = prediction.x0 if alone else prediction.x0.detach()
            log_variance = chain.log_variance(
                index, denoiser.noise_levels.variance, prediction.variance
            ).to(images)
            vb = bound(chain, index, images, x0, log_variance) * self._scale(len(chain))
            loss, parts["vb"] = loss + vb, vb.detach().mean((1, 2, 3))
        if not alone:
            # The error of what the network predicts: D is c_skip x + c_out F.
            c_out = denoiser.preconditioning.coefficients(sigma).c_out
            mse = ((prediction.x0 - images) / c_out).square()
            loss, parts["mse"] = loss + mse, mse.detach().mean((1, 2, 3))
        return LossTerms(loss=loss, sigma=sigma.flatten(), parts=parts)

    def _scale(self, num_steps: int) -> float:
        return {"rescaled_mse": num_steps / 1000, "rescaled_kl": float(num_steps)}.get(
            self.kind, 1.0
        )


@dataclass(frozen=True, kw_only=True)
class BoundTerms:
    """The whole bound, in bits per dimension.

    Attributes:
        vb: each step's term, most noise first, (B, N).
        prior: what the last latents cost, (B,).
        x0_mse: squared error of the estimate at each step, (B, N).
        mse: squared error of the noise, (B, N).
    """

    vb: Float[Tensor, "B N"]
    prior: Float[Tensor, " B"]
    x0_mse: Float[Tensor, "B N"]
    mse: Float[Tensor, "B N"]

    @property
    def total(self) -> Float[Tensor, " B"]:
        """Bits for each channel of each pixel: an upper bound of what the image costs, (B,)."""
        return self.vb.sum(1) + self.prior


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    images: Float[Tensor, "B C H W"],
    condition: Condition,
    noise: Noise,
    *,
    steps: int | str = "",
    clip: bool = True,
) -> BoundTerms:
    """Measure the bound by one draw at every step.

    Args:
        denoiser: a model of discrete noise levels.
        images: 8-bit values in [-1, 1], float32.
        condition: of the whole batch.
        noise: one stream for each image.
        steps: see `respaced_timesteps`; nothing takes every step.
        clip: whether estimates are clipped to [-1, 1].

    Raises:
        ConfigError: the model has no discrete noise levels.
    """
    chain = model_chain(denoiser, steps)
    terms: dict[str, list[Tensor]] = {"vb": [], "x0_mse": [], "mse": []}
    for step in reversed(range(len(chain))):
        n = noise.randn(images.shape[1:], images.dtype)
        index = torch.full((len(images),), step, device=images.device)
        sigma = float(chain.sigmas[step])
        x = images + sigma * n
        reverse = reverse_step(denoiser, chain, index, x, condition, clip=clip)
        step_terms = {
            "vb": bound(chain, index, images, reverse.x0, reverse.log_variance),
            "x0_mse": (reverse.x0 - images).square(),
            "mse": ((x - reverse.x0) / sigma - n).square(),
        }
        for name, values in step_terms.items():
            terms[name].append(values.mean((1, 2, 3)))
    whole = {name: torch.stack(columns, dim=1) for name, columns in terms.items()}
    return BoundTerms(prior=_prior(chain, images), **whole)


def _prior(chain: Chain, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Divergence of the noisiest images from standard normal noise, in bits per dimension."""
    alpha_bar = chain.alphas_cumprod[-1]
    log_variance = (1 - alpha_bar).log().to(images)
    terms = _divergence(alpha_bar.sqrt().to(images) * images, log_variance, torch.zeros(()))
    return terms.mean((1, 2, 3)) / math.log(2)


def _divergence(
    apart: Float[Tensor, "B C H W"],
    log_variance: Float[Tensor, "*s"],
    log_variance_2: Float[Tensor, "*s2"],
) -> Float[Tensor, "B C H W"]:
    """Divergence of one Gaussian from another, in nats; ``apart`` is how far their means are."""
    # Summed as officially: the terms nearly cancel, and float32 keeps what this order leaves.
    return 0.5 * (
        -1
        + log_variance_2
        - log_variance
        + (log_variance - log_variance_2).exp()
        + apart.square() * (-log_variance_2).exp()
    )

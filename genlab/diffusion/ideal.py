"""The exact denoiser of a known distribution: samplers can be compared with the truth.

Use it to measure a solver's order or to see what guidance does, without training anything.
"""

from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.diffusion.preconditioning import EDM


class _EveryLevel(EDM):
    """All noise levels are allowed, in the precision of the state; time is as in EDM's models."""

    exact: ClassVar[bool] = True


class GaussianMixtureDenoiser(Denoiser):
    """Posterior mean of a mixture of isotropic Gaussians, each component being a class.

    With ``v_k = std_k^2 + sigma^2`` and ``d = C H W``, component k is responsible for ``x`` in
    proportion to ``weight_k v_k^(-d/2) exp(-|x - mean_k|^2 / (2 v_k))`` and estimates
    ``(std_k^2 x + sigma^2 mean_k) / v_k``. A class keeps its component only, a soft label weighs
    the components, the null class means the whole mixture.

    Args:
        weights: of the components, (K,), > 0; they need not sum to 1.
        means: (K, C, H, W).
        stds: (K,), > 0.
    """

    has_null_class = True
    noise_levels: NoiseLevels = _EveryLevel()

    def __init__(
        self,
        weights: Float[Tensor, " K"],
        means: Float[Tensor, "K C H W"],
        stds: Float[Tensor, " K"],
    ) -> None:
        self.weights = weights
        self.means = means
        self.stds = stds
        self.num_classes = len(weights)
        self.evaluations = 0

    def __call__(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, ""] | Float[Tensor, " B"],
        condition: Condition,
    ) -> Float[Tensor, "B C H W"]:
        """Denoise; see `Denoiser.__call__`."""
        self.evaluations += len(x)
        sigma = sigma.to(x).reshape(-1, 1)  # (B or 1, 1)
        variance = self.stds.to(x) ** 2 + sigma**2  # (B or 1, K)
        means = self.means.to(x)
        distance = (rearrange(x, "b c h w -> b 1 c h w") - means).square().sum((2, 3, 4))
        log_density = -0.5 * (x[0].numel() * variance.log() + distance / variance)
        shares = (self._priors(condition, len(x)).to(x).log() + log_density).softmax(1)
        # sum_k shares_k (std_k^2 x + sigma^2 mean_k) / v_k, without a (B, K, C, H, W) tensor
        of_x = (shares * self.stds.to(x) ** 2 / variance).sum(1)
        of_means = shares * sigma**2 / variance
        return rearrange(of_x, "b -> b 1 1 1") * x + torch.einsum("bk,kchw->bchw", of_means, means)

    def _priors(self, condition: Condition, batch: int) -> Float[Tensor, "B K"]:
        """The weight of each component for each sample."""
        whole = self.weights.expand(batch, -1)
        labels = condition.labels
        if labels is None:
            return whole
        if labels.is_floating_point():
            rows = labels.to(whole)
        else:
            rows = (labels[:, None] == torch.arange(self.num_classes)).to(whole)
            assert NULL_CLASS < 0  # so that its row is zero
        no_class = rows.sum(1, keepdim=True) == 0
        return torch.where(no_class, whole, whole * rows)

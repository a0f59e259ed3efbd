"""Euler's ancestral sampler."""

from dataclasses import dataclass

from genlab.samplers.solvers.ddim import DDIM


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(DDIM):
    """An Euler step that goes too far down, and fresh noise that leads back up.

    It is `DDIM` with ``eta = 1`` (all of DDPM's noise) that starts from noise of the first level
    itself. Choose it for variety with 20 to 50 steps; images do not settle as steps grow.

    Order 1. Costs one network evaluation a step.

    Source: Karras et al. (arXiv:2206.00364) name it a special case of theirs; as in k-diffusion and
    diffusers' EulerAncestralDiscreteScheduler.
    """

    eta: float = 1.0

    def start_std(self, sigma: float) -> float:
        """The noise level itself."""
        return sigma

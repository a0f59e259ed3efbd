"""Standing statistics: batch normalisation by the average over many batches of samples.

Stored running averages lag behind the weights and belong to untruncated latents; standing ones are
made for the latents at hand.

Source: Brock et al. 2018, arXiv:1809.11096, Appendix D.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from genlab.networks.layers.gan_layers import Statistics

Moments = Sequence[tuple[Tensor, Tensor]]
"""Mean and variance of each normalisation, in the order of the network's modules."""


def normalizations(network: nn.Module) -> list[Statistics]:
    """The batch normalisations of a network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, Statistics)]


def begin_standing(network: nn.Module) -> None:
    """Forget stored statistics; from now on training calls add theirs up."""
    for module in normalizations(network):
        module.stored_mean.zero_()
        module.stored_var.zero_()
        module.passes = 0


def end_standing(network: nn.Module) -> None:
    """Make averages of the sums: what is stored, and saved, means what it always does."""
    for module in normalizations(network):
        assert module.passes
        module.stored_mean /= module.passes
        module.stored_var /= module.passes
        module.passes = None


def stored_moments(network: nn.Module) -> Moments:
    """A copy of what is stored."""
    return [(m.stored_mean.clone(), m.stored_var.clone()) for m in normalizations(network)]


def set_moments(network: nn.Module, moments: Moments) -> None:
    """Overwrite what is stored."""
    for module, (mean, var) in zip(normalizations(network), moments, strict=True):
        module.stored_mean.copy_(mean)
        module.stored_var.copy_(var)
        module.passes = None


@contextmanager
def keeping_moments(network: nn.Module) -> Iterator[None]:
    """Bring back at the end what was stored at the beginning."""
    before = stored_moments(network)
    try:
        yield
    finally:
        set_moments(network, before)


@contextmanager
def by_batch(network: nn.Module) -> Iterator[None]:
    """Normalise by batch statistics, while all other layers go on as in evaluation."""
    before = [(module, module.training) for module in normalizations(network)]
    for module, _ in before:
        module.training = True  # not train(), which reaches the spectral norms within
    try:
        yield
    finally:
        for module, training in before:
            module.training = training

"""Regularisers of a GAN's gradients: orthogonality, and historical averaging."""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def add_orthogonal_gradients(
    network: nn.Module,
    strength: float,
    skip: Collection[nn.Parameter] = (),
    *,
    unit_rows: bool = False,
) -> None:
    """Make rows of weight matrices more orthogonal, by their gradients.

    Adds ``strength * 2 R W`` to the gradient of every parameter of at least two axes, W being the
    weight as (out, rest), not spectrally normalised, and R being ``W W^T`` without its diagonal,
    which leaves the rows their lengths. (The gradient of the squared Frobenius norm of R would be
    twice that.)

    Args:
        network: with gradients; parameters without are left alone.
        strength: beta; 1e-4 in the paper.
        skip: parameters to leave alone.
        unit_rows: whether R is ``W W^T - I``, as in earlier work.

    Source: Brock et al. 2018, arXiv:1809.11096, Eq. 3 (and 2), as BigGAN-PyTorch adds them.
    """
    skipped = {id(parameter) for parameter in skip}
    for parameter in network.parameters():
        if parameter.ndim >= 2 and parameter.grad is not None and id(parameter) not in skipped:
            gradient = orthogonal_gradient(parameter.flatten(1), unit_rows=unit_rows)
            parameter.grad.add_(gradient.view_as(parameter), alpha=strength)


def orthogonal_gradient(
    weight: Float[Tensor, "out rest"], *, unit_rows: bool
) -> Float[Tensor, "out rest"]:
    """``2 R W``; see `add_orthogonal_gradients`."""
    gram = weight @ weight.T
    if unit_rows:
        gram.diagonal().sub_(1)
    else:
        gram.fill_diagonal_(0)
    return 2 * gram @ weight


class History(nn.Module):
    """The mean of all values that a network's parameters have had, and the pull towards it.

    Historical averaging adds ``strength * |theta - mean|^2`` to a player's loss, which keeps the
    two from circling around each other.

    Args:
        network: whose parameters; the mean is kept apart from it, and saved with the run.

    Source: Salimans et al. 2016, arXiv:1606.03498, section 3.3.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        total = sum(parameter.numel() for parameter in network.parameters())
        self.register_buffer("mean", torch.zeros(total))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add_gradients(self, network: nn.Module, strength: float) -> None:
        """Take the parameters of now into the mean, and add the gradients of the distance to it."""
        parameters = list(network.parameters())
        means = self.mean.split([parameter.numel() for parameter in parameters])
        self.count += 1
        for parameter, flat in zip(parameters, means, strict=True):
            mean = flat.view(parameter.shape)
            mean += (parameter - mean) / self.count
            if parameter.grad is not None:
                parameter.grad.add_(parameter - mean, alpha=2 * strength)

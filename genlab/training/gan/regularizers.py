"""What is added to the gradients of a GAN's networks: orthogonality, and the pull of the past."""

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Variant = Literal["off-diagonal", "full"]


@torch.no_grad()
def add_orthogonal_gradients(
    network: nn.Module,
    strength: float,
    variant: Variant = "off-diagonal",
    skip: Collection[nn.Parameter] = (),
) -> None:
    """Make rows of weight matrices more orthogonal, by their gradients.

    Adds ``strength * 2 R W`` to the gradient of every parameter of at least two axes, W being the
    weight as (out, rest), not spectrally normalised. With ``off-diagonal`` R is ``W W^T`` without
    its diagonal, so that rows may have any length; with ``full`` it is ``W W^T - I``. (The gradient
    of the squared Frobenius norm of R would be twice that.)

    Args:
        network: with gradients; parameters without are left alone.
        strength: beta; 1e-4 in the paper.
        variant: which R.
        skip: parameters to leave alone.

    Source: Brock et al. 2018, arXiv:1809.11096, Eq. 3 and 2, as BigGAN-PyTorch adds them.
    """
    skipped = {id(parameter) for parameter in skip}
    for parameter in network.parameters():
        if parameter.ndim >= 2 and parameter.grad is not None and id(parameter) not in skipped:
            gradient = orthogonal_gradient(parameter.flatten(1), variant)
            parameter.grad.add_(gradient.view_as(parameter), alpha=strength)


def orthogonal_gradient(
    weight: Float[Tensor, "out rest"], variant: Variant
) -> Float[Tensor, "out rest"]:
    """``2 R W``; see `add_orthogonal_gradients`."""
    gram = weight @ weight.T
    if variant == "off-diagonal":
        gram.fill_diagonal_(0)
    else:
        gram.diagonal().sub_(1)
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

"""Hyper-connections: several residual streams that learn how they feed the layers and each other.

Shapes: N streams, B samples, T tokens, D features.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class HyperConnection(nn.Module):
    """What replaces the residual connection around one layer (static hyper-connections).

    The layer reads a weighted sum of the streams; its output is added to each stream with a weight
    of its own, while the streams are mixed. As built, each layer reads one of the (then equal)
    streams and adds to all of them: the plain residual network.

    Args:
        num_streams: number of streams, >= 2.
        layer: number of the layer in the network, which says what stream it reads at first.

    Source: Zhu et al., arXiv:2409.19606, Eq. 2 and 14 (A_m, A_r and B there are ``weights_in``,
        ``mixing`` and ``weights_out``).
    """

    def __init__(self, num_streams: int, layer: int) -> None:
        super().__init__()
        identity = torch.eye(num_streams)
        self.weights_in = nn.Parameter(identity[layer % num_streams].clone())
        self.mixing = nn.Parameter(identity)
        self.weights_out = nn.Parameter(torch.ones(num_streams))

    def read(self, streams: Float[Tensor, "N B T D"]) -> Float[Tensor, "B T D"]:
        """What the layer sees."""
        return torch.einsum("n,nbtd->btd", self.weights_in, streams)

    def write(
        self, streams: Float[Tensor, "N B T D"], output: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "N B T D"]:
        """The streams after the layer gave ``output``."""
        mixed = torch.einsum("mn,mbtd->nbtd", self.mixing, streams)
        return torch.addcmul(mixed, self.weights_out[:, None, None, None], output)

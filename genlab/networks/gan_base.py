"""What the networks of GANs have in common: latents, class embeddings, logits, resolutions."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Float, Int64
from torch import Tensor

from genlab.errors import ConfigError
from genlab.networks.base import Labels, Network, check_positive

BOTTOM = 4
"""Height and width of the first features."""


class GeneratorNetwork(Network):
    """A network G(z, class embedding) that makes images in (-1, 1).

    Subclasses decorate their constructor with `register_to_config`; their config holds
    ``img_resolution`` and ``img_channels``.

    Attributes:
        dim_z: numbers in a latent.
        num_classes: number of classes.
    """

    dim_z: int
    num_classes: int

    @abstractmethod
    def embed_labels(self, labels: Labels) -> Float[Tensor, "B E"] | Int64[Tensor, " B"]:
        """What `forward` takes for class labels: indices (B,), or rows of class weights (B, K).

        Rows of weights mix classes, which a network without a shared embedding cannot.
        """

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "B Z"], class_embedding: Float[Tensor, "B E"] | Int64[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """Make images.

        Args:
            z: latents, (B, dim_z).
            class_embedding: of `embed_labels`, or a mixture of such vectors.

        Returns:
            (B, img_channels, img_resolution, img_resolution), in (-1, 1).
        """


class DiscriminatorNetwork(Network):
    """A network that judges images against their classes; configured as a `GeneratorNetwork` is.

    Attributes:
        num_classes: number of classes.
    """

    num_classes: int

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
    ) -> Float[Tensor, "B 1"]:
        """How real images look for their classes.

        Args:
            x: images in [-1, 1].
            labels: one class for each.

        Returns:
            Logits, (B, 1): the larger, the more real.
        """


def widths_for(
    img_resolution: int, table: Mapping[int, Sequence[int]], own: Sequence[int] | None = None
) -> Sequence[int]:
    """The row of a table of widths, or one's own in its place.

    Raises:
        ConfigError: the architecture is not defined at this resolution, or one's own row does not
            suit it.
    """
    if img_resolution not in table:
        sizes = ", ".join(map(str, table))
        raise ConfigError(
            f"BigGAN has no architecture for {img_resolution}x{img_resolution}; "
            f"img_resolution is one of {sizes}: resize the images"
        )
    row = table[img_resolution]
    if own is None:
        return row
    check_positive(widths=own)
    if len(own) != len(row):
        raise ConfigError(
            f"widths needs {len(row)} numbers at {img_resolution}x{img_resolution}, one for each "
            f"block, got {list(own)}; BigGAN's are {list(row)}"
        )
    return own


def check_attention(attn_resolutions: Iterable[int], resolutions: Sequence[int]) -> set[int]:
    """Resolutions with self-attention.

    Raises:
        ConfigError: a resolution that no block puts out, where attention would silently be missing.
    """
    unknown = set(attn_resolutions) - set(resolutions)
    if unknown:
        listed = ", ".join(map(str, sorted(set(resolutions))))
        raise ConfigError(
            f"no block puts out the resolution {min(unknown)} that attn_resolutions names; "
            f"the blocks put out {listed}"
        )
    return set(attn_resolutions)

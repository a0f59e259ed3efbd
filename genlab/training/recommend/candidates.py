"""The networks among which ``genlab presets recommend`` chooses, by family, the smallest first.

What a network needs (images seen, images there are) rests on the bundled models' own training where
`Candidate.note` says so; all else is a rule of thumb. docs/training.md has the reasons in words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network, and what it takes to train it.

    Attributes:
        network: as in a configuration, without what follows from the data.
        discriminator: the same of a GAN's other network; None for other families.
        batch_size: images a step.
        optimizer: as in a configuration.
        good_kimg: thousands of images until more of them gain little.
        least_images: images below which a smaller network is taken.
        note: what is known of this network, a sentence.
    """

    network: Mapping[str, Any]
    discriminator: Mapping[str, Any] | None = None
    batch_size: int
    optimizer: Mapping[str, Any]
    good_kimg: float
    least_images: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """A way to generate images.

    Attributes:
        sizes: heights (and widths) of images that its networks take.
        least_kimg: thousands of images before which previews show nothing of the data.
        warmup_share: part of the run over which the learning rate grows.
        halflife_share: half-life of the average of the weights, as a part of the run.
        sigma_rels: widths of the averages of which others can be made after training.
        needs_classes: whether it cannot do without labels.
        bfloat16: whether it trains in bfloat16, where that is fast.
        few_images: below so many the network is held back from learning by heart.
        score: what it is judged by on images held out; None if by nothing.
        candidates: (size, channels) -> networks, each larger than the one before.
    """

    sizes: Sequence[int]
    least_kimg: float
    warmup_share: float
    halflife_share: float
    sigma_rels: tuple[float, ...]
    needs_classes: bool
    bfloat16: bool
    few_images: int
    score: str | None
    candidates: Callable[[int, int], Sequence[Candidate]]


def _patch(size: int, grid: int, most: int = 4) -> int:
    """The side of patches that leave a grid of at least so many a side: work goes with its area."""
    return max(
        patch for patch in (1, 2, 4, 8) if patch <= most and (patch == 1 or patch * grid <= size)
    )


def _attention(size: int, patch: int) -> list[int]:
    """Attention on a grid of 8 or 16 a side: on larger ones it costs more than convolutions."""
    grid = size // patch // 2
    while grid > 16:
        grid //= 2
    return [grid]


def _edm(size: int, channels: int) -> Sequence[Candidate]:
    small, medium, large = _patch(size, 16), _patch(size, 32), _patch(size, 64)
    common = {"name": "song-unet"}
    return (
        Candidate(
            network={
                **common,
                "patch_size": small,
                "model_channels": 64,
                "channel_mult": [1, 2, 2],
                "channel_mult_emb": 2,
                "num_blocks": 1,
                "attn_resolutions": _attention(size, small),
            },
            batch_size=64,
            optimizer={"lr": 1.5e-3, "beta2": 0.99},
            good_kimg=250,
            least_images=0,
            note="the bundled edm-fmnist is this network after 250 kimg of Fashion-MNIST in grey",
        ),
        Candidate(
            network={
                **common,
                "patch_size": medium,
                "model_channels": 64,
                "channel_mult": [1, 2, 2],
                "channel_mult_emb": 4,
                "num_blocks": 2,
                "attn_resolutions": _attention(size, medium),
            },
            batch_size=128,
            optimizer={"lr": 1.0e-3, "beta2": 0.99},
            good_kimg=2_000,
            least_images=5_000,
            note="between the presets edm-fmnist and edm-cifar10; GenLab has no model of it",
        ),
        Candidate(
            network={
                **common,
                "patch_size": large,
                "model_channels": 96,
                "channel_mult": [2, 2, 2],
                "num_blocks": 3,
                "attn_resolutions": _attention(size, large),
            },
            batch_size=512,
            optimizer={"lr": 1.0e-3},
            good_kimg=10_000,
            least_images=20_000,
            note="the preset edm-cifar10, half of the network of EDM's paper, which saw "
            "200,000 kimg",
        ),
    )


def _dit(size: int, channels: int) -> Sequence[Candidate]:
    patch = _patch(size, 16, most=8) if size > 64 else 4
    optimizer = {"lr": 1.0e-3, "beta2": 0.99}
    shape = {"name": "dit", "patch_size": patch}
    return (
        Candidate(
            network={**shape, "hidden_size": 96, "depth": 6, "num_heads": 3},
            batch_size=64,
            optimizer=optimizer,
            good_kimg=384,
            least_images=0,
            note="the bundled dit-fmnist-s is this network after 384 kimg of Fashion-MNIST in grey",
        ),
        Candidate(
            network={**shape, "hidden_size": 192, "depth": 6, "num_heads": 3},
            batch_size=64,
            optimizer=optimizer,
            good_kimg=384,
            least_images=2_000,
            note="the bundled dit-fmnist is this network after 384 kimg of Fashion-MNIST in grey",
        ),
        Candidate(
            network={
                "name": "dit",
                "patch_size": max(2, patch // 2),
                "hidden_size": 384,
                "depth": 12,
                "num_heads": 6,
            },
            batch_size=256,
            optimizer={"lr": 1.0e-4},
            good_kimg=20_000,
            least_images=20_000,
            note="DiT-S of the paper, with its learning rate; GenLab has no model of it",
        ),
    )


GAN_WIDTHS = {
    32: ([8, 4, 1], [1, 2, 4, 4]),
    64: ([8, 8, 4, 1], [1, 2, 4, 8, 8]),
    128: ([8, 8, 4, 2, 1], [1, 2, 4, 8, 8, 8]),
}
"""Size -> multiples of the width in generator and discriminator; the first row is biggan-fmnist's.
"""


def _biggan(size: int, channels: int) -> Sequence[Candidate]:
    generator, discriminator = GAN_WIDTHS[size]
    slow = {"beta1": 0.0, "eps": 1.0e-6}
    dim_z = 20 * (len(generator) + 1)  # a chunk of 20 for each block and one to begin with

    def candidate(width: int, **rest: Any) -> Candidate:
        return Candidate(
            network={
                "name": "biggan-generator",
                "channels": width,
                "widths": generator,
                "dim_z": dim_z,
                "shared_dim": 32,
            },
            discriminator={
                "name": "biggan-discriminator",
                "channels": width,
                "widths": discriminator,
            },
            batch_size=64,
            optimizer={"lr": 2.0e-4, **slow, "networks": {"discriminator": {"lr": 4.0e-4}}},
            **rest,
        )

    return (
        candidate(
            32,
            good_kimg=128,
            least_images=0,
            note="the bundled biggan-fmnist is this network (at 32x32) after 128 kimg of "
            "Fashion-MNIST in grey",
        ),
        candidate(
            64,
            good_kimg=1_000,
            least_images=10_000,
            note="twice as wide as the bundled biggan-fmnist; GenLab has no model of it",
        ),
    )


def _pixelcnn(size: int, channels: int) -> Sequence[Candidate]:
    mixtures = 5 if channels == 1 else 10
    optimizer = {"lr": 2.0e-3, "max_grad_norm": 1.0}
    return (
        Candidate(
            network={
                "name": "pixelcnn++",
                "num_blocks": 1,
                "num_filters": 48,
                "num_mixtures": mixtures,
            },
            batch_size=16,
            optimizer=optimizer,
            good_kimg=80,
            least_images=0,
            note="the bundled pixelcnnpp-fmnist is this network after 80 kimg of Fashion-MNIST in "
            "grey",
        ),
        Candidate(
            network={
                "name": "pixelcnn++",
                "num_blocks": 2,
                "num_filters": 96,
                "num_mixtures": 10,
            },
            batch_size=32,
            optimizer={**optimizer, "lr": 1.0e-3},
            good_kimg=2_000,
            least_images=10_000,
            note="between the bundled pixelcnnpp-fmnist and the paper's network; GenLab has no "
            "model of it",
        ),
    )


FAMILIES = {
    "edm": Family(
        sizes=range(16, 257, 16),
        least_kimg=30,
        warmup_share=1 / 20,
        halflife_share=1 / 40,
        sigma_rels=(0.05, 0.10),
        needs_classes=False,
        bfloat16=True,
        few_images=5_000,
        score="heldout_loss",
        candidates=_edm,
    ),
    "dit": Family(
        sizes=range(16, 257, 16),
        least_kimg=60,
        warmup_share=1 / 60,
        halflife_share=1 / 40,
        sigma_rels=(0.05, 0.10),
        needs_classes=False,
        bfloat16=True,
        few_images=5_000,
        score="heldout_loss",
        candidates=_dit,
    ),
    "biggan": Family(
        sizes=tuple(GAN_WIDTHS),
        least_kimg=30,
        warmup_share=0,
        halflife_share=1 / 12,
        sigma_rels=(),
        needs_classes=True,
        bfloat16=False,
        few_images=10_000,
        score=None,
        candidates=_biggan,
    ),
    "pixelcnn": Family(
        sizes=range(8, 65, 4),
        least_kimg=15,
        warmup_share=1 / 50,
        halflife_share=1 / 8,
        sigma_rels=(),
        needs_classes=False,
        bfloat16=False,
        few_images=5_000,
        score="bpd",
        candidates=_pixelcnn,
    ),
}
"""Name of ``--family`` -> what there is; shares are those of the bundled models' recipes."""

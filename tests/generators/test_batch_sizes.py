"""What the documentation promises of batch sizes, measured on the models that come along.

A processor rounds a product of few rows otherwise than one of many, and torch gives a convolution
of one image to another library; so images of other batch sizes are the same but for rounding.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import genlab
from genlab.data.pixels import to_uint8
from genlab.networks.layers.initialised import Linear

FEW = {"solver": {"name": "euler"}, "schedule": {"num_steps": 3}}
UNGUIDED = FEW | {"guidance": []}
GUIDED = FEW | {"guidance": [{"name": "cfg", "scale": 2.0}]}
SEEDS, LABELS = range(16), [seed % 10 for seed in range(16)]


def pixels(name: str, sampler: Any, batch_size: int, seeds: range = SEEDS) -> Tensor:
    images = genlab.load(name).sample(seeds, LABELS[: len(seeds)], sampler, batch_size)
    return to_uint8(images).int()


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("edm-fmnist", UNGUIDED),
        ("edm-fmnist", GUIDED),
        ("dit-fmnist", UNGUIDED),
        ("dit-fmnist", GUIDED),
        ("biggan-fmnist", None),
        ("biggan-fmnist", {"truncation": 0.5}),
    ],
)
def test_no_batch_size_changes_a_pixel_by_more_than_one_level(name: str, sampler: Any) -> None:
    whole = pixels(name, sampler, 16)
    for size in (1, 3):
        assert (pixels(name, sampler, size) - whole).abs().max() <= 1


def test_the_images_of_one_batch_size_are_the_same_bit_for_bit() -> None:
    first, again = (
        genlab.load("edm-fmnist").sample(range(4), LABELS[:4], GUIDED, 3) for _ in range(2)
    )
    assert torch.equal(first, again)


def test_a_pixelcnn_draws_the_same_pixels_in_any_batch() -> None:
    seeds = range(3)  # its network runs in float64: rounding is far below what tells levels apart
    whole = pixels("pixelcnnpp-fmnist", None, 3, seeds)
    assert torch.equal(pixels("pixelcnnpp-fmnist", None, 1, seeds), whole)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_a_linear_layer_gives_a_row_the_same_among_few_and_many(rows: int) -> None:
    layer, x = Linear(192, 96), torch.randn(32, 192)
    with torch.no_grad():
        few, many = layer(x[:rows]), layer(x)[:rows]
        longer = layer(torch.cat([x[:rows], torch.zeros(8 - rows, 192)]))[:rows]
    assert torch.equal(few, longer)
    assert (few - many).abs().max() <= 1e-6  # equal with MKL; others may round

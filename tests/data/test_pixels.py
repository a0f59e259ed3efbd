"""The one rounding rule between floats and pixels."""

import numpy as np
import torch

from genlab.data.pixels import PIXEL_RULE, from_uint8, to_uint8


def test_the_rule_on_the_card_is_the_rule_in_the_code() -> None:
    x = torch.linspace(-1.5, 1.5, 10001)
    rule = PIXEL_RULE.replace("floor", "np.floor").replace("clip", "np.clip")
    expected = eval(rule, {"np": np, "x": x.numpy()})  # a constant of ours
    np.testing.assert_array_equal(to_uint8(x).numpy(), expected.astype(np.uint8))


def test_all_pixels_survive_the_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels)

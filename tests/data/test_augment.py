"""Augmentation: closed-form cases of the pure part, the labels' meaning, and the draws."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from genlab.data.augment.nonleaky import NUM_LABELS, AugmentDraws, AugmentPipe, apply
from genlab.data.augment.warp import SYM6, translation, warp
from genlab.errors import ConfigError

TIGHT = 2e-5
"""The filter's taps have 16 digits; float32 sampling positions are good to about 1e-5 pixels."""


def smooth(count: int = 2, size: int = 32, channels: int = 1) -> Tensor:
    """Blobs: band-limited enough for interpolation, far enough from the edges."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    blobs = [
        torch.exp(-(((x - 0.2) / 0.25) ** 2) - ((y + 0.1 * i) / 0.15) ** 2)
        for i in range(count * channels)
    ]
    return torch.stack(blobs).reshape(count, channels, size, size)


def draws(count: int = 2, **values: float) -> AugmentDraws:
    none = AugmentDraws.none(count)
    return replace(
        none,
        **{k: torch.full_like(getattr(none, k), v) for k, v in values.items()},
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_draws_change_nothing_at_all() -> None:
    images = torch.randn(3, 3, 16, 16)
    out, labels = apply(images, AugmentDraws.none(3))
    assert torch.equal(out, images)
    assert torch.equal(labels, torch.zeros(3, NUM_LABELS))


def test_the_wavelet_is_orthonormal_to_its_even_shifts() -> None:
    taps = torch.tensor(SYM6, dtype=torch.float64)
    assert taps.sum().item() == pytest.approx(math.sqrt(2), abs=1e-12)
    products = [(taps[2 * k :] @ taps[: len(taps) - 2 * k]).item() for k in range(6)]
    assert products == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-11)


def test_resampling_under_the_identity_gives_the_image_back() -> None:
    images = torch.randn(2, 3, 20, 28)  # noise: the hardest case for a resampler
    out = warp(images, torch.eye(3).repeat(2, 1, 1))
    assert (out - images).abs().max() < 5 * TIGHT


@pytest.mark.parametrize("size", [(32, 32), (28, 20)])
def test_a_shift_by_whole_pixels_moves_the_content_right_and_down(size: tuple[int, int]) -> None:
    height, width = size
    images = torch.randn(2, 1, height, width)
    shifted = draws(shift_x=3 / (0.125 * width), shift_y=-2 / (0.125 * height))
    out, _ = apply(images, shifted)
    assert (out[:, :, : height - 2, 3:] - images[:, :, 2:, : width - 3]).abs().max() < 5 * TIGHT
    # What comes in at the left edge is the reflection.
    reflected = F.pad(images, (3, 0, 0, 2), mode="reflect")[:, :, 2:, :width]
    assert (out - reflected).abs().max() < 5 * TIGHT


def test_a_quarter_turn_is_rot90_anticlockwise() -> None:
    images = smooth()  # the wavelet is not quite symmetric: noise would not come through a turn
    out, labels = apply(images, draws(angle=math.pi / 2))
    assert (out - images.rot90(1, (2, 3))).abs().max() < 0.03
    assert (out - images.rot90(-1, (2, 3))).abs().max() > 0.5
    assert labels[0].tolist() == pytest.approx([0, 0, 0, -1, 1, 0, 0, 0, 0], abs=1e-6)


def test_flips_are_exact_and_come_before_the_rest() -> None:
    images = torch.randn(2, 3, 8, 8)
    out, labels = apply(images, draws(xflip=1, yflip=1))
    assert torch.equal(out, images.flip(2, 3))
    assert labels[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    shift = draws(xflip=1, shift_x=4 / (0.125 * 8))
    moved, _ = apply(images, shift)
    assert (moved[..., 4:] - images.flip(3)[..., :4]).abs().max() < 5 * TIGHT


def test_scale_enlarges_by_the_stated_factor() -> None:
    # A factor of 2 is w = 5. Against the closed form: the blob with twice the width.
    size = 33  # odd: the centre is a pixel
    x = torch.arange(size) - size // 2
    row = torch.exp(-((x / 3.0) ** 2))
    wide = torch.exp(-((x / 6.0) ** 2))
    image = (row[:, None] * row)[None, None]
    out, labels = apply(image, draws(1, scale=5.0))
    assert (out[0, 0] - wide[:, None] * wide).abs().max() < 0.02  # bilinear in the doubled image
    assert labels[0, 2].item() == 5.0


def test_anisotropic_scaling_stretches_along_its_axis() -> None:
    size = 33
    x = torch.arange(size) - size // 2
    row, narrow, wide = (torch.exp(-((x / s) ** 2)) for s in (4.0, 2.0, 8.0))
    image = (row[:, None] * row)[None, None]
    along_x, labels = apply(image, draws(1, aniso=5.0))
    middle = slice(8, -8)  # farther out the reflections come in
    assert (along_x[0, 0] - narrow[:, None] * wide)[middle].abs().max() < 0.03
    assert labels[0, 5:7].tolist() == [5.0, 0.0]
    along_y, labels = apply(image, draws(1, aniso=5.0, axis=math.pi / 2))
    assert (along_y[0, 0] - wide[:, None] * narrow)[:, middle].abs().max() < 0.03
    assert labels[0, 5:7].tolist() == pytest.approx([0.0, 5.0], abs=1e-6)


def test_the_axis_turns_anticlockwise() -> None:
    size = 33
    x = torch.arange(size) - size // 2
    disc = torch.exp(-((x[:, None] ** 2 + x**2) / 25.0))[None, None]
    out, _ = apply(disc, draws(1, aniso=5.0, axis=math.pi / 4))
    # The radius halves towards the upper right and doubles towards the upper left.
    radius2 = 2 * 6.0**2
    assert out[0, 0, 10, 22].item() == pytest.approx(math.exp(-radius2 / 4 / 25), abs=0.03)
    assert out[0, 0, 10, 10].item() == pytest.approx(math.exp(-radius2 * 4 / 25), abs=0.03)


@settings(deadline=None, max_examples=25)
@given(
    scale=st.floats(-2, 2),
    angle=st.floats(-math.pi, math.pi),
    aniso=st.floats(-2, 2),
    axis=st.floats(-math.pi, math.pi),
)
def test_labels_by_their_definition(scale: float, angle: float, aniso: float, axis: float) -> None:
    given_draws = draws(
        1, scale=scale, angle=angle, aniso=aniso, axis=axis, shift_x=0.5, shift_y=-1
    )
    images, labels = apply(smooth(1, 16), given_draws)
    assert images.isfinite().all()
    expected = [0, 0, scale, math.cos(angle) - 1, math.sin(angle)]
    expected += [aniso * math.cos(axis), aniso * math.sin(axis), 0.5, -1]
    assert labels[0].tolist() == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(x=st.floats(-6, 6), y=st.floats(-6, 6))
def test_moving_there_and_back_keeps_a_smooth_image(x: float, y: float) -> None:
    images = smooth(1, 48)
    there = torch.tensor([x]), torch.tensor([y])
    back = warp(warp(images, translation(*there)), translation(-there[0], -there[1]))
    assert (back - images)[:, :, 12:-12, 12:-12].abs().max() < 0.02


def test_far_outside_is_zero() -> None:
    out, _ = apply(torch.ones(1, 1, 16, 16), draws(1, shift_x=8 * 5.0))
    assert out.abs().max() < 1e-6  # 80 pixels away; reflection reaches 15


def test_an_image_does_not_depend_on_its_batch() -> None:
    images = torch.randn(16, 3, 24, 24)
    pipe = AugmentPipe(p=0.8)
    drawn = pipe.draw(16, generator(3))
    together, labels = apply(images, drawn)
    for i in range(16):
        one = AugmentDraws(*[getattr(drawn, name)[i : i + 1] for name in vars(drawn)])
        alone, label = apply(images[i : i + 1], one)
        assert (alone[0] - together[i]).abs().max() < 5 * TIGHT
        assert torch.equal(label[0], labels[i])


def test_p_zero_gives_zero_labels_and_the_same_images() -> None:
    images = torch.randn(64, 1, 8, 8)
    out, labels = AugmentPipe(p=0)(images, generator())
    assert torch.equal(out, images)
    assert not labels.any()


def test_probabilities_are_as_asked() -> None:
    drawn = AugmentPipe(p=0.12).draw(40_000, generator())
    rates = drawn.labels().ne(0).float().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12])
    # Five standard deviations of a binomial rate.
    assert ((rates - expected).abs() < 5 * (expected * (1 - expected) / 40_000).sqrt()).all()
    both = drawn.shift_x.ne(0) == drawn.shift_y.ne(0)
    assert both.all()  # one decision for both directions
    assert drawn.scale[drawn.scale != 0].std().item() == pytest.approx(1, abs=0.05)
    assert drawn.angle.abs().max().item() == pytest.approx(math.pi, abs=0.01)


def test_the_generator_alone_decides() -> None:
    images = torch.randn(8, 1, 16, 16)
    pipe = AugmentPipe(p=0.5)
    first = pipe(images, generator(1))
    torch.manual_seed(123)
    again = pipe(images, generator(1))
    other = pipe(images, generator(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_switching_one_off_leaves_the_others_as_they_were() -> None:
    full = AugmentPipe(p=0.9).draw(64, generator()).labels()
    without = AugmentPipe(p=0.9, yflip=0, rotate_frac=0).draw(64, generator()).labels()
    assert not without[:, [1, 3, 4]].any()
    keep = [0, 2, 5, 6, 7, 8]
    assert torch.equal(full[:, keep], without[:, keep])


@pytest.mark.parametrize("bad", [{"p": 1.5}, {"p": -0.1}, {"p": math.nan}, {"xflip": -1.0}])
def test_impossible_probabilities_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AugmentPipe(**bad)

"""Latents at rest and as pictures; images keep the layouts that they had."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.data.writing.formats import FORMATS
from genlab.data.writing.sample_kinds import IMAGES, KINDS, LATENTS


def test_every_format_holds_a_kind() -> None:
    assert {name for kind in KINDS for name in kind.formats} == set(FORMATS)
    assert IMAGES.file_name(1012) == "00001/img00001012.png"
    assert LATENTS.file_name(1012) == "00001/latent00001012.npy"


def test_latents_are_stored_without_loss() -> None:
    latents = torch.randn(3, 4, 5, 6) * 10
    for stored, latent in zip(LATENTS.stored(latents), latents, strict=True):
        again = LATENTS.decode(LATENTS.encode(stored))
        assert again.dtype == np.float32
        np.testing.assert_array_equal(again, latent.numpy())
    halves = LATENTS.stored(latents.to(torch.bfloat16))
    assert halves[0].dtype == np.float32


def test_the_first_of_an_npz(tmp_path: Path) -> None:
    stored = LATENTS.stored(torch.randn(3, 4, 5, 6))
    path = tmp_path / "latents.npz"
    LATENTS.write_npz(path, iter(stored), (4, 5, 6), [7, 8, 9], None)
    with np.load(path) as file:
        assert sorted(file.files) == ["latents", "seeds"]
        np.testing.assert_array_equal(file["latents"], np.stack(stored))
        assert file["seeds"].tolist() == [7, 8, 9]
    np.testing.assert_array_equal(list(LATENTS.read_first(path, 2)), stored[:2])
    assert len(list(LATENTS.read_first(path, 9))) == 3


@pytest.mark.parametrize(("channels", "rows", "columns"), [(2, 1, 2), (4, 2, 2), (5, 2, 3)])
def test_channels_stand_side_by_side(channels: int, rows: int, columns: int) -> None:
    latents = torch.arange(-channels, channels, 2.0)[None, :, None, None].expand(1, -1, 2, 3)
    shown = LATENTS.shown(latents)
    assert shown.shape == (1, 1, 2 * rows, 3 * columns)
    for channel in range(channels):
        row, column = divmod(channel, columns)
        tile = shown[0, 0, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
        value = float(latents[0, channel, 0, 0])
        assert (tile == int(np.floor(np.clip(value / 3 * 127.5 + 128, 0, 255)))).all()
    np.testing.assert_array_equal(
        LATENTS.picture(LATENTS.stored(latents)[0]), shown[0].permute(1, 2, 0).numpy()
    )


def test_images_stay_as_they_were() -> None:
    images = torch.rand(2, 3, 4, 5) * 2 - 1
    (first, _), shown = IMAGES.stored(images), IMAGES.shown(images)
    np.testing.assert_array_equal(first, shown[0].permute(1, 2, 0).numpy())
    assert IMAGES.picture(first) is first
    np.testing.assert_array_equal(IMAGES.decode(IMAGES.encode(first)), first)
    assert IMAGES.title("tiny") == "tiny"
    assert not IMAGES.marks()

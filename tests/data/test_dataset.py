"""The training set: shapes, fits, channels, labels, and loading it whole or by workers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_sets import class_files, encoded, picture, write_folder, write_zip
from torch.utils.data import DataLoader

from genlab.data.conform import Conform, crop, pad, resize
from genlab.data.dataset import ImageDataset
from genlab.data.sources.base import NO_LABEL
from genlab.errors import ConfigError, DataError


def test_fashion_mnist_padded_to_32(fashion_mnist: Path) -> None:
    data = ImageDataset(fashion_mnist, image_size=32, fit="pad")
    images, labels = data.load_all()
    assert images.shape == (60_000, 1, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert data.image_shape == (1, 32, 32)
    assert data.num_classes == 10
    assert not images[:, :, :2].any()  # a black frame of two pixels
    assert not images[:, :, :, -2:].any()
    image, label = data[17]
    assert torch.equal(image, images[17])
    assert label == labels[17]


def test_load_all_equals_reading_one_by_one(tmp_path: Path) -> None:
    data = ImageDataset(write_zip(tmp_path / "set.zip", class_files(count=5)))
    done: list[int] = []
    images, labels = data.load_all(threads=3, progress=done.append)
    assert sum(done) == len(data) == 10
    for i in range(10):
        assert torch.equal(data[i][0], images[i])
        assert data[i][1] == labels[i]


@pytest.mark.parametrize("options", [{"channels": 3}, {"image_size": 16, "fit": "resize"}])
def test_arrays_are_conformed_too(fashion_mnist: Path, options: dict[str, int]) -> None:
    data = ImageDataset(fashion_mnist, split="test", **options)  # type: ignore[arg-type]
    assert data[5][0].shape == data.image_shape
    assert data.image_shape in ((3, 28, 28), (1, 16, 16))


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_read_the_same(tmp_path: Path, context: str) -> None:
    data = ImageDataset(write_zip(tmp_path / "set.zip", class_files(count=8)))
    images, labels = data.load_all()
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=context)
    batches = list(loader)
    assert torch.equal(torch.cat([batch[0] for batch in batches]), images)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), labels)


def test_labels_not_wanted_are_the_null_class(tmp_path: Path) -> None:
    data = ImageDataset(write_folder(tmp_path, class_files()), labels=False)
    assert data.labels.tolist() == [NO_LABEL] * 6
    assert data[0][1] == NO_LABEL
    assert data.num_classes == 0
    assert data.class_names is None


def test_labels_wanted_but_not_there(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a.png": encoded(picture(0))})
    with pytest.raises(DataError, match="labels=false"):
        ImageDataset(root)
    assert len(ImageDataset(root, labels=False)) == 1


def test_another_shape_names_the_image_and_the_cure(tmp_path: Path) -> None:
    files = {"a.png": encoded(picture(0)), "b.png": encoded(picture(1, (8, 9)))}
    data = ImageDataset(write_folder(tmp_path, files), labels=False)
    with pytest.raises(DataError, match=r"b\.png has shape 3x9x8 but the first image 3x8x8"):
        data.load_all()
    with pytest.raises(DataError, match=r"b\.png is 8x9, not 8x8"):
        ImageDataset(tmp_path, image_size=8, labels=False)[1]


def test_a_set_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    data = ImageDataset(write_folder(tmp_path, class_files()))
    with pytest.raises(DataError, match="with a loader"):
        data.load_all(max_bytes=1000)


def test_indices_end(tmp_path: Path) -> None:
    data = ImageDataset(write_folder(tmp_path, class_files()))
    with pytest.raises(IndexError):
        data[6]
    assert len(list(data)) == 6  # type: ignore[call-overload]


# --- conform ----------------------------------------------------------------------------------


def planes(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (channels, height, width), dtype=np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 24),
    fit=st.sampled_from(["pad", "resize", "crop"]),
    channels=st.sampled_from([None, 1, 3]),
    stored=st.sampled_from([1, 3]),
)
def test_every_fit_gives_the_size_asked_for(
    height: int, width: int, size: int, fit: str, channels: int | None, stored: int
) -> None:
    conform = Conform(image_size=size, fit=fit, channels=channels)
    out = conform(planes(0, height, width, stored))
    assert out.shape == (channels or stored, size, size)
    assert out.dtype == np.uint8


def test_pad_centres_and_keeps_every_pixel() -> None:
    image = planes(0, 5, 6)
    out = pad(image, 9)
    assert np.array_equal(out[:, 2:7, 1:7], image)
    assert out.astype(int).sum() == image.astype(int).sum()


def test_pad_shrinks_a_larger_image_and_keeps_its_shape() -> None:
    out = pad(np.full((1, 20, 40), 200, np.uint8), 10)
    assert (out[:, 2:7] == 200).all()
    assert not out[:, :2].any()
    assert not out[:, 7:].any()


def test_crop_takes_the_middle() -> None:
    image = np.zeros((1, 8, 24), np.uint8)
    image[:, :, 8:16] = 255
    assert (crop(image, 8) == 255).all()  # no scaling: the middle third exactly
    halved = crop(np.repeat(np.repeat(image, 2, 1), 2, 2), 8)
    assert (halved == 255).all()


def test_halving_by_box_averages_four_pixels() -> None:
    image = planes(0, 16, 16, 1).astype(np.uint16)
    means = (
        image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2]
    ) / 4
    assert np.abs(crop(image.astype(np.uint8), 8) - means).max() <= 1  # rounded twice


def test_resize_stretches() -> None:
    image = np.zeros((1, 8, 16), np.uint8)
    image[:, :, :8] = 255
    out = resize(image, 8)
    assert (out[:, :, :2] >= 250).all()
    assert (out[:, :, 6:] <= 5).all()


def test_grey_and_back_is_exact() -> None:
    grey = planes(0, 16, 16, 1)
    rgb = Conform(channels=3)(grey)
    assert (rgb == grey).all()
    assert np.array_equal(Conform(channels=1)(rgb), grey)


def test_luma_is_that_of_pillow() -> None:
    rgb = planes(0, 64, 64)
    expected = np.asarray(Image.fromarray(rgb.transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(Conform(channels=1)(rgb)[0], expected)


def test_transparency_is_refused_or_laid_on_a_colour() -> None:
    rgba = planes(0, 4, 4, 4)
    rgba[3] = 0
    rgba[3, 0] = 255
    with pytest.raises(DataError, match="x is partly transparent"):
        Conform()(rgba, "x")
    white, black = Conform(alpha="white")(rgba), Conform(alpha="black")(rgba)
    assert np.array_equal(white[:, 0], rgba[:3, 0])
    assert (white[:, 1:] == 255).all()
    assert (black[:, 1:] == 0).all()
    half = np.array([100, 200, 0, 51], np.uint8)[:, None, None]  # a fifth opaque
    assert Conform(alpha="white")(half)[:, 0, 0].tolist() == [224, 244, 204]


def test_opaque_alpha_is_dropped() -> None:
    for channels in (2, 4):
        image = planes(0, 4, 4, channels)
        image[-1] = 255
        assert np.array_equal(Conform()(image), image[:-1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fit": "crop"}, "no effect without image_size"),
        ({"fit": "corp", "image_size": 8}, "did you mean 'crop'"),
        ({"channels": 4}, "channels must be 1"),
        ({"image_size": 0}, "at least 1"),
        ({"alpha": "red"}, "no alpha 'red'"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Conform(**options)  # type: ignore[arg-type]

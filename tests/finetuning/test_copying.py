"""The warning against copies: on real images, and in a run."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_finetunes import trainer_of, write_fmnist
from torch import Tensor

from genlab.data.dataset import ImageDataset
from genlab.errors import ConfigError
from genlab.finetuning.config import CopyingConfig
from genlab.finetuning.copying import (
    PROBES,
    SIDE,
    CopyingCheck,
    CopyingWarning,
    TrainingImages,
    pixel_rows,
)
from genlab.training.loop.preview import Preview
from genlab.training.loop.state import Progress

PROGRESS = Progress(step=10, images=320)


@pytest.fixture(scope="module")
def fashion(fashion_mnist: Path) -> ImageDataset:
    return ImageDataset(fashion_mnist, image_size=32, fit="pad")


@pytest.fixture(scope="module")
def sets(fashion: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """Sixty training images as npz, and 200 others."""
    images, _ = fashion.load_all()
    path = tmp_path_factory.mktemp("sixty") / "sixty.npz"
    np.savez(path, arr_0=images[:60].permute(0, 2, 3, 1).numpy(), arr_1=np.arange(60) % 10)
    return path, images[1000:1200]


def preview_of(pixels: Tensor, folder: Path) -> Preview:
    picture = Image.new("RGB", (1, 1))
    return Preview(pixels=pixels, labels=None, picture=picture, path=folder / "000000320.png")


def memorised(pixels: Tensor, noise: float) -> Tensor:
    """What a sampler that copies draws: training images and a little noise."""
    drawn = pixels.float() + noise * torch.randn(pixels.shape)
    return drawn.clip(0, 255).round().to(torch.uint8)


@pytest.mark.parametrize("noise", [0, 10, 25])
def test_copies_are_warned_of_once(sets: tuple[Path, Tensor], tmp_path: Path, noise: float) -> None:
    dataset = ImageDataset(sets[0])
    check = CopyingCheck(dataset, CopyingConfig())
    preview = preview_of(memorised(dataset.load_all()[0][20:36], noise), tmp_path)
    with pytest.warns(CopyingWarning, match="after 320 images 1[56] of 16 previews are nearly"):
        values = check(preview, PROGRESS)
    assert values["copies"] >= 15 / 16
    assert values["nearest_ratio"] < 0.5
    assert values["nearest_distance"] == pytest.approx(noise / 255, rel=0.5)  # clipped at black
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(preview, PROGRESS)


def test_a_few_copies_among_new_images_are_no_alarm_and_a_third_is(
    sets: tuple[Path, Tensor], tmp_path: Path
) -> None:
    dataset = ImageDataset(sets[0])
    copied = memorised(dataset.load_all()[0], 10)
    check = CopyingCheck(dataset, CopyingConfig())
    values = check(preview_of(torch.cat([copied[:1], sets[1][:15]]), tmp_path), PROGRESS)
    assert 1 / 16 <= values["copies"] < 0.2
    with pytest.warns(CopyingWarning):
        check(preview_of(torch.cat([copied[:6], sets[1][:10]]), tmp_path), PROGRESS)


@pytest.mark.parametrize("number", [6, 60, 1000])
@pytest.mark.parametrize("data", ["fashion", "cifar"])
def test_other_real_images_are_no_copies(
    fashion: ImageDataset, cifar_zip: Path, tmp_path: Path, number: int, data: str
) -> None:
    if data == "fashion":
        images = fashion.load_all()[0]
    else:
        colours = ImageDataset(cifar_zip)
        images = torch.stack([colours[index][0] for index in range(number + 200)])
    np.savez(tmp_path / "set.npz", arr_0=images[:number].permute(0, 2, 3, 1).numpy())
    dataset = ImageDataset(tmp_path / "set.npz", labels=False)
    check = CopyingCheck(dataset, CopyingConfig())
    values = check(preview_of(images[number : number + 200], tmp_path), PROGRESS)
    assert values["copies"] < 0.1
    assert values["nearest_ratio"] == pytest.approx(1, abs=0.3)


def test_duplicates_among_training_images_do_not_hide_copies(
    sets: tuple[Path, Tensor], tmp_path: Path
) -> None:
    images = ImageDataset(sets[0]).load_all()[0]
    twice = torch.cat([images, images[:20]]).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "twice.npz", arr_0=twice)
    check = CopyingCheck(ImageDataset(tmp_path / "twice.npz", labels=False), CopyingConfig())
    with pytest.warns(CopyingWarning, match="16 of 16"):
        check(preview_of(memorised(images[:16], 5), tmp_path), PROGRESS)


@pytest.mark.parametrize("number", [1, 2])
def test_of_one_or_two_images_only_distances_are_told(
    sets: tuple[Path, Tensor], tmp_path: Path, number: int
) -> None:
    images = ImageDataset(sets[0]).load_all()[0][:number]
    np.savez(tmp_path / "few.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    check = CopyingCheck(ImageDataset(tmp_path / "few.npz", labels=False), CopyingConfig())
    values = check(preview_of(sets[1][:4], tmp_path), PROGRESS)
    assert values["nearest_distance"] > 0
    assert "copies" not in values


def test_distances_are_those_of_a_plain_search(sets: tuple[Path, Tensor]) -> None:
    rows, others = pixel_rows(ImageDataset(sets[0]).load_all()[0]), pixel_rows(sets[1])
    found = TrainingImages(rows, 255.0).compare(others)
    plain = torch.cdist(others.double() / 255, rows.double() / 255) / rows.shape[1] ** 0.5
    ordered, order = plain.sort(1)
    torch.testing.assert_close(found.distances, ordered[:, 0])
    assert torch.equal(found.images, order[:, 0])
    torch.testing.assert_close(found.ratios, ordered[:, 0] / ordered[:, 1:13].mean(1))  # 60 / 5


def test_training_images_are_not_their_own_neighbours(sets: tuple[Path, Tensor]) -> None:
    rows = pixel_rows(ImageDataset(sets[0]).load_all()[0])
    found = TrainingImages(rows, 255.0).among_themselves()
    plain = torch.cdist(rows.double() / 255, rows.double() / 255) / rows.shape[1] ** 0.5
    torch.testing.assert_close(found.distances, plain.fill_diagonal_(torch.inf).amin(1))
    many = TrainingImages(torch.randint(256, (PROBES + 500, 4), dtype=torch.uint8), 255.0)
    assert len(many.among_themselves().distances) == PROBES


def test_large_images_are_compared_in_the_large() -> None:
    pixels = torch.randint(256, (2, 3, 4 * SIDE, 4 * SIDE), dtype=torch.uint8)
    rows = pixel_rows(pixels)
    assert rows.shape == (2, 3 * SIDE * SIDE)
    wanted = pixels.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2)).flatten(1)
    torch.testing.assert_close(rows.float(), wanted, atol=0.51, rtol=0)
    small = pixels[..., :8, :8]
    assert torch.equal(pixel_rows(small), small.flatten(1))


def test_the_picture_shows_the_nearest_first(sets: tuple[Path, Tensor], tmp_path: Path) -> None:
    dataset = ImageDataset(sets[0])
    training = dataset.load_all()[0]
    pixels = torch.cat([sets[1][:3], training[7:8]])
    check = CopyingCheck(dataset, CopyingConfig(warn_share=0.9))
    check(preview_of(pixels, tmp_path), PROGRESS)
    picture = np.asarray(Image.open(tmp_path / "000000320-nearest.png").convert("L"))
    tile = np.kron(training[7, 0].numpy(), np.ones((2, 2), np.uint8))  # 32x32 is enlarged to 64
    windows = np.lib.stride_tricks.sliding_window_view(picture, (64, 64))
    found = np.argwhere((windows[..., ::9, ::9] == tile[::9, ::9]).all((2, 3)))
    places = [(row, column) for row, column in found if (windows[row, column] == tile).all()]
    assert len(places) == 2, "the copy and its original"
    (above, left), (below, same) = places
    assert left == same
    assert below > above
    assert left < 64 + 64, "the first column, behind the names of the rows"


def test_a_run_logs_distances_and_draws_pairs(fashion_mnist: Path, tmp_path: Path) -> None:
    data = write_fmnist(fashion_mnist, tmp_path)
    folder = tmp_path / "run"
    trainer_of(data, folder, "bitfit", "output.preview_kimg=0.008").train()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "nearest_distance" in line]
    assert [line["step"] for line in measured] == [2, 4, 6]
    assert all(line["nearest_distance"] > 0 and 0 <= line["copies"] <= 1 for line in measured)
    pictures = sorted(path.name for path in (folder / "previews").iterdir())
    assert pictures == [
        "000000000.png",
        *(f"{images:09d}{end}.png" for images in (8, 16, 24) for end in ("-nearest", "")),
    ]


def test_the_check_can_be_left_out(fashion_mnist: Path, tmp_path: Path) -> None:
    data = write_fmnist(fashion_mnist, tmp_path)
    settings = ("output.preview_kimg=0.024", "copying.check=false")
    trainer_of(data, tmp_path / "run", "bitfit", *settings).train()
    assert "nearest" not in (tmp_path / "run" / "log.jsonl").read_text()
    assert not list((tmp_path / "run" / "previews").glob("*-nearest.png"))


@pytest.mark.parametrize("name", ["ratio", "warn_share"])
def test_shares_lie_between_0_and_1(name: str) -> None:
    with pytest.raises(ConfigError, match=f"copying.{name} must lie between 0 and 1, got 1.5"):
        CopyingConfig(**{name: 1.5})  # type: ignore[arg-type]  # one of two shares

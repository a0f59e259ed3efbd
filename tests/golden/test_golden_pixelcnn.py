"""The checks of PixelCNN's cases: they go by meta.json, and notice what it says wrongly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import HERE, MismatchError, Run, read_case
from golden_kinds import check
from golden_pixelcnnpp import expect_images
from safetensors.torch import load_file, save_file
from torch import Tensor

Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]
MakeCase = Callable[[Edit], Run]


@pytest.fixture
def edited(tmp_path: Path) -> MakeCase:
    """Copies the shipped case of Gated PixelCNN under another name and lets an edit at it."""

    def make(edit: Edit) -> Run:
        folder = tmp_path / "anything"
        shutil.copytree(HERE / "data" / "gated_pixelcnn", folder)
        meta = json.loads((folder / "meta.json").read_text())
        io = load_file(folder / "io.safetensors")
        edit(meta, io)
        (folder / "meta.json").write_text(json.dumps(meta))
        save_file(io, folder / "io.safetensors")
        [run] = read_case(folder).runs()
        return run

    return make


def _later_than(row: int, column: int) -> Edit:
    """Another pixel was changed, and the logits of all pixels behind it in raster order with it."""

    def edit(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        meta["changed_pixel"] = [row, column]
        height, width = io["dependence"].shape
        behind = torch.arange(height * width) > row * width + column
        io["dependence"] = behind.reshape(height, width).to(torch.uint8)

    return edit


@pytest.mark.parametrize("pixel", [(4, 4), (5, 3)])
def test_changed_pixel_is_the_one_told(edited: MakeCase, pixel: tuple[int, int]) -> None:
    check(edited(_later_than(*pixel)))


@pytest.mark.parametrize("left_out", ["changed_pixel", "dependence"])
def test_another_changed_pixel_fails(edited: MakeCase, left_out: str) -> None:
    def edit(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        before = io["dependence"]
        _later_than(5, 3)(meta, io)
        if left_out == "changed_pixel":
            del meta["changed_pixel"]
        else:
            io["dependence"] = before

    with pytest.raises(MismatchError, match="dependence differs"):
        check(edited(edit))


@pytest.mark.parametrize(
    ("ours", "rounded", "fault"),
    [
        (1, 1 + 3e-6, None),  # the official sum of an image in float32
        (1, 1 + 2e-5, "official sum"),
        (1 + 3e-6, 1 + 3e-6, "nats of an image is"),
        (float("nan"), 1, "nats of an image is"),
    ],
)
def test_nats_of_an_image_are_those_of_its_pixels(
    tmp_path: Path, ours: float, rounded: float, fault: str | None
) -> None:
    pixels = 5 + torch.rand(2, 3, 3, dtype=torch.float64)
    (tmp_path / "meta.json").write_text("{}")
    save_file({"nats_per_pixel": pixels}, tmp_path / "io.safetensors")
    told = [float(image.sum()) for image in pixels]
    told[1] *= rounded
    exact = pixels * torch.tensor([1, ours])[:, None, None]
    if fault is None:
        expect_images(read_case(tmp_path), exact, told)
        return
    with pytest.raises(MismatchError, match=fault):
        expect_images(read_case(tmp_path), exact, told)

"""Named resizes against Pillow, PyTorch and the golden tensors of torch-fidelity."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from genlab.errors import UnknownNameError
from genlab.eval.extractors.resize import RESIZES, resize

SIZES = [((32, 32), (299, 299)), ((28, 17), (224, 224)), ((301, 190), (64, 80)), ((9, 9), (9, 20))]


def noise(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)


def by_pillow(channel: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows, then columns, in two calls: which comes first in one depends on Pillow's version."""
    image, (height, width) = Image.fromarray(channel.numpy()), size
    for step in ((width, image.height), (width, height)):
        image = image.resize(step, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image))


def test_tf1_gives_the_tensors_of_torch_fidelity(shared: Path) -> None:
    path = shared / "golden" / "torch_fidelity_custom_extractor" / "io.safetensors"
    if not path.is_file():
        pytest.skip("no case torch_fidelity_custom_extractor among the golden cases")
    tensors = load_file(path)
    cases = sorted(name[:-3] for name in tensors if name.endswith(".in"))
    assert cases == ["resize.0", "resize.1", "resize.2"]
    for case in cases:
        expected = tensors[f"{case}.out"]
        height, width = expected.shape[2:]
        ours = resize(tensors[f"{case}.in"], (height, width), "tf1")
        # Products and interpolation in steps round differently in float32.
        assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_pil_bicubic_is_pillows_bit_for_bit(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    images = noise(*before)
    ours = resize(images, after, "pil-bicubic")
    for image, resized in zip(images.flatten(0, 1), ours.flatten(0, 1), strict=True):
        assert torch.equal(resized, by_pillow(image, after).float())


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 90)] * 4), st.booleans())
def test_pil_bicubic_at_any_size(lengths: tuple[int, int, int, int], extreme: bool) -> None:
    height, width, *after = lengths
    images = noise(height, width, 1)
    if extreme:  # overshoot of the cubic is clipped after each direction
        images = (images > 127).to(torch.uint8) * 255
    ours = resize(images, (after[0], after[1]), "pil-bicubic")
    assert torch.equal(ours[0, 0], by_pillow(images[0, 0], (after[0], after[1])).float())


def test_square_images_are_what_pillow_makes_in_one_call() -> None:
    (image,) = noise(32, 32)[:1, 0]
    once = Image.fromarray(image.numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    ours = resize(image[None, None], (224, 224), "pil-bicubic")
    assert torch.equal(ours[0, 0], torch.from_numpy(np.array(once)).float())


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_clean_is_pillows_on_floats_clipped(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    images = noise(*before)
    ours = resize(images, after, "clean")
    assert ours.min() >= 0
    assert ours.max() <= 255
    for image, resized in zip(images.flatten(0, 1), ours.flatten(0, 1), strict=True):
        expected = by_pillow(image.float(), after).clamp(0, 255)
        # float32 sums of up to 20 terms below 400: a few units in the last place of 255 (3e-5).
        assert torch.allclose(resized, expected, rtol=0, atol=2e-4)


def test_legacy_has_half_pixel_centres() -> None:
    row = torch.tensor([[[[0, 100]]]], dtype=torch.uint8)
    ours = resize(row, (1, 4), "legacy")
    assert torch.allclose(ours, torch.tensor([[[[0.0, 25.0, 75.0, 100.0]]]]), atol=1e-4)


def test_tf1_has_none() -> None:
    row = torch.tensor([[[[0, 100]]]], dtype=torch.uint8)
    ours = resize(row, (1, 4), "tf1")
    assert torch.equal(ours, torch.tensor([[[[0.0, 50.0, 100.0, 100.0]]]]))


@pytest.mark.parametrize("name", RESIZES)
def test_the_same_size_changes_nothing(name: str) -> None:
    images = noise(20, 13)
    assert torch.allclose(resize(images, (20, 13), name), images.float(), atol=1e-4)


@pytest.mark.parametrize("name", RESIZES)
def test_a_flat_image_stays_flat(name: str) -> None:
    flat = torch.full((1, 3, 7, 11), 93, dtype=torch.uint8)
    assert torch.allclose(resize(flat, (30, 5), name), torch.tensor(93.0), atol=1e-3)


@pytest.mark.parametrize("name", ["tf1", "legacy", "clean"])
def test_not_a_number_stays_visible(name: str) -> None:
    images = noise(8, 8).float()
    images[0, 0, 3, 3] = float("nan")
    resized = resize(images, (16, 16), name)
    assert resized[0, 0].isnan().any()
    assert not resized[1].isnan().any()


def test_matrices_are_kept_across_modes() -> None:
    images = noise(10, 10)
    with torch.inference_mode():
        resize(images, (21, 21), "tf1")
    images = images.float().requires_grad_()
    resize(images, (21, 21), "tf1").sum().backward()
    assert images.grad is not None


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'clean'"):
        resize(noise(4, 4), (8, 8), "cleen")

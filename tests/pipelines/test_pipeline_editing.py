"""The pipeline object edits, inpaints, inverts and mixes classes, in diffusers' manner."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import genlab
from genlab import DiffusionGenerator
from genlab.data.pixels import from_uint8
from genlab.errors import ConfigError
from genlab.generators.editing import edit, inpaint, interpolate, invert
from genlab.samplers.editing.interpolation import slerp

PIXELS = np.random.default_rng(1).integers(0, 256, (2, 8, 8), dtype=np.uint8)
IMAGES = from_uint8(torch.from_numpy(PIXELS))[:, None]
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]
MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[:, 3:] = True
FAST = {"schedule": {"num_steps": 3}}


@pytest.fixture(scope="module")
def pipeline(tiny_generator: DiffusionGenerator) -> Any:
    pipeline: Any = genlab.GenLabPipeline.from_generator(tiny_generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline: Any, labels: Any = (0, 2), **options: Any) -> torch.Tensor:
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    labels = list(labels) if isinstance(labels, tuple) else labels
    images = pipeline(
        labels, num_inference_steps=3, generator=seeds, output_type="pt", **options
    ).images
    return 2 * torch.as_tensor(images) - 1


@pytest.mark.parametrize(
    "image",
    [
        PICTURES,
        [picture.convert("RGB") for picture in PICTURES],
        PIXELS[..., None].astype(np.float32) / 255,
        IMAGES / 2 + 0.5,
    ],
    ids=["grey", "rgb", "numpy", "torch"],
)
def test_images_in_every_form(
    pipeline: Any, tiny_generator: DiffusionGenerator, image: Any
) -> None:
    expected = edit(tiny_generator, IMAGES, range(2), [0, 2], FAST, strength=0.5)
    drawn = call(pipeline, image=image, strength=0.5)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(MASK.numpy().astype(np.uint8) * 255),
        MASK.float().numpy(),
        MASK[None, None].float(),
        MASK.float().expand(2, 1, 8, 8),
    ],
    ids=["picture", "numpy", "torch", "one-each"],
)
def test_masks_in_every_form(pipeline: Any, tiny_generator: DiffusionGenerator, mask: Any) -> None:
    expected = inpaint(tiny_generator, IMAGES, MASK, range(2), [0, 2], FAST, resample=2)
    drawn = call(pipeline, image=PICTURES, mask_image=mask, edit={"resample": 2})
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn[..., :3], IMAGES[..., :3])


def test_one_image_for_all(pipeline: Any, tiny_generator: DiffusionGenerator) -> None:
    both = IMAGES[[0, 0]]
    expected = edit(tiny_generator, both, range(2), [0, 2], FAST, strength=0.5)
    drawn = call(pipeline, image=PICTURES[0], strength=0.5)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=0)


def test_latents_of_images_and_back(pipeline: Any, tiny_generator: DiffusionGenerator) -> None:
    latents = pipeline.invert(PICTURES, [0, "Ankle boot"], num_inference_steps=3)
    expected = invert(tiny_generator, IMAGES, [0, 2], FAST)
    torch.testing.assert_close(latents, expected)
    drawn = call(pipeline, latents=latents)
    whole = edit(tiny_generator, IMAGES, range(2), [0, 2], FAST, invert=True, source_labels=[0, 2])
    torch.testing.assert_close(drawn, whole, atol=1e-3, rtol=0)  # the latents are float32


def test_classes_mix_by_weights(pipeline: Any, tiny_generator: DiffusionGenerator) -> None:
    frames = interpolate(tiny_generator, [0, 1], [0, 2], 3, FAST)
    start, end = (
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    between = slerp(start, end, torch.tensor([0.5]))
    weights = torch.tensor([[0.5, 0.0, 0.5]])
    drawn = pipeline(weights, 3, latents=between, output_type="pt").images
    torch.testing.assert_close(2 * drawn - 1, frames[1:2], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "strength has no effect without image"),
        ({"mask_image": MASK.float()}, "mask_image has no effect without image"),
        ({"image": PICTURES}, "how much of the images is to be drawn anew"),
        ({"image": PICTURES * 2, "strength": 1.0}, "image 4"),
        ({"image": IMAGES[..., :4] / 2 + 0.5, "strength": 1.0}, "edits images of shape"),
        ({"image": "a picture", "strength": 1.0}, "image and mask_image: "),
        ({"image": PICTURES, "edit": {"resampel": 2}}, "no setting 'resampel'.*resample"),
        ({"labels": torch.ones(2, 4)}, "one for each of 3 classes"),
    ],
)
def test_what_makes_no_sense_is_refused(
    pipeline: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        call(pipeline, **options)

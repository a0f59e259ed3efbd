"""Editing by diffusion models: image-to-image, inpainting, inversion and interpolation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_autoencoder import tiny_kl
from torch import Tensor

import genlab
from genlab import DiffusionGenerator
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.preconditioning import EDM
from genlab.errors import ConfigError, LabelError
from genlab.generators.editing import (
    Editing,
    Interpolation,
    check_masks,
    edit,
    inpaint,
    interpolate,
    invert,
)
from genlab.networks import ADMUNet, SongUNet
from genlab.samplers.editing.options import Edit

IMAGES = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[4:] = True
SEEDS = [5, 6, 7]
FAST: dict[str, Any] = {"schedule": {"num_steps": 3}}


def small_unet(channels: int, size: int, classes: int = 3) -> SongUNet:
    torch.manual_seed(1)
    network = SongUNet(
        size, channels, channels, label_dim=classes, model_channels=8, channel_mult=[1, 1],
        num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def latent_generator() -> DiffusionGenerator:
    return DiffusionGenerator(small_unet(2, 4), EDM(), autoencoder=tiny_kl(), has_null_class=True)


def test_image_batches_do_not_decide(tiny_generator: DiffusionGenerator) -> None:
    for options in ({"strength": 0.5}, {"start_sigma": 2.0}, {"invert": True}):
        together, alone = (
            edit(tiny_generator, IMAGES, SEEDS, [0, 1, 2], FAST, batch_size, **options)
            for batch_size in (3, 1)
        )
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    masked = [
        inpaint(tiny_generator, IMAGES, MASK, SEEDS, [0, 1, 2], FAST, size, resample=2)
        for size in (3, 1)
    ]
    torch.testing.assert_close(*masked, atol=2e-5, rtol=0)


def test_the_image_the_class_and_the_seed_decide(tiny_generator: DiffusionGenerator) -> None:
    def drawn(images: Tensor = IMAGES, seeds: Any = SEEDS, labels: Any = (0, 1, 2)) -> Tensor:
        return edit(tiny_generator, images, seeds, labels, FAST, strength=0.4)

    reference = drawn()
    for other in (
        drawn(images=IMAGES.flip(0)),
        drawn(seeds=[5, 8, 7]),
        drawn(labels=(0, 2, 2)),
    ):
        changed = (other != reference).flatten(1).any(1).tolist()
        assert changed[1] or changed[0]
        assert not all(changed)


def test_what_is_kept_is_kept_to_the_bit(tiny_generator: DiffusionGenerator) -> None:
    masks = torch.stack([MASK, ~MASK, MASK.T])
    drawn = inpaint(tiny_generator, IMAGES, masks, SEEDS, sampler=FAST, resample=2)
    kept = ~masks[:, None]
    assert torch.equal(drawn[kept], IMAGES[kept])
    assert (drawn != IMAGES)[~kept].float().mean() > 0.9
    one = inpaint(tiny_generator, IMAGES, MASK, SEEDS, sampler=FAST, resample=2)
    assert torch.equal(one[0], drawn[0])


def test_latent_models_edit_through_their_autoencoder(
    latent_generator: DiffusionGenerator,
) -> None:
    mask = MASK.clone()
    mask[3, :] = True  # cuts a latent in two: it is drawn, its upper pixels are kept nevertheless
    drawn = inpaint(latent_generator, IMAGES, mask, SEEDS, sampler=FAST, resample=2)
    assert drawn.shape == IMAGES.shape
    assert torch.equal(drawn[..., :3, :], IMAGES[..., :3, :])
    little, much = (
        edit(latent_generator, IMAGES, SEEDS, [0] * 3, FAST, start_sigma=sigma)
        for sigma in (0.01, 20.0)
    )
    decoded = latent_generator.decode(latent_generator.encode(IMAGES)).clamp(-1, 1)
    assert (little - decoded).abs().mean() < 0.1 * (much - decoded).abs().mean()
    latents = invert(latent_generator, IMAGES, sampler=FAST)
    assert latents.shape == (3, 2, 4, 4)


def test_evaluations_of_inversion_count(tiny_generator: DiffusionGenerator) -> None:
    made = Editing(tiny_generator, IMAGES, SEEDS, Edit(invert=True))
    sampler = made.build_sampler({"schedule": {"num_steps": 4}}, guidance_scale=2.0)
    [batch] = made.stream(SEEDS, [0, 1, 2], sampler)
    # The start and two for each of three steps up; two branches for seven evaluations down.
    assert batch.nfe == 7 + 14


@pytest.mark.parametrize("name", ["edm-fmnist", "dit-fmnist"])
def test_a_round_trip_of_real_images(name: str, fashion_mnist: Path) -> None:
    """Heun with 20 steps comes back to within a grey level or two (RMSE 0.0012 and 0.0017 of 1)."""
    generator = genlab.load(name)
    assert isinstance(generator, DiffusionGenerator)
    data = ImageDataset(fashion_mnist, 32, 1, fit="pad", split="test")
    images = from_uint8(torch.stack([data[row][0] for row in range(2)]))
    labels = data.source.labels
    assert labels is not None
    classes = labels[:2].tolist()
    errors = []
    for steps in (8, 20):
        sampler = generator.build_sampler(num_steps=steps, guidance_scale=1.0)
        latents = invert(generator, images, classes, sampler)
        with torch.no_grad():
            noise = generator.noise([0, 0])
            *_, last = generator.steps(noise, classes, sampler, latents)
        errors.append(float(((last.x - images) / 2).square().mean().sqrt()))
    assert errors[1] < 0.004
    assert errors[1] < 0.3 * errors[0]


def test_latents_need_a_class_where_there_is_no_null_class() -> None:
    generator = DiffusionGenerator(small_unet(1, 8), EDM())
    with pytest.raises(LabelError, match="inversion needs the classes of the images"):
        invert(generator, IMAGES, sampler=FAST)
    assert invert(generator, IMAGES, [0, 1, 2], FAST).isfinite().all()
    # Edited images are then inverted as what they are drawn as.
    same = edit(generator, IMAGES, SEEDS, [0, 1, 2], FAST, invert=True)
    told = edit(generator, IMAGES, SEEDS, [0, 1, 2], FAST, invert=True, source_labels=[0, 1, 2])
    assert torch.equal(same, told)


def test_interpolation_meets_its_ends(tiny_generator: DiffusionGenerator) -> None:
    for sampler in (FAST, {"solver": "euler-ancestral", **FAST}):
        frames = interpolate(tiny_generator, [3, 7, 4], [0, 2, 1], 5, sampler)
        alone = tiny_generator.sample([3, 7, 4], [0, 2, 1], sampler)
        torch.testing.assert_close(frames[::2], alone, atol=2e-5, rtol=0)
        one_by_one = interpolate(tiny_generator, [3, 7, 4], [0, 2, 1], 5, sampler, 1)
        torch.testing.assert_close(frames, one_by_one, atol=2e-5, rtol=0)
    own = interpolate(tiny_generator, [3, 7], frames=2, sampler=FAST)
    torch.testing.assert_close(own, tiny_generator.sample([3, 7], sampler=FAST), atol=2e-5, rtol=0)


def test_frames_are_spread_evenly(tiny_generator: DiffusionGenerator) -> None:
    made = Interpolation(tiny_generator, [3, 3, 9], [0, 1, 1], 9)
    assert [made.place(frame) for frame in range(9)] == [
        (0, 0.0), (0, 0.25), (0, 0.5), (0, 0.75),
        (1, 0.0), (1, 0.25), (1, 0.5), (1, 0.75), (1, 1.0),
    ]  # fmt: skip
    assert made.nearest_labels() == (0, 0, 1, 1, 1, 1, 1, 1, 1)
    assert made.inputs([1])["class_weights"].tolist() == [[0.75, 0.25, 0.0]]


def test_interpolation_of_real_images_goes_by_their_latents(
    tiny_generator: DiffusionGenerator,
) -> None:
    latents = torch.randn(2, 1, 8, 8)
    frames = interpolate(tiny_generator, [0, 0], [1], 3, FAST, latents=latents)
    sampler = tiny_generator.build_sampler(FAST)
    with torch.no_grad():
        *_, ends = tiny_generator.steps(tiny_generator.noise([0, 0]), [1, 1], sampler, latents)
    torch.testing.assert_close(frames[::2], ends.x.float().clamp(-1, 1), atol=2e-5, rtol=0)


def test_identities_tell_edits_apart(tiny_generator: DiffusionGenerator) -> None:
    made = [
        Editing(tiny_generator, IMAGES, SEEDS, Edit(strength=0.5)),
        Editing(tiny_generator, IMAGES, SEEDS, Edit(strength=0.6)),
        Editing(tiny_generator, IMAGES.flip(0), SEEDS, Edit(strength=0.5)),
        Editing(tiny_generator, IMAGES, SEEDS, Edit(strength=0.5), masks=MASK),
        Editing(tiny_generator, IMAGES, SEEDS, Edit(strength=0.5), masks=~MASK),
        Editing(tiny_generator, IMAGES, SEEDS, Edit(strength=0.5), source_labels=[0, 1, 2]),
        Interpolation(tiny_generator, [0, 1], [0], 4),
        Interpolation(tiny_generator, [0, 1], [0], 5),
        Interpolation(tiny_generator, [0, 2], [0], 4),
        Interpolation(tiny_generator, [0, 1], [1], 4),
    ]
    identities = [repr(each.identity()) for each in made]
    assert len(set(identities)) == len(identities)


def test_what_does_not_fit_is_refused(tiny_generator: DiffusionGenerator) -> None:
    def editing(images: Tensor = IMAGES, seeds: Any = SEEDS, **options: Any) -> Editing:
        return Editing(tiny_generator, images, seeds, Edit(strength=0.5), **options)

    for message, make in (
        (
            "edits images of shape \\(1, 8, 8\\), got \\(3, 8, 8\\)",
            lambda: editing(IMAGES[:, [0] * 3]),
        ),
        ("3 images for 2 seeds", lambda: editing(seeds=[0, 1])),
        ("a seed that stands twice", lambda: editing(seeds=[0, 1, 1])),
        ("for each pixel of 8x8, got \\(4, 8\\)", lambda: check_masks(MASK[:4], 3, (1, 8, 8))),
        ("one for each of 3", lambda: editing(masks=torch.stack([MASK, MASK]))),
        ("a mask draws no pixel", lambda: editing(masks=torch.zeros_like(MASK))),
        ("at least two seeds", lambda: Interpolation(tiny_generator, [1], None, 4)),
        ("at least two frames", lambda: Interpolation(tiny_generator, [1, 2], None, 1)),
        (
            "latents of 2 samples",
            lambda: Interpolation(tiny_generator, [1, 2], None, 4, latents=torch.zeros(2, 1, 4, 4)),
        ),
        (
            "leave strength and start_sigma out",
            lambda: invert(tiny_generator, IMAGES, strength=0.5),
        ),
        (
            "deterministic sampler",
            lambda: invert(tiny_generator, IMAGES, sampler={"solver": {"S_churn": 9}}),
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    with pytest.raises(LabelError, match="class 3 is out of range"):
        editing(source_labels=[0, 1, 3])
    with pytest.raises(LabelError, match="2 labels for 3 seeds"):
        Interpolation(tiny_generator, [1, 2, 3], [0, 1], 4)


def test_super_resolution_models_edit_nothing() -> None:
    network = ADMUNet(
        8, 3, 3, 2, model_channels=32, channel_mult=[1], num_blocks=1, num_head_channels=32,
        super_resolution=True,
    )  # fmt: skip
    generator = DiffusionGenerator(network.eval(), Discrete(T=50))
    with pytest.raises(ConfigError, match="draws from small images and edits none"):
        Editing(generator, torch.zeros(1, 3, 8, 8), [0], Edit(strength=0.5))

"""Images at rest and images as they are drawn, behind one interface."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_autoencoder import tiny_kl

from genlab import DiffusionGenerator
from genlab.data.pixels import to_uint8
from genlab.data.writing.writers import write_npz
from genlab.diffusion.preconditioning import EDM
from genlab.errors import DataError, SamplingError
from genlab.eval.samples import GeneratedImages, StoredImages
from genlab.files import content_sha256
from genlab.networks import SongUNet


def folder_of(path: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> Path:
    generator = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        target = path / f"class{number % 2}" / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return path


def test_a_folder_of_grey_images_reads_as_rgb(tmp_path: Path) -> None:
    images = StoredImages(folder_of(tmp_path, [(6, 6)] * 4, "L"))
    assert (images.count, images.image_shape) == (4, (1, 6, 6))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.class_names == ("class0", "class1")
    drawn = images.read(1, 3)
    assert drawn.images.shape == (2, 3, 6, 6)
    assert torch.equal(drawn.images[:, 0], drawn.images[:, 2])
    assert drawn.nfe == 0


def test_mixed_sizes_are_refused_by_name(tmp_path: Path) -> None:
    images = StoredImages(folder_of(tmp_path, [(6, 6), (6, 6), (7, 6)]))
    with pytest.raises(DataError, match=r"1\.png has shape 3x6x7|2\.png has shape|has shape 3x6x7"):
        images.read(0, 3)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        StoredImages(tmp_path)


def test_identity_follows_the_content(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", [(6, 6)] * 3)
    same = folder_of(tmp_path / "b", [(6, 6)] * 3)
    assert content_sha256(first) == content_sha256(same)
    (same / "class0" / "0.png").write_bytes((same / "class0" / "2.png").read_bytes())
    assert content_sha256(first) != content_sha256(same)
    assert StoredImages(first).identity() != StoredImages(first, 8, "pad").identity()


def test_an_npz_of_images(tmp_path: Path) -> None:
    pixels = [np.full((4, 4, 3), value, np.uint8) for value in (1, 2, 3)]
    write_npz(tmp_path / "images.npz", iter(pixels), (3, 4, 4, 3), [2, 0, 1])
    images = StoredImages(tmp_path / "images.npz")
    assert images.read(0, 3).images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 1]


def test_a_generator_draws_what_sample_draws(tiny_generator: DiffusionGenerator) -> None:
    sampler = tiny_generator.build_sampler(num_steps=2)
    images = GeneratedImages(tiny_generator, range(5, 11), [0, 1, 2, 0, 1, 2], sampler)
    whole = tiny_generator.sample(range(5, 11), [0, 1, 2, 0, 1, 2], sampler)
    drawn = images.read(2, 4)
    assert torch.equal(drawn.images[:, 0], to_uint8(whole[2:4, 0]))
    assert drawn.nfe == 3
    assert drawn.seconds > 0


def test_smaller_images_are_centred_on_black(tiny_generator: DiffusionGenerator) -> None:
    sampler = tiny_generator.build_sampler(num_steps=2)
    plain = GeneratedImages(tiny_generator, range(2), [0, 1], sampler)
    framed = GeneratedImages(tiny_generator, range(2), [0, 1], sampler, image_size=12)
    images = framed.read(0, 2).images
    assert framed.image_shape == (1, 12, 12)
    assert torch.equal(images[:, :, 2:-2, 2:-2], plain.read(0, 2).images)
    assert images.sum() == images[:, :, 2:-2, 2:-2].sum()
    assert framed.identity() != plain.identity()


def test_stored_images_at_another_size(tmp_path: Path) -> None:
    images = StoredImages(folder_of(tmp_path, [(6, 6)] * 3))
    framed = images.at(8, "pad")
    assert framed.image_shape == (3, 8, 8)
    assert torch.equal(framed.at(6).read(0, 3).images, images.read(0, 3).images)
    with pytest.raises(DataError, match="not 5x5"):
        images.at(5)


def test_images_that_are_not_finite_are_named(
    tiny_generator: DiffusionGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = GeneratedImages(tiny_generator, [7, 8], [0, 1], tiny_generator.sampler)
    draw = tiny_generator.draw

    def broken(*args: object) -> object:
        batch = draw(*args)  # type: ignore[arg-type]
        batch.images[1, 0, 0, 0] = float("nan")
        return batch

    monkeypatch.setattr(tiny_generator, "draw", broken)
    with pytest.raises(SamplingError, match="first seed 8"):
        images.read(0, 2)


def test_identity_follows_seeds_labels_sampler_and_weights(
    tiny_generator: DiffusionGenerator,
) -> None:
    def identity(seeds: range, labels: list[int], **sampler: object) -> dict[str, object]:
        built = tiny_generator.build_sampler(sampler)
        return GeneratedImages(tiny_generator, seeds, labels, built).identity()

    base = identity(range(3), [0, 1, 2])
    assert base == identity(range(3), [0, 1, 2])
    assert base != identity(range(1, 4), [0, 1, 2])
    assert base != identity(range(3), [0, 1, 1])
    assert base != identity(range(3), [0, 1, 2], solver={"name": "euler"})


def test_identity_follows_an_autoencoder_s_scale() -> None:
    network = SongUNet(4, 2, 2, model_channels=8, channel_mult=[1], num_blocks=1,
                       attn_resolutions=[])  # fmt: skip
    made = [
        DiffusionGenerator(network, EDM(), autoencoder=tiny_kl(scaling_factor=scale))
        for scale in (0.5, 0.25)
    ]
    one, other = (GeneratedImages(g, [0], None, g.sampler).identity() for g in made)
    assert one != other
    assert one["weights_sha256"] == other["weights_sha256"]

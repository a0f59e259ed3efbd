"""The autoregressive family as a generator: seeds, likelihoods, in-painting, files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import genlab
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.data.writing.writers import write_npz
from genlab.errors import CheckpointError, ConfigError, LabelError, UnknownNameError
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import evaluate
from genlab.eval.subject import Subject
from genlab.generators import AutoregressiveGenerator
from genlab.networks.gated_pixelcnn import GatedPixelCNN
from genlab.samplers.autoregressive.base import DECODERS


def tiny_network(size: int = 8, label_dim: int = 3, num_levels: int = 256) -> GatedPixelCNN:
    network = GatedPixelCNN(
        size, 1, label_dim, num_levels, channels=6, num_layers=2, first_kernel=5, head_channels=8
    )
    for parameter in network.parameters():  # biases begin at 0
        torch.nn.init.normal_(parameter, std=0.5)
    return network.eval()


@pytest.fixture
def generator() -> AutoregressiveGenerator:
    return AutoregressiveGenerator(tiny_network(), has_null_class=True)


@pytest.fixture
def real(fashion_mnist: Path) -> tuple[Tensor, list[int]]:
    """A few test images with classes in 0 ... 2."""
    pixels, labels = ImageDataset(fashion_mnist, split="test").load_all()
    few = (labels < 3).nonzero()[:4, 0]
    return from_uint8(pixels[few]), labels[few].tolist()


def test_a_seed_gives_the_same_image_in_any_batch(generator: AutoregressiveGenerator) -> None:
    images = generator.sample(range(5), sampler={"guidance_scale": 1.5})
    assert images.shape == (5, 1, 8, 8)
    assert torch.equal(generator.sample([3], sampler={"guidance_scale": 1.5}), images[3:4])
    again = generator.sample(range(5), batch_size=2, sampler={"guidance_scale": 1.5})
    assert torch.equal(again, images)
    assert (images[0] != images[1]).any()


def test_evaluations_are_those_of_the_network_on_whole_images(
    generator: AutoregressiveGenerator,
) -> None:
    (plain,) = generator.stream(range(3))
    (guided,) = generator.stream(range(3), sampler={"guidance_scale": 2})
    assert (plain.nfe, guided.nfe) == (1, 2)


def test_temperature_zero_draws_the_most_likely_levels(generator: AutoregressiveGenerator) -> None:
    images = generator.sample([0, 1], [2, 2], {"temperature": 0})
    assert torch.equal(images[0], images[1])
    with torch.no_grad():
        best = generator.network(images, torch.tensor([2, 2])).argmax(1, keepdim=True)
    assert torch.equal(best.float() / 127.5 - 1, images)


def test_guidance_needs_a_null_class_and_changes_images(generator: AutoregressiveGenerator) -> None:
    plain, guided = (generator.sample([0], [1], {"guidance_scale": s}) for s in (1, 4))
    assert (plain != guided).any()
    assert (plain == generator.sample([0], [1])).all()
    without = AutoregressiveGenerator(generator.network)
    with pytest.raises(ConfigError, match=r"guidance_scale=4 needs a model with a null class"):
        without.sample([0], [1], {"guidance_scale": 4})


def test_settings_of_other_families_are_refused(generator: AutoregressiveGenerator) -> None:
    with pytest.raises(ConfigError, match="no setting 'solver'; known: decoder"):
        generator.build_sampler({"solver": {"name": "heun"}})
    with pytest.raises(ConfigError, match="no setting 'solver'"):
        generator.build_sampler("edm-heun")
    with pytest.raises(ConfigError, match="no number of steps"):
        generator.build_sampler(num_steps=18)
    with pytest.raises(ConfigError, match="temperature must be at least 0, got -1"):
        generator.build_sampler({"temperature": -1})
    with pytest.raises(UnknownNameError, match="no decoder 'cashed'; did you mean 'cached'"):
        generator.build_sampler({"decoder": {"name": "cashed"}})
    with pytest.raises(ConfigError, match="no setting 'speed'"):
        generator.build_sampler({"decoder": {"name": "cached", "speed": 2}})


def test_the_sampler_is_told_in_words(generator: AutoregressiveGenerator) -> None:
    sampler = generator.build_sampler({"temperature": 0.9}, guidance_scale=2)
    assert generator.describe_sampler(sampler) == "cached decoding, temperature 0.9, guidance 2"
    assert generator.describe_sampler(generator.sampler) == "cached decoding"


def test_a_uniform_model_pays_exactly_8_bits(real: tuple[Tensor, list[int]]) -> None:
    network = tiny_network(28)
    for parameter in network.output_conv.parameters():
        torch.nn.init.zeros_(parameter)
    bits = AutoregressiveGenerator(network).bits_per_dimension(*real)
    assert bits.tolist() == pytest.approx([8] * 4, rel=1e-6)


def test_bits_are_those_of_the_probabilities_of_drawing_the_image(
    generator: AutoregressiveGenerator,
) -> None:
    """The chain rule, pixel by pixel, with the decoder that samples use."""
    (image,) = generator.sample([7], [1])
    decoder = generator.network.decoder(torch.tensor([1]), 8, 8)
    nats = 0.0
    with torch.no_grad():
        for i in range(8):
            for j in range(8):
                level = round(float(image[0, i, j] + 1) * 127.5)
                nats -= float(decoder.params(i, j).double().log_softmax(1)[0, level])
                decoder.put(i, j, image[None, :, i, j])
    expected = nats / (np.log(2) * 64)
    bits = generator.bits_per_dimension(image[None], [1])
    assert float(bits) == pytest.approx(expected, rel=1e-5)


def test_codes_stay_apart_in_half_precision() -> None:
    generator = AutoregressiveGenerator(tiny_network(num_levels=512))
    codes = generator.sample([0, 1], [0, 1])
    bits = generator.bits_per_dimension(codes, [0, 1])
    generator.to(dtype=torch.bfloat16)
    assert generator.bits_per_dimension(codes, [0, 1]) == pytest.approx(bits, rel=1e-2)


def test_likelihoods_need_classes_or_a_null_class(generator: AutoregressiveGenerator) -> None:
    images = generator.sample([0, 1])
    null = generator.bits_per_dimension(images)
    assert (null != generator.bits_per_dimension(images, [0, 0])).all()
    without = AutoregressiveGenerator(generator.network)
    with pytest.raises(LabelError, match="needs classes: give one of 3 for each image"):
        without.bits_per_dimension(images)
    with pytest.raises(LabelError, match="class 3 is out of range"):
        generator.bits_per_dimension(images, [0, 3])
    with pytest.raises(ConfigError, match=r"images of shape \(1, 8, 8\), got \(3, 8, 8\)"):
        generator.bits_per_dimension(images.expand(-1, 3, -1, -1))


def test_the_evaluation_gives_the_mean_of_the_generators_bits(
    real: tuple[Tensor, list[int]], tmp_path: Path
) -> None:
    images, labels = real
    generator = AutoregressiveGenerator(tiny_network(28))
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, labels)
    config = EvalConfig(
        metrics=["bpd"], reference=str(tmp_path / "real.npz"), extractor="cnn-fmnist"
    )
    record = evaluate(Subject(name="tiny", generator=generator), config)
    assert record is not None
    expected = float(generator.bits_per_dimension(images, labels).double().mean())
    assert record.scores["bpd"].value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sampler", [{"temperature": 0.7}, {"guidance_scale": 2.0}])
def test_every_decoder_draws_and_completes_the_same_images(
    generator: AutoregressiveGenerator, sampler: dict[str, float]
) -> None:
    drawn, completed = [], []
    given = generator.sample([8, 9])
    for name in DECODERS:
        settings = {"decoder": {"name": name}, **sampler}
        drawn.append(generator.sample([0, 1], [0, 2], settings))
        completed.append(generator.complete(given, 5, [0, 1], [0, 2], settings))
    assert len(drawn) == 3
    for images in (drawn, completed):
        assert all(torch.equal(each, images[0]) for each in images)
    assert torch.equal(completed[0][:, :, :5], given[:, :, :5])
    assert (completed[0][:, :, 5:] != given[:, :, 5:]).any()


@pytest.mark.parametrize("mode", ["rows", "mask"])
def test_completed_images_keep_their_pixels_and_differ_elsewhere(
    real: tuple[Tensor, list[int]], mode: str
) -> None:
    images, labels = real[0][:, :, 8:20, 8:20], real[1]
    generator = AutoregressiveGenerator(tiny_network(12))
    keep = torch.zeros(12, 12, dtype=torch.bool)
    keep[:5] = True
    keep[5, :3] = mode == "mask"
    given = 5 if mode == "rows" else keep
    done = generator.complete(images, given, range(4), labels)
    assert torch.equal(done[..., keep], images[..., keep])
    assert (done[..., ~keep] != images[..., ~keep]).flatten(1).any(1).all()
    # The same for any batch size, and a seed decides what is drawn.
    assert torch.equal(generator.complete(images, given, range(4), labels, batch_size=3), done)
    other = generator.complete(images, given, range(4, 8), labels)
    assert (done != other).flatten(1).any(1).all()
    # What the images show where nothing is kept is not looked at.
    blank = images.masked_fill(~keep, -1.0)
    assert torch.equal(generator.complete(blank, given, range(4), labels), done)


def test_what_is_drawn_follows_what_is_kept(generator: AutoregressiveGenerator) -> None:
    images = generator.sample([0])
    whole = generator.sample([5], [1])
    # Keeping what the seed would have drawn changes nothing below.
    assert torch.equal(generator.complete(whole, 3, [5], [1]), whole)
    assert (generator.complete(images, 3, [5], [1])[..., 3:, :] != whole[..., 3:, :]).any()


def test_kept_pixels_are_exact_in_half_precision(generator: AutoregressiveGenerator) -> None:
    images = generator.sample([0])
    generator.to(dtype=torch.bfloat16)
    done = generator.complete(images, 4, [1])
    assert torch.equal(done[..., :4, :], images[..., :4, :])


def test_nonsense_completions_are_refused(generator: AutoregressiveGenerator) -> None:
    images = generator.sample([0, 1])
    with pytest.raises(ConfigError, match="1 to 7 can be kept, got keep=8"):
        generator.complete(images, 8, [0, 1])
    with pytest.raises(ConfigError, match="2 images for 1 seeds"):
        generator.complete(images, 4, [0])
    with pytest.raises(ConfigError, match="a seed that stands twice"):
        generator.complete(images, 4, [1, 1])
    with pytest.raises(ConfigError, match="keeps every pixel or none"):
        generator.complete(images, torch.ones(8, 8, dtype=torch.bool), [0, 1])
    with pytest.raises(ConfigError, match="for each of 8x8 pixels"):
        generator.complete(images, torch.ones(4, 8, dtype=torch.bool), [0, 1])


def test_a_fresh_process_draws_the_same_bits(
    generator: AutoregressiveGenerator, tmp_path: Path
) -> None:
    named = generator.changed(class_names=["a", "b", "c"], sampler={"temperature": 0.8})
    named.save_pretrained(tmp_path / "model")
    loaded = genlab.load(tmp_path / "model")
    assert loaded.metadata() == named.metadata()
    script = (
        "import sys, torch, genlab; torch.set_num_threads(1)\n"
        "g = genlab.load(sys.argv[1]); torch.save(g.sample(range(3)), sys.argv[2])"
    )
    made = tmp_path / "images.pt"
    subprocess.run([sys.executable, "-c", script, tmp_path / "model", made], check=True)
    assert torch.equal(torch.load(made), named.sample(range(3)))


def test_another_family_is_not_read(generator: AutoregressiveGenerator, tiny_model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no autoregressive model but .* 'diffusion'"):
        AutoregressiveGenerator.from_pretrained(tiny_model)

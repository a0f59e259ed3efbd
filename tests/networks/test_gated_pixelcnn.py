"""Gated PixelCNN: what depends on what, probabilities, and decoding pixel by pixel."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.errors import ConfigError, LabelError
from genlab.networks.gated_pixelcnn import GatedPixelCNN
from genlab.networks.layers.categorical import Categorical, from_levels, to_levels


def network(label_dim: int = 3, num_levels: int = 256) -> GatedPixelCNN:
    built = GatedPixelCNN(
        7, 1, label_dim, num_levels, channels=6, num_layers=3, first_kernel=5, head_channels=8
    )
    for parameter in built.parameters():  # biases begin at 0
        torch.nn.init.normal_(parameter, std=0.4)
    return built.eval()


def images(count: int, height: int = 7, width: int = 7, num_levels: int = 256) -> Tensor:
    return from_levels(torch.randint(num_levels, (count, 1, height, width)), num_levels)


@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (6, 6)])
def test_a_pixel_depends_on_no_later_one_by_gradient(pixel: tuple[int, int]) -> None:
    net, (i, j) = network(), pixel
    embedded: list[Tensor] = []

    def keep(module: object, args: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    net.embedding.register_forward_hook(keep)
    net(images(2), torch.tensor([0, 1]))[:, :, i, j].square().sum().backward()
    assert embedded[0].grad is not None
    felt = embedded[0].grad.abs().sum((0, 3)).flatten() > 0  # (H * W,)
    place = i * 7 + j
    assert not felt[place:].any()
    # No blind spot: what lies within the reach of 3 layers (2 + 1 + 1) is all felt.
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
    near = (i - rows <= 4) & ((columns - j).abs() <= 4)
    before = torch.arange(49) < place
    assert torch.equal(felt, near.flatten() & before)


@pytest.mark.parametrize("labels", [[0, 2], [-1, 1]])
def test_pixel_by_pixel_decoding_gives_the_parameters_of_the_whole_image(labels: list[int]) -> None:
    net, x = network().double(), images(2, 5, 9)
    with torch.no_grad():
        whole = net(x, torch.tensor(labels))
        decoder = net.decoder(torch.tensor(labels), 5, 9)
        for i in range(5):
            for j in range(9):
                assert torch.allclose(decoder.params(i, j), whole[:, :, i, j], atol=1e-12)
                decoder.put(i, j, x[:, :, i, j])


def test_probabilities_of_all_levels_sum_to_one() -> None:
    net = network()
    x = images(2)
    with torch.no_grad():
        params = net(x, torch.tensor([0, 1]))
    levels = from_levels(torch.arange(256), 256)
    each = [net.distribution.log_prob(params, level.expand_as(x)) for level in levels]
    assert torch.stack(each).exp().sum(0) == pytest.approx(1, abs=1e-5)


def test_levels_are_the_8_bit_pixels_of_real_images(fashion_mnist: Path) -> None:
    pixels = ImageDataset(fashion_mnist).load_all()[0][:64]
    assert torch.equal(to_levels(from_uint8(pixels), 256), pixels.long())
    assert torch.equal(from_levels(pixels.long(), 256), from_uint8(pixels))


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()
    count = 10_000
    uniforms = ((torch.arange(count) + 0.5) / count)[:, None]
    drawn = to_levels(Categorical(4).sample(logits.expand(count, 4), uniforms), 4)
    assert drawn[:, 0].bincount().tolist() == pytest.approx([5000, 0, 3000, 2000], abs=1)
    assert drawn[:, 0].diff().min() >= 0  # the inverse of the distribution function
    coldest = Categorical(4).sample(logits.expand(count, 4), uniforms, temperature=0)
    assert coldest.eq(-1).all()


def test_neighbouring_codes_stay_apart_in_half_precision() -> None:
    codes = torch.arange(512)
    logits = torch.nn.functional.one_hot(codes, 512).bfloat16()
    for temperature in (0.0, 1e-3):
        drawn = Categorical(512).sample(logits, torch.full((512, 1), 0.5), temperature)
        assert torch.equal(to_levels(drawn, 512)[:, 0], codes)


def test_guidance_is_linear_in_the_logits() -> None:
    a, b = torch.randn(2, 1, 4)
    assert torch.allclose(Categorical(4).guide(a, b, 1.0), a)
    assert torch.allclose(Categorical(4).guide(a, b, 3.0), a + 2 * (a - b), atol=1e-6)


def test_the_null_class_is_no_class() -> None:
    net, x = network(), images(2)
    assert torch.equal(net(x), net(x, torch.tensor([-1, -1])))
    assert not torch.equal(net(x), net(x, torch.tensor([0, -1])))
    bare = network(label_dim=0)
    assert bare(x).shape == (2, 256, 7, 7)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="one channel, got 3; take grey images"):
        GatedPixelCNN(8, 3)
    with pytest.raises(ConfigError, match=r"odd and at least 3, got \[4, 3\]"):
        GatedPixelCNN(8, first_kernel=4)
    with pytest.raises(ConfigError, match="num_levels must be at least 2"):
        GatedPixelCNN(8, num_levels=1)
    with pytest.raises(LabelError, match=r"0 \.\.\. 2"):
        network()(images(1), torch.tensor([3]))

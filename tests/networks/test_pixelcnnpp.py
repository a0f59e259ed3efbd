"""PixelCNN++: what depends on what, pixel by pixel against whole images, first weights by data."""

import copy

import pytest
import torch
from torch import Tensor

from genlab.errors import ConfigError, LabelError
from genlab.networks.layers.weight_norm import WeightNorm
from genlab.networks.pixelcnnpp import PixelCNNPP


def tiny(**options: int) -> PixelCNNPP:
    settings = {"img_resolution": 8, "in_channels": 1, "num_blocks": 1, "num_filters": 6}
    network = PixelCNNPP(**{**settings, "num_mixtures": 2, **options}).eval()
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "weight_v" in name else 1.0)
    return network


@pytest.mark.parametrize("position", [(0, 0), (0, 5), (3, 0), (3, 4), (4, 2), (7, 7)])
def test_later_pixels_have_no_influence(position: tuple[int, int]) -> None:
    network, (i, j) = tiny(in_channels=3), position
    pixels = torch.randn(1, 3, 8, 8, requires_grad=True)
    network(pixels)[0, :, i, j].square().sum().backward()
    assert pixels.grad is not None
    seen = pixels.grad.abs().amax((0, 1)).flatten() > 0
    place = 8 * i + j
    assert not seen[place:].any()
    if j > 0:
        assert seen[place - 1]
    if i > 0 and j < 7:
        assert seen[place - 7]  # above to the right: there is no blind spot


@pytest.mark.parametrize(
    ("options", "shape", "labels"),
    [
        ({"in_channels": 3}, (2, 3, 8, 8), [-1, -1]),
        ({"num_blocks": 2, "label_dim": 3}, (4, 1, 8, 12), [2, -1, 0, 2]),
        ({"num_filters": 5}, (1, 1, 12, 4), [-1]),
    ],
)
def test_pixel_by_pixel_gives_the_parameters_of_whole_images(
    options: dict[str, int], shape: tuple[int, ...], labels: list[int]
) -> None:
    network = tiny(**options).double()
    pixels, classes = torch.rand(shape).double() * 2 - 1, torch.tensor(labels)
    told = parameters(network, pixels, classes, torch.float64)
    expected = network(pixels, classes)
    assert (told - expected).abs().max() < 1e-12 * expected.abs().max()


def test_float64_is_float64_from_the_first_operation_on() -> None:
    """Also where weights are float32: their norms must not be taken in that."""
    network, pixels = tiny(in_channels=3), torch.rand(2, 3, 8, 8) * 2 - 1
    labels = torch.tensor([-1, -1])
    told = parameters(network, pixels, labels, torch.float64)
    expected = copy.deepcopy(network).double()(pixels.double(), labels)
    assert (told - expected).abs().max() < 1e-12 * expected.abs().max()


def test_pixel_by_pixel_in_the_dtype_of_the_weights() -> None:
    network, pixels = tiny(), torch.rand(2, 1, 8, 8) * 2 - 1
    told = parameters(network, pixels, torch.tensor([-1, -1]), None)
    assert told.dtype == torch.float32
    assert torch.allclose(told, network(pixels), atol=1e-4)


def parameters(
    network: PixelCNNPP, pixels: Tensor, labels: Tensor, dtype: torch.dtype | None
) -> Tensor:
    height, width = pixels.shape[2:]
    decoder = network.decoder(labels, height, width, dtype)
    rows = []
    for i in range(height):
        for j in range(width):
            rows.append(decoder.params(i, j).clone())
            decoder.put(i, j, pixels[:, :, i, j])
    return torch.stack(rows, -1).unflatten(-1, (height, width))


def test_classes_matter_and_the_null_class_is_none_of_them() -> None:
    network, pixels = tiny(label_dim=3), torch.randn(1, 1, 8, 8)
    null = network(pixels)
    assert torch.equal(network(pixels, torch.tensor([-1])), null)
    told = [network(pixels, torch.tensor([c])) for c in range(3)]
    assert all(not torch.allclose(one, null) for one in told)
    with pytest.raises(LabelError, match=r"0 \.\.\. 2"):
        network(pixels, torch.tensor([3]))


def test_first_weights_by_data_normalise_every_layer() -> None:
    network = PixelCNNPP(8, 3, 2, num_blocks=2, num_filters=10, num_mixtures=2)
    pixels, labels = torch.rand(32, 3, 8, 8) * 2 - 1, torch.arange(32) % 2
    network.initialise(pixels, labels)
    assert network.training
    seen: list[tuple[float, float, float]] = []

    def look(module: WeightNorm, _: object, out: Tensor) -> None:
        rows = out.movedim(-1 if module.weight_v.ndim == 2 else 1, 0).flatten(1)
        seen.append((float(rows.mean(1).abs().max()), float(rows.std(1).min()), module.init_scale))

    for module in network.modules():
        if isinstance(module, WeightNorm):
            module.register_forward_hook(look)
    with torch.no_grad():
        network.eval()(pixels, labels)
    assert len(seen) == sum(isinstance(m, WeightNorm) for m in network.modules())
    for mean, std, scale in seen:
        assert mean < 1e-3
        assert std == pytest.approx(scale, rel=1e-2)


def test_training_drops_and_evaluation_does_not() -> None:
    network, pixels = tiny(), torch.randn(2, 1, 8, 8)
    assert torch.equal(network(pixels), network(pixels))
    network.train()
    assert not torch.equal(network(pixels), network(pixels))


def test_every_parameter_gets_a_gradient() -> None:
    network = tiny(label_dim=2)
    pixels = torch.rand(2, 1, 8, 8) * 2 - 1
    params = network(pixels, torch.tensor([0, 1]))
    network.distribution.log_prob(params, pixels).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_resolution": 10}, "multiples of 4, got 10 x 10"),
        ({"in_channels": 2}, "1 or 3 channels, got 2"),
        ({"num_filters": 0}, "num_filters must be"),
        ({"label_dim": -1}, "label_dim must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 4, got 8 x 6"):
        tiny()(torch.zeros(1, 1, 8, 6))

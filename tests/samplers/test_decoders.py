"""Three decoders, one image: whatever the network, the batch, the classes and the settings."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.networks.gated_pixelcnn import GatedPixelCNN
from genlab.networks.pixelcnnpp import PixelCNNPP
from genlab.samplers.autoregressive.base import DECODERS, Canvas, PixelModel, PixelSampler
from genlab.samplers.base import Step

SIZE = 8
ROWS = 4  # of the images drawn here; the networks take any number


def network(kind: str) -> AutoregressiveNetwork:
    """A small network whose pixels depend on one another a lot."""
    if kind == "gated":
        made: AutoregressiveNetwork = GatedPixelCNN(
            SIZE, label_dim=3, num_levels=16, channels=6, num_layers=2, first_kernel=5,
            head_channels=8,
        )  # fmt: skip
    else:
        channels = 3 if kind == "colour" else 1
        made = PixelCNNPP(SIZE, channels, 3, num_blocks=1, num_filters=6, num_mixtures=3)
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        if name == "nin_out.lin_a.bias":  # narrow components, so that little is clipped
            for first in range(6, len(parameter), 9 if kind == "colour" else 6):
                parameter.data[first : first + 3] -= 3
    return made.eval()


def sampler_of(config: dict[str, Any]) -> PixelSampler:
    return PixelSampler.from_layers([("a test", config)])


def steps(
    model: AutoregressiveNetwork, decoder: str, seeds: list[int], **options: object
) -> list[Step]:
    painted: dict[str, Any] = {key: options.pop(key, None) for key in ("images", "keep")}
    precision = {"precision": options.pop("precision")} if "precision" in options else {}
    sampler = sampler_of({"decoder": {"name": decoder, **precision}, **options})
    labels = torch.tensor([seed % 3 for seed in seeds])
    uniforms = NoiseStream(seeds).rand((model.distribution.num_uniforms, ROWS, SIZE))
    with torch.no_grad():
        canvas = Canvas(uniforms=uniforms, temperature=sampler.temperature, **painted)
        asked = PixelModel(
            model,
            labels,
            sampler.guidance_scale,
            space=sampler.guidance_space,
            top_p=sampler.top_p,
        )
        return list(sampler.decoder(asked, canvas))


def images(
    model: AutoregressiveNetwork, decoder: str, seeds: list[int], **options: object
) -> Tensor:
    return steps(model, decoder, seeds, **options)[-1].x.float()


@pytest.mark.parametrize("kind", ["grey", "colour", "gated"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"guidance_scale": 2.0, "temperature": 0.6},
        {"guidance_scale": 2.0, "guidance_space": "levels", "top_p": 0.9},
        {"guidance_scale": 1.5, "top_p": 0.8, "temperature": 0.9},
    ],
    ids=["plain", "greedy", "guided", "levels", "top-p"],
)
def test_all_decoders_draw_the_same_images(kind: str, options: dict[str, Any]) -> None:
    model, seeds = network(kind), list(range(3))
    cached = images(model, "cached", seeds, **options)
    assert cached.std() > 0.1
    assert torch.equal(images(model, "naive", seeds, **options), cached)
    assert torch.equal(images(model, "jacobi", seeds, **options), cached)


@pytest.mark.parametrize("kind", ["grey", "colour", "gated"])
def test_many_images_are_the_same_in_any_batch(kind: str) -> None:
    """6,400 pixels, none of which falls to another side of a border between levels."""
    model, seeds = network(kind), list(range(200))
    whole = images(model, "jacobi", seeds)
    parts = [images(model, "cached", seeds[start : start + 100]) for start in (0, 100)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(images(model, "cached", [17]), whole[17:18])


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_kept_pixels_stay_and_decide_what_follows(decoder: str) -> None:
    model = network("colour")
    given = torch.randint(0, 256, (2, 3, ROWS, SIZE)) / 127.5 - 1
    keep = torch.zeros(1, 1, ROWS, SIZE, dtype=torch.bool)
    keep[:, :, :2] = True
    keep[:, :, 3, 2:4] = True
    drawn = images(model, decoder, [0, 1], images=given, keep=keep)
    everywhere = keep.expand_as(given)
    assert torch.equal(drawn[everywhere], given[everywhere])
    free = images(model, decoder, [0, 1])
    behind = ~everywhere  # the first rows are kept, so that all others come after kept pixels
    assert not torch.equal(drawn[behind], free[behind])
    assert torch.equal(images(model, "cached", [0, 1], images=given, keep=keep), drawn)


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_every_row_is_a_step(decoder: str) -> None:
    model = network("grey")
    told = steps(model, decoder, [3, 4])
    assert [step.index for step in told] == list(range(ROWS))
    assert {step.num_steps for step in told} == {ROWS}
    final = told[-1].x
    for step in told:
        assert torch.equal(step.x[:, :, : step.index + 1], final[:, :, : step.index + 1])


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_the_networks_own_precision(decoder: str) -> None:
    model = network("grey")
    assert steps(model, decoder, [0], precision="network")[-1].x.dtype == torch.float32
    assert steps(model, decoder, [0])[-1].x.dtype == torch.float64
    assert model.dtype == torch.float32
    drawn = steps(network("grey").bfloat16(), decoder, [0], precision="network")[-1].x
    assert drawn.dtype == torch.float32, "half precision would merge levels"


def test_evaluations_are_counted() -> None:
    model = network("grey")
    uniforms = torch.rand(2, model.distribution.num_uniforms, ROWS, SIZE)
    counts = {}
    for name in DECODERS:
        asked = PixelModel(model, torch.tensor([0, 1]))
        with torch.no_grad():
            list(sampler_of({"decoder": name}).decoder(asked, Canvas(uniforms=uniforms)))
        counts[name] = asked.evaluations // 2
    assert counts["cached"] == 1
    assert counts["naive"] == ROWS * SIZE
    assert 2 <= counts["jacobi"] <= ROWS * SIZE


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of float64, network, got 'float16'"):
        sampler_of({"decoder": {"name": "cached", "precision": "float16"}})

"""Super-resolution: a model that enlarges images, from programs, the command and the pipeline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import genlab
from genlab import DiffusionGenerator
from genlab.cli import main
from genlab.data.pixels import from_uint8, to_uint8
from genlab.data.writing.writers import write_npz
from genlab.diffusion.discrete import Discrete
from genlab.errors import ConfigError
from genlab.networks import ADMUNet

SAMPLER = {"solver": {"name": "ddim"}, "schedule": {"name": "respaced", "steps": 2}}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
SMALL = from_uint8(torch.from_numpy(PIXELS).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def generator() -> DiffusionGenerator:
    torch.manual_seed(0)
    network = ADMUNet(
        8, 3, 3, 2, model_channels=32, channel_mult=[1], num_blocks=1, num_head_channels=32,
        super_resolution=True,
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return DiffusionGenerator(network.eval(), Discrete(T=50), sampler=SAMPLER)


def test_the_small_images_decide_and_batches_do_not(generator: DiffusionGenerator) -> None:
    images = generator.enlarge(SMALL, [5, 6, 7], [0, 1, 0])
    assert images.shape == (3, 3, 8, 8)
    others = generator.enlarge(SMALL.flip(0), [5, 6, 7], [0, 1, 0])
    assert (images != others).flatten(1).any(1).tolist() == [True, False, True]
    one_by_one = generator.enlarge(SMALL, [5, 6, 7], [0, 1, 0], batch_size=1)
    torch.testing.assert_close(images, one_by_one, atol=1e-4, rtol=0)


def test_what_does_not_fit_is_refused(
    generator: DiffusionGenerator, tiny_generator: DiffusionGenerator
) -> None:
    for message, images, seeds in (
        ("3 images for 2 seeds", SMALL, [0, 1]),
        ("a seed that stands twice", SMALL, [0, 1, 1]),
        ("low_res is of shape \\(1, 4, 4\\)", SMALL[:, :1], [0, 1, 2]),
        ("low_res is of shape \\(3, 8, 8\\)", torch.zeros(3, 3, 8, 8), [0, 1, 2]),
    ):
        with pytest.raises(ConfigError, match=message):
            generator.enlarge(images, seeds)
    with pytest.raises(ConfigError, match="give the small ones as low_res"):
        generator.sample([0])
    with pytest.raises(ConfigError, match="this model enlarges no images"):
        tiny_generator.enlarge(SMALL, [0, 1, 2])


def test_the_command_enlarges_images_that_take_turns(
    generator: DiffusionGenerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    generator.save_pretrained("model")
    write_npz(Path("small.npz"), iter(PIXELS), PIXELS.shape, [1, 0, 1])
    command = ["sample", "./model", "--seeds", "0-3", "-o", "out", "-q"]
    assert main(command) == 2
    assert "--low-res" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main([*command, "--low-res", "small.npz"]) == 0
    low_res = SMALL[[0, 1, 2, 0]]
    expected = to_uint8(generator.enlarge(low_res, range(4), [1, 0, 1, 1]))
    for seed in range(4):
        shown = np.asarray(Image.open(f"out/images/00000/img{seed:08d}.png"))
        np.testing.assert_array_equal(shown, expected[seed].permute(1, 2, 0).numpy())
    assert json.loads(Path("out/manifest.json").read_text())["labels"] == [1, 0, 1, 1]


def test_the_pipeline_enlarges(
    generator: DiffusionGenerator, tiny_generator: DiffusionGenerator
) -> None:
    pipeline: Any = genlab.GenLabPipeline.from_generator(generator)
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    drawn = pipeline([0, 1, 0], generator=seeds, low_res=SMALL, output_type="pt").images
    expected = generator.enlarge(SMALL, [5, 6, 7], [0, 1, 0])
    torch.testing.assert_close(torch.as_tensor(drawn), expected / 2 + 0.5)
    with pytest.raises(ConfigError, match="low_res 3, batch_size 2"):
        pipeline(low_res=SMALL, batch_size=2)
    with pytest.raises(ConfigError, match="this model enlarges no images"):
        genlab.GenLabPipeline.from_generator(tiny_generator)(low_res=SMALL)

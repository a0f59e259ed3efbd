"""A diffusion generator that works on an autoencoder's latents."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_autoencoder import tiny_deterministic, tiny_kl

import genlab
from genlab import DiffusionGenerator, GenLabPipeline
from genlab.diffusion.preconditioning import EDM
from genlab.errors import CheckpointError, ConfigError
from genlab.generators.autoencoder import Autoencoder
from genlab.networks import SongUNet
from genlab.runs.drawing import draw_samples
from genlab.runs.plan import SamplePlan
from genlab.samplers.base import Step

SEEDS = [3, 1, 4]
STEPS = {"schedule": {"num_steps": 3}}


def latent_generator(autoencoder: Autoencoder | None = None) -> DiffusionGenerator:
    network = SongUNet(4, 2, 2, label_dim=3, model_channels=8, channel_mult=[1], num_blocks=1,
                       attn_resolutions=[])  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    autoencoder = tiny_kl() if autoencoder is None else autoencoder
    return DiffusionGenerator(network.eval(), EDM(), sampler=STEPS, autoencoder=autoencoder)


def test_images_are_decoded_latents() -> None:
    generator = latent_generator()
    assert generator.autoencoder is not None
    assert (generator.image_shape, generator.state_shape) == ((1, 8, 8), (2, 4, 4))
    states: list[Step] = []
    (batch,) = generator.stream(SEEDS, [0, 1, 2], on_step=states.append)
    assert batch.images.shape == (3, 1, 8, 8)
    assert states[-1].x.shape == (3, 2, 4, 4)
    assert torch.equal(batch.images, generator.autoencoder.decode(states[-1].x))


def test_batches_do_not_matter() -> None:
    generator = latent_generator()
    together = generator.sample(SEEDS, [0, 1, 2])
    alone = generator.sample(SEEDS, [0, 1, 2], batch_size=1)
    torch.testing.assert_close(together, alone)


def test_saved_and_loaded(tmp_path: Path) -> None:
    generator = latent_generator()
    images = generator.sample(SEEDS, [0, 1, 2])
    generator.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["autoencoder"] == ["diffusers", "AutoencoderKL"]

    loaded = genlab.load(tmp_path / "model")
    assert torch.equal(loaded.sample(SEEDS, [0, 1, 2]), images)
    assert loaded.weights_sha256() == generator.weights_sha256()
    assert loaded.identity() == generator.identity()

    renamed = loaded.changed(class_names=["a", "b", "c"])
    assert torch.equal(renamed.sample(SEEDS, [0, 1, 2]), images)

    # Over a folder that held an autoencoder, a model without one is one without.
    plain = DiffusionGenerator(generator.network, EDM())
    plain.save_pretrained(tmp_path / "model")
    assert genlab.load(tmp_path / "model").image_shape == (2, 4, 4)
    assert not list((tmp_path / "model" / "autoencoder").glob("*.safetensors"))


def test_pipeline(tmp_path: Path) -> None:
    generator = latent_generator()
    images = generator.sample(SEEDS, [0, 1, 2])
    generator.save_pretrained(tmp_path / "model")
    pipeline = GenLabPipeline.from_pretrained(tmp_path / "model")
    for pipe in (pipeline, GenLabPipeline.from_generator(generator)):
        seeds = [torch.Generator().manual_seed(s) for s in SEEDS]
        drawn: Any = pipe([0, 1, 2], generator=seeds, output_type="pt", return_dict=False)[0]
        assert torch.equal(drawn * 2 - 1, (images / 2 + 0.5) * 2 - 1)
    # Any argument beyond the type takes diffusers' own code.
    other: Any = GenLabPipeline.from_pretrained(tmp_path / "model", use_safetensors=True)
    # It maps the file, whose tensors are not aligned as torch's own are, and products of matrices
    # sum in another order there: look at a copy.
    copied = copy.deepcopy(other.as_generator())
    assert torch.equal(copied.sample(SEEDS, [0, 1, 2]), images)
    pipeline.save_pretrained(tmp_path / "again")
    assert torch.equal(genlab.load(tmp_path / "again").sample(SEEDS, [0, 1, 2]), images)


def test_weights_and_scale_are_part_of_the_identity() -> None:
    torch.manual_seed(0)
    one = latent_generator()
    other = one.changed(autoencoder=tiny_kl(seed=8).model)
    scaled = one.changed(autoencoder=tiny_kl(scaling_factor=0.25).model)
    assert len({g.weights_sha256() for g in (one, other)}) == 2
    assert len({str(g.identity()) for g in (one, other, scaled)}) == 3


def test_dtype() -> None:
    """The network changes, an autoencoder that needs float32 does not."""
    generator = latent_generator(tiny_kl(force_upcast=True)).to(dtype=torch.bfloat16)
    assert generator.autoencoder is not None
    assert generator.dtype == torch.bfloat16
    assert generator.autoencoder.dtype == torch.float32
    assert generator.sample(SEEDS).dtype == torch.float32


def test_animation_shows_images(tmp_path: Path) -> None:
    generator = latent_generator()
    plan = SamplePlan(seeds=(0, 1), labels=(0, 1), image_shape=generator.image_shape,
                      identity={}, animation="gif", format="npz")  # fmt: skip
    draw_samples(generator, plan, tmp_path, sampler=generator.sampler, batch_size=2, config={})
    (archive,) = tmp_path.glob("*.npz")
    assert np.load(archive)["arr_0"].shape == (2, 8, 8, 1)
    assert list(tmp_path.glob("*.gif"))


def test_misfits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="latents of 4 channels, these have 2"):
        latent_generator(tiny_deterministic())
    generator = latent_generator()
    generator.save_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    content = json.loads(index.read_text())

    def claim(component: Sequence[str]) -> None:
        index.write_text(json.dumps({**content, "autoencoder": component}))

    claim(["os", "system"])
    with pytest.raises(CheckpointError, match="os has no model system"):
        genlab.load(tmp_path / "model")
    claim(["diffusers", "UNet2DModel"])
    with pytest.raises(CheckpointError, match="autoencoder"):
        genlab.load(tmp_path / "model")
    claim(["antigravity", "fly"])
    with pytest.raises(CheckpointError, match=r"antigravity\.fly, which is not GenLab's"):
        genlab.load(tmp_path / "model")

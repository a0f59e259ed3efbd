"""The GAN family: seeds, samplers, statistics, and weights that sampling leaves alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import genlab
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError, LabelError
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan import BigGANGenerator
from genlab.networks.biggan_deep_hf import BigGANDeepHF
from genlab.networks.conditional_gan import ConditionalGenerator
from genlab.networks.layers.spectral_norm import SpectralNorm

SEEDS = [3, 141, 59, 2**40]
STANDING = {"truncation": 0.5, "statistics": {"standing": 3, "batch_size": 5}}


@pytest.fixture
def biggan() -> GanGenerator:
    network = BigGANGenerator(32, 3, channels=4, dim_z=8, shared_dim=6, attn_resolutions=(16,))
    with torch.no_grad():
        network(torch.randn(16, 8), network.embed_labels(torch.arange(16) % 3))  # statistics
    return GanGenerator(network, class_names=["a", "b", "c"])


@pytest.fixture
def indexed() -> GanGenerator:
    """The released layout with statistics that grow with the truncation."""
    layers = [(True, 16, 8), (False, 8, 4), (True, 4, 2), (False, 2, 1)]
    network = BigGANDeepHF(16, 3, channels=4, dim_z=5, layers=layers, attention_position=1)
    for name, buffer in network.named_buffers():
        if name.endswith("running_vars"):
            buffer.copy_(torch.linspace(0.5, 1.5, len(buffer))[:, None].expand_as(buffer))
    with torch.no_grad():
        for _ in range(5):  # spectral norms converge
            network(torch.randn(1, 5), network.embed_labels(torch.tensor([0])))
    return GanGenerator(network)


@pytest.fixture(params=["biggan", "indexed"])
def generator(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("sampler", [None, {"truncation": 0.43}])
def test_seed_gives_the_same_image_in_any_batch(generator: GanGenerator, sampler: Any) -> None:
    whole = generator.sample(SEEDS, sampler=sampler)
    assert whole.shape == (4, *generator.image_shape)
    for batch_size in (1, 3):
        parts = generator.sample(SEEDS, sampler=sampler, batch_size=batch_size)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        generator.sample(SEEDS[2:], sampler=sampler), whole[2:], rtol=0, atol=1e-5
    )


def test_standing_statistics_do_not_depend_on_the_batch(biggan: GanGenerator) -> None:
    whole = biggan.sample(SEEDS, sampler=STANDING)
    stored = biggan.sample(SEEDS, sampler={"truncation": 0.5})
    assert (whole - stored).abs().max() > 0.01
    parts = biggan.changed().sample(SEEDS, sampler=STANDING, batch_size=1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    more = {**STANDING, "statistics": {"standing": 4, "batch_size": 5}}
    assert (biggan.sample(SEEDS, sampler=more) - whole).abs().max() > 1e-3


def test_standing_statistics_are_those_of_the_samples(biggan: GanGenerator) -> None:
    """One pass over the very images that are drawn: what training mode would give them."""
    seeds = range(6)
    sampler = {"truncation": 0.5, "statistics": {"standing": 1, "batch_size": len(seeds)}}
    images = biggan.sample(seeds, sampler=sampler)
    z = biggan.build_sampler(sampler).latents(NoiseStream(seeds), 8)
    labels = torch.tensor(biggan.choose_labels(seeds, None))
    network: Any = biggan.network
    with torch.no_grad():
        for module in network.modules():
            module.training = not isinstance(module, SpectralNorm)
        expected = network(z, network.embed_labels(labels))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_standing_statistics_follow_the_weights(biggan: GanGenerator) -> None:
    before = biggan.sample(SEEDS, sampler=STANDING)
    with torch.no_grad():
        biggan.network.linear.weight += 0.5
    assert (biggan.sample(SEEDS, sampler=STANDING) - before).abs().max() > 1e-3


def test_sampling_leaves_the_weights_alone(biggan: GanGenerator) -> None:
    sha, plain = biggan.weights_sha256(), biggan.sample(SEEDS)
    biggan.sample(SEEDS, sampler=STANDING)
    assert biggan.weights_sha256() == sha
    assert torch.equal(biggan.sample(SEEDS), plain)


def test_training_goes_on_after_sampling(biggan: GanGenerator) -> None:
    """Folded weights are dropped: gradients reach the raw ones, and new ones count at once."""
    before = biggan.sample(SEEDS)
    network: Any = biggan.network.train()
    images = network(torch.randn(4, 8), network.embed_labels(torch.tensor([0, 1, 2, 0])))
    images.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    after = biggan.sample(SEEDS)
    assert (after - before).abs().max() > 1e-3
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            module.folded = None
    assert torch.equal(biggan.sample(SEEDS), after)


@pytest.mark.parametrize("sampler", [{"truncation": 0.43}, STANDING])
def test_saved_generator_draws_the_same_in_a_fresh_process(
    biggan: GanGenerator, indexed: GanGenerator, tmp_path: Path, sampler: dict[str, Any]
) -> None:
    generator = biggan if "statistics" in sampler else indexed
    generator = generator.changed(sampler=sampler)
    images = generator.sample(SEEDS)
    generator.save_pretrained(tmp_path / "model")
    script = (
        "import sys, torch, genlab; torch.set_num_threads(int(sys.argv[2]));"
        "g = genlab.load(sys.argv[1] + '/model');"
        f"made = g.sample({SEEDS}), g.sampler.config, g.weights_sha256();"
        "torch.save(made, sys.argv[1] + '/out.pt')"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(torch.get_num_threads())]
    subprocess.run(command, check=True)
    loaded, config, sha = torch.load(tmp_path / "out.pt")
    assert torch.equal(loaded, images)
    assert config == generator.sampler.config
    assert sha == generator.weights_sha256()


def test_loaded_generator_keeps_what_it_is(biggan: GanGenerator, tmp_path: Path) -> None:
    biggan.save_pretrained(tmp_path)
    loaded = genlab.load(tmp_path)
    assert isinstance(loaded, GanGenerator)
    assert loaded.family == "gan"
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.image_shape == (3, 32, 32)


def test_one_evaluation_an_image(biggan: GanGenerator) -> None:
    steps: list[Any] = []
    batches = list(biggan.stream(SEEDS, [0, 1, 2, 0], batch_size=3, on_step=steps.append))
    assert [batch.nfe for batch in batches] == [1, 1]
    assert [step.num_steps for step in steps] == [1, 1]
    assert batches[0].labels == (0, 1, 2)


def test_given_latents_go_to_the_network(biggan: GanGenerator) -> None:
    sampler = biggan.build_sampler()
    z = torch.randn(2, 8)
    noise = NoiseStream([1, 2])
    with torch.no_grad():
        [step] = biggan.steps(noise, [0, 1], sampler, z)
        expected = biggan.network(z, biggan.network.embed_labels(torch.tensor([0, 1])))
        assert torch.equal(step.x, expected)
        with pytest.raises(ConfigError, match="latents must have 8 numbers"):
            list(biggan.steps(noise, [0, 1], sampler, torch.randn(2, 9)))


def test_default_of_released_generators_is_truncation_one(indexed: GanGenerator) -> None:
    assert indexed.sampler.config["truncation"] == 1
    assert indexed.build_sampler({"hf_compat": True}).truncation == 1


def test_hf_compat_changes_what_lies_between_the_sets(indexed: GanGenerator) -> None:
    for truncation, differs in ((0.4, False), (0.435, True), (0.14, True)):
        plain = indexed.sample(SEEDS, sampler={"truncation": truncation})
        swapped = indexed.sample(SEEDS, sampler={"truncation": truncation, "hf_compat": True})
        assert bool((plain - swapped).abs().max() > 1e-5) is differs


@pytest.mark.parametrize(
    ("name", "sampler", "message"),
    [
        ("biggan", {"hf_compat": True}, "hf_compat is about statistics stored by truncation"),
        ("biggan", {"solver": "heun"}, "no setting 'solver'"),
        ("biggan", "edm-heun", "the sampler preset 'edm-heun'.*'solver'"),
        ("indexed", {"truncation": None}, "stored by truncation.*at most 1, got None"),
        ("indexed", {"truncation": 1.5}, "at most 1, got 1.5"),
        ("indexed", {"resample": True}, "scaled latents"),
        ("indexed", {"statistics": {"standing": 2}}, "cannot normalise by any"),
    ],
)
def test_settings_that_do_not_apply(
    request: pytest.FixtureRequest, name: str, sampler: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        request.getfixturevalue(name).build_sampler(sampler)


@pytest.mark.parametrize("option", ["num_steps", "guidance_scale"])
def test_steps_and_guidance_do_not_apply(biggan: GanGenerator, option: str) -> None:
    options: dict[str, Any] = {option: 2}
    with pytest.raises(ConfigError, match="draws an image in one call"):
        biggan.build_sampler(**options)


def test_plain_gan_with_batch_norm_renews_statistics() -> None:
    generator = GanGenerator(ConditionalGenerator(8, 2, channels=4, dim_z=4, norm="batch"))
    stored, renewed = (
        generator.sample([0, 1], sampler={"statistics": {"standing": passes}}) for passes in (0, 2)
    )
    assert (stored - renewed).abs().max() > 0.01


def test_plain_gan_has_no_statistics_to_renew() -> None:
    generator = GanGenerator(ConditionalGenerator(8, 2, channels=4, dim_z=4, norm="none"))
    assert generator.sample([0, 1]).shape == (2, 3, 8, 8)
    with pytest.raises(ConfigError, match="cannot normalise by any"):
        generator.build_sampler({"statistics": {"standing": 2}})


def test_wrong_label(biggan: GanGenerator) -> None:
    with pytest.raises(LabelError, match="class 3 is out of range"):
        biggan.sample([0], [3])


def test_description(biggan: GanGenerator) -> None:
    assert biggan.describe_sampler(biggan.sampler) == "no truncation"
    whole = biggan.build_sampler(STANDING)
    assert biggan.describe_sampler(whole) == "truncation 0.5, statistics of 3 passes"


def test_half_precision_stays_near(biggan: GanGenerator) -> None:
    images = biggan.sample(SEEDS)
    half = biggan.to(dtype=torch.bfloat16).sample(SEEDS)
    assert half.dtype == torch.float32
    assert (half - images).norm() / images.norm() < 0.1

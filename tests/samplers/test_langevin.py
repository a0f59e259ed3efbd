"""Latent Langevin dynamics on a GAN whose latents' distribution is known under a classifier."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_gan import (
    EXACT,
    ToyDiscriminator,
    toy_classifier,
    toy_discriminator,
    toy_gan,
)

from genlab import GenLabPipeline
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.networks.conditional_gan import ConditionalDiscriminator, ConditionalGenerator
from genlab.samplers.gan.langevin import reflect

SEEDS = range(1500)


def langevin(**options: Any) -> dict[str, Any]:
    return {"langevin": {"classifier": toy_classifier(), **options}}


def expected(log_density: Any, low: float = -8.0, high: float = 8.0) -> tuple[float, float]:
    """Mean and standard deviation of z, by quadrature."""
    z = np.linspace(low, high, 4001)
    weights = np.exp(log_density(z) - z**2 / 2)
    weights /= weights.sum()
    mean = float((weights * z).sum())
    return mean, float((weights * (z - mean) ** 2).sum() ** 0.5)


def log_sigmoid(x: Any) -> Any:
    return -np.log1p(np.exp(-x))


def walked(sampler: Any, label: int = 1) -> tuple[float, float, Tensor]:
    """Mean and deviation of the pixels; of the linear toy they are the latents."""
    images = next(toy_gan(linear=True).stream(SEEDS, [label] * len(SEEDS), sampler, 1500)).images
    return images.mean().item(), images.std().item(), images.flatten()


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_latents_follow_prior_times_classifier(scale: float) -> None:
    mean, std, _ = walked(langevin(steps=60, step_size=0.1, scale=scale))
    wanted = expected(lambda z: scale * log_sigmoid(3 * z))
    assert mean == pytest.approx(wanted[0], abs=0.08)  # three standard errors
    assert std == pytest.approx(wanted[1], rel=0.08)
    if scale:
        other = walked(langevin(steps=60, step_size=0.1, scale=scale), label=0)
        assert other[0] == pytest.approx(-wanted[0], abs=0.08)


@pytest.mark.parametrize(
    ("settings", "factor", "bound"),
    [({"truncation": 0.5}, 0.5, 2.0), ({"truncation": 0.7, "resample": True}, 1.0, 0.7)],
)
def test_truncated_latents_stay_truncated(
    settings: dict[str, Any], factor: float, bound: float
) -> None:
    mean, std, z = walked({**langevin(steps=60, step_size=0.1, scale=2.0), **settings})
    assert z.abs().max() <= factor * bound + 1e-6
    wanted = expected(lambda u: 2 * log_sigmoid(3 * factor * u), -bound, bound)
    assert mean == pytest.approx(factor * wanted[0], abs=0.05)
    assert std == pytest.approx(factor * wanted[1], rel=0.1)


def test_a_discriminator_leads_to_the_data() -> None:
    """p(z) (1 + x(z)) is the data's density: their mean is 1/3."""
    generator, sampler = toy_gan(), {"langevin": {"discriminator": toy_discriminator()}}
    sampler["langevin"] |= {"steps": 60, "step_size": 0.1}  # type: ignore[dict-item]
    x = next(generator.stream(SEEDS, [0] * len(SEEDS), sampler, 1500)).images
    assert x.mean().item() == pytest.approx(1 / 3, abs=0.05)
    assert next(generator.stream(SEEDS, [0] * 1500, None, 1500)).images.mean().abs() < 0.05


def test_no_temperature_climbs_to_the_peak() -> None:
    _, std, z = walked(langevin(steps=80, step_size=0.5, temperature=0.0))
    assert std < 1e-3
    peak = z.mean().item()  # where 3 (1 - sigmoid(3 z)) = z
    assert 3 / (1 + np.exp(3 * peak)) == pytest.approx(peak, abs=1e-3)


def test_one_step_is_the_formula() -> None:
    seeds = [4, 9]
    generator = toy_gan(linear=True)
    sampler = langevin(steps=1, step_size=0.3, scale=1.5, temperature=0.8)
    found = next(generator.stream(seeds, [1, 0], sampler)).images.flatten().double()
    z = generator.build_sampler().latents(NoiseStream(seeds), 1).double().flatten()
    noise = NoiseStream(seeds).fork("langevin").randn((1,), torch.float64).flatten()
    sign = torch.tensor([1.0, -1.0])
    gradient = 3 * sign * torch.sigmoid(-3 * sign * z)
    wanted = z + 0.15 * (1.5 * gradient - z) + (0.3 * 0.8) ** 0.5 * noise
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_reflection() -> None:
    z = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    mirrored = reflect(z, 1.5)
    assert mirrored.abs().max() <= 1.5
    inside = z.abs() <= 1.5
    torch.testing.assert_close(mirrored[inside], z[inside])
    torch.testing.assert_close(reflect(3 - z, 1.5), mirrored)  # symmetric about the bound


def small_gan() -> GanGenerator:
    network = ConditionalGenerator(8, 3, channels=8, dim_z=8)
    with torch.no_grad():
        network(torch.randn(16, 8), network.embed_labels(torch.arange(16) % 3))  # statistics
    return GanGenerator(network)


@pytest.mark.parametrize("extra", [{}, {"statistics": {"standing": 2, "batch_size": 4}}])
def test_seed_gives_the_same_image_in_any_batch(extra: dict[str, Any]) -> None:
    generator = small_gan()
    judge = GanDiscriminator(ConditionalDiscriminator(8, 3, channels=8), calibration=EXACT)
    sampler = {"langevin": {"discriminator": judge, "steps": 4, "scale": 50.0}, **extra}
    seeds, sha = [3, 141, 59, 2**40], generator.weights_sha256()
    whole = generator.sample(seeds, sampler=sampler)
    for batch_size in (1, 3):
        parts = generator.sample(seeds, sampler=sampler, batch_size=batch_size)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert (whole - generator.sample(seeds, sampler=extra)).abs().max() > 1e-3
    assert generator.weights_sha256() == sha


def test_steps_and_cost() -> None:
    generator = toy_gan()
    steps: list[Any] = []
    sampler = generator.build_sampler(langevin(steps=5))
    assert sampler.describe().endswith("langevin by a classifier (5 steps of 0.05, scale 1)")
    batch = generator.draw([1, 2], [0, 1], sampler, steps.append)
    assert [step.index for step in steps] == list(range(6))
    assert {step.num_steps for step in steps} == {6}
    torch.testing.assert_close(steps[0].x, generator.sample([1, 2], [0, 1]))
    assert torch.equal(steps[-1].x, batch.images)
    assert batch.nfe == 6 + 5
    assert set(generator.identity(sampler)) >= {"classifiers_sha256"}


def test_pipeline_walks_too() -> None:
    generator = small_gan()
    judge = GanDiscriminator(ConditionalDiscriminator(8, 3, channels=8), calibration=EXACT)
    sampler = {"langevin": {"discriminator": judge, "steps": 2}}
    pipe: Any = GenLabPipeline.from_generator(generator)
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(s) for s in (5, 6)]
    images = pipe([0, 1], generator=seeds, sampler=sampler, output_type="pt").images
    wanted = generator.sample([5, 6], [0, 1], sampler) / 2 + 0.5
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"langevin": {"steps": 3}}, "needs a classifier or a discriminator, and not both"),
        (langevin(discriminator=toy_discriminator()), "and not both"),
        (langevin(steps=0), "needs steps >= 1, got 0"),
        (langevin(step_size=0.0), "needs step_size > 0, got 0"),
        (langevin(scale=-1.0), "needs scale >= 0, got -1"),
        (langevin(temperature=-1.0), "needs temperature >= 0"),
        (langevin(classifier=toy_discriminator()), "got a GanDiscriminator"),
        (
            {**langevin(), "rejection": {"discriminator": toy_discriminator()}},
            "exclude each other",
        ),
        (
            {"langevin": {"discriminator": toy_discriminator(None)}},
            "not calibrated.*'genlab calibrate",
        ),
        (
            {
                "langevin": {
                    "discriminator": GanDiscriminator(
                        ToyDiscriminator(num_classes=5), calibration=EXACT
                    )
                }
            },
            "knows 5 classes and the generator 2",
        ),
    ],
)
def test_wrong_settings(sampler: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        toy_gan().build_sampler(sampler)
    assert "\n" not in str(error.value)


def test_a_classifier_of_other_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"knows 2 classes and the generator 3"):
        small_gan().build_sampler(langevin())

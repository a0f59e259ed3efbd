"""Discriminator rejection sampling on a GAN whose density ratio is known."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from toy_gan import EXACT, ToyDiscriminator, toy_discriminator, toy_gan

import genlab.checkpoints  # noqa: F401  # reads parts that are named
from genlab import GenLabPipeline
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.generators.base import Generator
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.networks.conditional_gan import ConditionalDiscriminator, ConditionalGenerator
from genlab.runs.drawing import draw_samples
from genlab.runs.plan import SamplePlan
from genlab.samplers.gan.rejection import Rejection, Threshold
from genlab.samplers.tallies import add_up, with_rates

SEEDS = range(5000, 7000)


def rejection(**options: Any) -> dict[str, Any]:
    return {"rejection": {"discriminator": toy_discriminator(), "burn_in": 4096, **options}}


def pixels(generator: Generator, label: int, sampler: Any, **options: Any) -> torch.Tensor:
    labels = [label] * len(SEEDS)
    return generator.sample(SEEDS, labels, sampler, **options).flatten().double()


def test_gamma_of_zero_gives_the_data() -> None:
    """Here exp(D - M) is uniform, so the median of its log odds is 0: exact rejection sampling."""
    generator = toy_gan()
    drawn = pixels(generator, 0, None)
    assert stats.kstest(drawn.numpy(), lambda x: (1 + x) / 2).pvalue > 0.01
    accepted = pixels(generator, 0, rejection(percentile=50.0))
    assert stats.kstest(accepted.numpy(), lambda x: ((1 + x) / 2) ** 2).pvalue > 0.01
    mirrored = pixels(generator, 1, rejection(percentile=50.0))
    assert stats.kstest(-mirrored.numpy(), lambda x: ((1 + x) / 2) ** 2).pvalue > 0.01


def test_a_higher_percentile_rejects_more() -> None:
    generator, rates, means = toy_gan(), [], []
    for percentile in (20.0, 60.0, 90.0):
        sampler = rejection(percentile=percentile)
        batches = list(generator.stream(SEEDS, [0] * len(SEEDS), sampler, 500))
        told = with_rates(add_up(batch.tallies for batch in batches))["rejection"]
        rates.append(told["acceptance_rate"])
        means.append(torch.cat([batch.images for batch in batches]).mean().item())
    assert rates == sorted(rates, reverse=True)
    assert means == sorted(means)
    assert means[0] > 0.1  # uniform numbers have a mean of 0


def test_log_odds_are_the_papers() -> None:
    logits = torch.tensor([-3.0, -0.2, 0.7, 1.0], dtype=torch.float64)
    found = Threshold(max_logit=1.0, gamma=0.4, epsilon=1e-8).log_odds(logits)
    below = logits - 1.0
    expected = below - torch.log(1 - torch.exp(below - 1e-8)) - 0.4
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert found[-1] == pytest.approx(18.42 - 0.4, abs=0.01)  # -log(epsilon)
    above = Threshold(max_logit=1.0, gamma=0.4, epsilon=1e-8).log_odds(logits + 100)
    torch.testing.assert_close(above, found[-1:].expand(4))


def test_threshold_is_that_of_the_burn_in() -> None:
    """By hand: the images that the seeds give by themselves, with their own classes."""
    generator = toy_gan()
    sampler = rejection(burn_in=100, percentile=60.0)
    [batch] = generator.stream([7], [0], sampler)
    images = generator.sample(range(100))
    labels = torch.tensor(generator.choose_labels(range(100), None))
    with torch.no_grad():
        logits = toy_discriminator()(images, labels).double()
    told = batch.tallies["rejection"]
    assert told["max_logit"] == pytest.approx(logits.max().item(), abs=1e-6)
    below = logits - logits.max()
    odds = below - torch.log(1 - torch.exp(below - 1e-8))
    assert told["gamma"] == pytest.approx(torch.quantile(odds, 0.6).item(), abs=1e-5)


def small_gan() -> Generator:
    network = ConditionalGenerator(8, 3, channels=8, dim_z=8)
    with torch.no_grad():
        network(torch.randn(16, 8), network.embed_labels(torch.arange(16) % 3))  # statistics
    return GanGenerator(network)


def test_seed_gives_the_same_image_in_any_batch() -> None:
    generator = small_gan()
    judge = GanDiscriminator(ConditionalDiscriminator(8, 3, channels=8), calibration=EXACT)
    for extra in ({}, {"truncation": 0.5, "statistics": {"standing": 2, "batch_size": 4}}):
        sampler = {"rejection": {"discriminator": judge, "burn_in": 8}, **extra}
        seeds = [3, 141, 59, 2**40, 8]
        whole = generator.sample(seeds, sampler=sampler)
        for batch_size in (1, 2):
            parts = generator.changed().sample(seeds, sampler=sampler, batch_size=batch_size)
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            generator.sample(seeds[3:], sampler=sampler), whole[3:], rtol=0, atol=1e-5
        )
        assert (whole - generator.sample(seeds, sampler=extra)).abs().max() > 1e-3


def test_first_candidate_is_the_image_of_the_seed() -> None:
    """What is accepted at once is what is drawn without rejection; the rest is drawn anew."""
    generator = toy_gan()
    drawn, kept = pixels(generator, 0, None), pixels(generator, 0, rejection())
    same = (drawn - kept).abs() < 1e-7
    assert 0.2 < same.double().mean() < 0.6
    once = pixels(generator, 0, rejection(max_tries=1))
    torch.testing.assert_close(once, drawn)
    assert drawn[same].mean() > drawn[~same].mean() + 0.3


def test_samples_that_run_out_of_tries_take_their_best() -> None:
    generator, seeds = toy_gan(), range(200)
    sampler = rejection(percentile=100.0, max_tries=3)
    [batch] = generator.stream(seeds, [0] * 200, sampler, 200)
    told = batch.tallies["rejection"]
    assert told["exhausted"] > 100
    assert told["accepted"] + told["exhausted"] == told["images"] == 200
    again = NoiseStream(seeds).fork("drs latents")
    latents = torch.stack(
        [generator.build_sampler().latents(n, 1) for n in (NoiseStream(seeds), again, again)]
    )
    best = 2 * torch.special.ndtr(latents.max(0).values) - 1
    taken = (batch.images.flatten(1) - best).abs() < 1e-6
    assert taken.double().mean() > 0.8  # but for the few that were accepted


def test_tries_are_counted_as_evaluations() -> None:
    generator = toy_gan()
    before = generator.evaluations
    [batch] = generator.stream(range(50), [0] * 50, rejection(), 50)
    told = with_rates(batch.tallies)["rejection"]
    assert told["tries"] > 50
    assert generator.evaluations - before == told["evaluations"] == 2 * told["tries"]
    assert told["nfe"] == pytest.approx(2 * told["tries"] / 50)
    assert batch.nfe == 2 * told["tries"] // 50


def _plan(generator: Generator, sampler: Any, seeds: range) -> SamplePlan:
    return SamplePlan(
        seeds=tuple(seeds),
        labels=tuple(0 for _ in seeds),
        image_shape=generator.image_shape,
        identity={"weights_sha256": generator.weights_sha256(), **generator.identity(sampler)},
        format="png",
        class_names=None,
        grid=False,
        animation=None,
        title="toy",
    )


def test_the_manifest_counts_over_batches_and_sittings(tmp_path: Path) -> None:
    def draw(folder: Path, stop_after: int | None = None) -> dict[str, Any]:
        generator = toy_gan()
        sampler = generator.build_sampler(rejection(burn_in=64))
        batches = 0

        def on_progress(images: float) -> None:
            nonlocal batches
            batches += 1
            if batches == stop_after:
                raise KeyboardInterrupt

        plan = _plan(generator, sampler, range(12))
        options: dict[str, Any] = {"sampler": sampler, "batch_size": 4, "config": {}}
        try:
            draw_samples(generator, plan, folder, on_progress=on_progress, **options)
        except KeyboardInterrupt:
            return {}
        return dict(json.loads((folder / "manifest.json").read_text()))

    whole = draw(tmp_path / "whole")
    assert draw(tmp_path / "parts", stop_after=2) == {}
    parts = draw(tmp_path / "parts")
    assert parts["rejection"] == whole["rejection"]
    assert whole["rejection"]["images"] == 12
    assert whole["rejection"]["accepted"] == 12
    assert whole["rejection"]["acceptance_rate"] == pytest.approx(
        12 / whole["rejection"]["tries"], abs=1e-6
    )
    assert whole["nfe"] == whole["rejection"]["nfe"]
    assert len(whole["identity"]["discriminators_sha256"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tries": 0}, "needs max_tries >= 1, got 0"),
        ({"burn_in": 0}, "needs burn_in >= 1, got 0"),
        ({"percentile": 101.0}, "needs 0 <= percentile <= 100, got 101"),
        ({"epsilon": 0.0}, "needs epsilon > 0"),
        ({"discriminator": 3}, "needs discriminator: a folder or a GanDiscriminator, got a int"),
        ({"discriminator": "nowhere"}, "there is no discriminator's folder nowhere"),
        ({"tries": 5}, "no setting 'rejection.tries'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        toy_gan().build_sampler(rejection(**options))
    assert "\n" not in str(error.value)


def test_a_discriminator_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match=r"rejection\.discriminator has no value"):
        toy_gan().build_sampler({"rejection": {"max_tries": 5}})


def test_discriminators_that_do_not_fit() -> None:
    def build(judge: GanDiscriminator) -> None:
        toy_gan().build_sampler({"rejection": {"discriminator": judge}})

    with pytest.raises(ConfigError, match=r"not calibrated.*'genlab calibrate DISCRIMINATOR"):
        build(toy_discriminator(None))
    with pytest.raises(ConfigError, match="knows 3 classes and the generator 2"):
        build(GanDiscriminator(ToyDiscriminator(num_classes=3), calibration=EXACT))
    with pytest.raises(ConfigError, match=r"images of shape \(1, 2, 2\)"):
        build(GanDiscriminator(ToyDiscriminator(img_resolution=2), calibration=EXACT))


def test_logits_that_are_not_finite() -> None:
    logits = torch.tensor([0.0, torch.nan], dtype=torch.float64)
    with pytest.raises(ConfigError, match="not finite"):
        Rejection(discriminator="D/").threshold(logits)


def test_configuration_keeps_names_and_leaves_out_what_is_off(tmp_path: Path) -> None:
    generator = toy_gan()
    assert set(generator.sampler.config) == {"truncation", "resample", "statistics", "hf_compat"}
    judge = GanDiscriminator(ConditionalDiscriminator(8, 3, channels=8), calibration=EXACT)
    judge.save_pretrained(tmp_path / "D")
    model = small_gan()
    built = model.build_sampler({"rejection": {"discriminator": str(tmp_path / "D")}})
    assert isinstance(built.rejection.discriminator, GanDiscriminator)
    assert built.config["rejection"]["discriminator"] == str(tmp_path / "D")
    assert model.build_sampler(built).config == built.config
    assert model.build_sampler(built.config).config == built.config
    off = model.build_sampler({**built.config, "rejection": None})
    assert "rejection" not in off.config
    assert built.describe() == "no truncation, rejection (percentile 60, 100 tries)"


def test_pipeline_rejects_too() -> None:
    generator = toy_gan()
    pipe: Any = GenLabPipeline.from_generator(generator)
    pipe.set_progress_bar_config(disable=True)
    seeds = list(range(30))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe([0] * 30, generator=generators, sampler=rejection(), output_type="pt").images
    wanted = generator.sample(seeds, [0] * 30, rejection()) / 2 + 0.5
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-6)
    assert (wanted - generator.sample(seeds, [0] * 30) / 2 - 0.5).abs().max() > 0.01

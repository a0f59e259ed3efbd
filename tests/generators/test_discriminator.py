"""A discriminator as a saved model, and its calibration."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from toy_gan import EXACT, ToyDiscriminator, toy_discriminator, toy_gan

import genlab
from genlab.cli import main
from genlab.data.pixels import to_uint8
from genlab.errors import CheckpointError, ConfigError
from genlab.generators.analysis.calibration import calibrate, fit
from genlab.generators.discriminator import Calibration, GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan import BigGANDiscriminator
from genlab.networks.conditional_gan import ConditionalDiscriminator, ConditionalGenerator


def test_regression_finds_the_density_ratio() -> None:
    """Logits N(+-1, 1): their log density ratio is 2 d, so of a d + b it is 2 (x - b) / a."""
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(20000, generator=generator) + 1
    drawn = torch.randn(20000, generator=generator) - 1
    for a, b in ((1.0, 0.0), (7.0, -300.0), (-0.01, 5.0)):
        found = fit(a * real + b, a * drawn + b)
        assert found.slope * a == pytest.approx(2, rel=0.03)
        assert found.slope * b + found.intercept == pytest.approx(0, abs=0.05)
        assert found.error_rate == pytest.approx(0.1587, abs=0.005)  # Phi(-1)
        assert found.images == 20000


def test_regression_is_the_maximum_of_the_likelihood() -> None:
    """Against SciPy's minimiser; Platt's targets move it by 1 / N."""
    rng = np.random.default_rng(3)
    real, drawn = rng.normal(0.6, 2, 5000), rng.normal(-0.1, 1, 5000)
    found = fit(torch.tensor(real), torch.tensor(drawn))

    def loss(w: Any) -> float:
        of_real = np.logaddexp(0, -(w[0] * real + w[1]))
        return float(of_real.mean() + np.logaddexp(0, w[0] * drawn + w[1]).mean()) / 2

    theirs = minimize(loss, [0.0, 0.0], tol=1e-10)
    assert found.slope == pytest.approx(theirs.x[0], rel=2e-3)
    assert found.intercept == pytest.approx(theirs.x[1], abs=2e-3)
    assert found.log_loss == pytest.approx(theirs.fun, abs=1e-6)


def test_logits_that_tell_everything_or_nothing() -> None:
    certain = fit(torch.linspace(5, 6, 50), torch.linspace(-6, -5, 50))
    assert math.isfinite(certain.slope)
    assert certain.slope > 0
    assert certain.error_rate == 0
    nothing = fit(torch.ones(50), torch.ones(50))
    assert nothing.slope == 0
    assert nothing.intercept == pytest.approx(0, abs=1e-12)
    assert nothing.log_loss == pytest.approx(math.log(2))
    with pytest.raises(ConfigError, match="not finite"):
        fit(torch.tensor([1.0, torch.inf]), torch.zeros(2))


def _data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of the density (1 + x) / 2, mirrored in class 1, by the inverse of its integral."""
    u = torch.rand(count, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(count) % 2
    x = (2 * u.sqrt() - 1) * (1 - 2 * labels)
    return to_uint8(x)[:, None, None, None], labels


def test_calibration_undoes_what_training_did_to_the_logits() -> None:
    judge = GanDiscriminator(ToyDiscriminator(factor=4.0, shift=-3.0))
    images, labels = _data(4000)
    made = calibrate(judge, toy_gan(), images, labels)
    assert not judge.is_calibrated
    assert made.calibration is not None
    assert made.calibration.slope == pytest.approx(1 / 4, rel=0.15)
    x = torch.tensor([-0.5, 0.0, 0.5])[:, None, None, None]
    with torch.no_grad():
        found = made(x, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(found, torch.log(1 + x.flatten()), rtol=0, atol=0.15)
    again = calibrate(judge, toy_gan(), images, labels)
    assert again.calibration == made.calibration
    truncated = calibrate(judge, toy_gan(), images, labels, {"truncation": 0.3})
    assert truncated.calibration != made.calibration
    # A sampler of the generator's own that rejects does not get in the way.
    own = toy_gan().changed(sampler={"rejection": {"discriminator": toy_discriminator()}})
    assert calibrate(judge, own, images, labels).calibration == made.calibration


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 1, 2, 2), [0, 1, 0, 1], "real images have the shape"),
        (torch.zeros(1, 1, 1, 1), [0], "2 real images or more"),
        (torch.zeros(4, 1, 1, 1), [0, 1, 0, 2], "a class of 0 ... 1 for each"),
    ],
)
def test_images_that_do_not_fit(images: torch.Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate(toy_discriminator(), toy_gan(), images.to(torch.uint8), torch.tensor(labels))


@pytest.mark.parametrize("calibration", [EXACT, None])
def test_saved_discriminator_judges_the_same(
    calibration: Calibration | None, tmp_path: Path
) -> None:
    network = BigGANDiscriminator(32, 3, channels=4)
    made = GanDiscriminator(network, calibration=calibration, class_names=["a", "b", "c"])
    made.save_pretrained(tmp_path / "D")
    read = GanDiscriminator.from_pretrained(tmp_path / "D")
    assert read.calibration == calibration
    assert read.class_names == ("a", "b", "c")
    assert read.image_shape == (3, 32, 32)
    assert read.sha256() == made.sha256()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    with torch.no_grad():
        made.prepare()
        read.prepare()
        assert torch.equal(read.raw_logits(images, labels), made.raw_logits(images, labels))
        if calibration is None:
            with pytest.raises(ConfigError, match="not calibrated"):
                read(images, labels)
    with pytest.raises(CheckpointError, match="is the discriminator of a GAN, which draws nothing"):
        genlab.load(tmp_path / "D")


def test_hash_tells_calibrations_apart() -> None:
    plain = toy_discriminator(None)
    assert len({plain.sha256(), plain.calibrated(EXACT).sha256()}) == 2


def test_damaged_calibration(tmp_path: Path) -> None:
    network = ConditionalDiscriminator(8, 3, channels=4)
    GanDiscriminator(network, calibration=EXACT).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    metadata = json.loads(index.read_text())
    wrong: Any
    for wrong, message in (
        ("good", "calibration in .* must be an object"),
        ({"slope": "steep"}, "slope takes a number"),
        ({"slope": 1.0}, "has no value"),
    ):
        index.write_text(json.dumps({**metadata, "calibration": wrong}))
        with pytest.raises(CheckpointError, match=message):
            GanDiscriminator.from_pretrained(tmp_path)


def test_discriminators_of_whole_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="minibatch discrimination"):
        GanDiscriminator(ConditionalDiscriminator(8, 3, channels=4, minibatch_kernels=2))


def test_calibrate_and_reject_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = ConditionalGenerator(8, 3, channels=4, dim_z=4)
    GanGenerator(network).save_pretrained("G")
    GanDiscriminator(ConditionalDiscriminator(8, 3, channels=4)).save_pretrained("D")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez("real.npz", arr_0=pixels, arr_1=np.arange(40) % 3)
    sample = ["sample", "G", "--seeds", "0-9", "--batch-size", "4", "--device", "cpu", "-o", "out"]
    reject = ["sampler.rejection.discriminator=D", "sampler.rejection.burn_in=32"]

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    code, _, err = run(*sample, *reject)
    assert code == 2
    assert "calibrate it with 'genlab calibrate DISCRIMINATOR GENERATOR IMAGES'" in err
    calibrating = ["calibrate", "D", "G", "real.npz", "--device", "cpu"]
    code, out, err = run(*calibrating, "sampler.truncation=0.8", "--count", "30")
    assert (code, err) == (0, "")
    assert out.startswith("D: calibrated on 30 real images and as many drawn ones: error rate")
    code, out, err = run(*sample, *reject)
    assert (code, err) == (0, "")
    manifest = json.loads(Path("out/manifest.json").read_text())
    told = manifest["rejection"]
    assert told["images"] == 10
    assert f"rejection: {told['accepted']} of {told['tries']} images accepted" in out
    assert manifest["identity"]["sampler"]["rejection"]["discriminator"] == "D"
    code, _, err = run(*calibrating, "batch_size=3")
    assert code == 2
    assert "'batch_size=3' has no effect here" in err
    assert err.count("\n") == 1

"""``genlab sample`` with an autoregressive model: its own settings, and inpainting images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.cli import main
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8, to_uint8
from genlab.data.writing.writers import write_npz
from genlab.generators import AutoregressiveGenerator
from genlab.networks.gated_pixelcnn import GatedPixelCNN

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["sample", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def generator() -> AutoregressiveGenerator:
    torch.manual_seed(2)
    network = GatedPixelCNN(28, 1, 10, channels=4, num_layers=2, first_kernel=3, head_channels=4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return AutoregressiveGenerator(network.eval(), has_null_class=True)


@pytest.fixture(scope="module")
def model(generator: AutoregressiveGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    generator.save_pretrained(folder)
    return folder


def pictures(folder: str, count: int) -> np.ndarray:
    names = [Path(folder) / f"images/00000/img{seed:08d}.png" for seed in range(count)]
    return np.stack([np.asarray(Image.open(name)) for name in names])


def test_settings_of_the_family(run: Run, model: Path, generator: AutoregressiveGenerator) -> None:
    code, out, err = run(
        model, "--seeds", "0-2", "--guidance", 2, "--animation", "gif", "-o", "out",
        "sampler.temperature=0.9",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "(2 network evaluations an image" in out
    settings = {"guidance_scale": 2.0, "temperature": 0.9}
    expected = to_uint8(generator.sample(range(3), sampler=settings))
    np.testing.assert_array_equal(pictures("out", 3), expected[:, 0])
    assert Path("out/animation.gif").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", 9], "no number of steps"),
        (["sampler=edm-heun"], "there is no setting"),
        (["sampler.temperature=-1"], "temperature must be at least 0"),
        (["--keep", 3], "keep has no effect without images"),
        (["--complete", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_apply_is_refused(
    run: Run, model: Path, arguments: list[object], sentence: str
) -> None:
    code, _, err = run(model, *arguments)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1


def test_completed_images_keep_their_upper_rows_and_their_classes(
    run: Run, model: Path, generator: AutoregressiveGenerator, fashion_mnist: Path
) -> None:
    code, _, err = run(
        model, "--seeds", "0-3", "--complete", fashion_mnist, "--keep", 9, "-o", "out"
    )
    assert (code, err) == (0, "")
    pixels, labels = ImageDataset(fashion_mnist, split="test").load_all()
    shown = pictures("out", 4)
    np.testing.assert_array_equal(shown[:, :9], pixels[:4, 0, :9])
    drawn = to_uint8(generator.complete(from_uint8(pixels[:4]), 9, range(4), labels[:4].tolist()))
    np.testing.assert_array_equal(shown, drawn[:, 0])
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["labels"] == labels[:4].tolist()
    # The same folder does not take up images that were completed from others.
    code, _, err = run(
        model, "--seeds", "0-3", "--complete", fashion_mnist, "--keep", 10, "-o", "out"
    )
    assert code == 2
    assert "completes_sha256 was" in err


def test_images_take_turns_over_the_seeds(run: Run, model: Path, tmp_path: Path) -> None:
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).reshape(2, 28, 28, 1) % 256
    write_npz(tmp_path / "two.npz", iter(pixels.astype(np.uint8)), pixels.shape, None)
    code, _, err = run(
        model, "--seeds", "0-3", "--labels", "balanced", "--complete", "two.npz", "-o", "out"
    )
    assert (code, err) == (0, "")
    shown = pictures("out", 4)
    np.testing.assert_array_equal(shown[:, :14], pixels[[0, 1, 0, 1], :14, :, 0])
    assert (shown[0, 14:] != shown[2, 14:]).any()


def test_other_families_do_not_complete(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    pixels = np.zeros((1, 8, 8, 1), np.uint8)
    write_npz(tmp_path / "one.npz", iter(pixels), pixels.shape, None)
    code, _, err = run(tiny_model, "--complete", "one.npz")
    assert code == 2
    assert "only autoregressive models complete images; this one is of the family 'diff" in err

"""``genlab sample`` with images to edit, and between samples."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab import DiffusionGenerator
from genlab.cli import main
from genlab.data.pixels import from_uint8, to_uint8
from genlab.data.writing.writers import write_npz
from genlab.generators import AutoregressiveGenerator
from genlab.generators.editing import edit, inpaint, interpolate
from genlab.networks.gated_pixelcnn import GatedPixelCNN

Run = Callable[..., tuple[int, str, str]]

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
IMAGES = from_uint8(torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
MASK = np.zeros((8, 8), dtype=np.uint8)
MASK[:, 5:] = 255
FAST = {"schedule": {"num_steps": 3}}


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
) -> Run:
    """Run the command on the tiny model in a folder with images of its three classes."""
    monkeypatch.chdir(tmp_path)
    write_npz(Path("three.npz"), iter(PIXELS), PIXELS.shape, [1, 0, 2])
    Image.fromarray(MASK).save("mask.png")

    def call(*arguments: object, model: Path = tiny_model) -> tuple[int, str, str]:
        code = main(["sample", str(model), *map(str, arguments), "--steps", "3"])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def pictures(folder: str, count: int) -> np.ndarray:
    names = [Path(folder) / f"images/00000/img{seed:08d}.png" for seed in range(count)]
    return np.stack([np.asarray(Image.open(name)) for name in names])


def manifest(folder: str = "out") -> dict[str, object]:
    told: dict[str, object] = json.loads(Path(folder, "manifest.json").read_text())
    return told


def test_image_to_image(run: Run, tiny_generator: DiffusionGenerator) -> None:
    command = ["--images", "three.npz", "--seeds", "0-3", "--strength", 0.5, "-o", "out"]
    code, _, err = run(*command)
    assert (code, err) == (0, "")
    expected = edit(
        tiny_generator, IMAGES[[0, 1, 2, 0]], range(4), [1, 0, 2, 1], FAST, strength=0.5
    )
    np.testing.assert_array_equal(pictures("out", 4), to_uint8(expected)[:, 0])
    assert manifest()["labels"] == [1, 0, 2, 1], "images keep the classes that they have"
    with Image.open("out/grid.png") as grid:
        assert grid.width > 8 * 64, "each image stands beside what it was made from"
    # A run that was cut short goes on, and gives the same bytes.
    before = Path("out/images/00000/img00000002.png")
    was = before.read_bytes()
    before.unlink()
    assert run(*command, "--batch-size", 4)[0] == 0
    assert before.read_bytes() == was
    # The same folder takes up nothing that was edited otherwise.
    code, _, err = run("--images", "three.npz", "--seeds", "0-3", "--strength", 0.6, "-o", "out")
    assert code == 2
    assert "edit.strength was 0.5, now 0.6" in err
    write_npz(Path("three.npz"), iter(255 - PIXELS), PIXELS.shape, [1, 0, 2])
    code, _, err = run(*command)
    assert code == 2
    assert "edits_sha256 was" in err


def test_inpainting_by_a_mask_a_set_of_masks_and_rows(
    run: Run, tiny_generator: DiffusionGenerator
) -> None:
    common = ["--images", "three.npz", "--seeds", "0-2", "edit.resample=2"]
    assert run(*common, "--mask", "mask.png", "-o", "one")[0] == 0
    shown, drawn = pictures("one", 3), torch.from_numpy(MASK) > 0
    np.testing.assert_array_equal(shown[..., :5], PIXELS[:, :, :5, 0])
    expected = inpaint(tiny_generator, IMAGES, drawn, range(3), [1, 0, 2], FAST, resample=2)
    np.testing.assert_array_equal(shown, to_uint8(expected)[:, 0])
    Path("masks").mkdir()
    for name, mask in (("a", MASK), ("b", MASK.T), ("c", MASK)):
        Image.fromarray(mask).save(f"masks/{name}.png")
    assert run(*common, "--mask", "masks", "-o", "each")[0] == 0
    np.testing.assert_array_equal(pictures("each", 3)[1, :5], PIXELS[1, :5, :, 0])
    assert run(*common, "--keep", 5, "-o", "rows")[0] == 0
    np.testing.assert_array_equal(pictures("rows", 3)[:, :5], PIXELS[:, :5, :, 0])
    assert (pictures("rows", 3)[:, 5:] != PIXELS[:, 5:, :, 0]).mean() > 0.9


def test_a_round_trip_tells_its_error(run: Run, tiny_generator: DiffusionGenerator) -> None:
    code, out, _ = run("--images", "three.npz", "--invert", "--seeds", "0-2", "-o", "out")
    assert code == 0
    assert "round trip: the images are 0." in out
    told = manifest()["round_trip"]
    assert isinstance(told, dict)
    errors = ((pictures("out", 3) / 255 - PIXELS[..., 0] / 255) ** 2).mean((1, 2))
    assert told["rmse"] == pytest.approx(errors.mean() ** 0.5, abs=1e-6)
    assert told["worst_seed"] == int(errors.argmax())
    _, out, _ = run(
        "--images", "three.npz", "--invert", "--seeds", "0-2", "--guidance", 2, "-o", "guided"
    )
    assert "guidance acted on the way back only" in out
    # Under another class it is no round trip, and no error is told.
    other = ["--images", "three.npz", "--invert", "--seeds", "0-2", "--classes", "sneaker"]
    _, out, _ = run(*other, "-o", "other")
    assert "round trip" not in out
    assert "round_trip" not in manifest("other")
    expected = edit(
        tiny_generator, IMAGES, range(3), [1] * 3, FAST, invert=True, source_labels=[1, 0, 2]
    )
    np.testing.assert_array_equal(pictures("other", 3), to_uint8(expected)[:, 0])
    assert run(*other, "source_classes=none", "-o", "none")[0] == 0
    expected = edit(tiny_generator, IMAGES, range(3), [1] * 3, FAST, invert=True)
    np.testing.assert_array_equal(pictures("none", 3), to_uint8(expected)[:, 0])
    assert run(*other, "source_classes=sneaker", "-o", "same")[0] == 0
    assert "round_trip" in manifest("same")


def test_one_picture_that_has_no_class(run: Run) -> None:
    Image.fromarray(PIXELS[0, :6, :6, 0]).save("small.png")
    code, _, err = run("--images", "small.png", "--strength", 0.5, "-o", "out")
    assert code == 2
    assert "small.png is 6x6, not 8x8; choose fit=pad, resize or crop" in err
    command = ["--images", "small.png", "--strength", 0.5, "fit=pad", "--seeds", "0-1"]
    assert run(*command, "-o", "out", "--format", "npz")[0] == 0
    assert Path("out/images.npz").is_file()


def test_between_seeds_and_classes(run: Run, tiny_generator: DiffusionGenerator) -> None:
    code, _, err = run(
        "--between", "3,7,3", "--classes", "sneaker,ankle boot,sneaker", "--frames", 5, "-o", "out"
    )
    assert (code, err) == (0, "")
    expected = interpolate(tiny_generator, [3, 7, 3], [1, 2, 1], 5, FAST)
    np.testing.assert_array_equal(pictures("out", 5), to_uint8(expected)[:, 0])
    assert manifest()["labels"] == [1, 2, 2, 1, 1]
    code, _, err = run("--between", "3,7", "--classes", "sneaker", "--frames", 5, "-o", "out")
    assert code == 2
    assert "identity" in err or "was" in err


def test_a_run_is_told_whole_by_its_configuration(run: Run) -> None:
    command = ["--images", "three.npz", "--mask", "mask.png", "--seeds", "0-1", "-o", "out"]
    code, told, _ = run(*command, "edit.resample=2", "--dry-run")
    assert code == 0
    Path("run.yaml").write_text(told)
    assert run(*command, "edit.resample=2")[0] == 0
    assert "all there already" in run("--config", "run.yaml")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--images", "three.npz"], "how much of the images is to be drawn anew"),
        (["--strength", 0.5], "edit has no effect without images"),
        (["--invert"], "edit has no effect without images"),
        (["--mask", "mask.png"], "mask has no effect without images"),
        (["--frames", 5], "frames has no effect without between"),
        (["fit=pad"], "fit has no effect without images"),
        (["--images", "three.npz", "--strength", 2], "strength must be above 0 and at most 1"),
        (
            ["--images", "three.npz", "--mask", "mask.png", "--keep", 3],
            "mask and keep say the same",
        ),
        (["--images", "three.npz", "--mask", "nowhere"], "nowhere"),
        (
            ["--images", "three.npz", "--mask", "mask.png", "--invert"],
            "leave the mask or invert out",
        ),
        (["--images", "three.npz", "--between", "1,2"], "images and between exclude each other"),
        (["--between", "1,2", "--seeds", "0-3"], "--between and --seeds exclude each other"),
        (["--between", "1"], "goes between at least two seeds"),
        (["--between", "1,x"], "neither a number nor a range"),
        (["--between", "1,2", "--classes", "0,1,2"], "3 classes for 2 seeds to go between"),
        (["--images", "three.npz", "--keep", 8], "1 to 7 can be kept"),
        (
            ["--images", "three.npz", "--invert", "sampler.solver.S_churn=5"],
            "deterministic sampler",
        ),
        (["--images", "three.npz", "--strength", 1, "source_classes=none"], "without edit.invert"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, arguments: list[object], sentence: str) -> None:
    code, _, err = run(*arguments, "-o", "out")
    assert code == 2
    assert sentence in err
    assert not Path("out").exists()


def test_autoregressive_models_inpaint_by_the_same_words(tmp_path: Path, run: Run) -> None:
    torch.manual_seed(2)
    network = GatedPixelCNN(8, 1, 3, channels=4, num_layers=2, first_kernel=3, head_channels=4)
    AutoregressiveGenerator(network.eval()).save_pretrained(tmp_path / "pixels")

    def draw(*arguments: object) -> tuple[int, str]:
        code = main(["sample", "pixels", "--seeds", "0-2", "-q", *map(str, arguments)])
        return code, ""

    assert draw("--images", "three.npz", "--keep", 5, "-o", "images")[0] == 0
    assert draw("--complete", "three.npz", "--keep", 5, "-o", "complete")[0] == 0
    np.testing.assert_array_equal(pictures("images", 3), pictures("complete", 3))
    assert draw("--images", "three.npz", "--mask", "mask.png", "-o", "masked")[0] == 0
    np.testing.assert_array_equal(pictures("masked", 3)[..., :5], PIXELS[:, :, :5, 0])
    assert draw("--images", "three.npz", "--strength", 0.5, "-o", "no")[0] == 2

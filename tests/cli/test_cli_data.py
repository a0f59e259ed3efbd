"""``genlab data``: exit codes, one sentence for each problem, summary, JSON, packing."""

import json
from pathlib import Path

import pytest
from PIL import Image
from small_sets import class_files, encoded, picture, write_folder
from tiny_autoencoder import tiny_kl

from genlab import cli
from genlab.data.dataset import ImageDataset
from genlab.data.sources.latents import LatentDataset


def run(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in args])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_check_a_sound_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "set", class_files(count=12))
    code, out, err = run(capfd, "data", "check", root)
    assert code == 0
    assert err == ""
    assert "folder of images" in out
    assert "bag 12, coat 12" in out
    assert "8x8 24" in out
    assert out.rstrip().endswith("can be trained on")


def test_check_an_unsound_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "set", {**class_files(), "bag/x.png": b"", "y.png": b""})
    code, out, err = run(capfd, "data", "check", root)
    assert code == 2
    assert err == ""
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("error")] == ["error"] * 2
    assert lines[-1] == "cannot be trained on like this: 2 errors"


def test_check_with_the_settings_of_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path, {**class_files(), "bag/g.png": encoded(picture(9, (16, 9), "L"))})
    assert run(capfd, "data", "check", root)[0] == 2
    settings = ["--size", 8, "--fit", "crop", "--channels", 3]
    assert run(capfd, "data", "check", root, *settings)[0] == 0


def test_check_as_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "data", "check", write_folder(tmp_path, class_files()), "--json")
    report = json.loads(out)
    assert code == 0
    assert report["trainable"] is True
    assert report["num_images"] == 6
    assert {f["code"] for f in report["findings"]} == {"tiny-class", "few-images"}
    assert {f["level"] for f in report["findings"]} == {"warning", "note"}


def test_check_draws_a_contact_sheet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "set", class_files())
    sheet = tmp_path / "sheets" / "set.png"
    code, _, err = run(capfd, "data", "check", root, "--grid", sheet)
    assert code == 0
    assert str(sheet) in err
    with Image.open(sheet) as image:
        assert image.width > 3 * 64
    wrong = write_folder(tmp_path / "wrong", {"a/b/c.png": encoded(picture(0))})
    code, _, err = run(capfd, "data", "check", wrong, "--grid", tmp_path / "wrong.png")
    assert code == 2
    assert "not drawn" in err


@pytest.mark.parametrize("path", ["nowhere", "text.txt"])
def test_check_what_is_no_data_set(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], path: str
) -> None:
    (tmp_path / "text.txt").write_text("hello")
    code, out, _ = run(capfd, "data", "check", tmp_path / path)
    assert code == 2
    assert path in out


def test_names_in_brackets_are_printed_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path, class_files(("[bold]", "[red]")))
    code, out, _ = run(capfd, "data", "check", root)
    assert code == 0
    assert "[bold] 3" in out
    assert "[red] 3" in out


def test_prepare_and_check_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = {**class_files(count=12), "bag/x.png": encoded(picture(99, (20, 10)))}
    root = write_folder(tmp_path / "set", files)
    out_zip = tmp_path / "out.zip"
    options = ["--size", 16, "--fit", "pad", "--channels", 1, "--workers", 1]
    code, out, err = run(capfd, "data", "prepare", root, out_zip, *options)
    assert code == 0
    assert err == ""
    assert "25 images, 16x16 grey, 2 classes" in out
    code, out, _ = run(capfd, "data", "check", out_zip)
    assert code == 0
    assert "bag 13, coat 12" in out
    # A second time: refused, unless told to.
    code, _, err = run(capfd, "data", "prepare", root, out_zip, *options)
    assert code == 2
    assert "--overwrite" in err
    code, out, _ = run(capfd, "data", "prepare", root, out_zip, *options, "--overwrite", "--json")
    assert code == 0
    assert json.loads(out)["image_shape"] == [1, 16, 16]


def test_prepare_stops_at_a_broken_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "set", {**class_files(), "bag/x.png": b"broken"})
    command = ["data", "prepare", root, tmp_path / "out.zip", "--workers", 1]
    code, _, err = run(capfd, *command)
    assert code == 2
    assert "bag/x.png" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.zip").exists()
    code, out, err = run(capfd, *command, "--skip-broken")
    assert code == 0
    assert "1 left out" in out
    assert "left out:" in err


def test_prepare_with_settings_that_make_no_sense(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "set", class_files())
    for options, sentence in (
        (["--fit", "crop"], "no effect without image_size"),
        (["--fit", "corp"], "corp"),
        (["--size", 0], "0"),
    ):
        code, _, err = run(capfd, "data", "prepare", root, tmp_path / "out.zip", *options)
        assert code == 2
        assert sentence in err
        assert err.count("\n") == 1


def test_prepare_where_nothing_can_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "set", class_files())
    file = tmp_path / "file"
    file.write_text("not a folder")
    code, _, err = run(capfd, "data", "prepare", root, file / "out.zip", "--workers", 1)
    assert code == 2
    assert "cannot write" in err


def test_encode(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "set", class_files(count=3))
    tiny_kl(channels=3).save_pretrained(tmp_path / "vae")
    out = tmp_path / "latents"
    arguments = (
        *("encode", root, "--autoencoder", tmp_path / "vae", "-o", out, "--device", "cpu"),
        *("--size", "16", "--fit", "resize", "--channels", "3"),
    )
    code, said, _ = run(capfd, "data", *arguments)
    assert code == 0
    assert f"data.path={out}" in said
    dataset = LatentDataset(out)
    assert dataset.image_shape == (2, 8, 8)
    assert len(dataset) == len(ImageDataset(root, labels=False, image_size=16, fit="resize"))
    code, said, _ = run(capfd, "data", *arguments, "--json")  # there already
    assert code == 0
    assert json.loads(said)["latent_shape"] == [2, 8, 8]
    code, _, err = run(capfd, "data", *arguments[:-2], "--channels", "1")
    assert code == 2
    assert "made for images of 3 channels" in err


def test_bare_data_prints_its_help(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, "data")
    assert code == 2
    lines = (out + err).splitlines()
    assert lines[0].startswith("Usage: genlab data")
    assert any(line.split()[:1] == ["prepare"] for line in lines)


def test_transparent_images_are_refused_with_an_option_of_the_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = picture(0, (16, 16), "RGBA")
    root = write_folder(tmp_path / "set", {"0.png": encoded(image), "1.png": encoded(image)})
    code, _, err = run(capfd, "data", "prepare", root, tmp_path / "a.zip")
    assert code == 2
    assert "--alpha white or --alpha black" in err
    assert run(capfd, "data", "prepare", root, tmp_path / "a.zip", "--alpha", "white")[0] == 0


def test_prepare_says_what_it_passes_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "set", {**class_files(), "bag/raw.cr2": b"camera"})
    code, _, err = run(capfd, "data", "prepare", root, tmp_path / "a.zip")
    assert code == 0
    assert "warning: 1 files are not images and are passed over: bag/raw.cr2" in err

"""Latent models from the command line: their latents, and images once an autoencoder is attached.

The autoencoders are real ones of diffusers with a few thousand random weights.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from tiny_autoencoder import tiny_deterministic, tiny_kl

import genlab
from genlab import DiffusionGenerator, GenLabPipeline, cli
from genlab.data.pixels import to_uint8
from genlab.diffusion.discrete import Discrete
from genlab.networks import DiT

Run = Callable[..., tuple[int, str, str]]

SIZE, CHANNELS, CLASSES = 4, 4, 3
DRAW = ("--seeds", "0-4", "--labels", "balanced", "--steps", "2", "--batch-size", "2")
LABELS = [0, 1, 2, 0, 1]


def make_dit(channels: int = CHANNELS) -> DiT:
    torch.manual_seed(5)
    network = DiT(
        SIZE, channels, 2 * channels, CLASSES, patch_size=2, hidden_size=24, depth=1, num_heads=2
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model/`` without an autoencoder, ``official.pt``, and the autoencoders ``kl``, ``tiny``."""
    root = tmp_path_factory.mktemp("latent")
    network = make_dit()
    sampler = {"solver": {"name": "euler"}, "schedule": {"num_steps": 2}}
    model = DiffusionGenerator(
        network, Discrete(variance="learned_range"), sampler=sampler, has_null_class=True
    )
    model.save_pretrained(root / "model")
    torch.save(network.state_dict(), root / "official.pt")
    tiny_kl(3, latent_channels=CHANNELS).save_pretrained(root / "kl")
    tiny_kl(3, seed=9, latent_channels=CHANNELS).save_pretrained(root / "kl-other")
    tiny_kl(3).save_pretrained(root / "kl-2-channels")
    tiny_deterministic().save_pretrained(root / "tiny")
    return root


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([*map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def expected_latents(folders: Path) -> np.ndarray[Any, Any]:
    model = genlab.load(folders / "model")
    drawn = model.sample(range(5), LABELS, batch_size=2, num_steps=2)
    assert drawn.abs().max() > 1  # so that clipping to [-1, 1] would show
    return drawn.numpy()


def manifest() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(Path("out/manifest.json").read_text())
    return told


def test_the_folder_is_the_default(run: Run, folders: Path) -> None:
    code, out, err = run("sample", folders / "model", *DRAW, "-o", "out")
    assert (code, err) == (0, "")
    assert out.startswith("5 latents in out/latents, out/grid.png (2 network evaluations a latent,")
    assert "these are latents (4 x 4 x 4)" in out
    assert "--autoencoder FOLDER" in out
    for seed, latent in enumerate(expected_latents(folders)):
        stored = np.load(f"out/latents/00000/latent{seed:08d}.npy")
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, latent)
    labels = json.loads(Path("out/latents/dataset.json").read_text())["labels"]
    assert labels[1] == ["00000/latent00000001.npy", 1]
    told = manifest()
    assert "images" not in told
    assert "pixel_rule" not in told
    assert told["latents"]["shape"] == [4, 4, 4]
    assert run("sample", folders / "model", *DRAW, "-o", "out")[1].endswith("nothing to do\n")


def test_an_npz_holds_floats_and_no_pixels(run: Run, folders: Path) -> None:
    assert run("sample", folders / "model", *DRAW, "-o", "out", "--format", "npz")[0] == 0
    with np.load("out/latents.npz") as stored:
        assert sorted(stored.files) == ["labels", "latents", "seeds"]  # no arr_0 for ADM's readers
        assert stored["latents"].dtype == np.float32
        np.testing.assert_array_equal(stored["latents"], expected_latents(folders))
        assert stored["labels"].tolist() == LABELS
        assert stored["seeds"].tolist() == list(range(5))
    assert not Path("out/images.npz").exists()


def test_a_zip_holds_them_without_loss(run: Run, folders: Path) -> None:
    assert run("sample", folders / "model", *DRAW, "-o", "out", "--format", "zip")[0] == 0
    with zipfile.ZipFile("out/latents.zip") as archive:
        names = [f"00000/latent{seed:08d}.npy" for seed in range(5)]
        assert archive.namelist() == [*names, "dataset.json"]
        for name, latent in zip(names, expected_latents(folders), strict=True):
            with archive.open(name) as member:
                np.testing.assert_array_equal(np.lib.format.read_array(member), latent)


def test_pictures_of_latents_say_so(run: Run, folders: Path) -> None:
    grids = set()
    for format_ in ("npy", "zip", "npz"):
        options = ("--format", format_, "--animation", "gif", "-o", format_)
        assert run("sample", folders / "model", *DRAW, *options)[0] == 0
        grids.add(Path(format_, "grid.png").read_bytes())
        with Image.open(Path(format_, "animation.gif")) as animation:
            assert animation.n_frames == 2  # type: ignore[attr-defined]
    assert len(grids) == 1
    with Image.open("npy/grid.png") as grid:
        assert "latents of a diffusion model, not images" in grid.info["Description"]
        shades = {color for _, color in grid.convert("RGB").getcolors(10**6) or []}
    # -3 is black and 3 is white: the first number of the first latent is somewhere in the grid.
    value = int(np.floor(np.clip(expected_latents(folders)[0, 0, 0, 0] / 3 * 127.5 + 128, 0, 255)))
    assert (value,) * 3 in shades


@pytest.mark.parametrize("format_", ["npy", "zip", "npz"])
def test_a_killed_run_goes_on(run: Run, folders: Path, format_: str) -> None:
    killed = (
        "import os, sys\n"
        "from genlab import cli\n"
        "from genlab.runs.ledger import SampleLedger\n"
        "record = SampleLedger.record\n"
        "def once(self, *args, **options):\n"
        "    record(self, *args, **options)\n"
        "    os._exit(9)\n"
        "SampleLedger.record = once\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = ["sample", str(folders / "model"), *DRAW, "--format", format_, "-o", "out"]
    done = subprocess.run([sys.executable, "-c", killed, *command], check=False)
    assert done.returncode == 9
    assert not Path("out/manifest.json").exists()
    left = next(Path("out").rglob("latent00000000.npy"))
    before = left.stat().st_mtime_ns
    left.with_name("latent00000001.npy").write_bytes(b"")  # a disk that lost power leaves such ones
    assert run(*command)[0] == 0
    assert manifest()["spent"]["nfe_total"] == 2 * (2 + 5)  # the damaged batch was drawn again
    assert run(*command[:-1], "whole")[0] == 0
    name = {"npy": "latents/00000/latent00000001.npy"}.get(format_, f"latents.{format_}")
    assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()
    assert not Path("out/.genlab").exists()
    if format_ == "npy":
        assert left.stat().st_mtime_ns >= before
        more = [*command[:3], "0-6", "--labels", "balanced", *command[6:]]
        assert run(*more)[0] == 0
        assert manifest()["latents"]["count"] == 7
    assert run(*command[:-1], "out", "--autoencoder", folders / "kl")[0] == 2  # another run's


def test_formats_of_pixels_are_refused(run: Run, folders: Path, tiny_model: Path) -> None:
    code, _, err = run("sample", folders / "model", *DRAW, "--format", "png", "-o", "out")
    assert code == 2
    assert "these are latents (4x4x4)" in err
    assert "--autoencoder FOLDER" in err
    assert not Path("out").exists()
    code, _, err = run("sample", tiny_model, "--format", "npy", "-o", "out")
    assert code == 2
    assert "npy is a format of latents, and these are images" in err


def test_what_needs_pixels_is_refused(run: Run, folders: Path) -> None:
    Image.new("RGB", (4, 4)).save("given.png")
    refused = [
        ("sample", folders / "model", "--images", "given.png", "--strength", "0.5"),
        ("eval", folders / "model", "--protocol", "offline-2k", "--dataset", "fmnist"),
        ("sweep", folders / "model", "--grid", "steps=1,2", "--dataset", "fmnist", "--no-charts"),
    ]
    for command in refused:
        code, _, err = run(*command)
        assert code == 2, command
        assert "these are latents" in err
        assert "--autoencoder FOLDER" in err
        assert len(err.strip().splitlines()) == 1
    assert run("sample", folders / "model", *DRAW, "-o", "out")[0] == 0
    code, _, err = run("eval", "out", "--metrics", "fd", "--dataset", "fmnist")
    assert code == 2
    assert "out holds latents, of which no scores are made" in err


@pytest.mark.parametrize(("name", "cls"), [("kl", AutoencoderKL), ("tiny", AutoencoderTiny)])
def test_images_are_what_diffusers_decodes(
    run: Run, folders: Path, name: str, cls: type[Any]
) -> None:
    vae: Any = cls.from_pretrained(folders / name)
    for format_ in ("png", "zip", "npz"):
        options = ("--autoencoder", folders / name, "--format", format_, "-o", format_)
        code, out, err = run("sample", folders / "model", *DRAW, *options)
        assert (code, err) == (0, "")
        assert "latents" not in out
    latents = torch.from_numpy(expected_latents(folders))
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    with np.load("npz/images.npz") as stored:
        images = stored["arr_0"]
    # One grey level: batches of another size may round the other way.
    difference = images.astype(int) - to_uint8(decoded).permute(0, 2, 3, 1).numpy()
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.99
    for seed in range(5):
        png = Image.open(f"png/images/00000/img{seed:08d}.png")
        np.testing.assert_array_equal(np.asarray(png), images[seed])

    pipe: Any = GenLabPipeline.from_pretrained(folders / "model", vae=vae)
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    drawn = pipe(LABELS[:2], num_inference_steps=2, generator=seeds).images
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in drawn]), images[:2])


def test_the_autoencoder_is_part_of_the_run(run: Run, folders: Path) -> None:
    command = ("sample", folders / "model", *DRAW, "-o", "out", "--autoencoder")
    assert run(*command, folders / "kl")[0] == 0
    told = manifest()
    assert told["config"]["autoencoder"] == str(folders / "kl")
    attached: Any = genlab.load(folders / "model", autoencoder=folders / "kl")
    assert told["identity"]["autoencoder"] == attached.autoencoder.sha256()
    assert run(*command, folders / "kl")[1].endswith("nothing to do\n")
    code, _, err = run(*command, folders / "kl-other")
    assert code == 2
    assert "made with other settings" in err
    assert run(*command, folders / "kl-other", "--overwrite")[0] == 0
    assert manifest()["identity"]["autoencoder"] != told["identity"]["autoencoder"]


def test_convert_stores_it_beside_the_model(run: Run, folders: Path) -> None:
    official = (folders / "official.pt", "--format", "dit", "num_heads=2")
    code, out, err = run("convert", *official, "-o", "plain")
    assert (code, err) == (0, "")
    assert "4 x 4 x 4 latents, 3 classes" in out
    assert "these are latents" in out
    assert "- Latents: 4 x 4, 4 channels" in Path("plain/README.md").read_text()

    code, out, err = run("convert", *official, "-o", "whole", "--autoencoder", folders / "kl")
    assert (code, err) == (0, "")
    assert "3 x 8 x 8, 3 classes" in out
    assert Path("whole/autoencoder/config.json").is_file()

    # The same from what was converted before, its card brought up to date.
    code, _, err = run("convert", "plain", "-o", "later", "--autoencoder", folders / "kl")
    assert (code, err) == (0, "")
    card = Path("later/README.md").read_text()
    assert "- Images: 8 x 8, 3 channels" in card
    assert "- Autoencoder: AutoencoderKL" in card
    assert "- Latents" not in card
    models: list[Any] = [genlab.load(name) for name in ("whole", "later")]
    few = {"num_steps": 2}
    images = [model.sample([0, 1], [0, 1], **few) for model in models]
    assert torch.equal(*images)
    assert run("sample", "whole", *DRAW, "-o", "a")[0] == 0
    assert run("sample", "plain", *DRAW, "-o", "b", "--autoencoder", folders / "kl")[0] == 0
    first = "images/00000/img00000000.png"
    assert Path("a", first).read_bytes() == Path("b", first).read_bytes()

    out = run("doctor", "whole")[1]
    assert "AutoencoderKL, latents of 4 x 4 x 4" in out
    assert re.search(r"latents +4 x 4 x 4; no autoencoder", run("doctor", "plain")[1])


def test_convert_to_diffusers_takes_it_along(run: Run, folders: Path) -> None:
    options = ("--to", "diffusers", "--autoencoder", folders / "kl")
    assert run("convert", folders / "model", "-o", "theirs", *options)[0] == 0
    assert json.loads(Path("theirs/model_index.json").read_text())["vae"][1] == "AutoencoderKL"
    AutoencoderKL.from_pretrained("theirs/vae")


def test_compare_shows_latents_and_images(run: Run, folders: Path) -> None:
    command = ("compare", folders / "model", "-s", "steps=1", "-s", "steps=2", "--seeds", "0-1")
    assert run(*command, "-o", "latents.png")[0] == 0
    assert run(*command, "-o", "images.png", "--autoencoder", folders / "tiny")[0] == 0
    with Image.open("images.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(pixels[..., 0] - pixels[..., 1]).max() > 0  # colours, where latents are grey


def test_misfits_and_damage_are_one_sentence(run: Run, folders: Path, tiny_model: Path) -> None:
    cut = Path("cut")
    shutil.copytree(folders / "kl", cut)
    weights = cut / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    Path("empty").mkdir()
    Path("file").write_text("")
    bare = Path("bare")
    bare.mkdir()
    shutil.copy(folders / "kl" / "config.json", bare)
    pickled = Path("pickled")
    shutil.copytree(bare, pickled)
    torch.save({"w": torch.zeros(1)}, pickled / "diffusion_pytorch_model.bin")
    cases = {
        folders / "kl-2-channels": "latents of 2 channels, these have 4",
        cut: "cut short or damaged",
        bare: "holds no weights",
        pickled: "pickled",
        Path("empty"): "has no config.json",
        Path("file"): "is no folder",
        folders / "model": "a model without an autoencoder",
        Path("nowhere"): "there is no autoencoder nowhere",
        Path("somebody/some-vae"): "hf download somebody/some-vae",
    }
    for source, message in cases.items():
        command = ("sample", folders / "model", *DRAW, "-o", "out", "--autoencoder", source)
        code, _, err = run(*command)
        assert (code, len(err.strip().splitlines())) == (2, 1), (source, err)
        assert message in err
        official = (folders / "official.pt", "--format", "dit", "num_heads=2")
        code, _, err = run("convert", *official, "-o", "new", "--autoencoder", source)
        assert code == 2
        assert message in err
    assert not Path("out").exists()
    assert not Path("new").exists()
    code, _, err = run("sample", "biggan-fmnist", "--autoencoder", folders / "kl")
    assert code == 2
    assert "only diffusion models work on an autoencoder's latents" in err


HUGE = {
    "wide": {"block_out_channels": [10**12, 8]},
    "deep": {"layers_per_block": 10**9},
    "groups": {"norm_num_groups": 2**70},
    "tall": {"block_out_channels": [4] * 10**5},
    "not a number": {"scaling_factor": float("nan")},
    "a word": {"scaling_factor": "0.18215"},
    "shift": {"shift_factor": [1.0, 2.0]},
    "means": {"latents_mean": [0.0], "latents_std": [1.0]},
    "large": {"sample_size": 10**30},
    "class": {"_class_name": ["os", "system"]},
    "wider": {"block_out_channels": [4, 800_000]},
}


@pytest.mark.parametrize("kind", HUGE)
def test_hostile_configs_are_refused_before_anything_is_built(
    run: Run, folders: Path, kind: str
) -> None:
    shutil.copytree(folders / "kl", "vae")
    config = json.loads(Path("vae/config.json").read_text())
    Path("vae/config.json").write_text(json.dumps(config | HUGE[kind]))
    code, _, err = run("sample", folders / "model", "--autoencoder", "vae", "-o", "out")
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert "vae" in err or "autoencoder" in err
    assert not Path("out").exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_with_the_channels_of_pictures(run: Run, channels: int) -> None:
    """No file tells them from pictures; with their autoencoder they are latents like others."""
    torch.save(make_dit(channels).state_dict(), "official.pt")
    tiny_kl(3, latent_channels=channels).save_pretrained("kl")
    official = ("official.pt", "--format", "dit", "num_heads=2")
    assert "latents" not in run("convert", *official, "-o", "alone")[1]
    code, out, _ = run("convert", *official, "-o", "whole", "--autoencoder", "kl")
    assert code == 0
    assert "3 x 8 x 8" in out
    code, out, _ = run("sample", "alone", *DRAW, "--autoencoder", "kl", "-o", "out")
    assert code == 0
    assert out.startswith("5 images in out/images")
    pipeline: Any = GenLabPipeline.from_pretrained("whole")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(class_labels=[0, 1], num_inference_steps=2, output_type="latent").images
    assert drawn.shape == (2, channels, SIZE, SIZE)
    assert abs(drawn).max() > 1  # nothing cuts them


def test_the_case_of_an_official_file(run: Run, folders: Path, shared: Path) -> None:
    official = shared / "cases" / "checkpoints" / "dit-latent-10.pt"
    if not official.is_file():
        pytest.skip("no such case in the folder of shared data")
    assert run("convert", official, "num_heads=3", "-o", "model")[0] == 0
    for format_ in ("npy", "zip", "npz"):
        code, out, _ = run("sample", "model", *DRAW, "--format", format_, "-o", format_)
        assert code == 0
        assert "these are latents (4 x 8 x 8)" in out
    code, out, _ = run("sample", "model", *DRAW, "--autoencoder", folders / "tiny", "-o", "out")
    assert code == 0
    assert out.startswith("5 images in out/images")

"""The small inputs on which GenLab once failed, through the command line: ``cases/README.md``.

What each kind of fault was is tested beside the code that mends it; here stand the inputs
themselves, and what a user reads.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from tiny_autoencoder import tiny_kl

import genlab
from genlab import DiffusionGenerator, cli
from genlab.data.sources.opening import open_source
from genlab.diffusion.noise import NoiseStream

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def cases(shared: Path) -> Path:
    folder = shared / "cases"
    if not folder.is_dir():
        pytest.skip("no cases in the folder of shared data")
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder: exit code, and all that it prints, which is printable."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        code = cli.main([*map(str, arguments)])
        out, err = capfd.readouterr()
        text = out + err
        assert all(line.isprintable() for line in text.splitlines()), text
        assert "Traceback" not in text
        return code, text

    return call


CHECKED: dict[str, tuple[int, str]] = {
    "labels/n_named_idx.npz": (0, "3 classes"),
    "labels/n_named_seed.npz": (0, "the numbers in seeds are not taken for labels"),
    "labels/n_short.npz": (2, "arr_1 has 5 entries for 6 images"),
    "labels/n_onehot.npz": (0, "3 classes"),
    "labels/manifest-gap": (0, "898 of 901 labels have no image"),
    "labels/manifest-label-1e20": (2, "the label 100,000,000,000,000,000,000; labels are whole"),
    "labels/label-2p62.zip": (2, "the label 4,611,686,018,427,387,904; labels are whole"),
    "labels/label-3e9.zip": (2, "the label 3,000,000,000; labels are whole numbers from 0 to 999,"),
    "labels/manifest-backslash": (0, "3 classes"),
    "labels/names-surrogate.zip": (2, r"has the class name '\ud800', which is no text"),
    "labels/npz-negative.npz": (
        2,
        "not a sound npz file (arr_0.npy has the shape (-4, 8, 8, 3)",
    ),
    "labels/npz-50-digits.npz": (2, "is not a sound npz file (the header of arr_0.npy promises"),
    "labels/npz-overflow.npz": (2, "is not a sound npz file (the header of arr_0.npy promises"),
    "images/png16-rgb": (0, "6 files have 16 bits a channel (c0/0.png); they are rounded to 8"),
    "images/png16-grey-alpha": (0, "6 files have 16 bits a channel (c0/0.png); they are rounded"),
    "images/rgba": (2, "say what lies behind them with --alpha white or black"),
    "images/idx-40-axes": (2, "holds an array of 40 axes; images have 3, labels 1"),
}


@pytest.mark.parametrize("case", CHECKED)
def test_data_check(run: Run, cases: Path, case: str) -> None:
    code, text = run("data", "check", cases / case)
    expected, message = CHECKED[case]
    assert message in text
    assert code == expected


PREPARED = {
    "labels/manifest-label-1e20": "labels are whole numbers from 0 to 999,999",
    "labels/label-2p62.zip": "labels are whole numbers from 0 to 999,999",
    "labels/label-3e9.zip": "labels are whole numbers from 0 to 999,999",
    "labels/names-surrogate.zip": "which is no text; write another name in class_names",
    "images/rgba": "say what lies behind it: --alpha white or --alpha black",
}


@pytest.mark.parametrize("case", PREPARED)
def test_data_prepare(run: Run, cases: Path, case: str, tmp_path: Path) -> None:
    code, text = run("data", "prepare", cases / case, "out.zip")
    assert (code, len(text.splitlines())) == (2, 1)
    assert PREPARED[case] in text
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("default:.* labels have no image:UserWarning")
def test_labels_as_training_takes_them(run: Run, cases: Path) -> None:
    told = ("train", "dit-cifar10", "--dry-run")
    code, text = run(*told, f"data.path={cases / 'labels/n_named_seed.npz'}")
    assert code == 2
    assert "the numbers in seeds are not taken for labels" in text
    code, text = run(*told, f"data.path={cases / 'labels/n_short.npz'}")
    assert code == 2
    assert "arr_1 has 5 entries for 6 images" in text
    code, text = run(*told, f"data.path={cases / 'labels/manifest-gap'}")
    assert code == 0
    assert "898 of 901 labels have no image" in text
    for name in ("n_named_idx.npz", "n_onehot.npz", "manifest-backslash"):
        assert run(*told, f"data.path={cases / 'labels' / name}")[0] == 0
        assert open_source(cases / "labels" / name).num_classes == 3


def test_classes_of_names_that_are_not_unique(run: Run, cases: Path) -> None:
    model = cases / "checkpoints" / "names-ambiguous"
    few = ("--seeds", "0", "--steps", "1", "-o", "out")
    code, text = run("sample", model, "--classes", "crane", *few)
    assert code == 2
    assert "2 ('crane'), 3 ('crane')" in text
    assert run("sample", model, "--classes", "A", *few)[0] == 0
    assert json.loads(Path("out/manifest.json").read_text())["labels"] == [0]


def test_a_pipe_among_records(run: Run, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    os.mkfifo(tmp_path / "records" / "x.json")
    code, text = run("leaderboard", "show", "--dir", "records")
    assert code == 2
    assert "x.json is a pipe or a device and is not opened" in text
    assert run("leaderboard", "show", "--dir", "records", "--skip-broken")[0] == 0  # the cure


CONVERTED = {
    "biggan-deep-depth1-G.pth": "give G_depth=1 in the config",
    "biggan-cross-replica-G.pth": "was trained with cross_replica=True",
    "edm-training-state-000100.pt": "give network-snapshot-000100.pkl beside it",
    "dit-quantized.pt": "as qint8 (quantized), which no network of GenLab computes with",
    "dit-zero-rows.pt num_heads=2": "holds no numbers of blocks.0.mlp.fc1.weight",
    "legacy-1-byte.pt": "is of no format that GenLab can tell",
    "legacy-1-byte.pt --format dit": "is cut short or damaged",
    "dit-escape.pt": "is of no format that GenLab can tell",
    "dit-escape.pt --format dit": r"(found: \x1b]0;pwned\x07\x1b[31mKEY\nsecond line)",
}


@pytest.mark.parametrize("words", CONVERTED)
def test_checkpoints_that_are_refused(run: Run, cases: Path, words: str) -> None:
    name, *options = words.split()
    code, text = run("convert", cases / "checkpoints" / name, "-o", "out", *options)
    assert (code, len(text.splitlines())) == (2, 1)
    assert CONVERTED[words] in text
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ("dit-latent-10.pt num_heads=3", "4 x 8 x 8 latents, 10 classes"),
        ("dit-compiled.pt num_heads=3", "4 x 8 x 8 latents, 10 classes"),
        ("biggan-thin-D.pth", "BigGANDiscriminator"),
        ("biggan-deep-depth1-G.pth G_depth=1", "3 x 32 x 32, 12 classes"),
        ("diffusers-pndm", "its sampler: diffusers (scheduler PNDMScheduler), 50 steps"),
    ],
)
def test_checkpoints_that_are_read(run: Run, cases: Path, words: str, shape: str) -> None:
    name, *options = words.split()
    code, text = run("convert", cases / "checkpoints" / name, "-o", "out", *options)
    assert code == 0
    assert shape in text


@pytest.mark.parametrize("resolutions", ["8", "8,"])
def test_resolutions_of_attention_as_the_official_parser_takes_them(
    run: Run, shared: Path, resolutions: str
) -> None:
    file = shared / "golden" / "adm_unet_new_order" / "weights.safetensors"
    if not file.is_file():
        pytest.skip("no golden case of guided-diffusion")
    told = ("image_size=16", "num_head_channels=16", "use_new_attention_order=true")
    attention = f"attention_resolutions={resolutions}"
    code, text = run("convert", file, "-o", "out", *told, attention)
    assert code == 0, text
    network: Any = genlab.load("out").network
    assert list(network.config.attn_resolutions) == [8]


def test_a_dit_that_diffusers_saves_again_is_drawn_as_diffusers_draws_it(
    run: Run, cases: Path
) -> None:
    tiny_kl(3, latent_channels=4).save_pretrained("kl")
    official = (cases / "checkpoints" / "dit-latent-10.pt", "num_heads=3")
    code, text = run("convert", *official, "-o", "out", "--to", "diffusers", "--autoencoder", "kl")
    assert code == 0
    assert "class 1000 for the null class" in text
    scheduler = json.loads(Path("out/scheduler/scheduler_config.json").read_text())
    assert scheduler["clip_sample"] is False
    pipeline: Any = DiTPipeline.from_pretrained("out")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained("again")
    seed = torch.Generator().manual_seed(5)
    drawn = pipeline([1], 1.0, seed, num_inference_steps=6, output_type="np").images

    generator = genlab.load("again")
    assert isinstance(generator, DiffusionGenerator)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    built = generator.build_sampler(num_steps=6)
    *_, last = generator.steps(NoiseStream([5]), [1], built, latents)
    ours = (generator.decode(last.x) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.from_numpy(drawn), rtol=1e-3, atol=1e-4)
    few = ("--seeds", "5", "--classes", "1", "--guidance", "1", "--steps", "6")
    assert run("sample", "again", *few, "-o", "drawn")[0] == 0
    code, text = run("doctor", "again")
    assert code == 0
    assert "diffusers, a folder" in text


def test_few_steps_of_a_scheduler_of_diffusers(run: Run, cases: Path) -> None:
    told = ("sample", cases / "checkpoints" / "diffusers-pndm", "--seeds", "0", "-o", "out")
    code, text = run(*told, "--steps", "2")
    assert code == 2
    assert "cannot draw in num_steps 2 with its settings; take num_steps 4 or more" in text
    assert run(*told, "--steps", "4")[0] == 0  # the cure


FOLDERS = {
    "depth-1e9": "claims depth = 1000000000, more than any network has",
    "T-1e9": "needs T >= 1 noise levels, and at most 100,000",
    "mlp-1e-9": "cannot be built: mlp_ratio 1e-09 leaves no hidden layer",
    "modelmixin": "has no model ModelMixin that a folder can hold",
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("command", ["sample", "doctor"])
def test_folders_that_claim_too_much(run: Run, cases: Path, command: str, name: str) -> None:
    code, text = run(command, cases / "folders" / name)
    assert (code, len(text.splitlines())) == (2, 1)
    assert FOLDERS[name] in text


def test_class_names_reach_no_terminal(run: Run, cases: Path) -> None:
    code, text = run("doctor", cases / "folders" / "names-escape")
    assert code == 0
    assert r"\x1b]0;pwned" in text


# The script leaves its file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:genlab.checkpoints.dit is")  # the case is that old
def test_a_model_reads_no_environment(
    run: Run, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-secret")
    monkeypatch.setattr(sys, "argv", ["make_env_leak.py", "leak"])
    runpy.run_path(str(cases / "folders" / "make_env_leak.py"), run_name="__main__")
    code, text = run("sample", "./leak", "--seeds", "0", "-o", "out")
    assert code == 2
    assert "would be interpolated, which GenLab does not do" in text
    assert "hunter2" not in text
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deep", "is nested more than 32 deep"),
        ("digits", "value has 5000 digits"),
        ("guidance-1000", "sampler.guidance has 1,000 entries; name at most 16"),
    ],
)
def test_yaml(run: Run, cases: Path, name: str, message: str) -> None:
    config = ("--config", cases / "yaml" / f"{name}.yaml")
    code, text = run("sample", *config, "--seeds", "0", "-o", "out")
    assert (code, len(text.splitlines())) == (2, 1)
    assert message in text
    assert "sys." not in text


def test_a_record_whose_mean_is_another_number(run: Run, cases: Path) -> None:
    folder = cases / "records" / "board-fsum"
    code, text = run("leaderboard", "show", "--dir", folder)
    assert code == 2
    assert "the mean of its values is another number" in text
    assert run("leaderboard", "html", "--dir", folder, "-o", "x.html", "--skip-broken")[0] == 0


def test_16_bits_are_rounded(run: Run, cases: Path) -> None:
    """0x00ff is nearer to 1 than to 0 of 255."""
    for name in ("png16-rgb", "png16-grey-alpha"):
        assert run("data", "prepare", cases / "images" / name, f"{name}.zip")[0] == 0
        old, new = open_source(cases / "images" / name), open_source(f"{name}.zip")
        assert len(old) == len(new) == 6
        for index in range(6):
            channels = len(new.read(index))
            np.testing.assert_array_equal(old.read(index)[:channels], new.read(index))

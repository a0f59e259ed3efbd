"""``genlab sample``: what it writes, and the one sentence for everything that can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from genlab import DiffusionGenerator
from genlab.cli import main
from genlab.data.labels import random_label
from genlab.data.pixels import to_uint8
from genlab.errors import ConfigError
from genlab.runs.plan import SamplePlan

Run = Callable[..., tuple[int, str, str]]

SPEC = """\
model: {model}
seeds: 0-5
labels: balanced
sampler: {{solver: {{name: euler}}, schedule: {{num_steps: 3}}}}
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["sample", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_model_and_nothing_else(run: Run, tiny_model: Path, tiny_generator: Any) -> None:
    code, out, err = run(tiny_model)
    folder = Path("samples") / tiny_model.name
    assert (code, err) == (0, "")
    assert out.startswith(f"16 images in {folder / 'images'}, {folder / 'grid.png'} (35 network")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["seeds"] == "0-15"
    assert manifest["labels"] == [random_label(seed, 3) for seed in range(16)]
    assert manifest["identity"]["weights_sha256"] == tiny_generator.weights_sha256()
    assert manifest["config"]["sampler"]["schedule"]["num_steps"] == 18
    images = to_uint8(tiny_generator.sample(range(16), batch_size=16))
    for seed in range(16):
        shown = np.asarray(Image.open(folder / f"images/00000/img{seed:08d}.png"))
        np.testing.assert_array_equal(shown, images[seed, 0])
    assert run(tiny_model)[1].endswith("all there already, nothing to do\n")


def test_options_reach_the_run(run: Run, tiny_model: Path) -> None:
    code, _, err = run(
        tiny_model, "--seeds", "3,10-12", "--classes", "sneaker,2", "-o", "out", "--format", "npz",
        "--steps", 3, "--guidance", 2, "--batch-size", 3, "--no-grid", "--animation", "gif",
        "--dtype", "bfloat16", "sampler.solver.S_churn=5",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "animation.gif", "images.npz", "manifest.json"
    ]  # fmt: skip
    with np.load("out/images.npz") as stored:
        assert stored["arr_0"].shape == (4, 8, 8, 1)
        assert stored["arr_1"].tolist() == [1, 2, 1, 2]
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["nfe"] == 10  # (2 x 3 - 1) steps, each with and without its class
    assert manifest["identity"]["dtype"] == "bfloat16"
    assert manifest["config"]["sampler"] == {
        "solver": {"name": "heun", "S_churn": 5},
        "schedule": {"name": "karras", "num_steps": 3},
        "guidance": [{"name": "cfg", "scale": 2.0}],
    }


def test_quiet_says_nothing(run: Run, tiny_model: Path) -> None:
    assert run(tiny_model, "--seeds", 0, "--steps", 1, "-q") == (0, "", "")


def test_a_dry_run_prints_what_a_run_would_take(run: Run, tiny_model: Path) -> None:
    options = ("sampler=cfg", "sampler.guidance.0.scale=4", "--seeds", "1-2", "--steps", 3)
    code, out, _ = run(tiny_model, *options, "--dry-run")
    assert code == 0
    assert not Path("samples").exists()
    shown = OmegaConf.to_container(OmegaConf.create(out))
    assert isinstance(shown, dict)
    assert shown["sampler"]["guidance"] == [{"name": "cfg", "scale": 4}]
    Path("again.yaml").write_text(out)
    assert run("--config", "again.yaml", "-o", "a")[0] == 0
    assert run(tiny_model, *options, "-o", "b")[0] == 0
    for name in ("images/00000/img00000001.png", "images/00000/img00000002.png"):
        assert (Path("a") / name).read_bytes() == (Path("b") / name).read_bytes()


def test_a_configuration_stands_below_the_options(run: Run, tiny_model: Path) -> None:
    Path("mine.yaml").write_text(SPEC.format(model=tiny_model))
    code, out, _ = run("--config", "mine.yaml", "sampler.schedule.num_steps=2", "--dry-run")
    shown = OmegaConf.create(out)
    assert code == 0
    assert shown.sampler.solver.name == "euler"
    assert shown.sampler.schedule.num_steps == 2
    assert shown.sampler.schedule.name == "karras"  # the model's own
    assert shown.seeds == "0-5"
    assert run("--config", "mine.yaml", "--seeds", 0, "-o", "out")[0] == 0
    assert json.loads(Path("out/manifest.json").read_text())["labels"] == [0]


def test_the_animation_and_grid_of_the_first_images(run: Run, tiny_model: Path) -> None:
    run(tiny_model, "--seeds", "0-8", "--labels", "balanced", "--steps", 4, "--animation", "webp",
        "-o", "out")  # fmt: skip
    with Image.open("out/animation.webp") as animation:
        assert animation.n_frames == 4  # type: ignore[attr-defined]
    with Image.open("out/grid.png") as grid:
        assert grid.width >= 3 * 64


def test_an_animation_shows_estimates_or_states(run: Run, tiny_model: Path) -> None:
    """The estimate is there from the first step on, the state is noise; both end in the image."""
    common = ("--seeds", 0, "--steps", 4, "--no-grid", "-o", "out")
    assert run(tiny_model, *common, "--animation", "webp")[0] == 0
    assert run(tiny_model, *common, "--film", "webp", "--animation-of", "state")[0] == 0
    frames = {}
    for name in ("animation", "animation-state"):
        with Image.open(f"out/{name}.webp") as animation:
            assert animation.n_frames == 4  # type: ignore[attr-defined]
            shown = []
            for index in (0, 3):
                animation.seek(index)
                shown.append(np.asarray(animation.convert("L")).astype(int)[-64:])
            frames[name] = shown
    estimate, state = frames["animation"], frames["animation-state"]
    np.testing.assert_array_equal(estimate[1], state[1])
    image = np.asarray(Image.open("out/images/00000/img00000000.png")).astype(int)
    np.testing.assert_array_equal(estimate[1][:64:8, 4:68:8], image)
    assert abs(estimate[0] - state[0]).max() > 30
    assert run(tiny_model, *common, "--animation", "webp")[1].count("nothing to do") == 1


def test_what_an_animation_may_show() -> None:
    with pytest.raises(ConfigError, match="shows the estimate or the state, not 'noise'"):
        SamplePlan(seeds=(0,), labels=None, image_shape=(1, 8, 8), identity={}, animation="gif",
                   animation_of="noise")  # fmt: skip


def test_overwriting(run: Run, tiny_model: Path) -> None:
    assert run(tiny_model, "--seeds", "0-1", "--steps", 1, "-o", "out")[0] == 0
    code, out, err = run(tiny_model, "--seeds", "0-1", "--steps", 2, "-o", "out")
    assert (code, out) == (2, "")
    assert "sampler.schedule.num_steps was 1, now 2" in err
    assert "--overwrite" in err
    assert run(tiny_model, "--seeds", "0-1", "--steps", 2, "-o", "out", "--overwrite")[0] == 0


WRONG: dict[str, tuple[list[str], str]] = {
    "no model": ([], "which model?"),
    "unknown model": (["edm-fmnits"], "there is no model 'edm-fmnits'"),
    "missing file": (["here/model.pkl"], "here/model.pkl"),
    "two models": (["MODEL", "other"], "'other' is not a setting"),
    "unknown preset": (["--config", "edm-fmnits"], "did you mean 'edm-fmnist'"),
    "missing spec": (["--config", "gone.yaml"], "no such file"),
    "unknown key": (["MODEL", "sedes=3"], "did you mean 'seeds'"),
    "wrong type": (["MODEL", "batch_size=many"], "batch_size takes a whole number"),
    "batch of none": (["MODEL", "batch_size=0"], "batch_size must be at least 1"),
    "unknown sampler": (["MODEL", "sampler=edm-huen"], "did you mean 'edm-heun'"),
    "unknown solver": (["MODEL", "sampler.solver.name=huen"], "did you mean 'heun'"),
    "unknown option": (["MODEL", "sampler.solver.S_chrun=3"], "did you mean 'S_churn'"),
    "class too large": (["MODEL", "--classes", "3"], "class 3 is out of range"),
    "unknown class": (["MODEL", "--classes", "sneeker"], "did you mean 'Sneaker'"),
    "too few labels": (["MODEL", "--labels", "0,1"], "2 labels for 16 seeds"),
    "labels and classes": (["MODEL", "--labels", "0", "--classes", "0"], "exclude each other"),
    "bad seeds": (["MODEL", "--seeds", "5-2"], "runs backwards"),
    "unknown format": (["MODEL", "format=jpg"], "'jpg'"),
    "unknown dtype": (["MODEL", "dtype=int8"], "'int8'"),
    "unknown device": (["MODEL", "--device", "tpu"], "cannot use the device 'tpu'"),
    "a file as folder": (["MODEL", "-o", "out.zip"], "-o out --format zip"),
    "unwritable": (["MODEL", "-o", "/proc/out"], "cannot write"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_bad_input_is_one_sentence_and_exit_code_2(run: Run, tiny_model: Path, kind: str) -> None:
    arguments, message = WRONG[kind]
    given = [str(tiny_model) if word == "MODEL" else word for word in arguments]
    code, out, err = run(*given)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("genlab")
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_damaged_weights(run: Run, tiny_generator: DiffusionGenerator) -> None:
    tiny_generator.save_pretrained("model")
    weights = Path("model/network/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, err = run("./model", "-o", "out")
    assert code == 2
    assert "cut short" in err
    assert err.count("\n") == 1
    assert not Path("out").exists()


def test_weights_that_give_no_numbers(run: Run, tiny_generator: DiffusionGenerator) -> None:
    tiny_generator.save_pretrained("model")
    weights = Path("model/network/diffusion_pytorch_model.safetensors")
    tensors = load_file(weights)
    tensors = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
    save_file(tensors, weights, {"format": "pt"})
    code, _, err = run("./model", "-o", "out", "--seeds", "40-42")
    assert code == 2
    assert "3 images are not finite (seeds 40, 41, 42)" in err
    assert not Path("out").exists()


def test_guidance_needs_a_null_class(run: Run, tiny_generator: DiffusionGenerator) -> None:
    network, precond = tiny_generator.network, tiny_generator.preconditioning
    DiffusionGenerator(network, precond).save_pretrained("model")
    code, _, err = run("./model", "--guidance", 2, "-o", "out")
    assert code == 2
    assert "label dropout" in err
    assert not Path("out").exists()


def test_the_help_teaches(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "genlab sample edm-fmnist --seeds 0-63 --classes sneaker,bag -o out/" in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_preset_takes_the_place_of_the_model_s_own_sampler(
    run: Run, tiny_generator: DiffusionGenerator
) -> None:
    """Whole: an option that it leaves out is the default, as in Python, not the model's."""
    own = {"solver": {"name": "heun", "S_churn": 40}, "guidance": [{"name": "cfg", "scale": 2.0}]}
    model = DiffusionGenerator(
        tiny_generator.network, tiny_generator.preconditioning, sampler=own, has_null_class=True
    )
    model.save_pretrained("own")
    code, out, _ = run("own", "sampler=edm-heun", "--dry-run")
    assert code == 0
    told: Any = OmegaConf.to_container(OmegaConf.create(out))
    assert told["sampler"] == model.build_sampler("edm-heun").config
    code, out, _ = run("own", "sampler.schedule.num_steps=3", "--dry-run")
    changed: Any = OmegaConf.to_container(OmegaConf.create(out))
    assert changed["sampler"]["solver"] == own["solver"]

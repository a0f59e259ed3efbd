"""The package of docs/plugins.md, installed and used from the command line."""

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plugin_packages import EXAMPLE, Result, install_example, run_commands
from safetensors.torch import save_file

import genlab.checkpoints  # noqa: F401 - says how names become parts
from genlab import DiffusionGenerator
from genlab.data.writing.writers import write_npz
from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.preconditioning import EDM
from genlab.errors import CheckpointError, ConfigError
from genlab.eval.metrics.base import FeatureSet
from genlab.eval.moments import Moments
from genlab.networks import SongUNet
from genlab.samplers import parts
from genlab.samplers.guidance.base import When
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.solvers.euler import Euler

PAGE = EXAMPLE.parent / "plugins.md"

SIZES: dict[str, Any] = {
    "img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 3, "model_channels": 8,
    "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4],
}  # fmt: skip
"""Of `tiny_generator`'s network."""

SAMPLER = (
    "sampler.solver.name=ralston", "sampler.solver.alpha=0.5",
    "sampler.schedule.name=log-linear", "sampler.schedule.num_steps=4",
)  # fmt: skip


def blocks() -> list[str]:
    """The page's blocks of code."""
    return re.findall(r"^```\w+\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_page_shows_the_files() -> None:
    files = [EXAMPLE / "pyproject.toml", *sorted((EXAMPLE / "genlab_example").glob("[!_]*.py"))]
    assert len(files) == 7
    shown = blocks()
    for path in files:
        assert path.read_text(encoding="utf-8") in shown, f"docs/plugins.md lacks {path.name}"


def other_generator(seed: int, label_dim: int = 3, img_resolution: int = 8) -> DiffusionGenerator:
    """A model beside `tiny_generator`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SongUNet(**SIZES | {"label_dim": label_dim, "img_resolution": img_resolution})
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return DiffusionGenerator(network.eval(), EDM())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example is installed in."""
    return install_example(tmp_path_factory.mktemp("plugins"))


def sampling(model: Path, folder: Path, guide: Path) -> tuple[object, ...]:
    guidance = f"{{name: weak-model, guide: {guide}, scale: 2, when: {{steps: [0, 0.5]}}}}"
    return ("sample", model, "--seeds", "0-1", "-o", folder, "--no-grid", *SAMPLER,
            f"sampler.guidance=[{guidance}]")  # fmt: skip


def scoring(images: Path, real: Path, board: Path) -> tuple[object, ...]:
    return ("eval", images, "--reference", real, "--dataset", "toys", "-o", board, "-q",
            "--extractor", "thumbnail", "--metrics", "mean-difference,fd")  # fmt: skip


@pytest.fixture(scope="module")
def results(
    site: Path,
    tiny_model: Path,
    tiny_generator: DiffusionGenerator,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Result, Path]]:
    """Everything that is used from the command line: (what the command said, where it wrote)."""
    folder = tmp_path_factory.mktemp("used")
    for seed in (5, 6):
        other_generator(seed).save_pretrained(folder / f"guide-{seed}")
    numbers = np.random.default_rng(0)
    for name, low, high in (("real", 80, 200), ("near", 90, 200), ("far", 0, 120)):
        pixels = numbers.integers(low, high, (12, 8, 8, 3), dtype=np.uint8)
        write_npz(folder / f"{name}.npz", iter(pixels), pixels.shape, None)
    sizes = {"example_unet": json.dumps(SIZES)}
    file = write_file(folder / "tiny.safetensors", tiny_generator, sizes)
    board, out, converted = folder / "board", folder / "out", folder / "converted"
    commands: dict[str, tuple[tuple[object, ...], Path]] = {
        "sample": (sampling(tiny_model, out, folder / "guide-5"), out),
        "again": (sampling(tiny_model, out, folder / "guide-5"), out),
        "other guide": (sampling(tiny_model, out, folder / "guide-6"), out),
        "near": (scoring(folder / "near.npz", folder / "real.npz", board), board),
        "far": (scoring(folder / "far.npz", folder / "real.npz", board), board),
        "show": (("leaderboard", "show", "--dir", board), board),
        "convert": (("convert", file, "-o", converted, "--format", "example-unet"), converted),
        "sample converted": (("sample", converted, "--seeds", "0", "-o", folder / "of-folder"),
                             folder / "of-folder"),
        "sample file": (("sample", file, "--seeds", "0", "-o", folder / "of-file"),
                        folder / "of-file"),
    }  # fmt: skip
    done = run_commands(site, [command for command, _ in commands.values()])
    paths = (path for _, path in commands.values())
    return dict(zip(commands, zip(done, paths, strict=True), strict=True))


def test_a_sampler_of_plug_ins(results: dict[str, tuple[Result, Path]]) -> None:
    (code, _, err), folder = results["sample"]
    assert code == 0, err
    manifest = json.loads((folder / "manifest.json").read_text())
    sampler = manifest["config"]["sampler"]
    assert sampler["solver"] == {"name": "ralston", "alpha": 0.5}
    assert sampler["schedule"] == {"name": "log-linear", "num_steps": 4}
    assert sampler["guidance"][0]["name"] == "weak-model"
    # 2 x 4 - 1 of the model, and as many of the guide as in the first two steps.
    assert manifest["spent"]["nfe"] == 7 + 4
    assert manifest["identity"]["generators_sha256"] == [other_generator(5).sha256()]


def test_the_guide_is_part_of_the_identity(results: dict[str, tuple[Result, Path]]) -> None:
    (code, out, err), _ = results["again"]
    assert code == 0, err
    assert "nothing to do" in out
    (code, _, err), _ = results["other guide"]
    assert code == 2
    assert "generators_sha256" in err


def test_the_metric_is_ranked_in_its_direction(results: dict[str, tuple[Result, Path]]) -> None:
    for name in ("near", "far"):
        (code, out, err), _ = results[name]
        assert code == 0, err
        assert "mean-difference[thumbnail]" in out
    (code, out, err), folder = results["show"]
    assert (code, err) == (0, "")
    assert "mean-difference ↓" in out
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    values = {r["model"]: r["scores"]["mean-difference[thumbnail]"]["value"] for r in records}
    assert values["near"] < values["far"]
    ranks = re.findall(r"^ ?(\d) +(near|far)\b.*?([\d.]+)", out, re.M)
    assert [(place, name) for place, name, _ in ranks] == [("1", "near"), ("2", "far")]
    assert records[0]["protocol"]["metrics"]["mean-difference"] == {"least_std": 1e-6}
    assert records[0]["protocol"]["extractor"]["resize"] == "averaged to 4x4"


def test_the_reader_converts_and_is_found(results: dict[str, tuple[Result, Path]]) -> None:
    (code, out, err), _ = results["convert"]
    assert code == 0, err
    assert "SongUNet" in out
    pictures = []
    for name in ("sample converted", "sample file"):
        (code, _, err), folder = results[name]
        assert code == 0, err
        pictures.append((folder / "images/00000/img00000000.png").read_bytes())
    assert pictures[0] == pictures[1]


@pytest.fixture(scope="module")
def example(site: Path) -> Iterator[Any]:
    """Its modules, imported into this process."""
    sys.path.insert(0, str(site))
    try:
        names = ("solver", "schedule", "guidance", "metric", "extractor", "reader")
        modules = [import_module(f"genlab_example.{name}") for name in names]
        yield sys.modules["genlab_example"]
    finally:
        sys.path.remove(str(site))
        for module in [*(module.__name__ for module in modules), "genlab_example"]:
            del sys.modules[module]


def write_file(path: Path, generator: DiffusionGenerator, metadata: dict[str, str] | None) -> Path:
    """What the reader reads."""
    state = generator.network.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata)
    return path


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's own Python (its last block) defines."""
    names: dict[str, Any] = {}
    exec(blocks()[-1], names)  # noqa: S102 - our own page
    return names


@pytest.mark.parametrize("alpha", [0.5, 2 / 3, 1.0])
def test_the_solver_converges_with_its_order(
    example: Any, page: dict[str, Any], alpha: float
) -> None:
    solver = example.solver.Ralston(alpha=alpha)
    # At these step counts the next order still shows.
    assert page["order_of"](solver) == pytest.approx(solver.order, abs=0.15)


def test_the_solver_counts_and_refuses(example: Any, page: dict[str, Any]) -> None:
    solver, model = example.solver.Ralston(), page["model"]
    before = model.evaluations
    page["end"](solver, 4)
    assert model.evaluations - before == 2 * solver.nfe(5)
    sampler = Sampler(solver=solver, schedule=Karras())
    with pytest.raises(ConfigError, match="between those of the schedule"):
        sampler.grid(Discrete(T=40))
    assert sampler.grid(Discrete(T=40, interpolate=True))
    for alpha in (0.0, 1.5):
        with pytest.raises(ConfigError, match="0 < alpha <= 1"):
            example.solver.Ralston(alpha=alpha)


def test_the_schedule_is_even_in_log_sigma(example: Any) -> None:
    schedule = example.schedule.LogLinear(num_steps=4, sigma_min=0.01, sigma_max=10)
    levels = schedule(EDM())
    torch.testing.assert_close(levels, torch.tensor([10, 1, 0.1, 0.01, 0]).double())
    assert (example.schedule.LogLinear(power=0.5)(EDM())[1:-2] <
            example.schedule.LogLinear()(EDM())[1:-2]).all()  # fmt: skip
    with pytest.raises(ConfigError, match="power > 0"):
        example.schedule.LogLinear(power=0)


def test_the_guidance_formula(example: Any, tiny_generator: DiffusionGenerator) -> None:
    guide, x = other_generator(5), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    sigma, condition = torch.tensor(0.7).double(), Condition(labels=torch.tensor([0, 2]))
    options = example.guidance.WeakModelGuidance(guide=guide, scale=3.0)
    guided = options(tiny_generator.denoiser)(x, sigma, condition)
    strong, weak = (m.denoiser(x, sigma, condition) for m in (tiny_generator, guide))
    torch.testing.assert_close(guided, weak + 3 * (strong - weak))


@pytest.mark.parametrize(
    ("options", "asked"),
    [({}, 4), ({"when": {"steps": (0.5, 1)}}, 2), ({"when": {"sigma": (0, 1e-9)}}, 0),
     ({"scale": 1.0}, 0)],
)  # fmt: skip
def test_the_guidance_costs_nothing_outside_its_window(
    example: Any, tiny_generator: DiffusionGenerator, options: dict[str, Any], asked: int
) -> None:
    guide = other_generator(5)
    when = When(**options.pop("when", {}))
    guidance = example.guidance.WeakModelGuidance(guide=guide, when=when, **options)
    sampler = Sampler(solver=Euler(), schedule=Karras(num_steps=4), guidance=(guidance,))
    batch = next(iter(tiny_generator.stream([0, 1], [0, 1], sampler)))
    assert guide.evaluations == 2 * asked
    assert batch.nfe == 4 + asked


def test_the_guidance_refuses_what_does_not_fit(
    example: Any, tiny_generator: DiffusionGenerator
) -> None:
    make = example.guidance.WeakModelGuidance
    with pytest.raises(ConfigError, match="the guide has 2 classes and the model 3"):
        make(guide=other_generator(5, label_dim=2))(tiny_generator.denoiser)
    small = make(guide=other_generator(5, img_resolution=4))
    sampler = Sampler(solver=Euler(), schedule=Karras(), guidance=(small,))
    with pytest.raises(ConfigError, match=r"the guide denoises states of shape \(1, 4, 4\)"):
        tiny_generator.sample([0], [0], sampler)
    for options in ({"guide": 3}, {"guide": "a", "scale": -1.0}):
        with pytest.raises(ConfigError, match="weak-model needs"):
            make(**options)


def test_a_guide_that_cannot_denoise_is_refused() -> None:
    with pytest.raises(ConfigError, match="generator 'biggan-fmnist' cannot be asked about noisy"):
        parts.load("generator", "biggan-fmnist")


def test_the_metrics(example: Any) -> None:
    rows = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    samples, reference = (
        FeatureSet(count=2, moments={"features": Moments.of(each)}) for each in (rows + 3, rows)
    )
    # The second feature does not vary; the first differs by 3, its standard deviation is sqrt(2).
    scores = example.metric.MeanDifference()(samples, reference)
    assert scores == {"mean-difference": pytest.approx(3 / 2**0.5)}
    bits = torch.linspace(1, 2, 101)
    scores = example.metric.BitsQuantile(q=0.25)(bits)
    assert scores == {"bpd-quantile": pytest.approx(1.25)}


def test_the_extractor_averages(example: Any) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[1, 2, :2, 2:4] = 255
    features = example.extractor.Thumbnail()(images)["features"]
    assert features.shape == (2, 48)
    assert features.nonzero().tolist() == [[1, 2 * 16 + 1]]
    alone = example.extractor.Thumbnail()(images[1:])["features"]
    assert torch.equal(alone[0], features[1])


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (None, "has no metadata 'example_unet'"),
        ({"example_unet": "{"}, "has no metadata 'example_unet'"),
        ({"example_unet": "[8]"}, "has no metadata 'example_unet'"),
        ({"example_unet": '{"img_resolution": 1e99}'}, "more than sizes"),
        ({"example_unet": '{"img_resolution": "8"}'}, "more than sizes"),
        ({"example_unet": json.dumps({**SIZES, "unknown": 3})}, "cannot be built"),
        ({"example_unet": json.dumps({**SIZES, "model_channels": 16})}, "does not fit"),
    ],
)
def test_the_reader_refuses_damage(
    example: Any, tiny_generator: DiffusionGenerator, tmp_path: Path, metadata: Any, sentence: str
) -> None:
    path = write_file(tmp_path / "tiny.safetensors", tiny_generator, metadata)
    with pytest.raises(CheckpointError, match=sentence):
        example.reader.ExampleReader().read(path, None)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        example.reader.ExampleReader().read(path, None)

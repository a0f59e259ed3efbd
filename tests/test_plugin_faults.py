"""A fault in a plug-in is one sentence that names it, and exit code 2."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from plugin_packages import Result, run_commands, write_package
from safetensors.torch import save_file
from small_records import make_record

from genlab.cli.errors import explain
from genlab.data.writing.writers import write_npz
from genlab.eval.leaderboard.records import write_record

SOLVERS = """
from collections import namedtuple
from dataclasses import dataclass, replace
from genlab.samplers.base import Solver, StepResult

def function(denoiser, x, step, memory):
    return x

class Stranger:
    def step(self, denoiser, x, step, memory):
        return x

class Abstract(Solver):
    order = 1

@dataclass(frozen=True, kw_only=True)
class Good(Solver):
    order = 1

    def step(self, denoiser, x, step, memory):
        x0 = denoiser(x, step.sigma)
        return StepResult(x=x + (step.sigma_next - step.sigma) / step.sigma * (x - x0), x0=x0)

@dataclass(frozen=True, kw_only=True)
class Option(Good):
    levels: int = "many"

@dataclass(frozen=True, kw_only=True)
class Missing(Good):
    levels: "Levels" = None

@dataclass(frozen=True, kw_only=True)
class Checks(Good):
    order: int = 3

    def __post_init__(self):
        raise ValueError("an odd order")

@dataclass(frozen=True, kw_only=True)
class Zero(Good):
    def step(self, denoiser, x, step, memory):
        return super().step(denoiser, x, step, 1 / 0)

@dataclass(frozen=True, kw_only=True)
class Bare(Good):
    def step(self, denoiser, x, step, memory):
        return x

@dataclass(frozen=True, kw_only=True)
class Shape(Good):
    def step(self, denoiser, x, step, memory):
        result = super().step(denoiser, x, step, memory)
        return replace(result, x=result.x[:, :, :-1])

@dataclass(frozen=True, kw_only=True)
class NotANumber(Good):
    def step(self, denoiser, x, step, memory):
        result = super().step(denoiser, x, step, memory)
        return replace(result, x=result.x * float("nan"))

@dataclass(frozen=True, kw_only=True)
class AsksWrongly(Good):
    def step(self, denoiser, x, step, memory):
        x0 = denoiser(x[:, :, :-1], step.sigma)
        return StepResult(x=x, x0=x)
"""

SCHEDULES = """
from dataclasses import dataclass
import torch
from genlab.samplers.schedules.base import NoiseSchedule

@dataclass(frozen=True, kw_only=True)
class Zero(NoiseSchedule):
    def levels(self, sigma_min, sigma_max):
        return torch.ones(1 // 0)

@dataclass(frozen=True, kw_only=True)
class Negative(NoiseSchedule):
    def levels(self, sigma_min, sigma_max):
        return -torch.ones(self.num_steps, dtype=torch.float64)
"""

GUIDANCE = """
from dataclasses import dataclass
from genlab.samplers.guidance.base import Guidance, GuidanceOptions

class Wrapped(Guidance):
    what = None

    def guide(self, x, sigma, conditions):
        predictions = self.inner.predict_each(x, sigma, conditions)
        return predictions[7] if self.what is None else self.what

@dataclass(frozen=True, kw_only=True)
class Fails(GuidanceOptions):
    def __call__(self, denoiser):
        return Wrapped(denoiser)

@dataclass(frozen=True, kw_only=True)
class Returns(GuidanceOptions):
    def __call__(self, denoiser):
        wrapped = Wrapped(denoiser)
        wrapped.what = "nothing"
        return wrapped

@dataclass(frozen=True, kw_only=True)
class NoWrap(GuidanceOptions):
    def __call__(self, denoiser):
        return "nothing"
"""

METRICS = """
from dataclasses import dataclass
from genlab.eval.metrics.base import FeatureMetric, Need, ScoreInfo

@dataclass(frozen=True, kw_only=True)
class Zero(FeatureMetric):
    scores = (ScoreInfo("zero", lower_is_better=True),)
    needs = (Need("rows", "features"),)

    def __call__(self, samples, reference):
        return {"zero": 1 / 0}

@dataclass(frozen=True, kw_only=True)
class Bare(FeatureMetric):
    scores = (ScoreInfo("bare", lower_is_better=True),)
    needs = (Need("rows", "features"),)

    def __call__(self, samples, reference):
        return 3.0
"""

EXTRACTORS = """
import torch
from genlab.eval.extractors.base import FeatureExtractor

class Good(FeatureExtractor):
    name, outputs, resize, weights_sha256 = "good", {"features": 2}, "none", "none"
    device = torch.device("cpu")

    def __init__(self, weights=None):
        pass

    def to(self, device):
        return self

    def __call__(self, images, outputs=("features",)):
        return {"features": images.float().mean((2, 3))[:, :2]}

class Fails(Good):
    def __call__(self, images, outputs=("features",)):
        return {"features": images @ images.float()}

class Shape(Good):
    def __call__(self, images, outputs=("features",)):
        return {"features": images.float().mean((2, 3))}
"""

READERS = """
class Fails:
    def recognises(self, source, config):
        return False

    def read(self, source, config):
        with open(source) as file:
            return int(file.read(0))

class Opens(Fails):
    def read(self, source, config):
        return open(f"{source}.gone")

class Nothing(Fails):
    def read(self, source, config):
        return None

class NoReader:
    pass
"""

MODULES = {
    "solvers": SOLVERS, "schedules": SCHEDULES, "guidance": GUIDANCE, "metrics": METRICS,
    "extractors": EXTRACTORS, "readers": READERS, "missing": "import not_there\n",
    "exits": "raise SystemExit('no licence')\n",
}  # fmt: skip

ENTRIES = {
    "solvers": [
        "no-import = broken_plugins.missing:Solver",
        "exits = broken_plugins.exits:Solver",
        "function = broken_plugins.solvers:function",
        "stranger = broken_plugins.solvers:Stranger",
        "abstract = broken_plugins.solvers:Abstract",
        "good = broken_plugins.solvers:Good",
        "option = broken_plugins.solvers:Option",
        "missing = broken_plugins.solvers:Missing",
        "checks = broken_plugins.solvers:Checks",
        "zero = broken_plugins.solvers:Zero",
        "bare = broken_plugins.solvers:Bare",
        "shape = broken_plugins.solvers:Shape",
        "nan = broken_plugins.solvers:NotANumber",
        "asks-wrongly = broken_plugins.solvers:AsksWrongly",
    ],
    "schedules": [
        "zero = broken_plugins.schedules:Zero",
        "negative = broken_plugins.schedules:Negative",
    ],
    "guidance": [
        "fails = broken_plugins.guidance:Fails",
        "returns = broken_plugins.guidance:Returns",
        "no-wrap = broken_plugins.guidance:NoWrap",
    ],
    "metrics": [
        "zero = broken_plugins.metrics:Zero",
        "bare = broken_plugins.metrics:Bare",
        "no-import = broken_plugins.missing:Metric",
    ],
    "extractors": [
        "good = broken_plugins.extractors:Good",
        "fails = broken_plugins.extractors:Fails",
        "shape = broken_plugins.extractors:Shape",
    ],
    "readers": [
        "fails = broken_plugins.readers:Fails",
        "opens = broken_plugins.readers:Opens",
        "nothing = broken_plugins.readers:Nothing",
        "no-reader = broken_plugins.readers:NoReader",
    ],
}

OF = "of the package broken-plugins"
SAMPLE = ["sample", "MODEL", "--seeds", "0-1", "-o", "out", "--steps", "2", "--no-grid"]
EVAL = ["eval", "IMAGES", "--no-record", "--reference", "IMAGES", "--dataset", "toys", "-q"]
CONVERT = ["convert", "FILE", "-o", "converted", "--format"]
METRIC = [*EVAL, "--extractor", "good", "--metrics"]
EXTRACTOR = [*EVAL, "--metrics", "fd", "--extractor"]

FAULTS: dict[str, tuple[list[str], str]] = {
    "solver that cannot be imported": (
        [*SAMPLE, "sampler.solver.name=no-import"],
        rf"the solver 'no-import' {OF} \(broken_plugins.missing:Solver\) cannot be loaded: "
        "ModuleNotFoundError: No module named 'not_there'",
    ),
    "solver whose import ends the program": (
        [*SAMPLE, "sampler.solver.name=exits"],
        rf"the solver 'exits' {OF} \(broken_plugins.exits:Solver\) cannot be loaded: "
        "SystemExit: no licence",
    ),
    "solver that is a function": (
        [*SAMPLE, "sampler.solver.name=function"],
        f"the solver 'function' {OF} cannot be built: .*missing 4 required.*; it must build a "
        "genlab.samplers.base.Solver",
    ),
    "solver that is none": (
        [*SAMPLE, "sampler.solver.name=stranger"],
        f"the solver 'stranger' {OF} builds a broken_plugins.solvers.Stranger; it must build a "
        "genlab.samplers.base.Solver",
    ),
    "solver without step": (
        [*SAMPLE, "sampler.solver.name=abstract"],
        f"the solver 'abstract' {OF} cannot be built: broken_plugins.solvers.Abstract lacks step",
    ),
    "option with a default of another type": (
        [*SAMPLE, "sampler.solver.name=option"],
        f"the solver 'option' {OF}: the fields of broken_plugins.solvers.Option cannot be settings",
    ),
    "option of a type that is not there": (
        [*SAMPLE, "sampler.solver.name=missing"],
        f"the solver 'missing' {OF}: the fields .* cannot be settings .*'Levels' is not defined",
    ),
    "options that check themselves": (
        [*SAMPLE, "sampler.solver.name=checks"],
        rf"the solver 'checks' {OF} failed: ValueError: an odd order "
        r"\(broken_plugins/solvers.py, line \d+\)",
    ),
    "solver that fails": (
        [*SAMPLE, "sampler.solver.name=zero"],
        rf"the solver 'zero' {OF} failed: ZeroDivisionError: division by zero "
        r"\(broken_plugins/solvers.py, line \d+\); GENLAB_TRACEBACK=1 shows the traceback",
    ),
    "solver that returns no result": (
        [*SAMPLE, "sampler.solver.name=bare"],
        "the solver broken_plugins.solvers.Bare returns a torch.Tensor from step, not a StepResult",
    ),
    "solver that changes the shape": (
        [*SAMPLE, "sampler.solver.name=shape"],
        r"the solver broken_plugins.solvers.Shape returns x of shape \(2, 1, 7, 8\) from step for "
        r"a state of shape \(2, 1, 8, 8\)",
    ),
    "solver that returns NaN": (
        [*SAMPLE, "sampler.solver.name=nan"], "2 images are not finite"
    ),
    "schedule that fails": (
        [*SAMPLE, "sampler.schedule.name=zero"],
        f"the schedule 'zero' {OF} failed: ZeroDivisionError",
    ),
    "schedule of no noise levels": (
        [*SAMPLE, "sampler.schedule.name=negative"],
        "the schedule broken_plugins.schedules.Negative must return a row of noise levels > 0",
    ),
    "guidance that fails": (
        [*SAMPLE, "sampler.guidance=[{name: fails}]"],
        f"a plug-in {OF} failed: IndexError: list index out of range",
    ),
    "guidance that returns no predictions": (
        [*SAMPLE, "sampler.guidance=[{name: returns}]"],
        "the guidance broken_plugins.guidance.Wrapped must return a list of 1 predictions",
    ),
    "guidance that wraps nothing": (
        [*SAMPLE, "sampler.guidance=[{name: no-wrap}]"],
        "the guidance broken_plugins.guidance.NoWrap must return a Guidance",
    ),
    "metric that cannot be imported": (
        [*METRIC, "no-import"],
        f"the metric 'no-import' {OF} .*cannot be loaded: .*No module named 'not_there'",
    ),
    "metric that fails": (
        [*METRIC, "zero"],
        rf"the metric 'zero' {OF} failed: ZeroDivisionError: division by zero \(broken_plugins/me",
    ),
    "metric that returns a number": (
        [*METRIC, "bare"],
        "bare: the metric must return a dict of score names and numbers, got 3.0",
    ),
    "extractor that fails": (
        [*EXTRACTOR, "fails"],
        f"the extractor 'fails' {OF} failed: RuntimeError: expected",
    ),
    "extractor of another width": (
        [*EXTRACTOR, "shape"],
        r"the extractor good \(broken_plugins.extractors.Shape\) must return features of the "
        r"shapes \{'features': \(4, 2\)\}, got \{'features': \(4, 3\)\}",
    ),
    "reader that fails": (
        [*CONVERT, "fails"], f"the reader 'fails' {OF} failed: ValueError: invalid literal"
    ),
    "reader of a file that is not there": (
        [*CONVERT, "opens"], f"the reader 'opens' {OF} failed: FileNotFoundError: "
    ),
    "reader that returns nothing": (
        [*CONVERT, "nothing"],
        f"the checkpoint format 'nothing' {OF} read .* as a builtins.NoneType, not a generator",
    ),
    "reader that is none": (
        [*CONVERT, "no-reader"],
        f"the checkpoint format 'no-reader' {OF} builds a .*NoReader; it must build a "
        "genlab.checkpoints.readers.base.Reader",
    ),
    "two packages with the same name": (
        [*SAMPLE, "sampler.solver.name=good"],
        r"two packages register the solver 'good': broken-plugins \(broken_plugins.solvers:Good\) "
        r"and other-plugins \(other_plugins.solvers:Good\); uninstall one of them",
    ),
    "a leaderboard that needs a broken metric": (
        ["leaderboard", "show", "--dir", "with"],
        f"the metric 'no-import' {OF} .*cannot be loaded",
    ),
}  # fmt: skip

SOUND = {
    "sampling": SAMPLE,
    "a leaderboard that does not": ["leaderboard", "show", "--dir", "without"],
    "other metrics": [*EVAL, "--extractor", "good", "--metrics", "fd"],
}

LEFT_OUT = (
    f"warning: the (metric 'no-import'|checkpoint format 'no-reader') {OF} .*; it is left out"
)

BUG = [*SAMPLE, "sampler.solver.name=asks-wrongly"]


@pytest.fixture(scope="module")
def results(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What every command says, in one process."""
    folder = tmp_path_factory.mktemp("faults")
    write_package(folder / "site", "broken-plugins", MODULES, ENTRIES)
    twice = {"solvers": ["good = other_plugins.solvers:Good"]}
    write_package(folder / "site", "other-plugins", {"solvers": SOLVERS}, twice)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    write_npz(folder / "images.npz", iter(pixels), pixels.shape, None)
    save_file({"w": torch.zeros(2)}, folder / "file.safetensors")
    write_record(folder / "without", make_record("mine", fd=1.0))
    write_record(folder / "with", make_record("mine", fd=1.0, metrics={"fd": {}, "no-import": {}}))
    places = {"MODEL": tiny_model, "IMAGES": folder / "images.npz",
              "FILE": folder / "file.safetensors", "with": folder / "with",
              "without": folder / "without"}  # fmt: skip
    named = {name: arguments for name, (arguments, _) in FAULTS.items()} | SOUND | {"bug": BUG}
    commands = []
    for number, arguments in enumerate(named.values()):
        outputs = {"out": folder / f"out-{number}", "converted": folder / f"converted-{number}"}
        commands.append([(places | outputs).get(each, each) for each in arguments])
    return dict(zip(named, run_commands(folder / "site", commands), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_sentence(results: dict[str, Result], name: str) -> None:
    code, _, err = results[name]
    *warnings, sentence = err.splitlines()
    assert code == 2, err
    assert re.match(f"genlab: {FAULTS[name][1]}", sentence), sentence
    assert all(re.fullmatch(LEFT_OUT, line) for line in warnings)


@pytest.mark.parametrize("name", SOUND)
def test_what_does_not_need_a_plug_in_is_not_stopped_by_it(
    results: dict[str, Result], name: str
) -> None:
    code, _, err = results[name]
    assert code == 0, err
    # Said once; sampling a model of ours asks no reader, and so meets no broken one.
    assert re.fullmatch("" if name == "sampling" else f"{LEFT_OUT}\n", err)


def test_a_fault_of_genlab_s_own_code_is_a_traceback(results: dict[str, Result]) -> None:
    """Also under a plug-in, which it names: either may be the cause."""
    code, _, err = results["bug"]
    assert code == 1
    assert "Traceback" in err
    assert re.search(rf"the solver 'asks-wrongly' {OF} was running \(broken_plugins/solv", err)


def test_without_plug_ins_a_bug_is_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        explain(ZeroDivisionError("division by zero"))
    try:
        json.loads("{")
    except ValueError as error:
        with pytest.raises(ValueError, match="Expecting property name"):
            explain(error)

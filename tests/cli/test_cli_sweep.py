"""``genlab sweep`` as users call it: what it prints, writes, and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from launching import start_all

from genlab.cli import main
from genlab.cli.sweep import _gathered
from genlab.data.writing.writers import write_npz
from genlab.errors import SamplingError
from genlab.eval.samples import Drawn, GeneratedImages

HELPERS = Path(__file__).resolve().parents[1] / "helpers"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.integers(60, 200, (40, 8, 8, 3), dtype=np.uint8)
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, [i % 3 for i in range(40)])
    return tmp_path / "real.npz"


@pytest.fixture
def settings(
    tiny_model: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path / "home"))
    return [
        "sweep", tiny_model, "--reference", real, "--metrics", "fd,pr", "--count", 40,
        "--batch-size", 16, "--extractor", "tiny", "-o", tmp_path / "out",
        "--board", tmp_path / "board",
    ]  # fmt: skip


def genlab(*arguments: object) -> int:
    import tiny_extractor  # noqa: F401 - registers the extractor "tiny"

    return main([str(argument) for argument in arguments])


def test_a_study_is_one_command(
    settings: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = [
        *settings, "--x", "scale", "--x", "recall",
        "--variant", "cfg", "sampler.guidance=[{name: cfg}]",
        "--variant", "interval", "sampler.guidance=[{name: cfg, when: {sigma: [0.3, 3]}}]",
        "--grid", "sampler.guidance.0.scale=1.5,2", "steps=2",
    ]  # fmt: skip
    assert genlab(*study) == 0
    captured = capsys.readouterr()
    assert "4 points, 0 of them finished already; 160 images to draw" in captured.err
    assert "[4/4] interval, scale 2: fd[tiny]" in captured.err
    assert "fd ↓" in captured.out
    assert "genlab sample" in captured.out
    out = tmp_path / "out"
    found = {path.name for path in out.iterdir()}
    for stem in ("fd-vs-sampler-guidance-0-scale", "recall-vs-sampler-guidance-0-scale",
                 "fd-vs-recall", "precision-vs-recall", "overview-vs-recall"):  # fmt: skip
        assert {f"{stem}.png", f"{stem}.svg"} <= found
    assert "recall-vs-recall.png" not in found
    svg = (out / "fd-vs-sampler-guidance-0-scale.svg").read_text()
    assert all(f">{text}<" in svg for text in ("cfg", "interval", "guidance scale", "best"))
    whole = json.loads((out / "sweep.json").read_text())
    assert [point["label"] for point in whole["points"]] == [
        "cfg, scale 1.5", "cfg, scale 2", "interval, scale 1.5", "interval, scale 2",
    ]  # fmt: skip
    assert whole["points"][2]["nfe"] < whole["points"][0]["nfe"] == 6
    assert all(point["finished"] for point in whole["points"])
    assert sorted(point["record"] for point in whole["points"]) == sorted(
        map(str, (tmp_path / "board").iterdir())
    )
    assert genlab("leaderboard", "csv", "--dir", tmp_path / "board") == 0
    assert "tiny: interval, scale 2" in capsys.readouterr().out

    assert genlab(*study, "--json", "--no-charts") == 0
    captured = capsys.readouterr()
    assert "nothing to compute" in captured.err
    assert json.loads(captured.out) == {**whole, "pictures": []}
    assert len(list((tmp_path / "board").iterdir())) == 4


def test_a_measurement_stands_on_the_board_once(settings: list[object], tmp_path: Path) -> None:
    assert genlab(*settings, "--no-charts", "-q", "--grid", "steps=2") == 0
    assert genlab(*settings, "--no-charts", "-q", "--variant", "short", "steps=2") == 0
    (path,) = (tmp_path / "board").iterdir()
    whole = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert whole["points"][0]["record"] == str(path)
    assert whole["pictures"] == []


def test_dry_run_prints_the_points(
    settings: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert genlab(*settings, "--dry-run", "--grid", "steps=2,3", "guidance=1,2") == 0
    out = capsys.readouterr().out
    for line in ("steps 2, guidance 1 3 40", "steps 3, guidance 2 10 40"):
        assert line in [" ".join(row.split()) for row in out.splitlines()]
    assert "4 points, 0 of them finished already; 160 images to draw, 960 network" in out
    assert genlab(*settings, "--dry-run", "--json", "--grid", "steps=2,3") == 0
    whole = json.loads(capsys.readouterr().out)
    assert [point["nfe"] for point in whole["points"]] == [3, 5]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "board").exists()


def test_a_point_that_fails_is_told_at_the_end(
    settings: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole_read = GeneratedImages.read

    def read(samples: GeneratedImages, start: int, stop: int) -> Drawn:
        if samples.sampler.config["schedule"]["num_steps"] == 3:
            raise SamplingError("40 images are not finite")
        return whole_read(samples, start, stop)

    monkeypatch.setattr(GeneratedImages, "read", read)
    assert genlab(*settings, "--grid", "steps=2,3,4") == 2
    captured = capsys.readouterr()
    assert "[2/3] steps 3: failed: 40 images are not finite" in captured.err
    assert "failed: steps 3: 40 images are not finite" in captured.out
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]
    assert [point["error"] for point in points] == ["", "40 images are not finite", ""]
    assert [point["finished"] for point in points] == [True, False, True]
    assert (tmp_path / "out" / "fd-vs-nfe.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing to sweep over"),
        (("--grid", "steps=2,0"), "the point 'steps 0': the number of steps must be at least 1"),
        (("--grid", "steps"), "write KEY=VALUE,VALUE"),
        (("--grid",), "requires an argument"),
        (("--grid", "steps=2,3", "--x", "step"), "did you mean 'steps'"),
        (("--grid", "steps=2,3", "--along", "scale"), "nothing called 'scale'"),
        (("--variant", "sampler=euler"), "a variant needs a name first"),
        (("--variant",), "requires"),
        (("--grid", "count=20,30"), "count is set for all points"),
        (("--grid", "sampler.solver.name=heun,huen"), "did you mean 'heun'"),
        (("--grid", "metrics=[fid],[fd]"), "metrics is set for all points"),
    ],
)
def test_mistakes_are_one_sentence(
    settings: list[object],
    arguments: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert genlab(*settings, *arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "home" / "scores").exists()


def test_without_matplotlib_nothing_is_begun(
    settings: list[object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert genlab(*settings, "--grid", "steps=2") == 2
    assert "pip install 'genlab[plots]'" in capsys.readouterr().err
    assert genlab(*settings, "--grid", "steps=2", "--no-charts", "-q") == 0
    assert (tmp_path / "out" / "sweep.json").is_file()


def test_settings_behind_grid_and_variant_belong_to_them() -> None:
    told = _gathered(
        ["model", "--variant", "a b", "x=1", "y=[1, 2]", "--grid", "s=1,2", "t=3", "-o", "out",
         "z=1", "--variant", "own", "", "--variant", "bare", "--grid", "u=1"]
    )  # fmt: skip
    assert told == [
        "model", "--variant", "a b", "x=1 y=[1, 2]", "--grid", "s=1,2", "--grid", "t=3", "-o",
        "out", "z=1", "--variant", "own", "", "--variant", "bare", "", "--grid", "u=1",
    ]  # fmt: skip


def in_a_process(settings: Sequence[object], grid: str, first: str = "") -> list[str]:
    """The command in a process of its own, with the tiny extractor registered."""
    code = (
        f"import sys; sys.path.insert(0, {str(HELPERS)!r}); import tiny_extractor; "
        f"import genlab.eval.collect as c; c.PART_SECONDS = 0.0; {first}"
        "from genlab.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", code, *map(str, settings), "--no-charts", "--grid", grid]


@pytest.mark.slow
def test_two_processes_share_every_point(settings: list[object], tmp_path: Path) -> None:
    """The second point fails in one process alone; both go on with the third."""
    spoil = (
        "from genlab.eval.samples import GeneratedImages as G; from genlab.errors import "
        "SamplingError as E; old = G.read\n"
        "def read(self, a, b):\n"
        "    if a == 16 and self.sampler.config['schedule']['num_steps'] == 3:\n"
        "        raise E('spoilt')\n"
        "    return old(self, a, b)\n"
        "G.read = read\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = in_a_process(settings, "steps=2,3,4", spoil)
    processes = start_all(words, environment=environment)
    for process in processes:
        process.communicate(timeout=600)
    assert [process.returncode for process in processes] == [2, 2]
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]
    assert [point["error"] for point in points] == ["", "spoilt", ""]
    words = in_a_process(settings, "steps=2,3,4")
    again = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "2 of them finished already" in again.stderr
    assert len(list((tmp_path / "board").iterdir())) == 3


@pytest.mark.slow
def test_a_killed_sweep_goes_on(settings: list[object], tmp_path: Path) -> None:
    """Killed without a chance to clean up, then run again: nothing finished is computed twice."""
    words = in_a_process(settings, "steps=2,200")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not list((tmp_path / "home" / "evaluations").glob("*/part-*")) or not list(
            (tmp_path / "home" / "scores").glob("*")
        ):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    scores = list((tmp_path / "home" / "scores").iterdir())
    assert len(scores) == 1
    before = scores[0].stat().st_mtime_ns
    again = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "1 of them finished already" in again.stderr
    assert scores[0].stat().st_mtime_ns == before
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]
    assert all(point["finished"] for point in points)

"""Sweeps: which points there are, what is computed and what is not, which are Pareto-best."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_extractor
import torch

from genlab import DiffusionGenerator
from genlab.data.writing.writers import write_npz
from genlab.errors import ConfigError, SamplingError, UnknownNameError
from genlab.eval.collect import SharedError, collect
from genlab.eval.leaderboard.records import Score
from genlab.eval.samples import Drawn, GeneratedImages
from genlab.eval.sweep.curves import Curves, Measured
from genlab.eval.sweep.points import Plan, make_plan
from genlab.eval.sweep.report import directions_of, sample_command, to_json
from genlab.eval.sweep.run import Checked, Common, Result, check, count_evaluations, run
from genlab.runs.processes import Processes

STEPS = "sampler.schedule.num_steps"
SCALE = "sampler.guidance.0.scale"
CFG = "sampler.guidance=[{name: cfg}]"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.integers(60, 200, (40, 8, 8, 3), dtype=np.uint8)
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, [i % 3 for i in range(40)])
    return tmp_path / "real.npz"


@pytest.fixture
def own_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that no other test has filled."""
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path / "home"))


@pytest.fixture
def common(tiny_model: Path, real: Path, own_scores: None) -> Common:
    flags = {
        "reference": str(real), "extractor": "tiny", "metrics": ["fd", "pr"], "count": 40,
        "batch_size": 16,
    }  # fmt: skip
    return Common(model=str(tiny_model), device="cpu", flags=flags)


class Drawing:
    """Counts the batches that are drawn, and stops or spoils one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches = 0
        self.fails_at: Mapping[int, Exception | type[BaseException]] = {}
        whole = GeneratedImages.read

        def read(samples: GeneratedImages, start: int, stop: int) -> Drawn:
            self.batches += 1
            if self.batches in self.fails_at:
                raise self.fails_at[self.batches]
            return whole(samples, start, stop)

        monkeypatch.setattr(GeneratedImages, "read", read)


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Drawing:
    return Drawing(monkeypatch)


def labels(plan: Plan) -> list[str]:
    return [point.label for point in plan.points]


# Points


def test_variants_cross_the_grid() -> None:
    plan = make_plan(
        base=["labels=balanced"],
        grid=[f"{STEPS}=5,10", f"{SCALE}=1,2"],
        variants=[("cfg", CFG), ("heun", f"sampler.solver=heun {CFG}")],
    )
    assert len(plan.points) == 8
    assert labels(plan)[:3] == [
        "cfg, num_steps 5, scale 1", "cfg, num_steps 5, scale 2", "cfg, num_steps 10, scale 1",
    ]  # fmt: skip
    last = plan.points[-1]
    assert last.overrides == (
        "labels=balanced", "sampler.solver=heun", CFG, f"{STEPS}=10", f"{SCALE}=2",
    )  # fmt: skip
    assert plan.axes == {STEPS: ("5", "10"), SCALE: ("1", "2")}


def test_values_may_hold_commas() -> None:
    plan = make_plan(grid=["sampler.guidance=[{name: cfg, scale: 2}],[]", "name=\"a,b\",'c'"])
    assert plan.axes["sampler.guidance"] == ("[{name: cfg, scale: 2}]", "[]")
    assert plan.axes["name"] == ('"a,b"', "'c'")


def test_points_of_a_file_stand_beside_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(
        """
        - {name: strong, sampler.guidance: [{name: cfg, scale: 4}], sampler.solver: heun}
        - {sampler: euler, sampler.schedule.num_steps: 7, weights: 'no'}
        - sampler.solver=euler sampler.schedule.num_steps=9
        """
    )
    plan = make_plan(base=["dtype=float32"], grid=[f"{STEPS}=5"], points=path)
    grid, strong, preset, text = plan.points
    assert grid.settings == {STEPS: "5"}
    assert strong.variant == "strong"
    assert strong.overrides[:2] == (
        "dtype=float32", 'sampler.guidance=[{"name": "cfg", "scale": 4}]',
    )  # fmt: skip
    assert preset.overrides[1:] == ("sampler=euler", f"{STEPS}=7", 'weights="no"')
    assert text.overrides[1:] == ("sampler.solver=euler", f"{STEPS}=9")


def test_stitch_is_short_for_a_setting() -> None:
    plan = make_plan(grid=["stitch=none,small:0,small:0.4,a:0.2+b:0.3"])
    settings = [json.loads(p.config_overrides[0].partition("=")[2]) for p in plan.points]
    assert settings == [
        [],
        [],
        [{"model": "small", "fraction": 0.4}],
        [{"model": "a", "fraction": 0.2}, {"model": "b", "fraction": 0.3}],
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "nothing to sweep over"),
        ({"grid": ["steps"]}, "write KEY=VALUE,VALUE"),
        ({"grid": ["steps=5,,9"]}, "empty value"),
        ({"grid": ["steps=5,9,5"]}, "'5' stands twice"),
        ({"grid": ["steps=5", "steps=9"]}, "the grid has steps twice"),
        ({"grid": ["sampler.guidance=[{name: cfg},[]"]}, "leaves a bracket open"),
        ({"grid": ["name='a,b"]}, "leaves a quote ' open"),
        ({"variants": [("a", ""), ("a", "steps=5")]}, "the variant 'a' stands twice"),
        ({"variants": [("sampler=euler", "")]}, "needs a name first"),
        ({"variants": [("a", "steps")]}, "write KEY=VALUE"),
        ({"points": Path("nowhere.yaml")}, "cannot read nowhere.yaml"),
    ],
)
def test_mistakes_in_points(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("[", r"\[")):
        make_plan(**arguments)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: 1", "a list of points"), ("- 3", "point 1 must be a mapping"), ("- {a: [", "valid YAML")],
)
def test_mistakes_in_a_file_of_points(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        make_plan(points=path)


# Running


def test_every_point_is_an_evaluation(common: Common, drawing: Drawing) -> None:
    plan = make_plan(variants=[("plain", ""), ("cfg", CFG + f" {SCALE}=2")], grid=["steps=2,3"])
    points = check(plan, common)
    assert [point.nfe for point in points] == [3, 5, 6, 10]
    assert drawing.batches == 0
    results = run(points, common)
    assert drawing.batches == 4 * 3
    for point, result in zip(points, results, strict=True):
        assert result.record is not None
        assert result.record.cost["nfe"] == point.nfe
        assert result.record.model == f"tiny: {point.point.label}"
        assert result.record.sampling["seeds"] == "0-39"  # the same for all
    values = {r.record.scores["fd[tiny]"].value for r in results if r.record is not None}
    assert len(values) == 4


def test_nothing_is_computed_twice(common: Common, drawing: Drawing) -> None:
    first = run(check(make_plan(grid=["steps=2,3"]), common), common)
    batches = drawing.batches
    # Another sweep, under other names: it shares one point.
    plan = make_plan(variants=[("longer", f"{STEPS}=3"), ("longest", f"{STEPS}=4")])
    points = check(plan, common)
    assert [point.record is not None for point in points] == [True, False]
    second = run(points, common)
    assert drawing.batches == batches + 3
    assert first[1].record is not None
    assert second[0].record == replace(first[1].record, model="tiny: longer")
    assert not second[0].fresh
    # Other metrics, another number of images: other measurements.
    for change in ({"metrics": ["fd"]}, {"count": 41}):
        other = replace(common, flags={**common.flags, **change})
        assert check(plan, other)[0].record is None


def test_two_names_for_one_measurement(common: Common, drawing: Drawing) -> None:
    plan = make_plan(variants=[("a", f"{STEPS}=2"), ("b", "steps=2")])
    a, b = run(check(plan, common), common)
    assert drawing.batches == 3
    assert a.record is not None
    assert b.record == replace(a.record, model="tiny: b")


def test_a_damaged_record_is_computed_again(
    common: Common, drawing: Drawing, tmp_path: Path
) -> None:
    plan = make_plan(grid=["steps=2"])
    run(check(plan, common), common)
    (path,) = (tmp_path / "home" / "scores").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    (point,) = check(plan, common)
    assert point.record is None


def test_an_interrupted_sweep_goes_on(
    common: Common, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genlab.eval.collect.PART_SECONDS", 0.0)
    plan = make_plan(grid=["steps=2,3"])
    drawing.fails_at = {5: KeyboardInterrupt}  # the second batch of the second point
    with pytest.raises(KeyboardInterrupt):
        run(check(plan, common), common)
    points = check(plan, common)
    assert [point.record is not None for point in points] == [True, False]
    again = run(points, common)
    assert drawing.batches == 5 + 2  # the first batch of the second point was kept
    fresh = replace(common, flags={**common.flags, "dataset": "toys"})
    for one, two in zip(again, run(check(plan, fresh), fresh), strict=True):
        assert one.record is not None
        assert two.record is not None
        for name, score in one.record.scores.items():
            assert two.record.scores[name].value == pytest.approx(score.value, rel=1e-9)


def test_images_outlive_a_failing_metric(
    common: Common, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last image and the record nothing drawn may be lost."""
    from genlab.eval.evaluate import Evaluation

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    plan = make_plan(grid=["steps=2"])
    points = check(plan, common)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_scores", stop)
        with pytest.raises(KeyboardInterrupt):
            run(points, common)
    run(points, common)
    assert drawing.batches == 3


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("steps=2,0", "the point 'steps 0': the number of steps must be at least 1, got 0"),
        ("steps=2,two", "steps must be a whole number"),
        ("sampler.solver.name=heun,huen", "the point 'solver huen': .*did you mean 'heun'"),
        ("sampler.solver.S_churn=0,-1", "the point 'S_churn -1'"),
        ("sampler.guidance=[],[{name: cfgg}]", "did you mean 'cfg'"),
        ("model=MODEL,nowhere", "the point 'model nowhere'"),
        ("model=MODEL,REAL", "holds images"),
    ],
)
def test_a_bad_point_is_refused_before_anything_is_computed(
    common: Common, drawing: Drawing, real: Path, grid: str, sentence: str
) -> None:
    grid = grid.replace("MODEL", common.model).replace("REAL", str(real))
    plan = make_plan(grid=[grid])
    with pytest.raises(ConfigError, match=sentence):
        run(check(plan, common), common)
    assert drawing.batches == 0


def test_what_is_fixed_cannot_be_swept(common: Common) -> None:
    with pytest.raises(ConfigError, match="count is set for all points and is swept over"):
        check(make_plan(grid=["count=20,30"]), common)


def test_a_point_that_fails_does_not_stop_the_others(common: Common, drawing: Drawing) -> None:
    points = check(make_plan(grid=["steps=2,3,4"]), common)
    drawing.fails_at = {4: SamplingError("3 images are not finite")}
    heard: list[Result] = []
    results = run(points, common, on_result=heard.append)
    assert [result.error for result in results] == ["", "3 images are not finite", ""]
    assert [result.record is None for result in results] == [False, True, False]
    assert heard == results
    again = run(check(make_plan(grid=["steps=2,3,4"]), common), common)
    assert drawing.batches == 3 + 1 + 3 + 3  # only the failed one once more
    assert not any(result.error for result in again)


def test_another_model_is_an_axis(common: Common, tiny_model: Path, tmp_path: Path) -> None:
    generator = DiffusionGenerator.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in generator.network.parameters():
            parameter.mul_(0.5)
    generator.save_pretrained(tmp_path / "half")
    plan = make_plan(grid=["steps=2", f"model={tiny_model},{tmp_path / 'half'}"])
    one, two = run(check(plan, common), common)
    assert one.record is not None
    assert two.record is not None
    assert one.record.provenance["weights_sha256"] != two.record.provenance["weights_sha256"]


def test_a_preset_takes_the_place_of_the_models_own_sampler(common: Common) -> None:
    (point,) = check(make_plan(variants=[("euler", f"sampler=euler {STEPS}=4")]), common)
    assert point.config.sampler["solver"] == {"name": "euler"}
    assert point.nfe == 4


def test_evaluations_are_counted_without_computing(tiny_generator: DiffusionGenerator) -> None:
    before = {k: v.clone() for k, v in tiny_generator.network.state_dict().items()}
    for solver in ("heun", "euler", "unipc", "dpmpp-sde"):
        sampler = tiny_generator.build_sampler(
            {"solver": solver, "guidance": [{"name": "cfg", "when": {"sigma": [0.5, 5]}}]},
            num_steps=5, guidance_scale=2.0,
        )  # fmt: skip
        nfe = tiny_generator.draw([0, 1], [0, 1], sampler).nfe
        assert count_evaluations(tiny_generator, sampler) == nfe
    after = tiny_generator.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_all_processes_hear_of_a_failure(
    tiny_generator: DiffusionGenerator, tmp_path: Path
) -> None:
    """Two processes in two threads: one fails, and neither waits for the other for ever."""
    import threading

    class Spoilt(GeneratedImages):
        def read(self, start: int, stop: int) -> Drawn:
            if start == 8:  # the second batch, that of rank 1
                raise SamplingError("not finite")
            return super().read(start, stop)

    from genlab.eval.metrics.base import Need

    sampler = tiny_generator.build_sampler(None, num_steps=1)
    samples = Spoilt(tiny_generator, range(24), [0] * 24, sampler)
    barrier = threading.Barrier(2, timeout=60)
    errors: dict[int, BaseException] = {}

    def work(rank: int) -> None:
        processes = Processes(rank=rank, count=2, wait=lambda: (barrier.wait(), None)[1])
        try:
            collect(
                samples, tiny_extractor.TinyExtractor(), [Need("rows", "features")], batch_size=8,
                folder=tmp_path / "work", processes=processes,
            )  # fmt: skip
        except SharedError as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {rank: str(error) for rank, error in errors.items()} == {
        0: "not finite", 1: "not finite",
    }  # fmt: skip


# Curves


DIRECTIONS = {"fd[tiny]": True, "recall[tiny]": False, "neutral": None}


def measure(plan: Plan, rows: Sequence[tuple[float, float, float]]) -> list[Measured]:
    """(NFE, fd, recall) of each point."""
    return [
        Measured(
            point=point,
            scores={
                "fd[tiny]": Score(value=fd, low=fd - 0.1, high=fd + 0.1),
                "recall[tiny]": Score(value=recall),
                "neutral": Score(value=1.0),
            },
            cost={"nfe": nfe, "seconds_per_image": nfe / 10},
        )
        for point, (nfe, fd, recall) in zip(plan.points, rows, strict=True)
    ]


@pytest.fixture
def solvers() -> tuple[Curves, list[Measured]]:
    """Two solvers over steps, in an order that is not that of the numbers."""
    plan = make_plan(grid=["sampler.solver.name=heun,unipc", f"{STEPS}=10,5,20"])
    rows = [
        (19, 2.0, 0.5), (9, 5.0, 0.2), (39, 1.0, 0.7),
        (10, 3.0, 0.6), (5, 6.0, 0.1), (20, 1.0, 0.65),
    ]  # fmt: skip
    return Curves(plan, DIRECTIONS), measure(plan, rows)


def test_the_pareto_front_over_a_cost(solvers: tuple[Curves, list[Measured]]) -> None:
    curves, found = solvers
    assert curves.default_x(found) == "nfe"
    chart = curves.chart("fd[tiny]", "nfe", found)
    # By rising NFE 5, 9, 10, 19, 20; heun with 20 steps is no better than unipc with half the cost.
    assert chart.is_front
    assert chart.best == (
        "solver unipc, num_steps 5", "solver heun, num_steps 5", "solver unipc, num_steps 10",
        "solver heun, num_steps 10", "solver unipc, num_steps 20",
    )  # fmt: skip
    heun, unipc = chart.panel.lines
    assert (heun.label, unipc.label) == ("solver heun", "solver unipc")
    assert heun.x == [9, 19, 39]
    assert heun.y == [5.0, 2.0, 1.0]
    assert heun.marked == [0, 1]
    assert heun.low == pytest.approx([4.9, 1.9, 0.9])
    assert list(chart.panel.front[:3]) == [(5, 6.0), (9, 6.0), (9, 5.0)]
    assert chart.panel.log_x


def test_higher_is_better_for_recall(solvers: tuple[Curves, list[Measured]]) -> None:
    curves, found = solvers
    chart = curves.chart("recall[tiny]", "seconds", found)
    assert chart.best == (
        "solver unipc, num_steps 5", "solver heun, num_steps 5", "solver unipc, num_steps 10",
        "solver unipc, num_steps 20", "solver heun, num_steps 20",
    )  # fmt: skip


def test_the_front_of_two_scores(solvers: tuple[Curves, list[Measured]]) -> None:
    curves, found = solvers
    assert curves.resolve("recall") == "recall[tiny]"
    chart = curves.chart("fd[tiny]", "recall[tiny]", found)
    assert chart.best == ("solver heun, num_steps 20",)  # best in both
    turned = [replace(each, scores={**each.scores}) for each in found]
    turned[2] = replace(turned[2], scores={**turned[2].scores, "fd[tiny]": Score(value=2.5)})
    chart = curves.chart("fd[tiny]", "recall[tiny]", turned)
    assert chart.best == ("solver unipc, num_steps 20", "solver heun, num_steps 20")
    assert list(chart.panel.front) == [(0.65, 1.0), (0.65, 2.5), (0.7, 2.5)]


def test_over_a_key_the_best_point_is_marked() -> None:
    plan = make_plan(variants=[("cfg", CFG), ("auto", "")], grid=[f"{SCALE}=1,1.5,4"])
    rows = [(18, 3.0, 0.5), (35, 2.0, 0.4), (35, 4.0, 0.1), (18, 3.0, 0.5), (35, 1.5, 0.5),
            (35, 2.0, 0.3)]  # fmt: skip
    curves, found = Curves(plan, DIRECTIONS), measure(plan, rows)
    assert curves.default_x(found) == SCALE  # the evaluations do not tell the points apart
    assert curves.resolve("scale") == SCALE
    chart = curves.chart("fd[tiny]", SCALE, found)
    assert not chart.is_front
    assert chart.best == ("auto, scale 1.5",)
    assert chart.stem == "fd-vs-sampler-guidance-0-scale"
    assert [line.label for line in chart.panel.lines] == ["cfg", "auto"]
    assert chart.panel.lines[0].x == [1, 1.5, 4]
    assert chart.panel.x_label == "guidance scale"
    assert curves.chart("neutral", SCALE, found).best == ()


def test_a_key_without_numbers_has_places() -> None:
    plan = make_plan(grid=["sampler.solver.name=heun,unipc,euler"])
    rows = [(18, 3.0, 0.5), (9, 2.0, 0.4), (9, 4.0, 0.1)]
    curves, found = Curves(plan, DIRECTIONS), measure(plan, rows)
    panel = curves.chart("fd[tiny]", "sampler.solver.name", found).panel
    assert panel.x_names == ("heun", "unipc", "euler")
    assert panel.lines[0].x == [0, 1, 2]


def test_shares_of_a_small_model_are_numbers() -> None:
    plan = make_plan(grid=["stitch=small:0,small:0.4,small:1"])
    rows = [(18, 3.0, 0.5), (18, 2.0, 0.4), (18, 4.0, 0.1)]
    curves, found = Curves(plan, DIRECTIONS), measure(plan, rows)
    assert curves.chart("fd[tiny]", "stitch", found).panel.lines[0].x == [0, 0.4, 1]


def test_unknown_things_to_draw_over(solvers: tuple[Curves, list[Measured]]) -> None:
    curves, _ = solvers
    with pytest.raises(UnknownNameError, match="did you mean 'num_steps'"):
        curves.resolve("num_step")
    with pytest.raises(UnknownNameError, match="nothing called 'guidance'"):
        Curves(curves.plan, DIRECTIONS, along="guidance")


# Reports


def test_json_and_commands(common: Common) -> None:
    plan = make_plan(variants=[("cfg", CFG)], grid=[f"{SCALE}=1.5,2", "steps=2"])
    points = check(plan, common)
    results = run(points, common)
    whole = to_json(plan, points, results, common, {points[0].point.label: Path("a.json")})
    assert json.loads(json.dumps(whole)) == whole
    first, second = whole["points"]
    assert first["label"] == "cfg, scale 1.5"
    assert first["nfe"] == 6
    assert first["seconds_per_image"] > 0
    assert first["sampler"]["guidance"][0]["scale"] == 1.5
    assert first["record"] == "a.json"
    assert second["record"] is None
    assert first["scores"]["fd[tiny]"]["value"] == results[0].record.scores["fd[tiny]"].value  # type: ignore[union-attr]
    assert whole["scores"]["recall[tiny]"] == {"lower_is_better": False}
    assert directions_of(points)["fd[tiny]"] is True
    assert first["command"] == (
        f"genlab sample {common.model} --steps=2 'sampler.guidance=[{{name: cfg}}]' {SCALE}=1.5"
    )


def test_the_command_has_the_protocols_sampler_too(common: Common, tmp_path: Path) -> None:
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text("sampler: {solver: {name: euler}}\n")
    ours = replace(common, protocol=str(protocol))
    (point,) = check(make_plan(grid=["steps=3"]), ours)
    command = sample_command(point, ours)
    assert '\'sampler.solver={"name": "euler"}\'' in command
    assert '"num_steps": 3' in command
    assert isinstance(point, Checked)

"""Early stopping, evaluations that are handed in, and the loss on held-out images."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same, everything, stops_after, tiny, write_config, write_slice

from genlab.cli import main
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.diffusion.condition import Condition
from genlab.errors import ConfigError
from genlab.training.config import StoppingConfig
from genlab.training.export import Choice, choose_weights
from genlab.training.loop.early_stopping import Stopper
from genlab.training.loop.evaluation import Evaluation, Score, Subject
from genlab.training.loop.loop import Outcome, Trainer
from genlab.training.loop.snapshots import list_snapshots
from genlab.training.objectives.diffusion import DiffusionObjective
from genlab.training.run import Run

EVERY_STEP = ("output.snapshot_kimg=0.004",)


@pytest.fixture(scope="module")
def folder(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images, others that are held out, and a configuration of six steps."""
    folder = tmp_path_factory.mktemp("stopping")
    (folder / "other").mkdir()
    write_slice(fashion_mnist, folder / "other", count=12)
    write_config(folder, write_slice(fashion_mnist, folder))
    return folder


@dataclass
class Scripted:
    """Gives values from a list, by the number of the step."""

    values: Sequence[float]
    kimg: float | None = None
    higher_is_better: bool = False
    name: str = "judged"
    seen: list[int] = field(default_factory=list)

    @property
    def scores(self) -> Mapping[str, Score]:
        return {self.name: Score(form=".3f", higher_is_better=self.higher_is_better)}

    def __call__(self, subject: Subject) -> Mapping[str, float]:
        self.seen.append(subject.progress.step)
        assert not subject.network.training
        return {self.name: self.values[subject.progress.step - 1]}


def trainer_of(
    folder: Path, run: Path, *overrides: str, evaluations: Sequence[Evaluation] = (), **others: Any
) -> Trainer:
    config = tiny(folder / "tiny.yaml", (*EVERY_STEP, *overrides))
    return Trainer(config, run, device="cpu", evaluations=evaluations, **others)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def stopped_by(
    folder: Path, run: Path, values: Sequence[float], *overrides: str, **options: Any
) -> Outcome:
    judge = Scripted(values, **options)
    settings = ("stopping.metric=judged", *overrides)
    return trainer_of(folder, run, *settings, evaluations=[judge]).train()


@pytest.mark.parametrize(
    ("values", "overrides", "options", "steps", "best"),
    [
        ([3, 2, 4, 5, 1, 1], ["stopping.patience=2"], {}, 4, 2),
        ([3, 2, 4, 5, 1, 1], ["stopping.patience=3"], {}, 6, 5),
        ([3, 4, 2, 1, 5, 6], ["stopping.patience=2"], {"higher_is_better": True}, 4, 2),
        ([3, 2.9, 2.8, 2.7, 2.6, 1], ["stopping.patience=2", "stopping.min_delta=0.5"], {}, 3, 1),
        ([3, 2.9, 2.8, 2.4, 2.2, 2], ["stopping.patience=3", "stopping.min_delta=0.5"], {}, 6, 4),
        ([3, 2.9, 2.8, 2.7, 2.6, 1], ["stopping.patience=1", "stopping.min_delta=0.15"], {}, 2, 1),
        ([math.nan, 3, math.nan, 3, 3, 3], ["stopping.patience=2"], {}, 4, 2),
        ([9, 9, 9, 2, 9, 3], ["stopping.patience=1"], {"kimg": 0.008}, 6, 4),
    ],
)
def test_a_run_ends_when_its_score_no_longer_improves(
    folder: Path,
    tmp_path: Path,
    values: Sequence[float],
    overrides: list[str],
    options: dict[str, Any],
    steps: int,
    best: int,
) -> None:
    kept: list[int] = []
    judge = Scripted(values, **options)
    trainer = trainer_of(
        folder, tmp_path, "stopping.metric=judged", *overrides, evaluations=[judge],
        keep=lambda network, progress: kept.append(progress.step),
    )  # fmt: skip
    outcome = trainer.train()
    assert outcome.progress.step == steps
    assert outcome.signal is None
    assert kept[-1] == best
    assert best * 4 in {snapshot.images for snapshot in list_snapshots(tmp_path / "snapshots")}
    assert log_of(tmp_path)[-1]["step"] == steps
    assert choose_weights(Run(tmp_path), Choice()).images == 4 * best
    assert choose_weights(Run(tmp_path), Choice("none")).images == 4 * steps
    if steps == 6:
        assert outcome.early_stop is None
        return
    assert outcome.early_stop is not None
    assert outcome.early_stop.images == 4 * best
    assert outcome.early_stop.best == pytest.approx(values[best - 1])
    assert f"best, {values[best - 1]:.3f}, after {4 * best} images" in outcome.early_stop.describe()


def test_a_run_that_stopped_early_has_ended(folder: Path, tmp_path: Path) -> None:
    values, settings = [3, 2, 4, 5, 1, 0.5], ["stopping.patience=2"]
    first = stopped_by(folder, tmp_path, values, *settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*")}
    again = stopped_by(folder, tmp_path, values, *settings)
    assert again.progress == first.progress
    assert again.early_stop == first.early_stop is not None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*")} == before
    patient = stopped_by(folder, tmp_path, values, "stopping.patience=3")
    assert (patient.progress.step, patient.early_stop) == (6, None)
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_a_signal_stopped_is_judged_as_one_that_it_did_not(
    folder: Path, tmp_path: Path
) -> None:
    values, settings = [9, 3, 9, 4, 9, 1], ["stopping.patience=2", "output.snapshot_kimg=0.008"]
    judge = Scripted(values)
    settings = ["stopping.metric=judged", *settings]
    whole = trainer_of(folder, tmp_path / "whole", *settings, evaluations=[judge]).train()
    assert judge.seen == [2, 4, 6]
    judge.seen.clear()
    parts = trainer_of(folder, tmp_path / "parts", *settings, evaluations=[judge])
    assert parts.train(stops_after(2)).progress.step == 3
    assert judge.seen == [2], "a signal is not made to wait for an evaluation"
    outcome = trainer_of(folder, tmp_path / "parts", *settings, evaluations=[judge]).train()
    assert (outcome.progress.step, outcome.early_stop) == (whole.progress.step, whole.early_stop)
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_evaluations_change_nothing_and_stand_in_the_log(folder: Path, tmp_path: Path) -> None:
    trainer_of(folder, tmp_path / "plain").train()
    judges = [Scripted(range(1, 7), kimg=0.012, name="rare"), Scripted(range(1, 7), name="often")]
    trainer_of(folder, tmp_path / "judged", evaluations=judges).train()
    assert_same(everything(tmp_path / "plain"), everything(tmp_path / "judged"))
    lines = log_of(tmp_path / "judged")
    assert [line["rare"] for line in lines if "rare" in line] == [3, 6]
    assert [line["often"] for line in lines if "often" in line] == [1, 2, 3, 4, 5, 6]


def test_an_evaluation_gets_a_generator_with_the_average(folder: Path, tmp_path: Path) -> None:
    drawn = []

    class Sampling(Scripted):
        def __call__(self, subject: Subject) -> Mapping[str, float]:
            assert subject.generator is not None
            assert subject.generator.network is subject.network
            drawn.append(subject.generator.sample([0, 1], [1, 2], subject.sampler))
            assert subject.folder == tmp_path
            return super().__call__(subject)

    settings = ["output.preview_sampler={schedule: {num_steps: 2}}"]
    trainer_of(folder, tmp_path, *settings, evaluations=[Sampling(range(1, 7))]).train()
    assert [tuple(images.shape) for images in drawn] == [(2, 1, 16, 16)] * 6
    assert not torch.equal(drawn[0], drawn[-1])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["stopping.metric=judge"], "did you mean 'judged'"),
        (["stopping.metric=heldout_loss"], r"validation\.path or validation\.split"),
        (["stopping.metric=judged", "output.snapshot_kimg=null"], "output.snapshot_kimg"),
        (["stopping.patience=0"], "stopping.patience >= 1, got 0"),
        (["stopping.min_delta=-1"], "stopping.min_delta >= 0, got -1"),
    ],
)
def test_a_score_that_cannot_stop_the_run_is_named(
    folder: Path, tmp_path: Path, settings: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        trainer_of(folder, tmp_path / "run", *settings, evaluations=[Scripted([1])])
    assert not (tmp_path / "run").exists()


def test_what_a_stopper_remembers_of_another_score_is_left_out() -> None:
    scores = {"a": Score(), "b": Score()}
    intervals = dict.fromkeys(scores, 1.0)
    first, second = (Stopper(StoppingConfig(metric=m, patience=1), scores, intervals) for m in "ab")
    assert first.note(1.0, 10)
    assert not first.note(2.0, 20)
    assert first.stop is not None
    second.load_state_dict(first.state_dict())
    assert second.stop is None
    assert not second.has_best


def held_out(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    dataset = ImageDataset(folder / "other" / "slice.npz", image_size=16, fit="resize")
    images, labels = dataset.load_all()
    return [(from_uint8(images), labels)]


def test_the_held_out_loss_is_that_of_the_averaged_weights(folder: Path, tmp_path: Path) -> None:
    settings = [f"validation.path={folder / 'other' / 'slice.npz'}", "output.snapshot_kimg=0.008"]
    trainer = trainer_of(folder, tmp_path, *settings)
    trainer.train()
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines if "heldout_loss" in line] == [2, 4, 6]
    network = trainer.recorder.averaged
    again = trainer.objective.evaluate(network, held_out(folder))
    assert lines[-1]["heldout_loss"] == pytest.approx(again["heldout_loss"], rel=1e-5)
    assert Run(tmp_path).read_config().validation.path is not None


@pytest.mark.parametrize("loss", ["edm", "vp", "ve"])
def test_the_held_out_loss_is_the_training_loss_on_average(folder: Path, loss: str) -> None:
    """Over many draws; quantiles, fixed noise and batches of other sizes change nothing."""
    objective = DiffusionObjective(loss={"name": loss}, label_dropout=0.1)
    torch.manual_seed(3)
    data = tiny(folder / "tiny.yaml").network
    metadata = Trainer(tiny(folder / "tiny.yaml"), folder / "unused", device="cpu").batches.metadata
    network = objective.build({**data, "dropout": 0.0}, metadata)["network"].eval()
    [(images, labels)] = held_out(folder)
    value = objective.evaluate(network, [(images, labels)])["heldout_loss"]
    apart = [(images[i : i + 5], labels[i : i + 5]) for i in range(0, len(images), 5)]
    assert objective.evaluate(network, apart)["heldout_loss"] == pytest.approx(value, rel=1e-4)
    denoiser = objective._denoiser(network)
    numbers = torch.Generator().manual_seed(1)
    means = []
    with torch.no_grad():
        for _ in range(200):
            draws = objective._loss.draw(images, numbers)
            terms = objective._loss(denoiser, images, Condition(labels=labels), draws)
            means.append(float(terms.loss.mean()))
    spread = torch.tensor(means).std() / len(means) ** 0.5
    # 48 terms of the one against 2,400 of the other: seven times the error, and three of these.
    assert abs(value - sum(means) / len(means)) < 3 * 7 * float(spread)


def test_the_command_says_why_it_ended(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [
        "train", str(folder / "tiny.yaml"), "-o", str(tmp_path), "--device", "cpu", *EVERY_STEP,
        f"validation.path={folder / 'other' / 'slice.npz'}", "stopping.metric=heldout_loss",
        "stopping.patience=1", "stopping.min_delta=100",
    ]  # fmt: skip
    for _ in range(2):  # the second time there is nothing to do
        assert main(told) == 0
        printed = capsys.readouterr()
        assert "stopped early: heldout_loss has not improved in 1 evaluation; it was" in printed.err
        assert "after 4 images" in printed.err
        assert f"{tmp_path}: 8 images" in printed.out
    assert main([*told, "stopping.metric=null"]) == 0
    assert f"{tmp_path}: 24 images" in capsys.readouterr().out

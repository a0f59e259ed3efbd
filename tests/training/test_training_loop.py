"""Runs that stop, die, fail and go on."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from tiny_runs import (
    assert_goes_on_bit_for_bit,
    assert_refused,
    assert_same,
    everything,
    stops_after,
    tiny,
    train,
    write_config,
    write_slice,
)

from genlab.errors import ConfigError, DataError, GenLabError, OutputError, TrainingError
from genlab.training.config import OptimizerConfig
from genlab.training.loop.logs import read_log
from genlab.training.loop.loop import Trainer
from genlab.training.loop.schedule import schedule_factor
from genlab.training.loop.snapshots import list_snapshots
from genlab.training.loop.state import Progress, load_state, states


@pytest.fixture(scope="module")
def config(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder, write_slice(fashion_mnist, folder))


class DiedError(Exception):
    """A run that breaks off without a chance to save."""


def dies_after(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise DiedError

    return on_step


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("mixed_precision=fp16",),
        ("gradient_accumulation=2", "mixed_precision=bf16", "objective.augment=null"),
        ("data.max_memory_gib=0", "data.num_workers=0", "optimizer.max_grad_norm=0.5"),
    ],
)
def test_a_run_that_was_told_to_stop_goes_on_bit_for_bit(
    config: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    assert_goes_on_bit_for_bit(config, tmp_path, settings)


def test_a_run_that_died_goes_on_bit_for_bit(config: Path, tmp_path: Path) -> None:
    often = ("output.state_minutes=0", "output.snapshot_kimg=0.008", "output.log_steps=2")
    train(config, tmp_path / "whole", *often)
    folder = tmp_path / "died"
    with pytest.raises(DiedError):
        Trainer(tiny(config, often), folder, device="cpu").train(dies_after(5))
    assert [path.name for path in states(folder / "state")] == ["000000002", "000000004"]
    # What a process leaves behind that dies while it writes a state and a line.
    (folder / "state" / ".new-000000005-1").mkdir()
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    train(config, folder, *often)
    assert_same(everything(tmp_path / "whole"), everything(folder))
    assert not list((folder / "state").glob(".new*"))
    names = {s.path.name: s.path.read_bytes() for s in list_snapshots(tmp_path / "whole/snapshots")}
    assert names == {s.path.name: s.path.read_bytes() for s in list_snapshots(folder / "snapshots")}
    assert len(names) == 3 * 3  # averages, times


def test_a_stop_leaves_the_lines_of_the_log_as_they_are(config: Path, tmp_path: Path) -> None:
    seldom = ("output.log_steps=5", "duration_kimg=0.04")
    train(config, tmp_path / "whole", *seldom)
    Trainer(tiny(config, seldom), tmp_path / "parts", device="cpu").train(stops_after(1))
    Trainer(tiny(config, seldom), tmp_path / "parts", device="cpu").train(stops_after(3))
    train(config, tmp_path / "parts", *seldom)
    whole, parts = (everything(tmp_path / name)["log"] for name in ("whole", "parts"))
    assert [step for step, *_ in whole] == [5, 10]
    assert [step for step, *_ in parts] == [2, 4, 5, 10]
    assert parts[2:] == whole


def test_what_the_log_has_under_way_is_saved_in_plain_values(config: Path, tmp_path: Path) -> None:
    """A state is read onto the run's device, which may have no float64."""
    Trainer(tiny(config, ["output.log_steps=5"]), tmp_path, device="cpu").train(stops_after(1))
    record = load_state(states(tmp_path / "state")[-1]).record
    assert len(json.loads(json.dumps(record))["pending"]) == 2


def test_a_state_of_before_the_log_was_kept_goes_on(config: Path, tmp_path: Path) -> None:
    Trainer(tiny(config), tmp_path, device="cpu").train(stops_after(2))
    path = tmp_path / "state/000000003/optimizers.pt"
    held = torch.load(path, weights_only=True)
    del held["record"]
    torch.save(held, path)
    assert train(config, tmp_path).progress.step == 6


def test_a_finished_run_stays_as_it_is(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path)
    before = everything(tmp_path)
    outcome = train(config, tmp_path)
    assert outcome.progress.step == 6
    assert_same(before, everything(tmp_path))


def test_a_run_can_be_made_longer(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "long", "duration_kimg=0.032")
    train(config, tmp_path / "short")
    train(config, tmp_path / "short", "duration_kimg=0.032")
    a, b = everything(tmp_path / "long"), everything(tmp_path / "short")
    assert_same(a, b)


def test_training_learns(config: Path, tmp_path: Path) -> None:
    steps = ("duration_kimg=1", "batch_size=16", "objective.augment=null", "output.log_steps=10")
    train(config, tmp_path, *steps, "network.model_channels=16", "optimizer.lr=3e-3")
    losses = [loss for _, loss, _ in everything(tmp_path)["log"]]
    assert losses[0] > 0.8  # the error of a network that gives 0 is about 1 with EDM's weights
    assert losses[-1] < 0.7 * losses[0]


def test_previews_and_tensorboard(config: Path, tmp_path: Path) -> None:
    train(
        config,
        tmp_path,
        "output.preview_kimg=0.012",
        "output.preview_count=10",
        "output.preview_sampler.schedule.num_steps=2",
        "output.tensorboard=true",
    )
    assert len(list((tmp_path / "previews").glob("*.png"))) == 2
    assert list((tmp_path / "tensorboard").rglob("events.*"))


class MemoryTracker(GeneralTracker):  # type: ignore[misc]  # accelerate tells no types
    """A tracker that keeps what it is given."""

    name = "comet_ml"
    requires_logging_directory = False
    lines: ClassVar[list[tuple[int, dict[str, Any]]]] = []
    settings: ClassVar[dict[str, Any]] = {}
    pictures: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self) -> list[tuple[int, dict[str, Any]]]:
        return self.lines

    def start(self) -> None:
        """Nothing has to be opened."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings.update(values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        assert step is not None
        self.lines.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.pictures.extend(images.shape for images in values.values())


def test_trackers_get_settings_numbers_and_previews(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the place of one that is not installed: not every accelerate takes a name of one's own.
    comet = LoggerType.COMETML
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, comet.value, MemoryTracker)
    monkeypatch.setattr(
        tracking, "_available_trackers", [*tracking.get_available_trackers(), comet]
    )
    preview = ("preview_kimg=0.012", "preview_count=2", "preview_sampler.schedule.num_steps=2")
    train(config, tmp_path, "output.trackers=[comet_ml]", *(f"output.{each}" for each in preview))
    lines = read_log(tmp_path / "log.jsonl")
    assert [step for step, _ in MemoryTracker.lines] == [line["step"] for line in lines]
    assert MemoryTracker.lines[0][1]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-5)
    assert MemoryTracker.settings["output.preview_count"] == 2
    assert [(shape[0], shape[-1]) for shape in MemoryTracker.pictures] == [(1, 3)] * 2


@pytest.mark.parametrize(
    ("names", "message"),
    [("[wandbb]", "did you mean 'wandb'"), ("[comet_ml]", "pip install comet_ml")],
)
def test_trackers_that_are_not_there_are_refused(
    config: Path, tmp_path: Path, names: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path, f"output.trackers={names}")
    assert not (tmp_path / "log.jsonl").exists()


def test_unconditional_training(config: Path, tmp_path: Path) -> None:
    outcome = train(config, tmp_path, "data.labels=false", "duration_kimg=0.004")
    assert outcome.progress.images == 4


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("optimizer.lr=1", r"optimizer\.lr"),
        ("network.model_channels=16", r"network\.model_channels"),
        ("objective.label_dropout=0.5", r"objective\.label_dropout"),
        ("seed=1", "seed"),
    ],
)
def test_going_on_with_other_settings_is_refused(
    config: Path, tmp_path: Path, changed: str, named: str
) -> None:
    train(config, tmp_path, "duration_kimg=0.004")
    with pytest.raises(TrainingError, match=named):
        Trainer(tiny(config, ["duration_kimg=0.004", changed]), tmp_path, device="cpu")


def test_a_planned_decay_keeps_its_length(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path, "schedule.decay=cosine", "duration_kimg=0.004")
    with pytest.raises(TrainingError, match="duration_kimg"):
        Trainer(tiny(config, ["schedule.decay=cosine"]), tmp_path, device="cpu")


@pytest.mark.filterwarnings("ignore:.* labels have no image")  # of so few images
def test_going_on_with_other_data_is_refused(
    config: Path, fashion_mnist: Path, tmp_path: Path
) -> None:
    train(config, tmp_path / "run", "duration_kimg=0.004")
    other = write_slice(fashion_mnist, tmp_path, count=16)
    with pytest.raises(TrainingError, match="num_images was 32, now it is 16"):
        train(config, tmp_path / "run", "duration_kimg=0.004", f"data.path={other}")


def test_a_loss_that_is_not_finite_ends_the_run(config: Path, tmp_path: Path) -> None:
    often = ("output.state_minutes=0", "optimizer.zero_nonfinite_gradients=false")
    with pytest.raises(TrainingError, match=r"loss of step \d+ is (nan|inf).*lower optimizer\.lr"):
        train(config, tmp_path, *often, "optimizer.lr=1e25", "schedule.warmup_kimg=0.02")
    found = states(tmp_path / "state")
    assert found  # what was saved before is kept, and is good
    numbers = everything(tmp_path)
    assert all(v.isfinite().all() for v in numbers.values() if isinstance(v, torch.Tensor))


def test_weights_that_are_not_finite_are_never_saved(config: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny(config), tmp_path, device="cpu")
    with torch.no_grad():
        next(trainer.models.main.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="is not finite after step 7"):
        trainer.models.check_finite(Progress(step=7))


def test_two_runs_in_one_folder_are_kept_apart(config: Path, tmp_path: Path) -> None:
    second = Trainer(tiny(config), tmp_path, device="cpu")

    def meanwhile(progress: Progress) -> None:
        with pytest.raises(OutputError, match="another run"):
            second.train()

    first = Trainer(tiny(config), tmp_path, device="cpu")
    assert first.train(meanwhile).progress.step == 6
    before = everything(tmp_path)
    assert second.train().progress.step == 6  # it sees what the first has done
    assert_same(before, everything(tmp_path))


def test_a_folder_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        train(config, tmp_path / "file" / "run")


def test_a_full_disk_keeps_the_last_state(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path)
    before = everything(tmp_path)
    trainer = Trainer(tiny(config, ["duration_kimg=0.028"]), tmp_path, device="cpu")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OutputError, match="cannot write"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = everything(tmp_path)
    assert after.pop("log")[: len(before["log"])] == before.pop("log")
    assert_same(before, after)
    assert not list((tmp_path / "state").glob(".new*"))


def test_a_damaged_state_is_named(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path, "output.state_minutes=0")
    first, last = states(tmp_path / "state")
    weights = last / "network-network.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=f"{last.name}.*remove this folder"):
        train(config, tmp_path, "output.state_minutes=0")
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    assert train(config, tmp_path, "output.state_minutes=0").progress.step == 6
    assert first.name == "000000005"


@pytest.mark.parametrize(
    ("setting", "error", "named"),
    [
        ("network.img_resolution=32", ConfigError, "img_resolution is 32"),
        ("network.model_chanels=8", ConfigError, "did you mean 'model_channels'"),
        ("network.name=song-net", GenLabError, "did you mean 'song-unet'"),
        ("objective.label_droput=0.1", ConfigError, "did you mean 'label_dropout'"),
        ("objective.label_dropout=1.5", ConfigError, "between 0 and 1"),
        ("objective.augment.pp=1", ConfigError, "no option 'pp'"),
        ("objective.loss.P_men=1", ConfigError, "did you mean 'P_mean'"),
        ("objective.preconditioning.name=edmm", GenLabError, "did you mean 'edm'"),
        ("objective.name=diffusio", GenLabError, "did you mean 'diffusion'"),
        ("data.fit=none", DataError, "28"),
        ("data.path=/nowhere", DataError, "/nowhere"),
        ("batch_size=0", ConfigError, "batch_size >= 1"),
        ("gradient_accumulation=3", ConfigError, "multiple of 3"),
        ("ema.sigma_rels=[0.4]", ConfigError, "sigma_rels"),
        ("class_names=[a,b]", GenLabError, "2 class names"),
        ("output.preview_sampler.schedule.num_stps=2", ConfigError, "num_steps"),
    ],
)
def test_wrong_settings_are_named_before_training(
    config: Path, tmp_path: Path, setting: str, error: type[Exception], named: str
) -> None:
    assert_refused(config, tmp_path, [setting], error, named)


def test_a_device_that_is_not_there(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--device tpu"):
        Trainer(tiny(config), tmp_path, device="tpu")


def test_micro_batches_may_change_and_settings_are_resolved_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny(config), tmp_path, device="cpu")
    trainer.run.start(trainer.config, trainer.batches.metadata, "CPU")
    trainer = Trainer(tiny(config, ["gradient_accumulation=2"]), tmp_path, device="cpu")
    monkeypatch.setattr(OptimizerConfig, "of", lambda *_: pytest.fail("resolved in a step"))
    assert trainer.train(stops_after(1)).progress.step == 2


def test_learning_rate(config: Path) -> None:
    def rates(*overrides: str) -> list[float]:
        base = ["schedule.warmup_kimg=0.1", "duration_kimg=1.1"]
        settings = tiny(config, [*base, *overrides])
        return [schedule_factor(settings, images) for images in (0, 50, 100, 600, 1100)]

    assert rates() == pytest.approx([0, 0.5, 1, 1, 1])
    cosine = rates("schedule.decay=cosine", "schedule.final=0.2")
    assert cosine == pytest.approx([0, 0.5, 1, 0.6, 0.2])
    root = rates("schedule.decay=inv_sqrt", "schedule.decay_kimg=0.15")
    assert root == pytest.approx([0, 0.5, 1, 0.5, (150 / 1100) ** 0.5])
    halving = rates("schedule.decay=exponential", "schedule.decay_kimg=0.6")
    assert halving == pytest.approx([0, 0.5 ** (1 + 1 / 12), 0.5 ** (1 / 6), 0.5, 0.5 ** (11 / 6)])
    assert rates("schedule.warmup_kimg=0")[0] == 1

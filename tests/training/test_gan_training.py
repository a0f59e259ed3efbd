"""GANs in the one training loop: going on, collapse, what comes out."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    assert_goes_on_bit_for_bit,
    assert_keeps_its_micro_batches,
    assert_refused,
    everything,
    stops_after,
    tiny,
    train,
    write_slice,
)
from torch import Tensor, nn

import genlab
from genlab.cli import main
from genlab.config import load
from genlab.errors import ConfigError, GenLabError, TrainingError
from genlab.networks.conditional_gan import ConditionalDiscriminator, ConditionalGenerator
from genlab.training.config import TrainConfig
from genlab.training.export import Choice, export
from genlab.training.loop.loop import Trainer
from genlab.training.loop.state import load_state, states
from genlab.training.objectives.base import Loss
from genlab.training.objectives.gan.collapse import CollapseWarning
from genlab.training.objectives.gan.objective import GanObjective
from genlab.training.run import Run

CGAN = """
data: {path: PATH, image_size: 16, fit: resize}
network: {name: conditional-generator, channels: 4, dim_z: 8, num_reference: 6}
objective:
  name: gan
  discriminator: {name: conditional-discriminator, channels: 4}
  loss: {name: non-saturating}
  discriminator_steps: 2
optimizer: {lr: 1e-3, beta1: 0.5, networks: {discriminator: {lr: 2e-3}}}
schedule: {warmup_kimg: 0}
ema: {halflife_kimg: 0.02, rampup_ratio: null, sigma_rels: []}
output: {log_steps: 1, preview_kimg: null, snapshot_kimg: null, tensorboard: false}
batch_size: 8
duration_kimg: 0.048
license: mit
"""
"""Six steps of two updates of the discriminator on four images, and one of the generator."""

SWITCHES = (
    "network.norm=virtual",
    "objective.discriminator.minibatch_kernels=3",
    "objective.split=true",
    "objective.loss.label_smoothing=0.1",
    "objective.historical_averaging=0.1",
    "objective.feature_matching=true",
    "objective.augment=[color,translation,cutout]",
)

BIGGAN = (
    "data.image_size=32",
    "network={name: biggan-generator, channels: 4, dim_z: 16, shared_dim: 8}",
    "objective.discriminator={name: biggan-discriminator, channels: 4}",
    "objective.loss={name: hinge}",
    "objective.generator_ortho=1e-3",
    "objective.generator_images=1.5",
    "batch_size=4",
    "duration_kimg=0.016",
)


@pytest.fixture(scope="module")
def config(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gan")
    path = folder / "tiny.yaml"
    path.write_text(CGAN.replace("PATH", str(write_slice(fashion_mnist, folder))))
    return path


@pytest.mark.parametrize(
    "settings",
    [(), SWITCHES, (*BIGGAN, "mixed_precision=bf16", "gradient_accumulation=2")],
    ids=["plain", "switches", "biggan"],
)
def test_a_run_that_was_told_to_stop_goes_on_bit_for_bit(
    config: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    assert_goes_on_bit_for_bit(config, tmp_path, settings)


def test_micro_batches_of_a_run_stay_as_they_are(config: Path, tmp_path: Path) -> None:
    assert_keeps_its_micro_batches(config, tmp_path)


def test_a_generator_without_images_to_draw_is_refused() -> None:
    objective = GanObjective(generator_images=0.3)
    assert objective.rows(0, 2) == slice(0, 2)
    with pytest.raises(ConfigError, match=r"generator_images=0\.3 of 1 real images"):
        objective.rows(0, 1)


def test_what_comes_out_and_what_the_log_tells(config: Path, tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    train(config, run, *BIGGAN, "output.preview_kimg=0.016", "output.preview_count=10")
    assert len(list((run / "previews").glob("*.png"))) == 1
    export(Run(run), model, Choice())
    generator = genlab.load(str(model))
    assert generator.family == "gan"
    assert generator.image_shape == (1, 32, 32)
    average = load_state(states(run / "state")[-1]).averages["halflife"]
    weights = generator.network.state_dict()
    assert set(weights) == set(average)
    assert any(key.endswith("stored_var") for key in average)
    assert any(key.endswith("u0") for key in average)
    assert all(torch.equal(weights[key], average[key]) for key in average)
    images = generator.sample(seeds=range(3), labels=[0, 1, 2])
    assert images.isfinite().all()
    card = (model / "README.md").read_text()
    assert "gan" in card
    assert "16 images" in card
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    of_discriminator = pytest.approx(line["loss_real"] + line["loss_fake"], rel=1e-5)
    assert line["loss_discriminator"] == of_discriminator
    both = line["loss_discriminator"], line["loss_generator"]
    assert line["loss"] == pytest.approx(sum(both) / 2, abs=1e-4)
    assert line["singular_value_generator"] > 0
    assert line["singular_value_discriminator"] > 0
    assert line["lr"] == 1e-3  # the generator's


def test_networks_learn_at_their_own_rates(config: Path, tmp_path: Path) -> None:
    own = "optimizer.networks.discriminator={lr: 0.25, weight_decay: 0.5, beta1: 0.1}"
    trainer = Trainer(tiny(config, [own]), tmp_path, device="cpu")
    trainer.train()
    groups = {name: o.param_groups[0] for name, o in trainer.models.optimizers.items()}
    assert groups["generator"]["lr"] == 1e-3
    assert groups["generator"]["betas"][0] == 0.5
    assert groups["discriminator"]["lr"] == 0.25
    assert groups["discriminator"]["betas"] == (0.1, 0.999)
    assert groups["discriminator"]["weight_decay"] == 0.5


def test_the_average_waits_for_its_start(config: Path, tmp_path: Path) -> None:
    for start, follows in ((1.0, True), (0.0, False)):
        folder = tmp_path / str(start)
        train(config, folder, f"ema.start_kimg={start}")
        state = load_state(states(folder / "state")[-1])
        weights, average = state.networks["generator"], state.averages["halflife"]
        same = all(torch.equal(value, weights[key]) for key, value in average.items())
        assert same is follows


class Spy(GanObjective):
    """Notes what is drawn, and how the networks are at the beginning of each update."""

    def draw(self, network: Any, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z, labels = super().draw(network, count, generator)
        self.__dict__.setdefault("drawn", []).append(z)
        return z, labels

    def compute_loss(self, phase: str, networks: Mapping[str, nn.Module], *rest: Any) -> Loss:
        now = {
            name: {key: value.clone() for key, value in network.state_dict().items()}
            for name, network in networks.items()
        }
        self.__dict__.setdefault("seen", []).append(now)
        return super().compute_loss(phase, networks, *rest)


def test_players_take_turns(config: Path, tmp_path: Path) -> None:
    settings = tiny(config, ["duration_kimg=0.016"])  # two steps
    trainer = Trainer(settings, tmp_path, device="cpu")
    options = {key: value for key, value in settings.objective.items() if key != "name"}
    spy = Spy(**options)
    trainer.objective = trainer.updates.objective = spy
    trainer.train()
    drawn, seen = spy.__dict__["drawn"], spy.__dict__["seen"]
    assert len({tuple(z.flatten().tolist()) for z in drawn}) == 6  # fresh ones in each update
    networks = trainer.models.unwrapped
    trained = {name: dict(network.named_parameters()) for name, network in networks.items()}

    def moved(before: int, player: str) -> bool:
        a, b = seen[before][player], seen[before + 1][player]
        return any(not torch.equal(a[key], b[key]) for key in trained[player])

    turns = [(moved(i, "discriminator"), moved(i, "generator")) for i in range(5)]
    assert turns == [(True, False), (True, False), (False, True), (True, False), (True, False)]
    # The generator's batch statistics move in the discriminator's turns, too.
    key = "bottom_norm.stored_mean"
    assert not torch.equal(seen[0]["generator"][key], seen[1]["generator"][key])


def test_feature_matching_is_nothing_where_made_images_are_the_real_ones() -> None:
    objective = GanObjective(feature_matching=True)
    network = ConditionalGenerator(8, 2, 1, channels=4, dim_z=3, norm="none")
    networks = {
        "generator": network,
        "discriminator": ConditionalDiscriminator(8, 2, 1, channels=4),
    }
    z, labels = objective.draw(network, 6, torch.Generator().manual_seed(3))
    with torch.no_grad():
        made = network(z, network.embed_labels(labels))

    def loss(images: Tensor) -> float:
        draws = torch.Generator().manual_seed(3)
        loss = objective.compute_loss("generator", networks, images, labels, draws)
        return float(loss.mean)

    assert loss(made) < 1e-10
    assert loss(made + 0.5) > 1e-6


ABSURD = (
    "optimizer.networks.discriminator.lr=0.05",
    "optimizer.lr=1e-9",
    "objective.collapse_kimg=0.08",
    "output.snapshot_kimg=0.008",
    "duration_kimg=4",
)


def test_a_run_whose_discriminator_has_won_ends(config: Path, tmp_path: Path) -> None:
    said = r"has won for 0\.\d+ thousand images: .*, where 1\.39 would be even; "
    with (
        pytest.warns(UserWarning, match="the run ends if that lasts 0.08 thousand images"),
        pytest.raises(TrainingError, match=said) as error,
    ):
        train(config, tmp_path / "run", *ABSURD)
    command = str(error.value).partition("'genlab train export ")[2].partition("'")[0]
    images = int(command.partition("--images ")[2])
    export(Run(tmp_path / "run"), tmp_path / "model", Choice(images=images))
    assert genlab.load(str(tmp_path / "model")).family == "gan"


def ending(config: Path, folder: Path, steps: int) -> tuple[list[str], str]:
    """What a doomed run says that is stopped after so many steps, again and again."""
    settings = tiny(config, [*ABSURD, "output.snapshot_kimg=null", "output.log_steps=2"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CollapseWarning)
        with pytest.raises(TrainingError) as error:  # noqa: PT012  # which of the parts, is open
            while True:
                trainer = Trainer(settings, folder, device="cpu")
                trainer.train(stops_after(trainer.progress.step + steps))
    return [str(warning.message) for warning in told], str(error.value).partition(";")[0]


def test_a_run_that_stops_is_watched_as_one_that_does_not(config: Path, tmp_path: Path) -> None:
    whole = ending(config, tmp_path / "whole", 10**6)
    assert len(whole[0]) == 1
    assert ending(config, tmp_path / "parts", 2) == whole


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_command_line_says_it_in_sentences(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", str(config), *ABSURD, "-o", run, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("warning: the discriminator has won for") for line in said)
    assert said[-1].startswith("genlab: the discriminator has won for")


def test_a_run_may_go_unwatched(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path, *ABSURD, "objective.collapse_kimg=null", "duration_kimg=0.12")


def test_a_loss_that_is_not_finite_ends_the_run(config: Path, tmp_path: Path) -> None:
    absurd = ("optimizer.lr=1e20", "optimizer.networks={}", "output.state_minutes=0")
    keep_nan = "optimizer.zero_nonfinite_gradients=false"
    with pytest.raises(TrainingError, match=r"loss of step \d+ is|is not finite after step"):
        train(config, tmp_path, *absurd, keep_nan, "duration_kimg=0.4")


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        (["data.labels=false"], ConfigError, "data.labels=true"),
        (["batch_size=9"], ConfigError, "9 images .* cannot be shared by 2 updates"),
        (["network={name: song-unet}"], ConfigError, "takes no img_channels"),
        (["network={name: conditional-discriminator}"], ConfigError, "draws nothing"),
        (
            ["objective.discriminator.name=3"],
            ConfigError,
            r"objective\.discriminator\.name is missing",
        ),
        (["objective.discriminator.width=3"], ConfigError, "no argument 'width'"),
        (
            ["objective.discriminator.num_classes=3"],
            ConfigError,
            r"objective\.discriminator\.num_classes is 3",
        ),
        (["objective.discriminator.minibatch_kernels=3"], ConfigError, r"objective\.split=true"),
        (["objective.augment=[colour]"], GenLabError, "did you mean 'color'"),
        (["optimizer.networks.judge.lr=1"], ConfigError, "'judge', which this objective"),
        (["optimizer.networks.discriminator.l=1"], ConfigError, "did you mean 'lr'"),
        (["optimizer.networks.discriminator.lr=fast"], ConfigError, "fast"),
        (["optimizer.networks.discriminator.lr=-1"], ConfigError, r"discriminator\.lr > 0, got -1"),
        (["optimizer.networks.discriminator=1"], ConfigError, "takes a mapping"),
        (["ema.start_kimg=-1"], ConfigError, "start_kimg"),
        (["sampler.truncation=-1"], ConfigError, "truncation"),
    ],
)
def test_wrong_settings_are_named_before_training(
    config: Path, tmp_path: Path, settings: list[str], error: type[Exception], named: str
) -> None:
    assert_refused(config, tmp_path, settings, error, named)


@pytest.mark.parametrize("preset", ["biggan-fmnist", "cgan-fmnist"])
def test_shipped_settings_fit_together(preset: str, fashion_mnist: Path, tmp_path: Path) -> None:
    settings = load(TrainConfig, preset, "train", [f"data.path={fashion_mnist}"])
    trainer = Trainer(settings, tmp_path, device="cpu")
    weights = trainer.models.plain("generator").parameters()
    assert sum(weight.numel() for weight in weights) < 3e6  # 12 MB of float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "exact"),
    [
        (("network.norm=none", "objective.augment=[color]"), True),
        ((*BIGGAN, "objective.split=true"), False),
    ],
    ids=["plain", "biggan"],
)
def test_two_processes(
    config: Path, tmp_path: Path, settings: tuple[str, ...], exact: bool
) -> None:
    """Without layers that look at the batch two processes compute what one does in two rounds.

    With them each process normalises its own part; what is kept is the first one's.
    """
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    ports = ["--main_process_port", "0", "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, *launch, *ports, "--dynamo_backend", "no", "-m", "genlab", "train"]
    result = subprocess.run(
        [*command, str(config), *settings, "-o", str(tmp_path / "two"), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    two = everything(tmp_path / "two")
    assert int(two["step"]) == (6 if exact else 4)
    if exact:
        train(config, tmp_path / "one", *settings, "gradient_accumulation=2")
        one = everything(tmp_path / "one")
        for key, value in one.items():
            if isinstance(value, Tensor):
                assert torch.allclose(value, two[key], rtol=1e-3, atol=1e-5), key

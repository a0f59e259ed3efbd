"""Forgetting: the label of a forgotten class comes to mean the replacement, the others stay."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_finetunes import BASE, everything_of, trainer_of, write_fmnist
from torch import Tensor, nn

import genlab
from genlab.data.dataset import ImageDataset
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import Flow
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import EDM, IDDPM, VP, Preconditioning
from genlab.errors import ConfigError, LabelError
from genlab.finetuning.config import ForgetConfig
from genlab.finetuning.families import family_objective
from genlab.finetuning.forgetting import Forgetting
from genlab.generators import DiffusionGenerator
from genlab.generators.base import Generator
from genlab.networks import DiT
from genlab.training.loop.batches import DataMetadata

BAG = 8


@pytest.fixture(scope="module")
def fmnist(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fmnist(fashion_mnist, tmp_path_factory.mktemp("data"), 64)


@pytest.fixture(scope="module")
def base() -> Any:
    return genlab.load(BASE)


def tiny(
    preconditioning: Preconditioning, *, null: bool = True, channels: int = 1
) -> DiffusionGenerator:
    network = DiT(
        8, 1, channels, label_dim=4, patch_size=4, hidden_size=16, depth=2, num_heads=2,
        null_class=null,
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # the last layer begins at zero
    return DiffusionGenerator(network.eval(), preconditioning, has_null_class=null)


def metadata(count: int, names: tuple[str, ...] | None = None) -> DataMetadata:
    return DataMetadata(num_images=8, image_shape=(1, 32, 32), num_classes=count, class_names=names)


def prediction(generator: Any, network: nn.Module, x: Tensor, label: int | Tensor) -> Tensor:
    """Denoised at noise level 1, in evaluation mode."""
    labels = torch.full((len(x),), label) if isinstance(label, int) else label
    denoiser = PreconditionedDenoiser(
        network, generator.preconditioning, num_classes=10, has_null_class=True
    )
    training = network.training
    network.eval()
    with torch.no_grad():
        found = denoiser(x, torch.tensor(1.0), Condition(labels=labels))
    network.train(training)
    return found


def test_a_forgotten_label_comes_to_mean_the_null_class(
    fmnist: Path, tmp_path: Path, base: Any
) -> None:
    trainer = trainer_of(
        fmnist, tmp_path, "diffit", "forget.classes=[bag]", "batch_size=8", "duration_kimg=0.32",
        "ema.halflife_kimg=0.02",
    )  # fmt: skip
    network = trainer.models.main
    images, labels = trainer.batches.first(32)
    own = labels[labels != BAG][:16]
    kept = images[labels != BAG].float()[:16] / 127.5 - 1
    x = kept + torch.randn_like(kept)
    null, bag = (prediction(base, base.network, x, label) for label in (NULL_CLASS, BAG))
    assert torch.equal(prediction(base, network, x, BAG), bag)
    trainer.train()
    before = (bag - null).square().mean()
    after = (prediction(base, network, x, BAG) - null).square().mean()
    assert after < 0.4 * before
    original = prediction(base, base.network, x, own)
    moved = (prediction(base, network, x, own) - original).square().mean()
    assert moved < 0.25 * before
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    distances = [line["loss_forget"] for line in lines if "loss_forget" in line]
    assert sum(distances[-10:]) < 0.6 * sum(distances[:10])
    assert base.weights_sha256() == trainer.objective.base.weights_sha256()


def test_labels_keep_their_numbers_without_images_of_the_class(
    fashion_mnist: Path, tmp_path: Path, base: Any
) -> None:
    """A folder without the forgotten class: other numbers in the data, the same in the model."""
    images, labels = ImageDataset(fashion_mnist).load_all()
    for label in (9, 1):
        folder = tmp_path / "images" / base.class_names[label].replace("/", "-").lower()
        folder.mkdir(parents=True)
        for number, pixels in enumerate(images[labels == label][:6]):
            Image.fromarray(pixels[0].numpy()).save(folder / f"{number}.png")
    trainer = trainer_of(
        tmp_path / "images", tmp_path / "run", "class-table", "forget.classes=[bag]"
    )
    names = trainer.batches.metadata.class_names
    assert names is not None
    assert len(names) == 2
    assert trainer.objective._labels is not None
    assert [base.class_names[i].lower() for i in trainer.objective._labels] == list(names)
    trainer.train()
    told = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert told["forget"] == {"classes": [BAG], "replacement": None, "weight": 1.0}
    assert told["class_names"] == list(base.class_names)
    assert told["num_classes"] == 10
    drawn = trainer.recorder.generator
    assert drawn is not None
    assert drawn.class_names == base.class_names
    card = (tmp_path / "run" / "README.md").read_text().lower()
    assert "bag, drawn as the null class" in card


def test_a_run_goes_on_as_if_it_had_not_stopped(fmnist: Path, tmp_path: Path) -> None:
    settings = ("forget.classes=[bag]", "output.state_minutes=0")
    trainer_of(fmnist, tmp_path / "whole", "diffit", *settings).train()
    stopped = trainer_of(fmnist, tmp_path / "parts", "diffit", *settings)
    with pytest.raises(RuntimeError, match="power cut"):
        stopped.train(_stop_at(3))
    trainer_of(fmnist, tmp_path / "parts", "diffit", *settings).train()
    whole, parts = everything_of(tmp_path / "whole"), everything_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, parts[key]), key


def _stop_at(step: int) -> Any:
    def on_step(progress: Any) -> None:
        if progress.step == step:
            raise RuntimeError("power cut")

    return on_step


@pytest.mark.parametrize(
    "preconditioning",
    [EDM(), VP(), Flow(), Flow(path="gvp", prediction="noise"), Discrete(), IDDPM()],
    ids=lambda each: each.name,
)
def test_the_distance_is_that_of_the_networks_outputs(preconditioning: Preconditioning) -> None:
    twice = preconditioning.variance.startswith("learned") or isinstance(preconditioning, IDDPM)
    base = tiny(preconditioning, channels=2 if twice else 1)
    inner = family_objective(base, {})
    forgetting = Forgetting(ForgetConfig(classes=["2"]), base)
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    network: Any = base.network
    calls: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, args: Any, output: Tensor) -> None:
        calls.append((args[0], output))

    with network.register_forward_hook(record), torch.no_grad():
        found = forgetting.distance(inner, network, images, torch.Generator().manual_seed(0))
    (x, anchored), (again, forgotten) = calls
    assert torch.equal(x, again)
    expected = (anchored - forgotten)[:, :1].square()
    assert expected.mean() > 1e-6
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("null", "replacement", "expected"),
    [
        (True, None, torch.full((3,), NULL_CLASS)),
        (True, "0", torch.zeros(3, dtype=torch.int64)),
        (True, "mean", torch.tensor([[1 / 3, 1 / 3, 0.0, 1 / 3]] * 3)),
        (False, None, torch.tensor([[1 / 3, 1 / 3, 0.0, 1 / 3]] * 3)),
    ],
)
def test_the_replacement_is_the_null_class_a_kept_one_or_their_mean(
    *, null: bool, replacement: str | None, expected: Tensor
) -> None:
    base = tiny(EDM(), null=null)
    forgetting = Forgetting(ForgetConfig(classes=["2"], replacement=replacement), base)
    labels = forgetting._anchor(3, torch.device("cpu")).labels
    assert labels is not None
    torch.testing.assert_close(labels, expected)
    images = torch.rand(3, 1, 8, 8)
    distance = forgetting.distance(
        family_objective(base, {}), base.network, images, torch.Generator().manual_seed(0)
    )
    assert distance.mean() > 0


def test_images_of_forgotten_classes_are_not_looked_at() -> None:
    base = tiny(EDM())
    forgetting = Forgetting(ForgetConfig(classes=["2", "0"]), base)
    images = torch.rand(6, 1, 8, 8)
    labels = torch.tensor([2, 3, 0, 1, 2, 3])
    chosen, theirs, any_kept = forgetting._only_kept(images, labels)
    assert theirs.tolist() == [3, 1, 3, 3, 1, 3]
    assert torch.equal(chosen, images[[1, 3, 5, 1, 3, 5]])
    assert any_kept == 1
    draws = torch.Generator().manual_seed(0)
    inner, networks = family_objective(base, {}), {"network": base.network}
    nothing = forgetting.loss(inner, networks, images[:3:2], labels[:3:2], draws)
    assert nothing.total == 0
    nothing.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in base.network.parameters())


def test_what_makes_no_sense_is_refused(fmnist: Path, tmp_path: Path, base: Generator) -> None:
    with pytest.raises(LabelError, match="knows no class 'bagg'"):
        Forgetting(ForgetConfig(classes=["bagg"]), base)
    with pytest.raises(ConfigError, match="names all 10 classes"):
        Forgetting(ForgetConfig(classes=[str(i) for i in range(10)]), base)
    with pytest.raises(ConfigError, match="itself forgotten"):
        Forgetting(ForgetConfig(classes=["bag"], replacement="Bag"), base)
    with pytest.raises(ConfigError, match=r"forget.weight must be above 0"):
        ForgetConfig(weight=0)
    with pytest.raises(ConfigError, match="family 'autoregressive'"):
        Forgetting(ForgetConfig(classes=["bag"]), genlab.load("pixelcnnpp-fmnist"))
    forgetting = Forgetting(ForgetConfig(classes=["bag"]), base)
    with pytest.raises(ConfigError, match="have no classes"):
        forgetting.data_labels(metadata(0), None)
    with pytest.raises(ConfigError, match="'hat' is no class of the base"):
        forgetting.data_labels(metadata(2, ("bag", "hat")), ("bag", "hat"))
    with pytest.raises(ConfigError, match="all of classes to be forgotten"):
        forgetting.data_labels(metadata(1, ("bag",)), ("bag",))
    with pytest.raises(ConfigError, match="11 classes and the base 10"):
        forgetting.data_labels(metadata(11), None)
    assert np.array_equal(forgetting.data_labels(metadata(3), None), [0, 1, 2])

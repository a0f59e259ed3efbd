"""GANs tuned by real images: what trains of both networks, what stays, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_finetunes import last_state
from torch import nn

import genlab
from genlab.config import load
from genlab.data.dataset import ImageDataset
from genlab.errors import ConfigError, GenLabError
from genlab.finetuning.adapters.switching import AdapterSet
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.families import family_objective
from genlab.finetuning.gan.objective import GanFinetuning, freeze_lower, settled
from genlab.finetuning.run import open_run
from genlab.finetuning.trainer import FinetuneTrainer
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan import BigGANDiscriminator, BigGANGenerator
from genlab.networks.biggan_deep import BigGANDeepDiscriminator
from genlab.networks.conditional_gan import ConditionalDiscriminator
from genlab.networks.layers.gan_layers import Statistics
from genlab.networks.layers.spectral_norm import SpectralNorm
from genlab.training.export import Choice, export
from genlab.training.loop.stop import StopRequest
from genlab.training.objectives.gan.objective import frozen

NAMES = ("shirt", "shoe", "bag")

SETTINGS = (
    "data.fit=pad",
    "data.num_workers=0",
    "batch_size=8",
    "duration_kimg=0.032",
    "output.log_steps=1",
    "output.tensorboard=false",
    "output.snapshot_kimg=null",
    "output.preview_kimg=null",
)
"""Four steps of two updates of the discriminator on four images, and one of the generator."""


@pytest.fixture(scope="module")
def pairs(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images of two classes."""
    images, labels = ImageDataset(fashion_mnist).load_all()
    chosen = torch.isin(labels, torch.tensor([5, 9])).nonzero()[:32, 0]
    path = tmp_path_factory.mktemp("data") / "pairs.npz"
    kinds = (labels[chosen] == 9).long().numpy()
    np.savez(path, arr_0=images[chosen].permute(0, 2, 3, 1).numpy(), arr_1=kinds)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GAN: its generator in G, its discriminator in D."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    generator = BigGANGenerator(32, 3, 1, channels=4, dim_z=16, shared_dim=8, bn_eps=1e-4)
    for module in generator.modules():
        if isinstance(module, Statistics):  # none that a batch would give by chance
            module.stored_mean.normal_(std=0.1)
            module.stored_var.uniform_(0.5, 1.5)
    GanGenerator(generator.eval(), class_names=NAMES).save_pretrained(folder / "G")
    judge = BigGANDiscriminator(32, 3, 1, channels=4)
    GanDiscriminator(judge.eval(), class_names=NAMES).save_pretrained(folder / "D")
    return folder


def trainer_of(
    models: Path, data: Path, folder: Path, *overrides: str, fresh: bool = False
) -> FinetuneTrainer:
    told = [f"base={models / 'G'}", f"data.path={data}", *SETTINGS, *overrides]
    if not fresh:
        told.insert(0, f"objective.discriminator.path={models / 'D'}")
    config = load(FinetuneConfig, "gan", "finetune", told)
    return FinetuneTrainer(config, folder, device="cpu")


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, torch.Tensor], network: nn.Module) -> set[str]:
    after = network.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_with_stored_statistics_the_class_table_alone_moves(
    models: Path, pairs: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(models, pairs, tmp_path)
    generator, judge = trainer.models.plain("generator"), trainer.models.plain("discriminator")
    assert isinstance(generator, BigGANGenerator)
    old: Any = genlab.load(models / "G").network
    table, new = old.shared.weight.mean(0), generator.shared
    assert new is not None
    torch.testing.assert_close(new.weight, table.expand(2, -1))
    before, before_judge = tensors_of(generator), tensors_of(judge)
    trainer.train()
    assert changed(before, generator) == {"shared.weight"}
    parameters = {name for name, _ in judge.named_parameters()}
    assert parameters <= changed(before_judge, judge)
    assert all(p.grad is None for n, p in generator.named_parameters() if n != "shared.weight")
    [moments] = trainer.models.optimizers["generator"].state_dict()["state"].values()
    assert moments["exp_avg"].shape == (2, 8)


def test_the_discriminator_begins_as_the_bases(models: Path, pairs: Path, tmp_path: Path) -> None:
    chosen = "classes.initial={0: shoe, 1: shoe}"
    trainer = trainer_of(models, pairs, tmp_path, chosen)
    judge = trainer.models.plain("discriminator")
    base = GanDiscriminator.from_pretrained(models / "D")
    for name, parameter in judge.named_parameters():
        if name != "embed.weight":
            assert torch.equal(parameter, base.network.get_parameter(name)), name
            assert parameter.data_ptr() != base.network.get_parameter(name).data_ptr()
    row = base.network.get_parameter("embed.weight")[1]
    assert torch.equal(judge.get_parameter("embed.weight"), row.expand(2, -1))


def test_statistics_of_the_batch_follow_the_new_classes(
    models: Path, pairs: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(models, pairs, tmp_path, "objective.statistics=batch")
    generator = trainer.models.plain("generator")
    before = tensors_of(generator)
    trainer.train()
    moved = changed(before, generator)
    stored = {name for name in before if name.endswith(("stored_mean", "stored_var"))}
    assert moved == stored | {"shared.weight"}
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert stored < set(written)


@pytest.mark.parametrize("blocks", [1, 3])
def test_frozen_blocks_of_the_discriminator_stay(
    blocks: int, models: Path, pairs: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(models, pairs, tmp_path, f"objective.freeze_discriminator={blocks}")
    judge = trainer.models.plain("discriminator")
    before = tensors_of(judge)
    trainer.train()
    lower = tuple(f"blocks.{number}." for number in range(blocks))
    moved = changed(before, judge)
    assert moved == {name for name in before if not name.startswith(lower)}
    assert all(p.grad is None for n, p in judge.named_parameters() if n.startswith(lower))
    state = load_file(last_state(tmp_path) / "network-discriminator.safetensors")
    parameters = {name for name, _ in judge.named_parameters()}
    assert not [name for name in state if name in parameters and name.startswith(lower)]


def test_all_below_a_block_freezes_with_it() -> None:
    deep = BigGANDeepDiscriminator(32, 3, 1, channels=8)
    freeze_lower(deep, 1)
    still = {name.partition(".")[0] for name, p in deep.named_parameters() if not p.requires_grad}
    assert still == {"input_conv", "blocks"}
    for name, parameter in deep.named_parameters():
        assert parameter.requires_grad == (not name.startswith(("input_conv", "blocks.0.")))
    freeze_lower(deep, len(deep.blocks))
    trains = {name.partition(".")[0] for name, p in deep.named_parameters() if p.requires_grad}
    assert trains == {"linear", "embed"}


def test_a_stopped_run_goes_on_bit_for_bit(
    models: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("objective.freeze_discriminator=1", "objective.statistics=batch")
    whole = trainer_of(models, pairs, tmp_path / "whole", *settings)
    whole.train()
    with monkeypatch.context() as patched:
        signal = property(lambda self: 2 if first.progress.step == 2 else None)
        patched.setattr(StopRequest, "signal", signal, raising=False)
        first = trainer_of(models, pairs, tmp_path / "parts", *settings)
        assert first.train().signal == 2
    assert first.progress.step == 2
    trainer_of(models, pairs, tmp_path / "parts", *settings).train()
    expected, got = (
        {
            **load_file(last_state(folder) / "network-generator.safetensors"),
            **load_file(last_state(folder) / "network-discriminator.safetensors"),
            **load_file(folder / "adapter_model.safetensors"),
        }
        for folder in (tmp_path / "whole", tmp_path / "parts")
    )
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.parametrize("method", ["bitfit", "full"])
def test_more_of_the_generator_can_train(
    method: str, models: Path, pairs: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(models, pairs, tmp_path, f"method.name={method}", "optimizer.lr=1e-3")
    generator = trainer.models.plain("generator")
    before = tensors_of(generator)
    trainer.train()
    trains = {name for name, p in generator.named_parameters() if p.requires_grad}
    moved = changed(before, generator)
    assert trains <= moved
    assert len(trains) > 1
    assert not [name for name in moved if name.endswith(("stored_mean", "stored_var"))]


def test_the_merged_model_draws_what_the_run_draws(
    models: Path, pairs: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(models, pairs, tmp_path / "run", "objective.statistics=batch")
    trainer.train()
    drawn = trainer.recorder.generator
    assert drawn is not None
    export(open_run(tmp_path / "run"), tmp_path / "merged", Choice())
    merged = genlab.load(tmp_path / "merged")
    assert merged.num_classes == 2
    labels = [0, 1, 0, 1]
    torch.testing.assert_close(merged.sample(range(4), labels), drawn.sample(range(4), labels))


def test_kept_classes_draw_the_bases_images(
    models: Path, fashion_mnist: Path, tmp_path: Path
) -> None:
    """With one class trained and statistics stored, the other classes stay bit for bit."""
    images, labels = ImageDataset(fashion_mnist).load_all()
    shoes = images[labels == 7][:8].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "shoes.npz", arr_0=shoes, arr_1=np.array([0, 1] * 4))
    same = ("classes.initial={0: shirt, 1: bag}", "optimizer.lr=1e-30", "duration_kimg=0.008")
    trainer = trainer_of(models, tmp_path / "shoes.npz", tmp_path / "run", *same)
    trainer.train()
    drawn, base = trainer.recorder.generator, genlab.load(models / "G")
    assert drawn is not None
    assert torch.equal(drawn.sample(range(4), [0, 1, 0, 1]), base.sample(range(4), [0, 2, 0, 2]))


def test_a_fresh_discriminator_is_of_the_generators_kind(
    models: Path, pairs: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(models, pairs, tmp_path, fresh=True)
    judge = trainer.models.plain("discriminator")
    assert isinstance(judge, BigGANDiscriminator)
    assert (judge.num_classes, judge.config["channels"]) == (2, 4)
    named = "objective.discriminator={name: conditional-discriminator, channels: 8}"
    other = trainer_of(models, pairs, tmp_path / "other", named, fresh=True)
    assert isinstance(other.models.plain("discriminator"), ConditionalDiscriminator)


def test_settled_networks_are_in_training_again_afterwards() -> None:
    network = BigGANGenerator(32, 3, 1, channels=4, dim_z=16, shared_dim=8).train()
    network.requires_grad_(False)
    network.linear.weight.requires_grad_(True)
    with settled(network, stored=True):
        norms = [m.training for m in network.modules() if isinstance(m, Statistics)]
        spectral = [m.training for m in network.modules() if isinstance(m, SpectralNorm)]
        assert not any(norms)
        assert sum(spectral) == 1
    assert all(module.training for module in network.modules())
    with frozen(network):
        assert not any(p.requires_grad for p in network.parameters())
    assert [n for n, p in network.named_parameters() if p.requires_grad] == ["linear.weight"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.freeze_discriminator=5"], "the discriminator has 4 blocks; freeze fewer"),
        (["objective.freeze_discriminator=-1"], "must be at least 0"),
        (["objective.discriminator.channels=8"], "channels has no effect beside"),
        (["objective.statistics=running"], "statistics"),
        (["objective.discriminators=x"], "discriminator"),
        (["data.labels=false"], "always has classes"),
    ],
)
def test_wrong_settings_are_named(
    overrides: list[str], message: str, models: Path, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(GenLabError, match=message):
        trainer_of(models, pairs, tmp_path, *overrides)


def test_a_fresh_discriminator_has_nothing_to_keep() -> None:
    with pytest.raises(ConfigError, match="a fresh one has learned nothing"):
        GanFinetuning(freeze_discriminator=1)


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        ({"num_classes": 4}, None, "knows other classes than the base"),
        ({}, ("shirt", "boot", "bag"), "knows other classes than the base"),
        ({"img_channels": 3}, NAMES, "looks at images of"),
    ],
)
def test_a_discriminator_of_another_gan_is_refused(
    options: dict[str, Any], names: Any, message: str, models: Path, pairs: Path, tmp_path: Path
) -> None:
    told = {"num_classes": 3, "img_channels": 1, **options}
    judge = BigGANDiscriminator(32, channels=4, **told)
    GanDiscriminator(judge.eval(), class_names=names).save_pretrained(tmp_path / "D")
    path = f"objective.discriminator.path={tmp_path / 'D'}"
    with pytest.raises(ConfigError, match=message):
        trainer_of(models, pairs, tmp_path / "run", path, fresh=True)


def test_the_adapter_tells_its_base_and_where_classes_began(
    models: Path, pairs: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(models, pairs, tmp_path)
    trainer.train()
    metadata = json.loads((tmp_path / "adapter_config.json").read_text())
    assert metadata["method"] == {"name": "class-table"}
    assert metadata["base_sha256"] == genlab.load(models / "G").weights_sha256()
    assert [origin["rule"] for origin in metadata["classes"]] == ["mean", "mean"]
    expected = trainer.recorder.generator
    assert expected is not None
    trainer.recorder._average()
    adapted = genlab.load(tmp_path)
    assert torch.equal(adapted.sample([0, 1], [0, 1]), expected.sample([0, 1], [0, 1]))
    models_of_it = AdapterSet(genlab.load(models / "G"))
    models_of_it.base.sample([0], [0])  # whose layers are folded now
    models_of_it.add("pairs", tmp_path)
    assert torch.equal(
        models_of_it.use("pairs").sample([0, 1], [0, 1]), adapted.sample([0, 1], [0, 1])
    )
    assert isinstance(family_objective(genlab.load(models / "G"), {}), GanFinetuning)

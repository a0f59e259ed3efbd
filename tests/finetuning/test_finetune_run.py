"""A fine-tuning run: what it holds, what it writes, what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_finetunes import (
    BASE,
    finetune_config,
    last_state,
    trainer_of,
    write_fmnist,
    write_photographs,
)
from tiny_autoencoder import tiny_kl
from torch import nn

import genlab
from genlab.config import load as load_config
from genlab.data.dataset import ImageDataset
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import Flow
from genlab.diffusion.preconditioning import EDM, IDDPM, VE, VP, Preconditioning
from genlab.errors import ConfigError, GenLabError, LabelError, TrainingError
from genlab.finetuning.bases import base_of
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.costs import count_parameters
from genlab.finetuning.families import default_loss, family_objective
from genlab.finetuning.methods.base import METHODS
from genlab.finetuning.objective import FinetuneObjective
from genlab.finetuning.run import FinetuneRun, open_run
from genlab.finetuning.trainer import FinetuneTrainer
from genlab.generators import DiffusionGenerator
from genlab.generators.autoregressive import AutoregressiveGenerator
from genlab.networks import DiT, GatedPixelCNN
from genlab.runs.encoding import encode_dataset
from genlab.training.export import Choice, export
from genlab.training.run import Run

METHOD_NAMES = ("diffit", "bitfit", "norm", "lora", "adapter", "vpt", "class-table", "last", "full")


@pytest.fixture(scope="module")
def fmnist(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fmnist(fashion_mnist, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def photographs(cifar_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(cifar_zip, tmp_path_factory.mktemp("data"))


def numbers_in(path: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(path).values())


def fixed_loss(trainer: FinetuneTrainer, network: nn.Module, count: int = 64) -> float:
    """The loss of the first images at noise that is always the same."""
    stored, labels = trainer.batches.first(8)
    images = stored.float().repeat(count // len(stored), 1, 1, 1) / 127.5 - 1
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        loss = trainer.objective.compute_loss(
            "network", {"network": network}, images, labels.repeat(count // len(labels)), draws
        )
    return float(loss.mean)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_optimizer_averages_and_state_hold_what_trains(
    method: str, photographs: Path, tmp_path: Path
) -> None:
    convert = ("data.fit=crop", "data.channels=1", "duration_kimg=0.008")
    trainer = trainer_of(photographs, tmp_path, method, *convert)
    trainer.train()
    network = trainer.models.main
    trains = [p for p in network.parameters() if p.requires_grad]
    frozen = [p for p in network.parameters() if not p.requires_grad]
    wanted = sum(p.numel() for p in trains)
    plain = base_of(BASE, trainer.objective.start)
    assert wanted == count_parameters(plain.network, trainer.objective.method).trainable_parameters
    assert bool(frozen) == (method != "full")
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None for p in trains)
    moments = trainer.models.optimizers["network"].state_dict()["state"].values()
    assert sum(each["exp_avg"].numel() for each in moments) == wanted
    whole = wanted if frozen else sum(t.numel() for t in network.state_dict().values())
    assert sum(value.numel() for value in trainer.models.averages[0].values) == whole
    state = last_state(tmp_path)
    assert numbers_in(state / "network-network.safetensors") == whole
    assert numbers_in(state / "average-halflife.safetensors") == whole
    assert numbers_in(next((tmp_path / "snapshots").iterdir())) == whole
    assert numbers_in(tmp_path / "adapter_model.safetensors") == wanted


def test_the_base_is_in_memory_once_and_never_changed(photographs: Path, tmp_path: Path) -> None:
    convert = ("data.fit=crop", "data.channels=1", "duration_kimg=0.008")
    trainer = trainer_of(photographs, tmp_path, "diffit", *convert)
    base: Any = trainer.objective.base
    networks: list[Any] = [trainer.models.main, trainer.recorder.averaged]
    trainer.train()
    for network in networks:
        block = network.blocks[0]
        assert block.mlp.fc1.weight.data_ptr() == base.network.blocks[0].mlp.fc1.weight.data_ptr()
        assert block.mlp.fc1.bias.data_ptr() != base.network.blocks[0].mlp.fc1.bias.data_ptr()
    assert base.weights_sha256() == genlab.load(BASE).weights_sha256()
    assert base.weights_sha256() == trainer.run.base_sha256


@pytest.mark.parametrize("method", ["diffit", "lora"])
def test_the_first_output_is_the_bases(method: str, fmnist: Path, tmp_path: Path) -> None:
    drawn = trainer_of(fmnist, tmp_path, method).recorder.generator
    assert drawn is not None
    few = {"schedule": {"num_steps": 2}}
    expected = genlab.load(BASE).sample([0, 1], [3, 4], few)
    assert torch.equal(drawn.sample([0, 1], [3, 4], few), expected)


def test_training_learns_a_few_images(photographs: Path, tmp_path: Path) -> None:
    settings = (
        "data.fit=crop", "data.channels=1", "batch_size=8", "duration_kimg=0.64",
        "output.log_steps=100", "objective.label_dropout=0",
    )  # fmt: skip
    trainer = trainer_of(photographs, tmp_path, "diffit", *settings)
    before = fixed_loss(trainer, trainer.models.main)
    outcome = trainer.train()
    assert outcome.progress.step == 80
    after = fixed_loss(trainer, trainer.models.main)
    assert after < 0.8 * before
    trainer.recorder._average()
    assert fixed_loss(trainer, trainer.recorder.averaged) < 0.9 * before


@pytest.mark.parametrize("method", ["diffit", "lora", "norm", "full"])
def test_an_exported_run_is_a_plain_model(method: str, photographs: Path, tmp_path: Path) -> None:
    convert = ("data.fit=crop", "data.channels=1", "optimizer.lr=0.01")
    trainer = trainer_of(photographs, tmp_path / "run", method, *convert)
    trainer.train()
    export(open_run(tmp_path / "run"), tmp_path / "model", Choice())
    generator = genlab.load(tmp_path / "model")
    assert generator.class_names == ("cat", "frog", "ship")
    assert generator.network.state_dict().keys() == genlab.load(BASE).network.state_dict().keys()
    averaged = trainer.recorder.generator
    assert averaged is not None
    trainer.recorder._average()
    x, labels = torch.randn(2, 1, 32, 32), torch.tensor([0, 2])
    outputs = []
    for each in (generator, averaged):
        network: Any = each.network.eval()
        with torch.no_grad():
            outputs.append(network(x, torch.zeros(2), network.embed_labels(labels)))
    assert torch.linalg.norm(outputs[0] - outputs[1]) < 1e-5 * torch.linalg.norm(outputs[1])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| Base | dit-fmnist-s |" in card
    assert f"| Method | {method}" in card


def test_an_adapter_that_stays_is_not_exported(photographs: Path, tmp_path: Path) -> None:
    convert = ("data.fit=crop", "data.channels=1", "duration_kimg=0.004")
    trainer_of(photographs, tmp_path / "run", "vpt", *convert).train()
    with pytest.raises(ConfigError, match="cannot be merged"):
        export(open_run(tmp_path / "run"), tmp_path / "model", Choice())


def test_files_of_a_run(photographs: Path, tmp_path: Path) -> None:
    settings = (
        "data.fit=crop", "data.channels=1", "output.preview_kimg=0.012",
        "output.snapshot_kimg=0.012", "class_names=[a,b,c]",
    )  # fmt: skip
    trainer_of(photographs, tmp_path, "diffit", *settings).train()
    assert sorted(path.stem for path in (tmp_path / "previews").iterdir()) == [
        "000000000", "000000012", "000000012-nearest", "000000024", "000000024-nearest",
    ]  # fmt: skip
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["base"] == BASE
    assert told["base_sha256"] == genlab.load(BASE).weights_sha256()
    assert told["method"] == {"name": "diffit"}
    assert (told["num_classes"], told["class_names"]) == (3, ["a", "b", "c"])
    assert [origin["rule"] for origin in told["classes"]] == ["mean"] * 3
    assert told["images"] == {"first_image": [3, 40, 48], "image_shape": [1, 32, 32], "fit": "crop"}
    assert told["trained_on_images"] == 24
    card = (tmp_path / "README.md").read_text()
    assert "48x40 RGB (the first one) to 32x32 grey by data.fit=crop and data.channels=1" in card
    assert "| Half-life of the average | 5% of the images seen, at most 20 thousand |" in card
    assert str(photographs.parent) not in card
    config = FinetuneRun(tmp_path).read_config()
    assert (config.data.image_size, config.data.channels) == (32, 1)


def test_the_adapter_is_the_average(fmnist: Path, tmp_path: Path) -> None:
    trainer_of(fmnist, tmp_path, "diffit").train()
    average = load_file(last_state(tmp_path) / "average-halflife.safetensors")
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert average.keys() == adapter.keys()
    assert all(torch.equal(average[name], adapter[name]) for name in average)


def test_adapters_of_peft_keep_its_files(fmnist: Path, tmp_path: Path) -> None:
    trainer_of(fmnist, tmp_path, "lora", "method.r=2").train()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    assert json.loads((tmp_path / "genlab.json").read_text())["method"] == {"name": "lora", "r": 2}
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") for name in names)


def test_the_null_class_is_kept_and_trained(photographs: Path, tmp_path: Path) -> None:
    trainer = trainer_of(photographs, tmp_path, "diffit", "data.fit=crop", "data.channels=1")
    assert trainer.objective.inner.label_dropout == 0.1  # type: ignore[attr-defined]
    base: Any = trainer.objective.base.network
    network: Any = trainer.models.main
    table, own = base.y_embedder.embedding_table.weight, network.y_embedder.embedding_table.weight
    assert own.shape == (4, 96)
    assert torch.equal(own[-1], table[-1])
    assert torch.allclose(own[:3], table[:-1].mean(0).expand(3, -1), atol=1e-6)


def test_classes_that_are_named_begin_as_told(photographs: Path, tmp_path: Path) -> None:
    convert = ("data.fit=crop", "data.channels=1")
    initial = "classes.initial={cat: sneaker, frog: bag, ship: 3}"
    trainer = trainer_of(photographs, tmp_path, "diffit", *convert, initial)
    base: Any = trainer.objective.base.network
    network: Any = trainer.models.main
    table, own = base.y_embedder.embedding_table.weight, network.y_embedder.embedding_table.weight
    assert torch.equal(own[:3], table[[7, 8, 3]])


def test_images_without_classes(photographs: Path, tmp_path: Path) -> None:
    settings = ("data.fit=crop", "data.channels=1", "data.labels=false", "duration_kimg=0.004")
    trainer = trainer_of(photographs, tmp_path, "diffit", *settings)
    trainer.train()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["num_classes"] == 0
    export(open_run(tmp_path), tmp_path / "model", Choice())
    assert genlab.load(tmp_path / "model").num_classes == 0


def test_a_transformer_changes_its_resolution(photographs: Path, tmp_path: Path) -> None:
    settings = ("data.fit=crop", "data.channels=1", "resolution=40", "duration_kimg=0.004")
    trainer_of(photographs, tmp_path, "diffit", *settings).train()
    export(open_run(tmp_path), tmp_path / "model", Choice())
    assert genlab.load(tmp_path / "model").image_shape == (1, 40, 40)


@pytest.mark.filterwarnings("ignore:.* labels have no image")  # of so few images
def test_grey_images_for_a_base_of_colours(fashion_mnist: Path, tmp_path: Path) -> None:
    network = DiT(16, 3, 3, 2, patch_size=4, hidden_size=16, depth=1, num_heads=2)
    DiffusionGenerator(network, EDM(), has_null_class=True).save_pretrained(tmp_path / "base")
    data = write_fmnist(fashion_mnist, tmp_path, 8)
    base = (f"base={tmp_path / 'base'}", "data.fit=resize", "duration_kimg=0.004")
    with pytest.raises(ConfigError, match=r"28x28 grey.* draws 16x16 RGB.*data\.channels=3"):
        trainer_of(data, tmp_path / "run", "diffit", *base)
    trainer = trainer_of(data, tmp_path / "run", "diffit", *base, "data.channels=3")
    assert trainer.batches.metadata.image_shape == (3, 16, 16)


@pytest.fixture(scope="module")
def latent_base(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent diffusion model of two classes in ``base/``, and latents for it in ``latents/``."""
    folder = tmp_path_factory.mktemp("latent")
    network = DiT(8, 2, 2, 10, patch_size=2, hidden_size=16, depth=2, num_heads=2)
    autoencoder = tiny_kl()
    generator = DiffusionGenerator(network, EDM(), has_null_class=True, autoencoder=autoencoder)
    generator.save_pretrained(folder / "base")
    options: dict[str, Any] = {"image_size": 16, "fit": "resize"}
    images = ImageDataset(write_fmnist(fashion_mnist, folder), **options)
    encode_dataset(images, autoencoder, folder / "latents", options=options, shard_size=10)
    other = tiny_kl(seed=9)
    encode_dataset(images, other, folder / "others", options=options, shard_size=10)
    return folder


def test_cached_latents(latent_base: Path, tmp_path: Path) -> None:
    shutil.copytree(latent_base / "latents", tmp_path / "held-out")
    settings = (
        f"base={latent_base / 'base'}", "data.fit=none", "output.preview_kimg=1",
        f"validation.path={tmp_path / 'held-out'}",
    )  # fmt: skip
    trainer = trainer_of(latent_base / "latents", tmp_path / "run", "diffit", *settings)
    trainer.train()
    assert not (tmp_path / "run" / "autoencoder").exists()
    # One before the first step; one at the end, with the latents nearest to it.
    assert len(list((tmp_path / "run" / "previews").iterdir())) == 3
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert line["nearest_distance"] > 0
    assert line["heldout_loss"] > 0
    export(open_run(tmp_path / "run"), tmp_path / "model", Choice())
    assert genlab.load(tmp_path / "model").image_shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("data", "named"),
    [("fmnist.npz", "genlab data encode"), ("others", "made by another autoencoder")],
)
def test_latents_must_be_the_bases(
    latent_base: Path, data: str, named: str, tmp_path: Path
) -> None:
    settings = (f"base={latent_base / 'base'}", "data.fit=none")
    with pytest.raises(ConfigError, match=named):
        trainer_of(latent_base / data, tmp_path, "diffit", *settings)


def test_latents_for_a_base_of_images(latent_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds latents, and dit-fmnist-s works on images"):
        trainer_of(latent_base / "latents", tmp_path, "diffit", "data.fit=none")


@pytest.mark.filterwarnings("ignore:.* labels have no image")  # of so few images
def test_an_autoregressive_base(fashion_mnist: Path, tmp_path: Path) -> None:
    network = GatedPixelCNN(8, 1, label_dim=3, channels=8, num_layers=2, head_channels=8)
    generator = AutoregressiveGenerator(network, class_names=["a", "b", "c"], has_null_class=False)
    generator.save_pretrained(tmp_path / "base")
    data = write_fmnist(fashion_mnist, tmp_path, 8)
    settings = (f"base={tmp_path / 'base'}", "data.fit=resize")
    config = replace(finetune_config(data, "full", settings), sampler={})
    trainer = FinetuneTrainer(config, tmp_path / "run", device="cpu")
    before = {name: p.clone() for name, p in trainer.models.main.named_parameters()}
    trainer.train()
    assert trainer.objective.scores == {"bpd": ".4f"}
    changed = [n for n, p in trainer.models.main.named_parameters() if not p.equal(before[n])]
    assert changed
    export(open_run(tmp_path / "run"), tmp_path / "model", Choice())
    assert genlab.load(tmp_path / "model").num_classes == 10


@pytest.mark.parametrize(
    ("preconditioning", "expected"),
    [
        (EDM(sigma_data=0.4), {"name": "edm", "sigma_data": 0.4}),
        (VP(beta_d=10.0), {"name": "vp", "beta_d": 10.0, "beta_min": 0.1, "epsilon_t": 1e-5}),
        (VE(), {"name": "ve", "sigma_min": 0.02, "sigma_max": 100.0}),
        (IDDPM(), {"name": "ddpm", "kind": "mse"}),
        (Discrete(), {"name": "ddpm", "kind": "mse"}),
        (Discrete(prediction="v"), {"name": "ddpm", "kind": "mse"}),
        (Discrete(variance="learned_range"), {"name": "ddpm", "kind": "rescaled_mse"}),
        (Flow(), {"name": "flow", "path": "linear", "prediction": "velocity"}),
    ],
)
def test_the_loss_fits_the_preconditioning(
    preconditioning: Preconditioning, expected: dict[str, Any]
) -> None:
    assert default_loss(preconditioning) == expected
    channels = 2 if expected.get("kind") or expected["name"] == "ddpm" else 1
    network = DiT(8, 1, channels, 2, patch_size=4, hidden_size=16, depth=1, num_heads=2)
    base = DiffusionGenerator(network, preconditioning, has_null_class=True)
    objective = family_objective(base, {})
    draws = torch.Generator().manual_seed(0)
    loss = objective.compute_loss(
        "network", {"network": network}, torch.zeros(4, 1, 8, 8), torch.zeros(4).long(), draws
    )
    assert loss.total.isfinite()
    assert ("vb" in loss.parts) == (expected.get("kind") == "rescaled_mse")


@pytest.mark.parametrize("T", [50, 100])
def test_the_bound_of_a_learned_variance_weighs_a_thousandth(T: int) -> None:
    """``L_simple + 0.001 L_vlb``: of T terms one is drawn, so it counts T / 1000 times."""
    network = DiT(8, 1, 2, patch_size=4, hidden_size=16, depth=1, num_heads=2)
    base = DiffusionGenerator(network, Discrete("cosine", T=T, variance="learned_range"))
    images = torch.rand(4, 1, 8, 8) * 2 - 1

    def bound(options: dict[str, Any]) -> float:
        draws = torch.Generator().manual_seed(0)
        objective = family_objective(base, options)
        labels = torch.full((4,), -1)
        loss = objective.compute_loss("network", {"network": network}, images, labels, draws)
        return float(loss.parts["vb"])

    unscaled = bound({"loss": {"name": "ddpm", "kind": "mse"}})
    assert bound({}) == pytest.approx(unscaled * T / 1000)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ("", "trained by the variational bound (lambda 0.001)"),
        ("objective.loss={name: edm}", "not trained: the loss 'edm' has no term for it"),
    ],
)
def test_what_becomes_of_a_learned_variance_is_told(
    loss: str, told: str, fmnist: Path, tmp_path: Path
) -> None:
    network = DiT(32, 1, 2, 10, patch_size=8, hidden_size=16, depth=1, num_heads=2)
    base = DiffusionGenerator(network, Discrete(variance="learned_range"), has_null_class=True)
    config = finetune_config(fmnist, "diffit", [loss] if loss else [])
    assert FinetuneObjective(config, base).variance() == {"Variance": told}


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        (["method.blocks=[7]"], ConfigError, "there is no block 7: the network has 6"),
        (["method.name=diffitt"], GenLabError, "did you mean 'diffit'"),
        (["method.block=[1]"], ConfigError, "did you mean 'blocks'"),
        (["classes.number=3"], ConfigError, r"3 classes are wanted, and fmnist\.npz has 10"),
        (["class_names=[a,b]"], ConfigError, r"class_names holds 2 names, and fmnist\.npz has 10"),
        (["classes.initial=median"], ConfigError, "classes.initial is no 'median'"),
        (["classes.initial={0: sneaker}"], LabelError, "does not say where the new class"),
        (["data.fit=none"], ConfigError, r"28x28 grey, and dit-fmnist-s draws 32x32 grey"),
        (["data.image_size=16"], ConfigError, "data.image_size is 16"),
        (["data.channels=3"], ConfigError, "data.channels is 3"),
        (["network.depth=3"], ConfigError, "network.depth has no effect"),
        (["objective.name=diffusion"], ConfigError, "objective.name has no effect"),
        (["objective.preconditioning={name: vp}"], ConfigError, "it is the base's"),
        (["objective.augment={p: 0.1}"], ConfigError, "objective.augment needs a base"),
        (["objective.losss=1"], ConfigError, "did you mean 'loss'"),
        (["base=dit-fmnst"], GenLabError, "did you mean 'dit-fmnist'"),
        (["base=DiT-XL/2"], ConfigError, "is an architecture without weights"),
        (["base=biggan-fmnist"], ConfigError, "blocks=none leaves out all"),
        (["method.name=peft"], ConfigError, "needs config.peft_type"),
        (["resolution=30"], ConfigError, "multiple of 4"),
        (["validation.split=train"], ConfigError, "are those in training"),
        (["stopping.metric=heldout_loss"], ConfigError, "validation.path or validation.split"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(
    settings: list[str], error: type[Exception], named: str, fmnist: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=named):
        trainer_of(fmnist, tmp_path / "run", "diffit", *settings)
    assert not (tmp_path / "run").exists()


def test_a_method_that_changes_nothing(fmnist: Path, tmp_path: Path) -> None:
    network = DiT(32, 1, 1, patch_size=8, hidden_size=16, depth=1, num_heads=2)
    DiffusionGenerator(network, EDM()).save_pretrained(tmp_path / "base")
    settings = (f"base={tmp_path / 'base'}", "data.labels=false")
    with pytest.raises(ConfigError, match="class-table changes nothing in it"):
        trainer_of(fmnist, tmp_path / "run", "class-table", *settings)


def test_a_loss_that_is_not_finite_keeps_the_last_state(fmnist: Path, tmp_path: Path) -> None:
    trainer_of(fmnist, tmp_path, "diffit", "duration_kimg=0.012").train()
    good = (tmp_path / "adapter_model.safetensors").read_bytes()
    trainer = trainer_of(fmnist, tmp_path, "diffit")
    with torch.no_grad():
        next(p for p in trainer.models.main.parameters() if p.requires_grad).fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the loss of step 4 is nan, the state .*000000003"):
        trainer.train()
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == good
    assert last_state(tmp_path).name == "000000003"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_what_helps(
    error: Exception, fmnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(fmnist, tmp_path, "diffit")

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(trainer.objective, "compute_loss", fail)
    with pytest.raises(TrainingError) as raised:
        trainer.train()
    for cure in ("batch_size below 4", "gradient_accumulation=2", "gradient_checkpointing=true"):
        assert cure in str(raised.value)
    assert "no state was saved yet" in str(raised.value)


def test_other_errors_stay_what_they_are(fmnist: Path, tmp_path: Path) -> None:
    def fail(progress: object) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        trainer_of(fmnist, tmp_path, "diffit").train(fail)


def test_kinds_of_runs_are_kept_apart(fmnist: Path, tmp_path: Path) -> None:
    trainer_of(fmnist, tmp_path, "bitfit", "duration_kimg=0.004").train()
    assert isinstance(open_run(tmp_path), FinetuneRun)
    with pytest.raises(TrainingError, match="holds a fine-tuning run"):
        Run(tmp_path).read_config()
    (tmp_path / "base.json").unlink()
    with pytest.raises(TrainingError, match="fine-tunes no model"):
        FinetuneRun(tmp_path).read_config()


def test_settings_that_save_memory_and_time(fmnist: Path, tmp_path: Path) -> None:
    settings = ("gradient_checkpointing=true", "mixed_precision=bf16", "gradient_accumulation=2")
    outcome = trainer_of(fmnist, tmp_path, "diffit", *settings).train()
    assert outcome.progress.step == 6
    assert outcome.loss == pytest.approx(0.3, abs=0.3)
    saved = load_file(tmp_path / "adapter_model.safetensors").values()
    assert all(tensor.dtype == torch.float32 for tensor in saved)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_preset_names_its_method(name: str) -> None:
    preset = load_config(FinetuneConfig, name, "finetune", ["base=b", "data.path=d"])
    assert preset.method["name"] == name
    METHODS.build_named(preset.method)
    assert preset.optimizer.lr == (1e-4 if name == "full" else 3e-4 if name == "last" else 1e-3)

"""Adapters of every method in no time: a tiny base, and numbers drawn where a run would train."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genlab
from genlab.config import load, preset_names
from genlab.diffusion.preconditioning import EDM
from genlab.finetuning.adapters.saving import write_adapter
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.objective import FinetuneObjective
from genlab.generators import DiffusionGenerator, Generator
from genlab.networks import DiT
from genlab.training.loop.batches import DataMetadata

FEW = {"schedule": {"num_steps": 2}}

BASE_NAMES = ("T-shirt/top", "Sneaker", "Ankle boot", "Bag")

NAMES = ("cat", "frog", "ship")

OPTIONS: dict[str, Sequence[str]] = {
    "peft": ["method.config={peft_type: LOHA, r: 2, target_modules: [attn.qkv]}"],
    "lora": ["method.r=2", "method.alpha=5", "method.rslora=true"],
    "adapter": ["method.bottleneck=4", "method.scale=0.5", "method.activation=gelu"],
    "vpt": ["method.tokens=3"],
    "diffit": ["method.blocks=[1]", "sampler.guidance=[{name: cfg, scale: 2}]"],
}
"""Method -> options that are not its defaults."""


def write_base(folder: Path, seed: int = 0) -> Path:
    """A diffusion model of 8x8 grey images of four classes."""
    torch.manual_seed(seed)
    network = DiT(
        img_resolution=8, in_channels=1, out_channels=1, label_dim=4, patch_size=2,
        hidden_size=16, depth=2, num_heads=2,
    )  # fmt: skip
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)  # the last layers begin at zero
    base = DiffusionGenerator(network.eval(), EDM(), class_names=BASE_NAMES, has_null_class=True)
    base.save_pretrained(folder)
    return folder


def objective_of(base: Path, method: str, *overrides: str) -> FinetuneObjective:
    preset = method if method in preset_names("finetune") else None
    settings = [f"base={base}", "data.path=photographs/", f"method.name={method}"]
    config = load(FinetuneConfig, preset, "finetune", [*settings, *overrides])
    return FinetuneObjective(config, genlab.load(base))


def write_small_adapter(
    folder: Path,
    base: Path,
    method: str = "lora",
    *overrides: str,
    names: tuple[str, ...] | None = NAMES,
    seed: int = 1,
) -> Generator:
    """Write what a run would write, and give the generator that it would draw its previews with.

    Args:
        names: of the data's classes; None: the data have none.
    """
    objective = objective_of(base, method, *OPTIONS.get(method, ()), *overrides)
    metadata = DataMetadata(
        num_images=60,
        image_shape=objective.base.image_shape,
        num_classes=0 if names is None else len(names),
        class_names=names,
        autoencoder=None,
    )
    network = objective.build({}, metadata)[objective.main].eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    digest = genlab.load(base).weights_sha256()
    write_adapter(folder, objective.method, network, objective.adapter_metadata(digest, {}, 8))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# lamps\n")
    generator: Any = objective.product(network, names, objective.config.sampler)
    return generator


def draw(generator: Generator) -> Tensor:
    """Three images, in two steps."""
    labels = [0, 1, 2] if generator.num_classes else None
    return generator.sample([0, 1, 2], labels, FEW)

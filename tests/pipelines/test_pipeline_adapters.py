"""Adapters in the diffusers pipeline object."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import BASE_NAMES, NAMES, write_base, write_small_adapter
from torch import Tensor

import genlab
from genlab import GenLabPipeline
from genlab.errors import CheckpointError, ConfigError, UnknownNameError

FEW = {"schedule": {"num_steps": 2}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for method in ("lora", "diffit", "last"):
        write_small_adapter(folder / method, base, method)
    return folder


def pictures(pipe: Any, label: int | str = 2) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    images: Tensor = pipe([label] * 2, 2, generator=seeds, output_type="pt").images
    return images


def expected(model: Path) -> Tensor:
    return genlab.load(model).sample([0, 1], [2, 2], FEW) / 2 + 0.5


def in_use(pipe: GenLabPipeline) -> tuple[str | None, tuple[str, ...]]:
    """The adapter, and the names of the classes that the pipeline has by it."""
    return pipe.adapter, tuple(pipe.config["class_names"])


def test_adapters_are_loaded_chosen_and_forgotten(base: Path, adapters: Path) -> None:
    pipe = GenLabPipeline.from_pretrained(base)
    assert pipe.load_adapter(adapters / "lora") == "lora"
    assert in_use(pipe) == ("lora", NAMES)
    assert torch.equal(pictures(pipe), expected(adapters / "lora"))
    assert torch.equal(pictures(pipe, "ship"), expected(adapters / "lora"))
    pipe.load_adapter(str(adapters / "diffit"), "lamps")
    assert pipe.adapter == "lamps"
    assert torch.equal(pictures(pipe), expected(adapters / "diffit"))
    pipe.set_adapter("lora")
    assert torch.equal(pictures(pipe), expected(adapters / "lora"))
    pipe.set_adapter(None)
    assert in_use(pipe) == (None, BASE_NAMES)
    assert torch.equal(pictures(pipe), expected(base))
    pipe.set_adapter("lamps")
    pipe.unload_adapter("lamps")
    assert pipe.adapter is None
    assert torch.equal(pictures(pipe), expected(base))
    with pytest.raises(UnknownNameError, match="did you mean 'lora'"):
        pipe.set_adapter("lorra")
    with pytest.raises(ConfigError, match="there is an adapter 'lora' already"):
        pipe.load_adapter(adapters / "lora")
    with pytest.raises(UnknownNameError, match="there is no adapter 'nothing'"):
        pipe.load_adapter("nothing")


def test_an_adapter_of_another_model_changes_nothing(
    base: Path, adapters: Path, tmp_path: Path
) -> None:
    pipe = GenLabPipeline.from_pretrained(write_base(tmp_path / "other", seed=4))
    before = pictures(pipe)
    with pytest.raises(CheckpointError, match="give that base"):
        pipe.load_adapter(adapters / "lora")
    assert pipe.adapter is None
    assert torch.equal(pictures(pipe), before)


def test_a_pipeline_of_an_adapter_that_is_cast(base: Path, adapters: Path) -> None:
    pipe = GenLabPipeline.from_pretrained(adapters / "lora")
    assert torch.equal(pictures(pipe), expected(adapters / "lora"))
    pipe.to(torch.bfloat16)
    assert pictures(pipe).isfinite().all()
    pipe.set_adapter(None)
    assert pipe.network.dtype == torch.bfloat16
    half = GenLabPipeline.from_pretrained(adapters / "lora", torch_dtype=torch.bfloat16)
    assert half.network.dtype == torch.bfloat16
    assert half.adapter == "lora"
    with pytest.raises(ConfigError, match="is an adapter, for which variant has no effect"):
        GenLabPipeline.from_pretrained(adapters / "lora", variant="fp16")


def test_only_what_is_plain_is_written(base: Path, adapters: Path, tmp_path: Path) -> None:
    pipe = GenLabPipeline.from_pretrained(adapters / "lora")
    with pytest.raises(ConfigError, match="this pipeline has the adapter 'lora' beside"):
        pipe.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    pipe.load_adapter(adapters / "last")  # the last layer, and nothing that is added
    pipe.save_pretrained(tmp_path / "yes")
    assert torch.equal(expected(tmp_path / "yes"), expected(adapters / "last"))

"""Several adapters on one base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import draw, write_base, write_small_adapter
from torch import Tensor

import genlab
from genlab.errors import CheckpointError, ConfigError, UnknownNameError
from genlab.finetuning.adapters.switching import AdapterSet


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for number, method in enumerate(("lora", "diffit")):
        write_small_adapter(folder / method, base, method, names=("x", "y", method), seed=number)
    return folder


def pointers(network: Any) -> set[int]:
    return {parameter.data_ptr() for parameter in network.parameters()}


def test_switching_shares_the_base_and_leaves_it_as_it_was(base: Path, adapters: Path) -> None:
    generator = genlab.load(base)
    before, digest = draw(generator), generator.weights_sha256()
    models = AdapterSet(generator)
    for name in ("lora", "diffit"):
        models.add(name, adapters / name)
    assert (models.names, models.active) == (("lora", "diffit"), None)
    drawn: dict[str, Tensor] = {}
    for name in ("lora", "diffit", "lora", "diffit"):
        adapted = models.use(name)
        assert adapted.class_names == ("x", "y", name)
        assert torch.equal(draw(adapted), draw(genlab.load(adapters / name)))
        assert torch.equal(drawn.setdefault(name, draw(adapted)), draw(adapted))
        shared = pointers(adapted.network) & pointers(generator.network)
        frozen = [p for p in adapted.network.parameters() if p.data_ptr() in shared]
        assert sum(p.numel() for p in frozen) > 0.8 * sum(
            p.numel() for p in generator.network.parameters()
        )
    assert models.use(None) is generator
    assert torch.equal(draw(generator), before)
    assert generator.weights_sha256() == digest
    assert not torch.equal(drawn["lora"], drawn["diffit"])


def test_adapted_models_follow_a_base_that_is_cast(base: Path, adapters: Path) -> None:
    models = AdapterSet(genlab.load(base))
    models.add("lora", adapters / "lora")
    models.base.to(dtype=torch.bfloat16)
    adapted = models.use("lora")
    assert adapted.dtype == torch.bfloat16
    assert pointers(adapted.network) & pointers(models.base.network)


def test_names_are_checked(base: Path, adapters: Path, tmp_path: Path) -> None:
    models = AdapterSet(genlab.load(base))
    models.add("lora", adapters / "lora")
    with pytest.raises(ConfigError, match="there is an adapter 'lora' already"):
        models.add("lora", adapters / "diffit")
    with pytest.raises(UnknownNameError, match="did you mean 'lora'"):
        models.use("lorra")
    other = write_base(tmp_path / "other", seed=3)
    write_small_adapter(tmp_path / "strange", other, "bitfit")
    with pytest.raises(CheckpointError, match=r"was trained on .*, whose weights have the SHA-256"):
        models.add("strange", tmp_path / "strange")
    assert models.names == ("lora",)
    models.use("lora")
    models.remove("lora")
    remaining: tuple[str, ...] = models.names
    assert not remaining
    assert models.generator is models.base
    with pytest.raises(ConfigError, match="has the adapter 'lora' already"):
        AdapterSet(genlab.load(adapters / "lora")).add("diffit", adapters / "diffit")

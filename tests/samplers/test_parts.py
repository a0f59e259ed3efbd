"""Guidance with other models: parts are loaded, moved, prepared, hashed and counted, all alike."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ideal_cases import Listener, mixture
from torch import Tensor

import genlab.checkpoints  # reads parts by their names
from genlab import DiffusionGenerator
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError, GenLabError
from genlab.samplers import parts
from genlab.samplers.guidance.base import GUIDANCE, Guidance, GuidanceOptions, When
from genlab.samplers.sampler import Sampler

FEW = {"schedule": {"num_steps": 4}}

assert genlab.checkpoints


class Towards(Guidance):
    """The mean of two models, in a space of choice."""

    def __init__(self, inner: Denoiser, other: Denoiser, when: When, space: str) -> None:
        super().__init__(inner, when=when, others=[other], space=space)
        self.other = other

    def guide(self, x: Tensor, sigma: Tensor, conditions: Sequence[Condition]) -> list[Prediction]:
        ours = self.inner.predict_each(x, sigma, conditions)
        theirs = self.other.predict_each(x, sigma, conditions)
        return [
            Prediction(x0=self._mean(a.x0, b.x0, x, sigma))
            for a, b in zip(ours, theirs, strict=True)
        ]

    def _mean(self, a: Tensor, b: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        both = self.space.express(a, x, sigma) + self.space.express(b, x, sigma)
        return self.space.estimate(both / 2, x, sigma)


@dataclass(frozen=True, kw_only=True)
class MeanOfTwo(GuidanceOptions):
    """Options of `Towards`."""

    parts: ClassVar[Mapping[str, str]] = {"other": "generator"}

    other: Any
    space: str = "x0"

    def __call__(self, denoiser: Denoiser) -> Guidance:
        return Towards(denoiser, self.other.denoiser, self.when, self.space)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GUIDANCE._loaded, "mean-of-two", MeanOfTwo)


@pytest.fixture
def other(tiny_generator: DiffusionGenerator) -> DiffusionGenerator:
    """A second model of the same images."""
    network = copy.deepcopy(tiny_generator.network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return DiffusionGenerator.from_metadata(network, tiny_generator.metadata())


def guided(other: Any, **options: Any) -> dict[str, Any]:
    return {**FEW, "guidance": [{"name": "mean-of-two", "other": other, **options}]}


def test_a_part_is_counted_and_hashed(
    tiny_generator: DiffusionGenerator, other: DiffusionGenerator
) -> None:
    sampler = tiny_generator.build_sampler(guided(other))
    (batch,) = tiny_generator.stream(range(2), sampler=sampler)
    assert batch.nfe == 14, "seven of each model"
    (plain,) = tiny_generator.stream(range(2), sampler=FEW)
    assert plain.nfe == 7
    assert not torch.equal(batch.images, plain.images)
    assert sampler.parts == {"generator": [other]}
    identity = tiny_generator.identity(sampler)
    assert identity["generators_sha256"] == [other.sha256()]
    assert "generators_sha256" not in tiny_generator.identity(tiny_generator.build_sampler(FEW))
    alike = tiny_generator.identity(tiny_generator.build_sampler(guided(tiny_generator)))
    assert alike["generators_sha256"] != identity["generators_sha256"]


def test_a_part_costs_nothing_outside_its_window(
    tiny_generator: DiffusionGenerator, other: DiffusionGenerator
) -> None:
    window = guided(other, when={"steps": [0, 0.5]})
    (batch,) = tiny_generator.stream(range(2), sampler=window)
    assert batch.nfe == 7 + 4  # two Heun steps of four


def test_guidances_that_share_a_part_hold_it_once(
    tiny_generator: DiffusionGenerator, other: DiffusionGenerator
) -> None:
    entry = {"name": "mean-of-two", "other": other}
    sampler = tiny_generator.build_sampler({**FEW, "guidance": [entry, entry]})
    assert sampler.parts == {"generator": [other]}
    (batch,) = tiny_generator.stream(range(2), sampler=sampler)
    assert batch.nfe == 7 + 2 * 7


def test_a_named_part_is_read_and_the_config_keeps_its_name(
    tiny_generator: DiffusionGenerator, tiny_model: Path
) -> None:
    sampler = tiny_generator.build_sampler(guided(str(tiny_model)))
    assert sampler.config["guidance"] == [{"name": "mean-of-two", "other": str(tiny_model)}]
    (part,) = sampler.parts["generator"]
    assert part.sha256() == tiny_generator.sha256()
    (batch,) = tiny_generator.stream(range(2), sampler=sampler)
    (plain,) = tiny_generator.stream(range(2), sampler=FEW)
    # The mean of a model and its twin.
    torch.testing.assert_close(batch.images, plain.images, rtol=0, atol=1e-4)
    with pytest.raises(GenLabError, match="nowhere"):
        tiny_generator.build_sampler(guided("nowhere"))


def test_parts_are_moved_and_prepared(tiny_generator: DiffusionGenerator) -> None:
    done: list[str] = []

    class Noted:
        evaluations = 0
        denoiser = Listener(mixture())

        def to(self, device: Any = None, dtype: Any = None) -> None:
            done.append(f"to {device}")

        def prepare(self) -> None:
            done.append("prepare")

        def sha256(self) -> str:
            return "0"

    sampler = tiny_generator.build_sampler(guided(Noted()))
    tiny_generator.steps(NoiseStream([0]), [0], sampler)
    assert done == ["to cpu", "prepare"]


def test_without_readers_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_LOADERS", {})
    sampler = Sampler.from_config(guided("somewhere"))
    with pytest.raises(ConfigError, match="nothing here reads the generator 'somewhere'"):
        sampler.load_parts()


@pytest.mark.parametrize("space", ["x0", "eps", "v", "flow-v"])
def test_a_mean_is_the_same_in_every_space(space: str) -> None:
    """It is affine, so that only rounding tells the spaces apart."""
    x, sigma = torch.linspace(-2, 2, 8).double().reshape(1, 2, 2, 2), torch.tensor(0.8).double()
    condition = Condition(labels=torch.tensor([1]))
    mean = Towards(mixture(), Listener(mixture()), When(), space)(x, sigma, condition)
    torch.testing.assert_close(mean, mixture()(x, sigma, condition), rtol=1e-9, atol=1e-9)


def test_nested_guidance_runs_as_one_batch_of_each_model() -> None:
    """The outer one asks for two conditions, and each model below sees them side by side."""
    model, other = Listener(mixture()), Listener(mixture())
    cfg: Any = GUIDANCE["cfg"](scale=2.0)  # type: ignore[call-arg]
    x, sigma = torch.zeros(3, 2, 2, 2).double(), torch.tensor(1.0).double()
    guided = cfg(Towards(model, other, When(), "x0"))
    guided(x, sigma, Condition(labels=torch.tensor([0, 1, 2])))
    assert model.batches == other.batches == [6]
    assert guided.evaluations == 12

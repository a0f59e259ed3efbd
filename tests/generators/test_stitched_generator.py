"""Stitched runs of generators: images, identity, the cost of each model, going on after a stop."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_extractor import TinyExtractor
from torch import Tensor

import genlab
import genlab.checkpoints  # reads small models by their names
from genlab import DiffusionGenerator
from genlab.diffusion.denoiser import Denoiser, Prediction
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.preconditioning import EDM
from genlab.errors import ConfigError, OutputError
from genlab.eval.collect import collect
from genlab.eval.metrics.base import Need
from genlab.eval.samples import GeneratedImages
from genlab.generators.costs import (
    LARGE,
    Cost,
    Meter,
    from_plain,
    report,
    time_saved,
    to_plain,
    together,
)
from genlab.networks import SongUNet
from genlab.runs.drawing import draw_samples
from genlab.runs.placing import place
from genlab.runs.plan import SamplePlan
from genlab.samplers.guidance.base import Guidance, GuidanceOptions
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.solvers.heun import Heun
from genlab.samplers.stitching import Stitch

assert genlab.checkpoints

FEW = {"schedule": {"num_steps": 4}}


def twin(generator: DiffusionGenerator, std: float = 0.1, **metadata: Any) -> DiffusionGenerator:
    """A second model of the same images."""
    network = copy.deepcopy(generator.network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return DiffusionGenerator.from_metadata(network, {**generator.metadata(), **metadata})


@pytest.fixture
def small(tiny_generator: DiffusionGenerator) -> DiffusionGenerator:
    return twin(tiny_generator)


def test_a_share_of_none_and_of_all(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    seeds, labels = range(2), [0, 1]

    def draw(model: DiffusionGenerator, **options: Any) -> Tensor:
        return model.sample(seeds, labels, FEW, **options)

    none, half, all_of_it = (
        draw(tiny_generator, stitch=[(small, share)]) for share in (0.0, 0.5, 1.0)
    )
    assert torch.equal(none, draw(tiny_generator))
    assert torch.equal(all_of_it, draw(small))
    assert not torch.equal(half, none)
    assert not torch.equal(half, all_of_it)


def test_an_image_is_the_same_alone_and_in_a_batch(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    sampler = tiny_generator.build_sampler(
        {**FEW, "solver": {"name": "heun", "S_churn": 3}}, guidance_scale=2.0, stitch=[(small, 0.5)]
    )
    whole = tiny_generator.sample(range(5), sampler=sampler)
    for size in (1, 2):
        parts = tiny_generator.sample(range(5), sampler=sampler, batch_size=size)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_every_model_is_counted_and_timed(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    third = twin(tiny_generator, 0.05)
    sampler = tiny_generator.build_sampler(
        FEW,
        guidance_scale=2.0,
        stitch=[{"model": small, "fraction": 0.25, "name": "s"}, (third, 0.5)],
    )
    first, second = tiny_generator.stream(range(5), sampler=sampler, batch_size=3)
    assert first.nfe == second.nfe == 14
    rows = {name: cost.evaluations for name, cost in first.costs.items()}
    assert rows == {LARGE: 3 * 2, "s": 3 * 4, "a small model": 3 * 8}, "doubled by the guidance"
    for batch in (first, second):
        seconds = [cost.seconds for cost in batch.costs.values()]
        assert min(seconds) > 0
        assert sum(seconds) <= batch.seconds
    (plain,) = tiny_generator.stream(range(2), sampler=FEW)
    assert plain.costs == {}


def test_a_guide_with_a_second_model_is_counted_beside(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    guide = twin(tiny_generator, 0.15)
    sampler = Sampler(
        solver=Heun(),
        schedule=Karras(num_steps=4),
        guidance=(BothOf(other=guide),),
        stitch=(Stitch(model=small, fraction=0.5),),
    )
    (batch,) = tiny_generator.stream(range(2), sampler=sampler)
    assert batch.nfe == 14
    assert sum(cost.evaluations for cost in batch.costs.values()) == 2 * 7
    assert sampler.parts == {"generator": [guide, small]}


class Mean(Guidance):
    """The mean of what is guided and another model."""

    def guide(self, x: Tensor, sigma: Tensor, conditions: Any) -> list[Prediction]:
        ours = self.inner.predict_each(x, sigma, conditions)
        theirs = self.others[0].predict_each(x, sigma, conditions)  # type: ignore[attr-defined]
        return [Prediction(x0=(a.x0 + b.x0) / 2) for a, b in zip(ours, theirs, strict=True)]


class BothOf(GuidanceOptions):
    """Options of `Mean`."""

    parts = {"other": "generator"}  # noqa: RUF012

    def __init__(self, other: Any) -> None:
        super().__init__()
        object.__setattr__(self, "other", other)

    def __call__(self, denoiser: Denoiser) -> Guidance:
        return Mean(denoiser, others=[self.other.denoiser])  # type: ignore[attr-defined]


class Shifting(Guidance):
    """Moves the class embedding, as CADS does, and notes the embeddings."""

    def __init__(self, inner: Denoiser, seen: list[Tensor]) -> None:
        super().__init__(inner)
        self.seen = seen

    def guide(self, x: Tensor, sigma: Tensor, conditions: Any) -> list[Prediction]:
        moved = [condition.with_embedding_transform(self._move) for condition in conditions]
        return self.inner.predict_each(x, sigma, moved)

    def _move(self, embedding: Tensor) -> Tensor:
        self.seen.append(embedding)
        return embedding + 1


def test_what_acts_on_the_class_embedding_reaches_both_models(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    seen: list[Tensor] = []

    class Options(GuidanceOptions):
        def __call__(self, denoiser: Denoiser) -> Guidance:
            return Shifting(denoiser, seen)

    settings: dict[str, Any] = {"solver": Heun(), "schedule": Karras(num_steps=4)}
    stitch = (Stitch(model=small, fraction=0.5),)
    shifted = Sampler(**settings, guidance=(Options(),), stitch=stitch)
    images = tiny_generator.sample([0, 1], [0, 1], shifted)
    assert len(seen) == 7, "once for each evaluation of either model"
    plain = tiny_generator.sample([0, 1], [0, 1], Sampler(**settings, stitch=stitch))
    assert not torch.equal(images, plain)


def test_the_small_model_is_part_of_the_identity(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    def identity(model: DiffusionGenerator) -> Any:
        sampler = tiny_generator.build_sampler(FEW, stitch=[(model, 0.5)])
        assert sampler.parts == {"generator": [model]}
        return tiny_generator.identity(sampler)["generators_sha256"]

    assert identity(small) == [small.sha256()]
    assert identity(small) != identity(twin(tiny_generator, 0.11))


def test_a_named_model_is_read_once_and_told_by_its_name(
    tiny_generator: DiffusionGenerator, tiny_model: Path
) -> None:
    name = str(tiny_model)
    stitch = [{"model": name, "fraction": f, "by": "step"} for f in (0.25, 0.25)]
    sampler = tiny_generator.build_sampler(FEW, stitch=stitch)
    assert sampler.config["stitch"] == stitch
    assert sampler.stitch[0].model is sampler.stitch[1].model
    assert sampler.describe() == "heun, 4 steps, " + ", ".join(
        ["stitch tiny 0.25 of the steps"] * 2
    )
    (batch,) = tiny_generator.stream(range(2), sampler=sampler)
    assert {name: cost.evaluations for name, cost in batch.costs.items()} == {LARGE: 6, "tiny": 8}


def test_stitching_can_be_taken_away_and_stands_in_a_model_s_own_sampler(
    tiny_generator: DiffusionGenerator, tiny_model: Path
) -> None:
    own = {"stitch": [{"model": str(tiny_model), "fraction": 0.5}]}
    stitched = twin(tiny_generator, sampler=own)
    assert stitched.build_sampler().describe().endswith("stitch tiny 0.5")
    assert stitched.build_sampler(num_steps=3).stitch
    assert not stitched.build_sampler(stitch={}).stitch
    changed = stitched.build_sampler({"stitch": {"0": {"fraction": 0.25}}})
    assert changed.stitch[0].fraction == 0.25


def test_a_model_stitched_to_itself_is_itself(tiny_generator: DiffusionGenerator) -> None:
    same = tiny_generator.build_sampler(FEW, stitch=[(tiny_generator, 0.5)])
    plain = tiny_generator.sample(range(2), sampler=FEW)
    assert torch.equal(tiny_generator.sample(range(2), sampler=same), plain)
    batches = list(tiny_generator.stream(range(4), sampler=same, batch_size=2))
    assert [batch.nfe for batch in batches] == [7, 7]
    assert batches[1].costs[LARGE].evaluations == 14


def test_models_of_other_images_or_classes_are_refused(
    tiny_generator: DiffusionGenerator,
) -> None:
    def other(size: int, channels: int, classes: int) -> DiffusionGenerator:
        network = SongUNet(
            size, channels, channels, classes, model_channels=8, channel_mult=[1], num_blocks=1
        )
        return DiffusionGenerator(network.eval(), EDM())

    for model, reason in (
        (other(16, 1, 3), r"states of shape \(1, 16, 16\), and the model \(1, 8, 8\)"),
        (other(8, 3, 3), r"states of shape \(3, 8, 8\)"),
        (other(8, 1, 4), "knows 4 classes and the model 3"),
    ):
        with pytest.raises(ConfigError, match=reason):
            tiny_generator.build_sampler(FEW, stitch=[(model, 0.5)])
    with pytest.raises(ConfigError, match=r"needs a model: .* got Tensor"):
        tiny_generator.build_sampler(FEW, stitch=[(torch.zeros(1), 0.5)])


def test_small_models_are_placed_with_the_large_one(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    large = twin(tiny_generator, 0.2)
    sampler = large.build_sampler(FEW, stitch=[(small, 0.5)])
    place(large, sampler, "cpu", torch.bfloat16)
    for model in (large, small):
        assert next(model.network.parameters()).dtype == torch.bfloat16
    assert large.sample([0], sampler=sampler).isfinite().all()


# The record


def test_time_saved_is_counted_evaluations_times_measured_seconds() -> None:
    costs = {LARGE: Cost(60, 6.0), "s": Cost(40, 1.0)}
    assert time_saved(costs) == pytest.approx(1 - 7 / 10)
    assert time_saved({LARGE: Cost(60, 6.0), "slow": Cost(40, 8.0)}) == pytest.approx(-0.4)
    assert time_saved({LARGE: Cost(), "s": Cost(40, 1.0)}) is None, "its speed is not known"
    assert time_saved({}) is None
    told = report(costs, 20)
    assert told["time_saved"] == 0.3
    assert [model["nfe"] for model in told["models"]] == [3.0, 2.0]
    assert report({}, 20) == {}
    both = together([costs, {LARGE: Cost(1, 0.5)}])
    assert both == {LARGE: Cost(61, 6.5), "s": Cost(40, 1.0)}
    assert from_plain(json.loads(json.dumps(to_plain(both)))) == both


def test_a_run_that_goes_on_draws_the_same_and_adds_its_costs(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def draw(folder: str, model: DiffusionGenerator = small, **options: Any) -> dict[str, Any]:
        sampler = tiny_generator.build_sampler(FEW, stitch=[(model, 0.5)])
        identity = {**tiny_generator.identity(sampler), "weights_sha256": "w"}
        plan = SamplePlan(
            seeds=tuple(range(6)), labels=(0, 1, 2) * 2, image_shape=(1, 8, 8), identity=identity
        )
        draw_samples(
            tiny_generator, plan, tmp_path / folder, sampler=sampler, batch_size=2, config={},
            **options,
        )  # fmt: skip
        manifest: dict[str, Any] = json.loads((tmp_path / folder / "manifest.json").read_text())
        return manifest

    done = 0.0

    def stop(images: float) -> None:
        nonlocal done
        done += images
        if done > 3:
            raise StopError

    whole = draw("whole")
    with pytest.raises(StopError):
        draw("stopped", on_progress=stop)
    again = draw("stopped")
    for path in sorted((tmp_path / "whole" / "images").rglob("*.png")):
        there = tmp_path / "stopped" / path.relative_to(tmp_path / "whole")
        assert there.read_bytes() == path.read_bytes()
    for manifest in (whole, again):
        rows = {each["model"]: each["evaluations"] for each in manifest["stitch"]["models"]}
        assert rows == {LARGE: 6 * 3, "a small model": 6 * 4}
        assert [each["nfe"] for each in manifest["stitch"]["models"]] == [3.0, 4.0]
        assert manifest["stitch"]["time_saved"] < 1
    with pytest.raises(OutputError, match="generators_sha256"):
        draw("whole", twin(tiny_generator, 0.3))


def test_an_evaluation_gathers_the_costs(
    tiny_generator: DiffusionGenerator, tiny_model: Path, tmp_path: Path
) -> None:
    sampler = tiny_generator.build_sampler(FEW, stitch={str(tiny_model): 0.5})
    images = GeneratedImages(tiny_generator, range(6), [0] * 6, sampler)
    needs = [Need("rows", "features")]
    for folder in (None, tmp_path / "work"):
        collected = collect(images, TinyExtractor(), needs, batch_size=4, folder=folder)
        assert collected is not None
        rows = {name: cost.evaluations for name, cost in collected.costs.items()}
        assert rows == {LARGE: 18, "tiny": 24}
        assert all(cost.seconds > 0 for cost in collected.costs.values())


class Event:
    """Stands for a mark in the queue of an accelerator, which takes 5 ms from one to the next."""

    made: ClassVar[list["Event"]] = []
    waited = 0

    def __init__(self, device: torch.device, enable_timing: bool) -> None:
        assert enable_timing
        self.number = len(Event.made)
        Event.made.append(self)

    def record(self) -> None:
        assert not Event.waited, "nothing waits before the batch is done"

    def synchronize(self) -> None:
        Event.waited += 1

    def elapsed_time(self, other: "Event") -> float:
        assert Event.waited, "read before the accelerator came there"
        return 5.0 * (other.number - self.number)


def test_an_accelerator_is_asked_for_times_when_the_batch_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "Event", Event)
    counts = {LARGE: 0, "s": 0}
    meter = Meter(torch.device("cuda"), lambda: dict(counts))

    def steps() -> Iterator[int]:
        for step, model in enumerate(("s", "s", LARGE, "nobody")):
            if model in counts:
                counts[model] += 4
            yield step

    assert list(meter.steps(steps())) == [0, 1, 2, 3]
    assert Event.waited == 0
    assert meter.costs() == {LARGE: Cost(4, 0.005), "s": Cost(8, 0.01)}
    assert Event.waited == 1


# Bundled models


@pytest.mark.parametrize(
    ("small", "large"), [("dit-fmnist-s", "dit-fmnist"), ("edm-fmnist", "dit-fmnist")]
)
def test_bundled_models_are_stitched_within_and_across_families(small: str, large: str) -> None:
    model = genlab.load(large)
    (batch,) = model.stream([0, 1], [7, 8], {"schedule": {"num_steps": 5}}, stitch={small: 0.4})
    assert batch.nfe == 2 * 9
    assert {name: c.evaluations for name, c in batch.costs.items()} == {LARGE: 20, small: 16}
    assert batch.images.isfinite().all()
    (plain,) = model.stream([0, 1], [7, 8], {"schedule": {"num_steps": 5}})
    assert not torch.equal(batch.images, plain.images)


def test_a_discrete_model_takes_the_first_steps_of_an_edm_model(
    tiny_generator: DiffusionGenerator,
) -> None:
    network = copy.deepcopy(tiny_generator.network)
    small = DiffusionGenerator(network, Discrete(T=100), has_null_class=True)
    levels = {"schedule": {"num_steps": 4, "sigma_max": 20.0}}
    sampler = tiny_generator.build_sampler(levels, stitch=[(small, 0.5)])
    assert tiny_generator.sample(range(2), sampler=sampler).isfinite().all()

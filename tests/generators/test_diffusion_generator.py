"""The diffusion generator: seeds, labels, samplers, and what it costs."""

from typing import Any

import pytest
import torch

from genlab import DiffusionGenerator
from genlab.data.labels import random_label
from genlab.diffusion.preconditioning import EDM, VP
from genlab.errors import ConfigError, LabelError, UnknownNameError
from genlab.networks import SongUNet
from genlab.samplers.base import SolverStep

FEW = {"schedule": {"num_steps": 4}}
CHURN = {**FEW, "solver": {"S_churn": 10, "S_noise": 1.01}}


def unconditional() -> DiffusionGenerator:
    network = SongUNet(8, 3, 3, model_channels=8, channel_mult=[1], num_blocks=1)
    return DiffusionGenerator(network, EDM())


@pytest.mark.parametrize("sampler", [FEW, CHURN])
def test_a_seed_gives_the_same_image_in_any_batch(
    tiny_generator: DiffusionGenerator, sampler: dict[str, Any]
) -> None:
    runs = [
        tiny_generator.sample(range(16), sampler=sampler, batch_size=size) for size in (1, 5, 16)
    ]
    for images in runs[1:]:
        assert (images - runs[0]).abs().max() <= 1e-5  # rounding, as the issue allows it
    shuffled = tiny_generator.sample([9, 3], sampler=sampler)
    assert (shuffled - runs[0][[9, 3]]).abs().max() <= 1e-5


def test_the_network_s_config_is_part_of_the_identity() -> None:
    one, other = (
        DiffusionGenerator(SongUNet(8, 3, 3, model_channels=8, channel_mult=[1], num_blocks=1,
                                    resample_filter=taps), EDM())
        for taps in ([1, 1], [1, 3, 3, 1])
    )  # fmt: skip
    other.network.load_state_dict(one.network.state_dict())
    assert one.weights_sha256() == other.weights_sha256()
    assert one.identity() != other.identity()
    assert not [key for key in one.identity()["network"] if key.startswith("_")]


def test_seeds_labels_and_sampler_change_the_image(tiny_generator: DiffusionGenerator) -> None:
    base = tiny_generator.sample([0], [0], FEW)
    for other in (([1], [0], FEW), ([0], [1], FEW), ([0], [0], {"schedule": {"num_steps": 5}})):
        assert (tiny_generator.sample(*other) - base).abs().max() > 1e-3


def test_a_class_that_is_drawn_gives_the_image_of_the_class_given(
    tiny_generator: DiffusionGenerator,
) -> None:
    seeds = range(6)
    labels = [random_label(seed, 3) for seed in seeds]
    drawn = next(tiny_generator.stream(seeds, sampler=FEW))
    assert drawn.labels == tuple(labels)
    assert torch.equal(drawn.images, next(tiny_generator.stream(seeds, labels, FEW)).images)


def test_batches_say_what_they_are(tiny_generator: DiffusionGenerator) -> None:
    batches = list(tiny_generator.stream(range(5), [0, 1, 2, 0, 1], FEW, batch_size=2))
    assert [b.seeds for b in batches] == [(0, 1), (2, 3), (4,)]
    assert [b.labels for b in batches] == [(0, 1), (2, 0), (1,)]
    assert batches[0].images.dtype == torch.float32
    assert batches[0].images.shape == (2, 1, 8, 8)
    assert not batches[0].images.requires_grad
    assert all(b.seconds > 0 for b in batches)


def test_network_evaluations_are_counted(tiny_generator: DiffusionGenerator) -> None:
    guided = tiny_generator.build_sampler(FEW, guidance_scale=2.0)
    assert [b.nfe for b in tiny_generator.stream(range(3), sampler=FEW, batch_size=2)] == [7, 7]
    assert next(tiny_generator.stream(range(3), sampler=guided)).nfe == 14


def test_every_step_is_told(tiny_generator: DiffusionGenerator) -> None:
    steps: list[Any] = []
    (batch,) = tiny_generator.stream(range(2), sampler=FEW, on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert all(isinstance(step, SolverStep) for step in steps)
    assert steps[-1].sigma_next == 0
    assert torch.equal(steps[-1].x.float(), batch.images)


def test_images_can_be_trained_on(tiny_generator: DiffusionGenerator) -> None:
    # Inference tensors could not.
    weight = torch.ones(1, requires_grad=True)
    (tiny_generator.sample([0], sampler=FEW) * weight).sum().backward()
    assert weight.grad is not None


def test_unconditional_models_take_no_labels() -> None:
    generator = unconditional()
    (batch,) = generator.stream([0], sampler=FEW)
    assert batch.labels is None
    assert batch.images.shape == (1, 3, 8, 8)
    with pytest.raises(LabelError, match="unconditional"):
        generator.stream([0], [0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0], "1 labels for 2 seeds"), ([0, 3], "class 3"), ([-1, 0], "class -1")],
)
def test_wrong_labels_are_refused_before_anything_is_computed(
    tiny_generator: DiffusionGenerator, labels: list[int], message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        tiny_generator.stream([0, 1], labels)


@pytest.mark.parametrize(
    ("sampler", "error", "message"),
    [
        ("edm-huen", UnknownNameError, "did you mean 'edm-heun'"),
        ({"solver": {"name": "huen"}}, UnknownNameError, "did you mean 'heun'"),
        ({"solver": {"S_chrun": 1}}, ConfigError, "S_churn"),
        ({"sovler": {}}, ConfigError, "solver"),
    ],
)
def test_wrong_samplers_are_refused_before_anything_is_computed(
    tiny_generator: DiffusionGenerator, sampler: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_generator.stream([0], sampler=sampler)


def test_guidance_that_the_model_cannot_have_is_refused_early() -> None:
    with pytest.raises(ConfigError):
        unconditional().stream([0], sampler={"guidance": [{"name": "cfg", "scale": 2.0}]})


def test_class_names_must_fit() -> None:
    network = SongUNet(8, 1, 1, label_dim=3, model_channels=8, channel_mult=[1], num_blocks=1)
    with pytest.raises(LabelError, match="2 class names for a model of 3"):
        DiffusionGenerator(network, EDM(), class_names=["a", "b"])


def test_the_models_own_sampler_stands_below_the_changes() -> None:
    network = SongUNet(8, 1, 1, model_channels=8, channel_mult=[1], num_blocks=1)
    own = {"solver": {"name": "euler"}, "schedule": {"name": "vp", "num_steps": 3}}
    generator = DiffusionGenerator(network, VP(), sampler=own)
    assert next(generator.stream([0])).nfe == 3
    assert next(generator.stream([0], sampler={"schedule": {"num_steps": 5}})).nfe == 5
    assert next(generator.stream([0], sampler="edm-heun")).nfe == 35


def test_the_short_names_of_steps_and_guidance(tiny_generator: DiffusionGenerator) -> None:
    def config(**changes: Any) -> Any:
        return tiny_generator.build_sampler("cfg", **changes).config

    assert config(num_steps=7)["schedule"]["num_steps"] == 7
    assert config(guidance_scale=4.0)["guidance"] == [{"name": "cfg", "scale": 4.0}]
    assert config(guidance_scale=1.0)["guidance"] == []
    with pytest.raises(ConfigError, match="at least 1"):
        config(num_steps=0)


def test_lower_precision_is_the_networks_alone(tiny_model: Any) -> None:
    generator = DiffusionGenerator.from_pretrained(tiny_model)
    before = generator.sample(range(2), sampler=FEW)
    generator.to(dtype=torch.bfloat16)
    assert generator.dtype == torch.bfloat16
    after = generator.sample(range(2), sampler=FEW)
    assert after.dtype == torch.float32
    # bfloat16 keeps 8 bits; the images differ, but by a fraction of their range.
    assert 1e-5 < (after - before).abs().mean() < 0.1


def test_unknown_devices_are_refused(tiny_generator: DiffusionGenerator) -> None:
    with pytest.raises(ConfigError, match="'tpu:7'"):
        tiny_generator.to("tpu:7")

"""`Generator.sample` as people call it: names, one seed, one class, steps and guidance."""

import pytest
import torch

from genlab import DiffusionGenerator
from genlab.errors import ConfigError, LabelError


def test_names_one_seed_steps_and_guidance(tiny_generator: DiffusionGenerator) -> None:
    images = tiny_generator.sample(labels=["sneaker"], seeds=3, num_steps=3, guidance_scale=2.0)
    sampler = {"schedule": {"num_steps": 3}, "guidance": [{"name": "cfg", "scale": 2.0}]}
    assert torch.equal(images, tiny_generator.sample([3], [1], sampler))


def test_one_class_goes_for_all_seeds(tiny_generator: DiffusionGenerator) -> None:
    expected = tiny_generator.sample([0, 1], [1, 1], num_steps=2)
    each: tuple[int | str | list[int | str], ...] = (1, "sneaker", ["sneaker", 1])
    for labels in each:
        assert torch.equal(tiny_generator.sample(range(2), labels, num_steps=2), expected)
    (batch,) = tiny_generator.stream([0, 1], ["Sneaker", "sneaker"], {"schedule": {"num_steps": 2}})
    assert batch.labels == (1, 1)


def test_what_does_not_fit_is_refused(tiny_generator: DiffusionGenerator) -> None:
    with pytest.raises(LabelError, match="sneakr"):
        tiny_generator.sample(0, "sneakr", num_steps=2)
    with pytest.raises(LabelError, match="2 labels for 1 seed"):
        tiny_generator.sample(3, ["sneaker", "sneaker"], num_steps=2)
    with pytest.raises(ConfigError, match="at least 1"):
        tiny_generator.sample(3, num_steps=0)

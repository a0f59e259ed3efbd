"""Class vectors of a GAN moved by a classifier: what moves, what stays, what comes of it."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import genlab
from genlab.checkpoints.classifiers import load_classifier
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError, GenLabError, LabelError
from genlab.eval.extractors.cnn import cnn_cifar10, cnn_fmnist
from genlab.finetuning.gan.classifier import ImageClassifier, from_cnn, from_noisy
from genlab.finetuning.gan.retarget import (
    check_retargeting,
    draw_vectors,
    recognised,
    retarget,
)
from genlab.finetuning.gan.search import RetargetConfig, attempts, class_vectors
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan import BigGANGenerator
from genlab.networks.biggan_deep_hf import BigGANDeepHF
from genlab.networks.conditional_gan import ConditionalGenerator

SHORT: dict[str, Any] = {"rounds": 2, "steps": 5, "latents": 4, "starts": 1}


@pytest.fixture(scope="module")
def bundled() -> GanGenerator:
    model = genlab.load("biggan-fmnist")
    assert isinstance(model, GanGenerator)
    return model


@pytest.fixture(scope="module")
def fmnist_classifier() -> ImageClassifier:
    return from_noisy(load_classifier("classifier-fmnist"), "classifier-fmnist")


def tiny(**options: Any) -> GanGenerator:
    torch.manual_seed(0)
    settings = {"channels": 4, "dim_z": 16, "shared_dim": 8, "img_channels": 1, **options}
    network: Any = BigGANGenerator(32, 3, **settings)
    with torch.no_grad():  # so that classes and latents show
        network.output_layer[2].weight *= 4
    return GanGenerator(network, class_names=["one", "two", "three"])


def brightness(images: Tensor) -> Tensor:
    """Logits of the classes 'dark' and 'bright'."""
    mean = images.mean((1, 2, 3))
    return 20 * torch.stack([-mean, mean], 1)


LIGHT = ImageClassifier(
    name="light", logits=brightness, num_classes=2, class_names=("dark", "bright")
)


def test_another_classifier_agrees_that_the_images_are_of_the_class(
    bundled: GanGenerator, fmnist_classifier: ImageClassifier
) -> None:
    config = RetargetConfig(start="mean", starts=1, rounds=3, steps=10, weight_decay=0.0)
    result = retarget(bundled, fmnist_classifier, ["bag"], config)
    [found] = result.found
    assert found.began == "the mean of all classes"
    assert found.probability > found.probability_before + 0.3
    judge = cnn_fmnist()
    bag = judge.class_names.index("bag") if judge.class_names else -1
    images = draw_vectors(bundled, [found.start, found.vector], range(64))
    logits = from_cnn(judge.network, "judge")
    before, after = (
        float((logits.logits(logits.fit(half)).argmax(1) == bag).float().mean())
        for half in images.chunk(2)
    )
    assert after > before + 0.3
    # The generator that comes out draws these very images.
    drawn = result.generator.sample(range(64), [0] * 64, batch_size=64)
    assert torch.equal(drawn, images[64:])


def test_the_class_table_alone_is_new_and_the_base_stays() -> None:
    base = tiny()
    before = {name: value.clone() for name, value in base.network.state_dict().items()}
    result = retarget(base, LIGHT, ["bright", "dark"], RetargetConfig(**SHORT)).generator
    assert result.class_names == ("bright", "dark")
    for name, value in base.network.state_dict().items():
        assert torch.equal(value, before[name])
    own = dict(base.network.named_parameters()) | dict(base.network.named_buffers())
    for name, value in (*result.network.named_parameters(), *result.network.named_buffers()):
        assert (value.data_ptr() == own[name].data_ptr()) == (name != "shared.weight"), name
    bright, dark = (result.sample([5] * 8, [row] * 8).mean() for row in (0, 1))
    assert bright > dark


def test_the_first_step_is_adams_with_the_vector_in_the_gradient() -> None:
    base = tiny()
    config = RetargetConfig(start="mean", starts=1, rounds=1, steps=1, latents=4, noise=0.0, seed=3)
    [found] = retarget(base, LIGHT, {"bright": 1}, config).found
    table = class_vectors(base)
    start = table.mean(0).requires_grad_()
    z = NoiseStream(range(3, 7)).fork("retarget latents").randn((16,))
    images = base.network(z, start.clamp(table.min(), table.max()).expand(4, -1))
    loss = F.cross_entropy(brightness(images), torch.ones(4, dtype=torch.int64))
    [gradient] = torch.autograd.grad(loss, start)
    with torch.no_grad():
        moved = start - 0.1 * (gradient + 0.9 * start).sign()  # Adam's first step, but for its eps
        expected = moved.clamp(table.min(), table.max())
    assert torch.equal(found.start, start.detach())
    torch.testing.assert_close(found.vector, expected, rtol=1e-4, atol=1e-5)


def test_vectors_stay_within_the_range_of_the_table() -> None:
    base = tiny()
    table = class_vectors(base)
    config = RetargetConfig(**SHORT, lr=10.0, weight_decay=0.0)
    [found] = retarget(base, LIGHT, ["bright"], config).found
    assert found.vector.min() >= table.min()
    assert found.vector.max() <= table.max()
    assert found.vector.unique().numel() <= 3  # steps of 10 end at a bound


def test_top_begins_at_the_class_that_the_classifier_likes_best() -> None:
    base = tiny()
    liking = [
        float(brightness(draw_vectors(base, [row], range(100, 150))).softmax(1)[:, 1].mean())
        for row in class_vectors(base)
    ]
    config = RetargetConfig(start="top", starts=1, rounds=1, steps=1, latents=50)
    [found] = retarget(base, LIGHT, ["bright"], config).found
    best = max(range(3), key=liking.__getitem__)
    assert found.began == ("one", "two", "three")[best]
    assert torch.equal(found.start, class_vectors(base)[best])
    assert attempts(base, RetargetConfig(starts=5)) == 3
    assert attempts(base, RetargetConfig(start="mean", starts=5)) == 5


def test_own_begins_near_the_class_of_the_same_name_and_takes_its_place() -> None:
    base = tiny()
    config = RetargetConfig(**SHORT, start="own", noise=0.01)
    result = retarget(base, LIGHT, {"Two": 1}, config, keep=True)
    [found] = result.found
    assert found.began == "two"
    assert 0 < float((found.start - class_vectors(base)[1]).norm()) < 0.1
    assert result.generator.class_names == ("one", "two", "three")
    assert torch.equal(class_vectors(result.generator)[1], found.vector)
    with pytest.raises(LabelError, match="no class 'bright' to begin with"):
        retarget(base, LIGHT, ["bright"], config)


def test_kept_classes_draw_the_same_images() -> None:
    base = tiny()
    result = retarget(base, LIGHT, ["bright"], RetargetConfig(**SHORT), keep=True).generator
    assert result.class_names == ("one", "two", "three", "bright")
    labels = [0, 1, 2]
    assert torch.equal(result.sample(range(3), labels), base.sample(range(3), labels))


def test_the_same_seed_finds_the_same_and_classes_do_not_depend_on_each_other() -> None:
    base, config = tiny(), RetargetConfig(**{**SHORT, "starts": 2}, start="mean", seed=1)
    both = retarget(base, LIGHT, ["bright", "dark"], config).found
    [alone] = retarget(base, LIGHT, ["dark"], config).found
    assert torch.equal(both[1].vector, alone.vector)
    [other] = retarget(base, LIGHT, ["dark"], RetargetConfig(**SHORT, start="mean", seed=2)).found
    assert not torch.equal(other.vector, alone.vector)


@pytest.mark.parametrize("distance", ["pixels", "probabilities", "features"])
def test_diversity_draws_images_apart(distance: str) -> None:
    base = tiny()
    seen: dict[str, Callable[[Tensor], Tensor]] = {
        "pixels": lambda x: x.flatten(1),
        "probabilities": lambda x: brightness(x).softmax(1),
        "features": lambda x: F.avg_pool2d(x, 8).flatten(1),
    }
    guide = ImageClassifier(
        name="light",
        logits=brightness,
        num_classes=2,
        class_names=("dark", "bright"),
        features=seen["features"],
    )

    def spread(strength: float) -> float:
        config = RetargetConfig(
            start="mean", starts=1, rounds=2, steps=10, noise=0, diversity=strength,
            distance=distance, weight_decay=0.0,
        )  # fmt: skip
        [found] = retarget(base, guide, ["bright"], config).found
        of = seen[distance](draw_vectors(base, [found.vector], range(16)))
        pairs = itertools.combinations(range(16), 2)
        return sum(float((of[a] - of[b]).norm()) for a, b in pairs)

    assert spread(100.0) > 1.02 * spread(0.0)


def test_truncation_and_statistics_are_those_of_the_sampler() -> None:
    base, config = tiny(), RetargetConfig(**SHORT)
    plain, truncated = (
        retarget(base, LIGHT, ["bright"], config, sampler=sampler).found[0].vector
        for sampler in (None, {"truncation": 0.2, "statistics": {"standing": 1, "batch_size": 4}})
    )
    assert not torch.equal(plain, truncated)


def test_networks_with_a_vector_for_each_class_can_be_retargeted() -> None:
    torch.manual_seed(0)
    layers = [
        [False, 16, 16],
        *([True, a, b] for a, b in ((16, 8), (8, 4), (4, 2), (2, 1), (1, 1))),
    ]
    deep = BigGANDeepHF(128, 3, 4, 8, layers, attention_position=3)
    plain = ConditionalGenerator(16, 3, 1, channels=4, dim_z=8)
    for network in (deep.eval(), plain.eval()):
        base = GanGenerator(network)
        few = RetargetConfig(starts=1, rounds=1, steps=2, latents=2)
        result = retarget(base, LIGHT, ["bright"], few)
        row = class_vectors(result.generator)
        torch.testing.assert_close(row[0], result.found[0].vector)
        assert not torch.equal(result.found[0].vector, result.found[0].start)


def test_images_are_brought_to_the_classifiers_shape() -> None:
    wide = from_cnn(cnn_cifar10().network, "cnn-cifar10")
    assert wide.fit(torch.zeros(2, 1, 64, 64)).shape == (2, 3, 32, 32)
    assert wide.describe_fit((1, 64, 64)) == "grey repeated as RGB, 64x64 resized to 32x32"
    assert wide.describe_fit((3, 32, 32)) == ""
    same = torch.rand(2, 3, 32, 32)
    assert torch.equal(wide.fit(same), same)
    grey = ImageClassifier(name="g", logits=brightness, num_classes=2, image_shape=(1, 32, 32))
    with pytest.raises(ConfigError, match="looks at images of 1 channel"):
        grey.fit(same)


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["grey"], {}, "the classifier light: .* no class 'grey'"),
        ({"light": 2}, {}, "class 2 of the classifier light, which knows 0 ... 1"),
        (["dark", "Dark"], {}, "two classes have the names"),
        (["dark"], {"start": "best"}, "start must be one of top, mean, own"),
        (["dark"], {"lr": 0.0}, "lr must be above 0"),
        (["dark"], {"steps": 0}, "steps must be at least 1"),
        (["dark"], {"noise": -1.0}, "noise must be at least 0"),
        (["dark"], {"diversity": 0.1, "latents": 1}, "set latents above 1"),
        (["dark"], {"diversity": 0.1, "distance": "features"}, "light tells no features"),
    ],
)
def test_what_cannot_be_is_refused(targets: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenLabError, match=message):
        retarget(tiny(), LIGHT, targets, RetargetConfig(**options))


def test_a_table_in_every_layer_is_refused() -> None:
    base = tiny(shared_embedding=False, shared_dim=None, hierarchical=False)
    with pytest.raises(ConfigError, match="a table of classes in every layer"):
        retarget(base, LIGHT, ["dark"], RetargetConfig(**SHORT))


def test_what_cannot_be_is_found_without_a_search() -> None:
    base, config = tiny(), RetargetConfig(start="own")
    assert check_retargeting(base, LIGHT, {"Two": 1}, config) == {"Two": 1}
    with pytest.raises(LabelError, match="no class 'bright' to begin with"):
        check_retargeting(base, LIGHT, ["bright"], config)
    rgb = tiny(img_channels=3)
    grey = ImageClassifier(name="g", logits=brightness, num_classes=2, image_shape=(1, 32, 32))
    with pytest.raises(ConfigError, match=r"g looks at images of 1 channel.* draws 3"):
        check_retargeting(rgb, grey, {"bright": 1}, RetargetConfig())
    assert base.evaluations == rgb.evaluations == 0


def test_classes_as_people_write_them() -> None:
    assert LIGHT.read_targets("Bright, night=dark,day=1") == {"bright": 1, "night": 0, "day": 1}
    assert LIGHT.read_targets("0") == {"dark": 0}
    nameless = ImageClassifier(name="nameless", logits=brightness, num_classes=2)
    assert nameless.read_targets("1,dark=0") == {"1": 1, "dark": 0}
    with pytest.raises(LabelError, match="have no names"):
        nameless.read_targets("dark")


def test_the_share_that_a_judge_recognises() -> None:
    base = tiny()
    [vector, *_] = class_vectors(base)
    means = draw_vectors(base, [vector], range(64)).mean((1, 2, 3))
    middle = means.median()

    def brighter(images: Tensor) -> Tensor:
        over = images.mean((1, 2, 3)) - middle
        return torch.stack([-over, over], 1)

    judge = ImageClassifier(name="judge", logits=brighter, num_classes=2)
    share = recognised(base, vector, judge, 1, seeds=range(64))
    assert share == (means > middle).double().mean()
    assert 0.4 < share < 0.6
    assert recognised(base, vector, judge, 0, seeds=range(64)) == 1 - share

"""What is recommended for a data set and a machine: the rules, and that their settings train."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genlab.errors import ConfigError, DataError
from genlab.training.recommend.candidates import FAMILIES, Candidate
from genlab.training.recommend.choosing import (
    FEWEST_IMAGES,
    MOST_PASSES,
    Choice,
    Plan,
    SetMetadata,
    Wish,
    choose_network,
    choose_size,
    make_plan,
)
from genlab.training.recommend.recommendation import describe, recommend
from genlab.training.recommend.speed import Speed, measure_speed

METADATA = SetMetadata(
    path="mine.zip", num_images=60_000, image_shape=(3, 32, 32), num_classes=10, used_classes=10
)


def speed(images_per_second: float) -> Speed:
    return Speed(images_per_second=images_per_second, steps=3, seconds=1.0)


def steady(images_per_second: float) -> Callable[[Candidate, str], Speed]:
    """A machine on which every network trains alike, in any precision."""
    return lambda candidate, precision: speed(images_per_second)


def chosen(metadata: SetMetadata, wish: Wish, images_per_second: float) -> tuple[Plan, Choice]:
    plan = make_plan(metadata, wish)
    return plan, choose_network(plan, steady(images_per_second), fast=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", [0, 1, -1])
def test_every_network_can_be_built(family: str, place: int) -> None:
    """On the meta device, for the smallest, the next and the largest images."""
    size = FAMILIES[family].sizes[place]
    metadata = replace(METADATA, image_shape=(1 if place else 3, size, size))
    plan = make_plan(metadata, Wish(family=family))
    assert (plan.size, plan.fit) == (size, None)
    candidates = FAMILIES[family].candidates(*reversed(plan.image_shape[:2]))
    numbers = [describe(plan, Choice(candidate=each)).parameters for each in candidates]
    assert numbers == sorted(set(numbers)), "each network is larger than the one before"


@pytest.mark.parametrize(
    ("rate", "minutes", "width", "blocks"),
    [(70, 90, 64, 1), (700, 90, 64, 2), (700, 30, 64, 1), (4_000, 90, 96, 3)],
)
def test_the_largest_network_that_time_is_enough_for(
    rate: float, minutes: float, width: int, blocks: int
) -> None:
    plan, choice = chosen(METADATA, Wish(minutes=minutes), rate)
    network = describe(plan, choice).settings["network"]
    assert (network["model_channels"], network["num_blocks"]) == (width, blocks)
    assert bool(choice.limit) == (width < 96)


def test_few_images_take_a_small_network_however_fast_the_machine_is() -> None:
    _, choice = chosen(replace(METADATA, num_images=4_999), Wish(), 1e6)
    assert choice.candidate.network["num_blocks"] == 1
    assert choice.limit == "the next larger network is for 5,000 images or more"


def test_a_network_that_memory_is_too_small_for() -> None:
    def measure(candidate: Candidate, precision: str) -> Speed:
        if candidate.batch_size > 64:
            raise torch.OutOfMemoryError("out of memory")
        return speed(1e5)

    plan = make_plan(METADATA, Wish())
    choice = choose_network(plan, measure, fast=False)
    assert choice.candidate.batch_size == 64
    assert "does not fit into the memory" in choice.limit

    def nothing_fits(candidate: Candidate, precision: str) -> Speed:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(ConfigError, match=r"does not fit into the memory .* a smaller --size"):
        choose_network(plan, nothing_fits, fast=False)
    with pytest.raises(RuntimeError, match="another matter"):
        choose_network(plan, _fail, fast=False)


def _fail(candidate: Candidate, precision: str) -> Speed:
    raise RuntimeError("another matter")


@pytest.mark.parametrize(("gain", "taken"), [(1.5, "bf16"), (0.8, "no")])
def test_the_faster_precision_is_taken(gain: float, taken: str) -> None:
    def measure(candidate: Candidate, precision: str) -> Speed:
        return speed(70 * (gain if precision == "bf16" else 1))

    plan = make_plan(METADATA, Wish())
    choice = choose_network(plan, measure, fast=True)
    assert choice.precision == taken
    assert choice.gain == pytest.approx(gain)
    assert describe(plan, choice).settings["mixed_precision"] == taken
    assert choose_network(plan, measure, fast=False).precision == "no"


def test_the_run_is_as_long_as_the_minutes_allow() -> None:
    plan, choice = chosen(METADATA, Wish(minutes=90), 70)
    found = describe(plan, choice)
    assert found.minutes == pytest.approx(90, rel=0.01)
    assert found.kimg == pytest.approx(0.9 * 90 * 60 * 70 / 1000, rel=0.01)
    assert found.passes == pytest.approx(1000 * found.kimg / 60_000)
    output = found.settings["output"]
    assert output["preview_kimg"] == pytest.approx(found.kimg / 10, rel=0.01)
    assert found.settings["ema"]["halflife_kimg"] < found.settings["schedule"]["warmup_kimg"]


def test_few_images_are_not_seen_for_ever() -> None:
    """And the network is held back from learning them by heart, and the user told."""
    metadata = replace(METADATA, num_images=800)
    plan, choice = chosen(metadata, Wish(), 1e5)
    found = describe(plan, choice)
    assert found.passes == MOST_PASSES
    assert found.minutes is not None
    assert found.minutes < 90
    assert found.settings["objective"]["augment"] == {"p": 0.15}
    assert found.settings["network"]["dropout"] > 0
    told = " ".join(found.expect)
    assert "learns them by heart" in told
    assert "'genlab finetune --help'" in told
    assert "validation.path=held-out.zip stopping.metric=heldout_loss" in told

    many = describe(*chosen(METADATA, Wish(), 70))
    assert "augment" not in many.settings["objective"]
    assert many.settings["network"]["dropout"] == 0
    assert "by heart" not in " ".join(many.expect)


def test_few_images_with_others_to_judge_by_stop_early() -> None:
    metadata = replace(METADATA, num_images=800, held_out="test")
    found = describe(*chosen(metadata, Wish(), 1e5))
    assert found.config.validation.split == "test"
    assert found.config.stopping.metric == "heldout_loss"
    gan = describe(*chosen(metadata, Wish(family="biggan"), 1e5))
    assert gan.config.validation.split is None, "a GAN has no score of its own"
    assert gan.settings["objective"]["augment"] == ["color", "translation", "cutout"]


def test_classes() -> None:
    found = describe(*chosen(METADATA, Wish(), 70))
    assert found.config.data.labels
    assert found.settings["objective"]["label_dropout"] == 0.1
    assert found.settings["sampler"]["guidance"] == [{"name": "cfg", "scale": 2.0}]
    for num_classes, used in [(0, 0), (1, 1), (5, 1)]:
        metadata = replace(METADATA, num_classes=num_classes, used_classes=used)
        found = describe(*chosen(metadata, Wish(), 70))
        assert not found.config.data.labels
        assert "label_dropout" not in found.settings["objective"]
        assert "guidance" not in found.settings["sampler"]
        with pytest.raises(ConfigError, match="takes images of two classes or more"):
            make_plan(metadata, Wish(family="biggan"))


@pytest.mark.parametrize(
    ("family", "height", "size", "expected"),
    [
        ("edm", 28, None, (32, "pad")),
        ("edm", 32, None, (32, None)),
        ("edm", 50, None, (48, "resize")),
        ("edm", 64, 32, (32, "crop")),
        ("edm", 28, 32, (32, "pad")),
        ("biggan", 100, None, (64, "resize")),
        ("pixelcnn", 28, None, (28, None)),
    ],
)
def test_sizes(
    family: str, height: int, size: int | None, expected: tuple[int, str | None]
) -> None:
    metadata = replace(METADATA, image_shape=(3, height, height))
    assert choose_size(metadata, Wish(family=family, size=size)) == expected


@pytest.mark.parametrize(
    ("family", "shape", "size", "message"),
    [
        ("edm", (3, 40, 32), None, r"32x40 and networks take square ones; say with --size"),
        ("edm", (3, 8, 8), None, "smaller than the 16x16"),
        ("edm", (3, 512, 512), None, r"more than the 256x256 .* choose --size 64 or the like"),
        ("pixelcnn", (3, 128, 128), None, "--size 64 or the like"),
        ("edm", (3, 64, 64), 33, "the nearest that they draw is --size 32"),
        ("edm", (3, 28, 28), 64, "would enlarge images of 28x28"),
    ],
)
def test_sizes_that_do_not_suit(
    family: str, shape: tuple[int, int, int], size: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_size(replace(METADATA, image_shape=shape), Wish(family=family, size=size))


def test_what_a_message_proposes_is_accepted() -> None:
    """Sizes, and the minutes that are enough."""
    for family, height, size in [("edm", 512, 64), ("pixelcnn", 128, 64), ("biggan", 300, 64)]:
        metadata = replace(METADATA, image_shape=(3, height, height))
        assert choose_size(metadata, Wish(family=family, size=size)) == (size, "crop")
    with pytest.raises(ConfigError, match=r"sees 5,400 images .* --minutes 56") as refused:
        chosen(METADATA, Wish(minutes=10), 10)
    minutes = float(str(refused.value).partition("give --minutes ")[2].partition(",")[0])
    plan, choice = chosen(METADATA, Wish(minutes=minutes), 10)
    assert describe(plan, choice).kimg >= FAMILIES["edm"].least_kimg


def test_too_few_images() -> None:
    with pytest.raises(DataError, match=r"49 images are too few .* 'genlab finetune --help'"):
        make_plan(replace(METADATA, num_images=FEWEST_IMAGES - 1), Wish())
    make_plan(replace(METADATA, num_images=FEWEST_IMAGES), Wish())


def test_nothing_is_measured_if_so_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("genlab.training.recommend.recommendation.measure_speed", refuse)
    found = recommend(METADATA, Wish(), measured=False)
    assert (found.minutes, found.images_per_second, found.kimg) == (None, None, 250)
    assert found.reasons["duration_kimg"].startswith("not measured")


@pytest.mark.parametrize("family", FAMILIES)
def test_measuring_trains_a_few_steps_and_leaves_no_trace(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metadata = replace(METADATA, image_shape=(1, 32, 32), num_classes=2, used_classes=2)
    plan = make_plan(metadata, Wish(family=family))
    found = describe(plan, Choice(candidate=plan.family.candidates(32, 1)[0]))
    small = {"model_channels": 8, "hidden_size": 12, "channels": 4, "num_filters": 4}
    network = {key: small.get(key, value) for key, value in found.config.network.items()}
    before = torch.get_rng_state()
    measured = measure_speed(
        replace(found.config, network=network, batch_size=4), plan.data, "cpu", seconds=0.0
    )
    assert measured.images_per_second > 0
    assert measured.steps == 3
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(tmp_path.iterdir())

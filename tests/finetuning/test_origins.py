"""Where new classes begin: by name, by choice, in words."""

import json
from dataclasses import asdict
from typing import Any

import pytest

import genlab
from genlab.errors import ConfigError, LabelError
from genlab.finetuning.class_tables.origins import ClassOrigin, class_origins, nearest_class
from genlab.generators import Generator

CIFAR = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


@pytest.fixture(scope="module")
def base() -> Generator:
    return genlab.load("dit-fmnist")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Sneakers", "sneaker"),
        ("hand bag", "bag"),
        ("Ankle-Boots", "ankle boot"),
        ("boots", "ankle boot"),
        ("T shirt", "T-shirt/top"),
        ("tshirt", "T-shirt/top"),
        ("tank top", "T-shirt/top"),
        ("polo shirt", "shirt"),
        ("SHIRT", "shirt"),
        ("trowsers", "trouser"),
        ("cat", None),
        ("goat", None),
        ("dress", "dress"),
        ("zebra", None),
        ("ship", None),
        ("dress code", None),
        ("xyz", None),
        ("!?", None),
    ],
)
def test_nearest_name(base: Generator, name: str, nearest: str | None) -> None:
    assert base.class_names is not None
    index = nearest_class(name, base.class_names)
    assert (None if index is None else base.class_names[index]) == nearest


def test_each_synonym_of_a_name_counts() -> None:
    known = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark"]
    assert nearest_class("Gold fish", known) == 1
    assert nearest_class("tinca tinca", known) == 0
    assert nearest_class("shark", known) == 2


def test_nearest_says_what_it_took_and_where_it_took_the_mean(base: Generator) -> None:
    origins = class_origins(base, ["Sneakers", "hand bag", "zebra"], "nearest")
    assert [origin.old for origin in origins] == [(7,), (8,), ()]
    assert [origin.rule for origin in origins] == ["nearest", "nearest", "nothing near"]
    assert [origin.describe() for origin in origins] == [
        "Sneakers: begins as sneaker, the nearest name",
        "hand bag: begins as bag, the nearest name",
        "zebra: begins as the mean of all classes, none of which has a near name",
    ]


def test_chosen_by_name_or_number_one_or_several(base: Generator) -> None:
    chosen: dict[Any, Any] = {"cat": "ankle boot", 1: [0, "Bag"], "Dog": 3}
    origins = class_origins(base, ["cat", "bird", "dog"], chosen)
    assert [origin.old for origin in origins] == [(9,), (0, 8), (3,)]
    assert origins[1].describe() == "bird: begins as the mean of T-shirt/top, bag"
    unnamed = class_origins(base, 2, {0: 4, 1: [4, 5]})
    assert [origin.name for origin in unnamed] == ["0", "1"]


def test_a_record_gives_the_origins_back(base: Generator) -> None:
    ways: list[Any] = ["mean", "nearest", "random", dict.fromkeys(CIFAR, "bag")]
    for initial in ways:
        origins = class_origins(base, CIFAR, initial, seed=5)
        record = json.loads(json.dumps([asdict(origin) for origin in origins]))
        assert tuple(ClassOrigin(**entry) for entry in record) == origins


@pytest.mark.parametrize(
    ("names", "initial", "message"),
    [
        ([], "mean", "no class is named"),
        (["a", ""], "mean", "name of a class is empty"),
        (["ankle boot", "Ankle_Boot"], "mean", "'ankle boot' and 'Ankle_Boot'.*mean the same"),
        ("sneaker", "mean", "write one class as a list"),
        (-1, "mean", "at least 0, got -1"),
        (True, "mean", "at least 0"),
        (3, "nearest", "the new classes have no names to be near by"),
        (["a", "b"], {"a": 0}, "does not say where the new class 'b' begins"),
        (["a", "b"], {"a": 0, "b": 1, "c": 2}, "initial, new class 'c'"),
        (["a"], {"a": 0, 0: 1}, "names the new class 'a' twice"),
        (["a"], {"a": "sneeker"}, "old class 'sneeker'.*did you mean 'sneaker'"),
        (["a"], {"a": 10}, "old class 10, which is none of 0 ... 9"),
        (["a"], {"a": []}, "names no class of the base for 'a'"),
        (["a"], {1: 0}, "new class 1, which is none of 0 ... 0"),
    ],
)
def test_wrong_classes_are_refused(base: Generator, names: Any, initial: Any, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        class_origins(base, names, initial)


@pytest.mark.parametrize(
    ("names", "initial", "message"),
    [
        (3, "median", "one of mean, nearest, random"),
        (0, "random", "without classes nothing begins by initial"),
    ],
)
def test_wrong_ways_to_begin_are_refused(
    base: Generator, names: int, initial: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        class_origins(base, names, initial)


def test_an_unnamed_base_has_no_near_names(base: Generator) -> None:
    with pytest.raises(LabelError, match="the base's classes have no names"):
        class_origins(base.changed(class_names=None), ["cat"], "nearest")


def test_an_origin_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="only nearest and chosen name some"):
        ClassOrigin(name="a", rule="mean", old=(1,))
    with pytest.raises(ConfigError, match="only nearest and chosen name some"):
        ClassOrigin(name="a", rule="chosen")
    with pytest.raises(ConfigError, match="random alone has one"):
        ClassOrigin(name="a", rule="random")
    with pytest.raises(ConfigError, match="the rule of a class must be one of"):
        ClassOrigin(name="a", rule="median")

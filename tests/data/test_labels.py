"""Seeds and labels as people write them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genlab.data.class_names import same_names
from genlab.data.labels import (
    class_index,
    cycle_classes,
    format_seeds,
    parse_labels,
    parse_seeds,
    random_label,
)
from genlab.errors import ConfigError, LabelError

NAMES = ["T-shirt/top", "Sneaker", "Ankle boot"]


def test_seeds_are_numbers_and_ranges_with_both_ends() -> None:
    assert parse_seeds("0-3, 100,7") == (0, 1, 2, 3, 100, 7)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, unique=True))
def test_writing_seeds_the_short_way_loses_nothing(seeds: list[int]) -> None:
    assert parse_seeds(format_seeds(seeds)) == tuple(seeds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither a number nor a range"),
        ("1,,2", "neither a number nor a range"),
        ("-3", "neither a number nor a range"),
        ("a-b", "neither a number nor a range"),
        ("9-3", "write 3-9"),
        ("0-5,3", "3 twice"),
        (str(2**63), "2\\*\\*63"),
        ("0-99999999999", "more than 10,000,000"),
        (f"0-{2**63 - 1}", "more than 10,000,000"),
        ("9" * 5000, "2\\*\\*63"),
    ],
)
def test_what_is_no_list_of_seeds_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_seeds(text)


def test_balanced_labels_take_turns() -> None:
    assert parse_labels("balanced", range(7), 3) == (0, 1, 2, 0, 1, 2, 0)


def test_a_random_label_depends_on_the_seed_alone_and_is_uniform() -> None:
    together = parse_labels("random", range(3000), 10)
    assert together is not None
    assert together[7:9] == parse_labels("random", [7, 8], 10)
    counts = [together.count(c) for c in range(10)]
    # Binomial with n = 3000, p = 0.1: standard deviation 16.4; 4.5 of them.
    assert max(abs(count - 300) for count in counts) < 75


def test_the_random_labels_are_frozen() -> None:
    # Published images depend on them.
    assert [random_label(seed, 10) for seed in range(8)] == [8, 6, 9, 9, 8, 9, 5, 0]


def test_unconditional_models_have_no_labels() -> None:
    assert parse_labels("random", range(3), 0) is None
    assert parse_labels("balanced", range(3), 0) is None
    with pytest.raises(LabelError, match="unconditional"):
        parse_labels("1,2,3", range(3), 0)


def test_labels_are_numbers_or_names() -> None:
    assert parse_labels("2,sneaker, t-shirt/top", range(3), 3, NAMES) == (2, 1, 0)


def test_classes_take_turns_over_the_seeds() -> None:
    assert cycle_classes("ankle_boot,0", range(5), 3, NAMES) == (2, 0, 2, 0, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [("sneker", "did you mean 'Sneaker'"), ("3", "0 ... 2"), ("-1", "no class")],
)
def test_unknown_classes_are_refused(name: str, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        class_index(name, 3, NAMES)


def test_names_need_a_model_with_names() -> None:
    with pytest.raises(LabelError, match="give numbers"):
        class_index("cat", 3, None)


def test_as_many_labels_as_seeds() -> None:
    with pytest.raises(LabelError, match="--classes 1,2"):
        parse_labels("1,2", range(5), 3)


# --- names that several classes could have -----------------------------------------------------

CRANES = ["A", "a", "crane", "crane", "T shirt", "t-shirt"]


@pytest.mark.parametrize(("name", "number"), [("A", 0), ("a", 1), ("T shirt", 4), ("t-shirt", 5)])
def test_an_exact_name_comes_before_one_that_differs_in_case(name: str, number: int) -> None:
    assert class_index(name, 6, CRANES) == number


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("crane", "2 ('crane'), 3 ('crane')"), ("T_SHIRT", "4 ('T shirt'), 5 ('t-shirt')")],
)
def test_a_name_that_several_classes_have_is_refused_with_their_numbers(
    name: str, numbers: str
) -> None:
    with pytest.raises(LabelError, match=re.escape(numbers)) as refusal:
        cycle_classes(name, range(3), 6, CRANES)
    assert "number" in str(refusal.value)
    assert cycle_classes("2", range(1), 6, CRANES) == (2,)  # the cure works


def test_a_mark_may_be_stored_with_its_letter_or_behind_it() -> None:
    assert class_index("cafe\u0301", 1, ["caf\u00e9"]) == 0


def test_a_name_may_hold_commas() -> None:
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"]
    assert cycle_classes("crane, tench, Tinca tinca,1", range(3), 3, names) == (2, 0, 1)


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 5000])
def test_numbers_of_thousands_of_digits_are_refused(digits: str) -> None:
    with pytest.raises(LabelError, match="out of range"):
        class_index(digits, 3, NAMES)
    with pytest.raises(ConfigError, match=r"2\*\*63"):
        parse_seeds(f"0-{digits}")


def test_lists_name_the_same_classes_only_in_the_same_order() -> None:
    assert same_names(CRANES, CRANES)  # ImageNet with itself, two cranes or not
    assert same_names(["Ankle_boot", "bag"], ["ankle boot", "Bag"])
    assert not same_names(["a", "A"], ["A", "a"])
    assert not same_names(["bag", "boot"], ["boot", "bag"])

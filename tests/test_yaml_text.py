"""What YAML makes something else of, and what no file may do: on the command line and in files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from genlab import config, schema
from genlab.errors import ConfigError
from genlab.training.config import TrainConfig

Precision = Enum("Precision", ["no", "bf16"])


@dataclass(kw_only=True)
class Settings:
    precision: Precision = Precision.bf16
    switch: Literal["on", "off", "auto"] = "auto"
    empty: Literal["null", "full"] = "full"
    name: str = "x"
    note: str | None = "x"
    path: Path = Path("x")
    classes: list[str] = field(default_factory=list)
    count: int = 1
    rate: float = 0.5
    flag: bool = False
    free: dict[str, Any] = field(default_factory=dict)


MEANT = [
    ("precision", "no", Precision.no),
    ("switch", "on", "on"),
    ("switch", "off", "off"),
    ("empty", "null", "null"),
    ("name", "no", "no"),
    ("name", "1e3", "1e3"),
    ("name", "007", "007"),
    ("name", "1:30", "1:30"),
    ("name", "2024-01-01", "2024-01-01"),
    ("name", '"off"', "off"),
    ("note", "yes", "yes"),
    ("note", "null", None),
    ("path", "on", Path("on")),
    ("count", "1e3", 1000),
    ("rate", "1e3", 1000.0),
    ("flag", "no", False),
    ("flag", "on", True),
]


@pytest.mark.parametrize(("key", "typed", "value"), MEANT)
def test_text_and_choices_are_as_typed_everywhere(
    key: str, typed: str, value: object, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"{key}: {typed}\n", encoding="utf-8")
    assert getattr(config.load(Settings, None, "sample", [f"{key}={typed}"]), key) == value
    if key in ("name", "note", "path") and typed in ("no", "yes", "on"):
        with pytest.raises(ConfigError, match=r"not a boolean.*put such a word in quotes"):
            config.load(Settings, str(file), "sample")
        file.write_text(f"{key}: '{typed}'\n", encoding="utf-8")  # the cure
    assert getattr(config.load(Settings, str(file), "sample"), key) == value


def test_lists_of_text_in_files_are_as_typed(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("classes: [no, 007, 1e3]\n", encoding="utf-8")
    assert config.load(Settings, str(file), "sample").classes == ["no", "007", "1e3"]


def test_a_choice_among_free_options_is_the_word_that_yaml_reads_as_a_boolean() -> None:
    assert schema.make(Settings, {"precision": False, "switch": True}, "here") == Settings(
        precision=Precision.no, switch="on"
    )
    with pytest.raises(ConfigError, match="precision takes one of no, bf16, not True"):
        schema.make(Settings, {"precision": True}, "here")


def test_a_saved_configuration_means_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    settings = Settings(precision=Precision.no, switch="off", name="1e3", note="no", empty="null")
    file = tmp_path / "a.yaml"
    file.write_text(config.to_yaml(settings), encoding="utf-8")
    assert config.load(Settings, str(file), "sample") == settings


HOSTILE = {
    "deep": "free: {a: " + "[" * 120 + "]" * 120 + "}",
    "deeper": "free: {a: " + "[" * 5000 + "]" * 5000 + "}",
    "digits": "count: " + "9" * 5000,
    "float-digits": "rate: " + "9" * 400,
    "aliases": "a0: &a0 [1, 1]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "cycle": "free: &a {b: *a}",
    "object": "name: !!python/object/apply:os.system [true]",
    "twice": "name: a\nname: b",
    "keys": "? [a, b]\n: c",
    "not-text": "name: \x00",
    "cut": "free: {a: [1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_one_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(HOSTILE[name], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.yaml") as caught:
        config.load(Settings, str(file), "sample")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "value", ["${oc.env:SECRET_TOKEN}", "x-${oc.env:SECRET_TOKEN,y}", "${oc.env:HOME", "${name}"]
)
def test_nothing_is_interpolated(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-secret")
    file = tmp_path / "a.yaml"
    file.write_text(f"free: {{steps: ['{value}']}}\n", encoding="utf-8")
    tries: list[Callable[[], object]] = [
        lambda: config.load(Settings, str(file), "sample"),
        lambda: config.load(Settings, None, "sample", [f"name={value}"]),
        lambda: config.load(Settings, None, "sample", [f"free.a='{value}'"]),
        lambda: config.load(Settings, None, "sample", [], {"free": {"a": {value: 1}}}),
        lambda: schema.make(Settings, {"free": {"a": [{"b": value}]}}, "the model's own sampler"),
    ]
    for attempt in tries:
        with pytest.raises(ConfigError, match="would be interpolated") as caught:
            attempt()
        assert "hunter2" not in str(caught.value)
    # What options set past the files is text, written as it is.
    assert "hunter2" not in config.to_yaml(Settings(name=value))
    assert config.to_plain(Settings(name=value))["name"] == value


def choice_fields(hint: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and word of every choice in a schema."""
    for key, inner in schema.fields_of(hint).items():
        if (part := schema.dataclass_in(inner)) is not None:
            yield from choice_fields(part, f"{prefix}{key}.")
        for word in schema.choices(inner):
            yield f"{prefix}{key}", word


@pytest.mark.parametrize(("key", "word"), list(choice_fields(TrainConfig)))
def test_every_choice_of_training_can_be_made(key: str, word: str, tmp_path: Path) -> None:
    needed = ["data.path=x", "duration_kimg=1"]
    typed = config.load(TrainConfig, None, "train", [*needed, f"{key}={word}"])
    file = tmp_path / "a.yaml"
    nested = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(key.split(".")))
    file.write_text(f"{nested.rstrip()} {word}\n", encoding="utf-8")
    assert config.load(TrainConfig, str(file), "train", needed) == typed
    value: Any = typed
    for part in key.split("."):
        value = getattr(value, part)
    assert value.name == word
    assert ("mixed_precision", "no") in choice_fields(TrainConfig)


@pytest.mark.parametrize("key", ["null", "~", "[1, 2]", "2024-01-01"])
def test_a_key_that_is_no_name_is_refused(key: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"? {key}\n: {{solver: heun}}\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        config.load(Settings, str(file), "sample")
    file.write_text(f"free:\n  ? {key}\n  : 1\n", encoding="utf-8")
    if key != "2024-01-01":  # text, where nothing says otherwise
        with pytest.raises(ConfigError):
            config.load(Settings, str(file), "sample")

"""Layers, presets, overrides and the messages of typed configurations."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from genlab import config
from genlab.errors import ConfigError, UnknownNameError


class Fit(Enum):
    PAD = "pad"
    CROP = "crop"


@dataclass(frozen=True, kw_only=True)
class Data:
    path: str | None = None
    size: int = 32
    rate: float = 0.5
    order: Literal["given", "shuffled"] = "given"
    fit: Fit = Fit.PAD


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str
    data: Data = field(default_factory=Data)
    more: Data | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = (1, 2)
    parts: list[Data] = field(default_factory=list)
    out: Path | None = None
    grid: bool = False

    def __post_init__(self) -> None:
        if self.data.size < 1:
            raise ConfigError(f"data.size must be at least 1, got {self.data.size}")


HEUN: dict[str, Any] = {
    "sampler": {
        "solver": {"name": "heun", "S_churn": 40},
        "guidance": [{"name": "cfg", "scale": 2.0}],
    }
}


def load(*overrides: str, spec: str | None = None, **defaults: Any) -> Settings:
    return config.load(Settings, spec, "sample", ["model=m", *overrides], defaults)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_of_the_schema() -> None:
    assert load() == Settings(model="m")


def test_layers_lie_over_each_other(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.yaml", "data: {size: 8, rate: 1e-4}\ngrid: true\n")
    settings = load("data.size=4", spec=spec, data={"size": 16, "path": "x"})
    assert settings.data == Data(size=4, rate=1e-4, path="x")
    assert settings.grid is True


def test_later_overrides_win() -> None:
    assert load("data.size=4", "data.size=5").data.size == 5


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.rate=1e-4", 1e-4),
        ("data.size=7", 7),
        ("data.order=shuffled", "shuffled"),
        ("data.fit=CROP", Fit.CROP),
        ("data.path=007", "007"),
        ("data.path=no", "no"),
        ("data.path=1e-4", "1e-4"),
        ("data.path='a b'", "a b"),
        ("data.path=a=b", "a=b"),
        ("data.path=", None),
        ("out=a/b", Path("a/b")),
        ("sizes=[4]", (4,)),
        ("sizes.1=9", (1, 9)),
        ("more.size=3", Data(size=3)),
        ("grid=yes", True),
    ],
)
def test_values_become_what_the_field_is(override: str, value: object) -> None:
    found: Any = load(override)
    for key in override.partition("=")[0].split("."):
        if key.isdigit():
            break
        found = getattr(found, key)
        if key == "more":
            break
    assert found == value


def test_list_of_schemas() -> None:
    assert load("parts=[{size: 3}, {rate: 2}]").parts == [Data(size=3), Data(rate=2)]
    assert load("parts.0.rate=4", parts=[{"size": 3}]).parts == [Data(size=3, rate=4)]


def test_an_entry_of_a_list_by_number() -> None:
    sampler = load("sampler.guidance.0.scale=4", **HEUN).sampler
    assert sampler["guidance"] == [{"name": "cfg", "scale": 4}]
    assert sampler["solver"] == HEUN["sampler"]["solver"]


def test_another_name_drops_the_options_of_the_first() -> None:
    assert load("sampler.solver.name=euler", **HEUN).sampler["solver"] == {"name": "euler"}
    kept = load("sampler.solver.name=heun", **HEUN).sampler["solver"]
    assert kept == {"name": "heun", "S_churn": 40}


def test_defaults_are_not_changed() -> None:
    before = str(HEUN)
    load("sampler.guidance.0.scale=4", "sampler.solver.x=1", **HEUN)
    assert str(HEUN) == before


def test_a_preset_takes_the_place_of_a_mapping() -> None:
    name = config.preset_names("sampler")[0]
    expected = config.read_preset("sampler", name)
    assert load(f"sampler={name}", **HEUN).sampler == expected
    assert load(sampler=name).sampler == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sise=4", r"'data\.sise=4': there is no setting 'data\.sise'; did you mean 'size'"),
        ("dat.size=4", r"there is no setting 'dat'; did you mean 'data'"),
        ("data.size=many", r"data\.size takes a whole number, not 'many'"),
        ("data.size=1.5", r"data\.size takes a whole number, not 1\.5"),
        ("data.size=true", r"data\.size takes a whole number, not a boolean.*in quotes"),
        ("data.size=", r"data\.size takes a whole number, not None"),
        ("data.order=sorted", r"data\.order takes one of given, shuffled, not 'sorted'"),
        ("data.fit=zoom", r"data\.fit takes one of PAD, CROP, not 'zoom'"),
        ("data=4", r"data takes a mapping \(KEY: VALUE\), not 4"),
        ("grid=perhaps", r"grid takes true or false, not 'perhaps'"),
        ("sizes=3", r"sizes takes a list, not 3"),
        ("sizes=[x]", r"sizes takes a list.*\['x'\]"),
        ("sizes.5=1", r"sizes has 2 entries, so none with the number 5"),
        ("parts=[{sise: 3}]", r"there is no setting .*sise'; did you mean 'size'"),
        ("grid", r"'grid' is not a setting: write KEY=VALUE"),
        ("=4", r"'=4' is not a setting"),
        ("data..size=4", r"is not a setting"),
        ("sizes=[1", r"the value of 'sizes=\[1' is not valid YAML"),
        ("data.size=0", r"data\.size must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(override)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model has no value; add model=\.\.\."):
        config.load(Settings, None, "sample")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {sise: 4}\n", r"a\.yaml: there is no setting 'data\.sise'; did you mean 'size'"),
        ("data: {path: no}\n", r"a\.yaml: data\.path takes text, not a boolean"),
        ("data: {size: x}\n", r"a\.yaml: data\.size takes a whole number, not 'x'"),
        ("a: [\n", r"a\.yaml is not valid YAML"),
        ("grid: true\ngrid: false\n", r"a\.yaml is not valid YAML.*duplicate"),
        ("- 1\n", r"a\.yaml must hold settings"),
        ("\x00", r"a\.yaml is not valid YAML"),
    ],
)
def test_wrong_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spec=write(tmp_path / "a.yaml", text))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load(spec=write(tmp_path / "a.yaml", "# only a comment\n")) == Settings(model="m")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(spec=str(path))


def test_spec_names_a_preset_in_every_form() -> None:
    name = config.preset_names("sampler")[0]
    forms = [name, f"{name}.yaml", f"configs/sampler/{name}.yaml", f"configs/sampler/{name}"]
    found = [config.read_spec("sampler", form)[1] for form in forms]
    assert found == [config.read_preset("sampler", name)] * 4


def test_a_file_wins_over_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = config.preset_names("sampler")[0]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / f"{name}.yaml", "grid: true\n")
    assert config.read_spec("sampler", f"{name}.yaml")[1] == {"grid": True}


def test_an_override_may_name_a_file_in_place_of_a_mapping(tmp_path: Path) -> None:
    levels = write(tmp_path / "levels.yaml", "name: levels\nsigmas: [3, 1]\n")
    sampler = {"schedule": {"name": "karras", "rho": 3}, "guidance": [{"name": "cfg"}]}
    read = load(f"sampler.schedule={levels}", sampler=sampler).sampler
    assert read == {**sampler, "schedule": {"name": "levels", "sigmas": [3, 1]}}
    read = load(f"sampler.guidance.0={levels}", sampler=sampler).sampler
    assert read["guidance"] == [{"name": "levels", "sigmas": [3, 1]}]
    whole = write(tmp_path / "whole.yaml", "solver: {name: euler}\n")
    assert load(f"sampler={whole}", sampler=sampler).sampler == {"solver": {"name": "euler"}}
    # An option of text stays text, and so does a file that is not there.
    read = load(f"sampler.schedule.name={levels}", sampler=sampler).sampler
    assert read["schedule"] == {"name": str(levels)}
    read = load("sampler.schedule=none.yaml", sampler=sampler).sampler
    assert read["schedule"] == {"name": "none.yaml"}


def test_a_file_names_no_other_file(tmp_path: Path) -> None:
    """What a downloaded configuration says reads nothing from the disk."""
    levels = write(tmp_path / "levels.yaml", "name: levels\n")
    spec = write(tmp_path / "a.yaml", f"model: m\nsampler: {{schedule: {levels}}}\n")
    assert load(spec=str(spec)).sampler["schedule"] == str(levels)


def test_unknown_presets_list_the_known(tmp_path: Path) -> None:
    name = config.preset_names("sampler")[0]
    with pytest.raises(UnknownNameError, match=f"did you mean '{name}'"):
        config.read_spec("sampler", name[:-1])
    with pytest.raises(UnknownNameError, match="no such file, and no sampler preset"):
        config.read_spec("sampler", str(tmp_path / "none.yaml"))
    with pytest.raises(UnknownNameError, match="there is no sampler preset 'nonsense'"):
        load("sampler=nonsense")


def test_yaml_round_trip(tmp_path: Path) -> None:
    settings = load("data.rate=1e-4", "out=a/b", "sizes=[3,4,5]", "data.fit=CROP", **HEUN)
    spec = write(tmp_path / "a.yaml", config.to_yaml(settings))
    assert config.load(Settings, spec, "sample") == settings


@pytest.mark.parametrize("kind", ["sample", "sampler", "train"])
def test_every_shipped_preset_is_read_and_opens_with_a_comment(kind: str) -> None:
    assert kind in config.preset_kinds()
    for name in config.preset_names(kind):
        assert config.read_preset(kind, name)
        text = config.preset_path(kind, name).read_text(encoding="utf-8")
        assert text.startswith("#"), f"{kind}/{name}.yaml should say what it is for"

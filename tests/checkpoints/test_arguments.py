"""Arguments of official constructors in files that anybody may have written."""

from pathlib import Path

import pytest

from genlab.checkpoints.arguments import read_arguments
from genlab.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [" + "[" * 5000, "nests deeper than 20|no readable"),
        ("a: " + "[" * 50 + "]" * 50, "nests deeper than 20"),
        ("a: &a [1]\nb: *a", "refers to other places"),
        ("a: 1\nb: *c", "no readable JSON or YAML"),
        ("a: " + "9" * 5000, "no readable JSON or YAML"),
        ("- 1\n- 2", "must hold a mapping"),
        ("\x00\x01", "no readable JSON or YAML"),
        ("a: !!python/object/apply:os.system [id]", "no readable JSON or YAML"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "arguments.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_arguments(file)
    assert str(caught.value).startswith(str(file))
    assert str(caught.value).isprintable()


def test_files_of_other_bytes(tmp_path: Path) -> None:
    file = tmp_path / "arguments.yaml"
    file.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match="no readable JSON or YAML"):
        read_arguments(file)
    with pytest.raises(ConfigError, match="there is no file"):
        read_arguments(tmp_path)


@pytest.mark.parametrize("setting", ["a=[", "a=" + "[" * 3000, "a=" + "9" * 5000, "a={b: *c}"])
def test_bad_settings(setting: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the settings") as caught:
        read_arguments(None, [setting])
    assert len(str(caught.value)) < 1000


def test_nothing_in_them_reads_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    file = tmp_path / "arguments.yaml"
    file.write_text("a: ${oc.env:SECRET}\n")
    assert "hush" not in str(read_arguments(file, ["b=${oc.env:SECRET}"]))


def test_underscores_between_digits_stay() -> None:
    assert read_arguments(None, ["G_attn=32_64", "n=10"]) == {"G_attn": "32_64", "n": 10}

"""``genlab presets``."""

import json

import pytest

from genlab import cli, config


def run(*args: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["presets", *args])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("args", [(), ("list",)])
def test_list(args: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(*args, capfd=capfd)
    assert code == 0
    for kind in config.preset_kinds():
        assert f"{kind} (" in out
        for name in config.preset_names(kind):
            assert f"\n  {name} " in out


def test_list_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run("list", "--json", capfd=capfd)
    found = {(entry["kind"], entry["name"]) for entry in json.loads(out)}
    assert ("sample", "demo") in found
    assert all(entry["about"] for entry in json.loads(out))


def test_show_gives_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    expected = config.preset_path("sample", "demo").read_text(encoding="utf-8")
    for form in ("sample/demo", "configs/sample/demo.yaml"):
        assert run("show", form, capfd=capfd) == (0, expected, "")


def test_unknown_preset(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("show", "sample/demmo", capfd=capfd)
    assert (code, out) == (2, "")
    assert "there is no preset 'sample/demmo'; did you mean 'demo'?" in err


def test_a_name_of_two_kinds(capfd: pytest.CaptureFixture[str]) -> None:
    shared = set(config.preset_names("sample")) & set(config.preset_names("train"))
    for name in shared:
        code, _, err = run("show", name, capfd=capfd)
        assert code == 2
        assert f"several presets are called '{name}'; say sample/{name} or train/{name}" in err

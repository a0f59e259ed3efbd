"""Text from files on the terminal: sentences, tables, warnings and facts, all of it printable."""

import json
import shutil
import warnings
from pathlib import Path

import click
import pytest

from genlab import cli
from genlab.cli.common import markdown_table, plain_warnings, print_table
from genlab.cli.errors import explain
from genlab.errors import CheckpointError

HOSTILE = "\x1b]0;pwned\x07\x1b[31mred\u202e"


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_facts_of_a_checkpoint(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["class_names"] = [HOSTILE, "a\nb", "x" * 2_000_000]
    (folder / "model_index.json").write_text(json.dumps(index))
    for options in ([], ["--json"]):
        assert cli.main(["doctor", str(folder), *options]) == 0
        out = capfd.readouterr().out
        assert is_harmless(out)
        assert len(out) < 5000
        assert r"\x1b]0;pwned" in out.replace("\\\\", "\\")
    assert cli.main(["sample", str(folder), "--classes", "no such", "--dry-run"]) == 2
    assert is_harmless(capfd.readouterr().err)


def test_tables_and_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    print_table(["name"], [[HOSTILE], ["x" * 100_000]])
    click.echo(markdown_table(["name"], [[HOSTILE], ["a\nb"]]))
    with plain_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"{HOSTILE}\n{'x' * 100_000}", stacklevel=1)
    captured = capfd.readouterr()
    assert is_harmless(captured.out)
    assert is_harmless(captured.err)
    assert len(captured.out + captured.err) < 10_000


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError(f"w.pt holds {HOSTILE}{'x' * 2_000_000}"),
        FileNotFoundError(2, "No such file", f"{HOSTILE}.pt"),
        click.UsageError(f"no such option {HOSTILE}"),
    ],
)
def test_sentences(error: Exception) -> None:
    sentence, code = explain(error)
    assert code == 2
    assert sentence.isprintable()
    assert len(sentence) < 2000


def test_memory_for_a_file_asks_for_no_smaller_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genlab.checkpoints.zoo import catalogue as zoo

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(zoo, "read_json_object", full)
    with pytest.raises(MemoryError) as caught:
        zoo.recorded_checksum(next(iter(zoo.entries().values())))
    sentence, _ = explain(caught.value)
    assert sentence.startswith("genlab: out of memory; use a smaller model")
    assert "batch" not in sentence

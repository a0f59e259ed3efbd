"""Records: written, read back, and refused in one sentence where something is wrong."""

import base64
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_records import PICTURE, make_record

from genlab.errors import EvaluationError
from genlab.eval.leaderboard.records import (
    Score,
    file_name,
    from_json,
    read_record,
    record_id,
    to_json,
    write_record,
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = make_record("edm", fd=(2.5, 2.4, 2.6), notes="Über 漢\nzwei", picture=PICTURE)
    path = write_record(tmp_path / "board", record)
    assert read_record(path) == record
    assert path.name == f"edm--quick--{record_id(record)}.json"


def test_a_file_is_for_people_and_for_git(tmp_path: Path) -> None:
    record = make_record("edm", fd=2.5, picture=PICTURE)
    text = write_record(tmp_path, record).read_text(encoding="utf-8")
    keys = list(json.loads(text))
    assert keys[:4] == ["schema", "model", "dataset", "scores"]
    assert keys[-1] == "picture"  # long, so behind all that people read
    assert list(json.loads(text)["protocol"]) == sorted(record.protocol)
    assert text.endswith("}\n")
    turned = replace(record, protocol=dict(reversed(list(record.protocol.items()))))
    assert write_record(tmp_path, turned).read_text(encoding="utf-8") == text


def test_the_same_record_twice_is_one_file_and_another_is_another(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("edm", fd=2))
    write_record(tmp_path, make_record("edm", fd=2.0))
    assert len(list(tmp_path.iterdir())) == 1
    write_record(tmp_path, make_record("edm", fd=2.0000001))
    assert len(list(tmp_path.iterdir())) == 2


def test_the_identity_does_not_hang_on_how_a_file_is_laid_out(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record("edm", fd=2.5))
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(plain.items()))))
    assert file_name(read_record(path)) == path.name


@pytest.mark.parametrize(
    ("model", "start"),
    [
        ("../../etc/passwd", "etc-passwd--"),
        ("x" * 500, "x" * 48 + "--"),
        ("漢字", "unnamed--"),
        ("A/B:C*?", "a-b-c--"),
    ],
)
def test_file_names_are_safe(model: str, start: str, tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record(model, fd=1.0))
    assert path.parent == tmp_path
    assert path.name.startswith(start)
    assert len(path.name) < 140
    assert read_record(path).model == model


def _changed(**changes: Any) -> dict[str, Any]:
    return to_json(make_record("edm", fd=2.5)) | changes


DEEP: dict[str, Any] = {}
for _ in range(100):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        ([], "must hold one JSON object, not a list"),
        (_changed(schema=2), "has schema 2 and this version reads 1"),
        (_changed(schema=True), "has schema True and this version reads 1"),
        (_changed(modle="x"), r"unknown key 'modle'; did you mean 'model'\?"),
        (_changed(model=3), "model must be printable text, got 3"),
        (_changed(model=""), "model must be printable text"),
        (_changed(model="a\x1b[2Jb"), r"model must be printable text, got 'a\\x1b\[2Jb'"),
        (_changed(dataset="\u202etxt"), "dataset must be printable text"),
        (_changed(scores={}), "at least one score"),
        (_changed(scores={"fd": 2.5}), "the score fd must be an object with a value, got 2.5"),
        (_changed(scores={"fd": {"value": "2"}}), "the score fd must be a number, got '2'"),
        (_changed(scores={"fd": {"value": True}}), "the score fd must be a number, got True"),
        (_changed(scores={"fd": {"value": 10**400}}), "the score fd must be a finite number"),
        (_changed(scores={"fd": {"value": 2, "men": 1}}), "unknown key 'men'"),
        (_changed(scores={"fd": {"value": 2, "low": 1}}), "got 1.0 and None"),
        (_changed(scores={"fd": {"value": 2, "low": 2.1, "high": 3}}), "must rise"),
        (_changed(scores={"fd": {"value": 2, "values": [2, 4]}}), "the mean of its values"),
        (_changed(scores={"fd": {"value": 2, "values": 2}}), "values must be a list"),
        (_changed(protocol=[]), "protocol must be an object, got a list"),
        (_changed(protocol={"name": "a\nb"}), "protocol.name must be printable text"),
        (_changed(protocol={"count": math.inf}), "protocol.count must be a finite number"),
        (_changed(sampling={"steps": ["\ud800"]}), "half of a character"),
        (_changed(sampling=DEEP), "nested too deeply"),
        (_changed(cost={"nfe": -1}), "cost.nfe must not be negative"),
        (_changed(cost={"nfe": "35"}), "cost.nfe must be a number"),
        (_changed(picture="???"), "picture is not base64 text"),
        (_changed(picture=base64.b64encode(b"GIF89a").decode()), "must be a PNG"),
        (_changed(created=None), "created must be text, got nothing"),
    ],
)
def test_what_is_wrong_is_said(plain: Any, sentence: str) -> None:
    with pytest.raises(EvaluationError, match=f"(?s)^theirs.json.*{sentence}"):
        from_json(plain, "theirs.json")


@pytest.mark.parametrize("key", ["model", "dataset", "scores", "protocol"])
def test_what_is_missing_is_said(key: str) -> None:
    plain = _changed()
    del plain[key]
    with pytest.raises(EvaluationError, match=f"has no '{key}'"):
        from_json(plain)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'{"schema": 1, "model": "e', "it was cut off or merged badly"),
        (b"<<<<<<< HEAD\n{}\n", "it was cut off or merged badly"),
        (b"\xff\xfe", "is not valid JSON"),
        (b'{"value": NaN}', "NaN is not a finite number"),
        (b'{"value": -Infinity}', "-Infinity is not a finite number"),
        (b'{"model": "a", "model": "b"}', "the key 'model' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"value": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"", "it was cut off or merged badly"),
    ],
)
def test_broken_files_are_named(text: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text)
    with pytest.raises(EvaluationError, match=r"broken\.json") as caught:
        read_record(path)
    assert sentence in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"cannot read .*none\.json: No such file"):
        read_record(tmp_path / "none.json")


def test_a_record_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    record = make_record("edm", fd=2.5)
    for bad in (
        replace(record, scores={"fd": Score(value=math.nan)}),
        replace(record, scores={"fd": Score(value=2.0, values=(1.0, 2.0))}),
        replace(record, sampling={"path": Path("x")}),
        replace(record, model="\t"),
    ):
        with pytest.raises(EvaluationError, match="the record of"):
            write_record(tmp_path, bad)
    assert not list(tmp_path.iterdir())


def test_two_processes_add_the_same_records_at_once(tmp_path: Path) -> None:
    code = "\n".join(
        [
            "import sys; from pathlib import Path; from small_records import make_record",
            "from genlab.eval.leaderboard.records import write_record",
            "for i in range(50): write_record(Path(sys.argv[1]), make_record(f'm{i}', fd=1.0 + i))",
        ]
    )
    helpers = Path(__file__).resolve().parents[1] / "helpers"
    command = [sys.executable, "-c", code, str(tmp_path / "board")]
    both = [subprocess.Popen(command, cwd=helpers) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    paths = sorted((tmp_path / "board").iterdir())
    assert len(paths) == 50  # no temporary file is left either
    assert {read_record(path).model for path in paths} == {f"m{i}" for i in range(50)}

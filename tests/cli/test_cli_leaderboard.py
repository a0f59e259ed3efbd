"""``genlab leaderboard``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_records import make_record

from genlab.cli import main
from genlab.eval.leaderboard.records import write_record


@pytest.fixture
def board(tmp_path: Path) -> Path:
    folder = tmp_path / "board"
    write_record(folder, make_record("fast", fd=(4.0, 3.9, 4.1), precision=0.5, nfe=9))
    write_record(folder, make_record("good", fd=(2.0, 1.9, 2.1), precision=0.8, nfe=35))
    write_record(folder, make_record("more", fd=1.0, count=5000, name=None))
    return folder


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["leaderboard", *map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_show(board: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, "show", "--dir", board)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["1", "good", "2.00", "±", "0.10", "0.8000", "35"] in lines
    assert ["2", "fast", "4.00", "±", "0.10", "0.5000", "9"] in lines
    assert "protocol 1, quick (" in out
    assert "  count   1: 2000   2: 5000" in out
    assert "DiT" not in out  # no record here is of ImageNet


def test_show_without_a_command_and_without_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Records of the bundled models are there before one's own; another folder is read alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for arguments in ((), ("show",), ("markdown",)):
        code, out, _ = run(capfd, *arguments)
        assert (code, "biggan-fmnist" in out) == (0, True)
    for name in ("show", "markdown"):
        code, out, _ = run(capfd, name, "--dir", "empty")
        assert (code, "biggan-fmnist" in out) == (0, False)
        assert "genlab eval edm-fmnist --protocol offline-2k" in out
    write_record(tmp_path / "leaderboard", make_record("mine", fd=1.0))
    out = run(capfd)[1]
    assert "mine" in out
    assert "biggan-fmnist" in out


def test_help_teaches(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "--help")
    assert code == 0
    for words in ("genlab leaderboard html -o", "ranked only against scores made alike", "git"):
        assert words in out


def test_choosing(board: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "show", "--dir", board, "--score", "precision")
    assert code == 0
    assert "fd" not in out
    assert out.index("good") < out.index("fast")
    code, out, _ = run(capfd, "show", "--dir", board, "--protocol", "custom")
    assert "more" in out
    assert "good" not in out
    code, out, _ = run(capfd, "show", "--dir", board, "--dataset", "imagenet-256", "--score", "is")
    assert (code, "DiT-XL/2" in out, "270.27" in out) == (0, True, True)
    code, out, err = run(capfd, "show", "--dir", board, "--dataset", "fmist")
    assert (code, out) == (2, "")
    assert "did you mean 'fmnist'" in err


def test_html_csv_and_markdown(
    board: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "deep" / "page.html"
    code, out, _ = run(capfd, "html", "--dir", board, "-o", page)
    assert code == 0
    assert f"wrote {page}: 3 records" in out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    code, out, _ = run(capfd, "csv", "--dir", board)
    assert code == 0
    assert len(out.splitlines()) == 1 + 5
    code, out, _ = run(capfd, "markdown", "--dir", board, "-o", "-", "--no-published")
    assert code == 0
    assert "| 1 | good | **2.00 ± 0.10** | **0.8000** | 35 |  |" in out


def test_add(board: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    theirs = tmp_path / "theirs"
    path = write_record(theirs, make_record("theirs", fd=3.0))
    target = tmp_path / "all"
    code, out, _ = run(capfd, "add", board, path, "--dir", target)
    assert code == 0
    assert out.splitlines()[-1] == f"{target}: 4 added"
    code, out, _ = run(capfd, "add", theirs, board, "--dir", target)
    assert (code, out) == (0, f"{target}: 0 added, 4 there already\n")
    assert {p.name for p in target.iterdir()} == {p.name for p in (*board.iterdir(), path)}


def test_adding_what_is_broken_adds_nothing(
    board: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (bad := tmp_path / "bad.json").write_text('{"schema": 1')
    (worse := tmp_path / "worse.json").write_text('{"schema": 9}')
    target = tmp_path / "all"
    code, out, err = run(capfd, "add", board, bad, worse, "--dir", target)
    assert (code, out) == (2, "")
    assert "bad.json is not valid JSON" in err.splitlines()[0]
    assert "worse.json has schema 9" in err.splitlines()[1]
    assert "2 files are no sound record" in err.splitlines()[1]
    assert not target.exists()
    code, out, err = run(capfd, "add", board, bad, "--dir", target, "--skip-broken")
    assert (code, out.splitlines()[-1]) == (0, f"{target}: 3 added")
    assert err.startswith("left out: ")
    code, _, err = run(capfd, "add", tmp_path / "none.json")
    assert (code, "none.json: No such file" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, err = run(capfd, "add", tmp_path / "empty")
    assert (code, "holds no record" in err) == (2, True)


@pytest.mark.parametrize("name", ["show", "html", "csv", "markdown"])
def test_a_broken_record_is_never_left_out_in_silence(
    board: Path, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (board / "broken.json").write_text("<<<<<<< HEAD")
    output = [] if name == "show" else ["-o", tmp_path / "out"]
    code, out, err = run(capfd, name, "--dir", board, *output)
    assert (code, out) == (2, "")
    assert "broken.json is not valid JSON" in err
    assert "--skip-broken" in err
    assert not (tmp_path / "out").exists()
    code, out, err = run(capfd, name, "--dir", board, "--skip-broken", *output)
    assert code == 0
    assert err.startswith("left out: ")


def test_a_folder_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "show", "--dir", tmp_path / "bord")
    assert code == 2
    assert "there is no folder" in err


def test_records_cannot_steer_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = make_record("[bold]x[/bold] :smile:", fd=1.0)
    path = write_record(tmp_path, record)
    plain = json.loads(path.read_text())
    plain["protocol"]["labels"] = "a\x1b[2Jb"
    path.write_text(json.dumps(plain))
    _, out, _ = run(capfd, "show", "--dir", tmp_path)
    assert "[bold]x[/bold] :smile:" in out
    assert "\x1b" not in out
    assert r"a\x1b[2Jb" in out


def test_no_command_imports_torch(board: Path, tmp_path: Path) -> None:
    page, more = str(tmp_path / "page.html"), str(tmp_path / "more")
    commands = [["show"], ["html", "-o", page], ["csv"], ["markdown"], ["add", str(board)]]
    calls = [
        ["leaderboard", *command, "--dir", more if command[0] == "add" else str(board)]
        for command in commands
    ]
    code = "\n".join(
        [
            "import sys",
            "from genlab.cli import main",
            f"codes = [main(call) for call in {calls!r}]",
            "print('torch' in sys.modules, set(codes))",
        ]
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False {0}", result.stderr


def test_two_commands_add_at_once(board: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "genlab", "leaderboard", "add", str(board), "--dir"]
    both = [
        subprocess.Popen([*command, str(tmp_path / "all")], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list((tmp_path / "all").iterdir())) == 3

"""Downloads against a local server: resumed, checked, and clear about what went wrong."""

import errno
import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from range_server import RangeServer, serving

from genlab.checkpoints.zoo.download import download
from genlab.errors import DownloadError, OutputError

BODY = bytes(range(256)) * 4000  # a megabyte
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving() as server:
        server.files["/net.pkl"] = BODY
        yield server


def fetch(server: RangeServer, path: Path, **options: Any) -> str:
    return download(f"{server.url}net.pkl", path, retry_seconds=0.01, **options)


def leftovers(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_whole_file(server: RangeServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = tmp_path / "deep" / "net.pkl"
    found = fetch(server, path, checksum=SHA.upper(), on_progress=lambda *a: seen.append(a))
    assert (found, path.read_bytes()) == (SHA, BODY)
    assert seen[-1] == (len(BODY), len(BODY))
    assert leftovers(path) == ["net.pkl"]
    assert fetch(server, path, checksum=SHA) == SHA  # there already: nothing is asked for
    assert len(server.requests) == 1


def test_goes_on_after_a_broken_connection(server: RangeServer, tmp_path: Path) -> None:
    server.cut_after = 300_000
    seen: list[int] = []
    fetch(server, tmp_path / "net.pkl", checksum=SHA, on_progress=lambda n, _: seen.append(n))
    assert server.requests == [("/net.pkl", None), ("/net.pkl", "bytes=300000-")]
    assert (tmp_path / "net.pkl").read_bytes() == BODY
    assert seen == sorted(seen)


def test_gives_up_and_keeps_what_came(server: RangeServer, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 100_000, 3
    with pytest.raises(DownloadError, match=r"ended after 300,000 of 1,024,000 bytes; 300,000 by"):
        fetch(server, tmp_path / "net.pkl")
    assert leftovers(tmp_path / "net.pkl") == ["net.pkl.part", "net.pkl.part.json"]
    assert fetch(server, tmp_path / "net.pkl", checksum=SHA) == SHA
    assert server.requests[-1] == ("/net.pkl", "bytes=300000-")


KILLED = """
import sys
from pathlib import Path
from genlab.checkpoints.zoo.download import download

def said(have, total):
    print(have, flush=True)

download(sys.argv[1], Path(sys.argv[2]), on_progress=said)
"""


def test_killed_half_way(server: RangeServer, tmp_path: Path) -> None:
    """A real process, killed without warning; the next one goes on from its bytes."""
    server.files["/net.pkl"] = body = BODY * 60  # more than the sockets in between hold
    path = tmp_path / "net.pkl"
    command = [sys.executable, "-c", KILLED, f"{server.url}net.pkl", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        part = (tmp_path / "net.pkl.part").stat().st_size
        process.kill()
    assert not path.exists()
    assert 0 < part < len(body)
    assert fetch(server, path) == hashlib.sha256(body).hexdigest()
    asked = server.requests[-1][1]
    assert asked is not None
    assert part <= int(asked.removeprefix("bytes=").rstrip("-")) < len(body)


def test_wrong_checksum_leaves_nothing(server: RangeServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"its SHA-256 is {SHA}, expected {'0' * 64}"):
        fetch(server, tmp_path / "net.pkl", checksum="0" * 64)
    assert leftovers(tmp_path / "net.pkl") == []


def test_file_that_changed_meanwhile(server: RangeServer, tmp_path: Path) -> None:
    """Half of the old version and half of the new one would be neither."""
    server.cut_after, server.cuts = 100_000, 3
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "net.pkl")
    server.etag, server.files["/net.pkl"] = '"two"', BODY[::-1]
    fetch(server, tmp_path / "net.pkl")
    assert (tmp_path / "net.pkl").read_bytes() == BODY[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_server_without_marks(etag: str | None, server: RangeServer, tmp_path: Path) -> None:
    server.etag, server.cut_after = etag, 100_000
    assert fetch(server, tmp_path / "net.pkl") == SHA
    assert server.requests == [("/net.pkl", None)] * 2


def test_server_without_ranges(server: RangeServer, tmp_path: Path) -> None:
    server.ranges, server.cut_after = False, 100_000
    assert fetch(server, tmp_path / "net.pkl") == SHA


@pytest.mark.parametrize("part", [BODY, BODY + b"x", BODY[:-1]], ids=["whole", "too long", "short"])
def test_part_of_a_run_that_was_killed(part: bytes, server: RangeServer, tmp_path: Path) -> None:
    """Killed between the last byte and the renaming; or what lies there is of something else."""
    (tmp_path / "net.pkl.part").write_bytes(part)
    metadata = {"url": f"{server.url}net.pkl", "validator": server.etag}
    (tmp_path / "net.pkl.part.json").write_text(json.dumps(metadata))
    assert fetch(server, tmp_path / "net.pkl", checksum=SHA) == SHA
    assert leftovers(tmp_path / "net.pkl") == ["net.pkl"]


def test_not_there(server: RangeServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/gone\.pkl: the server answers 404 Not Found; check"):
        download(f"{server.url}gone.pkl", tmp_path / "gone.pkl")
    assert len(server.requests) == 1  # asking again would not help
    assert leftovers(tmp_path / "gone.pkl") == []


def test_busy_server(server: RangeServer, tmp_path: Path) -> None:
    server.status, server.status_times = 503, 2
    assert fetch(server, tmp_path / "net.pkl") == SHA
    server.status_times = 3
    with pytest.raises(DownloadError, match="the server answers 503"):
        fetch(server, tmp_path / "other.pkl")


def test_offline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DownloadError, match=r"cannot be reached \(Connection refused\); check the"):
        download(f"http://127.0.0.1:{port}/net.pkl", tmp_path / "net.pkl", retry_seconds=0.01)


def test_silent_server(server: RangeServer, tmp_path: Path) -> None:
    server.pause = 1.0
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no data for 0\.1 seconds"):
        fetch(server, tmp_path / "net.pkl", stall_seconds=0.1)
    assert time.monotonic() - start < 10


def test_other_schemes(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for url in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x", "/etc/passwd"):
        with pytest.raises(DownloadError, match="only http and https addresses"):
            download(url, tmp_path / "copy")


def test_place_that_cannot_be_written(server: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        fetch(server, tmp_path / "file" / "net.pkl")


def test_full_disk(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind that would keep the disk full."""

    def full(have: int, total: int | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        fetch(server, tmp_path / "net.pkl", on_progress=full)
    assert leftovers(tmp_path / "net.pkl") == []

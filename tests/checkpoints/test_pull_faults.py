"""What `zoo pull` is told: headers, redirects, mirrors, records, the cache's place; and its end."""

import json
import os
import signal
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from network_pickles import official_weights, write_network
from range_server import RangeServer, serving

from genlab import cli
from genlab.checkpoints.zoo import catalogue as zoo
from genlab.checkpoints.zoo.download import _Redirects, check_address, download
from genlab.checkpoints.zoo.pull import pull
from genlab.errors import CheckpointError, ConfigError, DownloadError, OutputError
from genlab.saving import folder as folders
from genlab.saving import models

NAME = "edm-cifar10-32x32-cond-vp"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that sends these bytes to everybody; HERE in them is its address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer.replace(b"HERE", address.encode()))

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{address}/w.pkl"
        finally:
            server.shutdown()
            thread.join()


def moved(place: str) -> bytes:
    return f"HTTP/1.0 302 Found\r\nLocation: {place}\r\n\r\n".encode("latin-1")


def sized(length: str) -> bytes:
    return f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\nabc".encode("latin-1")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (sized("9" * 30), "announces a size of 9{30} bytes"),
        (sized("9" * 5000), "announces a size|cannot be read|connection broke"),
        (sized("-3"), "announces a size of -3 bytes"),
        (sized("three"), "announces a size of three bytes"),
        (sized("\xb3"), "announces a size of"),
        (sized("4"), "the connection ended after 3 of 4 bytes|connection broke"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "connection broke"),
        (b"\x00\xff\x1b[31m\r\n\r\n", "connection broke"),
        (b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "connection broke"),
        (b"HTTP/1.0 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", "connection broke"),
        (b"HTTP/1.0 403 \x1b[31mNo\r\n\r\n", r"answers 403"),
        (b"HTTP/1.0 302 Found\r\n\r\n", "answers 302"),
        (moved("HERE/w.pkl"), "answers 302 .*redirect"),
        (moved("file:///etc/passwd"), "answers 302|leads elsewhere"),
        (moved("ftp://127.0.0.1/x"), "leads elsewhere: .*only http and https"),
        (moved("http://[::1/x"), "cannot be read|is no address"),
        (moved("http://127.0.0.1:99999999/x"), "leads elsewhere: .*is no address"),
        (moved("http://user:word@127.0.0.1/x"), "leads elsewhere: .*no plain address"),
        (moved(f"http://{'a' * 70}.org/x"), "leads elsewhere: .*is no address"),
        (moved("http:///x"), "answers 302 .*redirect"),  # urllib keeps the server
    ],
)
def test_answers_that_make_no_sense(answer: bytes, message: str, tmp_path: Path) -> None:
    with answering(answer) as url, pytest.raises(DownloadError, match=message) as caught:
        download(url, tmp_path / "w.pkl", retry_seconds=0.01)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "w.pkl").exists()


def test_redirects_keep_their_protection() -> None:
    request = urllib.request.Request("https://example.org/w.pkl")
    with pytest.raises(DownloadError, match="leads to an unprotected address, http://mirror"):
        _Redirects().redirect_request(
            request, None, 302, "Found", Message(), "http://mirror.example.org/w.pkl"
        )


@pytest.mark.parametrize(
    "base_url",
    [
        *("", "mirror", "ftp://127.0.0.1/", "file:///etc", "https://", "https:///x", "http://["),
        *("http://h:port/", "http://h:99999999/", "http://h:0/", "http://user:word@h/"),
        *("http://h/a b", "http://h/\x1b[31m", "http://hö/", f"http://{'a' * 70}/"),
        *("http://127.0.0.1/?token=1", "http://127.0.0.1/#part"),
    ],
)
def test_base_urls(base_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zoo", "pull", NAME, "--base-url", base_url]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("genlab: ")
    assert last.isprintable()
    assert "Traceback" not in last


def test_plain_addresses_pass() -> None:
    for url in ("https://example.org", "http://127.0.0.1:80/a/b.pkl", "https://h.org/a?b=c%20d"):
        check_address(url)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "zoo").mkdir(parents=True)
    return tmp_path / "home"


@pytest.mark.parametrize("value", [5, None, "abc", "\x1b[31m", ["a" * 64], {"a": 1}, "g" * 64])
def test_records_of_checksums(value: Any, home: Path) -> None:
    """Passed over, the next download would be trusted whatever it is."""
    entry = zoo.find(NAME)
    (home / "zoo" / "checksums.json").write_text(json.dumps({entry.url: value}))
    with pytest.raises(CheckpointError, match=r"checksums\.json records .* no SHA-256; remove"):
        zoo.recorded_checksum(entry)


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "~no-such-user-here/x", "x" * 5000, "/etc/passwd/x"]
)
def test_home(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_HOME", place)
    with pytest.raises((ConfigError, OutputError), match=r"GENLAB_HOME|cannot write"):
        pull(NAME, base_url="http://127.0.0.1:9/")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    kwargs, weights = official_weights("EDMPrecond", img_resolution=32, label_dim=10)
    data = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, kwargs).read_bytes()
    with serving() as server:
        server.files[f"/{NAME}.pkl"] = data
        yield server


def everything(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if "network" not in path.parts}


WHOLE = {
    *("downloads", f"downloads/{NAME}.pkl.lock", "zoo", "zoo/checksums.json", f"zoo/{NAME}"),
    *(f"zoo/{NAME}/model_index.json", f"zoo/{NAME}/README.md"),
}


def test_sigterm_leaves_nothing_half_written(
    server: RangeServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = models.write_model

    def killed(*args: Any) -> None:
        write(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_model", killed)
        assert cli.main(["zoo", "pull", NAME, "--base-url", server.url]) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    left = everything(home)
    assert left == WHOLE - {name for name in WHOLE if f"zoo/{NAME}" in name} | {
        f"downloads/{NAME}.pkl"  # whole, so that the next pull need not fetch it
    }
    assert cli.main(["zoo", "pull", NAME, "--base-url", server.url]) == 0
    assert everything(home) == WHOLE
    assert len(server.requests) == 1


def test_a_rerun_removes_what_sigkill_left(server: RangeServer, home: Path) -> None:
    half = home / "zoo" / f".{NAME}.ab12_x9z"
    (half / "new" / "network").mkdir(parents=True)
    (half / "new" / "network" / "config.json").write_text("{}")
    (home / "zoo" / ".checksums.json.abcdefgh.tmp").write_text("{")
    (home / "downloads").mkdir()
    (home / "downloads" / f"{NAME}.pkl.config.json").write_text("{")
    others = home / "zoo" / f".{NAME}.my_notes"
    others.mkdir()
    (others / "notes.txt").write_text("mine")
    pull(NAME, base_url=server.url)
    assert everything(home) == WHOLE | {f"zoo/{others.name}", f"zoo/{others.name}/notes.txt"}
    # Killed once the model stood there, before the download was removed.
    (home / "downloads" / f"{NAME}.pkl").write_bytes(b"whole")
    assert pull(NAME, base_url=server.url).sha256 is None
    assert not (home / "downloads" / f"{NAME}.pkl").exists()

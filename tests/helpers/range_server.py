"""A file server on 127.0.0.1 that knows ranges, and misbehaves where a test asks for it."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class RangeServer(ThreadingHTTPServer):
    """Serves ``files`` and records what it was asked for.

    Attributes:
        files: path -> content.
        requests: ``(path, Range header)`` of every request.
        cut_after: break the connection after so many bytes of a body; None lets it through.
        cuts: how often to do that.
        status: answer this instead of the file, ``status_times`` times.
        ranges: whether ranges are honoured.
        etag: the mark of the present version.
        pause: seconds to wait before the body.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None
        self.cuts = 1
        self.status: int | None = None
        self.status_times = 1
        self.ranges = True
        self.etag: str | None = '"one"'
        self.pause = 0.0

    def handle_error(self, *args: Any) -> None:
        """Clients that went away are what the tests are about."""

    @property
    def url(self) -> str:
        """Of the root, with a slash."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if server.status is not None and server.status_times > 0:
            server.status_times -= 1
            self.send_error(server.status)
            return
        body = server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = self._start(wanted)
        if start is not None and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body) - (start or 0)))
        self.end_headers()
        time.sleep(server.pause)
        self._send(body[start or 0 :])

    def _start(self, wanted: str | None) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        fresh = self.headers.get("If-Range") in (None, self.server.etag)
        return int(match[1]) if match and self.server.ranges and fresh else None

    def _send(self, body: bytes) -> None:
        server = self.server
        if server.cut_after is None or server.cuts <= 0:
            self.wfile.write(body)
            return
        server.cuts -= 1
        self.wfile.write(body[: server.cut_after])
        self.wfile.flush()
        self.close_connection = True


@contextmanager
def serving() -> Iterator[RangeServer]:
    """A server for as long as the block lasts."""
    with RangeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

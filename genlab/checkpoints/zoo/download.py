"""Download one large file over HTTP: resumable, checked, under its own name only once whole."""

import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import genlab
from genlab.errors import DownloadError, OutputError, printable, reason
from genlab.files import CHUNK, sha256

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes that are there and, where the server says so, how many there will be."""

ATTEMPTS = 3
STALL_SECONDS = 60.0
"""Give up when fewer than `STALL_BYTES` arrive in this time, as well as when nothing does."""
STALL_BYTES = 64 << 10


_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
"""Numbers in headers: more digits than these are no size of a file."""


class _RetryError(Exception):
    """The connection failed in a way that may pass; what has arrived stays."""


@dataclass(frozen=True)
class _Part:
    """A partial download, with the validator that tells whether the server's file has changed."""

    data: Path
    metadata: Path

    @classmethod
    def of(cls, path: Path) -> "_Part":
        return cls(path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json"))

    def size(self) -> int:
        return self.data.stat().st_size if self.data.is_file() else 0

    def validator(self, url: str) -> str | None:
        """The server's mark (ETag or date) of what is here; None: it cannot be resumed."""
        try:
            metadata = json.loads(self.metadata.read_text())
            return str(metadata["validator"]) if metadata["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def drop(self) -> None:
        self.data.unlink(missing_ok=True)
        self.metadata.unlink(missing_ok=True)


def download(
    url: str,
    path: Path,
    *,
    checksum: str | None = None,
    on_progress: OnProgress | None = None,
    stall_seconds: float = STALL_SECONDS,
    retry_seconds: float = 2.0,
) -> str:
    """Fetch a file; a run that was interrupted goes on where it stopped.

    The bytes lie in ``<path>.part`` until all of them are there and right. They stay for the next
    run when the connection fails, and go when they turn out wrong or the disk is full.

    Args:
        url: where the file is; http and https only.
        path: where it shall be.
        checksum: the expected SHA-256, where it is known.
        on_progress: called as bytes arrive.
        stall_seconds: the longest wait for data.
        retry_seconds: pause before the second attempt; it doubles before the third, the last.

    Returns:
        The SHA-256 of the file.

    Raises:
        DownloadError: the server is not reached, has no such file, is too slow or stops early, or
            the file is not the expected one.
        OutputError: it cannot be written.
    """
    check_address(url)
    part = _Part.of(path)
    with _writing(part, path):
        if path.is_file():  # whole, since only whole files get this name
            digest = sha256(path)
            if checksum is None or digest == checksum.lower():
                return digest
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch_with_retries(url, part, on_progress, stall_seconds, retry_seconds)
        digest = sha256(part.data)
        if checksum is not None and digest != checksum.lower():
            part.drop()
            raise DownloadError(
                f"what {url} sent is not the expected file: its SHA-256 is {digest}, expected "
                f"{checksum}; it was removed, try again or look for a changed publication"
            )
        part.data.replace(path)
        part.drop()
    return digest


def check_address(url: str) -> None:
    """Refuse what is no address of the web, before anything is asked for.

    Raises:
        DownloadError: says what is wrong with it.
    """
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
        host = (parts.hostname or "").encode("idna")
    except ValueError as error:  # of brackets, ports and hosts; UnicodeError is one
        raise DownloadError(f"{url} is no address ({reason(error)}); check it") from error
    if parts.scheme not in ("http", "https"):
        raise DownloadError(
            f"cannot fetch {url}: only http and https addresses are supported, for instance "
            "https://example.org/models"
        )
    if not host or not port_is_right or parts.username is not None or not _is_plain(url):
        raise DownloadError(
            f"{url} is no plain address: give the server's name, without user names, spaces and "
            "letters beyond ASCII"
        )


def _is_plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and " " not in url


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to addresses of the same protection only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """See `urllib.request.HTTPRedirectHandler.redirect_request`.

        Raises:
            DownloadError: the server leads to something else than a protected address of the web.
        """
        try:
            check_address(newurl)
        except DownloadError as error:
            raise DownloadError(f"{req.full_url} leads elsewhere: {error}") from error
        if urlsplit(req.full_url).scheme == "https" != urlsplit(newurl).scheme:
            raise DownloadError(f"{req.full_url} leads to an unprotected address, {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any
    ) -> Any:
        """Follow a redirect; errors leave no connection open."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except urllib.error.HTTPError:
            raise  # it holds the answer, and is closed where it is read
        except Exception:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@contextmanager
def _writing(part: _Part, path: Path) -> Iterator[None]:
    try:
        yield
    except (DownloadError, OutputError):
        raise
    except OSError as error:
        if error.errno == ENOSPC:
            with suppress(OSError):
                part.drop()
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _fetch_with_retries(
    url: str, part: _Part, on_progress: OnProgress | None, stall: float, pause: float
) -> None:
    for attempt in range(ATTEMPTS):
        try:
            _fetch(url, part, on_progress, stall)
            return
        except _RetryError as error:
            if attempt == ATTEMPTS - 1:
                kept = f"; {part.size():,} bytes are kept, the same command goes on from there"
                offline = "; check the connection, or give a mirror with --base-url"
                raise DownloadError(
                    f"cannot fetch {url}: {error}{kept if part.size() else offline}"
                ) from error
            time.sleep(pause * 2**attempt)


def _fetch(url: str, part: _Part, on_progress: OnProgress | None, stall: float) -> None:
    """One attempt, from where the last one stopped."""
    have, validator = part.size(), part.validator(url)
    if have and validator is None:
        part.drop()
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": f"genlab/{genlab.__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", str(validator))
    with _connection(request, part, stall) as response:
        if response is None:
            return
        resumed = response.status == 206
        if not resumed:
            part.drop()
            have = 0
        elif _range_start(response) != have:
            part.drop()
            raise _RetryError("the server sent another part of the file than asked for")
        _remember(response, url, part)
        length = response.headers.get("Content-Length")
        if length and not _WHOLE.fullmatch(length):
            raise DownloadError(
                f"{url} announces a size of {printable(length, 40)} bytes, which no file has; give "
                "another address with --base-url"
            )
        total = have + int(length) if length else None
        with part.data.open("ab") as file:
            _copy(response, file, have, total, on_progress, stall)


@contextmanager
def _connection(request: Any, part: _Part, stall: float) -> Iterator[Any]:
    """The open response, or None when all bytes are here already; failures become our errors."""
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(request, timeout=stall) as response:
            yield response
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{part.size()}":
                yield None
                return
        if error.code == 416:
            part.drop()
            raise _RetryError("what is here does not fit the server's file") from error
        if error.code in (408, 429) or error.code >= 500:
            raise _RetryError(f"the server answers {error.code} {_reply(error)}") from error
        raise DownloadError(
            f"cannot fetch {request.full_url}: the server answers {error.code} {_reply(error)}; "
            "check the address, or give another one with --base-url"
        ) from error
    except TimeoutError as error:
        raise _RetryError(f"no data for {stall:g} seconds") from error
    except urllib.error.URLError as error:
        why = getattr(error.reason, "strerror", None) or error.reason
        raise _RetryError(f"the server cannot be reached ({why})") from error
    except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
        raise _RetryError(f"the connection broke ({reason(error)})") from error
    except ValueError as error:  # urllib's, for answers that make no sense to it
        raise DownloadError(
            f"cannot fetch {request.full_url}: the server's answer cannot be read "
            f"({reason(error)}); give another address with --base-url"
        ) from error


def _reply(error: urllib.error.HTTPError) -> str:
    """The server's text beside its status code, shortened."""
    return printable(" ".join(str(error.reason).split()), 100)


def _range_start(response: Any) -> int:
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if _WHOLE.fullmatch(start) else -1


def _remember(response: Any, url: str, part: _Part) -> None:
    """Store the server's validator of this file version; weak ones do not work for ranges."""
    etag = response.headers.get("ETag")
    mark = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    if mark:
        part.metadata.write_text(json.dumps({"url": url, "validator": mark}))


def _copy(
    response: Any,
    file: IO[bytes],
    have: int,
    total: int | None,
    on_progress: OnProgress | None,
    stall: float,
) -> None:
    started, at_start = time.monotonic(), have
    while block := response.read1(CHUNK):
        file.write(block)
        have += len(block)
        if on_progress is not None:
            on_progress(have, total)
        if (now := time.monotonic()) - started > stall:
            if have - at_start < STALL_BYTES and have != total:
                raise _RetryError(f"only {have - at_start:,} bytes came in {stall:g} seconds")
            started, at_start = now, have
    if total is not None and have < total:
        raise _RetryError(f"the connection ended after {have:,} of {total:,} bytes")

"""Debian's chromium for tests, driven over the WebDriver protocol with the standard library."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PROGRAMS = ("chromium", "chromedriver")


def missing() -> str:
    """Why there is no browser here; empty if there is one."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    install = "apt-get install -y --no-install-recommends chromium chromium-driver"
    return f"no {' and no '.join(absent)} here: {install}" if absent else ""


class Browser:
    """One tab."""

    def __init__(self, port: int, profile: Path) -> None:
        self._port = port
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={profile}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        body = {"capabilities": {"alwaysMatch": wanted}}
        self._session = f"/session/{self._ask('POST', '/session', body)['sessionId']}"

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request(method, path, None if body is None else json.dumps(body))
        value = json.loads(connection.getresponse().read())["value"]
        connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{value['error']}: {value['message']}")
        return value

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        body = {"cmd": name, "params": parameters}
        return self._ask("POST", f"{self._session}/goog/cdp/execute", body)

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file, in a window of this size in CSS pixels."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", features=scheme)
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2, mobile=width < 600,
        )  # fmt: skip
        self._ask("POST", f"{self._session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """Run JavaScript in the page; its ``return`` comes back."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def press(self, keys: str) -> None:
        """Press keys in the element that has the focus."""
        (element,) = self._ask("GET", f"{self._session}/element/active").values()
        self._ask("POST", f"{self._session}/element/{element}/value", {"text": keys})

    def log(self) -> list[str]:
        """What the console said since the last call: errors, warnings and all else."""
        entries = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def screenshot(self, path: Path) -> None:
        """Take a picture of the whole page."""
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def quit(self) -> None:
        """Close the tab and the browser."""
        self._ask("DELETE", self._session)


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in this folder, gone afterwards."""
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        assert driver.stdout is not None
        try:
            heard = (re.search(rb"successfully on port (\d+)", line) for line in driver.stdout)
            browser = Browser(next(int(match[1]) for match in heard if match), profile)
            try:
                yield browser
            finally:
                browser.quit()
        finally:
            driver.terminate()

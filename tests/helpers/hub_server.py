"""A hub on 127.0.0.1: the routes of the Hugging Face hub that its library asks, and its bad days.

Repositories are commits, each a mapping from path to bytes. Weights go through LFS, as there.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repository:
    """One repository.

    Attributes:
        commits: commit -> its files.
        branches: branch or tag -> commit.
        private: whether reading takes the server's token.
        gated: whether it asks for consent.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit the newest of a branch."""
        text = json.dumps([len(self.commits), sorted(files)]).encode()
        name = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch, tag or commit."""
        return self.commits[self.branches.get(revision, revision)]


class HubServer(ThreadingHTTPServer):
    """Serves repositories and records what it was asked for.

    Attributes:
        repositories: ``owner/name`` -> repository.
        requests: method and path of every request.
        token: what writing, and reading what is private, takes.
        status: answer this to every request instead.
        cut: path of a file whose body breaks off half way.
        lie: what listings say of a path in place of the truth: ``{"size": 3}``.
        blobs: what was uploaded, by SHA-256.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.token = "hf_" + "t" * 34
        self.status: int | None = None
        self.cut: str | None = None
        self.lie: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}

    def handle_error(self, *args: Any) -> None:
        """Clients that went away are part of the tests."""

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit in a repository, which is made where it is not there."""
        return self.repositories.setdefault(name, Repository()).commit(files, branch)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        server = self.server
        path = unquote(urlsplit(self.path).path)
        server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if server.status is not None:
            self._answer({"error": "a bad day"}, server.status)
            return
        for pattern, action in _ROUTES.items():
            if match := re.fullmatch(pattern, path):
                action(self, body, *match.groups())
                return
        self._answer({"error": f"no route {path}"}, 404)

    def _chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self._may()):
            self._answer({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if found.gated and not self._may():
            self._answer({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
            return None
        return found

    def _commit_of(self, name: str, revision: str) -> str | None:
        repository = self._repository(name)
        if repository is None:
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._answer({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _entries(self, name: str, commit: str) -> list[dict[str, Any]]:
        entries = []
        for path, content in self.server.repositories[name].commits[commit].items():
            lfs = _is_lfs(path)
            told: dict[str, Any] = {"size": len(content), "sha256": _sha256(content)}
            told |= self.server.lie.get(path, {})
            entry = {"path": path, "size": told["size"], "oid": _git_oid(content)}
            if lfs:
                entry["lfs"] = {
                    "oid": told["sha256"], "sha256": told["sha256"], "size": told["size"],
                    "pointerSize": 130,
                }  # fmt: skip
            entries.append(entry)
        return entries

    def info(self, body: bytes, name: str, revision: str | None) -> None:
        commit = self._commit_of(name, revision or "main")
        if commit is not None:
            siblings = [
                {"rfilename": entry.pop("path"), "blobId": entry.pop("oid"), **entry}
                for entry in self._entries(name, commit)
            ]
            sha = self.server.lie.get("commit", {}).get("sha", commit)
            self._answer({"id": name, "sha": sha, "siblings": siblings, "private": False})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        commit = self._commit_of(name, revision)
        if commit is not None:
            entries = self._entries(name, commit)
            self._answer([{"type": "file", **entry} for entry in entries])

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        commit = self._commit_of(name, revision)
        if commit is None:
            return
        content = self.server.repositories[name].commits[commit].get(path)
        if content is None:
            self._answer({"error": "no file"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        etag = _sha256(content) if _is_lfs(path) else _git_oid(content)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(content)))
        if path == self.server.cut:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if path == self.server.cut:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(content)

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self._may():
            self._answer({"error": "log in"}, 401)
        elif name in self.server.repositories:
            self._answer({"error": "You already created this model repo", "url": name}, 409)
        else:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.server.repositories[name] = Repository(private=private)
            self.server.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
            self._answer({"url": f"{self.server.url}/{name}", "id": name})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if not self._may():
            self._answer({"error": "log in"}, 403)
        elif branch in repository.branches:
            self._answer({"error": "Reference already exists"}, 409)
        else:
            start = json.loads(body or b"{}").get("startingPoint", "main")
            repository.branches[branch] = repository.branches[start]
            self._answer({})

    def check_card(self, body: bytes) -> None:
        self._answer({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if self._repository(name) is None:
            return
        if not self._may():
            self._answer({"error": "you may not write here"}, 403)
            return
        paths = [file["path"] for file in json.loads(body)["files"]]
        files = [
            {"path": path, "uploadMode": "lfs" if _is_lfs(path) else "regular",
             "shouldIgnore": False}
            for path in paths
        ]  # fmt: skip
        self._answer({"files": files, "commitOid": "0" * 40})

    def batch(self, body: bytes, name: str) -> None:
        objects = [
            {"oid": each["oid"], "size": each["size"], "actions": {"upload": {
                "href": f"{self.server.url}/blobs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]  # fmt: skip
        self._answer({"transfer": "basic", "objects": objects})

    def blob(self, body: bytes, oid: str) -> None:
        assert _sha256(body) == oid
        self.server.blobs[oid] = body
        self._answer({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        files = dict(repository.files(revision))
        for line in body.splitlines():
            each = json.loads(line)
            value = each["value"]
            if each["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif each["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files, revision)
        self._answer(
            {"success": True, "commitOid": commit,
             "commitUrl": f"{self.server.url}/{name}/commit/{commit}"}
        )  # fmt: skip


_NAME = r"([^/]+/[^/]+)"
_ROUTES: dict[str, Any] = {
    rf"/api/models/{_NAME}(?:/revision/(.+))?": _Handler.info,
    rf"/api/models/{_NAME}/tree/([^/]+)": _Handler.tree,
    rf"/api/models/{_NAME}/preupload/(.+)": _Handler.preupload,
    rf"/api/models/{_NAME}/commit/(.+)": _Handler.commit,
    rf"/api/models/{_NAME}/branch/(.+)": _Handler.branch,
    r"/api/repos/create": _Handler.create,
    r"/api/validate-yaml": _Handler.check_card,
    rf"/{_NAME}\.git/info/lfs/objects/batch": _Handler.batch,
    r"/blobs/([0-9a-f]{64})": _Handler.blob,
    rf"/{_NAME}/resolve/([^/]+)/(.+)": _Handler.resolve,
}


def _is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_oid(content: bytes) -> str:
    head = f"blob {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


@contextmanager
def hub() -> Iterator[HubServer]:
    """A hub for as long as the block lasts."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment(server: HubServer, *, token: bool = True) -> dict[str, str]:
    """What a process needs in its environment to use this hub and no other."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": server.token if token else "",
    }


def use(server: HubServer, monkeypatch: pytest.MonkeyPatch, *, token: bool = True) -> None:
    """Have this process use this hub: its library has read the environment already."""
    from huggingface_hub import constants

    for key, value in environment(server, token=token).items():
        monkeypatch.setenv(key, value)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

"""A small server that speaks the parts of the Hugging Face hub's API that saefast uses."""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_token_that_may_write"

Files = dict[str, bytes]


@dataclass
class Repository:
    """Branches of a repository, each a list of commits, the newest last."""

    branches: dict[str, list[Files]] = field(default_factory=lambda: {"main": [{}]})
    gated: bool = False

    def at(self, revision: str) -> tuple[str, Files] | None:
        """Return the commit of a branch or of a hash."""
        commits = [files for history in self.branches.values() for files in history]
        by_hash = {commit_hash(files): files for files in commits}
        if revision in self.branches:
            files = self.branches[revision][-1]
            return commit_hash(files), files
        return (revision, by_hash[revision]) if revision in by_hash else None


def commit_hash(files: Files) -> str:
    found = [[name, hashlib.sha1(content).hexdigest()] for name, content in sorted(files.items())]
    return hashlib.sha1(json.dumps(found).encode()).hexdigest()


@dataclass
class Hub:
    """Repositories by name, and the requests so far."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """method and path of every request"""
    failing: int | None = None
    """status of every answer, if set"""
    endpoint: str = ""

    def add(self, repository: str, folder: Path, place: str = "", branch: str = "main") -> None:
        """Commit the files of a folder."""
        held = self.repositories.setdefault(repository, Repository())
        history = held.branches.setdefault(branch, [{}])
        prefix = f"{place}/" if place else ""
        new = {
            prefix + path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        history.append(history[-1] | new)

    def files(self, repository: str, branch: str = "main") -> Files:
        return self.repositories[repository].branches[branch][-1]


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""
    hub = Hub()

    class Handler(_Handler):
        served = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def register_releases(folder: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a package sae_lens in a folder that holds a registry, and fails if it is imported."""
    package = folder / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "pretrained_saes.yaml").write_text(registry)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "sae_lens", raising=False)


class _Answer(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        if message:
            self.headers["X-Error-Message"] = message


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.served.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.served.failing is not None:
                raise _Answer(self.served.failing)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token and token != TOKEN:
                raise _Answer(401, message="Invalid credentials in Authorization header")
            status, headers, content = self._answer(path, body)
        except _Answer as answer:
            status, headers, content = answer.status, answer.headers, b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", headers.get("Content-Length", str(len(content))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = _handle

    def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/(.*))?)?", path)
        if found is not None:
            name, action, rest = found[1], found[2] or "revision", found[3] or "main"
            return self._model(name, action, rest, body)
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found is None:
            raise _Answer(404)
        commit, files = self._commit(found[1], found[2])
        if found[3] not in files:
            raise _Answer(404, "EntryNotFound")
        content = files[found[3]]
        etag = hashlib.sha1(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content

    def _repository(self, name: str) -> Repository:
        if name not in self.served.repositories:
            raise _Answer(401, "RepoNotFound", "Invalid username or password.")
        found = self.served.repositories[name]
        if found.gated:
            raise _Answer(403, "GatedRepo")
        return found

    def _commit(self, name: str, revision: str) -> tuple[str, Files]:
        found = self._repository(name).at(revision)
        if found is None:
            raise _Answer(404, "RevisionNotFound")
        return found

    def _create(self, found: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self._must_write()
        name = f"{found['organization']}/{found['name']}"
        status = 409 if name in self.served.repositories else 200
        self.served.repositories.setdefault(name, Repository())
        return status, *_json({"url": f"{self.served.endpoint}/{name}"})[1:]

    def _must_write(self) -> None:
        if not self.headers.get("Authorization"):
            raise _Answer(401, message="Invalid username or password.")

    def _model(
        self, name: str, action: str, rest: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if action == "revision":
            commit, files = self._commit(name, rest)
            siblings = [{"rfilename": path} for path in files]
            return _json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})
        if action == "refs":
            refs = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": commit_hash(history[-1])}
                for b, history in self._repository(name).branches.items()
            ]
            return _json({"branches": refs, "converts": [], "tags": []})
        if action == "tree":
            _, files = self._commit(name, rest.split("/")[0])
            listed = [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in files.items()
            ]
            return _json(listed)
        self._must_write()
        branches = self._repository(name).branches
        if action == "branch":
            if rest in branches:
                raise _Answer(409)
            branches[rest] = list(branches["main"])
            return _json({})
        if action == "preupload":
            asked = json.loads(body)["files"]
            ways = [{"path": each["path"], "uploadMode": "regular"} for each in asked]
            return _json({"files": [way | {"shouldIgnore": False, "oid": None} for way in ways]})
        assert action == "commit", action
        files = dict(branches[rest][-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        branches[rest].append(files)
        commit = commit_hash(files)
        url = f"{self.served.endpoint}/{name}/commit/{commit}"
        return _json({"success": True, "commitOid": commit, "commitUrl": url})


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

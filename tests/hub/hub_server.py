"""A small Hugging Face Hub on 127.0.0.1, for huggingface_hub itself: no test replaces the client.

It keeps repositories in memory and answers what the client asks when it loads and pushes a model:
repository, revisions, files (large ones through a redirect to another host name, as the real hub
does), creation of repositories and branches, validation of cards, Git LFS, and commits. It speaks
no Xet, which large files on the real hub use: the fixture switches that protocol off.

https://huggingface.co/docs/hub/api has the endpoints; the client's source has what it reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writer0123456789abcdefghijklmn", "hf_reader0123456789abcdefghijklmn"
"""Tokens with write and with read access; no other is accepted."""


@dataclass
class Repository:
    """A model's repository: its branches and tags, and the files of every commit."""

    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        parent = self.refs.get(branch, "")
        content = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())]
        sha = hashlib.sha1(f"{parent} {content}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha


@dataclass
class Hub:
    """The server's state, and the switches of its failures."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and token of every request."""
    status: int | None = None
    """Every request is answered with it."""
    delay_s: float = 0.0
    """Before each answer."""
    cut: int = 0
    """So many downloads of large files break off in the middle."""
    damaged: bool = False
    """Large files arrive with one byte changed."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, repository: str, files: dict[str, bytes], **settings: Any) -> str:
        """A new repository, or a commit to main of one."""
        known = self.repositories.setdefault(repository, Repository(**settings))
        return known.commit("main", files)


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def blob_id(data: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        hub = self.state
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorisation = self.headers.get("Authorization")
        self.token = authorisation.removeprefix("Bearer ") if authorisation else None
        hub.requests.append((self.command, path, self.token))
        time.sleep(hub.delay_s)
        try:
            if hub.status is not None:
                raise _RefusedError(hub.status)
            if self.token not in (None, WRITER, READER):
                raise _RefusedError(401, message="Invalid credentials in Authorization header")
            for method, pattern, handle in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    handle(self, **match.groupdict())
                    return
            raise _RefusedError(404)
        except _RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send(refused.status, b"", {key: text for key, text in headers.items() if text})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": f"{len(content)}", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _repository(self, name: str, *, writing: bool = False) -> Repository:
        found = self.state.repositories.get(name)
        if found is None or (found.private and self.token is None):
            raise _RefusedError(401 if self.token is None else 404, "RepoNotFound")
        if writing and self.token != WRITER:
            raise _RefusedError(403 if self.token else 401, message="You need write access")
        return found

    def _commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise _RefusedError(404, "RevisionNotFound")
        return sha

    def _info(self, name: str, revision: str | None = None) -> None:
        repository = self._repository(name)
        sha = self._commit_of(repository, revision or "main")
        files = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        about = {"id": name, "sha": sha, "private": repository.private, "siblings": files}
        self._json({**about, "tags": [], "downloads": 0, "likes": 0})

    def _refs(self, name: str) -> None:
        refs = self._repository(name).refs
        branches = [
            {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha}
            for ref, sha in refs.items()
        ]
        self._json({"branches": branches, "converts": [], "tags": []})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        sha = self._commit_of(repository, revision)
        headers = {"X-Repo-Commit": sha}
        if repository.gated:
            raise _RefusedError(403 if self.token else 401, "GatedRepo", "Access is restricted")
        if path not in repository.commits[sha]:
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            return
        content = repository.commits[sha][path]
        if not is_large(path):
            self._send(200, content, {**headers, "ETag": f'"{blob_id(content)}"'})
            return
        oid = hashlib.sha256(content).hexdigest()
        self.state.large[oid] = content
        linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": f"{len(content)}"}
        elsewhere = f"http://localhost:{self.state.port}/large/{oid}"
        self._send(302, b"", {**headers, **linked, "Location": elsewhere})

    def _large(self, oid: str) -> None:
        content = self.state.large[oid]
        start = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
        sent = content[start:]
        if self.state.damaged:
            sent = sent[:-1] + bytes([sent[-1] ^ 1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", f"{len(sent)}")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.state.cut:
            self.state.cut -= 1
            sent, self.close_connection = sent[: len(sent) // 2], True
        self.wfile.write(sent)

    def _create(self) -> None:
        if self.token != WRITER:
            raise _RefusedError(403 if self.token else 401, message="You need write access")
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private"
        exists = name in self.state.repositories
        if not exists:
            self.state.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self._json({"url": f"{self.state.url}/{name}"}, 409 if exists else 200)

    def _branch(self, name: str, revision: str) -> None:
        repository = self._repository(name, writing=True)
        exists = revision in repository.refs
        repository.refs.setdefault(revision, repository.refs["main"])
        self._json({}, 409 if exists else 200)

    def _validate_card(self) -> None:
        content = json.loads(self.body)["content"]
        try:
            metadata = yaml.safe_load(content.split("---")[1])
            assert isinstance(metadata, dict), metadata
        except (yaml.YAMLError, IndexError, AssertionError) as error:
            self._json({"errors": [{"message": f"{error}"}], "warnings": []}, 400)
            return
        self._json({"errors": [], "warnings": []})

    def _preupload(self, name: str, revision: str) -> None:
        repository = self._repository(name, writing=True)
        present = repository.commits[self._commit_of(repository, revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            path, large = file["path"], is_large(file["path"])
            answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
            if path in present:
                data = present[path]
                answer["oid"] = hashlib.sha256(data).hexdigest() if large else blob_id(data)
            answers.append({**answer, "shouldIgnore": False})
        self._json({"files": answers})

    def _lfs_batch(self, name: str) -> None:
        self._repository(name, writing=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.state.url}/upload/{one['oid']}"}
            actions = {} if one["oid"] in self.state.large else {"actions": {"upload": upload}}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(400)
        self.state.large[oid] = self.body
        self._send(200, b"")

    def _commit(self, name: str, revision: str) -> None:
        repository = self._repository(name, writing=True)
        files = dict(repository.commits[self._commit_of(repository, revision)])
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
        sha = repository.commit(revision, files)
        self._json({"commitUrl": f"{self.state.url}/{name}/commit/{sha}", "commitOid": sha})


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>.+)"
_ROUTES = [
    ("GET", rf"/api/models/{_NAME}", _Handler._info),
    ("GET", rf"/api/models/{_NAME}/revision/{_REVISION}", _Handler._info),
    ("GET", rf"/api/models/{_NAME}/refs", _Handler._refs),
    ("GET HEAD", rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler._resolve),
    ("GET HEAD", r"/large/(?P<oid>[0-9a-f]{64})", _Handler._large),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", rf"/api/models/{_NAME}/branch/{_REVISION}", _Handler._branch),
    ("POST", r"/api/validate-yaml", _Handler._validate_card),
    ("POST", rf"/api/models/{_NAME}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})", _Handler._upload),
    ("POST", rf"/api/models/{_NAME}/commit/{_REVISION}", _Handler._commit),
]

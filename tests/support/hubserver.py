"""A local server that answers as the Hugging Face hub does, as far as downloads and uploads of models go.

Paths, fields, headers and error codes are those that huggingface_hub asks for and reads: repository and tree
listings, `resolve` with ETag and X-Repo-Commit, `repos/create`, `validate-yaml`, `preupload`, the LFS batch API with a
basic upload, and commits in NDJSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

TOKEN = "hf_" + "a" * 34
NOWHERE = "http://127.0.0.1:9"  # where nobody answers
_LFS = (".safetensors", ".parquet", ".faiss")


@dataclass
class Repo:
    """A model repository: one branch, commits oldest first."""

    private: bool = False
    gated: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    def sha(self, number: int = -1) -> str:
        """The name of a commit."""
        at = number % len(self.commits)
        return hashlib.sha1(f"{at}-{self.messages[at]}".encode()).hexdigest()

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision."""
        for number, files in enumerate(self.commits):
            if revision == self.sha(number) or (revision == "main" and number == len(self.commits) - 1):
                return self.sha(number), files
        return None


class HubServer(ThreadingHTTPServer):
    """The server; `repos` is what it holds, `log` what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run a server while the block lasts."""
    server = HubServer()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(url: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub talk to `url`, as with HF_ENDPOINT set, with an empty cache and nobody logged in.

    Large files go by LFS, as with HF_HUB_DISABLE_XET set: the server does not speak Xet.
    """
    values: dict[str, str | bool] = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,  # Xet's servers are no part of this; files go by the LFS API
        "HF_TOKEN_PATH": str(cache / "no-token"),
        "HF_STORED_TOKENS_PATH": str(cache / "no-tokens"),
    }
    for name, value in values.items():
        patch.setattr(huggingface_hub.constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr clean; `HubServer.log` has the requests."""

    def do_GET(self) -> None:
        """A listing or a file."""
        self._note()
        path = unquote(urlsplit(self.path).path).strip("/")
        parts = path.split("/")
        if parts[0] == "api" and parts[1:2] == ["models"] and len(parts) >= 4:
            self._listing("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._fail(404, "EntryNotFound", "not found")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """A new repository, or a step of an upload."""
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path.strip("/")
        parts = path.split("/")
        if path == "api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif not self._allowed():
            self._fail(401, None, "Invalid credentials in Authorization header")
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs-storage/{item['oid']}"}}
            self._json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")
        elif len(parts) > 4 and parts[4] == "preupload":
            files = json.loads(body)["files"]
            for item in files:
                item |= {"uploadMode": "lfs" if item["path"].endswith(_LFS) else "regular", "oid": None}
            self._json({"files": [{"shouldIgnore": False, **item} for item in files]})
        elif len(parts) > 4 and parts[4] == "commit":
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines() if line])
        else:
            self._fail(404, "EntryNotFound", "not found")

    def do_PUT(self) -> None:
        """The bytes of a large file."""
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        oid = self.path.rsplit("/", 1)[-1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self._json({})

    def _note(self) -> None:
        self.server.log.append(f"{self.command} {self.path}")

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _seen(self, name: str) -> Repo | None:
        """The repository, if the one who asks may see it; else the answer is sent."""
        token = self.headers.get("Authorization")
        if token is not None and not self._allowed():
            self._fail(401, None, "Invalid credentials in Authorization header")
            return None
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and token is None):
            self._fail(401 if token is None else 404, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _listing(self, name: str, rest: list[str]) -> None:
        repo = self._seen(name)
        if repo is None:
            return
        revision = "/".join(rest[1:]) if rest[:1] in (["revision"], ["tree"]) else "main"
        found = repo.files(revision.split("/")[0])
        if found is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        sha, files = found
        if rest[:1] == ["tree"]:
            self._json([self._entry(path, data) for path, data in sorted(files.items())])
            return
        facts = {"_id": "0" * 24, "id": name, "modelId": name, "sha": sha, "private": repo.private}
        facts["gated"] = "manual" if repo.gated else False
        facts["siblings"] = [{"rfilename": path} for path in sorted(files)]
        self._json(facts)

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(data), "path": path}
        if path.endswith(_LFS):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _file(self, name: str, revision: str, path: str) -> None:
        repo = self._seen(name)
        if repo is None:
            return
        if repo.gated and not self._allowed():
            self._fail(401, "GatedRepo", f"Access to model {name} is restricted. You must be authenticated")
            return
        found = repo.files(revision)
        if found is None or path not in found[1]:
            self._fail(404, "EntryNotFound" if found else "RevisionNotFound", "Entry not found")
            return
        data = found[1][path]
        entry = self._entry(path, data)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": found[0], "Accept-Ranges": "bytes"}
        self._send(200, data, "application/octet-stream", headers)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        if name in self.server.repos:
            self._json({"error": "You already created it", "url": f"{self.server.url}/{name}"}, 409)
            return
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.server.repos[name] = Repo(private=private)
        self._json({"url": f"{self.server.url}/{name}", "name": name, "id": "0" * 24})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repo = self.server.repos[name]
        files = dict(repo.commits[-1])
        header = lines[0]["value"]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repo.commits.append(files)
        repo.messages.append(header["summary"])
        sha = repo.sha()
        url = f"{self.server.url}/{name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _json(self, value: Any, status: int = 200, kind: str = "application/json") -> None:
        self._send(status, json.dumps(value).encode(), kind, {})

    def _fail(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

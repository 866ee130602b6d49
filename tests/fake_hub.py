"""A Hub on loopback: lists and serves files of one commit, and records every request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SUFFIXES = (".safetensors", ".bin", ".model")


@dataclass
class FakeHub:
    """``files`` are what ``repo_id`` holds; ``answer`` may take over a request: (status, headers, body) or None."""

    repo_id: str = "acme/tiny"
    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    answer: Callable[[str, str], tuple[int, dict[str, str], bytes] | None] = lambda method, path: None
    served: dict[str, bytes] = field(default_factory=dict)
    """Bytes sent in place of the listed ones."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    url: str = ""

    def asked(self, text: str) -> list[tuple[str, str]]:
        return [request for request in self.requests if text in request[1]]

    def tree(self) -> list[dict[str, Any]]:
        return [self._entry(name, content) for name, content in self.files.items()]

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
        if name.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return entry


def use(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point huggingface_hub, which reads its settings when it is imported, at ``url`` and at a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            hub.authorizations.append(self.headers.get("Authorization"))
            status, headers, body = hub.answer(self.command, path) or self._answer(path)
            self.send_response(status)
            length = headers.pop("Content-Length", str(len(body)))
            for key, value in {**headers, "Content-Length": length}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
            known = (*hub.revisions, hub.commit)
            api = f"/api/models/{hub.repo_id}"
            if not path.startswith((f"{api}/", f"/{hub.repo_id}/")):
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            revision = path.split(
                "/revision/" if "/revision/" in path else "/tree/" if "/tree/" in path else "/resolve/"
            )
            name = revision[1]
            if path.startswith(f"{api}/"):
                if name not in known:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
                siblings = [{"rfilename": file} for file in hub.files]
                info = {"id": hub.repo_id, "sha": hub.commit, "siblings": siblings}
                return _json(hub.tree() if "/tree/" in path else info)
            wanted, _, file = name.partition("/")
            if wanted not in known:
                return 404, {"X-Error-Code": "RevisionNotFound", "X-Repo-Commit": hub.commit}, b""
            if file not in hub.files:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit}, b""
            content = hub.files[file]
            lfs = file.endswith(LFS_SUFFIXES)
            etag = sha256(content) if lfs else git_sha1(content)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
            if lfs:
                headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
            return 200, headers, hub.served.get(file, content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

"""A Hub on loopback that speaks the real HTTP API, records every request, and has faults where a test wants them."""

from __future__ import annotations

import base64
import fnmatch
import gzip
import hashlib
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from llmcompress.hub.download import HubSnapshot, fetch
from llmcompress.hub.listing import listing

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SUFFIXES = (".safetensors", ".bin", ".model")

Kind = Literal[
    "status",
    "reset",  # before the request is carried out
    "lost",  # after it was carried out: the answer is lost
    "hang",
    "hang after headers",
    "drip",  # one byte a moment
    "cut",  # the connection ends inside the body
    "short",  # a whole answer that is too short
    "long",
    "wrong bytes",
    "wrong etag",
    "gzip",
    "no range",
    "redirect loop",
    "moved",  # another commit arrives before this request is answered
]


@dataclass
class Fault:
    """What happens to requests: to the ``at``-th from now on (from 0), or to those whose path contains ``only``."""

    kind: Kind
    at: int | None = None
    only: str = ""
    method: str = ""
    times: int = 1
    """How many requests it meets; -1 for all."""
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "a fault"}'
    share: float = 0.5
    """How much of a body comes before it breaks."""


@dataclass
class Commit:
    sha: str
    parent: str | None
    files: dict[str, bytes]
    summary: str = ""


@dataclass
class Repo:
    commits: dict[str, Commit]
    refs: dict[str, str]
    private: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, self.tags.get(revision, revision)))

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["main"]]

    def commit(self, ref: str, files: dict[str, bytes], summary: str) -> Commit:
        parent = self.refs.get(ref)
        sha = hashlib.sha1(f"{parent} {summary} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, files, summary)
        self.refs[ref] = sha
        return self.commits[sha]


def new_repo(files: dict[str, bytes] | None = None, *, private: bool = False) -> Repo:
    repo = Repo({}, {}, private)
    repo.commit("main", {".gitattributes": b"*.bin filter=lfs\n", **(files or {})}, "initial commit")
    return repo


def account(name: str = "acme", role: str = "write", orgs: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "type": "user",
        "name": name,
        "orgs": [{"name": org, "roleInOrg": rights} for org, rights in (orgs or {}).items()],
        "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
    }


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class FakeHub:
    """``files`` are what ``repo_id`` holds; ``answer`` may take over a request: (status, headers, body) or None."""

    repo_id: str = "acme/tiny"
    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    answer: Callable[[str, str], Answer | None] = lambda method, path: None
    served: dict[str, bytes] = field(default_factory=dict)
    """Bytes sent in place of the listed ones."""
    repos: dict[str, Repo] = field(default_factory=dict)
    """What can be pushed to."""
    account: dict[str, Any] = field(default_factory=account)
    cdn: bool = False
    """Large files are on another host, to which the Hub redirects."""
    multipart_bytes: int = 1 << 30
    """Larger files are uploaded in parts of this size."""
    faults: list[Fault] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    """Hashes of the large files whose bytes were sent."""
    collections: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    num_sent: dict[str, int] = field(default_factory=dict)
    """Bytes of files that were sent, by path."""
    mistakes: list[BaseException | None] = field(default_factory=list)
    url: str = ""
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    @property
    def elsewhere(self) -> str:
        """The same server under the name of another host."""
        return self.url.replace("127.0.0.1", "localhost")

    def asked(self, text: str) -> list[tuple[str, str]]:
        return [request for request in self.requests if text in request[1]]

    def repo(self, repo_id: str) -> Repo | None:
        if repo_id in self.repos:
            return self.repos[repo_id]
        if repo_id != self.repo_id:
            return None
        return Repo({self.commit: Commit(self.commit, None, self.files)}, dict.fromkeys(self.revisions, self.commit))

    def inject(self, *faults: Fault) -> None:
        """Begin to count requests for these faults; earlier ones are taken away."""
        with self.lock:
            self.faults = list(faults)
            for fault in self.faults:
                if fault.at is not None:
                    fault.at += len(self.requests)

    def fault(self, index: int, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            met = (fault.at is None or fault.at == index) and fault.only in path and method.startswith(fault.method)
            if met and fault.times:
                fault.times -= 1
                return fault
        return None


def use(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point huggingface_hub, which reads its settings when it is imported, at ``url`` and at a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def environment(hub: FakeHub, cache: Path, token: str | None = None) -> dict[str, str]:
    """What a process of its own needs to talk to this Hub."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return settings | ({"HF_TOKEN": token} if token else {})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(name: str, content: bytes) -> bool:
    return bool(content) and (name.endswith(LFS_SUFFIXES) or len(content) > 10_000_000)


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # A client that hangs up is part of many tests; a mistake in this file is none.
    server.handle_error = lambda request, address: hub.mistakes.append(sys.exception())  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
        for error in hub.mistakes:
            if error is not None and not isinstance(error, ConnectionError):
                raise error


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub
    # Headers and a small body in one packet: with Nagle's algorithm each answer would wait 40 ms.
    wbufsize = 1 << 16

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        hub = self.fake
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        with hub.lock:
            index = len(hub.requests)
            hub.requests.append((self.command, path))
            hub.authorizations.append(self.headers.get("Authorization"))
            hub.hosts.append(self.headers.get("Host", ""))
            fault = hub.fault(index, self.command, path)
        kind = fault.kind if fault else ""
        if kind == "reset":
            self._reset()
            return
        if kind == "hang":
            hub.stopping.wait()
            self.close_connection = True
            return
        self.body = self._read()
        if kind == "moved":
            with hub.lock:
                for repo in hub.repos.values():
                    repo.commit("main", {**repo.head.files, "late.txt": b"x"}, "late")
        if fault and kind == "status":
            answer: Answer = (fault.status, dict(fault.headers), fault.body)
        elif kind == "redirect loop":
            answer = (302, {"Location": self.path}, b"")
        else:
            with hub.lock:
                answer = hub.answer(self.command, path) or self._answer(path)
        if kind == "lost":
            self._reset()
            return
        self._send(path, answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815 - the names that http.server looks for

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length", 0))
        if len(body := self.rfile.read(length)) < length:
            raise ConnectionResetError("the client hung up")
        return body

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _send(self, path: str, answer: Answer, fault: Fault | None) -> None:
        status, headers, body = answer
        kind = fault.kind if fault else ""
        content = "/resolve/" in path or "/cdn/" in path
        if kind == "wrong bytes":
            body = bytes(byte ^ 1 for byte in body)
        elif kind == "long":
            body += b"more"
        elif kind == "wrong etag":
            headers = headers | {"ETag": '"' + "0" * 40 + '"', "X-Linked-Etag": '"' + "0" * 64 + '"'}
        if content and status == 200 and "Range" in self.headers and kind != "no range":
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(body)), len(body) - 1)
            if begin >= len(body):
                status, headers, body = 416, {"Content-Range": f"bytes */{len(body)}"}, b""
            else:
                headers = headers | {"Content-Range": f"bytes {begin}-{end}/{len(body)}"}
                status, body = 206, body[begin : end + 1]
        if kind == "gzip":
            headers, body = headers | {"Content-Encoding": "gzip"}, gzip.compress(body)
        cut = int(len(body) * fault.share) if fault else 0
        if kind == "short":
            body = body[:cut]
        self.send_response(status)
        length = headers.pop("Content-Length", str(len(body)))
        for key, value in {**headers, "Content-Length": length}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("cut", "hang after headers"):
            self._write(path, body[:cut])
            if kind == "hang after headers":
                self.fake.stopping.wait()
            self.close_connection = True
        elif kind == "drip":
            for place in range(len(body)):
                if self.fake.stopping.wait(0.05):
                    break
                self._write(path, body[place : place + 1])
        else:
            self._write(path, body)

    def _write(self, path: str, body: bytes) -> None:
        # Counted first: a client that has read the last byte may look at once.
        if "/resolve/" in path or "/cdn/" in path:
            with self.fake.lock:
                self.fake.num_sent[path] = self.fake.num_sent.get(path, 0) + len(body)
        self.wfile.write(body)
        self.wfile.flush()

    def _answer(self, path: str) -> Answer:
        written = (self._create, self._paths, self._tag, self._preupload, self._commit, self._batch)
        for pattern, respond in (
            (r"/api/whoami-v2", self._whoami),
            (r"/api/validate-yaml", self._validate),
            (r"/api/repos/create", self._create),
            (r"/api/(?:models|datasets)/([^/]+/[^/]+)/revision/(.+)", self._info),
            (r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", self._tree),
            (r"/api/datasets/([^/]+/[^/]+)/paths-info/(.+)", self._paths),
            (r"/api/models/([^/]+/[^/]+)/tree/(.+)", self._tree),
            (r"/api/models/([^/]+/[^/]+)/refs", self._refs),
            (r"/api/models/([^/]+/[^/]+)/tag/(.+)", self._tag),
            (r"/api/models/([^/]+/[^/]+)/discussions", self._discussions),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)", self._info),
            (r"/api/collections/([^/]+/[^/]+?)(/items)?", self._collection),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/lfs/(part|whole|complete|verify)/([0-9a-f]+)(?:/(\d+))?", self._upload),
            (r"/cdn/([0-9a-f]+)", self._cdn),
            (r"/(?:datasets/)?([^/]+/[^/]+)/resolve/(.+)", self._resolve),
        ):
            if match := re.fullmatch(pattern, path):
                # A redirected POST comes as a GET.
                return _refusal(405) if self.command == "GET" and respond in written else respond(*match.groups())
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _whoami(self) -> Answer:
        return _json(self.fake.account) if self._known() else _refusal(401, "", "Invalid username or password.")

    def _known(self) -> bool:
        return self.headers.get("Authorization", "").startswith("Bearer ")

    def _validate(self) -> Answer:
        return _json({"errors": [], "warnings": []})

    def _create(self) -> Answer:
        asked = json.loads(self.body)
        name = f"{asked['organization'] or self.fake.account['name']}/{asked['name']}"
        if not self._known():
            return _refusal(401)
        if name in self.fake.repos:
            status, headers, _ = _refusal(409)
            return status, headers, json.dumps({"url": f"{self.fake.url}/{name}"}).encode()
        self.fake.repos[name] = new_repo(private=asked.get("visibility") == "private")
        return _json({"url": f"{self.fake.url}/{name}", "name": name})

    def _find(self, repo_id: str, revision: str) -> Commit | Answer:
        repo = self.fake.repo(repo_id)
        if repo is None or (repo.private and not self._known()):
            return _refusal(404, "RepoNotFound")
        return repo.find(revision) or _refusal(404, "RevisionNotFound")

    def _info(self, repo_id: str, revision: str = "main") -> Answer:
        found = self._find(repo_id, revision)
        if isinstance(found, tuple):
            return found
        repo = self.fake.repo(repo_id)
        assert repo is not None
        siblings = [{"rfilename": name} for name in found.files]
        return _json({"id": repo_id, "sha": found.sha, "private": repo.private, "siblings": siblings})

    def _tree(self, repo_id: str, revision: str) -> Answer:
        found = self._find(repo_id, revision)
        if isinstance(found, tuple):
            return found
        entries = []
        for name, content in found.files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
            if is_lfs(name, content):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return _json(entries)

    def _paths(self, repo_id: str, revision: str) -> Answer:
        """Those of the listed files that were asked for, as a form."""
        wanted = parse_qs(self.body.decode())["paths"]
        status, headers, body = self._tree(repo_id, revision)
        if status != 200:
            return status, headers, body
        return _json([entry for entry in json.loads(body) if entry["path"] in wanted])

    def _refs(self, repo_id: str) -> Answer:
        repo = self.fake.repo(repo_id)
        if repo is None:
            return _refusal(404, "RepoNotFound")
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
        return _json({"branches": branches, "tags": tags, "converts": []})

    def _tag(self, repo_id: str, revision: str) -> Answer:
        repo, tag = self.fake.repos[repo_id], json.loads(self.body)["tag"]
        found = repo.find(revision)
        if found is None or tag in repo.tags:
            return _refusal(409)
        repo.tags[tag] = found.sha
        return _json({})

    def _discussions(self, repo_id: str) -> Answer:
        repo = self.fake.repo(repo_id)
        if repo is None:
            return _refusal(404, "RepoNotFound")
        found = [pull for pull in repo.pulls if pull["author"]["name"] == self.query.get("author")]
        return _json({"discussions": found, "count": len(found), "start": 0})

    def _preupload(self, repo_id: str, revision: str) -> Answer:
        found = self._find(repo_id, revision)
        if isinstance(found, tuple):
            return found
        answers = []
        for file in json.loads(self.body)["files"]:
            lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10_000_000
            there = found.files.get(file["path"])
            oid = None if there is None else (sha256 if lfs else git_sha1)(there)
            mode = "lfs" if lfs else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": answers})

    def _batch(self, repo_id: str) -> Answer:
        if not self._known():
            return _refusal(401)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            made: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.fake.objects:
                place, part = self.fake.elsewhere, self.fake.multipart_bytes
                upload: dict[str, Any] = {"href": f"{place}/lfs/whole/{oid}"}
                if size > part:
                    numbers = range(1, -(-size // part) + 1)
                    urls = {f"{number:05d}": f"{place}/lfs/part/{oid}/{number}" for number in numbers}
                    upload = {"href": f"{place}/lfs/complete/{oid}", "header": {"chunk_size": str(part), **urls}}
                made["actions"] = {"upload": upload, "verify": {"href": f"{self.fake.url}/lfs/verify/{oid}"}}
            objects.append(made)
        return _json({"transfer": "basic", "objects": objects})

    def _upload(self, step: str, oid: str, number: str | None) -> Answer:
        if step == "part":
            self.fake.parts.setdefault(oid, {})[int(number or 0)] = self.body
            return 200, {"ETag": f'"{number}"'}, b""
        if step == "verify":
            return _json({}) if oid in self.fake.objects else _refusal(404)
        if step == "complete":
            named = [part["partNumber"] for part in json.loads(self.body)["parts"]]
            content = b"".join(self.fake.parts[oid][number] for number in named)
        else:
            content = self.body
        if sha256(content) != oid:
            return _refusal(400)
        self.fake.objects[oid] = content
        self.fake.uploads.append(oid)
        return _json({})

    def _commit(self, repo_id: str, revision: str) -> Answer:
        found = self._find(repo_id, revision)
        if isinstance(found, tuple):
            return found
        if not self._known():
            return _refusal(401)
        repo, files = self.fake.repos[repo_id], dict(found.files)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", found.sha) != found.sha:
            return _refusal(412, "", "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.fake.objects:
                    return _refusal(400)
                files[value["path"]] = self.fake.objects[value["oid"]]
            elif files.pop(value["path"], None) is None:
                return _refusal(404, "EntryNotFound")
        answer: dict[str, Any] = {"success": True}
        ref = revision
        if "create_pr" in self.query:
            number = len(repo.pulls) + 1
            ref = f"refs/pr/{number}"
            repo.refs[ref] = found.sha
            answer["pullRequestUrl"] = f"{self.fake.url}/{repo_id}/discussions/{number}"
            pull = {"num": number, "title": header["summary"], "status": "open", "isPullRequest": True}
            pull |= {"author": {"name": self.fake.account["name"]}, "createdAt": "2026-01-01T00:00:00.000Z"}
            repo.pulls.append(pull | {"repo": {"name": repo_id, "type": "model"}})
        made = repo.commit(ref, files, header["summary"])
        answer |= {"commitOid": made.sha, "commitUrl": f"{self.fake.url}/{repo_id}/commit/{made.sha}"}
        return _json(answer)

    def _collection(self, slug: str, items: str | None) -> Answer:
        if slug not in self.fake.collections:
            return _refusal(404)
        if items and self.command == "POST":
            name = json.loads(self.body)["item"]["id"]
            if name in self.fake.collections[slug]:
                return _refusal(409)
            self.fake.collections[slug].append(name)
        facts = {"slug": slug, "title": "t", "owner": {"name": "acme"}, "items": [], "position": 0, "private": False}
        return _json(facts | {"lastUpdated": "2026-01-01T00:00:00.000Z", "theme": "blue", "upvotes": 0})

    def _resolve(self, repo_id: str, rest: str) -> Answer:
        repo = self.fake.repo(repo_id)
        if repo is None or (repo.private and not self._known()):
            return _refusal(404, "RepoNotFound")
        names = [name for name in (*repo.refs, *repo.tags, *repo.commits) if rest.startswith(f"{name}/")]
        found = repo.find(max(names, key=len)) if names else None
        if found is None:
            return _refusal(404, "RevisionNotFound")
        name = rest.removeprefix(f"{max(names, key=len)}/")
        if name not in found.files:
            status, headers, body = _refusal(404, "EntryNotFound")
            return status, headers | {"X-Repo-Commit": found.sha}, body
        content = found.files[name]
        etag = sha256(content) if is_lfs(name, content) else git_sha1(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": found.sha, "Accept-Ranges": "bytes"}
        if is_lfs(name, content):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
            if self.fake.cdn:
                self.fake.objects[etag] = self.fake.served.get(name, content)
                return 302, headers | {"Location": f"{self.fake.elsewhere}/cdn/{etag}"}, b""
        return 200, headers, self.fake.served.get(name, content)

    def _cdn(self, oid: str) -> Answer:
        return 200, {"ETag": f'"{oid}"'}, self.fake.objects[oid]


def _refusal(status: int, code: str = "", message: str = "refused") -> Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return status, headers, json.dumps({"error": message}).encode()


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def download(
    repo_id: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    offline: bool = False,
    progress: Callable[[Any], None] = lambda event: None,
) -> HubSnapshot:
    """List a repository and bring the files that match one of the patterns into the cache, as the product does."""
    found = listing(repo_id, revision, offline=offline)
    names = [file.path for file in found.files if any(fnmatch.fnmatchcase(file.path, each) for each in patterns)]
    return fetch(found, names, progress=progress)

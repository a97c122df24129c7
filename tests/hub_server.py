"""A small Hugging Face hub on the loopback interface, which can be told to fail.

It speaks what fetching needs: `GET /api/models/REPO/revision/REV`, and `HEAD` and `GET` of
`/REPO/resolve/REV/PATH` with ranges. Large files are sent by a second server, as the hub leaves
them to another host.

Source: the addresses and headers are those that huggingface_hub 2.4.0 asks for and reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def isolate(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Keep the settings, the token and the proxies of whoever runs the tests out of them.

    Also undoes, when the test ends, what fetching sets for the process.
    """
    from huggingface_hub import constants

    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
        monkeypatch.setenv(name, "0")
        monkeypatch.setattr(constants, name, False)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr("cfgen.hub.pull.PAUSE_S", 0.0)


@dataclass
class Repo:
    """A repository with one commit.

    Attributes:
        files: Content by path.
        large: Paths that are in LFS.
        refs: Commits by branch or tag.
    """

    files: dict[str, bytes]
    large: frozenset[str] = frozenset()
    refs: dict[str, str] = field(default_factory=lambda: {"main": "c0ffee" + "0" * 34})

    def describe(self, path: str) -> dict[str, object]:
        content = self.files[path]
        item: dict[str, object] = {"rfilename": path, "size": len(content)}
        if path in self.large:
            # The pointer's own git hash differs from the content's, as on the real hub.
            item["blobId"] = git_hash(sha256(content).encode())
            item["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
        else:
            item["blobId"] = git_hash(content)
        return item


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    by: str


@dataclass
class HubServer:
    """What the server has, how it fails, and what it was asked.

    Attributes:
        repos: Repositories by name.
        refuse: Status and `X-Error-Code` of every answer, or None.
        refuse_files: As `refuse`, for files only.
        token: The only token that it lets in, or None.
        sent: What to send instead of a file's content, by path.
        described: What to tell of a file instead of the truth, by path.
        break_after: Close the connection after so many bytes of each answer with a file.
        breaks: How many answers are broken off; the rest are whole.
        pause_after: Send so many bytes of a file, then wait for `pause`.
        pause: What to wait for.
        ranges: Whether it understands ranges.
        body: The raw body of the listing instead of the right one.
        requests: What was asked, in order.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    refuse: tuple[int, str | None] | None = None
    refuse_files: tuple[int, str | None] | None = None
    token: str | None = None
    sent: dict[str, bytes] = field(default_factory=dict)
    described: dict[str, dict[str, object]] = field(default_factory=dict)
    break_after: int | None = None
    breaks: int = 1_000_000
    pause_after: int | None = None
    pause: threading.Event = field(default_factory=threading.Event)
    ranges: bool = True
    body: bytes | None = None
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""

    def asked_for(self, path: str) -> list[Request]:
        """The requests that were to bring content of a file."""
        wanted = [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{path}")]
        return [request for request in wanted if request.by == "storage"] or wanted


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run a hub until the block ends."""
    hub = HubServer()
    with _serving(hub, "hub") as hub.endpoint, _serving(hub, "storage") as hub.storage:
        yield hub


@contextmanager
def _serving(hub: HubServer, name: str) -> Iterator[str]:
    class Answers(_Answers):
        state = hub
        by = name

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
    state: HubServer
    by: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.command, path, headers, self.by))
        is_file = "/resolve/" in path
        refusal = hub.refuse or (hub.refuse_files if is_file else None)
        known = hub.token is None or headers.get("authorization") == f"Bearer {hub.token}"
        if refusal is None and self.by == "hub" and not known:
            refusal = (401, None)
        if refusal is not None:
            self._refuse(*refusal)
        elif is_file:
            self._file(path, with_body=with_body)
        else:
            self._list(path)

    def _list(self, path: str) -> None:
        api, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        repo = self.state.repos.get(api)
        if repo is None:
            self._refuse(404, "RepoNotFound")
            return
        commit = repo.refs.get(revision, revision)
        if commit not in repo.refs.values():
            self._refuse(404, "RevisionNotFound")
            return
        items = [repo.describe(name) | self.state.described.get(name, {}) for name in repo.files]
        answer = {"id": api, "sha": commit, "private": False, "siblings": items}
        self._send(200, self.state.body or json.dumps(answer).encode(), {})

    def _file(self, path: str, *, with_body: bool) -> None:
        hub = self.state
        name, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        commit = hub.repos[name].refs.get(revision, revision)
        content = hub.repos[name].files[file]
        if file in hub.repos[name].large and self.by == "hub":
            linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
            there = {"Location": f"{hub.storage}{self.path}", "X-Repo-Commit": commit}
            self._send(302, b"", linked | there)
            return
        content = hub.sent.get(file, content)
        named = sha256 if file in hub.repos[name].large else git_hash
        more = {"ETag": f'"{named(content)}"', "X-Repo-Commit": commit}
        start = self._start(len(content))
        if start is None:
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        elif start:
            more["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], more, is_file=with_body)
        else:
            self._send(200, content, more, is_file=with_body)

    def _start(self, nbytes: int) -> int | None:
        asked = self.headers.get("Range")
        if asked is None or not self.state.ranges:
            return 0
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        return start if start < nbytes else None

    def _refuse(self, status: int, code: str | None) -> None:
        body = json.dumps({"error": code or "refused"}).encode()
        self._send(status, body, {"X-Error-Code": code} if code else {})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, is_file: bool = False
    ) -> None:
        hub = self.state
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if is_file and hub.break_after is not None and hub.breaks > 0:
            hub.breaks -= 1
            self.wfile.write(body[: hub.break_after])
            self.close_connection = True
            return
        if is_file and hub.pause_after is not None:
            self.wfile.write(body[: hub.pause_after])
            hub.pause.wait(30)
            self.close_connection = True
            return
        self.wfile.write(body)

"""What goes out to the hub, and what it refuses."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from cfgen import __version__
from cfgen.errors import (
    CfgenError,
    CheckpointError,
    SetupError,
)
from cfgen.hub.listing import Hub, hub_from, list_files
from cfgen.hub.reference import cache_folder
from tests.hub.conftest import (
    MODEL,
    fetch,
)
from tests.hub_server import HubServer


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_offline_no_connection_is_opened(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    if name is not None:
        monkeypatch.setenv(name, "1")
    with pytest.raises(SetupError, match="forbids the network"):
        list_files(MODEL, hub_from(offline=name is None))
    assert server.requests == []
    assert not (tmp_path / "hub").exists()


def test_no_more_is_told_to_the_hub_than_a_request_needs(
    hub: Hub, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import __version__ as library

    for name in ("AI_AGENT", "AGENT"):
        monkeypatch.setenv(name, "some-program")
    fetch(hub)
    python = ".".join(map(str, sys.version_info[:3]))
    agent = f"cfgen/{__version__}; hf_hub/{library}; python/{python}"
    assert {request.headers["user-agent"] for request in server.requests} == {agent}
    allowed = {"host", "accept", "accept-encoding", "connection", "user-agent", "range"}
    # A random number for each request, by which the hub finds it in its logs.
    allowed.add("x-amzn-trace-id")
    assert {name for request in server.requests for name in request.headers} <= allowed
    assert all("resolve" in r.path or "revision" in r.path for r in server.requests)
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == os.environ["HF_HUB_DISABLE_XET"] == "1"


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    hub: Hub, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.token = "hf_secret"
    fetch(hub)
    sent = {(request.by, request.headers.get("authorization")) for request in server.requests}
    assert sent == {("hub", "Bearer hf_secret"), ("storage", None)}


@pytest.mark.parametrize(
    ("refusal", "error", "message", "hint"),
    [
        ((403, "GatedRepo"), CheckpointError, "is gated", "then set HF_TOKEN"),
        ((401, None), CheckpointError, "refuses owner/model", "set HF_TOKEN"),
        ((403, None), CheckpointError, "refuses owner/model", "set HF_TOKEN"),
        ((401, "RepoNotFound"), CheckpointError, "refuses owner/model", "set HF_TOKEN"),
        ((404, "RepoNotFound"), CheckpointError, "there is no repository", "check the spelling"),
        ((404, None), CheckpointError, "there is no repository", "check the spelling"),
        ((404, "RevisionNotFound"), CheckpointError, "has no revision 'main'", "tree/main"),
        ((503, None), SetupError, "it answered 503", "wait a while"),
        ((429, None), SetupError, "it answered 429", "wait a while"),
    ],
)
@pytest.mark.parametrize("files_only", [False, True])
def test_each_refusal_of_the_hub_has_its_sentence(
    hub: Hub,
    server: HubServer,
    refusal: tuple[int, str | None],
    error: type[CfgenError],
    message: str,
    hint: str,
    files_only: bool,
) -> None:
    # The hub shows the files of a gated repository to everyone, and refuses each of them.
    setattr(server, "refuse_files" if files_only else "refuse", refusal)
    with pytest.raises(error, match=message) as caught:
        fetch(hub)
    assert type(caught.value) is error
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    hub = Hub(endpoint=f"http://127.0.0.1:{port}", cache=tmp_path / "hub")
    with pytest.raises(SetupError, match=f"http://127.0.0.1:{port} cannot be reached") as caught:
        fetch(hub)
    assert caught.value.exit_code == 3
    assert not hub.cache.exists()


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://x", "http://"])
def test_an_endpoint_that_is_no_address_is_named(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(SetupError, match=f"{endpoint} cannot be reached"):
        fetch(Hub(endpoint=endpoint, cache=tmp_path))


@pytest.mark.parametrize(
    "body", [b"<html>log in</html>", b"[]", b"{}", b'{"id": "owner/model", "sha": "../../x"}']
)
def test_an_answer_that_is_not_a_hubs_is_refused(hub: Hub, server: HubServer, body: bytes) -> None:
    server.body = body
    with pytest.raises(SetupError, match="does not answer as a Hugging Face hub does"):
        fetch(hub)


@pytest.mark.parametrize(
    "lie",
    [
        {"rfilename": "../../../evil"},
        {"rfilename": "/etc/evil"},
        {"rfilename": "a\\..\\evil"},
        {"blobId": "../../evil", "lfs": None},
        {"blobId": None, "lfs": None},
        {"size": None},
        {"lfs": {"sha256": "x" * 64, "size": 2, "pointerSize": 1}},
    ],
)
def test_a_server_cannot_choose_where_files_are_written(
    hub: Hub, server: HubServer, lie: dict[str, object]
) -> None:
    server.described["config.json"] = lie
    with pytest.raises(SetupError, match="does not answer as a Hugging Face hub does"):
        fetch(hub)
    assert not hub.cache.exists()


def test_the_environment_names_hub_and_cache(tmp_path: Path) -> None:
    environ = {"HF_ENDPOINT": "https://mirror.example/", "HF_HUB_CACHE": str(tmp_path)}
    hub = hub_from(environ)
    assert hub == Hub(endpoint="https://mirror.example", cache=tmp_path)
    assert hub_from({"HF_HUB_OFFLINE": "yes"}).offline
    assert hub_from({}).endpoint == "https://huggingface.co"
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")

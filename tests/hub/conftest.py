"""A hub on the loopback interface with one model, and a Hugging Face cache for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfgen.hub import Reference, parse_reference
from cfgen.hub.listing import Hub, Listing, list_files
from cfgen.hub.pull import pull
from cfgen.hub.reference import repo_folder
from tests.hub_server import HubServer, Repo, hub_server, isolate, sha256

COMMIT = "c0ffee" + "0" * 34
OTHER = "decade" + "1" * 34
WEIGHTS = bytes(range(256)) * 1200  # 307 kB: longer than one read of the connection
FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}", "vae/vae.safetensors": b"v" * 5000}
LARGE = frozenset({"model.safetensors", "vae/vae.safetensors"})
MODEL = Reference("owner/model")


@pytest.fixture(scope="module", autouse=True)
def own_connections() -> Iterator[None]:
    """Use no connections of other tests, and leave none to them."""
    import huggingface_hub

    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def own_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        running.repos["owner/model"] = Repo(dict(FILES), LARGE)
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(endpoint=server.endpoint, cache=tmp_path / "hub")


def fetch(hub: Hub, text: str = "owner/model") -> Listing:
    """Pull what a text names, as the command does."""
    reference = parse_reference(text)
    assert reference is not None
    listing = list_files(reference, hub)
    for _ in pull(listing):
        pass
    return listing


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def in_the_cache(cache: Path, file: str, content: bytes, *, commit: str = COMMIT) -> Path:
    """Put a file into the cache as huggingface_hub lays it out."""
    folder = repo_folder("owner/model", cache)
    blob = folder / "blobs" / sha256(content)
    pointer = folder / "snapshots" / commit / file
    for path in (blob, pointer):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    return pointer


def set_ref(cache: Path, ref: str, commit: str) -> None:
    path = repo_folder("owner/model", cache) / "refs" / ref
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(commit)

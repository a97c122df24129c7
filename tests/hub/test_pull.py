"""What is pulled lies in the cache as if huggingface_hub had put it there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfgen.errors import (
    CheckpointError,
    UsageError,
)
from cfgen.hub import Reference, locate
from cfgen.hub.listing import Hub, list_files
from cfgen.hub.reference import repo_folder
from tests.hub.conftest import (
    COMMIT,
    FILES,
    LARGE,
    MODEL,
    OTHER,
    WEIGHTS,
    fetch,
    names,
)
from tests.hub_server import HubServer, git_hash, sha256


def test_a_pulled_repository_is_found_by_cfgen_and_by_huggingface_hub(hub: Hub) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

    listing = fetch(hub)
    assert listing.path == locate("owner/model", what="model", cache=hub.cache)
    assert names(listing.path) == sorted(FILES)
    for path, content in FILES.items():
        assert (listing.path / path).read_bytes() == content
        found = try_to_load_from_cache("owner/model", path, cache_dir=hub.cache)
        assert found == str(listing.path / path)
    folder = snapshot_download("owner/model", cache_dir=hub.cache, local_files_only=True)
    assert Path(folder) == listing.path
    info = scan_cache_dir(hub.cache)
    assert info.warnings == []
    assert {repo.repo_id: repo.size_on_disk for repo in info.repos} == {
        "owner/model": sum(map(len, FILES.values()))
    }


def test_the_cache_looks_as_if_huggingface_hub_had_fetched_it(
    hub: Hub, server: HubServer, tmp_path: Path
) -> None:
    from huggingface_hub import hf_hub_download

    for path in FILES:
        hf_hub_download("owner/model", path, cache_dir=tmp_path / "its", endpoint=server.endpoint)

    def layout(cache: Path) -> dict[str, str | bytes]:
        folder = repo_folder("owner/model", cache)
        return {
            name: os.readlink(path) if (path := folder / name).is_symlink() else path.read_bytes()
            for name in names(folder)
        }

    fetch(hub)
    assert layout(hub.cache) == layout(tmp_path / "its")
    assert len(layout(hub.cache)) == 2 * len(FILES) + 1


def test_blobs_are_named_by_the_digests_of_the_hub(hub: Hub) -> None:
    listing = fetch(hub)
    large = sorted(sha256(FILES[path]) for path in LARGE)
    assert names(listing.folder / "blobs") == sorted([*large, git_hash(b"{}")])


def test_one_file_or_one_folder_is_fetched_alone(hub: Hub) -> None:
    assert names(fetch(hub, "owner/model/config.json").folder / "snapshots" / COMMIT) == [
        "config.json"
    ]
    listing = fetch(hub, "owner/model/vae")
    assert [file.path for file in listing.files] == ["vae/vae.safetensors"]
    assert listing.path.is_dir()


def test_patterns_choose_files(hub: Hub, server: HubServer) -> None:
    listing = list_files(MODEL, hub, include=["*.safetensors"], exclude=["vae/*"])
    assert [file.path for file in listing.files] == ["model.safetensors"]
    with pytest.raises(UsageError, match="leave none of the 3 files of owner/model"):
        list_files(MODEL, hub, include=["*.gguf"])
    with pytest.raises(CheckpointError, match="owner/model has no file 'w.gguf'"):
        list_files(Reference("owner/model", None, "w.gguf"), hub)


def test_a_branch_is_noted_and_a_commit_is_not(hub: Hub, server: HubServer) -> None:
    server.repos["owner/model"].refs["dev/fast"] = COMMIT
    assert names(fetch(hub, f"owner/model@{COMMIT}").folder / "refs") == []
    listing = fetch(hub, "owner/model@dev%2Ffast")
    assert (listing.folder / "refs" / "dev" / "fast").read_text() == COMMIT


def test_what_is_there_and_whole_is_not_fetched_again(hub: Hub, server: HubServer) -> None:
    fetch(hub, "owner/model/config.json")
    server.requests.clear()
    listing = list_files(MODEL, hub)
    assert {file.path: listing.missing(file) for file in listing.files} == {
        "config.json": 0,
        "model.safetensors": len(WEIGHTS),
        "vae/vae.safetensors": 5000,
    }
    fetch(hub)
    assert server.asked_for("config.json") == []
    assert len(server.asked_for("model.safetensors")) == 1


def test_content_that_two_commits_share_is_fetched_once(hub: Hub, server: HubServer) -> None:
    fetch(hub)
    server.repos["owner/model"].refs["main"] = OTHER
    server.requests.clear()
    listing = fetch(hub)
    assert (listing.commit, names(listing.path)) == (OTHER, sorted(FILES))
    assert not any("/resolve/" in request.path for request in server.requests)

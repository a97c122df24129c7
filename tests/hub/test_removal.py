"""Removing frees what nothing else needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfgen.errors import (
    CheckpointError,
)
from cfgen.hub import Reference
from cfgen.hub.cache import in_cache, plan_removal, remove, snapshots, unfinished, verify
from cfgen.hub.listing import Hub, list_files
from cfgen.hub.pull import pull
from tests.hub.conftest import (
    COMMIT,
    FILES,
    LARGE,
    MODEL,
    OTHER,
    fetch,
    in_the_cache,
    names,
    set_ref,
)
from tests.hub_server import HubServer, Repo


def test_a_repository_is_removed_with_all_its_revisions(hub: Hub, server: HubServer) -> None:
    fetch(hub)
    server.repos["owner/model"] = Repo({"config.json": b"[1]"}, LARGE, {"main": OTHER})
    listing = fetch(hub)
    removal = plan_removal(MODEL, hub.cache)
    assert removal.nbytes == sum(map(len, FILES.values())) + 3
    assert listing.folder.exists()
    remove(removal)
    assert not listing.folder.exists()


def test_a_revision_is_removed_without_what_another_needs(hub: Hub, server: HubServer) -> None:
    fetch(hub)
    repo = Repo({**FILES, "config.json": b"[1]"}, LARGE, {"main": OTHER})
    server.repos["owner/model"] = repo
    fetch(hub)
    removal = plan_removal(Reference("owner/model", COMMIT[:7]), hub.cache)
    assert removal.nbytes == len(b"{}")
    remove(removal)
    assert [s.commit for s in snapshots(hub.cache)] == [OTHER]
    assert {v.state for v in verify(snapshots(hub.cache))} == {"ok"}


def test_one_file_is_removed_alone(hub: Hub) -> None:
    listing = fetch(hub)
    removal = plan_removal(Reference("owner/model", None, "vae"), hub.cache)
    assert removal.nbytes == 5000
    remove(removal)
    assert names(listing.path) == ["config.json", "model.safetensors"]
    assert len(names(listing.folder / "blobs")) == 2


def test_a_cache_behind_a_link_is_the_same_cache(hub: Hub, tmp_path: Path) -> None:
    listing = fetch(hub)
    link = tmp_path / "link"
    link.symlink_to(hub.cache)
    for cache in (hub.cache, link):
        assert in_cache(str(listing.path), cache) == Reference("owner/model", COMMIT)
    remove(plan_removal(Reference("owner/model", None, "vae"), link))
    assert names(listing.path) == ["config.json", "model.safetensors"]
    remove(plan_removal(MODEL, link))
    assert not listing.folder.exists()


def test_a_snapshot_goes_with_its_last_file(hub: Hub) -> None:
    listing = fetch(hub, "owner/model/config.json")
    remove(plan_removal(Reference("owner/model", None, "config.json"), hub.cache))
    assert not listing.folder.exists()


def test_a_fork_with_the_same_commit_is_left_alone(hub: Hub, server: HubServer) -> None:
    server.repos["fork/model"] = Repo(dict(FILES), LARGE)
    fetch(hub)
    fork = fetch(hub, "fork/model")
    remove(plan_removal(MODEL, hub.cache))
    assert [s.repo for s in snapshots(hub.cache)] == ["fork/model"]
    assert names(fork.path) == sorted(FILES)


def test_a_broken_off_or_damaged_repository_goes_as_a_whole(hub: Hub, server: HubServer) -> None:
    server.break_after, server.breaks = 1000, 1
    listing = list_files(MODEL, hub, include=["model.safetensors"])
    steps = pull(listing)
    while (step := next(steps)).what != "retry":
        pass
    steps.close()
    assert unfinished(hub.cache) == {"owner/model": step.nbytes}
    in_the_cache(hub.cache, "w.pt", b"w")
    set_ref(hub.cache, "main", OTHER)  # huggingface_hub cannot read this
    with pytest.raises(CheckpointError, match="is damaged in the cache"):
        plan_removal(Reference("owner/model", COMMIT), hub.cache)
    removal = plan_removal(MODEL, hub.cache)
    assert removal.nbytes >= step.nbytes
    remove(removal)
    assert not listing.folder.exists()


def test_what_is_not_in_the_cache_cannot_be_removed(tmp_path: Path) -> None:
    for cache in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="owner/model is not in the Hugging Face cache"):
            plan_removal(MODEL, cache)

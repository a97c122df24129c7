"""Downloads break, disks fill and processes die, and nothing but whole files is found."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest

from cfgen.errors import (
    BudgetError,
    CfgenError,
    CheckpointError,
    LockHeld,
    SetupError,
)
from cfgen.hub import Reference
from cfgen.hub import pull as pull_module
from cfgen.hub.cache import snapshots, unfinished, verify
from cfgen.hub.listing import Hub, check_room, list_files
from cfgen.hub.pull import pull
from cfgen.hub.reference import commit_of, repo_folder
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
from tests.hub_server import HubServer, Repo, git_hash, sha256
from tests.render.crash import Crash, dying, full


def test_a_broken_download_goes_on_where_it_stopped(
    hub: Hub, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "RETRIES", -1)
    server.break_after, server.breaks = 100_000, 1
    with pytest.raises(CfgenError, match=r"broke after 100000 of 307200 bytes of model") as caught:
        fetch(hub, "owner/model/model.safetensors")
    assert caught.value.exit_code == 1
    assert caught.value.hint == "run the same command again: it goes on from there"
    assert unfinished(hub.cache) == {"owner/model": 100_000}
    assert not (repo_folder("owner/model", hub.cache) / "refs").exists()
    listing = fetch(hub, "owner/model/model.safetensors")
    assert listing.path.read_bytes() == WEIGHTS
    ranges = [r.headers.get("range") for r in server.asked_for("model.safetensors")]
    assert ranges == [None, "bytes=100000-"]
    assert unfinished(hub.cache) == {}


def test_a_connection_that_breaks_is_made_again_by_itself(hub: Hub, server: HubServer) -> None:
    server.break_after = 120_000
    listing = list_files(Reference("owner/model", None, "model.safetensors"), hub)
    steps = list(pull(listing))
    assert [step.nbytes for step in steps if step.what == "retry"] == [120_000, 240_000]
    assert listing.path.read_bytes() == WEIGHTS


def test_a_connection_that_brings_nothing_is_given_up(hub: Hub, server: HubServer) -> None:
    server.break_after = 0
    with pytest.raises(CfgenError, match="broke after 0 of 307200 bytes"):
        fetch(hub, "owner/model/model.safetensors")
    assert len(server.asked_for("model.safetensors")) == pull_module.RETRIES + 1


def test_a_server_that_knows_no_ranges_sends_all_anew(hub: Hub, server: HubServer) -> None:
    server.ranges, server.break_after, server.breaks = False, 100_000, 1
    assert fetch(hub, "owner/model/model.safetensors").path.read_bytes() == WEIGHTS


def test_a_pause_of_the_server_is_waited_for(
    hub: Hub, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = list_files(MODEL, hub)
    server.refuse_files = (503, None)
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        server.refuse_files = None

    monkeypatch.setattr(pull_module.time, "sleep", pause)
    assert [step.what for step in pull(listing)].count("retry") == 1
    assert len(waited) == 1
    assert (listing.path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "sent",
    [WEIGHTS[:-1] + b"x", WEIGHTS[:-1], WEIGHTS + b"x", b"", b"<html>log in</html>"],
    ids=["other", "shorter", "longer", "empty", "page"],
)
def test_content_that_the_hub_does_not_describe_is_refused_and_deleted(
    hub: Hub, server: HubServer, sent: bytes
) -> None:
    server.sent["model.safetensors"] = sent
    with pytest.raises(CfgenError, match=r"is not what the hub describes and was|broke after 0"):
        fetch(hub)
    folder = repo_folder("owner/model", hub.cache)
    assert not (folder / "snapshots" / COMMIT / "model.safetensors").exists()
    assert not (folder / "blobs" / sha256(WEIGHTS)).exists()
    assert not any(unfinished(hub.cache).values())
    assert not (folder / "refs").exists()
    server.sent.clear()
    assert (fetch(hub).path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_small_file_is_checked_too(hub: Hub, server: HubServer) -> None:
    server.sent["config.json"] = b"[]"
    with pytest.raises(CheckpointError, match=f"{git_hash(b'[]')} came instead of 2 with"):
        fetch(hub)


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * 400_000], ids=["short", "too long"])
def test_a_damaged_part_is_never_taken_over(hub: Hub, server: HubServer, part: bytes) -> None:
    listing = list_files(Reference("owner/model", None, "model.safetensors"), hub)
    place = listing.part(listing.files[0])
    place.parent.mkdir(parents=True)
    place.write_bytes(part)
    if len(part) < len(WEIGHTS):
        with pytest.raises(CheckpointError, match="was deleted"):
            fetch(hub, "owner/model/model.safetensors")
        assert not place.exists()
    assert fetch(hub, "owner/model/model.safetensors").path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("damage", [WEIGHTS[:-1] + b"x", WEIGHTS[:-9], None])
def test_a_damaged_blob_is_fetched_again(hub: Hub, server: HubServer, damage: bytes | None) -> None:
    listing = fetch(hub)
    blob = (listing.path / "model.safetensors").resolve()
    if damage is None:
        blob.unlink()
    else:
        blob.write_bytes(damage)
    server.requests.clear()
    what = [step.what for step in pull(list_files(MODEL, hub))]
    assert ("damaged" in what) is (damage is not None)
    assert (listing.path / "model.safetensors").read_bytes() == WEIGHTS
    assert len(server.asked_for("model.safetensors")) == 1
    assert server.asked_for("config.json") == []


def test_a_snapshot_that_holds_copies_instead_of_links_is_repaired_too(hub: Hub) -> None:
    listing = fetch(hub)
    pointer = listing.path / "config.json"
    pointer.unlink()
    pointer.write_bytes(b"damaged")
    fetch(hub)
    assert pointer.read_bytes() == b"{}"


def test_where_links_are_not_allowed_the_content_stands_in_the_snapshot(
    hub: Hub, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("a required privilege is not held")

    monkeypatch.setattr(os, "symlink", refused)
    listing = fetch(hub)
    assert not (listing.path / "model.safetensors").is_symlink()
    assert names(listing.folder / "blobs") == []
    server.requests.clear()
    fetch(hub)
    assert server.asked_for("model.safetensors") == []
    assert {verdict.state for verdict in verify(snapshots(hub.cache))} == {"unknown"}


def test_a_branch_never_names_a_commit_of_which_files_are_missing(
    hub: Hub, server: HubServer
) -> None:
    fetch(hub)
    server.repos["owner/model"] = Repo({**FILES, "z.pt": b"z"}, LARGE, {"main": OTHER})
    server.sent["z.pt"] = b"y"
    with pytest.raises(CheckpointError, match=r"z\.pt of owner/model is not what"):
        fetch(hub)
    assert commit_of(MODEL, hub.cache) == COMMIT


def test_dying_at_any_write_leaves_nothing_that_is_not_whole(hub: Hub, server: HubServer) -> None:
    files = {"a/w.pt": b"w" * 9, "b.json": b"{}"}
    server.repos["owner/model"] = Repo(files, frozenset({"a/w.pt"}))
    for at in itertools.count():
        shutil.rmtree(hub.cache, ignore_errors=True)
        listing = list_files(MODEL, hub)
        with dying(hub.cache, at) as disk:
            try:
                for _ in pull(listing):
                    pass
            except Crash:
                pass
        for path in listing.path.rglob("*"):
            if not path.is_dir() and not path.name.endswith(".part"):
                assert path.read_bytes() == files[path.relative_to(listing.path).as_posix()]
        if (listing.folder / "refs" / "main").exists():
            assert set(files) <= set(names(listing.path))
        if not disk.dead:
            assert at > 20
            return
        assert (fetch(hub).path / "a/w.pt").read_bytes() == b"w" * 9


def test_content_is_on_the_disk_before_it_has_its_name(hub: Hub) -> None:
    with dying(hub.cache, None) as disk:
        listing = fetch(hub)
    sizes = {str(listing.blob(file)): file.nbytes for file in listing.files}
    assert {path: disk.synced.get(path) for path in sizes} == sizes


@pytest.mark.parametrize("at", [4, 12, 20])
def test_a_full_disk_is_told_and_what_came_is_kept(hub: Hub, server: HubServer, at: int) -> None:
    with dying(hub.cache, at, full), pytest.raises(BudgetError, match="the disk is full") as caught:
        fetch(hub)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("free some space")
    fetch(hub)
    assert all(verdict.state == "ok" for verdict in verify(snapshots(hub.cache)))


def test_a_download_for_which_there_is_no_room_is_refused_before(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = list_files(MODEL, hub)
    needed = sum(map(listing.missing, listing.files))

    def disk(free: int):
        return lambda _: shutil._ntuple_diskusage(10**9, 10**9 - free, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", disk(needed))
    check_room(listing)
    monkeypatch.setattr(shutil, "disk_usage", disk(needed - 1))
    with pytest.raises(
        BudgetError, match=r"needs 0\.00 GB more in .*/hub, where 0\.00 GB are free"
    ):
        check_room(listing)


def test_a_cache_that_cannot_be_written_is_named(hub: Hub) -> None:
    hub.cache.write_text("a file where the folder should be")
    with pytest.raises(SetupError, match=f"could not write {hub.cache}"):
        fetch(hub)


def test_two_pulls_do_not_write_one_file(hub: Hub) -> None:
    listing = list_files(Reference("owner/model", None, "model.safetensors"), hub)
    first = pull(listing)
    assert next(first).what == "fetch"
    with pytest.raises(LockHeld, match="another process is fetching model.safetensors"):
        list(pull(listing))
    assert [step.what for step in first][-1] == "there"
    assert listing.path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("each", [0, 100_000])
def test_a_server_that_ends_early_again_and_again_is_given_up(
    hub: Hub, server: HubServer, ranges: bool, each: int
) -> None:
    server.ranges, server.break_after = ranges, each
    if ranges and each:
        assert fetch(hub, "owner/model/model.safetensors").path.read_bytes() == WEIGHTS
        return
    with pytest.raises(CfgenError, match=f"broke after {each} of 307200 bytes"):
        fetch(hub, "owner/model/model.safetensors")
    assert len(server.asked_for("model.safetensors")) <= pull_module.RETRIES + 2


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
@pytest.mark.parametrize("linked", ["blobs", "snapshots", "refs"])
def test_a_cache_whose_folders_lead_elsewhere_is_refused(
    hub: Hub, tmp_path: Path, linked: str
) -> None:
    listing = list_files(MODEL, hub)
    (tmp_path / "outside").mkdir()
    listing.folder.mkdir(parents=True)
    (listing.folder / linked).symlink_to(tmp_path / "outside")
    with pytest.raises(SetupError, match=f"{linked} is a link"):
        list(pull(listing))
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
def test_a_part_that_is_a_link_is_not_written_through(hub: Hub, tmp_path: Path) -> None:
    listing = list_files(Reference("owner/model", None, "model.safetensors"), hub)
    victim, part = tmp_path / "victim", listing.part(listing.files[0])
    victim.write_bytes(b"precious")
    part.parent.mkdir(parents=True)
    part.symlink_to(victim)
    with pytest.raises(SetupError, match="is a link"):
        list(pull(listing))
    assert victim.read_bytes() == b"precious"

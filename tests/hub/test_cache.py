"""The cache is told what it holds, and damage in it is found."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from cfgen.errors import (
    CheckpointError,
    UsageError,
)
from cfgen.hub import Reference
from cfgen.hub.cache import choose, in_cache, snapshots, verify
from cfgen.hub.digest import digest_of
from cfgen.hub.listing import Hub
from tests.hub.conftest import (
    COMMIT,
    FILES,
    MODEL,
    OTHER,
    fetch,
    in_the_cache,
    set_ref,
)
from tests.hub_server import HubServer


def test_digests_are_those_of_git_and_git_lfs(tmp_path: Path) -> None:
    file = tmp_path / "hello"
    file.write_bytes(b"hello\n")
    # `printf 'hello\n' | git hash-object --stdin`, and sha256sum
    git = "ce013625030ba8dba906f756967f9e9ca394464a"
    lfs = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert (digest_of(file, like=git), digest_of(file, like=lfs)) == (git, lfs)


def safetensors(*tensors: str) -> bytes:
    header = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in tensors}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("name", "content", "holds"),
    [
        ("w.safetensors", safetensors("model.patch_embedding.weight"), ("generator",)),
        (
            "w.gguf",
            b"GGUF\3\0\0\0 general.architecture\x08\0\0\0\3\0\0\0\0\0\0\0wan",
            ("generator",),
        ),
        ("l.safetensors", safetensors("blocks.0.self_attn.q.lora_A.weight"), ("LoRA",)),
        ("l.safetensors", safetensors("lora_unet_blocks_3_cross_attn_k.lora_down"), ("LoRA",)),
        ("t.pth", b"PK token_embedding.weight blocks.0.attn.q.weight", ("text encoder",)),
        ("t.gguf", b"GGUF general.architecture t5encoder", ("text encoder",)),
        ("v.safetensors", safetensors("decoder.middle.0.residual.0.gamma"), ("VAE",)),
        ("v.safetensors", safetensors("decoder.mid_block.resnets.0.norm1.gamma"), ("VAE",)),
        ("llm.safetensors", safetensors("model.layers.0.self_attn.q_proj.weight"), ()),
        ("sd.safetensors", safetensors("decoder.mid_block.resnets.0.norm1.weight"), ()),
        ("readme.md", b"patch_embedding.weight", ()),
    ],
)
def test_the_parts_of_a_video_model_are_told_from_its_headers(
    tmp_path: Path, name: str, content: bytes, holds: tuple[str, ...]
) -> None:
    in_the_cache(tmp_path, name, content)
    (found,) = snapshots(tmp_path)
    assert found.holds() == holds


def test_snapshots_tell_what_to_call_them(tmp_path: Path) -> None:
    in_the_cache(tmp_path, "w.pt", b"www")
    in_the_cache(tmp_path, "copy.pt", b"www")
    in_the_cache(tmp_path, "w.pt", b"other", commit=OTHER)
    set_ref(tmp_path, "main", COMMIT)
    set_ref(tmp_path, "v1", COMMIT)
    first, second = snapshots(tmp_path)
    assert (str(first.reference), first.refs, first.nbytes) == ("owner/model", ("main", "v1"), 3)
    assert str(second.reference) == f"owner/model@{OTHER[:7]}"
    assert choose(second.reference, tmp_path) == [second]


@pytest.mark.parametrize("damaged", sorted(FILES))
def test_damage_is_found_and_its_command_repairs_it(
    hub: Hub, server: HubServer, damaged: str
) -> None:
    listing = fetch(hub)
    blob = (listing.path / damaged).resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    server.repos["owner/model"].refs |= {"main": OTHER, "old": COMMIT}  # the branch moved on
    found = [v for v in verify(choose(MODEL, hub.cache)) if v.state != "ok"]
    assert [(v.file.path, v.state) for v in found] == [(damaged, "damaged")]
    command = found[0].repair_command
    assert command == f"cfgen models pull owner/model@{COMMIT}/{damaged}"
    fetch(hub, command.split()[-1])
    assert {v.state for v in verify(choose(MODEL, hub.cache))} == {"ok"}


def test_content_that_is_gone_is_found_missing(hub: Hub) -> None:
    (fetch(hub).path / "config.json").resolve().unlink()
    states = {v.file.path: v.state for v in verify(snapshots(hub.cache))}
    assert states["config.json"] == "missing"
    assert set(states.values()) == {"missing", "ok"}


def test_content_that_cannot_be_read_counts_as_damaged(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = (fetch(hub).path / "config.json").resolve()

    def failing(path: Path, *arguments: object, **named: object):
        if Path(path) == blob:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *arguments, **named)

    opened = os.open
    monkeypatch.setattr(os, "open", failing)
    states = {v.file.path: v.state for v in verify(snapshots(hub.cache))}
    assert states["config.json"] == "damaged"
    assert set(states.values()) == {"damaged", "ok"}


def test_a_blob_in_the_store_that_repositories_share_is_checked_by_its_own_name(
    tmp_path: Path,
) -> None:
    pointer = in_the_cache(tmp_path, "w.pt", b"w")
    blob, shared = pointer.resolve(), tmp_path / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert [v.state for v in verify(snapshots(tmp_path))] == ["ok"]
    shared.write_bytes(b"x")
    assert [v.state for v in verify(snapshots(tmp_path))] == ["damaged"]


def test_a_path_in_the_cache_names_what_lies_there(hub: Hub, tmp_path: Path) -> None:
    listing = fetch(hub)
    assert in_cache(str(listing.path), hub.cache) == Reference("owner/model", COMMIT)
    file = in_cache(str(listing.path / "vae" / "vae.safetensors"), hub.cache)
    assert file == Reference("owner/model", COMMIT, "vae/vae.safetensors")
    assert in_cache(str(listing.folder), hub.cache) == MODEL
    assert in_cache("owner/model@v1", hub.cache) == Reference("owner/model", "v1")
    for other in (tmp_path, hub.cache, listing.folder / "blobs"):
        with pytest.raises(CheckpointError, match="is no model in the Hugging Face cache"):
            in_cache(str(other), hub.cache)
    with pytest.raises(UsageError, match="names nothing in the cache"):
        in_cache("mini", hub.cache)

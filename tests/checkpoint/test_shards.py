"""Several safetensors files under one index are one file, or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.errors import CheckpointError
from tests.checkpoint import packing, tiny

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny generator in two shards; `places` changes its index."""

    def make(name: str = "native_bf16", **places: object) -> Path:
        packed = tiny.pack(tiny.STYLES[name])
        names = list(packed.tensors)
        index: dict[str, object] = {}
        for shard, part in zip(SHARDS, (names[::2], names[1::2]), strict=True):
            tensors = {name: packed.tensors[name] for name in part}
            packing.write_safetensors(tmp_path / shard, tensors, packed.metadata)
            index |= dict.fromkeys(part, shard)
        index = {name: place for name, place in {**index, **places}.items() if place is not None}
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
        return path

    return make


@pytest.mark.parametrize("name", ["native_bf16", "comfyquant_int8_convrot_headeronly"])
def test_shards_load_as_one_file(name: str, sharded: Callable[..., Path], tmp_path: Path) -> None:
    index = sharded(name)
    file = open_container(index)
    assert file.kind == "safetensors in 2 shards"
    assert [path.name for path in file.files] == [index.name, *SHARDS]
    found = load_generator(index, expand=True).state_dict()
    whole = tiny.write(name, tmp_path / "..")
    wanted = load_generator(whole.path, expand=True).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


MAPS: dict[str, tuple[dict[str, object], str]] = {
    "shard nowhere": ({"more": "model-00003.safetensors"}, r"00003\.safetensors does not exist"),
    "other shard": ({"head.modulation": SHARDS[0]}, "differ: head.modulation should be in"),
    "tensor nowhere": ({"more": SHARDS[0]}, "lists more, which model-00001-of-00002.saf"),
    "tensor not listed": ({"head.modulation": None}, "head.modulation should be in nowhere"),
    "out of the folder": ({"more": "../secret.safetensors"}, "must lie beside its index"),
    "absolute": ({"more": "/etc/passwd"}, "must lie beside its index"),
    "folder above": ({"more": ".."}, "must lie beside its index"),
    "no name": ({"more": ""}, "must lie beside its index"),
    "zero byte": ({"more": "a\0b"}, "must lie beside its index"),
    "lone surrogate": ({"more": "a\ud800"}, "must lie beside its index"),
    "number": ({"more": 3}, "3 does not exist"),
}


@pytest.mark.parametrize("kind", MAPS)
def test_index_that_does_not_fit_its_shards_is_refused(
    kind: str, sharded: Callable[..., Path], tmp_path: Path
) -> None:
    places, reason = MAPS[kind]
    index = sharded(**places)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_container(index)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": {}}', b'{"weight_map": ["a"]}'])
def test_index_without_shards_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="has no weight_map"):
        open_container(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-LFS pointer"),
        (b"", "is cut off"),
        (b"GGUF" + bytes(60), "no file of wei"),
    ],
)
def test_shard_that_is_something_else_is_refused(
    content: bytes, reason: str, sharded: Callable[..., Path], tmp_path: Path
) -> None:
    index = sharded()
    (tmp_path / SHARDS[1]).write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_container(index)
    assert SHARDS[1] in caught.value.message


def test_shards_that_declare_different_layers_are_refused(
    sharded: Callable[..., Path], tmp_path: Path
) -> None:
    index = sharded("comfyquant_int8_convrot_headeronly")
    state = load_file(tmp_path / SHARDS[1])
    layers = json.dumps({"layers": {"blocks.0.ffn.0": {"format": "int8_tensorwise"}}})
    save_file(state, tmp_path / SHARDS[1], {"_quantization_metadata": layers})
    with pytest.raises(CheckpointError, match="say different things of _quantization_metadata"):
        open_container(index)


def test_a_shard_by_itself_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model-00002-of-00002.safetensors"
    save_file({"blocks.0.modulation": torch.zeros(1, 6, 4)}, path)
    with pytest.raises(CheckpointError, match="is one shard of several") as caught:
        open_generator(path)
    assert ".index.json" in str(caught.value.hint)

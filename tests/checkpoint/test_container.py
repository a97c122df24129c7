"""What is no whole safetensors file is refused, saying what it is."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cfgen.checkpoint import container
from cfgen.checkpoint.load import digest, load_state
from cfgen.errors import CheckpointError, OutputRefused


def header(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 567\n"
HTML = b"\xef\xbb\xbf\n <!DOCTYPE html><html>Access to this model is restricted</html>"

HOSTILE = {
    "empty": (b"", "is cut off: it has 0 bytes"),
    "few bytes": (b"abc", "is cut off: it has 3 bytes"),
    "git-LFS pointer": (LFS, "is a git-LFS pointer to the weights, not a safetensors file"),
    "web page": (HTML, "is a web page, not a safetensors file"),
    "bare web page": (b"<html><body>404</body></html>", "is a web page"),
    "PyTorch file": (b"PK\x03\x04" + bytes(60), "is a zip archive or a PyTorch .pt file"),
    "GGUF": (b"GGUF" + bytes(60), "is a GGUF file"),
    "absurd header": (struct.pack("<Q", 1 << 60) + b"{}", f"announces a header of {1 << 60} bytes"),
    "text": (b"hello, these are weights", "announces a header of"),
    "header cut": (header({"a": entry("F32", [1], 4)})[:20], "is cut off: it has 20 of at least"),
    "data cut": (header({"a": entry("F32", [9], 36)}, bytes(20)), "is cut off: it has"),
    "no JSON": (header(b"{not json"), "its header cannot be read"),
    "no object": (header([1, 2]), "its header cannot be read"),
    "no offsets": (header({"a": {"dtype": "F32"}}), "its header cannot be read"),
    "wrong length": (header({"a": entry("F32", [9], 20)}, bytes(20)), "is damaged"),
    "unknown dtype": (header({"a": entry("F99", [1], 4)}, bytes(4)), "is damaged"),
    "data too long": (header({"a": entry("F32", [1], 4)}, bytes(9)), "is damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_refused(kind: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[kind]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_state(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 3


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_state(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_state(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        digest(tmp_path / "weights.safetensors")


def test_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        load_state(tmp_path / "weights.safetensors")


def test_any_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(10.0), "b": torch.zeros(3)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is cut off"):
            load_state(path)


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int8,
    torch.uint8,
]


def test_writing_and_reading_returns_every_tensor_and_text(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors: dict[str, Tensor] = {str(d): torch.arange(6).reshape(2, 3).to(d) for d in DTYPES}
    tensors |= {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "none": torch.zeros(0),
        "one": torch.tensor(3.0),
    }
    container.write(tensors, path, {"title": "tiny"})
    contents = container.read(path)
    assert contents.metadata == {"format": "pt", "title": "tiny"}
    assert set(contents.tensors) == set(tensors)
    for name, tensor in tensors.items():
        found = contents.tensors[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found.double(), tensor.double())
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    container.write({"a": torch.ones(2)}, path, {})

    def full_disk(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OutputRefused, match="cannot be written: No space left on device"):
        container.write({"a": torch.zeros(2)}, path, {})
    assert torch.equal(container.read(path).tensors["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match="cannot be written: No such file or directory"):
        container.write({"a": torch.zeros(1)}, tmp_path / "no" / "weights.safetensors", {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "must hold a JSON object, got list"),
    ],
)
def test_json_that_is_none_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        container.read_json(path)

"""Safetensors files: read and written exactly; what is none is refused, saying what it is."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgen.checkpoint.formats import base as container
from cfgen.checkpoint.formats import safetensors as safetensors_file
from cfgen.checkpoint.formats.base import Entry
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.identify.digests import digest
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.errors import CheckpointError, OutputRefused
from tests.checkpoint import packing, tiny
from tests.checkpoint.small import load_state


def header(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], end: object, start: int = 0) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ONE = entry("F32", [1], 4)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 567\n"
HTML = b"\xef\xbb\xbf\n <!DOCTYPE html><html>Access to this model is restricted</html>"
TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
TWICE += b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
META = b'{"__metadata__":{"k":"1","k":"2"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
DEEP = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"

HOSTILE = {
    "empty": (b"", "is cut off: it has 0 bytes"),
    "few bytes": (b"abc", "is cut off: it has 3 bytes"),
    "git-LFS pointer": (LFS, "is a git-LFS pointer to the weights, not a file of weights"),
    "web page": (HTML, "is a web page, not a file of weights"),
    "bare web page": (b"<html><body>404</body></html>", "is a web page"),
    "XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is an XML page"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "is a gzip archive"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(60), "is a 7-Zip archive"),
    "NumPy": (b"\x93NUMPY" + bytes(60), "is a NumPy array"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file"),
    "PDF": (b"%PDF-1.7" + bytes(60), "is a PDF document"),
    "GGML": (b"ggml" + bytes(60), "is a GGML file, the format before GGUF"),
    "zip archive": (b"PK\x03\x04" + bytes(60), "is a damaged archive"),
    "GGUF": (b"GGUF" + bytes(60), "is GGUF version 0"),
    "absurd header": (struct.pack("<Q", 1 << 60) + b"{}", f"announces a header of {1 << 60} bytes"),
    "text": (b"hello, these are weights", "is text, not a file of weights"),
    "JSON": (b'{"a": "config", "and": "no weights"}', "is JSON, not a file of weights"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(60), "is a JPEG picture, not a file of weights"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(60), "is a PNG picture, not a file of weights"),
    "video": (b"\0\0\0\x20ftypisom" + bytes(60), "is a video, not a file of weights"),
    "noise": (bytes(range(200, 255)), "is no file of weights that cfgen knows"),
    "header longer than the file": (struct.pack("<Q", 90_000_000) + b"{}", "is cut off: it has 10"),
    "header cut": (header({"a": ONE})[:20], "is cut off: it has 20 of at least"),
    "data cut": (header({"a": entry("F32", [9], 36)}, bytes(20)), "is cut off: it has"),
    "no JSON": (header(b"{not json"), "is damaged"),
    "no object": (header([1, 2]), "is damaged"),
    "deep": (header(DEEP), "is damaged"),
    "no UTF-8": (header(b'{"\xff\xfe": 1}'), "is damaged"),
    "no offsets": (header({"a": {"dtype": "F32"}}), "is damaged"),
    "endless offset": (
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}'),
        "dam",
    ),
    "wrong length": (header({"a": entry("F32", [9], 20)}, bytes(20)), "is damaged"),
    "unknown dtype": (header({"a": entry("F99", [1], 4)}, bytes(4)), "is damaged"),
    "rare dtype": (header({"a": entry("C64", [1], 8)}, bytes(8)), "a has the dtype C64, which"),
    "data too long": (header({"a": ONE}, bytes(9)), "is damaged"),
    "overlap": (header({"a": ONE, "b": ONE}, bytes(4)), "is damaged"),
    "hole": (header({"a": ONE, "b": entry("F32", [1], 12, 8)}, bytes(12)), "is damaged"),
    "endless axis": (header({"a": entry("F32", [0, 2**63], 0)}), "is damaged"),
    "overflow": (header({"a": entry("F32", [2**62, 8], 0)}), "is damaged"),
    "name twice": (header(TWICE, bytes(4)), "is damaged"),
    "metadata twice": (header(META, bytes(4)), "is damaged: in its header, it names k twice"),
    "metadata of numbers": (header({"__metadata__": {"k": 1}, "a": ONE}, bytes(4)), "is damaged"),
    "name of two lines": (header({"a\nb": ONE}, bytes(4)), r"no tensor is named 'a\nb'"),
    "name with an escape": (header({"\x1b[2J": ONE}, bytes(4)), r"no tensor is named '\x1b[2J'"),
    "endless name": (header({"a" * 2000: ONE}, bytes(4)), "no tensor is named 'aaa"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_refused_whoever_opens_it(kind: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[kind]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    for load in (open_container, load_state, open_generator, load_generator):
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert reason in caught.value.message
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.exit_code == 3


CREATORS = {
    "missing scale": r"layer blocks\.0\.ffn\.2: its weight is float8_e4m3fn and its scale is miss",
    "orphan scale": r"layer blocks\.0\.ffn\.0: its weight must be a matrix of int8 or float8",
    "no patch embedding": r"holds no whole Wan generator: patch_embedding\.weight is missing",
    "truncated": r"is cut off: it has \d+ of at least \d+ bytes",
    "huge header": r"is no file of weights that cfgen knows: read as safetensors it announces a",
    "LFS pointer": r"is a git-LFS pointer to the weights",
    "web page": r"is a web page",
}


def test_the_broken_files_that_creators_meet_are_refused(tmp_path: Path) -> None:
    paths = tiny.write_hostile(tmp_path)
    assert paths.keys() == CREATORS.keys()
    for kind, path in paths.items():
        with pytest.raises(CheckpointError, match=CREATORS[kind]) as caught:
            load_generator(path)
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message


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
    def denied(*_args: object, **_named: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "weights.safetensors").touch()
    monkeypatch.setattr(os, "open", denied)
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


def test_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(100.0)}, path)
    file = open_container(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        file.read("a")


DTYPES = sorted(safetensors_file.CODES, key=str)


def some(dtype: torch.dtype) -> Tensor:
    return torch.arange(6).reshape(2, 3).to(torch.uint8).to(dtype)


def test_writing_and_reading_returns_every_tensor_and_text(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors: dict[str, Tensor] = {str(dtype): some(dtype) for dtype in DTYPES}
    tensors |= {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "none": torch.zeros(0),
        "one": torch.tensor(3.0),
        "one of a column": torch.arange(6.0).reshape(3, 2)[:1, 1],
    }
    safetensors_file.write(tensors, path, {"title": "tiny"})
    file = open_container(path)
    assert file.kind == "safetensors"
    assert file.files == (path,)
    assert file.metadata == {"format": "pt", "title": "tiny"}
    assert list(file.entries) == list(tensors)
    by_others = load_file(path)
    for name, tensor in tensors.items():
        found = file.read(name)
        facts = file.entries[name]
        assert (facts.dtype, facts.shape, facts.nbytes) == (
            tensor.dtype,
            tuple(tensor.shape),
            tensor.nbytes,
        )
        assert found.dtype == by_others[name].dtype == tensor.dtype
        assert torch.equal(found.double(), tensor.double())
        assert torch.equal(by_others[name].double(), tensor.double())
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_read_tensor_is_memory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors_file.write({"a": torch.ones(4)}, path, {})
    file = open_container(path)
    found = file.read("a")
    found.zero_()
    assert torch.equal(file.read("a"), torch.ones(4))


def test_streamed_tensors_are_asked_for_one_by_one_in_order(tmp_path: Path) -> None:
    asked: list[str] = []

    def make(name: str) -> Tensor:
        asked.append(name)
        return torch.full((3,), float(len(asked)))

    path = tmp_path / "weights.safetensors"
    safetensors_file.write_stream(
        dict.fromkeys(["b", "a"], Entry("float32", (3,), 12)), make, path, {}
    )
    assert asked == ["b", "a"]
    assert load_file(path)["a"].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("tensor", [torch.ones(4), torch.ones(3, dtype=torch.float64)])
def test_a_streamed_tensor_that_was_announced_otherwise_leaves_no_file(
    tensor: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="announced float32"):
        safetensors_file.write_stream(
            {"a": Entry("float32", (3,), 12)}, lambda _: tensor, tmp_path / "w.safetensors", {}
        )
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors_file.write({"a": torch.ones(2)}, path, {})

    def full_disk(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OutputRefused, match="cannot be written: No space left on device"):
        safetensors_file.write({"a": torch.zeros(2)}, path, {})
    assert torch.equal(load_state(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match="cannot be written: No such file or directory"):
        safetensors_file.write({"a": torch.zeros(1)}, tmp_path / "no" / "weights.safetensors", {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "must hold a JSON object, got list"),
        (b'{"a": 1, "a": 2}', "is not JSON: it names a twice"),
    ],
)
def test_json_that_is_none_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        container.read_json(path)


def test_a_message_is_one_short_line_whatever_a_file_brings() -> None:
    error = CheckpointError("a\nb\x1b[2J\t" + "c" * 10_000)
    assert error.message.startswith("a b [2J ccc")
    assert error.message.isprintable()
    assert len(error.message) < 2100
    assert str(error) == error.message


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x10280, 0x8B1F, 0x8B1F20, 0x4B50])
def test_a_length_that_looks_like_the_start_of_another_file_is_a_length(
    length: int, tmp_path: Path
) -> None:
    text = json.dumps({"a": ONE}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(header(text + b" " * (length - len(text)), struct.pack("<f", 1.5)))
    assert open_container(path).kind == "safetensors"
    assert load_state(path)["a"].tolist() == [1.5]


def test_one_huge_name_twice_among_very_many_is_found_quickly(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    names = [f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(20_000)]
    path.write_bytes(header(("{" + ",".join([*names, names[-1]]) + "}").encode()))
    with pytest.raises(CheckpointError, match="it names 19999 twice"):
        open_container(path)


def test_bytes_of_every_dtype_are_those_of_other_writers(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    arrays = {str(dtype): np.ones((2, 3)).astype(dtype) for dtype in packing.CODES}
    packing.write_safetensors(path, arrays)
    file = open_container(path)
    assert len(file.entries) == len(packing.CODES)
    for name in arrays:
        assert torch.equal(file.read(name).float(), torch.ones(2, 3)), name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is a device or a pipe"):
        open_container(tmp_path / "pipe")

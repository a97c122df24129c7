"""PyTorch files that bring code, bombs or lies are refused before any of it has a cost."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.errors import CheckpointError
from tests.checkpoint.small import load_state

STATE = {"head.modulation": torch.ones(1, 2, 3)}


def saved(content: object, folder: Path, **options: bool) -> Path:
    torch.save(content, folder / "model.pt", **options)
    return folder / "model.pt"


class Foreign:
    """What a hostile pickle brings: unpickling it would make a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("archive", [True, False])
def test_a_foreign_class_is_refused_and_never_runs(archive: bool, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    content = {"generator": STATE, "more": Foreign(mark)}
    path = saved(content, tmp_path, _use_new_zipfile_serialization=archive)
    for load in (open_container, load_state, load_generator):
        with pytest.raises(CheckpointError, match=r"a pickle that asks for \w+\.mkdir;") as caught:
            load(path)
        assert "never runs what a file brings" in caught.value.message
        assert "\n" not in caught.value.message
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so it would have run


@pytest.mark.parametrize(
    "name",
    [
        "torchao.dtypes.affine_quantized_tensor AffineQuantizedTensor",
        "torchao.quantization.linear_activation_quantized_tensor LinearActivationQuantizedTensor",
        "optimum.quanto.tensor.weights.qbytes WeightQBytesTensor",
        "os system",
        "builtins eval",
    ],
)
def test_classes_of_other_packages_are_refused_by_name(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.partition(" ")
    path = repacked(saved({"a": torch.ones(1)}, tmp_path), foreign(module, attribute))
    with pytest.raises(CheckpointError, match=rf"is a pickle that asks for \S*{attribute};"):
        open_container(path)


def foreign(module: str, name: str) -> bytes:
    """A pickle that calls `module.name("x")`."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X\x01\x00\x00\x00x\x85R."


def repacked(
    path: Path,
    data: bytes | None = None,
    *,
    compress: int = zipfile.ZIP_STORED,
    twice: str = "",
    change: Callable[[bytes], bytes] = bytes,
) -> Path:
    """The archive with another pickle, compressed, or with a member twice."""
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(path, "w", compress) as new:
        for member in old.namelist():
            raw = old.read(member)
            if member.endswith("data.pkl"):
                raw = change(raw) if data is None else data
            new.writestr(member, raw)
            if twice and member.endswith(twice):
                with pytest.warns(UserWarning, match="Duplicate name"):
                    new.writestr(member, raw)
    return path


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(4_000_000)}, tmp_path)
    repacked(path, compress=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(
        CheckpointError,
        match=r"is compressed, as in one that was unpacked and zipped again, or in a zip bomb",
    ):
        open_container(path)


def test_a_pickle_bomb_is_refused(tmp_path: Path) -> None:
    content: object = {"t": torch.zeros(1)}
    for _ in range(6):
        content = {str(i): content for i in range(30)}  # 30 ** 6 tensors
    path = saved(content, tmp_path)
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="holds more values than any network has"):
        open_container(path)


def test_empty_dictionaries_without_end_are_refused(tmp_path: Path) -> None:
    content: object = {}
    for _ in range(7):
        content = {str(i): content for i in range(100)}
    with pytest.raises(CheckpointError, match="holds more values than any network has"):
        open_container(saved(content, tmp_path))


def test_dictionaries_in_themselves_are_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {"a": torch.ones(1)}
    content["b"] = content
    with pytest.raises(CheckpointError, match="nests dictionaries more than 8 deep"):
        open_container(saved(content, tmp_path))


def test_a_huge_pickle_is_refused(tmp_path: Path) -> None:
    path = repacked(saved({"a": torch.ones(1)}, tmp_path), bytes(64_000_001))
    with pytest.raises(CheckpointError, match="holds a pickle of more than 64000000 bytes"):
        open_container(path)


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "version"])
def test_an_archive_that_names_a_member_twice_is_refused(member: str, tmp_path: Path) -> None:
    path = repacked(saved({"a": torch.ones(1)}, tmp_path), twice=member)
    with pytest.raises(CheckpointError, match="its archive names a member twice"):
        open_container(path)


def test_two_keys_that_become_one_name_are_refused(tmp_path: Path) -> None:
    for content in ({1: torch.ones(1), "1": torch.ones(1)}, {"a": {"b": STATE}, "a/b": STATE}):
        with pytest.raises(CheckpointError, match=r"holds \S+ twice"):
            open_container(saved(content, tmp_path))


SIZE, NUMBERS = b"K\x00K\x04\x85", b"X\x03\x00\x00\x00cpuq\x06K\x04"
"""Where the pickle of four numbers says their shape, and how long their storage is."""

LIES = {
    "shape": lambda raw: raw.replace(SIZE, b"K\x00K\x64\x85"),
    "shape and storage": lambda raw: raw.replace(SIZE, b"K\x00K\x64\x85").replace(
        NUMBERS, NUMBERS[:-1] + b"\x64"
    ),
    "storage": lambda raw: raw.replace(NUMBERS, NUMBERS[:-1] + b"\x64"),
    "endless shape": lambda raw: raw.replace(SIZE, b"K\x00\x8a\x06\0\0\0\0\0\x10\x85"),
    "offset": lambda raw: raw.replace(SIZE, b"K\x03K\x04\x85"),
    "offset before": lambda raw: raw.replace(SIZE, b"J\xff\xff\xff\xffK\x04\x85"),
    "stride": lambda raw: raw.replace(b"K\x01\x85", b"K\x09\x85"),
    "many from one": lambda raw: raw.replace(b"K\x01\x85", b"K\x00\x85").replace(
        SIZE, b"K\x00\x8a\x04\0\0\0\x10\x85"
    ),
    "storage that is not there": lambda raw: raw.replace(b"X\x01\0\0\x000q", b"X\x01\0\0\x009q"),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_tensor_that_is_larger_than_its_data_is_refused(kind: str, tmp_path: Path) -> None:
    change = LIES[kind]
    path = saved({"a": torch.arange(4.0)}, tmp_path)
    raw = zipfile.ZipFile(path).read("model/data.pkl")
    assert change(raw) != raw
    with pytest.raises(CheckpointError, match=r"is damaged|is a damaged PyTorch file") as caught:
        open_container(repacked(path, change=change))
    assert "\n" not in caught.value.message


ODD: dict[str, tuple[object, str]] = {
    "sparse": ({"a": torch.eye(2).to_sparse()}, "a is a Tensor, no plain tensor"),
    "no numbers": ({"a": torch.empty(3, device="meta")}, "larger than its data"),
    "nothing": ({}, "holds no tensors by name"),
    "counters": ({"step": 3, "names": ["a"]}, "holds no tensors by name"),
    "key of two lines": ({"a\nb": torch.ones(1)}, r"no tensor is named 'a\nb'"),
    "key that is no text": ({"a\ud800": torch.ones(1)}, r"no tensor is named 'a\ud800'"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_plain_tensor_by_name_is_refused(kind: str, tmp_path: Path) -> None:
    content, reason = ODD[kind]
    with pytest.raises(CheckpointError) as caught:
        open_container(saved(content, tmp_path))
    assert reason in caught.value.message


def test_a_tensor_alone_has_a_name(tmp_path: Path) -> None:
    assert set(load_state(saved(torch.ones(2), tmp_path))) == {"tensor"}


def test_integers_are_refused_as_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a is complex64 and nothing says"):
        load_state(saved({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path))


def zip_of(name: str, content: bytes) -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as archive:
        archive.writestr(name, content)
    return found.getvalue()


NO_FILES = {
    "another archive": (
        zip_of("model.safetensors", b"x"),
        "not one that PyTorch wrote: it holds no",
    ),
    "start of an archive": (b"PK\x03\x04" + bytes(99), "is a damaged archive: File is not a zip"),
    "archive of a pickle alone": (zip_of("a/data.pkl", b"\x80\x02}."), "is a damaged PyTorch file"),
    "pickle": (pickle.dumps({"a": 1}, 2), "is a damaged PyTorch file"),
    "new pickle": (pickle.dumps({"a": 1}, 5), "pickled by a protocol above 3"),
    "start of a pickle": (b"\x80\x02", "is a damaged PyTorch file"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_pytorch_file_is_refused(kind: str, tmp_path: Path) -> None:
    content, reason = NO_FILES[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_container(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_any_cut_is_found(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(100.0)}, tmp_path)
    whole = path.read_bytes()
    for length in range(4, len(whole), 53):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is a damaged archive"):
            open_container(path)

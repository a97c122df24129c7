"""Files that hold tensors by name: what they are is told by their first bytes, never their names.

Opening reads the header alone and checks it against the file's size; a tensor is read when it is
asked for, into memory of its own, so that whoever goes through a file holds one tensor at a time.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from cfgen.errors import CheckpointError
from cfgen.files.reading import open_binary, read_text

FETCH_AGAIN = "download the file again"
CHECK_PATH = "check the path of the model"

NAME_LIMIT = 1000
"""Letters of a tensor's name, at most; published files have 100."""

KNOWN_OTHER_FILES = (
    (b"version https://git-lfs", "a git-LFS pointer to the weights", "run git lfs pull"),
    (b"<!doctype html", "a web page", FETCH_AGAIN),
    (b"<html", "a web page", FETCH_AGAIN),
    (b"<?xml", "an XML page, most likely a server's error message", FETCH_AGAIN),
    (b"\x1f\x8b", "a gzip archive", "unpack it and give the file inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and give the file inside"),
    (b"\x93numpy", "a NumPy array", CHECK_PATH),
    (b"\x89hdf", "an HDF5 file", "ask for safetensors"),
    (b"%pdf", "a PDF document", CHECK_PATH),
    (b"\xff\xd8\xff", "a JPEG picture", CHECK_PATH),
    (b"\x89png", "a PNG picture", CHECK_PATH),
    (b"ggml", "a GGML file, the format before GGUF", "ask for GGUF or safetensors"),
)
"""First bytes, in lower case, of files that people take for weights; what they are; what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header says of a tensor.

    Attributes:
        kind: dtype in torch's words (`bfloat16`), or one of GGML's block formats (`Q4_K`).
        shape: shape of what it stands for.
        nbytes: bytes in the file.
    """

    kind: str
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, tensor: Tensor) -> Entry:
        """What a header says of a tensor."""
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.nbytes)

    @property
    def dtype(self) -> torch.dtype | None:
        """Its dtype; None for GGML's block formats."""
        found = getattr(torch, self.kind, None)
        return found if isinstance(found, torch.dtype) else None

    @property
    def is_float(self) -> bool:
        """Whether it holds numbers that stand for themselves."""
        return self.kind in ("float64", "float32", "float16", "bfloat16")


class Container(Protocol):
    """An opened file, or several that belong together."""

    @property
    def path(self) -> Path:
        """The file, for messages."""

    @property
    def kind(self) -> str:
        """What it is, in words."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that tensors come from."""

    @property
    def metadata(self) -> Mapping[str, object]:
        """What its header says besides, by key."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What is in it, by name; parts of a nested file are joined by `/`."""

    def read(self, name: str) -> Tensor:
        """A tensor in memory of its own; blocks as uint8 [rows, bytes of a row].

        Raises:
            CheckpointError: the file changed or cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Outline:
    """A file whose tensor `hidden` comes without data, on the meta device; else as it is."""

    path: Path
    kind: str
    files: tuple[Path, ...]
    metadata: Mapping[str, object]
    entries: Mapping[str, Entry]
    file: Container
    hidden: str

    @classmethod
    def of(cls, file: Container, hidden: str) -> Outline:
        """The file, of which the tensor `hidden` is not read."""
        return cls(file.path, file.kind, file.files, file.metadata, file.entries, file, hidden)

    def read(self, name: str) -> Tensor:
        """A tensor in memory of its own; of the hidden one only shape and dtype."""
        if name != self.hidden:
            return self.file.read(name)
        found = self.entries[name]
        return torch.empty(found.shape, dtype=found.dtype or torch.uint8, device="meta")


def refuse_stranger(path: Path) -> None:
    """Refuse a file that starts like something that is no checkpoint at all."""
    start = first_bytes(path)
    known = b"" if is_safetensors(start) else start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what, hint in KNOWN_OTHER_FILES:
        if known.startswith(magic):
            raise CheckpointError(f"{path} is {what}, not a file of weights", hint)
    if start[4:8] == b"ftyp":
        raise CheckpointError(f"{path} is a video, not a file of weights", CHECK_PATH)
    if len(start) > 8 and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        what = "JSON" if known.startswith((b"{", b"[")) else "text"
        raise CheckpointError(f"{path} is {what}, not a file of weights", CHECK_PATH)


def is_safetensors(start: bytes) -> bool:
    """Whether a file starts with the length of a header and the header; a length may be a magic."""
    return start[4:9] == b"\0\0\0\0{"


def first_bytes(path: Path) -> bytes:
    """What a file starts with.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path} is a device or a pipe, not a file", CHECK_PATH)
        with open_binary(path) as file:
            return file.read(64)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", CHECK_PATH) from error
    except IsADirectoryError as error:
        refuse_dcp(path)
        raise CheckpointError(f"{path} is a folder, not a file of weights", CHECK_PATH) from error
    except OSError as error:
        raise unreadable(path, error) from error


def refuse_dcp(folder: Path) -> None:
    """Refuse a folder that torch.distributed.checkpoint wrote.

    Raises:
        CheckpointError: it is one.
    """
    if any(folder.glob("*.distcp")):
        raise CheckpointError(
            f"{folder} is a distributed checkpoint (DCP), whose index is a pickle with code",
            "turn it into one file where it was made: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
        )


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file that the system refuses to read."""
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}")


def read_at(path: Path, offset: int, nbytes: int) -> Tensor:
    """Bytes of a file as uint8 [nbytes].

    Raises:
        CheckpointError: the file ends before, or cannot be read.
    """
    found = torch.empty(nbytes, dtype=torch.uint8)
    try:
        with open_binary(path) as file:
            file.seek(offset)
            _fill(file, found.numpy().data)
    except EOFError as error:
        raise CheckpointError(f"{path} became shorter while it was read", FETCH_AGAIN) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return found


def _fill(file: BinaryIO, view: memoryview) -> None:
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, cannot be read or holds no JSON object.
    """
    try:
        found = json.loads(read_text(path), object_pairs_hook=each_once)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "restore the model folder") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", "restore the model folder") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} must hold a JSON object, got {type(found).__name__}",
            "restore the model folder",
        )
    return found


def each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, for `json.loads`; names that stand in it twice raise a ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f"it names {twice} twice")
    return found


def size_of(path: Path) -> int:
    """Bytes of a file."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise unreadable(path, error) from error

"""Safetensors files, read and written whole; whatever is not one is refused by name."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfgen.errors import CheckpointError, OutputRefused

HEADER_LIMIT = 100_000_000
"""Bytes of the longest header that the safetensors format allows."""

FETCH_AGAIN = "download the file again"

STRANGERS = (
    (b"version https://git-lfs", "a git-LFS pointer to the weights", "run git lfs pull"),
    (b"<!doctype html", "a web page", FETCH_AGAIN),
    (b"<html", "a web page", FETCH_AGAIN),
    (b"pk\x03\x04", "a zip archive or a PyTorch .pt file", "convert it to safetensors"),
    (b"gguf", "a GGUF file", "convert it to safetensors"),
)
"""First bytes, in lower case, of files that people take for weights; what they are; what to do."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything in a file: tensors by name and the text of its header."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read(path: Path) -> Contents:
    """Read a safetensors file into memory.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it is cut off, damaged or no
            safetensors file.
    """
    try:
        _inspect(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names: list[str] = list(file.keys())
            return Contents({name: file.get_tensor(name) for name in names}, metadata)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "check the path of the model") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path} is a folder, not a safetensors file") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}", FETCH_AGAIN) from error


def write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that `path` never holds half of one.

    Args:
        tensors: what to write; no two may share storage.
        path: the file, replaced if it is there.
        metadata: text for the header.

    Raises:
        OutputRefused: the folder is missing or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        temporary.touch()
        save_file(ready, temporary, metadata={"format": "pt", **metadata})
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        if os.name == "posix":
            _sync(path.parent, os.O_RDONLY)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputRefused(f"{path} cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits, worked out once for a file that does not change.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        facts = path.stat()
        return _digest(path, facts.st_size, facts.st_mtime_ns, facts.st_ino)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


@functools.lru_cache(maxsize=64)
def _digest(path: Path, *_stamp: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, cannot be read or holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "restore the model folder") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}", "restore the model folder") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} must hold a JSON object, got {type(found).__name__}",
            "restore the model folder",
        )
    return found


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that stand for themselves (fp8 included)."""
    return tensor.is_floating_point() and tensor.dtype != torch.float8_e8m0fnu


def _inspect(path: Path) -> None:
    """Refuse what is certainly no whole safetensors file, saying what it is instead."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(64)
        known = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        for magic, what, hint in STRANGERS:
            if known.startswith(magic):
                raise CheckpointError(f"{path} is {what}, not a safetensors file", hint)
        if size < 8:
            raise CheckpointError(f"{path} is cut off: it has {size} bytes", FETCH_AGAIN)
        length = int.from_bytes(start[:8], "little")
        if length > HEADER_LIMIT:
            raise CheckpointError(
                f"{path} is not a safetensors file: it announces a header of {length} bytes, "
                f"at most {HEADER_LIMIT} are allowed",
                FETCH_AGAIN,
            )
        file.seek(8)
        needed = 8 + length
        if size >= needed:
            needed += _data_bytes(path, file.read(length))
    if size < needed:
        raise CheckpointError(
            f"{path} is cut off: it has {size} of at least {needed} bytes", FETCH_AGAIN
        )


def _data_bytes(path: Path, header: bytes) -> int:
    """Bytes of data behind a header."""
    try:
        entries = json.loads(header)
        ends = [e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"]
        return int(max(ends, default=0))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header cannot be read", FETCH_AGAIN
        ) from error


def _sync(path: Path, flags: int) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

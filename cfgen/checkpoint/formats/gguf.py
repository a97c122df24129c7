"""GGUF files: a header that is checked before it is believed, and blocks read where they lie.

The header is read here and not by gguf-py's reader, which follows any count that a file announces
without looking whether the file is that long.
Source: ggml docs/gguf.md (the format); gguf-py constants.py (sizes of blocks).
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from cfgen.checkpoint.formats.base import (
    FETCH_AGAIN,
    NAME_LIMIT,
    Entry,
    read_at,
    size_of,
    unreadable,
)
from cfgen.errors import CheckpointError
from cfgen.files.reading import open_binary
from cfgen.ops.quant import ggml

MAGIC = b"GGUF"
VERSIONS = (2, 3)

PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PLAIN |= {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
"""GGML's types that are plain numbers, in torch's words."""

SCALARS = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")
"""`struct` letters of the value types by number; None for strings (8) and arrays (9)."""

STRING, ARRAY = 8, 9
NESTING = 4
"""Arrays in arrays, at most; the format sets no limit and files use one."""

AXES = 8
"""Axes of a tensor, at most."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An opened GGUF file; see `Container`."""

    path: Path
    kind: str
    metadata: Mapping[str, object]
    entries: Mapping[str, Entry]
    offsets: Mapping[str, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Container`."""
        return (self.path,)

    def read(self, name: str) -> Tensor:
        """See `Container`."""
        entry = self.entries[name]
        found = read_at(self.path, self.offsets[name], entry.nbytes)
        if entry.dtype is not None:
            return found.view(entry.dtype).view(entry.shape)
        return found.view(math.prod(entry.shape[:-1]), -1)


class _Short(Exception):
    """The header asks for bytes that the file has not."""


@dataclass(slots=True)
class _Cursor:
    """Reads a header in order and never past its end."""

    data: memoryview
    place: int = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.place:
            raise _Short
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, letter: str) -> int | float | bool:
        found: int | float | bool = struct.unpack(
            "<" + letter, self.take(struct.calcsize("<" + letter))
        )[0]
        return found

    def whole(self, letter: str) -> int:
        return int(self.number(letter))

    def text(self) -> str:
        return bytes(self.take(self.whole("Q"))).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> object:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array(depth + 1)
        letter = SCALARS[kind] if 0 <= kind < len(SCALARS) else None
        if letter is None:
            raise ValueError(f"a value of the unknown type {kind}")
        return self.number(letter)

    def _array(self, depth: int) -> object:
        kind, count = self.whole("I"), self.whole("Q")
        if depth > NESTING:
            raise ValueError(f"arrays nested more than {NESTING} deep")
        letter = SCALARS[kind] if 0 <= kind < len(SCALARS) else None
        if letter is not None:
            return np.frombuffer(self.take(count * struct.calcsize("<" + letter)), "<" + letter)
        least = 8 if kind == STRING else 12
        if count * least > len(self.data) - self.place:
            raise _Short
        return [self.value(kind, depth) for _ in range(count)]


@dataclass(slots=True)
class _Header:
    metadata: dict[str, object] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file.

    Raises:
        CheckpointError: it is cut off, damaged, of an unknown version, or holds a type that cfgen
            cannot compute with.
    """
    try:
        with open_binary(path) as file:
            mapped = np.memmap(file, dtype=np.uint8, mode="r")
        cursor = _Cursor(memoryview(mapped))  # type: ignore[arg-type]
        cursor.take(len(MAGIC))
        version = cursor.whole("I")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{path} is GGUF version {version}; versions 2 and 3 in little-endian order are "
                "read",
                "ask for a newer conversion",
            )
        header = _read_header(cursor)
        start = cursor.place + -cursor.place % _alignment(header.metadata)
        entries, offsets = _entries(path, header, start)
    except _Short as error:
        raise CheckpointError(
            f"{path} is cut off or damaged: its header asks for more than {size_of(path)} bytes",
            FETCH_AGAIN,
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: it holds {error}", FETCH_AGAIN) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return GgufFile(path, f"GGUF version {version}", header.metadata, entries, offsets)


def _read_header(cursor: _Cursor) -> _Header:
    header = _Header()
    tensors, pairs = cursor.whole("Q"), cursor.whole("Q")
    if 24 * tensors + 13 * pairs > len(cursor.data):
        raise _Short
    for _ in range(pairs):
        key = cursor.text()
        if key in header.metadata:
            raise ValueError(f"the key {key} twice")
        header.metadata[key] = cursor.value(cursor.whole("I"))
    for _ in range(tensors):
        name, axes = cursor.text(), cursor.whole("I")
        if axes > AXES or len(name) > NAME_LIMIT:
            raise ValueError(f"{name[:NAME_LIMIT]} with {axes} axes")
        shape = tuple(cursor.whole("Q") for _ in range(axes))[::-1]
        if 0 in shape:
            raise ValueError(f"{name} without numbers")
        if name in header.tensors:
            raise ValueError(f"{name} twice")
        header.tensors[name] = (shape, cursor.whole("I"), cursor.whole("Q"))
    return header


def _alignment(metadata: Mapping[str, object]) -> int:
    """What the place where the data start is a multiple of."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise ValueError(f"an alignment of {alignment}")
    return alignment


def _entries(path: Path, header: _Header, start: int) -> tuple[dict[str, Entry], dict[str, int]]:
    entries: dict[str, Entry] = {}
    offsets: dict[str, int] = {}
    size = size_of(path)
    for name, (shape, number, offset) in header.tensors.items():
        entries[name] = _entry(path, name, _original_shape(header.metadata, name, shape), number)
        offsets[name] = start + offset
        end = offsets[name] + entries[name].nbytes
        if end > size:
            raise CheckpointError(
                f"{path} is cut off: {name} ends at byte {end}, the file has {size}", FETCH_AGAIN
            )
    order = sorted(offsets, key=offsets.__getitem__)
    for name, after in itertools.pairwise(order):
        if offsets[name] + entries[name].nbytes > offsets[after]:
            raise ValueError(f"{name} and {after} in the same place")
    return entries, offsets


def _original_shape(
    metadata: Mapping[str, object], name: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape before a converter changed it (ComfyUI-GGUF's `comfy.gguf.orig_shape.*`)."""
    words = name.split(".")  # the key may lack the prefix that the name has
    keys = (f"comfy.gguf.orig_shape.{'.'.join(words[i:])}" for i in range(len(words)))
    told = next((metadata[key] for key in keys if key in metadata), None)
    if told is None:
        return shape
    numbers: tuple[int, ...] = ()
    if isinstance(told, np.ndarray) and told.dtype.kind in "iu":
        numbers = tuple(int(n) for n in told)
    if math.prod(numbers) != math.prod(shape) or min(numbers, default=0) < 1:
        raise ValueError(f"an original shape of {name} that does not fit: {told}")
    return numbers


def _entry(path: Path, name: str, shape: tuple[int, ...], number: int) -> Entry:
    kind = _type_names().get(number, f"type {number}")
    if kind in PLAIN:
        dtype = PLAIN[kind]
        itemsize = np.dtype("uint16" if dtype == "bfloat16" else dtype).itemsize
        return Entry(dtype, shape, itemsize * math.prod(shape))
    layout = ggml.FORMATS.get(kind)
    if layout is None:
        known = ", ".join([*PLAIN, *ggml.FORMATS])
        raise CheckpointError(
            f"{path}: {name} is stored as {kind}, which cfgen does not compute with; it reads "
            f"{known}",
            "take another quantization of the model",
        )
    if not shape or shape[-1] % layout.numbers:
        raise CheckpointError(
            f"{path} is damaged: {name} {list(shape)} cannot be {kind}, whose rows are multiples "
            f"of {layout.numbers}",
            FETCH_AGAIN,
        )
    return Entry(kind, shape, math.prod(shape) // layout.numbers * layout.nbytes)


@functools.cache
def _type_names() -> Mapping[int, str]:
    """GGML's types by number."""
    from gguf import GGMLQuantizationType

    return {int(kind): kind.name for kind in GGMLQuantizationType}

"""Safetensors files: read tensor by tensor, written tensor by tensor, whole or in shards.

Source: the format as huggingface/safetensors describes it (README, "Format").
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cfgen.checkpoint.formats.base import (
    FETCH_AGAIN,
    Entry,
    each_once,
    read_at,
    read_json,
    refuse_stranger,
    size_of,
    unreadable,
)
from cfgen.errors import CheckpointError, OutputRefused
from cfgen.files.reading import open_binary
from cfgen.files.writing import create, sync_folder

HEADER_LIMIT = 100_000_000
"""Bytes of the longest header that the format allows."""

OF_ALL_LAYERS = ("_quantization_metadata", "quantization_map_base64", "checkpoint_format")
"""Keys of the metadata under which a file declares its quantized layers."""

AXIS_LIMIT = 2**40
"""The longest axis of a tensor; only one without numbers could be longer."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of dtypes; files of weights use no others."""

CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """An opened safetensors file; see `Container`."""

    path: Path
    metadata: Mapping[str, object]
    entries: Mapping[str, Entry]
    offsets: Mapping[str, int]
    kind: str = "safetensors"

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Container`."""
        return (self.path,)

    def read(self, name: str) -> Tensor:
        """See `Container`."""
        entry = self.entries[name]
        dtype = entry.dtype
        assert dtype is not None
        return read_at(self.path, self.offsets[name], entry.nbytes).view(dtype).view(entry.shape)


@dataclass(frozen=True, slots=True)
class ShardedFile:
    """Several safetensors files under one index; see `Container`."""

    path: Path
    shards: Sequence[SafetensorsFile]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """See `Container`."""
        return f"safetensors in {len(self.shards)} shards"

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Container`."""
        return (self.path, *(shard.path for shard in self.shards))

    def read(self, name: str) -> Tensor:
        """See `Container`."""
        return next(shard for shard in self.shards if name in shard.entries).read(name)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Open one safetensors file.

    Raises:
        CheckpointError: it is cut off, damaged or no such file.
    """
    refuse_stranger(path)
    try:
        length, header = _header(path)
        with safe_open(path, framework="np"):
            pass  # the library's own parser judges every entry, strictly and in bounded memory
    except OSError as error:
        raise unreadable(path, error) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}", FETCH_AGAIN) from error
    found = _parse(path, header)
    metadata = found.pop("__metadata__", None)
    entries: dict[str, Entry] = {}
    offsets: dict[str, int] = {}
    for name, facts in found.items():
        entries[name], start = _entry(path, name, facts)
        offsets[name] = 8 + length + start
    return SafetensorsFile(path, metadata if isinstance(metadata, dict) else {}, entries, offsets)


def _header(path: Path) -> tuple[int, bytes]:
    """Length and text of a header, once the file is long enough for it."""
    size = size_of(path)
    if size < 8:
        raise CheckpointError(f"{path} is cut off: it has {size} bytes", FETCH_AGAIN)
    with open_binary(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            raise CheckpointError(
                f"{path} is no file of weights that cfgen knows: read as safetensors it announces "
                f"a header of {length} bytes, at most {HEADER_LIMIT} are allowed",
                "give a safetensors, GGUF or PyTorch file; if it should be one, " + FETCH_AGAIN,
            )
        header = file.read(min(length, size - 8))
    needed = 8 + length
    if size >= needed and (end := _last_end(header)) is not None:
        needed += end
    if size < needed:
        raise CheckpointError(
            f"{path} is cut off: it has {size} of at least {needed} bytes", FETCH_AGAIN
        )
    return length, header


def _last_end(header: bytes) -> int | None:
    """Bytes of data behind a header, or None if it cannot be told."""
    try:
        entries = json.loads(header)
        ends = [e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"]
        return int(max(ends, default=0))
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError):
        return None


def _parse(path: Path, header: bytes) -> dict[str, object]:
    """The header as an object, without double names."""
    try:
        found: dict[str, object] = json.loads(header, object_pairs_hook=each_once)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: in its header, {error}", FETCH_AGAIN) from error
    return found


def _entry(path: Path, name: str, facts: object) -> tuple[Entry, int]:
    """What a header says of one tensor, and where its data starts behind the header."""
    assert isinstance(facts, dict)  # the library's parser has seen it
    dtype = DTYPES.get(facts["dtype"])
    if dtype is None:
        known = ", ".join(DTYPES)
        raise CheckpointError(
            f"{path}: {name} has the dtype {facts['dtype']}, which cfgen does not read; it reads "
            f"{known}"
        )
    start, end = facts["data_offsets"]
    shape = tuple(facts["shape"])
    if math.prod(shape) * dtype.itemsize != end - start or max(shape, default=0) > AXIS_LIMIT:
        raise CheckpointError(f"{path} is damaged: {name} has not the size of its shape")
    return Entry(str(dtype).removeprefix("torch."), shape, end - start), start


def open_sharded(index: Path) -> ShardedFile:
    """Open all shards that an index lists.

    Raises:
        CheckpointError: the index is none, a shard is missing or damaged, or they disagree.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} is no index of shards: it has no weight_map")
    names = sorted({str(place) for place in places.values()})
    for name in names:
        if Path(name).name != name or name in ("", "..") or not name.isprintable():
            raise CheckpointError(f"{index}: the shard {name!r} must lie beside its index")
    shards = [open_safetensors(index.parent / name) for name in names]
    entries: dict[str, Entry] = {}
    for shard in shards:
        for name, entry in shard.entries.items():
            if places.get(name) != shard.path.name:
                told = places.get(name, "nowhere")
                raise CheckpointError(
                    f"{index} and {shard.path.name} differ: {name} should be in {told}",
                    "download all shards and their index again",
                )
            entries[name] = entry
    if missing := sorted(set(places) - set(entries)):
        raise CheckpointError(
            f"{index} lists {missing[0]}, which {places[missing[0]]} does not hold",
            "download all shards and their index again",
        )
    return ShardedFile(index, shards, entries, _joined(index, shards))


def _joined(index: Path, shards: Sequence[SafetensorsFile]) -> dict[str, object]:
    """What the shards' headers say besides; they may not differ in what they say of all layers.

    Raises:
        CheckpointError: they do.
    """
    joined: dict[str, object] = {}
    for shard in shards:
        for key, value in shard.metadata.items():
            if joined.setdefault(key, value) != value and key in OF_ALL_LAYERS:
                raise CheckpointError(
                    f"{index}: its shards say different things of {key}",
                    "join the shards into one file where they were made",
                )
    return joined


def write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that `path` never holds half of one; see `write_stream`."""
    entries = {name: Entry.of(t) for name, t in tensors.items()}
    write_stream(entries, tensors.__getitem__, path, metadata)


def write_stream(
    entries: Mapping[str, Entry],
    tensor: Callable[[str], Tensor],
    path: Path,
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file tensor by tensor, so that `path` never holds half of one.

    Args:
        entries: what will be written, by name.
        tensor: gives each tensor when its turn comes, in the order of `entries`.
        path: the file, replaced if it is there.
        metadata: text for the header.

    Raises:
        OutputRefused: the folder is missing or the file cannot be written.
        ValueError: a tensor is not what its entry says.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with create(temporary) as file:
            file.write(_header_bytes(entries, {"format": "pt", **metadata}))
            for name in entries:
                file.write(_data_bytes(name, entries[name], tensor(name)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputRefused(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    for name, (entry, start) in zip(entries, _laid_out(entries.values()), strict=True):
        assert entry.dtype is not None
        header[name] = {
            "dtype": CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _laid_out(entries: Iterable[Entry]) -> Iterator[tuple[Entry, int]]:
    start = 0
    for entry in entries:
        yield entry, start
        start += entry.nbytes


def _data_bytes(name: str, entry: Entry, tensor: Tensor) -> memoryview:
    if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, announced {entry.kind} {entry.shape}"
        )
    flat = tensor.detach().cpu().contiguous().flatten()
    run = flat.as_strided((flat.numel(),), (1,))  # a single number may have any stride
    return run.view(torch.uint8).numpy().data

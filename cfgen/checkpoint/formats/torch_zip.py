"""PyTorch files (.pt, .pth, .bin): read with `weights_only=True`, after a look at the archive.

Nothing of such a file is ever run. What is not a tensor in dictionaries and lists (counters,
optimizer settings) is passed over; a class that torch does not allow is refused by name.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.formats.base import FETCH_AGAIN, Entry, first_bytes, size_of, unreadable
from cfgen.errors import CheckpointError
from cfgen.out_of_memory import is_out_of_memory

MAGICS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in (2, 3, 4, 5)))
"""First bytes: a zip archive, or a bare pickle as torch wrote it before version 1.6."""

PICKLE_LIMIT = 64_000_000
"""Bytes of the longest pickle inside an archive; names of 100,000 tensors take a tenth of it."""

DEPTH = 8
"""Dictionaries in dictionaries, at most."""

TENSORS, VALUES = 100_000, 1_000_000
"""Tensors and other values, at most: what is in a small file once may stand in it many times."""

SAFE = "ask for safetensors, or convert it where it was made"


@dataclass(frozen=True, slots=True)
class TorchFile:
    """An opened PyTorch file; see `Container`. Its tensors are mapped, and copied when read."""

    path: Path
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, object] = field(default_factory=dict)
    kind: str = "PyTorch"

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Container`."""
        return (self.path,)

    def read(self, name: str) -> Tensor:
        """See `Container`."""
        return self.tensors[name].detach().clone(memory_format=torch.contiguous_format)


def open_torch(path: Path) -> TorchFile:
    """Open a PyTorch file.

    Raises:
        CheckpointError: it is damaged, asks for code, or holds no tensors.
    """
    if path.suffix == ".distcp":
        raise CheckpointError(
            f"{path} is one part of a distributed checkpoint (DCP)",
            "turn the folder into one file where it was made: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
        )
    archive = first_bytes(path).startswith(b"PK")
    sizes = _inspect(path) if archive else None
    found = _load(path, mmap=archive)
    tensors: dict[str, Tensor] = {}
    for count, (name, value) in enumerate(_flat(path, found)):
        if count > VALUES or len(tensors) > TENSORS:
            raise CheckpointError(f"{path} holds more values than any network has", SAFE)
        if not isinstance(value, Tensor):
            continue
        if name in tensors:
            raise CheckpointError(f"{path} holds {name} twice")
        tensors[name] = _plain(path, name, value)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name", "check the path of the model")
    if sizes is not None:
        _compare_sizes(path, tensors.values(), sizes)
    entries = {name: Entry.of(t) for name, t in tensors.items()}
    return TorchFile(path, tensors, entries)


def _inspect(path: Path) -> Counter[int]:
    """How often a member of each size is in an archive, if torch wrote it as it writes them."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is a damaged archive: {error}", FETCH_AGAIN) from error
    names = [member.filename for member in members]
    if any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", name) for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, whose code cfgen never runs",
            "save the state_dict of the module in it where it was made: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW)",
        )
    pickles = [member for member in members if member.filename.endswith("data.pkl")]
    if not pickles:
        raise CheckpointError(
            f"{path} is a zip archive, but not one that PyTorch wrote: it holds no data.pkl",
            "unpack it and give the file of weights inside",
        )
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path} is damaged: its archive names a member twice", FETCH_AGAIN)
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > size_of(path):
        what = f"{packed[0]} is compressed" if packed else "it unpacks to more than it is"
        raise CheckpointError(
            f"{path} is no archive as PyTorch writes them: {what}, as in one that was unpacked and "
            "zipped again, or in a zip bomb",
            "take the file as it was published, or zip its folder again without compression "
            "(zip -0 -r)",
        )
    if max(member.file_size for member in pickles) > PICKLE_LIMIT:
        raise CheckpointError(f"{path} holds a pickle of more than {PICKLE_LIMIT} bytes", SAFE)
    return Counter(member.file_size for member in members)


def _compare_sizes(path: Path, tensors: Iterable[Tensor], sizes: Counter[int]) -> None:
    """Refuse tensors whose data are no member of the archive: torch maps without comparing."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.nbytes]
    told = {storage.data_ptr(): storage.nbytes() for storage in storages}
    if odd := Counter(told.values()) - sizes:
        raise CheckpointError(
            f"{path} is damaged: it announces {next(iter(odd))} bytes that are none of its members",
            FETCH_AGAIN,
        )


def _load(path: Path, *, mmap: bool) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # of protocols and of TorchScript
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise unreadable(path, error) from error
    except MemoryError as error:
        raise CheckpointError(f"{path} asks for more memory than there is", SAFE) from error
    except Exception as error:  # torch raises whatever a damaged pickle leads to
        asked = re.search(r"allocate (\d+) bytes", str(error))
        if asked and int(asked[1]) > size_of(path):  # the file's fault, not the machine's
            raise CheckpointError(
                f"{path} is damaged: it announces {asked[1]} bytes, more than the whole file has",
                FETCH_AGAIN,
            ) from error
        if is_out_of_memory(error):
            raise
        foreign = re.search(r"GLOBAL ([\w.]+)|Trying to instantiate class ([\w.]+)", str(error))
        if foreign:
            name = foreign.group(1) or foreign.group(2)
            raise CheckpointError(
                f"{path} is a pickle that asks for {name}; cfgen never runs what a file brings",
                SAFE,
            ) from error
        told = str(error).rpartition("WeightsUnpickler error:")[2]  # without torch's unsafe advice
        if "Unsupported operand" in told:  # whatever later protocols of pickle added
            raise CheckpointError(
                f"{path} is damaged, or pickled by a protocol above 3, which torch does not read "
                "without running code",
                "save it by torch.save's default protocol, or as safetensors",
            ) from error
        reason = " ".join(told.split())[:200] or type(error).__name__
        raise CheckpointError(f"{path} is a damaged PyTorch file: {reason}", FETCH_AGAIN) from error


def _flat(
    path: Path, found: object, before: str = "", depth: int = 0
) -> Iterator[tuple[str, object]]:
    """Nested dictionaries and lists and their values under their keys, joined by `/`."""
    yield before or "tensor", found
    if isinstance(found, list | tuple):
        found = dict(enumerate(found))
    if not isinstance(found, dict):
        return
    if depth > DEPTH:
        raise CheckpointError(f"{path} nests dictionaries more than {DEPTH} deep", SAFE)
    for key, value in found.items():
        name = f"{before}/{key}" if before else str(key)
        yield from _flat(path, value, name, depth + 1)


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor, if it is an ordinary one whose numbers are all in the file."""
    ordinary = type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_nested
    if not ordinary or tensor.layout != torch.strided:
        raise CheckpointError(f"{path}: {name} is a {type(tensor).__name__}, no plain tensor", SAFE)
    if tensor.device.type != "cpu" or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path} is damaged: {name} {list(tensor.shape)} is larger than its data", SAFE
        )
    return tensor

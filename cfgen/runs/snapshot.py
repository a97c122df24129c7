"""Snapshots: what a memory holds between two chunks, on disk, for a render to go on from there.

Pages never change once they are committed, so a snapshot writes the pages that no file has yet and
a manifest that says where each page is. If less than a quarter of a file is still needed, those
pages are written to the new file and the old one is deleted, so that the disk holds little more
than what the snapshots need. Chunks are numbered from 0: the snapshot of chunk N is the state
before it, which people read as the snapshot after chunk N.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cfgen.errors import SnapshotCorrupt
from cfgen.files.reading import read_bytes
from cfgen.files.writing import disk_errors, sha256_of, sync_folder, write_file
from cfgen.memory.protocols import MemoryState
from cfgen.runs.records import parse_as, verify, with_checksum
from cfgen.timeline import KEPT_SNAPSHOTS

VERSION = 1
MIN_LIVE_SHARE = 0.25
"""A file of which a smaller share of bytes is needed is rewritten."""

_MANIFEST_LIMIT = 1 << 30

_TENSORS = re.compile(r"[0-9]{6,}-[0-9]+\.safetensors")
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
}


@dataclass(frozen=True, slots=True)
class _File:
    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Manifest:
    chunk: int
    scalars: dict[str, object]
    where: dict[str, str]  # tensor -> file
    files: dict[str, _File]


class SnapshotStore:
    """The snapshots of one render, in a folder of their own.

    Args:
        folder: The folder; it is made when the first snapshot is.
        run: Digest of what fixes the render; snapshots of another render are ignored.
        budget_nbytes: Disk that snapshots may use; the last two stay even beyond it.
        base: The chunk that the render branched off at, whose snapshot always stays, or 0.
    """

    def __init__(self, folder: Path, run: str, *, budget_nbytes: int, base: int = 0) -> None:
        self.folder, self.base = folder, base
        self._run, self._budget = run, budget_nbytes
        self._files: dict[int, dict[str, _File]] = {}
        self._file_of_tensor: dict[str, str] = {}  # of the newest; what it lacks is not on disk
        self.problems: list[str] = []
        # A digit before the dot: this skips the *.part.json that a killed process leaves.
        for path in sorted(folder.glob("*[0-9].json")) if folder.is_dir() else []:
            try:
                manifest = self._read(path)
                self._files[manifest.chunk] = manifest.files
                self._file_of_tensor = manifest.where
            except (OSError, ValueError) as error:
                self.problems.append(f"snapshot {path.name} is damaged and not used: {error}")

    @property
    def chunks(self) -> list[int]:
        """The chunks that there are snapshots for, in order."""
        return sorted(self._files)

    @property
    def nbytes(self) -> int:
        """Bytes of all files of tensors."""
        distinct = {name: file for files in self._files.values() for name, file in files.items()}
        return sum(file.nbytes for file in distinct.values())

    def save(self, chunk: int, state: MemoryState) -> int:
        """Write the state before chunk `chunk`; the new manifest is the last thing written.

        Returns:
            Bytes that were written.

        Raises:
            BudgetError, WriterError: The disk refused; the snapshots before are as they were.
        """
        name = self._free_name(chunk)
        held = self._reusable_pages(state.pages)
        fresh: dict[str, Tensor] = {f"tensor.{key}": t for key, t in state.tensors.items()}
        fresh |= {f"page.{key}": page for key, page in state.pages.items() if key not in held}
        with disk_errors(self.folder / name):
            if not self.folder.is_dir():
                self.folder.mkdir()
                sync_folder(self.folder.parent)
            blocks = tensor_blocks(fresh, lambda key: state.content(key.removeprefix("page.")))
            digest = write_file(self.folder / name, blocks)
            own = _File(digest, (self.folder / name).stat().st_size)
            files = {file: known for _, (file, known) in held.items()} | {name: own}
            where = dict.fromkeys(fresh, name)
            where |= {f"page.{key}": file for key, (file, _) in held.items()}
            manifest = _Manifest(chunk, state.scalars, where, files)
            block = self._manifest_bytes(manifest)
            write_file(self._manifest_path(chunk), [block])
        self._files[chunk], self._file_of_tensor = files, where
        self._enforce_budget()
        return own.nbytes + len(block)

    def newest(self, *, before: int) -> int:
        """The newest sound snapshot for chunk `before` or an earlier one, 0 if there is none.

        What is found damaged on the way is told in `problems`.
        """
        for chunk in reversed([chunk for chunk in self.chunks if chunk <= before]):
            try:
                self._verify(chunk)
            except SnapshotCorrupt as error:
                self.problems.append(f"{error}; it is not used")
                del self._files[chunk]
            else:
                return chunk
        return 0

    def load(self, chunk: int) -> MemoryState:
        """The state of a snapshot that `newest` gave.

        Raises:
            SnapshotCorrupt: It changed since.
        """
        path = self._manifest_path(chunk)
        tensors: dict[str, Tensor] = {}
        try:
            manifest = self._read(path)
            for name in manifest.files:
                wanted = [key for key, place in manifest.where.items() if place == name]
                with safe_open(self.folder / name, "pt") as opened:
                    tensors |= {key: opened.get_tensor(key).clone() for key in wanted}
            self._verify(chunk)  # once more: what was read is in memory now
        except (OSError, ValueError, SafetensorError) as error:
            raise SnapshotCorrupt(f"cannot read snapshot {path}: {error}", "resume again") from None
        parts = {
            kind: {key.removeprefix(kind): t for key, t in tensors.items() if key.startswith(kind)}
            for kind in ("tensor.", "page.")
        }
        return MemoryState(manifest.scalars, parts["tensor."], parts["page."])

    def drop(self, *, after: int) -> None:
        """Remove the snapshots for chunks after `after`, and everything that nothing points at."""
        self._files = {chunk: files for chunk, files in self._files.items() if chunk <= after}
        self.delete_unreferenced()

    def keep_newest(self) -> None:
        """Once the film is finished: remove all but the newest and the one branched off at."""
        kept = {self.base, *self.chunks[-KEPT_SNAPSHOTS:]}
        self._files = {chunk: files for chunk, files in self._files.items() if chunk in kept}
        self.delete_unreferenced()

    def delete_unreferenced(self) -> None:
        """Remove every file of the folder that no snapshot needs."""
        needed = {self._manifest_path(chunk).name for chunk in self._files}
        needed |= {name for files in self._files.values() for name in files}
        for path in self.folder.iterdir() if self.folder.is_dir() else []:
            if path.name not in needed:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _manifest_path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.json"

    def _free_name(self, chunk: int) -> str:
        """A name that no file has: another snapshot may need pages of an earlier try."""
        names = (f"{chunk:06d}-{attempt}.safetensors" for attempt in count())
        return next(name for name in names if not (self.folder / name).exists())

    def _reusable_pages(self, pages: Mapping[str, Tensor]) -> dict[str, tuple[str, _File]]:
        """Which of the pages are in a file that is worth keeping, and in which."""
        newest = self._files[self.chunks[-1]] if self._files else {}
        held = {
            page: (name, newest[name])
            for page in pages
            if (name := self._file_of_tensor.get(f"page.{page}", "")) in newest
        }
        live: dict[str, int] = {}
        for page, (file, _) in held.items():
            live[file] = live.get(file, 0) + pages[page].nbytes
        return {
            page: (file, known)
            for page, (file, known) in held.items()
            if live[file] >= MIN_LIVE_SHARE * known.nbytes
        }

    def _enforce_budget(self) -> None:
        """Drop snapshots, the one with the smallest gap first, until the budget holds."""
        while self.nbytes > self._budget:
            chunks = [self.base, *(chunk for chunk in self.chunks if chunk > self.base)]
            gaps = {
                chunks[i]: chunks[i + 1] - chunks[i - 1]
                for i in range(1, len(chunks) - KEPT_SNAPSHOTS)
            }
            if not gaps:
                break
            del self._files[min(gaps, key=lambda chunk: (gaps[chunk], chunk))]
        self.delete_unreferenced()

    def _manifest_bytes(self, manifest: _Manifest) -> bytes:
        facts = {"version": VERSION, "run": self._run, **asdict(manifest)}
        return (json.dumps(with_checksum(facts)) + "\n").encode()

    def _read(self, path: Path) -> _Manifest:
        facts, _ = verify(read_bytes(path, limit=_MANIFEST_LIMIT))
        if (facts.pop("version", None), facts.pop("run", None)) != (VERSION, self._run):
            raise ValueError("it belongs to another render or another version of cfgen")
        manifest = parse_as(_Manifest, facts)
        if path.name != f"{manifest.chunk:06d}.json":
            raise ValueError("it has the name of another snapshot")
        files = {name: parse_as(_File, file) for name, file in facts["files"].items()}
        if not all(_TENSORS.fullmatch(name) for name in files):
            raise ValueError("it names a file that is not one of the folder")
        if not all(isinstance(name, str) and name in files for name in manifest.where.values()):
            raise ValueError("it places a tensor in a file that it does not name")
        return replace(manifest, files=files)

    def _verify(self, chunk: int) -> None:
        for name, file in self._files[chunk].items():
            path = self.folder / name
            try:
                whole = path.stat().st_size == file.nbytes and sha256_of(path) == file.sha256
            except OSError:
                whole = False
            if not whole:
                raise SnapshotCorrupt(
                    f"the snapshot after chunk {chunk} is damaged: {name} is not what was written"
                )


def tensor_blocks(
    tensors: Mapping[str, Tensor], fetch: Callable[[str], Tensor] | None = None
) -> Iterator[memoryview | bytes]:
    """The content of a safetensors file, tensor by tensor, so that it is never held as a whole.

    Args:
        tensors: By name; meta tensors are fetched when their turn comes.
        fetch: Gives a tensor by its name.
    """
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, tensor in tensors.items():
        if tensor.is_meta and fetch is not None:
            tensor = fetch(name)
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        yield flat.numpy().data

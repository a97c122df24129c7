"""Carries out a plan of recovery: restores the memory and passes kept chunks through it again."""

from __future__ import annotations

from collections.abc import Iterator

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from cfgen.errors import SnapshotCorrupt, SnapshotMismatch
from cfgen.files.reading import read_bytes
from cfgen.files.writing import sha256_of_blocks
from cfgen.renderer.source import FrameSource
from cfgen.rollout.loop import Chunk
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine
from cfgen.runs.recovery import RecoveryPlan, RunAudit
from cfgen.runs.snapshot import SnapshotStore, tensor_blocks
from cfgen.timeline import Plan

LATENTS_NDIM = 5
"""[batch, latent frames, channels, rows, columns]"""

LATENTS_LIMIT = 1 << 32
"""Bytes that the latents of a chunk may have."""


def replay(
    source: FrameSource,
    folder: RunFolder,
    store: SnapshotStore,
    audited: RunAudit,
    recovery: RecoveryPlan,
) -> Iterator[Chunk]:
    """Restore the memory as a plan of recovery says, then yield chunks, each when it has passed it.

    Chunks come in the order in which they were made.

    Raises:
        SnapshotMismatch: A chunk that is denoised again is another than it was.
        SnapshotCorrupt: Latents changed since they were verified.
    """
    if recovery.snapshot:
        try:
            source.memory.restore(store.load(recovery.snapshot))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise SnapshotCorrupt(
                f"the snapshot after chunk {recovery.snapshot} in {store.folder} is of another "
                f"memory: {error}",
                f"remove {store.folder}, then resume",
            ) from None
    for place in range(recovery.begin, recovery.until):
        line = audited.lines[place]
        if line.index in recovery.recompute:
            (chunk,) = source.make([line.index])
            blocks = list(tensor_blocks({"latents": chunk.latents}))
            require_same(folder, line.latents_sha256, sha256_of_blocks(blocks))
            if not audited.intact[place]:
                folder.keep_latents(line.index, blocks)
        else:
            chunk = kept_chunk(folder, source.plan, line)
            if place >= recovery.memory_from:
                source.recommit(chunk)
        yield chunk


def kept_chunk(folder: RunFolder, plan: Plan, line: ChunkLine) -> Chunk:
    """A chunk that a run keeps.

    Raises:
        SnapshotCorrupt: Its latents changed since they were verified, or are of another film.
    """
    chunk = Chunk(line.index, _latents(folder, line.index, line.latents_sha256))
    _require_shape(folder, plan, chunk)
    return chunk


def shape_of(folder: RunFolder, chunk: int) -> tuple[int, ...]:
    """The shape of a chunk's latents that a run keeps, [B, F, C, H, W].

    Raises:
        SnapshotCorrupt: They cannot be read.
    """
    path = folder.latents(chunk)
    try:
        with safe_open(path, framework="pt") as file:
            shape = tuple(file.get_slice("latents").get_shape())
    except (OSError, SafetensorError) as error:
        raise SnapshotCorrupt(f"cannot read {path}: {error}", "restore it") from None
    if len(shape) != LATENTS_NDIM:
        raise SnapshotCorrupt(f"{path} holds no latents", "restore it")
    return shape


def require_same(folder: RunFolder, before: str, now: str) -> None:
    """Refuse to go on with other frames than those that were made before.

    Raises:
        SnapshotMismatch: The two digests differ.
    """
    if before != now:
        raise SnapshotMismatch(
            f"{folder.path} cannot be resumed: this machine does not make the same frames again",
            "resume where it began, or render again from the start with -y",
        )


def _require_shape(folder: RunFolder, plan: Plan, chunk: Chunk) -> None:
    """Refuse latents that are none of this film, whatever their digest."""
    geometry, frames = plan.geometry, plan.chunk(chunk.index).latent_frames
    cells = (geometry.latent_height, geometry.latent_width)
    expected = (1, frames, geometry.channels, *cells)
    if tuple(chunk.latents.shape) != expected:
        raise SnapshotCorrupt(
            f"{folder.latents(chunk.index)} holds latents {list(chunk.latents.shape)}, "
            f"the plan has {list(expected)}",
            "render again from the start with -y",
        )


def _latents(folder: RunFolder, index: int, sha256: str) -> Tensor:
    path = folder.latents(index)
    try:
        content = read_bytes(path, limit=LATENTS_LIMIT)
        if sha256_of_blocks([content]) != sha256:
            raise SnapshotCorrupt(f"{path} changed since it was verified", "resume again")
        latents = load(content)["latents"]
        if not latents.is_floating_point() or latents.ndim != LATENTS_NDIM:
            raise SnapshotCorrupt(f"{path} holds no latents", "render again from the start with -y")
        return latents
    except (OSError, SafetensorError, KeyError) as error:
        raise SnapshotCorrupt(f"cannot read {path}: {error}", "resume again") from None

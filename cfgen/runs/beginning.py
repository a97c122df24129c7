"""What a run keeps of what its video begins and ends with, so that it can do without.

Once all chunks that are given lie in the run folder, whole, nothing is read from the input again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from cfgen.errors import SnapshotMismatch
from cfgen.files.writing import disk_errors, sha256_of, write_file
from cfgen.runs.folder import RunFolder, RunRecord
from cfgen.runs.journal import ChunkLine, SoundLine
from cfgen.timeline import Plan

DIGEST = "beginning_sha256"
"""The name in a fingerprint of the digest of the picture or film."""

LAST_DIGEST = "last_image_sha256"
"""The same of a picture that the video ends with."""

SOUND, OLD_SOUND = "sound.flac", "sound.aac"


def believed(folder: RunFolder, record: RunRecord, plan: Plan) -> RunRecord:
    """A record of what would be rendered now, to compare with that of a run.

    Where the run holds all that was given, its picture or film may have changed, or be gone.
    """
    held = folder.record.fingerprint
    before = {name: held[name] for name in (DIGEST, LAST_DIGEST) if name in held}
    lines = {line.index: line for line in folder.journal.of(ChunkLine)}
    if not before or not all(
        index in lines and folder.has_latents(index, lines[index].latents_sha256)
        for index in plan.all_given
    ):
        return record
    return replace(record, fingerprint={**record.fingerprint, **before})


def told(record: RunRecord) -> dict[str, str]:
    """What a video is told to begin with: texts for its container and sidecar."""
    digest, begin = record.fingerprint.get(DIGEST), record.config.get("begin")
    if digest is None or not isinstance(begin, dict):
        return {}
    shown = {
        key: Path(value).name if key in ("image", "last_image", "video") else value
        for key, value in begin.items()
        if value is not None
    }
    last = record.fingerprint.get(LAST_DIGEST)
    digests = {"sha256": digest} | ({} if last is None else {"last_image_sha256": last})
    text = json.dumps({**shown, **digests}, ensure_ascii=False)
    return {"beginning": text.encode(errors="backslashreplace").decode()}


def keep_sound(folder: RunFolder, read: Callable[[], Iterable[bytes]]) -> Path | None:
    """The file of a run with the sound of its video.

    It is written when it is not there, or damaged.

    Args:
        folder: The run folder, whose lock is ours.
        read: Gives the sound.

    Returns:
        The file, or None if there is no sound.

    Raises:
        InputRefused: What gives it cannot be read.
        SnapshotMismatch: It gives another sound than it did.
        BudgetError, WriterError: The disk refused.
    """
    path, lines = sound_of(folder.path), folder.journal.of(SoundLine)
    before = lines[-1] if lines else None
    if before is not None and before.nbytes == 0:
        return None
    if before is None or not _is_whole(path, before.sha256):
        blocks = list(read())
        nbytes = sum(len(block) for block in blocks)
        with disk_errors(path):
            digest = write_file(path, blocks)
        if before is None:
            folder.journal.append(SoundLine(nbytes=nbytes, sha256=digest), sync=True)
        elif digest != before.sha256:
            raise SnapshotMismatch(
                f"{path} is damaged, and the file that it came from gives another sound now",
                "restore that file, or render again from the start with -y",
            )
        return path if nbytes else None
    return path


def sound_of(run: Path) -> Path:
    """The file of a run folder that holds the sound of its video; an older cfgen kept AAC."""
    old = run / OLD_SOUND
    return old if old.exists() else run / SOUND


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False

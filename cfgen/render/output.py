"""The files around an output: their names, a check before any work, and writes that last.

Nothing takes its final name before it is complete and on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from cfgen.errors import OutputRefused, UsageError, WriterError


def part_of(path: Path) -> Path:
    """Return the temporary name of a file: ``clip.mp4`` is ``clip.part.mp4`` until it is good."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


def sidecar_of(output: Path) -> Path:
    """Return where the facts of a video are kept: ``clip.mp4`` has ``clip.mp4.json``."""
    return output.with_name(f"{output.name}.json")


def parts_of(output: Path) -> Path:
    """Return the folder of a video's segments: ``clip.mp4`` has ``.clip.mp4.parts``."""
    return output.with_name(f".{output.name}.parts")


def check_output(output: Path) -> None:
    """Refuse an output that could not be written, before any work is done.

    Writes and removes empty files under the temporary names, since nothing else tells for certain.

    Raises:
        UsageError: The name does not end in ``.mp4``.
        OutputRefused: The folder is missing or not writable, or the name is taken or too long.
    """
    if output.suffix.lower() != ".mp4":
        raise UsageError(
            f"the output {str(output)!r} must end in .mp4", f"use -o {output.stem or 'clip'}.mp4"
        )
    folder = output.absolute().parent
    hint = "choose another output with -o"
    try:
        if not folder.is_dir():
            state = "is not a folder" if folder.exists() else "does not exist"
            raise OutputRefused(f"the output folder {folder} {state}", f"make it, or {hint}")
        for path in (output, sidecar_of(output)):
            if path.is_dir():
                raise OutputRefused(f"{path} is a folder, not a file", hint)
        for path in (part_of(output), part_of(sidecar_of(output))):
            path.touch()
            path.unlink()
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise OutputRefused(f"cannot write {str(output)!r}: {reason}", hint) from exc


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a WriterError that names the file."""
    try:
        yield
    except OSError as exc:
        raise WriterError(
            f"could not write {path}: {exc.strerror}", "check the disk and run the command again"
        ) from exc


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(*paths: Path) -> None:
    """Give complete files their final names, first making sure that all of them are on the disk.

    Args:
        paths: Final names, all in one folder; each file stands under its `part_of` name.

    Raises:
        OSError: The disk refused.
    """
    for path in paths:
        with part_of(path).open("rb+") as file:
            os.fsync(file.fileno())
    for path in paths:
        os.replace(part_of(path), path)
    if os.name == "posix":
        descriptor = os.open(paths[0].parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""The files around an output: their names, and a check before any work."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from pathlib import Path

from cfgen.errors import OutputRefused, UsageError
from cfgen.files.reading import read_text
from cfgen.files.writing import create_exclusive, files_of, part_of
from cfgen.video.formats import (
    ENDINGS,
    FORMATS,
    FRAME_NAME,
    SEGMENT_MUXERS,
    OutputFormat,
    segment_stem,
)

_FRAME = re.compile(r"[0-9]{6,}\.png")


def sidecar_of(output: Path) -> Path:
    """Return where the facts of a video are kept: ``clip.mp4`` has ``clip.mp4.json``."""
    return output.with_name(f"{output.name}.json")


def beside(output: Path, ending: str) -> Path:
    """The name of something that lies beside a video, and beside no other of its name.

    ``clip.mp4`` has ``clip.cfgen``, and ``clip.mov`` has ``clip.mov.cfgen``: films of one name and
    several formats share nothing.

    Args:
        output: The video.
        ending: What follows its name.
    """
    is_first = output.suffix.lower() == next(iter(FORMATS))
    return output.with_name(f"{output.stem if is_first else output.name}{ending}")


def run_of(output: Path) -> Path:
    """Return the run folder of a video: ``clip.mp4`` has ``clip.cfgen``."""
    return beside(output, ".cfgen")


def video_of(run: Path) -> Path:
    """The video of a run folder by the folder's name alone; its record may know better."""
    name = run.with_suffix("")
    ending = "" if name.suffix.lower() in FORMATS else next(iter(FORMATS))
    return name.with_name(f"{name.name}{ending}")


def format_of(output: Path) -> OutputFormat:
    """The format that the name of a video asks for.

    Raises:
        UsageError: It ends in none.
    """
    found = FORMATS.get(output.suffix.lower())
    if found is None:
        raise UsageError(
            f"the output {str(output)!r} must end in {ENDINGS}",
            f"use -o {pasted((output.stem or 'clip') + next(iter(FORMATS)))}",
        )
    return found


def is_film(path: Path) -> bool:
    """Whether a film is there: a file, or a folder with a picture a frame."""
    if not path.is_dir():
        return path.is_file()
    made = FORMATS.get(path.suffix.lower())
    return made is not None and made.is_folder and (path / (FRAME_NAME % 1)).is_file()


def segment_of(folder: Path, index: int) -> Path:
    """The file of an encoded segment, whatever its film is coded with.

    Args:
        folder: The folder of segments.
        index: Number of the segment.
    """
    names = [folder / f"{segment_stem(index)}.{ending}" for ending in SEGMENT_MUXERS]
    return next((path for path in names if path.exists()), names[0])


def target_of(output: Path) -> Path:
    """What an output that is a symbolic link leads to, whether it is there or not.

    Raises:
        OutputRefused: The link leads round in a circle.
    """
    try:
        return output.resolve()
    except (OSError, RuntimeError) as error:
        raise OutputRefused(
            f"the output {str(output)!r} is a link that leads nowhere: {error}",
            "choose another output with -o",
        ) from None


def recorded_digest(output: Path) -> str | None:
    """The digest that a video has by its sidecar, or None if that cannot be told."""
    try:
        digest = json.loads(read_text(sidecar_of(output)))["facts"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return digest if isinstance(digest, str) else None


def standing_at(output: Path) -> tuple[object, ...]:
    """What stands in the places of a video and its sidecar, to tell whether that changes."""
    found: list[object] = []
    for path in (output, sidecar_of(output)):
        try:
            facts = path.lstat()
        except FileNotFoundError:
            found.append(None)
        else:
            # No number of the file: some network file systems give it another one.
            found.append((facts.st_mode, facts.st_size, facts.st_mtime_ns))
    return tuple(found)


def check_output(output: Path) -> None:
    """Refuse an output that could not be written, before any work is done.

    Writes and removes empty files under the temporary names, since nothing else tells for certain.

    Raises:
        UsageError: The name has not the ending of a format.
        OutputRefused: The folder is missing or not writable, or the name is taken or too long.
    """
    format_of(output)
    folder = output.absolute().parent
    hint = "choose another output with -o"
    try:
        if not folder.is_dir():
            state = "is not a folder" if folder.exists() else "does not exist"
            raise OutputRefused(f"the output folder {folder} {state}", f"make it, or {hint}")
        check_kind(output)
        for path in (part_of(output), part_of(sidecar_of(output))):
            with contextlib.suppress(FileExistsError):  # a render may be at work on it
                os.close(create_exclusive(path))
                path.unlink()
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise OutputRefused(f"cannot write {str(output)!r}: {reason}", hint) from exc


def check_kind(output: Path) -> None:
    """Refuse a file in the place of a folder of frames, and any other folder.

    Raises:
        OutputRefused: One is there.
        UsageError: The name has not the ending of a format.
    """
    hint = "choose another output with -o"
    folders = [sidecar_of(output)]
    if not format_of(output).is_folder:
        folders.append(output)
    elif output.is_dir():
        strange = [each.name for each in files_of(output) if not _FRAME.fullmatch(each.name)]
        if strange:
            raise OutputRefused(f"{output} holds {strange[0]}, which is not a frame", hint)
    elif output.exists():
        raise OutputRefused(f"{output} is a file, and frames go to a folder of that name", hint)
    for path in folders:
        if path.is_dir():
            raise OutputRefused(f"{path} is a folder, not a file", hint)


def refuse_existing(output: Path, run: Path) -> None:
    """Refuse to put a video where one is, or where an earlier render can be gone on with.

    Raises:
        OutputRefused: Something is there.
    """
    for path in (output, sidecar_of(output)):
        if path.exists():
            raise OutputRefused(
                f"{path} exists already", "overwrite it with -y, or choose another with -o"
            )
    if holds_render(run):
        raise OutputRefused(
            f"{run} holds an earlier render of {output.name}",
            f"go on with it: `{resume_command(run)}`, or begin again with -y",
        )


def holds_render(run: Path) -> bool:
    """Whether something is in a run folder that a person may want back."""
    return (run / "run.json").exists() or any(
        path.stat().st_size
        for path in run.glob("journal*.jsonl")
        if path.is_file() and ".part." not in path.name
    )


def resume_command(run: Path) -> str:
    """The command that goes on with a run, as a person types it."""
    return f"cfgen resume {pasted(os.path.relpath(run))}"


def pasted(name: str) -> str:
    """A file's name as a person pastes it into a shell; one that begins with - is no option."""
    return shlex.quote(f"./{name}" if name.startswith("-") else name)

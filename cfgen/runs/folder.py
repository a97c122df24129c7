"""The run folder of a render: everything that is needed to go on with it, or to branch off from it.

NAME.cfgen/
  run.json       the configuration, and what fixes the pixels: written once
  journal.jsonl  a line for everything that was finished
  latents/       one file a chunk
  segments/      encoded pieces of the video, until it is joined
  snapshots/     the memory between two chunks
  score.json     what `cfgen score` found of the finished video
  preview.*      with --preview, a film that grows and its newest frame, until the video is joined
  log.txt        what happened, for people: begun, resumed, stopped, and why
  lock           while a process works on it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cfgen.errors import (
    OutputRefused,
    SnapshotCorrupt,
    SnapshotError,
    SnapshotMismatch,
    UsageError,
)
from cfgen.fields import CHANGES_NO_FRAME
from cfgen.files.reading import read_bytes
from cfgen.files.writing import (
    Block,
    append,
    disk_errors,
    json_bytes,
    part_of,
    sha256_of,
    sync_folder,
    write_file,
)
from cfgen.plain_text import printable
from cfgen.runs.contents import JOURNAL, LOG, RECORD, make_empty
from cfgen.runs.journal import Journal, VideoLine
from cfgen.runs.records import parse_as, restricted, verify, with_checksum
from cfgen.video.output import holds_render, recorded_digest, resume_command, run_of

VERSION = 1
HARMLESS = ("cfgen_version", "ffmpeg_version")
"""Names in a fingerprint that a person may let differ; frames that must be encoded again are
compared with those that were."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a render is, fixed when it began.

    Attributes:
        output: The video, relative to the folder that the run folder is in.
        overwrite: Whether the video may replace a file that was there before.
        config: The resolved configuration as plain values.
        fingerprint: Everything that fixes the frames, by name, in words.
        created: When, in ISO 8601.
        base: The chunk that this render branched off at, or 0; what comes before is another's.
        take: Counts how often the render was done over from some chunk, in place.
        parts: Pieces at the start that were made with another seed than `config` has, in order:
            each with ``until_frame`` (the first frame after it) and ``seed``; written by an older
            cfgen also with ``prompt``.
    """

    output: str
    overwrite: bool
    config: Mapping[str, object]
    fingerprint: Mapping[str, str]
    created: str
    base: int = 0
    take: int = 1
    parts: list[dict[str, object]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """What tells this render from any other."""
        text = json.dumps([self.config, self.fingerprint, self.parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class RunFolder:
    """A run folder that exists.

    Attributes:
        path: The folder.
        record: What the render is.
        journal: What was finished.
    """

    def __init__(self, path: Path) -> None:
        """Open a run folder.

        Raises:
            SnapshotError: It is none, was renamed, or has a link in the place of a part.
            SnapshotCorrupt: Its record is damaged.
        """
        self.path = path
        self.record = _read_record(path)
        if run_of(self.output).name != path.name:
            raise SnapshotError(
                f"{path} is the run folder of {self.record.output}, and must be called "
                f"{run_of(self.output).name}",
                "give it that name, beside that video",
            )
        file = path / self._taken(JOURNAL)
        settle_journal(file)
        own = (file, self.segments, self.snapshots, self.latents(0).parent, path / LOG)
        for entry in own:
            if entry.is_symlink():
                raise SnapshotError(
                    f"{entry} is a link, and cfgen changes no file outside of a run folder",
                    "put what it leads to in its place",
                )
        try:
            self.journal = Journal(file, run=self.record.digest)
        except OSError as error:
            raise SnapshotCorrupt(f"cannot read {file}: {error.strerror}") from None

    @classmethod
    def create(cls, path: Path, record: RunRecord) -> RunFolder:
        """Make a run folder; one that is there already is emptied first.

        Raises:
            OutputRefused: Something in it is not of cfgen.
            BudgetError, WriterError: The disk refused.
        """
        make_empty(path)
        Journal(path / JOURNAL, run=record.digest).rewrite([])
        write_record(path, record)
        return cls(path)

    @property
    def output(self) -> Path:
        """The video."""
        return self.path.parent / self.record.output

    @property
    def segments(self) -> Path:
        """The folder of encoded segments."""
        return self.path / "segments"

    @property
    def snapshots(self) -> Path:
        """The folder of snapshots."""
        return self.path / self._taken("snapshots")

    @property
    def finished(self) -> VideoLine | None:
        """What the journal tells of the video, if that is in its place, whole and described."""
        lines = self.journal.of(VideoLine)
        with contextlib.suppress(OSError):
            if lines and recorded_digest(self.output) == lines[-1].sha256 == sha256_of(self.output):
                return lines[-1]
        return None

    @property
    def mine(self) -> bool:
        """Whether what stands in the video's place may be replaced: it was this render's own."""
        if self.record.overwrite:
            return True
        lines = self.journal.of(VideoLine)
        with contextlib.suppress(OSError):  # the sidecar or the video, whichever is damaged
            return bool(lines) and lines[-1].sha256 in (
                recorded_digest(self.output),
                sha256_of(self.output),
            )
        return False

    def require_replaceable(self) -> None:
        """Refuse to go on where the video's place is taken by what is not this render's.

        Raises:
            OutputRefused: It is.
        """
        if not self.mine and self.output.exists():
            raise OutputRefused(
                f"{self.output} is there and is not the video of this render",
                "move it away, then resume",
            )

    def _taken(self, name: str) -> str:
        """The name of what each take has of its own, so that one file switches between them."""
        stem, dot, ending = name.partition(".")
        return name if self.record.take == 1 else f"{stem}-{self.record.take}{dot}{ending}"

    def latents(self, chunk: int) -> Path:
        """The file of a chunk's latents."""
        return self.path / "latents" / f"{chunk:06d}.safetensors"

    def log(self, text: str) -> None:
        """Add a line to the log.

        Raises:
            BudgetError, WriterError: The disk refused.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = f"{now} {printable(text)}\n".encode(errors="backslashreplace")
        with disk_errors(self.path / LOG), append(self.path / LOG) as file:
            file.write(line)

    def keep_latents(self, chunk: int, blocks: list[Block]) -> str:
        """Write a chunk's latents, without waiting for the disk; return the digest of the file.

        Raises:
            BudgetError, WriterError: The disk refused.
        """
        path = self.latents(chunk)
        with disk_errors(path):
            return write_file(path, blocks, sync=False)

    def has_latents(self, chunk: int, sha256: str) -> bool:
        """Whether a chunk's latents are there and whole."""
        try:
            return sha256_of(self.latents(chunk)) == sha256
        except OSError:
            return False

    def expect(self, record: RunRecord, *, allow_changed: Collection[str]) -> None:
        """Refuse to go on where the frames would be others.

        Args:
            record: What would be rendered here and now.
            allow_changed: Names in it that may differ, of those in `HARMLESS`.

        Raises:
            UsageError: One of `allow_changed` may never differ.
            SnapshotMismatch: The fingerprint is another; tells every difference.
        """
        require_harmless(allow_changed)
        held = {k: v for k, v in self.record.config.items() if k not in CHANGES_NO_FRAME}
        if restricted(record.config, held) != held:
            raise SnapshotMismatch(f"{self.path} became another render meanwhile", "try again")
        before, fingerprint = self.record.fingerprint, record.fingerprint
        names = [
            name
            for name in {**before, **fingerprint}
            if before.get(name) != fingerprint.get(name) and name not in allow_changed
        ]
        if names:
            listed = "".join(
                f"\n  {name}: began with {before.get(name)}, now {fingerprint.get(name)}"
                for name in names
            )
            raise SnapshotMismatch(
                f"{self.path} cannot be resumed here, the frames might be others:{listed}",
                f"accept it with `{resume_command(self.path)} "
                f"{' '.join(f'--allow-changed {name}' for name in names)}`"
                if set(names) <= set(HARMLESS)
                else "restore what changed, or render again from the start with -y",
            )


def settle_journal(file: Path) -> None:
    """Give a journal its name that was written, whole, before the record was.

    Raises:
        BudgetError, WriterError: The disk refused.
    """
    part = part_of(file)
    if not file.exists() and part.is_file() and not part.is_symlink():
        with disk_errors(file), contextlib.suppress(FileNotFoundError):
            os.rename(part, file)  # another process may be quicker
            sync_folder(file.parent)


def require_harmless(names: Collection[str]) -> None:
    """Refuse to let anything differ that may change a frame.

    Raises:
        UsageError: One of the names is not in `HARMLESS`.
    """
    for name in names:
        if name not in HARMLESS:
            raise UsageError(f"{name!r} may not change; what may is {', '.join(HARMLESS)}")


def write_record(path: Path, record: RunRecord) -> None:
    """Make `record` that of a run folder, at once and for good.

    Raises:
        BudgetError, WriterError: The disk refused.
    """
    facts = with_checksum({"version": VERSION, **asdict(record)})
    with disk_errors(path / RECORD):
        write_file(path / RECORD, [json_bytes(facts, indent=1), b"\n"])


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run folder."""
    return path.suffix == ".cfgen" and holds_render(path)


def _read_record(path: Path) -> RunRecord:
    file = path / RECORD
    begin_again = "render again from the start with -y, or remove the folder"
    try:
        facts, _ = verify(read_bytes(file))
        version = facts.pop("version", None)
        if version != VERSION:
            raise SnapshotError(
                f"{file} has version {version}, this cfgen reads version {VERSION}",
                "resume it with the cfgen that began it",
            )
        record = parse_as(RunRecord, facts)
        name = record.output
        if name in ("", ".", "..") or "\0" in name or Path(name).name != name:
            raise ValueError("its output is not a plain file name")
        _check(record)
        return record
    except FileNotFoundError:
        raise SnapshotError(
            f"{path} cannot be gone on with: it has no {RECORD}", begin_again
        ) from None
    except OSError as error:
        raise SnapshotError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise SnapshotCorrupt(f"{file} is damaged: {error}", begin_again) from None


def _check(record: RunRecord) -> None:
    """Refuse what no render writes.

    Raises:
        ValueError: Numbers are out of range, or `parts` is not what it must be.
    """
    if record.base < 0 or record.take < 1:
        raise ValueError(f"its base is {record.base} and its take {record.take}")
    if not all(isinstance(value, str) for value in record.fingerprint.values()):
        raise ValueError("its fingerprint holds something else than words")
    before = 0
    for part in record.parts:
        if not isinstance(part, dict) or set(part) - {"prompt"} != {"until_frame", "seed"}:
            raise ValueError("its parts are not pieces of a film")
        until, prompt, seed = part["until_frame"], part.get("prompt", ""), part["seed"]
        if type(until) is not int or type(seed) is not int or not isinstance(prompt, str):
            raise ValueError("a value in its parts is of another type")
        if until <= before:
            raise ValueError("its parts are out of order")
        before = until

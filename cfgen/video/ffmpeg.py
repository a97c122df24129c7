"""ffmpeg as cfgen drives it: which binary, its encoders, one run of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import IO, Self, cast

from cfgen.errors import BudgetError, FfmpegMissing, WriterError

ENV_FFMPEG = "CFGEN_FFMPEG"
STDERR_LINES = 20
_STDERR_LINE_BYTES = 2000
_PROBE_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 10.0
_READ_NBYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Ffmpeg:
    """One ffmpeg binary.

    Attributes:
        path: Absolute path of the binary.
        version: What it calls itself, such as ``7.1.1`` or ``n9.0.2-17-g2a571b6068``.
        encoders: Names of all encoders that it was built with.
        note: Why it is not the one on PATH, if that is there, or empty.
    """

    path: Path
    version: str
    encoders: frozenset[str]
    note: str = ""

    def prefix(self) -> list[str]:
        """Return the start of every command line: the binary and its global options."""
        return [str(self.path), "-hide_banner", "-nostdin", "-y", "-loglevel", "warning"]


def find_ffmpeg(encoder: str = "") -> Ffmpeg:
    """Return the ffmpeg to use: ``CFGEN_FFMPEG``, else the one on PATH, else imageio-ffmpeg's.

    Args:
        encoder: Where the one on PATH lacks it, or does not run, imageio-ffmpeg's is taken.

    Raises:
        FfmpegMissing: There is none, or the chosen one does not run.
    """
    path, bundled = _locate(), _bundled()
    if not encoder or os.environ.get(ENV_FFMPEG) or not bundled or path == Path(bundled):
        return _asked(path)
    try:
        found = _asked(path)
        why = "" if encoder in found.encoders else f"was built without {encoder}"
    except FfmpegMissing as error:
        found, why = None, f"cannot be used ({error})"
    if found is not None and not why:
        return found
    other = _asked(Path(bundled))
    return replace(other, note=f"{path} {why}; the packaged {bundled} is taken instead")


def _asked(path: Path) -> Ffmpeg:
    """What a binary says of itself."""
    version = _first_line(_ask(path, "-version"))
    if not version.startswith("ffmpeg version "):
        raise FfmpegMissing(
            f"{path} is not ffmpeg: it answers -version with {version[:80]!r}", _hint()
        )
    return Ffmpeg(path, version.split()[2], _parse_encoders(_ask(path, "-encoders")))


def require_encoder(ffmpeg: Ffmpeg, name: str) -> None:
    """Refuse an ffmpeg that was built without the encoder.

    Raises:
        FfmpegMissing: The encoder is not there.
    """
    if name not in ffmpeg.encoders:
        raise FfmpegMissing(
            f"{ffmpeg.path} (version {ffmpeg.version}) was built without the encoder {name}",
            _hint(name),
        )


def require_filters(ffmpeg: Ffmpeg, names: Iterable[str]) -> None:
    """Refuse an ffmpeg that was built without a filter; it is asked only where one is named.

    Raises:
        FfmpegMissing: One is not there, or ffmpeg does not run.
    """
    wanted = set(names)
    if not wanted:
        return
    rows = (line.split() for line in _ask(ffmpeg.path, "-filters").splitlines())
    for name in sorted(wanted - {row[1] for row in rows if len(row) >= 2}):
        raise FfmpegMissing(
            f"{ffmpeg.path} (version {ffmpeg.version}) was built without the filter {name}",
            _hint(f"the filter {name}"),
        )


def _locate() -> Path:
    asked = os.environ.get(ENV_FFMPEG)
    if asked:
        found = shutil.which(asked)
        if found is None:
            raise FfmpegMissing(
                f"{ENV_FFMPEG} names {asked!r}, which is not a program that can be run",
                f"set {ENV_FFMPEG} to the path of an ffmpeg, or unset it",
            )
    else:
        found = shutil.which("ffmpeg") or _bundled()
        if found is None:
            raise FfmpegMissing(
                "no ffmpeg was found: none on PATH and none from the package imageio-ffmpeg",
                f"run `pip install imageio-ffmpeg`, or set {ENV_FFMPEG} to the path of an ffmpeg",
            )
    return Path(found).absolute()


def _bundled() -> str | None:
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None


def _hint(encoder: str | None = None) -> str:
    built = f" built with {encoder}" if encoder else ""
    bundled = _bundled()
    example = f", for example the packaged one: {bundled}" if bundled else ""
    return f"set {ENV_FFMPEG} to the path of an ffmpeg{built}{example}"


def _ask(path: Path, question: str) -> str:
    try:
        answer = subprocess.run(
            [str(path), "-hide_banner", question],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise FfmpegMissing(f"{path} does not run: {exc}", _hint()) from exc
    if answer.returncode != 0:
        reason = _first_line(answer.stderr.decode("utf-8", "replace"))
        raise FfmpegMissing(
            f"{path} {question} ended with exit status {answer.returncode}: {reason}", _hint()
        )
    return answer.stdout.decode("utf-8", "replace")


def described(ffmpeg: Ffmpeg, path: Path) -> str:
    """What ffmpeg says of a file that it is given to read, whatever that is.

    Raises:
        FfmpegMissing: It does not run.
    """
    argv = [str(ffmpeg.path), "-hide_banner", "-nostdin", "-i", f"file:{path.absolute()}"]
    try:
        answer = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise FfmpegMissing(f"{ffmpeg.path} does not run: {exc}", _hint()) from exc
    return answer.stderr.decode("utf-8", "replace")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def _parse_encoders(listing: str) -> frozenset[str]:
    _, _, table = listing.partition("------")
    rows = (line.split() for line in table.splitlines())
    return frozenset(row[1] for row in rows if len(row) >= 2)


class FfmpegRun:
    """One run of ffmpeg, killed at the end of its ``with`` block if it is still there.

    Its stderr is drained by a thread, so that a talkative ffmpeg cannot block, and it has a
    session of its own, so that Ctrl-C in the terminal does not reach it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        purpose: str,
        cwd: Path | None = None,
        feed: bool = False,
        read: bool = False,
    ) -> None:
        """Start ffmpeg.

        Args:
            argv: The whole command line.
            purpose: What it does, for messages: "ffmpeg stopped while <purpose>".
            cwd: Folder to run in.
            feed: Whether `write` is used.
            read: Whether `lines`, `blocks` or `read_beside` is used.

        Raises:
            WriterError: The binary could not be started.
        """
        self._purpose = purpose
        try:
            self._child = subprocess.Popen(
                argv,
                cwd=cwd,
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE if read else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as exc:
            raise WriterError(f"ffmpeg could not be started for {purpose}: {exc}") from exc
        self._stderr_tail: deque[str] = deque(maxlen=STDERR_LINES)
        self._reader: threading.Thread | None = None
        self._drain = threading.Thread(target=self._drain_stderr, name="ffmpeg-stderr", daemon=True)
        self._drain.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def write(self, data: memoryview) -> None:
        """Hand bytes to ffmpeg's stdin; blocks while ffmpeg is busy.

        Raises:
            WriterError: ffmpeg has gone.
        """
        try:
            _opened(self._child.stdin).write(data)
        except OSError as exc:
            raise self._failure() from exc

    def lines(self) -> Iterator[str]:
        """Yield the lines of ffmpeg's stdout as they come."""
        for line in _opened(self._child.stdout):
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def blocks(self, nbytes: int) -> Iterator[bytes]:
        """Yield ffmpeg's stdout in blocks of a size; the last one may be shorter."""
        stdout = _opened(self._child.stdout)
        while block := stdout.read(nbytes):
            yield block

    def read_beside(self, take: Callable[[Iterator[bytes]], None]) -> None:
        """Have a thread take ffmpeg's stdout as it comes, until it ends.

        Args:
            take: Is called in that thread, with blocks of any size.
        """
        stdout = cast(BufferedReader, _opened(self._child.stdout))
        blocks = iter(lambda: stdout.read1(_READ_NBYTES), b"")
        self._reader = threading.Thread(
            target=take, args=(blocks,), name="ffmpeg-stdout", daemon=True
        )
        self._reader.start()

    def finish(self) -> None:
        """Close stdin and wait until ffmpeg has ended well.

        Raises:
            WriterError: It ended with another exit status than 0, or left input unread.
        """
        try:
            if self._child.stdin is not None:
                self._child.stdin.close()
        except OSError as exc:
            raise self._failure() from exc
        if self._child.wait() != 0:
            raise self._failure()
        self._close()

    def kill(self) -> None:
        """End ffmpeg at once, with whatever it started; harmless if it has ended."""
        if self._child.poll() is None:
            self._kill_group()
        self._child.wait()
        self._close()

    def _kill_group(self) -> None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        else:
            self._child.kill()

    def _close(self) -> None:
        self._drain.join(_EXIT_TIMEOUT_S)
        if self._reader is not None:
            self._reader.join(_EXIT_TIMEOUT_S)
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _drain_stderr(self) -> None:
        with _opened(self._child.stderr) as stderr:
            while line := stderr.readline(_STDERR_LINE_BYTES):
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._stderr_tail.append(text)

    def _failure(self) -> WriterError | BudgetError:
        try:
            status: int | None = self._child.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = None
        self.kill()
        tail = tuple(self._stderr_tail)
        hint = f"run `cfgen doctor` to check ffmpeg; {ENV_FFMPEG} chooses another one"
        if status is None:
            message = f"ffmpeg stopped reading while {self._purpose}"
        elif status < 0:
            message = f"ffmpeg was killed by signal {-status} while {self._purpose}"
        elif any("No space left on device" in line for line in tail):
            return BudgetError(
                f"the disk is full: ffmpeg stopped while {self._purpose}",
                "free some space, then go on",
            )
        else:
            message = f"ffmpeg stopped while {self._purpose}"
        return WriterError(message, hint, exit_status=status, stderr_tail=tail)


def _opened(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("this run of ffmpeg was started without that pipe")
    return stream

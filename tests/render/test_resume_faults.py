"""Disks that fail, folders that vanish, signals, and two processes at once: nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import cfgen
from cfgen.cli.app import app
from cfgen.config.loader import load
from cfgen.config.schema import PlacementConfig
from cfgen.errors import (
    BudgetError,
    CfgenError,
    LockHeld,
    OutputRefused,
    SnapshotError,
    SnapshotMismatch,
    WriterError,
)
from cfgen.model.prompts import embeddings
from cfgen.model.vae import State
from cfgen.pipeline.fingerprint import arithmetic
from cfgen.pipeline.runs import config_of, config_to_resume, require_same_render
from cfgen.renderer.events import ChunkDone, Event
from cfgen.renderer.source import Frames, FrameSource
from cfgen.rollout.loop import Chunk
from cfgen.runs.folder import RunFolder, RunRecord, write_record
from cfgen.runs.journal import ChunkLine, SegmentLine
from cfgen.runs.lock import Lock
from cfgen.runs.records import with_checksum
from tests.render.crash import Crash, dying, full, read_only
from tests.render.film import PROMPT, MakeFilm

POINTS = [i / 11 for i in range(12)]


FAILURES = (
    (full, BudgetError, "the disk is full"),
    (read_only, (WriterError, OutputRefused), "Read-only file system"),
)


@pytest.mark.parametrize(
    ("share", "fails", "error", "says"),
    [(share, *FAILURES[number % 2]) for number, share in enumerate(POINTS)],
)
def test_a_disk_that_fails_stops_the_render_and_loses_nothing(
    film: MakeFilm,
    share: float,
    fails: Callable[[str], BaseException | None],
    error: type[CfgenError] | tuple[type[CfgenError], ...],
    says: str,
) -> None:
    counted, cut = film.undisturbed(), film()
    at = round(share * (len(counted.changes) - 1))
    stopped: list[CfgenError] = []
    cut.folder.mkdir()
    with dying(cut.folder, at, fails):
        try:
            cut.whole()
        except CfgenError as raised:
            stopped.append(raised)
    for each in stopped:
        assert isinstance(each, error), each
        assert says in str(each)
    cut.bury()
    assert cut.gone_on_with() == counted.video


ERRNOS = (
    *("EACCES", "EAGAIN", "EBADF", "EBUSY", "EDQUOT", "EEXIST", "EFAULT", "EFBIG", "EINTR"),
    *("EINVAL", "EIO", "EISDIR", "ELOOP", "EMFILE", "EMLINK", "ENAMETOOLONG", "ENFILE", "ENODEV"),
    *("ENOENT", "ENOLCK", "ENOMEM", "ENOSPC", "ENOSYS", "ENOTCONN", "ENOTDIR", "ENOTEMPTY"),
    *("ENXIO", "EOPNOTSUPP", "EOVERFLOW", "EPERM", "EROFS", "ESTALE", "ETIMEDOUT", "ETXTBSY"),
    *("EXDEV", "EHOSTDOWN", "EREMOTEIO"),
)
"""What open, write, fsync, rename, link, unlink and mkdir may fail with, networks included."""

MOMENTS = int(os.environ.get("ERRNO_MOMENTS", "1"))
"""Moments of a render at which each is tried; 12 before a release. Unset, every third is tried."""

TRIED = ERRNOS if "ERRNO_MOMENTS" in os.environ else ERRNOS[::3]


@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("name", TRIED)
def test_a_disk_fails_in_every_way_that_linux_knows(
    film: MakeFilm,
    name: str,
    moment: int,
) -> None:
    """One sentence or none at all, never a defect; and going on gives the undisturbed video."""
    counted, cut = film.undisturbed(), film()
    share = (ERRNOS.index(name) / len(ERRNOS) + moment / MOMENTS) % 1
    at, number = round(share * (len(counted.changes) - 1)), getattr(errno, name)
    cut.folder.mkdir()
    with dying(cut.folder, at, lambda _what: OSError(number, os.strerror(number))):
        refusals = []
        try:
            cut.whole()
        except CfgenError as error:
            refusals.append(error.message)
    assert all(message.isprintable() for message in refusals)
    cut.bury()
    assert cut.gone_on_with() == counted.video


@pytest.mark.parametrize("share", POINTS)
def test_a_power_failure_costs_no_more_than_what_was_not_on_the_disk(
    film: MakeFilm,
    share: float,
) -> None:
    counted, cut = film.undisturbed(), film()
    at = round(share * (len(counted.changes) - 1))
    with dying(cut.folder, at) as disk, suppress(Crash):
        cut.whole()
    disk.lose_power()
    cut.run.joinpath("lock").unlink(missing_ok=True)
    try:
        RunFolder(cut.run)
    except SnapshotError:
        assert share < 0.1, "the record is on the disk before anything is rendered"
        return
    assert cut.gone_on_with() == counted.video


def test_a_run_folder_that_vanishes_ends_the_render_and_is_not_made_again(
    film: MakeFilm,
) -> None:
    cut = film()

    def work() -> None:
        for event in cut.events(resume=False):
            if isinstance(event, ChunkDone) and event.index == 3:
                shutil.rmtree(cut.run)

    with pytest.raises(CfgenError, match="was removed, or taken over|could not write"):
        work()
    assert not cut.run.exists()
    assert not cut.output.exists()


def test_two_resumes_at_once_do_not_meet(film: MakeFilm) -> None:
    cut, expected = film.killed(3), film.expected()
    begun, may_end = threading.Event(), threading.Event()
    first: list[Event] = []

    def work() -> None:
        for event in cut.events(resume=True):
            first.append(event)
            if isinstance(event, ChunkDone) and not begun.is_set():
                begun.set()
                may_end.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    with pytest.raises(LockHeld, match=rf"\b{os.getpid()}\b"):
        cut.go_on()
    may_end.set()
    thread.join(120)
    assert cut.output.read_bytes() == expected
    lines = RunFolder(cut.run).journal.of(ChunkLine)
    assert [line.index for line in lines] == list(range(8))


def test_a_run_that_another_process_took_is_left_to_it(film: MakeFilm) -> None:
    """A process that slept for long finds its lock gone, and touches nothing any more."""
    cut = film()
    seen: dict[str, bytes] = {}

    def files() -> dict[str, bytes]:
        whole = (p for p in cut.run.rglob("*") if p.is_file() and ".part" not in p.name)
        return {str(path): path.read_bytes() for path in whole}

    def work() -> None:
        for event in cut.events(resume=False):
            if isinstance(event, ChunkDone) and event.index == 4:
                (cut.run / "lock").unlink()
                (cut.run / "lock").write_text("of another process")
                seen.update(files())

    with pytest.raises(LockHeld, match=re.escape(str(cut.run))):
        work()
    assert files() == seen
    assert not cut.output.exists()


def test_a_process_that_lost_its_lock_and_is_then_stopped_leaves_the_files(film: MakeFilm) -> None:
    """As a laptop that slept while another machine took over, and is interrupted when it wakes."""
    cut = film()

    def work() -> None:
        for event in cut.events(resume=False):
            if isinstance(event, ChunkDone) and event.index == 4:
                (cut.run / "lock").unlink()
                (cut.run / "lock").write_text("of another process")
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert (cut.run / "segments" / "segment-000000.mp4").exists()
    assert list((cut.run / "segments").glob("segment-000001*.part.mp4"))


def test_a_render_that_is_refused_leaves_the_other_alone(film: MakeFilm) -> None:
    cut, expected = film.killed(4), film.expected()
    with pytest.raises(OutputRefused, match=re.escape(str(cut.run))):
        list(cut.events(resume=False))
    cut.bury()
    cut.go_on()
    assert cut.output.read_bytes() == expected


def test_frames_of_a_machine_that_computes_otherwise_get_into_no_segment(
    film: MakeFilm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One chunk comes out otherwise, the last of its segment."""
    cut, expected = film.killed(6), film.expected()
    for path in (cut.run / "segments").iterdir():
        path.unlink()
    with monkeypatch.context() as patch:
        decode = FrameSource.decode

        def other(source: FrameSource, chunk: Chunk, state: State) -> Frames:
            frames = decode(source, chunk, state)
            return frames ^ 1 if chunk.index == 5 else frames

        patch.setattr(FrameSource, "decode", other)
        with pytest.raises(SnapshotMismatch, match=re.escape(str(cut.run))):
            cut.go_on()
    cut.bury()
    cut.go_on()
    assert cut.output.read_bytes() == expected


def test_a_segment_of_other_frames_is_not_believed(film: MakeFilm) -> None:
    cut, expected = film.killed(7), film.expected()
    folder = RunFolder(cut.run)
    lines = [
        replace(line, frames_sha256="0" * 64)
        if isinstance(line, SegmentLine) and line.index == 1
        else line
        for line in folder.journal.lines
    ]
    folder.journal.rewrite(lines)
    cut.go_on()
    assert cut.output.read_bytes() == expected


def test_what_fixes_the_frames_is_compared(
    film: MakeFilm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = film.killed(3)
    with monkeypatch.context() as patch:
        patch.setattr("cfgen.pipeline.build.arithmetic", lambda *_: "other bits")
        with pytest.raises(SnapshotMismatch, match=r"\barithmetic\b.* [0-9a-f]+, .*other bits"):
            cut.go_on()
    with monkeypatch.context() as patch:
        read = embeddings

        def flipped(*arguments, **named):
            return {text: 1.001 * found for text, found in read(*arguments, **named).items()}

        patch.setattr("cfgen.pipeline.models.embeddings", flipped)
        with pytest.raises(SnapshotMismatch, match="prompt_sha256"):
            cut.go_on()
    cut.go_on()


def test_arithmetic_is_the_same_each_time_and_another_with_another_dtype() -> None:
    cpu = torch.device("cpu")
    assert arithmetic(cpu, torch.float32) == arithmetic(cpu, torch.float32)
    assert arithmetic(cpu, torch.bfloat16) != arithmetic(cpu, torch.float32)


def test_a_copy_of_a_run_folder_is_not_taken_for_the_run(film: MakeFilm) -> None:
    cut = film.killed(3)
    copy = cut.folder / "copy.cfgen"
    shutil.copytree(cut.run, copy)
    with pytest.raises(SnapshotError, match=r"clip\.cfgen"):
        RunFolder(copy)


@pytest.mark.parametrize("name", ["segments", "latents", "snapshots", "journal.jsonl", "log.txt"])
def test_a_link_in_a_run_folder_is_not_followed(
    film: MakeFilm,
    name: str,
    tmp_path: Path,
) -> None:
    cut = film.killed(4)
    outside = tmp_path / "outside"
    shutil.move(cut.run / name, outside)
    (cut.run / name).symlink_to(outside)
    with pytest.raises(SnapshotError, match=re.escape(str(cut.run / name))):
        cut.go_on()


@pytest.mark.parametrize("name", ["segments", "latents", "snapshots-2", "journal-2.jsonl"])
def test_a_link_is_not_followed_after_a_retry_either(
    film: MakeFilm,
    name: str,
    tmp_path: Path,
) -> None:
    done = film.whole()
    result = CliRunner().invoke(app, ["retry", str(done.run), "--from", "2s", "--seed", "9"])
    assert result.exit_code == 0, result.stderr
    shutil.move(done.run / name, tmp_path / "outside")
    (done.run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(SnapshotError, match=re.escape(str(done.run / name))):
        RunFolder(done.run)


@pytest.mark.parametrize("name", ["logo.png", "running-notes.txt", "journal.docx", "latents.bak"])
def test_files_of_somebody_else_in_a_run_folder_stay(film: MakeFilm, name: str) -> None:
    fresh = film()
    fresh.run.mkdir(parents=True)
    (fresh.run / name).write_text("precious")
    with pytest.raises(OutputRefused, match=re.escape(name)):
        fresh.whole()
    assert (fresh.run / name).read_text() == "precious"


@pytest.fixture
def started(tiny_settings: list[str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `cfgen` with arguments in a process of its own, which signals reach."""
    runner = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cfgen.cli.app import main\n"
        "main()\n"
    )
    sets = [part for value in tiny_settings for part in ("--set", value)]

    def start(*arguments: str) -> subprocess.Popen[str]:
        given = [*arguments, *(sets if arguments[0] == "render" else [])]
        return subprocess.Popen(
            [sys.executable, "-c", runner, *given],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def after_chunks(process: subprocess.Popen[str], chunks: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["type"] == "chunk" and json.loads(line)["index"] + 1 >= chunks:
            return
    raise AssertionError("the render ended too soon")


RENDER = ("render", PROMPT, "--seed", "3", "--duration", "300s", "-o", "clip.mp4", "--json")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_the_first_signal_stops_gently_and_tells_how_to_go_on(
    started: Callable[..., subprocess.Popen[str]], number: int, code: int, says: str, tmp_path: Path
) -> None:
    process = started(*RENDER)
    after_chunks(process, 2)
    if hasattr(signal, "SIGUSR1"):  # it tells how far it is when asked, and renders on
        process.send_signal(signal.SIGUSR1)
        after_chunks(process, 1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    if hasattr(signal, "SIGUSR1"):
        assert re.search(r"^chunk [0-9]+ of 401\b", stderr, re.MULTILINE), stderr
    assert f"{says} after chunk" in stderr
    assert "hint: go on with `cfgen resume clip.cfgen`" in stderr
    assert "Traceback" not in stderr
    envelope = json.loads(stdout.splitlines()[-1])
    assert (envelope["ok"], envelope["error"]["code"]) == (False, "interrupted")
    assert "go on with `cfgen resume" in envelope["error"]["hint"]
    assert [path.name for path in tmp_path.iterdir()] == ["clip.cfgen"]
    done = len(RunFolder(tmp_path / "clip.cfgen").journal.of(ChunkLine))
    snapshots = sorted((tmp_path / "clip.cfgen" / "snapshots").glob("*.json"))
    assert snapshots[-1].stem == f"{done:06d}"
    assert not (tmp_path / "clip.cfgen" / "lock").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_the_second_signal_stops_at_once_and_the_render_can_be_resumed(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = started(*RENDER)
    after_chunks(process, 2)
    process.send_signal(signal.SIGSTOP)  # so that both arrive within one chunk
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert "stopped at once" in stderr
    with closing(iter(cfgen.resume(tmp_path / "clip.cfgen"))) as events:
        assert any(isinstance(event, ChunkDone) for event in events)


RECORD = RunRecord(
    output="clip.mp4",
    overwrite=False,
    config={"prompt": "a kite"},
    fingerprint={"machine": "x"},
    created="2026-01-01T00:00:00+00:00",
)


def test_a_render_goes_on_with_another_gpu_of_the_same_kind() -> None:
    config = load({"prompt": "a", "seed": "1", "output": "a.mp4"}).config
    one, two, none = (replace(config, device=name) for name in ("cuda", "cuda:1", "cpu"))
    require_same_render(Path("a"), one, two)
    with pytest.raises(SnapshotMismatch, match=r"\bdevice\b.*'cuda'.*'cpu'"):
        require_same_render(Path("a"), one, none)


def test_a_render_goes_on_with_another_placement(film: MakeFilm) -> None:
    cut = film.killed(3)
    folder = RunFolder(cut.run)
    began = config_of(folder)
    asked = replace(began, placement=PlacementConfig(offload="all", vram=10**10))
    require_same_render(cut.run, began, asked)
    found = config_to_resume(folder, asked)
    assert found.placement == asked.placement
    assert replace(found, placement=began.placement) == began


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_record_that_was_touched_is_refused_or_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "clip.cfgen"
    path.mkdir()
    write_record(path, RECORD)
    content = bytearray((path / "run.json").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["cut", "flip", "insert", "nonsense"])):
        case "cut":
            content = content[:at]
        case "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        case "insert":
            content[at:at] = data.draw(st.binary(max_size=6))
        case "nonsense":
            content = bytearray(data.draw(st.binary(max_size=60)))
    (path / "run.json").write_bytes(content)
    found: RunRecord | str
    try:
        found = RunFolder(path).record
    except SnapshotError as error:
        found = str(error)
    assert found == RECORD or str(path) in str(found)


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from([*RunRecord.__dataclass_fields__, "version", "check", "more"]),
        st.none() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=3)),
    )
)
def test_a_record_of_nonsense_is_refused(
    tmp_path_factory: pytest.TempPathFactory, facts: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "clip.cfgen"
    path.mkdir()
    facts.pop("check", None)
    (path / "run.json").write_text(json.dumps(with_checksum(facts)))
    with pytest.raises(SnapshotError):
        RunFolder(path)


@pytest.mark.parametrize("output", ["../clip.mp4", "/clip.mp4", "a/clip.mp4", "..", "", "a\0.mp4"])
def test_a_record_cannot_lead_out_of_its_folder(tmp_path: Path, output: str) -> None:
    path = tmp_path / "clip.cfgen"
    path.mkdir()
    write_record(path, replace(RECORD, output=output))
    with pytest.raises(SnapshotError, match=r"\boutput\b"):
        RunFolder(path)


def test_a_living_lock_refuses_every_command_that_would_write(film: MakeFilm) -> None:
    cut = film.killed(3)
    with Lock(cut.run / "lock"), pytest.raises(LockHeld):
        cut.go_on()
    assert cut.gone_on_with() == film.expected()

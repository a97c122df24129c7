import os
import stat
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from cfgen.errors import BudgetError, FfmpegMissing, WriterError
from cfgen.video.ffmpeg import STDERR_LINES, Ffmpeg, FfmpegRun, find_ffmpeg, require_encoder
from cfgen.video.measure import Measured, _parse_framecrc, measure

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the fake ffmpeg is a shell script")

ANSWERS = """
case "$*" in
  *-version*) echo "ffmpeg version 7.7-fake Copyright (c)"; echo "built with care"; exit 0;;
  *-encoders*)
    echo "Encoders:"; echo " V..... = Video"; echo " ------"
    echo " V....D mpeg4                MPEG-4 part 2"; echo " A....D aac      AAC"; exit 0;;
esac
"""


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_environment_comes_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = script(tmp_path / "mine", ANSWERS)
    script(tmp_path / "ffmpeg", ANSWERS.replace("7.7-fake", "1.0-path"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CFGEN_FFMPEG", str(mine))
    assert find_ffmpeg() == Ffmpeg(mine, "7.7-fake", frozenset({"mpeg4", "aac"}))


@pytest.mark.parametrize("unset", [None, ""])
def test_path_comes_before_the_packaged_one(
    unset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = script(tmp_path / "ffmpeg", ANSWERS)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if unset is None:
        monkeypatch.delenv("CFGEN_FFMPEG", raising=False)
    else:
        monkeypatch.setenv("CFGEN_FFMPEG", unset)
    assert find_ffmpeg().path == on_path


def test_packaged_one_is_found_last_and_has_x264(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CFGEN_FFMPEG", raising=False)
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    ffmpeg = find_ffmpeg()
    assert ffmpeg.path.is_absolute()
    assert "imageio_ffmpeg" in ffmpeg.path.parts
    assert ffmpeg.version
    require_encoder(ffmpeg, "libx264")


def test_relative_name_in_the_environment_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "mine", ANSWERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CFGEN_FFMPEG", "./mine")
    path = find_ffmpeg().path
    assert path.is_absolute()
    assert path.samefile(tmp_path / "mine")


def test_missing_everywhere_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CFGEN_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(FfmpegMissing, match="no ffmpeg was found") as caught:
        find_ffmpeg()
    assert "pip install imageio-ffmpeg" in str(caught.value.hint)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["nowhere", "plain"])
def test_environment_that_cannot_run_is_not_passed_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_text("not a program")
    monkeypatch.setenv("CFGEN_FFMPEG", str(tmp_path / name))
    with pytest.raises(FfmpegMissing, match=f"CFGEN_FFMPEG names .*{name}"):
        find_ffmpeg()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo libx264.so.164: cannot open shared object >&2; exit 127", "127: libx264.so.164"),
        ("echo avconv 12", "is not ffmpeg: .*avconv 12"),
    ],
)
def test_broken_binary_is_refused_with_its_own_words(
    body: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFGEN_FFMPEG", str(script(tmp_path / "bad", body)))
    with pytest.raises(FfmpegMissing, match=says) as caught:
        find_ffmpeg()
    assert "set CFGEN_FFMPEG" in str(caught.value.hint)


def test_missing_encoder_names_binary_encoder_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path / "lgpl", ANSWERS)
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setenv("CFGEN_FFMPEG", str(path))
    ffmpeg = find_ffmpeg()
    require_encoder(ffmpeg, "mpeg4")
    with pytest.raises(FfmpegMissing, match=r"lgpl \(version 7.7-fake\).*libx264") as caught:
        require_encoder(ffmpeg, "libx264")
    assert "built with libx264" in str(caught.value.hint)
    assert "imageio_ffmpeg" in str(caught.value.hint)


def test_failure_carries_status_and_only_the_last_lines(tmp_path: Path) -> None:
    path = script(
        tmp_path / "fails",
        "i=0; while [ $i -lt 50 ]; do echo line $i >&2; i=$((i+1)); done; exit 7",
    )
    with (
        FfmpegRun([str(path)], purpose="testing") as run,
        pytest.raises(WriterError, match="stopped while testing") as caught,
    ):
        run.finish()
    assert caught.value.exit_status == 7
    assert caught.value.stderr_tail == tuple(f"line {i}" for i in range(50 - STDERR_LINES, 50))


def test_talkative_ffmpeg_does_not_block(tmp_path: Path) -> None:
    path = script(tmp_path / "talks", "head -c 3000000 /dev/zero >&2; cat >/dev/null; exit 0")
    with FfmpegRun([str(path)], purpose="testing", feed=True) as run:
        run.write(memoryview(bytes(1_000_000)))
        run.finish()


def test_input_left_unread_is_a_failure_even_with_status_0(tmp_path: Path) -> None:
    path = script(tmp_path / "leaves", "echo enough >&2; exit 0")
    with (
        FfmpegRun([str(path)], purpose="testing", feed=True) as run,
        pytest.raises(WriterError) as caught,
    ):
        run.write(memoryview(bytes(1_000_000)))
    assert caught.value.exit_status == 0
    assert caught.value.stderr_tail == ("enough",)


def test_full_disk_is_named(tmp_path: Path) -> None:
    path = script(tmp_path / "full", "echo 'av_interleaved: No space left on device' >&2; exit 228")
    with (
        FfmpegRun([str(path)], purpose="testing") as run,
        pytest.raises(BudgetError, match="the disk is full") as caught,
    ):
        run.finish()
    assert "free some space" in str(caught.value.hint)


def test_death_by_signal_is_named(tmp_path: Path) -> None:
    path = script(tmp_path / "dies", "kill -9 $$")
    with (
        FfmpegRun([str(path)], purpose="testing") as run,
        pytest.raises(WriterError, match="killed by signal 9"),
    ):
        run.finish()


def test_leaving_the_block_kills_the_whole_group_at_once(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = script(
        tmp_path / "hangs",
        f"sleep 600 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait",
    )
    start = time.monotonic()
    with FfmpegRun([str(path)], purpose="testing", feed=True):
        while not pid_file.exists():
            assert time.monotonic() - start < 20
            time.sleep(0.01)
    assert time.monotonic() - start < 20
    assert not alive(int(pid_file.read_text()))


def alive(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and ") Z " in status.read_text():
            return False
        time.sleep(0.01)
    return True


def test_ctrl_c_of_the_terminal_does_not_reach_ffmpeg(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    path = script(tmp_path / "reads", f"cut -d' ' -f5,6 /proc/$$/stat > {groups}; cat >/dev/null")
    with FfmpegRun([str(path)], purpose="testing", feed=True) as run:
        run.write(memoryview(b"frames"))
        run.finish()
    if not groups.read_text():
        pytest.skip("no /proc to read the process group from")
    group, session = map(int, groups.read_text().split())
    assert group != os.getpgrp()
    assert session != os.getsid(0)


def test_binary_that_vanished_is_a_writer_error(tmp_path: Path) -> None:
    with pytest.raises(WriterError, match="could not be started for testing"):
        FfmpegRun([str(tmp_path / "gone")], purpose="testing")


def test_a_pipe_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path / "ends", "exit 0")
    with (
        FfmpegRun([str(path)], purpose="testing") as run,
        pytest.raises(ValueError, match="without that pipe"),
    ):
        run.write(memoryview(b"x"))


HEADER = ["#software: x", "#tb 0: 1/10000", "#dimensions 0: 64x32"]


@pytest.mark.parametrize(
    ("rows", "fps"),
    [
        (["0, 0, 0, 625, 9, 0x1"], Fraction(16)),
        (["0, 0, 0, 625, 9, 0x1", "0, 625, 625, 625, 9, 0x1"], Fraction(16)),
        (["0, 0, 0, 625, 9, 0x1", "0, 625, 624, 625, 9, 0x1"], None),
        (["0, 0, 0, 625, 9, 0x1", "0, 625, 625, 600, 9, 0x1"], None),
        (["0, 0, 5, 625, 9, 0x1"], None),
        (["0, 0, 0, 0, 9, 0x1"], None),
    ],
)
def test_timing_is_even_or_reported_as_uneven(rows: list[str], fps: Fraction | None) -> None:
    assert _parse_framecrc([*HEADER, *rows]) == Measured(len(rows), 64, 32, fps)


def test_no_frames_measure_as_nothing() -> None:
    assert _parse_framecrc([]) == Measured(0, 0, 0, None)


@pytest.mark.parametrize("decode", [False, True])
def test_measuring_what_is_no_video_fails(decode: bool, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "noise.mp4"
    path.write_bytes(b"no video at all" * 100)
    with pytest.raises(WriterError, match=r"reading noise\.mp4") as caught:
        measure(ffmpeg, path, decode=decode)
    assert caught.value.exit_status
    assert caught.value.stderr_tail


@pytest.mark.parametrize("body", [ANSWERS, "exit 127"], ids=["without x264", "broken"])
def test_the_packaged_one_is_taken_where_path_s_will_not_do_and_said(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path / "ffmpeg", body)
    monkeypatch.delenv("CFGEN_FFMPEG", raising=False)
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = find_ffmpeg("libx264")
    assert "imageio_ffmpeg" in found.path.parts
    assert found.note.startswith(str(path))
    assert "is taken instead" in found.note

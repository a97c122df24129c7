"""What the writer does when it is left early, fed wrongly, or when ffmpeg or the disk fails."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cfgen.errors import BudgetError, FfmpegMissing, OutputRefused, UsageError, WriterError
from cfgen.video.ffmpeg import Ffmpeg, find_ffmpeg
from cfgen.video.writer import VideoWriter

Frames = npt.NDArray[np.uint8]
SIZE = 32


def noise(count: int) -> Frames:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def parts_of(output: Path) -> Path:
    """A folder for segments that no test looks at by accident."""
    return output.parent / ".parts"


def writer(output: Path, ffmpeg: Ffmpeg, **changes: object) -> VideoWriter:
    values: dict[str, object] = {
        "width": SIZE,
        "height": SIZE,
        "fps": 16.0,
        "quality": "draft",
        "metadata": {},
        "parts": parts_of(output),
    }
    return VideoWriter(output, ffmpeg=ffmpeg, **(values | changes))  # type: ignore[arg-type]


def render(output: Path, ffmpeg: Ffmpeg, segments: Sequence[int]) -> None:
    with writer(output, ffmpeg) as video:
        for count in segments:
            video.write(noise(count))
            video.end_segment()
        video.join()
        video.publish()


def assert_only(folder: Path, *names: str) -> None:
    """The folder holds these, and its parts folder, if it has one, nothing but whole segments."""
    found = {path.name for path in folder.iterdir()}
    assert found - {".parts"} == set(names)
    left = [path.name for path in (folder / ".parts").glob("*")]
    assert [name for name in left if not re.fullmatch(r"segment-[0-9]+\.mp4", name)] == []


@pytest.mark.parametrize("reason", [RuntimeError, KeyboardInterrupt, WriterError])
@pytest.mark.parametrize("moment", ["before", "inside", "between"])
def test_leaving_by_an_exception_leaves_nothing(
    reason: type[BaseException], moment: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    output = tmp_path / "clip.mp4"
    output.write_bytes(b"older film")

    def stop() -> None:
        with writer(output, ffmpeg) as video:
            if moment != "before":
                video.write(noise(2))
            if moment == "between":
                video.end_segment()
            raise reason("stop")

    with pytest.raises(reason, match="stop"):
        stop()
    assert_only(tmp_path, "clip.mp4")
    assert output.read_bytes() == b"older film"


def test_abort_leaves_nothing_and_closes_the_writer(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    with writer(tmp_path / "clip.mp4", ffmpeg) as video:
        video.write(noise(2))
        video.abort()
        assert_only(tmp_path)
        with pytest.raises(ValueError, match="not open"):
            video.write(noise(1))


def test_block_that_forgets_to_publish_says_so(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    video = writer(tmp_path / "clip.mp4", ffmpeg)
    with pytest.raises(RuntimeError, match=r"without publish\(\)"), video:
        video.write(noise(2))
    assert_only(tmp_path)


def test_no_frames_at_all_is_an_error(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    with (
        pytest.raises(WriterError, match="no frame was written to"),
        writer(tmp_path / "clip.mp4", ffmpeg) as video,
    ):
        video.join()
    assert_only(tmp_path)


def test_empty_segment_is_an_error(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    with writer(tmp_path / "clip.mp4", ffmpeg) as video:
        with pytest.raises(ValueError, match="no frame was written since"):
            video.end_segment()
        video.abort()


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (noise(2).astype(np.float32), "got float32"),
        (noise(2)[0], r"uint8 \[n >= 1, 32, 32, 3\], got uint8 \[32, 32, 3\]"),
        (noise(2)[:, :30], r"got uint8 \[2, 30, 32, 3\]"),
        (noise(2)[..., :1], r"got uint8 \[2, 32, 32, 1\]"),
        (noise(2)[:0], r"got uint8 \[0, 32, 32, 3\]"),
        (noise(2).transpose(0, 2, 1, 3), "C-contiguous"),
        (noise(4)[::2], "C-contiguous"),
    ],
)
def test_frames_of_another_kind_are_refused(
    frames: Frames, says: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    with writer(tmp_path / "clip.mp4", ffmpeg) as video:
        with pytest.raises(ValueError, match=says):
            video.write(frames)
        video.abort()


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 31},
        {"height": 33},
        {"fps": 0.0},
        {"quality": "superb"},
        {"metadata": {"title": "a\0"}},
    ],
)
def test_bad_values_are_refused_before_the_disk_is_touched(
    changes: dict[str, object], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    with pytest.raises(UsageError):
        writer(tmp_path / "clip.mp4", ffmpeg, **changes)
    assert_only(tmp_path)


def test_ffmpeg_without_x264_is_refused_before_work(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    lesser = Ffmpeg(ffmpeg.path, ffmpeg.version, ffmpeg.encoders - {"libx264"})
    with pytest.raises(FfmpegMissing, match="libx264"):
        writer(tmp_path / "clip.mp4", lesser)


def test_missing_folder_is_refused_on_entry(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    with pytest.raises(OutputRefused, match="does not exist"):
        writer(tmp_path / "nowhere" / "clip.mp4", ffmpeg).__enter__()


def fake(path: Path, ffmpeg: Ffmpeg, fault: str) -> Ffmpeg:
    """An ffmpeg that answers questions, then runs a shell fault before the real one."""
    path.write_text(
        f"""#!/bin/sh
case "$*" in
  *-version*|*-encoders*) exec {ffmpeg.path} "$@";;
esac
{fault}
exec {ffmpeg.path} "$@"
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFGEN_FFMPEG", str(path))
        return find_ffmpeg()


ENCODING, JOINING, READING = "*pipe:0*", "*ffmetadata*", "*framecrc*"


@pytest.mark.skipif(os.name != "posix", reason="the fake ffmpeg is a shell script")
def test_a_full_disk_is_told_from_other_failures(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    fault = "head -c 99 >/dev/null; echo 'write: No space left on device' >&2; exit 228"
    broken = fake(tmp_path / "fake", ffmpeg, f'case "$*" in {ENCODING}) {fault};; esac')
    with pytest.raises(BudgetError, match="the disk is full: ffmpeg stopped while encoding seg"):
        render(folder / "clip.mp4", broken, [300, 2])
    assert_only(folder)


@pytest.mark.skipif(os.name != "posix", reason="the fake ffmpeg is a shell script")
@pytest.mark.parametrize(
    ("when", "fault", "message", "status", "last_line"),
    [
        (ENCODING, "echo no such luck >&2; exit 3", "encoding segment 0", 3, "no such luck"),
        (ENCODING, "head -c 9 >/dev/null; echo boom >&2; exit 9", "segment 0", 9, "boom"),
        (ENCODING, "cat >/dev/null; echo late >&2; exit 5", "encoding segment 0", 5, "late"),
        (ENCODING, "kill -11 $$", "killed by signal 11 while encoding", -11, None),
        (JOINING, "echo cannot join >&2; exit 4", "joining clip.mp4", 4, "cannot join"),
        (READING, "echo unreadable >&2; exit 6", "reading segment-000000", 6, "unreadable"),
    ],
)
def test_ffmpeg_that_dies_is_reported_and_leaves_nothing(  # noqa: PLR0913
    when: str,
    fault: str,
    message: str,
    status: int,
    last_line: str | None,
    tmp_path: Path,
    ffmpeg: Ffmpeg,
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    broken = fake(tmp_path / "fake", ffmpeg, f'case "$*" in {when}) {fault};; esac')
    with pytest.raises(WriterError, match=message) as caught:
        render(folder / "clip.mp4", broken, [300, 2])
    assert caught.value.exit_status == status
    if last_line is not None:
        assert caught.value.stderr_tail[-1] == last_line
        assert last_line in str(caught.value)
    assert_only(folder)


@pytest.mark.skipif(os.name != "posix", reason="the fake ffmpeg is a shell script")
@pytest.mark.parametrize(
    ("when", "fault", "message"),
    [
        (ENCODING, "cat >/dev/null; exit 0", "reading segment-000000.part.mp4"),
        (JOINING, "exit 0", "reading clip.part.mp4"),
        (READING, "echo '0, 0, 0, 1, 9, 0x1'; exit 0", "should have 3 frames of 32x32 at 16 fps"),
    ],
)
def test_ffmpeg_that_only_says_it_worked_is_found_out(
    when: str, fault: str, message: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(b"older film")
    liar = fake(tmp_path / "fake", ffmpeg, f'case "$*" in {when}) {fault};; esac')
    with pytest.raises(WriterError, match=message):
        render(folder / "clip.mp4", liar, [3])
    assert_only(folder, "clip.mp4")
    assert (folder / "clip.mp4").read_bytes() == b"older film"


def test_disk_that_fails_at_the_last_rename_is_reported(
    tmp_path: Path, ffmpeg: Ffmpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def fail_for_outputs(source: Path, target: Path) -> None:
        if target.suffix == ".mp4" and target.parent == tmp_path:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_outputs)
    with pytest.raises(WriterError, match=r"could not write .*clip\.mp4: Input/output error"):
        render(tmp_path / "clip.mp4", ffmpeg, [2])
    # The sidecar goes first, so that a new video is never without its own.
    assert_only(tmp_path, "clip.mp4.json")

import hashlib
import json
import re
import struct
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfgen.files.writing import part_of
from cfgen.video.facts import VideoFacts, chain_frames
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.measure import measure
from cfgen.video.output import sidecar_of
from cfgen.video.writer import VideoWriter

Frames = npt.NDArray[np.uint8]
SIZE = 32
PERIOD = SIZE - 8


def moving(count: int, start: int = 0) -> Frames:
    """Frames in which a square moves over a gradient; it comes round after `PERIOD`."""
    ramp = np.arange(SIZE, dtype=np.uint8) * 5
    frames = np.empty((count, SIZE, SIZE, 3), np.uint8)
    frames[..., 0], frames[..., 1], frames[..., 2] = ramp[:, None], ramp, 90
    for offset in range(count):
        at = (start + offset) % PERIOD
        frames[offset, at : at + 8, 8:16] = (250, 200, 20)
    return frames


def parts_of(output: Path) -> Path:
    """A folder for segments that no test looks at by accident."""
    return output.parent / ".parts"


def writer(output: Path, ffmpeg: Ffmpeg, **changes: object) -> VideoWriter:
    values: dict[str, object] = {
        "width": SIZE,
        "height": SIZE,
        "fps": 16.0,
        "quality": "good",
        "metadata": {"title": "a fox"},
        "parts": parts_of(output),
    }
    return VideoWriter(output, ffmpeg=ffmpeg, **(values | changes))  # type: ignore[arg-type]


def render(output: Path, ffmpeg: Ffmpeg, segments: Sequence[int], **changes: object) -> VideoFacts:
    start = 0
    with writer(output, ffmpeg, **changes) as video:
        for count in segments:
            video.write(moving(count, start))
            video.end_segment()
            start += count
        facts = video.join()
        video.publish()
        return facts


def ask(ffmpeg: Ffmpeg, path: Path, *arguments: str) -> tuple[bytes, str]:
    done = subprocess.run(
        [str(ffmpeg.path), "-hide_banner", "-nostdin", "-i", f"file:{path}", *arguments],
        capture_output=True,
        check=True,
    )
    return done.stdout, done.stderr.decode()


def decoded(ffmpeg: Ffmpeg, path: Path) -> Frames:
    raw, _ = ask(ffmpeg, path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, SIZE, SIZE, 3)


def stream_digests(ffmpeg: Ffmpeg, path: Path) -> bytes:
    packets, _ = ask(ffmpeg, path, "-c", "copy", "-f", "framemd5", "-")
    frames, _ = ask(ffmpeg, path, "-f", "framemd5", "-")
    return packets + frames


def track_duration(path: Path) -> Fraction:
    data = path.read_bytes()
    at = data.index(b"mdhd") + 4
    _, _, _, timescale, duration = struct.unpack(">5I", data[at : at + 20])
    return Fraction(duration, timescale)


def assert_only(folder: Path, *names: str) -> None:
    """The folder holds these, and its parts folder, if it has one, nothing but whole segments."""
    found = {path.name for path in folder.iterdir()}
    assert found - {".parts"} == set(names)
    left = [path.name for path in (folder / ".parts").glob("*")]
    assert [name for name in left if not re.fullmatch(r"segment-[0-9]+\.mp4", name)] == []


@pytest.mark.parametrize(
    ("segments", "fps"),
    [
        ([1], 16.0),
        ([2], 12.5),
        ([1, 1, 1, 1], 24000 / 1001),
        ([9, 12, 12, 5], 16.0),
        ([9, 12, 12, 5], 24000 / 1001),
        ([1, 2, 3, 4, 1, 70, 1], 12.5),
        ([3, 1], 24000 / 1001),
        ([1], 12.5),
    ],
)
def test_frames_and_duration_are_exact_over_any_segments(
    segments: list[int], fps: float, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    output = tmp_path / "clip.mp4"
    facts = render(output, ffmpeg, segments, fps=fps)
    total, rate = sum(segments), Fraction(fps).limit_denominator(1001)
    assert (facts.frames, facts.segments) == (total, len(segments))
    for decode in (False, True):
        found = measure(ffmpeg, output, decode=decode)
        assert (found.frames, found.width, found.height, found.fps) == (total, SIZE, SIZE, rate)
    assert track_duration(output) == total / rate
    assert facts.duration_s == pytest.approx(total / fps)
    assert b"elst" not in output.read_bytes()
    assert_only(tmp_path, "clip.mp4", "clip.mp4.json")


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=6))
def test_any_grid_gives_every_frame_in_order(
    lengths: list[int], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    output = tmp_path / "clip.mp4"
    render(output, ffmpeg, lengths, quality="best")
    found, written = decoded(ffmpeg, output).astype(int), moving(PERIOD)
    assert len(found) == sum(lengths)
    away = np.array([[np.abs(frame - other).mean() for other in written] for frame in found])
    assert away.argmin(axis=1).tolist() == [index % PERIOD for index in range(len(found))]
    assert away.min(axis=1).max() < 6


def test_chunks_of_one_segment_are_one_stream(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    whole, chunked = tmp_path / "whole.mp4", tmp_path / "chunked.mp4"
    render(whole, ffmpeg, [21])
    with writer(chunked, ffmpeg) as video:
        video.write(moving(9))
        video.write(moving(12, 9))
        facts = video.join()
        video.publish()
    assert facts.segments == 1
    assert stream_digests(ffmpeg, whole) == stream_digests(ffmpeg, chunked)


def test_end_segment_returns_the_facts_of_a_complete_file(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    with writer(tmp_path / "clip.mp4", ffmpeg) as video:
        for index, count in enumerate((4, 7)):
            video.write(moving(count))
            facts = video.end_segment()
            assert (facts.index, facts.frames) == (index, count)
            assert facts.path.parent == parts_of(tmp_path / "clip.mp4")
            assert measure(ffmpeg, facts.path, decode=True).frames == count
            content = facts.path.read_bytes()
            assert facts.nbytes == len(content)
            assert facts.sha256 == hashlib.sha256(content).hexdigest()
        video.abort()


def test_stream_is_tagged_bt709_limited_yuv420p(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    output = tmp_path / "clip.mp4"
    render(output, ffmpeg, [2, 3])
    _, report = ask(ffmpeg, output, "-f", "null", "-")
    stream = re.search(r"Stream #0:0.*Video: (.*)", report)
    assert stream is not None
    assert "h264 (High)" in stream[1]
    assert "yuv420p(tv, bt709" in stream[1]
    at = (data := output.read_bytes()).index(b"colrnclx") + 8
    assert struct.unpack(">HHHB", data[at : at + 7]) == (1, 1, 1, 0)
    assert data.index(b"moov") < data.index(b"mdat"), "faststart: the index comes first"


COLOURS = [
    (255, 255, 255),
    (0, 0, 0),
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (128, 128, 128),
    (220, 60, 40),
    (20, 90, 160),
]


@pytest.mark.parametrize("quality", ["draft", "good", "best"])
def test_colours_survive(quality: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    output = tmp_path / "clip.mp4"
    frames = np.empty((len(COLOURS), SIZE, SIZE, 3), np.uint8)
    frames[:] = np.array(COLOURS, np.uint8)[:, None, None]
    with writer(output, ffmpeg, quality=quality) as video:
        for frame in frames:
            video.write(frame[None])
            video.end_segment()
        video.join()
        video.publish()
    assert np.abs(decoded(ffmpeg, output).astype(int) - frames).max() <= 3


def test_conversion_uses_the_bt709_matrix_and_limited_range(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    output = tmp_path / "clip.mp4"
    frames = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    frames[..., 1] = 255
    with writer(output, ffmpeg) as video:
        video.write(frames)
        video.join()
        video.publish()
    raw, _ = ask(ffmpeg, output, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-")
    luma = np.frombuffer(raw, np.uint8)[: SIZE * SIZE]
    green_709 = round(16 + 219 * 0.7152)
    assert np.abs(luma.astype(int) - green_709).max() <= 2


METADATA = {
    "title": "a=b; #1 [CHAPTER] \\ 'quoted' \"twice\"",
    "comment": "first line\nsecond = line\n\n;not a comment\n[STREAM]\ntrailing space ",
    "prompt": "気球 drifts over snowy hills é 🎈",
    "seed": "18446744073709551615",
    "preset": "mini",
    "checkpoint_sha256": "ab" * 32,
    "long_text": "word " * 40_000,
}


def container_metadata(ffmpeg: Ffmpeg, path: Path) -> dict[str, str]:
    raw, _ = ask(ffmpeg, path, "-f", "ffmetadata", "-")
    body = raw.decode("utf-8").partition("\n")[2]
    pairs = re.findall(r"((?:[^=\\]|\\.)*)=((?:[^\n\\]|\\.)*)\n", body, flags=re.DOTALL)
    return {key: re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) for key, text in pairs}


def test_metadata_survives_in_the_container(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    output = tmp_path / "clip.mp4"
    facts = render(output, ffmpeg, [2], metadata=METADATA)
    found = container_metadata(ffmpeg, output)
    assert {key: found[key] for key in METADATA} == METADATA
    assert found["frames"] == "2"
    assert found["frames_sha256"] == facts.frames_sha256
    assert found["ffmpeg_version"] == ffmpeg.version
    assert found["quality"] == "good"


def test_sidecar_has_metadata_and_facts(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    output = tmp_path / "clip.mp4"
    facts = render(output, ffmpeg, [2, 3], metadata=METADATA)
    sidecar = json.loads(facts.sidecar.read_text(encoding="utf-8"))
    assert sidecar["version"] == 1
    assert sidecar["metadata"] == METADATA
    assert sidecar["facts"] == {
        "path": "clip.mp4",
        "sidecar": "clip.mp4.json",
        "frames": 5,
        "width": SIZE,
        "height": SIZE,
        "fps": 16.0,
        "duration_s": 5 / 16,
        "segments": 2,
        "nbytes": output.stat().st_size,
        "sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
        "frames_sha256": chain_frames(moving(3, 2), chain_frames(moving(2))),
        "quality": "good",
        "encoder": "libx264",
        "ffmpeg_version": ffmpeg.version,
    }


def test_frames_digest_is_a_chain_that_any_split_shares() -> None:
    frames = moving(5)
    link = bytes(32)
    for frame in frames:
        link = hashlib.sha256(link + frame.tobytes()).digest()
    assert chain_frames(frames) == link.hex()
    for split in range(6):
        assert chain_frames(frames[split:], chain_frames(frames[:split])) == link.hex()
    assert chain_frames(frames[::-1]) != link.hex()


def test_frames_digest_ignores_the_segment_grid(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    grids = ([6], [1, 5], [2, 2, 2])
    digests = {render(tmp_path / "clip.mp4", ffmpeg, grid).frames_sha256 for grid in grids}
    assert digests == {chain_frames(moving(6))}


def test_two_runs_give_the_same_file(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    for output in (first, second):
        render(output, ffmpeg, [9, 12, 1])
    assert stream_digests(ffmpeg, first) == stream_digests(ffmpeg, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "-o.mp4", "it's 100%d #1?.mp4", "気球 é\n2.mp4", "x.MP4"]
)
def test_names_that_need_care(name: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    folder = tmp_path / "fo:l'der ?#% é"
    folder.mkdir()
    facts = render(folder / name, ffmpeg, [2, 1])
    assert facts.path == folder / name
    assert_only(folder, name, f"{name}.json")


def test_relative_output_survives_a_change_of_folder(
    tmp_path: Path, ffmpeg: Ffmpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with writer(Path("clip.mp4"), ffmpeg) as video:
        video.write(moving(1))
        monkeypatch.chdir(tmp_path / "elsewhere")
        video.join()
        video.publish()
    assert_only(tmp_path, "clip.mp4", "clip.mp4.json", "elsewhere")


def test_existing_output_is_replaced_only_at_the_end(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    output = tmp_path / "clip.mp4"
    output.write_bytes(b"older film")
    sidecar_of(output).write_bytes(b"older facts")
    with writer(output, ffmpeg) as video:
        video.write(moving(3))
        video.end_segment()
        assert output.read_bytes() == b"older film"
        assert sidecar_of(output).read_bytes() == b"older facts"
        video.join()
        video.publish()
    assert measure(ffmpeg, output, decode=True).frames == 3
    assert json.loads(sidecar_of(output).read_text())["facts"]["frames"] == 3


def test_given_parts_folder_is_used_and_its_own_files_stay(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    parts = tmp_path / "run" / "segments"
    parts.mkdir(parents=True)
    (parts / "journal").write_text("not ours")
    (tmp_path / "out").mkdir()
    with writer(tmp_path / "out" / "clip.mp4", ffmpeg, parts=parts) as video:
        video.write(moving(2))
        assert video.end_segment().path.parent == parts
        assert_only(tmp_path / "out")
        video.join()
        video.publish()
    assert_only(parts, "journal")
    assert_only(tmp_path / "out", "clip.mp4", "clip.mp4.json")


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    output = tmp_path / "clip.mp4"
    parts = parts_of(output)
    parts.mkdir()
    (parts / "segment-000007.mp4").write_bytes(b"stale")
    (parts / "segment-000008.part.mp4").write_bytes(b"stale")
    part_of(output).write_bytes(b"stale")
    facts = render(output, ffmpeg, [2])
    assert facts.frames == 2
    assert_only(tmp_path, "clip.mp4", "clip.mp4.json")

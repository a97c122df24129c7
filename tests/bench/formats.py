"""Every container, codec and depth on a real film; bits of a pixel; ten minutes of sound.

    python tests/bench/formats.py table FILM    FILM decoded again to each, killed and gone on with
    python tests/bench/formats.py table FILM --only "(mkv|webm) vp9"    these rows again
    python tests/bench/formats.py sizes FILM    bits of a pixel, by codec and quality
    python tests/bench/formats.py sound         where clicks come in films of ten minutes

FILM is one whose run folder is beside it: `cfgen render PROMPT --duration 22s --seed 5 --codec ffv1
-o film.mkv`. A kill is SIGKILL to the process that decodes, behind the first segment; the same
command goes on, and passes if it makes the very file of the decoding that nobody disturbed. PSNR is
that of the first frame against the decoder's, rounded to 8 bits, or to 16 where the file has more.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import signal
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kept import RESULTS, cfgen, keep
from rich.console import Console

from cfgen.files.writing import nbytes_of, sha256_of
from cfgen.video.codecs import Codec
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.formats import FORMATS, FRAME_NAME, OutputFormat
from cfgen.video.measure import measure
from cfgen.video.sound import read_track
from cfgen.video.writer import VideoWriter

shown = Console(stderr=True, highlight=False, soft_wrap=True)
TABLE = RESULTS / "formats-table.json"
KILLED_AT = 20
"""The chunk after which a decoding is killed: a segment has 16."""
MINUTES = 10
SOUND_RATE = 48_000
CLICK = np.sin(np.arange(480) * 2 * np.pi / 48) * np.hanning(480) * 0.8


def opened(film: Path) -> Path:
    return film / FRAME_NAME if film.is_dir() else film


def ask(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(find_ffmpeg().path), "-hide_banner", "-nostdin", *arguments]
    return subprocess.run(command, capture_output=True, check=True)


def frames_of(film: Path, bits: int, count: int = 1) -> npt.NDArray[Any]:
    """The first frames of a film: uint8 [count, height, width, 3], or uint16."""
    facts = json.loads(film.with_name(f"{film.name}.json").read_text())["facts"]
    layout, kind = ("rgb24", np.uint8) if bits == 8 else ("rgb48le", np.uint16)
    limit = ("-frames:v", str(count)) if count else ()
    raw = ask("-i", str(opened(film)), *limit, "-f", "rawvideo", "-pix_fmt", layout, "-").stdout
    return np.frombuffer(raw, kind).reshape(-1, facts["height"], facts["width"], 3)


def psnr(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float | str:
    """In dB, or a word where nothing differs, as JSON has no infinity."""
    mean = float(np.square(found.astype(float) - wanted).mean())
    most = float(np.iinfo(wanted.dtype).max)
    return "exact" if mean == 0 else round(20 * math.log10(most / math.sqrt(mean)), 1)


def cases() -> Iterator[tuple[OutputFormat, Codec, int]]:
    for made in FORMATS.values():
        for codec in made.codecs:
            for bits in codec.pixel_formats:
                yield made, codec, bits


def table(film: Path, work: Path, only: str = "") -> list[dict[str, object]]:
    """Each case made, read back, and made again with a kill in its middle.

    Args:
        film: The film that is decoded again.
        work: A folder for what is made.
        only: Which rows are measured, as a pattern of container and codec; others stay as they are.
    """
    deep = work / "deep.png"
    decode(film, deep, "png", 16)
    raw = {8: frames_of(film, 8), 16: frames_of(deep, 16)}
    rows: list[dict[str, object]] = []
    before = json.loads(TABLE.read_text())["rows"] if only else []
    for made, codec, bits in cases():
        place = f"{made.ending.removeprefix('.')} {codec.key}"
        if not re.match(only, place):
            rows += [row for row in before if place == f"{row['container']} {row['codec']}"][:1]
            before = [row for row in before if row not in rows]
            continue
        whole, cut = work / f"whole{made.ending}", work / f"cut{made.ending}"
        facts = decode(film, whole, codec.key, bits)
        killed = decode(film, cut, codec.key, bits, kill=KILLED_AT)
        decode(film, cut, codec.key, bits)
        rate = Fraction(facts["fps"]).limit_denominator(1001)
        near = None if made.exact_times else rate
        found = measure(find_ffmpeg(), whole, decode=True, near=near, rate=rate)
        told = ask("-i", str(opened(whole)), "-f", "null", "-").stderr.decode()
        (stream,) = re.findall(r"Stream #0:0.*?: Video: (.*)", told.partition("Output #")[0])
        depth = 8 if bits == 8 else 16
        row = {
            "container": made.ending.removeprefix("."),
            "codec": codec.key,
            "bits": bits,
            "frames": found.frames,
            "fps": str(found.fps),
            "stream": stream,
            "bytes": nbytes_of(whole),
            "psnr_first_frame": psnr(frames_of(whole, depth), raw[depth]),
            "killed_after_chunk": killed["chunk"],
            "same_file_after_resume": sha256_of(whole) == sha256_of(cut),
        }
        shown.print(row)
        rows.append(row)
        for path in work.glob("*"):
            if path.stem in ("whole", "cut") or path.name.startswith(("whole.", "cut.")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return rows


def decode(film: Path, to: Path, codec: str, bits: int, *, kill: int = 0) -> dict[str, Any]:
    """Run `cfgen decode`; return the facts of the sidecar, or the chunk after which it died."""
    asked = ["--codec", codec, "--bits", str(bits), "--quality", "draft", "--json"]
    process = cfgen("decode", str(film), "-o", str(to), *asked)
    assert process.stdout is not None
    chunk = -1
    for line in process.stdout:
        event = json.loads(line)
        chunk = event["index"] if event["type"] == "chunk" else chunk
        if kill and chunk + 1 >= kill:
            process.send_signal(signal.SIGKILL)
            break
    _, stderr = process.communicate()
    if kill:
        assert process.returncode == -signal.SIGKILL, stderr
        return {"chunk": chunk + 1}
    if process.returncode:
        raise SystemExit(stderr)
    return dict(json.loads(to.with_name(f"{to.name}.json").read_text())["facts"])


def sizes(film: Path, work: Path) -> list[dict[str, object]]:
    """Bits that a pixel takes in the file, of every codec at every quality."""
    deep = work / "deep.png"
    decode(film, deep, "png", 16)
    frames = {8: frames_of(film, 8, 0), 16: frames_of(deep, 16, 0)}
    made: dict[str, tuple[OutputFormat, Codec, int]] = {}
    for each, codec, bits in cases():
        made.setdefault(f"{codec.key} {bits}", (each, codec, bits))
    rows = []
    for each, codec, bits in made.values():
        row: dict[str, object] = {"codec": codec.key, "bits": bits}
        raw = frames[8 if bits == 8 else 16]
        for quality in codec.qualities:
            path = work / f"{codec.key}-{bits}-{quality}{each.ending}"
            write(path, raw, codec=codec.key, bits=bits, quality=quality)
            row[quality] = round(8 * nbytes_of(path) / raw[..., 0].size, 3)
        shown.print(row)
        rows.append(row)
    return rows


def write(path: Path, frames: npt.NDArray[Any], sound: Path | None = None, **more: Any) -> None:
    """A film of frames, 16 a second."""
    video = VideoWriter(
        path,
        width=frames.shape[2],
        height=frames.shape[1],
        fps=more.pop("fps", 16.0),
        ffmpeg=find_ffmpeg(),
        metadata={},
        parts=path.with_suffix(".parts"),
        **more,
    )
    video.sound = sound
    with video:
        for start in range(0, len(frames), 192):
            video.write(np.ascontiguousarray(frames[start : start + 192]))
            video.end_segment()
        video.join()
        video.publish()


def sound(work: Path) -> list[dict[str, object]]:
    """Clicks of a file under synthetic frames: how many samples late each is."""
    rows = []
    frames = np.zeros((MINUTES * 60 * 16, 32, 32, 3), np.uint8)
    frames[:, :, :, 0] = (np.arange(len(frames)) % 256)[:, None, None]
    seconds = Fraction(len(frames), 16)
    for rate in (SOUND_RATE, 44_100):
        clicks = [0.0, *(60.0 * minute for minute in range(1, MINUTES)), 60.0 * MINUTES - 0.1]
        source = track(work / f"clicks-{rate}.wav", rate, clicks)
        heard = work / f"{rate}.flac"
        blocks = read_track(find_ffmpeg(), source, first=0, seconds=seconds, loop=False)
        heard.write_bytes(b"".join(blocks))
        for made in FORMATS.values():
            if not made.audio:
                continue
            film = work / f"{rate}{made.ending}"
            write(film, frames, heard, quality="draft")
            samples = np.frombuffer(
                ask("-i", str(film), "-map", "0:a:0", "-ac", "1", "-f", "f32le", "-").stdout,
                np.float32,
            )
            late = {f"{at:g} s": lateness(samples, round(at * SOUND_RATE)) for at in clicks}
            row = {
                "container": made.ending.removeprefix("."),
                "source_rate": rate,
                "late_samples": late,
                "film_samples": len(frames) * SOUND_RATE // 16,
                "sound_samples": len(samples),
                "loudness_source_lufs": loudness(source),
                "loudness_film_lufs": loudness(film),
            }
            shown.print(row)
            rows.append(row)
    return rows


def track(path: Path, rate: int, clicks: list[float]) -> Path:
    """A stereo WAV file of ten minutes: clicks over a quiet tone."""
    count = MINUTES * 60 * rate
    wave_form = 0.05 * np.sin(np.arange(count) * 2 * np.pi * 330 / rate)
    click = np.interp(np.arange(0, 480, SOUND_RATE / rate), np.arange(480), CLICK)
    for at in clicks:
        begins = round(at * rate)
        wave_form[begins : begins + len(click)] = click
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.repeat(wave_form, 2) * 32767).astype("<i2").tobytes())
    return path


def lateness(samples: npt.NDArray[np.float32], at: int) -> int:
    begins = max(0, at - 1000)
    around = samples[begins : at + 1000 + len(CLICK)].astype(float)
    return int(np.argmax(np.correlate(around, CLICK, "valid"))) + begins - at


def loudness(path: Path) -> float:
    """Integrated loudness by EBU R 128."""
    told = ask("-i", str(path), "-map", "0:a:0", "-af", "ebur128", "-f", "null", "-").stderr
    return float(re.findall(r"I:\s+(-?[0-9.]+) LUFS", told.decode())[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["table", "sizes", "sound"])
    parser.add_argument("film", type=Path, nargs="?")
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if asked.what == "sound":
            rows = sound(work)
        elif asked.film is None:
            parser.error("name a film")
        elif asked.what == "table":
            rows = table(asked.film, work, asked.only)
        else:
            rows = sizes(asked.film, work)
    keep(RESULTS / f"formats-{asked.what}.json", {"rows": rows})


if __name__ == "__main__":
    main()

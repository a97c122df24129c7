"""A file's sound under a video: where its clicks come, how loud they are, and what is refused."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cfgen.config.loader import load
from cfgen.errors import CfgenError, InputRefused, PresetError, UsageError
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.rendering import begin
from cfgen.renderer.events import Noted
from cfgen.runs.beginning import SOUND
from cfgen.video.encoding import exact_fps
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.formats import FORMATS, OutputFormat
from cfgen.video.reading import SOUND_RATE
from cfgen.video.sound import count_samples, read_track
from tests.render.film import PROMPT, MakeFilm
from tests.render.inputs import film as make_film
from tests.render.inputs import picture
from tests.render.test_begin import has_sound
from tests.render.test_writer import ask, moving, writer

Samples = npt.NDArray[np.float64]
CLICK = np.sin(np.arange(480) * 2 * np.pi / 48) * np.hanning(480) * 0.8
CLICKS = (0, 48000, 96000, 140000)
HEARD = [made for made in FORMATS.values() if made.audio]


def track(path: Path, channels: int = 1, samples: int = 144_000) -> Path:
    """A WAV file of clicks, a silence between them."""
    sound = np.zeros(samples)
    for at in CLICKS:
        if at + len(CLICK) <= samples:
            sound[at : at + len(CLICK)] = CLICK
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((np.repeat(sound, channels) * 32767).astype("<i2").tobytes())
    return path


def samples_of(ffmpeg: Ffmpeg, path: Path) -> Samples:
    """The left channel, as it is decoded."""
    raw, _ = ask(ffmpeg, path, "-map", "0:a:0", "-af", "pan=mono|c0=c0", "-f", "f32le", "-")
    return np.frombuffer(raw, np.float32).astype(float)


def late(heard: Samples, at: int) -> int:
    """How many samples later than `at` the click that belongs there is heard."""
    begins = max(0, at - 1000)
    around = heard[begins : at + 1000 + len(CLICK)]
    return int(np.argmax(np.correlate(around, CLICK, "valid"))) + begins - at


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("fps", "frames"), [(16.0, 40), (24000 / 1001, 71)])
@pytest.mark.parametrize("made", HEARD, ids=lambda made: made.ending)
def test_clicks_come_when_they_should_and_as_loud_as_they_are(
    made: OutputFormat, fps: float, frames: int, channels: int, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    seconds = frames / exact_fps(fps)
    sound, film = tmp_path / SOUND, tmp_path / f"a{made.ending}"
    source = track(tmp_path / "a.wav", channels)
    blocks = read_track(ffmpeg, source, first=0, seconds=seconds, loop=False)
    sound.write_bytes(b"".join(blocks))
    with writer(film, ffmpeg, fps=fps) as video:
        video.write(moving(frames))
        video.sound = sound
        video.join()
        video.publish()
    heard = samples_of(ffmpeg, film)
    assert 0 <= seconds * SOUND_RATE - len(heard) < (1 if made.exact_times else 1024)
    for at in CLICKS[:3]:
        assert late(heard, at) == 0
        peak = heard[at : at + len(CLICK)].max()
        assert peak == pytest.approx(CLICK.max(), rel=0.08)


def heard_track(ffmpeg: Ffmpeg, tmp_path: Path, **asked: object) -> Samples:
    source, file = track(tmp_path / "a.wav"), tmp_path / SOUND
    values = {"first": 0, "seconds": Fraction(5), "loop": False, **asked}
    file.write_bytes(b"".join(read_track(ffmpeg, source, **values)))  # type: ignore[arg-type]
    return samples_of(ffmpeg, file)


def test_a_sound_that_ends_before_the_video_is_followed_by_silence(
    tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    heard = heard_track(ffmpeg, tmp_path)
    assert len(heard) == 5 * SOUND_RATE
    assert late(heard, CLICKS[3]) == 0
    assert np.abs(heard[146_000:]).max() < 0.001


def test_a_loop_begins_again_at_the_offset_without_a_gap(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    heard = heard_track(ffmpeg, tmp_path, first=24_000, loop=True)
    for number in range(2):
        for at in CLICKS[1:]:
            where = number * 120_000 + at - 24_000
            assert where + 3000 > len(heard) or late(heard, where) == 0
    assert len(heard) == 5 * SOUND_RATE


def test_a_fade_reaches_silence_at_the_end(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    fade = (Fraction(3, 2), Fraction(3, 2))
    heard = heard_track(ffmpeg, tmp_path, seconds=Fraction(3), fade=fade)
    before, within = (heard[at : at + 480].max() for at in (CLICKS[1], CLICKS[2]))
    assert before == pytest.approx(0.8, rel=0.06)
    assert within == pytest.approx(0.8 * 2 / 3, rel=0.06)


def test_samples_are_counted_at_the_rate_of_the_video(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    assert count_samples(ffmpeg, track(tmp_path / "a.wav", 2)) == 144_000


def test_the_file_may_be_gone_once_a_render_began(film: MakeFilm, tmp_path: Path) -> None:
    settings = [f"audio.file={track(tmp_path / 'a.wav')}", "audio.offset=0.5", "audio.loop=true"]
    whole = film.expected(*settings)
    cut = film.killed(5, *settings)
    (tmp_path / "a.wav").rename(tmp_path / "b.wav")
    assert cut.gone_on_with() == whole
    assert has_sound(cut.output)
    damaged = film.killed(5, *settings)
    (damaged.run / SOUND).write_bytes(b"damaged")
    with pytest.raises(InputRefused, match=r"cannot read .*a\.wav"):
        damaged.gone_on_with()
    (tmp_path / "b.wav").rename(tmp_path / "a.wav")
    assert damaged.gone_on_with() == whole


def job_of(folder: Path, settings: list[str], name: str = "a.mp4") -> RenderJob:
    values = {"prompt": PROMPT, "seed": "3", "duration": "4s", "output": str(folder / name)}
    return RenderJob(load(values, assignments=settings).config)


TOLD = {
    "longer": ([], "the sound of a.wav, 3.00 s, then 1.00 s of silence"),
    "offset": (["audio.offset=1s"], "the sound of a.wav from 1 s on, 2.00 s, then 2.00 s of"),
    "looped": (["audio.loop=true"], "the sound of a.wav, 3.00 s, again and again"),
    "faded": (["audio.fade=1s"], "the sound of a.wav, faded out in 1 s, 3.00 s, then 1.00 s"),
}


@pytest.mark.parametrize(("settings", "says"), TOLD.values(), ids=TOLD)
def test_what_becomes_of_a_sound_is_told(
    settings: list[str], says: str, tiny_settings: list[str], tmp_path: Path
) -> None:
    file = f"audio.file={track(tmp_path / 'a.wav')}"
    job = job_of(tmp_path, [*tiny_settings, *settings, file])
    (line,) = job.require_sound()
    assert line.startswith(says)


def refused(folder: Path, kind: str) -> tuple[list[str], str]:
    """Settings, and the name of a video, for which a sound cannot be had."""
    sound = track(folder / "a.wav")
    (folder / "text.txt").write_text("no sound")
    cases = {
        "missing": ([f"audio.file={folder / 'b.wav'}"], "a.mp4"),
        "no sound": ([f"audio.file={picture(folder / 'a.png')}"], "a.mp4"),
        "silent film": ([f"audio.file={make_film(folder / 'f.mp4')}"], "a.mp4"),
        "no media": ([f"audio.file={folder / 'text.txt'}"], "a.mp4"),
        "beyond": ([f"audio.file={sound}", "audio.offset=3s"], "a.mp4"),
        "gif": ([f"audio.file={sound}"], "a.gif"),
        "png": ([f"audio.file={sound}"], "frames.png"),
        "loop and fade": ([f"audio.file={sound}", "audio.loop=true", "audio.fade=1s"], "a.mp4"),
        "nothing": (["audio.loop=true"], "a.mp4"),
        "negative": ([f"audio.file={sound}", "audio.offset=-1s"], "a.mp4"),
    }
    return cases[kind]


REFUSED: dict[str, tuple[type[CfgenError], str]] = {
    "missing": (InputRefused, r"cannot read .*b\.wav: No such file"),
    "no sound": (InputRefused, "a.png has no sound that ffmpeg reads"),
    "silent film": (InputRefused, "f.mp4 has no sound that ffmpeg reads"),
    "no media": (InputRefused, "text.txt has no sound that ffmpeg reads"),
    "beyond": (InputRefused, "is 3.00 s long, and its sound from 3 s on is asked for"),
    "gif": (UsageError, ".gif carries no sound, and --audio is given"),
    "png": (UsageError, ".png carries no sound, and --audio is given"),
    "loop and fade": (PresetError, "fades out where the sound ends"),
    "nothing": (PresetError, "belongs to a sound, and none is given"),
    "negative": (PresetError, "audio.offset"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_sound_that_cannot_be_had_is_refused_before_anything_loads(
    kind: str, tiny_settings: list[str], tmp_path: Path
) -> None:
    settings, name = refused(tmp_path, kind)
    error, says = REFUSED[kind]
    with pytest.raises(error, match=says):
        begin(job_of(tmp_path, [*tiny_settings, *settings], name))


def test_a_sound_takes_the_place_of_that_of_the_film_it_begins_with(
    tiny_settings: list[str], tmp_path: Path
) -> None:
    given = make_film(tmp_path / "f.mp4", "-c:a", "aac", sound="sine=duration=3")
    settings = [f"begin.video={given}", "begin.keep_input=true"]
    kept = job_of(tmp_path, [*tiny_settings, *settings])
    assert "the sound of f.mp4 is kept" in kept.require_beginning()
    job = job_of(tmp_path, [*tiny_settings, *settings, f"audio.file={track(tmp_path / 'a.wav')}"])
    assert not [line for line in job.require_beginning() if "sound" in line]
    assert job.require_sound()[0].endswith("instead of that of the film")
    silent = job_of(tmp_path, [*tiny_settings, *settings], "a.gif")
    assert not [line for line in silent.require_beginning() if "sound" in line]
    assert silent.require_sound() == ("none: the format carries no sound",)
    assert silent.sound is None


def test_a_render_tells_of_its_sound_and_the_sidecar_keeps_it(
    film: MakeFilm, tmp_path: Path
) -> None:
    made = film(f"audio.file={track(tmp_path / 'a.wav')}", "audio.offset=0.5")
    made.folder.mkdir()
    told = [event.message for event in begin(RenderJob(made.config)) if isinstance(event, Noted)]
    assert any(line.startswith("the sound of a.wav from 0.5 s on") for line in told)
    sidecar = made.output.with_name("clip.mp4.json").read_text()
    assert '"sound": "a.wav, from 0.5 s on"' in sidecar

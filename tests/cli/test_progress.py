from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfgen.cli.progress import WINDOW_CHUNKS, Pace, chunk_words, clock
from cfgen.pipeline.naming import MAX_SLUG_BYTES, default_name, slug
from cfgen.renderer.events import ChunkDone
from cfgen.units import bytes_words


def test_the_slow_first_chunk_does_not_count() -> None:
    pace = Pace()
    pace.add(9, 30.0)
    assert pace.frames_per_s is None
    assert pace.eta_s(100) is None
    pace.add(21, 31.0)
    pace.add(33, 32.0)
    assert pace.frames_per_s == 12
    assert pace.eta_s(45) == 1


def test_only_the_latest_chunks_count() -> None:
    pace = Pace()
    for chunk in range(100):
        pace.add(12 * chunk, 5.0 * chunk)
    for chunk in range(100, 100 + WINDOW_CHUNKS + 1):
        pace.add(12 * chunk, 500.0 + (chunk - 100))
    assert pace.frames_per_s == pytest.approx(12)


def test_a_clock_that_stands_still_gives_no_rate() -> None:
    pace = Pace()
    pace.add(9, 1.0)
    pace.add(21, 1.0)
    assert pace.frames_per_s is None
    assert pace.eta_s(100) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0:00"), (7, "0:07"), (750, "12:30"), (3723, "1:02:03")]
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [(0, "0 B"), (999, "999 B"), (1400, "1.4 kB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB")],
)
def test_bytes(nbytes: float, words: str) -> None:
    assert bytes_words(nbytes) == words


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A Red Balloon, at dusk!", "a-red-balloon-at-dusk-7.mp4"),
        ("../../etc/passwd", "etc-passwd-7.mp4"),
        ("雪山 上的 气球", "雪山-上的-气球-7.mp4"),
        ("?!", "video-7.mp4"),
        ("con", "con-7.mp4"),
    ],
)
def test_names_come_from_prompts(prompt: str, name: str) -> None:
    assert default_name(prompt, 7) == name


@given(st.text())
def test_a_slug_is_safe_whatever_the_prompt(text: str) -> None:
    made = slug(text)
    assert 0 < len(made.encode()) <= MAX_SLUG_BYTES
    assert not set(made) & set('/\\:*?"<>|. \0\n')
    assert not made.startswith("-")


def test_a_batch_has_an_eta_of_its_own() -> None:
    pace = Pace()
    pace.add(10, 1.0)
    pace.add(20, 2.0)
    event = ChunkDone(index=1, chunks=4, frames_done=20, frames_total=40, elapsed_s=2.0)
    assert chunk_words(event, 10, pace, 580).endswith("10.0 frames/s, ETA 0:02, batch 1:00")
    assert "batch" not in chunk_words(event, 10, pace)

"""The same figures as ffmpeg's filters find: scdet, psnr and ssim."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.metrics.events import cut_scores, cuts
from cfgen.metrics.film import compare_films
from cfgen.metrics.levels import Meter
from cfgen.video.ffmpeg import find_ffmpeg

RNG = np.random.default_rng(31)
WORLD = RNG.integers(0, 256, (64, 200), dtype=np.uint8)
CUT = 12


def _pan() -> list[NDArray[np.uint8]]:
    """Grey noise that moves a pixel a frame; dark at first, inverted from frame `CUT` on."""
    planes = [WORLD[:, number : number + 96] for number in range(20)]
    lit = [255 - plane if n >= CUT else plane // 2 for n, plane in enumerate(planes)]
    return [np.repeat(plane[..., None], 3, axis=-1) for plane in lit]


def _input(path: Path, frames: list[NDArray[np.uint8]]) -> list[str]:
    path.write_bytes(b"".join(frame.tobytes() for frame in frames))
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "96x64"]
    return [*raw, "-framerate", "16", "-i", str(path)]


def _said(*arguments: str) -> str:
    argv = [str(find_ffmpeg().path), "-hide_banner", *arguments, "-f", "null", "-"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def test_cut_scores_are_those_of_scdet(tmp_path: Path) -> None:
    """But for the first change; and scdet sees grey in 219 levels, of 256."""
    film, meter = _pan(), Meter()
    for frame in film:
        meter.add(frame)
    shown = _said(*_input(tmp_path / "a", film), "-vf", "scdet=t=0,metadata=print:file=-")
    theirs = [float(score) for score in re.findall(r"lavfi\.scd\.score=([\d.]+)", shown)]
    ours = cut_scores(meter.film().change)
    assert len(theirs) == len(film)
    assert ours[2:] == pytest.approx(np.array(theirs)[2:], rel=0.01, abs=0.005)
    assert cuts(meter.film().change) == (CUT,)


def test_psnr_and_ssim_are_those_of_ffmpeg(tmp_path: Path) -> None:
    """SSIM nearly: its windows there are squares of eight pixels, four apart."""
    reference = _pan()
    film = [
        np.clip(frame + RNG.integers(-9, 10, frame.shape), 0, 255).astype(np.uint8)
        for frame in reference
    ]
    inputs = _input(tmp_path / "a", film) + _input(tmp_path / "b", reference)
    found = compare_films(film, reference)
    average = re.search(r"average:([\d.]+)", _said(*inputs, "-lavfi", "[0][1]psnr"))
    assert average is not None
    assert found.psnr == pytest.approx(float(average[1]), abs=1e-5)
    grey = "[0]format=gray[x];[1]format=gray[y];[x][y]ssim"
    theirs = re.search(r"SSIM Y:([\d.]+)", _said(*inputs, "-lavfi", grey))
    assert theirs is not None
    assert found.ssim.mean() == pytest.approx(float(theirs[1]), abs=0.001)

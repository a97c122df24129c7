"""Pictures and films for renders to begin with, made by Pillow and ffmpeg."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image


def gradient(width: int, height: int) -> np.ndarray:
    """Red rises to the right, green falls to the bottom, blue stands: uint8 [height, width, 3]."""
    x = np.linspace(30, 220, width)[None, :]
    y = np.linspace(220, 30, height)[:, None]
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y, (height, width))
    return np.stack([red, green, np.full((height, width), 90.0)], -1).round().astype(np.uint8)


def picture(path: Path, width: int = 48, height: int = 32, **options: object) -> Path:
    Image.fromarray(gradient(width, height)).save(path, **options)
    return path


def ffmpeg(*arguments: str) -> None:
    argv = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *arguments]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def film(
    path: Path,
    *options: str,
    seconds: float = 3.0,
    size: str = "48x32",
    rate: str = "16",
    sound: str = "",
    filters: str = "",
) -> Path:
    """A film whose picture moves; `sound` is a source of ffmpeg's lavfi, empty for none."""
    source = f"testsrc2=size={size}:rate={rate}:duration={seconds}"
    inputs = ["-f", "lavfi", "-i", source + (f",{filters}" if filters else "")]
    if sound:
        inputs += ["-f", "lavfi", "-i", sound]
    codec = () if "-c:v" in options else ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "8")
    ffmpeg(*inputs, *codec, *options, str(path))
    return path

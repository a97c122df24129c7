"""What the film world's autoencoder loses: figures on held-out films, and a sheet to look at.

    python tests/bench/autoencoder.py FOLDER/tae.safetensors --sheet sheet.png

Printed as one JSON object: PSNR of whole pictures, of boxes of subjects and of landmarks; the mean
change per frame of pixels that stand still, in levels of 255; how much of that change falls on the
frames between which a latent frame begins, against the others (1: no pattern of four frames); how
far moments of the latents are from zero mean and unit variance; frames decoded a second.

A row of the sheet is the truth, what is decoded, and eight times their difference, enlarged.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cfgen.checkpoint.networks.vae import load_tiny
from cfgen.model.vae import TEMPORAL_STRIDE, TinyAutoencoder
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.world import (
    FRAMES_PER_CHUNK,
    VIEW,
    Box,
    Film,
    landmark_boxes,
    render,
    subject_boxes,
)

CHUNKS = 4
CROP = 96
"""Side of a picture on the sheet, in pixels."""

Frames = NDArray[np.uint8]


def main() -> None:
    """Measure the autoencoder of a file and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--films", type=int, default=16)
    parser.add_argument("--sheet", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vae = load_tiny(options.weights, dtype=getattr(torch, options.dtype))
    films = [sample_film(i, chunks=CHUNKS, held_out=True) for i in range(options.films)]
    found = [measure(vae, film) for film in films]
    figures = {
        "psnr": _psnr([each["whole"] for each in found]),
        "psnr_subjects": _psnr([each["subjects"] for each in found]),
        "psnr_landmarks": _psnr([each["landmarks"] for each in found]),
        "mean": float(np.mean([each["mean"] for each in found])),
        "std": float(np.mean([each["std"] for each in found])),
        **still_figures(vae, films),
        "decoded_frames_per_s": speed(vae),
    }
    sys.stdout.write(json.dumps({key: round(value, 3) for key, value in figures.items()}) + "\n")
    if options.sheet is not None:
        sheet(vae, films).save(options.sheet)


def coded(vae: TinyAutoencoder, video: Frames) -> tuple[Frames, torch.Tensor]:
    """Frames [T, H, W, 3] encoded and decoded, and the latents [F, C, h, w]."""
    dtype = next(vae.parameters()).dtype
    pixels = torch.from_numpy(video).permute(0, 3, 1, 2)[None].to(dtype) / 255
    with torch.inference_mode():
        latents = vae.encode(pixels)
        out = vae.decode(latents)[0].float().clamp(0, 1)
    return (255 * out + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy(), latents[0].float()


def measure(vae: TinyAutoencoder, film: Film) -> dict[str, float]:
    """Mean squared errors in levels of 255, and moments of latents."""
    video = render(film, 0, film.frames)
    out, latents = coded(vae, video)
    error = np.square(video.astype(np.float32) - out.astype(np.float32)).mean(-1)
    within: dict[str, list[NDArray[np.float32]]] = {"subjects": [], "landmarks": []}
    for frame in range(0, film.frames, 3):
        for name, boxes in (("subjects", subject_boxes), ("landmarks", landmark_boxes)):
            within[name] += [
                error[(frame, *pixels(box, error.shape[1]))] for box in boxes(film, frame)
            ]
    return {
        "whole": float(error.mean()),
        **{
            name: float(np.concatenate([p.ravel() for p in parts]).mean()) if parts else math.nan
            for name, parts in within.items()
        },
        "mean": float(latents.mean((0, 2, 3)).abs().mean()),
        "std": float(latents.std((0, 2, 3)).mean()),
    }


def pixels(box: Box, height: int) -> tuple[slice, slice]:
    """Rows and columns of a box."""
    scale = height / VIEW[1]
    x0, y0, x1, y1 = (round(scale * at) for at in (box.x0, box.y0, box.x1, box.y1))
    return slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))


def still_figures(vae: TinyAutoencoder, films: list[Film]) -> dict[str, float]:
    """Change per frame where nothing moves, and its pattern over the four frames of a latent."""
    changes = []
    for film in films:
        shot = replace(film.shots[0], camera="still", chunks=CHUNKS)
        still = replace(film, shots=(shot,))
        video = render(still, 0, still.frames)
        out = coded(vae, video)[0].astype(np.int16)
        stands = (video[1:] == video[:-1]).all(-1)
        change = np.abs(np.diff(out, axis=0)).mean(-1)
        changes.append([float(c[s].mean()) for c, s in zip(change, stands, strict=True)])
    per_frame = np.mean(changes, axis=0)[FRAMES_PER_CHUNK - 4 :]
    begins = np.arange(len(per_frame)) % TEMPORAL_STRIDE == 0
    inside = float(per_frame[~begins].mean())
    return {
        "still_change": float(per_frame.mean()),
        "pattern_of_4": float(per_frame[begins].mean()) / max(inside, 1e-6),
    }


def speed(vae: TinyAutoencoder) -> float:
    """Frames of 320x192 decoded a second, in chunks of 3 latent frames."""
    shape = (1, 3, vae.latent_channels, 192 // vae.spatial_stride, 320 // vae.spatial_stride)
    latents = torch.randn(shape).to(next(vae.parameters()).dtype)
    state = vae.start()
    with torch.inference_mode():
        vae.decode(latents, state)
        began = time.process_time()
        for _ in range(4):
            vae.decode(latents, state)
        return 4 * FRAMES_PER_CHUNK * torch.get_num_threads() / (time.process_time() - began)


def sheet(vae: TinyAutoencoder, films: list[Film], *, rows: int = 8, zoom: int = 4) -> Image.Image:
    """Subjects and landmarks, by turns, of one frame of each film."""
    strips = []
    for i, film in enumerate(films[:rows]):
        frame = min(film.frames - 1, 14 + i)
        video = render(film, 0, film.frames)
        out = coded(vae, video)[0]
        boxes: list[Box] = [*(subject_boxes, landmark_boxes)[i % 2](film, frame)]
        box = (
            max(boxes, key=lambda each: each.share)
            if boxes
            else Box(40, 20, 80, 60, (40, 20, 80, 60))
        )
        scale = video.shape[1] / VIEW[1]
        x = int(np.clip(scale * (box.x0 + box.x1) / 2 - CROP / 2, 0, video.shape[2] - CROP))
        y = int(np.clip(scale * (box.y0 + box.y1) / 2 - CROP / 2, 0, video.shape[1] - CROP))
        truth, made = (v[frame, y : y + CROP, x : x + CROP] for v in (video, out))
        apart = 128 + 8 * (made.astype(np.int16) - truth)
        strips.append(np.concatenate([truth, made, np.clip(apart, 0, 255).astype(np.uint8)], 1))
    half = len(strips) // 2
    columns = [np.concatenate(part, 0) for part in (strips[:half], strips[half : 2 * half])]
    picture = Image.fromarray(np.concatenate(columns, 1))
    return picture.resize((picture.width * zoom // 2, picture.height * zoom // 2), Image.NEAREST)


def _psnr(squares: list[float]) -> float:
    return 10 * math.log10(255**2 / float(np.nanmean(squares)))


if __name__ == "__main__":
    main()

"""Latents of films, encoded once and kept on disk, so that a training step need not render.

Films come in families: all films of a family have the same shots in the same order, each as many
chunks long, and differ in all that is to be seen. So a batch of one family is cut at the same
places and can share one memory's bookkeeping.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from cfgen.checkpoint.networks.vae import load_tiny
from cfgen.errors import CheckpointError
from cfgen.files.reading import read_bytes
from cfgen.files.writing import write_file
from cfgen.model.vae import TEMPORAL_STRIDE, TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.ops.native import has_bfloat16
from cfgen.train.film_world.sampling import Structure, sample_film, sample_structure
from cfgen.train.film_world.semantics import SEMANTIC_CHANNELS, semantic_channels
from cfgen.train.film_world.world import (
    FRAMES_PER_CHUNK,
    HEIGHT,
    VIEW,
    WIDTH,
    Film,
    camera_path,
    render,
    shot_of,
    subject_boxes,
)

CHUNK_LATENTS = FRAMES_PER_CHUNK // TEMPORAL_STRIDE


@dataclass(frozen=True, slots=True)
class FilmBatch:
    """Films of one family.

    Attributes:
        films: their descriptions, B of them.
        latents: [B, F, C, h, w] float32.
        subjects: cells near a subject, [B, F, h, w] in {0, 1}.
        returns: cells whose place was shown before, but not in the chunk before, [B, F, h, w].
    """

    films: list[Film]
    latents: Tensor
    subjects: Tensor
    returns: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, subjects, returns."""
        return self.latents, self.subjects, self.returns


class LatentStore:
    """Films by family and number: encoded when first asked for, then read from files.

    The semantic channels of the autoencoder, if it has any, are the world's own and not what its
    encoder makes of the picture.

    Args:
        folder: where encoded films are kept; one folder per encoder.
        vae: the trained autoencoder.
        width: frame width in pixels.
        height: frame height in pixels.

    Raises:
        CheckpointError: the autoencoder has other semantic channels than films have.
    """

    def __init__(
        self, folder: Path, vae: TinyAutoencoder, *, width: int = WIDTH, height: int = HEIGHT
    ) -> None:
        if vae.semantic_channels not in (0, SEMANTIC_CHANNELS):
            raise CheckpointError(
                f"the autoencoder has {vae.semantic_channels} semantic channels, and films of the"
                f" film world have {SEMANTIC_CHANNELS}",
                "take the autoencoder of a model of the film world",
            )
        self.folder, self.vae = folder, vae.eval()
        self.channels = vae.latent_channels
        self.size = (width, height)
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of_file(cls, folder: Path, vae: Path, *, width: int, height: int) -> LatentStore:
        """The store of an autoencoder's file, in a folder within `folder` named by its encoder.

        It encodes in bfloat16 where the CPU has it, otherwise in float32, in folders of their own.

        Args:
            folder: what holds the folders of all encoders.
            vae: file of a tiny autoencoder.
            width: frame width in pixels.
            height: frame height in pixels.

        Raises:
            CheckpointError: the file is missing, damaged, or another autoencoder's.
        """
        half = has_bfloat16(torch.device("cpu"))
        tiny = load_tiny(vae, dtype=torch.bfloat16 if half else torch.float32)
        return cls(folder / encoder_digest(tiny)[:16], tiny, width=width, height=height)

    def family(self, number: int, chunks: int, members: Sequence[int]) -> FilmBatch:
        """Films `members` of the family `number`, whose films are `chunks` chunks long."""
        structure = sample_structure(number, chunks)
        films = [film_of(structure, number, member) for member in members]
        names = [f"{number:05d}-{chunks:02d}-{member:04d}" for member in members]
        return self.batch(films, names)

    def batch(self, films: Sequence[Film], names: Sequence[str]) -> FilmBatch:
        """These films, of equal length; a name stands for one film for ever."""
        stored = [self._stored(film, name) for film, name in zip(films, names, strict=True)]
        latents, subjects, returns = (
            torch.stack([each[key].float() for each in stored])
            for key in ("latents", "subjects", "returns")
        )
        return FilmBatch(list(films), latents, subjects, returns)

    def _stored(self, film: Film, name: str) -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            return load(read_bytes(path))
        width, height = self.size
        video = render(film, 0, film.frames, width=width, height=height)
        latents = encode(self.vae, video)
        grid = latents.shape[2:]
        if known := self.vae.semantic_channels:
            frames = range(0, film.frames, TEMPORAL_STRIDE)
            latents[:, -known:] = torch.from_numpy(semantic_channels(film, frames, *grid))
        made = {
            "latents": latents.to(torch.float16).contiguous(),
            "subjects": torch.from_numpy(subject_cells(film, *grid)),
            "returns": torch.from_numpy(returning_cells(film, *grid)),
        }
        write_file(path, save(made), shared=True)
        return made


def encoder_digest(vae: TinyAutoencoder) -> str:
    """SHA-256 of the encoder's weights: latents stay valid while the decoder learns on."""
    weights = vae.encoder.state_dict()
    return hashlib.sha256(save({n: t.cpu().contiguous() for n, t in weights.items()})).hexdigest()


def encode(vae: TinyAutoencoder | WanAutoencoder, video: NDArray[np.uint8]) -> Tensor:
    """Latents [F, C, h, w] float32 on the CPU of frames [T, H, W, 3]."""
    parameter = next(vae.parameters())
    pixels = torch.from_numpy(video).permute(0, 3, 1, 2)[None]
    pixels = pixels.to(parameter.device, parameter.dtype) / 255
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        latents: Tensor = vae.encode(pixels)[0]
    return latents.float().cpu()


def film_of(structure: Structure, family: int, member: int) -> Film:
    """The film of a family by its number; no film of training is a held-out one."""
    return sample_film(family * 100_003 + member, structure=structure)


def with_other_place(film: Film, number: int) -> Film:
    """The same film with one place redrawn: the same captions, there other hills and landmarks."""
    other = replace(film.places[number], seed=film.places[number].seed ^ 0x5F3759DF)
    places = (*film.places[:number], other, *film.places[number + 1 :])
    return replace(film, places=places)


def subject_cells(film: Film, rows: int, columns: int, *, margin: float = 4.0) -> NDArray[np.uint8]:
    """Latent cells within `margin` units of a subject, [F, rows, columns] in {0, 1}."""
    width, height = VIEW
    y = (np.arange(rows) + 0.5) * height / rows
    x = (np.arange(columns) + 0.5) * width / columns
    reach_x, reach_y = margin + width / columns / 2, margin + height / rows / 2
    mask = np.zeros((CHUNK_LATENTS * film.chunks, rows, columns), np.uint8)
    for i in range(len(mask)):
        for box in subject_boxes(film, i * TEMPORAL_STRIDE):
            inside_y = (y > box.y0 - reach_y) & (y < box.y1 + reach_y)
            inside_x = (x > box.x0 - reach_x) & (x < box.x1 + reach_x)
            mask[i] |= np.asarray(inside_y[:, None] & inside_x, np.uint8)
    return mask


def returning_cells(film: Film, rows: int, columns: int) -> NDArray[np.uint8]:
    """Cells that show what was seen before, but not in the chunk before nor earlier in their own.

    Columns of the near layer are followed, which moves as the camera does.

    Returns:
        [F, rows, columns] in {0, 1}; all rows of a column are alike.
    """
    frames = CHUNK_LATENTS * film.chunks
    sampled = np.arange(frames) * TEMPORAL_STRIDE
    left = camera_path(film, film.frames)[sampled]
    shots = shot_of(film, film.frames)[sampled]
    cell = VIEW[0] / columns
    strips = np.round(left[:, None] / cell).astype(int) + np.arange(columns)
    last: dict[tuple[int, int], int] = {}
    mask = np.zeros((frames, rows, columns), np.uint8)
    for chunk in range(film.chunks):
        span = range(CHUNK_LATENTS * chunk, CHUNK_LATENTS * (chunk + 1))
        for i in span:
            place = film.shots[int(shots[i])].place
            for column, strip in enumerate(strips[i]):
                seen = last.get((place, int(strip)))
                mask[i, :, column] = seen is not None and seen < chunk - 1
        for i in span:
            place = film.shots[int(shots[i])].place
            last.update({(place, int(strip)): chunk for strip in strips[i]})
    return mask

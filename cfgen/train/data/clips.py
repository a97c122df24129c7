"""Clips of films as latents: encoded once, kept by the content of the film, read when drawn.

A film gives as many clips of one length as it holds, one after another; what is left at its end is
left out. Each clip is a file of its own, so an encoding that was cut goes on with the next clip.

Axis letters: B batch, F latent frames, C channels, H W pixels, h w latent grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from cfgen.errors import UsageError, WriterError
from cfgen.files.reading import read_bytes, read_text
from cfgen.files.writing import sha256_of, write_file
from cfgen.model.vae import TEMPORAL_STRIDE, TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.train.data.films import FilmFile, find_films
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.latents import encode
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.reading import read_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings:
    """Which films become which clips.

    Attributes:
        folder: of films with captions, see `find_films`.
        skip_unreadable: whether a film that cannot be read or holds no whole clip is passed over.
        fps: frames per second of the model.
        width: pixels; a whole number of the autoencoder's cells.
        height: pixels; a whole number of the autoencoder's cells.
        latents: latent frames of a clip, F: 1 + 4 (F - 1) frames.
        batch: clips of a micro-batch.
    """

    folder: Path = Path("films")
    skip_unreadable: bool = False
    fps: int = 16
    width: int = 832
    height: int = 480
    latents: int = 81
    batch: int = 1

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return 1 + TEMPORAL_STRIDE * (self.latents - 1)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one film.

    Attributes:
        film: the film.
        clips: its clips on disk.
        skipped: why it has none, empty if it has.
    """

    film: FilmFile
    clips: tuple[Path, ...]
    skipped: str = ""


def encode_films(
    cache: Path, vae: TinyAutoencoder | WanAutoencoder, settings: ClipSettings
) -> Iterator[Encoded]:
    """Encode what is not yet encoded of the films of a folder.

    Args:
        cache: where clips are kept.
        vae: encodes them.
        settings: which films, and what clips are like.

    Yields:
        each film when it is done.

    Raises:
        UsageError: there is no film or a caption is missing; a film cannot be read or is too short
            and is not to be skipped; or the size fits no whole cells.
    """
    stride = vae.spatial_stride
    if settings.width % stride or settings.height % stride:
        raise UsageError(
            f"clips of {settings.width}x{settings.height} are no whole cells of the autoencoder",
            f"take multiples of {stride} pixels",
        )
    encoder = _Encoder(vae, settings, cache)
    for film in find_films(settings.folder):
        try:
            yield Encoded(film, encoder.clips(film.path))
        except UsageError as error:
            if not settings.skip_unreadable:
                raise
            yield Encoded(film, (), error.message)


class _Encoder:
    """Encodes films by one autoencoder and one set of settings."""

    def __init__(
        self, vae: TinyAutoencoder | WanAutoencoder, settings: ClipSettings, cache: Path
    ) -> None:
        self._vae, self._settings, self._cache = vae, settings, cache
        self._ffmpeg = find_ffmpeg()
        s = settings
        self._made_with = f"{digest_of(vae)} {s.fps} {s.width}x{s.height} {s.latents}"
        cache.mkdir(parents=True, exist_ok=True)

    def clips(self, film: Path) -> tuple[Path, ...]:
        """The clips of a film, encoded now unless they are there."""
        try:
            content = sha256_of(film)
        except OSError as error:
            raise UsageError(f"{film} cannot be read: {error.strerror}") from error
        name = hashlib.sha256(f"{content} {self._made_with}".encode()).hexdigest()[:32]
        record = self._cache / f"{name}.json"
        if not record.exists():
            facts = {"film": film.name, "clips": self._encode(film, name)}
            write_file(record, json.dumps(facts).encode(), shared=True)
        count = int(json.loads(read_text(record))["clips"])
        return tuple(self._place(name, number) for number in range(count))

    def _place(self, name: str, number: int) -> Path:
        return self._cache / f"{name}-{number:04d}.safetensors"

    def _encode(self, film: Path, name: str) -> int:
        """Write the clips that are missing; returns how many the film has."""
        count = 0
        try:
            for frames in self._cut(film):
                place = self._place(name, count)
                if not place.exists():
                    latents = encode(self._vae, frames).to(torch.float16).contiguous()
                    write_file(place, save({"latents": latents}), shared=True)
                count += 1
        except WriterError as error:
            tail = f": {error.stderr_tail[-1]}" if error.stderr_tail else ""
            raise UsageError(f"{film} cannot be read{tail}", "mend it or take it away") from error
        if not count:
            seconds = self._settings.frames / self._settings.fps
            raise UsageError(
                f"{film} is shorter than one clip ({seconds:.1f} s)", "take longer films"
            )
        return count

    def _cut(self, film: Path) -> Iterator[NDArray[np.uint8]]:
        """Frames [T, H, W, 3] of each whole clip."""
        s = self._settings
        rate, size = Fraction(s.fps), (s.height, s.width, 3)
        frames = read_frames(self._ffmpeg, film, fps=rate, width=s.width, height=s.height)
        while len(clip := list(islice(frames, s.frames))) == s.frames:
            yield np.frombuffer(bytearray(b"".join(clip)), np.uint8).reshape(-1, *size)


def digest_of(module: nn.Module) -> str:
    """SHA-256 of all weights of a network."""
    weights = {name: t.cpu().contiguous() for name, t in module.state_dict().items()}
    return hashlib.sha256(save(weights)).hexdigest()


@dataclass(frozen=True, slots=True)
class Clips:
    """Encoded clips, read when they are drawn.

    Attributes:
        paths: where each lies.
        captions: what each shows; that of its film.
    """

    paths: tuple[Path, ...]
    captions: tuple[str, ...]

    @classmethod
    def of(cls, films: Sequence[Encoded]) -> Clips:
        """All clips of films.

        Raises:
            UsageError: there is none, since every film was skipped.
        """
        pairs = [(path, each.film.caption) for each in films for path in each.clips]
        if not pairs:
            raise UsageError("no film could be read", films[0].skipped if films else None)
        paths, captions = zip(*pairs, strict=True)
        return cls(tuple(paths), tuple(captions))

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Latents [B, F, C, h, w] float32 of clips by their numbers, and their captions."""
        latents = [load(read_bytes(self.paths[i], limit=1 << 30))["latents"] for i in numbers]
        # Widened first: autocast to bfloat16 has no rule for joining tensors of float16.
        wide = [each.float() for each in latents]
        return torch.stack(wide), [self.captions[i] for i in numbers]


def in_random_order(first: int, count: int, total: int, *key: int | str) -> list[int]:
    """Numbers `first` to `first + count` of an endless order that depends on `key` alone.

    Each round of it holds every number below `total` once.
    """
    rounds = range(first // total, (first + count - 1) // total + 1)
    order = [int(i) for r in rounds for i in rng_for(*key, r).permutation(total)]
    start = first - rounds.start * total
    return order[start : start + count]

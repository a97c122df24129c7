"""What a render begins with: a picture, or the past of a film; looked at before anything loads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from torch import Tensor

from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.networks.vae import has_encoder
from cfgen.config.begin import BeginConfig
from cfgen.config.schema import RenderConfig
from cfgen.errors import CheckpointError, InputRefused, WriterError
from cfgen.files.writing import sha256_of
from cfgen.model.encoder import Encoder
from cfgen.model.tiled import TiledDecoder
from cfgen.model.vae import TEMPORAL_STRIDE, TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.renderer.given import GivenLatents
from cfgen.timeline import Given, Plan
from cfgen.units import count
from cfgen.video.encoding import exact_fps
from cfgen.video.ffmpeg import Ffmpeg, find_ffmpeg
from cfgen.video.pictures import Picture, fitted, read_picture
from cfgen.video.probe import FilmFacts, probe
from cfgen.video.reading import Section, count_frames, input_refused, read_frames, read_sound

WITH_ENCODER = (
    "give one that has by --vae: the VAE of Wan2.1 (vae/diffusion_pytorch_model.safetensors of "
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or Wan2.1_VAE.pth) or taew2_1.safetensors"
)


class Beginning:
    """A picture or a film that a render begins with.

    Whatever looks into the file raises InputRefused if it cannot be used. A run holds all that it
    needs of it once the given chunks are made, so nothing looks into it before it must.

    Args:
        file: The picture or film.
        config: What is asked for.
        size: Width and height of the video.
        fps: Frames per second of the video.
        chunk: Latent frames of a chunk.
        heard: Whether the video can have the film's sound.
    """

    def __init__(
        self,
        file: Path,
        config: BeginConfig,
        *,
        size: tuple[int, int],
        fps: float,
        chunk: int,
        heard: bool = True,
    ) -> None:
        self.file, self.config, self._heard = file, config, heard
        self._size, self._fps, self._chunk = size, exact_fps(fps), chunk

    @classmethod
    def of(cls, config: RenderConfig, *, heard: bool = True) -> Beginning | None:
        """That of a render, or None if it begins with nothing."""
        if config.begin.file is None:
            return None
        return cls(
            config.begin.file,
            config.begin,
            size=config.frame_size,
            fps=config.playback_fps,
            chunk=config.model.chunk_latent_frames,
            heard=heard,
        )

    @property
    def is_film(self) -> bool:
        """Whether it is a film."""
        return self.config.video is not None

    @cached_property
    def frames(self) -> int | None:
        """Frames of the film's part at the video's rate, those that make no chunk included."""
        if not self.is_film or self.config.frames is not None:
            return self.config.frames
        asked = self._asked
        with _film_errors(self.file):
            found = count_frames(
                self._ffmpeg, self.file, fps=self._fps, section=asked, facts=self._facts
            )
        if found == 0 or (asked.stop is not None and found < asked.stop - asked.first):
            ends = float((asked.first + found) / self._fps)
            lasts = f"ends at {ends:.2f} s" if found else f"is {self._facts.seconds:.2f} s long"
            raise InputRefused(
                f"{self.file} {lasts}, and its part from {float(asked.first / self._fps):g} s"
                + ("" if asked.stop is None else f" to {float(asked.stop / self._fps):g} s")
                + " is asked for",
                "take an earlier --from or --to",
            )
        return found

    @cached_property
    def given(self) -> Given:
        """The latent frames that it gives.

        Raises:
            InputRefused: The film's part is shorter than a chunk.
        """
        if not self.is_film:
            return Given(latent_frames=1)
        shortest, frames = _frames_of(self._chunk), self.frames or 0
        if frames < shortest:
            raise InputRefused(
                f"{self.file}: its part has {count(frames, 'frame')} at {float(self._fps):g} fps, "
                f"and a chunk of this model needs {shortest}",
                "take a longer part; --image begins with a single picture",
            )
        chunks = 1 + (frames - shortest) // (self._chunk * TEMPORAL_STRIDE)
        return Given(latent_frames=chunks * self._chunk, shown=self.config.keep_input)

    @cached_property
    def section(self) -> Section:
        """The frames of the film that are given: its newest, in whole chunks."""
        stop = self._asked.first + (self.frames or 0)
        return Section(stop - _frames_of(self.given.latent_frames), stop)

    @property
    def _bounds(self) -> tuple[int, int]:
        section = self.section
        return section.first, section.first + _frames_of(self.given.latent_frames)

    def require_usable(self, vae: Network | None) -> tuple[str, ...]:
        """Look into the file, and say what becomes of it, a line each.

        Args:
            vae: The autoencoder's weights, None where they are not here.

        Raises:
            InputRefused: It cannot be used.
            CheckpointError: The autoencoder has no encoder.
        """
        require_encoder(vae, f"begin with {self.file.name}")
        return tuple(self._film_lines()) if self.is_film else self._picture.notes

    def _film_lines(self) -> Iterator[str]:
        facts, section, name = self._facts, self.section, self.file.name
        size = (facts.width, facts.height)
        if words := fitted(size, self._size, self.config.fit).words:
            yield f"{name} is {size[0]}x{size[1]}: {words}"
        left_out = section.first - self._asked.first
        whole = f"{count(_frames_of(self.given.latent_frames), 'frame')} of {name}, "
        begins, ends = (float(each / self._fps) for each in self._bounds)
        yield f"{whole}{begins:.2f} s to {ends:.2f} s, are the past of the video" + (
            f"; what lies before, {count(left_out, 'frame')}, makes no whole chunk"
            if left_out
            else ""
        )
        if facts.rotation:
            yield f"{name} is turned by {abs(facts.rotation):g} degrees, as it says"
        if facts.interlaced:
            yield f"{name} is interlaced: frames are made of its fields"
        if self.config.keep_input and self._heard:
            yield f"the sound of {name} is kept" if facts.sound else f"{name} has no sound"

    @property
    def digest(self) -> str:
        """SHA-256 of the file; words where it cannot be read."""
        return digest_of_input(self.file)

    def latents(self, decoder: TiledDecoder, plan: Plan) -> Callable[[int], Tensor]:
        """What gives the latents of the given chunks; see `FrameSource.given`.

        Args:
            decoder: The loaded autoencoder.
            plan: What is made.
        """
        made: list[GivenLatents] = []

        def give(chunk: int) -> Tensor:
            if not made:
                made.append(GivenLatents(encoder_of(decoder), self._read, plan))
            return made[0](chunk)

        return give

    @property
    def sound(self) -> Callable[[], Iterable[bytes]] | None:
        """Reads the sound of what is shown of the film; None where nothing is."""
        return self._read_sound if self.config.keep_input and self._heard else None

    def _read_sound(self) -> Iterator[bytes]:
        if not self._facts.sound:
            return
        begins, ends = (Fraction(each or 0) / self._fps for each in self._bounds)
        with _film_errors(self.file):
            yield from read_sound(self._ffmpeg, self.file, begins_s=begins, ends_s=ends)

    def _read(self) -> Iterator[bytes]:
        """The frames that are given."""
        if not self.is_film:
            yield self._picture.pixels.tobytes()
            return
        found = 0
        with _film_errors(self.file):
            for frame in read_frames(
                self._ffmpeg,
                self.file,
                fps=self._fps,
                width=self._size[0],
                height=self._size[1],
                section=self.section,
                fit=self.config.fit,
                facts=self._facts,
            ):
                yield frame
                found += 1
        wanted = _frames_of(self.given.latent_frames)
        if found < wanted:
            raise InputRefused(
                f"{self.file} has {count(found, 'frame')} where it had {wanted}",
                "restore the film that the render began with",
            )

    @cached_property
    def _picture(self) -> Picture:
        width, height = self._size
        return read_picture(self.file, width=width, height=height, fit=self.config.fit)

    @cached_property
    def _ffmpeg(self) -> Ffmpeg:
        return find_ffmpeg()

    @cached_property
    def _facts(self) -> FilmFacts:
        return probe(self._ffmpeg, self.file)

    @property
    def _asked(self) -> Section:
        """The part that is asked for, in frames at the video's rate."""
        stop = self.config.to_s
        return Section(
            round((self.config.from_s or 0) * self._fps),
            None if stop is None else round(stop * self._fps),
        )


def _frames_of(latent_frames: int) -> int:
    """Frames that the first latent frames of a film stand for."""
    return 1 + (latent_frames - 1) * TEMPORAL_STRIDE


@contextlib.contextmanager
def _film_errors(file: Path) -> Iterator[None]:
    """Have it told of the film that ffmpeg cannot read it."""
    try:
        yield
    except WriterError as error:
        raise input_refused(file, error) from error


def digest_of_input(file: Path) -> str:
    """SHA-256 of a picture or film; words where it cannot be read."""
    try:
        return sha256_of(file)
    except OSError as error:
        return f"{file}: {error.strerror or error}"


def require_encoder(vae: Network | None, use: str) -> None:
    """Refuse an autoencoder that makes no latents of frames.

    Args:
        vae: Its weights, None where they are not here.
        use: What a video cannot do without, in words.

    Raises:
        CheckpointError: It has no encoder.
    """
    if vae is not None and not has_encoder(vae):
        raise CheckpointError(
            f"{vae.file.path} has no encoder, and a video cannot {use} without one", WITH_ENCODER
        )


def encoder_of(decoder: TiledDecoder) -> Encoder:
    """The encoder of a loaded autoencoder.

    Raises:
        CheckpointError: It has none.
    """
    vae = decoder.decoder
    if not isinstance(vae, TinyAutoencoder | WanAutoencoder) or not vae.has_encoder:
        raise CheckpointError("the autoencoder has no encoder", WITH_ENCODER)
    return vae

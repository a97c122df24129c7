"""A render as it stands before it: what is asked for, what computes it, its model and its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from cfgen.config.schema import RenderConfig
from cfgen.errors import UsageError
from cfgen.model.tiled import TiledDecoder
from cfgen.pipeline.beginning import Beginning
from cfgen.pipeline.device import Runtime
from cfgen.pipeline.ending import Ending
from cfgen.pipeline.models import OpenedModel
from cfgen.pipeline.shots import spans_of
from cfgen.pipeline.soundtrack import Soundtrack
from cfgen.timeline import Given, Plan, make_plan
from cfgen.video.encoding import exact_fps
from cfgen.video.formats import FORMATS
from cfgen.video.shape import VideoShape


class RenderJob:
    """One render, whose files are opened once for everything that is asked of them.

    Args:
        config: What is asked for.
        model: Its model, if the same files were opened already.
    """

    def __init__(self, config: RenderConfig, model: OpenedModel | None = None) -> None:
        self.config, self.model = config, model or OpenedModel(config.model)

    @property
    def output(self) -> Path:
        """The video that it makes.

        Raises:
            ValueError: None is named.
        """
        if self.config.output is None:
            raise ValueError("a render needs an output")
        return self.config.output

    @cached_property
    def runtime(self) -> Runtime:
        """What computes it.

        Raises:
            SetupError: The device is not there.
        """
        return Runtime.of(self.config)

    @cached_property
    def beginning(self) -> Beginning | None:
        """The picture or film that it begins with, if any; nothing is read yet."""
        heard = self.config.audio.file is None and not self._is_silent
        return Beginning.of(self.config, heard=heard)

    @cached_property
    def ending(self) -> Ending | None:
        """The picture that it ends with, if any; nothing is read yet."""
        return Ending.of(self.config)

    def given_latents(self, decoder: TiledDecoder) -> Callable[[int], Tensor] | None:
        """What gives the latents of given chunks, see `ChunkSource.given`; None if none is given.

        Args:
            decoder: The loaded autoencoder.
        """
        plan, ending = self.plan, self.ending
        if self.beginning is None:
            return None
        first = self.beginning.latents(decoder, plan)
        if ending is None:
            return first
        return lambda chunk: ending.latents(decoder) if chunk == plan.chunks - 1 else first(chunk)

    @cached_property
    def soundtrack(self) -> Soundtrack | None:
        """The file that its sound comes from, if any; nothing is read yet."""
        audio, plan = self.config.audio, self.plan
        if audio.file is None:
            return None
        return Soundtrack(audio.file, audio, seconds=plan.frames / exact_fps(plan.geometry.fps))

    @property
    def sound(self) -> Callable[[], Iterable[bytes]] | None:
        """Reads the sound of the video; None where it has none."""
        if self.soundtrack is not None:
            return self.soundtrack.read
        return None if self.beginning is None else self.beginning.sound

    def require_sound(self) -> tuple[str, ...]:
        """Look at what it will sound like, and say what becomes of that, a line each.

        Raises:
            InputRefused: The file has no sound.
            UsageError: The video cannot carry any.
        """
        kept = self.config.begin.keep_input
        if self.soundtrack is None:
            return ("none: the format carries no sound",) if kept and self._is_silent else ()
        if self._is_silent:
            raise UsageError(
                f"{self.output.suffix} carries no sound, and --audio is given",
                "leave it out, or choose another format with --format or -o",
            )
        line = self.soundtrack.require_usable()
        return (f"{line}, instead of that of the film" if kept else line,)

    @property
    def _is_silent(self) -> bool:
        """Whether the format carries no sound."""
        output, ending = self.config.output, self.config.encode.ending
        made = FORMATS.get(ending or "" if output is None else output.suffix.lower())
        return made is not None and not made.audio

    def require_beginning(self) -> tuple[str, ...]:
        """Look at what it begins and ends with, and say what becomes of that, a line each.

        Raises:
            InputRefused, CheckpointError: It cannot begin or end with that.
            UsageError: The video would take its place.
        """
        lines: list[str] = []
        for given, use in ((self.beginning, "begins"), (self.ending, "ends")):
            if given is None:
                continue
            lines += given.require_usable(self.model.vae if self.model.is_here else None)
            output = self.config.output
            if output is not None and output.resolve() == given.file.resolve():
                raise UsageError(
                    f"the video would take the place of {output}, which it {use} with",
                    "name another output with -o",
                )
        return tuple(lines)

    @cached_property
    def plan(self) -> Plan:
        """What will be made.

        Raises:
            CheckpointError: The autoencoder is damaged, or none that cfgen decodes with.
            InputRefused: The film that it begins with cannot be used.
            UsageError: Size or duration cannot be made.
        """
        given = Given() if self.beginning is None else self.beginning.given
        if self.ending is not None:
            given = replace(given, at_end=self.ending.latent_frames)
        return plan_of(self.config, self.model.latents, given)


def plan_of(config: RenderConfig, latents: tuple[int, int], given: Given) -> Plan:
    """Plan the clip that a configuration asks for.

    Args:
        config: The render.
        latents: Channels of the model's latents and pixels along a cell.
        given: What it begins and ends with.

    Raises:
        UsageError: Size or duration cannot be made, or a shot is too short.
    """
    width, height = config.frame_size
    channels, stride = latents
    shape = VideoShape(
        width=width,
        height=height,
        channels=channels,
        spatial_stride=stride,
        chunk_latent_frames=config.model.chunk_latent_frames,
        fps=config.playback_fps,
    )
    plan = make_plan(
        config.duration_s,
        shape,
        prompt=config.prompt,
        given=given,
        inverted=config.order == "inverted",
    )
    if not config.shots:
        return plan
    return replace(plan, spans=spans_of(plan, config.shots, default=config.transition))

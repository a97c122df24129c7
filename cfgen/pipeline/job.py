"""A render as it stands before it: what is asked for, what computes it, its model and its plan."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from cfgen.config.schema import RenderConfig
from cfgen.errors import UsageError
from cfgen.pipeline.beginning import Beginning
from cfgen.pipeline.device import Runtime
from cfgen.pipeline.models import OpenedModel
from cfgen.pipeline.shots import spans_of
from cfgen.timeline import Given, Plan, make_plan
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
        return Beginning.of(self.config)

    def require_beginning(self) -> tuple[str, ...]:
        """Look at what it begins with, and say what becomes of that, a line each.

        Raises:
            InputRefused, CheckpointError: It cannot begin with that.
            UsageError: The video would take its place.
        """
        if self.beginning is None:
            return ()
        lines = self.beginning.require_usable(self.model.vae if self.model.is_here else None)
        output = self.config.output
        if output is not None and output.resolve() == self.beginning.file.resolve():
            raise UsageError(
                f"the video would take the place of {output}, which it begins with",
                "name another output with -o",
            )
        return lines

    @cached_property
    def plan(self) -> Plan:
        """What will be made.

        Raises:
            CheckpointError: The autoencoder is damaged, or none that cfgen decodes with.
            InputRefused: The film that it begins with cannot be used.
            UsageError: Size or duration cannot be made.
        """
        given = Given() if self.beginning is None else self.beginning.given
        return plan_of(self.config, self.model.latents, given)


def plan_of(config: RenderConfig, latents: tuple[int, int], given: Given) -> Plan:
    """Plan the clip that a configuration asks for.

    Args:
        config: The render.
        latents: Channels of the model's latents and pixels along a cell.
        given: What it begins with.

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
    plan = make_plan(config.duration_s, shape, prompt=config.prompt, given=given)
    if not config.shots:
        return plan
    return replace(plan, spans=spans_of(plan, config.shots, default=config.transition))

"""Films that a student makes on its way: written to look at, read by the film world's detectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cfgen.model.generator import Generator
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.vae import TinyAutoencoder
from cfgen.rollout.schedule import FewStepSchedule
from cfgen.train.film_world import detectors
from cfgen.train.film_world.return_memory import CHUNK_LATENTS, SlowFastSizes
from cfgen.train.film_world.return_run import Model, Player, whole_films
from cfgen.train.film_world.return_test import Case, first_frame, make_case, own_return
from cfgen.train.film_world.world import FPS, render
from cfgen.train.stage import CHOICE
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.formats import MP4
from cfgen.video.writer import VideoWriter

Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """Which films are made.

    Attributes:
        films: held-out films of every measure, each made twice, from other noise; 0: none.
        away: seconds that they are away from the place that they come back to.
        policy: the memory that they are made under.
    """

    films: int = 2
    away: float = 4.0
    policy: Literal["window-12-3", "window-6-1", "slow_fast-oracle", "full"] = "slow_fast-oracle"


@dataclass(frozen=True, slots=True)
class StudentFilms:
    """Makes the films.

    Attributes:
        folder: where they are written, as `step-000100.mp4`.
        settings: which they are.
        sizes: of slow-fast memory.
        vae: decodes them.
        encoder: encodes their prompts.
        latent_size: rows and columns of a latent frame.
    """

    folder: Path
    settings: SampleSettings
    sizes: SlowFastSizes
    vae: TinyAutoencoder
    encoder: TextEncoder
    latent_size: tuple[int, int]

    def __call__(
        self, generator: Generator, schedule: FewStepSchedule, step: int
    ) -> dict[str, float]:
        """Make films after a step; nothing if there are none.

        Returns:
            `adherence`: share of what shots show as asked, in [0, 1]; `film_motion`: mean change of
            a pixel from frame to frame, 0..255; `saturation`: mean of the largest less the smallest
            channel, 0..255; `return_db`: how much more a film's return resembles its own departure
            than that of the same film from other noise, in dB; `choice`: the product of adherence,
            of the motion as a share of the world's own, at most 1, and of the share of the errors
            of the two returns that is the other's, which is 1/2 where nothing is remembered.
        """
        s = self.settings
        cases = [make_case("cut", s.away, number) for number in range(s.films)]
        if not cases:
            return {}
        model = Model(generator, self.vae, self.encoder, schedule)
        size = (1, CHUNK_LATENTS * cases[0].film.chunks, self.vae.latent_channels)
        blank = torch.zeros(*size, *self.latent_size)
        played = [[self._film(model, case, blank, seed) for case in cases] for seed in (0, 1)]
        self._write(np.concatenate(played[0]), step)
        found = [
            figures_of(case, film, other) for case, film, other in zip(cases, *played, strict=True)
        ]
        return {key: float(np.mean([each[key] for each in found])) for key in found[0]}

    def _film(self, model: Model, case: Case, blank: torch.Tensor, seed: int) -> Frames:
        player = Player(
            model, self.settings.policy, [case], blank, self.sizes, noise_seed=1000 * seed
        )
        return whole_films(player)[0]

    def _write(self, frames: Frames, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        output = self.folder / f"step-{step:06d}.mp4"
        with VideoWriter(
            output,
            width=frames.shape[2],
            height=frames.shape[1],
            fps=FPS,
            ffmpeg=find_ffmpeg(MP4.codec.encoder),
            quality="good",
            metadata={"title": f"after step {step}"},
            parts=self.folder / "parts",
            replaces=True,
        ) as writer:
            writer.write(np.ascontiguousarray(frames))
            writer.join()
            writer.publish()


def figures_of(case: Case, film: Frames, other: Frames) -> dict[str, float]:
    """Figures of a film [T, H, W, 3], given the same one from other noise."""
    readings = detectors.read_film(case.film, film)
    right = [
        hit
        for number, reading in enumerate(readings)
        for hit in detectors.score_shot(case.film, number, reading).values()
    ]
    left, back = first_frame(case.left + 1) - 1, len(film) - 1
    own, foreign = own_return(film[left], film[back], other[left])
    wide = film.astype(np.float32)
    adherence, motion, above = float(np.mean(right)), _motion(film), own - foreign
    world = render(case.film, 0, len(film), width=film.shape[2], height=film.shape[1])
    moves = min(1.0, motion / _motion(world))
    return {
        "adherence": adherence,
        "film_motion": motion,
        "saturation": float((wide.max(-1) - wide.min(-1)).mean()),
        "return_db": above,
        CHOICE: adherence * moves / (1 + 10 ** (-above / 10)),
    }


def _motion(film: Frames) -> float:
    """Mean change of a pixel from frame to frame, 0..255."""
    return float(np.abs(np.diff(film.astype(np.float32), axis=0)).mean())

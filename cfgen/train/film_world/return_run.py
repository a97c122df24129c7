"""Runs a generator through the cases of the return test, chunk by chunk under any policy.

Axis letters: B batch, F latent frames, C channels, h w latent grid, T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.checkpoint.networks.text_encoder import load_text_encoder
from cfgen.checkpoint.networks.vae import load_vae
from cfgen.errors import CheckpointError, UsageError
from cfgen.files.reading import open_binary
from cfgen.model.generator import Conditioning, Generator
from cfgen.model.vae import State, TinyAutoencoder
from cfgen.rollout.loop import ChunkDenoiser, Guidance, recommit
from cfgen.rollout.schedule import FewStepSchedule, KeyedNoise
from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.return_memory import (
    CHUNK_LATENTS,
    SlowFastSizes,
    may_batch,
    memory_of,
)
from cfgen.train.film_world.return_test import Case
from cfgen.train.film_world.world import FRAMES_PER_CHUNK, Film, render
from cfgen.train.shots import repeated, shot_by_chunk

Renoise = Literal["fresh", "predicted"]
"""How a chunk gets to its next noise level; see `FewStepSchedule`."""
PIECE = 24
"""Latent frames that are decoded at once: a film of a minute would take 10 GB whole."""


class Autoencoder(Protocol):
    """Encoder and decoder of a model; see `model.vae.TinyAutoencoder`."""

    @property
    def reach(self) -> int:
        """Latent frames before its own that a frame depends on, at most."""

    def encode(self, video_BTCHW: Tensor) -> Tensor:
        """Frames in 0..1 to latents [B, F, C, h, w]."""

    def start(self) -> State:
        """The state before the first latent frame of a clip."""

    def decode(self, latents_BFCHW: Tensor, state: State) -> Tensor:
        """The next latents of a clip to frames; see `model.vae.Decoder`."""


Encode = Callable[[list[str]], Tensor]
"""Prompts, B of them, to embeddings [B, text_len, text_dim]."""


@dataclass(frozen=True, slots=True)
class Model:
    """All that makes frames of a prompt.

    Attributes:
        generator: the causal model.
        vae: its autoencoder.
        encode: its text encoder.
        schedule: noise levels of a chunk.
        guidance: scale of classifier-free guidance; 1 for none.
    """

    generator: Generator
    vae: Autoencoder
    encode: Encode
    schedule: FewStepSchedule
    guidance: float = 1.0


def schedule_of(
    steps: int, timesteps: Sequence[float] = (), *, shift: float, renoise: Renoise
) -> FewStepSchedule:
    """The noise levels of a chunk.

    Args:
        steps: how many there are, spread evenly: 4 are 1000, 750, 500 and 250.
        timesteps: instead of even ones, falling, each in (0, 1000].
        shift: warps them, as in a render.
        renoise: how a chunk gets from one to the next.

    Raises:
        UsageError: there is no step, timesteps do not fall, or renoise is another word.
    """
    if renoise not in get_args(Renoise):
        raise UsageError(f"renoise must be fresh or predicted, got {renoise!r}")
    if steps < 1:
        raise UsageError(f"a chunk has 1 step or more, got {steps}")
    levels = list(timesteps) or np.linspace(1000, 0, steps, endpoint=False).tolist()
    bounds = [1000.0, *levels, 0.0]
    falls = all(before > after for before, after in zip(bounds[1:], bounds[2:], strict=False))
    if not falls or levels[0] > 1000:
        told = ", ".join(f"{each:g}" for each in levels)
        raise UsageError(f"timesteps must fall from at most 1000 and stay above 0, got {told}")
    return FewStepSchedule.from_timesteps(levels, shift=shift, renoise=renoise)


def digest_of_run(folder: Path | None, settings: Mapping[str, object]) -> str:
    """A digest of what decides the pictures of a run: its settings and the model's weights.

    Args:
        folder: the model; None where no model makes the pictures.
        settings: what JSON can tell.
    """
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(folder.rglob("*.safetensors")) if folder else []:
        with open_binary(path) as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def load_model(
    folder: Path, schedule: FewStepSchedule, guidance: float, device: torch.device
) -> Model:
    """A model folder as `cfgen train` exports it, its matrices expanded.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    generator = load_generator(folder, expand=True, device=device)
    encoder = load_text_encoder(
        folder / "text_encoder",
        folder / "tokenizer" / "tokenizer.json",
        text_len=generator.geometry.text_len,
        expand=True,
    )
    vae = load_vae(folder / "tae.safetensors", device=device)
    if not isinstance(vae, TinyAutoencoder):
        raise CheckpointError(
            f"{folder / 'tae.safetensors'} is no tiny autoencoder", "give a folder of cfgen train"
        )
    return Model(generator, vae, encoder, schedule, guidance)


def shot_captions(film: Film) -> list[str]:
    """What a model reads of each shot."""
    return [caption(film, shot, shot, complete=True) for shot in range(len(film.shots))]


def truth_of(case: Case, vae: Autoencoder) -> Tensor:
    """Latents of a case's film, [1, F, C, h, w] float32, on the CPU."""
    video = torch.from_numpy(render(case.film, 0, case.film.frames))
    pixels = video.permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        return vae.encode(pixels.to(_device_of(vae))).float().cpu()


def _device_of(vae: Autoencoder) -> torch.device:
    parameters = getattr(vae, "parameters", None)
    return torch.device("cpu") if parameters is None else next(parameters()).device


class Player:
    """Plays cases of one structure, B of them, through a memory.

    Args:
        model: what makes frames.
        policy: one of POLICIES.
        cases: of one way and time away.
        truths: latents of their films, [B, F, C, h, w].
        sizes: of slow-fast memory.
        noise_seed: another one gives another film.

    Raises:
        ValueError: the cases differ in structure, or the policy decides for one film at a time.
    """

    def __init__(
        self,
        model: Model,
        policy: str,
        cases: Sequence[Case],
        truths: Tensor,
        sizes: SlowFastSizes,
        *,
        noise_seed: int = 0,
    ) -> None:
        if len({case.structure for case in cases}) != 1:
            raise ValueError("cases of a batch must have the same shots")
        if len(cases) > 1 and not may_batch(policy):
            raise ValueError(f"{policy} decides on each film by itself: give one case")
        self.model, self.cases, self.truths = model, list(cases), truths
        generator = model.generator
        self.run = memory_of(policy, cases[0], generator, (truths.shape[3], truths.shape[4]), sizes)
        self._noise_seed = noise_seed
        self._prompts = self._read_prompts()
        self._denoise = self._denoiser()

    def _text(self, prompts: list[str]) -> Tensor:
        return self.model.encode(prompts).to(self.model.generator.device)

    @torch.no_grad()
    def _denoiser(self) -> ChunkDenoiser:
        """The passes of a chunk."""
        m, guidance = self.model, None
        if m.guidance != 1:
            empty = m.generator.condition(self._text([""]))
            guidance = Guidance(repeated(empty, len(self.cases)), m.guidance)
        return ChunkDenoiser(m.generator, m.schedule, guidance)

    @torch.no_grad()
    def _read_prompts(self) -> list[Conditioning]:
        """What the generator reads in each chunk."""
        films = [shot_captions(case.film) for case in self.cases]
        by_shot = [
            self.model.generator.condition(self._text(list(texts)))
            for texts in zip(*films, strict=True)
        ]
        return [by_shot[shot] for shot in shot_by_chunk(self.cases[0].film)]

    def _noise(self, chunk: int) -> Tensor:
        """[draws, B, F, C, h, w]; each film has its own."""
        shape = (1, CHUNK_LATENTS, *self.truths.shape[2:])
        films = [
            torch.stack(
                [
                    KeyedNoise(self._noise_seed + case.film.seed).draw(chunk, step, shape)
                    for step in range(self._denoise.draws)
                ]
            )
            for case in self.cases
        ]
        return torch.cat(films, 1).to(self.model.generator.device)

    @torch.no_grad()
    def prime(self, chunks: int) -> None:
        """Commit the truth up to a chunk."""
        generator = self.model.generator
        for chunk in range(chunks):
            self.run.oracle.chunk = chunk
            latents = self.truths[:, CHUNK_LATENTS * chunk : CHUNK_LATENTS * (chunk + 1)]
            recommit(generator, self.run.memory, latents.to(generator.device), self._prompts[chunk])

    @torch.no_grad()
    def generate(self, chunks: range) -> Tensor:
        """Generate the next chunks: [B, F, C, h, w] on the CPU."""
        made = []
        for chunk in chunks:
            self.run.oracle.chunk = chunk
            noise, view = self._noise(chunk), self.run.memory.begin(CHUNK_LATENTS)
            latents = self._denoise(noise, view, self._prompts[chunk])
            self.run.memory.commit(view)
            self.run.memory.remember(latents)
            self._denoise.reencode(self.run.memory, self._prompts[chunk])
            made.append(latents.float().cpu())
        return torch.cat(made, 1)

    @torch.no_grad()
    def influence(self, chunk: int) -> dict[int, float]:
        """How much each stored latent frame matters to the next chunk, by the frame's number.

        Its keys and values are replaced by their mean in every layer that holds it, and the chunk
        is generated again from the same noise: root-mean-square change of its latents. Nothing is
        committed.

        Args:
            chunk: the number of the next chunk.
        """
        noise, view = self._noise(chunk), self.run.memory.begin(CHUNK_LATENTS)
        usual = self._denoise.denoise(noise, view, self._prompts[chunk])
        tables = self.run.memory.tables
        held = {s.frame for table in tables for s in table.slots()}
        found = {}
        for frame in sorted(f for f in held if f < CHUNK_LATENTS * chunk):
            self.run.pool.replaced = {
                layer: {slot.page for slot in table.slots() if slot.frame == frame}
                for layer, table in enumerate(tables)
            }
            changed = self._denoise.denoise(noise, view, self._prompts[chunk])
            found[frame] = float((changed - usual).square().mean().sqrt())
        self.run.pool.replaced = {}
        return found


def primed_return(player: Player) -> list[NDArray[np.uint8]]:
    """Frames of each case's return after the truth: [T, H, W, 3] uint8 each."""
    first, chunks = player.cases[0].first, player.cases[0].film.chunks
    player.prime(first)
    made = player.generate(range(first, chunks))
    reach = min(CHUNK_LATENTS * first, player.model.vae.reach + 1)
    past = player.truths[:, CHUNK_LATENTS * first - reach : CHUNK_LATENTS * first]
    count = FRAMES_PER_CHUNK * (chunks - first)
    return [each[-count:] for each in decoded(player.model.vae, torch.cat([past, made], 1))]


def whole_films(player: Player) -> list[NDArray[np.uint8]]:
    """Each case's film made from its prompts alone: [T, H, W, 3] uint8 each."""
    return decoded(player.model.vae, player.generate(range(player.cases[0].film.chunks)))


def decoded(vae: Autoencoder, latents: Tensor) -> list[NDArray[np.uint8]]:
    """Frames [T, H, W, 3] of clips [B, F, C, h, w], one clip at a time."""
    films = []
    for clip in latents:
        state, pieces = vae.start(), []
        for piece in clip.split(PIECE):
            with torch.no_grad():
                frames = vae.decode(piece[None].to(_device_of(vae)), state)[0]
            levels = (frames.clamp(0, 1) * 255).round().to(torch.uint8)
            pieces.append(levels.permute(0, 2, 3, 1).cpu())
        films.append(torch.cat(pieces).numpy())
    return films

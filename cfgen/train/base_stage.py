"""Stage `base`: flow matching on causal chunks with clean context through the memory seam.

Each step plays clips forward as a render does: a noisy chunk is denoised against the memory, then
the clean chunk is committed. A share of clips commits a corrupted chunk instead (noise, or the
model's own prediction), so that a long rollout finds its own small errors familiar. Gradients reach
the commit passes; the text encoder is trained jointly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from cfgen.checkpoint.load import load_generator
from cfgen.checkpoint.text_encoder import load_text_encoder
from cfgen.errors import CheckpointError
from cfgen.kernels.pages import ADMITTED, OPEN
from cfgen.memory.base import Pass
from cfgen.memory.graph import GraphCache, GraphReader
from cfgen.memory.paged import PagedMemory
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.model.generator import Conditioning, Generator, Geometry
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.vae import TEMPORAL_STRIDE
from cfgen.ops.reference import Rope
from cfgen.ops.select import TORCH
from cfgen.train.captions import caption
from cfgen.train.export import Exporter, text_config
from cfgen.train.latents import LatentStore
from cfgen.train.muon import Muon
from cfgen.train.world import Film, camera_path, rng_for, sample_film


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSettings:
    """Values of the stage.

    Attributes:
        dim: width of the generator; `ffn_dim`, `num_heads`, `num_layers`, `text_len` and `text_dim`
            as in `Geometry`.
        text_layers: layers of the text encoder.
        text_ffn: width of its feed-forward layers.
        lr: peak learning rate of both optimizers.
        films: how many films there are; each is encoded when it is first drawn.
        pair_share: share of the drawn films that have two subjects (of all films one in five do).
        sweep_share: share of the drawn films whose camera turns back (of all films two in five).
        batches: clips of a step, short ones and long ones.
        chunks: chunks of a clip, short ones and long ones.
        long_share: share of the steps that play long clips.
        chunk_frames: latent frames of a chunk.
        sink: latent frames of the memory's attention sink; `slow` and `fast` likewise.
        shift: noise levels are shift u / (1 + (shift - 1) u) for u even in [0, 1].
        first_draws: noise draws of a clip's first chunk; it has the text to go by and nothing else.
        first_weight: weight of the first chunk's loss, where any other chunk's is 1.
        subject_weight: weight of latent cells near a subject, where any other cell's is 1.
        motion_weight: weight of the error's change from one latent frame to the next, where the
            error's own is 1: most of a chunk's error is its layout, hardly any its motion.
        stall_share: share of the clips in which the film stands still for a few chunks, which are
            committed and not learned: where the past stands still, the text must get it going.
        stall_chunks: how many chunks that is at most.
        noise_share: share of the chunks that are committed with noise on them.
        noise_strength: highest standard deviation of that noise.
        own_share: share of the chunks that are committed as the model made them in one step.
        own_below: highest noise level from which that is done.
        drop_text: share of the prompts that are replaced by the empty one.
    """

    dim: int = 256
    ffn_dim: int = 1024
    num_heads: int = 4
    num_layers: int = 6
    text_len: int = 64
    text_dim: int = 192
    text_layers: int = 3
    text_ffn: int = 384
    lr: float = 1.7e-3
    films: int = 2500
    pair_share: float = 0.35
    sweep_share: float = 0.65
    batches: tuple[int, int] = (8, 3)
    chunks: tuple[int, int] = (4, 10)
    long_share: float = 0.6
    chunk_frames: int = 3
    sink: int = 3
    slow: int = 6
    fast: int = 6
    shift: float = 2.0
    first_draws: int = 3
    first_weight: float = 2.0
    subject_weight: float = 4.0
    motion_weight: float = 2.0
    stall_share: float = 0.35
    stall_chunks: int = 3
    noise_share: float = 0.4
    noise_strength: float = 0.25
    own_share: float = 0.2
    own_below: float = 0.7
    drop_text: float = 0.08


@dataclass(frozen=True, slots=True)
class _Clips:
    """A batch: `latents` [B, F, C, H, W], `weight` of every cell [B, F, 1, H, W], a prompt each."""

    latents: Tensor
    weight: Tensor
    prompts: list[str]


class BaseStage:
    """See `loop.Stage`."""

    name = "base"

    def __init__(
        self, settings: BaseSettings, store: LatentStore, tokenizer: Tokenizer, exporter: Exporter
    ) -> None:
        s = self.settings = settings
        self.store, self.exporter = store, exporter
        films = [sample_film(i) for i in range(s.films)]
        pair = np.array([len(film.subjects) == 2 for film in films])
        sweep = np.array([turns_back(film) for film in films])
        chance = shares(pair, s.pair_share) * shares(sweep, s.sweep_share)
        self._chance = chance / chance.sum()
        torch.manual_seed(2)
        self.geometry = Geometry(
            dim=s.dim,
            ffn_dim=s.ffn_dim,
            num_heads=s.num_heads,
            num_layers=s.num_layers,
            in_dim=store.channels,
            out_dim=store.channels,
            text_len=s.text_len,
            text_dim=s.text_dim,
        )
        self.generator = Generator(self.geometry)
        self.text_encoder = TextEncoder(
            text_config(
                tokenizer.get_vocab_size(), width=s.text_dim, layers=s.text_layers, ffn=s.text_ffn
            ),
            tokenizer,
            text_len=s.text_len,
        )
        self.modules = nn.ModuleDict(
            {"generator": self.generator, "text_encoder": self.text_encoder}
        )
        self._initialise()

    def _initialise(self) -> None:
        """Xavier weights; outputs of blocks and head start at zero, so the first flow is zero."""
        for module in self.generator.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.generator.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.generator.get_parameter("time_projection.1.weight"))
        nn.init.zeros_(self.generator.head.head.weight)

    def begin_from(self, folder: Path) -> None:
        """Take the weights of a model folder instead of random ones.

        Raises:
            CheckpointError: the folder is incomplete, or its model has other sizes.
        """
        generator = load_generator(folder, expand=True, untrained=True)
        encoder = load_text_encoder(
            folder / "text_encoder",
            folder / "tokenizer" / "tokenizer.json",
            text_len=self.settings.text_len,
            expand=True,
        )
        try:
            self.generator.load_state_dict(generator.state_dict())
            self.text_encoder.load_state_dict(encoder.state_dict())
        except RuntimeError as error:  # torch's word for other names or shapes
            raise CheckpointError(
                f"the model in {folder} has other sizes than the settings of stage base ask for",
                "leave out --start, or set the sizes of that model",
            ) from error

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of blocks and text encoder; AdamW for everything else."""
        muon: list[nn.Parameter] = []
        adam: list[nn.Parameter] = []
        for name, p in self.modules.named_parameters():
            inner = (
                p.ndim == 2
                and (".blocks." in name or "block." in name)
                and "relative_attention" not in name
            )
            (muon if inner else adam).append(p)
        return [
            Muon(muon, lr=self.settings.lr, weight_decay=0.01),
            torch.optim.AdamW(adam, lr=self.settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the flow over a batch of clips, subjects weighed more."""
        s = self.settings
        rng, noise = rng_for("base", step), torch.Generator().manual_seed(step)
        clips = self._clips(rng)
        batch, frames = clips.latents.shape[:2]
        conditioning = self.generator.condition(self.text_encoder(clips.prompts))
        memory = self._memory(rng, clips.latents.shape)
        losses: list[Tensor] = []
        for start in range(0, frames, s.chunk_frames):
            draws = 1 if start else s.first_draws
            span = slice(start, start + s.chunk_frames)
            x0 = clips.latents[:, span].repeat(draws, 1, 1, 1, 1)
            eps = torch.randn(x0.shape, generator=noise).to(x0)
            level = self._levels(len(x0), noise).to(x0)
            view = memory.begin(s.chunk_frames)
            x = (1 - level) * x0 + level * eps
            text = repeated(conditioning, draws)
            flow = self.generator(x, level[:, :, 0, 0, 0], text, view.at(Pass(0)))
            weight = clips.weight[:, span].repeat(draws, 1, 1, 1, 1)
            losses.append(self._squares(flow - (eps - x0), weight))
            if span.stop < frames:
                own = (x - level * flow).detach()
                chunk = self._corrupt(x0[:batch], own[:batch], level[:batch], noise)
                commit = view.at(Pass(1, commit=True))
                self.generator.commit(chunk, self.generator.level(0.0), conditioning, commit)
                memory.commit(view)
        first, later = losses[0], torch.stack(losses[1:]).mean()
        share = s.first_weight / (s.first_weight + len(losses) - 1)
        figures = {"first": float(first.detach()), "later": float(later.detach())}
        return share * first + (1 - share) * later, figures

    def _clips(self, rng: np.random.Generator) -> _Clips:
        s = self.settings
        long = int(rng.uniform() < s.long_share)
        ids = [int(i) for i in rng.choice(s.films, s.batches[long], p=self._chance)]
        latents, subjects = self.store.clips(ids, s.chunk_frames * s.chunks[long])
        prompts = [
            "" if rng.uniform() < s.drop_text else caption(sample_film(i), int(rng.integers(2**62)))
            for i in ids
        ]
        weight = 1 + (s.subject_weight - 1) * subjects[:, :, None]
        frames = latents.shape[1]
        for clip, number in enumerate(ids):
            if rng.uniform() < s.stall_share:
                at = int(rng.choice(stall_points(sample_film(number), frames, s.chunk_frames)))
                most = min(s.stall_chunks, (frames - at) // s.chunk_frames - 1)
                held = s.chunk_frames * int(rng.integers(1, most + 1))
                order = stalled(frames, at, held)
                latents[clip], weight[clip] = latents[clip, order], weight[clip, order]
                weight[clip, at : at + held] = 0
        device = self.generator.device
        return _Clips(latents.to(device), weight.to(device), prompts)

    def _squares(self, error: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean square of an error [B, F, C, H, W], and of its change over time."""
        change = (error[:, 1:] - error[:, :-1]).square() / 2
        squares = (weight * error.square()).mean() + self.settings.motion_weight * (
            weight[:, 1:] * change
        ).mean()
        return squares / (1 + self.settings.motion_weight)

    def _levels(self, count: int, noise: torch.Generator) -> Tensor:
        """Noise levels [count, 1, 1, 1, 1] in [0, 1]."""
        shift = self.settings.shift
        even = torch.rand(count, 1, 1, 1, 1, generator=noise)
        return shift * even / (1 + (shift - 1) * even)

    def _corrupt(self, x0: Tensor, own: Tensor, level: Tensor, noise: torch.Generator) -> Tensor:
        """What is committed: the clean chunk, now and then with noise, or what was made of it."""
        s = self.settings
        coin = torch.rand(2, len(x0), 1, 1, 1, 1, generator=noise).to(x0)
        strength = s.noise_strength * torch.rand(len(x0), 1, 1, 1, 1, generator=noise).to(x0)
        strength = strength * (coin[0] < s.noise_share)
        noisy = x0 + strength * torch.randn(x0.shape, generator=noise).to(x0)
        return torch.where((coin[1] < s.own_share) & (level < s.own_below), own, noisy)

    def _memory(self, rng: np.random.Generator, shape: torch.Size) -> PagedMemory:
        """Slow-fast memory that admits by chance, so that training sees every filling."""
        s = self.settings
        chance = rng.uniform(0.2, 1.0)

        def by_chance(_keys: Tensor, _reference: Tensor, decision: Tensor, **_: float) -> None:
            decision[ADMITTED] = int(decision[OPEN]) and rng.uniform() < chance

        tables = [SlowFastTable(sink=s.sink, slow=s.slow, fast=s.fast) for _ in range(s.num_layers)]
        pool = GraphCache(s.num_layers, self.generator.device)
        rope, grid = Rope(self.geometry.head_dim), self.geometry.grid(shape[3], shape[4])
        reader = GraphReader(pool, TORCH, rope=rope, grid=grid)
        return PagedMemory(tables, pool, reader, admit=by_chance)

    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write generator and text encoder of the model folder."""
        self.exporter(self.geometry, self.text_encoder.model.config.to_diff_dict(), weights)


def shares(chosen: NDArray[np.bool_], share: float) -> NDArray[np.float64]:
    """Chances [n] that draw one of those `chosen` [n] with probability `share`."""
    count = max(1, int(chosen.sum())), max(1, int((~chosen).sum()))
    return np.where(chosen, share / count[0], (1 - share) / count[1]).astype(np.float64)


def turns_back(film: Film) -> bool:
    """Whether the camera sweeps: it goes one way, rests, and comes back."""
    return film.camera in ("right-left", "left-right")


def stall_points(film: Film, frames: int, chunk_frames: int) -> list[int]:
    """First latent frames of chunks at which a film of `frames` may stand still.

    A camera that turns back may do so at the start and where it rests, so that it never goes on
    after a rest in the direction that it came from.
    """
    path = camera_path(film, TEMPORAL_STRIDE * frames)[::TEMPORAL_STRIDE]
    anywhere = not turns_back(film)
    starts = range(0, frames - chunk_frames, chunk_frames)
    return [at for at in starts if at == 0 or anywhere or path[at - 1] == path[at]]


def stalled(frames: int, at: int, count: int) -> list[int]:
    """Order of latent frames in which the one before `at`, or the first, stands for `count`."""
    held = max(0, at - 1)
    after = range(max(1, at), frames)
    return [*range(at), *[held] * count, *after][:frames]


def repeated(conditioning: Conditioning, times: int) -> Conditioning:
    """The same prompts `times` over along the batch."""
    return Conditioning(
        tuple(
            (k.repeat(times, 1, 1, 1), v.repeat(times, 1, 1, 1))
            for k, v in conditioning.keys_values
        ),
        None if conditioning.bias is None else conditioning.bias.repeat(times, 1),
    )

"""Stage `base`: flow matching on causal chunks with clean context through the memory seam.

A step plays films of one family forward as a render does. Every chunk is committed; a few of them
are first denoised from noise, and their error is the loss. Those are chosen where memory matters:
chunks that show again what was seen before, and the first of a shot. A long past costs little,
since chunks that nothing is learnt from are committed without gradients. Gradients do reach the
commit passes of the chosen chunks and of each shot's first, which is what slow memory mostly holds.

A share of chunks is committed corrupted (noise, or the model's own prediction), so that a long
rollout finds its own small errors familiar. The text encoder is trained jointly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.checkpoint.networks.text_encoder import load_text_encoder
from cfgen.errors import CheckpointError
from cfgen.memory.paged import PagedView
from cfgen.memory.window import FullMemory
from cfgen.model.generator import Conditioning, Generator, WanConfig
from cfgen.model.patches import embedding_name, start_larger
from cfgen.model.text_encoder import TextEncoder
from cfgen.rollout.loop import commit_chunk, predict_flow
from cfgen.train.export import Exporter, text_config
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.crops import draw_crops
from cfgen.train.film_world.families import draw_family
from cfgen.train.film_world.labels import LabelHead, Labels, film_labels
from cfgen.train.film_world.latents import CHUNK_LATENTS, FilmBatch, LatentStore
from cfgen.train.film_world.world import Film
from cfgen.train.flow_loss import Errors, LossWeights, spread_levels
from cfgen.train.flow_matching_settings import FlowMatchingSettings
from cfgen.train.muon import Muon
from cfgen.train.processes import batches_of_a_step
from cfgen.train.recall import RecallProbe
from cfgen.train.shots import choose_chunks, prompts_by_chunk, repeated, shot_starts, spans
from cfgen.train.stage import SingleLossStage
from cfgen.train.training_memory import (
    MemorySettings,
    TrainingAdmission,
    draw_policy,
    training_memory,
)


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be denoised.

    Attributes:
        latents: [B, F, C, h, w].
        subjects: cells near a subject, [B, F, h, w] in {0, 1}.
        returns: cells whose place was shown before, [B, F, h, w] in {0, 1}.
        labels: what the cells show.
    """

    latents: Tensor
    subjects: Tensor
    returns: Tensor
    labels: Labels


class FlowMatchingStage(SingleLossStage):
    """Trains generator and text encoder together."""

    name = "base"

    def __init__(
        self,
        settings: FlowMatchingSettings,
        memory: MemorySettings,
        store: LatentStore,
        tokenizer: Tokenizer,
        exporter: Exporter,
    ) -> None:
        s = self.settings = settings
        self.micro_batches = s.micro_batches
        self.memory, self.store, self.exporter = memory, store, exporter
        torch.manual_seed(2)
        self.geometry = WanConfig(
            dim=s.dim,
            ffn_dim=s.ffn_dim,
            num_heads=s.num_heads,
            num_layers=s.num_layers,
            in_dim=store.channels,
            out_dim=store.channels,
            text_len=s.text_len,
            text_dim=s.text_dim,
            larger_patches=memory.patches,
        )
        self.generator = Generator(self.geometry)
        self.text_encoder = TextEncoder(
            text_config(
                tokenizer.get_vocab_size(), width=s.text_dim, layers=s.text_layers, ffn=s.text_ffn
            ),
            tokenizer,
            text_len=s.text_len,
        )
        self.labels = LabelHead(self.generator)
        self.modules = nn.ModuleDict(
            {
                "generator": self.generator,
                "text_encoder": self.text_encoder,
                "labels": self.labels,
            }
        )
        self._initialise()
        self._probe = RecallProbe(store, memory, s.probe_films)

    def _initialise(self) -> None:
        """Xavier weights; outputs of blocks and head start at zero, so the first flow is zero."""
        for module in self.generator.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.generator.patch_embedding.weight.flatten(1))
        self._start_larger(self.geometry.larger_patches)
        nn.init.zeros_(self.generator.get_parameter("time_projection.1.weight"))
        nn.init.zeros_(self.generator.head.head.weight)

    def _start_larger(self, patches: Iterable[int]) -> None:
        """Begin kernels of larger patches with the usual one."""
        usual = self.generator.patch_embedding
        for times in patches:
            start_larger(self.generator.get_submodule(embedding_name(times)), usual)

    def begin_from(self, folder: Path) -> None:
        """Take the weights of a model folder instead of random ones.

        Kernels of larger patches that its model lacks begin with the usual one.

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
            there = generator.geometry.larger_patches
            lacking = [times for times in self.geometry.larger_patches if times not in there]
            names = tuple(f"{embedding_name(times)}." for times in lacking)
            own = self.generator.state_dict()
            kept = {name: own[name] for name in own if name.startswith(names)} if names else {}
            self.generator.load_state_dict(generator.state_dict() | kept)
            self._start_larger(lacking)
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
            torch.optim.AdamW(adam, lr=self.settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def loss(self, step: int, draw: int) -> tuple[Tensor, dict[str, float]]:
        """Weighted squared error of the flow over the chosen chunks of a batch of films."""
        s = self.settings
        rng, noise = rng_for("base", draw), torch.Generator().manual_seed(draw)
        batch, length = self._films(step, draw, rng)
        chunks = batch.latents.shape[1] // CHUNK_LATENTS
        starts = shot_starts(batch.films[0])
        chosen = choose_chunks(batch, starts, s.trained[length], rng)
        policy = draw_policy(self.memory, rng, chunks)
        admission = TrainingAdmission.drawn(self.memory, rng, starts, chunks)
        _, frames, _, height, width = batch.latents.shape
        memory = training_memory(policy, admission, self.generator, (frames, height, width))
        prompts = self._prompts(batch.films, rng)
        given = rng.uniform() < s.given_share
        if given:
            chosen |= {0}
        errors = Errors(self._weights)
        for chunk, span in spans(max(chosen) + 1, given=given):
            admission.chunk = chunk
            part = FilmBatch(batch.films, *(x[:, span] for x in batch.tensors))
            view, clean = memory.begin(span.stop - span.start), None
            is_given = span.stop == 1
            if chunk in chosen and not is_given:
                draws = s.draws if chunk else s.first_draws
                labels = film_labels(
                    batch.films, range(span.start, span.stop), *part.latents.shape[-2:]
                )
                target = Target(*part.tensors, labels)
                clean = self._denoise(target, view, prompts[chunk], noise, draws, errors)
            if chunk < max(chosen) or is_given:  # nothing reads what comes after
                learnt = chunk in chosen or chunk in starts
                latents = self._committed(part, clean, noise)
                with nullcontext() if learnt else torch.no_grad():
                    commit_chunk(self.generator, memory, view, latents, prompts[chunk])
        total, figures = errors.total()
        if s.crops:
            cropped, crop_figures = self._crops(batch, rng, noise)
            total = total + s.crop_weight * cropped
            figures |= {f"crop_{name}": value for name, value in crop_figures.items()}
        return total, figures

    def _films(self, step: int, draw: int, rng: np.random.Generator) -> tuple[FilmBatch, int]:
        """A batch of one family, and which of the lengths it has."""
        s = self.settings
        shares = s.shares if step < s.late_from else s.late_shares
        alike = batches_of_a_step(self.micro_batches)
        batch, length = draw_family(self.store, s, shares, draw, rng, alike=alike)
        tensors = (x.to(self.generator.device) for x in batch.tensors)
        return FilmBatch(batch.films, *tensors), length

    def _prompts(self, films: Sequence[Film], rng: np.random.Generator) -> list[Conditioning]:
        """What each chunk's captions say, those of some films left out."""
        dropped = rng.uniform(size=len(films)) < self.settings.drop_text

        def words(film: int, shot: int) -> str:
            return "" if dropped[film] else caption(films[film], shot, int(rng.integers(2**62)))

        return prompts_by_chunk(films, words, self.generator, self.text_encoder)

    def _crops(
        self, batch: FilmBatch, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Learn to draw subjects from crops of single latent frames, which know no past."""
        s = self.settings
        crops = draw_crops(batch, s.crops, s.crop_cells, rng)
        dropped = rng.uniform(size=s.crops) < s.drop_text
        words = ["" if out else said for out, said in zip(dropped, crops.captions, strict=True)]
        text = self.generator.condition(self.text_encoder(words))
        memory = training_memory(
            FullMemory(), None, self.generator, (CHUNK_LATENTS, *crops.latents.shape[-2:])
        )
        errors = Errors(replace(self._weights, returning=1.0, motion=0.0))
        target = Target(
            crops.latents, crops.subjects, torch.zeros_like(crops.subjects), crops.labels
        )
        self._denoise(target, memory.begin(1), text, noise, s.crop_draws, errors)
        return errors.total()

    def _denoise(
        self,
        target: Target,
        view: PagedView,
        text: Conditioning,
        noise: torch.Generator,
        draws: int,
        errors: Errors,
    ) -> tuple[Tensor, Tensor]:
        """Learn from pictures at several noise levels.

        Returns:
            them as the first draw predicts them, [B, F, C, h, w], and that draw's noise levels,
            [B, 1, 1, 1, 1].
        """
        batch = len(target.latents)
        x0 = target.latents.repeat(draws, 1, 1, 1, 1)
        eps = torch.randn(x0.shape, generator=noise).to(x0)
        level = spread_levels(draws, batch, self.settings.shift, noise).to(x0)
        x = (1 - level) * x0 + level * eps
        levels, texts = level[:, :, 0, 0, 0], repeated(text, draws)
        with self.labels.watching(self.generator) as hidden:
            flow = predict_flow(self.generator, x, levels, texts, view)
        errors.add(flow - (eps - x0), target.subjects, target.returns, draws=draws)
        told = self.labels.loss(hidden[0], target.labels)
        errors.add_aside("labels", told, self.settings.label_weight, draws=draws)
        return (x - level * flow).detach()[:batch], level[:batch]

    def _committed(
        self, part: FilmBatch, predicted: tuple[Tensor, Tensor] | None, noise: torch.Generator
    ) -> Tensor:
        """What the commit pass of a chunk reads: the clean one, of a share of films corrupted."""
        x0 = part.latents
        own, level = predicted or (x0, torch.ones(len(x0), 1, 1, 1, 1).to(x0))
        return self._corrupt(x0, own, level, noise)

    @property
    def _weights(self) -> LossWeights:
        s = self.settings
        return LossWeights(
            returning=s.return_weight,
            motion=s.motion_weight,
            semantic=s.semantic_weight,
            semantic_channels=self.store.vae.semantic_channels,
        )

    def _corrupt(self, x0: Tensor, own: Tensor, level: Tensor, noise: torch.Generator) -> Tensor:
        """What is committed: the clean chunk, now and then with noise, or what was made of it."""
        s = self.settings
        coin = torch.rand(2, len(x0), 1, 1, 1, 1, generator=noise).to(x0)
        strength = s.noise_strength * torch.rand(len(x0), 1, 1, 1, 1, generator=noise).to(x0)
        strength = strength * (coin[0] < s.noise_share)
        noisy = x0 + strength * torch.randn(x0.shape, generator=noise).to(x0)
        return torch.where((coin[1] < s.own_share) & (level < s.own_below), own, noisy)

    def measure(self) -> dict[str, float]:
        """How much of a returning place the model takes from its memory; see `RecallProbe`."""
        return self._probe(self.generator, self.text_encoder)

    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write generator and text encoder of the model folder."""
        self.exporter(self.geometry, self.text_encoder.model.config.to_diff_dict(), weights)

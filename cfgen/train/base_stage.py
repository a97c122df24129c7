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
from tokenizers import Tokenizer
from torch import Tensor, nn

from cfgen.checkpoint.load import load_generator, load_text_encoder
from cfgen.errors import CheckpointError
from cfgen.memory.base import Pass
from cfgen.memory.kv_cache import GraphCache
from cfgen.memory.paged import PagedMemory
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.model.generator import Conditioning, Generator, Geometry
from cfgen.model.text_encoder import TextEncoder
from cfgen.ops.reference import Rope, rotate
from cfgen.ops.select import Ops
from cfgen.ops.torch_backend import attend_by_products
from cfgen.train.captions import caption
from cfgen.train.export import Exporter, text_config
from cfgen.train.latents import LatentStore
from cfgen.train.muon import Muon
from cfgen.train.world import rng_for, sample_film

_OPS = Ops("products", rotate, attend_by_products)


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSettings:
    """Values of the stage. `batches` and `chunks` are paired: long clips come in small batches."""

    dim: int = 256
    ffn_dim: int = 1024
    num_heads: int = 4
    num_layers: int = 6
    text_len: int = 64
    text_dim: int = 192
    text_layers: int = 3
    text_ffn: int = 384
    lr: float = 1.7e-3
    batches: tuple[int, ...] = (8, 3)
    chunks: tuple[int, ...] = (4, 10)
    long_share: float = 0.25
    films: int = 2500
    sink: int = 3
    slow: int = 6
    fast: int = 6
    shift: float = 2.0
    first_draws: int = 3
    first_weight: float = 2.0
    subject_weight: float = 6.0
    corrupt_noise: float = 0.25
    corrupt_own: float = 0.2
    drop_text: float = 0.05


class BaseStage:
    """See `loop.Stage`."""

    name = "base"

    def __init__(
        self, settings: BaseSettings, store: LatentStore, tokenizer: Tokenizer, exporter: Exporter
    ) -> None:
        s = self.settings = settings
        self.store, self.exporter = store, exporter
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
        generator = load_generator(folder)
        encoder = load_text_encoder(
            folder / "text_encoder",
            folder / "tokenizer" / "tokenizer.json",
            text_len=self.settings.text_len,
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
        rng = rng_for("base", step)
        long = int(rng.uniform() < s.long_share)
        batch, chunks = s.batches[long], s.chunks[long]
        ids = [int(i) for i in rng.integers(0, s.films, batch)]
        latents, subjects = self.store.clips(ids, 3 * chunks)
        latents, subjects = latents.to(self.generator.device), subjects.to(self.generator.device)
        prompts = [
            "" if rng.uniform() < s.drop_text else caption(sample_film(i), int(rng.integers(2**62)))
            for i in ids
        ]
        conditioning = self.generator.condition(self.text_encoder(prompts))
        noise = torch.Generator().manual_seed(step)
        memory = self._memory(rng, latents.shape)
        weight = 1 + (s.subject_weight - 1) * subjects[:, :, None]
        losses: list[Tensor] = []
        for c in range(chunks):
            span = slice(3 * c, 3 * c + 3)
            draws = 1 if c else s.first_draws
            x0 = latents[:, span].repeat(draws, 1, 1, 1, 1)
            eps = torch.randn(x0.shape, generator=noise).to(x0)
            uniform = torch.rand(batch * draws, 1, generator=noise)
            sigma = (s.shift * uniform / (1 + (s.shift - 1) * uniform)).to(x0)
            level = sigma[:, :, None, None, None]
            view = memory.begin(3)
            x = (1 - level) * x0 + level * eps
            flow = self.generator(x, sigma, repeated(conditioning, draws), view.at(Pass(0)))
            error = weight[:, span].repeat(draws, 1, 1, 1, 1) * (flow - (eps - x0)).square()
            losses.append(error.mean())
            if c + 1 < chunks:
                predicted = (x - level * flow).detach()[:batch]
                clean = self._corrupt(x0[:batch], predicted, level[:batch], noise)
                self.generator(clean, 0.0, conditioning, view.at(Pass(1, commit=True)))
                memory.commit(view)
        later = torch.stack(losses[1:]).mean()
        share = s.first_weight / (s.first_weight + chunks - 1)
        total = share * losses[0] + (1 - share) * later
        return total, {"first": float(losses[0].detach()), "later": float(later.detach())}

    def _corrupt(
        self, x0: Tensor, predicted: Tensor, level: Tensor, noise: torch.Generator
    ) -> Tensor:
        """What is committed: the clean chunk, now and then with noise, or what was made of it."""
        s = self.settings
        coin = torch.rand(2, len(x0), 1, 1, 1, 1, generator=noise).to(x0)
        strength = s.corrupt_noise * torch.rand(len(x0), 1, 1, 1, 1, generator=noise).to(x0)
        noisy = x0 + (coin[0] < 0.4) * strength * torch.randn(x0.shape, generator=noise).to(x0)
        own = (coin[1] < s.corrupt_own) & (level < 0.7)
        return torch.where(own, predicted, noisy)

    def _memory(self, rng: np.random.Generator, shape: torch.Size) -> PagedMemory:
        """Slow-fast memory that admits by chance, so that training sees every filling."""
        s = self.settings
        chance = rng.uniform(0.2, 1.0)
        tables = [
            SlowFastTable[Tensor](
                sink=s.sink,
                slow=s.slow,
                fast=s.fast,
                decide=lambda _reference, _keys: bool(rng.uniform() < chance),
            )
            for _ in range(s.num_layers)
        ]
        grid = self.geometry.grid(shape[3], shape[4])
        rope = Rope(self.geometry.head_dim)
        return PagedMemory(tables, GraphCache(s.num_layers), _OPS, rope=rope, grid=grid)

    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write generator and text encoder of the model folder."""
        self.exporter(self.geometry, self.text_encoder.model.config.to_diff_dict(), weights)


def repeated(conditioning: Conditioning, times: int) -> Conditioning:
    """The same prompts `times` over along the batch."""
    return Conditioning(
        tuple(
            (k.repeat(times, 1, 1, 1), v.repeat(times, 1, 1, 1))
            for k, v in conditioning.keys_values
        )
    )

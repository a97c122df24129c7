"""What `chunk.py` compares: the published way to make a chunk, and cfgen's, on the same weights.

Axis letters: B batch, F latent frames of a chunk, P tokens per latent frame, L = F * P, S keys,
N heads, D head dim, E model width.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import storage
import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen.checkpoint.networks.fill import MATRICES
from cfgen.config.schema import WindowMemory
from cfgen.memory.protocols import Memory, Norms, Pass
from cfgen.model.generator import Conditioning, Generator, Level
from cfgen.model.generator import VideoShape as Sizes
from cfgen.model.vae import SPATIAL_STRIDE
from cfgen.ops.reference import Rope
from cfgen.ops.select import TORCH
from cfgen.pipeline.build import build_memory
from cfgen.pipeline.models import OpenedModel
from cfgen.rollout.schedule import FewStepSchedule
from cfgen.timeline import VideoShape, make_plan

WINDOW, SINK, FRAMES = 21, 3, 3
STEPS = (1000.0, 750.0, 500.0, 250.0)
PROMPT_TOKENS = 40
"""Of Wan's prompt."""


class Published:
    """Memory and view as published code has them: keys are kept without any rotation.

    In every layer and pass the kept keys are joined with the chunk's own and all are rotated, in
    complex float64; values are joined likewise. The angles are known beforehand, unlike there.
    Source: the method of arXiv 2602.06028 and its released code; what it does is described there,
    the code is ours.

    Args:
        generator: Whose layers attend.
        grid: Tokens of a latent frame as (rows, columns).
    """

    def __init__(self, generator: Generator, grid: tuple[int, int]) -> None:
        sizes = generator.geometry
        rope = Rope(sizes.head_dim)
        angles = (rope.temporal(range(WINDOW))[:, None] + rope.spatial(grid)).flatten(0, 1)
        self._turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        self._heads, self._tokens = sizes.num_heads, grid[0] * grid[1]
        dtype = generator.blocks[0].self_attn.q.dtype
        nothing = torch.zeros(1, 0, sizes.num_heads, sizes.head_dim, dtype=dtype)
        self._kept = [(nothing, nothing)] * sizes.num_layers
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, frames: int) -> Published:
        """The next chunk; room was made for it when the last one was kept."""
        return self

    def at(self, pass_: Pass) -> Published:
        """The same chunk in another pass: the last one, which commits, is what will be kept."""
        return self

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, norms: Norms) -> Tensor:
        """Rotate everything, then attend to it: [B, L, E]."""
        q, k = (
            plain_norm(x, gain, norms.eps).unflatten(-1, (self._heads, -1))
            for x, gain in ((q, norms.q), (k, norms.k))
        )
        v = v.unflatten(-1, (self._heads, -1))
        self._made[layer] = k, v
        old_k, old_v = self._kept[layer]
        keys, values = torch.cat([old_k, k], 1), torch.cat([old_v, v], 1)
        end = keys.shape[1]
        q, keys = self._rotate(q, slice(end - q.shape[1], end)), self._rotate(keys, slice(0, end))
        return plain_attend(q, keys, values).flatten(2)

    def write(self, layer: int, k: Tensor, v: Tensor, norms: Norms) -> None:
        """What a pass would leave, without the pass."""
        k = plain_norm(k, norms.k, norms.eps)
        heads = (x.unflatten(-1, (self._heads, -1)) for x in (k, v))
        self._made[layer] = next(heads), next(heads)

    def _rotate(self, x_BLND: Tensor, where: slice) -> Tensor:
        pairs = torch.view_as_complex(x_BLND.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self._turns[where]).flatten(-2).to(x_BLND.dtype)

    def commit(self, view: Published) -> None:
        """Keep the chunk's keys and values; the oldest behind the sink go."""
        sink, most = SINK * self._tokens, (WINDOW - FRAMES) * self._tokens
        for layer, new in self._made.items():
            joined = [torch.cat(pair, 1) for pair in zip(self._kept[layer], new, strict=True)]
            start = sink + max(0, joined[0].shape[1] - most)
            k, v = (torch.cat([x[:, :sink], x[:, start:]], 1) for x in joined)
            self._kept[layer] = k, v


def plain_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the full width."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normed.type_as(x) * gain.type_as(x)


def plain_attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of [B, L, N, D]; nobody has a bias here."""
    q, k, v = (x.to(q.dtype).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def plain_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float, dtype: torch.dtype
) -> Tensor:
    """Layer norm, then a shift and a scale a latent frame."""
    frames = F.layer_norm(x.float(), x.shape[-1:], eps=eps).type_as(x).unflatten(1, (FRAMES, -1))
    return (frames * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2).to(dtype)


def plain_add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """The sum of x and y gate."""
    return x + (y.unflatten(1, (FRAMES, -1)) * gate[:, :, None]).flatten(1, 2)


PLAIN = dataclasses.replace(
    TORCH,
    name="published",
    attend=plain_attend,
    modulate=plain_modulate,
    add_gated=plain_add_gated,
)


@dataclass(frozen=True)
class Variant:
    """A way to make chunks.

    Attributes:
        generator: With its ops.
        memory: The way's own.
        text: The prompt.
        schedule: Noise levels.
        level: A noise level as the layers read it.
        commit: The commit pass.
    """

    generator: Generator
    memory: Memory[Any]
    text: Conditioning
    schedule: FewStepSchedule
    level: Callable[[float], Level]
    commit: Callable[..., object]

    def chunk(self, noise: Tensor) -> list[Tensor]:
        """Denoise a chunk, [passes, B, F, C, H, W], and commit it: its flows, and the chunk."""
        view, x, flows = self.memory.begin(FRAMES), noise[0], []
        for step, sigma in enumerate(self.schedule.sigmas):
            flow = self.generator(x, self.level(sigma), self.text, view.at(Pass(step)))
            flows.append(flow)
            x0 = self.schedule.clean(x, flow, step)
            if step + 1 < len(noise):
                x = self.schedule.next(x0, flow, step, noise[step + 1])
        self._finish(x0, view)
        return [*flows, x0]

    def remember(self, keys_values: Tensor) -> None:
        """Keep a chunk of random keys and values, [2, layers, B, L, E] before any norm."""
        view = self.memory.begin(FRAMES)
        last = view.at(Pass(len(self.schedule.sigmas), commit=True))
        for layer, block in enumerate(self.generator.blocks):
            attention = block.self_attn
            k, v = keys_values[:, layer].to(attention.k.dtype)
            last.write(layer, k, v, attention.norms)
        self.memory.commit(view)

    def _finish(self, latents: Tensor, view: Any) -> None:
        view = view.at(Pass(len(self.schedule.sigmas), commit=True))
        self.commit(latents, self.level(0.0), self.text, view)
        self.memory.commit(view)


@dataclass(frozen=True)
class BenchSetup:
    """What is compared: a model, a prompt, a size of pictures.

    Attributes:
        generator: In float32.
        text: The embedded prompt, padded, [1, text_len, text_dim].
        width: Of a frame in pixels.
        height: Likewise.
        passes: Denoising passes.
        whole: Whether the commit pass is computed to its end in both ways.
    """

    generator: Generator
    text: Tensor
    width: int
    height: int
    passes: int
    whole: bool = False

    def ways(self) -> dict[str, Variant]:
        """The published way and ours, in float32 and in bfloat16."""
        exact, small = self.generator, in_bfloat16(self.generator)
        return {
            "published float32": self._published(exact),
            "cfgen float32": self._ours(exact),
            "published bfloat16": self._published(small),
            "cfgen bfloat16": self._ours(small),
        }

    def _published(self, generator: Generator) -> Variant:
        """Time is embedded in every pass, for every frame; all padding of the prompt is read."""
        generator = sharing_weights(generator)
        generator.compute_with(PLAIN)
        embedded = generator.text_embedding(self.text)
        return Variant(
            generator=generator,
            memory=Published(generator, generator.geometry.grid(*self._latent)),
            text=Conditioning(tuple(b.cross_attn.read(embedded) for b in generator.blocks)),
            schedule=self._schedule,
            level=lambda sigma: generator.level(torch.full((1, FRAMES), sigma)),
            commit=generator,
        )

    def _ours(self, generator: Generator) -> Variant:
        plan = make_plan(60, VideoShape(width=self.width, height=self.height))
        window = WindowMemory(sink=SINK, size=WINDOW, positions="relative")
        dtype = generator.blocks[0].self_attn.q.dtype
        known = {sigma: generator.level(sigma) for sigma in (*self._schedule.sigmas, 0.0)}
        return Variant(
            generator=generator,
            memory=build_memory(window, generator, plan, TORCH, dtype=dtype),
            text=generator.condition(self.text),
            schedule=self._schedule,
            level=known.__getitem__,
            commit=generator if self.whole else generator.commit,
        )

    @property
    def _latent(self) -> tuple[int, int]:
        return self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE

    @property
    def _schedule(self) -> FewStepSchedule:
        return FewStepSchedule.from_timesteps(STEPS[: self.passes])

    def keys_values(self, seed: int) -> Tensor:
        """Of a chunk: [2, layers, B, L, E]."""
        g, random = self.generator.geometry, torch.Generator().manual_seed(seed)
        rows, columns = g.grid(*self._latent)
        return torch.randn(2, g.num_layers, 1, FRAMES * rows * columns, g.dim, generator=random)

    def noise(self, seed: int) -> Tensor:
        """Of a chunk: [passes, B, F, C, H, W]."""
        shape = (self.passes, 1, FRAMES, self.generator.geometry.in_dim, *self._latent)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sharing_weights(generator: Generator) -> Generator:
    """Another generator with the same tensors."""
    return copy.deepcopy(generator, {id(p): p for p in generator.parameters()})


def in_bfloat16(generator: Generator) -> Generator:
    """The generator as cfgen loads it in bfloat16: matrices of the blocks alone are."""
    small = copy.deepcopy(generator)
    for name, parameter in small.named_parameters():
        if MATRICES.fullmatch(name):
            parameter.data = parameter.data.bfloat16()
    return small


def mini(passes: int) -> BenchSetup:
    """The model in the box."""
    config = storage.configured(7)
    model = OpenedModel(config.model)
    loaded = model.load(dtype=torch.float32, device=torch.device("cpu"))
    text = model.embed([storage.PROMPT])[storage.PROMPT]
    return BenchSetup(loaded.generator, text, *config.frame_size, passes)


def wan(passes: int) -> BenchSetup:
    """One layer of Wan2.1-1.3B's sizes with random weights, and a prompt of some tokens."""
    torch.manual_seed(0)
    sizes = Sizes(dim=1536, ffn_dim=8960, num_heads=12, num_layers=1)
    generator = Generator(sizes).requires_grad_(False).eval()
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    text = torch.randn(1, sizes.text_len, sizes.text_dim)
    text[:, PROMPT_TOKENS:] = 0
    return BenchSetup(generator, text, 832, 480, passes, whole=True)

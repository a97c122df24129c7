"""Released systems as their descriptions have them, written without cfgen: weights to latents.

One clip, one pass after another, everything in float64. A cache is a list of latent frames with the
keys of all layers before any rotation; each pass rotates all that it reads anew. Sources: Self
Gradient Forcing and SGF+ (README and launch scripts: sink, FIFO and current frames, top-aligned
positions, role of the memory expert), Causal Forcing++ (configs: step lists), Commit Forcing
(README: the commit pass reads the newest frames only, where they are).

Axis letters: F latent frames, P tokens per latent frame, N heads, D head dim, E model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]
Steps = tuple[float, ...]
FOUR: Steps = (1000, 750, 500, 250)


def top(frames: list[int], sink: int) -> list[int]:
    """Top-aligned: the sink counts up from 0, the rest ends at the newest frame, at most at 20."""
    held = len(frames)
    if held <= sink:
        return list(range(held))
    last = min(frames[-1], 21 - 1)
    behind = held - sink
    return list(range(sink)) + [last - behind + 1 + i for i in range(behind)]


def own(frames: list[int], _sink: int) -> list[int]:
    """Absolute: a frame's number."""
    return list(frames)


@dataclass(frozen=True)
class Released:
    """How a system makes a clip: `newest` is what a commit pass reads, None for everything."""

    chunk: int
    sink: int
    most: int
    place: Callable[[list[int], int], list[int]]
    steps: Steps = FOUR
    first: Steps | None = None
    newest: int | None = None

    def held(self, number: int) -> list[int]:
        """Frames in the cache while a chunk is made, its own included."""
        frames: list[int] = []
        for chunk in range(number + 1):
            frames += range(chunk * self.chunk, (chunk + 1) * self.chunk)
            while len(frames) > self.most:
                del frames[self.sink]
        return frames

    def read(self, number: int, *, commit: bool) -> list[tuple[int, int]]:
        """Frames and positions that a pass of a chunk reads."""
        frames = self.held(number)
        both = list(zip(frames, self.place(frames, self.sink), strict=True))
        if not commit or self.newest is None:
            return both
        return [(f, p) for f, p in both if f > frames[-1] - self.newest]

    def reads_of(
        self, number: int, cache: Mapping[int, Kept], *, commit: bool
    ) -> list[tuple[int, int]]:
        """The same where what is kept decides."""
        return self.read(number, commit=commit)

    def bias(self, frame: int, number: int, step: int) -> float:
        """What a denoising pass of a chunk adds to the scores of a frame."""
        return 0.0

    def sigmas(self, number: int) -> list[float]:
        """Noise levels of a chunk's denoising passes: timesteps warped with shift 5."""
        steps = self.first if number == 0 and self.first else self.steps
        return [5 * (s / 1000) / (1 + 4 * (s / 1000)) for s in steps]


@dataclass(frozen=True)
class Discounted(Released):
    """Recency Forcing: the sink and the `reads` newest frames, and a bias on older history."""

    reads: int = 18

    def read(self, number: int, *, commit: bool) -> list[tuple[int, int]]:
        frames = self.held(number)
        last = self.place(frames, self.sink)[-1]
        if commit and self.newest is not None:
            newest = [f for f in frames if f > frames[-1] - self.newest]
            return [(f, last - (frames[-1] - f)) for f in newest]
        sink, rest = frames[: self.sink], frames[self.sink :][-self.reads :]
        first = last - len(rest) + 1
        sunk = [(f, first - self.sink + i) for i, f in enumerate(sink)]
        if not rest:
            sunk = [(f, f) for f in sink]
        return sunk + [(f, first + i) for i, f in enumerate(rest)]

    def bias(self, frame: int, number: int, step: int) -> float:
        back = number - frame // self.chunk
        if frame < self.sink:
            return 0.0
        share = min(1.0, max(0, back - 1) / 4)
        return -4 * share ** (0.1 * 2 ** (step + 1)) if share else 0.0


@dataclass(frozen=True)
class Relaxed(Released):
    """Relax Forcing: two frames of sink, one of history, one of tail, all before the chunk."""

    def reads_of(
        self, number: int, cache: Mapping[int, Kept], *, commit: bool
    ) -> list[tuple[int, int]]:
        frames = self.held(number)
        past = frames[: -self.chunk]
        read = frames
        if len(past) > 2 + 1 + 1:
            middle = past[2:-1]
            half, sink, tail = len(middle) // 2, proto(cache, past[:2]), proto(cache, past[-1:])
            count = min(4, len(middle) - half)
            spread = torch.linspace(half, len(middle) - 1, count + 1, dtype=torch.float64)
            places = spread.long().unique()[:-1].tolist() if count > 1 else [half]
            keys = [proto(cache, [middle[place]]) for place in places]
            scores = torch.stack([key @ sink - 2 * (key @ tail) for key in keys])
            read = [*past[:2], middle[places[int(scores.argmax())]], past[-1]]
            read += frames[len(past) :]
        return [(f, frames[-1] + 1 - len(read) + i) for i, f in enumerate(read)]


def proto(cache: Mapping[int, Kept], frames: list[int]) -> Tensor:
    """The direction of the mean key of frames in the first layer: [D]."""
    keys = torch.cat([cache[frame].k[0] for frame in frames])
    return F.normalize(keys.mean(0).mean(0), dim=-1)


RELEASED = {
    "sgf": Released(3, 3, 3 + 6 + 3, top),
    "sgf-frame": Released(1, 4, 4 + 16 + 1, top),
    "sgf-plus": Released(3, 3, 3 + 6 + 3, top),
    "sgf-plus-frame": Released(1, 4, 4 + 16 + 1, top),
    "causal-forcing-plus-1step": Released(1, 0, 21, own, (1000,), FOUR),
    "causal-forcing-plus-2step": Released(1, 0, 21, own, (1000, 500), FOUR),
}


class Kept(NamedTuple):
    """A latent frame in the cache: keys and values of each layer, [P, N, D]."""

    k: list[Tensor]
    v: list[Tensor]


@dataclass
class Clip:
    """A clip under way.

    Args:
        system: how it is made.
        weights: of denoising passes, by Wan's names.
        writing: those of commit passes.
        heads: attention heads.
        text: [T, text width].
        noise: of (chunk, step), [F, C, H, W].
    """

    system: Released
    weights: Weights
    writing: Weights
    heads: int
    text: Tensor
    noise: Callable[[int, int], Tensor]
    cache: dict[int, Kept] = field(default_factory=dict)

    def chunk(self, number: int) -> Tensor:
        """The next chunk, [F, C, H, W]."""
        sigmas = self.system.sigmas(number)
        x = x0 = self.noise(number, 0).double()
        for step, sigma in enumerate(sigmas):
            read = self.system.reads_of(number, self.cache, commit=False)
            bias = [self.system.bias(frame, number, step) for frame, _ in read]
            flow, _ = self.run(self.weights, x, sigma, read, bias)
            x0 = x - sigma * flow
            if step + 1 < len(sigmas):
                after = sigmas[step + 1]
                x = (1 - after) * x0 + after * self.noise(number, step + 1).double()
        read = self.system.reads_of(number, self.cache, commit=True)
        _, made = self.run(self.writing, x0, 0.0, read)
        held = self.system.held(number)
        self.cache |= dict(zip(held[-self.system.chunk :], made, strict=True))
        self.cache = {frame: kept for frame, kept in self.cache.items() if frame in held}
        return x0

    def run(
        self,
        w: Weights,
        latents: Tensor,
        sigma: float,
        read: list[tuple[int, int]],
        bias: list[float] | None = None,
    ) -> tuple[Tensor, list[Kept]]:
        """A forward over a chunk: its flow, and its own keys and values."""
        frames, _, height, width = latents.shape
        rows, columns = height // 2, width // 2
        more = torch.tensor(bias or [0.0] * len(read), dtype=torch.float64)
        more = more.repeat_interleave(rows * columns)
        patches = F.unfold(latents, 2, stride=2).transpose(1, 2).flatten(0, 1)
        x = affine(patches, w["patch_embedding.weight"].flatten(1), w["patch_embedding.bias"])
        time = mlp(w, "time_embedding", sinusoid(1000 * sigma, w), F.silu)
        six = linear(w, "time_projection.1", F.silu(time)).view(6, -1)
        text = mlp(w, "text_embedding", self.text.double(), lambda y: F.gelu(y, approximate="tanh"))
        made = [Kept([], []) for _ in range(frames)]
        layers = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
        for layer in range(layers):
            b = {n.split(".", 2)[2]: t for n, t in w.items() if n.startswith(f"blocks.{layer}.")}
            shift1, scale1, gate1, shift2, scale2, gate2 = b["modulation"][0] + six
            y = plain_norm(x) * (1 + scale1) + shift1
            q, k = (
                rms(linear(b, f"self_attn.{n}", y), b[f"self_attn.norm_{n}.weight"]) for n in "qk"
            )
            q, k, v = (self.split(z, frames) for z in (q, k, linear(b, "self_attn.v", y)))
            for each, own_k, own_v in zip(made, k, v, strict=True):
                each.k.append(own_k)
                each.v.append(own_v)
            past = [(self.cache[frame], place) for frame, place in read[:-frames]]
            here = [place for _, place in read[-frames:]]
            keys = [(kept.k[layer], place) for kept, place in past] + list(
                zip(k, here, strict=True)
            )
            turned = torch.cat([turn(each, place, rows, columns) for each, place in keys])
            values = torch.cat([*(kept.v[layer] for kept, _ in past), *v])
            queries = torch.cat([turn(z, p, rows, columns) for z, p in zip(q, here, strict=True)])
            x = x + linear(b, "self_attn.o", attention(queries, turned, values, more)) * gate1
            y = F.layer_norm(x, x.shape[-1:], b["norm3.weight"], b["norm3.bias"], 1e-6)
            q = rms(linear(b, "cross_attn.q", y), b["cross_attn.norm_q.weight"])
            k = rms(linear(b, "cross_attn.k", text), b["cross_attn.norm_k.weight"])
            q, k, v = (self.split(z, 1)[0] for z in (q, k, linear(b, "cross_attn.v", text)))
            x = x + linear(b, "cross_attn.o", attention(q, k, v))
            y = plain_norm(x) * (1 + scale2) + shift2
            y = F.gelu(linear(b, "ffn.0", y), approximate="tanh")
            x = x + linear(b, "ffn.2", y) * gate2
        shift, scale = w["head.modulation"][0] + time
        out = linear(w, "head.head", plain_norm(x) * (1 + scale) + shift)
        out = out.view(frames, rows, columns, 2, 2, -1).permute(0, 5, 1, 3, 2, 4)
        return out.reshape(frames, -1, height, width), made

    def split(self, x: Tensor, frames: int) -> Tensor:
        """[F * P, E] to [F, P, N, D]."""
        return x.view(frames, x.shape[0] // frames, self.heads, -1)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return affine(x, w[f"{name}.weight"], w[f"{name}.bias"])


def mlp(w: Weights, name: str, x: Tensor, bend: Callable[[Tensor], Tensor]) -> Tensor:
    return linear(w, f"{name}.2", bend(linear(w, f"{name}.0", x)))


def plain_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain


def sinusoid(timestep: float, w: Weights) -> Tensor:
    half = w["time_embedding.0.weight"].shape[1] // 2
    angle = timestep / 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([torch.cos(angle), torch.sin(angle)])


def turn(x: Tensor, place: int, rows: int, columns: int) -> Tensor:
    """Rotate a frame's keys or queries [P, N, D] to its place in time, and its tokens in space."""
    pairs = x.shape[-1] // 2
    space = pairs // 3
    out = torch.empty_like(x)
    for token in range(rows * columns):
        row, column = divmod(token, columns)
        axes = ((place, pairs - 2 * space), (row, space), (column, space))
        angles = [at / 10000 ** (i / size) for at, size in axes for i in range(size)]
        for pair, angle in enumerate(angles):
            a, b = x[token, :, 2 * pair], x[token, :, 2 * pair + 1]
            out[token, :, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[token, :, 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Of [L, N, D] to [S, N, D], with a bias on scores: [L, E]."""
    scores = torch.einsum("lnd,snd->nls", q, k) / math.sqrt(q.shape[-1]) + bias
    return torch.einsum("nls,snd->lnd", torch.softmax(scores, -1), v).flatten(1)

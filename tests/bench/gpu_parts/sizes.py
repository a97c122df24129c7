"""The sizes that are measured, and the small ones that a rehearsal runs through the same code.

Axis letters: B batch, F latent frames of a chunk, P tokens per latent frame, L = F * P, N heads,
D head dim, C = N * D, S key tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One size of a latent frame: tokens as (rows, columns)."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Sizes:
    """A generator and what is measured of it.

    Attributes:
        frame: A latent frame at the usual resolution (480x832).
        large_frame: One at a larger one (720x1280).
        chunk: Latent frames denoised together.
        key_frames: Latent frames that are attended to, the chunk's own included.
        memories: Those of them that whole chunks are measured with.
        square: Side of the matrix product that serves as a ceiling.
        copied: Bytes read and written by the copy that serves as another.
        rounds: How often the contestants of a case take turns.
        round_s: Seconds a contestant is timed for in a round.
        sets: Input sets that are rotated, at least.
        cache: Bytes that input sets must outgrow together, several times the L2 cache.
        text: Tokens of the prompt before padding.
        chunks: Chunks of the end-to-end measurement.
        tiny_vae: Channels of the stages of the small decoder.
        wan_vae: Channels of the last stage of the exact decoder.
    """

    heads: int
    head_dim: int
    ffn: int
    layers: int
    frame: Frame
    large_frame: Frame
    chunk: int
    key_frames: tuple[int, ...]
    memories: tuple[int, ...]
    text_len: int
    text_dim: int
    text: int
    freq_dim: int
    square: int
    copied: int
    rounds: int
    round_s: float
    sets: int
    cache: int
    chunks: int
    tiny_vae: tuple[int, int, int, int]
    wan_vae: int

    @property
    def width(self) -> int:
        """Channels of the model."""
        return self.heads * self.head_dim


REAL = Sizes(
    heads=12,
    head_dim=128,
    ffn=8960,
    layers=30,
    frame=Frame(30, 52),
    large_frame=Frame(45, 80),
    chunk=3,
    # Slow memory compressed 16 times makes 9.75, rounded up: pages are whole frames.
    key_frames=(6, 10, 12, 15, 21, 24),
    memories=(12, 21),
    text_len=512,
    text_dim=4096,
    text=120,
    freq_dim=256,
    square=8192,
    copied=8_600_000_000,
    rounds=3,
    round_s=0.08,
    sets=3,
    cache=240_000_000,
    chunks=200,
    tiny_vae=(256, 128, 64, 64),
    wan_vae=96,
)
"""Wan2.1 1.3B in chunks of three latent frames."""

TINY = Sizes(
    heads=2,
    head_dim=32,
    ffn=96,
    layers=1,
    frame=Frame(3, 5),
    large_frame=Frame(4, 5),
    chunk=3,
    key_frames=(6,),
    memories=(6,),
    text_len=6,
    text_dim=16,
    text=4,
    freq_dim=16,
    square=64,
    copied=1 << 16,
    rounds=1,
    round_s=0.0,
    sets=1,
    cache=0,
    chunks=4,
    tiny_vae=(8, 8, 8, 8),
    wan_vae=8,
)
"""Everything small enough for a CPU and Triton's interpreter."""

"""Rolled out chunk by chunk, a clip is what one block-causal forward is, gradients included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from cfgen.memory.autograd import GraphCache
from cfgen.memory.page_pool import KVCache
from cfgen.memory.paged import PagedMemory
from cfgen.memory.protocols import Norms, Pass
from cfgen.memory.recency import RecencyTable
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.memory.slow_fast_release import ReleaseTable
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator, WanConfig
from cfgen.ops.reference import Rope, rotate, turns
from cfgen.ops.select import build_ops
from tests.strategies import Policy, geometries, memory_of, policies, random_generator, told_by

SMALL = WanConfig(
    dim=24, ffn_dim=20, num_heads=2, num_layers=2, in_dim=3, out_dim=3, text_len=4, text_dim=5
)


class WholeClip:
    """A view of a clip in one piece: a chunk sees itself and all chunks before it."""

    def __init__(self, frames: int, chunk: int, grid: tuple[int, int], head_dim: int) -> None:
        rope = Rope(head_dim)
        self._angles = (rope.temporal(range(frames))[:, None] + rope.spatial(grid)).flatten(0, 1)
        number = torch.arange(frames).repeat_interleave(grid[0] * grid[1]) // chunk
        self._mask = number[:, None] >= number[None]

    def attend(self, _layer: int, q: Tensor, k: Tensor, v: Tensor, norms: Norms) -> Tensor:
        here = turns(self._angles, q.dtype, q.device)
        q, k = (rms_norm(x, g.shape, g, norms.eps) for x, g in ((q, norms.q), (k, norms.k)))
        q, k, v = (x.unflatten(-1, (-1, 2 * here.shape[1])) for x in (q, k, v))
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, here), rotate(k, here), v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._mask)
        return out.transpose(1, 2).flatten(2)


class Clip:
    """Clean chunks, one noisy chunk after them, a prompt; all float64 unless told otherwise."""

    def __init__(
        self, g: WanConfig, *, chunk: int, chunks: int, dtype: torch.dtype = torch.float64
    ):
        self.geometry, self.chunk, self.chunks = g, chunk, chunks
        self.size = (2 * g.patch_size[1], 3 * g.patch_size[2])
        self.grid = g.grid(*self.size)
        noise = torch.Generator().manual_seed(chunk)
        shape = (2, chunk * (chunks + 1), g.in_dim, *self.size)
        self.x = torch.randn(shape, generator=noise, dtype=dtype)
        self.text = torch.randn(2, g.text_len, g.text_dim, generator=noise, dtype=dtype)
        self.sigma = torch.tensor([[0.7], [0.4]])

    def whole(self, generator: Generator) -> Tensor:
        """Flow of every frame: clean ones at sigma 0, the last chunk noisy."""
        frames = self.x.shape[1]
        view = WholeClip(frames, self.chunk, self.grid, self.geometry.head_dim)
        sigma = torch.zeros(2, frames)
        sigma[:, -self.chunk :] = self.sigma
        return generator(self.x, sigma, generator.condition(self.text), view)

    def rolled(self, generator: Generator, memory: PagedMemory) -> Tensor:
        """The same by commit passes and one denoising pass."""
        text = generator.condition(self.text)
        *clean, noisy = self.x.split(self.chunk, 1)
        flows = []
        for x in clean:
            view = memory.begin(self.chunk)
            generator(x * 0.5, 0.5, text, view.at(Pass(0)))
            flows.append(generator(x, 0.0, text, view.at(Pass(1, commit=True))))
            memory.commit(view)
        view = memory.begin(self.chunk)
        flows.append(generator(noisy, self.sigma, text, view.at(Pass(0))))
        return torch.cat(flows, 1)

    def memory(
        self, make, *, graph: bool = False, backend: str = "reference", admit=None
    ) -> PagedMemory:
        g = self.geometry
        tables = [make() for _ in range(g.num_layers)]
        pool: KVCache | GraphCache = GraphCache(g.num_layers)
        if not graph:
            shape = (2, self.grid[0] * self.grid[1], g.num_heads, g.head_dim)
            pool = KVCache(
                g.num_layers,
                tables[0].capacity + 1,
                shape,
                dtype=self.x.dtype,
                device=self.x.device,
            )
        rope, ops = Rope(g.head_dim), build_ops(backend)
        return memory_of(tables, pool, ops=ops, rope=rope, grid=self.grid, admit=admit)


@settings(deadline=None, max_examples=25)
@given(geometries(), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["reference", "torch"]))
def test_full_memory_is_one_block_causal_forward(
    geometry: WanConfig, chunk: int, chunks: int, backend: str
) -> None:
    generator = random_generator(geometry).double()
    clip = Clip(geometry, chunk=chunk, chunks=chunks)
    memory = clip.memory(lambda: WindowTable(clip.x.shape[1]), backend=backend)
    with torch.inference_mode():
        torch.testing.assert_close(
            clip.rolled(generator, memory), clip.whole(generator), rtol=1e-9, atol=1e-9
        )


def test_full_memory_is_one_block_causal_forward_in_float32() -> None:
    generator = random_generator(SMALL)
    clip = Clip(SMALL, chunk=3, chunks=4, dtype=torch.float32)
    memory = clip.memory(lambda: WindowTable(15), backend="torch")
    with torch.inference_mode():
        rolled, whole = clip.rolled(generator, memory), clip.whole(generator)
    assert float((rolled - whole).abs().max()) < 1e-5
    assert float(whole.std()) > 0.1


def test_a_chunk_depends_on_the_past_and_not_on_the_future() -> None:
    generator = random_generator(SMALL).double()
    clip = Clip(SMALL, chunk=2, chunks=3)
    with torch.inference_mode():
        before = clip.rolled(generator, clip.memory(lambda: WindowTable(8)))
        clip.x[:, 2:4] += 1
        after = clip.rolled(generator, clip.memory(lambda: WindowTable(8)))
    assert torch.equal(before[:, :2], after[:, :2])
    for start in (2, 4, 6):
        change = (before[:, start : start + 2] - after[:, start : start + 2]).abs().max()
        assert float(change) > 1e-3


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 4), st.integers(0, 5))
def test_window_as_long_as_the_clip_is_full_bit_for_bit(sink: int, spare: int) -> None:
    generator = random_generator(SMALL)
    clip = Clip(SMALL, chunk=2, chunks=3, dtype=torch.float32)
    with torch.inference_mode():
        full = clip.rolled(generator, clip.memory(lambda: WindowTable(8), backend="torch"))
        window = clip.memory(lambda: WindowTable(8 + spare, sink=sink), backend="torch")
        assert torch.equal(clip.rolled(generator, window), full)


@settings(deadline=None, max_examples=15)
@given(policies.filter(lambda policy: policy.name != "compressed"))  # see test_compressed.py
def test_training_pool_gives_what_the_render_pool_gives(policy: Policy) -> None:
    generator = random_generator(SMALL)
    clip = Clip(SMALL, chunk=policy.chunk, chunks=5, dtype=torch.float32)

    admit = told_by(lambda reference, keys: bool((keys - reference).mean() > 0))
    with torch.no_grad():
        rendered = clip.rolled(generator, clip.memory(policy.make, backend="torch", admit=admit))
        trained = clip.rolled(
            generator, clip.memory(policy.make, backend="torch", graph=True, admit=admit)
        )
    assert torch.equal(rendered, trained)


ALWAYS = told_by(lambda reference, keys: True)

TRAINED = {
    "full": lambda: WindowTable(9),
    "slow_fast": lambda: SlowFastTable(sink=3, slow=2, fast=6),
    "recency": lambda: RecencyTable(9, sink=3, reads=6, strength=2.0),
}


def test_gradients_are_those_of_the_block_causal_forward() -> None:
    generator = random_generator(SMALL).double()
    clip = Clip(SMALL, chunk=3, chunks=2)
    clip.x.requires_grad_(True)
    leaves = [clip.x, *generator.parameters()]
    rolled = clip.rolled(generator, clip.memory(lambda: WindowTable(9), graph=True))
    through_pages = torch.autograd.grad(rolled[:, -3:].square().sum(), leaves)
    at_once = torch.autograd.grad(clip.whole(generator)[:, -3:].square().sum(), leaves)
    for one, other in zip(through_pages, at_once, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert float(through_pages[0][:, :3].abs().max()) > 1e-3


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_committed_chunk(name: str) -> None:
    generator = random_generator(SMALL).double()
    clip = Clip(SMALL, chunk=3, chunks=2)
    clip.x.requires_grad_(True)
    rolled = clip.rolled(generator, clip.memory(TRAINED[name], graph=True, admit=ALWAYS))
    (gradient,) = torch.autograd.grad(rolled[:, -3:].square().sum(), clip.x)
    assert (gradient.abs().amax((0, 2, 3, 4)) > 1e-6).all()


def test_released_memory_reads_noisy_copies() -> None:
    """What a surprising denoising pass copied differs from what the commit pass would have left."""
    generator = random_generator(SMALL).double()
    clip = Clip(SMALL, chunk=2, chunks=4)
    sizes = {"sink": 2, "slow": 2, "fast": 4}
    with torch.inference_mode():
        noisy = clip.rolled(generator, clip.memory(lambda: ReleaseTable(**sizes), admit=ALWAYS))
        clean = clip.rolled(generator, clip.memory(lambda: SlowFastTable(**sizes), admit=ALWAYS))
    assert torch.equal(noisy[:, :4], clean[:, :4])
    assert float((noisy[:, -2:] - clean[:, -2:]).abs().max()) > 1e-4

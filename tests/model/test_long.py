"""No wall at 1024 latent frames, where the peers' tables of angles end."""

from __future__ import annotations

import pytest
import torch

from cfgen.memory.page_pool import KVCache
from cfgen.memory.protocols import Pass
from cfgen.memory.window import WindowTable
from cfgen.model.generator import WanConfig
from cfgen.ops.reference import Rope
from tests.strategies import memory_of, random_generator

SMALL = WanConfig(
    dim=12, ffn_dim=8, num_heads=1, num_layers=1, in_dim=2, out_dim=2, text_len=2, text_dim=3
)
CHUNKS = 1050 // 3


@pytest.mark.parametrize("relative", [False, True])
def test_a_clip_goes_on_past_1024_latent_frames(relative: bool) -> None:
    generator = random_generator(SMALL)
    noise = torch.Generator().manual_seed(0)
    pool = KVCache(1, 7, (1, 1, 1, 12), dtype=torch.float32, device=torch.device("cpu"))
    table = WindowTable(6, sink=1, positions="relative" if relative else "absolute")
    memory = memory_of([table], pool, rope=Rope(12), grid=(1, 1))
    chunk = torch.randn(1, 3, 2, 2, 2, generator=noise)
    flows = []
    with torch.inference_mode():
        text = generator.condition(torch.randn(1, 2, 3, generator=noise))
        for _ in range(CHUNKS):
            view = memory.begin(3).at(Pass(0, commit=True))
            flows.append(generator(chunk, 0.0, text, view))
            memory.commit(view)
    assert memory.frames(0)[-1] == 3 * CHUNKS - 1 > 1024
    assert all(bool(torch.isfinite(flow).all()) for flow in flows)
    positions = [placed.position for placed in table.visible_slots(Pass(0), False)]
    assert positions[-1] == (5 if relative else 3 * CHUNKS - 1)
    # The same chunk again and again: once the window is full, the relative policy sees no change.
    drift = float((flows[-1] - flows[10]).abs().max())
    assert (drift < 1e-5) == relative

"""Weights that wait elsewhere come as they are stored and change no bit of what is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.lora.apply import apply_lora, open_lora
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.memory.page_pool import KVCache
from cfgen.memory.protocols import Pass
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator
from cfgen.model.quantized import QuantizedLinear
from cfgen.ops.reference import Rope
from cfgen.pipeline.cpu_offload import offload_blocks
from tests.checkpoint import tiny
from tests.checkpoint.lora_files import PEFT, named, saved
from tests.strategies import memory_of

CPU, META = torch.device("cpu"), torch.device("meta")
LAYOUTS = (
    "native_bf16",
    "fp8_plain_e4m3",
    "fp8_scaled_kijai",
    "comfyquant_int8",
    "comfyquant_int8_convrot",
    "comfyquant_mxfp8",
    "comfyquant_nvfp4",
    "lightx2v_nvfp4",
    "quanto_int8",
    "gguf_Q8_0",
    "gguf_Q4_K",
    "gguf_IQ4_XS",
)

Write = Callable[[str], tiny.Tiny]


def rolled(generator: Generator, chunks: int = 2) -> Tensor:
    """Flows of all passes over chunks of noise, on the CPU."""
    g, device = generator.geometry, generator.device
    size = (2 * g.patch_size[1], 2 * g.patch_size[2])
    shape = (1, 4, g.num_heads, g.head_dim)
    pool = KVCache(g.num_layers, 7, shape, dtype=torch.float32, device=device)
    tables = [WindowTable(6) for _ in range(g.num_layers)]
    memory = memory_of(tables, pool, rope=Rope(g.head_dim), grid=g.grid(*size))
    noise, flows = torch.Generator().manual_seed(0), []
    with torch.inference_mode():
        text = torch.randn(1, g.text_len, g.text_dim, generator=noise).to(device)
        prompt = generator.condition(text)
        for _ in range(chunks):
            view = memory.begin(3)
            x = torch.randn(1, 3, g.in_dim, *size, generator=noise).to(device)
            for pass_ in (Pass(0), Pass(1, commit=True)):
                flows.append(generator(x, 0.5, prompt, view.at(pass_)))
            memory.commit(view)
    return torch.stack(flows).cpu()


def held(generator: Generator) -> dict[str, torch.device]:
    """Where each tensor of the blocks' matrices lies."""
    blocks = generator.blocks
    tensors = [*blocks.named_parameters(), *blocks.named_buffers()]
    small = ("norm_q.weight", "norm_k.weight", "norm3.weight", "norm3.bias", "modulation")
    return {name: t.device for name, t in tensors if not name.endswith(small)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_wait_compute_the_same_bits(
    tiny_file: Write,
    layout: str,
    dtype: torch.dtype,
) -> None:
    path = tiny_file(layout).path
    here, there = (load_generator(path, dtype=dtype) for _ in range(2))
    expected = rolled(here)
    offload_blocks(there, CPU)
    assert torch.equal(rolled(there), expected)
    assert expected.std() > 0.01
    quantized = [m for m in there.blocks.modules() if isinstance(m, QuantizedLinear)]
    assert bool(quantized) == (layout != "native_bf16")


@pytest.mark.parametrize("layout", ["native_bf16", "comfyquant_int8", "gguf_Q4_K"])
def test_no_weight_of_a_block_stays_after_its_pass(
    tiny_file: Write,
    layout: str,
) -> None:
    generator = load_generator(tiny_file(layout).path)
    outside = {n: p for n, p in generator.named_parameters() if not n.startswith("blocks.")}
    offload_blocks(generator, CPU)
    for _ in range(2):
        assert set(held(generator).values()) == {META}
        rolled(generator, chunks=1)
    assert set(held(generator).values()) == {META}
    for name, parameter in outside.items():
        assert generator.get_parameter(name) is parameter
    assert generator.device == CPU


@pytest.mark.parametrize("layout", ["native_bf16", "comfyquant_int8"])
def test_loras_wait_with_their_blocks(
    tiny_file: Write,
    layout: str,
    tmp_path,
) -> None:
    noise = torch.Generator().manual_seed(1)
    shapes = ((2, tiny.DIM), (tiny.DIM, 2))
    down, up = (torch.randn(shape, generator=noise) for shape in shapes)
    pairs = {"blocks.0.self_attn.q": (down, up)}
    lora = open_lora(saved(named(pairs, lambda name: name, *PEFT), tmp_path))
    here, there = (load_generator(tiny_file(layout).path) for _ in range(2))
    without = rolled(here)
    for generator in (here, there):
        apply_lora(generator, lora, 0.5)
    expected = rolled(here)
    assert not torch.equal(expected, without)
    offload_blocks(there, CPU)
    assert torch.equal(rolled(there), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_that_wait_for_a_gpu_compute_the_same_bits(
    tiny_file: Write,
    layout: str,
) -> None:
    path, gpu = tiny_file(layout).path, torch.device("cuda")
    expected = rolled(load_generator(path, device=gpu))
    there = load_generator(path)
    offload_blocks(there, gpu)
    assert there.device.type == "cuda"
    assert torch.equal(rolled(there), expected)
    assert set(held(there).values()) == {META}

"""GGML's block formats decode to what gguf-py decodes, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from cfgen.ops.quant import ggml
from cfgen.ops.quant.weights import GgmlWeight, nbytes
from tests.checkpoint.tiny import HALVES, random_blocks

KINDS = sorted(ggml.FORMATS)


def blocks_of(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Rows of blocks: random bits where gguf-py cannot quantize, else of random numbers."""
    if Kind[kind] in HALVES:
        return random_blocks(rows, columns, Kind[kind], seed)
    numbers = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return gguf.quants.quantize(numbers, Kind[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_decode_as_in_gguf(kind: str) -> None:
    for rows, seed in ((1, 1), (63, 2)):
        blocks = blocks_of(kind, rows, 512, seed)
        wanted = gguf.quants.dequantize(blocks, Kind[kind])
        weight = GgmlWeight(torch.from_numpy(blocks), kind)
        assert weight.shape == (rows, 512)
        assert weight.format == kind
        assert np.array_equal(weight.dequantize(torch.float32).numpy(), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_any_bits_decode_as_in_gguf(kind: str) -> None:
    """Also scales that are huge, tiny, negative, endless or no numbers."""
    layout = ggml.FORMATS[kind]
    noise = np.random.default_rng(3)
    blocks = noise.integers(0, 256, (2000, layout.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(blocks, Kind[kind])
    found = layout.decode(torch.from_numpy(blocks)).numpy()
    assert np.array_equal(found, wanted.reshape(found.shape), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_gguf(kind: str) -> None:
    layout = ggml.FORMATS[kind]
    assert (layout.numbers, layout.nbytes) == gguf.GGML_QUANT_SIZES[Kind[kind]]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_rows_of_the_whole(kind: str) -> None:
    weight = GgmlWeight(torch.from_numpy(blocks_of(kind, 7, 256)), kind)
    index = torch.tensor([6, 0, 0, 3])
    found = weight.rows(index)
    assert found.shape == (4, 256)
    assert torch.equal(found.dequantize(torch.float32), weight.dequantize(torch.float32)[index])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_weight_is_rounded_once_from_float32(dtype: torch.dtype) -> None:
    weight = GgmlWeight(torch.from_numpy(blocks_of("Q4_K", 5, 256)), "Q4_K")
    found = weight.dequantize(dtype)
    assert found.dtype == dtype
    assert torch.equal(found, weight.dequantize(torch.float32).to(dtype))


def test_a_weight_takes_the_bytes_of_its_blocks() -> None:
    blocks = torch.from_numpy(blocks_of("Q6_K", 4, 512))
    assert nbytes(GgmlWeight(blocks, "Q6_K")) == 4 * 2 * 210
    assert nbytes(torch.zeros(3, dtype=torch.bfloat16)) == 6

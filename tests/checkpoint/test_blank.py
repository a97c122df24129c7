"""Zeros where training leaves none: a file that stopped half-way in its full size is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.formats.gguf import GgufFile
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.formats.safetensors import SafetensorsFile
from cfgen.checkpoint.inspect.inspect import inspect
from cfgen.checkpoint.lora.apply import apply_lora, open_lora
from cfgen.checkpoint.networks.blank import blank
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.errors import CheckpointError
from tests.checkpoint import tiny
from tests.checkpoint.conftest import SMALL
from tests.checkpoint.lora_files import saved
from tests.strategies import random_generator

TinyFile = Callable[[str], tiny.Tiny]
LAYOUTS = (
    "native_bf16",
    "native_fp32",
    "fp8_plain_e4m3",
    "fp8_scaled_kijai",
    "comfyquant_int8_convrot",
    "comfyquant_nvfp4",
    "comfyquant_mxfp8",
    "lightx2v_nvfp4",
    "quanto_int8",
    "torchao_fp8",
    "gguf_Q8_0",
    "gguf_Q4_K",
    "gguf_Q2_K",
)


def hollowed(file: tiny.Tiny, folder: Path, start: float, end: float = 1.0) -> Path:
    """The file with zeros from a fraction of its data to another, as if never written there."""
    opened = open_container(file.path)
    assert isinstance(opened, SafetensorsFile | GgufFile)
    first = min(opened.offsets.values())
    content = bytearray(file.path.read_bytes())
    place, stop = (first + int((len(content) - first) * part) for part in (start, end))
    content[place:stop] = bytes(stop - place)
    path = folder / file.path.name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("start", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_file_that_stopped_is_refused(
    layout: str, start: float, tiny_file: TinyFile, tmp_path: Path
) -> None:
    path = hollowed(tiny_file(layout), tmp_path, start)
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    assert caught.value.hint


@pytest.mark.parametrize("layout", ["native_bf16", "fp8_scaled_kijai", "gguf_Q8_0"])
def test_hole_is_refused(layout: str, tiny_file: TinyFile, tmp_path: Path) -> None:
    path = hollowed(tiny_file(layout), tmp_path, 0.4, 0.5)
    with pytest.raises(CheckpointError, match="no training leaves"):
        load_generator(path)


def test_inspect_tells_of_zeros(tiny_file: TinyFile, tmp_path: Path) -> None:
    path = hollowed(tiny_file("native_bf16"), tmp_path, 0.7)
    told = inspect(path, digests=False, values=True).warnings
    assert any("holds one number" in line and "render refuses" in line for line in told)
    whole = inspect(tiny_file("native_bf16").path, digests=False, values=True).warnings
    assert not any("holds one number" in line for line in whole)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def with_rows(weight: Tensor, rows: slice, value: float = 0.0) -> Tensor:
    weight[rows] = value
    return weight


def with_end(weight: Tensor) -> Tensor:
    weight.view(-1)[-100:] = 0
    return weight


MATRIX = "blocks.0.ffn.0.weight"
BLANK: dict[str, tuple[str, Tensor]] = {
    "all": (MATRIX, torch.zeros(64, 128)),
    "all ones": (MATRIX, torch.ones(64, 128)),
    "tail": (MATRIX, with_rows(noise(64, 128), slice(50, 64))),
    "last row": (MATRIX, with_rows(noise(64, 128), slice(63, 64))),
    "part of the last row": (MATRIX, with_end(noise(64, 128))),
    "one row": (MATRIX, with_rows(noise(64, 128), slice(3, 4), 0.25)),
    "half precision": (MATRIX, with_rows(noise(64, 128), slice(3, 9)).half()),
    "fp8": (MATRIX, with_rows(noise(64, 128), slice(40, 64)).to(torch.float8_e4m3fn)),
    "norm": ("blocks.0.norm3.weight", torch.zeros(64)),
    "modulation": ("blocks.0.modulation", torch.zeros(1, 6, 64)),
    "half of a modulation": ("blocks.0.modulation", with_rows(noise(6, 64), slice(3, 6))[None]),
    "convolution": ("patch_embedding.weight", torch.zeros(16, 16, 1, 2, 2)),
    "tail of a convolution": ("conv.weight", with_rows(noise(16, 8, 3, 3, 3), slice(8, 16))),
    "half of a table": ("shared.weight", with_rows(noise(64, 128), slice(30, 64))),
}

SOUND: dict[str, tuple[str, Tensor]] = {
    "noise": (MATRIX, noise(64, 128)),
    "bias": ("blocks.0.ffn.0.bias", torch.zeros(64)),
    "norm of ones": ("blocks.0.norm3.weight", torch.ones(64)),
    "bias of a norm": ("blocks.0.norm3.bias", torch.zeros(64)),
    "some zeros": (MATRIX, noise(64, 128).relu()),
    "rows that begin with zeros": (MATRIX, torch.cat([torch.zeros(64, 16), noise(64, 16)], 1)),
    "a row too small for fp8": (
        MATRIX,
        with_rows(noise(64, 128), slice(3, 4), 1e-6).to(torch.float8_e4m3fn),
    ),
    "a dead filter": ("decoder.1.weight", with_rows(noise(16, 8, 3, 3), slice(15, 16))),
    "spare rows of a table": ("shared.weight", with_rows(noise(64, 128), slice(50, 64))),
    "one number": ("scale", torch.tensor(0.0)),
    "few columns": ("a.weight", torch.zeros(2, 3)),
}


@pytest.mark.parametrize("kind", BLANK)
def test_what_no_training_leaves_is_found(kind: str) -> None:
    assert blank(*BLANK[kind])


@pytest.mark.parametrize("kind", SOUND)
def test_what_training_may_leave_is_let_pass(kind: str) -> None:
    assert blank(*SOUND[kind]) is None


def test_lora_whose_first_factor_is_zero_is_refused(tmp_path: Path) -> None:
    name = "blocks.0.self_attn.q.lora"
    pair = {f"{name}_A.weight": torch.zeros(3, 12), f"{name}_B.weight": torch.ones(12, 3)}
    with pytest.raises(CheckpointError, match="is zero, as no training leaves it"):
        apply_lora(random_generator(SMALL), open_lora(saved(pair, tmp_path)), 1.0)

"""What ComfyUI's layout calls a weight."""

from __future__ import annotations

import torch

from cfgen.checkpoint.quant import comfy
from cfgen.ops.quant.weights import Fp4Weight, ScaledWeight
from tests.checkpoint.conftest import marker


def test_a_marker_keeps_what_follows_on_whole_words() -> None:
    told = comfy.marker({"format": "nvfp4"})
    assert len(told) % 8 == 0
    assert bytes(told.tolist()).startswith(bytes(marker(format="nvfp4").tolist()))


def test_blocks_that_are_not_square_have_no_word() -> None:
    values = torch.zeros(64, 128, dtype=torch.int8)
    assert comfy.settings_of(ScaledWeight(values, torch.ones(2, 2))) is None
    assert comfy.settings_of(ScaledWeight(values, torch.ones(2, 4))) == {
        "format": "int8_blockwise",
        "group_size": 32,
    }
    assert comfy.settings_of(ScaledWeight(values, torch.ones(2, 4), rotation=64)) is None
    packed = Fp4Weight(values.view(torch.uint8), torch.ones(64, 16), torch.ones(1))
    assert comfy.settings_of(packed) == {"format": "nvfp4"}

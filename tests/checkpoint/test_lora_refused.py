"""LoRAs that are refused: by what they are, or by the generator they do not fit; none half done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.lora.apply import apply_lora, open_lora
from cfgen.errors import CheckpointError
from tests.checkpoint.conftest import SMALL
from tests.checkpoint.lora_files import assert_same, saved
from tests.strategies import random_generator

Q = "diffusion_model.blocks.0.self_attn.q"
PAIR = {f"{Q}.lora_A.weight": torch.ones(3, 12), f"{Q}.lora_B.weight": torch.ones(12, 3)}

REFUSED_FILES = {
    "loha": ({f"{Q}.hada_w1_a": torch.ones(3)}, "is no plain LoRA but LoHa"),
    "lokr": ({f"{Q}.lokr_w1": torch.ones(3)}, "is no plain LoRA but LoKr"),
    "dora": (PAIR | {f"{Q}.dora_scale": torch.ones(12)}, "is no plain LoRA but DoRA"),
    "dora of peft": (
        PAIR | {f"{Q}.lora_magnitude_vector.weight": torch.ones(12)},
        "is no plain LoRA but DoRA",
    ),
    "oft": ({f"{Q}.oft_blocks": torch.ones(3)}, "is no plain LoRA but OFT"),
    "boft": ({f"{Q}.boft_R": torch.ones(3)}, "is no plain LoRA but BOFT"),
    "tucker": (
        PAIR | {f"{Q}.lora_mid.weight": torch.ones(3)},
        "is no plain LoRA but LoCon in Tucker form",
    ),
    "text encoder": (
        PAIR | {"lora_te_encoder_block_0_layer_0.lora_down.weight": torch.ones(3, 4)},
        "also changes a text encoder (lora_te_encoder",
    ),
    "text encoder of diffusers": (
        PAIR | {"text_encoder.block.0.q.lora_A.weight": torch.ones(3, 4)},
        "also changes a text encoder (text_encoder.block",
    ),
    "down alone": ({f"{Q}.lora_A.weight": torch.ones(3, 12)}, "holds half of a pair"),
    "up alone": ({f"{Q}.lora_up.weight": torch.ones(12, 3)}, "holds half of a pair"),
    "alpha alone": (PAIR | {"head.head.alpha": torch.ones(1)}, "head.head.alpha is there"),
    "ranks": (PAIR | {f"{Q}.lora_B.weight": torch.ones(12, 4)}, "no factors [r, K] and [N, r]"),
    "no rank": (
        {f"{Q}.lora_A.weight": torch.ones(0, 12), f"{Q}.lora_B.weight": torch.ones(12, 0)},
        "no factors [r, K] and [N, r]",
    ),
    "one axis": (PAIR | {f"{Q}.lora_A.weight": torch.ones(12)}, "no factors [r, K] and [N, r]"),
    "int8": (
        PAIR | {f"{Q}.lora_A.weight": torch.ones(3, 12, dtype=torch.int8)},
        "is int8; tensors of a LoRA must be floats",
    ),
    "scaled": (
        PAIR | {f"{Q}.lora_A.weight_scale": torch.ones(1)},
        f"mean nothing in a LoRA: {Q}.lora_A.weight_scale",
    ),
    "bias of down": (
        PAIR | {f"{Q}.lora_A.bias": torch.ones(3)},
        f"mean nothing in a LoRA: {Q}.lora_A.bias",
    ),
    "whole weights": (
        PAIR | {f"{i}.weight": torch.ones(3) for i in range(7)},
        "mean nothing in a LoRA: 0.weight, 1.weight, 2.weight, 3.weight, 4.weight and 2 more",
    ),
    "twice": (
        PAIR | {f"{Q}.lora_down.weight": torch.ones(3, 12)},
        "holds the same part of a LoRA twice",
    ),
    "twice, normalized otherwise": (
        PAIR | {"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.ones(3, 12)},
        "holds the same part of a LoRA twice",
    ),
    "model": (
        {"blocks.0.self_attn.q.weight": torch.ones(3), "head.modulation": torch.ones(3)},
        "holds no LoRA: none of its 2 tensors (blocks.0.self_attn.q.weight, head.modulation, ...)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_FILES)
def test_file_that_is_no_plain_lora_is_refused(kind: str, tmp_path: Path) -> None:
    tensors, reason = REFUSED_FILES[kind]
    path = saved(tensors, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_lora(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def pair_of(layer: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {
        f"{layer}.lora_A.weight": torch.ones(3, columns),
        f"{layer}.lora_B.weight": torch.ones(rows, 3),
    }


NAN = torch.full((12, 3), torch.nan)
REFUSED = {
    "no such layer": (
        PAIR | pair_of("blocks.7.ffn.0", 10, 12),
        "no place for blocks.7.ffn.0.lora_A.weight, blocks.7.ffn.0.lora_B.weight",
    ),
    "no bias": (PAIR | {"blocks.0.self_attn.norm_q.diff_b": torch.ones(12)}, "norm_q.diff_b"),
    "image branch": (
        PAIR | pair_of("diffusion_model.blocks.0.cross_attn.k_img", 12, 12),
        "does not fit: it was trained on an image-to-video model of Wan; the generator has no "
        "place for diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight",
    ),
    "image embedding": (
        PAIR | pair_of("diffusion_model.img_emb.proj.1", 12, 12),
        "it was trained on an image-to-video model of Wan",
    ),
    "image branch of diffusers": (
        PAIR | pair_of("transformer.blocks.0.attn2.add_k_proj", 12, 12),
        "it was trained on an image-to-video model of Wan",
    ),
    "vace": (
        PAIR | pair_of("diffusion_model.vace_blocks.0.self_attn.q", 12, 12),
        "it was trained on a VACE model of Wan",
    ),
    "other width": (
        pair_of(Q, 5120, 5120) | pair_of("diffusion_model.blocks.9.ffn.0", 13824, 5120),
        "is made for a model that is 5120 (Wan 14B) wide, the generator is 12 wide",
    ),
    "other shape": (
        PAIR | pair_of("blocks.0.ffn.2", 12, 9),
        "does not fit: blocks.0.ffn.2.lora_A.weight [3, 9] for blocks.0.ffn.2 [12, 10]",
    ),
    "factors of a norm": (PAIR | pair_of("blocks.0.norm3", 12, 1), "for blocks.0.norm3 [12]"),
    "difference of another shape": (
        PAIR | {"blocks.0.diff_m": torch.ones(6, 12)},
        "blocks.0.diff_m [6, 12] for blocks.0.modulation [1, 6, 12]",
    ),
    "two names of a layer": (
        PAIR | pair_of("blocks.0.attn1.to_q", 12, 12),
        "changes blocks.0.self_attn.q twice, as ",
    ),
    "not finite": (
        PAIR | pair_of("head.head", 12, 12) | {"head.head.lora_B.weight": NAN},
        "head.head.lora_B.weight holds numbers that are not finite",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_lora_that_does_not_fit_changes_nothing(kind: str, tmp_path: Path) -> None:
    base = random_generator(SMALL)
    tensors, reason = REFUSED[kind]
    lora = open_lora(saved(tensors, tmp_path))
    with pytest.raises(CheckpointError) as caught:
        apply_lora(base, lora, 1)
    assert reason in caught.value.message
    assert str(lora.file.path) in caught.value.message
    assert_same(base, random_generator(SMALL).state_dict(), atol=0)

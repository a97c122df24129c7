"""Each setting of PEFT's that is accepted gives PEFT's own sum; needs peft, which cfgen does not.

`pip install peft` and run this file to prove the list in `lora_settings` against a new version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.lora.apply import apply_lora, open_lora
from cfgen.checkpoint.lora.settings import APPLIED, VALUES, WITHOUT_EFFECT
from cfgen.errors import CheckpointError
from tests.checkpoint.conftest import SMALL
from tests.checkpoint.lora_files import assert_same
from tests.strategies import random_generator

pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = ["self_attn.q", "ffn.0", "head.head"]

SAME: dict[str, dict[str, Any]] = {
    "defaults": {},
    "alpha": {"lora_alpha": 32, "r": 4},
    "rank-stabilised": {"use_rslora": True, "r": 4, "lora_alpha": 6},
    "ranks by layer": {"rank_pattern": {"ffn.0": 2}, "r": 5, "lora_alpha": 6},
    "ranks by layer, stabilised": {"rank_pattern": {"q": 2}, "r": 5, "use_rslora": True},
    "bias of up": {"lora_bias": True, "lora_alpha": 4},
    "gaussian start": {"init_lora_weights": "gaussian"},
    "orthogonal start": {"init_lora_weights": "orthogonal", "r": 4},
    "random start": {"init_lora_weights": False},
    "dropout": {"lora_dropout": 0.3},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "blocks", "r": 2},
    "excluded": {"exclude_modules": ["blocks.0.ffn.0"]},
    "group size without QALoRA": {"qalora_group_size": 32},
    "task": {"task_type": "FEATURE_EXTRACTION", "revision": "main"},
}
"""Settings that are accepted."""

OTHER: dict[str, dict[str, Any]] = {
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, fast": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "DoRA": {"use_dora": True},
    "alpha by layer": {"alpha_pattern": {"ffn.0": 3}},
    "biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only"},
    "whole layers": {"modules_to_save": ["text_embedding.0"], "target_modules": ["self_attn.q"]},
}
"""Settings that are refused; each of them gives another sum."""


def trained(folder: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Save an adapter with random factors; returns the weights that PEFT merges it to."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    config = peft.LoraConfig(**{"target_modules": TARGETS, **settings})
    model = peft.get_peft_model(random_generator(SMALL), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif parameter.requires_grad:
            parameter.data += 0.1
    model.save_pretrained(str(folder))
    found: dict[str, Tensor] = model.merge_and_unload().state_dict()
    return found


@pytest.mark.parametrize("kind", SAME)
def test_setting_that_is_accepted_gives_pefts_sum(kind: str, tmp_path: Path) -> None:
    wanted = trained(tmp_path, SAME[kind])
    base = random_generator(SMALL)
    apply_lora(base, open_lora(tmp_path / "adapter_model.safetensors"), 1.0)
    assert_same(base, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", OTHER)
def test_setting_that_changes_the_sum_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    trained(tmp_path, OTHER[kind])
    with pytest.raises(CheckpointError) as caught:
        open_lora(tmp_path / "adapter_model.safetensors")
    told = (next(iter(OTHER[kind])), "is no plain LoRA but DoRA", "to put in the place of")
    assert any(words in caught.value.message for words in told)


def test_every_setting_of_peft_was_looked_at() -> None:
    """A setting that is neither named nor off by default would refuse every file of PEFT's."""
    peft = pytest.importorskip("peft")
    for key, value in peft.LoraConfig().to_dict().items():
        value = getattr(value, "value", value)
        assert key in WITHOUT_EFFECT | APPLIED or value in (*VALUES.get(key, ()), None, False, {})

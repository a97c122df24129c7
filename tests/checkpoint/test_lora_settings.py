"""PEFT's settings: those that are known to leave the sum alone or are applied, and no others.

`test_lora_peft` proves the first table against PEFT where that is installed; here its sums are
worked out by the formula.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.lora.apply import apply_lora, open_lora
from cfgen.errors import CheckpointError
from tests.checkpoint.conftest import SMALL
from tests.checkpoint.lora_files import saved
from tests.strategies import random_generator

R, ALPHA = 3, 6
Q = "blocks.0.self_attn.q"
NOISE = torch.randn(R, 12, generator=torch.Generator().manual_seed(1))
PAIR = {"lora_A.weight": NOISE, "lora_B.weight": NOISE.T.contiguous()}
PRODUCT = NOISE.T @ NOISE

BASIC = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA}

ACCEPTED: dict[str, tuple[dict[str, object], float]] = {
    "nothing else": ({}, ALPHA / R),
    "rank-stabilised": ({"use_rslora": True}, ALPHA / R**0.5),
    "ranks by layer": ({"r": 16, "rank_pattern": {"self_attn.q": R}}, ALPHA / R),
    "biases of up": ({"lora_bias": True}, ALPHA / R),
    "starts that keep the base": ({"init_lora_weights": True}, ALPHA / R),
    "gaussian": ({"init_lora_weights": "gaussian"}, ALPHA / R),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, ALPHA / R),
    "eva": ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "whiten": True}}, ALPHA / R),
    "config of a start that was not taken": ({"corda_config": {"corda_method": "kpm"}}, ALPHA / R),
    "off": ({"use_dora": False, "alpha_pattern": {}, "modules_to_save": None}, ALPHA / R),
    "new and off": ({"some_new_config": None, "use_newer": False}, ALPHA / R),
    "layers": ({"target_modules": ["q"], "exclude_modules": "head", "revision": "x"}, ALPHA / R),
    "training": ({"lora_dropout": 0.1, "inference_mode": True, "task_type": "X"}, ALPHA / R),
}

REFUSED: dict[str, dict[str, object]] = {
    **{
        f"start {start}": {"init_lora_weights": start}
        for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "mica", "x")
    },
    "loftq": {"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "loftq"},
    "kasa": {"kasa_config": {"beta": 0.1}},
    "alora": {"alora_invocation_tokens": [1, 2]},
    "replication": {"layer_replication": [[0, 2], [1, 2]]},
    "dora": {"use_dora": True},
    "qalora": {"use_qalora": True},
    "alphas": {"alpha_pattern": {"q": 1}},
    "biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only"},
    "whole layers": {"modules_to_save": ["head.head"]},
    "tokens": {"trainable_token_indices": [1]},
    "parameters": {"target_parameters": ["modulation"]},
    "transposed": {"fan_in_fan_out": True},
    "velora": {"velora_config": {"num_groups": 4}},
    "monte carlo": {"monteclora_config": {"x": 1}},
    "blocks": {"use_bdlora": {"nblocks": 2}},
    "arrows": {"arrow_config": {"top_k": 3}},
    "tied": {"ensure_weight_tying": True},
    "megatron": {"megatron_config": {"x": 1}},
    "unheard-of": {"use_tomorrow": True},
    "unheard-of number": {"tomorrow": 3},
    "another method": {"peft_type": "VERA"},
    "eva's unknown": {"init_lora_weights": "eva", "eva_config": {"tomorrow": 1}},
}


def written(place: str, folder: Path, settings: dict[str, object], more: dict[str, Tensor]) -> Path:
    """The pair with settings beside it, in its header, or beside it with other names."""
    told = {**BASIC, **settings}
    start = "transformer." if place == "header" else "base_model.model."
    tensors = {f"{start}{Q}.{end}": tensor for end, tensor in (PAIR | more).items()}
    if place == "header":
        named = {f"transformer.{key}": value for key, value in told.items()}
        return saved(tensors, folder, lora_adapter_metadata=json.dumps(named))
    (folder / "adapter_config.json").write_text(json.dumps(told))
    path = saved(tensors, folder)
    return path.rename(folder / "adapter_model.safetensors") if place == "adapter" else path


PLACES = ("beside", "header", "adapter")


def own_folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


@pytest.mark.parametrize("kind", ACCEPTED)
def test_setting_that_is_known_gives_the_sum(kind: str, tmp_path: Path) -> None:
    for place in PLACES:
        gives_the_sum(kind, place, own_folder(tmp_path, place))


def gives_the_sum(kind: str, place: str, tmp_path: Path) -> None:
    settings, scale = ACCEPTED[kind]
    bias = {"lora_B.bias": torch.ones(12)} if settings.get("lora_bias") else {}
    base = random_generator(SMALL)
    layer = base.get_submodule(Q)
    assert isinstance(layer, torch.nn.Linear)
    weight, before = layer.weight + scale * PRODUCT, layer.bias + (scale if bias else 0)
    apply_lora(base, open_lora(written(place, tmp_path, settings, bias)), 1.0)
    torch.testing.assert_close(layer.weight, weight)
    torch.testing.assert_close(layer.bias, before)


@pytest.mark.parametrize("kind", REFUSED)
def test_any_other_setting_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    for place, own in itertools.product(PLACES, (False, True)):
        is_refused_by_name(kind, own, place, own_folder(tmp_path, f"{place}-{own}"))


def is_refused_by_name(kind: str, own: bool, place: str, tmp_path: Path) -> None:
    """Whether or not its layers have an alpha of their own."""
    alpha = {"alpha": torch.tensor(3.0)} if own else {}
    path = written(place, tmp_path, REFUSED[kind], alpha)
    with pytest.raises(CheckpointError) as caught:
        open_lora(path)
    key, value = next(iter(REFUSED[kind].items()))
    assert any(words in caught.value.message for words in (key, str(value)))
    assert caught.value.hint


def test_settings_of_the_text_encoder_in_a_header_are_not_the_generators(tmp_path: Path) -> None:
    told = {"transformer.r": R, "transformer.lora_alpha": 6, "text_encoder.use_dora": True}
    tensors = {f"transformer.{Q}.{end}": tensor for end, tensor in PAIR.items()}
    lora = open_lora(saved(tensors, tmp_path, lora_adapter_metadata=json.dumps(told)))
    assert [change.scale for change in lora.changes.values()] == [2]


WORDS: dict[str, tuple[dict[str, Tensor], float]] = {
    "FastVideo's alpha": ({"lora_alpha": torch.tensor(9.0)}, 3),
    "alpha": ({"alpha": torch.tensor(9.0)}, 3),
    "no names of adapters": ({}, 1),
}


@pytest.mark.parametrize("kind", WORDS)
def test_words_of_other_tools_for_alpha(kind: str, tmp_path: Path) -> None:
    more, scale = WORDS[kind]
    tensors = {
        f"diffusion_model.{Q}.{end.removesuffix('.weight')}": tensor
        for end, tensor in (PAIR | more).items()
    }
    (change,) = open_lora(saved(tensors, tmp_path)).changes.values()
    assert change.scale == scale


def test_alpha_of_0_switches_a_layer_off(tmp_path: Path) -> None:
    other = "blocks.1.self_attn.q"
    tensors = {f"{name}.{end}": t for name in (Q, other) for end, t in PAIR.items()}
    tensors |= {f"{Q}.alpha": torch.tensor(0.0), f"{other}.alpha": torch.tensor(3.0)}
    lora = open_lora(saved(tensors, tmp_path))
    assert any("alpha 0 in the file" in line for line in lora.describe())
    base, before = random_generator(SMALL), random_generator(SMALL)
    apply_lora(base, lora, 1.0)
    assert torch.equal(base.get_parameter(f"{Q}.weight"), before.get_parameter(f"{Q}.weight"))
    changed = base.get_parameter(f"{other}.weight") - before.get_parameter(f"{other}.weight")
    torch.testing.assert_close(changed, PRODUCT)


def test_differences_of_norms_are_added(tmp_path: Path) -> None:
    tensors = {
        "lycoris_blocks_0_norm3.w_norm": torch.full((12,), 0.5),
        "lycoris_blocks_0_norm3.b_norm": torch.full((12,), 0.25),
    }
    base, before = random_generator(SMALL), random_generator(SMALL)
    apply_lora(base, open_lora(saved(tensors, tmp_path)), 2.0)
    for end, wanted in (("weight", 1.0), ("bias", 0.5)):
        name = f"blocks.0.norm3.{end}"
        changed = base.get_parameter(name) - before.get_parameter(name)
        torch.testing.assert_close(changed, torch.full((12,), wanted))


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{Q}.bias",
        "base_model.model.head.head.weight",
        "base_model.model.head.head.modules_to_save.default.weight",
        f"diffusion_model.{Q}.set_weight",
        f"diffusion_model.{Q}.reshape_weight",
    ],
)
def test_tensor_that_replaces_the_models_own_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors = {f"{Q}.{end}": tensor for end, tensor in PAIR.items()} | {name: torch.ones(12)}
    with pytest.raises(CheckpointError, match="in the place of the model's own") as caught:
        open_lora(saved(tensors, tmp_path))
    assert name in caught.value.message

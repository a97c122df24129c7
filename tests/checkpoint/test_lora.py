"""LoRAs of every tool: the same sum from each, merged or beside quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cfgen.checkpoint.lora.apply import Applied, apply_lora, open_lora
from cfgen.checkpoint.naming import to_diffusers
from cfgen.errors import CheckpointError, UsageError
from cfgen.model.generator import Generator
from cfgen.model.quantized import QuantizedLinear
from cfgen.ops.quant.weights import ScaledWeight
from tests.checkpoint.conftest import SMALL
from tests.checkpoint.lora_files import (
    ADAPTER,
    ALPHA,
    KOHYA,
    PEFT,
    RANK,
    SCALE,
    Pairs,
    assert_same,
    named,
    saved,
    summed,
)
from tests.strategies import random_generator

LAYERS = (
    "blocks.0.self_attn.q",
    "blocks.0.self_attn.o",
    "blocks.1.cross_attn.k",
    "blocks.1.ffn.0",
    "blocks.1.ffn.2",
    "time_projection.1",
    "text_embedding.0",
    "head.head",
    "patch_embedding",
)
"""Layers that the pairs change; the last is a convolution."""


@pytest.fixture
def base() -> Generator:
    return random_generator(SMALL)


@pytest.fixture
def pairs(base: Generator) -> Pairs:
    """Down [r, ...] and up [N, r] of each layer."""
    torch.manual_seed(5)
    shapes = {name: base.get_submodule(name).weight.shape for name in LAYERS}
    return {
        name: (torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK))
        for name, shape in shapes.items()
    }


def theirs(layer: str) -> str:
    return to_diffusers(f"{layer}.weight").removesuffix(".weight")


KINDS: dict[str, tuple[str, Callable[[str], str], tuple[str, str]]] = {
    "peft": ("PEFT", lambda n: f"base_model.model.{n}", PEFT),
    "peft with the adapter's name": ("PEFT", lambda n: f"base_model.model.{n}", ADAPTER),
    "peft of longlive": ("PEFT", lambda n: f"generator_lora/base_model.model.{n}", PEFT),
    "peft under fsdp": ("PEFT", lambda n: f"base_model.model._fsdp_wrapped_module.{n}", PEFT),
    "kohya": ("kohya", lambda n: f"lora_unet_{n.replace('.', '_')}", KOHYA),
    "kohya, two underscores": ("kohya", lambda n: f"lora_unet__{n.replace('.', '_')}", KOHYA),
    "lycoris": ("kohya", lambda n: f"lycoris_{n.replace('.', '_')}", KOHYA),
    "kohya, diffusers' names": (
        "kohya",
        lambda n: f"lora_transformer_{theirs(n).replace('.', '_')}",
        KOHYA,
    ),
    "comfy a and b": ("ComfyUI", lambda n: f"diffusion_model.{n}", PEFT),
    "comfy down and up": ("ComfyUI", lambda n: f"diffusion_model.{n}", KOHYA),
    "diffusers": ("diffusers", lambda n: f"transformer.{theirs(n)}", PEFT),
    "diffusers, old": (
        "diffusers",
        lambda n: f"transformer.{theirs(n)}",
        ("lora.down.weight", "lora.up.weight"),
    ),
    "diffsynth": ("DiffSynth", lambda n: f"pipe.dit.{n}", ADAPTER),
    "bare": ("plain", lambda n: n, PEFT),
    "bare, no weight": ("plain", lambda n: n, ("lora_A", "lora_B")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tools_names_give_the_same_sum(
    kind: str, base: Generator, pairs: Pairs, tmp_path: Path
) -> None:
    tool, layer, ends = KINDS[kind]
    expected = summed(base, pairs, 0.5 * SCALE)
    lora = open_lora(saved(named(pairs, layer, *ends, alpha=True), tmp_path))
    assert lora.kind == tool
    assert apply_lora(base, lora, 0.5) == Applied(merged=len(pairs))
    assert_same(base, expected)


@pytest.mark.parametrize("container", ["generator_lora", "state_dict", None])
def test_pytorch_files_are_read_like_safetensors(
    container: str | None, base: Generator, pairs: Pairs, tmp_path: Path
) -> None:
    tensors = named(pairs, lambda n: f"base_model.model.{n}", *PEFT)
    torch.save({container: tensors, "step": 3} if container else tensors, tmp_path / "lora.pt")
    expected = summed(base, pairs, SCALE)
    apply_lora(base, open_lora(tmp_path / "lora.pt", alpha=ALPHA), 1)
    assert_same(base, expected)


def test_a_convolution_may_be_flat_or_have_its_axes(
    base: Generator, pairs: Pairs, tmp_path: Path
) -> None:
    down, up = pairs["patch_embedding"]
    for shapes in ((down.flatten(1), up), (down, up[..., None, None, None])):
        generator = random_generator(SMALL)
        path = saved(named({"patch_embedding": shapes}, lambda n: n, *KOHYA), tmp_path)
        apply_lora(generator, open_lora(path), 1)
        assert_same(generator, summed(base, {"patch_embedding": (down, up)}, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_factors_are_taken_as_they_are(
    dtype: torch.dtype, base: Generator, pairs: Pairs, tmp_path: Path
) -> None:
    narrow = {name: (down.to(dtype), up.to(dtype)) for name, (down, up) in pairs.items()}
    path = saved(named(narrow, lambda n: n, *PEFT), tmp_path)
    wide = {name: (down.float(), up.float()) for name, (down, up) in narrow.items()}
    expected = summed(base, wide, 1)
    apply_lora(base, open_lora(path), 1)
    assert_same(base, expected)


def test_sum_is_rounded_once(pairs: Pairs, tmp_path: Path) -> None:
    base = random_generator(SMALL).to(torch.bfloat16)
    expected = summed(random_generator(SMALL).to(torch.bfloat16).float(), pairs, 0.3)
    apply_lora(base, open_lora(saved(named(pairs, lambda n: n, *PEFT), tmp_path)), 0.3)
    for name in LAYERS:
        merged = base.get_submodule(name).weight
        assert merged.dtype == torch.bfloat16
        step = torch.finfo(torch.bfloat16).eps
        wanted = expected[f"{name}.weight"]
        assert ((merged.float() - wanted).abs() <= 0.501 * step * wanted.abs() + 1e-6).all()


def test_loras_add_up_with_their_strengths(base: Generator, pairs: Pairs, tmp_path: Path) -> None:
    expected = summed(base, pairs, 0.8 - 0.3)
    lora = open_lora(saved(named(pairs, lambda n: n, *PEFT), tmp_path))
    for strength in (0.8, -0.3):
        apply_lora(base, lora, strength)
    assert_same(base, expected, atol=5e-6)


@pytest.mark.parametrize("strength", [0, 0.0, float("nan"), float("inf")])
def test_a_strength_that_means_nothing_is_refused(
    strength: float, base: Generator, pairs: Pairs, tmp_path: Path
) -> None:
    lora = open_lora(saved(named(pairs, lambda n: n, *PEFT), tmp_path))
    with pytest.raises(UsageError, match="must be a finite number other than 0"):
        apply_lora(base, lora, strength)
    assert_same(base, random_generator(SMALL).state_dict(), atol=0)


DIFFERENCES = {
    "blocks.0.self_attn.q.diff": "blocks.0.self_attn.q.weight",
    "blocks.0.self_attn.q.diff_b": "blocks.0.self_attn.q.bias",
    "blocks.0.self_attn.norm_k.diff": "blocks.0.self_attn.norm_k.weight",
    "blocks.1.norm3.diff": "blocks.1.norm3.weight",
    "blocks.1.norm3.diff_b": "blocks.1.norm3.bias",
    "blocks.0.diff_m": "blocks.0.modulation",
    "blocks.1.modulation.diff": "blocks.1.modulation",
    "head.diff_m": "head.modulation",
    "patch_embedding.diff": "patch_embedding.weight",
    "patch_embedding.diff_b": "patch_embedding.bias",
}
"""Names of whole differences, and the tensor that each is added to."""


def test_whole_differences_are_added_without_a_scale(
    base: Generator, pairs: Pairs, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    expected = summed(base, pairs, 0.5 * SCALE)
    tensors = named(pairs, lambda n: f"diffusion_model.{n}", *KOHYA, alpha=True)
    for name, target in DIFFERENCES.items():
        tensors[f"diffusion_model.{name}"] = torch.randn_like(expected[target])
        expected[target] = expected[target] + 0.5 * tensors[f"diffusion_model.{name}"]
    lora = open_lora(saved(tensors, tmp_path))
    assert apply_lora(base, lora, 0.5) == Applied(merged=len(pairs) + 7, biases=3)
    assert_same(base, expected)
    assert "differences of 7 weights and 3 biases" in lora.describe()


def test_diffusers_norm2_is_our_norm3(base: Generator, tmp_path: Path) -> None:
    expected = random_generator(SMALL).state_dict()
    tensors = {
        "transformer.blocks.0.norm2.diff": torch.ones(12),
        "transformer.blocks.0.scale_shift_table.diff": torch.ones(1, 6, 12),
        "transformer.blocks.0.attn2.to_out.0.diff_b": torch.ones(12),
    }
    apply_lora(base, open_lora(saved(tensors, tmp_path)), 2)
    for name in ("norm3.weight", "modulation", "cross_attn.o.bias"):
        expected[f"blocks.0.{name}"] = expected[f"blocks.0.{name}"] + 2
    assert_same(base, expected)


def test_bias_of_a_factor_is_scaled_like_the_pair(base: Generator, tmp_path: Path) -> None:
    pair = {"head.head": (torch.randn(RANK, 12), torch.randn(12, RANK))}
    expected = summed(base, pair, 0.5 * SCALE)
    tensors = named(pair, lambda n: n, *PEFT, alpha=True) | {
        "head.head.lora_B.bias": torch.ones(12)
    }
    expected["head.head.bias"] = expected["head.head.bias"] + 0.5 * SCALE
    assert apply_lora(base, open_lora(saved(tensors, tmp_path)), 0.5).biases == 1
    assert_same(base, expected)


def test_each_layer_has_its_own_rank_and_alpha(base: Generator, tmp_path: Path) -> None:
    torch.manual_seed(3)
    ranks = {"blocks.0.ffn.0": 1, "blocks.1.ffn.0": 4}
    pairs = {n: (torch.randn(r, 12), torch.randn(10, r)) for n, r in ranks.items()}
    tensors = named(pairs, lambda n: n, *KOHYA) | {"blocks.1.ffn.0.alpha": torch.tensor(2.0)}
    lora = open_lora(saved(tensors, tmp_path))
    assert lora.describe()[1:] == (
        "1 layers of rank 1, scale 1: no alpha in the file, beside it or given",
        "1 layers of rank 4, scale 0.5: alpha in the file",
    )
    expected = summed(base, {"blocks.0.ffn.0": pairs["blocks.0.ffn.0"]}, 1)
    product = pairs["blocks.1.ffn.0"][1] @ pairs["blocks.1.ffn.0"][0]
    expected["blocks.1.ffn.0.weight"] = expected["blocks.1.ffn.0.weight"] + 0.5 * product
    apply_lora(base, lora, 1)
    assert_same(base, expected)


def test_training_state_is_left_alone_and_said(
    base: Generator, pairs: Pairs, tmp_path: Path
) -> None:
    ours = named(pairs, lambda n: f"base_model.model.{n}", *PEFT)
    others = {"base_model.model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 12)}
    state = {"generator_lora": ours, "critic_lora": others, "generator_optimizer": {"0": others}}
    torch.save(state, tmp_path / "lora.pt")
    lora = open_lora(tmp_path / "lora.pt")
    assert len(lora.left_alone) == 2
    assert lora.describe()[-1].startswith("left alone: critic_lora/base_model")
    expected = summed(base, pairs, 1)
    apply_lora(base, lora, 1)
    assert_same(base, expected)


@pytest.mark.parametrize("averaged", ["generator_lora_ema", "generator_ema_lora"])
def test_averaged_pairs_are_taken_unless_others_are_asked_for(
    averaged: str, pairs: Pairs, tmp_path: Path
) -> None:
    live = named(pairs, lambda n: f"base_model.model.{n}", *PEFT)
    doubled = {name: 2 * tensor for name, tensor in live.items()}
    torch.save({"generator_lora": live, averaged: doubled}, tmp_path / "lora.pt")
    for prefer, factor in (("generator_ema", 4), ("generator", 1)):
        base = random_generator(SMALL)
        expected = summed(base, pairs, factor)
        lora = open_lora(tmp_path / "lora.pt", prefer=prefer)
        assert len(lora.left_alone) == len(live)
        apply_lora(base, lora, 1)
        assert_same(base, expected)


def quantized(generator: Generator, layers: tuple[str, ...], dtype: torch.dtype) -> None:
    """Put int8 layers where plain ones were."""
    for name in layers:
        layer = generator.get_submodule(name)
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        weight = ScaledWeight((layer.weight.detach() / scale).round().to(torch.int8), scale)
        generator.set_submodule(name, QuantizedLinear(weight, layer.bias.detach().to(dtype), dtype))


MATRICES = LAYERS[:-1]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.3)])
def test_beside_quantized_weights_pairs_stay_apart(
    dtype: torch.dtype, atol: float, base: Generator, pairs: Pairs, tmp_path: Path
) -> None:
    quantized(base, MATRICES, dtype)
    before = {n: t.clone() for n, t in base.state_dict().items() if "weight_values" in n}
    tensors = named(pairs, lambda n: n, *PEFT, alpha=True)
    tensors["head.head.diff_b"] = torch.ones(12)
    lora = open_lora(saved(tensors, tmp_path))
    biases = {n: base.get_submodule(n).bias.clone() for n in MATRICES}
    biases["head.head"] += 0.5 - 0.25
    for strength in (0.5, -0.25):
        applied = apply_lora(base, lora, strength)
        assert applied == Applied(merged=1, unmerged=len(MATRICES), biases=1)
    assert all(torch.equal(base.state_dict()[name], tensor) for name, tensor in before.items())
    for name in MATRICES:
        layer, (down, up) = base.get_submodule(name), pairs[name]
        x = torch.randn(5, down.shape[1])
        weight = layer.weight.dequantize(torch.float32) + (0.5 - 0.25) * SCALE * up @ down
        expected = torch.nn.functional.linear(x, weight, biases[name].float())
        found = layer(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=atol)


def test_quantized_weight_is_not_changed_as_a_whole(base: Generator, tmp_path: Path) -> None:
    quantized(base, ("head.head",), torch.float32)
    tensors = {"blocks.0.diff_m": torch.ones(1, 6, 12), "head.head.diff": torch.ones(12, 12)}
    lora = open_lora(saved(tensors, tmp_path))
    with pytest.raises(CheckpointError, match=r"the whole of head.head \(head.head.diff\), which "):
        apply_lora(base, lora, 1)
    assert torch.equal(base.blocks[0].modulation, random_generator(SMALL).blocks[0].modulation)

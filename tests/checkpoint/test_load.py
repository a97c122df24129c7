"""From files to networks: nothing is left over, nothing is made up, nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cfgen.checkpoint.convert.quantize import save_quantized
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.errors import CheckpointError
from cfgen.memory.protocols import Norms
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.quantized import QuantizedLinear
from tests.checkpoint import tiny
from tests.checkpoint.conftest import SMALL, marker
from tests.checkpoint.small import load_state
from tests.golden.cases import FOLDER

Folder = Callable[..., Path]
FILE = "diffusion_pytorch_model.safetensors"


def flow(generator: Generator) -> Tensor:
    """What a generator of the size `SMALL` makes of some noise, each chunk alone."""

    class Alone:
        def attend(self, _layer: int, _q: Tensor, _k: Tensor, v: Tensor, _norms: Norms) -> Tensor:
            return v

    torch.manual_seed(0)
    x, text = torch.randn(1, 3, 3, 4, 6), torch.randn(1, 4, 5)
    with torch.inference_mode():
        return generator(x, 0.3, generator.condition(text), Alone())


def test_generator_is_loaded_as_it_was_saved(folder: Folder, state: dict[str, Tensor]) -> None:
    path = folder(state)
    for where in (path, path / FILE):
        generator = load_generator(where)
        assert generator.geometry == SMALL
        assert not generator.training
        assert not any(p.requires_grad for p in generator.parameters())
        found = generator.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("prefix", ["model.", "model.diffusion_model.", "generator.model."])
def test_prefixes_come_off(prefix: str, folder: Folder, state: dict[str, Tensor]) -> None:
    generator = load_generator(folder({prefix + name: t for name, t in state.items()}))
    assert torch.equal(generator.head.modulation, state["head.modulation"])


def test_both_layouts_give_the_same_weights(folder: Folder) -> None:
    config = {"dim": 96, "ffn_dim": 192, "num_heads": 3, "num_layers": 3, "text_len": 16}
    theirs = {
        "num_attention_heads": 3,
        "attention_head_dim": 32,
        "ffn_dim": 192,
        "num_layers": 3,
        "in_channels": 16,
        "out_channels": 16,
        "qk_norm": "rms_norm_across_heads",
        "cross_attn_norm": True,
        "patch_size": [1, 2, 2],
        "text_dim": 32,
        "freq_dim": 256,
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
    }
    states = []
    for layout, said in (("original", config), ("diffusers", theirs)):
        tensors = load_file(FOLDER / f"wan_bidir_{layout}.safetensors")
        weights = {name: t for name, t in tensors.items() if "/" not in name}
        states.append(load_generator(folder(weights, said)).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_only_the_matrices_of_blocks_are_narrow(folder: Folder, state: dict[str, Tensor]) -> None:
    generator = load_generator(folder(state), dtype=torch.bfloat16)
    narrow = {n for n, t in generator.state_dict().items() if t.dtype == torch.bfloat16}
    layers = [f"{a}.{m}" for a in ("self_attn", "cross_attn") for m in "qkvo"] + ["ffn.0", "ffn.2"]
    assert narrow == {
        f"blocks.{i}.{layer}.{part}"
        for i in (0, 1)
        for layer in layers
        for part in ("weight", "bias")
    }
    assert {t.dtype for n, t in generator.state_dict().items() if n not in narrow} == {
        torch.float32
    }
    double = load_generator(folder(state), dtype=torch.float64)
    assert {t.dtype for t in double.state_dict().values()} == {torch.float64}


def test_quantized_generator_is_loaded(folder: Folder, state: dict[str, Tensor]) -> None:
    path = folder(state) / FILE
    save_quantized(state, path, lambda name, t: t.ndim == 2)
    generator = load_generator(path, dtype=torch.bfloat16)
    kept = {n: m for n, m in generator.named_modules() if isinstance(m, QuantizedLinear)}
    assert set(kept) == {name.removesuffix(".weight") for name, t in state.items() if t.ndim == 2}
    for name, layer in kept.items():
        assert layer.dtype == (torch.bfloat16 if name.startswith("blocks.") else torch.float32)
        assert layer.get_buffer("bias").dtype == layer.dtype
    assert not any(p.requires_grad for p in generator.parameters())
    found = load_generator(path, expand=True).state_dict()
    for name, tensor in state.items():
        step = tensor.abs().amax(-1, keepdim=True) / 127
        limit = 0.501 * step if tensor.ndim == 2 else torch.zeros(())
        assert ((found[name] - tensor).abs() <= limit).all(), name


def test_quantized_generator_computes_what_the_expanded_one_does(
    folder: Folder, state: dict[str, Tensor]
) -> None:
    path = folder(state) / FILE
    save_quantized(state, path, lambda name, t: t.ndim == 2)
    kept, expanded = load_generator(path), load_generator(path, expand=True)
    assert torch.equal(flow(kept), flow(expanded))


def test_patches_may_be_quantized(folder: Folder, state: dict[str, Tensor]) -> None:
    path = folder(state) / FILE
    save_quantized(state, path, lambda name, _: name == "patch_embedding.weight")
    found = load_generator(path).patch_embedding.weight
    torch.testing.assert_close(found, load_state(path)["patch_embedding.weight"])


def without(*names: str) -> Callable[[dict], dict]:
    return lambda state: {n: t for n, t in state.items() if n not in names}


def plus(**tensors: Tensor) -> Callable[[dict], dict]:
    return lambda state: {**state, **{n.replace("__", "."): t for n, t in tensors.items()}}


BROKEN = {
    "one missing": (without("blocks.1.ffn.2.bias"), "lacks blocks.1.ffn.2.bias"),
    "many missing": (
        lambda s: {n: t for n, t in s.items() if not n.startswith("blocks.1.cross_attn")},
        "lacks blocks.1.cross_attn.k.bias, blocks.1.cross_attn.k.weight, "
        "blocks.1.cross_attn.norm_k.weight, blocks.1.cross_attn.norm_q.weight, "
        "blocks.1.cross_attn.o.bias and 5 more",
    ),
    "unknown": (plus(blocks__0__cross_attn__k_img__weight=torch.ones(1)), "has unknown blocks.0.c"),
    "other shape": (
        plus(blocks__1__ffn__2__weight=torch.ones(12, 9)),
        "has blocks.1.ffn.2.weight [12, 9] instead of [12, 10]",
    ),
    "no patch embedding": (
        without("patch_embedding.weight", "patch_embedding.bias"),
        "holds no whole Wan generator: patch_embedding.weight is missing",
    ),
    "another network": (
        lambda _: {"decoder.1.weight": torch.ones(3)},
        "holds no Wan generator: none of its 1 tensors (decoder.1.weight, ...) is named as one",
    ),
    "flat modulation": (
        plus(head__modulation=torch.ones(24)),
        "head.modulation must have 3 axes, got [24]",
    ),
    "nothing": (lambda _: {}, "holds no Wan generator"),
    "patches in time": (
        plus(patch_embedding__weight=torch.ones(12, 3, 2, 2, 1)),
        "patches of one latent frame",
    ),
    "bare int8": (
        plus(blocks__0__ffn__0__weight=torch.ones(10, 12, dtype=torch.int8)),
        "blocks.0.ffn.0.weight is int8 and nothing says how it was quantized",
    ),
    "marker alone": (plus(head__comfy_quant=marker(format="int8_tensorwise")), "weight is missing"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_incomplete_or_strange_weights_are_refused(
    kind: str, folder: Folder, state: dict[str, Tensor]
) -> None:
    change, reason = BROKEN[kind]
    path = folder(change(state), patch_size=None if kind == "patches in time" else [1, 2, 2])
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message


def test_two_layouts_in_one_file_are_refused(folder: Folder, state: dict[str, Tensor]) -> None:
    twice = {"proj_out.weight": state["head.head.weight"].clone(), **state}
    twice["condition_embedder.time_proj.bias"] = state["time_projection.1.bias"].clone()
    with pytest.raises(
        CheckpointError, match="has unknown condition_embedder.time_proj.bias, proj_out.weight"
    ):
        load_generator(folder(twice))


CONFIGS = {
    "other width": ({"dim": 1536}, "differ: dim 1536 against 12"),
    "other sizes": (
        {"num_layers": 30, "ffn_dim": 8960},
        "differ: ffn_dim 8960 against 10, num_layers 30 against 2",
    ),
    "other patch": (
        {"patch_size": [1, 1, 4]},
        r"differ: patch_size \(1, 1, 4\) against \(1, 2, 2\)",
    ),
    "no heads": ({"num_heads": None}, "num_heads must be a whole number above 0, got None"),
    "odd heads": (
        {"num_heads": 5},
        "num_heads must divide dim 12 into heads of an even width, got 5",
    ),
    "heads of odd width": ({"num_heads": 4}, "heads of an even width, got 4"),
    "zero heads": ({"num_heads": 0}, "num_heads must be a whole number above 0, got 0"),
    "true heads": ({"num_heads": True}, "num_heads must be a whole number above 0, got True"),
    "text heads": ({"num_heads": "12"}, "num_heads must be a whole number above 0, got '12'"),
    "no text": ({"text_len": -1}, "text_len must be a whole number above 0, got -1"),
    "eps": ({"eps": 0}, "eps must be a number above 0, below 1, got 0"),
    "huge eps": ({"eps": 10**400}, "eps must be a number above 0, below 1, got 1000"),
    "image model": ({"model_type": "i2v"}, "model_type is 'i2v'; only 't2v' can be run"),
    "no norm": ({"qk_norm": False}, "qk_norm is False; only True can be run"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_config_that_does_not_fit_is_refused(
    kind: str, folder: Folder, state: dict[str, Tensor]
) -> None:
    changes, reason = CONFIGS[kind]
    path = folder(state, **changes)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_generator(path)
    assert str(path / "config.json") in caught.value.message


def test_config_may_leave_out_what_the_weights_tell(
    folder: Folder, state: dict[str, Tensor]
) -> None:
    generator = load_generator(folder(state, {"num_heads": 2, "_class_name": "WanModel"}))
    assert generator.geometry == replace(SMALL, text_len=512)


def test_without_a_config_the_heads_are_those_of_wan(tiny_file: Callable[[str], tiny.Tiny]) -> None:
    geometry = load_generator(tiny_file("native_bf16").path).geometry
    assert geometry == WanConfig(
        dim=tiny.DIM,
        ffn_dim=tiny.FFN,
        num_heads=2,
        num_layers=1,
        freq_dim=tiny.FREQ,
        text_dim=tiny.TEXT,
    )


@pytest.mark.parametrize("config", [None, {"d_model": 4096, "num_heads": 64}, {"license": "?"}])
def test_odd_width_without_its_config_is_refused(
    config: dict | None, folder: Folder, state: dict[str, Tensor]
) -> None:
    path = folder(state, {} if config is None else config)
    if config is None:
        (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is 12 wide, which is no multiple of 128") as caught:
        load_generator(path)
    assert "config.json" in str(caught.value.hint)


def test_missing_weights_are_refused(folder: Folder, state: dict[str, Tensor]) -> None:
    path = folder(state)
    (path / FILE).unlink()
    with pytest.raises(CheckpointError, match="holds no file of weights"):
        load_generator(path)
    with pytest.raises(CheckpointError, match=f"{FILE} does not exist"):
        load_generator(path / FILE)


def test_state_is_what_the_file_holds_under_its_own_names(tmp_path: Path) -> None:
    packed = tiny.pack(replace(tiny.STYLES["lightx2v_int8"], prefix="model."))
    found = load_state(packed.write(tmp_path / "any.safetensors"), dtype=torch.bfloat16)
    assert found.keys() == {f"model.{name}" for name in packed.weights}
    assert found["model.head.modulation"].dtype == torch.float32
    assert found["model.blocks.0.ffn.0.weight"].dtype == torch.bfloat16


def test_opening_reads_no_weight(folder: Folder, state: dict[str, Tensor]) -> None:
    path = folder(state) / FILE
    network = open_generator(path)
    path.unlink()
    assert network.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match="cannot be read"):
        network.read("head.modulation")


def test_loaded_weights_do_not_hang_on_the_file(folder: Folder, state: dict[str, Tensor]) -> None:
    path = folder(state)
    found = load_generator(path).state_dict()
    size = (path / FILE).stat().st_size
    (path / FILE).write_bytes(bytes(size))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_loaded_generator_computes_what_the_saved_one_did(
    folder: Folder, state: dict[str, Tensor], generator: Generator
) -> None:
    assert torch.equal(flow(generator), flow(load_generator(folder(state))))

"""A UMT5 encoder is the same one from every layout that people have it in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import quants
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from cfgen.checkpoint.networks.text_encoder import (
    load_text_encoder,
    open_text_encoder,
    text_files,
)
from cfgen.errors import CheckpointError, UsageError
from cfgen.model.quantized import QuantizedEmbedding, QuantizedLinear
from cfgen.model.text_encoder import TextEncoder
from cfgen.ops.quant.weights import ScaledWeight
from tests import pieces

CONFIG = {
    "model_type": "umt5",
    "vocab_size": 320,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
TWIN = "encoder.embed_tokens.weight"
MATRICES = 14
"""Linear layers of two blocks."""

BLOCK = {
    # Hugging Face's name inside a block, Wan's, llama.cpp's
    "layer.0.layer_norm": ("norm1", "attn_norm"),
    "layer.0.SelfAttention.q": ("attn.q", "attn_q"),
    "layer.0.SelfAttention.k": ("attn.k", "attn_k"),
    "layer.0.SelfAttention.v": ("attn.v", "attn_v"),
    "layer.0.SelfAttention.o": ("attn.o", "attn_o"),
    "layer.0.SelfAttention.relative_attention_bias": ("pos_embedding.embedding", "attn_rel_b"),
    "layer.1.layer_norm": ("norm2", "ffn_norm"),
    "layer.1.DenseReluDense.wi_0": ("ffn.gate.0", "ffn_gate"),
    "layer.1.DenseReluDense.wi_1": ("ffn.fc1", "ffn_up"),
    "layer.1.DenseReluDense.wo": ("ffn.fc2", "ffn_down"),
}
WAN = {
    "shared.weight": "token_embedding.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
    **{
        f"encoder.block.{i}.{ours}.weight": f"blocks.{i}.{wan}.weight"
        for i in range(2)
        for ours, (wan, _) in BLOCK.items()
    },
}
GGUF = {
    "shared.weight": "token_embd.weight",
    "encoder.final_layer_norm.weight": "enc.output_norm.weight",
    **{
        f"encoder.block.{i}.{ours}.weight": f"enc.blk.{i}.{gguf}.weight"
        for i in range(2)
        for ours, (_, gguf) in BLOCK.items()
    },
}
NAMES = {"hugging face": {name: name for name in WAN}, "wan": WAN, "llama.cpp": GGUF}

PROMPTS = ["the red cat drifts over sand", "a dog", ""]


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = UMT5EncoderModel(UMT5Config.from_dict(CONFIG))
    found = {name: torch.randn_like(t) * 0.3 for name, t in model.state_dict().items()}
    del found[TWIN]
    return found


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    pieces.fast().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def load(path: Path, dtype: torch.dtype = torch.float32, tokenizer: Path | None = None):
    return load_text_encoder(path, tokenizer, text_len=20, dtype=dtype)


def embed(encoder: TextEncoder) -> Tensor:
    with torch.inference_mode():
        return encoder(PROMPTS).float()


def expected(state: dict[str, Tensor]) -> Tensor:
    """What transformers' encoder makes of the prompts, padded to the full length as Wan does."""
    model = UMT5EncoderModel(UMT5Config.from_dict(CONFIG)).eval()
    model.load_state_dict({**state, TWIN: state["shared.weight"]})
    ids = [[*pieces.processor().encode(prompt), 1] for prompt in PROMPTS]
    padded = torch.tensor([[*row, *[0] * (20 - len(row))] for row in ids])
    mask = (padded > 0).long()
    with torch.inference_mode():
        hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state
    return hidden * mask[..., None]


def same(encoder: TextEncoder, state: dict[str, Tensor]) -> None:
    torch.testing.assert_close(embed(encoder), expected(state), rtol=0, atol=2e-6)


def is_matrix(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[1] % 32 == 0


def plain(name: str, w: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return {name: w.bfloat16()}, w.bfloat16().float()


def fp8(name: str, w: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    if w.ndim == 1:
        return plain(name, w)
    small = w.to(torch.float8_e4m3fn)
    return {name: small}, small.float()


def fp8_scaled(name: str, w: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    if not is_matrix(w) or name.startswith(("shared", "token")):
        return {name: w.half()}, w.half().float()
    scale = w.abs().max() / 448
    small = (w / scale).to(torch.float8_e4m3fn)
    layer = name.removesuffix(".weight")
    return {name: small, f"{layer}.scale_weight": scale}, small.float() * scale


def comfy(name: str, w: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    if not is_matrix(w):
        return plain(name, w)
    scale = w.abs().amax(1, keepdim=True) / 127
    small = (w / scale).round().to(torch.int8)
    layer = name.removesuffix(".weight")
    marker = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    parts = {name: small, f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": marker}
    return parts, small.float() * scale


STORES: dict[str, Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]] = {
    "plain": plain,
    "fp8": fp8,
    "fp8_scaled": fp8_scaled,
    "comfy": comfy,
}


def stored(
    state: dict[str, Tensor], names: dict[str, str], store: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a file holds of an encoder, and the weights that it stands for."""
    held: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts, meant[name] = STORES[store](names[name], tensor)
        held |= parts
    if store == "fp8_scaled":
        held["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return held, meant


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("names", NAMES)
def test_every_layout_gives_what_transformers_gives(
    names: str, store: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    held, meant = stored(state, NAMES[names], store)
    held["spiece_model"] = torch.tensor(list(pieces.spiece()), dtype=torch.uint8)
    save_file(held, tmp_path / "encoder.safetensors")
    loaded = load(tmp_path / "encoder.safetensors")
    same(loaded, meant)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.model.encoder.embed_tokens is loaded.model.shared


def test_gguf_gives_what_transformers_gives(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "encoder.gguf"
    pieces.write_gguf(path, {GGUF[n]: t.numpy() for n, t in state.items()}, rows=320)
    meant = {
        n: torch.from_numpy(quants.dequantize(quants.quantize(t.numpy(), 8), 8))
        if is_matrix(t)
        else t
        for n, t in state.items()
    }
    loaded = load(path)
    same(loaded, meant)
    assert isinstance(loaded.model.shared, QuantizedEmbedding)
    assert count_quantized(loaded) == MATRICES


def test_wans_pth_is_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    held, meant = stored(state, WAN, "plain")
    torch.save(held, path)
    (tmp_path / "google" / "umt5-xxl").mkdir(parents=True)
    (tmp_path / "google" / "umt5-xxl" / "spiece.model").write_bytes(pieces.spiece())
    (tmp_path / "config.json").write_text('{"model_type": "t2v", "dim": 5}', encoding="utf-8")
    for place in (path, tmp_path):
        same(load(place), meant)


def test_shards_are_read(folder: Path, state: dict[str, Tensor]) -> None:
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:9]}
    shards["model-00002-of-00002.safetensors"] = names[9:]
    for shard, inside in shards.items():
        save_file({name: state[name] for name in inside}, folder / shard)
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    same(load(folder), state)
    files = text_files(open_text_encoder(folder), folder).files
    assert {file.name for file in files} == {
        *shards,
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
    }


def test_the_encoder_of_a_model_folder_is_found(folder: Path, state: dict[str, Tensor]) -> None:
    inner = folder / "text_encoder"
    inner.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(inner / name)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer.json").rename(folder / "tokenizer" / "tokenizer.json")
    same(load(folder), state)


def count_quantized(encoder: TextEncoder) -> int:
    return sum(isinstance(layer, QuantizedLinear) for layer in encoder.modules())


def test_weights_stay_as_they_are_stored(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encoder.safetensors"
    held, _ = stored(state, WAN, "fp8")
    held["spiece_model"] = torch.tensor(list(pieces.spiece()), dtype=torch.uint8)
    save_file(held, path)
    loaded = load(path, torch.bfloat16)
    assert count_quantized(loaded) == MATRICES
    assert isinstance(loaded.model.shared, QuantizedEmbedding)
    dtypes = {t.dtype for t in (*loaded.parameters(), *loaded.buffers())}
    assert dtypes == {torch.float8_e4m3fn, torch.bfloat16, torch.float32}  # scales are float32
    assert max(t.numel() for t in loaded.buffers() if t.dtype == torch.float32) == 1
    widened: list[int] = []
    dequantize = ScaledWeight.dequantize

    def watched(weight: ScaledWeight, dtype: torch.dtype) -> Tensor:
        widened.append(weight.values.numel())
        return dequantize(weight, dtype)

    monkeypatch.setattr(ScaledWeight, "dequantize", watched)
    embed(loaded)
    assert max(widened) < loaded.model.shared.weight.values.numel()


def test_halves_are_widened_on_use_only(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    held, meant = stored(state, WAN, "plain")
    held["spiece_model"] = torch.tensor(list(pieces.spiece()), dtype=torch.uint8)
    save_file(held, path)
    loaded = load(path)
    sizes = [t.numel() for t in (*loaded.parameters(), *loaded.buffers()) if t.itemsize > 2]
    assert max(sizes) == 32  # norms
    same(loaded, meant)
    narrow = load(path, torch.bfloat16)
    assert count_quantized(narrow) == 0
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    wide = load_text_encoder(path, text_len=20, expand=True)
    assert count_quantized(wide) == 0
    assert wide.model.state_dict().keys() == {*state, TWIN}
    assert torch.equal(embed(wide), embed(loaded))


def test_padding_is_zero_and_does_not_change_the_text(folder: Path) -> None:
    encoder = load(folder)
    both = embed(encoder)
    assert both.shape == (3, 20, 32)
    for row, prompt in zip(both, PROMPTS, strict=True):
        used = len(encoder.tokens(prompt))
        assert row[used:].eq(0).all()
        assert row[:used].abs().amax(-1).gt(0).all()
        with torch.inference_mode():
            torch.testing.assert_close(encoder([prompt])[0], row, rtol=0, atol=2e-6)


def test_a_prompt_is_never_cut(folder: Path) -> None:
    with pytest.raises(UsageError, match="25 tokens, and this model reads 19") as caught:
        load(folder).tokens("cat " * 25)
    assert caught.value.hint
    assert caught.value.hint.endswith('cat cat"')


def test_either_name_of_the_table_will_do(folder: Path, state: dict[str, Tensor]) -> None:
    path = folder / "model.safetensors"
    table = state["shared.weight"]
    save_file({**state, TWIN: table.clone()}, path)
    same(load(folder), state)
    rest = {name: tensor for name, tensor in state.items() if name != "shared.weight"}
    save_file({**rest, TWIN: table}, path)
    same(load(folder), state)
    save_file({**state, TWIN: table + 1}, path)
    with pytest.raises(CheckpointError, match=f"{TWIN} differs from shared.weight"):
        load(folder)


def test_a_decoder_in_the_file_is_left_alone_and_named(
    folder: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    decoder = {"decoder.final_layer_norm.weight": torch.ones(32), "lm_head.weight": torch.ones(2)}
    save_file({**state, **decoder}, folder / "model.safetensors")
    same(load(folder), state)
    assert set(open_text_encoder(folder).naming.left_alone) == set(decoder)
    whole = {GGUF[n]: t.numpy() for n, t in state.items() if not is_matrix(t)}
    whole["dec.blk.0.attn_q.weight"] = torch.ones(2, 2).numpy()
    pieces.write_gguf(tmp_path / "t5.gguf", whole, rows=320)
    network = open_text_encoder(tmp_path / "t5.gguf")
    assert network.naming.left_alone == ("dec.blk.0.attn_q.weight",)
    assert len(network.layers) == len(whole) - 1


def test_incomplete_weights_are_refused(folder: Path, state: dict[str, Tensor]) -> None:
    path = folder / "model.safetensors"

    def without(lost: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if name != lost}

    save_file(without("encoder.block.1.layer.0.SelfAttention.q.weight"), path)
    with pytest.raises(CheckpointError, match=r"lacks encoder.block.1.layer.0.SelfAttention.q"):
        load(folder)
    save_file(without("shared.weight"), path)
    with pytest.raises(CheckpointError, match=r"no whole UMT5 encoder: shared.weight is missing"):
        load(folder)
    save_file({**state, "encoder.extra.weight": torch.ones(8)}, path)
    with pytest.raises(CheckpointError, match=r"has unknown encoder.extra.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"d_model": "wide"}, "differ: d_model 'wide' instead of 32"),
        ({"num_heads": -1, "d_ff": 11}, "differ: d_ff 11 instead of 64, num_heads -1 instead of 4"),
        ({"feed_forward_proj": "relu"}, "differ: feed_forward_proj 'relu'"),
        ({"layer_norm_epsilon": "small"}, "describes no UMT5 encoder"),
        ({"model_type": "t5"}, "describes a model of the type 't5', not 'umt5'"),
    ],
)
def test_config_that_does_not_fit_is_refused(
    changes: dict[str, object], reason: str, folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason):
        load(folder)


def test_what_a_config_says_besides_is_heeded(folder: Path, state: dict[str, Tensor]) -> None:
    near = json.dumps(CONFIG | {"relative_attention_max_distance": 9})
    (folder / "config.json").write_text(near, encoding="utf-8")
    for path in (folder, folder / "model.safetensors"):
        encoder = load(path)
        assert encoder.model.config.relative_attention_max_distance == 9
    assert (
        load(folder).model.encoder.block[0].layer[0].SelfAttention.relative_attention_max_distance
        == 9
    )


def test_missing_parts_are_refused(folder: Path) -> None:
    for name, reason in (
        ("tokenizer.json", "brings no tokenizer and none lies beside it"),
        ("config.json", r"config\.json does not exist"),
        ("model.safetensors", "holds no text encoder: none of .*model.safetensors"),
    ):
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=reason):
            load(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        load(folder / "model.safetensors")


def words(count: int) -> Tokenizer:
    names = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(count - 3))]
    made = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return made


def test_a_tokenizer_of_another_model_is_refused(folder: Path, state: dict[str, Tensor]) -> None:
    other = folder / "other.json"
    words(321).save(str(other))
    with pytest.raises(CheckpointError, match="321 tokens, .* rows for 320"):
        load(folder, tokenizer=other)
    words(320).save(str(other))
    assert load(folder, tokenizer=other).tokens("w1 w2") == [4, 5, 1]
    Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>")).save(str(other))
    with pytest.raises(CheckpointError, match="has no </s> token"):
        load(folder, tokenizer=other)
    other.write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not a tokenizer file"):
        load(folder, tokenizer=other)
    state["shared.weight"] = torch.zeros(2000, 32)
    save_file(state, folder / "alone.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="tokens, .* rows for 2000"):
        load(folder / "alone.safetensors")


T5 = {
    "shared.weight": (9, 4),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2),
    "encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4),
    "encoder.block.1.layer.0.SelfAttention.q.weight": (4, 4),
    "encoder.final_layer_norm.weight": (4,),
}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (T5, "is a T5 encoder"),
        ({GGUF[n]: shape for n, shape in T5.items()}, "is a T5 encoder"),
        ({"pos_embedding.embedding.weight": (32, 2), "blocks.0.attn.q.weight": (4, 4)}, "is a T5"),
        ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (4, 4)}, "is a CLIP"),
        ({"transformer.resblocks.0.attn.in_proj_weight": (4, 4)}, "is a CLIP text encoder"),
        ({"model.layers.0.self_attn.q_proj.weight": (4, 4)}, "is a language model"),
        ({"blk.0.attn_q.weight": (4, 4)}, "is a language model"),
        ({"model.diffusion_model.head.modulation": (1, 2, 4)}, "is a Wan generator"),
        ({"decoder.conv1.weight": (4, 4)}, "is an autoencoder"),
        ({"base.blocks.0.attn.q.lora_A.weight": (4, 4)}, "is a LoRA"),
        ({"a.weight": (4, 4), "b.weight": (4,)}, r"holds no UMT5 encoder: none of its 2 tensors"),
    ],
)
def test_other_networks_are_refused_by_name(
    names: dict[str, tuple[int, ...]], what: str, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=what) as caught:
        load(tmp_path / "x")
    assert caught.value.hint
    assert "UMT5-XXL" in caught.value.hint


def test_positions_that_are_no_table_are_refused(folder: Path, state: dict[str, Tensor]) -> None:
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for table, reason in (
        (torch.zeros(32, 5), r"table of positions is \[32, 5\] for 32 channels"),
        (torch.zeros(2, 4), r"table of positions is \[2, 4\]"),
        (torch.zeros(32), r"relative_attention_bias.weight is \[32\], which is no matrix"),
    ):
        save_file({**state, name: table}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=reason):
            load(folder)

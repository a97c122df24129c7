"""A text encoder from its folder, with the tokenizer that belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from cfgen.checkpoint.load import load_text_encoder
from cfgen.checkpoint.quantized import save_quantized
from cfgen.errors import CheckpointError, UsageError
from cfgen.model.text_encoder import TextEncoder

CONFIG = {
    "model_type": "umt5",
    "vocab_size": 12,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 10,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
TWIN = "encoder.embed_tokens.weight"


def tokenizer(words: int = 10) -> Tokenizer:
    names = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(words - 3))]
    made = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return made


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(CONFIG, tokenizer(), text_len=6).eval()


@pytest.fixture
def folder(tmp_path: Path, encoder: TextEncoder) -> Path:
    state = {n: t for n, t in encoder.model.state_dict().items() if n != TWIN}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def load(folder: Path, dtype: torch.dtype = torch.float32) -> TextEncoder:
    return load_text_encoder(folder, folder / "tokenizer.json", text_len=6, dtype=dtype)


def embed(encoder: TextEncoder) -> torch.Tensor:
    with torch.inference_mode():
        return encoder(["w1 w2 w3", "w4"]).float()


def test_encoder_is_loaded_as_it_was_saved(folder: Path, encoder: TextEncoder) -> None:
    loaded = load(folder)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.model.encoder.embed_tokens.weight is loaded.model.shared.weight
    assert torch.equal(embed(loaded), embed(encoder))


def test_padding_is_zero_and_does_not_change_the_text(encoder: TextEncoder) -> None:
    both = embed(encoder)
    assert both.shape == (2, 6, 8)
    assert both[0, 4:].eq(0).all()
    assert both[1, 2:].eq(0).all()
    assert both[1, :2].abs().amax(-1).gt(0).all()
    with torch.inference_mode():
        torch.testing.assert_close(encoder(["w4"])[0], both[1])


def test_tokens_end_with_the_end(encoder: TextEncoder) -> None:
    assert encoder.tokens("w1 w2") == [4, 5, 1]
    assert encoder.tokens("w1 w2 w3 w4 w5") == [4, 5, 6, 7, 8, 1]
    assert encoder.tokens("  w1 \n&amp;nbsp; zebra ") == [4, 2, 1]


def test_a_prompt_is_never_cut(encoder: TextEncoder) -> None:
    with pytest.raises(UsageError, match="6 tokens, and this model reads 5") as caught:
        encoder.tokens("w1 w2 w3  w4 w5 w6")
    assert caught.value.hint
    assert 'up to "...w1 w2 w3 w4 w5"' in caught.value.hint


def test_quantized_and_narrow_encoders_are_loaded(folder: Path, encoder: TextEncoder) -> None:
    state = load_file(folder / "model.safetensors")
    chosen = {name for name in state if ".DenseReluDense." in name}
    save_quantized(state, folder / "model.safetensors", lambda name, _: name in chosen)
    close = embed(load(folder))
    assert 0 < float((close - embed(encoder)).abs().max()) < 0.05
    assert {p.dtype for p in load(folder, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_both_names_of_the_embedding_may_be_there(folder: Path, encoder: TextEncoder) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state[TWIN] = state["shared.weight"].clone()
    save_file(state, path)
    assert torch.equal(embed(load(folder)), embed(encoder))
    state[TWIN] += 1
    save_file(state, path)
    with pytest.raises(CheckpointError, match=f"{TWIN} differs from shared.weight"):
        load(folder)


def test_incomplete_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    lost = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({n: t for n, t in state.items() if n != lost}, path)
    with pytest.raises(CheckpointError, match=f"lacks {lost}"):
        load(folder)
    save_file({n: t for n, t in state.items() if n != "shared.weight"}, path)
    with pytest.raises(CheckpointError, match=r"holds no UMT5 encoder: shared.weight is missing"):
        load(folder)
    save_file({**state, "decoder.final_layer_norm.weight": torch.ones(8)}, path)
    with pytest.raises(CheckpointError, match=r"has unknown decoder.final_layer_norm.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"d_model": "wide"}, "describes no UMT5 encoder"),
        ({"num_heads": -1}, "describes no UMT5 encoder"),
        ({"d_ff": 11}, r"\[11, 8\]"),
        ({"vocab_size": 9}, "has 10 tokens, .*config.json only 9"),
    ],
)
def test_config_that_does_not_fit_is_refused(
    changes: dict[str, object], reason: str, folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason):
        load(folder)


def test_missing_parts_are_refused(folder: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name}.*(does not exist|is missing)"):
            load(folder)


def test_tokenizer_of_another_kind_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not a tokenizer file"):
        load(folder)
    made = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    made.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="has no </s> token"):
        load(folder)

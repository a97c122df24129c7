"""One model gives one result, whichever of its three forms a user has."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cfgen.checkpoint.networks.tokenizer import open_tokenizer
from cfgen.errors import CheckpointError, UsageError
from cfgen.model.text_encoder import TextEncoder, clean
from cfgen.model.tokenizer import Pieces, Tokenizer, from_sentencepiece, load_tokenizer
from tests import pieces

FORMS = ("json", "spiece", "embedded", "gguf")


def write(form: str, folder: Path) -> Path:
    path = folder / f"tokenizer of {form}"  # a name tells nothing
    match form:
        case "json":
            pieces.fast().save(str(path))
        case "spiece":
            path.write_bytes(pieces.spiece())
        case "embedded":
            held = torch.tensor(list(pieces.spiece()), dtype=torch.uint8)
            save_file({"spiece_model": held}, path)
        case "gguf":
            pieces.write_gguf(path, rows=320)
    return path


@pytest.fixture(params=FORMS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return open_tokenizer(write(request.param, tmp_path))


def encoder(tokenizer: Tokenizer, text_len: int) -> TextEncoder:
    sizes = {"vocab_size": 400, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return TextEncoder(sizes, tokenizer, text_len=text_len)


def test_every_form_gives_the_numbers_of_sentencepiece(tokenizer: Tokenizer) -> None:
    words = [*pieces.WORDS, "ｒed", "ﬁne", "½", "😀", "catdog", "éé", "x\u3000y", "㌔", "."]
    draw = random.Random(1)
    model = pieces.processor()
    for _ in range(150):
        text = " ".join(draw.choices(words, k=draw.randint(0, 12)))
        ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
        assert ids == model.encode(text), text
    assert list(tokenizer.encode("cat", add_special_tokens=True).ids) == [*model.encode("cat"), 1]


def test_special_tokens_have_umt5s_numbers(tokenizer: Tokenizer) -> None:
    names = ("<pad>", "</s>", "<unk>", "<0x00>", "no such piece")
    assert [tokenizer.token_to_id(name) for name in names] == [0, 1, 2, 3, None]


def test_the_size_counts_every_piece(tmp_path: Path) -> None:
    count = pieces.processor().get_piece_size()
    sizes = [open_tokenizer(write(form, tmp_path)).get_vocab_size() for form in FORMS]
    assert sizes == [count, count, count, 320]


def test_a_prompt_ends_with_the_end_and_is_never_cut(tokenizer: Tokenizer) -> None:
    words = "red cat over sand dunes"
    ids = encoder(tokenizer, 6).tokens(words)
    assert ids == [*pieces.processor().encode(words), 1]
    assert len(ids) == 6
    with pytest.raises(UsageError, match="6 tokens, and this model reads 5") as caught:
        encoder(tokenizer, 6).tokens(f"{words} slowly")
    assert caught.value.hint
    assert 'up to "...red cat over sand dunes"' in caught.value.hint
    with pytest.raises(UsageError, match="this model reads 5") as caught:
        encoder(tokenizer, 6).tokens("the 猫猫猫猫猫猫猫猫")
    assert caught.value.hint
    assert 'up to "...the 猫猫猫猫"' in caught.value.hint


def test_a_tokenizer_file_that_cuts_and_pads_does_neither(tmp_path: Path) -> None:
    made = pieces.fast()
    made.enable_truncation(4)
    made.enable_padding(length=512)
    made.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path / "tokenizer.json")
    text = "red cat over sand dunes"
    assert found.encode(text, add_special_tokens=False).ids == pieces.processor().encode(text)


def test_bytes_stand_for_what_has_no_piece(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀", add_special_tokens=False).ids
    assert [i - 3 for i in ids[-4:]] == list("😀".encode())


def test_pieces_are_put_together_as_they_are_told() -> None:
    listed = Pieces(
        texts=["<unk>", "</s>", "▁a", "a", "▁", "b"],
        scores=[0.0, 0.0, -1.0, -2.0, -3.0, -2.0],
        kinds=[2, 3, 1, 1, 1, 1],
        add_prefix=False,
        merge_spaces=False,
    )
    found = from_sentencepiece(listed.model(), Path("x"))
    assert found.encode("a  b", add_special_tokens=False).ids == [3, 4, 4, 5]
    merged = Pieces(texts=listed.texts, scores=listed.scores, kinds=listed.kinds)
    found = from_sentencepiece(merged.model(), Path("x"))
    assert found.encode("a  b ", add_special_tokens=False).ids == [2, 4, 5]


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\x00garbage", b"\n" + bytes(100)])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="x holds no sentencepiece model"):
        from_sentencepiece(content, Path("x"))
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"spiece\.model"):
        open_tokenizer(tmp_path / "spiece.model")


def test_a_damaged_tokenizer_file_is_refused(tmp_path: Path) -> None:
    path = write("json", tmp_path)
    text = path.read_text(encoding="utf-8")
    for broken in (text[: len(text) // 2], text.replace('"precompiled_charsmap":', '"x":')):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(CheckpointError, match="is not a tokenizer file"):
            open_tokenizer(path)


def test_text_is_cleaned_as_wan_does_it() -> None:
    assert clean("  a \n\tcat&amp;amp;dog\u3000sit ") == "a cat&dog sit"
    assert clean("schÃ¶n “quoted” ﬁne") == 'schön "quoted" fine'
    assert clean("&amp;lt;b&amp;gt;") == "<b>"
    assert clean("") == ""

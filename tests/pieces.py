"""A small sentencepiece model as UMT5's is, in the three forms in which people have it."""

from __future__ import annotations

import functools
import io
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

TEXT = """the a red blue green cat dog drifts over sand dunes slowly camera pans left right lowers
sky dusk morning light café naïve 北京 猫"""
WORDS = TEXT.split()


@functools.cache
def spiece() -> bytes:
    """A unigram model with UMT5's special numbers: pad 0, end 1, unknown 2, then 256 bytes."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=12)) for _ in range(400)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=400,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        minloglevel=2,
        num_threads=1,
    )
    return written.getvalue()


def processor() -> sentencepiece.SentencePieceProcessor:
    """The library's own reading of it."""
    found = sentencepiece.SentencePieceProcessor()
    found.LoadFromSerializedProto(spiece())
    return found


def charsmap() -> bytes:
    """The table by which it normalises characters."""
    spec = dict(_fields(next(value for key, value in _fields(spiece()) if key == 3)))
    return bytes(spec[2])


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Fields of a protobuf message; numbers as whatever bytes they take."""
    place = 0

    def number() -> int:
        nonlocal place
        found = shift = 0
        while True:
            byte = message[place]
            place += 1
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found

    while place < len(message):
        key = number()
        size = {0: 0, 5: 4}.get(key & 7)
        if size == 0:
            yield key >> 3, struct.pack("<Q", number())
            continue
        size = number() if size is None else size
        yield key >> 3, message[place : place + size]
        place += size


def fast() -> Tokenizer:
    """The same model for Hugging Face's library, put together as its converter does."""
    model = processor()
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    made = Tokenizer(models.Unigram(pieces, 2, True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap()), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], special_tokens=[("</s>", 1)]
    )
    return made


def add_pieces(writer: gguf.GGUFWriter, *, rows: int) -> None:
    """Write the model into a GGUF file as llama.cpp's converter does, filled up to `rows`."""
    model = processor()
    count = model.get_piece_size()
    kinds = [1] * count
    for i in range(count):
        if model.is_unknown(i):
            kinds[i] = 2
        elif model.is_control(i):
            kinds[i] = 3
        elif model.is_byte(i):
            kinds[i] = 6
    spare = range(count, rows)
    writer.add_tokenizer_model("t5")
    writer.add_token_list(
        [model.id_to_piece(i) for i in range(count)] + [f"[PAD{i}]" for i in spare]
    )
    writer.add_token_scores([model.get_score(i) for i in range(count)] + [-10000.0 for _ in spare])
    writer.add_token_types(kinds + [5 for _ in spare])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(charsmap())


def write_gguf(path: Path, tensors: dict[str, np.ndarray] | None = None, *, rows: int) -> None:
    """A GGUF file with the model in its header; matrices of 32 columns and more as Q8_0."""
    writer = gguf.GGUFWriter(path, "t5encoder")
    add_pieces(writer, rows=rows)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in (tensors or {"x": np.zeros(1, np.float32)}).items():
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

"""Tokenizers of UMT5: a tokenizer.json, a sentencepiece model, or its pieces out of a GGUF file.

The same model gives the same numbers whichever of them it comes from: pieces are put back into a
sentencepiece model, and that library reads both. Hugging Face's reading of the same model differs
from it only where characters of no width stand at the ends of a text.
Source: google/sentencepiece src/sentencepiece_model.proto (numbers of the fields).
"""

from __future__ import annotations

import json
import queue
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cfgen.errors import CheckpointError
from cfgen.files.reading import read_text
from cfgen.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    import tokenizers
    from sentencepiece import SentencePieceProcessor

END = "</s>"
"""What stands behind every text that UMT5 reads."""

OTHER_TOKENIZER = "give spiece.model or tokenizer.json of google/umt5-xxl"

GROWTH_LIMIT = 64
"""How many times as long a text may become; those of UMT5 leave its length as it is."""

TIME_LIMIT_S = 30.0
"""Seconds that a prompt may take; a whole page takes milliseconds."""

UNIGRAM, BYTE = 1, 6
"""Sentencepiece's number of models that score their pieces, and of pieces that are one byte."""


class Encoded(Protocol):
    """A text in numbers."""

    @property
    def ids(self) -> Sequence[int]:
        """Row of the table for each piece of the text."""


class Tokenizer(Protocol):
    """What an encoder asks of a tokenizer; Hugging Face's own class has it as it is."""

    def get_vocab_size(self) -> int:
        """How many pieces it has, special ones included."""

    def token_to_id(self, token: str) -> int | None:
        """The number of a piece, None if it has none of that name."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoded:
        """A text in numbers, with the special ones that belong around it if they are asked for."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """See `Encoded`."""

    ids: Sequence[int]


class SentencePieceTokenizer:
    """See `Tokenizer`; a sentencepiece model.

    Args:
        processor: sentencepiece's own class, with the model loaded.
    """

    def __init__(self, processor: SentencePieceProcessor) -> None:
        self._processor = processor

    def get_vocab_size(self) -> int:
        """See `Tokenizer`."""
        return int(self._processor.get_piece_size())

    def token_to_id(self, token: str) -> int | None:
        """See `Tokenizer`."""
        number = int(self._processor.piece_to_id(token))
        # The library answers "unknown" for every name that it does not know.
        return number if self._processor.id_to_piece(number) == token else None

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Numbers:
        """See `Tokenizer`."""
        return Numbers(self._processor.encode(sequence, add_eos=add_special_tokens))


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json file, which cuts nothing and pads nothing.

    Raises:
        CheckpointError: the file is missing or not a tokenizer.
    """
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the text encoder needs its tokenizer", "restore the model folder"
        )
    try:
        content = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{path} cannot be read: {reason}", "restore the model folder"
        ) from None
    try:
        found = HuggingFaceTokenizer.from_str(content)
    except BaseException as error:  # bare Exception, and panics, which are not even that
        if not _is_librarys(error):
            raise
        raise CheckpointError(
            f"{path} is not a tokenizer file: {error}", "restore the model folder"
        ) from error
    if growth_of(json.loads(content).get("normalizer")) > GROWTH_LIMIT:
        raise CheckpointError(
            f"{path} is not a tokenizer file: its rules make a text more than {GROWTH_LIMIT} times "
            "as long",
            OTHER_TOKENIZER,
        )
    found.no_truncation()  # a prompt that is too long is an error, not half a prompt
    found.no_padding()
    return found


def growth_of(normalizer: object) -> int:
    """How many times as long the rules of a normalizer can make a text, at most.

    Each rule may double what the one before left, and the library heeds no time limit meanwhile.
    """
    if not isinstance(normalizer, dict):
        return 1
    growth = 1
    for step in normalizer.get("normalizers") or ():
        growth = min(growth * growth_of(step), GROWTH_LIMIT + 1)
    content, pattern = normalizer.get("content"), normalizer.get("pattern")
    if isinstance(content, str):
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        growth *= max(1, -(-len(content) // max(1, len(literal or ""))))
    return growth


def numbers_of(tokenizer: Tokenizer, text: str, *, rows: int) -> Sequence[int]:
    """Token numbers of a text; the rules of a tokenizer's file are others' and may never end.

    Args:
        tokenizer: the tokenizer.
        text: what to encode.
        rows: rows of the table that the numbers choose from.

    Raises:
        CheckpointError: the tokenizer fails, takes longer than `TIME_LIMIT_S`, or gives a number
            that no row has.
    """
    done: queue.SimpleQueue[Sequence[int] | BaseException] = queue.SimpleQueue()

    def encode() -> None:
        try:
            done.put(tokenizer.encode(text, add_special_tokens=False).ids)
        except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
            done.put(error)

    # A thread, since nothing interrupts a library that is at work; the process ends without it.
    threading.Thread(target=encode, name="tokenizer", daemon=True).start()
    try:
        found = done.get(timeout=TIME_LIMIT_S)
    except queue.Empty:
        raise CheckpointError(
            f"the tokenizer takes longer than {TIME_LIMIT_S:g} s for a prompt", OTHER_TOKENIZER
        ) from None
    if isinstance(found, BaseException):
        if not _is_librarys(found):
            raise found
        raise CheckpointError(f"the tokenizer fails: {found}", OTHER_TOKENIZER) from found
    odd = next((number for number in found if not 0 <= number < rows), None)
    if odd is not None:
        raise CheckpointError(
            f"the tokenizer gives the number {odd}, and the encoder has {rows} rows",
            OTHER_TOKENIZER,
        )
    return found


def _is_librarys(error: BaseException) -> bool:
    """Whether an error tells of a library's input: no signal, and not memory that ran out."""
    foreign = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    return foreign and not is_out_of_memory(error)


def from_sentencepiece(model: bytes, path: Path) -> SentencePieceTokenizer:
    """The tokenizer of a sentencepiece model.

    Args:
        model: the model, as sentencepiece writes it into spiece.model.
        path: where it comes from, for messages.

    Raises:
        CheckpointError: it is no such model.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor()
        processor.LoadFromSerializedProto(model)
    except Exception as error:  # its classes of errors differ between versions
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{path} holds no sentencepiece model that can be read: {error}", OTHER_TOKENIZER
        ) from error
    return SentencePieceTokenizer(processor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A unigram model of sentencepiece, as a GGUF file lists it.

    Attributes:
        texts: the pieces.
        scores: logarithm of the probability of each.
        kinds: sentencepiece's kind of each (1 normal, 2 unknown, 3 control, …).
        charsmap: how characters are normalised, empty for not at all.
        add_prefix: whether a text begins with a space.
        merge_spaces: whether runs of spaces become one, and those at the ends go.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    charsmap: bytes = b""
    add_prefix: bool = True
    merge_spaces: bool = True

    def model(self) -> bytes:
        """The pieces as sentencepiece writes a model."""
        listed = zip(self.texts, self.scores, self.kinds, strict=True)
        pieces = b"".join(
            _text(1, _text(1, text.encode()) + _float(2, score) + _whole(3, kind))
            for text, score, kind in listed
        )
        trained = _whole(3, UNIGRAM) + _whole(35, int(BYTE in self.kinds))
        spaces = _whole(3, int(self.add_prefix)) + _whole(4, int(self.merge_spaces))
        return pieces + _text(2, trained) + _text(3, _text(2, self.charsmap) + spaces)


def _varint(number: int) -> bytes:
    """A whole number in protobuf's encoding: seven bits a byte, lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _whole(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", number)


def _text(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content

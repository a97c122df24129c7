"""The tokenizer that belongs to a text encoder: where it lies, and how its file is read.

What a file is is told by its content: a tokenizer.json, a sentencepiece model, or a file of weights
that brings one of its own.
Source of what such files bring: ComfyUI comfy/text_encoders/wan.py (the tensor `spiece_model`);
llama.cpp conversion/t5.py (`tokenizer.ggml.*`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfgen.checkpoint.formats.base import CHECK_PATH, Container, unreadable
from cfgen.checkpoint.formats.open import open_container
from cfgen.errors import CheckpointError
from cfgen.files.reading import open_binary, read_bytes
from cfgen.model.tokenizer import (
    OTHER_TOKENIZER,
    Pieces,
    Tokenizer,
    from_sentencepiece,
    load_tokenizer,
)

EMBEDDED = "spiece_model"
"""The tensor in which ComfyUI's files hold a sentencepiece model, as bytes."""

NAMES = ("tokenizer.json", "spiece.model", "tokenizer.model")
"""What a tokenizer's file is called; Wan itself reads the first."""

FOLDERS = ("", "tokenizer", "google/umt5-xxl", "../tokenizer")
"""Where it lies, seen from the weights: as in UMT5's own, diffusers', Wan's folders."""

CACHED = {
    "google/umt5-xxl": "",
    "Wan-AI/Wan2.1-T2V-1.3B": "google/umt5-xxl/",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "tokenizer/",
}
"""Repositories on the Hugging Face hub that hold it, and where."""

LIMIT = 64_000_000
"""Bytes of the longest sentencepiece model that is read; UMT5's has 4.5 million."""

GGML = "tokenizer.ggml."

KINDS = {1, 2, 3, 4, 5, 6}
"""Sentencepiece's kinds of pieces."""


def find_tokenizer(weights: Path, given: Path | None = None) -> Path:
    """The file that holds the tokenizer of an encoder; nothing is downloaded.

    It is, in this order: the given one; the weights themselves, if they bring it; one that lies
    where `FOLDERS` says; one in the Hugging Face cache.

    Args:
        weights: the encoder's weights.
        given: a tokenizer's file or folder, if the user names one.

    Raises:
        CheckpointError: there is none.
    """
    if given is not None:
        return _given(given)
    if has_tokenizer(open_container(weights)):
        return weights
    beside = (weights.parent / folder / name for folder in FOLDERS for name in NAMES)
    found = next((path for path in beside if path.is_file()), None)
    found = found or next(_cached(), None)
    if found is None:
        raise CheckpointError(
            f"{weights} brings no tokenizer and none lies beside it, nor is UMT5's in the Hugging "
            "Face cache",
            f"{OTHER_TOKENIZER} with --tokenizer, or put it beside the weights, or "
            "`cfgen models pull google/umt5-xxl/spiece.model`",
        )
    return found


def _given(path: Path) -> Path:
    if not path.is_dir():
        return path
    places = [path / folder / name for folder in FOLDERS[:-1] for name in NAMES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{path} holds no tokenizer: none of {', '.join(NAMES)} is there", OTHER_TOKENIZER
        )
    return found


def _cached() -> Iterator[Path]:
    from huggingface_hub import try_to_load_from_cache

    for repo, folder in CACHED.items():
        for name in NAMES:
            found = try_to_load_from_cache(repo, folder + name)
            if isinstance(found, str):
                yield Path(found)


def has_tokenizer(file: Container) -> bool:
    """Whether a file of weights brings a tokenizer that cfgen reads."""
    return EMBEDDED in file.entries or file.metadata.get(f"{GGML}model") == "t5"


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file.

    Args:
        path: a tokenizer.json, a sentencepiece model, or weights that bring one.

    Raises:
        CheckpointError: the file is missing, damaged or holds none.
    """
    start = _start(path)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return load_tokenizer(path)
    if start.startswith(b"\n") and start[8:9] != b"{":  # the first piece; no safetensors header
        return from_sentencepiece(read_bytes(path, limit=LIMIT), path)
    file = open_container(path)
    if EMBEDDED in file.entries:
        return from_sentencepiece(_embedded(file), path)
    if has_tokenizer(file):
        return from_sentencepiece(_pieces(file).model(), path)
    raise CheckpointError(f"{path} holds no tokenizer", OTHER_TOKENIZER)


def _start(path: Path) -> bytes:
    try:
        with open_binary(path) as file:
            return file.read(64)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: the text encoder needs its tokenizer", CHECK_PATH
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _embedded(file: Container) -> bytes:
    entry = file.entries[EMBEDDED]
    if entry.kind not in ("uint8", "int8") or entry.nbytes > LIMIT:
        raise CheckpointError(
            f"{file.path}: {EMBEDDED} must be at most {LIMIT} bytes, got {entry.kind} "
            f"{list(entry.shape)}",
            OTHER_TOKENIZER,
        )
    return file.read(EMBEDDED).numpy().tobytes()


def _pieces(file: Container) -> Pieces:
    """The pieces that a GGUF file lists."""
    texts = file.metadata.get(f"{GGML}tokens")
    scores, kinds = _numbers(file, "scores", "float32"), _numbers(file, "token_type", "int32")
    whole = (
        isinstance(texts, list)
        and all(isinstance(text, str) for text in texts)
        and len(texts) == len(scores) == len(kinds)
        and bool(np.isfinite(scores).all())
        and set(np.unique(kinds).tolist()) <= KINDS
    )
    if not isinstance(texts, list) or not whole:
        raise CheckpointError(
            f"{file.path} is damaged: the pieces of its tokenizer, their scores and their types do "
            "not belong together",
            OTHER_TOKENIZER,
        )
    return Pieces(
        texts=texts,
        scores=scores.tolist(),
        kinds=kinds.tolist(),
        charsmap=_numbers(file, "precompiled_charsmap", "uint8", "int8").tobytes(),
        add_prefix=file.metadata.get(f"{GGML}add_space_prefix") is not False,
        merge_spaces=file.metadata.get(f"{GGML}remove_extra_whitespaces") is not False,
    )


def _numbers(file: Container, key: str, *dtypes: str) -> NDArray[np.generic]:
    """A list of numbers from a GGUF file's header; empty if it is none, or of other dtypes."""
    found = file.metadata.get(GGML + key)
    if not isinstance(found, np.ndarray) or found.dtype.name not in dtypes:
        return np.empty(0, np.uint8)
    return found

"""Prompts are encoded first and kept by hash: the encoder is needed once and then freed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Encode = Callable[[list[str]], Tensor]


def embeddings(
    prompts: Sequence[str], *, encoder: str, load: Callable[[], Encode], folder: Path
) -> dict[str, Tensor]:
    """Embeddings of prompts, from the cache where they are there.

    Args:
        prompts: the texts.
        encoder: digest of everything that the embeddings depend on besides the text.
        load: loads the encoder; called only if a prompt is not cached.
        folder: the cache. A file in it that cannot be read counts as absent and is written anew.

    Returns:
        prompt -> [1, text_len, text_dim] float32.
    """
    found: dict[str, Tensor] = {}
    paths = {prompt: folder / f"{_key(encoder, prompt)}.safetensors" for prompt in prompts}
    for prompt, path in paths.items():
        cached = _read(path)
        if cached is not None:
            found[prompt] = cached
    missing = [prompt for prompt in paths if prompt not in found]
    if missing:
        encode = load()
        for prompt in missing:
            # One at a time: beside a longer one, padding would change its last bits.
            with torch.inference_mode():
                found[prompt] = encode([prompt]).float().cpu().contiguous()
            _write(paths[prompt], found[prompt])
    return found


def _key(encoder: str, prompt: str) -> str:
    return hashlib.sha256(f"{encoder}\0{prompt}".encode()).hexdigest()[:40]


def _read(path: Path) -> Tensor | None:
    try:
        return load_file(path)["embedding"]
    except (OSError, SafetensorError, KeyError):
        return None


def _write(path: Path, embedding: Tensor) -> None:
    """Write atomically; a cache that cannot be written is no reason to stop."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embedding": embedding}, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

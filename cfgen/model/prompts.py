"""Prompts are encoded first and kept by hash: the encoder is needed once and then freed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from cfgen.files.reading import read_bytes
from cfgen.files.writing import write_file

Encode = Callable[[list[str]], Tensor]


def embeddings(
    prompts: Sequence[str], *, encoder: str, load: Callable[[], Encode], folder: Path
) -> dict[str, Tensor]:
    """Embeddings of prompts, from the cache where they are there.

    Args:
        prompts: the texts.
        encoder: digest of everything that the embeddings depend on besides the text.
        load: loads the encoder; called only if a prompt is not cached.
        folder: the cache. A file in it that cannot be read, or is not what was written for this
            encoder and prompt, counts as absent and is written anew.

    Returns:
        prompt -> [1, text_len, text_dim] float32.
    """
    found: dict[str, Tensor] = {}
    keys = {prompt: _key(encoder, prompt) for prompt in prompts}
    paths = {prompt: folder / f"{key[:40]}.safetensors" for prompt, key in keys.items()}
    for prompt, path in paths.items():
        cached = _read(path, keys[prompt])
        if cached is not None:
            found[prompt] = cached
    missing = [prompt for prompt in paths if prompt not in found]
    if missing:
        encode = load()
        for prompt in missing:
            # One at a time: beside a longer one, padding would change its last bits.
            with torch.inference_mode():
                found[prompt] = encode([prompt]).float().cpu().contiguous()
            _write(paths[prompt], found[prompt], keys[prompt])
    return found


def _key(encoder: str, prompt: str) -> str:
    return hashlib.sha256(f"{encoder}\0{prompt}".encode()).hexdigest()


def _read(path: Path, key: str) -> Tensor | None:
    """What `_write` wrote for this key, or None if the file is anything else."""
    try:
        content = read_bytes(path)
        embedding = safetensors_torch.load(content)["embedding"]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    whole = embedding.dtype == torch.float32 and content == _content(embedding, key)
    return embedding if whole else None


def _content(embedding: Tensor, key: str) -> bytes:
    """The file of an embedding: its digest, over the key and the bits, is in the header."""
    digest = hashlib.sha256(f"{key}\0{list(embedding.shape)}\0".encode())
    digest.update(embedding.contiguous().flatten().view(torch.uint8).numpy().data)
    return safetensors_torch.save({"embedding": embedding}, metadata={"sha256": digest.hexdigest()})


def _write(path: Path, embedding: Tensor, key: str) -> None:
    """Write atomically; a cache that cannot be written is no reason to stop."""
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, _content(embedding, key), shared=True)

"""Opens a file of weights of any format; its first bytes tell which, of an index its name."""

from __future__ import annotations

from pathlib import Path

from cfgen.checkpoint.formats import gguf, safetensors, torch_zip
from cfgen.checkpoint.formats.base import (
    FETCH_AGAIN,
    NAME_LIMIT,
    Container,
    first_bytes,
    is_safetensors,
)
from cfgen.errors import CheckpointError


def open_container(path: Path) -> Container:
    """Open a safetensors, GGUF or PyTorch file, or the index of a sharded one.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it is cut off, damaged or
            something else; the message says what.
    """
    start = first_bytes(path)
    opened: Container
    if path.name.endswith(".index.json"):
        opened = safetensors.open_sharded(path)
    elif start.startswith(gguf.MAGIC):
        opened = gguf.open_gguf(path)
    elif start.startswith(torch_zip.MAGICS) and not is_safetensors(start):
        opened = torch_zip.open_torch(path)
    else:
        opened = safetensors.open_safetensors(path)
    odd = next((n for n in opened.entries if not n.isprintable() or len(n) > NAME_LIMIT), None)
    if odd is not None:
        raise CheckpointError(f"{path} is damaged: no tensor is named {odd[:40]!r}", FETCH_AGAIN)
    return opened

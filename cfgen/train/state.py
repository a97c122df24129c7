"""The state of a training run on disk: shards of tensors, and the file that makes them current."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cfgen.errors import CheckpointError
from cfgen.files.reading import read_text
from cfgen.files.writing import write_file

SHARD_BYTES = 15 * 2**20


def save_state(folder: Path, tensors: Mapping[str, Tensor], *, step: int, seconds: float) -> None:
    """Write shards of at most 15 MiB, then at once the file that makes them the current state."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.cpu().contiguous()
        size += tensor.nbytes
    names = [f"state-{step:07d}-{i:02d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, save(shard), shared=True)
    record = {"step": step, "seconds": round(seconds, 1), "shards": names}
    write_file(folder / "state.json", json.dumps(record).encode(), shared=True)
    for old in folder.glob("state-*.safetensors"):
        if old.name not in names:
            old.unlink()


def read_state(folder: Path) -> tuple[int, float, dict[str, Tensor]] | None:
    """Step, seconds spent and tensors of the current state; None where a run has not begun.

    Raises:
        CheckpointError: it is damaged.
    """
    if not (folder / "state.json").exists():
        return None
    tensors: dict[str, Tensor] = {}
    try:
        record = json.loads(read_text(folder / "state.json"))
        for name in record["shards"]:
            with safe_open(folder / name, "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        return record["step"], record["seconds"], tensors
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the training state in {folder} is damaged: {error}",
            "remove the folder to train the stage from the start",
        ) from error

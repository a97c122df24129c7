"""The state of a training run on disk: shards of tensors, and the file that makes them current.

Weights are the same in all processes, and the first one writes them, with averages and optimizer
states unless processes share those out: then each writes its part, and all parts are read as one.
What else a stage keeps may differ, as an error bank does, so each process writes its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cfgen.errors import CheckpointError
from cfgen.files.reading import read_text
from cfgen.files.writing import write_file

SHARD_BYTES = 15 * 2**20


def save_shards(folder: Path, step: int, tensors: Mapping[str, Tensor], kind: str) -> list[str]:
    """Write tensors in shards of at most 15 MiB, which nothing reads yet.

    Args:
        folder: of the run.
        step: that the tensors are of.
        tensors: by name.
        kind: what tells the files from others of the step.

    Returns:
        The names of the files.
    """
    shards: list[dict[str, Tensor]] = [{}] if tensors else []
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.cpu().contiguous()
        size += tensor.nbytes
    names = [f"state-{step:07d}-{kind}-{i:02d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, save(shard), shared=True)
    return names


def make_current(
    folder: Path, *, step: int, seconds: float, shards: Sequence[str], own: Sequence[Sequence[str]]
) -> None:
    """Make shards that are on disk the current state, and remove older ones.

    Args:
        folder: of the run.
        step: that the state is of.
        seconds: spent so far.
        shards: names of the files that every process reads.
        own: names of the files that one process reads, for each.
    """
    record = {"step": step, "seconds": round(seconds, 1), "shards": shards, "own": own}
    write_file(folder / "state.json", json.dumps(record).encode(), shared=True)
    current = {*shards, *chain.from_iterable(own)}
    for old in folder.glob("state-*.safetensors"):
        if old.name not in current:
            old.unlink()


def read_state(
    folder: Path, process: int = 0, wanted: Callable[[str], bool] = lambda _name: True
) -> tuple[int, float, dict[str, Tensor]] | None:
    """Step, seconds spent and tensors of the current state; None where a run has not begun.

    Args:
        folder: of the run.
        process: its own tensors are read, too. Where more processes go on than the state is of,
            they take turns with what there is; what is of more processes than go on is left out.
        wanted: tells of a tensor's name whether it is read.

    Raises:
        CheckpointError: it is damaged.
    """
    if not (folder / "state.json").exists():
        return None
    tensors: dict[str, Tensor] = {}
    try:
        record = json.loads(read_text(folder / "state.json"))
        own = record.get("own") or [[]]  # older states hold everything in shards
        for name in (*record["shards"], *own[process % len(own)]):
            with safe_open(folder / name, "pt") as file:
                names = [key for key in file.keys() if wanted(key)]  # noqa: SIM118 - not a mapping
                tensors |= {key: file.get_tensor(key) for key in names}
        return record["step"], record["seconds"], tensors
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the training state in {folder} is damaged: {error}",
            "remove the folder to train the stage from the start",
        ) from error

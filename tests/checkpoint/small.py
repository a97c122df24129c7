"""Files of one or two small quantized layers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.naming import Naming, NamingScheme, unchanged
from cfgen.checkpoint.networks.network import describe_network
from tests.checkpoint.conftest import marker

FORMAT = {"format": "int8_tensorwise"}
WEIGHT = torch.tensor([[1, -2, 127], [0, 5, -127]], dtype=torch.int8)
FP8 = torch.tensor([[1.0, -2.0, 448.0], [0.0, 5.0, -0.5]]).to(torch.float8_e4m3fn)
COLUMN = torch.tensor([[0.5], [2.0]])

Tensors = dict[str, Tensor]


def layer(name: str = "m", **ends: Tensor | None) -> Tensors:
    """The tensors of a layer by the ends of their names (`__` for a dot), without those of None."""
    return {f"{name}.{end.replace('__', '.')}": t for end, t in ends.items() if t is not None}


def parts(scale: Tensor = COLUMN, **changes: Tensor | None) -> Tensors:
    """A declared int8 layer `m` with its bias; a change to None takes a tensor away."""
    ends = {"weight": WEIGHT, "weight_scale": scale, "comfy_quant": marker(**FORMAT), **changes}
    return layer(**ends, bias=torch.tensor([1.0, 2.0], dtype=torch.bfloat16))


def saved(tensors: Tensors, folder: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file(
        {name: t.clone() for name, t in tensors.items()}, folder / "weights.safetensors", metadata
    )
    return folder / "weights.safetensors"


def load_state(path: Path, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every tensor of a file under the name that it has there, dequantized.

    Args:
        path: the file.
        dtype: of what was quantized; plain tensors keep theirs.

    Raises:
        CheckpointError: the file is damaged or of an unknown layout.
    """
    file = open_container(path)
    naming = Naming(
        NamingScheme("the file's own", "", unchanged), "", {name: name for name in file.entries}
    )
    network = describe_network(file, naming)
    stored = ((name, network.read(name)) for name in network.layers)
    return {
        name: value if isinstance(value, Tensor) else value.dequantize(dtype)
        for name, value in stored
    }

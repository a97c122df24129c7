"""LoRA files for the tests, and the sums that they must give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cfgen.model.generator import Generator

RANK, ALPHA = 3, 6.0
SCALE = ALPHA / RANK
PEFT, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
ADAPTER = ("lora_A.default.weight", "lora_B.default.weight")


Pairs = dict[str, tuple[Tensor, Tensor]]


def summed(base: Generator, pairs: Pairs, factor: float) -> dict[str, Tensor]:
    """The weights of a generator with all pairs merged, worked out directly in float64."""
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for name, (down, up) in pairs.items():
        weight = state[f"{name}.weight"]
        product = (up.double() @ down.double().flatten(1)).view(weight.shape)
        state[f"{name}.weight"] = (weight + factor * product).to(weight.dtype)
    return state


def assert_same(generator: Generator, state: dict[str, Tensor], atol: float = 1e-6) -> None:
    found = generator.state_dict()
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=atol, msg=name)


def saved(tensors: dict[str, Tensor], folder: Path, **metadata: str) -> Path:
    path = folder / "lora.safetensors"
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, path, metadata or None)
    return path


def named(
    pairs: Pairs, layer: Callable[[str], str], down: str, up: str, *, alpha: bool = False
) -> dict[str, Tensor]:
    """A file's tensors in one tool's names."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in pairs.items():
        tensors |= {f"{layer(name)}.{down}": a, f"{layer(name)}.{up}": b}
        if alpha:
            tensors[f"{layer(name)}.alpha"] = torch.tensor(ALPHA)
    return tensors

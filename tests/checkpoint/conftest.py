"""Files that a checkpoint may be, and files that only look like one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cfgen.model.generator import Generator, WanConfig
from tests.strategies import random_generator

SMALL = WanConfig(
    dim=12, ffn_dim=10, num_heads=2, num_layers=2, in_dim=3, out_dim=3, text_len=4, text_dim=5
)


@pytest.fixture
def generator() -> Generator:
    return random_generator(SMALL)


@pytest.fixture
def state(generator: Generator) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in generator.state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a model folder of a state dict and a config; a value of None leaves a key out."""

    def make(state: dict[str, Tensor], config: dict | None = None, **changes: object) -> Path:
        said = dataclasses.asdict(SMALL) if config is None else config
        said = {k: v for k, v in {**said, **changes}.items() if v is not None}
        save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
        return tmp_path

    return make


def marker(**settings: object) -> Tensor:
    """A `comfy_quant` tensor."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)

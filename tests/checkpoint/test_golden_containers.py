"""Every recorded case of a generator, from every kind of file, through `load_generator`.

The whole product is rolled out: no case and no container is left to an argument about the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgen.checkpoint.lora.apply import Applied, apply_lora, open_lora
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.model.generator import Generator
from cfgen.model.quantized import QuantizedLinear
from tests.checkpoint import tiny
from tests.checkpoint.golden_files import EXACT, QUANTIZED, Weights
from tests.golden.cases import FOLDER, TABLES, forward, load_case, paged, play

FLOAT32 = 2e-5

CLIPS, FORWARD = "tiny_wan", "wan_bidir_original"
"""Files with the recorded weights: those of all clips, and those of the one forward."""

Files = Callable[[str, str], Path]


@functools.cache
def recorded(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def weights_of(name: str) -> Weights:
    return {tensor: value for tensor, value in recorded(name).items() if "/" not in tensor}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Recorded weights in a kind of file, written when they are asked for first."""

    @functools.cache
    def written(container: str, weights: str) -> Path:
        write = EXACT[container] if container in EXACT else QUANTIZED[container][0]
        return write(weights_of(weights), tmp_path_factory.mktemp("files"))

    return written


def clip(generator: Generator, name: str, memory: str = "") -> Tensor:
    return play(load_case(name), generator, paged(TABLES[memory or name])).latents


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def rms(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt())


@pytest.mark.parametrize("container", EXACT)
@pytest.mark.parametrize("weights", [CLIPS, FORWARD])
def test_every_weight_is_the_recorded_one(weights: str, container: str, files: Files) -> None:
    found = load_generator(files(container, weights)).state_dict()
    expected = weights_of(weights)
    assert found.keys() == expected.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("container", EXACT)
@pytest.mark.parametrize("name", TABLES)
def test_recorded_clip_is_reproduced(name: str, container: str, files: Files) -> None:
    generator = load_generator(files(container, CLIPS))
    assert error(clip(generator, name), recorded(name)["latents"]) < FLOAT32


@pytest.mark.parametrize("container", EXACT)
def test_recorded_clip_with_a_lora_is_reproduced(
    container: str, files: Files, tmp_path: Path
) -> None:
    start = "generator_lora/"
    lora = {n: t for n, t in recorded("ll_lora").items() if n.startswith(start)}
    save_file({n.removeprefix(start): t for n, t in lora.items()}, tmp_path / "lora.safetensors")
    generator = load_generator(files(container, CLIPS))
    opened = open_lora(tmp_path / "lora.safetensors", alpha=4)
    assert apply_lora(generator, opened, 1) == Applied(merged=30)
    found = clip(generator, "ll_lora", "ll_plain")
    assert error(found, recorded("ll_lora")["latents"]) < FLOAT32


@pytest.mark.parametrize("container", EXACT)
def test_recorded_forward_is_reproduced(container: str, files: Files) -> None:
    generator = load_generator(files(container, FORWARD))
    case = recorded(FORWARD)
    assert error(forward(generator, case), case["out/flow"]) < FLOAT32


def test_live_weights_of_a_training_state_give_another_clip(files: Files) -> None:
    generator = load_generator(files("training state", CLIPS), prefer="generator")
    assert rms(clip(generator, "ll_plain"), recorded("ll_plain")["latents"]) > 0.1


@pytest.mark.parametrize("container", QUANTIZED)
def test_quantized_file_comes_as_close_as_its_format_can(container: str, files: Files) -> None:
    path = files(container, CLIPS)
    kept, expanded = load_generator(path), load_generator(path, expand=True)
    layers = {n for n, m in kept.named_modules() if isinstance(m, QuantizedLinear)}
    assert layers == {n.removesuffix(".weight") for n in weights_of(CLIPS) if tiny.is_packed(n)}
    assert not any(isinstance(m, QuantizedLinear) for m in expanded.modules())
    found = clip(kept, "ll_plain")
    assert torch.equal(found, clip(expanded, "ll_plain"))
    expected = pytest.approx(QUANTIZED[container][1], rel=0.15)
    assert rms(found, recorded("ll_plain")["latents"]) == expected

"""LongLive's LoRA on its base against what the published code computed with both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cfgen.checkpoint.lora.apply import Applied, apply_lora, open_lora
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.model.generator import Generator
from cfgen.model.quantized import QuantizedLinear
from tests.checkpoint.conftest import marker
from tests.golden.cases import TABLES, TINY, load_case, paged, play


@pytest.fixture(scope="module")
def longlive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recorded base and LoRA as a user has them."""
    folder = tmp_path_factory.mktemp("longlive")
    tensors = load_case("ll_lora").tensors
    base, lora = (
        {
            n.removeprefix(f"{part}/"): t.clone()
            for n, t in tensors.items()
            if n.startswith(f"{part}/")
        }
        for part in ("generator", "generator_lora")
    )
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    torch.save({"generator": base}, folder / "base.pt")
    torch.save({"generator_lora": lora, "step": 1}, folder / "lora.pt")
    save_file(base, folder / "base.safetensors")
    save_file(lora, folder / "lora.safetensors")
    small = {}
    for name, tensor in base.items():
        layer = name.removesuffix(".weight")
        if tensor.ndim != 2 or ".blocks." not in f".{name}":
            small[name] = tensor
            continue
        scale = tensor.abs().amax(1, keepdim=True) / 127
        small[name] = (tensor / scale).round().to(torch.int8)
        small[f"{layer}.weight_scale"] = scale
        small[f"{layer}.comfy_quant"] = marker(format="int8_tensorwise")
    save_file(small, folder / "base_int8.safetensors")
    return folder


def with_lora(folder: Path, base: str, lora: str, *, expand: bool = False) -> Generator:
    generator = load_generator(folder / base, expand=expand)
    quantized = any(isinstance(layer, QuantizedLinear) for layer in generator.modules())
    applied = apply_lora(generator, open_lora(folder / lora, alpha=4), 1)
    assert applied == (Applied(unmerged=30) if quantized else Applied(merged=30))
    return generator


def test_longlives_lora_gives_the_recorded_clip(longlive: Path) -> None:
    case = load_case("ll_lora")
    generator = with_lora(longlive, "base.pt", "lora.pt")
    assert play(case, generator, paged(TABLES["ll_plain"])).error(case) < 2e-5
    other = with_lora(longlive, "base.safetensors", "lora.safetensors").state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in generator.state_dict().items())


def test_recorded_clip_needs_its_lora(longlive: Path) -> None:
    case = load_case("ll_lora")
    generator = load_generator(longlive / "base.pt")
    assert play(case, generator, paged(TABLES["ll_plain"])).error(case) > 0.02


def test_unmerged_lora_gives_the_clip_of_the_merged_one(longlive: Path) -> None:
    case = load_case("ll_lora")
    beside, merged = (
        play(
            case,
            with_lora(longlive, "base_int8.safetensors", "lora.safetensors", expand=expand),
            paged(TABLES["ll_plain"]),
        ).latents
        for expand in (False, True)
    )
    torch.testing.assert_close(beside, merged, rtol=0, atol=2e-5)
    assert float((merged - case.tensors["latents"]).square().mean().sqrt()) < 0.05

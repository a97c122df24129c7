"""LoRA for training: what learns, and that files and merged weights give the same sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cfgen.checkpoint.lora.apply import apply_lora, open_lora
from cfgen.errors import UsageError
from cfgen.model.generator import Generator, WanConfig
from cfgen.train.context_forcing.lora import LoraSettings, add_lora, merged, save_lora

GEOMETRY = WanConfig(dim=16, ffn_dim=24, num_heads=2, num_layers=2, text_dim=8, text_len=8)
SETTINGS = LoraSettings(rank=3, alpha=6.0)
LAYERS = [f"{part}.{m}" for part in ("self_attn", "cross_attn") for m in "qkvo"]
LAYERS += ["ffn.0", "ffn.2"]


def _generator(dtype: torch.dtype = torch.float32) -> Generator:
    torch.manual_seed(0)
    return Generator(GEOMETRY).to(dtype)


def _trained(dtype: torch.dtype = torch.float32) -> Generator:
    """A generator whose factors are no longer as they began."""
    generator = _generator(dtype)
    with torch.no_grad():
        for factor in add_lora(generator, SETTINGS, seed=1):
            factor.normal_()
    return generator


def test_factors_alone_learn_and_begin_without_effect() -> None:
    generator = _generator()
    x = torch.randn(2, 5, 16)
    before = generator.blocks[0].self_attn.q(x)
    factors = add_lora(generator, SETTINGS, seed=1)
    learning = [name for name, p in generator.named_parameters() if p.requires_grad]
    expected = [
        f"blocks.{block}.{layer}.lora_{factor}"
        for block in range(2)
        for layer in LAYERS
        for factor in "AB"
    ]
    assert sorted(learning) == sorted(expected)
    assert len(factors) == len(expected)
    assert {f.dtype for f in factors} == {torch.float32}
    assert torch.equal(generator.blocks[0].self_attn.q(x), before)
    q = generator.blocks[0].self_attn.q
    assert q.lora_B.eq(0).all()
    assert 0 < q.lora_A.abs().max() <= 1 / 16**0.5  # Kaiming's bound at a = sqrt 5


def test_a_seed_gives_the_same_start() -> None:
    one, same, other = _generator(), _generator(), _generator()
    for generator, seed in ((one, 1), (same, 1), (other, 2)):
        add_lora(generator, SETTINGS, seed=seed)
    a, b, c = (g.blocks[1].ffn[2].lora_A for g in (one, same, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_read_back_gives_the_merged_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    trained = _trained(dtype)
    weights = dict(trained.state_dict())
    save_lora(weights, SETTINGS, tmp_path / "lora.safetensors")
    lora = open_lora(tmp_path / "lora.safetensors")
    assert lora.kind == "diffusers"
    assert {change.scale for change in lora.changes.values()} == {SETTINGS.scale}
    rendered = _generator(dtype)
    assert apply_lora(rendered, lora, 1.0).merged == 2 * len(LAYERS)
    summed = merged(weights, SETTINGS)
    assert summed.keys() == rendered.state_dict().keys()
    for name, tensor in rendered.state_dict().items():
        assert torch.equal(tensor, summed[name]), name


def test_merged_weights_compute_what_the_factors_do() -> None:
    trained = _trained()
    plain = _generator()
    plain.load_state_dict(merged(trained.state_dict(), SETTINGS))
    x = torch.randn(4, 16)
    for name in LAYERS[:-1]:
        ours, theirs = (g.blocks[1].get_submodule(name)(x) for g in (trained, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [("q", "up"), ("norm_q",), ("0.q",)])
def test_a_name_that_fits_no_layer_is_refused(layers: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=repr(layers[-1])):
        add_lora(_generator(), LoraSettings(rank=2, layers=layers), seed=0)

"""A second set of weights in a generator's file: told apart, complete or refused, and rendered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgen.checkpoint.convert.input import open_source
from cfgen.checkpoint.inspect.inspect import inspect
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.checkpoint.networks.memory_weights import MEMORY, memory_name
from cfgen.config.loader import load
from cfgen.errors import CheckpointError
from cfgen.pipeline.build import build_source
from cfgen.pipeline.cpu_offload import offload_blocks
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import estimate_memory
from tests.render.film import Film

GENERATOR = "diffusion_pytorch_model.safetensors"

NAMES = {
    "patch_embedding.weight": "memory_patch_embedding.weight",
    "text_embedding.0.bias": "memory_text_embedding.0.bias",
    "time_embedding.2.weight": "memory_time_embedding.2.weight",
    "time_projection.1.weight": "memory_time_projection.1.weight",
    "head.head.weight": "memory_head.head.weight",
    "head.modulation": "memory_head.modulation",
    "blocks.3.modulation": "blocks.3.memory_modulation",
    "blocks.11.self_attn.q.weight": "blocks.11.self_attn.q.memory_weight",
    "blocks.0.self_attn.norm_k.weight": "blocks.0.self_attn.norm_k.memory_weight",
    "blocks.0.cross_attn.o.bias": "blocks.0.cross_attn.o.memory_bias",
    "blocks.0.norm3.bias": "blocks.0.norm3.memory_bias",
    "blocks.0.ffn.2.weight": "blocks.0.ffn.2.memory_weight",
}


@pytest.mark.parametrize("native", NAMES)
def test_names_are_those_of_the_release(native: str) -> None:
    assert memory_name(native) == NAMES[native]
    assert MEMORY.sub("", NAMES[native], count=1) == native
    assert MEMORY.sub("", native, count=1) == native


def doubled(weights: dict[str, Tensor], scale: float = 0.5) -> dict[str, Tensor]:
    """Weights with a second set beside them that is another one; half is exact in every dtype."""
    return weights | {memory_name(name): scale * tensor for name, tensor in weights.items()}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder whose generator has both sets."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    save_file(doubled(load_file(folder / GENERATOR)), folder / GENERATOR)
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    weights = load_file(folder / GENERATOR)
    change(weights)
    save_file(weights, folder / GENERATOR)
    return folder


def test_both_sets_are_loaded(model: Path, tiny_model: Path) -> None:
    generator, plain = load_generator(model), load_generator(tiny_model)
    assert plain.writer is None
    assert generator.writer is not None
    for name, tensor in plain.state_dict().items():
        assert torch.equal(generator.state_dict()[name], tensor)
        assert torch.equal(generator.writer.state_dict()[name], 0.5 * tensor)


@pytest.mark.parametrize("prefix", ["model.", "model._fsdp_wrapped_module."])
def test_both_sets_of_a_training_state_are_read(
    prefix: str, tiny_model: Path, tmp_path: Path
) -> None:
    """As the release's own file holds them: two sets under each of two names."""
    weights = load_file(tiny_model / GENERATOR)
    state = {
        key: {prefix + name: t for name, t in doubled(weights, scale).items()}
        for key, scale in (("generator", 0.3), ("generator_ema", 0.6))
    }
    torch.save(state, tmp_path / "model.pt")
    shutil.copy(tiny_model / "config.json", tmp_path)
    for prefer, scale in (("generator_ema", 0.6), ("generator", 0.3)):
        writer = load_generator(tmp_path / "model.pt", prefer=prefer).writer
        assert writer is not None
        assert torch.equal(writer.head.head.weight, scale * weights["head.head.weight"])


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


def put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop("blocks.1.self_attn.q.memory_weight"), "lacks blocks.1.self_attn.q.memory_weight"),
        (drop("memory_head.modulation"), "lacks memory_head.modulation"),
        (put("blocks.0.memory_modulation", 1, 6, 5), r"has blocks.0.memory_modulation \[1, 6, 5\]"),
        (put("blocks.9.norm3.memory_bias", 24), "has unknown blocks.9.norm3.memory_bias"),
        (put("memory_gate.weight", 2), "has unknown memory_gate.weight"),
        (put("head.modulation", 1, 2, 24), "no training leaves it"),
        (put("blocks.0.self_attn.q.memory_weight", 24, 24), "no training leaves it"),
    ],
)
def test_a_set_that_is_not_whole_is_refused(
    change: Callable[[dict[str, Tensor]], object], told: str, model: Path
) -> None:
    with pytest.raises(CheckpointError, match=told):
        load_generator(rewritten(model, change))


def test_inspect_counts_the_second_set_and_refuses_half_of_one(model: Path) -> None:
    report = inspect(model / GENERATOR, values=True)
    assert report.refusal is None
    assert report.network is not None
    assert report.network.second_set == len(report.network.tensors)
    rewritten(model, drop("memory_head.head.bias"))
    refusal = inspect(model / GENERATOR).refusal
    assert refusal is not None
    assert "memory_head.head.bias" in refusal.message


def test_a_file_with_two_sets_is_neither_written_anew_nor_trained(model: Path) -> None:
    with pytest.raises(CheckpointError, match="second set"):
        open_source(model)
    with pytest.raises(CheckpointError, match="second set.*training"):
        load_generator(model, untrained=True)


def test_blocks_of_both_sets_wait_in_main_memory(model: Path) -> None:
    generator = load_generator(model)
    assert generator.writer is not None
    offload_blocks(generator, torch.device("cpu"))
    waiting = [generator.blocks[1].ffn[0].weight, generator.writer.blocks[1].ffn[0].weight]
    assert {weight.device.type for weight in waiting} == {"meta"}
    assert generator.writer.patch_embedding.weight.device.type == "cpu"


def test_a_lora_changes_both_sets(model: Path, tiny_settings: list[str], tmp_path: Path) -> None:
    pair = {"lora_A": torch.randn(2, 24), "lora_B": torch.randn(24, 2)}
    layer = "diffusion_model.blocks.0.self_attn.q"
    save_file(
        {f"{layer}.{part}.weight": t for part, t in pair.items()}, tmp_path / "lora.safetensors"
    )
    exact = [*tiny_settings, "dtype=float32"]
    settings = [*exact, f"model.loras=[{tmp_path / 'lora.safetensors'}]"]
    plain, other = (build_source(job_of(model, each)) for each in (exact, settings))
    for before, after in (
        (plain.generator, other.generator),
        (plain.generator.writer, other.generator.writer),
    ):
        assert before is not None
        assert after is not None
        change = after.blocks[0].self_attn.q.weight - before.blocks[0].self_attn.q.weight
        torch.testing.assert_close(change, pair["lora_B"] @ pair["lora_A"])


def job_of(folder: Path, settings: list[str]) -> RenderJob:
    values = {"prompt": "a red kite", "seed": "1", "duration": "2s"}
    own = [*settings, f"model.path={folder}"]
    return RenderJob(load(values, assignments=own, environ={}).config)


def test_the_estimate_counts_both_sets(
    model: Path, tiny_model: Path, tiny_settings: list[str]
) -> None:
    one, two = (estimate_memory(job_of(each, tiny_settings)) for each in (tiny_model, model))
    assert (two.blocks, two.rest) == (2 * one.blocks, 2 * one.rest)
    assert (two.conditioning, two.largest) == (2 * one.conditioning, one.largest)
    assert two.kv == one.kv


def test_commit_passes_alone_take_the_second_set(
    model: Path, tiny_model: Path, tiny_settings: list[str]
) -> None:
    """The first chunk is the same, and the next reads another memory."""
    both, one = (build_source(job_of(each, tiny_settings)) for each in (model, tiny_model))
    assert "commit passes have weights of their own" in both.notes
    made, plain = (list(source.make(range(2))) for source in (both, one))
    assert torch.equal(made[0].latents, plain[0].latents)
    assert not torch.allclose(made[1].latents, plain[1].latents, atol=1e-3)


def test_a_second_set_that_is_the_first_changes_nothing(
    model: Path, tiny_model: Path, tiny_settings: list[str]
) -> None:
    weights = load_file(tiny_model / GENERATOR)
    save_file(doubled(weights, 1.0), model / GENERATOR)
    both, one = (build_source(job_of(each, tiny_settings)) for each in (model, tiny_model))
    for made, plain in zip(both.make(range(3)), one.make(range(3)), strict=True):
        assert torch.equal(made.latents, plain.latents)


@pytest.mark.parametrize("snapshot", ["full", "latents"])
def test_a_killed_film_goes_on_to_the_same_bytes(
    snapshot: str, model: Path, tiny_settings: list[str], tmp_path: Path
) -> None:
    settings = [
        *tiny_settings,
        f"model.path={model}",
        "memory.policy=window",
        "memory.size=7",
        "memory.positions=top",
        "memory.trained=8",
        f"snapshot.mode={snapshot}",
    ]
    whole = Film(tmp_path / "whole", settings).whole()
    killed = Film(tmp_path / "killed", settings)
    killed.until(5)
    assert killed.gone_on_with() == whole


def test_a_prompt_is_told_apart_as_both_sets_read_it(model: Path, tiny_settings: list[str]) -> None:
    """What a run keeps of its prompt changes with either set's reading of it."""
    from cfgen.pipeline.fingerprint import prompt_digest

    first = build_source(job_of(model, tiny_settings)).conditionings
    rewritten(model, lambda weights: weights["memory_text_embedding.0.bias"].add_(0.1))
    second = build_source(job_of(model, tiny_settings)).conditionings
    assert torch.equal(first[0].keys_values[0][0], second[0].keys_values[0][0])
    assert prompt_digest(first, None) != prompt_digest(second, None)


def test_config_of_a_folder_is_needed_once(model: Path) -> None:
    """Both sets are of the sizes that one config.json tells."""
    config = json.loads((model / "config.json").read_text())
    network = open_generator(model)
    assert network.memory is not None
    assert network.memory.shapes == network.shapes
    assert config["dim"] == load_generator(model).geometry.dim

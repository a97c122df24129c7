"""What a render takes of memory is told before a weight is read, and refused if it is too much."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cfgen.cli.app import app
from cfgen.config.loader import load
from cfgen.config.schema import (
    CompressedMemory,
    FullMemory,
    MemoryConfig,
    RecencyMemory,
    RelaxMemory,
    RenderConfig,
    SlowFastMemory,
    WindowMemory,
)
from cfgen.errors import BudgetError, CheckpointError
from cfgen.memory.compressed_table import CompressedTable
from cfgen.memory.policy import page_classes, pages_of
from cfgen.memory.pre_rotated import PreRotatedAttention
from cfgen.model.quantized import QuantizedLinear
from cfgen.ops.select import TORCH, build_ops
from cfgen.pipeline import build
from cfgen.pipeline.chunk_source import build_memory
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import estimate_memory, place
from cfgen.pipeline.offload_plan import PROGRAM, MemoryEstimate, table
from tests.memory.spied import PASSES, Spied
from tests.strategies import Policy, policies

PROMPT = "a red balloon drifts over snowy hills at sunset"


def _config(settings: list[str], **flags: str) -> RenderConfig:
    values = {"prompt": PROMPT, "seed": "3", "output": "unused.mp4", "duration": "1s", **flags}
    return load(values, assignments=settings).config


def _sizes(config: RenderConfig) -> MemoryEstimate:
    return estimate_memory(RenderJob(config))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many bytes of memory are free."""

    def say(nbytes: int) -> None:
        told = types.SimpleNamespace(available=nbytes)
        monkeypatch.setattr("psutil.virtual_memory", lambda: told)

    return say


def _configured(policy: Policy) -> MemoryConfig:
    if policy.name == "window":
        return WindowMemory(size=policy.sink + policy.fast, sink=policy.sink)
    if policy.name in ("recency", "relax"):
        size = policy.make().capacity
        kept = RecencyMemory if policy.name == "recency" else RelaxMemory
        return kept(size=size, sink=policy.sink)
    if policy.name == "compressed":
        table = policy.make()
        assert isinstance(table, CompressedTable)
        counts = ["all" if each.frames is None else each.frames for each in table.levels]
        levels = (f"{n}:{each.patch[1]}" for n, each in zip(counts, table.levels, strict=True))
        return CompressedMemory(sink=policy.sink, levels=tuple(levels))
    variant = "release" if policy.name == "release" else "cfgen"
    return SlowFastMemory(variant=variant, sink=policy.sink, slow=policy.slow, fast=policy.fast)


@settings(deadline=None, max_examples=200)
@given(
    policies,
    st.lists(st.lists(st.booleans(), min_size=PASSES, max_size=PASSES), min_size=1, max_size=9),
)
def test_a_pool_of_the_pages_that_a_clip_can_use_is_never_too_small(
    policy: Policy, chunks: list[list[bool]]
) -> None:
    classes = page_classes(_configured(policy), policy.chunk * len(chunks), policy.chunk)
    spied = Spied(policy.make, pages=classes[0].pages, small=classes[1:])
    for below in chunks:
        spied.chunk(policy.chunk, below)
    assert sum(each.pages for each in classes) <= spied.table.capacity + 1


@pytest.mark.parametrize(
    ("memory", "pages"),
    [
        (FullMemory(), [7, 31, 301]),
        (WindowMemory(size=21), [7, 22, 22]),
        (RecencyMemory(), [7, 25, 25]),
        (RelaxMemory(), [7, 31, 121]),
        (SlowFastMemory(sink=3, slow=12, fast=6), [13, 22, 22]),
    ],
)
def test_pages_grow_with_a_clip_up_to_what_its_memory_keeps(
    memory: MemoryConfig, pages: list[int]
) -> None:
    assert [pages_of(memory, latent_frames) for latent_frames in (6, 30, 300)] == pages


@pytest.mark.parametrize("quantized", ["keep", "expand"])
@pytest.mark.parametrize(
    ("dtype", "storage"), [("float32", "auto"), ("bfloat16", "int8"), ("bfloat16", "fp8")]
)
def test_bytes_of_weights_and_cache_are_those_that_are_held(
    quantized: str, dtype: str, storage: str
) -> None:
    settings = [f"dtype={dtype}", f"model.quantized={quantized}", "device=cpu"]
    settings.append(f"memory.kv_cache={storage}")
    config = _config(settings)
    job = RenderJob(config)
    sizes, kind = estimate_memory(job), getattr(torch, dtype)
    models = job.model.load(dtype=kind, device=torch.device("cpu"))
    held = [*models.generator.parameters(), *models.generator.buffers()]
    blocks = [
        t
        for name, layer in models.generator.blocks.named_modules()
        if isinstance(layer, torch.nn.Linear | QuantizedLinear)
        for t in [*layer.parameters(), *layer.buffers()]
    ]
    assert sizes.blocks == sum(t.nbytes for t in blocks)
    assert sizes.blocks + sizes.rest == sum(t.nbytes for t in held)
    assert sizes.vae == sum(p.nbytes for p in models.decoder.parameters())
    memory = build_memory(config.memory, models.generator, job.plan, TORCH, dtype=kind)
    assert sizes.kv == memory.nbytes
    assert isinstance(memory.attention, PreRotatedAttention)
    assert sizes.context == memory.attention.nbytes


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("preset", ["far", "framepack"])
def test_pages_of_several_sizes_take_what_is_told(
    tiny_settings: list[str], preset: str, backend: str
) -> None:
    model = next(each for each in tiny_settings if each.startswith("model.path="))
    for storage in ("auto", "int8", "fp8"):
        settings = [model, "device=cpu", f"backend={backend}", f"memory.kv_cache={storage}"]
        config = _config(settings, preset=preset, duration="10s")
        job = RenderJob(config)
        sizes, kind = estimate_memory(job), job.runtime.dtype
        models = job.model.load(dtype=kind, device=torch.device("cpu"))
        ops = build_ops(backend)
        memory = build_memory(config.memory, models.generator, job.plan, ops, dtype=kind)
        assert sizes.kv == memory.nbytes
        held = memory.attention.nbytes if isinstance(memory.attention, PreRotatedAttention) else 0
        assert sizes.context == held


def test_a_model_without_kernels_of_larger_patches_refuses_them_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"patch_embedding_4x\.weight is missing"):
        _sizes(_config(["device=cpu", "model.path=mini"], preset="far"))


@pytest.mark.parametrize("policy", ["recency", "relax"])
def test_what_is_read_at_once_takes_less_than_what_is_kept(policy: str) -> None:
    config = _config(["device=cpu", f"memory.policy={policy}"], duration="60s")
    job = RenderJob(config)
    sizes, kind = estimate_memory(job), job.runtime.dtype
    models = job.model.load(dtype=kind, device=torch.device("cpu"))
    memory = build_memory(config.memory, models.generator, job.plan, TORCH, dtype=kind)
    assert isinstance(memory.attention, PreRotatedAttention)
    assert (sizes.kv, sizes.context) == (memory.nbytes, memory.attention.nbytes)
    assert sizes.context < sizes.kv * {"recency": 0.9, "relax": 0.1}[policy]


def test_memory_grows_with_what_is_asked_for() -> None:
    """A longer clip under full memory, a larger frame, an expanded model, a wider number."""
    small = _sizes(_config(["dtype=bfloat16", "model.quantized=keep"]))
    for key, values in {
        "kv": ["memory.policy=full", "dtype=bfloat16", "model.quantized=keep"],
        "blocks": ["dtype=bfloat16", "model.quantized=expand"],
        "forward": ["dtype=float32", "model.quantized=keep"],
        "decode": ["dtype=float32", "model.quantized=keep"],
        "conditioning": ["dtype=float32", "model.quantized=keep"],
    }.items():
        flags = {"duration": "60s"} if key == "kv" else {}
        large = _sizes(_config(values, **flags))
        assert getattr(large, key) > getattr(small, key), key
    one = _sizes(_config(["schedule.guidance=1"])).conditioning
    assert _sizes(_config(["schedule.guidance=3"])).conditioning == 2 * one


def test_a_render_on_a_cpu_is_refused_by_one_byte(
    tiny_settings: list[str], free: Callable[[int], None]
) -> None:
    config = _config([*tiny_settings, "device=cpu"])
    sizes = _sizes(config)
    free(sizes.ram_on_cpu - PROGRAM)
    found = place(RenderJob(config))
    assert found.offload == "none"
    assert found.why == f"about {sizes.ram_on_cpu / 1e9:.1f} GB of memory at most"
    free(sizes.ram_on_cpu - PROGRAM - 1)
    part = max(table(sizes).items(), key=lambda item: item[1])[0].replace("_", " ")
    with pytest.raises(BudgetError, match=f"most of it is for {part}, ") as caught:
        place(RenderJob(config))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("asked", [["--vram", "8G"], ["--offload", "blocks"], ["--offload", "all"]])
def test_offloading_on_a_cpu_is_refused_before_work(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    folder.mkdir()
    sets = [part for value in [*tiny_settings, "device=cpu"] for part in ("--set", value)]
    output = str(folder / "clip.mp4")
    result = CliRunner().invoke(app, ["render", PROMPT, *sets, *asked, "-o", output])
    assert result.exit_code == 3
    assert (
        "error: --vram and --offload are for GPUs, and this render is on the CPU" in result.stderr
    )
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "cache" / "cfgen" / "text").exists(), "no prompt was encoded"


def test_a_render_after_another_counts_the_memory_that_the_model_already_has(
    tiny_settings: list[str], free: Callable[[int], None]
) -> None:
    config = _config([*tiny_settings, "device=cpu"])
    models = build.ModelCache()
    why = build.build_source(RenderJob(config), models).notes[-1]
    free(_sizes(config).ram_on_cpu - PROGRAM - models.nbytes)
    assert build.build_source(RenderJob(config), models).notes[-1] == why
    with pytest.raises(BudgetError, match="GB of memory and 0.0 GB are free"):
        build.build_source(RenderJob(config))

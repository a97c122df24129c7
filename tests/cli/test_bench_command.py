"""`cfgen bench` times what can run, says why the rest cannot, and compares only equal results."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import Result

from cfgen.bench import measure as bench_module
from cfgen.bench import random_weights as weights_module
from cfgen.bench import variants as variants_module
from cfgen.bench.measure import Bench, VariantRunner, distance, tolerance
from cfgen.bench.variants import BenchSetup, Variant, fill, prepare
from cfgen.config.loader import load
from cfgen.errors import NotFinite
from cfgen.model.generator import WanConfig
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.ops import select
from cfgen.renderer.source import FrameSource
from tests.conftest import ROOT

Run = Callable[..., Result]

SHORT = ("--set", "schedule.timesteps=[1000, 500]", "--set", "threads=1", "--seconds", "0")
QUICK = (*SHORT, "--dtype", "float32")
TWO = ("--backend", "torch", "--backend", "reference", "--kv-cache", "auto")


def data_of(result: Result) -> dict[str, Any]:
    line = json.loads(result.stdout.splitlines()[-1])
    assert (line["type"], line["ok"]) == ("envelope", True)
    return line["data"]


def setting_of(*assignments: str) -> BenchSetup:
    """The tiny model with these values, in float32."""
    values = ["dtype=float32", *SHORT[1:4:2], *assignments]
    return prepare(load({}, assignments=values).config, may_stand_in=False)


def test_every_kv_cache_is_timed_and_an_absent_backend_is_explained(cfgen: Run) -> None:
    result = cfgen("bench", *QUICK)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("backend"))
    rows = [re.split(r"\s{2,}", line) for line in lines[head + 1 : head + 5]]
    assert [row[:2] for row in rows] == [
        ["torch", "auto: fp32"],
        ["torch", "bf16"],
        ["torch", "int8"],
        ["torch", "fp8"],
    ]
    assert rows[0][-1] == "1.00x"
    assert all(re.fullmatch(r"[0-9.]+x", row[-1]) for row in rows)
    assert re.search(r"^triton +Triton kernels need a CUDA device, not cpu$", result.stdout, re.M)
    assert lines[-1] == "auto      --backend auto, the default of a render, takes torch here"
    assert "median of 1 chunk each" in result.stdout


@pytest.mark.parametrize("policy", ["far", "framepack"])
def test_a_past_of_fewer_tokens_is_timed(cfgen: Run, policy: str) -> None:
    memory = {
        "far": ["policy=compressed", "levels=4:1,all:4"],
        "framepack": [
            "policy=compressed",
            "levels=1:1,2:2,16:4",
            "sink=1",
            "page=cube",
            "layout=reordered",
        ],
    }[policy]
    asked = [word for each in memory for word in ("--set", f"memory.{each}")]
    result = cfgen("bench", *QUICK, *TWO, *asked)
    assert result.exit_code == 0, result.stderr
    assert "1.00x" in result.stdout


def test_nothing_is_wider_than_80_columns(cfgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "distance", lambda *_: 0.5)
    result = cfgen("bench", *QUICK, *TWO, "--kv-cache", "fp8")
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_equal_results_are_compared(cfgen: Run) -> None:
    data = data_of(cfgen("bench", *QUICK, *TWO, "--json"))
    torch, reference = data["ways"]
    assert data["compared_with"] == {"backend": "torch", "kv_cache": "auto"}
    assert (torch["error"], torch["ratio"]) == (None, 1)
    assert 0 < reference["error"] < reference["tolerance"] == 1e-3
    assert reference["ratio"] == torch["chunk_s"] / reference["chunk_s"]
    assert torch["frames_per_s"] == 12 / torch["chunk_s"]
    assert torch["frames_per_s_decoded"] == 12 / (torch["chunk_s"] + data["decode_s"])


def test_the_ratio_is_withheld_where_results_differ(
    cfgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(x, y, gate):
        return select.TORCH.add_gated(x, 1.1 * y, gate)

    monkeypatch.setattr(select, "REFERENCE", replace(select.REFERENCE, add_gated=wrong))
    result = cfgen("bench", *QUICK, *TWO)
    assert result.exit_code == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith("reference"))
    assert row.endswith("differs")
    told = " ".join(result.stdout.split())
    assert re.search(
        r"differs reference, auto: its chunk is [0-9.]+% away from that of torch, auto, and may be "
        r"0.1%: their speeds are not compared",
        told,
    )
    (_, reference) = data_of(cfgen("bench", *QUICK, *TWO, "--json"))["ways"]
    assert reference["error"] > reference["tolerance"]
    assert reference["ratio"] is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_published_way_makes_the_same_chunk(dtype: str) -> None:
    """What `tests/bench/chunk.py` compares with."""
    from tests.bench.chunk import bench_of

    setting, work = bench_of(SHORT[1:4:2], dtype=dtype)
    for _ in (*work.prepare(), *work.run(0)):
        pass
    torch, published = work.report().ways
    assert published.way.backend == "published"
    assert published.agrees, published.error
    assert published.error > 0


def test_without_torch_there_is_nothing_to_compare_with(cfgen: Run) -> None:
    asked = (*QUICK, "--backend", "reference", "--kv-cache", "int8")
    assert re.search(r"^reference  int8 .* -$", cfgen("bench", *asked).stdout, re.M)
    data = data_of(cfgen("bench", *asked, "--json"))
    assert data["compared_with"] is None
    assert (data["ways"][0]["error"], data["ways"][0]["ratio"]) == (None, None)


def test_json_keeps_its_keys(cfgen: Run) -> None:
    data = data_of(cfgen("bench", *QUICK, "--kv-cache", "auto", "--json"))
    assert list(data) == [
        *("preset", "size", "machine", "dtype", "compiled", "random_weights", "chunk", "memory"),
        *("decode_s", "auto", "compared_with", "ways", "refused"),
    ]
    assert data["chunk"] == {"frames": 12, "passes": 3, "tokens": 60}
    assert data["memory"] == {"policy": "slow_fast", "latent_frames": 21}
    assert (data["size"], data["dtype"], data["random_weights"]) == ([160, 96], "float32", False)
    assert list(data["ways"][0]) == [
        *("backend", "kv_cache", "keys", "values", "chunks", "chunk_s", "slowest_s", "fastest_s"),
        *("frames_per_s", "frames_per_s_decoded", "cache_nbytes", "gpu_nbytes"),
        *("error", "tolerance", "ratio"),
    ]
    assert data["refused"] == [
        {
            "backend": "triton",
            "kv_cache": "auto",
            "reason": "Triton kernels need a CUDA device, not cpu",
        }
    ]


def test_ways_that_come_to_the_same_are_one(cfgen: Run) -> None:
    backends = ("--backend", "auto", "--backend", "reference", "--backend", "torch")
    caches = ("--kv-cache", "auto", "--kv-cache", "bf16", "--kv-cache", "fp8")
    asked = (*SHORT, *backends, *caches, "--dtype", "bfloat16", "--json")
    found = [(way["backend"], way["kv_cache"]) for way in data_of(cfgen("bench", *asked))["ways"]]
    assert found == [(name, kept) for name in ("torch", "reference") for kept in ("auto", "fp8")]


def test_settings_choose_what_flags_leave_open(cfgen: Run) -> None:
    chosen = ("--set", "backend=reference", "--set", "memory.kv_cache=int8")
    data = data_of(cfgen("bench", *QUICK, *chosen, "--json"))
    found = [(way["backend"], way["kv_cache"]) for way in data["ways"]]
    assert found == [("reference", kind) for kind in ("int8", "auto", "bf16", "fp8")]


def test_a_backend_that_cannot_run_is_refused_in_a_sentence(cfgen: Run) -> None:
    result = cfgen("bench", *QUICK, "--backend", "triton")
    assert (result.exit_code, result.stdout) == (3, "")
    error, hint = result.stderr.splitlines()[-2:]
    assert error == (
        "error: nothing can be measured here: Triton kernels need a CUDA device, not cpu"
    )
    assert hint == "hint: leave --backend and --kv-cache out, or choose others"


@pytest.mark.parametrize(
    ("flag", "given", "meant"), [("--backend", "tritn", "triton"), ("--kv-cache", "int4", "int8")]
)
def test_an_unknown_choice_is_a_usage_error(cfgen: Run, flag: str, given: str, meant: str) -> None:
    result = cfgen("bench", flag, given)
    assert result.exit_code == 2
    assert f"{flag} must be one of " in result.stderr
    assert f"got {given!r}; did you mean {meant!r}?" in result.stderr


def test_what_does_not_fit_beside_the_others_is_refused(
    cfgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([10**9, 0])
    monkeypatch.setattr(bench_module, "_free", lambda _device: next(left))
    result = cfgen("bench", *QUICK, "--backend", "torch", "--kv-cache", "auto", "--kv-cache", "fp8")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^torch +with fp8: its KV cache takes .* 0.0 GB are$", result.stdout, re.M)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
        (NotFinite("chunk 9 holds numbers that are not finite"), "chunk 9 holds numbers"),
    ],
)
def test_a_way_that_fails_does_not_end_the_others(
    cfgen: Run, monkeypatch: pytest.MonkeyPatch, failure: Exception, reason: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(select, "REFERENCE", replace(select.REFERENCE, modulate=fail))
    data = data_of(cfgen("bench", *QUICK, *TWO, "--json"))
    assert [way["backend"] for way in data["ways"]] == ["torch"]
    assert data["refused"][0]["reason"].startswith(reason)


def test_a_defect_of_a_backend_is_not_hidden(cfgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(select, "REFERENCE", replace(select.REFERENCE, modulate=fail))
    result = cfgen("bench", *QUICK, *TWO)
    assert result.exit_code == 1
    assert "shapes do not fit" in result.stderr


def test_a_slow_machine_is_told_what_to_expect(cfgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "SLOW_S", 0.0)
    told = cfgen("bench", *QUICK, *TWO).stderr
    assert re.search(r"^a chunk takes .* or more here, and 4 are made at least; ", told, re.M)
    assert told.count("torch, auto: a chunk took ") == 1


def test_nothing_is_written(cfgen: Run, tmp_path: Path) -> None:
    cache = Path(os.environ["XDG_CACHE_HOME"])
    before = sorted(cache.rglob("*"))
    cfgen("bench", *QUICK, *TWO)
    assert sorted(cache.rglob("*")) == before
    assert list(Path.cwd().iterdir()) == []


@pytest.fixture
def published(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of a model on the hub, whose size is that of a small one."""
    model = "{path: owner/name/wan.pt, vae: owner/vae/vae.pth, sizes: [64x64]}"
    memory = "{policy: window, sink: 0, size: 6}"
    (presets / "big.yaml").write_text(f"description: big\nmodel: {model}\nmemory: {memory}\n")
    sizes = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=16)
    small = functools.partial(weights_module.random_weights, sizes=sizes)
    monkeypatch.setattr(variants_module, "random_weights", small)
    tiny_vae = functools.partial(WanAutoencoder, 8, 8)
    monkeypatch.setattr(weights_module, "WanAutoencoder", tiny_vae)


@pytest.mark.usefixtures("published")
def test_random_weights_stand_in_for_a_published_model(cfgen: Run) -> None:
    result = cfgen("bench", "--preset", "big", *QUICK, *TWO)
    assert result.exit_code == 0, result.stderr
    assert "random weights of its size replace it" in result.stderr
    told = " ".join(result.stdout.split())
    assert "weights random ones of its size: 2 parts of the model are neither on disk" in told
    assert "model (owner/name/wan.pt), video autoencoder (owner/vae/vae.pth)" in told
    assert "-> `cfgen models pull big` fetches the model" in told
    assert "1.00x" in told
    assert "differs" not in told


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("named", ["model.path=owner/other/wan.pt", "model.vae=nowhere.pth"])
def test_nothing_stands_in_for_what_was_named(cfgen: Run, named: str) -> None:
    result = cfgen("bench", "--preset", "big", *QUICK, "--set", named)
    assert (result.exit_code, result.stdout) == (3, "")
    assert named.partition("=")[2] in result.stderr.splitlines()[-2]


def test_nothing_stands_in_for_a_damaged_mini(cfgen: Run, presets: Path) -> None:
    (presets / "mini" / "diffusion_pytorch_model.safetensors").unlink()
    result = cfgen("bench", *QUICK)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "holds no file of weights" in result.stderr


def test_every_published_preset_has_the_size_that_stands_in() -> None:
    values = {p.stem: yaml.safe_load(p.read_text()) for p in (ROOT / "presets").glob("*.yaml")}
    named = [
        {**values.get(each.get("extends"), {}).get("model", {}), **each["model"]}
        for each in values.values()
        if "model" in each
    ]
    models = [model for model in named if "/" in model.get("path", "")]
    assert len(models) > 3
    assert {model["vae"] for model in models} == {"Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth"}


POLICIES = {
    "full": ("memory.policy=full", "duration=2s"),
    "window": ("memory.policy=window", "memory.size=7", "memory.sink=1"),
    "absolute": ("memory.policy=window", "memory.size=9", "memory.positions=absolute"),
    "release": ("memory.policy=slow_fast", "memory.variant=release", "memory.slow=2"),
    "paper": ("memory.policy=slow_fast", "memory.variant=paper", "memory.slow=2"),
    "cfgen": ("memory.policy=slow_fast", "memory.slow=2"),
    "top": ("memory.policy=window", "memory.size=9", "memory.positions=top"),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_is_full_before_anything_is_timed(policy: str) -> None:
    setting = setting_of(*POLICIES[policy])
    way = Variant("torch", "auto")
    source = setting.source(way, setting.ops(way))
    first = fill(source)
    memory = source.memory
    assert [len(table.slots()) for table in memory.tables] == [setting.slots] * 2
    assert memory.frames(0)[-1] == 3 * first - 1


def test_a_memory_that_never_fills_is_given_up() -> None:
    setting = setting_of("memory.tau=-1")
    way = Variant("torch", "auto")
    source = setting.source(way, setting.ops(way))
    assert fill(source) == 4 * setting.slots
    assert len(source.memory.tables[0].slots()) == setting.slots - 12  # no key frame


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("storage", ["auto", "bf16", "int8", "fp8"])
def test_all_that_is_held_of_the_cache_is_counted(backend: str, storage: str) -> None:
    setting = setting_of()
    contestant = VariantRunner(setting, Variant(backend, storage))
    reader = contestant.source.memory.attention
    rotated = getattr(reader, "nbytes", 0)
    assert contestant.cache_nbytes == contestant.source.memory.nbytes + rotated
    assert bool(rotated) == (backend == "torch")


def test_ways_take_turns_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Bench(setting_of(), [Variant("torch", "auto"), Variant("torch", "int8")])
    for _ in work.prepare():
        pass
    order: list[str] = []
    make = VariantRunner.make

    def noted(self: VariantRunner):
        order.append(self.way.storage)
        return make(self)

    monkeypatch.setattr(VariantRunner, "make", noted)
    ticks = iter(range(100))
    monkeypatch.setattr(bench_module.time, "monotonic", lambda: next(ticks))
    for _ in work.run(3):
        pass
    assert order[:4] == ["auto", "int8", "int8", "auto"]
    report = work.report()
    assert [figures.way.storage for figures in report.ways] == ["auto", "int8"]
    assert {len(figures.seconds) for figures in report.ways} == {len(order) // 2}


def test_a_page_that_is_lost_is_out_of_tolerance() -> None:
    setting, way = setting_of(), Variant("torch", "auto")
    right, again, wrong = (VariantRunner(setting, way) for _ in range(3))
    for name, page in wrong.source.memory.state().pages.items():
        if name in ("0.0.v", "1.0.v"):
            page.zero_()
    latents = right.make()[0].latents
    assert distance(again.make()[0].latents, latents) == 0
    assert distance(wrong.make()[0].latents, latents) > tolerance(setting, way)


def test_where_frames_are_decoded_beside_the_next_chunk_that_is_timed(
    cfgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrameSource, "beside", True)
    monkeypatch.setattr(VariantRunner, "make_beside", lambda *_: 4.0)
    result = cfgen("bench", *QUICK, "--kv-cache", "auto", "--json")
    assert data_of(result)["ways"][0]["frames_per_s_decoded"] == 12 / 4.0
    told = " ".join(cfgen("bench", *QUICK, "--kv-cache", "auto").stdout.split())
    assert re.search(r"decoding one takes [0-9.e-]+ s, beside the next", told)


def test_a_chunk_is_made_while_another_is_decoded() -> None:
    setting, way = setting_of(), Variant("torch", "auto")
    alone, beside = VariantRunner(setting, way), VariantRunner(setting, way)
    state = setting.models.decoder.start()
    first, _ = beside.make()
    assert beside.make_beside(first, state) > 0
    assert state.caches[3] is not None
    for _ in range(2):
        alone.make()
    assert distance(beside.make()[0].latents, alone.make()[0].latents) == 0


def test_other_ways_are_not_counted_in_the_gpu_memory_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contestant = VariantRunner(setting_of(), Variant("torch", "auto"))
    contestant._device, contestant._alone = torch.device("cuda"), 300
    done: list[str] = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda _device, name=name: done.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 500)
    for most in (580, 540):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device, most=most: most)
        contestant.make()
    assert contestant.gpu_nbytes == 380
    assert done == ["reset_peak_memory_stats", "synchronize", "synchronize"] * 2


def test_a_gpu_has_a_column_of_its_own(cfgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = bench_module.Figures
    with_gpu = functools.partial(lambda gpu_nbytes, **given: figures(gpu_nbytes=10**9, **given))
    monkeypatch.setattr(bench_module, "Figures", with_gpu)
    lines = cfgen("bench", *QUICK, *TWO).stdout.splitlines()
    assert any(line.split()[-3:] == ["GPU", "vs", "torch"] for line in lines)
    assert any(re.search(r" 1\.0 GB +1\.00x$", line) for line in lines)
    assert max(map(len, lines)) <= 80

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cfgen.config.schema import (
    EncodeConfig,
    FullMemory,
    ModelConfig,
    PlacementConfig,
    RecencyMemory,
    RenderConfig,
    ScheduleConfig,
    SlowFastMemory,
    WindowMemory,
    digest,
    to_mapping,
)
from cfgen.errors import PresetError

MODEL = ModelConfig(path="mini", sizes=((160, 96), (256, 144)))


def test_defaults_are_a_whole_configuration() -> None:
    config = RenderConfig(model=MODEL)
    assert config.frame_size == (160, 96)
    assert config.playback_fps == 16
    assert config.memory == FullMemory()


def test_what_was_asked_for_wins_over_the_models_own() -> None:
    config = RenderConfig(model=MODEL, size=(256, 144), fps=24)
    assert config.frame_size == (256, 144)
    assert config.playback_fps == 24


def test_all_that_is_wrong_is_reported_together() -> None:
    with pytest.raises(PresetError) as caught:
        RenderConfig(model=MODEL, seed=-1, duration_s=0, device="gpu", size=(100, 96))
    assert [problem.key for problem in caught.value.problems] == [
        "duration",
        "seed",
        "device",
        "size",
    ]
    assert "it knows 160x96, 256x144" in str(caught.value)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: ModelConfig(path=" ", sizes=((160, 96),)), "path"),
        (lambda: ModelConfig(path="mini", sizes=()), "sizes"),
        (lambda: ModelConfig(path="mini", sizes=((160, 96),), fps=float("nan")), "fps"),
        (lambda: ModelConfig(path="mini", sizes=((160, 96),), lora_alpha=0), "lora_alpha"),
        (lambda: ModelConfig(path="mini", sizes=((160, 96),), prefer="ema"), "prefer"),
        (lambda: ModelConfig(path="mini", sizes=((160, 96),), quantized="no"), "quantized"),
        (lambda: ModelConfig(path="mini", sizes=((160, 96),), vae_tile=8), "vae_tile"),
        (lambda: ModelConfig(path="mini", sizes=((160, 96),), matmul="int8"), "matmul"),
        (lambda: PlacementConfig(offload="half"), "offload"),
        (lambda: ScheduleConfig(timesteps=()), "timesteps"),
        (lambda: ScheduleConfig(timesteps=(750, 500)), "timesteps"),
        (lambda: ScheduleConfig(timesteps=(1000, 500, 500)), "timesteps"),
        (lambda: ScheduleConfig(timesteps=(1000, 0)), "timesteps"),
        (lambda: ScheduleConfig(first_timesteps=(750, 500)), "first_timesteps"),
        (lambda: ScheduleConfig(first_timesteps=(1000, 1000)), "first_timesteps"),
        (lambda: ScheduleConfig(timesteps=(1000,), shift=0), "shift"),
        (lambda: WindowMemory(commit_reads="newest:0"), "commit_reads"),
        (lambda: WindowMemory(commit_reads="newest:"), "commit_reads"),
        (lambda: RecencyMemory(commit_reads="newest"), "commit_reads"),
        (lambda: WindowMemory(size=0), "size"),
        (lambda: SlowFastMemory(tau=1.5), "tau"),
        (lambda: SlowFastMemory(variant="relaese"), "variant"),
        (lambda: EncodeConfig(quality="great"), "quality"),
        (lambda: RenderConfig(model=MODEL, memory=WindowMemory(sink=3, size=5)), "memory.size"),
        (lambda: RenderConfig(model=MODEL, memory=SlowFastMemory(fast=2)), "memory.fast"),
    ],
)
def test_wrong_values_are_refused_by_key(build: object, key: str) -> None:
    assert callable(build)
    with pytest.raises(PresetError) as caught:
        build()
    assert [problem.key for problem in caught.value.problems] == [key]


def test_mapping_is_json_under_the_keys_people_write() -> None:
    config = RenderConfig(model=MODEL, output=Path("a.mp4"), prompt="a boat")
    mapping = to_mapping(config)
    assert json.loads(json.dumps(mapping)) == mapping
    assert mapping["duration"] == 10
    assert mapping["output"] == "a.mp4"
    assert mapping["memory"] == {"policy": "full", "commit_reads": "all", "kv_cache": "auto"}


def test_digest_covers_everything_but_output_and_placement() -> None:
    config = RenderConfig(model=MODEL, prompt="a boat", seed=1)
    same = dataclasses.replace(config, output=Path("elsewhere.mp4"))
    assert digest(config) == digest(same)
    offloaded = PlacementConfig(offload="all", vram=10**10)
    assert digest(dataclasses.replace(config, placement=offloaded)) == digest(config)
    for change in ({"seed": 2}, {"prompt": "a kite"}, {"memory": WindowMemory()}):
        assert digest(dataclasses.replace(config, **change)) != digest(config)
    for part in ({"loras": ("a.pt",)}, {"vae": "b.pth"}, {"quantized": "expand"}, {"vae_tile": 16}):
        other = dataclasses.replace(config, model=dataclasses.replace(MODEL, **part))
        assert digest(other) != digest(config), part

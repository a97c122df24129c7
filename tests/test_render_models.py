"""What a render tells of the files that it is made with, and keeps of them in its record."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cfgen.cli.app import app
from cfgen.cli.options import lora_list
from cfgen.config.loader import load
from cfgen.pipeline.preflight import too_long
from cfgen.runs.folder import RunFolder

PROMPT = "a red balloon drifts over snowy hills at sunset"


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., str]:
    """Write a LoRA for one layer of the tiny model; its path."""

    def write(name: str, seed: int) -> str:
        torch.manual_seed(seed)
        pair = {"lora_A": torch.randn(2, 24), "lora_B": torch.randn(24, 2)}
        layer = "diffusion_model.blocks.0.self_attn.q"
        save_file({f"{layer}.{part}.weight": t for part, t in pair.items()}, tmp_path / name)
        return str(tmp_path / name)

    return write


def test_a_clip_longer_than_its_model_keeps_up_is_warned_of(tiny_settings: list[str]) -> None:
    settings = [*tiny_settings, "model.longest_s=5s"]
    config = load({"prompt": PROMPT, "duration": "1s"}, assignments=settings).config
    assert too_long(config) == ()
    assert too_long(replace(config, duration_s=5)) == ()
    (warning,) = too_long(replace(config, duration_s=9))
    assert warning.message == (
        "mini was trained on clips of 5 s; pictures may drift or freeze in the 9 s that are asked "
        "for"
    )
    assert warning.hint


def test_a_render_tells_licence_loras_and_memory_and_keeps_the_loras_digest(
    tiny_settings: list[str], lora: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    licence = "model.licence=for tests only"
    settings = [*tiny_settings, licence, "model.longest_s=0.5s"]
    sets = [part for value in settings for part in ("--set", value)]
    given = ["render", PROMPT, "--preset", "mini", "--seed", "3", "--duration", "1s", *sets]

    def render(name: str, *arguments: str) -> str:
        result = CliRunner().invoke(app, [*given, *arguments, "-o", str(folder / name)])
        assert result.exit_code == 0, result.output
        return result.stderr

    without = render("without.mp4")
    assert "licence: for tests only" in without.splitlines()
    assert any(
        line.startswith("warning: mini was trained on clips") for line in without.splitlines()
    )
    assert any(
        line.startswith("about 0.") and "GB of memory" in line for line in without.splitlines()
    )
    told = render(
        "with.mp4", "--lora", lora("a.safetensors", 0), "--lora", f"{lora('b.safetensors', 1)}:0.5"
    )
    assert [line for line in told.splitlines() if line.startswith("applied at")] == [
        "applied at 1: 1 merged",
        "applied at 0.5: 1 merged",
    ]
    records = [RunFolder(folder / f"{name}.cfgen").record for name in ("without", "with")]
    assert "loras_sha256" not in records[0].fingerprint
    assert len(records[1].fingerprint["loras_sha256"]) == 64
    assert records[0].fingerprint["generator_sha256"] == records[1].fingerprint["generator_sha256"]
    videos = [(folder / f"{name}.mp4").read_bytes() for name in ("without", "with")]
    assert videos[0] != videos[1]


def failing(tiny_settings: list[str], tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and error of a render that cannot be."""
    sets = [part for value in tiny_settings for part in ("--set", value)]
    given = ["render", PROMPT, "--preset", "mini", "--duration", "1s", "--seed", "1", *sets]
    result = CliRunner().invoke(app, [*given, *arguments, "-o", str(tmp_path / "clip.mp4")])
    return result.exit_code, result.stderr


def test_a_dry_run_refuses_what_the_render_would_refuse(
    tiny_settings: list[str], tmp_path: Path
) -> None:
    for wrong, code, told in (
        (("--model", "nowhere.safetensors"), 3, "is not on disk"),
        (("--lora", "nowhere.safetensors"), 3, "is not on disk"),
        (("--vram", "12G"), 3, "--vram and --offload are for GPUs"),
        (("--set", "model.sizes=[40x40]"), 2, "multiple of 16 pixels wide and of 16 high"),
    ):
        for more in ((), ("--dry-run",)):
            exit_code, stderr = failing(tiny_settings, tmp_path, *wrong, *more)
            assert exit_code == code, (wrong, more, stderr)
            assert told in stderr
            assert not (tmp_path / "clip.mp4").exists()


def test_numbers_that_are_not_finite_stop_a_render(
    tiny_settings: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = model / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    name = "patch_embedding.bias"
    state[name] = state[name].clone()
    state[name][0] = torch.nan
    save_file(state, weights)
    code, stderr = failing(tiny_settings, tmp_path, "--set", f"model.path={model}")
    assert code == 1
    assert "chunk 1 holds numbers that are not finite" in stderr
    assert not (tmp_path / "clip.mp4").exists()


def test_native_products_of_expanded_weights_are_refused_with_the_reason(
    tiny_settings: list[str], lora: Callable[..., str], tmp_path: Path
) -> None:
    native = ("--set", "model.matmul=native", "--set", "model.quantized=expand")
    code, stderr = failing(tiny_settings, tmp_path, *native)
    assert code == 3
    assert "cannot be computed with as it is stored" in stderr


def test_lora_none_takes_the_presets_away(lora: Callable[..., str]) -> None:
    assert lora_list(None) is None
    assert lora_list([]) is None
    assert lora_list(["none"]) == []
    assert lora_list(["a.safetensors:0.5", "none"]) == ["a.safetensors:0.5", "none"]
    flags = {"preset": "longlive", "model.loras": lora_list(["none"])}
    assert load(flags, environ={}).config.model.loras == ()

"""`cfgen train context-forcing`: the recipe of 1.3B on a tiny Wan of the same classes; plans."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from cfgen.config import presets as catalog
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.train.export import Exporter, text_config
from cfgen.train.tokenizer_stage import train_tokenizer
from cfgen.video.ffmpeg import find_ffmpeg

Run = Callable[..., Result]

PRESETS = catalog.presets_folder()

LOOP = {"steps": "3", "log_every": "1", "average_from": "1"}
SIZES: dict[str, dict[str, str]] = {
    "teacher": {
        "clips.width": "16",
        "clips.height": "16",
        "clips.latents": "9",
        "lora.rank": "2",
        "lora.alpha": "2",
        "errors.size": "2",
        "target_chunks": "2",
        "earliest": "1",
    },
    "dmd": {"chunks": "[2, 2]", "ratio": "2"},
    "cdmd": {"chunks": "[3, 4]", "ratio": "2", "grow": "2"},
}
"""All that is set: sizes."""
STUDENT = {"latent_size": "[2, 2]", "targets": "2", "micro_batches": "2"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_accelerator: None) -> None:
    """The installed presets, an empty current folder, an accelerator of this test's own."""
    monkeypatch.setattr(catalog, "presets_folder", lambda: PRESETS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def write_model(folder: Path) -> None:
    """Wan's three networks, tiny, with random weights."""
    tokenizer = train_tokenizer(folder, captions=100)
    torch.manual_seed(0)
    geometry = WanConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=2, text_dim=16, text_len=512)
    generator = Generator(geometry)
    facts = text_config(tokenizer.get_vocab_size(), width=16, layers=1, ffn=16)
    encoder = TextEncoder(facts, tokenizer, text_len=512)
    weights = {f"generator.{name}": w for name, w in generator.state_dict().items()}
    with torch.no_grad():
        for weight in weights.values():
            if not weight.any():
                weight.normal_(std=0.1)
    weights |= {f"text_encoder.model.{n}": w for n, w in encoder.model.state_dict().items()}
    Exporter(folder)(geometry, facts, weights)
    WanAutoencoder(8, 8, (1, 1, 1, 1)).network.save_pretrained(folder / "vae")


def write_film(folder: Path) -> None:
    """33 frames of noise at 16 a second, with their caption."""
    folder.mkdir()
    video = np.random.default_rng(0).integers(0, 256, (33, 16, 16, 3), np.uint8)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "16x16", "-r", "16"]
    argv = [*find_ffmpeg().prefix(), *raw, "-i", "pipe:0", "-c:v", "ffv1"]
    argv = [part for part in argv if part != "-nostdin"]
    subprocess.run([*argv, str(folder / "a.mkv")], input=video.tobytes(), check=True)
    (folder / "a.txt").write_text("a cat", encoding="utf-8")


@pytest.mark.slow
def test_the_recipe_of_real_size_runs_on_a_tiny_wan(cfgen: Run) -> None:
    """Three steps of each stage; each begins with what the one before it made."""
    write_model(Path("work/model"))
    write_film(Path("films"))
    Path("prompts.txt").write_text("a cat\na red dog\n", encoding="utf-8")
    for stage, sizes in SIZES.items():
        values = {f"loop.{key}": value for key, value in LOOP.items()} | sizes
        values |= STUDENT if stage != "teacher" else {}
        sets = [p for k, v in values.items() for p in ("--set", f"{stage}.{k}={v}")]
        result = cfgen("train", "context-forcing", "--stage", stage, "--work", "work", *sets)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"work/{stage}/model\n"
        lines = Path("work", stage, "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
        assert Path("work", stage, "model", "config.json").is_file()
    assert Path("work/teacher/model/lora.safetensors").is_file()
    assert Path("work/cdmd/render.yaml").is_file()
    planned = cfgen(
        *("train", "context-forcing", "--stage", "cdmd", "--work", "work", "--plan", "--json")
    )
    facts = json.loads(planned.stdout)["data"]
    assert (facts["sizes"]["dim"], facts["sizes_from"]) == (24, "work/model/config.json")


PLANNED = {
    ("mini", "base"): 7_037_824,
    ("mini", "cdmd"): 7_037_824,
    ("context-forcing", "teacher"): 1_418_996_800,
    ("context-forcing", "cdmd"): 1_418_996_800,
}
"""Weights of the generator: that of Wan2.1 1.3B has 1.42 billion."""


@pytest.mark.parametrize(("name", "stage"), PLANNED)
def test_a_plan_needs_no_weights(cfgen: Run, name: str, stage: str) -> None:
    asked = ("train", name, "--stage", stage, "--plan", "--rate", "100")
    result = cfgen(*asked, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)["data"]
    assert facts["weights"] == PLANNED[name, stage]
    for table in ("memory", "flops"):
        *parts, total = facts[table].values()
        assert sum(parts) == pytest.approx(total)
        assert all(part > 0 for part in parts)
    assert facts["seconds_per_step"] == pytest.approx(facts["flops"]["sum"] / 100e12)
    assert facts["hours"] == pytest.approx(facts["seconds_per_step"] * facts["steps"] / 3600)
    text = cfgen(*asked)
    assert "as given" in text.stdout
    assert "estimates" in text.stdout
    assert list(Path().iterdir()) == []


def test_what_a_plan_reckons_with_changes_it(cfgen: Run) -> None:
    """Kept activations, a bank of the release's size, another device."""

    def facts(stage: str, *sets: str) -> dict[str, dict[str, int]]:
        flags = [part for each in sets for part in ("--set", each)]
        asked = ("train", "context-forcing", "--stage", stage, "--plan", "--json")
        return json.loads(cfgen(*asked, *flags).stdout)["data"]

    plain, kept = facts("dmd"), facts("dmd", "dmd.recompute=false")
    assert kept["memory"]["activations"] == plain["aside"]["activations, kept"]
    assert plain["memory"]["activations"] == kept["aside"]["activations, worked out again"]
    assert plain["flops"]["sum"] > kept["flops"]["sum"]
    whole = facts("dmd", "dmd.loop.share_optimizers=false")
    for what in ("optimizer states", "average"):
        assert plain["memory"][what] == whole["memory"][what] // 8
    slower = facts("dmd", "plan.device=A100")
    assert slower["seconds_per_step"] > plain["seconds_per_step"]
    bank = facts("teacher", "teacher.errors.size=500")["aside"]["error bank, in main memory"]
    assert bank == 2 * 50 * 500 * 21 * 16 * 60 * 104 * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stage", "tokenizer"], "stage tokenizer has no plan"),
        (
            ["--stage", "dmd", "--set", "plan.device=abacus"],
            "how fast 'abacus' trains is not known",
        ),
        (["--stage", "dmd", "--rate", "0"], "Invalid value for '--rate'"),
    ],
)
def test_what_cannot_be_planned_is_refused(cfgen: Run, arguments: list[str], sentence: str) -> None:
    result = cfgen("train", "mini", "--plan", *arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


def test_a_config_that_does_not_tell_is_refused(cfgen: Run) -> None:
    Path("work/model").mkdir(parents=True)
    Path("work/model/config.json").write_text('{"dim": 24}', encoding="utf-8")
    result = cfgen("train", "mini", "--stage", "base", "--work", "work", "--plan")
    assert result.exit_code == 3
    assert "ffn_dim must be a whole number above 0, got None" in " ".join(result.stderr.split())

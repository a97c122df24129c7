"""`cfgen inspect` says on 80 columns what a file is, and its exit status whether cfgen loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import Result

from cfgen.checkpoint.identify import published
from cfgen.checkpoint.identify.published import Published
from cfgen.model.generator import WanConfig
from tests.strategies import random_generator

Run = Callable[..., Result]
State = dict[str, Tensor]

SIZES = WanConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, text_dim=16)
LAYER = "blocks.0.ffn.0"


@pytest.fixture(scope="module")
def weights() -> State:
    state = dict(random_generator(SIZES).state_dict())
    scale = state[f"{LAYER}.weight"].abs().max() / 448
    state[f"{LAYER}.weight"] = (state[f"{LAYER}.weight"] / scale).to(torch.float8_e4m3fn)
    state[f"{LAYER}.scale_weight"] = scale
    return state


@pytest.fixture
def file(weights: State) -> Path:
    """A generator in the current folder."""
    path = Path("self_forcing_fp8.safetensors")
    save_file(weights, path)
    return path


@pytest.fixture
def damaged(weights: State) -> Path:
    path = Path("damaged.safetensors")
    save_file({n: t for n, t in weights.items() if not n.endswith("scale_weight")}, path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def data_of(result: Result) -> dict:
    return json.loads(result.stdout.splitlines()[-1])["data"]


def rows(result: Result) -> dict[str, str]:
    """What stands behind each label, lines joined."""
    found: dict[str, str] = {}
    label = ""
    for line in result.stdout.splitlines():
        label = line[:10].strip() or label
        found[label] = f"{found.get(label, '')} {line[10:].strip()}".strip()
    return found


def test_generator_is_told_in_words(cfgen: Run, file: Path) -> None:
    result = cfgen("inspect", str(file))
    assert result.exit_code == 0, result.stderr
    told = rows(result)
    assert told["file"] == str(file)
    assert "safetensors" in told["kind"]
    assert len(told["sha256"]) == 64
    assert told["network"].startswith("Wan generator")
    assert "dim 128" in told["sizes"]
    assert "fp8_scaled" in told["weights"]
    assert "float8_e4m3fn" in told["scales"]
    assert told["recipe"] == f"self-forcing, a guess: it is called {file}"
    assert "no commercial use" in told["licence"]
    assert result.stdout.splitlines()[-1] == (
        f'cfgen render "PROMPT" --model {file} --preset self-forcing'
    )


def test_long_command_is_folded_so_that_it_still_runs(cfgen: Run, weights: State) -> None:
    path = f"longlive {'a' * 50}.safetensors"
    save_file(weights, path)
    assert cfgen("inspect", path).stdout.splitlines()[-2:] == [
        f"cfgen render \"PROMPT\" --model '{path}' \\",
        "  --preset longlive",
    ]


@pytest.mark.parametrize("options", [(), ("--layers", "--values")])
def test_nothing_is_wider_than_80_columns(options: tuple[str, ...], cfgen: Run, file: Path) -> None:
    result = cfgen("inspect", str(file), "--no-sha256", *options)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_layers_are_listed_on_request(cfgen: Run, file: Path, weights: State) -> None:
    told = cfgen("inspect", str(file), "--layers").stdout
    assert f"{LAYER}.weight" in told
    assert "head.modulation" in told
    assert f"{LAYER}.weight" not in cfgen("inspect", str(file)).stdout
    found = data_of(cfgen("inspect", str(file), "--layers", "--json"))
    tensors = {t["name"]: t for t in found["parts"][0]["network"]["tensors"]}
    assert len(tensors) == len(weights) - 1
    assert tensors[f"{LAYER}.weight"]["scales"]["count"] == 1


def test_long_names_stand_on_lines_of_their_own(cfgen: Run) -> None:
    layer = "generator_lora.base_model.model.transformer.blocks.11.cross_attn.norm_q.default"
    factors = {"A.weight": torch.zeros(2, 8), "B.weight": torch.zeros(8, 2)}
    save_file({f"{layer}.lora_{end}": t for end, t in factors.items()}, "lora.safetensors")
    result = cfgen("inspect", "lora.safetensors", "--layers", "--no-sha256")
    lines = result.stdout.splitlines()
    at = lines.index(f"{layer}.lora_A.weight")
    assert lines[at + 1].split() == ["float32", "2x8", "32.00"]


def test_refused_file_exits_with_3_and_the_reason(cfgen: Run, damaged: Path) -> None:
    result = cfgen("inspect", str(damaged))
    assert result.exit_code == 3
    told = rows(result)
    assert "is cut off" in told["refused"]
    assert "-> download the file again" in told["refused"]
    assert len(told["sha256"]) == 64
    assert "cfgen render" not in result.stdout


def test_json_has_the_same_keys_whatever_the_file(cfgen: Run, file: Path, damaged: Path) -> None:
    good, bad = (cfgen("inspect", str(path), "--json") for path in (file, damaged))
    envelopes = [json.loads(result.stdout) for result in (good, bad)]
    assert [(e["type"], e["ok"], e["error"]) for e in envelopes] == [
        ("envelope", True, None),
        ("envelope", False, None),
    ]
    first, second = (envelope["data"] for envelope in envelopes)
    assert first.keys() == second.keys() == {"path", "loads", "command", "parts"}
    assert first["parts"][0].keys() == second["parts"][0].keys()
    assert (first["loads"], second["loads"]) == (True, False)
    assert first["command"].endswith("--preset self-forcing")
    assert second["command"] is None
    assert first["parts"][0]["guess"]["basis"] == "file name"
    assert "cut off" in second["parts"][0]["refusal"]["message"]
    assert (good.exit_code, bad.exit_code) == (0, 3)


def test_json_writes_scales_that_are_not_finite(cfgen: Run, weights: State) -> None:
    save_file({**weights, f"{LAYER}.scale_weight": torch.tensor(float("nan"))}, "a.safetensors")
    result = cfgen("inspect", "a.safetensors", "--json")
    assert result.exit_code == 3
    assert "not finite" in data_of(result)["parts"][0]["refusal"]["message"]


def test_digest_leads_to_the_licence(
    cfgen: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = data_of(cfgen("inspect", str(file), "--json"))["parts"][0]["files"][0]["sha256"]
    place = Published(repo="o/n", file="w.pt", what="W", licence="cc-by-nc-4.0", recipes=("mini",))
    monkeypatch.setattr(published, "DIGESTS", {digest: place})
    told = rows(cfgen("inspect", str(file)))
    assert told["recipe"] == "mini, a guess: its sha256 is that of o/n w.pt"
    assert told["licence"] == "cc-by-nc-4.0: no commercial use (o/n)"


def test_licence_in_a_header_is_told(cfgen: Run, weights: State) -> None:
    save_file(weights, "a.safetensors", {"modelspec.license": "apache-2.0"})
    assert rows(cfgen("inspect", "a.safetensors"))["licence"] == "apache-2.0, says its header"


def test_without_a_guess_a_preset_must_be_chosen(cfgen: Run, weights: State) -> None:
    save_file(weights, "a.safetensors")
    result = cfgen("inspect", "a.safetensors")
    assert "choose one with --preset" in rows(result)["recipe"]
    assert result.stdout.splitlines()[-1] == (
        'cfgen render "PROMPT" --model a.safetensors --preset NAME'
    )


def test_folder_is_told_file_by_file(cfgen: Run, weights: State) -> None:
    folder = Path("longlive")
    folder.mkdir()
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    result = cfgen("inspect", "longlive", "--json")
    found = data_of(result)
    assert (result.exit_code, found["command"]) == (
        0,
        'cfgen render "PROMPT" --model longlive --preset longlive',
    )
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")
    result = cfgen("inspect", "longlive", "--json")
    assert result.exit_code == 3
    parts = data_of(result)["parts"]
    assert [(Path(p["path"]).name, p["loads"]) for p in parts] == [
        ("diffusion_pytorch_model.safetensors", True),
        ("other.safetensors", False),
    ]


def test_file_in_the_cache_of_hugging_face_is_found(
    cfgen: Run, weights: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "models--gdhe17--Self-Forcing"
    snapshot = home / "snapshots" / ("a" * 40) / "checkpoints"
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    save_file(weights, snapshot / "x.safetensors")
    found = data_of(cfgen("inspect", "gdhe17/Self-Forcing/checkpoints/x.safetensors", "--json"))
    assert found["parts"][0]["guess"]["basis"] == "repository"
    assert found["parts"][0]["guess"]["recipe"] == "self-forcing"


def test_file_that_is_not_there_is_refused(cfgen: Run) -> None:
    result = cfgen("inspect", "none.safetensors")
    assert result.exit_code == 3
    assert "none.safetensors" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("a.safetensors", "--layer")])
def test_wrong_use_exits_with_2(arguments: tuple[str, ...], cfgen: Run) -> None:
    assert cfgen("inspect", *arguments).exit_code == 2

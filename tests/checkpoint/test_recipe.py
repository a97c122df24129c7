"""Which preset a file wants is guessed from what there is, the surest first, and never silently."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from cfgen.checkpoint.identify import preset_guess, published
from cfgen.checkpoint.identify.preset_guess import RECIPES, cached_digest, guess
from cfgen.config.loader import load
from cfgen.config.presets import preset_names
from cfgen.errors import CheckpointError

CAUSAL = "zhuhz22/Causal-Forcing"
SELF_FORCING = "a0413986d9734e02c09504e1520f5697ba6df731bb2f0f35577485e9cc8f56a3"


def placed(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "files" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("self_forcing_dmd.pt", "self-forcing"),
        ("Wan2.1-T2V-1.3B-Self-Forcing-bf16.safetensors", "self-forcing"),
        ("longlive_base.pt", "longlive"),
        ("LongLive 1.3B Q8_0.gguf", "longlive"),
        ("context-forcing.fp8.safetensors", "context-forcing"),
        ("causal_forcing.pt", "causal-forcing"),
        ("infinite_forcing_ema.pt", "infinity-rope"),
        ("LongLive-1.3B/models/weights.pt", "longlive"),
        ("context_forcing/model.pt", "context-forcing"),
        ("mini/diffusion_pytorch_model.safetensors", "mini"),
        ("mini-base/diffusion_pytorch_model.safetensors", "mini-base"),
        ("wan2.1_t2v_1.3B_fp16.safetensors", ""),
        ("model.pt", ""),
        ("framewise-1step.pt", "causal-forcing-plus-1step"),
        ("causal-forcing++/framewise-2step.pt", "causal-forcing-plus-2step"),
        ("Self_Gradient_Forcing/chunkwise/ar/model.pt", "sgf"),
        ("self-gradient-forcing-plus.safetensors", "sgf-plus"),
        ("SGF+/model.pt", ""),
        ("longvideo.pt", ""),
    ],
)
def test_names_suggest_a_preset(name: str, wanted: str, tmp_path: Path) -> None:
    found = guess(placed(tmp_path, name))
    assert found.recipe == wanted
    assert found.reason


def test_nothing_suggests_nothing(tmp_path: Path) -> None:
    found = guess(placed(tmp_path, "weights.safetensors"))
    assert (found.recipe, found.basis, found.published) == ("", "nothing", None)
    assert "bidirectional" in found.reason


def test_digest_counts_more_than_a_name(tmp_path: Path) -> None:
    found = guess(placed(tmp_path, "longlive.pt"), digests=["0" * 64, SELF_FORCING])
    assert (found.recipe, found.basis) == ("self-forcing", "sha256")
    assert found.published is not None
    assert found.published.file == "checkpoints/self_forcing_dmd.pt"
    assert found.published.is_non_commercial


@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json"])
@pytest.mark.parametrize("stem", ["my.safetensors", "my"])
def test_sidecar_counts_more_than_a_digest(stem: str, ending: str, tmp_path: Path) -> None:
    path = placed(tmp_path, "my.safetensors")
    path.with_name(stem + ending).write_text('{"recipe": "longlive"}')
    found = guess(path, digests=[SELF_FORCING])
    assert (found.recipe, found.basis) == ("longlive", "sidecar")
    assert stem + ending in found.reason
    assert found.published is not None
    assert found.published.repo == "gdhe17/Self-Forcing"


def test_other_files_beside_it_are_passed_over(tmp_path: Path) -> None:
    path = placed(tmp_path, "my.safetensors")
    path.with_name("my.json").write_text('{"sd version": "Wan"}')
    path.with_name("my.yaml").write_text("just words")
    assert guess(path).basis == "nothing"


@pytest.mark.parametrize("text", ["recipe: [a, b]", "recipe: ''", "recipe: {", "recipe: 3"])
def test_sidecar_that_names_no_preset_is_an_error(text: str, tmp_path: Path) -> None:
    path = placed(tmp_path, "my.safetensors")
    path.with_name("my.safetensors.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=re.escape("my.safetensors.yaml")):
        guess(path)


def test_header_of_a_converted_file_is_heeded(tmp_path: Path) -> None:
    found = guess(placed(tmp_path, "my.safetensors"), metadata={"cfgen.recipe": "longlive"})
    assert (found.recipe, found.basis) == ("longlive", "header")


def test_title_in_a_header_is_a_hint(tmp_path: Path) -> None:
    found = guess(placed(tmp_path, "q4.gguf"), metadata={"general.name": "Self Forcing DMD"})
    assert (found.recipe, found.basis) == ("self-forcing", "title")


def cached(tmp_path: Path, repo: str, file: str, content: bytes = b"x") -> Path:
    """A file in the Hugging Face cache, as a link to its blob."""
    home = tmp_path / f"models--{repo.replace('/', '--')}"
    blob = home / "blobs" / hashlib.sha256(content).hexdigest()
    link = home / "snapshots" / "abc123" / file
    for place in (blob, link):
        place.parent.mkdir(parents=True)
    blob.write_bytes(content)
    link.symlink_to(blob)
    return link


def test_repository_in_the_cache_is_known(tmp_path: Path) -> None:
    found = guess(cached(tmp_path, "ShuoChen20/context_forcing", "model.pt"))
    assert (found.recipe, found.basis) == ("context-forcing", "repository")
    assert found.others == ("context-forcing-paper",)


def test_file_of_a_repository_in_the_cache_has_its_own_note(tmp_path: Path) -> None:
    found = guess(cached(tmp_path, "zhuhz22/Causal-Forcing", "framewise/causal_forcing.pt"))
    assert found.published is not None
    assert "chunks of 1" in found.published.note


@pytest.mark.parametrize(
    ("repo", "file", "wanted"),
    [
        ("JunhaoZhuang/Self_Gradient_Forcing", "chunkwise/ar/model.pt", "sgf"),
        ("JunhaoZhuang/Self_Gradient_Forcing", "framewise/ar/model.pt", "sgf-frame"),
        ("ZihanSu/Self_Gradient_Forcing_Plus", "chunkwise/model.pt", "sgf-plus"),
        ("ZihanSu/Self_Gradient_Forcing_Plus", "framewise/model.pt", "sgf-plus-frame"),
        (CAUSAL, "causal-forcing++/framewise-1step.pt", "causal-forcing-plus-1step"),
        (CAUSAL, "causal-forcing++/framewise-2step.pt", "causal-forcing-plus-2step"),
        (CAUSAL, "chunkwise/longvideo.pt", ""),
        ("TencentARC/RollingForcing", "checkpoints/rolling_forcing_dmd.pt", ""),
    ],
)
def test_file_of_a_repository_wants_its_own_preset(
    repo: str, file: str, wanted: str, tmp_path: Path
) -> None:
    found = guess(cached(tmp_path, repo, file))
    assert (found.recipe, found.basis) == (wanted, "repository")
    assert found.published is not None
    assert bool(found.published.unsupported) == (not wanted)
    if wanted:
        assert found.published.licence == "apache-2.0"
        assert load({"preset": wanted}, environ={}).config.model.path == f"{repo}/{file}"


def test_bidirectional_model_gets_no_preset(tmp_path: Path) -> None:
    path = cached(tmp_path, "Wan-AI/Wan2.1-T2V-1.3B", "diffusion_pytorch_model.safetensors")
    found = guess(path)
    assert (found.recipe, found.basis) == ("", "repository")
    assert found.published is not None
    assert "bidirectional" in found.published.note


def test_digest_in_the_cache_is_told_by_the_blob(tmp_path: Path) -> None:
    path = cached(tmp_path, "a/b", "c.pt", b"weights")
    assert cached_digest(path) == hashlib.sha256(b"weights").hexdigest()
    assert cached_digest(placed(tmp_path, "f" * 64)) is None


def test_table_of_digests_is_well_formed() -> None:
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in published.DIGESTS)
    files = [(published.repo, published.file) for published in published.FILES]
    assert len(set(files)) == len(files)
    assert all(file for _, file in files)


def test_every_preset_that_is_guessed_is_there() -> None:
    told = {name for place in published.REPOSITORIES for name in place.recipes} | set(RECIPES)
    assert told <= set(preset_names())


def test_hints_lead_to_repositories_that_are_known() -> None:
    assert all(published.by_repository(repo) for _, repo in published.HINTS)


def test_weights_that_forbid_commercial_use_say_so() -> None:
    bound = {place.repo for place in published.REPOSITORIES if place.is_non_commercial}
    assert {"gdhe17/Self-Forcing", "ShuoChen20/context_forcing"} <= bound
    assert "Wan-AI/Wan2.1-T2V-1.3B" not in bound


def test_sidecar_that_is_no_sidecar_by_its_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = placed(tmp_path, "my.safetensors")
    path.with_name("my.json").write_text(json.dumps({"recipe": "longlive"}))
    monkeypatch.setattr(preset_guess, "SIDECAR_LIMIT", 5)
    assert guess(path).basis == "nothing"

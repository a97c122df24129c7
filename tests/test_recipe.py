"""The preset of a model that is named without one: by what is certain, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cfgen.checkpoint.identify import preset_guess
from cfgen.checkpoint.identify.published import DIGESTS
from cfgen.config.loader import load
from cfgen.errors import CheckpointError, UsageError
from cfgen.pipeline.model_preset import recipe_of
from cfgen.pipeline.models import OpenedModel


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"head.modulation": torch.zeros(1)}, path)
    return path


def test_an_installed_model_is_its_own_preset() -> None:
    assert recipe_of("mini")[0] == "mini"


def test_a_sidecar_tells(weights: Path) -> None:
    Path(f"{weights}.yaml").write_text("recipe: longlive\n", encoding="utf-8")
    name, reason = recipe_of(str(weights))
    assert name == "longlive"
    assert "weights.safetensors.yaml" in reason


def test_the_header_tells(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"head.modulation": torch.zeros(1)}, path, {"cfgen.recipe": "self-forcing"})
    assert recipe_of(str(path))[0] == "self-forcing"


def test_a_known_digest_tells(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = next(d for d, each in DIGESTS.items() if each.recipes == ("self-forcing",))
    monkeypatch.setattr(preset_guess, "cached_digest", lambda _path: known)
    assert recipe_of(str(weights))[0] == "self-forcing"


def test_a_known_file_without_a_preset_is_named(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = next(d for d, each in DIGESTS.items() if each.file == "Wan2.1_VAE.pth")
    monkeypatch.setattr(preset_guess, "cached_digest", lambda _path: known)
    with pytest.raises(UsageError, match="is Wan2.1's autoencoder"):
        recipe_of(str(weights))


def test_a_name_alone_is_no_evidence(tmp_path: Path) -> None:
    path = tmp_path / "longlive_fp8.safetensors"
    save_file({"head.modulation": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="nothing certain tells") as caught:
        recipe_of(str(path))
    assert "it may be longlive" in caught.value.message
    assert "--preset" in str(caught.value.hint)


def test_a_title_in_the_header_is_no_evidence_either(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {"head.modulation": torch.zeros(1)}
    save_file(tensors, path, {"modelspec.title": "merge of Self-Forcing and LongLive"})
    with pytest.raises(UsageError, match="nothing certain tells .* its header calls it"):
        recipe_of(str(path))


def test_the_loader_takes_the_models_preset_only_where_none_is_named(weights: Path) -> None:
    def choose(path: str) -> tuple[str, str]:
        assert path == str(weights)
        return "longlive", "a sidecar says so"

    flags = {"model.path": str(weights)}
    chosen = load(flags, environ={}, recipe=choose)
    assert chosen.config.preset == "longlive"
    assert str(chosen.origins["preset"]) == "weights (a sidecar says so)"
    assert chosen.config.memory.size == 12
    named = load({**flags, "preset": "self-forcing"}, environ={}, recipe=choose)
    assert named.config.preset == "self-forcing"
    assert load({}, environ={}, recipe=choose).config.preset == "mini"


ROLLING = ("rolling_forcing_dmd.pt", "longvideo.pt", "Rolling-Forcing Q8.pt")


@pytest.mark.parametrize("policy", ["window", "full", "slow_fast"])
@pytest.mark.parametrize("name", ROLLING)
def test_a_rolling_forcing_model_is_refused_by_its_name(
    name: str, policy: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    torch.save({"generator_ema": {"model.head.modulation": torch.zeros(1)}}, path)
    flags = {"preset": "mini", "model.path": str(path), "memory.policy": policy}
    model = load(flags, environ={}).config.model
    with pytest.raises(CheckpointError, match="a Rolling Forcing model.*five chunks") as caught:
        _ = OpenedModel(model).generator
    assert f"{name}.yaml" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="a Rolling Forcing model"):
        recipe_of(str(path))
    Path(f"{path}.yaml").write_text("recipe: longlive\n", encoding="utf-8")
    assert OpenedModel(model).generator.shapes == {"head.modulation": (1,)}
    assert recipe_of(str(path))[0] == "longlive"


def test_a_folder_called_rolling_forcing_is_no_evidence(tmp_path: Path) -> None:
    path = tmp_path / "rolling-forcing" / "mine.pt"
    path.parent.mkdir()
    torch.save({"head.modulation": torch.zeros(1)}, path)
    model = load({"preset": "mini", "model.path": str(path)}, environ={}).config.model
    assert OpenedModel(model).generator.shapes

"""A model that is not on this machine: all its parts in one sentence, one command for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cfgen.config.loader import load
from cfgen.config.schema import ModelConfig
from cfgen.errors import CheckpointError
from cfgen.pipeline.missing_files import refuse_missing
from cfgen.pipeline.models import OpenedModel


def model_of(preset: str) -> ModelConfig:
    return load({"preset": preset}, environ={}).config.model


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("preset", ["longlive", "self-forcing"])
def test_one_command_fetches_all_parts(preset: str) -> None:
    model = model_of(preset)
    asked = (refuse_missing, lambda m: OpenedModel(m).files, lambda m: OpenedModel(m).generator)
    for ask in asked:
        with pytest.raises(CheckpointError) as caught:
            ask(model)
        assert caught.value.hint == f"cfgen models pull {preset}"
        assert model.path in caught.value.message
        assert str(model.vae) in caught.value.message


def test_what_the_preset_lacks_is_fetched_with_it() -> None:
    model = replace(model_of("self-forcing"), loras=("a/b/c.safetensors:0.5",))
    with pytest.raises(CheckpointError) as caught:
        refuse_missing(model)
    wanted = "cfgen models pull self-forcing && cfgen models pull a/b/c.safetensors"
    assert caught.value.hint == wanted


def test_generator_that_is_there_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").touch()
    model = replace(model_of("self-forcing"), path=str(tmp_path / "mine.safetensors"))
    with pytest.raises(CheckpointError) as caught:
        refuse_missing(model)
    assert "models pull self-forcing" not in str(caught.value.hint)
    assert f"cfgen models pull {model.vae}" in str(caught.value.hint)


def test_name_that_is_no_reference_is_told_as_such() -> None:
    model = replace(model_of("self-forcing"), vae="/nowhere/vae.pth")
    with pytest.raises(CheckpointError, match="/nowhere/vae.pth"):
        refuse_missing(model)


def test_model_in_the_box_is_there() -> None:
    refuse_missing(model_of("mini"))

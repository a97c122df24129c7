"""Alpha of a LoRA: taken from the nearest place that says it, and never without saying so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cfgen.checkpoint.lora.apply import open_lora
from cfgen.errors import CheckpointError
from tests.checkpoint.lora_files import PEFT, saved


class Alphas:
    """One pair of rank 3 in a file, and what is said of its alpha."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = {
            f"base_model.model.head.head.{end}": torch.ones(shape)
            for end, shape in zip(PEFT, ((3, 12), (12, 3)), strict=True)
        }

    def opened(self, alpha: float | None = None, **metadata: str) -> tuple[float, str]:
        lora = open_lora(saved(self.tensors, self.folder, **metadata), alpha=alpha)
        (change,) = lora.changes.values()
        assert f"1 layers of rank 3, scale {change.scale:g}: {change.origin}" in lora.describe()
        return change.scale, change.origin

    def beside(self, **settings: object) -> None:
        (self.folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.fixture
def alphas(tmp_path: Path) -> Alphas:
    return Alphas(tmp_path)


def test_without_any_alpha_the_scale_is_one(alphas: Alphas) -> None:
    assert alphas.opened() == (1, "no alpha in the file, beside it or given")


def test_given_alpha_counts_where_the_file_says_nothing(alphas: Alphas) -> None:
    assert alphas.opened(alpha=6) == (2, "alpha 6 as given")


def test_alpha_of_peft_is_read_beside_its_file(alphas: Alphas) -> None:
    alphas.beside(peft_type="LORA", r=3, lora_alpha=12, use_rslora=False)
    scale, origin = alphas.opened(alpha=6)
    assert scale == 4
    assert origin == f"alpha 12 of {alphas.folder / 'adapter_config.json'}"
    alphas.beside(r=3, lora_alpha=12, use_rslora=True)
    assert alphas.opened()[0] == pytest.approx(12 / 3**0.5)
    alphas.beside(r=8, rank_pattern={"head.head": 3}, lora_alpha=12)
    assert alphas.opened()[0] == 4


def test_settings_beside_a_file_of_another_tool_are_not_its_own(alphas: Alphas) -> None:
    alphas.beside(r=3, lora_alpha=12)
    alphas.tensors = {
        name.replace("base_model.model", "diffusion_model"): t for name, t in alphas.tensors.items()
    }
    assert alphas.opened()[0] == 1


def test_alpha_of_diffusers_is_read_in_the_header(alphas: Alphas) -> None:
    said = json.dumps({"transformer.lora_alpha": 6, "transformer.r": 3})
    assert alphas.opened(lora_adapter_metadata=said)[0] == 2


def test_alpha_of_kohya_is_read_in_the_header(alphas: Alphas) -> None:
    scale = (2, "alpha 6 of ss_network_alpha in the header")
    assert alphas.opened(alpha=3, ss_network_alpha="6.0", ss_network_dim="3") == scale
    assert alphas.opened(ss_network_alpha="None")[0] == 1


@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_of_a_layer_comes_first(shape: tuple[int, ...], alphas: Alphas) -> None:
    alphas.tensors["base_model.model.head.head.alpha"] = torch.full(shape, 9.0)
    alphas.beside(r=16, lora_alpha=12)
    assert alphas.opened(alpha=6, ss_network_alpha="6") == (3, "alpha in the file")


UNUSABLE = {
    "zero": ({"base_model.model.head.head.alpha": torch.tensor(0.0)}, {}, "all its 1 layers is 0"),
    "zero beside it": ({}, {"r": 3, "lora_alpha": 0}, "other than 0, got 0"),
    "two": ({"base_model.model.head.head.alpha": torch.ones(2)}, {}, "must be one number, got [2]"),
    "other rank": ({}, {"r": 8, "lora_alpha": 8}, "says rank 8, but the LoRA has rank 3"),
    "none": ({}, {"r": 3}, "does not say lora_alpha"),
    "text": ({}, {"lora_alpha": "much"}, "must be a finite number other than 0, got 'much'"),
    "dora": ({}, {"lora_alpha": 3, "use_dora": True}, "sets use_dora"),
    "patterns": ({}, {"lora_alpha": 3, "alpha_pattern": {"q": 1}}, "sets alpha_pattern"),
    "loha": ({}, {"lora_alpha": 3, "peft_type": "LOHA"}, "is about LOHA"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_alpha_that_cannot_be_used_is_refused(kind: str, alphas: Alphas) -> None:
    tensors, settings, reason = UNUSABLE[kind]
    alphas.tensors |= tensors
    if settings:
        alphas.beside(**settings)
    with pytest.raises(CheckpointError) as caught:
        alphas.opened()
    assert reason in caught.value.message


@pytest.mark.parametrize("header", ["{", "[1]", '{"transformer.r": 3}'])
def test_header_that_says_nothing_is_refused(header: str, alphas: Alphas) -> None:
    with pytest.raises(CheckpointError, match="lora_adapter_metadata"):
        alphas.opened(lora_adapter_metadata=header)

"""Names of tensors in the layouts that they come in."""

from __future__ import annotations

import json

import pytest

from cfgen.checkpoint.keys import PREFIXES, common_prefix, from_diffusers, is_diffusers
from tests.golden.cases import FOLDER

PAIRS = json.loads((FOLDER / "wan_dit_key_map.json").read_text(encoding="utf-8"))


def test_diffusers_names_become_wans() -> None:
    assert {theirs: from_diffusers(theirs) for theirs in PAIRS.values()} == {
        theirs: ours for ours, theirs in PAIRS.items()
    }


def test_norms_change_places() -> None:
    assert from_diffusers("blocks.11.norm2.weight") == "blocks.11.norm3.weight"
    assert from_diffusers("blocks.11.norm3.weight") == "blocks.11.norm2.weight"


@pytest.mark.parametrize(
    "name", ["blocks.0.attn1.add_k_proj.weight", "image_embedder.ff.weight", "x"]
)
def test_a_name_without_a_rule_stays(name: str) -> None:
    assert from_diffusers(name) == name


def test_layouts_are_told_apart() -> None:
    assert is_diffusers(PAIRS.values())
    assert not is_diffusers(PAIRS)


@pytest.mark.parametrize(
    "prefix", ["", *PREFIXES, "model.diffusion_model.", "generator.model.", "_orig_mod.model."]
)
def test_prefix_that_all_names_share_is_found(prefix: str) -> None:
    assert common_prefix(prefix + name for name in PAIRS) == prefix


def test_prefix_of_some_names_is_none() -> None:
    assert common_prefix(["model.a", "model.b", "c"]) == ""
    assert common_prefix([]) == ""
    assert common_prefix(["encoder.0.weight", "encoder.2.weight"]) == ""

"""Names of tensors: the network is found under whatever tools put before and inside its names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cfgen.checkpoint.naming import WAN, Naming, find_network, from_diffusers, to_diffusers
from cfgen.errors import CheckpointError
from tests.golden.cases import FOLDER

PAIRS = json.loads((FOLDER / "wan_dit_key_map.json").read_text(encoding="utf-8"))
PATH = Path("file.pt")
RESIDUE = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")


def find(names: list[str], **options: str) -> Naming:
    found = find_network(names, WAN, PATH, **options)
    assert found is not None
    return found


def under(prefix: str) -> list[str]:
    return [prefix + name for name in PAIRS]


def test_diffusers_names_become_wans_and_back() -> None:
    for ours, theirs in PAIRS.items():
        assert from_diffusers(theirs) == ours
        assert to_diffusers(ours) == theirs


@pytest.mark.parametrize(
    "end", ["weight._data", "weight_scale", "comfy_quant", "_weight_qdata", "scale_input"]
)
def test_parts_of_quantized_layers_are_named_like_their_layer(end: str) -> None:
    layers = {ours.removesuffix(".weight") for ours in PAIRS if ours.endswith(".weight")}
    for layer in layers - {"patch_embedding"}:
        assert to_diffusers(f"{layer}.{end}") != f"{layer}.{end}"
        assert from_diffusers(to_diffusers(f"{layer}.{end}")) == f"{layer}.{end}"


def test_norms_change_places() -> None:
    assert from_diffusers("blocks.11.norm2.weight") == "blocks.11.norm3.weight"
    assert from_diffusers("blocks.11.norm3.weight") == "blocks.11.norm2.weight"


@pytest.mark.parametrize(
    "name", ["blocks.0.attn1.add_k_proj.weight", "image_embedder.ff.weight", "x"]
)
def test_a_name_without_a_rule_stays(name: str) -> None:
    assert from_diffusers(name) == name
    assert to_diffusers(name) == name


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "net.",
        "transformer.",
        "model.diffusion_model.",
        "generator/model.",
        "generator_ema/",
        "state_dict/module.generator.model.",
        "anything.at_all/",
    ],
)
@pytest.mark.parametrize("layout", [0, 1])
def test_what_stands_before_the_anchor_is_the_prefix(prefix: str, layout: int) -> None:
    theirs = [prefix + (name if layout == 0 else PAIRS[name]) for name in PAIRS]
    found = find(theirs)
    assert found.prefix == prefix
    assert found.layout is WAN[layout]
    assert found.names == dict(zip(PAIRS, theirs, strict=True))
    assert found.left_alone == ()


@pytest.mark.parametrize("residue", RESIDUE)
def test_residue_comes_out_of_the_middle_of_names(residue: str) -> None:
    def wrapped(name: str) -> str:
        return name.replace("blocks.", f"{residue}blocks.").replace("ffn.", f"ffn.{residue}")

    names = [f"model.{residue}{wrapped(name)}" for name in PAIRS]
    found = find(names)
    assert found.names == dict(zip(PAIRS, names, strict=True))
    assert found.native(f"model.{residue}blocks.0.{residue}ffn.0") == "blocks.0.ffn.0"


def test_no_network_of_the_kind_is_none() -> None:
    assert find_network(["decoder.0.weight", "head.modulations"], WAN, PATH) is None
    assert find_network(["otherhead.modulation"], WAN, PATH) is None
    assert find_network([], WAN, PATH) is None


@pytest.mark.parametrize("name", ["model._flat_param", "generator/model.flat_param"])
def test_flat_parameters_of_fsdp_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="holds FSDP's flat parameters") as caught:
        find_network([*under("model."), name], WAN, PATH)
    assert "FULL_STATE_DICT" in str(caught.value.hint)


TRAINING = [
    "critic/model.head.modulation",
    "critic_optimizer/state/0/exp_avg",
    "generator_optimizer/state/0/exp_avg",
    "optimizer/param_groups/0/lr",
    "text_encoder/shared.weight",
]


@pytest.mark.parametrize("prefer", ["generator", "generator_ema"])
@pytest.mark.parametrize("inner", ["", "model.", "model._fsdp_wrapped_module."])
def test_one_of_two_sets_of_weights_is_taken(prefer: str, inner: str) -> None:
    both = [*under(f"generator/{inner}"), *under(f"generator_ema/{inner}")]
    found = find([*both, *TRAINING], prefer=prefer)
    assert set(found.names.values()) == set(under(f"{prefer}/{inner}"))
    assert set(found.left_alone) == {*both, *TRAINING} - set(found.names.values())
    assert len(found.choices) == 2


@pytest.mark.parametrize("only", ["generator", "generator_ema"])
@pytest.mark.parametrize("prefer", ["generator", "generator_ema"])
def test_the_only_set_of_weights_is_taken_whatever_is_preferred(only: str, prefer: str) -> None:
    found = find([*under(f"{only}/model."), *TRAINING], prefer=prefer)
    assert found.prefix == f"{only}/model."
    assert set(found.left_alone) == set(TRAINING)


def test_training_state_inside_another_dictionary_is_left_alone() -> None:
    names = [*under("state/generator/model."), *(f"state/{name}" for name in TRAINING)]
    assert set(find(names).left_alone) == {f"state/{name}" for name in TRAINING}


@pytest.mark.parametrize(
    "prefixes",
    [
        ("ema/", "model/"),
        ("generator/a.", "generator/b."),
        ("generator/", "generator_ema/", "generator_old/"),
        ("generator/a.", "generator/b.", "generator_ema/"),
        ("", "generator_ema."),
    ],
)
def test_several_networks_are_refused_where_nothing_says_which(prefixes: tuple[str, ...]) -> None:
    names = [name for prefix in prefixes for name in under(prefix)]
    with pytest.raises(CheckpointError, match=f"holds {len(prefixes)} networks of one kind"):
        find_network(names, WAN, PATH)


def test_very_many_networks_are_refused_in_a_short_message() -> None:
    names = [f"generator.{i}.head.modulation" for i in range(20_000)]
    with pytest.raises(CheckpointError, match="holds 20000 networks") as caught:
        find_network(names, WAN, PATH)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("prefix", ["critic/", "teacher.model.", "real_score/model."])
def test_a_network_that_is_no_generator_is_refused(prefix: str) -> None:
    with pytest.raises(CheckpointError, match="the only network of its kind is under"):
        find_network(under(prefix), WAN, PATH)


TWINS = {
    "residue": [*under("model."), "model._orig_mod.head.head.bias"],
    "no prefix": [*under("model."), "head.head.bias"],
    "both layouts": [*PAIRS.values(), "head.head.bias"],
}


@pytest.mark.parametrize("kind", TWINS)
def test_two_names_that_become_one_are_refused(kind: str) -> None:
    with pytest.raises(CheckpointError, match=r"holds head\.head\.bias twice, once as"):
        find_network(TWINS[kind], WAN, PATH)

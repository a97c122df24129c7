"""What is told of a file is what is in it, and what is refused is what loading refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cfgen.checkpoint.formats import safetensors as safetensors_file
from cfgen.checkpoint.inspect.inspect import inspect, weights_in
from cfgen.checkpoint.inspect.report import NetworkFacts, Report
from cfgen.checkpoint.naming import to_diffusers
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.errors import CheckpointError
from cfgen.model.generator import WanConfig
from cfgen.model.vae import TinyAutoencoder
from tests.checkpoint.conftest import marker
from tests.strategies import random_generator

SIZES = WanConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, text_dim=16)
QUANTIZED = ("blocks.0.ffn.0", "blocks.1.ffn.2")

State = dict[str, Tensor]
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def weights() -> State:
    return dict(random_generator(SIZES).state_dict())


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(state: State, name: str = "model.safetensors", **metadata: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
        return path

    return write


def fp8(weights: State, scales: dict[str, object] | None = None) -> State:
    """The weights with two layers as `fp8_scaled`; `scales` in the place of their own."""
    state = dict(weights)
    for layer in QUANTIZED:
        scale = state[f"{layer}.weight"].abs().max() / 448
        state[f"{layer}.weight"] = (state[f"{layer}.weight"] / scale).to(torch.float8_e4m3fn)
        state[f"{layer}.scale_weight"] = torch.as_tensor((scales or {}).get(layer, scale))
    return state


def network(report: Report) -> NetworkFacts:
    assert report.network is not None
    return report.network


def refusal(report: Report) -> str:
    assert report.refusal is not None
    return report.refusal.message


def test_plain_file_is_described(weights: State, save: Save) -> None:
    path = save(weights, format="pt")
    report = inspect(path)
    facts = network(report)
    assert (report.container, report.entries) == ("safetensors", len(weights))
    assert report.kinds == {"float32": len(weights)}
    assert report.metadata == {"format": "pt"}
    assert [(f.path, f.nbytes) for f in report.files] == [(path, path.stat().st_size)]
    assert report.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts.kind, facts.names, facts.prefix) == ("generator", "Wan's own", "")
    assert facts.numbers == sum(tensor.numel() for tensor in weights.values())
    assert facts.sizes["dim"] == 128
    assert facts.sizes["num_layers"] == 2
    assert (report.refusal, report.warnings) == (None, ())
    assert (facts.missing, facts.unused, facts.reshaped) == ((), (), ())


def test_digest_is_left_out_on_request(weights: State, save: Save) -> None:
    assert inspect(save(weights), digests=False).files[0].sha256 is None


def test_layers_are_told_by_how_they_are_stored(weights: State, save: Save) -> None:
    facts = network(inspect(save(fp8(weights)), digests=False))
    quantized, plain = facts.groups
    assert (quantized.layout, quantized.format) == ("fp8_scaled", "float8_e4m3fn")
    assert (quantized.tensors, quantized.numbers, quantized.nbytes) == (2, 16384, 16384 + 8)
    assert quantized.bits == pytest.approx(8 * (16384 + 8) / 16384)
    assert (plain.layout, plain.format, plain.bits) == ("plain", "float32", 32)
    assert plain.tensors == len(weights) - 2
    assert {t.name for t in facts.tensors if t.quantized} == {f"{q}.weight" for q in QUANTIZED}


def test_scales_are_summed_up(weights: State, save: Save) -> None:
    rows = torch.linspace(0.001, 0.005, 64)[:, None]
    state = fp8(weights, {QUANTIZED[0]: rows, QUANTIZED[1]: torch.tensor(0.02)})
    facts = network(inspect(save(state), digests=False))
    scales = facts.groups[0].scales
    assert scales is not None
    assert scales.count == 65
    assert scales.least == pytest.approx(0.001)
    assert scales.greatest == pytest.approx(0.02)
    assert scales.median == pytest.approx(float(rows.median()))
    assert scales.flaws == {}


def test_block_scales_are_those_that_multiply_the_values(weights: State, save: Save) -> None:
    layer, state = "blocks.0.self_attn.q", dict(weights)
    state[f"{layer}.weight"] = torch.zeros(128, 64, dtype=torch.uint8)
    blocks = torch.full((128, 8), 2.0)
    blocks[5, 3] = 4.0
    state[f"{layer}.weight_scale"] = blocks.to(torch.float8_e4m3fn)
    state[f"{layer}.weight_scale_2"] = torch.tensor(0.01)
    state[f"{layer}.comfy_quant"] = marker(format="nvfp4")
    facts = network(inspect(save(state), digests=False))
    group = facts.groups[0]
    assert (group.format, group.bits) == ("nvfp4", pytest.approx(4.5, abs=0.01))
    assert group.scales is not None
    assert (group.scales.least, group.scales.greatest) == pytest.approx((0.02, 0.04))


@pytest.mark.parametrize(
    ("scale", "flaw"),
    [(0.0, "of 0"), (1e-39, "so small"), (448.0, "inverted"), (-0.01, "below 0")],
)
def test_odd_scales_are_pointed_out(scale: float, flaw: str, weights: State, save: Save) -> None:
    path = save(fp8(weights, {QUANTIZED[1]: torch.tensor(scale)}))
    report = inspect(path, digests=False)
    assert report.refusal is None
    assert len(report.warnings) == 1
    assert flaw in report.warnings[0]
    assert f"{QUANTIZED[1]}.weight" in report.warnings[0]


def test_scale_that_is_not_finite_is_refused_as_loading_refuses_it(
    weights: State, save: Save
) -> None:
    path = save(fp8(weights, {QUANTIZED[1]: torch.tensor(float("nan"))}))
    report = inspect(path, digests=False, values=True)
    with pytest.raises(CheckpointError) as refused:
        load_generator(path)
    assert refusal(report) == str(refused.value)
    assert len(network(report).tensors) == len(weights)


def test_layer_without_its_scale_is_refused_and_the_rest_told(weights: State, save: Save) -> None:
    state = fp8(weights)
    del state[f"{QUANTIZED[0]}.scale_weight"]
    path = save(state)
    report = inspect(path)
    with pytest.raises(CheckpointError) as refused:
        load_generator(path)
    assert refusal(report) == str(refused.value)
    assert QUANTIZED[0] in refusal(report)
    assert network(report).sizes["dim"] == 128
    assert report.kinds["float8_e4m3fn"] == 2


def test_what_is_missing_unused_and_misshapen_is_listed(weights: State, save: Save) -> None:
    state = dict(weights)
    del state["blocks.1.norm3.bias"]
    state["blocks.1.norm4.bias"] = torch.zeros(128)
    state["head.head.bias"] = torch.zeros(3)
    path = save(state)
    report = inspect(path, digests=False)
    facts = network(report)
    assert facts.missing == ("blocks.1.norm3.bias",)
    assert facts.unused == ("blocks.1.norm4.bias",)
    assert facts.reshaped == ("head.head.bias [3] instead of [64]",)
    with pytest.raises(CheckpointError) as refused:
        load_generator(path)
    assert refusal(report) == str(refused.value)


@pytest.mark.parametrize("prefix", ["model.", "model.diffusion_model.", "generator.model."])
def test_prefix_is_told(prefix: str, weights: State, save: Save) -> None:
    report = inspect(save({prefix + name: t for name, t in weights.items()}), digests=False)
    assert network(report).prefix == prefix
    assert report.refusal is None


def test_gguf_is_told(weights: State, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "wan.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in weights.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if "ffn" in name and tensor.ndim == 2 else None
        data = tensor.numpy() if kind is None else gguf.quants.quantize(tensor.numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = inspect(path, digests=False)
    assert report.refusal is None
    assert report.container.startswith("GGUF")
    assert report.metadata["general.architecture"] == "wan"
    group = network(report).groups[0]
    assert (group.layout, group.format, group.tensors, group.bits) == ("GGUF", "Q8_0", 4, 8.5)
    assert group.scales is None


def test_diffusers_names_are_told(weights: State, save: Save) -> None:
    report = inspect(save({to_diffusers(n): t for n, t in weights.items()}), digests=False)
    assert network(report).names == "diffusers'"
    assert {tensor.name for tensor in network(report).tensors} == set(weights)


def test_training_state_tells_both_sets_and_what_is_left_alone(
    weights: State, tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    wrapped = {f"model._fsdp_wrapped_module.{name}": t for name, t in weights.items()}
    plain = {f"model.{name}": t for name, t in weights.items()}
    torch.save({"generator": plain, "generator_ema": wrapped, "critic": plain, "step": 3}, path)
    report = inspect(path, digests=False)
    facts = network(report)
    assert report.container == "PyTorch"
    assert facts.choices == ("generator/model.", "generator_ema/model.")
    assert (facts.prefix, facts.residue) == ("generator_ema/model.", ("_fsdp_wrapped_module",))
    assert facts.left_alone == {"generator": len(weights), "critic": len(weights)}
    other = network(inspect(path, digests=False, prefer="generator"))
    assert (other.prefix, other.residue) == ("generator/model.", ())


@pytest.mark.parametrize(
    ("name", "reason"), [("img_emb.proj.0.weight", "image-to-video"), ("vace_blocks.0.x", "VACE")]
)
def test_models_that_want_more_than_text_are_refused_by_name(
    name: str, reason: str, weights: State, save: Save
) -> None:
    report = inspect(save({**weights, name: torch.zeros(3)}), digests=False)
    assert reason in refusal(report)
    assert network(report).kind == "generator"


def test_other_latents_than_those_of_wan21_need_their_own_decoder(save: Save) -> None:
    sizes = WanConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1, in_dim=48, out_dim=48)
    report = inspect(save(dict(random_generator(sizes).state_dict())), digests=False)
    assert "latents of 48 channels" in " ".join(report.warnings)
    assert network(report).sizes["in_dim"] == 48


def test_values_are_looked_at_on_request_only(weights: State, save: Save) -> None:
    state = fp8(weights)
    spoiled = state["blocks.0.norm3.weight"].clone()
    spoiled[:3] = float("inf")
    state["blocks.0.norm3.weight"] = spoiled
    codes = state[f"{QUANTIZED[0]}.weight"].view(torch.uint8).clone()
    codes[1, 1] = 0x7F
    state[f"{QUANTIZED[0]}.weight"] = codes.view(torch.float8_e4m3fn)
    path = save(state)
    assert inspect(path, digests=False).warnings == ()
    found = inspect(path, digests=False, values=True).warnings
    assert sorted(found) == [
        "blocks.0.ffn.0.weight holds 1 numbers that are not finite",
        "blocks.0.norm3.weight holds 3 numbers that are not finite",
    ]


def test_no_values_are_read(weights: State, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(fp8(weights))
    read, sizes = safetensors_file.read_at, []

    def counted(path: Path, offset: int, nbytes: int) -> Tensor:
        sizes.append(nbytes)
        return read(path, offset, nbytes)

    monkeypatch.setattr(safetensors_file, "read_at", counted)
    inspect(path, digests=False)
    assert sizes == [4, 4]


def test_autoencoder_is_told(save: Save) -> None:
    vae = TinyAutoencoder(encoder_width=4, decoder_widths=(8, 4, 4, 4))
    report = inspect(save(dict(vae.state_dict())), digests=False)
    assert (network(report).kind, network(report).names) == ("vae", "TAEHV's")
    assert network(report).sizes == {
        "latent_channels": 16,
        "spatial_stride": 8,
        "raw_latents": False,
    }
    assert report.refusal is None


def text_encoder() -> State:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    config = UMT5Config(vocab_size=50, feed_forward_proj="gated-gelu", **sizes)
    state = UMT5EncoderModel(config).state_dict()
    return {n: t for n, t in state.items() if n != "encoder.embed_tokens.weight"}


def test_text_encoder_is_told_with_the_tokenizer_that_it_lacks(save: Save) -> None:
    report = inspect(save(text_encoder()), digests=False)
    facts = network(report)
    assert (facts.kind, facts.names) == ("text encoder", "Hugging Face's")
    assert (facts.sizes["d_model"], facts.sizes["num_layers"]) == (8, 2)
    assert report.refusal is None
    assert (facts.missing, facts.unused) == ((), ())
    assert "--tokenizer" in report.warnings[0]


def test_decoder_beside_a_text_encoder_is_left_alone(save: Save) -> None:
    report = inspect(save({**text_encoder(), "lm_head.weight": torch.zeros(50, 8)}), digests=False)
    assert network(report).left_alone == {"lm_head": 1}
    assert report.refusal is None


def test_text_encoder_that_lacks_a_tensor_is_refused(save: Save) -> None:
    state = text_encoder()
    del state["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    report = inspect(save(state), digests=False)
    assert network(report).missing == ("encoder.block.1.layer.1.DenseReluDense.wo.weight",)
    assert "DenseReluDense.wo" in refusal(report)


def lora(layer: str, rank: int = 4, width: int = 1536) -> State:
    return {
        f"{layer}.lora_A.weight": torch.zeros(rank, width),
        f"{layer}.lora_B.weight": torch.zeros(width, rank),
    }


@pytest.mark.parametrize("layer", ["blocks.29.self_attn.q", "blocks.3.attn1.to_q"])
def test_lora_is_told(layer: str, save: Save) -> None:
    report = inspect(save(lora(f"diffusion_model.{layer}")), digests=False)
    facts = network(report)
    assert (facts.kind, facts.prefix) == ("lora", "diffusion_model.")
    assert (facts.sizes["layers"], facts.sizes["ranks"]) == (1, [4])
    assert (facts.sizes["dim"], facts.sizes["made_for"]) == ([1536], ["Wan 1.3B"])
    assert report.refusal is None


def test_lora_for_layers_that_no_generator_has_is_refused(save: Save) -> None:
    state = lora("blocks.0.self_attn.q") | lora("blocks.0.cross_attn.k_img")
    report = inspect(save(state), digests=False)
    assert "layers that no text-to-video generator" in refusal(report)
    assert network(report).unused == tuple(lora("blocks.0.cross_attn.k_img"))


def test_lora_with_numbers_that_are_not_finite_is_refused_when_they_are_looked_at(
    save: Save,
) -> None:
    state = lora("blocks.0.self_attn.q")
    state["blocks.0.self_attn.q.lora_B.weight"][3, 1] = float("nan")
    path = save(state)
    assert inspect(path, digests=False).refusal is None
    assert "lora_B.weight holds numbers" in refusal(inspect(path, digests=False, values=True))


def test_foreign_layout_is_refused_by_name(save: Save) -> None:
    path = save({"blocks.0.attn.qweight": torch.zeros(4, 4, dtype=torch.int8)})
    report = inspect(path, digests=False)
    assert "nunchaku" in refusal(report)
    assert (report.container, report.network) == ("safetensors", None)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "another image or video model"),
        ("model.layers.0.self_attn.q_proj.weight", "a language model"),
        ("blocks.7.self_attn.q.weight", "a part of a Wan generator"),
        ("something.else", "its tensors are something.else"),
    ],
)
def test_other_networks_are_refused_by_what_they_look_like(
    name: str, what: str, save: Save
) -> None:
    assert what in refusal(inspect(save({name: torch.zeros(2, 2)}), digests=False))


def test_file_that_is_no_container_is_refused_with_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "self_forcing_dmd.pt"
    path.write_text("<!DOCTYPE html><html>denied</html>")
    report = inspect(path)
    assert "is a web page" in refusal(report)
    assert report.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (report.container, report.network) == ("", None)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read|does not exist"):
        inspect(tmp_path / "none.safetensors")


def sharded(weights: State, save: Save, folder: str) -> Path:
    names = sorted(weights)
    parts = {f"m-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for part, mine in parts.items():
        path = save({name: weights[name] for name in mine}, f"{folder}/{part}")
    index = path.with_name("m.safetensors.index.json")
    places = {name: part for part, mine in parts.items() for name in mine}
    index.write_text(json.dumps({"weight_map": places}))
    return index


def test_shards_are_one_network(weights: State, save: Save) -> None:
    report = inspect(sharded(weights, save, "model"))
    assert report.refusal is None
    assert report.container == "safetensors in 2 shards"
    assert [file.path.name for file in report.files][1:] == [
        "m-00001-of-00002.safetensors",
        "m-00002-of-00002.safetensors",
    ]
    assert all(file.sha256 for file in report.files)


def test_folder_has_its_weights_with_the_index_for_its_shards(
    weights: State, save: Save, tmp_path: Path
) -> None:
    index = sharded(weights, save, "model/transformer")
    vae = save({"a": torch.zeros(1)}, "model/vae/m-ema.safetensors")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert weights_in(tmp_path / "model") == [index, vae]


def test_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        weights_in(tmp_path)

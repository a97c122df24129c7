"""Layouts and models that cfgen does not compute with are refused by their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfgen.checkpoint.naming import to_diffusers
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.errors import CheckpointError
from tests.checkpoint import packing, tiny
from tests.checkpoint.packing import Array, Arrays, Pack


def parts(**ends: Array) -> Pack:
    """A style that writes the same tensors for every layer (`__` for a dot)."""
    named = {end.replace("__", "."): part for end, part in ends.items()}
    return lambda weight: (named, weight)


def declared(told: str) -> Pack:
    return parts(weight=U8, weight_scale=ONE, comfy_quant=packing.marker(format=told))


def torchao(kind: str, **ends: Array) -> tiny.Style:
    pack = parts(**{"_weight_qdata": I8, "_weight_scale": ONE, **ends})
    return tiny.Style("", "", pack, 0, header=packing.torchao_header(kind))


U8, I8 = np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.int8)
ONE = np.ones(1, np.float32)
TE = {"checkpoint_format": "longlive_generator_te_nvfp4"}

STYLES: dict[str, tuple[Pack | tiny.Style, str]] = {
    "nunchaku": (
        parts(qweight=I8, wscales=ONE, smooth_factor=ONE, proj_down=ONE, proj_up=ONE),
        "is quantized by nunchaku (SVDQuant) or AWQ",
    ),
    "nunchaku's scales": (parts(wscales=ONE), "is quantized by nunchaku (SVDQuant)"),
    "GPTQ or AWQ": (parts(qweight=U8, qzeros=U8, scales=ONE), "nunchaku (SVDQuant) or AWQ"),
    "FourOverSix": (parts(quantized_weight_values=U8), "is quantized by FourOverSix"),
    "TransformerEngine's state": (
        parts(weight=U8, _extra_state=U8),
        "is quantized by TransformerEngine",
    ),
    "TransformerEngine's header": (
        replace(tiny.NATIVE, header=lambda _layers, _others: TE),
        "is quantized by TransformerEngine",
    ),
    "awq": (parts(weight=U8, weight_scale=ONE, weight_zeros=ONE), "is quantized by awq_w4a16"),
    "asymmetric codes": (
        parts(weight=U8, weight_s_rel=ONE, weight_s_channel=ONE, weight_codebook=ONE),
        "is quantized by asym_w4a8_int8",
    ),
    "awq, declared": (declared("awq_w4a16"), "its format awq_w4a16 is one that cfgen does not"),
    "asymmetric, declared": (declared("asym_w4a8_int8"), "its format asym_w4a8_int8 is one"),
    "rotated 4 bits": (declared("convrot_w4a4"), "its format convrot_w4a4 is one that cfgen does"),
    "bitsandbytes in 4 bits": (
        parts(weight=U8, weight__absmax=ONE, weight__quant_map=ONE),
        "is quantized by bitsandbytes",
    ),
    "bitsandbytes in 8 bits": (parts(weight=I8, SCB=ONE), "is quantized by bitsandbytes"),
    "quanto in 4 bits": (
        tiny.Style("", "", parts(weight___data=U8), 0, header=packing.quanto_header("qint4")),
        "quanto's qint4 is not read; qint8, qfloat8",
    ),
    "quanto in 4 bits without its map": (
        parts(weight___data___data=U8, weight___scale=ONE, weight___shift=ONE),
        "is quantized by quanto in 2 or 4 bits",
    ),
    **{
        f"torchao's {kind}": (torchao(kind), f"torchao's {kind} is not read; Int8Tensor and Float8")
        for kind in ("Int4Tensor", "NVFP4Tensor", "MXTensor", "IntxUnpackedToInt8Tensor")
    },
}


@pytest.mark.parametrize("kind", STYLES)
def test_foreign_layout_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    style, reason = STYLES[kind]
    if not isinstance(style, tiny.Style):
        style = tiny.Style("", "", style, 0)
    path = tiny.pack(style).write(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_foreign_layout_is_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    path = tiny.pack(tiny.Style("", "", parts(SCB=ONE), 0)).write(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="bitsandbytes"):
        open_generator(path)


def test_asymmetric_torchao_is_refused(tmp_path: Path) -> None:
    packed = tiny.pack(tiny.STYLES["torchao_int8"])
    odd = {"blocks.0.ffn.0._weight_zero_point": np.full((tiny.FFN, 1), 3, np.int8)}
    path = replace(packed, tensors=packed.tensors | odd).write(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="its zero point is not 0; asymmetric int8 is not re"):
        load_generator(path)


Change = Callable[[Arrays], Arrays]


def plus(*names: str) -> Change:
    return lambda tensors: tensors | dict.fromkeys(names, np.zeros((4, 4), np.float32))


def with_inputs(channels: int) -> Change:
    shape = (tiny.DIM, channels, 1, 2, 2)
    return lambda tensors: tensors | {"patch_embedding.weight": np.zeros(shape, np.float32)}


def in_diffusers_names(change: Change) -> Change:
    return lambda tensors: change({to_diffusers(name): t for name, t in tensors.items()})


RELATIVES: dict[str, tuple[Change, str]] = {
    "image to video": (plus("img_emb.proj.0.weight"), "an image-to-video model of Wan"),
    "image to video, diffusers": (
        in_diffusers_names(plus("condition_embedder.image_embedder.norm1.weight")),
        "an image-to-video model of Wan",
    ),
    "image to video of 2.2": (
        with_inputs(36),
        "takes 36 channels and gives 16: it is a model of Wan that wants images",
    ),
    "VACE": (plus("vace_patch_embedding.weight"), "a VACE model of Wan"),
    "VACE's blocks": (plus("vace_blocks.0.before_proj.weight"), "a VACE model of Wan"),
    "VACE, diffusers": (
        in_diffusers_names(plus("vace_blocks.0.proj_in.weight")),
        "a VACE model of Wan",
    ),
    "camera": (plus("control_adapter.conv.weight"), "a camera-control model of Wan"),
    "speech": (plus("audio_proj.proj1.weight"), "an audio-driven model of Wan"),
    "Animate": (plus("face_adapter.fuser_blocks.0.linear1_q.weight"), "an Animate model of Wan"),
    "too many blocks": (
        plus(*(f"blocks.{i}.modulation" for i in range(2000))),
        "it names 2000 blocks, at most 200",
    ),
    "extra attention": (
        plus("blocks.0.cross_attn.k_img.weight"),
        "it has unknown blocks.0.cross_attn.k_img.weight",
    ),
}


@pytest.mark.parametrize("kind", RELATIVES)
def test_other_wan_models_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    change, reason = RELATIVES[kind]
    tensors = change(tiny.pack(tiny.NATIVE).tensors)
    path = packing.write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message


def test_another_network_is_refused_and_described(tmp_path: Path) -> None:
    path = packing.write_safetensors(
        tmp_path / "vae.safetensors", dict.fromkeys(["decoder.conv1.weight", "encoder.x"], ONE)
    )
    with pytest.raises(CheckpointError, match="holds no Wan generator: none of its 2 tensors") as e:
        open_generator(path)
    assert "(decoder.conv1.weight, encoder.x, ...)" in e.value.message
    assert "cfgen inspect" in str(e.value.hint)


def test_config_of_an_image_model_is_refused(tmp_path: Path) -> None:
    path = tiny.pack(tiny.NATIVE).write(tmp_path / "diffusion_pytorch_model.safetensors")
    config = {"model_type": "i2v", "dim": tiny.DIM, "num_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="model_type is 'i2v'; only 't2v' can be run"):
        load_generator(path)

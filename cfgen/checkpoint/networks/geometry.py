"""Sizes of a Wan generator: told by its weights, and by config.json where one lies beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from cfgen.checkpoint.formats.base import read_json
from cfgen.errors import CheckpointError
from cfgen.model.generator import WanConfig
from cfgen.model.patches import LARGER, embedding_name
from cfgen.model.vae import TEMPORAL_STRIDE

DIFFUSERS = {
    "num_attention_heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
}
"""Keys of diffusers' config.json under Wan's names; `dim` is heads times `attention_head_dim`."""

FIXED: Mapping[str, tuple[object, ...]] = {
    "model_type": ("t2v",),
    "qk_norm": (True, "rms_norm_across_heads"),
    "cross_attn_norm": (True,),
}
"""Keys that may only say what the generator does anyway."""

AXES = {
    "patch_embedding.weight": 5,
    "text_embedding.0.weight": 2,
    "time_embedding.0.weight": 2,
    "blocks.0.ffn.0.weight": 2,
    "head.head.weight": 2,
    "head.modulation": 3,
}
"""Tensors that tell sizes, and how many axes each has."""

SIZES = ("dim", "ffn_dim", "num_heads", "num_layers")
"""What differs between Wan's published models."""

Shape = tuple[int, ...]

HEAD_DIM = 128
"""Channels of a head in all of Wan's published models."""

RELATIVES = {
    "img_emb.": "an image-to-video model of Wan",
    "condition_embedder.image_embedder.": "an image-to-video model of Wan",
    "vace_": "a VACE model of Wan",
    "control_adapter.": "a camera-control model of Wan",
    "ref_conv.": "a reference-image model of Wan",
    "audio_": "an audio-driven model of Wan",
    "face_": "an Animate model of Wan",
}
"""Starts of names that only Wan models have which want more than text."""

HINT = "take config.json and weights from the same model"
TEXT_ONLY = "take a text-to-video model of the Wan2.1 architecture"

MOST_BLOCKS = 200
"""Blocks of a generator, at most; Wan's largest models have 40."""


def read_geometry(
    shapes: Mapping[str, Shape], config: tuple[Path, Mapping[str, object]] | None, *, weights: Path
) -> WanConfig:
    """Sizes of a generator; config and weights must agree.

    Args:
        shapes: shape of every weight by Wan's names.
        config: config.json and the object in it, in Wan's or diffusers' keys, or None without one:
            then heads are `HEAD_DIM` wide, `text_len` is 512 and `eps` 1e-6, as in all of Wan's
            published models.
        weights: where the weights come from, for messages.

    Raises:
        CheckpointError: the weights are no Wan generator that makes video from text, the config is
            incomplete, or they differ.
    """
    _refuse_relatives(shapes, weights)
    patch_embedding, ffn, head = _tell(shapes, weights)
    dim = shapes["head.modulation"][2]
    if config is None:
        place, said = weights, _usual(dim, weights)
    else:
        place, said = config[0], _in_wan_keys(config[1], config[0])
    patch = (patch_embedding[2], patch_embedding[3], patch_embedding[4])
    geometry = WanConfig(
        dim=dim,
        ffn_dim=ffn[0],
        num_heads=_whole(said.get("num_heads"), "num_heads", place),
        num_layers=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        in_dim=patch_embedding[1],
        out_dim=head[0] // math.prod(patch),
        freq_dim=shapes["time_embedding.0.weight"][1],
        text_len=_whole(said.get("text_len", 512), "text_len", place),
        text_dim=shapes["text_embedding.0.weight"][1],
        patch_size=patch,
        larger_patches=tuple(n for n in LARGER if f"{embedding_name(n)}.weight" in shapes),
        eps=_positive(said.get("eps", 1e-6), "eps", place),
    )
    _compare(geometry, said, weights, place)
    _refuse_others(geometry, weights)
    return geometry


def sizes_in(path: Path) -> WanConfig:
    """Sizes of a generator as a config.json alone has them, in Wan's or diffusers' keys.

    Raises:
        CheckpointError: it is no JSON, or does not tell every size.
    """
    said = _in_wan_keys(read_json(path), path)
    told: dict[str, Any] = {name: _whole(said.get(name), name, path) for name in SIZES}
    usual = ("in_dim", "out_dim", "freq_dim", "text_len", "text_dim")
    told |= {name: _whole(said[name], name, path) for name in usual if name in said}
    return WanConfig(**told)


def vae_stride(config: tuple[Path, Mapping[str, object]] | None) -> int | None:
    """Pixels along a cell of the latents that a generator makes; None if nothing says it.

    Args:
        config: config.json and the object in it. `vae_stride` is Wan's name: frames, rows, columns.

    Raises:
        CheckpointError: the stride is none that an autoencoder has.
    """
    if config is None or "vae_stride" not in config[1]:
        return None
    path, said = config[0], config[1]["vae_stride"]
    if isinstance(said, list) and len(said) == 3:
        frames, rows, columns = (_whole(each, "vae_stride", path) for each in said)
        if frames == TEMPORAL_STRIDE and rows == columns:
            return rows
    raise CheckpointError(
        f"{path}: vae_stride must be [{TEMPORAL_STRIDE}, N, N] with pixels N, got {said!r}", HINT
    )


def _refuse_others(g: WanConfig, weights: Path) -> None:
    """Refuse sizes that only other models have."""
    if g.in_dim != g.out_dim:
        raise CheckpointError(
            f"{weights} takes {g.in_dim} channels and gives {g.out_dim}: it is a model of Wan "
            "that wants images besides text, which cfgen does not run",
            TEXT_ONLY,
        )
    if g.num_layers > MOST_BLOCKS:
        raise CheckpointError(
            f"{weights} holds no Wan generator: it names {g.num_layers} blocks, at most "
            f"{MOST_BLOCKS} are allowed"
        )


def _usual(dim: int, weights: Path) -> dict[str, object]:
    """What stands in for a config: Wan's heads."""
    if dim % HEAD_DIM:
        raise CheckpointError(
            f"{weights} is {dim} wide, which is no multiple of {HEAD_DIM}, the width of Wan's "
            "heads, and no config.json lies beside it",
            "put the config.json of the model beside its weights",
        )
    return {"num_heads": dim // HEAD_DIM}


def _refuse_relatives(shapes: Mapping[str, Shape], weights: Path) -> None:
    """Refuse Wan models that want more than text, by name."""
    for start, what in RELATIVES.items():
        if any(name.startswith(start) for name in shapes):
            raise CheckpointError(f"{weights} holds {what}, which cfgen does not run", TEXT_ONLY)


def _tell(shapes: Mapping[str, Shape], weights: Path) -> tuple[Shape, Shape, Shape]:
    """The shapes that tell sizes: patch embedding, first feed-forward matrix, head."""
    for name, axes in AXES.items():
        if name not in shapes:
            raise CheckpointError(
                f"{weights} holds no whole Wan generator: {name} is missing",
                "take a complete file of the model",
            )
        if len(shapes[name]) != axes:
            raise CheckpointError(
                f"{weights} holds no Wan generator: {name} must have {axes} axes, got "
                f"{list(shapes[name])}"
            )
    return (
        shapes["patch_embedding.weight"],
        shapes["blocks.0.ffn.0.weight"],
        shapes["head.head.weight"],
    )


def _compare(g: WanConfig, said: Mapping[str, object], weights: Path, config_path: Path) -> None:
    said = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    wrong = [
        f"{field.name} {said[field.name]} against {getattr(g, field.name)}"
        for field in fields(WanConfig)
        if field.name in said and said[field.name] != getattr(g, field.name)
    ]
    if wrong:
        raise CheckpointError(f"{config_path} and {weights} differ: {', '.join(wrong)}", HINT)
    if g.dim % g.num_heads or g.head_dim % 2:
        raise CheckpointError(
            f"{config_path}: num_heads must divide dim {g.dim} into heads of an even width, got "
            f"{g.num_heads}",
            HINT,
        )
    if g.patch_size[0] != 1:
        raise CheckpointError(
            f"{weights} has patches of {g.patch_size}; only patches of one latent frame can be run"
        )


def _in_wan_keys(config: Mapping[str, object], path: Path) -> dict[str, object]:
    """The config under Wan's keys, after a look at what may not be otherwise."""
    for key, allowed in FIXED.items():
        if key in config and config[key] not in allowed:
            raise CheckpointError(
                f"{path}: {key} is {config[key]!r}; only {allowed[0]!r} can be run", TEXT_ONLY
            )
    said = {DIFFUSERS.get(key, key): value for key, value in config.items()}
    if "attention_head_dim" in said:
        width = _whole(said["attention_head_dim"], "attention_head_dim", path)
        said["dim"] = width * _whole(said.get("num_heads"), "num_attention_heads", path)
    if isinstance(said.get("patch_size"), list):
        said["patch_size"] = tuple(cast("list[object]", said["patch_size"]))
    return said


def _whole(value: object, key: str, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: {key} must be a whole number above 0, got {value!r}", HINT)
    return value


def _positive(value: object, key: str, path: Path) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise CheckpointError(
            f"{path}: {key} must be a number above 0, below 1, got {value!r}", HINT
        )
    return float(value)

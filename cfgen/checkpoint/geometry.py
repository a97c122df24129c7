"""Sizes of a Wan generator: what config.json says, checked against the weights beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import cast

from torch import Tensor

from cfgen.errors import CheckpointError
from cfgen.model.generator import Geometry

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

HINT = "take config.json and weights from the same model"


def read_geometry(
    state: Mapping[str, Tensor], config: Mapping[str, object], *, weights: Path, config_path: Path
) -> Geometry:
    """Sizes that config and weights agree on.

    Args:
        state: weights under Wan's names.
        config: the object in config.json, in Wan's or diffusers' keys. `num_heads` cannot be seen
            in the weights and must be there; `text_len` (512) and `eps` (1e-6) have Wan's defaults.
        weights: where the weights come from, for messages.
        config_path: where the config comes from, for messages.

    Raises:
        CheckpointError: the weights are no Wan generator, the config is incomplete, or they differ.
    """
    said = _in_wan_keys(config, config_path)
    patch_embedding, ffn, head = _tell(state, weights)
    patch = (patch_embedding.shape[2], patch_embedding.shape[3], patch_embedding.shape[4])
    geometry = Geometry(
        dim=state["head.modulation"].shape[2],
        ffn_dim=ffn.shape[0],
        num_heads=_whole(said.get("num_heads"), "num_heads", config_path),
        num_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        in_dim=patch_embedding.shape[1],
        out_dim=head.shape[0] // math.prod(patch),
        freq_dim=state["time_embedding.0.weight"].shape[1],
        text_len=_whole(said.get("text_len", 512), "text_len", config_path),
        text_dim=state["text_embedding.0.weight"].shape[1],
        patch_size=patch,
        eps=_positive(said.get("eps", 1e-6), "eps", config_path),
    )
    _compare(geometry, said, weights, config_path)
    return geometry


def _tell(state: Mapping[str, Tensor], weights: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors that tell sizes: patch embedding, first feed-forward matrix, head."""
    for name, axes in AXES.items():
        if name not in state:
            raise CheckpointError(
                f"{weights} holds no Wan generator: {name} is missing",
                "check the path of the model",
            )
        if state[name].ndim != axes:
            raise CheckpointError(
                f"{weights} holds no Wan generator: {name} must have {axes} axes, got "
                f"{list(state[name].shape)}"
            )
    return (
        state["patch_embedding.weight"],
        state["blocks.0.ffn.0.weight"],
        state["head.head.weight"],
    )


def _compare(g: Geometry, said: Mapping[str, object], weights: Path, config_path: Path) -> None:
    wrong = [
        f"{field.name} {said[field.name]} against {getattr(g, field.name)}"
        for field in fields(Geometry)
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
                f"{path}: {key} is {config[key]!r}; only {allowed[0]!r} can be run",
                "take a text-to-video model of the Wan2.1 architecture",
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
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: {key} must be a number above 0, got {value!r}", HINT)
    return float(value)

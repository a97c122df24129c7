"""LoRA files: which layers each changes and by how much, whatever tool wrote it.

Here only names, shapes and alphas are read; `lora` applies the rest.
Source: the names as PEFT (get_peft_model_state_dict), kohya-ss musubi-tuner, DiffSynth-Studio and
diffusers write them, and ComfyUI comfy/lora.py and WanVideoWrapper nodes_model_loading.py read
them; `diff_m` is LightX2V's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cfgen.checkpoint.formats.base import FETCH_AGAIN, Container
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.lora.alpha import Alpha, find_alpha, read_number
from cfgen.checkpoint.lora.settings import PLAIN_LORA
from cfgen.checkpoint.naming import EMA, OTHERS, holds_no, some, without_residue
from cfgen.checkpoint.quant.layer import FLOAT8
from cfgen.errors import CheckpointError

WRAPPERS = (
    "base_model|model|diffusion_model|transformer|pipe|dit|net|unet|module|state_dict|lora|"
    "generator|generator_ema|generator_lora|generator_lora_ema|generator_ema_lora"
)
"""What stands before the names of a generator's layers, in any order and number."""

KOHYA = r"(?:lora_unet|lora_transformer|lycoris)_+"
"""What stands before them where every point is written `_`."""

PREFIX = re.compile(rf"(?:(?:{WRAPPERS})[./])*(?:{KOHYA})?")

FACTOR = re.compile(
    r"(?P<layer>.+)\.lora[_.](?P<factor>A|B|down|up)(?:(?:\.\w+)?\.(?P<end>weight|bias))?"
)
"""One of the two factors; between it and `weight` PEFT puts the name of the adapter."""

WHOLE = re.compile(r"(?P<layer>.+)\.(?P<part>alpha|lora_alpha|diff|diff_b|diff_m|w_norm|b_norm)")

PARTS = {"lora_alpha": "alpha", "w_norm": "diff", "b_norm": "diff_b"}
"""Other words for the same: FastVideo's, and LyCORIS's for differences of norms."""

REPLACED = re.compile(
    r"base_model\.model\.(?!.*\.lora_).+\.(weight|bias)|.*\.(modules_to_save|set_weight|reshape_weight)"
    r"(\.\w+)*"
)
"""Tensors that take the place of the model's own: PEFT's `bias` and `modules_to_save`, ComfyUI's
`set_weight`."""

FACTORS = {"A": "down", "down": "down", "B": "up", "up": "up"}

UNSUPPORTED_QUANT = {
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".boft_": "BOFT",
    ".oft_": "OFT",
    ".lora_mid": "LoCon in Tucker form",
}
"""Parts of names that only kinds of adapters have which cfgen does not apply."""

TEXT_ENCODER = re.compile(
    r"lora_te\d?_|(?:text_encoders?|text_model|cond_stage_model|conditioner)[._/]"
)
"""Starts of names that say: this belongs to the text encoder."""

DIFFUSERS = re.compile(r"attn[12][._]to_|condition_embedder|ffn[._]net[._]|proj_out")


@dataclass(frozen=True, slots=True)
class Change:
    """What a LoRA adds to one layer.

    Attributes:
        layer: the layer as the file calls it, without prefix.
        parts: names in the file by part: `down` [r, K] and `up` [N, r], with or without `up_bias`
            [N]; `diff` and `diff_b`, which are added to weight and bias without a scale.
        rank: r, 0 without factors.
        scale: what up @ down and the bias of up are multiplied by.
        origin: where the scale comes from, in words; empty without factors.
    """

    layer: str
    parts: Mapping[str, str]
    rank: int = 0
    scale: float = 1.0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Lora:
    """An opened LoRA; its factors are not read yet.

    Attributes:
        file: where it lies.
        kind: who names tensors so.
        prefixes: what stands before their names.
        changes: what it adds, by the name of the layer as `normalized` gives it.
        left_alone: tensors in the file that belong to other networks or to a training state.
    """

    file: Container
    kind: str
    prefixes: tuple[str, ...]
    changes: Mapping[str, Change]
    left_alone: tuple[str, ...] = ()

    def describe(self) -> tuple[str, ...]:
        """What was recognised and what was taken for alpha, a line each."""
        changes = self.changes.values()
        shown = " and ".join(prefix for prefix in self.prefixes if prefix)
        lines = [f"{self.kind} LoRA, {len(changes)} layers" + (f" under {shown}" if shown else "")]
        scales = Counter((c.rank, c.scale, c.origin) for c in changes if c.rank)
        for (rank, scale, origin), count in sorted(scales.items()):
            lines.append(f"{count} layers of rank {rank}, scale {scale:g}: {origin}")
        whole = Counter(part for change in changes for part in change.parts)
        if whole["diff"] + whole["diff_b"]:
            lines.append(f"differences of {whole['diff']} weights and {whole['diff_b']} biases")
        if self.left_alone:
            lines.append(f"left alone: {some(self.left_alone)}")
        return tuple(lines)


def open_lora(path: Path, *, alpha: float | None = None, prefer: str = EMA) -> Lora:
    """Open the file of a LoRA and account for every tensor in it.

    Args:
        path: a file that `open_container` opens.
        alpha: alpha of files that say nothing about theirs; without it their scale is 1.
        prefer: `generator_ema` or `generator`: which to take where a file holds both.

    Raises:
        CheckpointError: it holds no LoRA, another kind of adapter, half of a pair, or a tensor
            that means nothing in a LoRA.
    """
    file = open_container(path)
    _refuse_foreign(file)
    names, left = _ours(file.entries, prefer)
    layers = _by_layer(file, names)
    ranks = {key: _rank(file, parts) for key, (_, parts) in layers.items()}
    prefixes = tuple(sorted({prefix for prefix, _ in names.values()}))
    kind = _kind(prefixes, [layer for layer, _ in layers.values()])
    unsaid = {r for key, r in ranks.items() if r and "alpha" not in layers[key][1]}
    alpha_of_rest = find_alpha(file, unsaid, peft=kind == "PEFT", given=alpha)
    changes = {
        key: _change(file, layer, parts, rank=ranks[key], alpha=alpha_of_rest)
        for key, (layer, parts) in layers.items()
    }
    if all(change.rank and not change.scale for change in changes.values()):
        raise CheckpointError(
            f"{file.path} changes nothing: alpha of all its {len(changes)} layers is 0", PLAIN_LORA
        )
    return Lora(file, kind, prefixes, changes, left)


def normalized(layer: str) -> str:
    """A layer's name with `_` for every point, so that kohya's and other names are the same."""
    return layer.replace(".", "_")


def _refuse_foreign(file: Container) -> None:
    for name in file.entries:
        what = next((what for mark, what in UNSUPPORTED_QUANT.items() if mark in name), None)
        if what is not None:
            raise CheckpointError(
                f"{file.path} is no plain LoRA but {what} ({name}), which cfgen does not apply",
                PLAIN_LORA,
            )
        if TEXT_ENCODER.match(name):
            raise CheckpointError(
                f"{file.path} also changes a text encoder ({name}); cfgen applies LoRAs to the "
                "generator alone",
                "write the tensors of the generator to a file of their own",
            )
        if REPLACED.fullmatch(without_residue(name)):
            raise CheckpointError(
                f"{file.path} holds {name} to put in the place of the model's own (as PEFT's bias "
                "and modules_to_save do), which cfgen does not apply",
                PLAIN_LORA,
            )


def _ours(
    entries: Iterable[str], prefer: str
) -> tuple[dict[str, tuple[str, str]], tuple[str, ...]]:
    """Prefix and rest of every name that is about the generator, and the names that are not."""
    found: dict[str, tuple[str, str]] = {}
    left: list[str] = []
    for raw in entries:
        name = without_residue(raw)
        if re.split("[./]", name)[0].removesuffix("_lora") in OTHERS:
            left.append(raw)
            continue
        match = PREFIX.match(name)
        prefix = match.group() if match else ""
        found[raw] = (prefix, name.removeprefix(prefix))
    averaged = {raw for raw, (prefix, _) in found.items() if "ema" in re.split("[._/]", prefix)}
    if averaged and len(averaged) < len(found):
        unwanted = found.keys() - averaged if prefer == EMA else averaged
        left += unwanted
        found = {raw: named for raw, named in found.items() if raw not in unwanted}
    return found, tuple(left)


def _by_layer(
    file: Container, names: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, dict[str, str]]]:
    """Every layer as the file calls it with its names by part, by what `normalized` gives."""
    layers: dict[str, tuple[str, dict[str, str]]] = {}
    strange = []
    for raw, (_, name) in names.items():
        layer, part = _part(name)
        if not part:
            strange.append(raw)
            continue
        parts = layers.setdefault(normalized(layer), (layer, {}))[1]
        if part in parts:
            raise CheckpointError(
                f"{file.path} holds the same part of a LoRA twice, as {parts[part]} and as {raw}",
                "write the one you mean to a file of its own",
            )
        parts[part] = raw
    if not layers:
        hint = "check which file is which with cfgen inspect"
        raise holds_no("LoRA", file.path, file.entries, hint)
    if strange:
        raise CheckpointError(
            f"{file.path} holds tensors that mean nothing in a LoRA: {some(strange)}", PLAIN_LORA
        )
    return layers


def _part(name: str) -> tuple[str, str]:
    """The layer that a name is about and the part that it plays, which is empty if it has none."""
    if match := FACTOR.fullmatch(name):
        part = FACTORS[match["factor"]]
        if match["end"] == "bias":
            part = "up_bias" if part == "up" else ""
        return match["layer"], part
    match = WHOLE.fullmatch(name)
    if match is None:
        return name, ""
    if match["part"] != "diff_m":
        return match["layer"], PARTS.get(match["part"], match["part"])
    return re.sub(r"[._]modulation$", "", match["layer"]) + ".modulation", "diff"


def _kind(prefixes: Iterable[str], layers: Iterable[str]) -> str:
    """Who names tensors so."""
    prefix = " ".join(prefixes)
    if re.search(KOHYA, prefix):
        return "kohya"
    if "base_model" in prefix:
        return "PEFT"
    if any(DIFFUSERS.search(layer) for layer in layers):
        return "diffusers"
    if "pipe." in prefix:
        return "DiffSynth"
    return "ComfyUI" if "diffusion_model" in prefix else "plain"


def _rank(file: Container, parts: Mapping[str, str]) -> int:
    """The rank of a layer's factors, 0 if it has none; both are there and fit together."""
    named = {part: raw for part, raw in parts.items() if part in ("down", "up")}
    if len(named) < 2:
        lone = named or {part: raw for part, raw in parts.items() if part in ("alpha", "up_bias")}
        if lone:
            raise CheckpointError(
                f"{file.path} holds half of a pair: {some(lone.values())} is there, but not both "
                "factors",
                FETCH_AGAIN,
            )
        return 0
    down, up = (file.entries[named[part]].shape for part in ("down", "up"))
    if len(down) < 2 or len(up) < 2 or down[0] != up[1] or not down[0]:
        raise CheckpointError(
            f"{file.path}: {named['down']} {list(down)} and {named['up']} {list(up)} are no "
            "factors [r, K] and [N, r] of one rank",
            FETCH_AGAIN,
        )
    return down[0]


def _change(
    file: Container, layer: str, parts: Mapping[str, str], *, rank: int, alpha: Alpha
) -> Change:
    """One layer with its scale; all of its tensors are floats."""
    kept = {part: raw for part, raw in parts.items() if part != "alpha"}
    for raw in kept.values():
        entry = file.entries[raw]
        if not entry.is_float and entry.kind not in FLOAT8:
            raise CheckpointError(
                f"{file.path}: {raw} is {entry.kind}; tensors of a LoRA must be floats of 8 bits "
                "or more",
                PLAIN_LORA,
            )
    if not rank:
        return Change(layer, kept)
    raw = parts.get("alpha", "")
    if not raw:
        return Change(layer, kept, rank, alpha.scale(rank), alpha.origin)
    if math.prod(file.entries[raw].shape) != 1:
        raise CheckpointError(
            f"{file.path}: {raw} must be one number, got {list(file.entries[raw].shape)}",
            FETCH_AGAIN,
        )
    own = read_number(file.read(raw).item(), f"{file.path}: {raw}", zero=True)
    origin = "alpha in the file" if own else "alpha 0 in the file, which switches them off"
    return Change(layer, kept, rank, own / rank, origin)

"""LoRAs applied to a generator: merged into plain weights, kept beside quantized ones.

Everything is compared and every number looked at before the first weight changes, so that a LoRA
that is refused leaves the generator as it was.
Source: W + alpha / r * up @ down, Hu et al. 2021 (LoRA), equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cfgen.checkpoint.lora.read import Change, Lora, normalized, open_lora
from cfgen.checkpoint.naming import some, to_diffusers
from cfgen.checkpoint.networks.blank import INCOMPLETE
from cfgen.checkpoint.networks.geometry import RELATIVES
from cfgen.errors import CheckpointError, UsageError
from cfgen.model.generator import Generator
from cfgen.model.quantized import QuantizedLinear
from cfgen.ops.quant.weights import AnyQuantized

__all__ = ["Applied", "Lora", "apply_lora", "open_lora"]

IMAGE = ("k_img", "v_img", "add_k_proj", "add_v_proj", "norm_added_k", "image_embedder")
"""Parts of names that only models have which start from an image."""

SIZES = {1536: "1.3B", 3072: "5B", 5120: "14B"}
"""Wan's models by width."""

ANOTHER = "take a LoRA that was trained on this very model"


@dataclass(frozen=True, slots=True)
class Applied:
    """What a LoRA changed.

    Attributes:
        merged: low-rank pairs and differences added to plain weights, norms and modulations.
        unmerged: low-rank pairs kept beside quantized weights.
        biases: differences added to biases.
    """

    merged: int = 0
    unmerged: int = 0
    biases: int = 0


@dataclass(frozen=True, slots=True)
class _Target:
    """One layer of the generator: a module with a weight, or a parameter that stands alone."""

    name: str
    module: nn.Module
    attribute: str = "weight"

    @property
    def weight(self) -> Tensor | AnyQuantized:
        found: Tensor | AnyQuantized = getattr(self.module, self.attribute)
        return found

    @property
    def bias(self) -> Tensor | None:
        found: Tensor | None = getattr(self.module, "bias", None)
        return found if self.attribute == "weight" else None


Pair = tuple[Change, _Target]


def apply_lora(generator: Generator, lora: Lora, strength: float) -> Applied:
    """Add strength times a LoRA to a generator; several LoRAs add up in the order of the calls.

    Plain tensors are changed in place: the sum is worked out in float32 (float64 where they are)
    and rounded once. Beside quantized weights the pair stays, in the dtype of the product.

    Args:
        generator: with all weights in memory.
        lora: what `open_lora` gave.
        strength: any number but 0.

    Raises:
        CheckpointError: a tensor of the LoRA has no place in the generator, has another shape,
            holds numbers that are not finite, or would change a quantized weight as a whole. The
            generator is then as it was.
        UsageError: the strength is 0 or not finite.
    """
    if not math.isfinite(strength) or not strength:
        raise UsageError(
            f"the strength of a LoRA must be a finite number other than 0, got {strength}",
            "leave the LoRA out to render without it",
        )
    pairs = _matched(generator, lora)
    _check_numbers(lora)
    counts = {"merged": 0, "unmerged": 0, "biases": 0}
    with torch.no_grad():
        for change, target in pairs:
            for what in _add(lora, change, target, strength):
                counts[what] += 1
    return Applied(**counts)


def _targets(generator: Generator) -> dict[str, _Target]:
    """Every layer of the generator by its `normalized` names, Wan's and diffusers'."""
    found: dict[str, _Target] = {}
    for name, module in generator.named_modules():
        own = [_Target(name, module)] if getattr(module, "weight", None) is not None else []
        for alone, _ in module.named_parameters(recurse=False):
            if alone not in ("weight", "bias"):
                own.append(_Target(f"{name}.{alone}", module, alone))
        for target in own:
            end = ".weight" if target.attribute == "weight" else ""
            theirs = to_diffusers(target.name + end).removesuffix(end)
            found |= {normalized(target.name): target, normalized(theirs): target}
    return found


def _matched(generator: Generator, lora: Lora) -> list[Pair]:
    """Every change with its layer, after all names and shapes were compared."""
    targets = _targets(generator)
    pairs = [(change, targets[key]) for key, change in lora.changes.items() if key in targets]
    _refuse_other_size(lora, pairs, generator.geometry.dim)
    _refuse_lost(lora, targets)
    misfits = [reason for pair in pairs if (reason := _misfit(lora, *pair))]
    if misfits:
        raise CheckpointError(f"{lora.file.path} does not fit: {some(misfits, 3)}", ANOTHER)
    _refuse_twice(lora, pairs)
    for change, target in pairs:
        weight = target.weight
        if "diff" in change.parts and not isinstance(weight, Tensor):
            raise CheckpointError(
                f"{lora.file.path} changes the whole of {target.name} ({change.parts['diff']}), "
                f"which the model holds as {weight.format} and cfgen does not quantize again",
                "load the model with its weights expanded (model.quantized=expand)",
            )
    return pairs


def _refuse_lost(lora: Lora, targets: Mapping[str, _Target]) -> None:
    """Refuse a LoRA with tensors for which there is no layer, or no bias."""
    lost: list[str] = []
    for key, change in lora.changes.items():
        if key not in targets:
            lost += change.parts.values()
        elif targets[key].bias is None:
            lost += [raw for part, raw in change.parts.items() if part in ("diff_b", "up_bias")]
    if lost:
        trained_on = next(filter(None, map(_relative, lora.changes)), None)
        reason = f": it was trained on {trained_on}" if trained_on else ""
        raise CheckpointError(
            f"{lora.file.path} does not fit{reason}; the generator has no place for {some(lost)}",
            ANOTHER,
        )


def _refuse_other_size(lora: Lora, pairs: list[Pair], dim: int) -> None:
    """Refuse a LoRA for a model of another width, told by axes where this one has its width."""
    widths = set()
    for change, target in pairs:
        shapes = (tuple(target.weight.shape), _shape(lora, change))
        if len(shapes[0]) == len(shapes[1]):
            widths |= {theirs for ours, theirs in zip(*shapes, strict=True) if ours == dim}
    if len(widths) == 1 and dim not in widths:
        raise CheckpointError(
            f"{lora.file.path} is made for a model that is {_width(widths.pop())} wide, the "
            f"generator is {_width(dim)} wide",
            ANOTHER,
        )


def _width(dim: int) -> str:
    return f"{dim} (Wan {SIZES[dim]})" if dim in SIZES else str(dim)


def _shape(lora: Lora, change: Change) -> tuple[int, ...]:
    """The shape of what a change adds to a weight; empty if it changes a bias alone."""
    shapes = {part: lora.file.entries[raw].shape for part, raw in change.parts.items()}
    if "up" in shapes:
        return (shapes["up"][0], *shapes["down"][1:])
    return shapes.get("diff", ())


def _relative(layer: str) -> str | None:
    """The kind of Wan model that alone has such a layer."""
    if any(part in layer for part in IMAGE):
        return "an image-to-video model of Wan"
    return next((w for start, w in RELATIVES.items() if layer.startswith(normalized(start))), None)


def _misfit(lora: Lora, change: Change, target: _Target) -> str | None:
    """What of a change has another shape than its layer."""
    shape = tuple(target.weight.shape)
    columns = math.prod(shape[1:])
    rows, r = shape[0], change.rank
    allowed: dict[str, tuple[tuple[int, ...], ...]] = {
        "down": ((r, *shape[1:]), (r, columns)),
        "up": ((rows, r), (rows, r, *(1 for _ in shape[2:]))),
        "up_bias": ((rows,),),
        "diff": (shape,),
        "diff_b": ((rows,),),
    }
    for part, raw in change.parts.items():
        found = lora.file.entries[raw].shape
        if found not in allowed[part] or (part in ("down", "up") and len(shape) < 2):
            return f"{raw} {list(found)} for {target.name} {list(shape)}"
    return None


def _refuse_twice(lora: Lora, pairs: list[Pair]) -> None:
    seen: dict[str, Change] = {}
    for change, target in pairs:
        if target.name in seen:
            raise CheckpointError(
                f"{lora.file.path} changes {target.name} twice, as {seen[target.name].layer} and "
                f"as {change.layer}",
                "write the one you mean to a file of its own",
            )
        seen[target.name] = change


def _check_numbers(lora: Lora) -> None:
    for change in lora.changes.values():
        for raw in change.parts.values():
            ends = torch.aminmax(lora.file.read(raw).float())
            if not all(math.isfinite(end) for end in ends):
                raise CheckpointError(
                    f"{lora.file.path}: {raw} holds numbers that are not finite",
                    "download the file again, or take another one",
                )
        down = change.parts.get("down") if change.scale else None
        if down is not None and not lora.file.read(down).float().any():
            raise CheckpointError(
                f"{lora.file.path}: {down} is zero, as no training leaves it: the file is most "
                "likely not whole",
                INCOMPLETE,
            )


def _add(lora: Lora, change: Change, target: _Target, strength: float) -> list[str]:
    """Apply one change; returns what was done, by the names of `Applied`."""
    tensors = {part: lora.file.read(raw) for part, raw in change.parts.items()}
    done = []
    scale = strength * change.scale
    weight = target.weight
    if change.rank and change.scale:
        down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
        if isinstance(target.module, QuantizedLinear):
            target.module.add_adapter(down, up.float() * scale)
            done.append("unmerged")
        elif isinstance(weight, Tensor):
            wide = torch.promote_types(weight.dtype, torch.float32)
            rows = weight.to(wide).flatten(1)
            up, down = (factor.to(weight.device, wide) for factor in (up, down))
            weight.copy_(torch.addmm(rows, up, down, alpha=scale).view(weight.shape))
            done.append("merged")
    if "diff" in tensors and isinstance(weight, Tensor):
        _sum(weight, tensors["diff"], strength)
        done.append("merged")
    for part, factor in (("up_bias", scale), ("diff_b", strength)):
        if part in tensors and target.bias is not None:
            _sum(target.bias, tensors[part], factor)
            done.append("biases")
    return done


def _sum(into: Tensor, difference: Tensor, factor: float) -> None:
    """Add factor * difference in place; the sum is rounded once."""
    wide = torch.promote_types(into.dtype, torch.float32)
    into.copy_(torch.add(into.to(wide), difference.to(into.device, wide), alpha=factor))

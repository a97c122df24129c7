"""A network in a file: found by its names, described layer by layer, read when it is wanted."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.formats.base import Container, each_once
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.naming import EMA, Naming, NamingScheme, find_network, holds_no
from cfgen.checkpoint.quant.comfy import VERSION
from cfgen.checkpoint.quant.declared import Quantizer, find_quantizer
from cfgen.checkpoint.quant.decode import read_layer
from cfgen.checkpoint.quant.detect import recognise
from cfgen.checkpoint.quant.layer import CONVERT, FLOAT8, PARTS, Layer, LayerParts, plain_layer
from cfgen.errors import CheckpointError
from cfgen.ops.quant.weights import AnyQuantized

HEADER = "_quantization_metadata"
"""Where ComfyUI's files declare quantized layers, if not in a tensor beside each."""

SCALES = {"scale_weight", "weight_scale", "data_scale", "qdata_scale"}
"""Parts of which one in a file says that small values without a scale are incomplete."""

MARKER = "scaled_fp8"
"""A tensor without numbers in it that says: all small values here have scales."""

MARKER_LIMIT = 65536
"""Bytes of the longest declaration beside a layer."""

UNSUPPORTED_QUANT = {
    "qweight": "nunchaku (SVDQuant) or AWQ",
    "wscales": "nunchaku (SVDQuant)",
    "quantized_weight_values": "FourOverSix",
    "weight_zeros": "awq_w4a16",
    "weight_codebook": "asym_w4a8_int8",
    "_extra_state": "TransformerEngine",
    "weight.quant_map": "bitsandbytes",
    "weight.absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_packed": "compressed-tensors",
    "weight_scale_inv": "fp8 in blocks as DeepSeek and Hugging Face's fine-grained fp8 have it",
    "scale": "SDNQ",
    "svd_up": "SDNQ",
    "svd_down": "SDNQ",
    "pre_quant_scale": "AWQ or SVDQuant of ModelOpt",
    "weight._shift": "quanto in 2 or 4 bits",
}
"""Last parts of names that only layouts have which cfgen does not compute with."""

FOREIGN_HEADERS = {"longlive_generator_te_nvfp4": "TransformerEngine"}
"""Values of the header's `checkpoint_format` that name such a layout."""

QUANTO = ("qint8", "qfloat8", "qfloat8_e4m3fn", "qfloat8_e5m2")
"""Types of quanto's weights that are read."""


@dataclass(frozen=True, slots=True)
class Network:
    """One network in a file.

    Attributes:
        file: where it lies.
        naming: how its tensors are named there.
        layers: its tensors by native name.
        extras: tensors that are no weights of it but belong to it, name in the file by native name.
        memory: a second set of its weights, which writes the memory; None without one.
    """

    file: Container
    naming: Naming
    layers: Mapping[str, Layer]
    extras: Mapping[str, str]
    memory: Network | None = None

    def read(self, name: str) -> Tensor | AnyQuantized:
        """One of its tensors, as it is stored.

        Raises:
            CheckpointError: the file cannot be read, or a scale is not finite.
        """
        return read_layer(self.layers[name], self.file)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by native name."""
        return {name: layer.shape for name, layer in self.layers.items()}


def open_network(
    path: Path,
    layouts: Sequence[NamingScheme],
    *,
    what: str,
    prefer: str = EMA,
    extras: Sequence[str] = (),
) -> Network:
    """Open the file of a network and describe it; no weight is read.

    Args:
        path: the file.
        layouts: how such networks are named.
        what: the kind of network in words, for messages.
        prefer: `generator_ema` or `generator`: which to take where a file holds both.
        extras: native names of tensors that such a file may hold besides weights.

    Raises:
        CheckpointError: it is no such file, or one that cannot be read without a guess.
    """
    file = open_container(path)
    naming = find_network(file.entries, layouts, path, prefer=prefer)
    if naming is None:
        _refuse_foreign(file)
        if re.search(r"-\d{5}-of-\d{5}\.", path.name):
            raise CheckpointError(
                f"{path} is one shard of several and holds no whole {what}",
                "give the folder, or the .index.json beside it",
            )
        raise holds_no(what, path, file.entries, "check which file is which with cfgen inspect")
    return describe_network(file, naming, extras=extras)


def describe_network(file: Container, naming: Naming, *, extras: Sequence[str] = ()) -> Network:
    """Describe a network that was found in a file; see `open_network`."""
    _refuse_foreign(file)
    beside = {name: naming.names[name] for name in extras if name in naming.names}
    names = {name: raw for name, raw in naming.names.items() if name not in beside}
    return Network(file, naming, _describe(file, names, naming), beside)


def _describe(file: Container, names: Mapping[str, str], naming: Naming) -> dict[str, Layer]:
    """Every tensor of a network by native name."""
    empty = next((raw for raw in names.values() if _is_empty(file, raw)), None)
    if empty is not None:
        raise CheckpointError(f"{file.path}: {empty} is empty", CONVERT)
    groups, plain = _grouped(names)
    declared = _declared(file, groups, naming)
    quantizer = find_quantizer(file, naming)
    _check_quanto(file, groups, naming)
    full, marked = _take_marker(file, plain)
    for module in declared:
        groups.setdefault(module, {})
    strict = marked or any(SCALES & set(parts) for parts in groups.values())
    layers = {name: plain_layer(file, name, raw, strict=strict) for name, raw in plain.items()}
    for module, parts in groups.items():
        found = LayerParts(file, module, parts, declared.get(module, {}), strict)
        if declared and module not in declared and {"weight", "weight_scale"} <= set(parts):
            raise found.error("nothing declares how it was quantized, as others of the file are")
        layer = recognise(found, declared=module in declared, quantizer=quantizer)
        layers[layer.name] = layer
    _check_layout(file, layers.values(), quantizer)
    if not full:
        return layers
    return {name: replace(layer, full_precision=True) for name, layer in layers.items()}


def _is_empty(file: Container, raw: str) -> bool:
    return file.entries[raw].nbytes == 0 and not raw.endswith((MARKER, ".comfy_quant"))


def _check_layout(file: Container, layers: Iterable[Layer], quantizer: Quantizer | None) -> None:
    """Refuse layers of another layout than the file is declared to have."""
    for layer in layers if quantizer else ():
        if layer.is_quantized and quantizer and layer.layout != quantizer.layout:
            raise CheckpointError(
                f"{file.path}: quantized layer {layer.name}: it is stored as {layer.layout} stores "
                f"layers, and {quantizer.where} declares those of {quantizer.layout}",
                CONVERT,
            )


def _refuse_foreign(file: Container) -> None:
    told = str(file.metadata.get("checkpoint_format", ""))
    hint = "take a bf16, fp8, int8, nvfp4 or GGUF file of the model"
    if told in FOREIGN_HEADERS:
        raise CheckpointError(
            f"{file.path} is quantized by {FOREIGN_HEADERS[told]}, which cfgen does not read", hint
        )
    for name in file.entries:
        for part, layout in UNSUPPORTED_QUANT.items():
            if name.endswith("." + part) and (part != "scale" or _is_sdnq(file, name)):
                raise CheckpointError(
                    f"{file.path} is quantized by {layout} ({name}), which cfgen does not read",
                    hint,
                )


def _is_sdnq(file: Container, scale: str) -> bool:
    """Whether a tensor called `scale` stands beside a weight of bytes."""
    weight = file.entries.get(f"{scale.removesuffix('.scale')}.weight")
    return weight is not None and weight.kind in ("uint8", "int8", *FLOAT8)


def _grouped(names: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Names in the file by layer and part, and those of tensors that stand alone."""
    longest = sorted(PARTS, key=len, reverse=True)
    groups: dict[str, dict[str, str]] = {}
    plain: dict[str, str] = {}
    for name, raw in names.items():
        part = next((part for part in longest if name.endswith("." + part)), None)
        if part is None:
            plain[name] = raw
        else:
            groups.setdefault(name[: -len(part) - 1], {})[PARTS[part]] = raw
    return groups, plain


def _take_marker(file: Container, plain: dict[str, str]) -> tuple[bool, bool]:
    """Take `scaled_fp8` out: whether it asks for full precision, and whether it was there."""
    raw = plain.pop(MARKER, None)
    if raw is None:
        return False, False
    return file.entries[raw].shape == (2,), True


def _declared(
    file: Container, groups: Mapping[str, dict[str, str]], naming: Naming
) -> dict[str, dict[str, object]]:
    """Settings of every layer that a file declares to be quantized in ComfyUI's words."""
    found: dict[str, dict[str, object]] = {}
    path = file.path
    whole = _object(str(file.metadata.get(HEADER, "{}")), f"{path}: {HEADER}")
    version, header = whole.pop("format_version", VERSION), whole.pop("layers", {})
    if str(version) != VERSION or any(whole.values()):
        odd = next((k for k, v in whole.items() if v), f"format_version {version}")
        raise CheckpointError(
            f"{path}: {HEADER} declares {odd}, which cfgen does not know how to honour", CONVERT
        )
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: {HEADER} does not list layers", CONVERT)
    for name, told in header.items():
        if naming.is_other(name):
            continue
        layer = _native_layer(naming, name)
        settings = _flat(told, f"{path}: {HEADER} of {name}")
        if found.setdefault(layer, settings) != settings:
            raise CheckpointError(f"{path}: {HEADER} says two things of {layer}", CONVERT)
    for module, parts in groups.items():
        if "marker" not in parts:
            continue
        key = parts["marker"]
        told = _marker(file, key)
        if told is None:
            del parts["marker"]
            continue
        settings = _flat(told, f"{path}: {key}")
        if found.setdefault(module, settings) != settings:
            raise CheckpointError(f"{path}: {key} contradicts {HEADER}", CONVERT)
    return found


def _marker(file: Container, key: str) -> dict[str, object] | None:
    """The object in a `comfy_quant` tensor; some tools write its braces twice.

    None for one without a letter in it, which declares nothing: ComfyUI writes those (#15410).
    """
    if file.entries[key].kind not in ("uint8", "int8") or file.entries[key].nbytes > MARKER_LIMIT:
        raise CheckpointError(
            f"{file.path}: {key} must hold bytes, got {file.entries[key].kind}", CONVERT
        )
    text = bytes(file.read(key).flatten().view(torch.uint8).tolist()).decode("utf-8", "replace")
    text = text.strip("\0 ")
    if not text:
        return None
    if text.startswith("{{") and text.endswith("}}"):
        text = text[1:-1]
    return _object(text, f"{file.path}: {key}")


def _native_layer(naming: Naming, name: str) -> str:
    """The native name of a layer that a header mentions."""
    return naming.native(f"{name}.weight").removesuffix(".weight")


def _check_quanto(file: Container, groups: Mapping[str, dict[str, str]], naming: Naming) -> None:
    """Refuse a file whose quanto header and tensors differ, or that has types not read."""
    packed = file.metadata.get("quantization_map_base64")
    if packed is None:
        return
    try:
        text = base64.b64decode(str(packed), validate=True).decode("utf-8", "replace")
    except (ValueError, binascii.Error) as error:
        raise CheckpointError(
            f"{file.path}: its quantization map is not base64", CONVERT
        ) from error
    for name, types in _object(text, f"{file.path}: its quantization map").items():
        told = types.get("weights") if isinstance(types, dict) else types
        layer = _native_layer(naming, name)
        if naming.is_other(name):
            continue
        if told not in QUANTO:
            raise CheckpointError(
                f"{file.path}: quantized layer {layer}: quanto's {told} is not read; "
                f"{', '.join(QUANTO)} are",
                CONVERT,
            )
        if "data" not in groups.get(layer, {}):
            raise CheckpointError(
                f"{file.path}: quantized layer {layer}: its weight is missing", CONVERT
            )


def _object(text: str, what: str) -> dict[str, object]:
    try:
        found = json.loads(text, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON: {error}", CONVERT) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{what} must be a JSON object", CONVERT)
    return found


def _flat(settings: object, what: str) -> dict[str, object]:
    """Settings with those that some tools nest in `params` lifted out."""
    if not isinstance(settings, dict):
        raise CheckpointError(f"{what} must be a JSON object", CONVERT)
    nested = settings.get("params", {})
    if not isinstance(nested, dict):
        raise CheckpointError(f"{what}: params must be a JSON object", CONVERT)
    return {**{key: value for key, value in settings.items() if key != "params"}, **nested}

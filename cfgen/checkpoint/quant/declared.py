"""What a file declares of its layers besides ComfyUI's markers: honoured, harmless, or refused.

A header and the JSON beside a file may say that weights are rotated, packed or scaled by rules
that no tensor shows. Each such word is known here or refused by its name.
Sources: diffusers and transformers (`quantization_config` in config.json); NVIDIA ModelOpt 0.47
export/convert_hf_config.py and unified_export_hf.py; ComfyUI-GGUF (`comfy.gguf.*`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cfgen.checkpoint.formats.base import Container, each_once, read_json
from cfgen.checkpoint.naming import WAN, Naming
from cfgen.checkpoint.quant.layer import CONVERT
from cfgen.errors import CheckpointError

CONFIG = "quantization_config"
"""Key of config.json, of JSON in a header, or of a header itself, with a quantizer's settings."""

BESIDE = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", f"{CONFIG}.json")
"""Files in which quantizers keep settings beside weights that have a common name."""

COMMON = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)[.-].*")

ELSEWHERE = re.compile(
    r"modelspec\.|ss_|sshs_|tokenizer\.|quantize\.imatrix\.|comfy\.gguf\.orig_shape\."
    r"|general\.(quantization_version|quantized_by|quantizer|file_type|alignment)$"
    r"|(_quantization_metadata|quantization_map_base64|checkpoint_format|config|quantization_config)$"
)
"""Keys that say nothing of how numbers are to be read, or that are honoured in another place."""

ARITHMETIC = re.compile(
    r"quant|rotat(?!ary)|hadamard|convrot|swizzl|nibble|permut|codebook|smooth|svd|outlier", re.I
)
"""Words in a key that may declare a rule for numbers."""

SCALING = re.compile(
    r"scal(e|ing)|pack(ed|ing)|(block|group)_?size|reorder|transpos|interleav", re.I
)
"""Words that may do so in the header of a safetensors file, where no architecture has settings."""

OFF = frozenset(("", "none", "null", "false", "0", "{}", "[]"))

NVFP4, FP8 = ("NVFP4", "W4A16_NVFP4"), ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")
"""ModelOpt's algorithms that are read."""

MODELOPT = frozenset(
    (
        *("config_groups", "ignore", "quant_algo", "kv_cache_scheme", "producer", "quant_method"),
        *("quantized_layers", "group_size", "exclude_modules", "kv_cache_quant_algo"),
    )
)
GROUP = frozenset(("input_activations", "weights", "targets"))
NUMBERS = frozenset(("dynamic", "num_bits", "type", "group_size", "strategy"))
"""Settings of ModelOpt's: of all, of a group of layers, of the numbers in such a group."""

BY_TENSORS = {"torchao": "torchao", "quanto": "quanto", "gguf": "GGUF"}
"""Quantizers whose tensors declare themselves, and the layout that these must then have."""


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Who quantized a file, as it declares.

    Attributes:
        where: the place that says so, for messages.
        layout: the layout that its quantized layers have.
        algorithm: of all layers, for ModelOpt.
        layers: the same by layer in native names, where they differ.
        processed: whether a tool went over the scales afterwards and does not say how.
    """

    where: str
    layout: str
    algorithm: str = ""
    layers: Mapping[str, str] = field(default_factory=dict)
    processed: bool = False

    def of(self, layer: str) -> str:
        """The algorithm that a layer was quantized with."""
        return self.layers.get(layer, self.algorithm)


def find_quantizer(file: Container, naming: Naming) -> Quantizer | None:
    """Who quantized a network, if the header or the JSON beside it says so.

    Raises:
        CheckpointError: something is declared that cfgen does not know how to honour.
    """
    _check_header(file)
    found = [
        _quantizer(told, where, naming, processed=processed)
        for told, where, processed in _declarations(file, naming)
    ]
    differ = next((q for q in found if (q.layout, q.algorithm) != _who(found[0])), None)
    if differ is not None:
        raise CheckpointError(f"{found[0].where} and {differ.where} say different things", CONVERT)
    return found[0] if found else None


def _who(found: Quantizer) -> tuple[str, str]:
    return found.layout, found.algorithm


def _check_header(file: Container) -> None:
    """Refuse keys of a header that may declare a rule for numbers and are not known."""
    gguf = file.kind.startswith("GGUF")
    tensors = set(file.entries) | _torchao_names(file)
    architecture = f"{file.metadata.get('general.architecture', '')}."
    for key, value in file.metadata.items():
        if key in tensors or ELSEWHERE.match(key) or str(value).strip().lower() in OFF:
            continue
        if key == "quantization_format" and value == "quanto":
            continue
        inside = gguf and key.startswith(("general.", architecture))
        strange = key.startswith("comfy.") or ARITHMETIC.search(key)
        if strange or (not inside and SCALING.search(key)):
            told = str(value)[:60]
            raise CheckpointError(
                f"{file.path} declares {key} = {told}, which cfgen does not know how to honour",
                CONVERT,
            )
    if file.metadata.get("general.quantization_version", 2) != 2:
        version = file.metadata["general.quantization_version"]
        raise CheckpointError(
            f"{file.path} declares general.quantization_version = {version}; 2 is read", CONVERT
        )


def _torchao_names(file: Container) -> set[str]:
    """Names of tensors, each of which torchao describes under its own key of the header."""
    try:
        found = json.loads(str(file.metadata.get("tensor_names", "[]")))
    except (ValueError, RecursionError):
        return set()
    return {str(name) for name in found} if isinstance(found, list) else set()


def _declarations(
    file: Container, naming: Naming
) -> Iterator[tuple[Mapping[str, object], str, bool]]:
    """Every quantizer's settings that belong to a network, where they stand, and if in a header."""
    whole = _object(file.metadata.get("config")) or {}
    for told_here in (file.metadata.get(CONFIG), whole.get(CONFIG)):
        if told_here:
            where = f"{file.path}: {CONFIG} in its header"
            yield _settings(told_here, where), where, True
    if file.kind.startswith("GGUF"):
        return
    beside = file.path.with_name("config.json")
    if beside.is_file():
        config = read_json(beside)
        if config.get(CONFIG) and _belongs(config, naming):
            where = f"{CONFIG} in {beside}"
            yield _settings(config[CONFIG], where), where, False
            return
    places = [file.path.with_name(name) for name in BESIDE if COMMON.fullmatch(file.path.name)]
    for place in places:
        if place.is_file():
            yield read_json(place), str(place), False
            return


def _settings(told: object, where: str) -> dict[str, object]:
    found = _object(told)
    if found is None:
        raise CheckpointError(f"{where} is no JSON object", CONVERT)
    return found


def _belongs(config: Mapping[str, object], naming: Naming) -> bool:
    """Whether a config.json is about the network that was found, and not about its neighbour."""
    title = str(config.get("_class_name", ""))
    decoder = naming.layout.anchor.startswith("decoder.")
    encoder = not decoder and naming.layout not in WAN
    return ("d_model" in config) == encoder and ("Autoencoder" in title) == decoder


def _object(value: object) -> dict[str, object] | None:
    """A JSON object, as it is or as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=each_once)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _quantizer(
    told: Mapping[str, object], where: str, naming: Naming, *, processed: bool
) -> Quantizer:
    producer = told.get("producer")
    name = producer.get("name") if isinstance(producer, dict) else None
    method = str(told.get("quant_method") or name or "an unnamed quantizer")
    if method in BY_TENSORS:
        return Quantizer(where, BY_TENSORS[method])
    if method != "modelopt":
        raise CheckpointError(
            f"{where} says that the weights are quantized by {method}, which cfgen does not read",
            "take a bf16, fp8, int8, nvfp4 or GGUF file of the model; if these weights are plain, "
            f"take {CONFIG} away",
        )
    inner = told.get("quantization")
    settings = inner if isinstance(inner, dict) else told
    _check_modelopt(settings, where)
    mixed = settings.get("quantized_layers")
    layers = {
        naming.native(f"{layer}.weight").removesuffix(".weight"): _algorithm(facts, where)
        for layer, facts in (mixed if isinstance(mixed, dict) else {}).items()
    }
    algorithm = "" if layers else _algorithm(settings, where)
    return Quantizer(where, "ModelOpt", algorithm, layers, processed)


def _algorithm(settings: object, where: str) -> str:
    told = settings.get("quant_algo") if isinstance(settings, dict) else None
    if told not in (*NVFP4, *FP8):
        raise CheckpointError(
            f"{where}: ModelOpt's {told} is not read; {', '.join((*NVFP4, *FP8))} are", CONVERT
        )
    assert isinstance(settings, dict)
    if told in NVFP4 and settings.get("group_size", 16) != 16:
        raise CheckpointError(f"{where}: its group_size must be 16 for {told}", CONVERT)
    return str(told)


def _check_modelopt(settings: Mapping[str, object], where: str) -> None:
    """Refuse settings under which a weight is more than numbers times their scales."""
    _only(settings, MODELOPT, where)
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        facts = group if isinstance(group, dict) else {"a group": group}
        _only(facts, GROUP, where)
        numbers = facts.get("weights")
        if isinstance(numbers, dict):
            _only(numbers, NUMBERS, where)
            bits, size = numbers.get("num_bits", 4), numbers.get("group_size", 16)
            if bits == 4 and size != 16:
                raise CheckpointError(f"{where}: its group_size must be 16, got {size}", CONVERT)


def _only(settings: Mapping[str, object], known: frozenset[str], where: str) -> None:
    strange = next((k for k, v in settings.items() if k not in known and v), None)
    if strange is not None:
        raise CheckpointError(
            f"{where} sets {strange} to {str(settings[strange])[:60]}, which cfgen does not know "
            "how to honour",
            CONVERT,
        )

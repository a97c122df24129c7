"""UMT5 encoders on disk: Hugging Face's folders, Wan's own files, ComfyUI's, Kijai's and GGUF.

What a file holds is told by its tensors, never by its name. All of them get Hugging Face's names,
and what a file stores quantized or in 16 bits stays so in memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cfgen.checkpoint.formats.base import CHECK_PATH, Container, read_json
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.naming import TEXT_PARTS, find_network, holds_no, looks_like
from cfgen.checkpoint.networks.fill import CPU, fill
from cfgen.checkpoint.networks.network import Network, describe_network
from cfgen.checkpoint.networks.tokenizer import EMBEDDED, find_tokenizer, open_tokenizer
from cfgen.checkpoint.networks.umt5_names import (
    ATTENTION,
    BIAS,
    DECODER,
    DENSE,
    KNOWN_OTHER_FILES,
    SHARED,
    TWIN,
    UMT5,
)
from cfgen.checkpoint.quant.layer import Layer
from cfgen.errors import CheckpointError
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.tokenizer import OTHER_TOKENIZER
from cfgen.out_of_memory import is_out_of_memory

__all__ = [
    "UMT5",
    "TextFiles",
    "build_text_encoder",
    "load_text_encoder",
    "open_text_encoder",
    "text_files",
    "settings_of",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin",
    "models_t5_umt5-xxl-enc-bf16.pth",
)
"""What the weights are called in folders of Hugging Face's and of Wan's."""

FOLDER = "text_encoder"
"""Where diffusers puts the encoder inside a model folder."""

WANTED = "give UMT5-XXL, the encoder that Wan2.1 was trained with (google/umt5-xxl)"

SPARE_ROWS = 1024
"""Rows that a table may have more than there are tokens; UMT5's has 384 more than pieces."""

HALVES = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class TextFiles:
    """Where an encoder lies.

    Attributes:
        weights: every file that its weights come from.
        config: its config.json, or None without one.
        tokenizer: what holds its tokenizer; may be one of the weights.
    """

    weights: tuple[Path, ...]
    config: Path | None
    tokenizer: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All that an embedded prompt depends on besides its text, each once."""
        config = () if self.config is None else (self.config,)
        return tuple(dict.fromkeys((*self.weights, *config, self.tokenizer)))


def text_files(network: Network, path: Path, tokenizer: Path | None = None) -> TextFiles:
    """The files of an encoder that was opened; arguments and errors as of `build_text_encoder`."""
    weights, config = _locate(path)
    return TextFiles(network.file.files, config, find_tokenizer(weights, tokenizer))


def open_text_encoder(path: Path) -> Network:
    """Open the file or folder of a UMT5 encoder; no weight is read.

    Returns:
        its tensors under Hugging Face's names. A decoder in the same file is left alone
        (`naming.left_alone`); the tokenizer that ComfyUI embeds is among the extras.

    Raises:
        CheckpointError: it holds none, or is damaged or of an unknown layout.
    """
    weights = _locate(path)[0]
    file = open_container(weights)
    naming = find_network(file.entries, UMT5, weights, own=TEXT_PARTS)
    if naming is None:
        if (other := looks_like(file.entries, KNOWN_OTHER_FILES)) is not None:
            raise CheckpointError(f"{file.path} is {other}, not a UMT5 encoder", WANTED)
        raise holds_no("UMT5 encoder", file.path, file.entries, WANTED)
    left = tuple(raw for name, raw in naming.names.items() if name.startswith(DECODER))
    naming = replace(naming, left_alone=(*naming.left_alone, *left))
    found = describe_network(file, naming, extras=(EMBEDDED,))
    layers = {n: layer for n, layer in found.layers.items() if not n.startswith(DECODER)}
    if TWIN in layers and SHARED not in layers:
        layers[SHARED] = replace(layers.pop(TWIN), name=SHARED)
    tables = sum(name.endswith(BIAS) for name in layers)
    if tables == 1 < _count_blocks(layers):
        raise CheckpointError(
            f"{weights} is a T5 encoder (as of FLUX and SD3) or one of mT5: all its blocks share "
            "one table of positions, and each of UMT5's has its own",
            WANTED,
        )
    return replace(found, naming=naming, layers=layers)


def load_text_encoder(
    path: Path,
    tokenizer: Path | None = None,
    *,
    text_len: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    expand: bool = False,
) -> TextEncoder:
    """The encoder in a file or folder; see `open_text_encoder` and `build_text_encoder`."""
    network = open_text_encoder(path)
    return build_text_encoder(
        network, path, tokenizer, text_len=text_len, dtype=dtype, device=device, expand=expand
    )


def build_text_encoder(
    network: Network,
    path: Path,
    tokenizer: Path | None = None,
    *,
    text_len: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    expand: bool = False,
) -> TextEncoder:
    """A UMT5 encoder with its tokenizer, in evaluation mode, its weights frozen.

    Weights that the file holds in fewer bits than `dtype` stay as they are and are widened each
    time they are used, the table row by row: no copy of all of them is ever made.

    Args:
        network: its weights, opened.
        path: where it was found: a file of weights, a folder as Hugging Face lays it out
            (`config.json` beside `model.safetensors` or its shards), or a model folder with such a
            folder `text_encoder`.
        tokenizer: its tokenizer's file or folder; looked for if None, see `find_tokenizer`.
        text_len: positions of an embedded prompt.
        dtype: what is computed with.
        device: where it goes.
        expand: dequantize all weights now, as training needs it.

    Raises:
        CheckpointError: a file is missing or damaged, holds another kind of network, or config,
            weights and tokenizer do not belong together.
    """
    weights, config = _locate(path)
    network = _with_one_table(network)
    settings = settings_of(network, config)
    place = find_tokenizer(weights, tokenizer)
    words = open_tokenizer(place)
    _check_rows(words.get_vocab_size(), place, network)
    import transformers.models.umt5.modeling_umt5  # noqa: F401 - what fails here is no file's fault

    try:
        with torch.device("meta"):
            encoder = TextEncoder(settings, words, text_len=text_len)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises whatever a value leads to
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{config or weights} describes no UMT5 encoder: {error}",
            "take config.json and weights from the same model",
        ) from error
    fill(
        encoder.model,
        network if expand else _kept_narrow(network, dtype),
        dtype_of=lambda _name: dtype,
        device=device,
        expand=expand,
        tied={TWIN: SHARED},
    )
    return encoder.eval()


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The weights, and the config that belongs to them."""
    if not path.is_dir():
        beside = path.with_name(CONFIG_FILE)
        ours = beside.is_file() and read_json(beside).get("model_type") == "umt5"
        return path, beside if ours else None
    for folder in (path / FOLDER, path):
        for name in WEIGHTS_FILES:
            if (folder / name).is_file():
                return folder / name, None if name.endswith(".pth") else folder / CONFIG_FILE
    raise CheckpointError(
        f"{path} holds no text encoder: none of {', '.join(WEIGHTS_FILES)} is there", CHECK_PATH
    )


def _count_blocks(names: Mapping[str, object]) -> int:
    blocks = (re.match(r"encoder\.block\.(\d+)\.", name) for name in names)
    return len({block[1] for block in blocks if block})


def settings_of(network: Network, config: Path | None = None) -> dict[str, object]:
    """What an encoder is made with, in the keys of UMT5's config.json.

    Args:
        network: its weights, which tell its sizes.
        config: a config.json, which must agree with them and may say more.

    Raises:
        CheckpointError: it does not, or the weights are incomplete.
    """
    sizes = _sizes(network)
    if config is None:
        return sizes
    told = read_json(config)
    if told.get("model_type") != "umt5":
        raise CheckpointError(
            f"{config} describes a model of the type {told.get('model_type')!r}, not 'umt5'", WANTED
        )
    wrong = [
        f"{key} {told[key]!r} instead of {size!r}"
        for key, size in sizes.items()
        if key in told and told[key] != size
    ]
    if wrong:
        raise CheckpointError(
            f"{config} and {network.file.path} differ: {', '.join(wrong)}",
            "take config.json and weights from the same model",
        )
    distance = told.get("relative_attention_max_distance", 128)
    buckets = sizes["relative_attention_num_buckets"]
    if type(distance) is not int or not isinstance(buckets, int) or distance <= buckets // 4:
        raise CheckpointError(
            f"{config}: relative_attention_max_distance must be a whole number above "
            f"{int(str(buckets)) // 4}, got {distance!r}",
            "take config.json and weights from the same model",
        )
    return {**told, **sizes}


def _sizes(network: Network) -> dict[str, object]:
    """Sizes as the weights tell them, in the keys of UMT5's config.json."""
    first = "encoder.block.0."
    rows, width = _matrix(network, SHARED)
    buckets, heads = _matrix(network, first + BIAS)
    inner = _matrix(network, f"{first}{ATTENTION}q.weight")[0]
    if heads < 1 or inner % heads or buckets < 4:
        raise CheckpointError(
            f"{network.file.path} holds no UMT5 encoder: its table of positions is "
            f"[{buckets}, {heads}] for {inner} channels",
            WANTED,
        )
    return {
        "model_type": "umt5",
        "vocab_size": rows,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": _matrix(network, f"{first}{DENSE}wi_0.weight")[0],
        "num_layers": _count_blocks(network.layers),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "is_decoder": False,
    }


def _matrix(network: Network, name: str) -> tuple[int, int]:
    """Shape of a matrix that must be there."""
    shape = network.shapes.get(name)
    if shape is None or len(shape) != 2:
        what = "missing" if shape is None else f"{list(shape)}, which is no matrix"
        raise CheckpointError(
            f"{network.file.path} holds no whole UMT5 encoder: {name} is {what}",
            "take a complete file of the model",
        )
    return shape[0], shape[1]


def _check_rows(tokens: int, tokenizer: Path, network: Network) -> None:
    """Refuse a tokenizer that is certainly another model's."""
    rows = network.shapes[SHARED][0]
    if not tokens <= rows < tokens + SPARE_ROWS:
        raise CheckpointError(
            f"{tokenizer} has {tokens} tokens, {network.file.path} rows for {rows}", OTHER_TOKENIZER
        )


def _with_one_table(network: Network) -> Network:
    """The network without the table's second name, once both are known to hold the same."""
    if TWIN not in network.layers:
        return network
    layers = dict(network.layers)
    both = [_digest(network.file, layer) for layer in (layers[SHARED], layers.pop(TWIN))]
    if both[0] != both[1]:
        raise CheckpointError(
            f"{network.file.path}: {TWIN} differs from {SHARED}, and UMT5 has one table for both",
            WANTED,
        )
    return replace(network, layers=layers)


def _digest(file: Container, layer: Layer) -> list[bytes]:
    """Digests of a tensor's parts; two of the size of UMT5's table are better not held at once."""
    parts = (file.read(raw).flatten().view(torch.uint8) for _, raw in sorted(layer.parts.items()))
    return [hashlib.sha256(part.numpy().data).digest() for part in parts]


def _kept_narrow(network: Network, dtype: torch.dtype) -> Network:
    """The network with matrices of 16 bits taken for quantized ones, where `dtype` is wider."""
    if dtype.itemsize <= 2:
        return network
    layers = {
        name: replace(layer, store="scaled")
        if layer.format in HALVES and len(layer.shape) == 2
        else layer
        for name, layer in network.layers.items()
    }
    return replace(network, layers=layers)

"""From files to networks, strictly: every tensor of a file is used and none is made up."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from cfgen.checkpoint.formats.base import read_json
from cfgen.checkpoint.naming import EMA, WAN, some
from cfgen.checkpoint.networks.blank import INCOMPLETE, blank
from cfgen.checkpoint.networks.geometry import read_geometry
from cfgen.checkpoint.networks.memory_weights import apart, in_file
from cfgen.checkpoint.networks.model_files import generator_file
from cfgen.checkpoint.networks.network import Network, open_network
from cfgen.checkpoint.quant.layer import Layer
from cfgen.errors import BackendUnavailable, CheckpointError
from cfgen.model.generator import Generator
from cfgen.model.quantized import QuantizedEmbedding, QuantizedLinear
from cfgen.ops.quant.int8_matmul import unsupported

CONFIG_FILE = "config.json"

MATRICES = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.(weight|bias)")
"""Linear layers of a generator's blocks; `F.linear` wants the biases in the weights' dtype."""

MOST_TOKENS = 65536
"""Positions of an embedded prompt, at most; Wan's have 512."""

NAMED = 5
"""Most tensors that one message names."""

CPU = torch.device("cpu")

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every tensor of a network by its native name."""

DtypeOf = Callable[[str], torch.dtype]
"""The dtype that a tensor is computed with, by its native name."""


def open_generator(path: Path, *, prefer: str = EMA) -> Network:
    """Open a file, or the file of a folder, that holds a Wan generator; no weight is read.

    Raises:
        CheckpointError: it holds none, or is damaged or of an unknown layout.
    """
    network = open_network(generator_file(path), WAN, what="Wan generator", prefer=prefer)
    return apart(network)


def load_generator(path: Path, *, prefer: str = EMA, **how: Unpack[Loading]) -> Generator:
    """Open a file of weights, or a folder of a model, and load the generator in it.

    Args:
        path: where it lies; config.json is read where it lies beside the weights.
        prefer: `generator_ema` or `generator`: which to take where a file holds both.
        how: as of `build_generator`.

    Raises:
        BackendUnavailable, CheckpointError: as of `open_generator` and `build_generator`.
    """
    return build_generator(open_generator(path, prefer=prefer), **how)


class Loading(TypedDict, total=False):
    """How weights become a generator; see `build_generator`."""

    dtype: torch.dtype
    device: torch.device
    expand: bool
    native: bool
    untrained: bool


def build_generator(
    network: Network,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    expand: bool = False,
    native: bool = False,
    untrained: bool = False,
) -> Generator:
    """A Wan generator in evaluation mode, its weights frozen.

    Args:
        network: its weights, opened; config.json is read where it lies beside them.
        dtype: of the linear layers inside the blocks, weights and biases; norms, modulations,
            embeddings and head are computed in float32 (float64 where `dtype` is float64).
        device: where it goes.
        expand: dequantize all weights now, which takes more memory, instead of on every use.
        native: multiply by quantized weights as they are stored, where the device can and the
            file does not ask for high precision.
        untrained: whether layers may still be zero that begin so, as a training needs it.

    Raises:
        BackendUnavailable: `native` is asked for and no layer can.
        CheckpointError: a file is missing or damaged, the config contradicts the weights, or the
            tensors are not exactly those of the generator.
    """
    weights = network.file.path
    geometry = read_geometry(network.shapes, config_of(weights), weights=weights)
    precise = torch.promote_types(dtype, torch.float32)

    def filled(weights: Network) -> Generator:
        with torch.device("meta"):
            generator = Generator(geometry)
        fill(
            generator,
            weights,
            dtype_of=lambda name: dtype if MATRICES.fullmatch(name) else precise,
            device=device,
            expand=expand,
            untrained=untrained,
        )
        if native:
            go_native(generator, weights, device)
        return generator

    compare_memory(shapes_of(Generator, geometry), network)
    if untrained and network.memory is not None:
        raise CheckpointError(
            f"{weights} holds a second set of weights, which writes the memory (memory_*), and "
            "training knows one set",
            "begin with a model of one set",
        )
    generator = filled(network)
    if network.memory is not None:
        generator.writer = filled(network.memory)
    return generator


def go_native(module: nn.Module, network: Network, device: torch.device) -> None:
    """Let quantized layers multiply by their weights as they are stored, where that can be.

    Raises:
        BackendUnavailable: no layer can; the message says why.
    """
    reasons: list[str] = []
    layers = {n: m for n, m in module.named_modules() if isinstance(m, QuantizedLinear)}
    for name, layer in layers.items():
        reason = unsupported(layer.weight, device)
        if reason is None and network.layers[f"{name}.weight"].full_precision:
            reason = "the file asks for products in high precision"
        layer.native = reason is None
        reasons += [reason] if reason else []
    if len(reasons) == len(layers):
        why, hint = "none of its layers is quantized", "use --set model.matmul=dequantize"
        if reasons:
            why = reasons[0]
        elif any(layer.is_quantized for layer in network.layers.values()):
            why = "its quantized layers are expanded when they are loaded"
            hint = "use --set model.quantized=keep with it"
        raise BackendUnavailable(
            f"{network.file.path} cannot be computed with as it is stored: {why}", hint
        )


def config_of(weights: Path) -> tuple[Path, dict[str, object]] | None:
    """The Wan config.json beside a file of weights; None if there is none, or another model's.

    Raises:
        CheckpointError: it is there and is no JSON.
    """
    path = weights.with_name(CONFIG_FILE)
    if not path.is_file():
        return None
    config = read_json(path)
    ours = {"dim", "num_heads", "num_attention_heads"} & set(config)
    return (path, config) if ours and "d_model" not in config else None


def text_len_of(weights: Path) -> int:
    """Positions of an embedded prompt that a generator reads: what config.json says, else 512.

    Raises:
        CheckpointError: config.json says what is no number of positions.
    """
    config = config_of(weights)
    found = 512 if config is None else config[1].get("text_len", 512)
    if isinstance(found, int) and not isinstance(found, bool) and 0 < found <= MOST_TOKENS:
        return found
    place = weights if config is None else config[0]
    raise CheckpointError(
        f"{place}: text_len must be a whole number from 1 to {MOST_TOKENS}, got {found!r}",
        "restore the model folder",
    )


def fill(
    module: nn.Module,
    network: Network,
    *,
    dtype_of: DtypeOf,
    device: torch.device,
    expand: bool = False,
    tied: Mapping[str, str] | None = None,
    untrained: bool = False,
) -> None:
    """Put the weights of a file into a network made on the meta device, and freeze it.

    One tensor at a time is read and moved. Linear layers and tables that the file holds quantized
    are replaced by layers that keep them so.

    Args:
        module: the network.
        network: its weights; their names are the module's.
        dtype_of: dtype that each is computed with.
        device: where they go.
        expand: dequantize every weight instead.
        tied: names that are not in the file, and the name whose parameter each shares.
        untrained: whether tensors may be blank.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape, or blank where it
            cannot be (see `blank`).
    """
    tied = tied or {}
    expected = {name: shape for name, shape in shapes_in(module).items() if name not in tied}
    compare(expected, network.shapes, network.file.path)
    plain: dict[str, Tensor] = {}
    for name in expected:
        stored = network.read(name)
        if not untrained and (reason := blank(name, stored)) is not None:
            raise CheckpointError(
                f"{network.file.path}: {name} {reason}, as no training leaves it: the file is "
                "most likely not whole",
                INCOMPLETE,
            )
        if isinstance(stored, Tensor):
            value = stored.to(device, dtype_of(name))
        elif expand or not _keeps(module, name):
            value = stored.dequantize(dtype_of(name)).to(device)
        else:
            _replace(module, name, stored, dtype_of(name))
            continue
        plain[name] = nn.Parameter(value, requires_grad=False)
    _assign(module, plain, tied)
    module.to(device).eval().requires_grad_(False)


def held_nbytes(network: Network, *, dtype_of: DtypeOf, expand: bool) -> dict[str, int]:
    """Bytes of memory that each weight will take when `fill` has put it into its network.

    Args:
        network: the weights.
        dtype_of: dtype that each is computed with.
        expand: whether all are dequantized.
    """

    def held(layer: Layer) -> int:
        matrix = layer.is_quantized and layer.name.endswith(".weight") and len(layer.shape) == 2
        if matrix and not expand:
            return sum(network.file.entries[raw].nbytes for raw in layer.parts.values())
        return math.prod(layer.shape) * dtype_of(layer.name).itemsize

    return {name: held(layer) for name, layer in network.layers.items()}


def _keeps(module: nn.Module, name: str) -> bool:
    """Whether a weight can stay quantized: that of a linear layer or of a table."""
    owner, _, part = name.rpartition(".")
    return part == "weight" and isinstance(module.get_submodule(owner), nn.Linear | nn.Embedding)


def _replace(module: nn.Module, name: str, stored: object, dtype: torch.dtype) -> None:
    """Put a layer that keeps its weight quantized where a plain one stands."""
    owner = name.rpartition(".")[0]
    before = module.get_submodule(owner)
    layer: nn.Module
    if isinstance(before, nn.Embedding):
        layer = QuantizedEmbedding(stored, dtype)  # type: ignore[arg-type]
    else:
        layer = QuantizedLinear(stored, None, dtype)  # type: ignore[arg-type]
    module.set_submodule(owner, layer)


def _assign(module: nn.Module, plain: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Set tensors by name; the bias of a quantized layer is one of its buffers."""
    for name, value in plain.items():
        owner, _, part = name.rpartition(".")
        layer = module.get_submodule(owner)
        if isinstance(layer, QuantizedLinear) or part in dict(layer.named_buffers(recurse=False)):
            layer.register_buffer(part, value.data)
        else:
            layer.register_parameter(part, nn.Parameter(value, requires_grad=False))
    for twin, name in tied.items():
        module.set_submodule(twin.rpartition(".")[0], module.get_submodule(name.rpartition(".")[0]))


def compare_memory(expected: Shapes, network: Network) -> None:
    """Refuse a second set of weights that is not exactly of the generator's shapes; see `compare`.

    Raises:
        CheckpointError: as of `compare`, names as the file has them.
    """
    if network.memory is not None:
        compare(in_file(expected), in_file(network.memory.shapes), network.file.path)


def shapes_of(network: Callable[[Any], nn.Module], config: object) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a network by name; it is built on the meta device only."""
    with torch.device("meta"):
        return shapes_in(network(config))


def shapes_in(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a network by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def compare(expected: Shapes, found: Shapes, path: Path) -> None:
    """Refuse weights whose names or shapes are not exactly the expected ones.

    Raises:
        CheckpointError: they are not; the message names what is missing, unknown or of another
            shape.
    """
    missing = [name for name in expected if name not in found]
    unused = [name for name in found if name not in expected]
    other = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = [
        f"{what} {some(names, NAMED)}"
        for what, names in (("lacks", missing), ("has unknown", unused), ("has", other))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit: it {'; it '.join(problems)}",
            "take a complete file of this very model",
        )

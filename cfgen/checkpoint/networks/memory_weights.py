"""A second set of a generator's weights in the same file, which writes the memory.

Self Gradient Forcing Plus trains commit passes apart from denoising passes. Beside each of its
weights the file holds that of the other role, with `memory_` before one part of its name:
`memory_head.head.weight`, `blocks.0.memory_modulation`, `blocks.0.self_attn.q.memory_weight`.
Source: Self_Gradient_Forcing_Plus wan/modules/causal_model.py @ ec746eb (arXiv 2610.10429).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.quant.layer import Layer

OUTSIDE = r"patch_embedding(?:_[24]x)?|text_embedding|time_embedding|time_projection|head"
"""Parts of a generator outside its blocks."""

MEMORY = re.compile(rf"^memory_(?=(?:{OUTSIDE})\.)|(?<=\.)memory_(?=(?:modulation|weight|bias)$)")
"""What marks a weight of the second set."""

MARKED = re.compile(rf"^(?=(?:{OUTSIDE})\.)|(?<=\.)(?=[^.]+$)")
"""Where the mark stands in a name: before it, or before its last part."""


def memory_name(name: str) -> str:
    """The name in a file of the weight that has this native name in the second set."""
    return MARKED.sub("memory_", name, count=1)


def apart(network: Network) -> Network:
    """The network with the second set of its weights, if it has one, as a network of its own."""
    own: dict[str, Layer] = {}
    second: dict[str, Layer] = {}
    for name, layer in network.layers.items():
        native = MEMORY.sub("", name, count=1)
        if native == name:
            own[name] = layer
        else:
            second[native] = replace(layer, name=native)
    if not second:
        return network
    memory = Network(network.file, network.naming, second, {})
    return Network(network.file, network.naming, own, network.extras, memory)


def in_file(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the second set by the names that its tensors have in a file."""
    return {memory_name(name): shape for name, shape in shapes.items()}

"""Names of a UMT5 encoder's tensors: Hugging Face's, which cfgen uses, Wan's own and llama.cpp's.

Source: transformers models/umt5 (5.23); Wan2.1 wan/modules/t5.py @ 9737cba; gguf-py constants.py
(0.19), where `ffn_gate` is the half that GELU acts on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cfgen.checkpoint.naming import WAN, NamingScheme, unchanged

SHARED, TWIN = "shared.weight", "encoder.embed_tokens.weight"
"""Two names of the one table; files have either or both."""

DECODER = ("decoder.", "lm_head.", "dec.", "output.")
"""Starts of names in files that hold UMT5 as a whole; Wan needs only its encoder."""

ATTENTION, DENSE = "layer.0.SelfAttention.", "layer.1.DenseReluDense."
BIAS = f"{ATTENTION}relative_attention_bias.weight"

FROM_WAN = {
    "norm1.": "layer.0.layer_norm.",
    "attn.": ATTENTION,
    "pos_embedding.embedding.": f"{ATTENTION}relative_attention_bias.",
    "norm2.": "layer.1.layer_norm.",
    "ffn.gate.0.": f"{DENSE}wi_0.",
    "ffn.fc1.": f"{DENSE}wi_1.",
    "ffn.fc2.": f"{DENSE}wo.",
}
FROM_GGUF = {
    "attn_norm.": "layer.0.layer_norm.",
    "attn_rel_b.": f"{ATTENTION}relative_attention_bias.",
    "attn_": ATTENTION,
    "ffn_norm.": "layer.1.layer_norm.",
    "ffn_gate.": f"{DENSE}wi_0.",
    "ffn_up.": f"{DENSE}wi_1.",
    "ffn_down.": f"{DENSE}wo.",
}
"""Starts of names inside a block: Wan's and llama.cpp's to Hugging Face's."""

TOP = {
    "token_embedding.": "shared.",
    "norm.": "encoder.final_layer_norm.",
    "token_embd.": "shared.",
    "enc.output_norm.": "encoder.final_layer_norm.",
}
"""The same outside the blocks."""

KNOWN_OTHER_FILES = (
    ("|".join(re.escape(layout.anchor) for layout in WAN), "a Wan generator"),
    (r"(en|de)coder\.(conv_in|conv1|middle|mid_block)\..*", "an autoencoder"),
    (r"text_projection.*|text_model\.encoder\.layers\.0\..*", "a CLIP text encoder"),
    (r"transformer\.resblocks\.0\..*", "a CLIP text encoder"),
    (r"pos_embedding\.embedding\.weight", "a T5 encoder"),
    (r"(layers|blk)\.0\.(self_attn\.q_proj|attn_q)\..*", "a language model"),
    (r".*lora_(A|B|up|down)\..*", "a LoRA"),
)
"""Names of tensors that only networks of other kinds have, and what those are."""


def from_wan(name: str) -> str:
    """Hugging Face's name of a tensor in Wan's layout; a name without a rule stays as it is."""
    return _renamed(name, "blocks.", FROM_WAN)


def from_gguf(name: str) -> str:
    """Hugging Face's name of a tensor in llama.cpp's; a name without a rule stays as it is."""
    return _renamed(name, "enc.blk.", FROM_GGUF)


def _renamed(name: str, blocks: str, rules: Mapping[str, str]) -> str:
    block = re.match(rf"{re.escape(blocks)}(\d+)\.", name)
    rest = name[block.end() :] if block else name
    for before, after in (rules if block else TOP).items():
        if rest.startswith(before):
            return (f"encoder.block.{block[1]}." if block else "") + after + rest[len(before) :]
    return name


UMT5 = (
    NamingScheme("Hugging Face's", "encoder.final_layer_norm.weight", unchanged),
    NamingScheme("Wan's own", "blocks.0.pos_embedding.embedding.weight", from_wan),
    NamingScheme("llama.cpp's", "enc.output_norm.weight", from_gguf),
)
"""How a UMT5 encoder is named."""

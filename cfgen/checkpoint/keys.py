"""Names of tensors: known prefixes off, diffusers' names turned into Wan's own.

Source: diffusers loaders/single_file_utils.py @ 58eb52c, turned around.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIXES = (
    "model.",
    "diffusion_model.",
    "generator.",
    "transformer.",
    "net.",
    "_fsdp_wrapped_module.",
    "_orig_mod.",
)
"""Parts that tools put before every name, in any order and number."""

TOP = {
    "patch_embedding.": "patch_embedding.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "proj_out.": "head.head.",
    "scale_shift_table": "head.modulation",
}
"""Starts of names outside the blocks: diffusers' to Wan's."""

ATTENTION = {"to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "o."}

BLOCK = {
    "scale_shift_table": "modulation",
    "norm2.": "norm3.",
    "norm3.": "norm2.",
    "ffn.net.0.proj.": "ffn.0.",
    "ffn.net.2.": "ffn.2.",
    **{f"attn1.{theirs}": f"self_attn.{ours}" for theirs, ours in ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{ours}" for theirs, ours in ATTENTION.items()},
    "attn1.norm_": "self_attn.norm_",
    "attn2.norm_": "cross_attn.norm_",
}
"""Starts of names inside a block: diffusers' to Wan's; norm2 and norm3 change places."""


def common_prefix(names: Iterable[str]) -> str:
    """The longest run of `PREFIXES` that every name starts with."""
    listed = list(names)
    found = ""
    while listed:
        part = next((p for p in PREFIXES if all(n.startswith(p, len(found)) for n in listed)), None)
        if part is None:
            break
        found += part
    return found


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether these are the names of a Wan transformer in diffusers' layout."""
    return any(name.startswith("condition_embedder.") for name in names)


def from_diffusers(name: str) -> str:
    """Wan's name of a tensor in diffusers' layout; a name without a rule stays as it is."""
    block = re.match(r"blocks\.\d+\.", name)
    head = block.group() if block else ""
    rest = name[len(head) :]
    for theirs, ours in (BLOCK if block else TOP).items():
        if rest.startswith(theirs):
            return head + ours + rest[len(theirs) :]
    return name

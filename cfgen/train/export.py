"""Writes trained weights as the model folder that a render loads: Wan's layout, int8 matrices.

What is large and no matrix of a block is stored in bfloat16; small tensors stay as trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.convert.quantize import save_quantized
from cfgen.files.writing import write_file
from cfgen.model.generator import WanConfig
from cfgen.model.vae import SPATIAL_STRIDE, TEMPORAL_STRIDE

LARGE = 2**14
"""Numbers of a tensor from which on it is stored in fewer bits."""


def text_config(
    vocab_size: int, *, width: int, layers: int, ffn: int, heads: int = 4
) -> dict[str, object]:
    """Configuration of a small UMT5 encoder in Hugging Face's keys."""
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": vocab_size,
        "d_model": width,
        "d_kv": width // heads,
        "d_ff": ffn,
        "num_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 64,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


@dataclass(frozen=True, slots=True)
class Exporter:
    """Writes generator and text encoder of a model folder.

    Args:
        model_dir: the folder.
        spatial_stride: pixels along a cell of the latents that the generator makes.
        recipe: preset that the generator's file names as its own.
    """

    model_dir: Path
    spatial_stride: int = SPATIAL_STRIDE
    recipe: str = "mini-base"

    def __call__(
        self, geometry: WanConfig, text: Mapping[str, object], weights: Mapping[str, Tensor]
    ) -> None:
        """Write configurations and weights.

        Args:
            geometry: sizes of the generator.
            text: configuration of the text encoder.
            weights: tensors under `generator.` and `text_encoder.model.`.
        """
        folder = self.model_dir
        (folder / "text_encoder").mkdir(parents=True, exist_ok=True)
        _write_json(folder / "config.json", wan_config(geometry, self.spatial_stride))
        _write_json(folder / "text_encoder" / "config.json", text)
        save_quantized(
            _rounded(_under(weights, "generator.")),
            folder / "diffusion_pytorch_model.safetensors",
            _is_matrix,
            {"cfgen.recipe": self.recipe},
        )
        encoder = _under(weights, "text_encoder.model.")
        encoder.pop("encoder.embed_tokens.weight", None)
        path = folder / "text_encoder" / "model.safetensors"
        save_quantized(_rounded(encoder), path, _is_matrix)


def wan_config(g: WanConfig, spatial_stride: int) -> dict[str, object]:
    """Configuration of a generator in the keys of Wan's config.json, and the stride of latents."""
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": g.dim,
        "ffn_dim": g.ffn_dim,
        "num_heads": g.num_heads,
        "num_layers": g.num_layers,
        "in_dim": g.in_dim,
        "out_dim": g.out_dim,
        "freq_dim": g.freq_dim,
        "text_len": g.text_len,
        "text_dim": g.text_dim,
        "patch_size": list(g.patch_size),
        "vae_stride": [TEMPORAL_STRIDE, spatial_stride, spatial_stride],
        "eps": g.eps,
    }


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is stored in int8: the large matrices of transformer blocks."""
    return tensor.ndim == 2 and tensor.numel() >= LARGE and "block" in name


def _rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the large ones that stay plain in bfloat16."""
    return {
        name: tensor.to(torch.bfloat16)
        if tensor.numel() >= LARGE and not _is_matrix(name, tensor)
        else tensor
        for name, tensor in weights.items()
    }


def _under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    write_file(path, f"{json.dumps(content, indent=1)}\n".encode(), shared=True)

"""From latents to tokens: patches of the usual size, and larger ones that the past is kept with.

Axis letters: B batch, F latent frames, C channels, H W latent grid, L tokens, E model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGER = (2, 4)
"""How many times wider than the usual ones, along each axis, larger patches may be."""


def embedding_name(times: int) -> str:
    """The patch embedding whose patches are so many times wider; 1 for the usual one."""
    return "patch_embedding" if times == 1 else f"patch_embedding_{times}x"


def embed_patches(x_BFCHW: Tensor, embedding: nn.Module, *, frames: int = 1) -> Tensor:
    """Tokens [B, L, E] of latents, computed in the weights' dtype.

    Cells beyond the last row or column are as those. A kernel of larger patches is as long in time
    as it is wide; with `frames` 1, each latent frame is read by itself, as if it stood still.

    Args:
        x_BFCHW: Latents; F is a multiple of `frames`.
        embedding: A convolution whose stride is its kernel.
        frames: Latent frames that a token takes in: 1, or as many as the kernel is long.
    """
    kernel: Tensor = embedding.get_parameter("weight")
    if frames < kernel.shape[2]:
        kernel = kernel.sum(2, keepdim=True)
    *_, ph, pw = kernel.shape
    height, width = x_BFCHW.shape[3:]
    if height % ph or width % pw:
        x_BFCHW = F.pad(x_BFCHW, (0, -width % pw, 0, -height % ph, 0, 0), mode="replicate")
    # A strided convolution is one matrix product.
    batch, length, channels, height, width = x_BFCHW.shape
    x = x_BFCHW.reshape(
        batch, length // frames, frames, channels, height // ph, ph, width // pw, pw
    )
    patches = x.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)
    return F.linear(patches.to(kernel.dtype), kernel.flatten(1), embedding.get_parameter("bias"))


def larger_embedding(usual: nn.Conv3d, times: int) -> nn.Conv3d:
    """An embedding of patches so many times wider along each axis, started from the usual one."""
    frames, height, width = (times * size for size in usual.kernel_size)
    patch = (frames, height, width)
    # Nothing is drawn for it, so that other weights are what they are without it.
    made = nn.Conv3d(usual.in_channels, usual.out_channels, patch, patch, device="meta")
    made = made.to_empty(device=usual.weight.device)
    start_larger(made, usual)
    return made


@torch.no_grad()
def start_larger(embedding: nn.Module, usual: nn.Conv3d) -> None:
    """Start a kernel of larger patches from the usual one: the mean of the tokens it stands for.

    Source: FramePack diffusers_helper/models/hunyuan_video_packed.py @ 97fe5db
    (`HunyuanVideoPatchEmbedForCleanLatents`): repeated, and divided by 8 and by 64.
    """
    weight = embedding.get_parameter("weight")
    times = weight.shape[2] // usual.weight.shape[2]
    weight.copy_(usual.weight.repeat(1, 1, times, times, times) / times**3)
    embedding.get_parameter("bias").copy_(usual.get_parameter("bias"))

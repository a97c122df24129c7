"""What fixes the frames of a render besides its configuration, by name, for records and videos."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen import __version__
from cfgen.model.generator import Conditioning
from cfgen.rollout.loop import Guidance


def versions() -> dict[str, str]:
    """The versions of what computes."""
    return {
        "cfgen_version": __version__,
        "torch_version": torch.__version__,
        "machine": platform.machine(),
    }


def _tensors_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bits of tensors."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def arithmetic(device: torch.device, dtype: torch.dtype) -> str:
    """Digest of a small computation: where it is another, so are the last bits of frames.

    Tells apart what has one name and computes differently: processors of two makers, settings of
    the libraries below torch, drivers.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(4, 8, 128, 64, generator=generator)
    with torch.inference_mode():
        on = x.to(device, dtype)
        attended = F.scaled_dot_product_attention(on, on, on)
        projected = F.linear(attended.flatten(0, 2), on[0].flatten(0, 1)[:256])
        convolved = F.conv2d(on[:, :, :32, :32], on[:, :, :3, :3].repeat(4, 1, 1, 1))
        bent = torch.softmax(on.float(), dim=-1) + F.silu(on.float()).rsqrt().nan_to_num()
    return _tensors_digest([x, attended, projected, convolved, bent])[:16]


def processor(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def prompt_digest(conditionings: Iterable[Conditioning], guidance: Guidance | None) -> str:
    """Digest of a film's prompts as the layers read them: they may come from a cache."""
    read = [*conditionings, *([] if guidance is None else [guidance.unconditional])]
    return _tensors_digest(tensor for each in read for tensor in _of_layers(each))


def _of_layers(read: Conditioning) -> list[Tensor]:
    own = [tensor for pair in read.keys_values for tensor in pair]
    return own if read.commit is None else [*own, *_of_layers(read.commit)]

"""Slice k4: decoding the latents of a chunk to frames, and the decoders of the end-to-end slice."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpu_parts.case import Bench, Case, Contestant, Refused, relative
from gpu_parts.dit import CHANNELS, PATCH
from gpu_parts.kernels import compiled
from gpu_parts.sizes import Sizes
from gpu_parts.timing import Call

SLICE = "k4"
TOLERANCE = 5e-2
"""For bf16 through the depth of a decoder of random weights; the truth is float32, not tf32."""

Decode = Callable[[Tensor], Tensor]
"""Decodes the next latents [1, F, C, h, w] of a clip to frames [1, 4F, 3, 8h, 8w]."""


def cases(bench: Bench) -> list[Case]:
    """One case a decoder."""
    s = bench.sizes
    shape = (1, s.chunk, CHANNELS, PATCH * s.frame.rows, PATCH * s.frame.columns)
    return [_case(bench, name, shape) for name in DECODERS]


def _case(bench: Bench, name: str, shape: tuple[int, ...]) -> Case:
    def inputs(generator: torch.Generator) -> tuple[Any, Tensor]:
        latents = torch.randn(shape, generator=generator, device=bench.device)
        return build(name, bench.sizes, bench.device, bench.dtype), latents.to(bench.dtype)

    return Case(
        slice=SLICE,
        name=name,
        inputs=inputs,
        truth=lambda given: following(given[0], given[1], torch.float32)(),
        error=lambda _, output, true: relative(output, true),
        contestants=[
            Contestant(
                name=way,
                prepare=functools.partial(_prepared, bench, channels, compiles),
                tolerance=TOLERANCE,
                graph=compiles,
            )
            for way, channels, compiles in WAYS
        ],
        baselines=("eager",),
        sets=1,
        seconds=90,
        about={"latents": list(shape)},
    )


WAYS = (("eager", False, False), ("channels", True, False), ("compile", True, True))
"""Names, whether weights lie channels last, and whether all is compiled and in a CUDA graph."""


def _prepared(bench: Bench, channels: bool, compiles: bool, given: tuple[Any, Tensor]) -> Call:
    compiling = functools.partial(compiled, device=bench.device, whole=False) if compiles else None
    return following(*given, bench.dtype, channels_last=channels, compiling=compiling)


def following(
    given: Any,
    latents: Tensor,
    dtype: torch.dtype,
    *,
    channels_last: bool = False,
    compiling: Callable[[Decode], Decode] | None = None,
) -> Callable[[], Tensor]:
    """Decodes a chunk as the second of a clip; from a copy, and any number of times."""
    decoder, latents = copy.deepcopy(given).to(dtype), latents.to(dtype)
    if channels_last:
        _channels_last(decoder)
    state = decoder.start()
    with torch.no_grad():
        decoder.decode(latents, state)
    caches, start = list(state.caches), type(state)

    def decode(x: Tensor) -> Tensor:
        with torch.no_grad():
            frames: Tensor = decoder.decode(x, start(list(caches)))
        return frames

    run = compiling(decode) if compiling else decode
    return lambda: run(latents)


def _channels_last(decoder: nn.Module) -> None:
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
        elif isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)


def build(name: str, s: Sizes, device: torch.device, dtype: torch.dtype) -> Any:
    """A decoder with random weights.

    Raises:
        Refused: what it needs is not installed.
    """
    with torch.device(device):
        decoder = DECODERS[name](s).eval()
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:  # as large as what passes through them, on the whole
            parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
    return decoder.to(dtype)


def _tiny(s: Sizes) -> nn.Module:
    from cfgen.model.vae import TinyAutoencoder

    return TinyAutoencoder(CHANNELS, s.tiny_vae[-1], s.tiny_vae)


def _wan(s: Sizes) -> nn.Module:
    try:
        import diffusers  # noqa: F401
    except ImportError as missing:
        raise Refused(f"diffusers cannot be imported: {missing}") from missing
    from cfgen.model.wan_vae import WanAutoencoder

    return WanAutoencoder(s.wan_vae, s.wan_vae)


DECODERS: dict[str, Callable[[Sizes], nn.Module]] = {"tiny": _tiny, "wan": _wan}
"""The small decoder (TAEHV's architecture) and the exact one (Wan2.1's)."""

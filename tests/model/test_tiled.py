"""Decoding in tiles: where tiles lie, what happens when memory runs out, that no frame is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from cfgen.errors import BudgetError
from cfgen.model.tiled import SMALLEST, TiledDecoder
from cfgen.model.vae import Mode, State, TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.out_of_memory import is_out_of_memory

GOLDEN = Path(__file__).parent.parent / "golden"
META = torch.device("meta")


class Enlarger:
    """A decoder that adds each latent frame to the one before, enlarged; no cell sees another.

    So tiles must give exactly what whole frames give.

    Args:
        most: cells of a frame above which memory runs out, in the middle of a decode.
        error: what is raised then.
        weight: what stands for its weights.
    """

    latent_channels, spatial_stride, reach = 3, 2, 1

    def __init__(
        self, most: int = 10**6, error: BaseException | None = None, weight: object = None
    ) -> None:
        self.most, self.weight = most, nn.Parameter(torch.ones(1)) if weight is None else weight
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.sizes: list[tuple[int, int]] = []

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self.weight

    def start(self) -> State:
        return State([None, "word", None])

    def decode(self, latents_BFCHW: Tensor, state: State | None = None) -> Tensor:
        state = state or self.start()
        height, width = latents_BFCHW.shape[-2:]
        self.sizes.append((height, width))
        frames, coarse = [], state.caches[0]
        for latent in latents_BFCHW.unbind(1):
            frames.append(enlarged(latent if coarse is None else latent + coarse))
            coarse = latent
            if height * width > self.most or latents_BFCHW.device == META:
                raise self.error
        state.caches = [coarse, "word", enlarged(coarse)[:, None]]
        return torch.stack(frames, 1)


def enlarged(latent: Tensor) -> Tensor:
    return latent.repeat_interleave(8, -1).repeat_interleave(8, -2)


def noise(frames: int, height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(1, frames, channels, height, width, generator=generator)


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(SMALLEST, 40))
def test_tiles_together_are_the_frame(height: int, width: int, tile: int) -> None:
    inner, latents = Enlarger(), noise(4, height, width)
    tiled = TiledDecoder(inner, tile=tile)
    state = tiled.start()
    video = torch.cat([tiled.decode(part, state) for part in latents.split([1, 3], 1)], 1)
    same(video, Enlarger().decode(latents))
    assert set(inner.sizes) == {(min(height, tile), min(width, tile))}
    assert state.mode == Mode(tile)


def test_stream_falls_back_to_smaller_and_smaller_tiles_and_stays_there() -> None:
    latents = noise(9, 40, 66)
    inner = Enlarger()
    tiled = TiledDecoder(inner)
    state = tiled.start()
    frames, modes = [], []
    for most, part in zip((10**6, 400, 400), latents.split(3, 1), strict=True):
        inner.most = most
        frames.append(tiled.decode(part, state))
        modes.append(state.mode)
    same(torch.cat(frames, 1), Enlarger().decode(latents))
    assert modes == [Mode(), Mode(17), Mode(17)]
    tried = list(dict.fromkeys(inner.sizes))
    assert tried == [(40, 66), (33, 33), (17, 17)], "halved until it fits, and never tried again"
    assert tiled.start().mode == Mode(), "the next clip begins with whole frames"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
    ids=["cpu", "mps", "cudnn", "python"],
)
def test_every_allocator_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)
    state = State([None, "word", None])
    video = TiledDecoder(Enlarger(most=300, error=error)).decode(noise(2, 32, 24), state)
    assert video.shape == (1, 2, 3, 256, 192)
    assert state.mode == Mode(16)


def test_other_errors_pass_and_the_state_stays() -> None:
    inner = Enlarger(most=10, error=RuntimeError("shapes do not match"))
    tiled = TiledDecoder(inner)
    state = tiled.start()
    with pytest.raises(RuntimeError, match="shapes do not match"):
        tiled.decode(noise(2, 16, 16), state)
    assert state == State([None, "word", None])


def test_no_latents_are_lost_where_nothing_fits() -> None:
    inner, latents = Enlarger(), noise(4, 32, 32)
    tiled = TiledDecoder(inner)
    state = tiled.start()
    first = tiled.decode(latents[:, :2], state)
    inner.most = 10
    with pytest.raises(BudgetError, match="ran out while decoding in tiles of 16x16 cells"):
        tiled.decode(latents[:, 2:], state)
    inner.most = 10**6
    second = tiled.decode(latents[:, 2:], state)
    same(torch.cat([first, second], 1), Enlarger().decode(latents))


class FarWeight:
    """Stands for weights on a device that is full."""

    device = META

    def detach(self) -> Tensor:
        return torch.ones(1)


def test_cpu_takes_over_when_the_device_is_full_even_for_the_smallest_tiles() -> None:
    inner, latents = Enlarger(weight=FarWeight()), noise(4, 32, 32)
    tiled = TiledDecoder(inner)
    state = tiled.start()
    frames = [tiled.decode(part, state) for part in latents.split(2, 1)]
    same(torch.cat(frames, 1), Enlarger().decode(latents))
    assert state.mode == Mode(on_cpu=True)
    assert str(state.mode) == "in whole frames on the CPU"
    assert inner.sizes == [(32, 32), (16, 16)], "the device is not asked again"


def test_copy_on_the_cpu_shares_no_weight_and_decodes_the_same() -> None:
    torch.manual_seed(0)
    vae = TinyAutoencoder(4, 6, (12, 10, 8, 6)).eval()
    tiled, latents = TiledDecoder(vae), noise(3, 2, 3, channels=4)
    state = State(vae.start().caches, Mode(on_cpu=True))
    with torch.inference_mode():
        video = tiled.decode(latents, state)
        for weight in vae.parameters():
            weight.zero_()
        again = tiled.decode(latents, State(vae.start().caches, Mode(on_cpu=True)))
    assert torch.equal(video, again)
    assert float(video.std()) > 0


def test_tiles_of_fewer_than_16_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 cells a side, got 15"):
        TiledDecoder(Enlarger(), tile=15)


@pytest.fixture(scope="module")
def wan() -> WanAutoencoder:
    """The golden one, in bfloat16: the CPU convolves so few channels far slower in float32."""
    golden = load_file(GOLDEN / "wan_vae_diffusers.safetensors")
    weights = {name: tensor for name, tensor in golden.items() if "/" not in name}
    with torch.device("meta"):
        made = WanAutoencoder.for_weights(weights)
    made.network.load_state_dict(weights, assign=True)
    return made.bfloat16().eval().requires_grad_(False)


def test_wan_goes_on_in_tiles_after_it_ran_out_of_memory(wan: WanAutoencoder) -> None:
    latents = noise(3, 16, 20, channels=16)
    whole = wan.decode(latents)
    tiled = TiledDecoder(wan)
    state = tiled.start()

    def fail(_module: object, _inputs: object, output: Tensor) -> None:
        if len(frames) and output.shape[-1] > 128:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = wan.network.decoder.conv_out.register_forward_hook(fail)
    frames: list[Tensor] = []
    for part in latents.split(1, 1):
        frames.append(tiled.decode(part, state))
    hook.remove()
    assert [part.shape for part in frames] == [(1, n, 3, 128, 160) for n in (1, 4, 4)]
    assert state.mode == Mode(16)
    assert torch.equal(frames[0], whole[:, :1])
    assert 0 < error_of(torch.cat(frames, 1), whole) < 0.1


def test_wan_goes_on_in_whole_frames_from_caches_put_together_of_tiles(
    wan: WanAutoencoder,
) -> None:
    latents = noise(3, 16, 20, channels=16)
    tiled, expected = TiledDecoder(wan, tile=16), wan.start()
    state = tiled.start()
    tiled.decode(latents[:, :2], state)
    wan.decode(latents[:, :2], expected)
    whole = wan.decode(latents[:, 2:], expected)
    moved = [c.roll(1, -1) if isinstance(c, Tensor) else c for c in state.caches]
    wrong = error_of(wan.decode(latents[:, 2:], State(moved)), whole)
    right = error_of(wan.decode(latents[:, 2:], state), whole)
    assert right < 0.3 * wrong


def error_of(video: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over the spread of what is expected."""
    return float((video - expected).square().mean().sqrt() / expected.std())

"""Wan's autoencoder: golden frames, streams that share nothing, how far back a frame looks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cfgen.model.vae import State
from cfgen.model.wan_vae import WanAutoencoder

GOLDEN = Path(__file__).parent.parent / "golden"
CLOSE = 2e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "wan_vae_diffusers.safetensors")


@pytest.fixture(scope="module")
def vae(golden: dict[str, Tensor]) -> WanAutoencoder:
    return autoencoder(golden)


def autoencoder(golden: dict[str, Tensor]) -> WanAutoencoder:
    weights = {
        n: t.clone() for n, t in golden.items() if n.split("/")[0] not in ("in", "out", "aux")
    }
    with torch.device("meta"):
        made = WanAutoencoder.for_weights(weights)
    made.network.load_state_dict(weights, assign=True)
    return made.eval().requires_grad_(False)


def by_frames(clip_BCTHW: Tensor) -> Tensor:
    return clip_BCTHW.transpose(1, 2)


def streamed(
    vae: WanAutoencoder, latents: Tensor, chunk: int, state: State | None = None
) -> Tensor:
    state = vae.start() if state is None else state
    return torch.cat([vae.decode(part, state) for part in latents.split(chunk, 1)], 1)


def as_published(video: Tensor) -> Tensor:
    """Frames in [-1, 1], clamped, as the golden ones."""
    return (video * 2 - 1).clamp(-1, 1)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_frames_are_the_published_ones(
    chunk: int, vae: WanAutoencoder, golden: dict[str, Tensor]
) -> None:
    video = streamed(vae, by_frames(golden["in/latents_norm"]), chunk)
    expected = by_frames(golden["out/video"])
    torch.testing.assert_close(as_published(video), expected, rtol=0, atol=CLOSE)
    assert bool((video < 0).any()), "frames are not clamped"


def test_double_precision_is_that_of_the_published_code(golden: dict[str, Tensor]) -> None:
    """Up to 1e-6: the network goes through float32 where it enlarges, here as there."""
    vae = autoencoder(golden).double()
    precise = load_file(GOLDEN / "wan_vae_f64.safetensors")
    video = vae.decode(by_frames(golden["in/latents_norm"].double()))
    expected = by_frames(precise["video_raw"])
    torch.testing.assert_close(video * 2 - 1, expected, rtol=0, atol=1e-6)
    latents = vae.encode(by_frames(golden["out/video"].double() + 1) / 2)
    torch.testing.assert_close(latents, by_frames(precise["mu_norm"]), rtol=0, atol=1e-6)


def test_latents_are_the_published_ones(vae: WanAutoencoder, golden: dict[str, Tensor]) -> None:
    latents = vae.encode((by_frames(golden["out/video"]) + 1) / 2)
    torch.testing.assert_close(latents, by_frames(golden["out/encode_mu_norm"]), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_chunk_by_chunk_is_bit_for_bit_the_whole(
    chunk: int, vae: WanAutoencoder, golden: dict[str, Tensor]
) -> None:
    latents = by_frames(golden["in/latents_norm"])
    assert torch.equal(streamed(vae, latents, chunk), vae.decode(latents))


def test_first_latent_frame_gives_one_frame_and_later_ones_four(vae: WanAutoencoder) -> None:
    state, latents = vae.start(), torch.zeros(2, 6, 16, 2, 3)
    shapes = [vae.decode(part, state).shape for part in latents.split([1, 3, 2], 1)]
    assert [tuple(shape) for shape in shapes] == [(2, n, 3, 16, 24) for n in (1, 12, 8)]


def test_clips_decoded_by_turns_do_not_touch_each_other(vae: WanAutoencoder) -> None:
    torch.manual_seed(0)
    clips = [torch.randn(1, 4, 16, 2, 3), torch.randn(2, 4, 16, 3, 2)]
    states, turns = [vae.start(), vae.start()], ([], [])
    for number in range(4):
        for clip, state, frames in zip(clips, states, turns, strict=True):
            frames.append(vae.decode(clip[:, number : number + 1], state))
    for clip, frames in zip(clips, turns, strict=True):
        assert torch.equal(torch.cat(frames, 1), vae.decode(clip))


def test_decode_that_fails_leaves_the_state_as_it_was(golden: dict[str, Tensor]) -> None:
    vae, latents = autoencoder(golden), by_frames(golden["in/latents_norm"])
    state = vae.start()
    before = vae.decode(latents[:, :2], state)
    runs = []

    def fail_in_the_second(_module: object, _inputs: object, _output: object) -> None:
        runs.append(0)
        if len(runs) == 2:
            raise RuntimeError("lost")

    hook = vae.network.decoder.conv_out.register_forward_hook(fail_in_the_second)
    with pytest.raises(RuntimeError, match="lost"):
        vae.decode(latents[:, 2:], state)
    hook.remove()
    video = torch.cat([before, vae.decode(latents[:, 2:], state)], 1)
    assert torch.equal(video, vae.decode(latents))


def test_frame_depends_on_reach_latent_frames_and_no_more(golden: dict[str, Tensor]) -> None:
    """The gradient tells, which is exactly zero only where nothing leads."""
    vae = autoencoder(golden).double()
    torch.manual_seed(0)
    latents = torch.randn(1, vae.reach + 3, 16, 1, 1, dtype=torch.float64, requires_grad=True)
    last = vae.decode(latents)[:, -4:]
    (slope,) = torch.autograd.grad(last.square().sum(), latents)
    assert slope[0].abs().amax((1, 2, 3)).gt(0).tolist() == [False] * 2 + [True] * (vae.reach + 1)
    assert vae.reach == 38


def test_after_reach_latent_frames_a_late_start_is_bit_for_bit_the_clip(
    vae: WanAutoencoder,
) -> None:
    torch.manual_seed(0)
    before, reach = 2, vae.reach
    latents = torch.randn(1, before + reach + 2, 16, 1, 2)
    whole = vae.decode(latents)[:, -8:]
    assert torch.equal(streamed(vae, latents[:, before:], 3)[:, -8:], whole)
    half = vae.decode(latents[:, before + reach // 2 :])[:, -8:]
    assert not torch.equal(half, whole), "a shorter warm-up does not do"


def test_half_precision_gives_float32_frames_close_to_the_precise(
    golden: dict[str, Tensor],
) -> None:
    latents = by_frames(golden["in/latents_norm"])
    video = autoencoder(golden).bfloat16().decode(latents.bfloat16())
    assert video.dtype == torch.float32
    error = as_published(video) - by_frames(golden["out/video"])
    assert 0 < float(error.square().mean().sqrt()) < 0.01


def test_encoding_wants_one_frame_and_then_groups_of_four(vae: WanAutoencoder) -> None:
    assert vae.encode(torch.rand(2, 1, 3, 16, 24)).shape == (2, 1, 16, 2, 3)
    with pytest.raises(ValueError, match="1, 5, 9, ... frames, got 8"):
        vae.encode(torch.rand(1, 8, 3, 16, 16))


def test_sizes_come_from_the_weights() -> None:
    with torch.device("meta"):
        published = WanAutoencoder()
        odd = WanAutoencoder(24, 8, (1, 2, 3, 5))
        same = WanAutoencoder.for_weights(odd.network.state_dict())
    assert published.network.state_dict()["decoder.conv_in.bias"].shape == (384,)
    assert published.latent_channels == 16
    shapes = [{n: t.shape for n, t in v.network.state_dict().items()} for v in (odd, same)]
    assert shapes[0] == shapes[1]

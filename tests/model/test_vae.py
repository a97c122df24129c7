"""The streaming autoencoder: published names, chunk by chunk as at once, widths of the weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, relu

from cfgen.model.vae import TEMPORAL_STRIDE, TinyAutoencoder

CLOSE = 2e-6


def small() -> TinyAutoencoder:
    """One whose frames and latents are of about unit size."""
    torch.manual_seed(0)
    vae = TinyAutoencoder(4, 6, (12, 10, 8, 6)).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1.7)
    return vae


def latents(frames: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, frames, 4, 3, 5, generator=torch.Generator().manual_seed(frames))


def published_names() -> set[str]:
    """Parameters of TAEHV's `taew2_1`, by the positions in its two chains of layers."""
    both = (".weight", ".bias")
    names = {f"{layer}{part}" for layer in ("encoder.0", "encoder.17") for part in both}
    names |= {f"{layer}{part}" for layer in ("decoder.1", "decoder.22") for part in both}
    for pool, conv, *blocks in ((2, 3, 4, 5, 6), (7, 8, 9, 10, 11), (12, 13, 14, 15, 16)):
        names |= {f"encoder.{pool}.conv.weight", f"encoder.{conv}.weight"}
        names |= {f"encoder.{b}.conv.{i}{part}" for b in blocks for i in (0, 2, 4) for part in both}
    for *blocks, grow, conv in ((3, 4, 5, 7, 8), (9, 10, 11, 13, 14), (15, 16, 17, 19, 20)):
        names |= {f"decoder.{grow}.conv.weight", f"decoder.{conv}.weight"}
        names |= {f"decoder.{b}.conv.{i}{part}" for b in blocks for i in (0, 2, 4) for part in both}
    return names


def test_names_and_shapes_are_those_of_the_published_model() -> None:
    with torch.device("meta"):
        state = TinyAutoencoder(16, 64, (256, 128, 64, 64)).state_dict()
    assert set(state) == published_names()
    shapes = {
        "encoder.0.weight": (64, 3, 3, 3),
        "encoder.2.conv.weight": (64, 128, 1, 1),
        "encoder.4.conv.0.weight": (64, 128, 3, 3),
        "encoder.12.conv.weight": (64, 64, 1, 1),
        "encoder.17.weight": (16, 64, 3, 3),
        "decoder.1.weight": (256, 16, 3, 3),
        "decoder.3.conv.0.weight": (256, 512, 3, 3),
        "decoder.7.conv.weight": (256, 256, 1, 1),
        "decoder.8.weight": (128, 256, 3, 3),
        "decoder.13.conv.weight": (256, 128, 1, 1),
        "decoder.19.conv.weight": (128, 64, 1, 1),
        "decoder.20.weight": (64, 64, 3, 3),
        "decoder.22.weight": (3, 64, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_patches_are_those_of_taew2_2() -> None:
    """madebyollin/taehv: pixel_unshuffle before the encoder, pixel_shuffle after the decoder."""
    with torch.device("meta"):
        state = TinyAutoencoder(48, 64, (256, 128, 64, 64), patch_size=2).state_dict()
    assert set(state) == published_names()
    assert state["encoder.0.weight"].shape == (64, 12, 3, 3)
    assert state["decoder.1.weight"].shape == (256, 48, 3, 3)
    assert state["decoder.22.weight"].shape == (12, 64, 3, 3)
    vae = TinyAutoencoder.for_weights(state)
    assert (vae.patch_size, vae.spatial_stride, vae.latent_channels) == (2, 16, 48)


def test_a_patch_is_shuffled_out_of_the_channels_of_a_point() -> None:
    torch.manual_seed(0)
    vae = TinyAutoencoder(4, 6, (12, 10, 8, 6), patch_size=2).eval()
    plain = TinyAutoencoder(4, 6, (12, 10, 8, 6)).eval()
    state = vae.state_dict()
    with torch.inference_mode():
        video = vae.decode(latents(2))
        assert video.shape == (1, 5, 3, 48, 80)
        assert vae.encode(video).shape == (1, 2, 4, 3, 5)
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            part = slice(2 * dy + dx, None, 4)
            own = {n: state[f"decoder.22.{n}"][part] for n in ("weight", "bias")}
            inner = {
                n: t for n, t in state.items() if not n.startswith(("encoder.0", "decoder.22"))
            }
            plain.load_state_dict(inner, strict=False)
            plain.decoder[22].load_state_dict(own)
            assert torch.equal(plain.decode(latents(2)), video[..., dy::2, dx::2])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 2))
def test_decoding_chunk_by_chunk_is_decoding_at_once(chunks: list[int], batch: int) -> None:
    vae, clip = small(), latents(sum(chunks), batch)
    with torch.inference_mode():
        whole = vae.decode(clip)
        state = vae.start()
        parts = [vae.decode(part, state) for part in clip.split(chunks, 1)]
    assert [part.shape[1] for part in parts] == [
        TEMPORAL_STRIDE * n - 3 * (i == 0) for i, n in enumerate(chunks)
    ]
    assert whole.shape == (batch, 4 * sum(chunks) - 3, 3, 24, 40)
    assert float((torch.cat(parts, 1) - whole).abs().max()) <= CLOSE
    assert float(whole.std()) > 1e-3


def test_equal_shapes_decode_bit_for_bit() -> None:
    vae, clip = small(), latents(9)
    with torch.inference_mode():
        runs = []
        for frames in (9, 6):
            state = vae.start()
            runs.append(torch.cat([vae.decode(p, state) for p in clip[:, :frames].split(3, 1)], 1))
    assert torch.equal(runs[0][:, : runs[1].shape[1]], runs[1])


def test_decoder_is_the_published_recursion() -> None:
    """Against plain functions, one frame at a time: the past of a frame is the frame before."""
    vae = small().double()
    clip = latents(3).double()
    state = {name: tensor.detach() for name, tensor in vae.state_dict().items()}
    frames = [torch.tanh(x / 3) * 3 for x in clip.unbind(1)]
    frames = [relu(layer(state, "decoder.1", x)) for x in frames]
    for first, grow, stride in ((3, 7, 1), (9, 13, 2), (15, 19, 2)):
        for block in range(first, first + 3):
            pairs = pairwise([torch.zeros_like(frames[0]), *frames])
            frames = [remembering(state, f"decoder.{block}.conv", x, past) for past, x in pairs]
        frames = [interpolate(x, scale_factor=2, mode="nearest") for x in frames]
        grown = [conv2d(x, state[f"decoder.{grow}.conv.weight"]) for x in frames]
        frames = [part for x in grown for part in x.chunk(stride, 1)]
        frames = [layer(state, f"decoder.{grow + 1}", x) for x in frames]
    expected = torch.stack([layer(state, "decoder.22", relu(x)) for x in frames], 1)
    with torch.inference_mode():
        torch.testing.assert_close(vae.decode(clip), expected[:, 3:], rtol=0, atol=1e-12)


def layer(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=1)


def remembering(state: dict[str, Tensor], name: str, x: Tensor, past: Tensor) -> Tensor:
    y = relu(layer(state, f"{name}.0", torch.cat([x, past], 1)))
    y = layer(state, f"{name}.4", relu(layer(state, f"{name}.2", y)))
    return relu(x + y)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_encoding_gives_one_latent_frame_and_then_one_for_four(frames: int) -> None:
    vae = small()
    video = torch.rand(2, 1 + TEMPORAL_STRIDE * (frames - 1), 3, 24, 40)
    with torch.inference_mode():
        encoded = vae.encode(video)
        assert encoded.shape == (2, frames, 4, 24 // vae.spatial_stride, 40 // vae.spatial_stride)
        assert vae.decode(encoded).shape == video.shape


def test_encoding_is_causal() -> None:
    vae, video = small(), torch.rand(1, 17, 3, 16, 16)
    with torch.inference_mode():
        whole, start = vae.encode(video), vae.encode(video[:, :9])
        video[:, 9:] = 0
        assert float((whole[:, :3] - start).abs().max()) <= CLOSE
        assert float((vae.encode(video)[:, 3:] - whole[:, 3:]).abs().max()) > 1e-3


def test_widths_come_from_the_weights() -> None:
    vae, clip = small(), latents(2)
    same = TinyAutoencoder.for_weights(vae.state_dict())
    same.load_state_dict(vae.state_dict())
    assert same.latent_channels == 4
    with torch.inference_mode():
        assert torch.equal(same.decode(clip), vae.decode(clip))

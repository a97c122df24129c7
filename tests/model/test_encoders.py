"""Encoders as streams: pieces are the whole, the Wan VAE is diffusers', weights may lack them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cfgen.checkpoint.networks.vae import has_encoder, load_vae, open_vae
from cfgen.errors import CheckpointError
from cfgen.model.latent_moments import LATENT_MEAN, LATENT_STD
from cfgen.model.vae import TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder

PIECES = {"whole": [21], "by latent frames": [1, 4, 4, 4, 4, 4], "by chunks": [9, 12], "image": [1]}


def small_wan() -> WanAutoencoder:
    torch.manual_seed(3)
    vae = WanAutoencoder(6, 6)
    for parameter in vae.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # no tensor is blank
    return vae.eval().requires_grad_(False)


def small_tiny() -> TinyAutoencoder:
    torch.manual_seed(3)
    return TinyAutoencoder(16, 8, (16, 8, 8, 8), patch_size=2).eval().requires_grad_(False)


KINDS: dict[str, Callable[[], WanAutoencoder | TinyAutoencoder]] = {
    "wan": small_wan,
    "tiny": small_tiny,
}


def film(frames: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, frames, 3, 32, 48, generator=generator)


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_film_give_the_latents_of_the_whole(kind: str, pieces: list[int]) -> None:
    vae, video = KINDS[kind](), film(sum(pieces))
    state = vae.start_encoding()
    streamed = torch.cat([vae.encode(piece, state) for piece in video.split(pieces, 1)], 1)
    assert streamed.shape[1] == 1 + (sum(pieces) - 1) // 4
    torch.testing.assert_close(streamed, vae.encode(video), rtol=0, atol=2e-6)


@pytest.mark.parametrize("frames", [1, 9, 21])
def test_the_wan_encoder_is_that_of_diffusers(frames: int) -> None:
    vae, video = small_wan(), film(frames, batch=2)
    state = vae.start_encoding()
    first, rest = video[:, :1], video[:, 1:]
    pieces = [first, *(rest.split(4, 1) if frames > 1 else ())]
    ours = torch.cat([vae.encode(piece, state) for piece in pieces], 1)
    mean = vae.network.encode((video * 2 - 1).transpose(1, 2)).latent_dist.mode()
    moments = (torch.tensor(each)[:, None, None, None] for each in (LATENT_MEAN, LATENT_STD))
    centre, spread = moments
    theirs = ((mean - centre) / spread).transpose(1, 2)
    assert float(theirs.std()) > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_films_encoded_by_turns_do_not_touch_each_other(kind: str) -> None:
    vae, clips = KINDS[kind](), [film(5), film(5).flip(1)]
    states, turns = [vae.start_encoding(), vae.start_encoding()], ([], [])
    for begin, end in ((0, 1), (1, 5)):
        for clip, state, found in zip(clips, states, turns, strict=True):
            found.append(vae.encode(clip[:, begin:end], state))
    for clip, found in zip(clips, turns, strict=True):
        torch.testing.assert_close(torch.cat(found, 1), vae.encode(clip), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_that_are_no_latent_frames_are_refused(kind: str) -> None:
    vae = KINDS[kind]()
    with pytest.raises(ValueError, match="1, 5, 9"):
        vae.encode(film(4))
    state = vae.start_encoding()
    vae.encode(film(1), state)
    with pytest.raises(ValueError, match="4, 8, 12"):
        vae.encode(film(5), state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_an_encoder_decodes_all_the_same(kind: str, tmp_path: Path) -> None:
    vae = KINDS[kind]()
    module = vae.network if isinstance(vae, WanAutoencoder) else vae
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    half = {n: t for n, t in state.items() if not n.startswith(("encoder.", "quant_conv."))}
    save_file(state, tmp_path / "whole.safetensors")
    save_file(half, tmp_path / "half.safetensors")
    whole, decoder = (
        load_vae(tmp_path / "whole.safetensors"),
        load_vae(tmp_path / "half.safetensors"),
    )
    assert (whole.has_encoder, decoder.has_encoder) == (True, False)
    assert [has_encoder(open_vae(tmp_path / f"{n}.safetensors")) for n in ("whole", "half")] == [
        True,
        False,
    ]
    latents = torch.randn(1, 2, 16, 3, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(whole.decode(latents), decoder.decode(latents), rtol=0, atol=0)
    part = {
        n: t for n, t in state.items() if n != "encoder.0.weight" and "encoder.conv_in" not in n
    }
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="encoder"):
        load_vae(tmp_path / "part.safetensors")

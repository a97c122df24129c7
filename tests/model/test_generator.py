"""The generator by itself: geometry is data, noise levels are per frame, dtypes may differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv3d, pad

from cfgen.memory.protocols import Norms
from cfgen.model.embedding import logarithms, sinusoid
from cfgen.model.generator import Conditioning, Generator, WanConfig
from cfgen.model.patches import embed_patches, larger_embedding
from tests.golden.cases import TINY, tiny_generator
from tests.strategies import random_generator


class Alone:
    """A view in which every token sees itself only."""

    def attend(self, _layer: int, _q: Tensor, _k: Tensor, v: Tensor, _norms: Norms) -> Tensor:
        return v


def test_parameter_names_are_those_of_wan() -> None:
    with torch.device("meta"):
        names = set(Generator(TINY).state_dict())
    one = {name.removeprefix("blocks.1.") for name in names if name.startswith("blocks.1.")}
    linear = [f"{a}.{m}" for a in ("self_attn", "cross_attn") for m in "qkvo"] + ["ffn.0", "ffn.2"]
    parts = {f"{name}.{part}" for name in [*linear, "norm3"] for part in ("weight", "bias")}
    norms = {f"{a}.norm_{m}.weight" for a in ("self_attn", "cross_attn") for m in "qk"}
    assert one == parts | norms | {"modulation"}
    outside = {name for name in names if not name.startswith("blocks.")}
    embeddings = ["patch_embedding", "head.head", "time_projection.1"]
    embeddings += [f"{kind}_embedding.{i}" for kind in ("text", "time") for i in (0, 2)]
    assert outside == {f"{n}.{p}" for n in embeddings for p in ("weight", "bias")} | {
        "head.modulation"
    }


def test_sizes_of_the_large_model_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        large = Generator(WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30))
    assert sum(p.numel() for p in large.parameters()) == 1_418_996_800


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 2), (1, 2, 1)])
def test_patches_are_those_of_the_strided_convolution(patch: tuple[int, int, int]) -> None:
    geometry = WanConfig(
        dim=8, ffn_dim=4, num_heads=1, num_layers=1, in_dim=3, text_dim=2, patch_size=patch
    )
    generator = random_generator(geometry)
    x = torch.randn(2, 4, 3, 6, 10)
    with torch.inference_mode():
        kernel, bias = generator.patch_embedding.weight, generator.patch_embedding.bias
        expected = conv3d(x.transpose(1, 2), kernel, bias, stride=patch).flatten(2).transpose(1, 2)
        torch.testing.assert_close(embed_patches(x, generator.patch_embedding), expected)


@pytest.mark.parametrize("times", [2, 4])
def test_larger_patches_are_those_of_the_convolution_over_repeated_edges(times: int) -> None:
    usual = torch.nn.Conv3d(3, 8, (1, 2, 2), (1, 2, 2)).double()
    larger = larger_embedding(usual, times).double()
    kernel = larger.weight.detach().normal_()
    x = torch.randn(2, 8, 3, 6, 10, dtype=torch.float64)
    stride = 2 * times
    padded = pad(x.transpose(1, 2), (0, -10 % stride, 0, -6 % stride, 0, 0), mode="replicate")
    with torch.inference_mode():
        cubes = conv3d(padded, kernel, larger.bias, stride=(times, stride, stride))
        found = embed_patches(x, larger, frames=times)
        torch.testing.assert_close(found, cubes.flatten(2).transpose(1, 2))
        still = padded[:, :, :1].expand(-1, -1, times, -1, -1)
        alone = conv3d(still, kernel, larger.bias, stride=(times, stride, stride))
        found = embed_patches(x[:, :1], larger, frames=1)
        torch.testing.assert_close(found, alone.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_kernels_of_larger_patches_begin_as_the_mean_of_their_tokens(frames: int) -> None:
    usual = torch.nn.Conv3d(3, 8, (1, 2, 2), (1, 2, 2))
    x = torch.randn(1, 4, 3, 8, 8)
    with torch.inference_mode():
        tokens = embed_patches(x, usual).view(4, 16, 8)
        for times in (2, 4):
            if frames not in (1, times):
                continue
            found = embed_patches(x, larger_embedding(usual, times), frames=frames)
            cells = tokens.view(4 // frames, frames, 4 // times, times, 4 // times, times, 8)
            torch.testing.assert_close(found[0], cells.mean((1, 3, 5)).flatten(0, 2))


def test_noise_levels_are_per_frame() -> None:
    generator = tiny_generator()
    x, text = torch.randn(1, 3, 16, 8, 10), torch.randn(1, 16, 32)
    with torch.inference_mode():
        prompt = generator.condition(text)
        mixed = generator(x, torch.tensor([[1.0, 0.5, 0.0]]), prompt, Alone())
        for frame, sigma in enumerate((1.0, 0.5, 0.0)):
            alone = generator(x, sigma, prompt, Alone())
            torch.testing.assert_close(mixed[:, frame], alone[:, frame])
            assert float((mixed[:, frame - 1] - alone[:, frame - 1]).abs().max()) > 1e-3


def test_flow_keeps_the_dtype_of_the_chunk() -> None:
    generator = tiny_generator().to(torch.bfloat16)
    x, text = torch.randn(1, 3, 16, 8, 10), torch.randn(1, 16, 32)
    with torch.inference_mode():
        flow = generator(x, 0.5, generator.condition(text), Alone())
    assert flow.dtype == torch.float32
    assert flow.shape == x.shape


def test_sinusoid_is_the_published_one() -> None:
    embedding = sinusoid(torch.tensor([0.0, 1.0, 937.5]), 8)
    frequency = torch.tensor([1, 0.1, 0.01, 0.001], dtype=torch.float64)
    assert embedding.dtype == torch.float64
    torch.testing.assert_close(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4).double())
    torch.testing.assert_close(embedding[2, :4], torch.cos(937.5 * frequency), rtol=0, atol=1e-12)
    torch.testing.assert_close(embedding[2, 4:], torch.sin(937.5 * frequency), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 52, 500, 512])
def test_a_few_numbers_of_any_dtype_stand_for_all_padding(dtype: torch.dtype, count: int) -> None:
    shares = logarithms(count, dtype)
    assert shares.dtype == dtype
    assert len(shares) <= 4
    assert float(shares.double().exp().sum()) == pytest.approx(count, rel=2e-7)


@pytest.mark.parametrize("words", [0, 1, 9, 14, 16])
def test_padding_that_is_read_as_a_few_keys_changes_nothing(words: int) -> None:
    generator = tiny_generator().double()
    x = torch.randn(2, 3, 16, 8, 10, dtype=torch.float64)
    text = torch.randn(2, 16, 32, dtype=torch.float64)
    text[0, words:] = 0
    text[1, max(0, words - 3) :] = 0
    with torch.inference_mode():
        short = generator.condition(text)
        embedded = generator.text_embedding(text)
        whole = Conditioning(tuple(b.cross_attn.read(embedded) for b in generator.blocks))
        flows = [generator(x, 0.5, prompt, Alone()) for prompt in (short, whole)]
    assert short.keys_values[0][0].shape[1] < 16 or words > 12
    torch.testing.assert_close(*flows, rtol=0, atol=1e-6)

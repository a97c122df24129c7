"""Encoders against a search through all numbers of each format, written without them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cfgen.ops.quant import encode
from cfgen.ops.quant.encode import ENCODINGS, Encoded, Loss, is_finite, loss_of
from cfgen.ops.quant.weights import E2M1, Fp4Weight, ScaledWeight, hadamard, parts

ROWS, COLUMNS = 32, 256
FORMATS = list(ENCODINGS)
EXACT = [name for name in FORMATS if name != "int8-convrot"]
"""Formats whose encoder rounds nothing but the result: a rotation is a product, rounded as well."""


def levels_of(dtype: torch.dtype) -> Tensor:
    """Every finite number of an 8-bit dtype by its code, float64 [256], nan for the others."""
    if dtype == torch.int8:
        return torch.arange(256, dtype=torch.uint8).view(torch.int8).double()
    found = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    return torch.where(found.isfinite(), found, torch.nan)


def nearest(numbers: Tensor, levels: Tensor) -> Tensor:
    """The number among `levels` that is nearest to each, ties to the even code; float64."""
    flat = numbers.double().flatten()
    apart = (flat[:, None] - levels).abs().nan_to_num(nan=math.inf)
    least = apart.amin(1, keepdim=True)
    odd = torch.arange(len(levels)) % 2
    return levels[torch.where(apart == least, odd, 2).argmin(1)].view(numbers.shape)


def spread(scale: Tensor, weight: Tensor) -> Tensor:
    """A scale [n, k] for every number of a weight."""
    n, k = scale.shape
    rows = scale.float().repeat_interleave(weight.shape[0] // n, 0)
    return rows.repeat_interleave(weight.shape[1] // k, 1)


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and the scale of each, by the words of the format."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=encode.TINY)
    return nearest(weight / scale, levels_of(torch.int8)), spread(scale, weight)


def fp8(dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def by_search(weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = (weight.abs().max() / torch.finfo(dtype).max).clamp(min=encode.TINY)
        return nearest(weight / scale, levels_of(dtype)), scale.expand_as(weight)

    return by_search


def mxfp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    largest = weight.double().abs().view(len(weight), -1, 32).amax(2)
    powers = 2.0 ** torch.arange(-127, 128, dtype=torch.float64)
    fits = largest[..., None] <= 448 * powers
    scale = powers[fits.int().argmax(2)].float()
    return nearest(weight / spread(scale, weight), levels_of(torch.float8_e4m3fn)), spread(
        scale, weight
    )


def nvfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    one = (weight.abs().max() / 2688).clamp(min=encode.TINY)
    wanted = weight.abs().view(len(weight), -1, 16).amax(2) / 6 / one
    blocks = nearest(wanted.clamp(max=448), levels_of(torch.float8_e4m3fn)).float()
    scale = spread(blocks * one, weight)
    halves = torch.tensor([*E2M1, *(-level for level in E2M1)])
    small = nearest((weight / scale).nan_to_num(0).clamp(-6, 6), halves)
    return small, scale


SEARCHES = {
    "int8": int8,
    "fp8": fp8(torch.float8_e4m3fn),
    "fp8-e5m2": fp8(torch.float8_e5m2),
    "mxfp8": mxfp8,
    "nvfp4": nvfp4,
}


def noise(seed: int, exponent: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Random weights of one size, with rows of other sizes and one of zeros among them."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=random) * 2.0**exponent
    weight[1::3] *= 2.0 ** torch.randint(-9, 3, (1, columns), generator=random)
    weight[2] = 0
    return weight


@pytest.mark.parametrize("name", EXACT)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    exponent=st.integers(-60, 60),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_every_number_becomes_the_nearest_of_its_format(
    name: str, seed: int, exponent: int, dtype: torch.dtype
) -> None:
    weight = noise(seed, exponent, columns=64).to(dtype)
    small, scale = SEARCHES[name](weight.float())
    wanted = small.float() * scale
    assert torch.equal(ENCODINGS[name].encode(weight).dequantize(torch.float32), wanted)


def half_step(name: str, encoded: Encoded, weight: Tensor) -> Tensor:
    """Half the distance of neighbours around each number of a weight, in its own units."""
    if isinstance(encoded, Fp4Weight):
        size = spread(encoded.block_scale.float() * encoded.scale, weight)
        # A block that is 0 for its scale's sake loses less than the smallest scale could hold.
        lost = 6 * encoded.scale * 2.0**-10
        apart = torch.where(weight.abs() / size > 4, 2.0, 1.0)
        apart = torch.where(weight.abs() / size < 2, 0.5, apart)
        return torch.where(size > 0, apart * size / 2, lost)
    size = spread(encoded.scale, weight)
    if encoded.values.dtype == torch.int8:
        return size / 2
    bits, least = (3, -6) if encoded.values.dtype == torch.float8_e4m3fn else (2, -14)
    exponent = torch.frexp(weight / size)[1] - 1
    return torch.exp2(exponent.clamp(min=least) - bits).float() * size / 2


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**20), exponent=st.integers(-60, 60))
def test_no_number_is_further_off_than_half_a_step(name: str, seed: int, exponent: int) -> None:
    weight = noise(seed, exponent)
    encoded = ENCODINGS[name].encode(weight)
    back = encoded.dequantize(torch.float32)
    if name == "int8-convrot":  # it is the rotated weight that is rounded
        turn = hadamard(256, weight.device)
        weight, back = weight @ turn, back @ turn
    allowed = half_step(name, encoded, weight) + 2e-6 * weight.abs().amax(1, keepdim=True)
    assert ((back - weight).abs() <= allowed).all()


def test_ties_go_to_the_even_neighbour() -> None:
    def back(name: str, *numbers: float) -> list[float]:
        weight = torch.zeros(16, 256)
        weight[0, : len(numbers)] = torch.tensor(numbers)
        return ENCODINGS[name].encode(weight).dequantize(torch.float32)[0, : len(numbers)].tolist()

    assert back("int8", 127, 0.5, 1.5, -2.5, 126.5) == [127, 0, 2, -2, 126]
    assert back("fp8", 448, 17, 19, -21, 432) == [448, 16, 20, -20, 448]
    assert back("fp8-e5m2", 57344, 9, 11, 13) == [57344, 8, 12, 12]
    assert back("mxfp8", 448, 17, 19, -21) == [448, 16, 20, -20]
    # The scale for all is 1 and that of the first block 448, so that a step of 1 is 448.
    ties = [2688, *(448 * tie for tie in (0.25, 0.75, 1.25, -1.75, 2.5, 3.5, -5.0))]
    assert back("nvfp4", *ties) == [448 * n for n in (6, 0, 1, 1, -2, 2, 4, -4)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_come_back_as_zeros_with_scales_above_zero(name: str, dtype: torch.dtype) -> None:
    encoded = ENCODINGS[name].encode(torch.zeros(32, 256, dtype=dtype))
    assert torch.equal(encoded.dequantize(torch.float32), torch.zeros(32, 256))
    assert (encoded.scale.float() > 0).all()
    values = encoded.packed if isinstance(encoded, Fp4Weight) else encoded.values
    assert not values.view(torch.uint8).any()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("exponent", [-100, 0, 100])
def test_what_a_format_has_stored_is_stored_again_bit_for_bit(name: str, exponent: int) -> None:
    first = ENCODINGS[name].encode(noise(3, exponent))
    again = ENCODINGS[name].encode(first.dequantize(torch.float32))
    assert torch.equal(again.dequantize(torch.float32), first.dequantize(torch.float32))


def test_rotated_weights_come_back_from_their_rotation() -> None:
    weight = torch.zeros(2, 512)
    weight[0, 5] = 100.0  # one large value, which the rotation spreads evenly
    encoded = ENCODINGS["int8-convrot"].encode(weight)
    assert isinstance(encoded, ScaledWeight)
    assert encoded.rotation == 256
    assert sorted(encoded.values[0].unique().tolist()) == [-127, 0, 127]
    assert torch.allclose(encoded.dequantize(torch.float32), weight, atol=1e-4)


def test_a_rotation_helps_where_one_column_is_large() -> None:
    weight = noise(0)
    weight[:, 7] *= 40
    plain, rotated = (
        loss_of(weight, ENCODINGS[name].encode(weight)) for name in ("int8", "int8-convrot")
    )
    assert rotated.relative_rms < plain.relative_rms / 2


@pytest.mark.parametrize("name", FORMATS)
def test_the_meta_device_tells_what_would_be_made(name: str) -> None:
    def outline(encoded: Encoded) -> dict[str, tuple[torch.dtype, torch.Size]]:
        return {part: (t.dtype, t.shape) for part, t in parts(encoded).items()}

    made = ENCODINGS[name].encode(noise(0))
    told = ENCODINGS[name].encode(torch.empty(ROWS, COLUMNS, device="meta"))
    assert outline(told) == outline(made)
    assert all(part.is_meta for part in parts(told).values())


@pytest.mark.parametrize("name", EXACT)
def test_the_size_of_slabs_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = noise(1)
    whole = ENCODINGS[name].encode(weight)
    loss = loss_of(weight, whole)
    monkeypatch.setattr(encode, "SLAB", 3 * COLUMNS)
    sliced = parts(ENCODINGS[name].encode(weight))
    for part, tensor in parts(whole).items():
        assert torch.equal(sliced[part].view(torch.uint8), tensor.view(torch.uint8)), part
    assert loss_of(weight, whole).relative_rms == pytest.approx(loss.relative_rms)
    assert loss_of(weight, whole).largest == loss.largest


def test_convolutions_can_be_int8() -> None:
    weight = torch.randn(4, 3, 2, 2)
    encoded = encode.encode_int8(weight)
    assert encoded.shape == (4, 3, 2, 2)
    assert encoded.scale.shape == (4, 1)
    assert torch.allclose(encoded.dequantize(torch.float32), weight, atol=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_loss_is_that_of_the_whole_weight(name: str) -> None:
    weight = noise(2)
    encoded = ENCODINGS[name].encode(weight)
    error = (weight - encoded.dequantize(torch.float32)).double()
    loss = loss_of(weight, encoded)
    assert loss.relative_rms == pytest.approx(float(error.norm() / weight.double().norm()))
    assert loss.largest == pytest.approx(float(error.abs().max()))
    assert loss.snr_db == pytest.approx(-20 * math.log10(loss.relative_rms))


def test_nothing_is_lost_of_zeros_and_of_whole_steps() -> None:
    zeros = torch.zeros(2, 4)
    steps = torch.tensor([[127.0, 3.0, -5.0, 0.0]])
    for weight in (zeros, steps):
        loss = loss_of(weight, encode.encode_int8(weight))
        assert loss == Loss(relative_rms=0.0, largest=0.0)
        assert loss.snr_db is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_found(bad: float, dtype: torch.dtype) -> None:
    weight = torch.zeros(300, 2000, dtype=dtype)
    assert is_finite(weight)
    weight[299, 1999] = bad
    assert not is_finite(weight)


def test_float64_beyond_float32_is_not_finite() -> None:
    assert not is_finite(torch.full((2, 2), 1e300, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("int8", (3, 5), None),
        ("fp8", (3, 5), None),
        ("int8-convrot", (3, 512), None),
        ("int8-convrot", (3, 300), r"multiples \(columns of 256\)"),
        ("mxfp8", (32, 64), None),
        ("mxfp8", (16, 64), r"multiples \(rows of 32 and columns of 32\)"),
        ("nvfp4", (16, 48), None),
        ("nvfp4", (16, 40), r"it is \[16, 40\]"),
        ("int8", (4, 4, 1, 1), "only matrices can be"),
        ("int8", (0, 4), "only matrices can be"),
    ],
)
def test_shapes_that_do_not_fit_are_told(
    name: str, shape: tuple[int, ...], reason: str | None
) -> None:
    told = ENCODINGS[name].unfit(shape)
    if reason is None:
        assert told is None
    else:
        assert told is not None
        assert re.search(reason, told)

"""From projections to pages, against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfgen.kernels.cache_write import norm_rotate, unsupported, write_pages
from cfgen.kernels.pages import Pages, Slots
from cfgen.ops import reference
from tests.kernels.buffers import draw, error, poison, surrounded

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
INT8, FP8 = torch.int8, torch.float8_e4m3fn
TOLERANCE = {F32: 2e-6, F16: 1e-3, BF16: 4e-3}
POSITIONS = list(range(-20, 21))


@pytest.fixture(autouse=True)
def _poisoned(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def turns(angles: Tensor, device: torch.device) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], -1).to(device)


def slots(here: list[int], head_dim: int, device: torch.device) -> Slots:
    """Slots of a chunk whose frames sit at some of POSITIONS, in float64."""

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return Slots(
        page=numbers(0, 0)[:, None],
        row=numbers(0, 0)[:, None],
        counts=numbers(0, 0),
        here=numbers(*(POSITIONS.index(position) for position in here)),
        admitted=numbers(0),
        turns=turns(reference.Rope(head_dim).temporal(POSITIONS), device),
    )


@pytest.mark.parametrize("key_sums", [True, False])
@pytest.mark.parametrize(
    ("batch", "here", "grid", "heads", "head_dim"),
    [
        (1, [0, 1, 2], (3, 7), 4, 64),
        (2, [20, -20, 7], (1, 5), 3, 48),
        (1, [-3], (2, 9), 12, 128),
        (2, [5], (1, 1), 1, 32),
        (1, [4, 5], (1, 3), 5, 80),
        (1, [19, 20], (1, 1), 40, 128),
    ],
)
def test_queries_and_keys_are_those_of_the_reference(
    batch: int,
    here: list[int],
    grid: tuple[int, int],
    heads: int,
    head_dim: int,
    key_sums: bool,
    device: torch.device,
) -> None:
    """As slices of one projection, with NaN around it, at positions up to 20 either side."""
    width, length = heads * head_dim, len(here) * grid[0] * grid[1]
    qkv = draw(batch, length, 3 * width, device=device).chunk(3, -1)
    q, k, _ = surrounded(*qkv)
    gains = [1 + 0.2 * draw(width + i, device=device)[i:] for i in (0, 1)]
    spatial = turns(reference.Rope(head_dim).spatial(grid), device)
    exact = slots(here, head_dim, device)
    rounded = exact._replace(turns=exact.turns.float())
    found = norm_rotate(
        q, k, *gains, eps=1e-6, spatial=spatial.float(), slots=rounded, key_sums=key_sums
    )
    truth = reference.norm_rotate(
        q.double(), k.double(), *gains, eps=1e-6, spatial=spatial, slots=exact, key_sums=True
    )
    for out, right in zip(found[:2], truth[:2], strict=True):
        assert out.is_contiguous()
        assert out.shape == (batch, length, heads, head_dim)
        assert error(out, right) < 2e-6
    if not key_sums:
        assert found[2] is None
        return
    sums, total = found[2], truth[2]
    assert sums is not None
    assert total is not None
    assert sums.dtype == F32
    assert error(sums.sum(1), total.sum(1)) < 1e-5


@pytest.mark.parametrize("gain_dtype", [BF16, F32])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_queries_and_keys_in_16_bits(
    dtype: torch.dtype, gain_dtype: torch.dtype, device: torch.device
) -> None:
    q, k = (draw(1, 10, 132 + i, device=device, dtype=dtype)[..., i:] for i in (0, 1))
    gain = draw(132, device=device, dtype=gain_dtype)
    spatial = turns(reference.Rope(44).spatial((1, 5)), device)
    exact = slots([3, 17], 44, device)
    rounded = exact._replace(turns=exact.turns.float())
    found = norm_rotate(
        q, k, gain, gain, eps=1e-6, spatial=spatial.float(), slots=rounded, key_sums=True
    )
    truth = reference.norm_rotate(
        q.double(), k.double(), gain, gain, eps=1e-6, spatial=spatial, slots=exact, key_sums=True
    )
    for out, right in zip(found[:2], truth[:2], strict=True):
        assert out.dtype == dtype
        assert error(out, right) < TOLERANCE[dtype]
    assert found[2] is not None
    assert truth[2] is not None
    assert error(found[2].sum(1), truth[2].sum(1)) < 1e-5


def test_some_heads_are_normed_by_the_rates_of_all(device: torch.device) -> None:
    """As where heads are shared out among processes."""
    whole_q, whole_k = (draw(2, 10, 132, device=device) for _ in range(2))
    gain = 1 + 0.2 * draw(132, device=device)
    spatial = turns(reference.Rope(44).spatial((1, 5)), device)
    exact = slots([3, 17], 44, device)
    rounded = exact._replace(turns=exact.turns.float())
    truth = reference.norm_rotate(
        whole_q.double(), whole_k.double(), gain, gain, eps=1e-6, spatial=spatial, slots=exact,
        key_sums=True,
    )  # fmt: skip
    some = slice(44, 132)
    found = norm_rotate(
        whole_q[..., some], whole_k[..., some], gain[some], gain[some], eps=1e-6,
        spatial=spatial.float(), slots=rounded, key_sums=True,
        rates=(reference.norm_rate(whole_q, 1e-6), reference.norm_rate(whole_k, 1e-6)),
    )  # fmt: skip
    for out, right in zip(found[:2], truth[:2], strict=True):
        assert error(out, right[:, :, 1:]) < 2e-6
    assert found[2] is not None
    assert truth[2] is not None
    assert error(found[2].sum(1), truth[2].sum(1)[:, some]) < 1e-5


def test_a_token_of_zeros_stays_one(device: torch.device) -> None:
    q, gain = torch.zeros(1, 2, 64, device=device), torch.ones(64, device=device)
    spatial = turns(reference.Rope(32).spatial((1, 2)), device).float()
    at = slots([1], 32, device)
    found = norm_rotate(
        q, q, gain, gain, eps=1e-6, spatial=spatial, slots=at._replace(turns=at.turns.float()),
        key_sums=True,
    )  # fmt: skip
    assert not any(x.count_nonzero() for x in found if x is not None)


def test_a_chunk_of_no_whole_frames_is_refused(device: torch.device) -> None:
    x, gain = draw(1, 5, 64, device=device), torch.ones(64, device=device)
    spatial = turns(reference.Rope(32).spatial((1, 2)), device).float()
    at = slots([1, 2], 32, device)
    with pytest.raises(ValueError, match="allowed are 2 frames of 2 tokens and heads of 32"):
        norm_rotate(x, x, gain, gain, eps=1e-6, spatial=spatial, slots=at, key_sums=False)
    strided = draw(1, 4, 128, device=device)[..., ::2]
    with pytest.raises(ValueError, match=r"give k_BLC.contiguous\(\)"):
        norm_rotate(
            strided.contiguous(), strided, gain, gain, eps=1e-6, spatial=spatial, slots=at,
            key_sums=False,
        )  # fmt: skip


def empty_pages(
    shape: tuple[int, int, int, int, int],
    keys: torch.dtype,
    values: torch.dtype,
    device: torch.device,
) -> Pages:
    """Pages [pages, B, N, P, D] full of a number that is not written by chance."""

    def full(*sizes: int, dtype: torch.dtype = F32) -> Tensor:
        return torch.full(sizes, 77.0, device=device).to(dtype)

    head = shape[:3]
    return Pages(
        k=full(*shape, dtype=keys),
        v=full(*shape, dtype=values),
        k_scale=full(*head) if keys == INT8 else None,
        k_mean=full(*head, shape[-1]) if keys == INT8 else None,
        v_scale=full(*head, shape[-1]) if values == FP8 else None,
    )


def frames(
    batch: int, count: int, tokens: int, heads: int, head_dim: int, device: torch.device
) -> list[Tensor]:
    """Keys with a mean and values [B, L, N, D], cut out of one projection with NaN around it."""
    size = heads * head_dim
    k = draw(batch, count * tokens, size, device=device) + draw(size, device=device)
    v = 3 * draw(batch, count * tokens, size, device=device).flip(1)
    return [x.unflatten(-1, (heads, head_dim)) for x in surrounded(k, v)]


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def undecided(quotient: Tensor, step: Tensor) -> Tensor:
    """Where a number lies within a thousandth of a step of the middle of two that are stored."""
    at = quotient / step
    return ((at - at.floor()) - 0.5).abs() < 1e-3


def fp8_step(x: Tensor) -> Tensor:
    """Distance of the numbers of float8_e4m3fn, which has 3 bits behind the first one, at x."""
    return torch.exp2(x.abs().clamp_min(2.0**-6).log2().floor() - 3)


SHAPES = [(2, 3, 7, 3, 48), (1, 2, 300, 1, 128), (1, 1, 60, 4, 64), (1, 3, 1, 2, 80)]
"""B, F, P, N, D; the second is more than a program stores."""


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("shape", SHAPES)
def test_pages_of_a_float_type_hold_the_numbers_themselves(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    batch, count, tokens, heads, head_dim = shape
    k, v = frames(*shape, device=device)
    pages = empty_pages((5, batch, heads, tokens, head_dim), dtype, dtype, device)
    expected = empty_pages((5, batch, heads, tokens, head_dim), dtype, dtype, device)
    into = torch.tensor([3, 0, 4][:count], dtype=torch.int32, device=device)
    write_pages(k, v, pages, into)
    reference.write_pages(k, v, expected, into)
    assert torch.equal(pages.k, expected.k)
    assert torch.equal(pages.v, expected.v)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("shape", SHAPES)
def test_pages_of_8_bits_are_those_of_the_reference(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """The same bits, but where rounding is a toss-up; and pages that are not named stay."""
    batch, count, tokens, heads, head_dim = shape
    if reason := unsupported(device, dtype, head_dim=head_dim, keys=INT8, values=FP8):
        pytest.skip(reason)
    k, v = (x.to(dtype) for x in frames(*shape, device=device))
    size = (5, batch, heads, tokens, head_dim)
    pages, expected = (empty_pages(size, INT8, FP8, device) for _ in range(2))
    into = torch.tensor([3, 0, 4][:count], dtype=torch.int32, device=device)
    write_pages(k, v, pages, into)
    reference.write_pages(k, v, expected, into)
    for name in ("k_scale", "k_mean", "v_scale"):
        found, right = getattr(pages, name), getattr(expected, name)
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
    assert pages.k_mean is not None
    assert expected.k_scale is not None
    assert expected.k_mean is not None
    assert expected.v_scale is not None
    written = into.long()
    k, v = (
        x.double().unflatten(1, (count, tokens)).permute(1, 0, 3, 2, 4) for x in (k, v)
    )  # [F, B, N, P, D]
    k = (k - expected.k_mean[written, ..., None, :]) / expected.k_scale[written, ..., None, None]
    v = v / expected.v_scale[written, ..., None, :]
    for found, right, unsure in (
        (pages.k, expected.k, undecided(k, torch.ones_like(k))),
        (pages.v, expected.v, undecided(v, fp8_step(v))),
    ):
        same = bits(found) == bits(right)
        same[written] |= unsure
        assert same.all()
        assert unsure.float().mean() < 0.01
    others = [page for page in range(5) if page not in into.tolist()]
    for found, before in zip(pages, empty_pages(size, INT8, FP8, device), strict=True):
        assert torch.equal(bits(found[others]), bits(before[others]))


def test_a_float_key_may_stand_beside_a_value_of_8_bits(device: torch.device) -> None:
    if reason := unsupported(device, F32, head_dim=32, values=FP8):
        pytest.skip(reason)
    k, v = frames(1, 1, 9, 2, 32, device)
    pages, expected = (empty_pages((2, 1, 2, 9, 32), F32, FP8, device) for _ in range(2))
    into = torch.tensor([1], dtype=torch.int32, device=device)
    write_pages(k, v, pages, into)
    reference.write_pages(k, v, expected, into)
    assert torch.equal(pages.k, expected.k)
    assert error(pages.v.float(), expected.v.float()) < 1e-2


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_pages_of_one_number_stay_that_number(value: float, device: torch.device) -> None:
    if reason := unsupported(device, F32, head_dim=32, values=FP8):
        pytest.skip(reason)
    x = torch.full((1, 6, 1, 32), value, device=device)
    pages = empty_pages((2, 1, 1, 6, 32), INT8, FP8, device)
    write_pages(x, x, pages, torch.tensor([1], dtype=torch.int32, device=device))
    k, v = reference.expand(Pages(*(None if pool is None else pool[1] for pool in pages)), F32)
    torch.testing.assert_close(k, x.transpose(1, 2))
    torch.testing.assert_close(v, x.transpose(1, 2))


@pytest.mark.parametrize("keys", [BF16, INT8])
@pytest.mark.parametrize("wanted", [0, 1])
def test_nothing_is_stored_if_the_device_says_so(
    wanted: int, keys: torch.dtype, device: torch.device
) -> None:
    k, v = frames(1, 1, 9, 2, 32, device)
    size = (3, 1, 2, 9, 32)
    pages, before = (empty_pages(size, keys, BF16, device) for _ in range(2))
    into, only_if = torch.tensor([[2], [wanted]], dtype=torch.int32, device=device)
    write_pages(k, v, pages, into, only_if=only_if)
    for found, old in zip(pages, before, strict=True):
        if found is not None:
            assert torch.equal(bits(found[:2]), bits(old[:2]))
            assert torch.equal(bits(found[2]), bits(old[2])) == (not wanted)


def test_pages_lie_beyond_the_reach_of_32_bits(device: torch.device) -> None:
    """Pools of more than 2**31 numbers, of which one page at the end is touched."""
    if reason := unsupported(device, F32, head_dim=128, values=FP8):
        pytest.skip(reason)
    tokens, width = 1024, 128
    count = 2**31 // (tokens * width) + 2
    k, v = frames(1, 1, tokens, 1, width, device)
    scales = torch.zeros(count, 1, 1, width, device=device)
    pools = [torch.empty(count, 1, 1, tokens, width, dtype=INT8, device=device) for _ in range(2)]
    pages = Pages(
        pools[0], pools[1].view(FP8), scales[..., 0].clone(), scales.clone(), scales.clone()
    )
    expected = empty_pages((1, 1, 1, tokens, width), INT8, FP8, device)
    write_pages(k, v, pages, torch.tensor([count - 1], dtype=torch.int32, device=device))
    reference.write_pages(k, v, expected, torch.tensor([0], dtype=torch.int32, device=device))
    assert error(pages.k[-1].float(), expected.k[0].float()) < 1e-2
    assert error(pages.v[-1].float(), expected.v[0].float()) < 1e-2


def test_pages_of_another_shape_are_refused(device: torch.device) -> None:
    k, v = frames(1, 1, 9, 2, 32, device)
    into = torch.tensor([0], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"do not fit pages of \[1, 2, 8, 32\]"):
        write_pages(k, v, empty_pages((3, 1, 2, 8, 32), BF16, BF16, device), into)
    pages = empty_pages((3, 1, 2, 9, 64), BF16, BF16, device)
    halves = Pages(pages.k[..., ::2], pages.v[..., ::2])
    with pytest.raises(ValueError, match="must lie in one piece"):
        write_pages(k, v, halves, into)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dtype": torch.float64}, "not torch.float64"),
        ({"head_dim": 33}, "not 33"),
        ({"keys": FP8}, "keep keys in .* not torch.float8_e4m3fn"),
        ({"values": INT8}, "keep values in .* not torch.int8"),
        ({"device": torch.device("meta")}, "CUDA"),
    ],
)
def test_unsupported_names_what_is_wrong(
    changed: dict[str, object], words: str, device: torch.device
) -> None:
    asked = {"device": device, "dtype": BF16, "head_dim": 128, "keys": INT8, "values": BF16}
    assert unsupported(**asked) is None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(unsupported(**{**asked, **changed}))


def test_old_gpus_have_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, works in ((80, False), (89, True)):
        monkeypatch.setattr("cfgen.kernels.cache_write.unsupported_device", lambda device: None)
        monkeypatch.setattr("cfgen.kernels.cache_write.capability", lambda device, c=found: c)
        reason = unsupported(torch.device("cuda"), BF16, head_dim=128, values=FP8)
        assert works == (reason is None)
        assert works or "8.9" in str(reason)

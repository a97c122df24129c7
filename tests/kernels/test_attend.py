"""Attention over pages, against the reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cfgen.kernels import attend
from cfgen.kernels.attend import attend_pages, unsupported
from cfgen.kernels.pages import Pages, Slots
from cfgen.ops import reference
from tests.kernels.buffers import draw, error, poison, surrounded

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
INT8, FP8 = torch.int8, torch.float8_e4m3fn
TOLERANCE = {F32: 2e-5, F16: 2e-3, BF16: 5e-3}
POSITIONS = range(-60, 61)


@pytest.fixture(autouse=True)
def _poisoned(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


@dataclass(frozen=True)
class Case:
    """A chunk, and pages that it reads among others that are full of NaN.

    Attributes:
        count: Pages that are read.
        shift: Added to the time of everything.
        admitted: Which alternative counts; the other one reads nothing but NaN.
        keys: What pages keep keys in, if not in `dtype`.
        values: Likewise of values.
        bias: Of each channel of the keys, in their deviations.
        slot_bias: The largest that is added to a page's scores, by its sign; 0 for no table of it.
        scale: Of the queries.
    """

    device: torch.device
    batch: int = 1
    frames: int = 2
    tokens: int = 63
    heads: int = 2
    head_dim: int = 64
    count: int = 2
    dtype: torch.dtype = F32
    keys: torch.dtype | None = None
    values: torch.dtype | None = None
    shift: int = 0
    admitted: int = 0
    bias: float = 0
    slot_bias: float = 0
    scale: float = 1
    order: tuple[int, ...] = ()

    @property
    def times(self) -> list[int]:
        """Of the pages, and then of the frames of the chunk."""
        apart = [3 * page - 20 for page in range(self.count)]
        return [time + self.shift for time in (*apart, *range(17, 17 + self.frames))]

    def draw(self, seed: int, frames: int) -> Tensor:
        shape = (self.batch, frames * self.tokens, self.heads, self.head_dim + seed)
        return draw(*shape, device=self.device)[..., seed:]

    def angles(self) -> Tensor:
        return reference.Rope(self.head_dim).temporal(POSITIONS)

    def raw_keys(self, frames: int) -> Tensor:
        channels = draw(self.head_dim, device=self.device)
        return self.draw(1, frames) + self.bias * channels

    def chunk(self) -> list[Tensor]:
        """Queries, keys and values, with NaN on every side."""
        own = self.angles()[[POSITIONS.index(t) for t in self.times[self.count :]]]
        turns = reference.turns(own.repeat_interleave(self.tokens, 0), torch.float64, self.device)
        turned = reference.rotate(self.draw(0, self.frames).double(), turns)
        q = turned * (self.scale * reference.LOG2E / self.head_dim**0.5)
        k, v = self.raw_keys(self.frames), self.draw(2, self.frames)
        return surrounded(*(x.to(self.dtype) for x in (q.float(), k, v)))

    def into(self) -> list[int]:
        """Pages that are read, in order."""
        return [1 + page for page in self.order or range(self.count)]

    def pages(self) -> Pages:
        """The read ones are neither first nor last."""
        keys, values = self.keys or self.dtype, self.values or self.dtype
        head = (self.count + 4, self.batch, self.heads)

        def nan(dtype: torch.dtype, *shape: int) -> Tensor:
            whole = torch.full((*head, *shape), torch.nan, device=self.device)
            return (whole.nan_to_num(127) if dtype == INT8 else whole).to(dtype)[1:-1]

        page = (self.tokens, self.head_dim)
        stored = Pages(
            k=nan(keys, *page),
            v=nan(values, *page),
            k_scale=nan(F32) if keys == INT8 else None,
            k_mean=nan(F32, self.head_dim) if keys == INT8 else None,
            v_scale=nan(F32, self.head_dim) if values == FP8 else None,
        )
        if self.count:
            k, v = self.raw_keys(self.count), 3 * self.draw(3, self.count)
            into = torch.tensor(self.into(), device=self.device)
            reference.write_pages(k, v, stored, into)
        return stored

    def slots(self) -> Slots:
        """Past the count, and in the alternative that does not count, slots lead to NaN."""
        empty, last = self.count + 1, len(POSITIONS)
        rows = [POSITIONS.index(time) for time in self.times]
        page = [[empty] * (self.count + 2) for _ in range(2)]
        row = [[last] * (self.count + 2) for _ in range(2)]
        page[self.admitted][: self.count] = self.into()
        row[self.admitted][: self.count] = rows[: self.count]
        counts = [self.count + 2] * 2
        counts[self.admitted] = self.count
        angles = self.angles()
        turns = torch.stack([angles.cos(), angles.sin()], -1)
        turns = torch.cat([turns, torch.full_like(turns[:1], torch.nan)])
        tables = (page, row, counts, rows[self.count :], [self.admitted])
        whole = {"dtype": torch.int32, "device": self.device}
        turns = turns.float().to(self.device)
        return Slots(*(torch.tensor(t, **whole) for t in tables), turns, self.slot_biases())

    def slot_biases(self) -> Tensor | None:
        """Another for each page that is read, and NaN for the others."""
        if not self.slot_bias:
            return None
        biases = torch.full((2, self.count + 2), torch.nan, device=self.device)
        biases[self.admitted, : self.count] = self.slot_bias * torch.rand(
            self.count, generator=torch.Generator().manual_seed(5)
        ).to(self.device)
        return biases

    def run(self, splits: int | None = 1) -> Tensor:
        return attend_pages(*self.chunk(), self.pages(), self.slots(), splits=splits)

    def truth(self) -> Tensor:
        """Of the very numbers that `run` is given, but for the rounding of the turns."""
        q, k, v = (x.double() for x in self.chunk())
        return reference.attend_pages(q, k, v, self.pages(), self.slots())


SIZES = [
    {"batch": 2, "head_dim": 64},
    {"frames": 3, "tokens": 100, "head_dim": 128, "count": 3},
    {"batch": 2, "frames": 1, "tokens": 1, "heads": 3, "head_dim": 32, "count": 3},
    {"frames": 3, "tokens": 5, "head_dim": 48, "count": 4},
    {"tokens": 17, "head_dim": 80, "count": 0},
    {"frames": 1, "tokens": 130, "head_dim": 34, "count": 1},
]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32_is_that_of_the_reference(
    sizes: dict[str, int], splits: int, device: torch.device
) -> None:
    case = Case(device, **sizes)
    found = case.run(splits)
    assert found.is_contiguous()
    assert found.dtype == F32
    assert error(found, case.truth()) < TOLERANCE[F32]


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_half_precision_is_near_the_reference(
    sizes: dict[str, int], dtype: torch.dtype, device: torch.device
) -> None:
    case = Case(device, **sizes, dtype=dtype)
    found = case.run(None)
    assert found.dtype == dtype
    assert error(found, case.truth()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_int8_keys_are_near_the_reference_on_the_same_pages(
    sizes: dict[str, int], dtype: torch.dtype, device: torch.device
) -> None:
    case = Case(device, **sizes, dtype=dtype, keys=INT8, bias=2)
    assert error(case.run(2), case.truth()) < 1e-2


def test_int8_keys_are_near_unquantized_ones(device: torch.device) -> None:
    case = Case(device, tokens=100, head_dim=128, count=4, dtype=BF16, keys=INT8, bias=2)
    unquantized = replace(case, dtype=F32, keys=None).truth()
    assert error(case.run(), unquantized) < 2e-2


def needs_fp8(device: torch.device) -> None:
    if reason := unsupported(device, dtype=BF16, head_dim=64, values=FP8):
        pytest.skip(reason)


@pytest.mark.parametrize("keys", [BF16, INT8])
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_fp8_values_are_near_the_reference_on_the_same_pages(
    splits: int, keys: torch.dtype, device: torch.device
) -> None:
    needs_fp8(device)
    case = Case(device, head_dim=48, count=3, dtype=BF16, keys=keys, values=FP8)
    assert error(case.run(splits), case.truth()) < 1e-2


def test_fp8_values_are_near_unquantized_ones(device: torch.device) -> None:
    needs_fp8(device)
    case = Case(device, tokens=100, count=4, dtype=BF16, keys=INT8, values=FP8)
    unquantized = replace(case, dtype=F32, keys=None, values=None).truth()
    assert error(case.run(), unquantized) < 5e-2


def test_pages_of_any_size_of_values_go_together(device: torch.device) -> None:
    """Sums are kept in steps of each page's values; a page of zeros has steps of 1e-20."""
    needs_fp8(device)
    case = Case(device, tokens=16, count=4, dtype=BF16, values=FP8)
    pages, chunk, slots = case.pages(), case.chunk(), case.slots()
    for page, size in zip(case.into(), (1, 0, 1e4, 1e-4), strict=True):
        reference.write_pages(*(size * x for x in chunk[1:]), pages, torch.tensor([page, page]))
    truth = reference.attend_pages(*(x.double() for x in chunk), pages, slots)
    assert error(attend_pages(*chunk, pages, slots, splits=1), truth) < 1e-2


@pytest.mark.parametrize("keys", [F32, INT8])
@pytest.mark.parametrize("tokens", [5, 100])
def test_queries_of_zeros_give_the_mean_of_all_values(
    tokens: int, keys: torch.dtype, device: torch.device
) -> None:
    case = Case(device, tokens=tokens, head_dim=32, keys=keys, scale=0)
    found = case.run(2)
    assert error(found, case.truth()) < TOLERANCE[F32]
    assert error(found, found[:, :1].expand_as(found)) < TOLERANCE[F32]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("keys", [None, INT8])
@pytest.mark.parametrize("slot_bias", [-6.0, 40.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_bias_of_a_slot_is_added_to_the_scores_of_its_page_alone(
    sizes: dict[str, int],
    slot_bias: float,
    keys: torch.dtype | None,
    splits: int,
    device: torch.device,
) -> None:
    case = Case(device, **sizes, keys=keys, slot_bias=slot_bias)
    found, truth = case.run(splits), case.truth()
    assert error(found, truth) < (TOLERANCE[F32] if keys is None else 1e-2)
    if case.count:
        assert error(replace(case, slot_bias=0).truth(), truth) > 5e-2


def test_a_bias_of_nothing_changes_no_bit(device: torch.device) -> None:
    case = Case(device, tokens=100, count=3)
    slots = case.slots()
    biased = slots._replace(bias=torch.zeros(slots.page.shape, device=device))
    plain, same = (attend_pages(*case.chunk(), case.pages(), s, splits=1) for s in (slots, biased))
    assert torch.equal(plain, same)


def test_scores_far_from_zero_do_no_harm(device: torch.device) -> None:
    case = Case(device, tokens=5, head_dim=32, scale=300)
    assert error(case.run(), case.truth()) < 1e-3


@pytest.mark.parametrize("keys", [F32, INT8])
def test_whether_the_chunk_was_admitted_chooses_the_slots(
    keys: torch.dtype, device: torch.device
) -> None:
    case = Case(device, keys=keys, admitted=1)
    found = case.run()
    assert error(found, case.truth()) < 1e-2
    torch.testing.assert_close(found, replace(case, admitted=0).run(), rtol=0, atol=0)


@pytest.mark.parametrize("shift", [-20, 20])
@pytest.mark.parametrize(("dtype", "keys"), [(F32, F32), (BF16, BF16), (BF16, INT8)])
def test_only_distances_in_time_count(
    dtype: torch.dtype, keys: torch.dtype, shift: int, device: torch.device
) -> None:
    case = Case(device, head_dim=128, dtype=dtype, keys=keys)
    allowed = {F32: 2e-5, BF16: 5e-3, INT8: 2e-2}[keys]
    assert error(replace(case, shift=shift).run(), case.run()) < allowed


def test_turning_the_query_equals_turning_every_key(device: torch.device) -> None:
    case = Case(device, head_dim=128, count=3, dtype=BF16)
    q, k, v = (x.double() for x in case.chunk())
    pages = case.pages()
    context = [
        x[case.into()].double().permute(1, 0, 3, 2, 4).flatten(1, 2) for x in (pages.k, pages.v)
    ]
    keys, values = (torch.cat(pair, 1) for pair in zip(context, (k, v), strict=True))
    rows = [POSITIONS.index(time) for time in case.times]
    angles = case.angles()[rows].repeat_interleave(case.tokens, 0)
    turned = reference.rotate(keys, reference.turns(angles, torch.float64, device))
    scale = case.head_dim**0.5 / reference.LOG2E
    assert error(case.run(), reference.attend(q * scale, turned, values)) < 4e-3


@pytest.mark.parametrize("keys", [F32, INT8])
def test_the_order_of_pages_does_not_count(keys: torch.dtype, device: torch.device) -> None:
    case = Case(device, tokens=20, count=4, keys=keys)
    slots = case.slots()
    order = [2, 0, 3, 1, 4, 5]
    mixed = slots._replace(page=slots.page[:, order], row=slots.row[:, order])
    found = attend_pages(*case.chunk(), case.pages(), mixed, splits=1)
    assert error(found, case.run()) < TOLERANCE[F32]
    elsewhere = replace(case, order=(3, 1, 0, 2)).run()
    torch.testing.assert_close(elsewhere, case.run(), rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("splits", [2, 4, 8, None])
def test_the_number_of_runs_does_not_count(
    splits: int | None, count: int, device: torch.device
) -> None:
    """Of eight runs some are empty, with no page and no frame."""
    case = Case(device, batch=2, tokens=20, head_dim=48, count=count, keys=INT8)
    assert error(case.run(splits), case.run(1)) < TOLERANCE[F32]


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_sizes_go(device: torch.device, data: st.DataObject) -> None:
    sizes = {
        "batch": st.integers(1, 2),
        "frames": st.integers(1, 3),
        "tokens": st.integers(1, 40),
        "heads": st.integers(1, 2),
        "head_dim": st.integers(16, 64).map(lambda half: 2 * half),
        "count": st.integers(0, 3),
    }
    case = Case(device, **{name: data.draw(numbers) for name, numbers in sizes.items()})
    splits = data.draw(st.integers(1, 4))
    assert error(case.run(splits), case.truth()) < TOLERANCE[F32]


def untouched(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take up no memory on a CPU until they are written."""
    if device.type == "cuda":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros((*shape, dtype.itemsize), np.uint8)).view(dtype).squeeze(-1)


def test_pools_beyond_two_gigabytes_are_addressed(device: torch.device) -> None:
    needs_fp8(device)
    case = Case(device, frames=1, tokens=16, heads=1, head_dim=128, count=1, dtype=BF16)
    case = replace(case, keys=INT8, values=FP8)
    far = 2**31 // (16 * 128) + 7
    small, slots = case.pages(), case.slots()
    large = Pages(*(untouched(far + 1, *x.shape[1:], dtype=x.dtype, device=device) for x in small))
    for whole, pages in zip(large, small, strict=True):
        whole[far] = pages[case.into()[0]]
    slots.page[0, 0] = far
    found = attend_pages(*case.chunk(), large, slots, splits=1)
    torch.testing.assert_close(found, case.run(), rtol=0, atol=0)


def test_the_host_reads_nothing_from_the_device(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(device, tokens=5)
    given_to = (*case.chunk(), case.pages(), case.slots())

    def read(*_: object) -> None:
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__index__", "__float__"):
        monkeypatch.setattr(Tensor, name, read)
    attend_pages(*given_to)


def test_what_lies_in_pieces_is_refused(device: torch.device) -> None:
    case = Case(device, tokens=5)
    (q, k, v), pages, slots = case.chunk(), case.pages(), case.slots()
    spread = torch.stack([k, k], -1)[..., 0]
    with pytest.raises(ValueError, match=r"k_BLND.*one piece.*contiguous"):
        attend_pages(q, spread, v, pages, slots)
    with pytest.raises(ValueError, match=r"v has shape .*one piece"):
        attend_pages(q, k, v, pages._replace(v=pages.v.mT.contiguous().mT), slots)


def test_shapes_that_do_not_fit_are_refused(device: torch.device) -> None:
    case = Case(device, tokens=5)
    (q, k, v), pages, slots = case.chunk(), case.pages(), case.slots()
    with pytest.raises(ValueError, match=r"\[1, 10, 2, 64\].* do not fit"):
        attend_pages(q, k[:, 1:], v, pages, slots)
    with pytest.raises(ValueError, match="3 frames"):
        attend_pages(q, k, v, pages, slots._replace(here=slots.here[[0, 0, 0]]))
    with pytest.raises(ValueError, match="do not fit"):
        attend_pages(q, k, v, replace(case, tokens=6).pages(), slots)


def test_what_cannot_run_is_told_why(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(**changed: object) -> str | None:
        return unsupported(device, **{"dtype": BF16, "head_dim": 64, **changed})

    assert why() is why(keys=BF16, values=BF16) is why(keys=INT8, dtype=F32) is None
    assert why(head_dim=34) is why(head_dim=128) is None
    assert "float64" in str(why(dtype=torch.float64))
    assert "from 32 to 128, not 30" in str(why(head_dim=30))
    assert "even" in str(why(head_dim=63))
    assert "keys in that or in int8, not in torch.float16" in str(why(keys=F16))
    assert "values in that or in float8_e4m3fn, not in torch.int8" in str(why(values=INT8))
    monkeypatch.setattr(attend, "unsupported_device", lambda device: "there is no device.")
    assert why() == "there is no device."


def test_fp8_is_refused_before_sm_89(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "unsupported_device", lambda device: None)
    monkeypatch.setattr(attend, "capability", lambda device: 86)
    cuda = torch.device("cuda")
    assert "8.9 or newer" in str(unsupported(cuda, dtype=BF16, head_dim=64, values=FP8))
    assert unsupported(cuda, dtype=BF16, head_dim=64, keys=INT8) is None


@pytest.mark.parametrize(
    ("programs", "units", "runs"),
    [
        (444, 24, 2),  # 4 rounds of 132 become 3.5
        (132, 24, 1),
        (1320, 24, 1),
        (12, 24, 4),
        (12, 2, 2),
        (1, 1, 1),
    ],
)
def test_runs_are_as_many_as_fill_the_device(programs: int, units: int, runs: int) -> None:
    assert attend._splits(programs, units, 132) == runs

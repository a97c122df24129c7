"""Attention over pages of several sizes, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfgen.kernels.attend import attend_pages, unsupported
from cfgen.kernels.pages import Pages, Slots
from cfgen.memory.page_pool import KVCache, Storage
from cfgen.memory.page_sizes import SmallPages
from cfgen.ops import reference
from tests.kernels.buffers import draw, error, poison

F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {("auto", F32): 2e-5, ("auto", BF16): 5e-3}
POSITIONS = range(40)


@pytest.fixture(autouse=True)
def _poisoned(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


SHAPES = {
    "small": ((1, 6, 2, 32), [SmallPages(2, 3, 2), SmallPages(4, 4, 1)]),
    "odd": ((2, 63, 1, 48), [SmallPages(2, 2, 20), SmallPages(4, 3, 6)]),
    "larger than a block": ((1, 130, 2, 64), [SmallPages(2, 2, 33), SmallPages(4, 2, 9)]),
}
"""[B, P, N, D] of whole frames, and the pages beside them."""


def stored(name: str, storage: Storage, dtype: torch.dtype, device: torch.device):
    """A pool with one page in two written, the others full of NaN; the pages, oldest first."""
    shape, small = SHAPES[name]
    pool = KVCache(
        1, 4, shape, small=small, dtype=dtype, device=device, storage=storage,
        write=reference.write_pages,
    )  # fmt: skip
    for part in pool.layer(0):
        if part is not None and part.is_floating_point():
            part.copy_(torch.full(part.shape, torch.nan))
    batch, tokens, heads, width = shape
    used: list[int] = []
    for patch, count in ((4, small[1].pages), (2, small[0].pages), (1, 3)):
        many = {1: tokens, 2: small[0].tokens, 4: small[1].tokens}[patch]
        for _ in range(count - 1):
            page = pool.allocate(0, patch)
            k, v = draw(2, batch, many, heads, width, device=device) * (1 + page)
            into = torch.tensor([page], dtype=torch.int32, device=device)
            pool.write(0, into, (k / (1 + page)).to(dtype), v.to(dtype), patch=patch)
            used.append(page)
    return pool, used


def slots_of(pool: KVCache, used: list[int], frames: int, device: torch.device) -> Slots:
    """Past the count, and in the alternative that does not count, slots lead to NaN."""
    places = pool.places()
    page = torch.full((2, len(used) + 2), 3, dtype=torch.int32, device=device)
    row = torch.full_like(page, len(POSITIONS))
    page[1, : len(used)] = torch.tensor(used)
    row[1, : len(used)] = torch.arange(len(used))
    start, tokens = torch.tensor(places, dtype=torch.int32).to(device)[page.long()].unbind(-1)
    angles = reference.Rope(pool.shape[3]).temporal(POSITIONS)
    turns = torch.stack([angles.cos(), angles.sin()], -1)
    turns = torch.cat([turns, torch.full_like(turns[:1], torch.nan)]).float().to(device)
    whole = {"dtype": torch.int32, "device": device}
    return Slots(
        page=page,
        row=row,
        counts=torch.tensor([len(used) + 2, len(used)], **whole),
        here=torch.arange(20, 20 + frames, **whole),
        admitted=torch.tensor([1], **whole),
        turns=turns,
        start=start.contiguous(),
        tokens=tokens.contiguous(),
    )


def chunk(shape: tuple[int, ...], tokens: int, frames: int, device: torch.device) -> list[Tensor]:
    batch, _, heads, width = shape
    made = draw(3, batch, tokens * frames, heads, width, device=device).unbind(0)
    return [made[0] / width**0.5, made[1], made[2]]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("storage", ["auto", "int8"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("of_patch", [1, 2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_pages_of_several_sizes_are_read_as_the_reference_has_them(
    name: str,
    of_patch: int,
    dtype: torch.dtype,
    storage: Storage,
    splits: int,
    device: torch.device,
) -> None:
    """A chunk of whole frames, or one that is encoded again, behind pages of all sizes."""
    shape, small = SHAPES[name]
    pool, used = stored(name, storage, dtype, device)
    tokens = {1: shape[1], 2: small[0].tokens, 4: small[1].tokens}[of_patch]
    slots = slots_of(pool, used, 2, device)
    made = [x.to(dtype) for x in chunk(shape, tokens, 2, device)]
    found = attend_pages(*made, pool.layer(0), slots, splits=splits)
    truth = reference.attend_pages(*(x.double() for x in made), pool.layer(0), slots)
    assert error(found, truth) < TOLERANCE.get((storage, dtype), 1e-2)


def test_values_in_8_bits_keep_the_step_of_each_page(device: torch.device) -> None:
    if reason := unsupported(device, dtype=BF16, head_dim=48, values=torch.float8_e4m3fn):
        pytest.skip(reason)
    pool, used = stored("odd", "fp8", BF16, device)
    slots = slots_of(pool, used, 2, device)
    made = [x.to(BF16) for x in chunk(SHAPES["odd"][0], 63, 2, device)]
    found = attend_pages(*made, pool.layer(0), slots, splits=2)
    truth = reference.attend_pages(*(x.double() for x in made), pool.layer(0), slots)
    assert error(found, truth) < 1e-2


def test_pages_of_one_size_and_rows_of_several_are_not_taken_for_each_other(
    device: torch.device,
) -> None:
    pool, used = stored("small", "auto", F32, device)
    slots = slots_of(pool, used, 2, device)
    made = chunk(SHAPES["small"][0], 6, 2, device)
    with pytest.raises(ValueError, match="do not fit together"):
        attend_pages(*made, pool.layer(0), slots._replace(start=None, tokens=None))
    whole = Pages(*(torch.zeros(2, 1, 2, 6, 32, device=device) for _ in range(2)))
    with pytest.raises(ValueError, match="do not fit together"):
        attend_pages(*made, whole, slots)

"""Modulation and gated residual against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfgen.kernels.modulate import add_gated, modulate, unsupported
from cfgen.ops import reference
from tests.kernels.buffers import draw, error, poison, surrounded

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def _poisoned(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def modulation(batch: int, frames: int, width: int, device: torch.device) -> list[Tensor]:
    """Six rows for each frame, as views of one tensor."""
    rows = draw(batch, frames, 6, width, device=device)
    return [row.squeeze(2) for row in surrounded(rows)[0].split(1, 2)]


@pytest.mark.parametrize(
    ("batch", "frames", "tokens", "width"),
    [(1, 3, 21, 256), (2, 3, 5, 100), (1, 1, 10, 1536), (2, 1, 1, 33), (1, 2, 3, 5120)],
)
def test_modulation_is_that_of_the_reference(
    batch: int, frames: int, tokens: int, width: int, device: torch.device
) -> None:
    x = surrounded(3 * draw(batch, frames * tokens, width, device=device) + 1)[0]
    shift, scale, *_ = modulation(batch, frames, width, device)
    found = modulate(x, shift, scale, eps=1e-6, dtype=torch.float32)
    truth = reference.modulate(
        x.double(), shift.double(), scale.double(), eps=1e-6, dtype=torch.float64
    )
    assert found.is_contiguous()
    assert error(found, truth) < 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stream", DTYPES)
def test_modulation_takes_and_gives_any_float_type(
    stream: torch.dtype, dtype: torch.dtype, device: torch.device
) -> None:
    x = draw(1, 6, 48, device=device, dtype=stream)
    shift, scale, *_ = modulation(1, 2, 48, device)
    found = modulate(x, shift, scale, eps=1e-6, dtype=dtype)
    truth = reference.modulate(
        x.double(), shift.double(), scale.double(), eps=1e-6, dtype=torch.float64
    )
    assert found.dtype == dtype
    assert error(found, truth) < TOLERANCE[dtype]


def test_modulation_of_equal_channels_is_the_shift(device: torch.device) -> None:
    x = torch.full((1, 4, 60), 7.0, device=device)
    shift, scale, *_ = modulation(1, 2, 60, device)
    found = modulate(x, shift, scale, eps=1e-6, dtype=torch.float32)
    torch.testing.assert_close(found, shift.repeat_interleave(2, 1), rtol=0, atol=1e-6)


def test_the_mean_does_not_swallow_the_variance(device: torch.device) -> None:
    """Mean and variance are not taken from sums of numbers and of their squares."""
    x = 1000 + draw(1, 2, 300, device=device)
    zero = torch.zeros(1, 1, 300, device=device)
    found = modulate(x, zero, zero, eps=1e-6, dtype=torch.float32)
    truth = reference.modulate(x.double(), zero, zero, eps=1e-6, dtype=torch.float64)
    assert error(found, truth) < 1e-4


@pytest.mark.parametrize("y_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "frames", "tokens", "width"), [(2, 3, 17, 100), (1, 1, 1, 1), (1, 2, 20, 1536)]
)
def test_gated_sum_is_that_of_the_reference(
    batch: int,
    frames: int,
    tokens: int,
    width: int,
    x_dtype: torch.dtype,
    y_dtype: torch.dtype,
    device: torch.device,
) -> None:
    x = surrounded(draw(batch, frames * tokens, width, device=device, dtype=x_dtype))[0]
    y = surrounded(draw(batch, frames * tokens, width, device=device, dtype=y_dtype).flip(2))[0]
    gate = modulation(batch, frames, width, device)[2]
    found = add_gated(x, y, gate)
    assert found.dtype == x_dtype
    assert found.is_contiguous()
    truth = reference.add_gated(x.double(), y.double(), gate.double())
    assert error(found, truth) < TOLERANCE[x_dtype]


def test_one_row_serves_a_whole_batch_by_expansion(device: torch.device) -> None:
    x, y = draw(2, 6, 32, device=device), draw(2, 6, 32, device=device).flip(1)
    shift, scale, gate, *_ = (row.expand(2, 3, 32) for row in modulation(1, 1, 32, device))
    one = modulate(x, shift, scale, eps=1e-6, dtype=torch.float32)
    each = modulate(x, shift.contiguous(), scale.contiguous(), eps=1e-6, dtype=torch.float32)
    assert torch.equal(one, each)
    assert torch.equal(add_gated(x, y, gate), add_gated(x, y, gate.contiguous()))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x, row = draw(1, 6, 32, device=device), draw(1, 2, 32, device=device)
    with pytest.raises(ValueError, match="one row for all tokens or for each of some equal parts"):
        add_gated(x, x, draw(1, 4, 32, device=device))
    with pytest.raises(ValueError, match="shift is .* and scale"):
        modulate(x, row, row[:, :1], eps=1e-6, dtype=torch.float32)
    with pytest.raises(ValueError, match="cannot be added"):
        add_gated(x, x[:, :3], row)
    with pytest.raises(ValueError, match=r"give y_BLE.contiguous\(\)"):
        add_gated(x, draw(1, 32, 6, device=device).transpose(1, 2), row)


def test_unsupported_names_the_type(device: torch.device) -> None:
    assert unsupported(device, *DTYPES) is None
    reason = unsupported(device, torch.float32, torch.float64)
    assert reason is not None
    assert "not torch.float64" in reason


def test_unsupported_names_the_device() -> None:
    reason = unsupported(torch.device("meta"), torch.float32)
    assert reason is not None
    assert "CUDA" in reason

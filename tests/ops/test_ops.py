"""Every backend's ops against explicit formulas, on odd sizes and with poisoned buffers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cfgen.errors import BackendUnavailable
from cfgen.ops.reference import Rope, rotate, turns
from cfgen.ops.select import build_ops

BACKENDS = ["reference", "torch", "auto"]
CPU = torch.device("cpu")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New uninitialised tensors are full of NaN, so that an unwritten output cannot pass."""

    def filled(make):
        def empty(*args, **kwargs) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return empty

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))
    assert torch.empty(2).isnan().all()


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def attend_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("blnd,bsnd->bnls", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bnls,bsnd->blnd", scores.softmax(-1), v)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [(1, 1), (1, 63), (63, 100), (100, 1)])
@pytest.mark.parametrize(("heads", "width"), [(1, 2), (3, 22), (2, 63)])
def test_attention(backend: str, tokens: tuple[int, int], heads: int, width: int) -> None:
    q = draw(2, tokens[0], heads, width, dtype=torch.float64)
    k, v = (draw(2, tokens[1], heads, width + i, dtype=torch.float64)[..., :width] for i in (0, 1))
    expected = attend_by_hand(q, k, v)
    ops = build_ops(backend)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 0.05)):
        out = ops.attend(q.to(dtype), k.to(dtype), v.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_and_its_gradients(backend: str, dtype: torch.dtype) -> None:
    inputs = [draw(2, n, 3, 22, dtype=dtype).requires_grad_() for n in (63, 100, 101)]
    q, k, v = inputs[0], inputs[1], inputs[2][:, :100]
    found = build_ops(backend).attend(q, k, v)
    expected = attend_by_hand(q, k, v)
    weight = draw(*found.shape, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    pairs = zip(
        (found, *torch.autograd.grad((found * weight).sum(), inputs)),
        (expected, *torch.autograd.grad((expected * weight).sum(), inputs)),
        strict=True,
    )
    for out, right in pairs:
        torch.testing.assert_close(out, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_does_not_see_what_lies_around_its_inputs(backend: str) -> None:
    """Inputs cut out of larger buffers whose other values are NaN."""
    ops = build_ops(backend)
    q, k, v = draw(1, 5, 3, 8), draw(1, 63, 3, 8), draw(1, 63, 3, 8)

    def embedded(x: Tensor) -> Tensor:
        buffer = torch.full((x.shape[0], x.shape[1] + 9, x.shape[2], x.shape[3] + 3), torch.nan)
        inner = buffer[:, 4 : 4 + x.shape[1], :, 1 : 1 + x.shape[3]]
        return inner.copy_(x)

    torch.testing.assert_close(
        ops.attend(embedded(q), embedded(k), embedded(v)), ops.attend(q, k, v)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_takes_keys_of_another_dtype(backend: str) -> None:
    q, k, v = draw(1, 3, 1, 8), draw(1, 7, 1, 8), draw(1, 7, 1, 8)
    out = build_ops(backend).attend(q, k.double(), v.bfloat16())
    torch.testing.assert_close(out, attend_by_hand(q, k, v.bfloat16().float()), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 63, 100])
def test_rotation_is_that_of_explicit_matrices(backend: str, tokens: int) -> None:
    x, angles = draw(2, tokens, 3, 10, dtype=torch.float64), draw(tokens, 5, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    expected = torch.einsum("leij,blnej->blnei", matrices, x.unflatten(-1, (5, 2))).flatten(-2)
    ops = build_ops(backend)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.05)):
        out = ops.rotate(x.to(dtype), turns(angles, dtype, CPU))
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_rotations_add_up() -> None:
    """A key stored with its spatial angle and turned in time later is the key turned at once."""
    rope, x = Rope(12), draw(1, 6, 2, 12, dtype=torch.float64)
    spatial, temporal = rope.spatial((2, 3)), rope.temporal([9]).expand(6, -1)
    once = rotate(x, turns(spatial + temporal, x.dtype, CPU))
    stored = rotate(x, turns(spatial, x.dtype, CPU))
    torch.testing.assert_close(rotate(stored, turns(temporal, x.dtype, CPU)), once)


@pytest.mark.parametrize("head_dim", [2, 4, 6, 32, 64, 128])
def test_channels_are_split_as_in_wan(head_dim: int) -> None:
    """Real channels of time, height and width: d - 4 (d // 6), 2 (d // 6), 2 (d // 6)."""
    rope, third = Rope(head_dim), head_dim // 6
    in_time = rope.temporal([1])[0].ne(0)
    space = rope.spatial((2, 2)).view(2, 2, -1)
    assert int(in_time.sum()) * 2 == head_dim - 4 * third
    down, right = space[1, 0].ne(0), space[0, 1].ne(0)
    assert int(down.sum()) == int(right.sum()) == third
    assert torch.equal(
        torch.cat([in_time.nonzero(), down.nonzero(), right.nonzero()])[:, 0],
        torch.arange(head_dim // 2),
    )


@pytest.mark.parametrize("position", [0, 1, 1023, 1024, 5000, 10**6])
def test_angles_of_any_position_follow_the_formula(position: int) -> None:
    angles = Rope(128).temporal([7, position])[1]
    expected = [position * 10000 ** (-i / 22) for i in range(22)] + [0.0] * 42
    torch.testing.assert_close(
        angles, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0
    )
    turned = turns(angles[None], torch.float64, CPU)
    assert turned[0, 0] == pytest.approx(complex(math.cos(position), math.sin(position)), abs=1e-12)


def test_angles_of_tokens_go_row_by_row() -> None:
    angles = Rope(128).spatial((3, 5))
    frequency = [10000 ** (-i / 21) for i in range(21)]
    expected = torch.tensor(
        [
            [0.0] * 22 + [y * f for f in frequency] + [x * f for f in frequency]
            for y in range(3)
            for x in range(5)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(angles, expected, rtol=1e-14, atol=0)


def test_auto_takes_the_fast_backend() -> None:
    assert build_ops("auto").name == "torch"


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="'cuda' is not available; available: auto, torch"):
        build_ops("cuda")

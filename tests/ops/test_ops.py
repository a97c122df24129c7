"""Every backend's ops against explicit formulas, on odd sizes and with poisoned buffers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cfgen.errors import BackendUnavailable
from cfgen.kernels.pages import Pages
from cfgen.ops import reference, torch_backend
from cfgen.ops.reference import Rope, rotate, turns
from cfgen.ops.select import build_ops
from cfgen.ops.triton_backend import Request

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
@pytest.mark.parametrize("tokens", [1, 63, 100])
def test_rotation_is_that_of_explicit_matrices(tokens: int) -> None:
    x, angles = draw(2, tokens, 3, 10, dtype=torch.float64), draw(tokens, 5, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    expected = torch.einsum("leij,blnej->blnei", matrices, x.unflatten(-1, (5, 2))).flatten(-2)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.05)):
        out = rotate(x.to(dtype), turns(angles, dtype, CPU))
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
    with pytest.raises(
        BackendUnavailable, match="'cuda' is not available; available: auto, torch, triton"
    ):
        build_ops("cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 3])
def test_modulation_and_gate_follow_the_formula(
    backend: str, dtype: torch.dtype, frames: int
) -> None:
    ops, x, y = build_ops(backend), draw(2, 21, 10), draw(2, 21, 10).to(dtype)
    shift, scale, gate = draw(2, frames, 3, 10).unbind(2)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    of_token = [each.repeat_interleave(21 // frames, 1) for each in (shift, scale, gate)]
    out = ops.modulate(x, shift, scale, eps=1e-6, dtype=dtype)
    assert out.dtype == dtype
    expected = normed * (1 + of_token[1]) + of_token[0]
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        ops.add_gated(x, y, gate), x + y.float() * of_token[2], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_counts_a_key_for_several(backend: str) -> None:
    q, k, v = draw(2, 7, 3, 8), draw(2, 5, 3, 8), draw(2, 6, 3, 8)[:, :5]
    bias = torch.zeros(2, 5)
    bias[:, -1] = math.log(4)
    several = [torch.cat([x, x[:, -1:].expand(-1, 3, -1, -1)], 1) for x in (k, v)]
    out = build_ops(backend).attend(q, k, v, bias)
    torch.testing.assert_close(out, attend_by_hand(q, *several), rtol=0, atol=2e-6)


def test_pages_are_written_alike_frame_by_frame_and_together() -> None:
    k, v = draw(2, 15, 3, 8), draw(2, 15, 3, 8, dtype=torch.float32) * 3 + 1
    into = torch.tensor([3, 0, 2], dtype=torch.int32)

    def pages() -> Pages:
        return Pages(
            torch.zeros(4, 2, 3, 5, 8, dtype=torch.int8),
            torch.zeros(4, 2, 3, 5, 8, dtype=torch.float8_e4m3fn),
            torch.zeros(4, 2, 3),
            torch.zeros(4, 2, 3, 8),
            torch.zeros(4, 2, 3, 8),
        )

    one, other = pages(), pages()
    reference.write_pages(k, v, one, into)
    torch_backend.write_pages(k, v, other, into)
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float())
    for page, frame in zip((3, 0, 2), range(3), strict=True):
        back = reference.expand(reference.page_of(one, page), torch.float32)
        for stored, whole, error in zip(back, (k, v), (0.02, 0.3), strict=True):
            right = whole[:, 5 * frame : 5 * frame + 5].transpose(1, 2)
            torch.testing.assert_close(stored, right, rtol=0.07, atol=error)
    assert not one.k[1].any()
    assert not one.v[1].float().any()


CUDA = torch.device("cuda")


def wanted(device: torch.device = CUDA, **other: object) -> Request:
    bf16 = torch.bfloat16
    return Request(device, bf16, 128, bf16, bf16)._replace(**other)


def test_triton_that_cannot_run_is_refused_with_its_reason(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendUnavailable, match="'triton' cannot run here: Triton kernels need a"):
        build_ops("triton", wanted(torch.device("cpu")))
    assert build_ops("auto", wanted(torch.device("cpu"))).name == "torch"


def test_every_op_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("cfgen.ops.triton_backend.unsupported_device", lambda _device: None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _device: "an old card")
    for name in ("attend", "cache_write", "modulate", "similarity"):
        monkeypatch.setattr(f"cfgen.kernels.{name}.unsupported_device", lambda _device: None)
    assert build_ops("auto", wanted()).name == "triton"
    with pytest.raises(BackendUnavailable, match=r"attention: Heads must .* from 32 to 128"):
        build_ops("triton", wanted(head_dim=12))
    with pytest.raises(BackendUnavailable, match=r"attention: .*8\.9.*; writing pages: .*8\.9"):
        build_ops("triton", wanted(values=torch.float8_e4m3fn))

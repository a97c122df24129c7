"""Slice k2: the fused ops against plain PyTorch, as it is and compiled.

Axis letters: B batch, F latent frames of a chunk, P tokens per latent frame, L = F * P, N heads,
D head dim, C = N * D.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cfgen.kernels.pages import Pages, Slots
from cfgen.ops import reference
from gpu_parts import ceilings, plain_ops
from gpu_parts.attention_data import Storage, make_slots
from gpu_parts.case import Bench, Case, Contestant, relative
from gpu_parts.kernels import compiled, kernel
from gpu_parts.sizes import Frame, Sizes
from gpu_parts.timing import Call

SLICE = "k2"
BASELINES = ("compile", "eager")
EPS = 1e-6
TOLERANCE = 4e-3
PAGE_TOLERANCES: dict[Storage, float] = {"float": TOLERANCE, "int8": 2e-2, "int8+fp8": 5e-2}
POISON = {torch.int8: 127}
"""What unwritten numbers hold where their type has no NaN."""
GROUPS = 37
"""Groups of partial sums of the keys, about as many as a chunk has tiles."""

Op = Callable[..., Any]


@dataclass(frozen=True)
class Inputs:
    """Everything any of the ops takes; see `ops.reference` for the names."""

    x: Tensor
    y: Tensor
    k: Tensor
    v: Tensor
    shift: Tensor
    scale: Tensor
    gain: Tensor
    spatial: Tensor
    slots: Slots
    pages: dict[Storage, Pages]
    into: Tensor
    parts: Tensor
    state: Tensor
    decision: Tensor
    state_before: Tensor
    decision_before: Tensor


@dataclass(frozen=True, kw_only=True)
class Work:
    """One op.

    Attributes:
        call: Calls it; this is timed.
        look: What it gave or changed, for comparison.
        plain: It in plain PyTorch.
        reset: Poisons what it writes, or puts back what it changes.
        elements: 16-bit numbers moved for each number of the chunk.
        fixed: Bytes moved besides.
    """

    op: str
    call: Callable[[Op, Inputs], Any]
    plain: Op
    look: Callable[[Inputs, Any], Any] = lambda _, output: output
    reset: Callable[[Inputs], None] = lambda _: None
    elements: float = 0
    fixed: int = 0
    tolerance: float = TOLERANCE


def cases(bench: Bench) -> list[Case]:
    """Every op for one chunk and for two."""
    s = bench.sizes
    return [
        _case(bench, f"{name}, {frames * s.frame.tokens} tokens", frames, work)
        for frames in (s.chunk, 2 * s.chunk)
        for name, work in works(s).items()
    ]


def works(s: Sizes) -> dict[str, Work]:
    """The ops by name."""
    found = {
        "modulate": Work(op="modulate", call=_modulate, plain=plain_ops.modulate, elements=2),
        "add_gated": Work(
            op="add_gated",
            call=lambda op, i: op(i.x, i.y, i.scale),
            plain=plain_ops.add_gated,
            elements=3,
        ),
        "norm_rotate": Work(
            op="norm_rotate",
            call=_norm_rotate,
            look=lambda _, out: (*out[:2], out[2].double().sum(1)),
            plain=plain_ops.norm_rotate,
            elements=4,
        ),
        "admit": Work(
            op="admit",
            call=lambda op, i: op(i.parts, i.state, i.decision, tokens=GROUPS, tau=0.95),
            look=lambda i, _: (i.state, i.decision),
            reset=_restore,
            plain=plain_ops.admit,
            fixed=4 * GROUPS * s.width,
        ),
    }
    for storage, written in (("float", 2.0), ("int8", 1.5), ("int8+fp8", 1.0)):
        found[f"write {storage}"] = Work(
            op="write_pages",
            call=functools.partial(_write, storage=storage),
            look=functools.partial(_written, storage=storage),
            reset=functools.partial(_poison, storage=storage),
            plain=plain_ops.write_pages,
            elements=2 + written,
            tolerance=PAGE_TOLERANCES[storage],
        )
    return found


def _case(bench: Bench, name: str, frames: int, work: Work) -> Case:
    s = bench.sizes
    numbers = frames * s.frame.tokens * s.width
    nbytes = int(work.elements * 2 * numbers) + work.fixed
    plain = work.plain
    return Case(
        slice=SLICE,
        name=name,
        inputs=lambda generator: make(s, s.frame, frames, generator, bench.dtype),
        truth=lambda i: truth(work, doubled(i)),
        error=lambda i, output, true: worst(work.look(i, output), true),
        contestants=[
            _contestant("eager", work, lambda: plain),
            _contestant("compile", work, lambda: compiled(plain, bench.device)),
            replace(_contestant("ours", work, lambda: kernel(work.op)), poison=True),
        ],
        baselines=BASELINES,
        nbytes=nbytes,
        sets=max(s.sets, min(24, math.ceil(s.cache / nbytes))),
        seconds=6,
    )


def _contestant(name: str, work: Work, op: Callable[[], Op]) -> Contestant:
    def prepare(inputs: Inputs) -> Call:
        found = op()
        work.reset(inputs)
        return lambda: work.call(found, inputs)

    return Contestant(
        name=name,
        prepare=prepare,
        tolerance=work.tolerance,
        ceiling=ceilings.COPY if work.elements else None,
    )


def make(
    s: Sizes, frame: Frame, frames: int, generator: torch.Generator, dtype: torch.dtype
) -> Inputs:
    """Random inputs of a chunk of `frames` latent frames."""
    device, tokens = generator.device, frame.tokens

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    length = frames * tokens
    k, v = (random(1, length, s.heads, s.head_dim) for _ in range(2))
    state = random(1, s.width, dtype=torch.float32)
    decision = torch.tensor([1, 0, 0, 0], device=device, dtype=torch.int32)
    angles = reference.Rope(s.head_dim).spatial((frame.rows, frame.columns))
    return Inputs(
        x=random(1, length, s.width),
        y=random(1, length, s.width),
        k=k + random(s.heads, s.head_dim),
        v=v,
        shift=random(1, frames, s.width),
        scale=random(1, frames, s.width) * 0.3,
        gain=1 + random(s.width) * 0.1,
        spatial=torch.stack([angles.cos(), angles.sin()], -1).to(device, torch.float32),
        slots=make_slots(
            torch.arange(2, device=device), frames=frames, head_dim=s.head_dim, first=4
        ),
        pages={kind: pool(s, tokens, frames + 2, device, dtype, kind) for kind in PAGE_TOLERANCES},
        into=torch.randperm(frames + 2, generator=generator, device=device)[:frames].int(),
        parts=random(1, GROUPS, s.width, dtype=torch.float32),
        state=state,
        decision=decision,
        state_before=state.clone(),
        decision_before=decision.clone(),
    )


def pool(
    s: Sizes, tokens: int, pages: int, device: torch.device, dtype: torch.dtype, storage: Storage
) -> Pages:
    """Pages of NaN where their type has it."""
    shape = (pages, 1, s.heads, tokens, s.head_dim)
    floats = functools.partial(torch.full, fill_value=math.nan, device=device)
    found = Pages(floats(shape, dtype=dtype), floats(shape, dtype=dtype))
    if storage != "float":
        keys = torch.full(shape, 127, device=device, dtype=torch.int8)
        found = found._replace(k=keys, k_scale=floats(shape[:3]))
        found = found._replace(k_mean=floats((*shape[:3], s.head_dim)))
    if storage == "int8+fp8":
        found = found._replace(v=floats(shape).to(torch.float8_e4m3fn))
        found = found._replace(v_scale=floats((*shape[:3], s.head_dim)))
    return found


def doubled(inputs: Inputs) -> Inputs:
    """The same in float64, with pages that keep what is written exactly."""

    def wide(x: Any) -> Any:
        if isinstance(x, Slots):
            return x._replace(turns=x.turns.double())
        if isinstance(x, dict):
            exact = Pages(*(torch.full_like(y, math.nan).double() for y in x["float"][:2]))
            return dict.fromkeys(x, exact)
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    fields = {name: wide(value) for name, value in vars(inputs).items()}
    return Inputs(**fields | {"decision": inputs.decision.clone()})


def worst(output: Any, truth: Any) -> float:
    """Largest relative error of the tensors of an output."""
    if isinstance(output, Tensor):
        return relative(output, truth)
    pairs = zip(output, truth, strict=True)
    errors = [relative(found.flatten(), true.flatten()) for found, true in pairs]
    return max(errors)


def _modulate(op: Op, i: Inputs) -> Tensor:
    out: Tensor = op(i.x, i.shift, i.scale, eps=EPS, dtype=i.x.dtype)
    return out


def _norm_rotate(op: Op, i: Inputs) -> Any:
    return op(i.x, i.y, i.gain, i.gain, eps=EPS, spatial=i.spatial, slots=i.slots, key_sums=True)


def _write(op: Op, i: Inputs, storage: Storage) -> None:
    op(i.k, i.v, i.pages[storage], i.into)


def _written(i: Inputs, _: object, storage: Storage) -> tuple[Tensor, Tensor]:
    return expanded(i.pages[storage], i.into)


def _poison(i: Inputs, storage: Storage) -> None:
    for tensor in i.pages[storage]:
        if tensor is not None:
            tensor.copy_(torch.full_like(tensor, POISON.get(tensor.dtype, math.nan)))


def _restore(i: Inputs) -> None:
    i.state.copy_(i.state_before)
    i.decision.copy_(i.decision_before)


def truth(work: Work, exact: Inputs) -> Any:
    """What the reference makes of inputs in float64."""
    return work.look(exact, work.call(getattr(reference, work.op), exact))


def expanded(pages: Pages, into: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers that stored pages stand for, [F, B, N, P, D]."""
    at = into.long()
    k, v = pages.k[at].double(), pages.v[at].double()
    if pages.k_scale is not None and pages.k_mean is not None:
        k = k * pages.k_scale[at][..., None, None] + pages.k_mean[at][:, :, :, None]
    if pages.v_scale is not None:
        v = v * pages.v_scale[at][:, :, :, None]
    return k, v

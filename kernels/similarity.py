"""Whether the keys of a pass are surprising: decided on the device, which nobody waits for.

Axis letters: B batch, C channels of all heads, n groups of tokens.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# The bodies of kernels are Triton's language, in which a tensor's type is not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cfgen.kernels.device import unsupported_device
from cfgen.kernels.pages import ADMITTED, ADMITTED_NOW, CAN_ADMIT, UPDATE_REFERENCE
from cfgen.kernels.rows import need_dense

GROUPS, CHANNELS = 128, 32
"""Sums that a program adds up at once."""

LEAST = tl.constexpr(1e-8)
"""The least length of a vector. Source: torch.nn.functional.cosine_similarity."""


def unsupported(device: torch.device) -> str | None:
    """Why this file's function cannot run, in a sentence; None if it can."""
    reason: str | None = unsupported_device(device)
    return reason


@triton.jit
def _mean(parts, keys, groups, width, tokens, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """The mean key over all tokens, some channels of it."""
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((GROUPS, CHANNELS), tl.float32)
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)[:, None]
        kept = (group < groups) & (channel < width)[None]
        total += tl.load(parts + (batch * groups + group) * width + channel, mask=kept, other=0)
    tl.store(keys + batch * width + channel, tl.sum(total, 0) / tokens, mask=channel < width)


@triton.jit(do_not_specialize_on_alignment=["decision"])
def _decide(
    keys, reference, decision, batches, width, tau,
    CAN_ADMIT: tl.constexpr, UPDATE_REFERENCE: tl.constexpr,
    ADMITTED: tl.constexpr, ADMITTED_NOW: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Compare with the reference and act on it; one program, of which every warp decides alike."""
    admitted, renew = tl.load(decision + ADMITTED), tl.load(decision + UPDATE_REFERENCE)
    may = (tl.load(decision + CAN_ADMIT) != 0) & (admitted == 0)
    channel = tl.arange(0, WIDTH)
    inside = channel < width
    similarity = 0.0
    for batch in range(batches):
        at = batch * width + channel
        new = tl.load(keys + at, mask=inside, other=0)
        old = tl.load(reference + at, mask=inside, other=0)
        lengths = tl.maximum(tl.sqrt_rn(tl.sum(new * new, 0)), LEAST)
        lengths *= tl.maximum(tl.sqrt_rn(tl.sum(old * old, 0)), LEAST)
        similarity += tl.div_rn(tl.sum(new * old, 0), lengths)
    fired = (similarity / batches < tau) & may
    tl.debug_barrier()  # no warp may still have to read what is overwritten now
    tl.store(decision + ADMITTED_NOW, fired.to(tl.int32))
    tl.store(decision + ADMITTED, admitted | fired.to(tl.int32))
    if fired | (renew != 0):
        for batch in range(batches):
            at = batch * width + channel
            tl.store(reference + at, tl.load(keys + at, mask=inside), mask=inside)


def admit(
    parts_BnC: Tensor, reference_BC: Tensor, decision: Tensor, *, tokens: int, tau: float
) -> None:
    """Decide as `cfgen.ops.reference.admit` defines it; the host learns nothing.

    Two launches, because one program alone would need longer to read the sums than many programs
    and a second launch together.

    Raises:
        ValueError: A tensor does not lie as it must or has another shape.
    """
    batch, groups, width = parts_BnC.shape
    if reference_BC.shape != (batch, width) or decision.shape != (4,):
        raise ValueError(
            f"keys are [{batch}, {width}], reference {list(reference_BC.shape)} must be the same "
            f"and the decision {list(decision.shape)} must be [4]"
        )
    for name, x in (
        ("parts_BnC", parts_BnC),
        ("reference_BC", reference_BC),
        ("decision", decision),
    ):
        need_dense(name, x, x.dim())
    keys = torch.empty(batch, width, dtype=torch.float32, device=parts_BnC.device)
    _mean[triton.cdiv(width, CHANNELS), batch](
        parts_BnC, keys, groups, width, tokens, GROUPS=GROUPS, CHANNELS=CHANNELS,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    _decide[(1,)](
        keys, reference_BC, decision, batch, width, tau,
        CAN_ADMIT=CAN_ADMIT, UPDATE_REFERENCE=UPDATE_REFERENCE,
        ADMITTED=ADMITTED, ADMITTED_NOW=ADMITTED_NOW,
        WIDTH=triton.next_power_of_2(width), num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip

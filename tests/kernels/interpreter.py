"""Triton's interpreter, made right and independent of what was imported first.

As it comes, it multiplies the bit patterns of bfloat16, cuts float32 down to bfloat16 instead of
rounding, and rounds fp8 wrongly; PyTorch converts these types here. And it takes over only what is
decorated while TRITON_INTERPRET=1 is set, functions of Triton itself included, which in a suite of
tests may be long past.
"""

from __future__ import annotations

import functools
import sys
from types import FunctionType, ModuleType

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import (
    InterpretedFunction,
    InterpreterBuilder,
    TensorHandle,
    _patch_lang,
)
from triton.runtime.jit import JITFunction

NARROW = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
"""Types that numpy lacks: the interpreter keeps their bits in unsigned integers."""

LARGEST = {kind: torch.finfo(kind).max for kind in (torch.float8_e4m3fn, torch.float8_e5m2)}
"""A GPU's conversions to fp8 stop here, where others give NaN or infinity."""


def install(*modules: ModuleType) -> None:
    """Make the interpreter right, and have it run `modules`, all kernels and Triton's own."""
    if not hasattr(InterpreterBuilder.create_dot, "__wrapped__"):
        for method in (create_dot, cast_impl, create_fp_to_fp, binary_op):
            original = getattr(InterpreterBuilder, method.__name__)
            setattr(InterpreterBuilder, method.__name__, _wrap(method, original))
    loaded = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(("triton.language", "cfgen.kernels"))
    ]
    for module in (*loaded, *modules):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                setattr(module, name, _interpreted(value.fn))
    for name, value in list(vars(tl.tensor).items()):
        if isinstance(value, JITFunction):
            setattr(tl.tensor, name, _method(_interpreted(value.fn)))


class Interpreted(InterpretedFunction):
    """A kernel, or a function that kernels call.

    As it comes, the interpreter looks through all of Triton's language for what it has to replace
    before each call inside a kernel, which is a fifth of its time; it need not where a launch, or
    a call before, has replaced it already.
    """

    def __call__(self, *args, **kwargs):
        if any(tl.core.is_builtin(language.arange) for language in _languages(self.fn)):
            _patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)


@functools.cache
def _languages(function: FunctionType) -> list[ModuleType]:
    """The modules of Triton's language that a function sees."""
    return [value for value in function.__globals__.values() if value in (tl, tl.core)]


@functools.cache
def _interpreted(function: FunctionType) -> InterpretedFunction:
    return Interpreted(function)


def _method(function: InterpretedFunction):
    return lambda *args, **kwargs: function(*args, **kwargs)


def _wrap(method, original):
    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        return method(original, *args, **kwargs)

    return wrapped


def create_dot(original, builder, a, b, d, *args, **kwargs):
    if a.dtype.is_floating() and a.dtype.primitive_bitwidth <= 16:
        a, b = _float32(a), _float32(b)
    return original(builder, a, b, d, *args, **kwargs)


def cast_impl(original, builder, src, dst_type):
    if src.dtype.scalar in NARROW:
        return original(builder, _float32(src), dst_type) if dst_type.scalar != src.dtype else src
    if dst_type.scalar in NARROW:
        return _narrow(src.data, dst_type)
    return original(builder, src, dst_type)


def create_fp_to_fp(original, builder, src, dst_type, rounding_mode):
    if {src.dtype.scalar, dst_type.scalar} & set(NARROW):
        return cast_impl(builder.__class__.cast_impl.__wrapped__, builder, src, dst_type)
    return original(builder, src, dst_type, rounding_mode)


def binary_op(original, builder, lhs, rhs, op):
    kind = lhs.dtype.scalar
    if kind not in NARROW:
        return original(builder, lhs, rhs, op)
    result = op(_float32(lhs).data, _float32(rhs).data)
    return TensorHandle(result, tl.int1) if result.dtype == bool else _narrow(result, kind)


def _float32(handle: TensorHandle) -> TensorHandle:
    if (kind := NARROW.get(handle.dtype.scalar)) is not None:
        bits = torch.from_numpy(np.array(handle.data))
        return TensorHandle(bits.view(kind).float().numpy(), tl.float32)
    return TensorHandle(handle.data.astype(np.float32), tl.float32)


def _narrow(data: np.ndarray, dst_type: tl.dtype) -> TensorHandle:
    kind = NARROW[dst_type.scalar]
    numbers = torch.from_numpy(np.array(data)).float()
    if (largest := LARGEST.get(kind)) is not None:
        numbers = numbers.clamp(-largest, largest)
    bits = torch.uint16 if kind.itemsize == 2 else torch.uint8
    return TensorHandle(numbers.to(kind).view(bits).numpy(), dst_type.scalar)

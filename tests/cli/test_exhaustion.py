"""Memory that runs out is told in one sentence, whoever says it and wherever it happens."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable

import pytest
import torch
from typer.testing import Result

from cfgen.errors import BudgetError, CheckpointError, WriterError
from cfgen.out_of_memory import exhausted, is_out_of_memory, memory_errors
from tests.cli.conftest import FakeBuild

NO_MEMORY = OSError(errno.ENOMEM, "Cannot allocate memory")

FORMS = [
    MemoryError(),
    MemoryError("Cannot allocate memory (os error 12)"),  # safetensors
    MemoryError("Unable to allocate 74.5 GiB for an array with shape (10000000000,)"),  # numpy
    NO_MEMORY,  # mmap, fork
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 40 bytes. Error code 12"
    ),
    RuntimeError("unable to mmap 4000000000 bytes from file </a>: Cannot allocate memory (12)"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cudaErrorMemoryAllocation: pinned memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if"),
    RuntimeError("HIP out of memory. Tried to allocate"),
    RuntimeError("XPU out of memory. Tried to allocate"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("could not create a primitive"),  # oneDNN
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory of what was said"),
    OSError(errno.ENOSPC, "No space left on device"),
    CheckpointError("a.pt asks for more memory than there is"),
    KeyError("memory"),
]


def _from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


HIDDEN = [
    _from(CheckpointError("cannot read a.safetensors: Cannot allocate memory"), NO_MEMORY),
    _from(WriterError("could not write a: Cannot allocate memory"), NO_MEMORY),
]


@pytest.mark.parametrize("error", [*FORMS, *HIDDEN], ids=str)
def test_every_form_is_one_sentence(error: Exception) -> None:
    assert is_out_of_memory(error)
    said = exhausted(error)
    assert said.message.startswith("memory ran out: ")
    assert "\n" not in said.message
    with pytest.raises(BudgetError, match="memory ran out"), memory_errors("less"):
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), memory_errors():
        raise error


def test_what_this_system_says_is_understood() -> None:
    with pytest.raises(BudgetError), memory_errors():
        torch.empty(2**60)
    with pytest.raises(BudgetError), memory_errors():
        mmap.mmap(-1, 2**60)
    with pytest.raises(BudgetError), memory_errors():
        bytearray(2**60)


@pytest.mark.parametrize("error", FORMS[::4], ids=str)
def test_a_render_ends_with_it_and_tells_what_would_fit(
    cfgen: Callable[..., Result],
    build: FakeBuild,
    error: Exception,
) -> None:
    build.fails_with = error
    result = cfgen("render", "a kite", "-o", "a.mp4", "--memory", "full")
    assert result.exit_code in (1, 3), result.output
    assert "memory ran out" in result.stderr
    assert "--memory slow_fast" in result.stderr
    assert "defect" not in result.stderr


@pytest.mark.parametrize("error", FORMS[::4], ids=str)
def test_every_command_ends_with_it(
    cfgen: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cfgen.pipeline.job.plan_of", fails)
    result = cfgen("plan", "--duration", "3s")
    assert result.exit_code == 3
    assert "memory ran out" in result.stderr
    assert "Traceback" not in result.stderr

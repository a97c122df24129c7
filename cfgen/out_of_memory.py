"""Memory that ran out, in every form that allocators and libraries say it in, told in one sentence.

RAM, address space (`ulimit -v`), a GPU and pinned memory: each library has words and an exception
of its own. This is the one place that knows them; it imports none of those libraries.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

from cfgen.errors import BudgetError, CfgenError

WORDS = (
    "out of memory",  # CUDA, HIP, XPU and MPS; Triton; cudaHostAlloc for pinned memory
    "can't allocate memory",  # torch on a CPU
    "cannot allocate memory",  # the system: mmap, fork, safetensors
    "unable to allocate",  # numpy
    "not enough memory",  # torch on a CPU under Windows
    "failed to allocate",
    "alloc_failed",  # cuBLAS and cuDNN
    "cudaerrormemoryallocation",
    "bad_alloc",
    "bad allocation",
    "could not create a primitive",  # oneDNN, which allocates its scratch space there
    "could not create a memory",
    "cudnn_status_not_supported",  # what accelerate.utils.memory takes for it too
    "paging file is too small",  # Windows
)
"""What they say, in lower case."""

_LONGEST = 200
HINT = "close other programs, or choose a smaller --size, --memory slow_fast or smaller weights"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if error is None or (isinstance(error, CfgenError) and not _hides(error)):
        return False
    if isinstance(error, CfgenError):
        return True
    torch = sys.modules.get("torch")
    own = getattr(torch, "OutOfMemoryError", None)
    if isinstance(error, MemoryError) or (isinstance(own, type) and isinstance(error, own)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in WORDS)


def _hides(error: CfgenError) -> bool:
    """Whether an error about a file comes from the system's having no memory to map it."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.ENOMEM


def exhausted(error: BaseException, hint: str = HINT) -> BudgetError:
    """The one sentence on memory that ran out.

    Args:
        error: What said so.
        hint: What would fit.
    """
    first = next(iter(str(error).splitlines()), "").strip() or "nothing more could be allocated"
    short = first if len(first) <= _LONGEST else f"{first[:_LONGEST]}..."
    return BudgetError(f"memory ran out: {short}", hint)


@contextlib.contextmanager
def memory_errors(hint: str = HINT) -> Iterator[None]:
    """Turn memory that runs out in the block into one sentence; other errors pass.

    Raises:
        BudgetError: It ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise exhausted(error, hint) from error

"""A tape of PyTorch's operations and of kernel launches: what a CUDA graph is, without a GPU.

It is played again on the very same tensors and, like a CUDA graph, knows no Python: what changed in
between must stand in tensors that did not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from cfgen.ops.select import Ops, PageOps

HOST = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "resolve_conj"}
"""Operations by which numbers come to the host; `tolist` shows as the last."""


class Tape(TorchDispatchMode):
    """Records calls with the tensors that they were made with and gave.

    Args:
        watches: Refuse operations by which numbers come to the host.
    """

    recording: Tape | None = None

    def __init__(self, *, watches: bool = True) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self._watches = watches
        self._before: dict[int, tuple[Tensor, Tensor] | None] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not self._watches or func.overloadpacket.__name__ not in HOST, (
            "the host waits for the device in the middle of a chunk"
        )
        return self.note(func, args, kwargs or {})

    def note(self, func, args, kwargs):
        for x in tensors((args, kwargs)):
            place = x.untyped_storage().data_ptr()
            if place not in self._before:
                whole = x.as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
                self._before[place] = whole, whole.clone()
        out = func(*args, **kwargs)
        for x in tensors(out):
            self._before.setdefault(x.untyped_storage().data_ptr())
        self.calls.append((func, args, kwargs, out))
        return out

    def __enter__(self) -> Tape:
        Tape.recording = self
        return super().__enter__()

    def __exit__(self, *error) -> None:
        Tape.recording = None
        super().__exit__(*error)

    def undo(self) -> None:
        """Have what was there before be as it was: a capture does not do what it records."""
        for held in self._before.values():
            if held is not None:
                held[0].copy_(held[1])
        self._before.clear()

    def play(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(out: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def launched(op: Callable) -> Callable:
    """A kernel launch as one call on the tape."""

    def call(*args, **kwargs):
        tape = Tape.recording
        if tape is None:
            return op(*args, **kwargs)
        with _disable_current_modes():
            return tape.note(op, args, kwargs)

    return call


def on_tape(ops: Ops) -> Ops:
    """Ops whose kernel launches stand on the tape that is being recorded, if any."""
    assert ops.pages is not None
    pages = PageOps(*(launched(getattr(ops.pages, field.name)) for field in fields(PageOps)))
    names = ("modulate", "add_gated", "write_pages", "admit")
    return replace(ops, pages=pages, **{name: launched(getattr(ops, name)) for name in names})

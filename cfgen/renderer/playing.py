"""From the order in which chunks are made to that in which they play."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Playing(Generic[T]):
    """Puts chunks that come in the order of making into that of playing.

    Args:
        next: Number of the chunk that plays first.
    """

    def __init__(self, next: int = 0) -> None:
        self.next = next
        self._waiting: dict[int, T] = {}

    def add(self, index: int, chunk: T) -> Iterator[T]:
        """Take in a chunk; yield all that can play now, each once those before it have."""
        self._waiting[index] = chunk
        while self.next in self._waiting:
            self.next += 1
            yield self._waiting.pop(self.next - 1)

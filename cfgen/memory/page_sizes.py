"""Pages of several sizes: what a token of a page stands for, and how many pages there are of each.

A page of a larger patch has fewer tokens. It holds one latent frame, or as many as its patch is
long in time.
"""

from __future__ import annotations

from typing import NamedTuple

Patch = tuple[int, int, int]
"""What a token of a page stands for: latent frames, and rows and columns of tokens that a latent
frame has where it is denoised. Rows and columns are as many; they tell a page's size."""

WHOLE: Patch = (1, 1, 1)
"""The patch of pages as chunks are denoised."""


class PageClass(NamedTuple):
    """Pages of one size in a layer.

    Attributes:
        patch: Rows and columns of tokens of a latent frame that a token of theirs stands for.
        pages: Most of them in use at once.
    """

    patch: int
    pages: int

    def tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of each where a latent frame has so many rows and columns of them."""
        rows, columns = (-(-size // self.patch) for size in grid)
        return rows * columns


class SmallPages(NamedTuple):
    """Pages of fewer tokens than a latent frame has, as a pool of a known grid holds them.

    Attributes:
        patch: As of `PageClass`.
        pages: Likewise.
        tokens: Tokens of each.
    """

    patch: int
    pages: int
    tokens: int


def small_pages(classes: tuple[PageClass, ...], grid: tuple[int, int]) -> list[SmallPages]:
    """Of a layer's pages, those that are smaller than a latent frame."""
    return [SmallPages(*each, each.tokens(grid)) for each in classes if each.patch > 1]


def tokens_of(classes: tuple[PageClass, ...], grid: tuple[int, int]) -> int:
    """Tokens of all pages of a layer."""
    return sum(each.pages * each.tokens(grid) for each in classes)

"""Policy `compressed`: the past in levels, each kept as fewer tokens than the one before it.

The newest level is kept as it was committed. What leaves a level is encoded again from its latents
in one pass at t = 0, with the larger patch of the next level, for which the generator has patch
kernels of its own. The table is in `compressed_table`.
Source: FAR (arXiv 2503.19325) far/models/far_long_model.py @ e59536a; FramePack (arXiv 2504.12626)
diffusers_helper/models/hunyuan_video_packed.py @ 97fe5db. Of both the scheme alone is here: unlike
FAR's, both kinds of tokens share all weights but the patch kernels; unlike FramePack's, history is
at t = 0 and cached, none of it is there before it was made, and the sink's frames are only there.
Where a film is made from its end (layout inverted), its past is what plays later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cfgen.errors import Problem
from cfgen.fields import Natural, Pattern, check
from cfgen.memory.commit_reads import CommitReads, commit_problems
from cfgen.memory.compressed_table import CompressedTable, Level, merged
from cfgen.memory.page_sizes import PageClass
from cfgen.memory.policy import Order, Storage
from cfgen.memory.transitions import Transition

LEVEL = Pattern(
    pattern=r"(all|[1-9][0-9]{0,5}):(1|2|4)",
    words="FRAMES:PATCH, such as 15:1 or all:4, of patch 1, 2 or 4",
)
"""How many latent frames a level holds, and along each axis how many tokens become one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedMemory:
    """Keep the newest frames whole, and older ones as fewer tokens.

    Attributes:
        sink: Latent frames kept from the start of the clip, as they were committed.
        levels: Latent frames before the chunk, the newest first, and the patch that they are kept
            with, as FRAMES:PATCH; the last may hold all that are older (all:4).
        page: What a token of a larger patch takes in: cells of one latent frame (frame), as in
            FAR; or of as many frames as the patch is wide (cube), as in FramePack.
        rotary: Where such a token stands: at the first cell of its patch (corner), as in FAR; or
            with the mean of the rotations of its cells (pooled), as in FramePack.
        layout: Temporal positions: of the clip (absolute), as in FAR; counted back from the chunk,
            which always has the same (reordered), as in FramePack-F1; or counted on from the chunk,
            which stands behind the first picture and before what plays later (inverted), as in
            FramePack, for `order` inverted.
        renew: Whether frames are encoded again at the end of every chunk, once older ones that they
            attend to have changed (every_chunk), as in FAR; or stay as they were (never).
        commit_reads: What the commit pass may attend to: all; its newest part (fast: no sink of
            earlier chunks, no key frames); or the newest K latent frames, without key frames.
        kv_cache: How the KV cache is stored.
    """

    VARIANTS: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    policy: Literal["compressed"] = "compressed"
    sink: Natural = 0
    levels: tuple[Annotated[str, LEVEL], ...] = ("15:1", "all:4")
    page: Literal["frame", "cube"] = "frame"
    rotary: Literal["corner", "pooled"] = "corner"
    layout: Literal["absolute", "reordered", "inverted"] = "absolute"
    renew: Literal["every_chunk", "never"] = "every_chunk"
    commit_reads: CommitReads = "all"
    kv_cache: Storage = "auto"

    def __post_init__(self) -> None:
        check(self, *self._level_problems(), *self._sink_problems())

    def _level_problems(self) -> Iterable[Problem]:
        """What is wrong with the levels themselves."""
        key = "levels"
        for level in self.levels:
            if reason := LEVEL.problem(level):
                yield Problem(key=key, reason=reason)
                return
        patches = [int(level.split(":")[1]) for level in self.levels]
        if not patches or patches[0] != 1:
            yield Problem(key=key, reason="must begin with a level of patch 1, as the chunk has it")
        elif patches != sorted(patches):
            yield Problem(key=key, reason="must have patches that do not fall from new to old")
        for level, patch in zip(self.levels, patches, strict=True):
            frames, is_last = level.split(":")[0], level is self.levels[-1]
            if frames == "all" and not is_last:
                yield Problem(key=key, reason="must have `all` in the last level only")
            elif frames == "all" and patch > 1 and self.page == "cube":
                reason = "must end with a number of frames where pages are cubes, got all"
                yield Problem(key=key, reason=reason)
            elif frames != "all" and self.page == "cube" and int(frames) % patch:
                reason = f"must hold whole cubes of {patch} frames, got {level!r}"
                yield Problem(key=key, reason=reason)
            if frames == "all" and self.layout != "absolute":
                reason = f"must end with a number of frames where the layout is {self.layout}"
                yield Problem(key=key, reason=f"{reason}, got all")

    def _sink_problems(self) -> Iterable[Problem]:
        """What is wrong with the sink where films are made from their end."""
        if self.order == "inverted" and self.sink != 1:
            reason = "must be 1, the first picture, where the layout is inverted"
            yield Problem(key="sink", reason=f"{reason}, got {self.sink}")

    @property
    def _levels(self) -> list[Level]:
        split = [level.split(":") for level in self.levels]
        return merged([self._level(frames, int(patch)) for frames, patch in split])

    def _level(self, frames: str, patch: int) -> Level:
        span = patch if self.page == "cube" else 1
        return Level(None if frames == "all" else int(frames), (span, patch, patch))

    @property
    def grows(self) -> bool:
        """Whether the last level holds all that is older."""
        return self._levels[-1].frames is None

    @property
    def order(self) -> Order:
        """Inverted where positions are."""
        return "inverted" if self.layout == "inverted" else "forward"

    @property
    def admission(self) -> None:
        """Nothing is chosen: age alone decides."""

    @property
    def patches(self) -> tuple[int, ...]:
        """Larger patches than the chunk's."""
        return tuple(dict.fromkeys(level.patch[1] for level in self._levels[1:]))

    @property
    def pooled(self) -> bool:
        """As `rotary` has it."""
        return self.rotary == "pooled"

    def capacity(self, latent_frames: int) -> int:
        """All levels, or the clip where that is shorter."""
        depth = sum(level.frames or latent_frames for level in self._levels)
        return min(self.sink + depth, latent_frames)

    def classes(self, latent_frames: int, chunk: int) -> tuple[PageClass, ...]:
        """Pages of each patch; those of whole frames are for sink, first level and chunk."""
        newest, *older = self._levels
        left = max(0, latent_frames - self.sink - chunk)
        whole = min(self.sink + chunk + newest.pages(left), latent_frames)
        counted = {1: whole} | dict.fromkeys(self.patches, 0)
        left = max(0, latent_frames - self.sink - (newest.frames or latent_frames))
        for level in older:
            counted[level.patch[1]] += level.pages(left)
            left = max(0, left - (level.frames or left))
        return tuple(PageClass(patch, pages) for patch, pages in counted.items())

    def readable(self, latent_frames: int, chunk: int) -> int:
        """All that is kept."""
        return sum(each.pages for each in self.classes(latent_frames, chunk))

    def table(self, latent_frames: int) -> CompressedTable:
        """One layer's table; a level without an end holds what a clip of that length can."""
        *newer, last = self._levels
        rest = latent_frames - self.sink - sum(level.frames or 0 for level in newer)
        if last.frames is None:
            last = last._replace(frames=max(1, rest))
        return CompressedTable(
            [*newer, last],
            sink=self.sink,
            reordered=self.layout == "reordered",
            renew=self.renew == "every_chunk",
            commit_reads=self.commit_reads,
            inverted_frames=latent_frames if self.order == "inverted" else None,
        )

    @property
    def recaches(self) -> int:
        """The first level."""
        return self._levels[0].frames or 0

    @property
    def reencodes(self) -> int:
        """All levels that have an end; the last only where what is in its pages changes."""
        levels = self._levels
        ended = levels if levels[-1].patch[0] > 1 else levels[:-1]
        return sum(level.frames or 0 for level in ended)

    def refuses(self, transition: Transition) -> str | None:
        """What commits again all that is kept."""
        if transition != "recache" or self.recaches:
            return None
        return (
            "memory compressed of one level without an end keeps the whole film, and would have to "
            "commit it again at once; choose another transition or other levels"
        )

    def problems(self, *, chunk: int, guidance: float, snapshot: str) -> Iterable[Problem]:
        """A commit pass must read its chunk."""
        return commit_problems(self.commit_reads, chunk=chunk)

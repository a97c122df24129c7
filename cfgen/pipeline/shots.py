"""From the shots of a film to the spans of its plan: every shot begins with a chunk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from cfgen.config.shots import Shot
from cfgen.errors import UsageError
from cfgen.timeline import Plan, Span
from cfgen.video.facts import Chapter


def spans_of(plan: Plan, shots: Sequence[Shot], *, default: str) -> tuple[Span, ...]:
    """The spans of shots.

    Args:
        plan: The plan of the whole film.
        shots: What it shows, one after another.
        default: How a shot begins that does not say so.

    Raises:
        UsageError: A shot is so short that no chunk is left for it.
    """
    asked = [0.0]
    for shot in shots[:-1]:
        asked.append(round(asked[-1] + shot.duration_s, 6))
    begins = [0, *(_nearest(plan, seconds) for seconds in asked[1:]), plan.chunks]
    for number, (first, after) in enumerate(pairwise(begins), start=1):
        if first >= after:
            chunk = plan.geometry.chunk_latent_frames * plan.geometry.temporal_stride
            raise UsageError(
                f"shot {number} of {shots[number - 1].duration_s:g} s is too short: shots begin "
                f"where chunks do, and a chunk plays {chunk / plan.geometry.fps:.3g} s",
                "make it longer, or leave it out",
            )
    starts = [plan.chunk(chunk).latent_start for chunk in begins[:-1]]
    return tuple(
        Span(
            start=start,
            stop=stop,
            prompt=shot.prompt,
            transition=shot.transition or default,
            asked_s=seconds,
        )
        for start, stop, shot, seconds in zip(
            starts, [*starts[1:], plan.latent_frames], shots, asked, strict=True
        )
    )


def _nearest(plan: Plan, seconds: float) -> int:
    """The chunk that begins nearest to a time, the later of two."""
    frame = seconds * plan.geometry.fps

    def start(chunk: int) -> int:
        return plan.chunk(chunk).frame_start

    after = bisect_left(range(plan.chunks), frame, key=start)
    if after == 0 or after == plan.chunks:
        return min(after, plan.chunks - 1)
    return after if start(after) - frame <= frame - start(after - 1) else after - 1


def longest_pass(plan: Plan, recaches: int) -> int:
    """Latent frames of the longest pass: of a chunk, or of those that a shot commits again.

    Args:
        plan: The plan.
        recaches: As `memory.policy.Policy.recaches`.
    """
    again = any(span.transition == "recache" for span in plan.spans[1:])
    return max(plan.geometry.chunk_latent_frames, recaches if again else 0)


def chapters_of(plan: Plan) -> tuple[Chapter, ...]:
    """The shots of a film as chapters of its video; none for a film of one shot."""
    if len(plan.spans) == 1:
        return ()
    return tuple(
        Chapter(
            frame=plan.chunk(plan.first_of(number)).frame_start,
            prompt=span.prompt,
            transition=span.transition if number else "fresh",
        )
        for number, span in enumerate(plan.spans)
    )

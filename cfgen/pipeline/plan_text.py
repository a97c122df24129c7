"""What a plan says in sentences: how a duration became frames and chunks, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from cfgen.timeline import Plan
from cfgen.units import bytes_words, count, plain


def rounding_lines(plan: Plan) -> tuple[str, ...]:
    """Say how the duration became frames and chunks: every rounding, in order."""
    geometry = plan.geometry
    exact = plan.duration_s * geometry.fps
    asked = f"{plain(plan.duration_s)} s at {plain(geometry.fps)} fps"
    if exact == plan.frames:
        first = f"{asked} are {count(plan.frames, 'frame')} exactly"
    else:
        whole = ", so that whole chunks lead to the last picture" if plan.given.at_end else ""
        first = (
            f"{asked} are {plain(exact)} frames, "
            f"rounded to {count(plan.frames, 'frame')} ({plain(plan.seconds)} s){whole}"
        )
    surplus = plan.decoded_frames - plan.frames
    third = (
        f"{plan.decoded_frames} frames are decoded and the last {surplus} cut off"
        if surplus
        else f"all {count(plan.decoded_frames, 'decoded frame')} are kept"
    )
    fourth = f"{count(plan.segments, 'encoded segment')} of {plan.segment_chunks} chunks"
    last = len(plan.chunks_of(plan.segments - 1))
    lines = first, *_given_lines(plan), _grid_line(plan), third, f"{fourth}, the last of {last}"
    return *lines, *_borders(plan)


def order_lines(plan: Plan) -> tuple[str, ...]:
    """Say what follows from making chunks in another order than they play in; else nothing."""
    if not plan.inverted:
        return ()
    geometry = plan.geometry
    cells = geometry.channels * geometry.latent_width * geometry.latent_height
    return (
        "chunks are made from the end of the film to its start: how long it is cannot change, and "
        "nothing can branch off it",
        f"{bytes_words(4 * cells * plan.latent_frames)} of latents are kept until all "
        f"{count(plan.chunks, 'chunk')} are made; then the video is written",
        "no frame can be watched before that, in --preview neither",
        "cfgen knows no weights that were trained for this order: others make no good film in it",
    )


def _borders(plan: Plan) -> Iterator[str]:
    """Say where shots begin, after the first."""
    for number, span in enumerate(plan.spans[1:], start=2):
        chunk = plan.first_of(number - 1)
        begins_s = plan.chunk(chunk).frame_start / plan.geometry.fps
        words = f"shot {number} begins with chunk {chunk + 1}, at {plain(begins_s)} s"
        asked = "" if begins_s == span.asked_s else f" instead of {plain(span.asked_s)} s"
        yield f"{words}{asked}: {span.transition}"


def _grid_line(plan: Plan) -> str:
    """How frames became chunks."""
    stride, size = plan.geometry.temporal_stride, plan.geometry.chunk_latent_frames
    needed = plan.geometry.latent_frames_for(plan.hidden_frames + plan.frames)
    before = plan.latent_start(plan.hidden_chunks)
    opens = "" if before else f"the first holds 1 frame, each later one {stride}"
    line = (
        f"{count(plan.frames, 'frame')} need {count(needed - before, 'latent frame')} "
        f"({opens or f'each holds {stride}'})"
    )
    if plan.latent_frames != needed:
        line += f", rounded up to {plan.latent_frames - before}"
    if not plan.hidden_chunks and plan.first_latent_frames != size:
        at_end = plan.given.at_end
        rest = count(plan.chunks - 1 - (at_end > 0), "chunk")
        ends = f", then a chunk of {at_end}" if at_end else ""
        return f"{line}: a chunk of {plan.first_latent_frames}, then {rest} of {size}{ends}"
    return f"{line}: {count(plan.chunks - plan.hidden_chunks, 'chunk')} of {size}"


def _given_lines(plan: Plan) -> Iterator[str]:
    """What is there before anything is made."""
    given = plan.given
    if given.latent_frames:
        frames = plan.geometry.frames_of(given.latent_frames)
        latents = count(given.latent_frames, "latent frame")
        chunks = count(plan.given_chunks, "chunk")
        are, them = ("is", "it") if frames == 1 else ("are", "them")
        fate = f"the video shows {them}" if given.shown else f"the video begins behind {them}"
        yield f"{count(frames, 'frame')} {are} given, {latents} in {chunks}: {fate}"
    if given.at_end:
        frames = given.at_end * plan.geometry.temporal_stride
        latents = count(given.at_end, "latent frame")
        yield f"the last {frames} frames are given, {latents} in 1 chunk: a picture that stands"

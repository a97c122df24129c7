"""Where shots begin, and what becomes of them when something of a film is to be another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cfgen.config.shots import TRANSITIONS, Shot, total_s
from cfgen.errors import UsageError
from cfgen.pipeline.film_changes import changed_from, cut_to
from cfgen.pipeline.plan_text import rounding_lines
from cfgen.pipeline.shots import chapters_of, longest_pass, spans_of
from cfgen.timeline import Plan, VideoShape, make_plan

transitions = st.sampled_from([None, *TRANSITIONS])
films = st.lists(
    st.builds(
        Shot,
        prompt=st.sampled_from("abc"),
        duration_s=st.integers(300_000, 9_000_000).map(lambda n: n / 1e6),
        transition=transitions,
    ),
    min_size=1,
    max_size=5,
)
rates = st.sampled_from([16.0, 23.976, 8.0, 30.0])


def plan_of(film: Sequence[Shot], fps: float = 16.0, chunk: int = 3) -> Plan:
    shape = VideoShape(width=160, height=96, fps=fps, chunk_latent_frames=chunk)
    plan = make_plan(total_s(film), shape)
    return replace(plan, spans=spans_of(plan, film, default="recache"))


def planned(film: Sequence[Shot], fps: float, chunk: int = 3) -> Plan:
    try:
        return plan_of(film, fps, chunk)
    except UsageError as error:
        assume("too short" not in str(error))
        raise


@given(films, rates, st.integers(1, 4))
def test_every_chunk_is_of_one_shot_which_begins_with_the_nearest(
    film: list[Shot], fps: float, size: int
) -> None:
    plan = planned(film, fps, size)
    assert [span.prompt for span in plan.spans] == [shot.prompt for shot in film]
    assert (plan.spans[0].start, plan.spans[-1].stop) == (0, plan.latent_frames)
    assert all(a.stop == b.start for a, b in pairwise(plan.spans))
    firsts = [plan.first_of(number) for number in range(len(film))]
    assert [plan.span_of(chunk) for chunk in firsts] == list(range(len(film)))
    asked = 0.0
    for number, shot in enumerate(film):
        chunk, frame = firsts[number], asked * fps
        starts = [plan.chunk(each).frame_start for each in range(plan.chunks)]
        assert abs(starts[chunk] - frame) == min(abs(start - frame) for start in starts)
        if number:
            assert plan.transition_before(chunk) == (shot.transition or "recache")
        asked = round(asked + shot.duration_s, 6)
    others = set(range(plan.chunks)) - set(firsts[1:])
    assert {plan.transition_before(chunk) for chunk in others} == {"continue"}
    frames = [chapter.frame for chapter in chapters_of(plan)]
    assert frames == ([plan.chunk(chunk).frame_start for chunk in firsts] if firsts[1:] else [])


@given(films, rates, st.data(), st.sampled_from([None, "new"]), transitions)
def test_what_comes_before_a_change_stays_and_the_change_is_where_it_was_asked(
    film: list[Shot], fps: float, data: st.DataObject, prompt: str | None, how: str | None
) -> None:
    plan = planned(film, fps)
    chunk = data.draw(st.integers(0, plan.chunks - 1))
    number = plan.span_of(chunk)
    if how is not None and chunk == 0:
        with pytest.raises(UsageError, match="nothing before the first chunk"):
            changed_from(film, plan, chunk, prompt=prompt, transition=how)
        return
    changed = changed_from(film, plan, chunk, prompt=prompt, transition=how)
    assert total_s(changed) == pytest.approx(total_s(film), abs=2e-6)
    if prompt is None and how is None:
        assert list(changed) == film
        return
    new = plan_of(changed, fps)
    assert (new.chunks, new.frames) == (plan.chunks, plan.frames)
    for each in range(plan.chunks):
        old_span, new_span = plan.spans[plan.span_of(each)], new.spans[new.span_of(each)]
        if each < chunk or (prompt is None and each > chunk):
            assert new_span.prompt == old_span.prompt
            assert new.transition_before(each) == plan.transition_before(each)
        else:
            assert new_span.prompt == (prompt or film[number].prompt)
            begins = (how or "recache") if each == chunk and chunk else "continue"
            assert new.transition_before(each) == begins


@given(films, st.integers(300_000, 60_000_000).map(lambda n: n / 1e6))
def test_a_film_of_another_length_begins_as_the_old_one(film: list[Shot], duration: float) -> None:
    changed = cut_to(film, duration)
    assert total_s(changed) == pytest.approx(duration, abs=1e-6)
    assert list(changed[:-1]) == film[: len(changed) - 1]
    last = film[len(changed) - 1]
    assert (changed[-1].prompt, changed[-1].transition) == (last.prompt, last.transition)


def test_roundings_of_borders_are_told() -> None:
    film = [
        Shot(prompt="a", duration_s=4.0),
        Shot(prompt="b", duration_s=2.75, transition="cut"),
        Shot(prompt="c", duration_s=3.0),
    ]
    lines = rounding_lines(plan_of(film))
    assert lines[-2:] == (
        "shot 2 begins with chunk 7, at 4.312 s instead of 4 s: cut",
        "shot 3 begins with chunk 10, at 6.562 s instead of 6.75 s: recache",
    )
    assert longest_pass(plan_of(film), 12) == 12
    assert longest_pass(plan_of(film[:2]), 12) == 3


def test_a_shot_without_a_chunk_is_refused() -> None:
    film = [Shot(prompt="a", duration_s=4.0), Shot(prompt="b", duration_s=0.3)]
    plan_of(film)
    with pytest.raises(UsageError, match=r"shot 2 of 0\.3 s is too short"):
        plan_of([*film, *film])

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfgen.errors import UsageError
from cfgen.pipeline.plan import TIMED_PAGES, KvSize, estimate
from cfgen.pipeline.plan_text import rounding_lines
from cfgen.timeline import make_plan
from cfgen.video.codecs import H264
from cfgen.video.shape import VideoShape

MINI = VideoShape(width=160, height=96)
GOOD, BEST = (H264.qualities[name] for name in ("good", "best"))

geometries = st.builds(
    VideoShape,
    width=st.integers(1, 60).map(lambda n: 8 * n),
    height=st.integers(1, 60).map(lambda n: 8 * n),
    temporal_stride=st.integers(1, 8),
    chunk_latent_frames=st.integers(1, 7),
    fps=st.sampled_from([1.0, 12.0, 15.5, 16.0, 23.976, 24.0, 60.0]),
)
durations = st.floats(1.0, 400.0)
segment_sizes = st.integers(1, 20)


@given(durations, geometries, segment_sizes)
def test_chunks_tile_the_frames_exactly(
    duration_s: float, geometry: VideoShape, segment_chunks: int
) -> None:
    plan = make_plan(duration_s, geometry, segment_chunks=segment_chunks)
    chunks = list(plan)
    assert plan.frames == round(duration_s * geometry.fps)
    assert len(chunks) == plan.chunks
    assert chunks[0].frame_start == chunks[0].latent_start == 0
    for earlier, later in itertools.pairwise(chunks):
        assert later.frame_start == earlier.frame_start + earlier.frames
        assert later.latent_start == earlier.latent_start + earlier.latent_frames
    assert all(chunk.frames > 0 for chunk in chunks)
    assert chunks[-1].frame_start + chunks[-1].frames == plan.frames
    assert sum(chunk.latent_frames for chunk in chunks) == plan.latent_frames


@given(durations, geometries, segment_sizes)
def test_no_chunk_fewer_would_do(
    duration_s: float, geometry: VideoShape, segment_chunks: int
) -> None:
    plan = make_plan(duration_s, geometry, segment_chunks=segment_chunks)
    assert plan.decoded_frames >= plan.frames
    one_less = plan.latent_frames - geometry.chunk_latent_frames
    assert geometry.frames_of(one_less) < plan.frames


@given(durations, durations, geometries, segment_sizes)
def test_longer_plan_starts_with_the_shorter(
    one_s: float, other_s: float, geometry: VideoShape, segment_chunks: int
) -> None:
    short, long = (
        make_plan(seconds, geometry, segment_chunks=segment_chunks)
        for seconds in sorted((one_s, other_s))
    )
    assert short.chunks <= long.chunks
    for index in range(short.chunks - 1):
        assert short.chunk(index) == long.chunk(index)
    mine, theirs = short.chunk(short.chunks - 1), long.chunk(short.chunks - 1)
    assert (mine.frame_start, mine.latent_start) == (theirs.frame_start, theirs.latent_start)
    assert mine.segment == theirs.segment
    assert mine.frames <= theirs.frames


@given(durations, geometries, segment_sizes)
def test_segments_lie_on_a_fixed_grid(
    duration_s: float, geometry: VideoShape, segment_chunks: int
) -> None:
    plan = make_plan(duration_s, geometry, segment_chunks=segment_chunks)
    by_segment = [list(group) for _, group in itertools.groupby(plan, key=lambda c: c.segment)]
    assert len(by_segment) == plan.segments
    assert all(len(chunks) == segment_chunks for chunks in by_segment[:-1])
    for chunks in by_segment:
        assert [chunk.ends_segment for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@given(st.integers(1, 10_000), geometries)
def test_latent_frames_for_is_the_least_that_covers(frames: int, geometry: VideoShape) -> None:
    needed = geometry.latent_frames_for(frames)
    assert geometry.frames_of(needed) >= frames > geometry.frames_of(needed - 1)


def test_chunks_of_mini_have_9_frames_and_then_12() -> None:
    plan = make_plan(30, MINI)
    assert (plan.frames, plan.chunks, plan.latent_frames, plan.segments) == (480, 41, 123, 3)
    assert [plan.chunk(i).frames for i in (0, 1, 39, 40)] == [9, 12, 12, 3]


def test_an_hour_takes_no_memory_to_plan() -> None:
    plan = make_plan(3600, MINI)
    assert plan.frames == 57_600
    assert plan.chunk(plan.chunks - 1).ends_segment
    with pytest.raises(IndexError):
        plan.chunk(plan.chunks)


def test_every_rounding_is_told() -> None:
    lines = rounding_lines(make_plan(1.03, MINI))
    assert lines == (
        "1.03 s at 16 fps are 16.48 frames, rounded to 16 frames (1 s)",
        "16 frames need 5 latent frames (the first holds 1 frame, each later one 4), "
        "rounded up to 6: 2 chunks of 3",
        "21 frames are decoded and the last 5 cut off",
        "1 encoded segment of 16 chunks, the last of 2",
    )


def test_a_fit_without_rounding_says_so() -> None:
    lines = rounding_lines(make_plan(21 / 16, MINI))
    assert lines[0] == "1.312 s at 16 fps are 21 frames exactly"
    assert lines[2] == "all 21 decoded frames are kept"


@pytest.mark.parametrize("duration_s", [0, -3, float("nan"), float("inf")])
def test_a_duration_that_is_none_is_refused(duration_s: float) -> None:
    with pytest.raises(UsageError, match="positive number of seconds"):
        make_plan(duration_s, MINI)


def test_less_than_a_frame_is_refused() -> None:
    with pytest.raises(UsageError, match="shorter than one frame"):
        make_plan(0.01, MINI)


@pytest.mark.parametrize(("width", "height"), [(161, 96), (160, 0), (-8, 96)])
def test_a_size_off_the_grid_is_refused(width: int, height: int) -> None:
    with pytest.raises(UsageError, match="positive multiple of 8"):
        VideoShape(width=width, height=height)


def test_estimates_follow_the_shapes() -> None:
    plan = make_plan(10, MINI)
    kv = KvSize(nbytes=21 * 1000, pages=21)
    needs = estimate(plan, quality=GOOD, kv=kv, frames_per_s=32)
    assert needs.kv_nbytes == 21 * 1000
    assert needs.render_s == 5.0
    assert needs.latents_nbytes == 4 * 16 * 20 * 12 * plan.latent_frames
    kept = needs.latents_nbytes + needs.snapshots_nbytes
    assert needs.disk_nbytes == 2 * needs.output_nbytes + kept


def test_snapshots_take_their_budget_or_two_memories_or_the_whole_clip() -> None:
    kv = KvSize(nbytes=21 * 1000, pages=21)
    page = kv.nbytes // 21

    def snapshots(seconds: float, **options: object) -> int:
        return estimate(make_plan(seconds, MINI), quality=GOOD, kv=kv, **options).snapshots_nbytes

    assert snapshots(600, budget_nbytes=50 * page) == (50 + 21) * page
    assert snapshots(600) == 3 * kv.nbytes
    assert snapshots(5, budget_nbytes=10**12) == 21 * page + kv.nbytes
    assert snapshots(600, snapshot="latents") == snapshots(600, snapshot="off") == 0


def test_what_is_not_known_is_not_guessed() -> None:
    needs = estimate(make_plan(10, MINI), quality=BEST)
    assert needs.kv_nbytes is needs.snapshots_nbytes is None
    assert needs.render_s is needs.chunk_s is None
    assert estimate(make_plan(10, MINI), quality=BEST, snapshot="off").snapshots_nbytes == 0


@pytest.mark.parametrize("seconds", [0.5, 3, 10, 40, 600])
def test_time_is_the_sum_of_chunks_that_take_longer_as_the_cache_grows(seconds: float) -> None:
    plan = make_plan(seconds, MINI)
    for most, attention in itertools.product((3, 15, 21, 10_000), (0.0, 0.02, 1.0)):
        slots = min(most, plan.latent_frames)
        kv = KvSize(nbytes=1000 * (slots + 1), pages=slots + 1, attention=attention)
        needs = estimate(plan, quality=GOOD, kv=kv, frames_per_s=32)
        read = [min(slots, 3 * (index + 1)) for index in range(plan.chunks)]
        rate = [(1 + attention * n) / (1 + attention * TIMED_PAGES) for n in read]
        assert needs.render_s == pytest.approx(plan.frames / 32 * sum(rate) / plan.chunks)
        assert needs.chunk_s == pytest.approx((12 / 32 * rate[0], 12 / 32 * rate[-1]))


def test_a_first_chunk_of_more_passes_takes_longer() -> None:
    plan = make_plan(10, MINI)
    plain, slow = (
        estimate(plan, quality=GOOD, frames_per_s=32, opening=share) for share in (1.0, 2.5)
    )
    first, last = plain.chunk_s
    assert slow.chunk_s == pytest.approx((2.5 * first, last))
    assert slow.render_s == pytest.approx(plain.render_s + 1.5 * first)


@given(durations, durations)
def test_what_is_held_does_not_grow_with_the_clip(one_s: float, other_s: float) -> None:
    one, other = (estimate(make_plan(s, MINI), quality=GOOD) for s in (one_s, other_s))
    assert one.chunk_nbytes == other.chunk_nbytes

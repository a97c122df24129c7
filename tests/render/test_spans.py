"""A film whose prompt changes: each chunk is made, and committed again, under its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cfgen.config.loader import load
from cfgen.pipeline.build import build_source
from cfgen.pipeline.chunk_source import read_prompts
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.source import FrameSource
from cfgen.timeline import Span, make_plan
from cfgen.video.shape import VideoShape
from tests.render.film import PROMPT

OTHER = "a blue boat on a calm sea"


@pytest.mark.parametrize("seconds", [0.5, 3.0, 60.0])
def test_spans_have_every_chunk_once(seconds: float) -> None:
    plan = make_plan(seconds, VideoShape(width=160, height=96), prompt="a kite")
    assert [span.prompt for span in plan.spans] == ["a kite"]
    assert (plan.spans[0].start, plan.spans[-1].stop) == (0, plan.latent_frames)
    assert {plan.span_of(chunk) for chunk in plan.order} == {0}
    assert list(plan.order) == [chunk.index for chunk in plan]


@pytest.fixture
def job(tiny_settings: list[str]) -> RenderJob:
    values = {"prompt": PROMPT, "seed": "3", "duration": "3s", "output": "unused.mp4"}
    return RenderJob(load(values, assignments=tiny_settings).config)


def in_two(job: RenderJob, source: FrameSource) -> FrameSource:
    """The film with another prompt from its third chunk on."""
    at = 2 * job.plan.geometry.chunk_latent_frames
    spans = (Span(start=0, stop=at, prompt=PROMPT), Span(start=at, stop=10**6, prompt=OTHER))
    plan = dataclasses.replace(job.plan, spans=spans)
    changed = RenderJob(job.config, job.model)
    changed.plan = plan
    text = job.model.embed([PROMPT, OTHER])
    conditionings, _ = read_prompts(changed, source.generator, text)
    return dataclasses.replace(source, plan=plan, conditionings=conditionings)


def test_a_prompt_counts_from_its_chunk_on_and_in_commits(job: RenderJob) -> None:
    plain = [chunk.latents for _, chunk, _ in build_source(job).chunks()]
    other = [chunk for _, chunk, _ in in_two(job, build_source(job)).chunks()]
    assert all(torch.equal(plain[i], other[i].latents) for i in range(2))
    assert not torch.equal(plain[2], other[2].latents)
    again = in_two(job, build_source(job))
    for chunk in other[:3]:
        again.recommit(chunk)
    (last,) = again.make([3])
    assert torch.equal(last.latents, other[3].latents)

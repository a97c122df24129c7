"""The window cut of the release: which latent frame is encoded anew, and that scores see it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cfgen.model.vae import TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.train.context_forcing.dmd import ScoreSettings, Targets
from cfgen.train.context_forcing.self_rollout import ChunkRecord
from cfgen.train.context_forcing.window_cut import first_latent, reencoder
from tests.train.context_forcing.rollouts import prompts, tiny_generator

TARGETS = 7
CONTEXT = 21


def record_of(latents: int) -> list[ChunkRecord]:
    """Chunks of so many latent frames, each of which holds its own number."""
    record = []
    for start in range(0, latents, 3):
        frames = torch.arange(start, start + 3).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 6).double()
        record.append(ChunkRecord(start, frames, 0.5, frames, frames, [], []))
    return record


@pytest.mark.parametrize(("latents", "replaced"), [(21, None), (39, None), (42, 0), (45, 3)])
def test_the_latent_that_a_full_window_begins_with_is_encoded_anew(
    latents: int, replaced: int | None
) -> None:
    """21 latents of context and 21 of targets are a full window."""
    seen: list[Tensor] = []

    def reencode(given: Tensor) -> Tensor:
        seen.append(given)
        return given[:, -1] + 100

    record = record_of(latents)
    found = first_latent(record, TARGETS, CONTEXT, reencode)
    if replaced is None:
        assert found is None
        assert seen == []
        return
    assert found is not None
    assert torch.equal(found, torch.full_like(found, 100.0 + replaced))
    assert seen[0][0, :, 0, 0, 0].tolist() == list(range(replaced + 1))
    settings = ScoreSettings(context="contiguous", context_frames=CONTEXT, score="joint")
    targets = Targets(with_reads(record), TARGETS, settings, found)
    generator = tiny_generator()
    texts = [prompts(generator)[0]] * len(record)
    commits = targets._commits(texts)
    numbers = torch.cat([part.latents for part in commits], 1)[0, :, 0, 0, 0].tolist()
    assert numbers == [100 + replaced, *range(replaced + 1, replaced + CONTEXT)]
    assert record[replaced // 3].committed[0, 0, 0, 0, 0] == replaced, "the student's own stays"


def with_reads(record: list[ChunkRecord]) -> list[ChunkRecord]:
    return [replace(chunk, exit_reads=[[]] * 3, commit_reads=[[]] * 3) for chunk in record]


@pytest.mark.parametrize("kind", ["tiny", "wan"])
@torch.no_grad()
def test_the_last_picture_is_encoded_as_a_clip_of_one(kind: str) -> None:
    torch.manual_seed(0)
    vae: TinyAutoencoder | WanAutoencoder = TinyAutoencoder(4, 8, (8, 8, 8, 8)).eval()
    if kind == "wan":
        vae = WanAutoencoder(8, 8, (1, 1, 1, 1)).eval()
    latents = torch.randn(1, 4, vae.latent_channels, 2, 2)
    found = reencoder(vae)(latents)
    expected = vae.encode(vae.decode(latents)[:, -1:].clamp(0, 1))[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

"""One film in several processes on the CPU (gloo): the very frames of one process, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cfgen.config.loader import load
from cfgen.errors import ProcessLost, UsageError
from cfgen.pipeline.build import ModelCache, build_source
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.parallel_plan import shares_of
from cfgen.renderer.events import ChunkDone, Resumed
from cfgen.renderer.source import FrameSource
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine
from tests.render.film import FOUR_SHOTS, MEMORIES, MakeFilm

STORED = {kind: [f"memory.kv_cache={kind}"] for kind in ("bf16", "int8", "fp8")}
OTHERS = {
    "reference backend": ["backend=reference", "memory.slow=2", "memory.tau=1"],
    "bfloat16": ["dtype=bfloat16"],
    "guidance": ["schedule.guidance=3"],
    "shots": [FOUR_SHOTS, "memory.policy=window", "memory.size=9"],
}
CASES = {**MEMORIES, **STORED, **OTHERS}
IN_FOUR = ("release", "relax", "int8", "reference backend", "shots")


@pytest.fixture(scope="session")
def four_heads(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its channels in four heads, which no weight tells."""
    folder = tmp_path_factory.mktemp("four") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_heads": 4}))
    return folder


@pytest.fixture
def film(film: MakeFilm, four_heads: Path) -> MakeFilm:
    film.settings.append(f"model.path={four_heads}")
    return film


@pytest.fixture(scope="module")
def together() -> Iterator[ModelCache]:
    """Processes that stay from one film to the next, as in a batch."""
    models = ModelCache()
    yield models
    models.peers.close()


def _frames(film: MakeFilm, models: ModelCache, *settings: str) -> tuple[str, int]:
    """A digest of all frames, and bytes of this process's part of the KV cache."""
    source = build_source(RenderJob(film(*settings).config), models)
    made = [torch.from_numpy(frames).double() for _, _, frames in source.chunks()]
    latents = torch.cat([frames.flatten() for frames in made])
    source.close()
    return latents, source.memory.pool.nbytes


def _case(name: str) -> list[str]:
    return CASES[name]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_make_the_frames_of_one(
    film: MakeFilm, together: ModelCache, name: str
) -> None:
    _same_frames(film, together, 2, name)


@pytest.mark.parametrize("name", IN_FOUR)
def test_four_processes_make_the_frames_of_one(
    film: MakeFilm, together: ModelCache, name: str
) -> None:
    _same_frames(film, together, 4, name)


def _same_frames(film: MakeFilm, together: ModelCache, processes: int, name: str) -> None:
    settings = CASES[name]
    alone, whole = _frames(film, film.filmed.models, *settings)
    shared, part = _frames(film, together, *settings, f"placement.parallel={processes}")
    assert torch.equal(shared, alone)
    assert part * processes == whole

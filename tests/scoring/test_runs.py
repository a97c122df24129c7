"""What a run folder says: where chunks begin, and the latents that it keeps."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from cfgen.errors import InputRefused
from cfgen.metrics.latents import latent_drift
from cfgen.runs.contents import require_own
from cfgen.runs.folder import RunFolder
from cfgen.scoring import runs as runs_module
from cfgen.scoring.api import score
from cfgen.scoring.record import read_score, score_file_of, score_record, write_score
from cfgen.scoring.runs import facts_of_run, film_of, grid_of
from cfgen.timeline import Given, Span, make_plan
from cfgen.video.shape import VideoShape
from tests.render.film import Film

SHAPE = VideoShape(width=48, height=32)


@pytest.fixture
def run(tiny_settings: list[str], tmp_path: Path) -> Film:
    film = Film(tmp_path / "film", tiny_settings)
    film.whole()
    return film


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("given", [0, 1, 3, 7])
def test_grid_is_that_of_the_plan(given: int, shown: bool) -> None:
    plan = make_plan(8, SHAPE, given=Given(latent_frames=given, shown=shown))
    truth = [chunk.frame_start for chunk in plan if chunk.frame_start and chunk.frames]
    assert grid_of(plan).starts(plan.frames).tolist() == truth


def test_shots_are_scenes() -> None:
    plan = make_plan(8, SHAPE)
    spans = (Span(start=0, stop=6, prompt="a"), Span(start=6, stop=33, prompt="b"))
    assert grid_of(replace(plan, spans=spans)).scenes == (21,)


def test_run_folder_is_scored_with_its_chunks_and_latents(run: Film) -> None:
    found = score(run.run)
    assert found.score.grid is not None
    assert found.score.grid.starts(93).tolist() == [9, 21, 33, 45, 57, 69, 81]
    assert found.run is not None
    assert found.run.latents is not None
    files = sorted((run.run / "latents").iterdir())
    chunks = [load_file(file)["latents"][0].float().numpy() for file in files]
    truth = latent_drift(chunks)
    for name in ("shift", "spread", "detail", "to_before", "to_first"):
        ours = getattr(found.run.latents, name)
        np.testing.assert_array_equal(ours, getattr(truth, name))
    assert found.run.at_s[:3] == (0, 9 / 16, 21 / 16)
    written = write_score(found)
    assert written == run.run / "score.json" == score_file_of(run.output)
    require_own(run.run)
    assert RunFolder(run.run).finished is not None
    told = read_score(run.output)
    assert told is not None
    assert told["provenance"]["chunks_by"] == "run"  # type: ignore[index]
    assert len(told["latents"]["spread"]) == 8  # type: ignore[index]


def test_frames_between_those_that_were_made_belong_to_no_chunk(
    run: Film, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs_module._planned
    monkeypatch.setattr(runs_module, "_planned", lambda folder: (whole(folder)[0], True))
    found = score(run.output)
    assert found.run is not None
    assert found.score.grid is None
    assert found.run.latents is not None
    assert any("worked out between" in note for note in found.notes)


def test_latents_that_cannot_be_read_are_told(run: Film) -> None:
    (run.run / "latents" / "000002.safetensors").write_bytes(b"no latents")
    found = score(run.output)
    assert found.run is not None
    assert (found.run.latents, found.score.grid is None) == (None, False)
    assert any("000002.safetensors" in note for note in found.notes)
    assert score_record(found)["latents"] is None


def test_a_film_that_took_the_place_of_a_runs_is_scored_alone(run: Film) -> None:
    content = run.output.read_bytes()
    run.output.write_bytes(content + b"more")
    assert facts_of_run(run.output) is None
    other = run.folder / "other.mp4"
    shutil.copy(run.output, other)
    assert facts_of_run(other) is None
    run.output.unlink()
    with pytest.raises(InputRefused, match="is not finished"):
        film_of(run.run)
    with pytest.raises(InputRefused, match="no run folder"):
        film_of(run.folder)

"""An ffmpeg that is sure to have x264, and films of the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfgen.video.ffmpeg import Ffmpeg, find_ffmpeg
from tests.render.film import Filmed, MakeFilm


@pytest.fixture(scope="session")
def ffmpeg() -> Ffmpeg:
    import imageio_ffmpeg

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFGEN_FFMPEG", imageio_ffmpeg.get_ffmpeg_exe())
        return find_ffmpeg()


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks a segment, and a snapshot after every second chunk."""
    from cfgen.renderer.recorder import RunRecorder
    from cfgen.timeline import make_plan

    def small(*given: object, **named: object) -> object:
        return make_plan(*given, **named, segment_chunks=3)  # type: ignore[arg-type]

    monkeypatch.setattr("cfgen.pipeline.job.make_plan", small)

    def due(recorder: object) -> bool:
        vars(recorder)["asked"] = vars(recorder).get("asked", 0) + 1
        return vars(recorder)["asked"] % 2 == 0

    monkeypatch.setattr(RunRecorder, "snapshot_due", property(due))


@pytest.fixture(scope="session")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Filmed:
    return Filmed(tmp_path_factory.mktemp("filmed"))


@pytest.fixture
def film(
    small_segments: None, filmed: Filmed, tiny_settings: list[str], tmp_path: Path
) -> MakeFilm:
    """Films of small segments: `film(...)` is one to be rendered, `film.killed(5)` one half done.

    The three of `film.whole`, `film.killed` and `film.expected` are made before a test patches
    what renders.
    """
    return MakeFilm(filmed, tmp_path, tiny_settings)

"""Killed while it clears away, moved in time: what is finished stays whole, the rest goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cfgen.cli.app import app
from cfgen.cli.jobs import jobs_under
from tests.render.crash import Crash, dying
from tests.render.test_resume import Film, film, small_segments  # noqa: F401 - fixtures
from tests.render.test_resume_faults import gone_on_with

MakeFilm = Callable[..., Film]
POINTS = [i / 3 for i in range(4)]
DECADE_S = 3.2e8


def clear_away(folder: Path) -> None:
    """`jobs gc` with no budget at all."""
    result = CliRunner().invoke(app, ["jobs", "gc", str(folder), "--budget", "0"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("share", POINTS)
def test_gc_may_be_killed_anywhere(film: MakeFilm, share: float) -> None:  # noqa: F811
    counted, cut = film(), film()
    expected = counted.whole()
    cut.whole()
    with dying(counted.folder, None) as disk:
        clear_away(counted.folder)
    assert not counted.run.exists()
    with dying(cut.folder, round(share * (len(disk.changes) - 1))), suppress(Crash):
        clear_away(cut.folder)
    cut.bury()
    assert cut.output.read_bytes() == expected
    list(jobs_under(cut.folder))
    if (cut.run / "run.json").exists():
        clear_away(cut.folder)
        assert not cut.run.exists()


@pytest.mark.parametrize("share", POINTS)
def test_clean_may_be_killed_anywhere(film: MakeFilm, share: float) -> None:  # noqa: F811
    counted, cut = (film("snapshot.clean=true") for _ in range(2))
    with dying(counted.folder, None) as disk:
        expected = counted.whole()
    assert not counted.run.exists()
    removals = [i for i, what in enumerate(disk.changes) if what in ("unlink", "rmdir", "rmtree")]
    last = len(disk.changes) - 1
    at = round(removals[-6] + share * (last - removals[-6]))
    cut.folder.mkdir()
    with dying(cut.folder, at), suppress(Crash):
        cut.whole()
    cut.bury()
    if (cut.run / "run.json").exists():
        gone_on_with(cut)
    assert cut.output.read_bytes() == expected


@pytest.fixture
def moved_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float, str], None]]:
    """Moves the wall clock, and the process into another time zone."""
    now = time.time

    def move(seconds: float, zone: str) -> None:
        monkeypatch.setattr(time, "time", lambda: now() + seconds)
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("seconds", [-DECADE_S, -3600.0, 3600.0, DECADE_S])
def test_a_clock_that_jumps_changes_nothing(
    film: MakeFilm,  # noqa: F811
    moved_clock: Callable[[float, str], None],
    seconds: float,
) -> None:
    """Files of the run lie in the future or long ago; time zones differ."""
    expected, cut = film().whole(), film()
    cut.until(3)
    moved_clock(seconds, "Pacific/Kiritimati" if seconds > 0 else "Pacific/Niue")
    for path in cut.run.rglob("*"):
        os.utime(path, (time.time() - 2 * seconds, time.time() - 2 * seconds))
    assert [job.state for job in jobs_under(cut.folder)] == ["interrupted"]
    assert gone_on_with(cut) == expected

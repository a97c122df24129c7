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
from cfgen.pipeline.run_status import jobs_under
from tests.render.crash import Crash, dying
from tests.render.film import MakeFilm

POINTS = [i / 3 for i in range(4)]
DECADE_S = 3.2e8
REMOVALS = ("unlink", "rmdir", "rmtree")


def clear_away(folder: Path) -> None:
    """`jobs gc` with no budget at all."""
    result = CliRunner().invoke(app, ["jobs", "gc", str(folder), "--budget", "0"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("share", POINTS)
def test_gc_may_be_killed_anywhere(film: MakeFilm, share: float) -> None:
    counted, cut, expected = film.whole(), film.whole(), film.expected()
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
def test_clean_may_be_killed_anywhere(film: MakeFilm, share: float) -> None:
    counted, cut = film.undisturbed("snapshot.clean=true"), film("snapshot.clean=true")
    assert not counted.film.run.exists()
    removals = [i for i, what in enumerate(counted.changes) if what in REMOVALS]
    last = len(counted.changes) - 1
    at = round(removals[-6] + share * (last - removals[-6]))
    cut.folder.mkdir()
    with dying(cut.folder, at), suppress(Crash):
        cut.whole()
    cut.bury()
    if (cut.run / "run.json").exists():
        cut.gone_on_with()
    assert cut.output.read_bytes() == counted.video


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
    film: MakeFilm,
    moved_clock: Callable[[float, str], None],
    seconds: float,
) -> None:
    """Files of the run lie in the future or long ago; time zones differ."""
    expected, cut = film.expected(), film.killed(3)
    moved_clock(seconds, "Pacific/Kiritimati" if seconds > 0 else "Pacific/Niue")
    for path in cut.run.rglob("*"):
        os.utime(path, (time.time() - 2 * seconds, time.time() - 2 * seconds))
    assert [job.state for job in jobs_under(cut.folder)] == ["interrupted"]
    assert cut.gone_on_with() == expected

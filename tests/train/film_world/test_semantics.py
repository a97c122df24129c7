"""Semantic channels say what lies in a cell, and which part of it, as the picture shows it."""

import numpy as np
import pytest

from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.semantics import (
    CODE,
    KIND_CODES,
    PLACE,
    PRESENCE,
    SEMANTIC_CHANNELS,
    semantic_channels,
)
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import VIEW, Film, landmark_boxes, subject_boxes

ROWS, COLUMNS = 12, 20


@pytest.fixture(params=range(6))
def film(request: pytest.FixtureRequest) -> Film:
    return sample_film(4000 + request.param, chunks=4)


def test_each_subject_fills_its_box_with_itself(film: Film) -> None:
    """Of the last one, which hides the others: presence 2, its own code, and ramps over its box."""
    frames = range(0, film.frames, 4)
    maps = semantic_channels(film, frames, ROWS, COLUMNS)
    assert maps.shape == (len(frames), SEMANTIC_CHANNELS, ROWS, COLUMNS)
    width, height = VIEW[0] / COLUMNS, VIEW[1] / ROWS
    seen = 0
    for picture, frame in zip(maps, frames, strict=True):
        *_, last = subject_boxes(film, frame)
        x0, y0, x1, y1 = last.whole
        for row in range(ROWS):
            for column in range(COLUMNS):
                x, y = (column + 0.5) * width, (row + 0.5) * height
                if not (x0 < x < x1 and y0 < y < y1):
                    continue
                seen += 1
                said = picture[:, row, column]
                assert said[:2].tolist() == [PRESENCE, 0]
                assert said[2] == pytest.approx(PLACE * (2 * (x - x0) / (x1 - x0) - 1), abs=1e-5)
                assert said[3] == pytest.approx(PLACE * (2 * (y - y0) / (y1 - y0) - 1), abs=1e-5)
                code = KIND_CODES[SHAPES.index(last.subject.shape)]
                assert np.allclose(said[4:], CODE * code)
    assert seen > len(frames)


def test_where_there_is_nothing_all_channels_are_zero(film: Film) -> None:
    maps = semantic_channels(film, [0], ROWS, COLUMNS)[0]
    nothing = (maps[:2] == 0).all(0)
    assert (maps[:, nothing] == 0).all()
    boxes = [*landmark_boxes(film, 0), *subject_boxes(film, 0)]
    covered = sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes) / (VIEW[0] * VIEW[1])
    assert 0.3 * covered < 1 - nothing.mean() < 3 * covered


def test_a_window_shows_the_cells_of_the_whole(film: Film) -> None:
    cell = VIEW[0] / COLUMNS
    window = (4 * cell, 2 * cell, 10 * cell, 8 * cell)
    part = semantic_channels(film, [0, 4], 6, 6, window=window)
    whole = semantic_channels(film, [0, 4], ROWS, COLUMNS)
    assert np.allclose(part, whole[..., 2:8, 4:10], atol=1e-5)


def test_codes_of_kinds_are_told_apart() -> None:
    angles = KIND_CODES @ KIND_CODES.T / 2 - np.eye(len(KIND_CODES)) * 9
    assert len(KIND_CODES) == 24
    assert angles.max() == pytest.approx(0.5)

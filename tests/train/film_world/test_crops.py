"""Crops round subjects: aligned with tokens, about the subject that they name, and labelled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfgen.train.film_world.captions import COLOUR_WORDS, SHAPE_WORDS, words_of
from cfgen.train.film_world.crops import INSIDE, Crops, draw_crops
from cfgen.train.film_world.labels import WORDS
from cfgen.train.film_world.latents import FilmBatch, subject_cells
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.subjects import SHAPES

ROWS, COLUMNS = 12, 20
NOUNS = [{words_of(phrase)[-1] for phrase in SHAPE_WORDS[shape]} for shape in SHAPES]


@pytest.fixture(scope="module")
def batch() -> FilmBatch:
    """Latents whose channels tell film, latent frame, row and column."""
    films = [sample_film(seed, chunks=8) for seed in range(4)]
    frames = 3 * films[0].chunks
    axes = [torch.arange(n).float() for n in (len(films), frames, ROWS, COLUMNS)]
    latents = torch.stack(torch.meshgrid(*axes, indexing="ij"), 2)
    subjects = torch.stack([torch.from_numpy(subject_cells(f, ROWS, COLUMNS)) for f in films])
    return FilmBatch(
        films, latents, subjects.float(), torch.zeros(len(films), frames, ROWS, COLUMNS)
    )


def draw(batch: FilmBatch, count: int = 60, seed: int = 0) -> Crops:
    return draw_crops(batch, count, (8, 10), np.random.default_rng(seed))


def test_crops_are_windows_that_begin_where_tokens_do(batch: FilmBatch) -> None:
    crops = draw(batch)
    assert crops.latents.shape == (60, 1, 4, 8, 10)
    rows, columns = crops.latents[:, 0, 2, :, 0], crops.latents[:, 0, 3, 0]
    assert (rows.diff() == 1).all()
    assert (columns.diff() == 1).all()
    assert (rows[:, 0] % 2 == 0).all()
    assert (columns[:, 0] % 2 == 0).all()
    assert len(set(columns[:, 0].tolist())) > 3
    for picture, near in zip(crops.latents[:, 0], crops.subjects[:, 0], strict=True):
        film, frame, y, x = (int(picture[i, 0, 0]) for i in range(4))
        assert torch.equal(near, batch.subjects[film, frame, y : y + 8, x : x + 10])


def test_captions_name_what_the_labels_show(batch: FilmBatch) -> None:
    """A subject that is labelled in many cells is named; one that is named is labelled."""
    crops = draw(batch, 80, 1)
    for said, cells in zip(crops.captions, crops.labels.words[:, 0, 0], strict=True):
        words = set(words_of(said))
        named = {i for i, own in enumerate(NOUNS) if words & own}
        shown = {int(i) - 1 for i in cells.unique() if i}
        assert named <= shown
        assert named
        assert any(words & set(words_of(" ".join(each))) for each in COLOUR_WORDS.values())


def test_subjects_outside_are_not_named(batch: FilmBatch) -> None:
    """With several subjects in a shot, a crop's caption mostly names fewer."""
    found = [i for i in range(40) if len(sample_film(i, chunks=2).shots[0].subjects) == 3][:2]
    assert found, "no film of three subjects among the seeds"
    films = [sample_film(i, chunks=2) for i in found]
    cells = [torch.from_numpy(subject_cells(film, ROWS, COLUMNS)) for film in films]
    nothing = torch.zeros(len(films), 6, ROWS, COLUMNS)
    several = FilmBatch(films, nothing[:, :, None], torch.stack(cells).float(), nothing)
    counts = []
    for said in draw(several, 60).captions:
        counts.append(sum(bool(own & set(words_of(said))) for own in NOUNS))
    assert min(counts) >= 1
    assert 0 < INSIDE < 1
    assert sum(count == 1 for count in counts) > 20


def test_crops_are_repeatable_and_no_larger_than_the_picture(batch: FilmBatch) -> None:
    first, again, other = draw(batch), draw(batch), draw(batch, seed=1)
    assert first.captions == again.captions
    assert torch.equal(first.latents, again.latents)
    assert first.captions != other.captions
    whole = draw_crops(batch, 3, (40, 40), np.random.default_rng(0))
    assert whole.latents.shape[-2:] == (ROWS, COLUMNS)
    assert whole.labels.words.shape == (3, 1, len(WORDS), ROWS, COLUMNS)

"""Labels of latent cells agree with what the world draws, and a generator learns to tell them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfgen.model.generator import Generator, WanConfig
from cfgen.train.film_world.labels import WORDS, LabelHead, cell_labels, film_labels
from cfgen.train.film_world.latents import subject_cells
from cfgen.train.film_world.sampling import sample_film

ROWS, COLUMNS = 12, 20


@pytest.mark.parametrize("seed", range(4))
def test_labels_say_what_is_in_the_captions_and_only_there(seed: int) -> None:
    film = sample_film(seed, chunks=4)
    words, places = cell_labels(film, range(12), ROWS, COLUMNS)
    near = subject_cells(film, ROWS, COLUMNS)[:12]
    shown = {WORDS[k][i - 1] for k in (0, 1) for i in np.unique(words[:, k]) if i}
    said = {word for shot in film.shots for s in shot.subjects for word in (s.shape, s.colour)}
    assert said == shown
    in_air = ~np.isnan(places[:, 0])
    assert ((words[:, 0] > 0) == in_air).all()
    assert in_air.any()
    assert not (in_air & (near == 0)).any()
    assert np.nanmax(abs(places)) < 1


def test_a_cell_is_placed_from_left_to_right_and_from_top_to_bottom() -> None:
    film = sample_film(1, chunks=2)
    _, places = cell_labels(film, [0], ROWS, COLUMNS)
    x, y = places[0, :2]
    row, column = np.argwhere(~np.isnan(x))[0]
    across = x[row][~np.isnan(x[row])]
    down = y[:, column][~np.isnan(y[:, column])]
    assert (np.diff(across) > 0).all()
    assert (np.diff(down) > 0).all()


def test_the_head_learns_the_labels_of_a_layer_that_knows_them() -> None:
    film = sample_film(2, chunks=1)
    generator = Generator(
        WanConfig(dim=48, ffn_dim=48, num_heads=2, num_layers=2, text_len=8, text_dim=8)
    )
    head = LabelHead(generator)
    frames, tokens = range(3), ROWS * COLUMNS // 4
    hidden = torch.zeros(1, 3 * tokens, 48)
    words, _ = cell_labels(film, frames, ROWS, COLUMNS)
    by_token = words.reshape(3, len(WORDS), ROWS // 2, 2, COLUMNS // 2, 2).max((3, 5))
    hidden[0, :, : len(WORDS)] = torch.from_numpy(by_token).permute(0, 2, 3, 1).flatten(0, 2)
    labels = film_labels([film], frames, ROWS, COLUMNS)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.3)
    losses = []
    for _ in range(40):
        loss = head.loss(hidden, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_watching_ends_with_its_block() -> None:
    generator = Generator(
        WanConfig(dim=48, ffn_dim=48, num_heads=2, num_layers=2, text_len=8, text_dim=8)
    )
    with LabelHead(generator).watching(generator):
        pass
    assert not any(block._forward_hooks for block in generator.blocks)

"""Layers that tell places apart are found among those that follow time, and the tau that keeps."""

from __future__ import annotations

import numpy as np
import pytest

from cfgen.train.film_world.sampling import Structure, sample_film
from tests.bench.admission import Noted, auc, choose, find_tau, kept, shared_views, surprising

SHOTS = Structure(((0, 2, "cut"), (1, 3, "cut"), (2, 4, "cut"), (1, 2, "cut"), (0, 3, "cut")))


def noted(seed: int) -> Noted:
    """Layer 0 knows the place alone, layer 1 the time alone, layer 2 nothing."""
    rng = np.random.default_rng(seed)
    film = sample_film(seed, structure=SHOTS)
    places = [shot.place for shot in film.shots for _ in range(shot.chunks)]
    axes = rng.normal(size=(3, 16))
    knows = np.stack([axes[place] for place in places]) + 0.1 * rng.normal(size=(14, 16))
    follows = np.cumsum(rng.normal(size=(14, 16)), 0)
    keys = np.stack([knows, follows, rng.normal(size=(14, 16))])
    keys /= np.linalg.norm(keys, axis=2, keepdims=True)
    return Noted(keys, shared_views(film), frozenset({0, 2, 5, 9, 11}))


@pytest.fixture(scope="module")
def films() -> list[Noted]:
    return [noted(seed) for seed in range(8)]


def test_a_layer_that_knows_places_is_chosen(films: list[Noted]) -> None:
    assert auc(films, [0]) > 0.95
    assert auc(films, [2]) == pytest.approx(0.5, abs=0.1)
    assert choose(films) == [0]


def test_its_tau_keeps_what_comes_back(films: list[Noted]) -> None:
    tau = find_tau(films, [0], slow=6)
    share, admitted = kept(films, lambda film: surprising(film, [0], tau), slow=6)
    assert share > 0.9
    assert admitted < 0.7
    never, _ = kept(films, lambda _film: [], slow=6)
    assert never < 0.7


def test_views_are_shared_where_place_and_camera_are_the_same() -> None:
    shared = shared_views(sample_film(3, structure=SHOTS))
    assert shared.diagonal() == pytest.approx(1)
    assert shared[2, 6] == 0
    assert (shared == shared.T).all()

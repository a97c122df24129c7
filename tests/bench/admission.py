"""Which layers tell places apart, and the tau at which slow memory keeps what comes back.

    python tests/bench/admission.py MODEL --films 24

Held-out films of shots are committed as they are, and each layer's mean keys of every chunk are
noted. A layer tells places apart if two chunks that show the same place are more alike than two
that do not (AUC; 0.5 is chance). Layers are taken together as long as that grows. Admission is then
replayed on the notes: `kept` is how often, when a place comes back, a key frame that shows at least
half of it is in the sink or in slow memory. Beside it stand all layers together, each layer for
itself, the first chunk of each shot (oracle) and every fourth chunk.

Prints one JSON object; MODEL is a model folder of `cfgen train mini`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.checkpoint.networks.text_encoder import load_text_encoder
from cfgen.checkpoint.networks.vae import load_tiny
from cfgen.kernels.pages import ADMITTED, CAN_ADMIT
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.model.generator import Generator
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.vae import TinyAutoencoder
from cfgen.rollout.loop import recommit
from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.latents import CHUNK_LATENTS, encode
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.world import (
    FRAMES_PER_CHUNK,
    VIEW,
    Film,
    camera_path,
    render,
    shot_of,
)
from cfgen.train.shots import prompts_by_chunk, shot_starts
from cfgen.train.training_memory import MemorySettings, training_memory

HALF = 0.5
"""Share of a view that two frames have in common where they show the same place."""

APART = 3
"""Chunks between two that are compared, at least: nearer ones share fast memory."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Noted:
    """One film.

    Attributes:
        keys: mean keys of each chunk, [layers, chunks, C], of unit length.
        shared: share of the view that two chunks' first frames have in common, [chunks, chunks].
        starts: chunks that begin a shot.
    """

    keys: Floats
    shared: Floats
    starts: frozenset[int]

    def cosines(self, layers: Sequence[int]) -> Floats:
        """Mean cosine of chunks over some layers, [chunks, chunks]."""
        chosen = self.keys[list(layers)]
        return np.asarray((chosen @ chosen.transpose(0, 2, 1)).mean(0))


class Recorder:
    """Notes mean keys and admits the first chunk of every shot; an `Admit` op."""

    def __init__(self, layers: int, starts: frozenset[int]) -> None:
        self.keys: list[list[Tensor]] = [[] for _ in range(layers)]
        self._calls, self._starts = 0, starts

    def __call__(
        self, parts: Tensor, _reference: Tensor, decision: Tensor, *, tokens: int, **_: float
    ) -> None:
        """Decide for one layer; layers ask in turn."""
        chunk, layer = divmod(self._calls, len(self.keys))
        self._calls += 1
        self.keys[layer].append((parts.float().sum(1) / tokens)[0])
        decision[ADMITTED] = int(bool(decision[CAN_ADMIT]) and chunk in self._starts)


@torch.no_grad()
def note(
    film: Film,
    vae: TinyAutoencoder,
    generator: Generator,
    encoder: TextEncoder,
    sizes: MemorySettings,
) -> Noted:
    """Commit a film as it is and note its keys."""
    latents = encode(vae, render(film, 0, film.frames))[None]
    starts = shot_starts(film)
    recorder = Recorder(generator.geometry.num_layers, starts)
    memory = training_memory(
        SlowFastMemory(sink=sizes.sink, slow=sizes.slow, fast=sizes.fast),
        recorder,
        generator,
        (latents.shape[1], latents.shape[3], latents.shape[4]),
    )
    prompts = prompts_by_chunk(
        [film], lambda _film, shot: caption(film, shot, shot, complete=True), generator, encoder
    )
    for chunk in range(film.chunks):
        part = latents[:, CHUNK_LATENTS * chunk : CHUNK_LATENTS * (chunk + 1)]
        recommit(generator, memory, part, prompts[chunk])
    keys = np.stack([torch.stack(layer).double().numpy() for layer in recorder.keys])
    keys /= np.linalg.norm(keys, axis=2, keepdims=True)
    return Noted(keys, shared_views(film), starts)


def shared_views(film: Film) -> Floats:
    """Share of the view that the first frames of two chunks have in common, [chunks, chunks]."""
    first = np.maximum(0, FRAMES_PER_CHUNK * np.arange(film.chunks) - FRAMES_PER_CHUNK // 4)
    left = camera_path(film, film.frames)[first]
    shots = shot_of(film, film.frames)[first]
    place = np.array([film.shots[int(shot)].place for shot in shots])
    overlap = np.clip(1 - np.abs(left[:, None] - left[None]) / VIEW[0], 0, 1)
    return np.asarray(overlap * (place[:, None] == place[None]))


def auc(films: Sequence[Noted], layers: Sequence[int]) -> float:
    """How often two chunks of one place are more alike than two of different places."""
    same, other = [], []
    for film in films:
        cosines = film.cosines(layers)
        apart = np.triu(np.ones_like(cosines, bool), APART)
        same.append(cosines[apart & (film.shared >= HALF)])
        other.append(cosines[apart & (film.shared == 0)])
    alike, unlike = np.concatenate(same), np.sort(np.concatenate(other))
    return float(np.searchsorted(unlike, alike).mean() / len(unlike))


def choose(films: Sequence[Noted]) -> list[int]:
    """Layers taken together, best first, as long as the AUC grows."""
    left, chosen, best = list(range(len(films[0].keys))), list[int](), 0.0
    while left:
        score, layer = max((auc(films, [*chosen, each]), each) for each in left)
        if score <= best + 1e-3:
            break
        best = score
        chosen.append(layer)
        left.remove(layer)
    return sorted(chosen)


def surprising(film: Noted, layers: Sequence[int], tau: float) -> list[int]:
    """Chunks that the rule of variant `cfgen` admits: unlike the one that was admitted last."""
    cosines, last, admitted = film.cosines(layers), 0, []
    for chunk in range(2, len(cosines)):
        if cosines[last, chunk] < tau:
            admitted.append(chunk)
            last = chunk
    return admitted


def kept(
    films: Sequence[Noted], rule: Callable[[Noted], list[int]], slow: int
) -> tuple[float, float]:
    """How often a place that comes back is remembered, and the share of chunks admitted."""
    found, admitted, considered = [], 0, 0
    for film in films:
        chosen = rule(film)
        admitted, considered = admitted + len(chosen), considered + len(film.shared) - 2
        for chunk in range(APART, len(film.shared)):
            before = film.shared[chunk, : chunk - 1]
            if film.shared[chunk, chunk - 1] >= HALF or not (before >= HALF).any():
                continue
            remembered = [0, *[each for each in chosen if each < chunk][-slow:]]
            found.append(bool((film.shared[chunk, remembered] >= HALF).any()))
    return float(np.mean(found)), admitted / considered


def find_tau(films: Sequence[Noted], layers: Sequence[int], slow: int) -> float:
    """The threshold that keeps most; of equals, the middle one."""
    values = np.concatenate(
        [film.cosines(layers)[np.triu_indices(len(film.shared), 1)] for film in films]
    )
    candidates = np.unique(np.quantile(values, np.linspace(0.005, 0.995, 100)))
    scores = [
        kept(films, lambda film, t=t: surprising(film, layers, t), slow)[0] for t in candidates
    ]
    best = candidates[np.array(scores) == max(scores)]
    return float(best[len(best) // 2])


def figures(films: Sequence[Noted], slow: int) -> dict[str, object]:
    """Everything that is printed, but for the model's name."""
    layers = range(len(films[0].keys))
    chosen = choose(films)
    ways: dict[str, Callable[[Noted], list[int]]] = {}
    taus = {}
    for name, group in {"chosen": chosen, "all": list(layers)}.items():
        taus[name] = tau = find_tau(films, group, slow)
        ways[name] = lambda film, group=group, tau=tau: surprising(film, group, tau)
    ways["oracle"] = lambda film: [c for c in sorted(film.starts) if c >= 2]
    ways["every fourth"] = lambda film: list(range(4, len(film.shared), 4))
    results = {name: kept(films, rule, slow) for name, rule in ways.items()}
    return {
        "auc_by_layer": [round(auc(films, [layer]), 3) for layer in layers],
        "layers": chosen,
        "auc": round(auc(films, chosen), 3),
        "tau": round(taus["chosen"], 5),
        "kept": {name: round(result[0], 3) for name, result in results.items()},
        "admitted": {name: round(result[1], 3) for name, result in results.items()},
    }


def main() -> None:
    """Note, choose, replay, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--chunks", type=int, default=24)
    options = parser.parse_args()
    model: Path = options.model
    generator = load_generator(model, expand=True)
    encoder = load_text_encoder(
        model / "text_encoder",
        model / "tokenizer" / "tokenizer.json",
        text_len=generator.geometry.text_len,
        expand=True,
    )
    vae = load_tiny(model / "tae.safetensors")
    sizes = MemorySettings()
    noted = [
        note(sample_film(i, chunks=options.chunks, held_out=True), vae, generator, encoder, sizes)
        for i in range(options.films)
    ]
    sys.stdout.write(json.dumps(figures(noted, sizes.slow)) + "\n")


if __name__ == "__main__":
    main()

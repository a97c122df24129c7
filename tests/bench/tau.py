"""Finds tau, the threshold of slow memory, at which `mini` admits a wished share of its chunks.

    python tests/bench/tau.py --clips 12 --duration 20 [--set model.path=FOLDER]

Films of held-out prompts are rolled out while the keys of every commit pass are noted; admissions
are then replayed on the notes for any tau. What a film remembers changes its keys a little, so the
command also prints the share admitted while noting: run it again with the tau it found.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from torch import Tensor
from torch.nn.functional import cosine_similarity

from cfgen.build import build_source
from cfgen.cli.plan import plan_of
from cfgen.config.loader import load
from cfgen.config.schema import SlowFastMemory
from cfgen.memory.kv_cache import KVCache
from cfgen.memory.paged import PagedMemory, Surprise
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.train.captions import caption
from cfgen.train.world import sample_film

RESULTS = Path(__file__).parent / "results"


class Notes:
    """The decision of slow memory; notes every chunk's keys, the first reference in front."""

    def __init__(self, tau: float) -> None:
        self._decide = Surprise(tau)
        self.keys: list[Tensor] = []
        self.admitted = 0

    def __call__(self, reference: Tensor, keys: Tensor) -> bool:
        """Decide as a render does."""
        if not self.keys:
            self.keys.append(reference)
        self.keys.append(keys)
        decision = self._decide(reference, keys)
        self.admitted += decision
        return decision


def note_film(seed: int, duration: str, assignments: list[str]) -> tuple[list[Notes], float]:
    """Roll out one film; the notes of every layer and the tau in force."""
    prompt = caption(sample_film(seed, held_out=True), seed, complete=True)
    flags = {"prompt": prompt, "duration": duration, "seed": str(seed)}
    config = load(flags, assignments=assignments).config
    memory = config.memory
    if not isinstance(memory, SlowFastMemory):
        sys.exit("tau belongs to slow_fast memory")
    film = build_source(config, plan_of(config))
    sizes = film.generator.geometry
    notes = [Notes(memory.tau) for _ in range(sizes.num_layers)]
    tables = [
        SlowFastTable[Tensor](
            sink=memory.sink,
            slow=memory.slow,
            fast=memory.fast,
            decide=note,
            commit_reads=memory.commit_reads,
        )
        for note in notes
    ]
    noted = PagedMemory(
        tables,
        film.memory.pool,
        film.memory.ops,
        rope=film.memory.rope,
        grid=sizes.grid(film.plan.geometry.latent_height, film.plan.geometry.latent_width),
    )
    assert isinstance(noted.pool, KVCache)
    for _ in dataclasses.replace(film, memory=noted).chunks():
        pass
    return notes, memory.tau


def share(films: list[list[Notes]], tau: float) -> float:
    """Share of considered chunks that a threshold admits, over films and layers."""
    admitted = considered = 0
    for layers in films:
        for note in layers:
            reference = note.keys[0]
            for keys in note.keys[1:]:
                considered += 1
                if float(cosine_similarity(reference.float(), keys.float(), dim=-1).mean()) < tau:
                    admitted += 1
                    reference = keys
    return admitted / considered


def find_tau(films: list[list[Notes]], wished: float) -> float:
    """The threshold that admits about the wished share, to four decimals."""
    low, high = -1.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if share(films, middle) < wished else (low, middle)
    return round((low + high) / 2, 4)


def main() -> None:
    """Note, replay, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--duration", default="20s")
    parser.add_argument("--share", type=float, default=1 / 3)
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    arguments = parser.parse_args()
    films, tau = [], 0.0
    for seed in range(arguments.clips):
        notes, tau = note_film(seed, arguments.duration, arguments.assignments)
        films.append(notes)
    considered = sum(len(note.keys) - 1 for layers in films for note in layers)
    noted = sum(note.admitted for layers in films for note in layers) / considered
    found = find_tau(films, arguments.share)
    by_layer = [
        round(share([[layers[i]] for layers in films], found), 3) for i in range(len(films[0]))
    ]
    figures = {
        "tau_while_noting": tau,
        "share_while_noting": round(noted, 4),
        "wished_share": round(arguments.share, 4),
        "tau": found,
        "share_by_layer": by_layer,
        "clips": arguments.clips,
        "duration": arguments.duration,
    }
    text = json.dumps(figures, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tau.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()

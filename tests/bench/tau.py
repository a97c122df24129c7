"""Finds tau, the threshold of slow memory, at which `mini` admits a wished share of its chunks.

    python tests/bench/tau.py --clips 12 --duration 20 [--set model.path=FOLDER]

Films of held-out prompts are rolled out while the keys of every commit pass are noted; admissions
are then replayed on the notes for any tau. What a film remembers changes its keys a little, so the
command also prints the share admitted while noting: run it again with the tau it found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from kept import RESULTS, keep
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cfgen.config.loader import load
from cfgen.config.schema import SlowFastMemory
from cfgen.kernels.pages import ADMITTED_NOW, CAN_ADMIT
from cfgen.pipeline.build import build_source
from cfgen.pipeline.job import RenderJob
from cfgen.train.captions import caption
from cfgen.train.world import sample_film


class Notes:
    """The op that decides on key frames; notes what every layer was asked about.

    Layers ask in turn, once a commit pass.

    Attributes:
        keys: By layer, the first reference and then the keys of every chunk that was considered,
            [B, C] each.
        admitted: Chunks that were admitted, over all layers.
    """

    def __init__(self, admit: Callable[..., None], layers: int) -> None:
        self._admit, self._calls = admit, 0
        self.keys: list[list[Tensor]] = [[] for _ in range(layers)]
        self.admitted = 0

    def __call__(
        self, parts: Tensor, reference: Tensor, decision: Tensor, *, tokens: int, tau: float
    ) -> None:
        """Decide as a render does."""
        noted = self.keys[self._calls % len(self.keys)]
        self._calls += 1
        if decision[CAN_ADMIT]:
            noted += [] if noted else [reference.clone()]
            noted.append(parts.sum(1) / tokens)
        self._admit(parts, reference, decision, tokens=tokens, tau=tau)
        self.admitted += int(decision[ADMITTED_NOW])


def note_film(seed: int, duration: str, assignments: list[str]) -> tuple[Notes, float]:
    """Roll out one film; its notes and the tau in force."""
    prompt = caption(sample_film(seed, held_out=True), seed, complete=True)
    flags = {"prompt": prompt, "duration": duration, "seed": str(seed)}
    config = load(flags, assignments=assignments).config
    memory = config.memory
    if not isinstance(memory, SlowFastMemory) or memory.variant != "cfgen":
        sys.exit("only variant cfgen of slow_fast compares with the last admitted key frame")
    film = build_source(RenderJob(config))
    notes = Notes(film.memory.admit, film.generator.geometry.num_layers)
    film.memory.admit = notes
    for _ in film.make(range(film.plan.chunks)):
        pass
    return notes, memory.tau


def share(noted: list[list[Tensor]], tau: float) -> float:
    """Share of considered chunks that a threshold admits, over the notes of films and layers."""
    admitted = considered = 0
    for reference, *chunks in noted:
        for keys in chunks:
            considered += 1
            if float(cosine_similarity(reference, keys, dim=-1).mean()) < tau:
                admitted += 1
                reference = keys
    return admitted / considered


def find_tau(noted: list[list[Tensor]], wished: float) -> float:
    """The threshold that admits about the wished share, to four decimals."""
    low, high = -1.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if share(noted, middle) < wished else (low, middle)
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
    noted = [keys for notes in films for keys in notes.keys]
    considered = sum(len(keys) - 1 for keys in noted)
    found = find_tau(noted, arguments.share)
    layers = zip(*(notes.keys for notes in films), strict=True)
    by_layer = [round(share(list(keys), found), 3) for keys in layers]
    figures = {
        "tau_while_noting": tau,
        "share_while_noting": round(sum(n.admitted for n in films) / considered, 4),
        "wished_share": round(arguments.share, 4),
        "tau": found,
        "share_by_layer": by_layer,
        "clips": arguments.clips,
        "duration": arguments.duration,
    }
    keep(RESULTS / "tau.json", figures)


if __name__ == "__main__":
    main()

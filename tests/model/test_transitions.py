"""Where a prompt changes: against what the published code computed on the same weights."""

from __future__ import annotations

import pytest
import torch

from cfgen.memory.transitions import Transition
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator
from tests.golden.cases import SWITCHES, load_case, paged, switch, tiny_generator

FLOAT32 = 2e-5

CASES = {name: load_case(name) for name in SWITCHES}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny_generator()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", SWITCHES)
def test_recorded_clip_is_reproduced(name: str, backend: str, generator: Generator) -> None:
    case, (table, at, transition) = CASES[name], SWITCHES[name]
    played = switch(case, generator, paged(table, backend=backend), at, transition)
    assert played.error(case) < FLOAT32
    traced = [
        played.x0[4 * chunk + step] for chunk in case.facts["trace_chunks"] for step in range(4)
    ]
    expected = case.tensors["trace/x0"].flatten(0, 1)
    assert float((torch.cat(traced) - expected).abs().max()) < FLOAT32


MISTAKES: dict[str, tuple[str, Transition, bool, float | None]] = {
    "no recache": ("ll_switch_global_sink", "continue", True, 1.97e-1),
    "the sink committed again": ("ll_switch_global_sink", "recache", False, 4.14e-1),
    "an empty memory": ("ll_switch_global_sink", "fresh", True, None),
    "far away in time": ("ir_flush", "cut", True, None),
}
"""Case, transition, whether the sink stays, and the recorded error of such a mistake."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake: str, generator: Generator) -> None:
    name, transition, global_sink, expected = MISTAKES[mistake]
    size, sink, relative = (6, 1, True) if name == "ir_flush" else (12, 3, False)
    positions = "relative" if relative else "absolute"
    memory = paged(
        lambda: WindowTable(size, sink=sink, positions=positions, global_sink=global_sink)
    )
    error = switch(CASES[name], generator, memory, SWITCHES[name][1], transition).error(CASES[name])
    assert error > 0.05
    if expected is not None:
        assert error == pytest.approx(expected, rel=0.01)


def test_a_cut_differs_from_a_flush_as_recorded(generator: Generator) -> None:
    """The recorded difference of the two, rms by chunk after the cut."""
    case, (table, at, _) = CASES["ir_flush"], SWITCHES["ir_flush"]
    flush, cut = (
        switch(case, generator, paged(table), at, transition).latents
        for transition in ("flush", "cut")
    )
    chunks = (cut - flush).square().mean((0, 2, 3, 4)).unflatten(0, (-1, 3)).mean(1).sqrt()
    assert not chunks[:at].any()
    recorded = torch.tensor([0.14, 0.023, 0.005, 0.001])
    torch.testing.assert_close(chunks[at : at + 4], recorded, atol=0.0005, rtol=0.04)

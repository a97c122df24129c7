"""Whole films on the simulated GPU: the numbers of the CPU, and what makes the host wait a chunk.

`tests/golden/simulated_gpu.txt` has a line for each film: what its last chunk waited for, from its
beginning until its frames were there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.render.film import FOUR_SHOTS, MEMORIES
from tests.simulated.films import Made, film, source_of
from tests.simulated.gpu import SimulatedGpu, told

WINDOW, RELEASE = MEMORIES["window-relative"], MEMORIES["release"]
FILMS: Mapping[str, Sequence[str]] = {
    **MEMORIES,
    "inverted": [
        "preset=framepack-inverted",
        f"begin.image={ROOT / 'presets' / 'mini-sheet.png'}",
        f"begin.last_image={ROOT / 'presets' / 'mini-sheet.png'}",
    ],
    "one shot with guidance": [*WINDOW, "schedule.guidance=2"],
    "layers that decide together": [*MEMORIES["cfgen"], "memory.admission_layers=[0, 1]"],
    "four shots": [*WINDOW, FOUR_SHOTS],
    "four shots, release": [*RELEASE, FOUR_SHOTS],
    **{
        f"{name}, pages in {storage}": [*memory, f"memory.kv_cache={storage}"]
        for storage in ("bf16", "int8", "fp8")
        for name, memory in (("window", WINDOW), ("release", RELEASE))
    },
    **{
        f"{name}, {level} in main memory": [*memory, f"placement.offload={level}"]
        for level in ("blocks", "all")
        for name, memory in (("window", WINDOW), ("release", RELEASE))
    },
    "release, all in main memory, pages in fp8": [
        *RELEASE,
        "placement.offload=all",
        "memory.kv_cache=fp8",
    ],
    "relax, all in main memory": [*MEMORIES["relax"], "placement.offload=all"],
    "bfloat16": [*WINDOW, "dtype=bfloat16"],
    "tiles": [*WINDOW, "model.sizes=[160x160]", "model.vae_tile=16"],
}
GOLDEN = Path(__file__).parents[1] / "golden" / "simulated_gpu.txt"


def require_same(made: Made, right: Made, settings: Sequence[str]) -> None:
    """Require the film that the CPU makes, as far as two orders of adding are the same."""
    narrow = "dtype=bfloat16" in settings
    assert made.distance(right) < (2e-2 if narrow else 1e-5)
    for ours, theirs in zip(made.frames, right.frames, strict=True):
        assert ours.shape == theirs.shape
        apart = np.abs(ours.astype(int) - theirs.astype(int))
        assert apart.max() <= (30 if narrow else 1)


@pytest.mark.parametrize("name", FILMS)
def test_a_film_is_the_one_of_the_cpu(
    name: str,
    tiny_model: Path,
    gpu: SimulatedGpu,
    waits_of: Callable[[str, str], None],
) -> None:
    settings = ["backend=torch", *FILMS[name]]
    made = film(source_of(tiny_model, settings), gpu)
    assert made.latents[-1].device == torch.device("cuda:0")
    alone = [each for each in settings if not each.startswith("placement")]
    require_same(made, film(source_of(tiny_model, alone, device="cpu")), settings)
    waits_of(name, told(made.waits[-1] + made.decoding[-2]))


@pytest.fixture
def waits_of(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare what a film waits for with its line; `--update-golden` rewrites that."""

    def check(name: str, waits: str) -> None:
        lines = dict(line.split(": ", 1) for line in GOLDEN.read_text().splitlines())
        if request.config.getoption("--update-golden"):
            lines = {key: lines.get(key, "") for key in FILMS} | {name: waits}
            GOLDEN.write_text("".join(f"{key}: {line}\n" for key, line in lines.items()))
        assert lines.get(name) == waits, "see --update-golden"

    return check


def test_the_table_has_a_line_for_each_film() -> None:
    assert [line.split(": ")[0] for line in GOLDEN.read_text().splitlines()] == list(FILMS)

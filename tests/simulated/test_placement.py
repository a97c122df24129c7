"""A GPU of a stated size: what is chosen for it fits it, and what is kept of a film is whole."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from cfgen.errors import BudgetError
from cfgen.pipeline.memory_estimate import estimate_memory
from cfgen.pipeline.offload_plan import LEVELS
from tests.render.film import MEMORIES, Film
from tests.simulated.films import film, job_of, source_of
from tests.simulated.gpu import CONTEXT, SimulatedGpu

SETTINGS = [*MEMORIES["window-relative"], "backend=torch", "model.sizes=[160x96]"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_film_fits_the_memory_that_its_level_is_chosen_for(
    level: str, tiny_model: Path, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = estimate_memory(job_of(tiny_model, SETTINGS))
    gc.collect()  # what films before it held would be given back in the midst of this one
    before = gpu.allocated  # tables that are kept for good; here, as if another process had them
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device=None: gpu.allocated - before)
    gpu.vram = sizes.vram(level) + before
    source = source_of(tiny_model, SETTINGS)
    why = next(note for note in source.notes if "GPU" in note or "main memory" in note)
    assert why.startswith(
        {
            "none": "everything on the GPU",
            "blocks": "the blocks' weights wait in main memory",
            "all": "the blocks' weights and the KV cache wait in main memory",
        }[level]
    )
    assert source.memory.pool.is_offloaded == (level == "all")
    gpu.forget_peak()
    film(source, gpu)
    assert gpu.peak + CONTEXT - before <= sizes.vram(level)


def test_a_film_that_fits_no_level_is_refused_before_anything_is_loaded(
    tiny_model: Path, gpu: SimulatedGpu
) -> None:
    gpu.vram = CONTEXT + 1000
    with pytest.raises(BudgetError, match="does not fit"):
        source_of(tiny_model, SETTINGS)


@pytest.mark.parametrize(
    ("memory", "level"), [("window-relative", "none"), ("release", "all"), ("relax", "all")]
)
def test_a_film_that_was_stopped_goes_on_as_it_would_have(
    memory: str, level: str, tiny_settings: list[str], gpu: SimulatedGpu, tmp_path: Path
) -> None:
    """Snapshots are saved from the device, or from pinned memory, and restored to it."""
    settings = [*tiny_settings, *MEMORIES[memory], "device=cuda", "backend=torch"]
    settings += [f"placement.offload={level}"]
    whole, stopped = (Film(tmp_path / name, settings) for name in ("whole", "stopped"))
    whole.whole()
    stopped.until(5)
    assert list((stopped.run / "snapshots").glob("*.json"))
    assert stopped.gone_on_with() == whole.video
    assert torch.cuda.is_available()

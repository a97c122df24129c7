"""A process that trains on the simulated GPU: torch must find one when it is imported.

    python tests/simulated/training.py LIBRARY FOLDER

prints the figures of each step and what it made the host wait for, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import types
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 2


def figures(folder: Path, after_step=lambda: None) -> list[dict[str, float]]:
    """Train the tiny generator and text encoder for some steps, where torch finds best."""
    import torch

    from cfgen.model.vae import TinyAutoencoder
    from cfgen.train.export import Exporter
    from cfgen.train.film_world.latents import LatentStore
    from cfgen.train.flow_matching_stage import FlowMatchingStage
    from cfgen.train.loop import train
    from cfgen.train.stage import LoopSettings
    from cfgen.train.tokenizer_stage import train_tokenizer
    from cfgen.train.training_memory import MemorySettings
    from tests.train.test_stages import BASE

    torch.manual_seed(0)
    vae = TinyAutoencoder(4, 8, (8, 8, 8, 8))
    store = LatentStore(folder / "latents", vae, width=80, height=48)
    tokenizer = train_tokenizer(folder / "model", captions=300)
    stage = FlowMatchingStage(BASE, MemorySettings(), store, tokenizer, Exporter(folder))
    settings = LoopSettings(steps=STEPS, precision="no", log_every=1)
    found = []
    for progress in train(stage, folder / "work", settings, minutes=30):
        found.append({key: float(value) for key, value in progress.figures.items()})
        after_step()
    device = next(stage.modules.parameters()).device.type
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")
    return found


def main() -> None:
    library, folder = map(Path, sys.argv[1:])
    sys.path.pop(0)
    tests = types.ModuleType("tests")
    tests.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = tests
    torch_folder = Path(str(find_spec("torch").origin)).parent / "lib"
    ctypes.CDLL(str(torch_folder / "libtorch_global_deps.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))

    import pytest

    from tests.simulated.gpu import SimulatedGpu, told

    gpu, waits = SimulatedGpu(library, pytest.MonkeyPatch()), []
    found = figures(folder, lambda: waits.append(told(gpu.counted())))
    gpu.close()
    sys.stdout.write(json.dumps({"figures": found, "waits": waits}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the engine of gradients cannot end the threads of a device that is not there


if __name__ == "__main__":
    main()

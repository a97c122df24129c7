"""What all tests share: a clean environment, golden texts, GPU skips, a tiny model folder."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.checkpoint import tiny

ROOT = Path(__file__).parent.parent

# Workers of pytest-xdist share the processors. If each had as many threads as there are processors,
# threads would wait for one another: tests of a second have then taken half a minute. So each has a
# processor to itself, and so have the processes that it starts.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})

# How long an example takes says more of what else runs on the machine than of cfgen.
hypothesis.settings.register_profile("cfgen", deadline=None)
hypothesis.settings.load_profile("cfgen")

# `python -m pytest` puts the checkout first on the path, where the folder `kernels` would pass for
# PyPI's `kernels`, which transformers looks for. Tests use the installed cfgen.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden text files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and there is none"))


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """Keep the settings and the caches of whoever runs the tests out of them."""
    for name in list(os.environ):
        if name.startswith(("CFGEN_", "HF_", "HUGGINGFACE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "no-hub"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Have each test begin with the same number of threads; a render sets the process's own."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model folder of random weights, written as training writes one."""
    import torch

    from cfgen.train.export import Exporter
    from cfgen.train.film_world.latents import LatentStore
    from cfgen.train.flow_matching_settings import FlowMatchingSettings
    from cfgen.train.flow_matching_stage import FlowMatchingStage
    from cfgen.train.tokenizer_stage import train_tokenizer
    from cfgen.train.training_memory import MemorySettings
    from cfgen.train.vae_stage import VaeSettings, VaeStage

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = train_tokenizer(folder, captions=300)
    widths = VaeSettings(
        texture_channels=8,
        encoder_width=8,
        decoder_widths=(16, 8, 8, 8),
        patch_size=1,
        crop=(32, 32),
        frames=5,
        films=1,
    )
    vae = VaeStage(widths, folder)
    with torch.no_grad():  # training starts from grey
        vae.vae.get_parameter("decoder.22.weight").mul_(10)
    vae.export(dict(vae.modules.named_parameters()))
    sizes = FlowMatchingSettings(
        dim=24,
        ffn_dim=32,
        num_heads=2,
        num_layers=2,
        text_dim=16,
        text_layers=1,
        text_ffn=16,
    )
    store = LatentStore(folder.parent / "latents", vae.vae)
    memory = MemorySettings(far_share=0.1, framepack_share=0.1)  # so that it has larger patches
    base = FlowMatchingStage(sizes, memory, store, tokenizer, Exporter(folder, recipe="mini"))
    with torch.no_grad():  # what starts at zero would hide prompt and memory from the frames
        for parameter in base.modules.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    base.export(dict(base.modules.named_parameters()))
    return folder


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tiny.Tiny]:
    """One of the files in `tests.checkpoint.tiny.NAMES`, written when it is asked for first."""
    from tests.checkpoint import tiny

    place = tmp_path_factory.mktemp("tiny-files")
    return functools.cache(lambda name: tiny.write(name, place))


@pytest.fixture
def tiny_settings(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Values for `--set` to render with `tiny_model`: small, in two steps, with a sure ffmpeg."""
    import imageio_ffmpeg

    monkeypatch.setenv("CFGEN_FFMPEG", imageio_ffmpeg.get_ffmpeg_exe())
    return [
        f"model.path={tiny_model}",
        "model.sizes=[48x32, 160x96]",
        "schedule.timesteps=[1000, 500]",
        "schedule.guidance=1",
        "threads=1",
    ]


@pytest.fixture
def own_accelerator() -> Iterator[None]:
    """Accelerate keeps the first precision of a process; leave none to other tests."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def golden_text(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with `tests/golden/NAME`; `--update-golden` rewrites the file instead."""

    def check(name: str, text: str) -> None:
        file = ROOT / "tests" / "golden" / name
        if request.config.getoption("--update-golden"):
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8"), f"{name} differs; see --update-golden"

    return check

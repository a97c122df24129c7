"""The simulated device for the tests of this folder, which skip where it cannot be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulated.build import NoCompilerError, built
from tests.simulated.gpu import SimulatedGpu


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The device, compiled; it is kept in pytest's cache."""
    cache = getattr(request.config, "cache", None)
    folder = tmp_path_factory.mktemp("device") if cache is None else cache.mkdir("simulated-gpu")
    try:
        return built(folder)
    except NoCompilerError as error:
        pytest.skip(f"the simulated GPU cannot be had: {error}")


@pytest.fixture
def gpu(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedGpu]:
    """A GPU of 80 GiB; what it finds wrong at the end fails the test."""
    with monkeypatch.context() as patch:
        device = SimulatedGpu(library, patch)
        yield device
        device.close()

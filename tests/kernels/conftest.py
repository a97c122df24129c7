"""Kernels run on the GPU where there is one, and elsewhere in Triton's interpreter, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:

    class Skipped(pytest.Module):
        """A file of tests that is not even imported."""

        def collect(self):
            pytest.skip("Triton is not installed; it is available on Linux only")

    def pytest_pycollect_makemodule(module_path, parent):
        return Skipped.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def interpreted(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Without a GPU, have kernels and those of the test's own file interpreted.

    TRITON_INTERPRET is set during the test alone: elsewhere it would offer kernels on a CPU.
    """
    if device.type == "cuda":
        yield
        return
    from tests.kernels import interpreter

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreter.install(request.module)
    with np.errstate(all="ignore"):  # a GPU warns of no NaN either
        yield

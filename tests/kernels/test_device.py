"""Which devices run Triton kernels, and why others do not."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from cfgen.kernels.device import capability, processors, unsupported_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def as_if(monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], hip: str | None = None) -> None:
    """A GPU of that compute capability, with 108 multiprocessors."""
    properties = SimpleNamespace(multi_processor_count=108)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.version, "hip", hip)


@pytest.mark.parametrize(
    ("found", "number"), [((8, 0), 80), ((8, 9), 89), ((9, 0), 90), ((12, 1), 121)]
)
def test_gpus_from_sm_80_on_are_supported(
    found: tuple[int, int], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if(monkeypatch, found)
    assert unsupported_device(CUDA) is None
    assert capability(CUDA) == number
    assert processors(CUDA) == 108


def test_older_gpus_are_named_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(monkeypatch, (7, 5))
    reason = str(unsupported_device(CUDA))
    assert "compute capability 8.0 or newer" in reason
    assert "Some GPU has 7.5" in reason


def test_gpus_of_amd_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(monkeypatch, (9, 4), hip="7.0")
    assert "AMD" in str(unsupported_device(CUDA))


def test_a_cpu_interprets_only_if_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert unsupported_device(CPU) is None
    assert capability(CPU) == 0
    assert processors(CPU) > 0
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "need a CUDA device, not cpu" in str(unsupported_device(CPU))
    assert "not mps" in str(unsupported_device(torch.device("mps")))


def test_without_triton_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "Triton is not installed" in str(unsupported_device(CUDA))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "need a CUDA device" in str(unsupported_device(CPU)), "there it does not matter"


def test_a_cpu_is_refused_without_importing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    told = (
        "import sys, torch; from cfgen.kernels.device import unsupported_device\n"
        "assert unsupported_device(torch.device('cpu'))\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", told], check=True)

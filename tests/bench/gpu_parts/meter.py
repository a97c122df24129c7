"""Reads the card's clock and power while it works, and tells what the machine is. Sets nothing."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

COMMAND = ("nvidia-smi", "dmon", "-s", "pc", "-d", "1")
"""One line a second: power in watts, temperature and clocks in MHz."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the card reported at a moment of the monotonic clock."""

    at: float
    power_w: float
    clock_mhz: float


def parse(lines: Iterable[str]) -> Iterator[tuple[float, float]]:
    """Power and clock of the lines of dmon, whose columns its first heading names."""
    columns: list[str] = []
    for line in lines:
        if line.startswith("#"):
            columns = columns or line.lstrip("# ").split()
            continue
        values = dict(zip(columns, line.split(), strict=False))
        try:
            yield float(values["pwr"]), float(values["pclk"])
        except (KeyError, ValueError):
            continue


@dataclass
class Meter:
    """Keeps what `nvidia-smi dmon` reports, from a thread, as long as it is open.

    Attributes:
        log: File that its lines are added to, if any.
        command: What reports.
    """

    log: Path | None = None
    command: tuple[str, ...] = COMMAND
    readings: list[Reading] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> Meter:
        if shutil.which(self.command[0]) is None:
            return self
        ours, theirs = os.openpty()  # into a pipe it would write a page at a time
        self._process = subprocess.Popen(self.command, stdout=theirs, stdin=subprocess.DEVNULL)
        os.close(theirs)
        self._thread = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._thread is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()

    def between(self, began: float, ended: float) -> dict[str, Any]:
        """Medians of the time between two moments, with the lowest clock; empty if not read."""
        found = [each for each in self.readings if began <= each.at <= ended]
        if not found:
            return {}
        return {
            "power_w": statistics.median(each.power_w for each in found),
            "clock_mhz": statistics.median(each.clock_mhz for each in found),
            "lowest_clock_mhz": min(each.clock_mhz for each in found),
        }

    def _read(self, terminal: int) -> None:
        for power, clock in parse(self._lines(terminal)):
            self.readings.append(Reading(time.monotonic(), power, clock))

    def _lines(self, terminal: int) -> Iterator[str]:
        with open(terminal, encoding="utf-8") as lines, suppress(OSError):  # as the command ends
            for line in lines:
                if self.log is not None:
                    with self.log.open("a", encoding="utf-8") as out:
                        out.write(line)
                yield line


def facts(device: torch.device) -> dict[str, Any]:
    """The machine and what runs on it."""
    names = ("torch", "triton", "diffusers", "sageattention", "flashinfer-python", "numpy")
    told: dict[str, Any] = {
        "device": "cpu",
        "python": platform.python_version(),
        "versions": {name: found for name in names if (found := _version(name))},
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        told |= {
            "device": card.name,
            "multiprocessors": card.multi_processor_count,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return told


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

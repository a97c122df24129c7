"""A case: contestants that do the same work, checked and then timed by turns in one process."""

from __future__ import annotations

import functools
import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from cfgen.bench.clock import distance, synchronize
from gpu_parts.meter import Meter
from gpu_parts.sizes import Sizes
from gpu_parts.store import Record, Store
from gpu_parts.timing import Call, Timer, first_line, spread


class Refused(Exception):
    """A contestant cannot run here, for the reason that it tells."""


class DeviceLost(Exception):
    """A contestant left the device unusable for this process."""


class Unit(Protocol):
    """Whatever is measured in one go and stored under a key."""

    @property
    def slice(self) -> str:
        """The slice it belongs to."""

    @property
    def name(self) -> str:
        """Tells it from the others."""

    @property
    def key(self) -> str:
        """Both."""

    @property
    def seconds(self) -> float:
        """How long it is expected to take."""

    def run(self, bench: Bench, code: str) -> Record:
        """Measure and store it."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to do a case's work.

    Attributes:
        name: Short: it heads a column.
        prepare: Takes an input set and gives the call that is timed. What it does is not timed.
        tolerance: Largest relative error to the truth; None if the error is only told.
        like: A contestant before it and a factor: so many times that one's error is allowed too.
        ceiling: The ceiling that its rate is a share of; see `ceilings`.
        graph: Whether a CUDA graph may be made of its calls.
        poison: Whether its outputs start as NaN when they are checked. Not for compiled functions:
            they would be compiled twice.
        after: What to record of it after timing.
    """

    name: str
    prepare: Callable[[Any], Call]
    tolerance: float | None
    like: tuple[str, float] | None = None
    ceiling: str | None = None
    graph: bool = True
    poison: bool = False
    after: Callable[[Call], Record] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size of one slice.

    Attributes:
        slice: The slice it belongs to.
        name: Tells it from the others.
        inputs: Makes an input set from a random generator.
        truth: Of an input set, in float64; None where nothing is compared.
        error: Relative error, of an input set, a contestant's output and the truth.
        contestants: In the order in which they take turns.
        baselines: Contestants that the others are compared with.
        flops: Floating-point operations of one call, 0 where bytes count.
        nbytes: Bytes that one call must read and write.
        sets: Input sets.
        seconds: How long it is expected to take.
        about: Whatever else a reader should know.
    """

    slice: str
    name: str
    inputs: Callable[[torch.Generator], Any]
    truth: Callable[[Any], Any] | None = None
    error: Callable[[Any, Any, Any], float] | None = None
    contestants: Sequence[Contestant]
    baselines: tuple[str, ...] = ()
    flops: float = 0
    nbytes: float = 0
    sets: int = 3
    seconds: float = 10
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.slice}/{self.name}"

    def run(self, bench: Bench, code: str) -> Record:
        """Check and time its contestants; see `Bench.measure`."""
        return bench.measure(self, code)


@dataclass(kw_only=True)
class Bench:
    """What every measurement needs.

    Attributes:
        rehearsal: Whether this only proves that the code runs.
        ceilings: Rates measured in this process, by name.
    """

    device: torch.device
    dtype: torch.dtype
    sizes: Sizes
    store: Store
    meter: Meter
    rehearsal: bool
    ceilings: dict[str, float] = field(default_factory=dict)

    def measure(self, case: Case, code: str) -> Record:
        """Check and time a case's contestants, and store what was found.

        Raises:
            DeviceLost: one of them broke the device; it is not run again.
        """
        about = {
            "sets": case.sets,
            "flops": case.flops,
            "nbytes": case.nbytes,
            "baselines": list(case.baselines),
            **case.about,
        }
        return self.record(case, code, lambda seed: {**about, **self._contest(case, code, seed)})

    def record(self, unit: Unit, code: str, measure: Callable[[int], Record]) -> Record:
        """Store what a measurement with a fresh seed found, with what is told of all of them."""
        seed, began = int(torch.randint(2**31, ())), time.monotonic()
        found = measure(seed)
        record = {
            "slice": unit.slice,
            "name": unit.name,
            "code": code,
            "run": self.store.run()["number"],
            "rehearsal": self.rehearsal,
            "seed": seed,
            **self.meter.between(began, time.monotonic()),
            "seconds": round(time.monotonic() - began, 2),
            **found,
        }
        self.store.put(unit.key, record)
        self.clear()
        return record

    def clear(self) -> None:
        """Give memory back between two cases."""
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def generator(self, seed: int) -> torch.Generator:
        """A random generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def _contest(self, case: Case, code: str, seed: int) -> Record:
        found: list[Record] = [{"name": each.name} for each in case.contestants]
        given: list[Any] = []
        failed: Record = {}

        def inputs() -> Record:
            sets = [case.inputs(self.generator(seed + index)) for index in range(case.sets)]
            given.extend([sets, case.truth(sets[0]) if case.truth else None])
            return {}

        self.guarded(case, "inputs", code, failed, inputs)
        if failed:
            return {"contestants": [entry | failed for entry in found]}
        self._turns(case, code, found, *given)
        return {"contestants": found}

    def _turns(
        self, case: Case, code: str, found: list[Record], sets: list[Any], truth: object
    ) -> None:
        """Check all contestants, time them by turns, and tell their rates."""
        timers: dict[str, Timer] = {}
        times: dict[str, list[float]] = {each.name: [] for each in case.contestants}

        def ready(contestant: Contestant) -> Record:
            timers[contestant.name], facts = self._checked(case, contestant, sets, truth, found)
            return facts

        def timed(contestant: Contestant) -> Record:
            times[contestant.name].append(timers[contestant.name].round(self.sizes.round_s))
            return {}

        def told(contestant: Contestant) -> Record:
            timer, after = timers[contestant.name], contestant.after
            facts = self._rates(case, contestant, times[contestant.name])
            facts |= {"graph": timer.graphed} | ({"note": timer.note} if timer.note else {})
            return facts | (after(timer.calls[0]) if after else {})

        for step in (ready, *[timed] * self.sizes.rounds, told):
            for contestant, entry in zip(case.contestants, found, strict=True):
                work = functools.partial(step, contestant)
                self.guarded(case, contestant.name, code, entry, work)

    def _checked(
        self,
        case: Case,
        contestant: Contestant,
        sets: list[Any],
        truth: object,
        found: list[Record],
    ) -> tuple[Timer, Record]:
        """A contestant, ready to be timed, and its error, which is allowed."""
        calls = [contestant.prepare(each) for each in sets]
        with poisoned() if contestant.poison else nullcontext():
            output = calls[0]()
        self.synchronize()
        facts: Record = {}
        if case.error is not None:
            facts["error"] = error = case.error(sets[0], output, truth)
            if not math.isfinite(error):
                raise Refused("wrong: its output is not finite everywhere")
            if (allowed := _allowed(contestant, found)) is not None:
                facts["allowed"] = allowed
                if error > allowed:
                    raise Refused(f"wrong: relative error {error:.2g}, {allowed:.2g} allowed")
        del output
        return Timer(calls, self.device, graph=contestant.graph), facts

    def synchronize(self) -> None:
        """Wait for the device, so that its errors show."""
        synchronize(self.device)

    def guarded(
        self, unit: Unit, name: str, code: str, entry: Record, work: Callable[[], Record]
    ) -> None:
        """Add to `entry` what a contestant's work gives, or why it cannot work.

        Raises:
            DeviceLost: it took the device with it.
        """
        if "refused" in entry:
            return
        if (reason := self.store.broken(unit.key, name, code)) is not None:
            entry["refused"] = f"left out: {reason}"
            return
        self.store.running(unit.key, name, code)
        try:
            entry |= work()
            self.synchronize()
        except Refused as refused:
            entry["refused"] = str(refused)
        except Exception as failed:  # whatever a peer raises, the others are still measured
            entry["refused"] = first_line(failed)
            try:
                self.synchronize()
            except Exception as lost:
                reason = first_line(lost)
                self.store.blame(unit.key, name, code, reason, sure=True)
                raise DeviceLost(f"{unit.key}, {name}: {reason}") from failed
            self.clear()

    def _rates(self, case: Case, contestant: Contestant, times: list[float]) -> Record:
        ms = statistics.median(times)
        found: Record = {"ms": ms, "spread": spread(times), "rounds_ms": times}
        if work := case.flops or case.nbytes:
            found["tera_per_s"] = work / ms / 1e9
            if (ceiling := self.ceilings.get(contestant.ceiling or "")) is not None:
                found["percent"] = 100 * found["tera_per_s"] / ceiling
                found["ceiling"] = contestant.ceiling
        return found


def _allowed(contestant: Contestant, found: list[Record]) -> float | None:
    """The largest error of a contestant; of those before it the errors are known."""
    if contestant.like is None or contestant.tolerance is None:
        return contestant.tolerance
    like, factor = contestant.like
    others = [factor * entry.get("error", 0) for entry in found if entry["name"] == like]
    return max([contestant.tolerance, *others])


@contextmanager
def poisoned() -> Iterator[None]:
    """Have every tensor that is created empty hold NaN, so that what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # only the filling is wanted
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative L2 distance in float64; infinite if anything found is not finite."""
    if found.shape != truth.shape:
        raise Refused(f"wrong: shape {list(found.shape)}, not {list(truth.shape)}")
    if not bool(torch.isfinite(found.double()).all()):
        return float("inf")
    return distance(found, truth)

"""The GPU benchmark: that it runs, what it refuses, keeps and goes on with. No GPU needed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # as if gpu.py were the script that runs

from gpu_parts import report  # noqa: E402
from gpu_parts.case import Bench, Case, Contestant, DeviceLost, Refused, poisoned  # noqa: E402
from gpu_parts.meter import Meter  # noqa: E402
from gpu_parts.sizes import REAL, TINY  # noqa: E402
from gpu_parts.store import Store  # noqa: E402

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is available on Linux only"
)


def rehearse(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(HERE / "gpu.py"), "--rehearse", "--results", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OUT": str(folder / "out")}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("rehearsal-*.json")
    return json.loads(file.read_text(encoding="utf-8"))


SOME = ("plain keys, float", "admit, surprising", "k1/6 x 15 keys, 45", "k2/modulate, 45")
SOME += ("write int8, 45", "out 45", "k4/tiny", "latent frames", "strong + tiny", "k8v8 + tiny")


@needs_triton
def test_a_rehearsal_runs_every_slice(tmp_path: Path) -> None:
    told = rehearse(tmp_path, "--only", *SOME, "--chunks", "3")
    content = results(tmp_path)
    cases = content["cases"].values()
    assert {case["slice"] for case in cases} == set(report.TITLES) | {report.CHECKS, report.FIRST}
    found = [(case, entry) for case in cases for entry in case["contestants"]]
    assert not [entry for _, entry in found if "wrong" in entry.get("refused", "")]
    ours = [entry for case, entry in found if entry["name"].startswith("ours")]
    kernels = [e for c, e in found if e["name"].startswith("ours") and c["slice"] in ("k1", "k2")]
    assert len(kernels) >= 8
    assert all("ms" in entry for entry in kernels), ours
    checks = [e for c, e in found if c["slice"] in (report.CHECKS, report.FIRST)]
    assert checks
    assert all(entry["right"] for entry in checks), checks
    assert all(case["rehearsal"] for case in cases)
    assert "REHEARSAL" in told
    assert "times as fast" not in told
    lines = [line for line in told.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) < 100
    assert [*tmp_path.glob("rehearsal-*.png")]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@needs_triton
def test_a_whole_rehearsal_is_right(tmp_path: Path) -> None:
    told = rehearse(tmp_path)
    content = results(tmp_path)
    assert f"{len(content['checks'])} of {len(content['checks'])} checks are right" in told
    assert "k4/wan" in content["cases"]
    assert "wrong" not in told


def test_cfgen_comes_from_the_checkout_without_being_installed(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from gpu_parts import checkout\ncheckout.install()\n"
        "import cfgen, cfgen.errors, cfgen.kernels, cfgen.presets, importlib.util as u\n"
        "print(cfgen.__file__, cfgen.kernels.__file__, u.find_spec('kernels'))"
    )
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    root = HERE.parents[1]
    wanted = f"{root / 'cfgen' / '__init__.py'} {root / 'kernels' / '__init__.py'} None"
    assert done.stdout.strip() == wanted, done.stderr


# The store


def test_a_write_that_fails_leaves_the_results_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "r.json", (tmp_path / "copy",))
    store.put("k1/a", {"code": "c"})
    before = store.file.read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        store.put("k1/b", {"code": "c"})
    assert store.file.read_text() == before == (tmp_path / "copy" / "r.json").read_text()


def test_a_case_is_done_until_its_code_changes_or_it_is_wanted_again(tmp_path: Path) -> None:
    Store(tmp_path / "r.json").put("k1/a", {"code": "c"})
    assert Store(tmp_path / "r.json").done("k1/a", "c")
    assert not Store(tmp_path / "r.json").done("k1/a", "changed")
    assert not Store(tmp_path / "r.json", since="9999").done("k1/a", "c")


def test_a_contestant_is_left_out_once_the_process_died_twice_while_it_ran(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    Store(file).running("k1/a", "ours", "c")
    store = Store(file)
    assert store.broken("k1/a", "ours", "c") is None
    store.running("k1/a", "ours", "c")
    store = Store(file)
    assert store.broken("k1/a", "ours", "c") == "the process ended while it ran"
    assert store.broken("k1/a", "ours", "mended") is None
    assert store.broken("k1/a", "cudnn", "c") is None


def test_a_finished_case_blames_nobody(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    store = Store(file)
    store.running("k1/a", "ours", "c")
    store.put("k1/a", {"code": "c"})
    assert Store(file).content["broken"] == {}


# Contests


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    store = Store(tmp_path / "r.json")
    store.begin({"device": "cpu", "kernels": "k"})
    return Bench(
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        sizes=TINY,
        store=store,
        meter=Meter(),
        rehearsal=False,
        ceilings={"bf16": 2.0},
    )


def contest(*contestants: tuple[str, Callable[[Tensor], object]], **options: Any) -> Case:
    return Case(
        slice="k1",
        name="a",
        inputs=lambda generator: torch.ones(4),
        truth=lambda x: 2 * x,
        error=lambda x, output, true: float((output - true).norm() / true.norm()),
        contestants=[
            Contestant(
                name=name,
                prepare=lambda x, call=call: lambda: call(x),
                tolerance=1e-2,
                ceiling="bf16",
            )
            for name, call in contestants
        ],
        flops=1e12,
        **options,
    )


def refuse(_: Tensor) -> Tensor:
    raise Refused("not here")


def fail(_: Tensor) -> Tensor:
    raise ValueError("broken\nin many lines")


def test_only_what_is_right_is_timed_and_the_others_tell_why_not(bench: Bench) -> None:
    case = contest(
        ("right", lambda x: x + x),
        ("wrong", lambda x: 2.1 * x),
        ("nan", lambda x: x * math.nan),
        ("refuses", refuse),
        ("fails", fail),
    )
    entries = {entry["name"]: entry for entry in case.run(bench, "c")["contestants"]}
    right = entries.pop("right")
    assert right["percent"] == pytest.approx(100 * (1e12 / right["ms"] / 1e9) / 2.0)
    assert len(right["rounds_ms"]) == TINY.rounds
    assert not any("ms" in entry for entry in entries.values())
    assert entries["wrong"]["refused"] == "wrong: relative error 0.05, 0.01 allowed"
    assert entries["nan"]["refused"] == "wrong: its output is not finite everywhere"
    assert entries["refuses"]["refused"] == "not here"
    assert entries["fails"]["refused"] == "ValueError: broken"
    assert bench.store.done("k1/a", "c")


def test_inputs_that_cannot_be_made_refuse_everyone(bench: Bench) -> None:
    case = replace(contest(("one", refuse), ("two", refuse)), inputs=lambda _: 1 / 0)
    found = case.run(bench, "c")["contestants"]
    assert [entry["refused"] for entry in found] == ["ZeroDivisionError: division by zero"] * 2


def test_a_lost_device_ends_the_process_and_its_cause_is_left_out_next_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = contest(("right", lambda x: x + x), ("fatal", fail))

    def synchronize(_: Bench) -> None:
        if sys.exception() is not None:
            raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "synchronize", synchronize)
        with pytest.raises(DeviceLost, match="fatal: RuntimeError: an illegal"):
            case.run(bench, "c")
    assert not bench.store.done("k1/a", "c")
    entries = {entry["name"]: entry for entry in case.run(bench, "c")["contestants"]}
    assert "ms" in entries["right"]
    assert entries["fatal"]["refused"].startswith("left out: RuntimeError: an illegal")


def test_an_error_like_that_of_another_contestant_is_allowed(bench: Bench) -> None:
    case = contest(("plain", lambda x: 2.02 * x), ("ours", lambda x: 2.03 * x))
    plain, ours = case.contestants
    plain, ours = replace(plain, tolerance=None), replace(ours, like=("plain", 1.6))
    assert "ms" in replace(case, contestants=[plain, ours]).run(bench, "c")["contestants"][1]
    ours = replace(ours, like=("plain", 1.4))
    assert "refused" in replace(case, contestants=[plain, ours]).run(bench, "d")["contestants"][1]


def test_memory_that_is_not_written_shows() -> None:
    with poisoned():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


# The command


@pytest.fixture
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_command", HERE / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_another_process_goes_on_after_a_lost_device_or_a_crash(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses, calls = [command.LOST, -11, 0], []

    def run(arguments: list[str], **_: Any) -> Any:
        calls.append(arguments)
        return SimpleNamespace(returncode=statuses[len(calls) - 1])

    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.supervised(command.parsed(["--slice", "k1", "--again"])) == 0
    assert len(calls) == 3
    since = {arguments[arguments.index("--since") + 1] for arguments in calls}
    assert len(since) == 1, "what is measured again is not measured again after a restart"
    assert since != {""}


def test_a_failure_or_the_end_of_time_is_not_tried_again(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    assert command.supervised(command.parsed([])) == 2

    def hangs(arguments: list[str], timeout: float, **_: Any) -> Any:
        assert timeout <= 8.5 * 60 + command.GRACE_S
        raise subprocess.TimeoutExpired(arguments, timeout)

    monkeypatch.setattr(command.subprocess, "run", hangs)
    assert command.supervised(command.parsed([])) == 1


def test_a_slice_goes_on_where_it_stopped_and_stops_before_time_is_over(bench: Bench) -> None:
    from gpu_parts import work

    order = work.Order(
        slices=("k3",),
        minutes=1,
        folder=Path(),
        copies=(),
        date="",
        only=("",),
        since="",
        rehearse=False,
        chunks=None,
    )
    units = [
        replace(contest(("right", lambda x: x + x), seconds=seconds), slice="k3", name=name)
        for name, seconds in (("a", 1), ("b", 10), ("c", 3600))
    ]
    soon = time.monotonic() + 100
    assert work.measure(bench, order, "k3", units[:1], soon) == []
    first = bench.store.cases["k3/a"]
    assert work.measure(bench, order, "k3", units[:2], soon) == []
    assert work.measure(bench, order, "k3", units, soon) == ["k3/c"]
    assert bench.store.cases["k3/a"] is first
    assert bench.store.done("k3/b", first["code"])


# The first slice


@needs_triton
def test_the_first_slice_asks_every_kernel_within_two_minutes(bench: Bench) -> None:
    from gpu_parts import checks, fused

    units = checks.first(replace(bench, sizes=REAL))
    assert sum(unit.seconds for unit in units) <= 100  # and 20 to begin with
    names = {unit.name for unit in units}
    assert len(names) == len(units)
    assert set(fused.works(REAL)) < names
    for kernel in ("attend", "write", "admit", "modulate", "add_gated"):
        assert any(name.startswith(kernel) for name in names), kernel
    assert names < {check.name for check in checks.cases(replace(bench, sizes=REAL))}


@needs_triton
@pytest.mark.parametrize("error", [0.0, 1.0])
def test_nothing_is_timed_where_a_kernel_is_wrong(
    error: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gpu_parts import checks, work

    timed: list[str] = []
    check = checks.Check("attend", 1e-2, lambda bench, generator: error, slice=checks.FIRST)
    slices = {checks.FIRST: lambda bench: [check], "k1": lambda bench: timed.append("k1") or []}
    monkeypatch.setattr(work, "SLICES", slices)
    monkeypatch.setattr(work, "interpret", lambda: None)
    monkeypatch.setattr(work, "plot", lambda content, file: None)
    monkeypatch.setattr(work.ceilings, "measure", lambda bench: timed.append("ceilings"))
    order = work.Order(
        slices=("first", "k1"),
        minutes=1,
        folder=tmp_path,
        copies=(),
        date="today",
        only=("",),
        since="",
        rehearse=True,
        chunks=None,
    )
    assert work.run(order) == (work.RED if error else 0)
    assert ("ceilings" in timed) == (not error)
    told = capsys.readouterr().out
    assert (
        "nothing is timed: 1 checks of kernels are red: attend: error 1 > 0.01" in told
    ) == bool(error)

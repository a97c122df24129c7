"""Compiles every kernel for every target without a GPU and holds it to its limits.

    python tests/kernels/offline.py              all calls on all targets: prints the table
    python tests/kernels/offline.py --short      those that every run of the tests compiles
    python tests/kernels/offline.py --update     all, and rewrites the table and the record

Host functions are called as a render calls them, on tensors without data, and a launch ends with
the compiled kernel: what is compiled is what would run. The exit status is 1 if a kernel breaks a
limit or differs from the record; with another Triton than that of the record, only limits count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted cannot be compiled

import triton
from machine_code import SHARED_KB, Figures, faults, read
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from variants import SPILLS, VARIANTS, Variant

HERE = Path(__file__).parent
RECORD = HERE / "offline.json"
PAGE = HERE.parent.parent / "kernels" / "README.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
AGAIN = "python tests/kernels/offline.py --update"
HINT = f"""Limits stand in tests/kernels/machine_code.py, exceptions in tests/kernels/variants.py.
Where only the record differs, and is meant to: {AGAIN}
"""
MORE = (
    "more kernels for another layer, allowed are 0: name what lies elsewhere there in "
    "triton.jit(do_not_specialize_on_alignment=...)"
)
CAN_ADMIT = "is launched without enable_fp_fusion, whose default changes with Triton 3.10: give it"
Record = dict[str, dict[str, Any]]


class Refused(Exception):
    """A kernel file says that it cannot do a call on a target."""


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel of a call on a target, or why there is none."""

    call: str
    target: int
    kernel: str
    figures: Figures | None = None
    refused: str = ""
    broken: str = ""

    @property
    def key(self) -> str:
        return f"{self.call}, sm_{self.target}, {self.kernel}"

    @property
    def noted(self) -> dict[str, Any]:
        """What the record keeps."""
        return asdict(self.figures) if self.figures else {"refused": self.refused}


class NoDriver:
    """Stands in for a CUDA driver: tells Triton what to compile for, and no more."""

    def __init__(self, target: int) -> None:
        self.target = target

    def get_current_device(self) -> int:
        return self.target  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.target, 32)


def compiled(variant: Variant, target: int) -> tuple[dict[str, Figures], list[str]]:
    """Call a host function as on a GPU: the kernels that it would launch, compiled instead.

    Two kernels of one name, made so by the types they were given, are numbered.

    Returns:
        The kernels, and what is wrong with how they are launched.

    Raises:
        Refused: The call is not supported on the target.
    """
    launched, wrong = {}, []
    run = JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **options):
        if "enable_fp_fusion" not in options:
            wrong.append(f"{kernel.__name__} {CAN_ADMIT}")
        done = run(kernel, *args, grid=grid, warmup=True, **options)
        launched.setdefault(done.hash, (kernel.__name__, done))

    answers = {"capability": lambda device: target, "unsupported_device": lambda device: None}
    triton.runtime.driver.set_active(NoDriver(target))
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            for asked in answers.keys() & vars(module) if name.startswith("cfgen.kernels") else ():
                stack.enter_context(mock.patch.object(module, asked, answers[asked]))
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        if reason := variant.unsupported():
            raise Refused(reason)
        variant.call(0)
        kernels = dict(launched)
        variant.call(1)
    found: dict[str, Figures] = {}
    for name, done in kernels.values():
        forms = sum(each.split()[0] == name for each in found)
        figures = read(done.asm["cubin"], done.asm["ttgir"], done.metadata.shared)
        found[f"{name} ({forms + 1})" if forms else name] = figures
    if more := len(launched) - len(kernels):
        wrong.append(f"{more} {MORE}")
    return found, list(dict.fromkeys(wrong))


def rows(job: tuple[str, int]) -> list[Row]:
    """A call on a target."""
    try:
        kernels, wrong = compiled(VARIANTS[job[0]], job[1])
    except Refused as refusal:
        return [Row(*job, "-", refused=str(refusal))]
    except Exception as error:  # of the compiler, whichever: it is told beside all others
        return [Row(*job, "-", broken=f"does not compile: {type(error).__name__}: {error}")]
    found = [Row(*job, kernel, figures) for kernel, figures in kernels.items()]
    return [*found, *(Row(*job, "-", broken=each) for each in wrong)]


def compile_all(jobs: list[tuple[str, int]], processes: int) -> list[Row]:
    """Every job's rows, in order; nothing compiled earlier is used."""
    fork = multiprocessing.get_context("fork")  # torch and triton are imported once
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(processes, fork) as pool:
            return [row for found in pool.map(rows, jobs) for row in found]


def wrong_with(row: Row, record: Record | None) -> Iterator[str]:
    """What is wrong with a row; `record` is None if it was made with another Triton."""
    variant = VARIANTS[row.call]
    if row.figures is None or row.target in variant.refused:
        if row.broken:
            yield row.broken
        elif row.figures:
            yield "is compiled, must be refused"
        elif row.target not in variant.refused:
            yield f"is refused, must compile: {row.refused}"
        return
    noted = record.get(row.key) if record else None
    if record is not None and noted is None:
        yield "is not in the record"
    yield from faults(
        row.figures,
        Figures(**noted) if noted else None,
        row.target,
        dots=variant.dots.get(row.kernel, ()),
        spills=SPILLS.get(row.key, (0, None))[0],
        narrow=row.kernel in variant.narrow,
    )


def never_launched(kernels: set[str]) -> list[str]:
    """Kernels of `cfgen.kernels` that are neither among those launched nor called by another."""
    written: dict[str, JITFunction] = {}
    for name, module in sys.modules.items():
        if name.startswith("cfgen.kernels."):
            found = {k: v for k, v in vars(module).items() if isinstance(v, JITFunction)}
            written.update(found)
    called = {
        name
        for name in written
        if any(f"{name}(" in other.src for each, other in written.items() if each != name)
    }
    return sorted(written.keys() - kernels - called)


def verdict(found: list[Row], record: Record | None, *, whole: bool) -> list[str]:
    """Every fault in a sentence; `whole` if everything was compiled."""
    wrong = [f"{row.key}: {fault}" for row in found for fault in wrong_with(row, record)]
    launched = {(row.call, row.kernel) for row in found}
    for call in {row.call: None for row in found}:
        named = (*VARIANTS[call].dots, *VARIANTS[call].narrow)
        wrong += [f"{call}, {each}: not launched" for each in named if (call, each) not in launched]
    if whole:
        kernels = {row.kernel.split()[0] for row in found}
        wrong += [f"{name}: no call launches it" for name in never_launched(kernels)]
    if whole and record:
        gone = record.keys() - {row.key for row in found}
        wrong += [f"{key}: in the record, but not launched" for key in sorted(gone)]
    return wrong


def table(record: Record, version: str) -> str:
    """The page's table: a line for each kernel of a call, the targets side by side."""
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for key, noted in record.items():
        call, target, kernel = key.rsplit(", ", 2)
        if "refused" not in noted:
            lines.setdefault((call, kernel), {})[target] = noted
    notes = [f"- {key}: up to {count} spills. {why}" for key, (count, why) in SPILLS.items()]
    for key, noted in record.items():
        if "refused" in noted:
            call, target, _ = key.rsplit(", ", 2)
            notes.append(f"- {call}: refused on {target}. {noted['refused']}")
    return "\n".join(
        [
            f"Compiled by Triton {version} for {' / '.join(f'sm_{t}' for t in SHARED_KB)}.",
            "",
            "| call | kernel | registers | spills | shared KB | instructions | wide | MMA |",
            "|---|---|---|---|---|---|---|---|",
            *(line(*names, found) for names, found in lines.items()),
            "",
            *notes,
        ]
    ).strip()


def line(call: str, kernel: str, found: dict[str, dict[str, Any]]) -> str:
    """A line of the table."""
    noted = [found.get(f"sm_{target}") for target in SHARED_KB]
    each = [n and Figures(**n) for n in noted]
    cells = (
        beside(f and f.registers for f in each),
        beside(f and f.spills for f in each),
        beside(f and f"{f.shared / 1024:.0f}" for f in each),
        beside(f and f.instructions for f in each),
        beside(f and f"{f.wide / max(1, f.moved):.0%}" for f in each),
        beside(f and " ".join(f"{name} {n}" for name, n in f.mma.items()) for f in each),
    )
    return f"| {call} | `{kernel}` | {' | '.join(cells)} |"


def beside(values: Iterable[object]) -> str:
    """The targets' values; once if they are the same, and a dash where there is none."""
    words = [None if value is None else str(value) for value in values]
    if len(same := set(words) - {None}) == 1:
        return str(*same)
    return " / ".join(word or "-" for word in words)


def on_page(page: str) -> tuple[str, str, str]:
    """The page's text before its table, the table, and the text after it."""
    head, begin, rest = page.partition(BEGIN)
    inside, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} lacks {BEGIN} or {END}, between which the table goes")
    return head + begin, inside.strip(), end + tail


def update(found: list[Row]) -> None:
    """Write the record and the table."""
    record = {row.key: row.noted for row in found if not row.broken}
    kernels = ",\n".join(f"{json.dumps(key)}: {json.dumps(each)}" for key, each in record.items())
    RECORD.write_text(
        f'{{"triton": "{triton.__version__}", "kernels": {{\n{kernels}\n}}}}\n', encoding="utf-8"
    )
    head, _, tail = on_page(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{head}\n{table(record, triton.__version__)}\n{tail}", encoding="utf-8")


def main() -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="only what every test run compiles")
    parser.add_argument("--update", action="store_true", help="rewrite the table and the record")
    parser.add_argument("--only", default="", metavar="TEXT", help="only calls whose name has it")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    whole = not (options.short or options.only)
    if options.update and not whole:
        parser.error("--update compiles everything: leave --short and --only away")
    jobs = [
        (call, target)
        for call, variant in VARIANTS.items()
        for target in (variant.short if options.short else SHARED_KB)
        if options.only in call
    ]
    found = compile_all(jobs, options.processes)
    if options.update:
        update(found)
    shown = {row.key: row.noted for row in found if not row.broken}
    sys.stdout.write(f"{table(shown, triton.__version__)}\n")
    kept = json.loads(RECORD.read_text(encoding="utf-8"))
    record = kept["kernels"] if kept["triton"] == triton.__version__ else None
    if record is None:
        sys.stderr.write(f"The record is of Triton {kept['triton']}: only limits count.\n")
    wrong = verdict(found, record, whole=whole)
    if on_page(PAGE.read_text(encoding="utf-8"))[1] != table(kept["kernels"], kept["triton"]):
        wrong.append(f"kernels/{PAGE.name}: its table is not that of tests/kernels/{RECORD.name}")
    for fault in wrong:
        sys.stderr.write(f"{fault}\n")
    if wrong:
        sys.stderr.write(HINT)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

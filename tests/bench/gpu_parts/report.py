"""Results as tables of under 100 columns. No speed-up is told unless every check was right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gpu_parts.store import Record

WIDTH = 99
LABEL = 34
CHECKS = "correctness"
FIRST = "first"
OURS = ("ours", "k8", "k8v8")
"""How names of our own contestants start."""

TITLES = {
    "ceilings": "what the card does at best",
    "k1": "attention (+g: rotation and gathering of pages included; k8, v8: keys, values in 8 bit)",
    "k2": "fused ops",
    "k3": "linear layers (+q: quantization of activations included)",
    "k4": "decoding of a chunk",
    "s1": "a chunk of the generator, four passes and the commit pass",
    "s2": "films, decoding included",
}


def report(content: Record, slices: Iterable[str]) -> str:
    """Tables of slices, in one text."""
    lines: list[str] = []
    for name in slices:
        cases = [case for case in content["cases"].values() if case["slice"] == name]
        if cases:
            checks = name in (CHECKS, FIRST)
            lines += [*_checks(name, cases), ""] if checks else _slice(content, name, cases)
    return "\n".join(line.rstrip() for line in lines)


def verdict(content: Record, case: Record) -> str | None:
    """Why a case's speed-ups are not told; None if they are.

    They are if every check that there is was right with the very kernels that the case measured.
    """
    if case["rehearsal"]:
        return "a rehearsal: its times mean nothing"
    expected = content.get("checks", [])
    if not expected:
        return "correctness was not checked"
    kernels = _kernels(content, case)
    for name in expected:
        check = content["cases"].get(f"{CHECKS}/{name}")
        if check is None or check["code"] != kernels:
            return f"correctness of these kernels is not checked in full: {name}"
        if not check["contestants"][0].get("right"):
            return f"a check is red: {name}"
    return None


def _kernels(content: Record, case: Record) -> str:
    run = next(run for run in content["runs"] if run["number"] == case["run"])
    found: str = run["kernels"]
    return found


def _checks(name: str, cases: list[Record]) -> list[str]:
    right = [case for case in cases if case["contestants"][0].get("right")]
    lines = [f"{name}: {len(right)} of {len(cases)} checks are right"]
    for case in cases:
        entry = case["contestants"][0]
        told = entry.get("refused") or entry.get("wrong")
        if told is None:
            told = f"{entry['error']:.1e} of {case['tolerance']:.0e}"
        lines.append(f"  {case['name']:<{LABEL}} {told}"[:WIDTH])
    return lines


def _slice(content: Record, name: str, cases: list[Record]) -> list[str]:
    rehearsal = any(case["rehearsal"] for case in cases)
    mark = "REHEARSAL, times mean nothing: " if rehearsal else ""
    lines = _table(f"{name}: {mark}ms, {TITLES[name]}", cases, _ms)
    if not rehearsal:
        lines += _table(f"{name}: tera/s and % of its ceiling in the same run", cases, _rate)
        lines += _table(f"{name}: frames/s, last to early pace, MB grown", cases, _film)
        lines += _speed_ups(content, name, cases)
        lines += _kinds(cases)
    return [*lines, *_refused(cases), ""]


def _speed_ups(content: Record, name: str, cases: list[Record]) -> list[str]:
    lines = []
    for reason in {why for case in cases if (why := verdict(content, case)) is not None}:
        lines.append(f"{name}: speed-ups are not told: {reason}"[:WIDTH])
    told = [case for case in cases if verdict(content, case) is None]
    for baseline in dict.fromkeys(each for case in told for each in case.get("baselines", [])):
        title = f"{name}: times as fast as {baseline}"
        lines += _table(title, told, lambda case, entry, base=baseline: _ratio(case, entry, base))
    return lines


Cell = Callable[[Record, Record], str]


def _table(title: str, cases: Sequence[Record], cell: Cell) -> list[str]:
    """Cases down, contestants across, in as many tables as the width needs; empty ones are not."""
    names = list(dict.fromkeys(e["name"] for case in cases for e in case["contestants"]))
    cells = {
        (case["name"], entry["name"]): text
        for case in cases
        for entry in case["contestants"]
        if (text := cell(case, entry))
    }
    names = [name for name in names if any(column == name for _, column in cells)]
    if not names:
        return []
    wide = 1 + max(map(len, [*names, *cells.values()]))
    fit = max(1, (WIDTH - LABEL) // wide)
    lines = [title[:WIDTH]]
    for start in range(0, len(names), fit):
        some = names[start : start + fit]
        lines.append(" " * LABEL + "".join(f"{name:>{wide}}" for name in some))
        for case in cases:
            row = [cells.get((case["name"], name), "-") for name in some]
            label = case["name"][: LABEL - 1]
            lines.append(f"{label:<{LABEL}}" + "".join(f"{text:>{wide}}" for text in row))
    return lines


def _ms(_: Record, entry: Record) -> str:
    if "ms" not in entry:
        return ""
    return f"{entry['ms']:.3g}" if entry["ms"] < 100 else f"{entry['ms']:.0f}"


def _rate(_: Record, entry: Record) -> str:
    if "tera_per_s" not in entry:
        return ""
    rate = entry["tera_per_s"]
    share = f" {entry['percent']:.0f}%" if "percent" in entry else ""
    return (f"{rate:.0f}" if rate >= 100 else f"{rate:.2g}") + share


def _film(_: Record, entry: Record) -> str:
    if "fps" not in entry:
        return ""
    return f"{entry['fps']:.1f} {entry['slower']:.2f} {entry['grown_mb']:.0f}"


def _ratio(case: Record, entry: Record, baseline: str) -> str:
    base = next((e for e in case["contestants"] if e["name"] == baseline and "ms" in e), None)
    if base is None or "ms" not in entry or not entry["name"].startswith(OURS):
        return ""
    return f"{base['ms'] / entry['ms']:.2f}x"


def _kinds(cases: list[Record]) -> list[str]:
    """Where the time of a chunk goes; what is left of it, the device was idle."""
    lines = []
    for case in cases:
        for entry in case["contestants"]:
            if kinds := entry.get("kernels_ms"):
                told = ", ".join(f"{kind} {ms:.0f}" for kind, ms in kinds.items())
                idle = entry["ms"] - sum(kinds.values())
                line = f"  {case['name']}, {entry['name']}: {told}, idle {idle:.0f} ms"
                lines.append(line[:WIDTH])
    return lines


def _refused(cases: list[Record]) -> list[str]:
    reasons: dict[tuple[str, str], int] = {}
    for case in cases:
        for entry in case["contestants"]:
            if "refused" in entry:
                key = entry["name"], entry["refused"]
                reasons[key] = reasons.get(key, 0) + 1
    return [
        f"  {name}, {count} of {len(cases)}: {reason}"[:WIDTH]
        for (name, reason), count in reasons.items()
    ]


def ceilings_line(run: dict[str, Any]) -> str:
    """The ceilings of a run in a line."""
    told = ", ".join(
        f"{name} {rate:.1f} T{'B' if name == 'copy' else 'FLOP'}/s"
        for name, rate in run.get("ceilings", {}).items()
    )
    return f"ceilings of this run: {told or 'none'}"

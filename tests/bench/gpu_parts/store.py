"""The results of one device and day in one JSON file, written whole after every measurement."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Record = dict[str, Any]

BROKEN_AFTER = 2
"""Deaths of the process while the same contestant ran, after which that one is left out."""


class Store:
    """A results file.

    Args:
        file: Where it is.
        copies: Folders that hold a copy of it, for machines that hand back one folder only.
        since: What is older than this moment does not count, as ISO 8601 in UTC.
    """

    def __init__(self, file: Path, copies: tuple[Path, ...] = (), *, since: str = "") -> None:
        self.file, self.copies, self.since = file, copies, since
        self.content: Record = {"runs": [], "cases": {}, "broken": {}}
        if file.is_file():
            self.content |= json.loads(file.read_text(encoding="utf-8"))
        self._note = file.with_suffix(".running.part")  # which git ignores
        if self._note.is_file():
            case, contestant, code = json.loads(self._note.read_text(encoding="utf-8"))
            self.blame(case, contestant, code, "the process ended while it ran", sure=False)

    @property
    def cases(self) -> dict[str, Record]:
        """The latest measurement of each case."""
        found: dict[str, Record] = self.content["cases"]
        return found

    def run(self) -> Record:
        """The facts of the latest run."""
        found: Record = self.content["runs"][-1]
        return found

    def begin(self, facts: Mapping[str, Any]) -> None:
        """A process starts measuring."""
        self.content["runs"].append({"number": len(self.content["runs"]) + 1, **facts})
        self.save()

    def done(self, case: str, code: str) -> bool:
        """Whether a case was measured with the same code."""
        found = self.cases.get(case)
        return found is not None and found["code"] == code and found["at"] >= self.since

    def running(self, case: str, contestant: str, code: str) -> None:
        """Note what runs, so that a process that dies tells what killed it."""
        replace(self._note, json.dumps([case, contestant, code]))

    def blame(self, case: str, contestant: str, code: str, reason: str, *, sure: bool) -> None:
        """Note that the process was lost while a contestant ran, and whether it was the cause."""
        self._note.unlink(missing_ok=True)
        found = self.content["broken"].setdefault(case, {}).setdefault(contestant, [])
        found.append({"code": code, "reason": reason, "sure": sure, "at": now()})
        self.save()

    def broken(self, case: str, contestant: str, code: str) -> str | None:
        """Why a contestant is not run again with the same code; None if it is."""
        noted = self.content["broken"].get(case, {}).get(contestant, [])
        same = [note for note in noted if note["code"] == code and note["at"] >= self.since]
        if any(note["sure"] for note in same) or len(same) >= BROKEN_AFTER:
            reason: str = same[-1]["reason"]
            return reason
        return None

    def put(self, case: str, record: Record) -> None:
        """A case is measured."""
        self._note.unlink(missing_ok=True)
        self.cases[case] = {**record, "at": now()}
        self.save()

    def save(self) -> None:
        """Write the file and its copies, each replaced at once."""
        text = json.dumps(self.content, indent=1) + "\n"
        for file in (self.file, *(folder / self.file.name for folder in self.copies)):
            replace(file, text)


def replace(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def now() -> str:
    """The time as results tell it."""
    return datetime.now(UTC).isoformat(timespec="seconds")

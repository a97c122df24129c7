"""`cfgen batch FILE --dry-run` takes the lists of other projects as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.config.test_queues import FORMS, PROMPTS


@pytest.mark.parametrize("label", ["moviegen.txt", "moviegen.csv", "vbench.json", "longlive.jsonl"])
def test_a_list_of_another_project_passes_a_dry_run(
    cfgen: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    monkeypatch.setattr("cfgen.pipeline.batch.check", lambda job: None)  # the model is not at issue
    Path(label).write_bytes(FORMS[label].encode())
    result = cfgen("batch", label, "--dry-run")
    assert result.exit_code == 0, result.output[-2000:]
    assert result.stdout.splitlines()[-1].startswith(f"{len(PROMPTS)} clips, ")

"""Whatever stands in a file of the run folder, reading it gives a record or a ValueError."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfgen.renderer.batch import ItemStatus
from cfgen.runs.folder import RunRecord
from cfgen.runs.journal import ChunkLine, SegmentLine, SessionLine, VideoLine
from cfgen.runs.records import parse_as, read_mapping, verify, with_checksum

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=5), s, max_size=3),
)
CLASSES = [ItemStatus, RunRecord, ChunkLine, SegmentLine, SessionLine, VideoLine]


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "check"), ANYTHING))
def test_a_sealed_record_is_read_back_and_any_other_value_breaks_the_seal(
    facts: dict[str, Any],
) -> None:
    sealed = with_checksum(facts, before="abc")
    text = json.dumps(sealed)
    assert verify(text, before="abc") == (facts, sealed["check"])
    for before in ("", "abd"):
        with pytest.raises(ValueError, match="checksum"):
            verify(text, before=before)
    for name in facts:
        with pytest.raises(ValueError, match="checksum"):
            verify(json.dumps({**sealed, name: [facts[name]]}), before="abc")


@given(st.binary(max_size=200) | st.text(max_size=200) | ANYTHING.map(json.dumps))
def test_anything_else_is_refused(content: bytes | str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        verify(content)


def test_a_deep_nest_is_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        read_mapping('{"a":' * 100_000)


@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data())
def test_a_record_has_the_types_that_were_written(
    cls: Callable[..., Any], data: st.DataObject
) -> None:
    names = [field.name for field in fields(cls)]
    facts = data.draw(st.dictionaries(st.sampled_from([*names, "more"]), ANYTHING))
    try:
        record = parse_as(cls, facts)
    except ValueError:
        return
    assert set(facts) <= set(names)
    assert json.loads(json.dumps(asdict(record))) == {**asdict(record), **facts}


@pytest.mark.parametrize(
    "facts",
    [[], None, 3, {"attempts": True}, {"attempts": 1.0}, {"seconds": "1"}, {"seconds": math.nan}],
)
def test_other_types_are_refused(facts: object) -> None:
    with pytest.raises(ValueError, match="no mapping|of another type|is nan"):
        parse_as(ItemStatus, facts)


PIECE = {"until_frame": 9, "prompt": "a fox", "seed": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": [1]},
        {"parts": [{}]},
        {"parts": [{**PIECE, "until_frame": "9"}]},
        {"parts": [{**PIECE, "until_frame": 0}]},
        {"parts": [{**PIECE, "seed": None}]},
        {"parts": [{**PIECE, "prompt": ["a"]}]},
        {"parts": [PIECE, PIECE]},
        {"parts": [{**PIECE, "more": 1}]},
        {"base": -1},
        {"take": 0},
        {"fingerprint": {"cfgen_version": [1]}},
    ],
)
def test_a_forged_record_is_damaged(changes: dict[str, object], tmp_path: Path) -> None:
    from cfgen.errors import SnapshotCorrupt
    from cfgen.runs.folder import VERSION, RunFolder

    facts = {
        "version": VERSION,
        "output": "a.mp4",
        "overwrite": False,
        "config": {},
        "fingerprint": {},
        "created": "",
    }
    folder = tmp_path / "a.cfgen"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(with_checksum(facts)))
    RunFolder(folder)
    (folder / "run.json").write_text(json.dumps(with_checksum({**facts, **changes})))
    with pytest.raises(SnapshotCorrupt, match="is damaged"):
        RunFolder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": -1},
        {"frames": -5},
        {"frames": 1 << 60},
        {"tile": -1},
        {"memory": {"slots": "many"}},
        {"memory": {"slots": [1]}},
    ],
)
def test_a_forged_line_of_a_journal_is_not_believed(
    changes: dict[str, object], tmp_path: Path
) -> None:
    from cfgen.runs.journal import Journal

    line = {
        "kind": "chunk",
        "index": 0,
        "frames": 9,
        "frames_sha256": "",
        "latents_sha256": "",
        "elapsed_s": 1.0,
    }
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(with_checksum(line, before="run")) + "\n")
    assert len(Journal(path, run="run").lines) == 1
    path.write_text(json.dumps(with_checksum({**line, **changes}, before="run")) + "\n")
    assert Journal(path, run="run").problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes as POSIX has them")
@pytest.mark.parametrize("name", ["run.json", "journal.jsonl", "lock"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(name: str, tmp_path: Path) -> None:
    from cfgen.errors import CfgenError
    from cfgen.runs.folder import RunFolder
    from cfgen.runs.lock import read_owner

    folder = tmp_path / "a.cfgen"
    folder.mkdir()
    os.mkfifo(folder / name)
    if name == "lock":
        assert read_owner(folder / name) is None
        return
    if name != "run.json":
        from cfgen.runs.folder import VERSION

        facts = {"version": VERSION, "output": "a.mp4", "overwrite": False, "config": {}}
        record = with_checksum({**facts, "fingerprint": {}, "created": ""})
        (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(CfgenError, match="a pipe"):
        RunFolder(folder)

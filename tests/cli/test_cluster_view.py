"""Clips that are made at once, on one terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cfgen.cli.cluster_view import ClusterView
from cfgen.cli.console import Console
from cfgen.renderer.events import ChunkDone, Event, Finished, Noted, Warned


def chunk(index: int) -> ChunkDone:
    done = 9 + 12 * index
    return ChunkDone(index=index, chunks=3, frames_done=done, frames_total=33, elapsed_s=1.0)


FINISHED = Finished(
    output=Path("a.mp4"), frames=33, seconds=2.0625, elapsed_s=3.0, sidecar=Path("a.mp4.json")
)
NIGHT: list[tuple[str, Event]] = [
    ("a", Warned(message="it knows no zebra", hint="it knows kites")),
    ("a", chunk(0)),
    ("b", chunk(1)),
    ("a", Noted(message="it goes on")),
    ("a", FINISHED),
]


def view_on(console: Console) -> ClusterView:
    names = ("a", "b", "c")
    return ClusterView(
        console,
        frames=dict.fromkeys(names, 33),
        made={"b": 9, "c": 33},
        fps=dict.fromkeys(names, 16.0),
    )


def test_lines_name_their_clip_and_tell_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr("cfgen.cli.cluster_view.time.monotonic", lambda: next(now))
    console = Console()
    view = view_on(console)
    for clip, event in NIGHT:
        view.show(clip, event)
    view.end("a", done=True)
    console.status()
    assert capsys.readouterr().err.splitlines() == [
        "warning: a: it knows no zebra",
        "hint: it knows kites",
        "a: chunk 1 of 3, 0.6 of 2.1 s",
        "b: chunk 2 of 3, 1.3 of 2.1 s, 12.0 frames/s, batch 0:03",
        "a: it goes on",
        "a: 33 frames, 2.1 s of video in 3.0 s",
        "1 of 3 clips, a 1/3, b 2/3, 12.0 frames/s, batch 0:03",
    ]


def test_json_lines_name_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.configure(json=True)
    view = view_on(console)
    for clip, event in NIGHT:
        view.show(clip, event)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["type"], line["clip"]) for line in lines] == [
        ("warning", "a"),
        ("chunk", "a"),
        ("chunk", "b"),
        ("done", "a"),
    ]

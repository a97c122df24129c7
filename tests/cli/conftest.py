"""A presets folder and a render of our own, so that the command line is tested without a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cfgen.cli.app import app
from cfgen.config import presets as catalog
from cfgen.config.schema import RenderConfig
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.events import ChunkDone, Encoded, Event, Finished, Loaded, Warned
from cfgen.video.output import sidecar_of

PRESET = """\
description: for tests
model: {path: mini, sizes: [160x96, 256x144], cpu_frames_per_s: 32}
memory: {policy: slow_fast, slow: 12}
"""


@pytest.fixture(autouse=True)
def presets(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Presets with one tiny model, and an empty current folder."""
    folder = tmp_path / "presets"
    shutil.copytree(tiny_model, folder / "mini")
    (folder / "mini.yaml").write_text(PRESET)
    monkeypatch.setattr(catalog, "presets_folder", lambda: folder)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return folder


@dataclass
class FakeBuild:
    """Stands for `cfgen.pipeline.build`: notes what it is given, plays the events of a render."""

    configs: list[RenderConfig] = field(default_factory=list)
    fails_with: BaseException | None = None
    warns: bool = False

    def build_render(self, job: RenderJob, **_: object) -> FakeBuild:
        self.configs.append(job.config)
        self._plan = job.plan
        return self

    def stop(self, why: str, *, exit_code: int) -> None:
        raise AssertionError("no signal was sent")

    def run(self) -> Iterator[Event]:
        plan, output = self._plan, self.configs[-1].output
        assert output is not None
        details = ("licence: for tests", "about 0.5 GB of memory at most")
        yield Loaded(model="mini", backend="torch on cpu", seconds=0.5, details=details)
        if self.warns:
            yield Warned(message="mini has never seen the word 'zebra'", hint="it knows 'boat'")
        for chunk in plan:
            if self.fails_with is not None and chunk.index == 1:
                raise self.fails_with
            yield ChunkDone(
                index=chunk.index,
                chunks=plan.chunks,
                frames_done=chunk.frame_start + chunk.frames,
                frames_total=plan.frames,
                elapsed_s=1.0 + chunk.index,
                memory={"pages": 21},
            )
        yield Encoded(path=output, segment=0, frames=plan.frames)
        output.write_bytes(b"video")
        yield Finished(
            output=output,
            frames=plan.frames,
            seconds=plan.seconds,
            elapsed_s=4.0,
            sidecar=sidecar_of(output),
        )


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    """Put a `FakeBuild` in the place of what loads models."""
    fake = FakeBuild()
    monkeypatch.setattr("cfgen.pipeline.rendering.build_render", fake.build_render)
    monkeypatch.setattr("cfgen.pipeline.rendering.with_sheet", lambda job, done: iter([done]))
    return fake


def write_list(model: Path, *names: str, **defaults: str) -> Path:
    """A list of clips of a tiny model, and an impossible one as the second, in this folder."""
    settings = {
        "duration": "2s",
        "model": {"path": str(model), "sizes": "[48x32]"},
        "schedule": {"timesteps": "[1000, 500]", "guidance": "1"},
        **defaults,
    }
    nowhere = {"path": str(Path("nowhere").absolute())}
    clips: list[dict[str, object]] = [
        {"name": name, "prompt": f"a red kite, take {name}"} for name in names
    ]
    clips[1:1] = [{"name": "bad", "prompt": "a kite", "preset": "mini", "model": nowhere}]
    path = Path("list.yaml")
    path.write_text(json.dumps({"version": 1, "defaults": settings, "clips": clips}))
    return path


@pytest.fixture
def cfgen() -> Callable[..., Result]:
    """Run the command line with these arguments."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, arguments, input=stdin)

    return run

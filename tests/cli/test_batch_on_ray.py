"""`cfgen batch --ray`: what cfgen makes of what Ray tells it. Ray is played here, see `FakeRay`.

`test_ray_cluster.py` has a real cluster, where Ray is installed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import Result

import cfgen as cfgen_api
from cfgen.errors import BudgetError, ClusterLost, Interrupted, SetupError, UsageError
from cfgen.pipeline import batch_on_ray
from cfgen.pipeline.batch import BatchRunner, ClipList
from cfgen.pipeline.batch_on_ray import RayBatch
from cfgen.pipeline.ray_task import make_clip
from cfgen.renderer.batch import ClipBegun, ClipEnded, OfClip
from cfgen.renderer.events import ChunkDone
from tests.cli.conftest import write_list


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__("a long text")
        self.cause = cause


class Task:
    """A task and its worker: they do something when they are asked what they tell."""

    def __init__(self, work: Iterator[Any], dies: Exception | None) -> None:
        self.work, self.dies = work, dies
        self.begun = self.cancelled = False

    def __next__(self) -> Any:
        if self.cancelled and not self.begun:
            raise StopIteration
        self.begun = True
        if self.dies is not None:
            self.work = iter(())
            dies, self.dies = self.dies, None
            return dies
        return next(self.work)


class FakeRay(ModuleType):
    """Stands for the package: one worker, one task after another.

    `deaths` has for each clip what ends its tries before they are begun.
    """

    def __init__(self) -> None:
        super().__init__("ray")
        self.resources: list[dict[str, float]] = [{"CPU": 2.0}]
        self.deaths: dict[str, list[Exception]] = {}
        self.asked: dict[str, dict[str, Any]] = {}
        self.tries: list[str] = []
        self.joined: list[str | None] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, *, address: str | None, **_: object) -> None:
        if address == "nobody:1":
            raise ConnectionError("Failed to connect\nand much more")
        self.joined.append(address)

    def shutdown(self) -> None:
        self.joined.append("left")

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in self.resources]

    def available_resources(self) -> dict[str, float]:
        return self.resources[0]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address="10.0.0.1:6379")

    def remote(self, make: object) -> FakeRay:
        assert make is make_clip
        return self

    def options(self, **asked: Any) -> Any:
        ray = self

        class Submitted:
            def remote(self, clip: Any, **given: Any) -> Task:
                ray.tries.append(clip.name)
                ray.asked[clip.name] = {**asked, **given}
                deaths = ray.deaths.get(clip.name, [])
                return Task(make_clip(clip, **given), deaths.pop(0) if deaths else None)

        return Submitted()

    def wait(self, tasks: list[Task], **_: object) -> tuple[list[Task], list[Task]]:
        return tasks[:1], tasks[1:]

    def get(self, told: Any) -> Any:
        if isinstance(told, RayError):
            raise told
        return told

    def cancel(self, task: Task, *, force: bool) -> None:
        assert not force
        task.cancelled = True
        if task.begun and signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake, exceptions = FakeRay(), ModuleType("ray.exceptions")
    vars(exceptions).update(RayError=RayError, RayTaskError=RayTaskError)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    monkeypatch.setattr(batch_on_ray, "_answers", lambda address: address == "10.0.0.1:6379")
    return fake


@pytest.fixture
def listed(tiny_model: Path, tiny_settings: list[str]) -> Path:
    """A list of two clips and one that cannot be made, in the current folder."""
    return write_list(tiny_model, "a", "b", duration="1s")


def batch(path: Path, **options: Any) -> RayBatch:
    return RayBatch(BatchRunner(ClipList.read(path), **options))


def states(work: RayBatch) -> dict[str, str]:
    known = work.runner.batch
    return {item.name: known.fate(item).state for item in known.items}


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (("list.yaml", "--ray"), None),
        (("--ray", "list.yaml"), None),
        (("--ray", "10.0.0.1:6379", "list.yaml"), "10.0.0.1:6379"),
        (("list.yaml", "--ray=head:6379"), "head:6379"),
        (("list.yaml", "--ray", "local", "-q"), "local"),
        (("--ray", "--", "list.yaml"), None),
    ],
)
def test_the_address_may_be_left_out(
    ray: FakeRay, cfgen: Callable[..., Result], arguments: tuple[str, ...], address: str | None
) -> None:
    Path("list.yaml").write_text("a red kite\n")
    ray.deaths["a-red-kite"] = [RayError("gone")] * 2
    result = cfgen("batch", *arguments)
    assert result.exit_code == 1, result.output
    assert ray.joined == [address, "left"]


def test_report_states_and_lines_are_those_of_a_batch(
    ray: FakeRay, listed: Path, cfgen: Callable[..., Result]
) -> None:
    result = cfgen("batch", str(listed), "--ray", "--json")
    assert result.exit_code == 1, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    report = lines[-1]["data"]
    assert {row["name"]: row["state"] for row in report["clips"]} == {
        "a": "done",
        "bad": "failed",
        "b": "done",
    }
    assert report == json.loads(Path("list.yaml.report.json").read_text())
    told = {kind: [line for line in lines if line["type"] == kind] for kind in ("clip", "done")}
    assert [line["name"] for line in told["clip"]] == ["a", "bad", "b"]
    assert all(line["host"] for line in told["clip"])
    assert [line["clip"] for line in told["done"]] == ["a", "b"]
    assert cfgen_api.batch(listed, ray="").report() == report
    before = [Path(f"{name}.mp4").stat().st_mtime_ns for name in "ab"]
    again = cfgen("batch", str(listed))  # without Ray: nothing is left to do
    assert again.exit_code == 1
    assert [Path(f"{name}.mp4").stat().st_mtime_ns for name in "ab"] == before
    assert ray.joined == [None, "left"]
    assert cfgen("batch", str(listed), "--ray").exit_code == 1
    assert ray.joined == [None, "left"], "nor does it join a cluster for nothing"


@pytest.mark.parametrize("error", [RayError("out of memory"), RayTaskError(ImportError("cfgen"))])
def test_a_clip_whose_workers_are_lost_is_tried_again_and_then_given_up(
    ray: FakeRay, listed: Path, error: RayError
) -> None:
    ray.deaths = {"a": [error] * 9, "b": [error]}
    work = batch(listed)
    ended = [event for event in work if isinstance(event, ClipEnded)]
    assert states(work) == {"a": "failed", "bad": "failed", "b": "done"}
    assert [ray.tries.count(name) for name in ("a", "bad", "b")] == [2, 1, 2]
    lost = [event for event in ended if event.item.name == "a"]
    assert [event.again for event in lost] == [True, False]
    assert ("out of memory" if isinstance(error, RayTaskError) is False else "cfgen") in str(
        lost[1].fate.error
    )


def test_a_stop_lets_the_chunk_be_finished_and_begins_nothing(ray: FakeRay, listed: Path) -> None:
    work = batch(listed)

    def run() -> None:
        for event in work:
            if isinstance(event, OfClip) and isinstance(event.event, ChunkDone):
                work.stop("terminated", exit_code=143)

    with pytest.raises(Interrupted) as caught:
        run()
    assert (caught.value.exit_code, caught.value.message) == (143, "terminated")
    assert states(work) == {"a": "waiting", "bad": "waiting", "b": "waiting"}
    assert Path("a.cfgen").is_dir()
    assert not list(Path("list.yaml.cfgen-batch").glob("*.lock"))
    again = batch(listed)
    begun = [event.item.name for event in again if isinstance(event, ClipBegun)]
    assert begun == ["a", "bad", "b"]
    assert states(again) == {"a": "done", "bad": "failed", "b": "done"}


def test_the_first_failure_ends_the_batch_if_asked_for(ray: FakeRay, listed: Path) -> None:
    work = batch(listed, fail_fast=True)
    list(work)
    assert states(work) == {"a": "done", "bad": "failed", "b": "waiting"}


def test_a_full_disk_ends_the_batch(
    ray: FakeRay, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise BudgetError("the disk is full", "free some space")

    monkeypatch.setattr("cfgen.renderer.chunk_loop.ChunkLoop.render", full)
    work = batch(listed)
    with pytest.raises(BudgetError) as caught:
        list(work)
    assert caught.value.hint == "free some space"
    assert states(work) == {"a": "waiting", "bad": "waiting", "b": "waiting"}


def test_a_cluster_without_its_head_is_given_up(
    ray: FakeRay, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[object] = []
    monkeypatch.setattr(batch_on_ray.atexit, "register", lambda *what: at_exit.append(what))
    monkeypatch.setattr(batch_on_ray, "_HEAD_PATIENCE_S", 0.1)
    monkeypatch.setattr(batch_on_ray, "_answers", lambda _: False)
    ray.deaths = {"a": [RayError("the node is dead")]}
    work = batch(listed)
    with pytest.raises(ClusterLost, match=r"10\.0\.0\.1:6379, is lost"):
        list(work)
    assert at_exit == [(os._exit, 1)], "Ray cannot be left then"
    assert ray.joined == [None]
    assert ray.tries == ["a", "bad", "b"], "nothing is asked of it any more"
    assert states(work) == {"a": "waiting", "bad": "waiting", "b": "waiting"}


def test_a_node_that_does_not_see_the_folder_is_told(
    ray: FakeRay, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfgen.pipeline.batch_on_ray.Path.cwd", lambda *_: Path("/not/shared"))
    with pytest.raises(SetupError, match="does not see /not/shared: No such file"):
        list(batch(listed))


@pytest.mark.parametrize(
    ("nodes", "defaults", "asked"),
    [
        ([{"CPU": 2.0}], {}, (2, 0, 2)),
        ([{"CPU": 64.0}, {"CPU": 3.0}], {}, (3, 0, 3)),
        ([{"CPU": 64.0}], {}, (8, 0, 8)),
        ([{"CPU": 4.0}], {"threads": "16"}, (4, 0, 16)),
        ([{"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}], {}, (1, 1, None)),
        ([{"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}], {"device": "cpu"}, (4, 0, 4)),
        ([{"CPU": 4.0}], {"device": "cuda:1"}, (1, 1, None)),
        ([], {}, (1, 0, 1)),
    ],
)
def test_a_clip_reserves_what_it_uses(
    ray: FakeRay,
    tiny_model: Path,
    nodes: list[dict[str, float]],
    defaults: dict[str, str],
    asked: tuple[int, int, int | None],
) -> None:
    ray.resources = nodes
    ray.deaths = {name: [RayError("gone")] * 2 for name in ("a", "bad", "b")}
    list(batch(write_list(tiny_model, "a", "b", **defaults)))
    of = ray.asked["a"]
    assert (of["num_cpus"], of["num_gpus"], of["threads"]) == asked
    assert (of["max_retries"], of["num_returns"]) == (0, "streaming")


def test_what_keeps_a_batch_from_ray_is_one_sentence(
    ray: FakeRay, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="ray://head:10001"):
        RayBatch(BatchRunner(ClipList.read(listed)), "ray://head:10001")
    with pytest.raises(SetupError, match="at nobody:1: Failed to connect$"):
        list(RayBatch(BatchRunner(ClipList.read(listed)), "nobody:1"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SetupError) as caught:
        list(batch(listed))
    assert caught.value.hint == 'install it: pip install "cfgen[ray]"'

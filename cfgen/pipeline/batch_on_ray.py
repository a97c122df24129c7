"""A list of clips as tasks of a Ray cluster: Ray finds the places, the run folders keep the work.

A task makes one clip as a process without Ray does, with the same statuses and locks. So it makes
no difference who began a clip: what a lost worker, node or cluster leaves is gone on with, by Ray
or without. Ray tries nothing again by itself, because it cannot tell a clip that gets further each
time from one that gets nowhere.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cfgen.errors import CfgenError, ClusterLost, Interrupted, SetupError, UsageError
from cfgen.files.writing import disk_errors
from cfgen.pipeline.batch import BatchRunner
from cfgen.pipeline.device import MOST_THREADS
from cfgen.pipeline.ray_task import make_clip
from cfgen.renderer.batch import BatchEvent, ClipBegun, ClipEnded, Item, OfClip, Waiting
from cfgen.renderer.events import Noted

ANY = ""
"""Instead of an address: the cluster that this machine belongs to, or else a new one on it."""

HANDED_ON = re.compile(r"CFGEN_\w+|GOMP_SPINCOUNT|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|XDG_\w+_HOME")
"""Variables of the environment that a render reads."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # of what Ray would print to stdout
}
_POLL_S = 0.2
_PATIENCE_S = 20.0
"""Seconds without a place for any clip after which that is told."""
_HEAD_S = 5.0
"""Seconds between two looks at whether the head node is there."""
_HEAD_PATIENCE_S = 45.0
"""Seconds without it after which the cluster counts as lost; Ray ends the process after 60."""


class RayBatch:
    """Renders the clips of a list on a Ray cluster; iterating over it does so and yields events.

    Args:
        runner: The list.
        address: Of the cluster's head node, ``host:port``; `ANY`, or ``local`` for a new one.
    """

    def __init__(self, runner: BatchRunner, address: str = ANY) -> None:
        if "://" in address:
            raise UsageError(
                f"--ray {address}: cfgen joins the cluster itself, and no client server",
                "run it on a machine of the cluster, and give the address of the head node as "
                "host:port",
            )
        self.runner, self._address = runner, address
        self._tasks: dict[Any, Item] = {}
        self._stopped: CfgenError | None = None
        self._cancelled = False

    def stop(self, why: str, *, exit_code: int = 130) -> None:
        """Stop every clip after the chunk that is being made."""
        hint = "the same command goes on with the list"
        self._stopped = Interrupted(why, hint, exit_code=exit_code)

    def report(self) -> dict[str, object]:
        """Write what became of the clips, and return it; see `BatchRunner.report`."""
        return self.runner.report()

    def __iter__(self) -> Iterator[BatchEvent]:
        """Make every clip that is not made, yielding what happens.

        Raises:
            SetupError: Ray is not installed, or there is no cluster at the address.
            Interrupted: It was stopped; everything can be resumed.
            ClusterLost: The head node is gone; everything can be resumed.
            BudgetError, WriterError: The disk refused.
        """
        state = self.runner.listed.state
        with disk_errors(state):
            state.mkdir(parents=True, exist_ok=True)
        batch = self.runner.batch
        open_items = [item for item in batch.items if not batch.settled(item)]
        if not open_items:
            return
        with _joined(self._address) as ray:
            cluster = _Cluster(ray, self.runner)
            for item in open_items:
                self._tasks[cluster.submit(item)] = item
            try:
                yield from self._work(cluster)
            except ClusterLost:
                self._cancelled = True
                raise
            finally:
                self._cancel(cluster)
        if self._stopped is not None:
            raise self._stopped

    def _work(self, cluster: _Cluster) -> Iterator[BatchEvent]:
        began, begun = time.monotonic(), False
        while self._tasks:
            cluster.require_head()
            if self._stopped is not None:
                self._cancel(cluster)
            for task in cluster.ready(self._tasks):
                for event in self._next(cluster, task):
                    begun = begun or isinstance(event, ClipBegun)
                    yield event
            if not begun and time.monotonic() - began > _PATIENCE_S:
                begun = True
                yield Noted(message=f"the cluster has no room for a clip yet: {cluster.room()}")

    def _next(self, cluster: _Cluster, task: Any) -> Iterator[BatchEvent]:
        """What a task has told, and what follows from it."""
        item = self._tasks[task]
        match cluster.told(task):
            case None:
                del self._tasks[task]
            case _Lost(why=why):
                del self._tasks[task]
                if self._cancelled:
                    return
                ended = self.runner.batch.lost(item, why)
                if ended is not None:
                    yield ended
                if not self.runner.batch.settled(item):
                    cluster.require_head(at_once=True)
                    self._tasks[cluster.submit(item)] = item
            case CfgenError() as error:
                self._stopped = self._stopped or error
            case ClipEnded() as ended:
                if ended.fate.state == "failed" and self.runner.fail_fast:
                    self._cancel(cluster)
                yield ended
            case ClipBegun() | Waiting() | OfClip() as event:
                yield event
            case event:
                yield OfClip(item=item, event=event)

    def _cancel(self, cluster: _Cluster) -> None:
        """Stop every task after the chunk that it is making; those that wait do not begin."""
        if not self._cancelled:
            self._cancelled = True
            for task in self._tasks:
                cluster.cancel(task)


@dataclass(frozen=True, slots=True)
class _Lost:
    """A task came to no end of its own."""

    why: str


class _Cluster:
    """What is asked of Ray.

    Args:
        ray: The package, joined to a cluster.
        runner: The list.
    """

    def __init__(self, ray: Any, runner: BatchRunner) -> None:
        self._ray, self._runner, self._make = ray, runner, ray.remote(make_clip)
        self._clips = {clip.name: clip for clip in runner.listed.clips}
        self._needs: dict[str, float] = {}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1] or [1]
        self._gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
        self._head, self._looked = ray.get_runtime_context().gcs_address, time.monotonic()

    def submit(self, item: Item) -> Any:
        """Have a clip made as soon as a node has room for it."""
        runner, config = self._runner, self._runner.configs[item.name]
        on_gpu = config.device.startswith("cuda") or (config.device == "auto" and self._gpus)
        threads = None if on_gpu else config.threads or min(MOST_THREADS, *self._cpus)
        self._needs = {
            "num_cpus": 1 if threads is None else min(threads, max(self._cpus)),
            "num_gpus": int(on_gpu),
        }
        make = self._make.options(
            **self._needs, name=f"cfgen {item.name}", num_returns="streaming", max_retries=0
        )
        return make.remote(
            self._clips[item.name],
            state=runner.listed.state.absolute(),
            folder=Path.cwd(),
            environ={key: os.environ[key] for key in os.environ if HANDED_ON.fullmatch(key)},
            threads=threads,
            overwrite=runner.overwrite,
            attempts=runner.attempts,
            fail_fast=runner.fail_fast,
        )

    def ready(self, tasks: dict[Any, Item]) -> list[Any]:
        """Tasks that have something to tell; after a moment, none."""
        ready, _ = self._ray.wait(list(tasks), timeout=_POLL_S, fetch_local=False)
        return list(ready)

    def told(self, task: Any) -> BatchEvent | CfgenError | _Lost | None:
        """What a task that is ready tells next; None at its end."""
        from ray.exceptions import RayError, RayTaskError

        try:
            event: BatchEvent | CfgenError = self._ray.get(next(task))
        except StopIteration:
            return None
        except RayTaskError as error:  # before the clip was begun: what fails then is told
            return _Lost(f"its Ray task failed: {_first(error.cause)}")
        except RayError as error:
            return _Lost(f"its Ray worker was lost ({type(error).__name__}): {_first(error)}")
        return event

    def cancel(self, task: Any) -> None:
        """Stop a task gently, or never begin it."""
        self._ray.cancel(task, force=False)

    def require_head(self, *, at_once: bool = False) -> None:
        """Look every few seconds, or at once, whether the head node is there, and wait for it.

        Raises:
            ClusterLost: It does not come back.
        """
        began = time.monotonic()
        if not at_once and began - self._looked < _HEAD_S:
            return
        while not _answers(self._head):
            if time.monotonic() - began > _HEAD_PATIENCE_S:
                raise ClusterLost(
                    f"the head node of the Ray cluster, {self._head}, is lost",
                    "the same command goes on with the list, on another cluster or without --ray",
                )
            time.sleep(_POLL_S)
        self._looked = time.monotonic()

    def room(self) -> str:
        """What a clip needs, and what there is."""
        needs = ", ".join(f"{value} {name[4:-1].upper()}" for name, value in self._needs.items())
        there = self._ray.available_resources()
        free = ", ".join(f"{there.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        return f"one needs {needs}; free are {free} (`ray status` tells more)"


@contextlib.contextmanager
def _joined(address: str) -> Iterator[Any]:
    """Ray, joined to a cluster that is left at the end.

    Raises:
        SetupError: Ray is not installed, or there is no cluster.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    try:
        import ray
    except ImportError:
        raise SetupError("--ray needs Ray", 'install it: pip install "cfgen[ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level="error")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise SetupError(
            f"there is no Ray cluster to join{f' at {address}' if address else ''}: "
            f"{_first(error)}",
            "start one (`ray start --head`), or leave the address out",
        ) from error
    leave = ray.shutdown
    try:
        if main:
            signal.signal(signal.SIGTERM, before)  # ray.init sets one of its own
        yield ray
    except ClusterLost as lost:
        # Ray can neither leave such a cluster nor let Python end: it hangs or crashes.
        leave = partial(atexit.register, os._exit, lost.exit_code)
        raise
    finally:
        leave()


def _answers(address: str) -> bool:
    """Whether somebody listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_HEAD_S).close()
    except OSError:
        return False
    return True


def _first(error: BaseException) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

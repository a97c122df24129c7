"""A batch makes every clip that can be made, whatever the others do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cfgen.errors import BudgetError, CheckpointError, Halt, Interrupted, WriterError
from cfgen.renderer.batch import Batch, ClipBegun, ClipEnded, Item, Waiting
from cfgen.renderer.events import Event, Finished
from cfgen.runs.lock import Lock
from tests.render.test_lock import elsewhere


@dataclass
class Fake:
    """Renders of three chunks. `fails` has for each clip what each try does: at a chunk, what."""

    folder: Path
    fails: dict[str, list[tuple[int, BaseException] | None]] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)
    tries: list[str] = field(default_factory=list)

    def items(self, *names: str) -> list[Item]:
        return [Item(name=n, output=self.folder / f"{n}.mp4", digest=f"digest {n}") for n in names]

    def batch(self, *names: str, **options: object) -> Batch:
        return Batch(
            self.items(*names),
            self.folder / "state",
            make=self.make,
            progress=lambda item: self.chunks.get(item.name, 0),
            verified=lambda item: item.output.is_file(),
            **options,
        )

    def make(self, item: Item) -> Fake._Render:
        self.tries.append(item.name)
        plans = self.fails.get(item.name, [])
        return self._Render(self, item, plans.pop(0) if plans else None)

    @dataclass
    class _Render:
        fake: Fake
        item: Item
        fails: tuple[int, BaseException] | None

        def __iter__(self) -> Iterator[Event]:
            name = self.item.name
            for chunk in range(self.fake.chunks.get(name, 0), 3):
                if self.fails is not None and self.fails[0] == chunk:
                    raise self.fails[1]
                self.fake.chunks[name] = chunk + 1
            self.item.output.write_bytes(b"video")
            yield Finished(
                output=self.item.output,
                frames=33,
                seconds=2.0,
                elapsed_s=1.0,
                sidecar=self.item.output,
            )


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"state": 3}', '{"attempts": "x", "digest": "digest a"}', "[" * 9999]
)
def test_nonsense_in_the_place_of_a_fate_counts_as_none(fake: Fake, text: str) -> None:
    (fake.folder / "state").mkdir()
    (fake.folder / "state/a.json").write_text(text)
    list(fake.batch("a").run())
    assert states(fake.batch("a")) == {"a": "done"}


def states(batch: Batch) -> dict[str, str]:
    return {item.name: batch.fate(item).state for item in batch.items}


def test_all_clips_are_made_in_order_and_skipped_the_next_time(fake: Fake) -> None:
    events = list(fake.batch("a", "b", "c").run())
    begun = [event.item.name for event in events if isinstance(event, ClipBegun)]
    assert begun == ["a", "b", "c"]
    assert states(fake.batch("a", "b", "c")) == dict.fromkeys("abc", "done")
    assert list(fake.batch("a", "b", "c").run()) == []
    list(fake.batch("d", "b").run())
    assert fake.tries == ["a", "b", "c", "d"]
    assert not list((fake.folder / "state").glob("*.lock"))


def test_a_clip_that_fails_is_tried_again_after_the_others_and_then_given_up(fake: Fake) -> None:
    fake.fails["b"] = [(0, WriterError("broken", "mend it")), (0, ValueError("again"))]
    events = list(fake.batch("a", "b", "c").run())
    assert fake.tries == ["a", "b", "c", "b"]
    ended = [event for event in events if isinstance(event, ClipEnded) and event.item.name == "b"]
    assert [(event.again, event.fate.error) for event in ended] == [
        (True, "broken"),
        (False, "ValueError: again"),
    ]
    assert states(fake.batch("a", "b", "c")) == {"a": "done", "b": "failed", "c": "done"}
    list(fake.batch("a", "b", "c").run())
    assert fake.tries == ["a", "b", "c", "b"]
    again = fake.batch("a", "b", "c")
    again.reset_failed()
    list(again.run())
    assert states(again)["b"] == "done"


def test_a_clip_that_gets_further_each_time_is_not_given_up(fake: Fake) -> None:
    fake.fails["a"] = [(1, ValueError()), (2, ValueError())]
    batch = fake.batch("a", attempts=1)
    list(batch.run())
    assert states(batch)["a"] == "done"
    fake.fails["b"] = [(1, ValueError()), (1, ValueError("stuck"))]
    batch = fake.batch("b", attempts=1)
    list(batch.run())
    assert states(batch)["b"] == "failed"
    assert batch.fate(batch.items[0]).error == "ValueError: stuck"


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_clip_that_brings_the_process_down_is_given_up(fake: Fake, attempts: int) -> None:
    fake.fails["b"] = [(0, Killed())] * 9
    for _ in range(attempts):
        batch = fake.batch("a", "b", "c", attempts=attempts)
        with pytest.raises(Killed):
            list(batch.run())
    batch = fake.batch("a", "b", "c", attempts=attempts)
    list(batch.run())
    assert states(batch) == {"a": "done", "b": "failed", "c": "done"}
    assert fake.tries.count("b") == attempts
    assert "the process died" in batch.fate(batch.items[1]).error


def test_a_process_that_dies_further_on_each_time_does_not_count(fake: Fake) -> None:
    fake.fails["a"] = [(1, Killed()), (2, Killed())]
    for _ in range(2):
        with pytest.raises(Killed):
            list(fake.batch("a", attempts=1).run())
    list(fake.batch("a", attempts=1).run())
    assert states(fake.batch("a")) == {"a": "done"}


@pytest.mark.parametrize("error", [Interrupted("stopped"), BudgetError("the disk is full")])
def test_a_signal_or_a_full_disk_ends_the_batch_and_counts_for_nothing(
    fake: Fake, error: Exception
) -> None:
    fake.fails["a"] = [(1, error)] * 4
    for _ in range(4):
        with pytest.raises(type(error)):
            list(fake.batch("a", "b", attempts=1).run())
    assert states(fake.batch("a", "b")) == {"a": "waiting", "b": "waiting"}
    list(fake.batch("a", "b", attempts=1).run())
    assert states(fake.batch("a", "b")) == {"a": "done", "b": "done"}


def test_fail_fast_ends_at_the_first_failure(fake: Fake) -> None:
    fake.fails["a"] = [(0, ValueError())] * 2
    batch = fake.batch("a", "b", attempts=2, fail_fast=True)
    list(batch.run())
    assert states(batch) == {"a": "failed", "b": "waiting"}
    assert fake.tries == ["a"]


def test_what_is_refused_before_any_work_is_not_tried_again(fake: Fake) -> None:
    fake.fails["a"] = [(0, CheckpointError("no such model"))] * 2
    batch = fake.batch("a", "b")
    list(batch.run())
    assert fake.tries == ["a", "b"]
    assert states(batch) == {"a": "failed", "b": "done"}


def test_a_video_that_is_never_what_was_written_fails_and_does_not_go_round(fake: Fake) -> None:
    batch = fake.batch("a", "b")
    batch._verified = lambda item: item.name != "a"
    list(batch.run())
    assert fake.tries == ["a", "b"]
    assert states(batch) == {"a": "failed", "b": "done"}
    assert "is not what was written" in batch.fate(batch.items[0]).error


def test_a_clip_is_done_as_soon_as_its_video_is(fake: Fake) -> None:
    """What comes after, such as clearing away the run folder, may be cut off."""
    batch = fake.batch("a")
    for event in batch.run():
        if isinstance(event, Finished):
            assert states(batch) == {"a": "done"}


def test_a_clip_whose_run_somebody_works_on_by_hand_is_left_to_them(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfgen.renderer.batch.POLL_S", 0.1)
    (fake.folder / "a.cfgen").mkdir()
    held = Lock(fake.folder / "a.cfgen" / "lock")
    held.acquire()
    waits = 0
    for event in fake.batch("a", "b").run():
        if isinstance(event, Waiting):
            waits += 1
            assert fake.tries == ["b"]
            held.release()
    assert waits == 1
    assert fake.tries == ["b", "a"]


def test_a_lock_that_cannot_be_read_is_taken_after_a_while(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfgen.renderer.batch.PATIENCE_S", 0.3)
    monkeypatch.setattr("cfgen.renderer.batch.POLL_S", 0.1)
    (fake.folder / "state").mkdir()
    (fake.folder / "state" / "a.lock").write_bytes(b"")
    list(fake.batch("a").run())
    assert states(fake.batch("a")) == {"a": "done"}


def test_a_stop_is_heeded_between_two_clips(fake: Fake) -> None:
    batch = fake.batch("a", "b")

    def work() -> None:
        for event in batch.run():
            if isinstance(event, ClipEnded):
                batch.stop("terminated", exit_code=143)

    with pytest.raises(Interrupted, match="terminated"):
        work()
    assert states(batch) == {"a": "done", "b": "waiting"}


def test_a_clip_that_was_changed_is_another_clip(fake: Fake) -> None:
    list(fake.batch("a").run())
    changed = Item(name="a", output=fake.folder / "a.mp4", digest="another")
    batch = fake.batch("a")
    batch.items = (changed,)
    assert batch.fate(changed).state == "waiting"


def test_a_video_that_is_gone_is_made_again(fake: Fake) -> None:
    list(fake.batch("a").run())
    (fake.folder / "a.mp4").unlink()
    fake.chunks.clear()
    list(fake.batch("a").run())
    assert (fake.folder / "a.mp4").exists()


@pytest.mark.parametrize("content", ["", "\0\0", "[]", '{"state": 3, "x": 1}', "null"])
def test_a_damaged_state_counts_as_none(fake: Fake, content: str) -> None:
    list(fake.batch("a").run())
    (fake.folder / "state" / "a.json").write_text(content)
    list(fake.batch("a").run())
    assert states(fake.batch("a")) == {"a": "done"}


def test_a_clip_of_a_living_process_is_left_alone_and_waited_for(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfgen.renderer.batch.PATIENCE_S", 0.5)
    monkeypatch.setattr("cfgen.renderer.batch.POLL_S", 0.1)
    (fake.folder / "state").mkdir()
    lock = fake.folder / "state" / "a.lock"
    elsewhere(lock)
    beats = 0
    slept = Batch._sleep

    def sleep(batch: Batch) -> None:
        nonlocal beats
        beats += 1
        if beats < 8:
            elsewhere(lock, beat=beats)
        slept(batch)

    monkeypatch.setattr(Batch, "_sleep", sleep)
    events = list(fake.batch("a", "b").run())
    assert [event.item.name for event in events if isinstance(event, ClipBegun)] == ["b", "a"]
    waits = [event.names for event in events if isinstance(event, Waiting)]
    assert waits == [("a",)], "told once, not at every look"
    assert beats >= 8
    assert states(fake.batch("a", "b")) == {"a": "done", "b": "done"}


def test_the_state_of_a_clip_is_plain(fake: Fake) -> None:
    list(fake.batch("a").run())
    facts = json.loads((fake.folder / "state" / "a.json").read_text())
    assert facts["state"] == "done"
    assert facts["frames"] == 33


@pytest.mark.parametrize("place", ["state/a.lock", "a.cfgen/lock"])
def test_a_suspended_owner_of_this_machine_keeps_its_clip(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Its process is there, so that no silence makes it dead; nothing is begun beside it."""
    monkeypatch.setattr("cfgen.renderer.batch.PATIENCE_S", 0.05)
    monkeypatch.setattr("cfgen.renderer.batch.POLL_S", 0.02)
    (fake.folder / place).parent.mkdir(parents=True)
    held = Lock(fake.folder / place, beat_s=999.0)
    held.acquire()
    looks = 0
    slept = Batch._sleep

    def sleep(batch: Batch) -> None:
        nonlocal looks
        looks += 1
        if looks == 20:
            held.release()
        slept(batch)

    monkeypatch.setattr(Batch, "_sleep", sleep)
    events = list(fake.batch("a", "b").run())
    assert [event.item.name for event in events if isinstance(event, ClipBegun)] == ["b", "a"]
    assert fake.tries == ["b", "a"]


def test_a_stop_while_a_clip_loads_makes_nothing_of_it(fake: Fake) -> None:
    batch = fake.batch("a")
    made = batch._make

    def make(item: Item) -> object:
        batch.stop("interrupted", exit_code=130)
        return made(item)

    batch._make = make  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        list(batch.run())
    assert states(fake.batch("a")) == {"a": "waiting"}
    assert fake.chunks == {}


@pytest.mark.parametrize("error", [Halt(2), KeyboardInterrupt()])
def test_an_interrupt_at_once_counts_for_nothing(fake: Fake, error: BaseException) -> None:
    fake.fails["a"] = [(1, error)]
    with pytest.raises(type(error)):
        list(fake.batch("a", attempts=1).run())
    assert states(fake.batch("a")) == {"a": "waiting"}


@pytest.mark.parametrize("begun", [False, True])
def test_a_process_that_is_lost_elsewhere_counts_as_a_try(fake: Fake, begun: bool) -> None:
    batch = fake.batch("a", attempts=2)
    (item,) = batch.items
    (fake.folder / "state").mkdir()

    def lose() -> ClipEnded | None:
        if begun:
            fake.fails["a"] = [(fake.chunks.get("a", 0), Killed())]
            with pytest.raises(Killed):
                list(fake.batch("a", attempts=2).run())
        return batch.lost(item, "the node is gone")

    ends = [lose(), lose()]
    assert [(end.again, end.fate.state) for end in ends if end is not None] == [
        (True, "waiting"),
        (False, "failed"),
    ]
    assert batch.fate(item).error == "the node is gone"
    assert batch.lost(item, "once more") is None, "nothing is left to do"


def test_a_process_that_got_further_each_time_is_lost_as_often_as_it_likes(fake: Fake) -> None:
    batch = fake.batch("a", attempts=1)
    (item,) = batch.items
    for chunk in (1, 2):
        fake.fails["a"] = [(chunk, Killed())]
        with pytest.raises(Killed):
            list(fake.batch("a", attempts=1).run())
        ended = batch.lost(item, "preempted")
        assert ended is not None
        assert ended.again
    list(batch.run())
    assert states(batch) == {"a": "done"}


def test_who_works_on_a_clip_counts_its_tries(fake: Fake) -> None:
    batch = fake.batch("a")
    (fake.folder / "state").mkdir()
    with Lock(fake.folder / "state" / "a.lock"):
        assert batch.lost(batch.items[0], "the node is gone") is None
    assert batch.fate(batch.items[0]).attempts == 0

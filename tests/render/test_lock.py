"""A lock keeps two processes off one run, and a dead one's is taken."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cfgen.errors import SetupError, WriterError
from cfgen.runs import lock as lock_module
from cfgen.runs.lock import Lock, look, owner_of, read_owner, this_system


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_held_lock_refuses_and_names_its_owner(path: Path) -> None:
    with Lock(path) as lock:
        assert lock.held
        with pytest.raises(SetupError, match=f"in use by process {os.getpid()} on "):
            Lock(path).acquire()
        assert lock.held
    assert not path.exists()
    with Lock(path):
        assert path.exists()
    assert list(path.parent.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_at_once(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cfgen.runs.lock import Lock\n"
        "Lock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert owner_of(path) is not None
        with pytest.raises(SetupError):
            Lock(path).acquire()
        process.kill()
    assert owner_of(path) is None
    began = time.monotonic()
    with Lock(path) as lock:
        assert lock.held
    assert time.monotonic() - began < 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_zombie_holds_nothing(path: Path) -> None:
    """As in a container without an init that would bury it."""
    pid = os.fork()
    if pid == 0:
        Lock(path).acquire()
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert owner_of(path) is None
    with Lock(path) as lock:
        assert lock.held
    os.waitpid(pid, 0)


def elsewhere(path: Path, beat: int = 0, system: str = "another") -> None:
    facts = {"host": "elsewhere", "system": system, "pid": 1, "token": "t", "beat": beat}
    text = json.dumps(facts).ljust(511) + "\n"
    with path.open("r+" if path.exists() else "x") as file:  # in place, as owners write it
        file.write(text)


def test_an_owner_on_another_machine_is_dead_when_it_is_silent(path: Path) -> None:
    elsewhere(path)
    with Lock(path, patience_s=0.5) as lock:
        assert lock.held


def test_an_owner_on_another_machine_lives_while_its_count_changes(path: Path) -> None:
    elsewhere(path)
    beating = threading.Thread(target=_beat, args=(path,))
    beating.start()
    try:
        with pytest.raises(SetupError, match="process 1 on elsewhere"):
            Lock(path, patience_s=20).acquire()
    finally:
        beating.join()


def _beat(path: Path) -> None:
    for beat in range(1, 20):
        time.sleep(0.1)
        elsewhere(path, beat)


@pytest.mark.parametrize("step_s", [-86400, 86400])
def test_clocks_do_not_matter(path: Path, step_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    with Lock(path):
        monkeypatch.setattr(time, "time", lambda: now() + step_s)
        os.utime(path, (now() + step_s, now() + step_s))
        with pytest.raises(SetupError):
            Lock(path).acquire()


def test_an_owner_of_an_earlier_commit_is_watched(path: Path) -> None:
    facts = {"host": "h", "system": f"{this_system()}/pid:[1]", "pid": 1, "born": "1", "token": "t"}
    path.write_text(json.dumps(facts | {"beat": f"{3:012}"}))
    owner, lives = look(path)
    assert owner is not None
    assert (owner.beat, lives) == (3, None)


def test_the_owner_gives_signs_of_life(path: Path) -> None:
    with Lock(path, beat_s=0.05):
        first = read_owner(path)
        time.sleep(0.5)
        later = read_owner(path)
        assert first is not None
        assert later is not None
        assert later.beat > first.beat
        assert later.token == first.token


def test_an_owner_that_slept_too_long_knows_and_does_no_harm(path: Path) -> None:
    with Lock(path, beat_s=0.05) as sleeper:
        path.unlink()
        with Lock(path) as successor:
            time.sleep(0.3)
            assert not sleeper.held
            assert successor.held
            sleeper.release()
            assert successor.held


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"{}", b"[1]", b"\xff", b'{"host": 3}'])
def test_a_damaged_lock_is_taken_when_it_stays_so(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_owner(path) is None
    began = time.monotonic()
    with Lock(path, patience_s=0.4) as lock:
        assert lock.held
    assert time.monotonic() - began > 0.3


def test_a_system_that_cannot_be_named_is_watched(path: Path) -> None:
    elsewhere(path, system="")
    assert owner_of(path) is not None
    with Lock(path, patience_s=0.4) as lock:
        assert lock.held


def test_a_watched_owner_is_replaced_only_while_it_is_the_one(path: Path) -> None:
    elsewhere(path, beat=3)
    watched = read_owner(path)
    elsewhere(path, beat=4)
    with pytest.raises(SetupError):
        Lock(path, patience_s=0).acquire(watched=(watched,))
    lock = Lock(path, patience_s=0)
    lock.acquire(watched=(read_owner(path),))
    assert lock.held
    lock.release()


def test_only_one_of_many_takes_a_dead_owners_lock(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cfgen.runs.lock import Lock\n"
        "from cfgen.errors import SetupError\n"
        "lock = Lock(Path(sys.argv[1]), patience_s=0.3)\n"
        "try:\n    lock.acquire(); print('took', flush=True); time.sleep(3)\n"
        "except SetupError:\n    print('refused', flush=True)"
    )
    elsewhere(path)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = sorted(process.communicate()[0].strip() for process in processes)
    assert said == ["refused", "refused", "refused", "took"]


@pytest.mark.parametrize("locked", [True, False, None])
@pytest.mark.parametrize("system", ["here", "elsewhere", "", None])
def test_one_rule_tells_who_lives(
    path: Path, locked: bool | None, system: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's word where it has one: that it lives of any, that it is dead of its own."""
    assert look(path) == (None, False)
    monkeypatch.setattr(lock_module, "lock_of", lambda _: locked)
    if system is None:
        path.write_bytes(b"damaged")
    else:
        elsewhere(path, system=this_system() if system == "here" else system)
    dead = False if (locked, system) == (True, "here") else None
    assert look(path) == (read_owner(path), True if locked is False else dead)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared folder whose clients do not see each other's locks, and name themselves alike."""
    monkeypatch.setattr(lock_module, "lock_of", lambda _: True)
    monkeypatch.setattr(lock_module, "this_system", lambda: "")
    monkeypatch.setattr(lock_module, "SETTLED_S", 0.3)


def test_machines_that_do_not_see_locks_hear_each_others_heartbeat(
    path: Path, unseen: None
) -> None:
    with Lock(path, beat_s=0.05) as lock:
        with pytest.raises(SetupError, match=f"in use by process {os.getpid()} on "):
            Lock(path, patience_s=20).acquire()
        with pytest.raises(SetupError):
            Lock(path, patience_s=0).acquire()
        assert lock.held


def test_one_of_many_machines_that_do_not_see_locks_takes_a_dead_owners(
    path: Path, unseen: None
) -> None:
    elsewhere(path)
    locks = [Lock(path, patience_s=0.3) for _ in range(4)]

    def take(lock: Lock) -> None:
        with contextlib.suppress(SetupError):
            lock.acquire()

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [lock for lock in locks if lock.held]
    assert len(held) == 1
    for lock in locks:
        lock.release()
    assert not path.exists()


def test_a_sleeper_leaves_the_lock_to_whoever_took_it(path: Path, unseen: None) -> None:
    with Lock(path, beat_s=0.5) as sleeper:
        watched = read_owner(path)
        successor = Lock(path, patience_s=0, beat_s=99)
        successor.acquire(watched=(watched,))
        assert successor.held
        assert not sleeper.held
        time.sleep(0.7)  # the sleeper wakes up
        assert successor.held
    assert successor.held
    successor.release()
    assert not path.exists()


def test_a_file_system_without_locks_goes_by_the_heartbeat(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, *, blocking: bool) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock_module, "lock_descriptor", refuse)
    monkeypatch.setattr(lock_module, "SETTLED_S", 0.1)
    with Lock(path, beat_s=0.05), pytest.raises(SetupError):
        Lock(path, patience_s=20).acquire()
    elsewhere(path, system=this_system())
    with Lock(path, patience_s=0.3) as lock:
        assert lock.held


def test_a_link_in_its_place_is_told(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))
    with pytest.raises(WriterError, match="it is a link"):
        Lock(path).acquire()


def test_who_looks_does_not_keep_another_from_taking_it(path: Path) -> None:
    elsewhere(path, system=this_system())
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            look(path)

    looking = threading.Thread(target=watch)
    looking.start()
    try:
        for _ in range(20):
            with Lock(path):
                pass
    finally:
        done.set()
        looking.join()


def test_a_lock_whose_file_is_numbered_anew_is_still_held(path: Path) -> None:
    with Lock(path) as lock:
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        os.replace(copy, path)
        assert lock.held
        path.write_text(path.read_text().replace(read_owner(path).token, "0" * 16))
        assert not lock.held


WORKER = """\
import os, random, sys, time
from pathlib import Path
from cfgen.errors import LockHeld
from cfgen.runs.lock import Lock

folder, mine = Path(sys.argv[1]), str(os.getpid())
while True:
    try:
        with Lock(folder / "lock", patience_s=0) as lock:
            (folder / "inside").write_text(mine)
            time.sleep(random.uniform(0, 0.02))
            if (folder / "inside").read_text() != mine or not lock.held:
                (folder / "clash").touch()
            with (folder / "log").open("a") as log:
                log.write(f"{mine}\\n")
    except LockHeld:
        time.sleep(0.005)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signals")
def test_however_many_are_killed_one_at_a_time_works_and_none_waits_for_the_dead(
    tmp_path: Path,
) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-P", "-c", WORKER, str(tmp_path)])

    working, log, rng = [start() for _ in range(3)], tmp_path / "log", random.Random(0)
    try:
        for _ in range(12):
            before, began = log.stat().st_size if log.exists() else 0, time.monotonic()
            while not log.exists() or log.stat().st_size < before + 20:
                time.sleep(0.01)
                assert time.monotonic() - began < 60, "nobody gets the lock"
            victim = working.pop(rng.randrange(len(working)))
            victim.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            victim.wait()
            working.append(start())
    finally:
        for process in working:
            process.kill()
            process.wait()
    assert not (tmp_path / "clash").exists()
    with Lock(tmp_path / "lock", patience_s=0) as lock:
        assert lock.held
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "log"]

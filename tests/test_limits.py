"""Cores and memory of this process, with and without a control group and a home folder."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from cfgen.checkpoint.identify import digests
from cfgen.config.presets import user_config_file
from cfgen.errors import SetupError
from cfgen.files import user_folders
from cfgen.hub.reference import cache_folder
from cfgen.pipeline import limits


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty control group of ours, version 2, in one that is around it."""
    (tmp_path / "self").write_text("0::/outer/inner\n")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "fs")
    (tmp_path / "fs/outer/inner").mkdir(parents=True)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    return tmp_path / "fs/outer/inner"


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("50000 100000", 1),
        ("9900000 100000", 16),
        ("", 16),
        ("x y", 16),
    ],
)
@pytest.mark.parametrize("outer", [False, True])
def test_cores_are_those_of_affinity_and_group(
    group: Path, text: str, cores: int, outer: bool
) -> None:
    (group.parent if outer else group).joinpath("cpu.max").write_text(text)
    assert limits.usable_cores() == cores


def test_cores_of_a_group_of_version_1(group: Path, tmp_path: Path) -> None:
    (tmp_path / "self").write_text("4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n")
    place = tmp_path / "fs/cpu/docker/x"
    place.mkdir(parents=True)
    (place / "cpu.cfs_quota_us").write_text("400000\n")
    (place / "cpu.cfs_period_us").write_text("100000\n")
    assert limits.usable_cores() == 4
    (place / "cpu.cfs_quota_us").write_text("-1\n")
    assert limits.usable_cores() == 16


@pytest.mark.parametrize(
    ("most", "now", "free"), [("1000000", "400000", 600000), ("10", "400", 0), ("max", "400", None)]
)
def test_memory_is_what_the_group_leaves(
    group: Path, monkeypatch: pytest.MonkeyPatch, most: str, now: str, free: int | None
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("V", (), {"available": 10**12}))
    (group / "memory.max").write_text(most)
    (group / "memory.current").write_text(now)
    assert limits.free_memory() == (10**12 if free is None else free)
    (group / "memory.stat").write_text("anon 3\ninactive_file 100\n")
    assert limits.free_memory() == (10**12 if free is None else max(0, int(most) - int(now) + 100))


def test_without_any_group_the_machine_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "none")
    assert limits.usable_cores() >= 1
    assert limits.free_memory() > 0


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)

    def nobody(self: Path) -> Path:
        if str(self).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return self

    monkeypatch.setattr(Path, "expanduser", nobody)


def test_a_user_without_a_home_has_no_settings_and_keeps_no_digests(
    homeless: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not user_config_file(os.environ).exists()
    monkeypatch.setattr(digests, "WORTH_KEEPING", 1)
    (tmp_path / "a").write_bytes(b"abc")
    assert digests.digest(tmp_path / "a").startswith("ba7816bf")


@pytest.mark.parametrize("asked", [lambda: user_folders.require("cache"), cache_folder])
def test_what_needs_a_home_says_what_to_set(homeless: None, asked: object) -> None:
    with pytest.raises(SetupError, match="no home folder") as caught:
        asked()  # type: ignore[operator]
    assert "XDG_CACHE_HOME" in (caught.value.hint or "")


def test_xdg_is_enough(homeless: None, tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    assert user_folders.require("cache", environ) == tmp_path
    assert user_config_file(environ) == tmp_path / "cfgen" / "config.yaml"
    assert cache_folder(environ) == tmp_path / "huggingface" / "hub"

from __future__ import annotations

from pathlib import Path

import pytest

from align.runtime import control_group
from align.runtime.control_group import MAYBE, NEEDS, MemoryKills, cpu_quota, group_folders


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(control_group, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(control_group, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(control_group, "COUNTERS", tmp_path / "counters")
    return tmp_path / "cgroup"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_2_has_one_hierarchy(root: Path) -> None:
    write(root.parent / "membership", "0::/batch/job\n")
    assert list(group_folders("cpu")) == [(2, root / "batch" / "job"), (2, root / "batch"), (2, root)]


def test_version_1_has_one_for_each_controller(root: Path) -> None:
    write(root.parent / "membership", "3:cpu,cpuacct:/job\n2:memory:/other\n1:name=systemd:/\n")
    assert list(group_folders("cpu")) == [(1, root / "cpu" / "job"), (1, root / "cpu")]


def test_the_tightest_quota_counts(root: Path) -> None:
    write(root.parent / "membership", "0::/batch/job\n")
    write(root / "batch" / "job" / "cpu.max", "max 100000\n")
    assert cpu_quota() is None
    write(root / "batch" / "cpu.max", "350000 100000\n")
    write(root / "cpu.max", "800000 100000\n")
    assert cpu_quota() == 3.5


def test_a_quota_of_version_1(root: Path) -> None:
    write(root.parent / "membership", "3:cpu:/job\n")
    write(root / "cpu" / "job" / "cpu.cfs_quota_us", "-1\n")
    write(root / "cpu" / "job" / "cpu.cfs_period_us", "100000\n")
    assert cpu_quota() is None
    write(root / "cpu" / "job" / "cpu.cfs_quota_us", "50000\n")
    assert cpu_quota() == 0.5


def test_without_control_groups_there_is_no_quota(root: Path) -> None:
    assert cpu_quota() is None
    write(root.parent / "membership", "0::/\n")
    write(root / "cpu.max", "nonsense\n")
    assert cpu_quota() is None


@pytest.mark.parametrize(
    ("version", "kills", "limit"),
    [(2, "batch/job/memory.events", "batch/memory.max"), (1, "memory/batch/job/memory.oom_control", "")],
)
def test_a_kill_for_lack_of_memory_is_told(root: Path, version: int, kills: str, limit: str) -> None:
    write(root.parent / "membership", {2: "0::/batch/job\n", 1: "4:memory:/batch/job\n"}[version])
    write(root.parent / "counters", "pgfault 9\noom_kill 3\n")
    write(root / kills, "oom 1\noom_kill 1\n")
    if limit:
        write(root / limit, f"{3 << 30}\n")
        write(root / "batch" / "memory.current", "0\n")
    started = MemoryKills()
    assert "killed nothing for lack of memory" in started.hint(-9)
    assert started.hint(-15) == started.hint(1) == ""
    write(root.parent / "counters", "pgfault 9\noom_kill 4\n")
    assert "of this machine" in started.hint(-9)
    assert started.hint(-9, is_here=False) == MAYBE
    write(root / kills, "oom 1\noom_kill 2\n")
    assert "in this container or batch job" in started.hint(-9) and started.hint(-9).endswith(NEEDS)
    assert ("which may have 3.0 GiB" in started.hint(-9)) == bool(limit)


def test_where_the_kernel_counts_nothing_memory_is_a_guess(root: Path) -> None:
    assert MemoryKills().hint(-9) == MAYBE

"""Limits of control groups of both versions, of Slurm, and of the machine itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lerobot_grain._base import machine

GIB = 1 << 30


@pytest.fixture(autouse=True)
def nothing_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores and 512 GiB; no control group, no Slurm."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_CGROUP_OF_PROCESS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 512 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_machine_itself() -> None:
    assert (machine.num_cores(), machine.memory_bytes()) == (64, 512 * GIB)


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        pytest.param(
            {"own": "0::/\n", "memory.max": f"{8 * GIB}\n", "cpu.max": "250000 100000\n"},
            3,
            8 * GIB,
            id="version 2, in a container, two and a half cores",
        ),
        pytest.param(
            {"own": "0::/\n", "memory.max": "max\n", "cpu.max": "max 100000\n"},
            64,
            512 * GIB,
            id="version 2, no limit",
        ),
        pytest.param(
            {
                "own": "0::/slice/job\n",
                "slice/memory.max": f"{16 * GIB}\n",
                "slice/job/memory.max": "max\n",
                "slice/cpu.max": "800000 100000\n",
                "slice/job/cpu.max": "1600000 100000\n",
            },
            8,
            16 * GIB,
            id="version 2, the group above limits",
        ),
        pytest.param(
            {
                "own": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n",
                "memory/memory.limit_in_bytes": f"{4 * GIB}\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
            4 * GIB,
            id="version 1, in a container, where the root is its own group",
        ),
        pytest.param(
            {
                "own": "4:memory:/\n2:cpu:/\n",
                "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
            512 * GIB,
            id="version 1, no limit",
        ),
    ],
)
def test_control_groups(tmp_path: Path, files: dict[str, str], cores: int, memory: int) -> None:
    write(tmp_path, files)
    assert (machine.num_cores(), machine.memory_bytes()) == (cores, memory)


@pytest.mark.parametrize(
    ("environment", "memory"),
    [
        ({"SLURM_MEM_PER_NODE": "65536"}, 64 * GIB),
        ({"SLURM_MEM_PER_CPU": "4096", "SLURM_CPUS_ON_NODE": "8"}, 32 * GIB),
        ({"SLURM_MEM_PER_CPU": "4096"}, 512 * GIB),
        # All memory of the node.
        ({"SLURM_MEM_PER_NODE": "0"}, 512 * GIB),
    ],
)
def test_slurm(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], memory: int) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert machine.memory_bytes() == memory


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert (machine.num_cores(), machine.memory_bytes()) == (1, None)

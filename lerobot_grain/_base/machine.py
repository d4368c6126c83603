"""The cores and the memory that this process may use, as the system, a container or a scheduler
limits them; and what kind of processor it is.

Sources: Linux's `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst`; Slurm's
`sbatch` (output environment variables).
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path, PurePosixPath

# Control groups have files there that limit memory and processor time.
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
# Linux.
_PROCESSORS = Path("/proc/cpuinfo")


def num_cores() -> int:
    """Returns the number of cores that this process may use, at least 1: those that it may run on,
    or fewer where a container limits the time on them.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    limits = [_cores_of_quota(each) for each in _cgroup_directories("cpu")]
    return max(1, min([cores, *(limit for limit in limits if limit is not None)]))


def memory_bytes() -> int | None:
    """Returns how much memory this process may use: that of the machine, or less where its control
    group or Slurm limits it; `None` where nothing tells it.
    """
    limits = [_physical_bytes(), _slurm_bytes()]
    for directory in _cgroup_directories("memory"):
        limits += [_number_in(directory / name) for name in ("memory.max", "memory.limit_in_bytes")]
    # No limit is a very high number in version 1.
    return min((limit for limit in limits if limit), default=None)


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _slurm_bytes() -> int | None:
    """Returns the memory of a Slurm job on this node, which a site may or may not enforce."""
    megabytes = _as_int(os.environ.get("SLURM_MEM_PER_NODE", ""))
    if megabytes is None:
        per_core = _as_int(os.environ.get("SLURM_MEM_PER_CPU", ""))
        cores = _as_int(os.environ.get("SLURM_CPUS_ON_NODE", ""))
        megabytes = None if per_core is None or cores is None else per_core * cores
    return None if megabytes is None else megabytes << 20


def _cgroup_directories(controller: str) -> list[Path]:
    """Returns the directories of the control groups that this process is in, for one controller:
    its own and all above it, each of which limits it.
    """
    try:
        lines = _CGROUP_OF_PROCESS.read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has one tree; version 1 has one for each controller.
        root = _CGROUPS / controllers if controllers else _CGROUPS
        # In a container the path is often that outside of it; then the root is its own group.
        group = PurePosixPath(path.lstrip("/"))
        found += [root / each for each in (group, *group.parents)]
    return found


def _cores_of_quota(directory: Path) -> int | None:
    """Returns the processor time that a control group has, in cores, rounded up."""
    try:
        words = (directory / "cpu.max").read_text().split()
    except OSError:
        quota = _number_in(directory / "cpu.cfs_quota_us")
        period = _number_in(directory / "cpu.cfs_period_us")
    else:
        quota, period = (_as_int(word) for word in words)
    return -(-quota // period) if quota and period else None


def _number_in(path: Path) -> int | None:
    try:
        return _as_int(path.read_text())
    except OSError:
        return None


def _as_int(text: str) -> int | None:
    """Returns a positive number; `None` for "max", -1 and everything else that is no limit."""
    stripped = text.strip()
    return int(stripped) if stripped.isdecimal() and int(stripped) else None


@functools.cache
def processor() -> str:
    """Returns the architecture of the processor, and the instruction sets that it has, as far as
    the system tells them: libraries choose their code by these, and so perhaps the last bits of a
    result.
    """
    try:
        lines = _PROCESSORS.read_text(errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    # On x86 and on ARM, of the first core.
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return " ".join([platform.machine(), *sorted(flags.partition(":")[2].split())])

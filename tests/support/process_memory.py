"""What the system says of the memory of this process."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def status_bytes(name: str) -> int:
    """Returns a size of Linux's status of a process, such as `VmHWM`, in bytes.

    Not `getrusage`: its peak is inherited from the parent process.
    """
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))

"""Amounts as text, with their units."""

from __future__ import annotations

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Returns a duration in the two largest of its units, such as `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def size(num_bytes: float) -> str:
    """Returns bytes in a unit of 1000, such as `12.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def shape_text(shape: Sequence[int]) -> str:
    """Returns a shape as Python writes it, such as `(7,)`."""
    return str(tuple(shape))

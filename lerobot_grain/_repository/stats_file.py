"""`meta/stats.json` -> the statistics of each feature, as far as they are numbers, and what is odd
about the rest. Pure.

Rules:
* Rows do not need statistics: nothing here may keep them from being read. Opening a dataset turns
  a refusal into a note.
* `null` is a number that is not known, NaN: strict JSON has no other way to write it.
* A statistic that is no numbers is left out, and so is an entry without any statistic but `count`:
  some recorders put texts, numbers of their own and descriptions there. If nothing is left of a
  file that has entries, it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import DatasetFormatError, short_repr

Statistics = Mapping[str, Mapping[str, npt.NDArray[np.float64]]]

_COUNT = "count"


@dataclass(slots=True)
class KnownStatistics:
    """The statistics of a dataset once they are read, so that this happens once.

    Attributes:
      stats: what was read; `None`: the dataset has none, or they are not read yet.
      are_read: whether they are.
    """

    stats: Statistics | None = None
    are_read: bool = False

    def keep(self, stats: Statistics | None) -> None:
        """Keeps what was read."""
        self.stats = stats
        self.are_read = True


def parse_stats(raw: bytes, *, where: str) -> tuple[Statistics, tuple[str, ...]]:
    """Reads statistics.

    Args:
      raw: contents of the file.
      where: names it in messages.

    Returns:
      Feature key -> statistic -> float64 array; and notes about what was left out.

    Raises:
      DatasetFormatError: it is no JSON object, or nothing in it is a statistic.
    """
    expected = f"{where}: expected feature -> statistic -> numbers"
    remedy = "compute_stats(repository) makes others"
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DatasetFormatError(f"{expected} ({str(error)[:200]}); {remedy}") from None
    if not isinstance(entries, dict):
        raise DatasetFormatError(f"{expected} (found a JSON {type(entries).__name__}); {remedy}")
    stats: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    odd: list[str] = []
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            odd.append(f"{short_repr(key)} is {short_repr(entry)}")
            continue
        found = {
            name: numbers
            for name, value in entry.items()
            if (numbers := numbers_of(value)) is not None
        }
        odd += [
            f"{name} of {short_repr(key)} is {short_repr(value)}"
            for name, value in entry.items()
            if name not in found
        ]
        if set(found) - {_COUNT} or not entry:
            stats[key] = found
    if odd and not stats:
        raise DatasetFormatError(f"{expected} ({odd[0]}); {remedy}")
    notes = (
        (
            f"{len(odd)} of its values are no numbers and are left out: {odd[0]}"
            + (", ..." if len(odd) > 1 else ""),
        )
        if odd
        else ()
    )
    return stats, notes


def numbers_of(value: Any) -> npt.NDArray[np.float64] | None:
    """Returns numbers in lists of one length, or one number, as float64; `None` for anything else,
    and where no number is known.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            if not all(isinstance(number, int | float | None) for number in array.ravel().tolist()):
                return None
            if all(number is None for number in array.ravel().tolist()):
                return None
        elif array.dtype.kind not in "biuf":
            return None
        return array.astype(np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None

"""Mean, standard deviation, extremes and quantiles of numbers that come in pieces.

Pure, in float64.

Means and squares are merged as in Chan, Golub and LeVeque (1979), of distances from the first row:
a column that never changes has a standard deviation of exactly 0, and a large offset costs no
digits.

Quantiles are exact (linear interpolation, as `numpy.quantile`) while the numbers take less than
`MAX_HELD_BYTES`. Above, they are counted in bins by the first 20 bits of their distance from the
first row as a float32: sign, exponent and 11 bits of the fraction. So a quantile is off the number
of its rank by less than 1/2048 of the distance between that and the first row, which is less than
1/2048 of max - min. The counts of a column take 8 MiB however many rows there are. The result
depends on the order of the rows only through the first one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# As lerobot names them.
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
# 2.4 million rows of 7 float32: nearly all datasets.
MAX_HELD_BYTES = 64 << 20
# The bits of a float32 that are ignored: finer bins take more memory, coarser ones show in the
# results.
_DROPPED_BITS = 12
_NUM_BINS = 1 << (32 - _DROPPED_BITS)

Floats = npt.NDArray[np.float64]


class RunningStats:
    """Statistics of rows of `size` finite numbers each."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.size = size
        # the first row; mean and squares are those of the distances from it
        self._origin = np.zeros(size)
        self._mean = np.zeros(size)
        self._squares = np.zeros(size)  # sums of squared distances from the mean
        self._min = np.full(size, np.inf)
        self._max = np.full(size, -np.inf)
        self._held: list[npt.NDArray[np.generic]] = []  # (size, rows)
        self._held_bytes = 0
        # (size, bins), once there are too many to hold
        self._counts: npt.NDArray[np.int64] | None = None

    def update(self, rows: npt.NDArray[np.generic]) -> None:
        """Adds rows, `(n, size)`, of any numeric dtype or bool."""
        if not len(rows):
            return
        columns = np.ascontiguousarray(rows.T)
        if self.count == 0:
            self._origin = columns[:, 0].astype(np.float64)
        total = self.count + len(rows)
        for number, column in enumerate(columns):
            # Not `column - origin`: of float32 and one float64, NumPy 1 makes float32.
            distances = np.subtract(column, self._origin[number], dtype=np.float64)
            mean = distances.mean()
            shift = mean - self._mean[number]
            distances -= mean
            self._squares[number] += (
                distances @ distances + shift * shift * self.count * len(rows) / total
            )
            self._mean[number] += shift * len(rows) / total
        self._min = np.minimum(self._min, columns.min(axis=1))
        self._max = np.maximum(self._max, columns.max(axis=1))
        self.count = total
        self._held.append(columns)
        self._held_bytes += columns.nbytes
        if self._counts is not None or self._held_bytes > MAX_HELD_BYTES:
            self._count_held()

    def result(self) -> dict[str, Floats]:
        """Returns `min`, `max`, `mean`, `std` (of the population, as lerobot's), `q01`, `q10`,
        `q50`, `q90`, `q99`, each `(size,)`, and
        `count`, `(1,)`. There must have been a row.
        """
        quantiles = np.array(
            [self._quantiles(number) for number in range(len(self._mean))]
        ).reshape(-1, len(QUANTILES))
        return {
            "min": self._min.copy(),
            "max": self._max.copy(),
            "mean": self._origin + self._mean,
            "std": np.sqrt(self._squares / self.count),
            "count": np.array([self.count], np.float64),
            **dict(zip(QUANTILES, quantiles.T, strict=True)),
        }

    def _count_held(self) -> None:
        if self._counts is None:
            self._counts = np.zeros((len(self._mean), _NUM_BINS), np.int64)
        for columns in self._held:
            for number, column in enumerate(columns):
                distances = np.subtract(column, self._origin[number], dtype=np.float64).astype(
                    np.float32
                )
                bins = _ordered(distances.view(np.int32)) >> _DROPPED_BITS
                self._counts[number] += np.bincount(bins + _NUM_BINS // 2, minlength=_NUM_BINS)
        self._held.clear()

    def _quantiles(self, number: int) -> Floats:
        fractions = np.array(list(QUANTILES.values()))
        if self._counts is None:
            column = np.concatenate([columns[number] for columns in self._held])
            return np.asarray(np.quantile(column.astype(np.float64), fractions))
        filled = np.flatnonzero(self._counts[number])
        counts = self._counts[number, filled]
        stops = np.cumsum(counts)
        ranks = fractions * (self.count - 1)
        chosen = np.searchsorted(stops, ranks, side="right")
        low = _lower_edges(filled[chosen])
        high = _lower_edges(filled[chosen] + 1)
        inside = (ranks - stops[chosen] + counts[chosen] + 0.5) / counts[chosen]
        found: Floats = self._origin[number] + low + (high - low) * np.minimum(inside, 1)
        return found.clip(self._min[number], self._max[number])


def _ordered(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Returns the bits of float32 as integers in the order of the numbers; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _lower_edges(bins: npt.NDArray[np.int64]) -> Floats:
    bits = ((bins - _NUM_BINS // 2) << _DROPPED_BITS).astype(np.int32)
    return _ordered(bits).view(np.float32).astype(np.float64)

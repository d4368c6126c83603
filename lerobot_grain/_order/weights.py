"""Weights of rows as integers: how often each row is to come, on average, in units of 2**-32.

Weights are scaled to mean 1 over the rows that have one above 0, with exact integers, so that they
are the same on every machine. docs/architecture/order.md, "Weights", defines it.

Rows that follow each other often have the same weight, all those of an episode, say. So weights are
kept as runs of equal ones, whose number counts and not that of the rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError

# The weight 1: a row comes once a round.
UNIT_BITS = 32
UNIT = 1 << UNIT_BITS
# Sums of weights stay below 2**62.
MAX_ROWS = (1 << 30) - 1


@dataclass(frozen=True, slots=True, eq=False)
class RowWeights:
    """The scaled weights of the selected rows, one after the other.

    Attributes:
      values: int64 `(runs,)`, weight of each row of a run, in units of 2**-32; neighbors differ.
      lengths: int64 `(runs,)`, rows of each run, > 0.
    """

    values: Integers
    lengths: Integers

    @property
    def num_rows(self) -> int:
        """Rows whose weight is above 0, which is how many come in a round."""
        return int(self.lengths[self.values > 0].sum())

    @property
    def is_mask(self) -> bool:
        """Whether each row comes once a round or never."""
        return bool(np.isin(self.values, (0, UNIT)).all())

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash of the weights, the same on every machine."""
        runs = np.stack([self.values, self.lengths], axis=1)
        return hashlib.sha256(runs.astype("<i8").tobytes()).hexdigest()[:16]


def scaled_weights(weights: npt.NDArray[np.float64], lengths: Integers) -> RowWeights | None:
    """Returns weights scaled to mean 1; `None`: all are the same, so that they change nothing.

    Args:
      weights: float64 `(runs,)`, finite and >= 0, not all 0: of each row of a run.
      lengths: int64 `(runs,)`, rows of each run, > 0.

    Raises:
      InvalidRequestError: there are too many rows.
    """
    distinct, numbers = np.unique(weights, return_inverse=True)
    # Sums of integers, which a float64 holds exactly.
    counts = np.bincount(numbers, weights=lengths).astype(np.int64)
    num_rows = int(counts[distinct > 0].sum())
    if num_rows > MAX_ROWS:
        raise InvalidRequestError(
            f"weights of {num_rows} rows; expected at most {MAX_ROWS} with a weight above 0. "
            "Select fewer with episodes=, or mix several datasets"
        )
    # As integers in units of the smallest power of two that one of them is a multiple of.
    ratios = [weight.as_integer_ratio() for weight in distinct.tolist()]
    unit = max(denominator for _, denominator in ratios)
    exact = [numerator * (unit // denominator) for numerator, denominator in ratios]
    total = sum(weight * count for weight, count in zip(exact, counts.tolist(), strict=True))
    assert total > 0
    scaled = [
        max(1, _rounded(weight * num_rows << UNIT_BITS, total)) if weight else 0 for weight in exact
    ]
    values = np.array(scaled, np.int64)[numbers]
    begins = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    if len(begins) == 1:
        return None
    return RowWeights(values[begins], np.add.reduceat(lengths, begins))


def _rounded(numerator: int, denominator: int) -> int:
    """Returns the nearest integer to a fraction, of two that are as near the even one."""
    quotient, rest = divmod(numerator, denominator)
    is_above = 2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1)
    return quotient + is_above

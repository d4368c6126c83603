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
# Bits of the mantissa of a float64, and half of them.
_MANTISSA_BITS = 53
_HALF_BITS = 26
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
    scaled = np.zeros(len(distinct), np.int64)
    above = distinct > 0
    scaled[above] = np.maximum(1, _scaled(distinct[above], counts[above], num_rows))
    values = scaled[numbers]
    begins = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    if len(begins) == 1:
        return None
    return RowWeights(values[begins], np.add.reduceat(lengths, begins))


def _scaled(weights: npt.NDArray[np.float64], counts: Integers, num_rows: int) -> Integers:
    """Returns int64 `(n,)`: weights by their mean in units of 2**-32, rounded.

    Args:
      weights: float64 `(n,)`, > 0, ascending.
      counts: int64 `(n,)`, rows of each.
      num_rows: the sum of these.
    """
    # A weight is mantissa * 2**exponent, both whole numbers.
    fractions, exponents = np.frexp(weights)
    mantissas = np.ldexp(fractions, _MANTISSA_BITS).astype(np.int64)
    # Equal exponents follow each other. Their sums, in two halves that 64 bits hold.
    starts = np.flatnonzero(np.diff(exponents, prepend=exponents[0] - 1))
    high = np.add.reduceat((mantissas >> _HALF_BITS) * counts, starts).tolist()
    low = np.add.reduceat((mantissas & ((1 << _HALF_BITS) - 1)) * counts, starts).tolist()
    # From here on in units of the smallest exponent: Python's integers have as many bits as needed.
    shifts = exponents - exponents[0]
    total = sum(
        ((upper << _HALF_BITS) + lower) << shift
        for upper, lower, shift in zip(high, low, shifts[starts].tolist(), strict=True)
    )
    factors = [((num_rows << UNIT_BITS) << shift) / total for shift in shifts[starts].tolist()]
    lengths = np.diff(starts, append=len(weights))
    # Off by two roundings of 2**-53 at most: that decides, but for numbers near a half.
    near = mantissas * np.repeat(factors, lengths)
    found: Integers = np.rint(near).astype(np.int64)
    is_close = np.abs(near - np.floor(near) - 0.5) <= near * 2.0**-50
    for place in np.flatnonzero(is_close).tolist():
        exact = mantissas.item(place) << shifts.item(place)
        found[place] = _rounded(exact * num_rows << UNIT_BITS, total)
    return found


def _rounded(numerator: int, denominator: int) -> int:
    """Returns the nearest integer to a fraction, of two that are as near the even one."""
    quotient, rest = divmod(numerator, denominator)
    is_above = 2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1)
    return quotient + is_above

"""The clips of weighted rows, cut into pieces of rows that have one weight: how many rows a copy of
a clip has, and which. docs/architecture/order.md, "Weights", defines it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.philox import Words
from lerobot_grain._order.row_sources import Runs, SteppedRuns, cut_into_clips
from lerobot_grain._order.sampling.weights import RowWeights

# Numbers of rows of copies, in the smallest dtype that holds them: there are many.
Lengths = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True, eq=False)
class WeightedClips:
    """The clips, cut into pieces of rows that have one weight.

    Attributes:
      episodes: int64 `(clips,)`, place of the episode of each among the selected ones.
      weights: int64 `(clips,)`, the largest weight of its rows.
      total: the sum of the weights of all rows.
      begins: int64 `(clips,)`, the sum of the weights of all rows before it.
      has_chance: bool `(clips,)`, whether it depends on chance which rows a copy has.
      rows_of_copy: `(clips,)`, how many rows a copy has, or has at least.
      may_be_longer: whether some copies can have one row more.
      longer_above: uint64 `(clips,)`: a copy with a larger word has one row more.
      members: int64, numbers of the clips of a weight above 0.
      pieces: in the order of rows.
    """

    episodes: Integers
    weights: Integers
    total: int
    begins: Integers
    has_chance: npt.NDArray[np.bool_]
    rows_of_copy: Lengths
    may_be_longer: bool
    longer_above: Words
    members: Integers
    pieces: _Pieces

    @classmethod
    def cut(
        cls,
        first_rows: Integers,
        lengths: Integers,
        weights: RowWeights,
        *,
        clip_length: int | None,
    ) -> WeightedClips:
        clip_first, clip_lengths, episodes = cut_into_clips(first_rows, lengths, clip_length)
        clip_starts = np.cumsum(clip_lengths) - clip_lengths
        run_starts = np.cumsum(weights.lengths) - weights.lengths
        starts = _merged(clip_starts, run_starts)
        clip_of = np.searchsorted(clip_starts, starts, side="right") - 1
        values = weights.values[np.searchsorted(run_starts, starts, side="right") - 1]
        pieces = _Pieces(
            first_rows=clip_first[clip_of] + starts - clip_starts[clip_of],
            lengths=np.diff(starts, append=int(lengths.sum())),
            weights=values,
            clips=clip_of,
        )
        first_pieces = np.searchsorted(starts, clip_starts)
        largest = np.maximum.reduceat(values, first_pieces)
        # Rows of weight 0 never come, and those of the largest weight always.
        least = np.minimum.reduceat(np.where(values > 0, values, largest[clip_of]), first_pieces)
        totals = np.add.reduceat(values * pieces.lengths, first_pieces)
        rows_of_copy, rest = np.divmod(totals, np.maximum(largest, 1))
        # With v = floor(word * M / 2**64) a copy has floor((total + v) / M) rows: one more where
        # rest + v >= M, so where word > (M - rest) * 2**64 / M, or is equal.
        longer_above = np.full(len(largest), 2**64 - 1, np.uint64)
        chance = np.flatnonzero(rest)
        longer_above[chance] = _quotients(largest[chance] - rest[chance], largest[chance])
        return cls(
            episodes=episodes,
            weights=largest,
            total=int(totals.sum()),
            begins=pieces.sums[first_pieces] - (values * pieces.lengths)[first_pieces],
            has_chance=least < largest,
            rows_of_copy=rows_of_copy.astype(np.min_scalar_type(clip_lengths.max())),
            may_be_longer=bool(len(chance)),
            longer_above=longer_above,
            members=np.flatnonzero(largest),
            pieces=pieces,
        )

    def unmasked_rows(self) -> Runs:
        """Returns the rows of weight above 0 as runs."""
        pieces = self.pieces
        kept = np.flatnonzero(pieces.weights)
        return SteppedRuns(
            pieces.first_rows[kept],
            pieces.lengths[kept],
            self.episodes[pieces.clips[kept]],
            step=1,
        )


class _Pieces:
    """Pieces of clips: consecutive rows of one weight.

    Attributes:
      first_rows, lengths, weights: int64 `(pieces,)`.
      clips: int64 `(pieces,)`, number of the clip of each.
      sums: int64 `(pieces,)`, the sum of the weights of all rows up to the end of each.
    """

    def __init__(
        self, *, first_rows: Integers, lengths: Integers, weights: Integers, clips: Integers
    ) -> None:
        self.first_rows = first_rows
        self.lengths = lengths
        self.weights = weights
        self.clips = clips
        self.sums = np.cumsum(weights * lengths)

    def rows_at(self, sums: Integers) -> Integers:
        """Returns the first row with which the sum of all weights reaches each of `sums`, int64
        `(n,)`, > 0.
        """
        # Ascending, they are found in half of the time: what one looks at stays in the cache.
        order = np.argsort(sums)
        numbers = np.empty_like(order)
        numbers[order] = np.searchsorted(self.sums, sums[order])
        # From the end of the piece, which is where its sum is known.
        beyond = (self.sums[numbers] - sums) // self.weights[numbers]
        return self.first_rows[numbers] + self.lengths[numbers] - 1 - beyond


def _quotients(numerators: Integers, denominators: Integers) -> Words:
    """Returns uint64 `(n,)`: the largest integers below numerator * 2**64 / denominator.

    Args:
      numerators: int64 `(n,)`, 0 < numerator < denominator.
      denominators: int64 `(n,)`, < 2**62.
    """
    rest = numerators.copy()
    found = np.zeros(len(rest), np.uint64)
    # As on paper, one bit at a time.
    for _ in range(64):
        rest <<= 1
        is_one = rest >= denominators
        rest -= np.where(is_one, denominators, 0)
        found = found << np.uint64(1) | is_one
    # The quotient itself is not below it.
    below: Words = found - (rest == 0)
    return below


def _merged(first: Integers, second: Integers) -> Integers:
    """Returns the distinct numbers of two ascending sequences, ascending."""
    # A stable sort merges what is sorted; `np.union1d` (NumPy 2.4) takes a hundred times as long.
    both = np.sort(np.concatenate((first, second)), kind="stable")
    return both[np.diff(both, prepend=-1) > 0]

"""Rounds of weighted rows: every clip comes as often as its weight says, rounded down or up.

A round takes the place of an epoch, and has as many rows as there are with a weight above 0. It is
made of *copies* of clips (docs/architecture/order.md, "Weights", defines it):

* A clip's weight M is the largest one of its rows. The clips are walked through in a random order,
  and the running sum of their weights, from a random number on, says how many copies of each come:
  M rounded down or up.
* A copy keeps a row where the running sum of the weights in the clip, from a random number on and
  in units of M, passes an integer: a row of weight M always, one of half of that every second time.
* If a walk ends before the round is full, the next one begins. The last copy is cut.

So the rows of a round follow from (seed, round) alone. Setting one up costs a sort of its clips;
which rows a copy has is found by a search in the running sum, when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.philox import (
    Stream,
    below,
    first_of_permutation,
    words,
    words_at,
)
from lerobot_grain._order.row_sources import RowSource, Runs, SteppedRuns, cut_into_clips
from lerobot_grain._order.sampling.weights import UNIT_BITS, RowWeights

# The parts of stream DRAW: the order of the clips, the begin of the running sum, and from this one
# on the numbers of the copies: one part for the first copy of every clip, one for the second, ...
_ORDER, _BEGIN, _COPIES = 0, 1, 2
# Up to so many words of a stream, all in a row, are made for each one that is wanted: that still
# costs less than making the wanted ones one by one.
_CHEAP_WORDS = 16
# A walk that fills a round up puts so many times as many clips in order as are expected to do; if
# these do not, all.
_SAFE_FACTOR = 4


class WeightedRows(RowSource):
    """The rows of every round.

    Args:
      first_rows, lengths, clip_length: as of `EveryRow`.
      weights: of the selected rows.
      seed: of the order; of no use without clips.
    """

    def __init__(
        self,
        first_rows: Integers,
        lengths: Integers,
        *,
        weights: RowWeights,
        clip_length: int | None,
        seed: int,
    ) -> None:
        # Without clips the order is sequential, and nothing is drawn.
        assert clip_length is not None or weights.is_mask
        self.num_rows = weights.num_rows
        self._first_rows = first_rows
        self._lengths = lengths
        self._weights = weights
        self._is_mask = weights.is_mask
        self._clip_length = clip_length
        self._seed = seed

    def runs(self, epoch: int) -> Runs:
        clips = self._clips
        if self._clip_length is None:
            return clips.unmasked_rows()
        if self._is_mask:
            once = np.flatnonzero(clips.weights)
            return _Copies(clips, once, np.zeros_like(once), clips.rows_of_copy[once])
        return _Round(clips, self._seed, epoch).copies(self.num_rows)

    def runs_every_epoch(self) -> Integers:
        clips = self._clips
        # Weights of mean 1 leave room: the sums of all episodes are far below 2**62.
        sums = np.zeros(len(self._lengths), np.int64)
        np.add.at(sums, clips.episodes, clips.weights)
        return sums >> UNIT_BITS

    @cached_property
    def _clips(self) -> _Clips:
        return _Clips.cut(
            self._first_rows, self._lengths, self._weights, clip_length=self._clip_length
        )


@dataclass(frozen=True, eq=False)
class _Clips:
    """The clips, cut into pieces of rows that have one weight.

    Attributes:
      episodes: int64 `(clips,)`, place of the episode of each among the selected ones.
      weights: int64 `(clips,)`, the largest weight of its rows.
      totals: int64 `(clips,)`, the sum of the weights of its rows.
      begins: int64 `(clips,)`, the sum of the weights of all rows before it.
      has_chance: bool `(clips,)`, whether it depends on chance which rows a copy has.
      rows_of_copy: int64 `(clips,)`, how many rows a copy has where it does not.
      pieces: in the order of rows.
    """

    episodes: Integers
    weights: Integers
    totals: Integers
    begins: Integers
    has_chance: npt.NDArray[np.bool_]
    rows_of_copy: Integers
    pieces: _Pieces

    @classmethod
    def cut(
        cls,
        first_rows: Integers,
        lengths: Integers,
        weights: RowWeights,
        *,
        clip_length: int | None,
    ) -> _Clips:
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
        return cls(
            episodes=episodes,
            weights=largest,
            totals=totals,
            begins=pieces.sums[first_pieces] - (values * pieces.lengths)[first_pieces],
            has_chance=least < largest,
            rows_of_copy=totals // np.maximum(largest, 1),
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
        numbers = np.searchsorted(self.sums, sums)
        # From the end of the piece, which is where its sum is known.
        beyond = (self.sums[numbers] - sums) // self.weights[numbers]
        return self.first_rows[numbers] + self.lengths[numbers] - 1 - beyond


class _Copies(Runs):
    """Copies of clips, each with the rows that it keeps.

    Args:
      clips: all clips.
      numbers: int64 `(copies,)`, number of the clip of each.
      drawn: int64 `(copies,)`, where each begins, >= 0 and less than the weight of its clip.
      lengths: int64 `(copies,)`, rows of each.
    """

    def __init__(
        self, clips: _Clips, numbers: Integers, drawn: Integers, lengths: Integers
    ) -> None:
        self.lengths = lengths
        self.episodes = clips.episodes[numbers]
        self._clips = clips
        self._numbers = numbers
        self._drawn = drawn

    def chosen(self, numbers: Integers) -> _Copies:
        return _Copies(
            self._clips, self._numbers[numbers], self._drawn[numbers], self.lengths[numbers]
        )

    def rows(self, numbers: Integers, places: Integers) -> Integers:
        clips = self._numbers[numbers]
        passed = (places + 1) * self._clips.weights[clips] - self._drawn[numbers]
        return self._clips.pieces.rows_at(self._clips.begins[clips] + passed)


class _Drawn(NamedTuple):
    """Copies of one walk, in the order of clips: int64 `(copies,)` each, as of `_Copies`."""

    numbers: Integers
    drawn: Integers
    lengths: Integers


class _Round:
    """One round that is being drawn."""

    def __init__(self, clips: _Clips, seed: int, number: int) -> None:
        self._clips = clips
        self._seed = seed
        self._number = number
        self._members = np.flatnonzero(clips.weights)

    def copies(self, num_rows: int) -> _Copies:
        """Returns the copies of the round, which have so many rows together, in the order of
        clips.
        """
        walks: list[_Drawn] = []
        missing = num_rows
        while missing:
            walk = self._walk(len(walks), missing)
            walks.append(walk)
            missing -= int(walk.lengths.sum())
        numbers = np.concatenate([walk.numbers for walk in walks])
        # Copies of a clip from earlier walks are first.
        order = np.argsort(numbers, kind="stable") if len(walks) > 1 else np.arange(len(numbers))
        return _Copies(
            self._clips,
            numbers[order],
            np.concatenate([walk.drawn for walk in walks])[order],
            np.concatenate([walk.lengths for walk in walks])[order],
        )

    def _walk(self, draw: int, num_rows: int) -> _Drawn:
        """Returns the copies of walk `draw`, cut so that they have at most `num_rows` rows."""
        members = self._members
        expected = int(num_rows / int(self._clips.totals.sum()) * len(members) * (1 << UNIT_BITS))
        count = _SAFE_FACTOR * (expected + 1)
        if draw and count < len(members):
            walk, is_full = self._part_of_walk(draw, num_rows, count)
            if is_full:
                return walk
        return self._part_of_walk(draw, num_rows, len(members))[0]

    def _part_of_walk(self, draw: int, num_rows: int, count: int) -> tuple[_Drawn, bool]:
        """Returns the copies of the first `count` clips of a walk, cut so that they have at most
        `num_rows` rows, and whether they have as many.
        """
        clips = self._clips
        key = {"seed": self._seed, "epoch": self._number, "block": draw}
        order = self._members[
            first_of_permutation(len(self._members), count, Stream.DRAW, part=_ORDER, **key)
        ]
        begin = int(words(1, Stream.DRAW, part=_BEGIN, **key)[0]) >> (64 - UNIT_BITS)
        passed = (begin + np.cumsum(clips.weights[order])) >> UNIT_BITS
        counts = np.zeros(len(clips.weights), np.int64)
        counts[order] = np.diff(passed, prepend=0)
        numbers = np.repeat(np.arange(len(counts)), counts)
        stops = np.cumsum(counts)
        drawn = self._draw(numbers, np.arange(len(numbers)) - (stops - counts)[numbers], draw)
        # Rows before each copy, in the order of clips.
        before = np.concatenate(([0], np.cumsum(self._rows_of(numbers, drawn))))
        rows_of_clip = before[stops] - before[stops - counts]
        rows_left = np.zeros(len(counts), np.int64)
        walked = np.cumsum(rows_of_clip[order])
        rows_left[order] = np.clip(num_rows - (walked - rows_of_clip[order]), 0, None)
        in_clip = before[:-1] - before[stops - counts][numbers]
        lengths = np.clip(rows_left[numbers] - in_clip, 0, np.diff(before))
        kept = np.flatnonzero(lengths)
        return _Drawn(numbers[kept], drawn[kept], lengths[kept]), walked.item(-1) >= num_rows

    def _rows_of(self, numbers: Integers, drawn: Integers) -> Integers:
        """Returns how many rows each copy keeps, int64 `(n,)`; arguments as of `_Copies`."""
        clips = self._clips
        found = clips.rows_of_copy[numbers]
        chance = np.flatnonzero(clips.has_chance[numbers])
        chosen = numbers[chance]
        found[chance] = (clips.totals[chosen] + drawn[chance]) // clips.weights[chosen]
        return found

    def _draw(self, numbers: Integers, copies: Integers, draw: int) -> Integers:
        """Returns where each copy begins, int64 `(n,)`, which is 0 where it does not matter.

        Args:
          numbers: int64 `(n,)`, of the clip of each, ascending.
          copies: int64 `(n,)`, which copy of the clip each is.
        """
        clips = self._clips
        drawn = np.zeros(len(numbers), np.int64)
        left = np.flatnonzero(clips.has_chance[numbers])
        key = {"seed": self._seed, "epoch": self._number}
        wanted = np.bincount(copies[left])
        # Most clips have few copies: there are ever fewer of each.
        num_made = int(np.count_nonzero(_CHEAP_WORDS * wanted > len(clips.weights)))
        made = np.empty((num_made, len(clips.weights)), np.uint64)
        for copy in range(num_made):
            made[copy] = words(
                len(clips.weights), Stream.DRAW, block=draw, part=_COPIES + copy, **key
            )
        is_made = copies[left] < num_made
        chosen = left[is_made]
        drawn[chosen] = below(made[copies[chosen], numbers[chosen]], clips.weights[numbers[chosen]])
        chosen = left[~is_made]
        found = words_at(
            numbers[chosen], Stream.DRAW, blocks=draw, parts=_COPIES + copies[chosen], **key
        )
        drawn[chosen] = below(found, clips.weights[numbers[chosen]])
        return drawn


def _merged(first: Integers, second: Integers) -> Integers:
    """Returns the distinct numbers of two ascending sequences, ascending."""
    # A stable sort merges what is sorted; `np.union1d` (NumPy 2.4) takes a hundred times as long.
    both = np.sort(np.concatenate((first, second)), kind="stable")
    return both[np.diff(both, prepend=-1) > 0]

"""Rounds of weighted rows: every clip comes as often as its weight says, rounded down or up.

A round takes the place of an epoch, and has as many rows as there are with a weight above 0. It is
made of *copies* of clips (docs/architecture/order.md, "Weights", defines it):

* A clip's weight M is the largest one of its rows. The clips are walked through in a random order,
  and the running sum of their weights, from a random number on, says how many copies of each come:
  M rounded down or up.
* A copy keeps a row where the running sum of the weights in the clip, from a random number on and
  in units of M, passes an integer: a row of weight M always, one of half of that every second time.
* If a walk ends before the round is full, the next one begins. The last copy is cut.

So the rows of a round follow from (seed, round) alone. Setting one up costs a sort of its clips and
a word for each copy, which says how many rows it has; which rows these are is found by a search in
the running sum, when they are asked for.
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
    Words,
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
_CHEAP_WORDS = 64
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
            once = clips.members
            return _Copies(clips, once, np.zeros(len(once), np.uint64), clips.rows_of_copy[once])
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
      total: the sum of the weights of all rows.
      begins: int64 `(clips,)`, the sum of the weights of all rows before it.
      has_chance: bool `(clips,)`, whether it depends on chance which rows a copy has.
      rows_of_copy: int64 `(clips,)`, how many rows a copy has, or has at least.
      longer_above: uint64 `(clips,)`: a copy with a larger word has one row more.
      members: int64, numbers of the clips of a weight above 0.
      pieces: in the order of rows.
    """

    episodes: Integers
    weights: Integers
    total: int
    begins: Integers
    has_chance: npt.NDArray[np.bool_]
    rows_of_copy: Integers
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
            rows_of_copy=rows_of_copy,
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
        numbers = np.searchsorted(self.sums, sums)
        # From the end of the piece, which is where its sum is known.
        beyond = (self.sums[numbers] - sums) // self.weights[numbers]
        return self.first_rows[numbers] + self.lengths[numbers] - 1 - beyond


class _Copies(Runs):
    """Copies of clips, each with the rows that it keeps.

    Args:
      clips: all clips.
      numbers: int64 `(copies,)`, number of the clip of each.
      drawn: uint64 `(copies,)`, the word that says where each begins; 0 where it does not matter.
      lengths: int64 `(n,)`, rows of each one that is chosen.
      order: int64 `(n,)`, which copies are chosen; `None`: all, as they are.
    """

    def __init__(
        self,
        clips: _Clips,
        numbers: Integers,
        drawn: Words,
        lengths: Integers,
        order: Integers | None = None,
    ) -> None:
        self.lengths = lengths
        self._clips = clips
        self._numbers = numbers
        self._drawn = drawn
        self._order = order

    @property
    def episodes(self) -> Integers:  # type: ignore[override]
        numbers = self._numbers if self._order is None else self._numbers[self._order]
        return self._clips.episodes[numbers]

    def chosen(self, numbers: Integers) -> _Copies:
        # What else there is of a copy is looked up when its rows are asked for: few are at a time.
        order = numbers if self._order is None else self._order[numbers]
        return _Copies(self._clips, self._numbers, self._drawn, self.lengths[numbers], order)

    def rows(self, numbers: Integers, places: Integers) -> Integers:
        copies = numbers if self._order is None else self._order[numbers]
        clips = self._numbers[copies]
        weights = self._clips.weights[clips]
        passed = (places + 1) * weights - below(self._drawn[copies], weights)
        return self._clips.pieces.rows_at(self._clips.begins[clips] + passed)


class _Drawn(NamedTuple):
    """Copies of one walk, in the order of clips: `(copies,)` each, as of `_Copies`."""

    numbers: Integers
    drawn: Words
    lengths: Integers


class _Round:
    """One round that is being drawn."""

    def __init__(self, clips: _Clips, seed: int, number: int) -> None:
        self._clips = clips
        self._seed = seed
        self._number = number

    def copies(self, num_rows: int) -> _Copies:
        """Returns the copies of the round, which have so many rows together, in the order of
        clips.
        """
        found = self._walk(0, num_rows)
        missing = num_rows - int(found.lengths.sum())
        draw = 1
        while missing:
            walk = self._walk(draw, missing)
            missing -= int(walk.lengths.sum())
            draw += 1
            # Copies of a clip from earlier walks are first.
            places = np.searchsorted(found.numbers, walk.numbers, side="right")
            found = _Drawn(
                *(np.insert(old, places, new) for old, new in zip(found, walk, strict=True))
            )
        return _Copies(self._clips, *found)

    def _walk(self, draw: int, num_rows: int) -> _Drawn:
        """Returns the copies of walk `draw`, cut so that they have at most `num_rows` rows."""
        num_members = len(self._clips.members)
        expected = int(num_rows / self._clips.total * num_members * (1 << UNIT_BITS))
        count = _SAFE_FACTOR * (expected + 1)
        if draw and count < num_members:
            walk, is_full = self._part_of_walk(draw, num_rows, count)
            if is_full:
                return walk
        return self._part_of_walk(draw, num_rows, num_members)[0]

    def _part_of_walk(self, draw: int, num_rows: int, count: int) -> tuple[_Drawn, bool]:
        """Returns the copies of the first `count` clips of a walk, cut so that they have at most
        `num_rows` rows, and whether they have as many.
        """
        members = self._clips.members
        key = {"seed": self._seed, "epoch": self._number, "block": draw}
        walked = first_of_permutation(len(members), count, Stream.DRAW, part=_ORDER, **key)
        begin = int(words(1, Stream.DRAW, part=_BEGIN, **key)[0]) >> (64 - UNIT_BITS)
        passed = self._clips.weights[members[walked]]
        np.cumsum(passed, out=passed)
        passed += begin
        passed >>= UNIT_BITS
        # From here on in the order of clips; `places` are those of the walk in it.
        chosen, places = _ascending(walked, len(members))
        counts = np.empty(count, np.int64)
        counts[places] = np.diff(passed, prepend=0)
        numbers = np.repeat(members[chosen], counts)
        stops = np.cumsum(counts)
        drawn = self._draw(members[chosen], counts, stops, draw)
        lengths = self._clips.rows_of_copy[numbers] + (drawn > self._clips.longer_above[numbers])
        before = np.concatenate(([0], np.cumsum(lengths)))
        rows = before[stops] - before[stops - counts]
        rows_walked = np.cumsum(rows[places])
        # The clip with which the round is full; those after it in the walk do not come.
        last = int(np.searchsorted(rows_walked, num_rows))
        if last < count:
            last_clip = places.item(last)
            copies = slice(stops.item(last_clip) - counts.item(last_clip), stops.item(last_clip))
            left = num_rows - (rows_walked.item(last) - rows.item(last_clip))
            # Rows before each copy of it.
            earlier = before[copies] - before[copies.start]
            lengths[copies] = np.clip(left - earlier, 0, lengths[copies])
            comes = np.ones(count, np.bool_)
            comes[places[last + 1 :]] = False
            kept = np.flatnonzero(np.repeat(comes, counts) & (lengths > 0))
            if len(kept) < len(lengths):
                return _Drawn(numbers[kept], drawn[kept], lengths[kept]), True
        return _Drawn(numbers, drawn, lengths), last < count

    def _draw(self, clips: Integers, counts: Integers, stops: Integers, draw: int) -> Words:
        """Returns the word of each copy, uint64 `(copies,)`; 0 where it does not matter.

        Args:
          clips: int64 `(n,)`, ascending: their numbers.
          counts, stops: int64 `(n,)`, copies of each clip, and of each and all before it.
        """
        found = np.zeros(stops.item(-1), np.uint64)
        left = np.flatnonzero(self._clips.has_chance[clips] & (counts > 0))
        key = {"seed": self._seed, "epoch": self._number}
        copy = 0
        # Most clips have few copies: there are ever fewer of each.
        while len(left):
            chosen = clips[left]
            # All up to the last one that is wanted are made.
            num_made = chosen.item(-1) + 1
            if num_made > _CHEAP_WORDS * len(left):
                break
            made = words(num_made, Stream.DRAW, block=draw, part=_COPIES + copy, **key)
            found[(stops - counts)[left] + copy] = made[chosen]
            copy += 1
            left = left[counts[left] > copy]
        if len(left):
            more = counts[left] - copy
            ends = np.cumsum(more)
            copies = copy + np.arange(ends[-1]) - np.repeat(ends - more, more)
            found[np.repeat((stops - counts)[left], more) + copies] = words_at(
                np.repeat(clips[left], more),
                Stream.DRAW,
                blocks=draw,
                parts=_COPIES + copies,
                **key,
            )
        return found


def _ascending(walked: Integers, num_members: int) -> tuple[Integers, Integers]:
    """Returns the members of a walk in ascending order, and the place of each step of the walk in
    it, int64 `(n,)` each.
    """
    if len(walked) == num_members:
        return np.arange(num_members), walked
    order = np.argsort(walked)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return walked[order], places


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

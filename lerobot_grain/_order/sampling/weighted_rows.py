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

from functools import cached_property

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.philox import below
from lerobot_grain._order.row_sources import RowSource, Runs
from lerobot_grain._order.sampling.rounds import CopyNames, DrawnCopies, Round, each_once
from lerobot_grain._order.sampling.weighted_clips import WeightedClips
from lerobot_grain._order.sampling.weights import UNIT_BITS, RowWeights


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
            return _Copies(clips, each_once(clips))
        return _Copies(clips, Round(clips, self._seed, epoch).copies(self.num_rows))

    def runs_every_epoch(self) -> Integers:
        clips = self._clips
        # Weights of mean 1 leave room: the sums of all episodes are far below 2**62.
        sums = np.zeros(len(self._lengths), np.int64)
        np.add.at(sums, clips.episodes, clips.weights)
        return sums >> UNIT_BITS

    @cached_property
    def _clips(self) -> WeightedClips:
        return WeightedClips.cut(
            self._first_rows, self._lengths, self._weights, clip_length=self._clip_length
        )


class _Copies(Runs):
    """Copies of clips, each with the rows that it keeps.

    Args:
      clips: all clips.
      copies: those of the round.
      order: int64 `(n,)`, which of them are chosen; `None`: all, as they are.
    """

    def __init__(
        self, clips: WeightedClips, copies: DrawnCopies, order: Integers | None = None
    ) -> None:
        self.lengths = copies.lengths if order is None else copies.lengths[order]
        self._clips = clips
        self._copies = copies
        self._order = order

    @property
    def episodes(self) -> Integers:  # type: ignore[override]
        names = self._copies.names(self._chosen(np.arange(len(self))))
        return self._clips.episodes[names.clips]

    def chosen(self, numbers: Integers) -> _Copies:
        # The rest of a copy is looked up when its rows are asked for: few are at a time.
        return _Copies(self._clips, self._copies, self._chosen(numbers))

    def rows(self, numbers: Integers, places: Integers) -> Integers:
        copies = self._copies.names(self._chosen(numbers))
        weights = self._clips.weights[copies.clips]
        passed = (places + 1) * weights
        chance = np.flatnonzero(self._clips.has_chance[copies.clips])
        if len(chance):
            drawn = self._copies.words(CopyNames(*(values[chance] for values in copies)))
            passed[chance] -= below(drawn, weights[chance])
        return self._clips.pieces.rows_at(self._clips.begins[copies.clips] + passed)

    def _chosen(self, numbers: Integers) -> Integers:
        return numbers if self._order is None else self._order[numbers]

"""The order of chunks: (seed, position) -> chunk, computed and never buffered.

A chunk is a run of consecutive frames of one episode, or all of an episode. An epoch holds every
chunk once. It is an order of whole chunks: a permutation of them, keyed by (seed, epoch), where
`_order/shuffle` mixes single rows. With weights a chunk comes as often as a clip of one row would.
docs/architecture/order.md ("Chunks") defines it.

Rules:
* A position is found without replaying the ones before it. An epoch costs one sort of its chunks.
* All randomness is that of `_order/philox`.
* People hold checkpoints of this order, so it cannot change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.philox import Stream, permutation
from lerobot_grain._order.row_sources import RankedRows
from lerobot_grain._order.sampling.weighted_rows import WeightedRows
from lerobot_grain._order.sampling.weights import UNIT_BITS, RowWeights


@dataclass(frozen=True, slots=True)
class ChunkCut:
    """How episodes are cut into chunks.

    Attributes:
      frames: of a chunk, >= 1; `None`: a chunk is all of an episode.
      overlap: frames that a chunk has in common with the next one of its episode, >= 0 and less
        than `frames`.
      drop_shorter: whether a last chunk of an episode that has fewer frames is left out.
    """

    frames: int | None
    overlap: int
    drop_shorter: bool

    def num_chunks(self, lengths: Integers) -> Integers:
        """Returns int64 `(episodes,)`: into how many chunks episodes of these lengths, > 0, are
        cut.
        """
        if self.frames is None:
            return np.ones_like(lengths)
        step = self.frames - self.overlap
        further = lengths - self.frames  # frames that are not in the first chunk
        if self.drop_shorter:
            return np.where(further < 0, 0, 1 + further // step)
        return 1 + np.maximum(0, -(-further // step))


class Chunks(NamedTuple):
    """Some chunks.

    Attributes:
      episodes: int64 `(n,)`, place of the episode of each among the selected ones.
      first_rows: int64 `(n,)`, the first row of each.
      lengths: int64 `(n,)`, frames of each, > 0.
      are_last: bool `(n,)`, whether each holds the last selected frame of its episode.
    """

    episodes: Integers
    first_rows: Integers
    lengths: Integers
    are_last: npt.NDArray[np.bool_]

    def first(self, count: int) -> Chunks:
        """Returns the first so many of them."""
        return Chunks(
            self.episodes[:count],
            self.first_rows[:count],
            self.lengths[:count],
            self.are_last[:count],
        )


class ChunkOrder:
    """The order of the chunks of a selection of episodes: an immutable value.

    Args:
      first_rows: int64 `(episodes,)`, the first selected row of each selected episode.
      lengths: int64 `(episodes,)`, selected rows of each, > 0.
      cut: how they are cut.
      seed: 0 <= seed < 2**64; `None`: the chunks follow each other in the order of episodes and
        frames.
      weights: of all chunks, as of rows; without a seed, a mask. `None`: each comes once.
    """

    def __init__(
        self,
        *,
        first_rows: Integers,
        lengths: Integers,
        cut: ChunkCut,
        seed: int | None,
        weights: RowWeights | None,
    ) -> None:
        self.seed = seed
        self._first_rows = first_rows
        self._lengths = lengths
        self._cut = cut
        self._chunks_of_episodes = cut.num_chunks(lengths)
        self._stops = np.cumsum(self._chunks_of_episodes)
        self._weights = weights
        self._weighted: WeightedRows | None = None
        if weights is not None:
            # The chunks are its rows: all of one run, each a clip of its own.
            self._weighted = WeightedRows(
                np.zeros(1, np.int64),
                self._stops[-1:],
                weights=weights,
                clip_length=None if seed is None else 1,
                seed=0 if seed is None else seed,
            )

    @property
    def num_chunks(self) -> int:
        """Chunks of an epoch: with weights, as many as have one above 0."""
        if self._weighted is not None:
            return self._weighted.num_rows
        return int(self._stops[-1]) if len(self._stops) else 0

    @property
    def most_frames(self) -> int:
        """Frames of the longest chunk, of the episodes of which some come."""
        present = self._lengths[self._sums_of_weights() > 0]
        longest = int(present.max(initial=0))
        return longest if self._cut.frames is None else min(longest, self._cut.frames)

    def chunks_every_epoch(self) -> Integers:
        """Returns int64 `(episodes,)`: the number of chunks of each that come in every epoch."""
        return self._sums_of_weights() >> UNIT_BITS

    def _sums_of_weights(self) -> Integers:
        """Returns int64 `(episodes,)`: of the chunks of each, in units of 2**-32."""
        if self._weights is None:
            return self._chunks_of_episodes << UNIT_BITS
        sums = np.cumsum(np.repeat(self._weights.values, self._weights.lengths))
        return np.diff(np.concatenate(([0], sums))[self._stops], prepend=0)

    def epoch(self, number: int) -> Integers | None:
        """Returns the numbers of the chunks in the order of an epoch, int64 `(num_chunks,)`;
        `None`: all of them, ascending.
        """
        numbers: Integers | None = None
        if self._weighted is not None:
            copies = RankedRows(self._weighted.runs(number))
            numbers = copies.rows(np.arange(self.num_chunks))
        if self.seed is None:
            return numbers
        order = permutation(self.num_chunks, Stream.CHUNKS, seed=self.seed, epoch=number)
        return order if numbers is None else numbers[order]

    def chunks(self, numbers: Integers) -> Chunks:
        """Returns the chunks with these numbers, int64 `(n,)`."""
        episodes = np.searchsorted(self._stops, numbers, side="right")
        lengths = self._lengths[episodes]
        within = numbers - (self._stops - self._chunks_of_episodes)[episodes]
        if self._cut.frames is None:
            starts = np.zeros_like(lengths)
            counts = lengths
        else:
            starts = within * (self._cut.frames - self._cut.overlap)
            counts = np.minimum(self._cut.frames, lengths - starts)
        return Chunks(
            episodes, self._first_rows[episodes] + starts, counts, starts + counts == lengths
        )


class ChunkPlaces:
    """The chunks at positions, which go forward: it keeps the order of the epochs that they are in.

    Args:
      order: of an epoch.
    """

    def __init__(self, order: ChunkOrder) -> None:
        self._order = order
        self._epochs: dict[int, Integers | None] = {}

    def chunks(self, positions: Integers) -> Chunks:
        """Returns the chunks at positions, int64 `(n,)`, ascending."""
        epochs, elements = np.divmod(positions, self._order.num_chunks)
        numbers = elements.copy()
        used: dict[int, Integers | None] = {}
        for epoch in np.unique(epochs).tolist():
            if epoch not in self._epochs:
                self._epochs[epoch] = self._order.epoch(epoch)
            used[epoch] = order = self._epochs[epoch]
            if order is not None:
                members = epochs == epoch
                numbers[members] = order[elements[members]]
        self._epochs = used
        return self._order.chunks(numbers)

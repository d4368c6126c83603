"""The Grain source of chunks in the order of `_order/chunks`. Sharded, sliced and resumed by one
number, as `_datasets/frame_order`, whose rules hold here, too.

The reader gets the rows of the chunks, one after the other, as if they were examples of their own:
so its horizons and its budget count frames, however long a chunk is. The state is that of a chunk:
it is asked for where one ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._datasets.episodes.selected_chunks import SelectedChunks
from lerobot_grain._datasets.positions import (
    OneOrderIterator,
    PartOfPositions,
    PositionsIterDataset,
    are_needed_every_epoch,
)
from lerobot_grain._order.chunks import ChunkPlaces, Chunks
from lerobot_grain._reading.pending import SourceBlock

# Rows that are pulled at a time, in whole chunks, at least one.
_ROWS_PER_BLOCK = 256


class ChunkOrderIterDataset(PositionsIterDataset):
    """The chunks of a dataset, as (first row, frames).

    Args:
      chunks: the chunks, and their order.
      part: which positions.
      num_episodes: of the dataset.
      end: as of `PositionsIterDataset`.
    """

    def __init__(
        self,
        chunks: SelectedChunks,
        part: PartOfPositions,
        *,
        num_episodes: int,
        end: str | None,
    ) -> None:
        super().__init__(part, end=end)
        self.chunks = chunks
        self._num_episodes = num_episodes

    @property
    def needed_every_epoch(self) -> npt.NDArray[np.bool_]:
        """Bool `(episodes,)`: of which episodes this shard, or slice, needs something in every
        epoch; of a shard of several, of those with so many chunks that no more than one in twenty
        goes without.
        """
        found = np.zeros(self._num_episodes, np.bool_)
        counts = self.chunks.order.chunks_every_epoch()
        found[self.chunks.episodes] = are_needed_every_epoch(counts, step=self.part.step)
        return found

    def __iter__(self) -> ChunkOrderIterator:
        return ChunkOrderIterator(
            self.chunks, self.part, needed_every_epoch=self.needed_every_epoch, name=str(self)
        )

    def __str__(self) -> str:
        return f"ChunkOrderIterDataset({self.chunks.order.num_chunks} chunks)"


class ChunkOrderIterator(OneOrderIterator):
    """Yields chunks one by one, or the requests of their rows in blocks.

    Attributes:
      chunks: the chunks, and their order.
      needed_every_epoch: as of `ChunkOrderIterDataset`.
    """

    def __init__(
        self,
        chunks: SelectedChunks,
        part: PartOfPositions,
        *,
        needed_every_epoch: npt.NDArray[np.bool_],
        name: str,
    ) -> None:
        super().__init__(part, identity=chunks.identity, name=name)
        self.chunks = chunks
        self.needed_every_epoch = needed_every_epoch
        self._places = ChunkPlaces(chunks.order)

    def __next__(self) -> tuple[int, int]:
        self._assert_not_closed()
        before = self._handed_out
        try:
            with self._stats.record_self_time():
                chunks = self._next_chunks(1)
                return chunks.first_rows.item(0), chunks.lengths.item(0)
        except BaseException:
            self._handed_out = before
            raise

    def next_block(self) -> tuple[list[SourceBlock], Callable[[int], dict[str, Any]]]:
        """Returns the requests of the rows of the next chunks, and the state after so many of these
        rows, those of whole chunks.

        Raises:
          StopIteration: there are no more.
        """
        base = self._base + self._handed_out * self._part.step
        chunks = self._next_chunks(_ROWS_PER_BLOCK)
        block = self.chunks.block(chunks)
        stops = np.cumsum(self.chunks.num_rows(chunks))
        state = self.get_state()
        step = self._part.step
        return [SourceBlock(0, block, np.arange(len(block)))], lambda taken: {
            **state,
            "position": base + int(np.searchsorted(stops, taken, side="right")) * step,
        }

    def _next_chunks(self, max_rows: int) -> Chunks:
        """Returns the next chunks that have at most so many rows together, or the next one."""
        positions = self._part.next_positions(
            base=self._base, handed_out=self._handed_out, count=max_rows
        )
        chunks = self._places.chunks(positions)
        stops = np.cumsum(self.chunks.num_rows(chunks))
        count = max(1, int(np.searchsorted(stops, max_rows, side="right")))
        self._handed_out += count
        return chunks.first(count)

"""The chunks that a stream has: of which episodes, how often they come, and which of their rows are
valid.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.frame_order import commit_of, hash_of_episodes
from lerobot_grain._datasets.sampling.selected_rows import (
    SelectedRows,
    ValidRowsArgument,
    WeightsArgument,
    check_weights_of_order,
    select_rows,
    valid_values,
    weight_values,
)
from lerobot_grain._order.chunks import ChunkCut, ChunkOrder, Chunks
from lerobot_grain._order.sampling.weights import RowWeights, scaled_weights
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.row_values import RowValues, ValidRows
from lerobot_grain._repository.selection import EpisodeSelection


@dataclass(frozen=True, slots=True, eq=False)
class SelectedChunks:
    """The chunks of a stream.

    Attributes:
      order: of them.
      episodes: int64 `(n,)`, positions of the selected episodes in the episode table.
      first_rows: int64 `(episodes,)`, the first row of each episode of the table.
      padded_to: frames that a chunk is read with: after its last one that is repeated; `None`: as
        many as it has.
      identity: what a state says of the stream besides the position.
      valid: which rows of the dataset are valid; `None`: nothing is said of it.
    """

    order: ChunkOrder
    episodes: Integers
    first_rows: Integers
    padded_to: int | None
    identity: dict[str, Any]
    valid: RowValues | None

    @property
    def most_rows(self) -> int:
        """The most rows that are read of a chunk. So many are known ahead, because a chunk is taken
        in one piece, into memory that is made once.
        """
        return self.padded_to or self.order.most_frames

    def num_rows(self, chunks: Chunks) -> Integers:
        """Returns int64 `(n,)`: rows that are read of chunks."""
        if self.padded_to is None:
            return chunks.lengths
        return np.full_like(chunks.lengths, self.padded_to)

    def block(self, chunks: Chunks) -> WindowBlock:
        """Returns the requests of all rows of chunks, one chunk after the other."""
        counts = self.num_rows(chunks)
        starts = np.cumsum(counts) - counts
        within = np.arange(int(counts.sum())) - np.repeat(starts, counts)
        within = np.minimum(within, np.repeat(chunks.lengths - 1, counts))
        episodes = self.episodes[chunks.episodes]
        first_frames = chunks.first_rows - self.first_rows[episodes]
        return WindowBlock(
            np.repeat(episodes, counts), np.repeat(first_frames, counts) + within, {}, {}
        )

    def are_valid(self, episode: int, rows: Integers) -> npt.NDArray[np.bool_]:
        """Returns which rows of a selected episode, int64 `(n,)`, are valid, bool `(n,)`."""
        assert self.valid is not None
        places = rows if self.valid.are_of_rows else np.full_like(rows, self.episodes[episode])
        found: npt.NDArray[np.bool_] = self.valid.values[places]
        return found


def select_chunks(
    repository: Repository,
    cut: ChunkCut,
    *,
    episodes: EpisodeSelection,
    dropped: tuple[int, int],
    weights: WeightsArgument,
    valid_rows: ValidRowsArgument,
    seed: int | None,
    padded_to: int | None,
) -> SelectedChunks:
    """Returns the chunks that a stream has; arguments as of `EpisodeIterDataset`.

    Raises:
      InvalidRequestError: an argument is out of its range, or no chunk is left.
      DatasetFormatError, StorageError: a table or column that says it could not be read.
    """
    if isinstance(valid_rows, ValidRows) and valid_rows.pad_windows:
        raise InvalidRequestError(
            "valid_rows=ValidRows(..., pad_windows=True): chunks have no windows; expected "
            "pad_windows=False. chunk_is_valid says which rows of a chunk are valid"
        )
    rows = select_rows(
        repository, episodes=episodes, dropped=dropped, weights=None, valid_rows=None
    )
    selected = rows.episodes
    order_with = functools.partial(
        ChunkOrder, first_rows=rows.first_rows, lengths=rows.lengths, cut=cut, seed=seed
    )
    every = order_with(weights=None)
    if every.num_chunks == 0:
        raise InvalidRequestError(
            f"chunk_frames={cut.frames}, last_chunk='drop': the longest selected episode has "
            f"{int(rows.lengths.max())} frames, so no chunk is left; expected at most that, or "
            "another last_chunk"
        )
    valid = None if valid_rows is None else valid_values(repository, valid_rows, selected=selected)
    weighted = None if weights is None else weight_values(repository, weights, selected=selected)
    scaled = _scaled(every, rows, weighted, valid)
    check_weights_of_order(scaled, is_shuffled=seed is not None)
    order = every if scaled is None else order_with(weights=scaled)
    return SelectedChunks(
        order=order,
        episodes=selected,
        first_rows=repository.episodes.first_rows,
        padded_to=padded_to,
        identity=_identity(repository, rows, order, cut, scaled, seed),
        valid=valid,
    )


def _identity(
    repository: Repository,
    rows: SelectedRows,
    order: ChunkOrder,
    cut: ChunkCut,
    weights: RowWeights | None,
    seed: int | None,
) -> dict[str, Any]:
    """Returns what a state says of the stream besides the position."""
    numbers = repository.episodes.numbers_of(rows.episodes)
    return {
        "unit": "chunks",
        "commit": commit_of(repository),
        "episodes": hash_of_episodes(numbers, rows.lengths, rows.first_frame),
        "chunk_frames": cut.frames or 0,
        "overlap_frames": cut.overlap,
        **({} if weights is None else {"weights": weights.digest}),
        "num_chunks": order.num_chunks,
        "shuffled": int(seed is not None),
        "seed": -1 if seed is None else seed,
    }


def _scaled(
    order: ChunkOrder, rows: SelectedRows, weighted: RowValues | None, valid: RowValues | None
) -> RowWeights | None:
    """Returns the weights of chunks, those without a valid row 0; `None`: all are equal."""
    if weighted is None and valid is None:
        return None
    if weighted is not None and weighted.are_of_rows:
        raise InvalidRequestError(
            "weights=: weights of rows; a chunk comes as a whole, so expected weights of episodes: "
            "a mapping by number, an array of all episodes, a function of an Episode, or a table "
            "with episode_index. valid_rows= leaves out and marks single rows"
        )
    chunks = order.chunks(np.arange(order.num_chunks))
    episodes = rows.episodes[chunks.episodes]
    product = np.ones(len(episodes))
    if weighted is not None:
        product *= weighted.values[episodes]
    if valid is not None and valid.are_of_rows:
        before = np.concatenate(([0], np.cumsum(valid.values)))
        product *= before[chunks.first_rows + chunks.lengths] > before[chunks.first_rows]
    elif valid is not None:
        product *= valid.values[episodes]
    if not (product > 0).any():
        raise InvalidRequestError(
            "weights=, valid_rows=: no chunk is left; expected at least one that has a valid row "
            "and a weight above 0"
        )
    return scaled_weights(product, np.ones(len(product), np.int64))

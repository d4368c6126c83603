"""The rows that a stream has: of which episodes, without which frames, and how often they come."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_int
from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.sampling.weights import RowWeights, scaled_weights
from lerobot_grain._reading.rows.whole_columns import read_whole_column
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.row_values import (
    RowValues,
    RowValuesSource,
    ValidRows,
    Weights,
    valid_rows_of,
    weights_of,
)
from lerobot_grain._repository.selection import EpisodeSelection, select_episodes

WeightsArgument = Weights | RowValuesSource | None
ValidRowsArgument = ValidRows | RowValuesSource | None


@dataclass(frozen=True, slots=True, eq=False)
class SelectedRows:
    """The selected rows.

    Attributes:
      episodes: int64 `(episodes,)`, ascending: positions of the selected episodes.
      first_rows: int64 `(episodes,)`, the first selected row of each.
      lengths: int64 `(episodes,)`, selected rows of each, > 0.
      first_frame: the first selected frame of every episode.
      weights: of the rows; `None`: each comes once an epoch.
      valid: which rows of the dataset are valid; `None`: nothing is said of it.
    """

    episodes: Integers
    first_rows: Integers
    lengths: Integers
    first_frame: int
    weights: RowWeights | None
    valid: RowValues | None


def select_rows(
    repository: Repository,
    *,
    episodes: EpisodeSelection,
    dropped: tuple[int, int],
    weights: WeightsArgument,
    valid_rows: ValidRowsArgument,
) -> SelectedRows:
    """Returns the rows that a stream has.

    Args:
      dropped: rows that are left out at the start and at the end of every episode.
      episodes, weights, valid_rows: as of `FrameOrderIterDataset`.

    Raises:
      InvalidRequestError: an argument is out of its range, or no row is left.
      DatasetFormatError, StorageError: a table or column that says it could not be read.
    """
    table = repository.episodes
    for name, count in zip(("drop_first_frames", "drop_last_frames"), dropped, strict=True):
        check_int(name, count, least=0)
    selected = select_episodes(repository, episodes)
    selected = selected[table.lengths[selected] > sum(dropped)]
    if selected.size == 0:
        raise InvalidRequestError(
            f"drop_first_frames={dropped[0]}, drop_last_frames={dropped[1]}: no selected episode "
            "has more rows than these"
        )
    valid = None if valid_rows is None else valid_values(repository, valid_rows, selected=selected)
    weighted = None if weights is None else weight_values(repository, weights, selected=selected)
    first_rows = table.first_rows[selected] + dropped[0]
    lengths = table.lengths[selected] - sum(dropped)
    given = [each for each in (weighted, valid) if each is not None]
    return SelectedRows(
        episodes=selected,
        first_rows=first_rows,
        lengths=lengths,
        first_frame=dropped[0],
        weights=_scaled(given, selected, first_rows, lengths) if given else None,
        valid=valid,
    )


def weight_values(
    repository: Repository, weights: Weights | RowValuesSource, *, selected: Integers
) -> RowValues:
    """Returns the weights, float64; as `valid_values`."""
    return weights_of(
        repository, weights, selected=selected, read_column=_column_reader(repository, selected)
    )


def valid_values(
    repository: Repository, valid_rows: ValidRows | RowValuesSource, *, selected: Integers
) -> RowValues:
    """Returns which rows are valid, bool; raises as `select_rows`.

    Args:
      selected: int64 `(n,)`, positions of the episodes that it matters for.
    """
    return valid_rows_of(
        repository,
        valid_rows,
        selected=selected,
        read_column=_column_reader(repository, selected),
    )


def check_weights_of_order(weights: RowWeights | None, *, is_shuffled: bool) -> None:
    """Raises `InvalidRequestError` if a sequential order has weights that are no mask."""
    if weights is not None and not is_shuffled and not weights.is_mask:
        raise InvalidRequestError(
            "shuffle=None: weights say how often rows are drawn, and the sequential order draws "
            "none; expected weights of 0 and one other number, or a Shuffle"
        )


def _column_reader(
    repository: Repository, selected: Integers
) -> functools.partial[npt.NDArray[np.generic]]:
    return functools.partial(read_whole_column, repository, selected=selected)


def _scaled(
    given: list[RowValues], selected: Integers, first_rows: Integers, lengths: Integers
) -> RowWeights | None:
    """Returns the product of weights and masks, scaled."""
    if any(each.are_of_rows for each in given):
        # All selected rows, one after the other.
        starts = np.cumsum(lengths) - lengths
        rows = np.arange(int(lengths.sum())) + np.repeat(first_rows - starts, lengths)
        numbers = np.repeat(selected, lengths)
        run_lengths = np.ones(len(rows), np.int64)
    else:
        rows = numbers = selected
        run_lengths = lengths
    product = np.ones(len(run_lengths))
    for each in given:
        product *= each.values[rows if each.are_of_rows else numbers]
    if not (product > 0).any():
        raise InvalidRequestError(
            "weights=, valid_rows=: no selected row is left; expected at least one that is valid "
            "and has a weight above 0"
        )
    return scaled_weights(product, run_lengths)

"""Counts the rows that a stream would have by its arguments, and finds what is wrong with its
weights and valid rows.

Rules:
* A table or a feature that is not there, and an episode of `episodes=` that does not exist, are
  errors of the caller, and raise. All else is a finding: wrong contents of a table, a column or an
  array, and weights of episodes that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError, LeRobotGrainError
from lerobot_grain._datasets.frame_order import FrameOrderIterDataset
from lerobot_grain._datasets.sampling.selected_rows import (
    SelectedRows,
    ValidRowsArgument,
    WeightsArgument,
    select_rows,
    valid_values,
    weight_values,
)
from lerobot_grain._inspection.file_checks import Finding
from lerobot_grain._order.sampling.weights import UNIT
from lerobot_grain._order.shuffle import Shuffle
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.row_value_tables import OpenedTable
from lerobot_grain._repository.row_values import RowValues, ValidRows, Weights, opened
from lerobot_grain._repository.selection import EpisodeSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSelection:
    """Which rows a stream has: arguments of `LeRobotIterDataset`."""

    episodes: EpisodeSelection = None
    drop_first_frames: int = 0
    drop_last_frames: int = 0
    weights: WeightsArgument = None
    valid_rows: ValidRowsArgument = None
    stride: int = 1

    @property
    def is_everything(self) -> bool:
        return (
            self.episodes is self.weights is self.valid_rows is None
            and self.drop_first_frames == self.drop_last_frames == 0
            and self.stride == 1
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """The rows of a selection, and why the others are not among them.

    Attributes:
      num_rows: that come: in each epoch, or with a stride in so many epochs as it has frames.
      num_episodes: which have some of them.
      num_dropped: rows of the episodes of `episodes=` that `drop_first_frames` and
        `drop_last_frames` leave out.
      num_not_valid: of the other rows of these episodes, those that are not valid.
      num_without_weight: of the valid ones, those of weight 0.
      stride: 1 where there is none.
      least_times, most_times: how often a row that comes does so in an epoch on average: those of
        the smallest weight, and of the largest.
    """

    num_rows: int
    num_episodes: int
    num_dropped: int
    num_not_valid: int
    num_without_weight: int
    stride: int
    least_times: float
    most_times: float


def count_rows(
    repository: Repository, selection: RowSelection
) -> tuple[RowCounts | None, list[Finding]]:
    """Returns the rows of a selection, and what is wrong with its weights and valid rows; `None` in
    place of the former where something is.

    Reads tables, and the columns of features that say weights or valid rows.

    Raises:
      InvalidRequestError: an argument is out of its range or names nothing, or no selected episode
        has more rows than are dropped.
      DatasetFormatError, StorageError: a table could not be read.
    """
    dropped = (selection.drop_first_frames, selection.drop_last_frames)

    def select(weights: WeightsArgument, valid_rows: ValidRowsArgument) -> SelectedRows:
        return select_rows(
            repository,
            episodes=selection.episodes,
            dropped=dropped,
            weights=weights,
            valid_rows=valid_rows,
        )

    every = select(None, None)
    findings: list[Finding] = []
    valid = weights = None
    if (given := selection.valid_rows) is not None:
        mask = opened(repository, given if isinstance(given, ValidRows) else ValidRows(given))
        valid = _values(
            lambda: valid_values(repository, mask, selected=every.episodes), mask, findings
        )
    if (by := selection.weights) is not None:
        scale = opened(repository, by if isinstance(by, Weights) else Weights(by))
        weights = _values(
            lambda: weight_values(repository, scale, selected=every.episodes), scale, findings
        )
    if findings:
        return None, findings
    of_weights = None if weights is None else weights.values
    of_valid = None if valid is None else valid.values
    try:
        rows = select(of_weights, of_valid)
    except InvalidRequestError as error:
        return None, [Finding(kind="no_rows", is_problem=True, path="", text=str(error))]
    if selection.stride != 1:
        # For its checks.
        FrameOrderIterDataset(
            repository,
            episodes=selection.episodes,
            drop_first_frames=selection.drop_first_frames,
            drop_last_frames=selection.drop_last_frames,
            weights=of_weights,
            valid_rows=of_valid,
            stride=selection.stride,
            shuffle=Shuffle(clip_length=1),
        )
    are_valid = every.lengths if valid is None else _rows_above_zero(every, valid)
    return _counts(repository, selection, rows, are_valid), []


def _counts(
    repository: Repository, selection: RowSelection, rows: SelectedRows, are_valid: Integers
) -> RowCounts:
    """Returns the counts of selected rows.

    Args:
      are_valid: int64 `(episodes,)`, how many are valid of each selected episode.
    """
    kept = _kept_rows(rows)
    given = select_rows(
        repository,
        episodes=selection.episodes,
        dropped=(0, 0),
        weights=None,
        valid_rows=None,
    )
    scaled = None if rows.weights is None else rows.weights.values[rows.weights.values > 0]
    return RowCounts(
        num_rows=int(kept.sum()),
        num_episodes=int(np.count_nonzero(kept)),
        num_dropped=int(given.lengths.sum() - rows.lengths.sum()),
        num_not_valid=int(rows.lengths.sum() - are_valid.sum()),
        num_without_weight=int(are_valid.sum() - kept.sum()),
        stride=selection.stride,
        least_times=1.0 if scaled is None else int(scaled.min()) / UNIT,
        most_times=1.0 if scaled is None else int(scaled.max()) / UNIT,
    )


def _values(
    read: Callable[[], RowValues], given: Weights | ValidRows, findings: list[Finding]
) -> RowValues | None:
    """Returns what weights or valid rows say, or adds what is wrong with them to the findings."""
    try:
        return read()
    except LeRobotGrainError as error:
        source: Any = given.values
        is_table = isinstance(source, OpenedTable)
        findings.append(
            Finding(
                kind="weights" if isinstance(given, Weights) else "valid_rows",
                is_problem=True,
                path=(source.path or source.name) if is_table else "",
                text=str(error),
            )
        )
        return None


def _rows_above_zero(rows: SelectedRows, values: RowValues) -> Integers:
    """Returns int64 `(episodes,)`: how many selected rows of each episode have a value above 0."""
    above = values.values > 0
    if not values.are_of_rows:
        return rows.lengths * above[rows.episodes]
    before = np.concatenate(([0], np.cumsum(above)))
    found: Integers = before[rows.first_rows + rows.lengths] - before[rows.first_rows]
    return found


def _kept_rows(rows: SelectedRows) -> Integers:
    """Returns int64 `(episodes,)`: how many rows of each episode come."""
    if rows.weights is None:
        # All have one weight, so that they change nothing.
        return rows.lengths
    runs = rows.weights
    stops = np.cumsum(runs.lengths)
    above = np.cumsum(np.where(runs.values > 0, runs.lengths, 0))
    ends = np.cumsum(rows.lengths)
    last = np.searchsorted(stops, ends)
    kept = above[last] - (stops[last] - ends) * (runs.values[last] > 0)
    found: Integers = np.diff(kept, prepend=0)
    return found

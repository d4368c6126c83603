"""Takes single values out of row groups: where the values of examples lie, and what is there.

Pure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.windows import Output, WindowBlock
from lerobot_grain._reading.rows.row_groups import RowGroup


@dataclass(frozen=True, slots=True)
class Cells:
    """The places of values.

    Attributes:
      groups: int64 `(examples,)` or `(examples, time)`: places in `PendingRows.groups`; -1: the
        file could not be opened.
      rows: of the same shape: rows, counted as those of the group are.
    """

    groups: Integers
    rows: Integers

    def __getitem__(self, examples: slice) -> Cells:
        return Cells(self.groups[examples], self.rows[examples])


@dataclass(frozen=True, slots=True)
class NeededRows:
    """The rows that the examples of a block need: their own ones, then those of their windows.

    Attributes:
      files: int64 `(rows,)`: number of the data file of each.
      rows: int64 `(rows,)`: row in that file.
      num_anchors: how many of them are the examples' own.
      window_shapes: (examples, time) of each window, or (examples,) of those without a time axis;
        values with equal windows share one.
      window_of: key in examples -> place in `window_shapes`.
    """

    files: Integers
    rows: Integers
    num_anchors: int
    window_shapes: list[tuple[int, ...]]
    window_of: dict[str, int]

    def cells(self, groups: Integers, rows: Integers) -> tuple[Cells, dict[str, Cells]]:
        """Returns the cells of the examples' own rows, and by key in examples those of windows.

        Args:
          groups, rows: int64 `(rows,)`: of the cell of each row.
        """
        begin = self.num_anchors
        windows = []
        for shape in self.window_shapes:
            end = begin + math.prod(shape)
            windows.append(Cells(groups[begin:end].reshape(shape), rows[begin:end].reshape(shape)))
            begin = end
        anchors = Cells(groups[: self.num_anchors], rows[: self.num_anchors])
        return anchors, {key: windows[place] for key, place in self.window_of.items()}


def needed_rows(
    block: WindowBlock, outputs: Sequence[Output], *, files: Integers, offsets: Integers
) -> NeededRows:
    """Returns the rows that a block needs.

    Args:
      outputs: the values that are not of the examples' own rows.
      files: int64 `(examples,)`: number of the data file of each example.
      offsets: int64 `(examples,)`: row of the first frame of its episode in that file.
    """
    distinct = {id(output.frames): output for output in outputs}
    places = {name: place for place, name in enumerate(distinct)}
    windows = [output.frames + offsets[:, None] for output in distinct.values()]
    return NeededRows(
        np.concatenate([files, *(np.repeat(files, window.shape[1]) for window in windows)]),
        np.concatenate(
            [offsets + block.anchor_frames, *(window.reshape(-1) for window in windows)]
        ),
        len(files),
        [
            output.frames.shape if output.has_time else output.frames.shape[:1]
            for output in distinct.values()
        ],
        {output.key: places[id(output.frames)] for output in outputs},
    )


def records_of(
    groups: list[RowGroup | None], keys: tuple[str, ...], cells: Cells
) -> dict[str, npt.NDArray[Any]]:
    """Returns the values of single cells of several columns that are arrays."""
    of_group = {
        place: (group.first_row, group.records(keys))
        for place, group in enumerate(groups)
        if group is not None
    }
    dtype = next(iter(of_group.values()))[1].dtype
    size = dtype.itemsize
    pieces = []
    for place, row in zip(cells.groups.tolist(), cells.rows.tolist(), strict=True):
        first_row, records = of_group[place]
        start = (row - first_row) * size
        pieces.append(records.rows[start : start + size])
    table = np.frombuffer(bytearray().join(pieces), dtype)
    return {key: np.ascontiguousarray(table[key]) for key in keys}


def gather(groups: list[RowGroup | None], key: str, cells: Cells) -> npt.NDArray[Any]:
    """Returns the values of cells, in their shape, of a column that is an array."""
    places = cells.groups.reshape(-1)
    rows = cells.rows.reshape(-1)
    by_group = np.argsort(places, kind="stable")
    places = places[by_group]
    rows = rows[by_group]
    bounds = [0, *(np.flatnonzero(places[1:] != places[:-1]) + 1).tolist(), len(places)]
    found: npt.NDArray[Any] | None = None
    for begin, end in itertools.pairwise(bounds):
        group = groups[places.item(begin)]
        assert group is not None
        column = group.columns[key]
        assert isinstance(column, np.ndarray)
        if found is None:
            found = np.empty((len(rows), *column.shape[1:]), column.dtype)
        np.take(
            column, rows[begin:end] - group.first_row, axis=0, out=found[begin:end], mode="clip"
        )
    assert found is not None
    if len(bounds) > 2:
        sorted_values = found
        found = np.empty_like(found)
        found[by_group] = sorted_values
    return found.reshape(*cells.rows.shape, *found.shape[1:])


def array_of(values: list[Any], shape: tuple[int, ...]) -> npt.NDArray[np.object_]:
    """Returns objects as an array of them: what holds lists must not be taken for more axes, here
    and by whoever stacks or maps trees.
    """
    found = np.empty(len(values), object)
    found[:] = values
    return found.reshape(shape)


def list_column(key: str, group: RowGroup) -> Sequence[Any]:
    """Returns a column of a row group that is a list; for `look_up`."""
    column = group.columns[key]
    assert not isinstance(column, np.ndarray)
    return column


def look_up(
    groups: list[RowGroup | None], cells: Cells, column: Callable[[RowGroup], Sequence[Any]]
) -> list[Any]:
    """Returns the values of cells of a column that is a list."""
    of_group = {
        place: (group.first_row, column(group))
        for place, group in enumerate(groups)
        if group is not None
    }
    values = []
    for place, row in zip(
        cells.groups.reshape(-1).tolist(), cells.rows.reshape(-1).tolist(), strict=True
    ):
        first_row, found = of_group[place]
        values.append(found[row - first_row])
    return values

"""Reads what tells the order of the rows of a data file: `frame_index`, and `index` where that
tells none or another than that of the file.

The rules are those of `_format/row_order`. `frame_index` comes with the columns of a row group;
`index` is read only where `frame_index` does not say that the rows lie in order, once for each row
group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.info import Feature
from lerobot_grain._format.row_order import (
    ExpectedRows,
    GroupOrder,
    Part,
    first_difference,
    misplaced,
    misplaced_text,
    order_column,
    order_of_group,
    part_of,
    second_column,
)
from lerobot_grain._parquet.columns import to_numpy
from lerobot_grain._parquet.table import ParquetTable
from lerobot_grain._repository.repository import Repository

_EPISODE = "episode_index"
_FRAME = "frame_index"
_INDEX = "index"


@dataclass(frozen=True, slots=True)
class OrderReader:
    """Reads the orders of the row groups of a data file, and remembers them in
    `repository.row_orders`.

    Attributes:
      repository: the dataset.
      table: the file, all of it or the row groups at hand.
      file: its number among the data files.
    """

    repository: Repository
    table: ParquetTable
    file: int

    def expected(self, group: int) -> ExpectedRows:
        """Returns the rows that the episode table puts into a row group."""
        starts = self.table.group_starts
        return ExpectedRows.of(
            self.repository.episodes, self.file, starts[group], starts[group + 1]
        )

    def groups_of(self, episode: int) -> list[int]:
        """Returns the row groups that hold rows of an episode of the file."""
        table = self.table
        starts = self.table.group_starts
        first = self.repository.episodes.data_offsets.item(episode)
        last = first + self.repository.episodes.lengths.item(episode) - 1
        return [
            group
            for group in range(table.group_of_row(first), table.group_of_row(last) + 1)
            if starts[group] < starts[group + 1]
        ]

    def learn(self, group: int, found: Any) -> GroupOrder:
        """Returns, and remembers, the order of the rows of a row group, as it alone tells it.

        Args:
          group: its number.
          found: the Arrow table of it, with `order_column` and `episode_index`.

        Raises:
          DatasetFormatError: it tells none, or `frame_index` and `index` tell two.
        """
        column = order_column(self.table.leaves)
        where = self._where(group)
        stored = (
            to_numpy(found.column(_EPISODE), integer(_EPISODE), where=where)
            if _EPISODE in self.table.leaves
            else None
        )
        order = None
        problem = None
        try:
            numbers = None if column is None else _numbers(found.column(column), column, where)
            order = order_of_group(
                stored, numbers, self.expected(group), column=column, where=where
            )
        except DatasetFormatError as error:
            problem = error
        if second_column(self.table.leaves) is not None and (
            order is None or order.places is not None
        ):
            by_index = self._by_index(group, found)
            if order is None or (
                by_index is not None and not self._is_agreed(group, found, order, by_index)
            ):
                order = by_index
        if order is None:
            assert problem is not None
            raise problem
        self.repository.row_orders[self.file, group] = order
        return order

    def is_in_place(self, group: int, order: GroupOrder, part: Part, others: Sequence[int]) -> bool:
        """Returns whether a part of an episode comes before and after the other ones as it should;
        `False`: `index` must tell it.

        Args:
          group: the row group that holds the part.
          order: of its rows.
          part: one of `order.unusual`.
          others: the other row groups with rows of the episode, of which the orders are known.

        Raises:
          DatasetFormatError: it does not.
        """
        orders = {other: self.repository.row_orders[self.file, other] for other in others}
        if order.is_by_index or any(other.is_by_index for other in orders.values()):
            return False
        column = order_column(self.table.leaves)
        assert column is not None
        parts = [
            (other, part_of(known, self.expected(other), part.episode, column=column))
            for other, known in orders.items()
        ]
        bad = misplaced(part, parts, group)
        if bad is not None and not self._is_repeated(group, bad[0], part.episode):
            raise DatasetFormatError(
                misplaced_text(part, bad, group, column=column, where=self._where(group))
            )
        return bad is None

    def placed_by_index(self, group: int, order: GroupOrder, found: Any) -> GroupOrder:
        """Returns the order of a row group by `index`, compared with those of other row groups with
        rows of its episodes.

        Raises:
          DatasetFormatError: `index` tells no order either, or another one than `frame_index`
            inside of the row group.
        """
        by_index = order if order.is_by_index else self._by_index(group, found)
        if by_index is None:
            raise self._without_order(group)
        if not order.is_by_index:
            self._is_agreed(group, found, order, by_index)
        for part in by_index.unusual:
            parts = []
            for number in self.groups_of(part.episode):
                if number != group:
                    other = self._by_index(number, None)
                    if other is None:
                        raise self._without_order(number)
                    parts.append(
                        (number, part_of(other, self.expected(number), part.episode, column=_INDEX))
                    )
            if (bad := misplaced(part, parts, group)) is not None:
                raise DatasetFormatError(
                    misplaced_text(part, bad, group, column=_INDEX, where=self._where(group))
                )
        return replace(by_index, is_placed=True)

    def _by_index(self, group: int, found: Any) -> GroupOrder | None:
        """Returns the order of the rows of a row group by `index`, read unless it is in `found`;
        `None` where that tells none.
        """
        try:
            stored, indices = self._numbering(group, found, _INDEX)
            by_index = order_of_group(
                stored, indices, self.expected(group), column=_INDEX, where=self._where(group)
            )
        except DatasetFormatError:
            return None
        return replace(by_index, is_by_index=True)

    def _is_agreed(
        self, group: int, found: Any, by_frame: GroupOrder, by_index: GroupOrder
    ) -> bool:
        """Returns whether both columns tell the same order of a row group; `False`: `frame_index`
        has the same numbers in another one.

        Raises:
          DatasetFormatError: they contradict each other.
        """
        if (bad := first_difference(by_frame, by_index)) is None:
            return True
        _, frames = self._numbering(group, found, _FRAME)
        _, indices = self._numbering(group, found, _INDEX)
        expected = self.expected(group)
        others = (
            (other, episode)
            for episode in expected.split_episodes()
            for other in self.groups_of(episode)
            if other != group
        )
        if any(self._is_repeated(group, other, episode) for other, episode in others):
            return False
        one, two = (
            f"row {expected.first_row + row} of the file has {_FRAME} {frames[row]} and {_INDEX} "
            f"{indices[row]}"
            for row in bad
        )
        raise DatasetFormatError(
            f"{self._where(group)}: {_FRAME} and {_INDEX} contradict each other: {one}, "
            f"{two.replace(' of the file', '')}; expected one order by both. Write the file again "
            "without the column that is wrong"
        )

    def _is_repeated(self, group: int, other: int, episode: int) -> bool:
        """Returns whether rows of an episode in two row groups have the same `frame_index`, which
        then tells no order, but `index` may.
        """
        if second_column(self.table.leaves) is None:
            return False
        found = []
        for number in (group, other):
            stored, frames = self._numbering(number, None, _FRAME)
            is_of_it = self.expected(number).episodes == episode
            if stored is not None:
                is_of_it = stored == self.repository.episodes.number_of(episode)
            found.append(frames[is_of_it])
        return bool(np.isin(*found).any())

    def _numbering(self, group: int, found: Any, column: str) -> tuple[Integers | None, Integers]:
        """Returns `episode_index`, if there is one, and a column that numbers rows, as they lie in
        the file; read unless in `found`.
        """
        where = self._where(group)
        names = [name for name in (_EPISODE, column) if name in self.table.leaves]
        if found is None or not set(names) <= set(found.column_names):
            # The table at hand may hold other columns only.
            whole = (
                self.table
                if self.table.is_in_memory
                else replace(self.table, storage=self.repository.storage)
            )
            found = whole.read_group(group, names, keep=True)
        stored = (
            to_numpy(found.column(_EPISODE), integer(_EPISODE), where=where)
            if _EPISODE in names
            else None
        )
        return stored, _numbers(found.column(column), column, where)

    def _where(self, group: int) -> str:
        return f"{self.table.where}, row group {group}"

    def _without_order(self, group: int) -> DatasetFormatError:
        return DatasetFormatError(
            f"{self._where(group)}: neither {_FRAME} nor {_INDEX} tells in which order it and the "
            "row groups next to it follow each other; expected numbers that ascend over the rows "
            "of an episode in one of them, in all row groups. Write the file again with such a "
            "column"
        )


def integer(key: str) -> Feature:
    """Returns the feature of a column of integers."""
    return Feature(key, "int64", (1,))


def _numbers(stored: Any, column: str, where: str) -> Integers:
    try:
        return to_numpy(stored, integer(column), where=where)
    except DatasetFormatError as error:
        raise DatasetFormatError(
            f"{error}. It tells the order of the rows: write the file again with an integer in "
            "each row of it, or without this column"
        ) from None

"""The order of the rows of a row group, told by their own numbers: `frame_index`, or `index` where
that tells none. Pure.

A table that was written again without an order (by Spark, Ray or polars) holds the rows of an
episode, or of several, in any order. The k-th row of an episode is the one with the k-th smallest
number, wherever it lies. Numbers need not begin at 0 and may have gaps, since rows may have been
dropped; each may be there once.

Rules:
* Each row group is put in order alone. The rows that the episode table puts into it must be in it,
  in whatever order: what lies in another row group is refused.
* If an episode is split over row groups, a part whose numbers are the usual ones (0, 1, 2, ..., or
  the rows of the dataset) is in its place. If they are others, they are compared with those of the
  other parts.
* If `frame_index` is no number of each row, or says that the rows lie in no order, `index` is asked
  too. It decides where `frame_index` tells no order; where each tells another one, the row group is
  refused.
* If the file has neither column, rows are read in file order.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.episodes import EpisodeTable

# The columns that number rows. The first one that a file has decides, as long as its numbers tell
# an order.
_FRAME = "frame_index"
_INDEX = "index"
_REMEDY = "write the file again ordered by index"

_MAX_KEPT_GROUPS = 256


class Part(NamedTuple):
    """The numbers of the rows of an episode in one of several row groups.

    Attributes:
      episode: its position in the episode table.
      number: of the episode.
      least, greatest: of the numbers.
    """

    episode: int
    number: int
    least: int
    greatest: int


@dataclass(frozen=True, slots=True)
class GroupOrder:
    """In which order the rows of a row group are taken.

    Attributes:
      places: unsigned integers `(rows,)`, where each of the rows lies in the group; `None`: they
        lie in order.
      unusual: of episodes that are split over row groups, the parts whose numbers are not those of
        the recorder.
      is_placed: whether these parts are known to be in their places of the episodes.
      is_by_index: whether `index` tells it in place of `frame_index`; `unusual` is then of it.
    """

    places: npt.NDArray[np.unsignedinteger[Any]] | None = None
    unusual: tuple[Part, ...] = ()
    is_placed: bool = True
    is_by_index: bool = False


IN_ORDER = GroupOrder()


class RowOrders(dict[tuple[int, int], GroupOrder]):
    """(file, row group) -> its order, as far as it is known in this process: another process begins
    anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self._comparing: dict[int, threading.Lock] = {}

    def comparing(self, file: int) -> threading.Lock:
        """Returns what is held by the thread that reads the numbers of other row groups of a file
        than the one at hand.
        """
        return self._comparing.setdefault(file, threading.Lock())

    def __reduce__(self) -> tuple[type[RowOrders], tuple[()]]:
        return RowOrders, ()


class RowTimestamps:
    """(file, row group) -> the timestamps of its rows, of those read last: video files share row
    groups.

    Known in this process: another one begins anew.
    """

    def __init__(self) -> None:
        self._reading: dict[int, threading.Lock] = {}
        self._kept: OrderedDict[tuple[int, int], npt.NDArray[np.float64]] = OrderedDict()

    def reading(self, file: int) -> threading.Lock:
        """Returns what is held by the thread that uses the timestamps of a file."""
        return self._reading.setdefault(file, threading.Lock())

    def get(self, file: int, group: int) -> npt.NDArray[np.float64] | None:
        """Returns those of a row group, float64 `(rows,)`, if they are known."""
        return self._kept.get((file, group))

    def keep(self, file: int, group: int, timestamps: npt.NDArray[np.float64]) -> None:
        """Remembers those of a row group."""
        self._kept[file, group] = timestamps
        while len(self._kept) > _MAX_KEPT_GROUPS:
            self._kept.popitem(last=False)

    def __reduce__(self) -> tuple[type[RowTimestamps], tuple[()]]:
        return RowTimestamps, ()


@dataclass(frozen=True, slots=True)
class ExpectedRows:
    """The rows that the episode table puts into a row group.

    Attributes:
      first_row: row of the file of the first one.
      episodes: int64 `(rows,)`, positions of their episodes in the table.
      numbers: int64 `(rows,)`, the numbers of these, which the column `episode_index` holds.
      frames: int64 `(rows,)`, in the episode.
      table: the episode table.
    """

    first_row: int
    episodes: Integers
    numbers: Integers
    frames: Integers
    table: EpisodeTable

    @classmethod
    def of(cls, table: EpisodeTable, file: int, first_row: int, stop_row: int) -> ExpectedRows:
        """Returns those of rows `[first_row, stop_row)` of a data file."""
        held = table.data.episodes_in(file)
        rows = np.arange(first_row, stop_row)
        episodes = held[np.searchsorted(table.data_offsets[held], rows, side="right") - 1]
        return cls(
            first_row,
            episodes,
            table.numbers_of(episodes),
            rows - table.data_offsets[episodes],
            table,
        )

    def usual_numbers(self, column: str) -> Integers:
        """Returns what the recorder writes into a column that numbers rows, int64 `(rows,)`."""
        return (
            self.frames if column == _FRAME else self.frames + self.table.first_rows[self.episodes]
        )

    def split_episodes(self) -> list[int]:
        """Returns the episodes that have rows in other row groups too: the first one, the last one,
        or none.
        """
        if len(self.episodes) == 0:
            return []
        first = self.episodes.item(0)
        last = self.episodes.item(-1)
        split = [first] if self.frames[0] > 0 else []
        if self.frames[-1] < self.table.lengths[last] - 1 and last not in split:
            split.append(last)
        return split


def order_column(columns: Iterable[str]) -> str | None:
    """Returns the column that numbers the rows of a file; `None` where there is none."""
    there = set(columns)
    return next((name for name in (_FRAME, _INDEX) if name in there), None)


def second_column(columns: Iterable[str]) -> str | None:
    """Returns the column that tells the order of rows where `order_column` tells none; `None` where
    there is none.
    """
    return _INDEX if {_FRAME, _INDEX} <= set(columns) else None


def first_difference(one: GroupOrder, other: GroupOrder) -> tuple[int, int] | None:
    """Returns which row of a row group each order takes where they first differ, as the rows lie
    there; `None` where they are the same.
    """
    if one.places is None and other.places is None:
        return None
    places = one.places if one.places is not None else other.places
    assert places is not None
    in_file = np.arange(len(places))
    first, second = (in_file if order.places is None else order.places for order in (one, other))
    if (bad := np.flatnonzero(first != second)).size == 0:
        return None
    return int(first[bad[0]]), int(second[bad[0]])


def order_of_group(
    stored_episodes: Integers | None,
    numbers: Integers | None,
    expected: ExpectedRows,
    *,
    column: str | None,
    where: str,
) -> GroupOrder:
    """Returns the order of the rows of a row group.

    Args:
      stored_episodes: int64 `(rows,)`, `episode_index` as it lies in the file; `None` where there
        is no such column.
      numbers: int64 `(rows,)`, `column` as it lies in the file; `None` where there is none.
      expected: the rows that should be there.
      column: the column that numbers rows.
      where: names the row group in messages.

    Raises:
      DatasetFormatError: other rows are there than the episode table says, a number is there twice,
        or rows without an order cannot be put in order.
    """
    wanted = expected.episodes
    is_of_table = stored_episodes is None or np.array_equal(stored_episodes, expected.numbers)
    if numbers is None or column is None:
        if not is_of_table:
            assert stored_episodes is not None
            check_episodes(
                stored_episodes,
                expected,
                where=where,
                more=f", and no column {_FRAME} or {_INDEX} tells their order",
            )
        return IN_ORDER
    if is_of_table and _first_repeat(wanted, numbers) is None:
        places = None
    else:
        places = _places(stored_episodes, numbers, expected, column=column, where=where)
        numbers = numbers[places]
    unusual = []
    for episode in expected.split_episodes():
        rows = np.flatnonzero(wanted == episode)
        part = slice(rows.item(0), rows.item(-1) + 1)
        if not np.array_equal(numbers[part], expected.usual_numbers(column)[part]):
            unusual.append(
                Part(
                    episode,
                    expected.numbers.item(part.start),
                    numbers.item(part.start),
                    numbers.item(part.stop - 1),
                )
            )
    if places is None and not unusual:
        return IN_ORDER
    small = None if places is None else places.astype(np.min_scalar_type(len(places)))
    return GroupOrder(small, tuple(unusual), is_placed=not unusual)


def _places(
    stored: Integers | None, numbers: Integers, expected: ExpectedRows, *, column: str, where: str
) -> Integers:
    """Returns int64 `(rows,)`: where the rows lie, in the order of their episodes in the file and
    of their numbers.
    """
    wanted = expected.episodes
    if stored is not None:
        # The episodes of a file follow each other by their numbers.
        places = np.lexsort((numbers, stored))
        check_episodes(stored[places], expected, where=where)
        owners = wanted
    elif column == _FRAME and wanted[0] != wanted[-1]:
        raise DatasetFormatError(
            f"{where}: {_FRAME} says that its rows are in no order, and no column episode_index "
            f"tells the episode of each; {_REMEDY}"
        )
    else:
        places = np.argsort(numbers, kind="stable")
        owners = np.zeros(len(numbers), np.int64)
    if (repeat := _first_repeat(owners, numbers[places])) is not None:
        raise DatasetFormatError(
            f"{where}: episode {expected.numbers[repeat]} has {column} {numbers[places[repeat]]} "
            "in two rows; expected every number once, since they tell the order of the rows; "
            "write the file again without the rows that are there twice"
        )
    return places


def check_episodes(stored: Integers, expected: ExpectedRows, *, where: str, more: str = "") -> None:
    """Checks that rows are of the episodes that the episode table puts there; `more` goes on with
    the text of the message.

    Raises:
      DatasetFormatError: they are not.
    """
    wanted = expected.numbers
    if (bad := np.flatnonzero(stored != wanted)).size == 0:
        return
    numbers, place_of = np.unique(np.concatenate((stored, wanted)), return_inverse=True)
    found, put = (np.bincount(part, minlength=len(numbers)) for part in np.split(place_of, 2))
    if np.array_equal(found, put):
        raise DatasetFormatError(
            f"{where}: row {expected.first_row + bad[0]} of the file has episode_index "
            f"{stored[bad[0]]}; the episode table expects episode {wanted[bad[0]]} there{more}; "
            f"{_REMEDY}"
        )
    odd = np.flatnonzero(found != put)[0]
    raise DatasetFormatError(
        f"{where}: it has {found[odd]} rows with episode_index {numbers[odd]}; the episode table "
        f"puts {put[odd]} rows of episode {numbers[odd]} there. If the file belongs to this "
        f"table, {_REMEDY}"
    )


def _first_repeat(episodes: Integers, numbers: Integers) -> int | None:
    """Returns the first row whose number is not above that of the row before it in its episode;
    `None` if there is none.
    """
    is_bad = (numbers[1:] <= numbers[:-1]) & (episodes[1:] == episodes[:-1])
    return int(np.argmax(is_bad)) + 1 if is_bad.any() else None


def part_of(order: GroupOrder, expected: ExpectedRows, episode: int, *, column: str) -> Part:
    """Returns the numbers of the rows of a split episode in a row group whose order is known."""
    for part in order.unusual:
        if part.episode == episode:
            return part
    numbers = expected.usual_numbers(column)[expected.episodes == episode]
    return Part(episode, expected.table.number_of(episode), numbers.item(0), numbers.item(-1))


def misplaced(
    part: Part, others: Iterable[tuple[int, Part]], group: int
) -> tuple[int, Part] | None:
    """Returns the first of the other parts that does not have smaller numbers in a row group
    before, or larger ones in one after.

    Args:
      part: the numbers in row group `group`.
      others: number of the row group, and the numbers there.
    """
    for number, other in others:
        if not (other.greatest < part.least if number < group else other.least > part.greatest):
            return number, other
    return None


def misplaced_text(
    part: Part, bad: tuple[int, Part], group: int, *, column: str, where: str
) -> str:
    """Returns what is wrong with the places of a part of an episode and of another one, as
    `misplaced` returns it, for a message.
    """
    number, other = bad
    return (
        f"{where}: its rows of episode {part.number} have {column} {part.least} to "
        f"{part.greatest}, those in row group {number}, which comes "
        f"{'before' if number < group else 'after'} it, {other.least} to {other.greatest}; "
        f"expected all of the rows in order; {_REMEDY}"
    )

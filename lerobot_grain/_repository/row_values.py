"""Weights of single rows or episodes, and which of them are valid, as users say it.

Every form that it may be given in becomes one array, of episodes or of rows, when the dataset is
made. Columns of data files are read by the caller, who has a reader of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError, short_repr
from lerobot_grain._format.features import Feature
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.row_value_tables import OpenedTable, open_table
from lerobot_grain._repository.selection import Episode


class SupportsArray(Protocol):
    """Values that NumPy makes an array of: an array of JAX, a column of pandas."""

    def __array__(self) -> npt.NDArray[Any]: ...


RowValuesSource = (
    Mapping[int, Any]
    | Sequence[Any]
    | npt.NDArray[Any]
    | SupportsArray
    | Callable[[Episode], Any]
    | str
    | os.PathLike[str]
)
# Feature -> its values, `(rows of the dataset,)`.
ColumnReader = Callable[[Feature], npt.NDArray[Any]]

_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """How often rows come, relative to each other: `weights=` of a dataset.

        weights={12: 5.0, 13: 0.0}                      # by number of the episode
        weights=lambda episode: 3 if episode["is_dagger"] else 1
        weights=Weights("corrections.parquet", rest=0.2)

    Attributes:
      values: a mapping by number of the episode; an array of all episodes, in the order of their
        numbers, or of all rows (a Series of pandas is taken as one, whatever its index says); a
        function of an `Episode`; the path of a `.parquet` or `.csv` table with the columns `weight`
        and `index` (the row) or `episode_index`; or the key of a feature with one number a row.
        A text that begins with `meta/`, such as `"meta/annotations/quality.parquet"`, names a table
        of the dataset, at its commit; any other text and every `Path` one of this machine.
        Weights are taken as float64: finite and >= 0, 0 leaves out.
      rest: weight of those that a mapping or a table does not name.
    """

    values: RowValuesSource
    rest: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class ValidRows:
    """Which rows are valid; the others are left out: `valid_rows=` of a dataset.

        valid_rows="is_valid"                           # a feature of the dataset, one bool a row
        valid_rows=ValidRows("good.csv", pad_windows=True)

    Attributes:
      values: as of `Weights`, with bools; the column of a table is `is_valid`.
      rest: whether those that a mapping or a table does not name are valid.
      pad_windows: whether windows hold the nearest valid row on the way to the row of the example,
        and are marked in the mask, where they would reach a row that is not valid. `False`: they
        reach it as any other.
    """

    values: RowValuesSource
    rest: bool = True
    pad_windows: bool = False


class RowValues(NamedTuple):
    """One value for each episode, or for each row.

    Attributes:
      values: `(episodes,)` or `(rows,)` of the whole dataset, in the order of the episode table or
        of the rows.
      are_of_rows: which of the two.
    """

    values: npt.NDArray[Any]
    are_of_rows: bool


class _Kind(NamedTuple):
    """A kind of values: the argument, the column of tables, the dtype, and what is expected."""

    argument: str
    column: str
    dtype: np.dtype[Any]
    expected: str

    @property
    def is_bool(self) -> bool:
        return self.dtype.kind == "b"

    def fits(self, feature: Feature) -> bool:
        """Returns whether a feature has one such value in every row."""
        return (
            feature.is_array
            and feature.is_scalar
            and (np.dtype(feature.dtype).kind == "b") == self.is_bool
        )

    def is_right(self, value: object) -> bool:
        if self.is_bool:
            return isinstance(value, bool | np.bool_)
        if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
            return False
        try:
            return 0 <= float(value) < float("inf")
        except OverflowError:
            return False


Given = TypeVar("Given", Weights, ValidRows)

_WEIGHT = _Kind("weights", "weight", np.dtype(float), "a finite number >= 0")
_VALID = _Kind("valid_rows", "is_valid", np.dtype(bool), "True or False")


def opened(repository: Repository, given: Given) -> Given:
    """Returns what is given, with the contents of a table in place of its name.

    So what names nothing is told from values that are wrong.

    Raises:
      InvalidRequestError: the form is none of those of `Weights`, the feature is of another kind,
        or there is no such table.
      DatasetFormatError, StorageError: as `open_table`.
    """
    kind = _WEIGHT if isinstance(given, Weights) else _VALID
    source: Any = given.values
    if not kind.is_right(given.rest):
        raise InvalidRequestError(
            f"{kind.argument}: rest={short_repr(given.rest)}; expected {kind.expected}"
        )
    if isinstance(given, ValidRows) and not isinstance(given.pad_windows, bool):
        raise InvalidRequestError(
            f"{kind.argument}: pad_windows={short_repr(given.pad_windows)}; expected True or False"
        )
    if isinstance(source, str) and source in repository.features:
        feature = repository.features[source]
        if not kind.fits(feature):
            raise InvalidRequestError(
                f"{kind.argument}={source!r}: the feature has dtype {feature.dtype} and shape "
                f"{feature.shape}; expected one value in every row, {kind.expected}"
            )
        return given
    if isinstance(source, str | os.PathLike):
        fitting = [key for key, feature in repository.features.items() if kind.fits(feature)]
        table: Any = open_table(repository, kind.argument, source, fitting)
        return replace(given, values=table)
    if not (
        isinstance(source, Mapping | Sequence | OpenedTable)
        or callable(source)
        or hasattr(source, "__array__")
    ):
        raise InvalidRequestError(
            f"{kind.argument}={short_repr(source)}: expected a mapping by episode, an array of all "
            "episodes or rows, a function of an Episode, a table or the key of a feature"
        )
    return given


def weights_of(
    repository: Repository,
    given: Weights | RowValuesSource,
    *,
    selected: Integers,
    read_column: ColumnReader,
) -> RowValues:
    """Returns the weights that `weights=` says, float64.

    Args:
      selected: int64 `(n,)`, positions of the episodes that a function is asked about; the weights
        of the others are 0 then.
      read_column: reads features.

    Raises:
      InvalidRequestError: a weight is not finite or negative, or is of a row or episode that does
        not exist, or the form is none of those of `Weights`.
      DatasetFormatError: a table is malformed.
    """
    whole = opened(repository, given if isinstance(given, Weights) else Weights(given))
    return _Evaluation(repository, _WEIGHT, selected, read_column).of(whole.values, whole.rest)


def valid_rows_of(
    repository: Repository,
    given: ValidRows | RowValuesSource,
    *,
    selected: Integers,
    read_column: ColumnReader,
) -> RowValues:
    """Returns what `valid_rows=` says, bool; as `weights_of`."""
    whole = opened(repository, given if isinstance(given, ValidRows) else ValidRows(given))
    return _Evaluation(repository, _VALID, selected, read_column).of(whole.values, whole.rest)


class _Evaluation(NamedTuple):
    repository: Repository
    kind: _Kind
    selected: Integers
    read_column: ColumnReader

    def of(self, source: Any, rest: object) -> RowValues:
        """Returns the values of a source that was `opened`."""
        if isinstance(source, OpenedTable):
            return self._of_table(source, rest)
        if isinstance(source, Mapping):
            return RowValues(self._of_mapping(source, rest), are_of_rows=False)
        if callable(source):
            return RowValues(self._of_function(source), are_of_rows=False)
        if isinstance(source, str):
            return RowValues(self._of_feature(source), are_of_rows=True)
        return self._of_array(self._as_array(source))

    def _of_mapping(self, given: Mapping[Any, Any], rest: object) -> npt.NDArray[Any]:
        argument, _, dtype, expected = self.kind
        values: npt.NDArray[Any] = np.full(self.repository.episodes.num_episodes, rest, dtype)
        for number, each in given.items():
            value = _without_axes(each)
            if not isinstance(number, int | np.integer) or isinstance(number, bool):
                raise InvalidRequestError(
                    f"{argument}: the key {number!r} is no number of an episode (int)"
                )
            if not self.kind.is_right(value):
                raise InvalidRequestError(
                    f"{argument}[{number}] is {short_repr(value)}; expected {expected}"
                )
            if not 0 <= number <= _MAX_NUMBER:
                raise self._no_episode(argument, int(number))
            values[self._positions(np.array([int(number)]), argument)[0]] = value
        return values

    def _of_function(self, function: Callable[[Episode], Any]) -> npt.NDArray[Any]:
        argument, _, dtype, expected = self.kind
        table = self.repository.episodes
        column = functools.cache(self.repository.episode_column)
        values: npt.NDArray[Any] = np.zeros(table.num_episodes, dtype)
        for position in self.selected.tolist():
            number = table.number_of(position)
            value = _without_axes(
                function(Episode(number, table.lengths.item(position), position, column))
            )
            if not self.kind.is_right(value):
                raise InvalidRequestError(
                    f"{argument}={function!r}: it returned {short_repr(value)} for episode "
                    f"{number}; expected {expected}"
                )
            values[position] = value
        return values

    def _as_array(self, source: Any) -> npt.NDArray[Any]:
        if isinstance(source, np.ma.MaskedArray):
            # With None where it is masked, which `np.asarray` would pass over.
            source = source.tolist()
        try:
            return np.asarray(source)
        except ValueError as error:
            raise InvalidRequestError(
                f"{self.kind.argument}={short_repr(source)}: no array of numbers ({error}); "
                "expected one of all episodes or of all rows"
            ) from None

    def _of_array(self, given: npt.NDArray[Any]) -> RowValues:
        table = self.repository.episodes
        argument = self.kind.argument
        if given.shape not in ((table.num_episodes,), (table.num_rows,)):
            raise InvalidRequestError(
                f"{argument}: an array of shape {given.shape}; expected one of all episodes, "
                f"({table.num_episodes},), or of all rows, ({table.num_rows},)"
            )
        # If each episode has one row, both are the same, and only those of episodes fit chunks.
        are_of_rows = given.shape != (table.num_episodes,)
        values = self._checked(
            given,
            lambda place: (
                f"{argument}[{place}]" + (f" ({self._named(place)})" if are_of_rows else "")
            ),
        )
        return RowValues(values, are_of_rows)

    def _of_feature(self, key: str) -> npt.NDArray[Any]:
        argument = self.kind.argument
        return self._checked(
            self.read_column(self.repository.features[key]),
            lambda row: f"{argument}={key!r}: {self._named(row)}",
        )

    def _of_table(self, opened: OpenedTable, rest: object) -> RowValues:
        argument, column, dtype, _ = self.kind
        table = self.repository.episodes
        path = opened.name
        whole = np.dtype(np.int64)
        kinds = {"index": whole, "episode_index": whole, column: dtype}
        found = opened.columns(self.repository, kinds)
        by = "index" if "index" in found else "episode_index"
        if column not in found or by not in found:
            raise InvalidRequestError(
                f"{argument}: {path} has {opened.shown_columns()}; expected the columns "
                f"{column!r}, and 'index' or 'episode_index'"
            )
        given = self._checked(found[column], lambda place: f"{path}, row {place}: {column}")
        are_of_rows = by == "index"
        numbers = found[by]
        places = self._rows(numbers, path) if are_of_rows else self._positions(numbers, f"{path}")
        distinct, counts = np.unique(numbers, return_counts=True)
        if (counts > 1).any():
            first = np.flatnonzero(counts > 1)[0]
            raise InvalidRequestError(
                f"{path}: {by} {distinct[first]} is there {counts[first]} times; expected every "
                "one once"
            )
        if are_of_rows and "episode_index" in found:
            self._check_episodes(numbers, found["episode_index"], path)
        values: npt.NDArray[Any] = np.full(
            table.num_rows if are_of_rows else table.num_episodes, rest, dtype
        )
        values[places] = given
        return RowValues(values, are_of_rows)

    def _rows(self, rows: Integers, where: str) -> Integers:
        num_rows = self.repository.episodes.num_rows
        if (bad := np.flatnonzero((rows < 0) | (rows >= num_rows))).size:
            raise InvalidRequestError(
                f"{where}, row {bad[0]}: index is {rows[bad[0]]}; the dataset has rows 0 to "
                f"{num_rows - 1}"
            )
        return rows

    def _check_episodes(self, rows: Integers, numbers: Integers, path: str) -> None:
        """Checks that rows are of the episodes that a table says, so that an `index` that only
        counts the rows of the table is no row of the dataset.
        """
        table = self.repository.episodes
        expected = table.numbers_of(table.locate_all(rows)[0])
        if (bad := np.flatnonzero(expected != numbers)).size:
            row, number, right = (int(each[bad[0]]) for each in (rows, numbers, expected))
            raise InvalidRequestError(
                f"{path}, row {bad[0]}: index is {row}, and episode_index is {number}; row {row} "
                f"of the dataset is of episode {right}. Give rows by index, or episodes by "
                "episode_index alone"
            )

    def _positions(self, numbers: Integers, where: str) -> Integers:
        table = self.repository.episodes
        positions = table.positions_of(numbers)
        if (bad := np.flatnonzero(positions < 0)).size:
            raise self._no_episode(where, numbers.item(bad[0]))
        return positions

    def _no_episode(self, where: str, number: int) -> InvalidRequestError:
        return InvalidRequestError(
            f"{where}: there is no episode {number}; the dataset has episodes "
            f"{self.repository.episodes.shown_numbers}"
        )

    def _named(self, row: int) -> str:
        episode, frame = self.repository.episodes.locate(row)
        return f"row {row}, frame {frame} of episode {episode}"

    def _checked(self, values: npt.NDArray[Any], name_of: Callable[[int], str]) -> npt.NDArray[Any]:
        """Returns an array of values as what it is to be."""
        expected = self.kind.expected
        if values.dtype.kind == "O":
            for place, value in enumerate(values.tolist()):
                if not self.kind.is_right(value):
                    raise InvalidRequestError(
                        f"{name_of(place)} is {short_repr(value)}; expected {expected}"
                    )
            return values.astype(self.kind.dtype)
        if values.dtype.kind not in ("b" if self.kind.is_bool else "iuf"):
            raise InvalidRequestError(
                f"{self.kind.argument}: values of dtype {values.dtype}; expected {expected}"
            )
        # What a float64 does not hold becomes infinite, which is said below.
        with np.errstate(over="ignore"):
            found: npt.NDArray[Any] = values.astype(self.kind.dtype)
        bad = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
        if bad.size:
            place = bad.item(0)
            raise InvalidRequestError(f"{name_of(place)} is {values[place]}; expected {expected}")
        return found


def _without_axes(value: object) -> object:
    """Returns the value of an array without axes, such as JAX returns; anything else as it is."""
    if hasattr(value, "__array__") and np.shape(value) == ():
        return np.asarray(value)[()]
    return value

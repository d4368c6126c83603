"""Fetches row groups ahead, and puts the low-dimensional values, embedded images and texts of
examples together.

Row groups are kept for later examples, up to a limit; the least recently used go. If one block of
examples needs more than that, the next block would find none of them, and all of them together may
be more than the memory of the machine. Up to twice the limit they are kept nevertheless, which is
enough where a stream goes from one large file to the next. Above, a few are read at a time, only
the rows that the block needs are kept of them, and a warning says what that costs and what helps.

If all row groups of the dataset will be kept, neighbors come in one request
(`_reading/fetch_groups`). Each is unpacked when it is needed, so a defect in one does not affect
the others.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainError, LeRobotGrainWarning
from lerobot_grain._format.features import Feature
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.batches import Batch
from lerobot_grain._reading.fetch_groups import row_groups_fetched_together
from lerobot_grain._reading.future_cache import FutureCache
from lerobot_grain._reading.read_context import ReadContext, ReadSource
from lerobot_grain._reading.rows.cells import (
    Cells,
    NeededRows,
    array_of,
    gather,
    list_column,
    look_up,
    needed_rows,
    records_of,
)
from lerobot_grain._reading.rows.data_files import (
    DataFile,
    columns_to_read,
    extents_to_join,
    fetch_row_groups,
    load_group,
    load_rows,
    open_data_file,
    selected_columns,
)
from lerobot_grain._reading.rows.pictures import PictureReader
from lerobot_grain._reading.rows.row_groups import RowGroup

# Opened data files that are kept: so many bytes of them, and so many of them at least.
_MAX_OPEN_BYTES = 64 << 20
_MIN_OPEN_DATA_FILES = 256
_MAX_LARGE_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class PendingRows:
    """The row groups and cells that the examples of a block need.

    Attributes:
      groups: the row groups.
      anchors: cells of the examples' own rows.
      windows: key in examples -> cells of a window.
      outputs: feature key -> keys that its values have in examples.
      problems: file number -> why it could not be opened.
      files: int64 `(examples,)`: numbers of their data files.
      loaded: `groups`, once they were waited for; `None`: could not be read.
    """

    groups: list[Future[RowGroup]]
    anchors: Cells
    windows: dict[str, Cells]
    outputs: dict[str, list[str]]
    problems: dict[int, Exception]
    files: Integers
    loaded: list[RowGroup | None] = field(default_factory=list)


class RowCaches:
    """Opened data files and row groups of all sources of a stream, within one budget.

    Args:
      rows_bytes: of row groups that are kept; `groups.limit` may be raised for a block.

    Attributes:
      files: by (source, file).
      groups: by (source, file, row group).
      fetched: row groups that were fetched together, by (source, file, first of them), for those of
        them that are not needed yet.
    """

    def __init__(self, rows_bytes: int) -> None:
        self.files: FutureCache[tuple[int, int], DataFile] = FutureCache(
            limit=_MAX_OPEN_BYTES,
            size=lambda file: min(
                file.table.estimated_bytes, _MAX_OPEN_BYTES // _MIN_OPEN_DATA_FILES
            ),
        )
        self.groups: FutureCache[tuple[int, int, int], RowGroup] = FutureCache(
            limit=rows_bytes, size=lambda rows: rows.nbytes
        )
        self.fetched: FutureCache[tuple[int, int, int], DataFile] = FutureCache(
            limit=rows_bytes, size=lambda file: file.nbytes
        )

    @property
    def used_bytes(self) -> int:
        return self.groups.total + self.fetched.total


class RowReader:
    """Reads the rows of window requests of one source, in blocks.

    Args:
      context: of the stream; `rows` of its budget are for row groups that are kept for later
        requests, up to `large_rows` where one block needs it.
      source: whose rows.
      caches: of all sources.
    """

    def __init__(self, context: ReadContext, source: ReadSource, caches: RowCaches) -> None:
        selection = source.selection
        self._context = context
        self._source = source
        self._repository = source.repository
        self._selection = selection
        self._is_needed = bool(selection.columns or selection.texts)
        self._caches = caches
        self._pictures = PictureReader(context, source)
        self._together: dict[tuple[int, int], range] = {}
        self._unpacked_bytes: dict[tuple[int, int], int] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of the row groups of all sources that are kept."""
        return self._caches.used_bytes

    def announce(self, block: WindowBlock) -> None:
        """Asks for the footers of the files that a coming block will need."""
        if self._is_needed:
            for number in np.unique(
                self._repository.episodes.data.file_of_episode[block.episodes]
            ).tolist():
                self._file(number)

    def fetch(self, block: WindowBlock) -> PendingRows | None:
        """Asks for the row groups of a block."""
        if not self._is_needed:
            return None
        episodes = self._repository.episodes
        files = episodes.data.file_of_episode[block.episodes]
        offsets = episodes.data_offsets[block.episodes]
        outputs = {f.key: block.outputs_of(f.key) for f in self._selection.columns}
        windowed = [
            output
            for feature, found in outputs.items()
            for output in found
            if output.has_time or output.key != feature
        ]
        needed = needed_rows(block, windowed, files=files, offsets=offsets)
        groups, places, problems = self._groups_of(needed)
        rows = needed.rows
        sizes = [self._unpacked(file, group) for file, group in groups]
        limit = self._context.budget.kept_rows(sizes)
        if limit is None:
            self._start_large_fetchers(sizes, len(block))
            rows = rows.copy()
            loads = []
            for place, (file, group) in enumerate(groups):
                members = np.flatnonzero(places == place)
                wanted, rows[members] = np.unique(rows[members], return_inverse=True)
                loads.append(self._rows_of(file, group, wanted))
        else:
            self._caches.groups.limit = limit
            loads = [self._group(file, group) for file, group in groups]
        self._pictures.expect(block)
        anchors, windows = needed.cells(places, rows)
        keys = {feature: [output.key for output in found] for feature, found in outputs.items()}
        return PendingRows(loads, anchors, windows, keys, problems, files)

    def _groups_of(
        self, needed: NeededRows
    ) -> tuple[list[tuple[DataFile, int]], Integers, dict[int, Exception]]:
        """Finds the row groups that hold rows; waits for the footers of their files.

        Returns:
          The row groups; int64 `(rows,)`, the place of each row's among them, or -1; and number of
          a file -> why it could not be opened.
        """
        places = np.full(len(needed.rows), -1, np.int64)
        groups: list[tuple[DataFile, int]] = []
        problems: dict[int, Exception] = {}
        for number in np.unique(needed.files[: needed.num_anchors]).tolist():
            try:
                file = self._source.meter.wait(self._file(number), "fetch")
            except LeRobotGrainError as error:
                problems[number] = error
                continue
            members = np.flatnonzero(needed.files == number)
            numbers, inverse = np.unique(
                np.searchsorted(file.table.group_starts, needed.rows[members], side="right") - 1,
                return_inverse=True,
            )
            places[members] = len(groups) + inverse
            groups += [(file, group) for group in numbers.tolist()]
        return groups, places, problems

    def values(self, pending: PendingRows | None) -> tuple[Batch, tuple[int, Exception] | None]:
        """Waits for the row groups of a block.

        Returns:
          The values of the examples, but for embedded images, and `None`; or those of the examples
          before the first one that could not be read, its number in the block, and why.
        """
        if pending is None:
            return {}, None
        problem = self._wait(pending)
        examples = slice(0, len(pending.files) if problem is None else problem[0])
        return (self._values(pending, examples) if examples.stop else {}), problem

    def _wait(self, pending: PendingRows) -> tuple[int, Exception] | None:
        problems: list[tuple[int, Exception]] = []
        for place, group in enumerate(pending.groups):
            try:
                loaded = self._source.meter.wait(group, "fetch")
            except LeRobotGrainError as error:
                pending.loaded.append(None)
                cells = (pending.anchors, *pending.windows.values())
                problems += [
                    (int(found[0, 0]), error)
                    for cell in cells
                    if len(found := np.argwhere(cell.groups == place))
                ]
                continue
            pending.loaded.append(loaded)
            if loaded.problems:
                rows = pending.anchors.rows
                odd = np.flatnonzero(
                    (pending.anchors.groups == place) & np.isin(rows, list(loaded.problems))
                )
                problems += [
                    (example, DatasetFormatError(loaded.problems[rows.item(example)]))
                    for example in odd[:1].tolist()
                ]
        for number, problem in pending.problems.items():
            problems.append((int(np.flatnonzero(pending.files == number)[0]), problem))
        return min(problems, key=lambda problem: problem[0], default=None)

    def _values(self, pending: PendingRows, examples: slice) -> Batch:
        found: Batch = {}
        groups = pending.loaded
        anchors = pending.anchors[examples]
        columns = self._selection.columns
        arrays = tuple(
            f.key
            for f in columns
            if f.key not in pending.windows and f.is_array and 0 not in f.shape
        )
        if arrays:
            found.update(records_of(groups, arrays, anchors))
        for feature in columns:
            for key in () if feature.is_camera else pending.outputs[feature.key]:
                if key not in found:
                    cells = pending.windows[key][examples] if key in pending.windows else anchors
                    found[key] = _values_of(groups, feature, cells)
        for key in self._selection.texts:
            found[key] = look_up(groups, anchors, functools.partial(list_column, key))
        return found

    def pictures(self, block: WindowBlock, pending: PendingRows | None, examples: slice) -> Batch:
        """Returns the embedded images of some examples of a block, whose `values` were read;
        decoded side by side.

        Raises:
          DatasetFormatError: an image cannot be decoded.
        """
        found: Batch = {}
        for feature in self._selection.columns:
            if not feature.is_camera or pending is None:
                continue
            for output in block.outputs_of(feature.key):
                cells = pending.windows.get(output.key, pending.anchors)[examples]
                encoded = look_up(
                    pending.loaded, cells, functools.partial(list_column, feature.key)
                )
                frames = self._pictures.frames(
                    feature, encoded, block.episodes[examples], output.frames[examples]
                )
                found[output.key] = frames.reshape(*cells.rows.shape, *frames.shape[1:])
        return found

    def _file(self, number: int) -> Future[DataFile]:
        return self._caches.files.get(
            (self._source.number, number),
            lambda: self._context.fetchers.submit(open_data_file, self._repository, number),
        )

    def _group(self, file: DataFile, group: int) -> Future[RowGroup]:
        return self._caches.groups.get(
            (self._source.number, file.number, group), lambda: self._load(file, group)
        )

    def _load(self, file: DataFile, group: int) -> Future[RowGroup]:
        load = functools.partial(
            load_group, self._repository, group=group, selection=self._selection
        )
        groups = self._groups_with(file, group)
        if len(groups) == 1:
            self._count(file, group)
            # Bytes in memory need not wait for the requests of later examples.
            return (
                self._context.decoders if file.table.is_in_memory else self._context.fetchers
            ).submit(load, file)
        fetched = self._caches.fetched.get(
            (self._source.number, file.number, groups.start), lambda: self._fetch(file, groups)
        )
        return _after(fetched, self._context.decoders, load)

    def _groups_with(self, file: DataFile, group: int) -> range:
        """Returns the row groups that are fetched in one request with one, itself among them: where
        all of them are kept.
        """
        if file.table.is_in_memory or any(feature.is_camera for feature in self._selection.columns):
            return range(group, group + 1)
        if (file.number, group) not in self._together:
            starts = file.table.group_starts
            num_rows = self._repository.episodes.num_rows
            # Judged by this one. With their coded bytes they take less than twice what they unpack
            # to.
            needed = (
                2
                * self._unpacked(file, group)
                * num_rows
                // max(1, starts[group + 1] - starts[group])
            )
            groups = range(group, group + 1)
            if needed <= self._context.budget.rows:
                extents = extents_to_join(
                    self._repository, file, self._selection, self._source.needed_every_epoch
                )
                piece_bytes = self._repository.storage.options.cost_bytes
                groups = row_groups_fetched_together(
                    group, len(starts) - 1, extents, piece_bytes=piece_bytes
                )
            self._together.update(((file.number, each), groups) for each in groups)
        return self._together[file.number, group]

    def _fetch(self, file: DataFile, groups: range) -> Future[DataFile]:
        for group in groups:
            self._count(file, group)
        return self._context.fetchers.submit(
            fetch_row_groups, self._repository, file, groups, self._selection
        )

    def _rows_of(self, file: DataFile, group: int, rows: Integers) -> Future[RowGroup]:
        pool = self._context.large_fetchers
        assert pool is not None
        self._count(file, group)
        return pool.submit(load_rows, self._repository, file, group, self._selection, rows)

    def _count(self, file: DataFile, group: int) -> None:
        columns = columns_to_read(self._repository, file, group, self._selection)
        self._source.meter.count(
            bytes_needed=sum(chunk.length for chunk in file.table.ranges(group, columns))
        )

    def _start_large_fetchers(self, sizes: Sequence[int], num_examples: int) -> None:
        """Starts the threads that read large row groups, the first time, and warns."""
        if self._context.large_fetchers is not None:
            return
        budget = self._context.budget
        self._context.start_large_fetchers(
            budget.large_groups_at_once(sizes, at_most=_MAX_LARGE_AT_ONCE)
        )
        warnings.warn(
            f"{self._repository.description}: the {len(sizes)} row groups that {num_examples} "
            f"examples need unpack to {sum(sizes) >> 20} MiB; at most "
            f"{budget.large_rows >> 20} MiB are kept, so they are read again for the next "
            "examples, which is slow. Read fewer of them at a time with Shuffle(num_parts=...) or "
            "Shuffle(open_files=...), fewer columns with features=[...], or keep more with "
            "ReadOptions(memory_budget_bytes=...)",
            LeRobotGrainWarning,
            stacklevel=2,
        )

    def _unpacked(self, file: DataFile, group: int) -> int:
        place = (file.number, group)
        if place not in self._unpacked_bytes:
            self._unpacked_bytes[place] = file.table.unpacked_bytes(
                group, selected_columns(file, self._selection)
            )
        return self._unpacked_bytes[place]


def _values_of(groups: list[RowGroup | None], feature: Feature, cells: Cells) -> Any:
    """Returns the values of cells of a feature that is no camera."""
    if feature.dtype not in ("string", "language"):
        return gather(groups, feature.key, cells)
    values = look_up(groups, cells, functools.partial(list_column, feature.key))
    if feature.dtype == "language":
        return array_of(values, cells.rows.shape)
    time = cells.rows.shape[1] if cells.rows.ndim == 2 else 0
    return [values[i : i + time] for i in range(0, len(values), time)] if time else values


def _after(
    fetched: Future[DataFile], pool: Executor, load: Callable[[DataFile], RowGroup]
) -> Future[RowGroup]:
    """Calls `load` when a file is there: in the thread that has fetched it, or, where it is there
    already, in a pool.
    """
    if fetched.done():
        return pool.submit(lambda: load(fetched.result()))
    loaded: Future[RowGroup] = Future()

    def finish(fetched: Future[DataFile]) -> None:
        try:
            loaded.set_result(load(fetched.result()))
        except BaseException as error:  # also that it was cancelled
            loaded.set_exception(error)

    fetched.add_done_callback(finish)
    return loaded

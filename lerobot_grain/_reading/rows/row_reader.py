"""Fetches row groups ahead, and puts the low-dimensional values, embedded images and texts of examples together.

Row groups are kept for later examples, up to a limit; the least recently used go. Where one block of examples needs more than that, the
next block would find none of them, and all of them together may be more than the memory of the machine. Up to twice the limit they are kept
nevertheless, which is enough where a stream goes from one large file to the next. Above, a few are read at a time, only the rows that the
block needs are kept of them, and a warning says what that costs and what helps.

Where all row groups of the data set will be kept, those that lie side by side come in one request (`_reading/fetch_groups`). Each is
unpacked when it is needed, so a defect in one does not affect the others.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainError, LeRobotGrainWarning
from lerobot_grain._format.info import Feature
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.batches import Batch
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._reading.fetch_groups import row_groups_fetched_together
from lerobot_grain._reading.future_cache import FutureCache
from lerobot_grain._reading.options import MemoryBudget
from lerobot_grain._reading.read_statistics import Meter
from lerobot_grain._reading.rows.data_files import (
    DataFile,
    RowGroup,
    columns_to_read,
    extents_to_join,
    fetch_groups,
    load_group,
    load_rows,
    open_data_file,
    selected_columns,
)
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import Selection
from lerobot_grain._video.images import decode_depth_image, decode_image

Integers = npt.NDArray[np.int64]

# Opened data files that are kept: so many bytes of them, and so many of them at least.
_MAX_OPEN_BYTES, _MIN_OPEN_DATA_FILES = 64 << 20, 256
_MAX_LARGE_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class _Cells:
    """Where values lie.

    Attributes:
      groups: int64 `(examples,)` or `(examples, time)`: places in `PendingRows.groups`; -1: the file could not be opened.
      rows: of the same shape: rows, counted as those of the group are.
    """

    groups: Integers
    rows: Integers

    def __getitem__(self, examples: slice) -> _Cells:
        return _Cells(self.groups[examples], self.rows[examples])


@dataclass(frozen=True, slots=True)
class PendingRows:
    """What the examples of a block need.

    Attributes:
      groups: the row groups.
      anchors: cells of the examples' own rows.
      windows: feature key -> cells of its windows.
      problems: file number -> why it could not be opened.
      files: int64 `(examples,)`: numbers of their data files.
      loaded: `groups`, once they were waited for; `None`: could not be read.
    """

    groups: list[Future[RowGroup]]
    anchors: _Cells
    windows: dict[str, _Cells]
    problems: dict[int, Exception]
    files: Integers
    loaded: list[RowGroup | None] = field(default_factory=list)


class RowReader:
    """Reads the rows of blocks of window requests.

    Args:
      repository: the data set.
      selection: what is read of it.
      image_size: (height, width) that embedded images are resized to, or `None`.
      budget: of memory: `rows` of it for row groups that are kept for later requests, up to `large_rows` where one block needs it.
      needed_every_epoch: bool `(episodes,)`: of which episodes something is needed in every epoch, as far as is known.
      fetchers, decoders: where reading, and decoding of embedded images run.
      start_thread: what threads of its own, which read large row groups, begin with.
      meter: counts.
    """

    def __init__(
        self,
        repository: Repository,
        selection: Selection,
        *,
        image_size: tuple[int, int] | None,
        budget: MemoryBudget,
        needed_every_epoch: npt.NDArray[np.bool_],
        fetchers: Executor,
        decoders: Executor,
        start_thread: Callable[[], None],
        meter: Meter,
    ) -> None:
        self._repository, self._selection, self._image_size = repository, selection, image_size
        self._fetchers, self._decoders, self._meter = fetchers, decoders, meter
        self._is_needed = bool(selection.columns or selection.texts)
        self._files: FutureCache[int, DataFile] = FutureCache(
            limit=_MAX_OPEN_BYTES, size=lambda file: min(file.table.estimated_bytes, _MAX_OPEN_BYTES // _MIN_OPEN_DATA_FILES)
        )
        self._groups: FutureCache[tuple[int, int], RowGroup] = FutureCache(limit=budget.rows, size=lambda rows: rows.nbytes)
        self._budget, self._needed_every_epoch = budget, needed_every_epoch
        # Row groups that were fetched together, by the file and the first of them: for those of them that are not needed yet.
        self._fetched: FutureCache[tuple[int, int], DataFile] = FutureCache(limit=budget.rows, size=lambda file: file.nbytes)
        self._together: dict[tuple[int, int], range] = {}
        self._unpacked_bytes: dict[tuple[int, int], int] = {}
        self._start_thread = start_thread
        self._large_fetchers: DaemonPool | None = None

    @property
    def used_bytes(self) -> int:
        return self._groups.total + self._fetched.total

    def close(self, *, wait: bool) -> None:
        """Stops the threads for large row groups, if there are any. Tasks that have not begun are dropped."""
        if self._large_fetchers is not None:
            self._large_fetchers.shutdown(wait=wait, cancel_futures=True)

    def announce(self, block: WindowBlock) -> None:
        """Asks for the footers of the files that a coming block will need."""
        if self._is_needed:
            for number in np.unique(self._repository.episodes.data.file_of_episode[block.episodes]).tolist():
                self._file(number)

    def fetch(self, block: WindowBlock) -> PendingRows | None:
        """Asks for the row groups of a block."""
        if not self._is_needed:
            return None
        episodes = self._repository.episodes
        files = episodes.data.file_of_episode[block.episodes]
        offsets = episodes.data_offsets[block.episodes]
        keys = [feature.key for feature in self._selection.columns if feature.key in block.windows]
        # Features with equal windows share their array.
        distinct = {id(block.windows[key]): block.windows[key] + offsets[:, None] for key in keys}
        rows = [offsets + block.frames, *(window.reshape(-1) for window in distinct.values())]
        files_of = np.concatenate([files, *(np.repeat(files, window.shape[1]) for window in distinct.values())])
        all_rows = np.concatenate(rows)
        places = np.full(len(all_rows), -1, np.int64)
        needed: list[tuple[DataFile, int]] = []
        problems: dict[int, Exception] = {}
        for number in np.unique(files).tolist():
            try:
                file = self._meter.wait(self._file(number), "fetch")
            except LeRobotGrainError as error:
                problems[number] = error
                continue
            members = np.flatnonzero(files_of == number)
            numbers, inverse = np.unique(np.searchsorted(file.table.group_starts, all_rows[members], side="right") - 1, return_inverse=True)
            places[members] = len(needed) + inverse
            needed += [(file, group) for group in numbers.tolist()]
        if self._are_too_large(needed, len(block)):
            groups = []
            for place, (file, group) in enumerate(needed):
                members = np.flatnonzero(places == place)
                wanted, all_rows[members] = np.unique(all_rows[members], return_inverse=True)
                groups.append(self._rows_of(file, group, wanted))
        else:
            groups = [self._group(file, group) for file, group in needed]
        cells, begin = [], 0
        for part in rows:
            cells.append(_Cells(places[begin : begin + len(part)], all_rows[begin : begin + len(part)]))
            begin += len(part)
        windows = {
            name: _Cells(cell.groups.reshape(window.shape), cell.rows.reshape(window.shape))
            for (name, window), cell in zip(distinct.items(), cells[1:], strict=True)
        }
        return PendingRows(groups, cells[0], {key: windows[id(block.windows[key])] for key in keys}, problems, files)

    def values(self, pending: PendingRows | None) -> tuple[Batch, tuple[int, Exception] | None]:
        """Waits for the row groups of a block.

        Returns:
          The values of the examples, but for embedded images, and `None`; or those of the examples in front of the first one that cannot
          be had, and its number in the block and why.
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
                loaded = self._meter.wait(group, "fetch")
            except LeRobotGrainError as error:
                pending.loaded.append(None)
                cells = (pending.anchors, *pending.windows.values())
                problems += [(int(found[0, 0]), error) for cell in cells if len(found := np.argwhere(cell.groups == place))]
                continue
            pending.loaded.append(loaded)
            if loaded.problems:
                rows = pending.anchors.rows
                odd = np.flatnonzero((pending.anchors.groups == place) & np.isin(rows, list(loaded.problems)))
                problems += [(example, DatasetFormatError(loaded.problems[rows.item(example)])) for example in odd[:1].tolist()]
        for number, problem in pending.problems.items():
            problems.append((int(np.flatnonzero(pending.files == number)[0]), problem))
        return min(problems, key=lambda problem: problem[0], default=None)

    def _values(self, pending: PendingRows, examples: slice) -> Batch:
        found: Batch = {}
        groups, anchors, columns = pending.loaded, pending.anchors[examples], self._selection.columns
        arrays = tuple(f.key for f in columns if f.key not in pending.windows and f.is_array and 0 not in f.shape)
        if arrays:
            found.update(_records(groups, arrays, anchors))
        for feature in columns:
            key = feature.key
            if key in found or feature.is_camera:
                continue
            cells = pending.windows[key][examples] if key in pending.windows else anchors
            if feature.dtype == "string":
                values = _look_up(groups, cells, functools.partial(_column, key))
                time = cells.rows.shape[1] if cells.rows.ndim == 2 else 0
                found[key] = [values[i : i + time] for i in range(0, len(values), time)] if time else values
            elif feature.dtype == "language":
                found[key] = _array_of(_look_up(groups, cells, functools.partial(_column, key)), cells.rows.shape)
            else:
                found[key] = _gather(groups, key, cells)
        for key in self._selection.texts:
            found[key] = _look_up(groups, anchors, functools.partial(_column, key))
        return found

    def pictures(self, block: WindowBlock, pending: PendingRows | None, examples: slice) -> Batch:
        """Returns the embedded images of some examples of a block, whose `values` were had; decoded side by side.

        Raises:
          DatasetFormatError: a picture cannot be decoded.
        """
        found: Batch = {}
        for feature in self._selection.columns:
            if feature.is_camera and pending is not None:
                cells = pending.windows.get(feature.key, pending.anchors)[examples]
                encoded = _look_up(pending.loaded, cells, functools.partial(_column, feature.key))
                found[feature.key] = self._decoded(feature, encoded, block.episodes[examples], cells.rows.shape)
        return found

    def _file(self, number: int) -> Future[DataFile]:
        return self._files.get(number, lambda: self._fetchers.submit(open_data_file, self._repository, number))

    def _group(self, file: DataFile, group: int) -> Future[RowGroup]:
        return self._groups.get((file.number, group), lambda: self._load(file, group))

    def _load(self, file: DataFile, group: int) -> Future[RowGroup]:
        load = functools.partial(load_group, self._repository, group=group, selection=self._selection)
        groups = self._groups_with(file, group)
        if len(groups) == 1:
            self._count(file, group)
            # What is in memory need not wait behind requests for what comes later.
            return (self._decoders if file.table.is_in_memory else self._fetchers).submit(load, file)
        fetched = self._fetched.get((file.number, groups.start), lambda: self._fetch(file, groups))
        return _after(fetched, self._decoders, load)

    def _groups_with(self, file: DataFile, group: int) -> range:
        """Returns the row groups that are fetched in one request with one, itself among them: where all of them are kept."""
        if file.table.is_in_memory or any(feature.is_camera for feature in self._selection.columns):
            return range(group, group + 1)
        if (file.number, group) not in self._together:
            starts, num_rows = file.table.group_starts, self._repository.episodes.num_rows
            # Judged by this one. With their coded bytes they take less than twice what they unpack to.
            needed = 2 * self._unpacked(file, group) * num_rows // max(1, starts[group + 1] - starts[group])
            groups = range(group, group + 1)
            if needed <= self._budget.rows:
                extents = extents_to_join(self._repository, file, self._selection, self._needed_every_epoch)
                piece_bytes = self._repository.storage.options.cost_bytes
                groups = row_groups_fetched_together(group, len(starts) - 1, extents, piece_bytes=piece_bytes)
            self._together.update(((file.number, each), groups) for each in groups)
        return self._together[file.number, group]

    def _fetch(self, file: DataFile, groups: range) -> Future[DataFile]:
        for group in groups:
            self._count(file, group)
        return self._fetchers.submit(fetch_groups, self._repository, file, groups, self._selection)

    def _rows_of(self, file: DataFile, group: int, rows: Integers) -> Future[RowGroup]:
        assert self._large_fetchers is not None
        self._count(file, group)
        return self._large_fetchers.submit(load_rows, self._repository, file, group, self._selection, rows)

    def _count(self, file: DataFile, group: int) -> None:
        columns = columns_to_read(self._repository, file, group, self._selection)
        self._meter.count(bytes_needed=sum(chunk.length for chunk in file.table.ranges(group, columns)))

    def _are_too_large(self, needed: Sequence[tuple[DataFile, int]], num_examples: int) -> bool:
        """Returns whether the row groups that a block needs are more than can be kept; says so the first time."""
        sizes = [self._unpacked(file, group) for file, group in needed]
        limit = self._budget.large_rows
        if sum(sizes) <= limit:
            self._groups.limit = max(self._budget.rows, sum(sizes))
            return False
        if self._large_fetchers is None:
            at_once = max(1, min(_MAX_LARGE_AT_ONCE, self._budget.rows // max(sizes)))
            self._large_fetchers = DaemonPool(at_once, "lerobot_grain rows", self._start_thread)
            warnings.warn(
                f"{self._repository.description}: the {len(sizes)} row groups that {num_examples} examples need unpack to "
                f"{sum(sizes) >> 20} MiB; at most {limit >> 20} MiB are kept, so they are read again for the next examples, which is "
                "slow. Read fewer of them at a time with Shuffle(num_parts=...) or Shuffle(open_files=...), fewer columns with "
                "features=[...], or keep more with ReadOptions(memory_budget_bytes=...)",
                LeRobotGrainWarning,
                stacklevel=2,
            )
        return True

    def _unpacked(self, file: DataFile, group: int) -> int:
        place = (file.number, group)
        if place not in self._unpacked_bytes:
            self._unpacked_bytes[place] = file.table.unpacked_bytes(group, selected_columns(file, self._selection))
        return self._unpacked_bytes[place]

    def _decoded(self, feature: Feature, encoded: list[Any], episodes: Integers, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        expected = (*(self._image_size or feature.shape[:2]), feature.num_channels)
        decode_one = decode_depth_image if feature.is_depth else decode_image

        def decode(item: tuple[int, Any]) -> npt.NDArray[Any]:
            where = f"{self._repository.description}, episode {item[0]}, camera {feature.key}"
            pixels = decode_one(item[1], image_size=self._image_size, where=where)
            if pixels.shape != expected:
                raise DatasetFormatError(f"{where}: a picture has shape {pixels.shape}; info.json declares {expected}")
            return pixels

        owners = np.repeat(self._repository.episodes.numbers_of(episodes), len(encoded) // len(episodes)).tolist()
        pixels = np.stack(list(self._decoders.map(decode, zip(owners, encoded, strict=True))))
        self._meter.count(frames_handed_out=len(encoded))
        return pixels.reshape(*shape, *expected)


def _after(fetched: Future[DataFile], pool: Executor, load: Callable[[DataFile], RowGroup]) -> Future[RowGroup]:
    """Calls `load` when a file is there: in the thread that has fetched it, or, where it is there already, in a pool."""
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


def _records(groups: list[RowGroup | None], keys: tuple[str, ...], cells: _Cells) -> dict[str, npt.NDArray[Any]]:
    """Returns the values of single cells of several columns that are arrays."""
    of_group = {place: (group.first_row, group.records(keys)) for place, group in enumerate(groups) if group is not None}
    dtype = next(iter(of_group.values()))[1].dtype
    size = dtype.itemsize
    pieces = []
    for place, row in zip(cells.groups.tolist(), cells.rows.tolist(), strict=True):
        first_row, records = of_group[place]
        start = (row - first_row) * size
        pieces.append(records.rows[start : start + size])
    table = np.frombuffer(bytearray().join(pieces), dtype)
    return {key: np.ascontiguousarray(table[key]) for key in keys}


def _gather(groups: list[RowGroup | None], key: str, cells: _Cells) -> npt.NDArray[Any]:
    """Returns the values of cells, in their shape, of a column that is an array."""
    places, rows = cells.groups.reshape(-1), cells.rows.reshape(-1)
    by_group = np.argsort(places, kind="stable")
    places, rows = places[by_group], rows[by_group]
    bounds = [0, *(np.flatnonzero(places[1:] != places[:-1]) + 1).tolist(), len(places)]
    found: npt.NDArray[Any] | None = None
    for begin, end in itertools.pairwise(bounds):
        group = groups[places.item(begin)]
        assert group is not None
        column = group.columns[key]
        assert isinstance(column, np.ndarray)
        if found is None:
            found = np.empty((len(rows), *column.shape[1:]), column.dtype)
        np.take(column, rows[begin:end] - group.first_row, axis=0, out=found[begin:end], mode="clip")
    assert found is not None
    if len(bounds) > 2:
        sorted_values, found = found, np.empty_like(found)
        found[by_group] = sorted_values
    return found.reshape(*cells.rows.shape, *found.shape[1:])


def _array_of(values: list[Any], shape: tuple[int, ...]) -> npt.NDArray[np.object_]:
    """Returns objects as an array of them: what holds lists must not be taken for more axes, here and by whoever stacks or maps trees."""
    found = np.empty(len(values), object)
    found[:] = values
    return found.reshape(shape)


def _column(key: str, group: RowGroup) -> Sequence[Any]:
    column = group.columns[key]
    assert not isinstance(column, np.ndarray)
    return column


def _look_up(groups: list[RowGroup | None], cells: _Cells, column: Callable[[RowGroup], Sequence[Any]]) -> list[Any]:
    """Returns the values of cells of a column that is a list."""
    of_group = {place: (group.first_row, column(group)) for place, group in enumerate(groups) if group is not None}
    values = []
    for place, row in zip(cells.groups.reshape(-1).tolist(), cells.rows.reshape(-1).tolist(), strict=True):
        first_row, found = of_group[place]
        values.append(found[row - first_row])
    return values

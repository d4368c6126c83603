"""Fetches row groups ahead, and puts the low-dimensional values, embedded images and task of an example together."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._errors import DatasetFormatError
from lerobot_grain._kept import Kept
from lerobot_grain._repository import Repository
from lerobot_grain._rows import DataFile, RowGroup, Selection, columns_to_read, load_group, open_data_file
from lerobot_grain._schema import Feature
from lerobot_grain._statistics import Meter
from lerobot_grain._video import decode_image
from lerobot_grain._windows import WindowRequest

# Footers that are kept.
_MAX_OPEN_DATA_FILES = 256


@dataclass(frozen=True, slots=True)
class PendingRows:
    """Row groups that an example needs, in the order of their rows; none if it needs no row."""

    groups: tuple[Future[RowGroup], ...] = ()


class RowReader:
    """Reads the rows of window requests.

    Args:
      repository: the data set.
      selection: what is read of it.
      image_size: (height, width) that embedded images are resized to, or `None`.
      memory_bytes: row groups that are kept for later requests.
      fetchers: where reading runs.
      meter: counts.
    """

    def __init__(
        self,
        repository: Repository,
        selection: Selection,
        *,
        image_size: tuple[int, int] | None,
        memory_bytes: int,
        fetchers: Executor,
        meter: Meter,
    ) -> None:
        self._repository, self._selection, self._image_size = repository, selection, image_size
        self._fetchers, self._meter = fetchers, meter
        self._is_needed = bool(selection.columns or selection.with_task)
        self._files: Kept[int, DataFile] = Kept(limit=_MAX_OPEN_DATA_FILES, size=lambda _: 1)
        self._groups: Kept[tuple[int, int], RowGroup] = Kept(limit=memory_bytes, size=lambda rows: rows.nbytes)

    def know(self, request: WindowRequest) -> None:
        """Asks for the footer of the file that a coming request will need."""
        if self._is_needed:
            self._file(request)

    def fetch(self, request: WindowRequest) -> PendingRows:
        """Asks for the row groups of a request."""
        if not self._is_needed:
            return PendingRows()
        file = self._meter.wait(self._file(request), "fetch")
        offset = self._repository.episodes.data_offsets.item(request.episode)
        low, high = request.span
        first = file.table.group_of_row(offset + low)
        if offset + high < file.table.group_starts[first + 1]:
            return PendingRows((self._group(file, first),))
        windows = [np.array([request.frame]), *request.frames.values()]
        numbers = {file.table.group_of_row(offset + frame) for frame in np.unique(np.concatenate(windows)).tolist()}
        return PendingRows(tuple(self._group(file, number) for number in sorted(numbers)))

    def put(self, example: dict[str, Any], request: WindowRequest, pending: PendingRows) -> None:
        """Adds the values of a request to its example; waits for its row groups.

        Raises:
          LeRobotGrainError: a row group could not be read, or a picture not be decoded.
        """
        if not pending.groups:
            return
        groups = [self._meter.wait(group, "fetch") for group in pending.groups]
        offset = self._repository.episodes.data_offsets.item(request.episode)
        anchor = offset + request.frame
        # The group that holds the anchor; a window may reach into others.
        holder = groups[0] if len(groups) == 1 else next(group for group in reversed(groups) if group.first_row <= anchor)
        place = anchor - holder.first_row
        for feature in self._selection.columns:
            key = feature.key
            window = request.frames.get(key)
            if window is None:
                value = holder.columns[key][place]
                if feature.is_camera:
                    value = self._picture(feature, value, request)
                # A vector is a view of the row group, which must not be handed out; a scalar is not.
                example[key] = value.copy() if isinstance(value, np.ndarray) else value
                continue
            values = _values_at(groups, feature, window + offset)
            if feature.is_camera:
                values = np.stack([self._picture(feature, value, request) for value in values])
            example[key] = values
        if self._selection.with_task:
            example["task"] = holder.tasks[place]

    def _file(self, request: WindowRequest) -> Future[DataFile]:
        number = self._repository.episodes.data.file_of_episode.item(request.episode)
        return self._files.get(number, lambda: self._fetchers.submit(open_data_file, self._repository, number))

    def _group(self, file: DataFile, group: int) -> Future[RowGroup]:
        def load() -> Future[RowGroup]:
            columns = columns_to_read(file, self._selection)
            self._meter.count(bytes_needed=sum(chunk.length for chunk in file.table.ranges(group, columns)))
            return self._fetchers.submit(load_group, self._repository, file, group, self._selection)

        return self._groups.get((file.number, group), load)

    def _picture(self, feature: Feature, encoded: Any, request: WindowRequest) -> npt.NDArray[np.uint8]:
        where = f"{self._repository.description}, episode {request.episode}, camera {feature.key}"
        pixels = decode_image(encoded, image_size=self._image_size, where=where)
        expected = (*(self._image_size or feature.shape[:2]), 3)
        if pixels.shape != expected:
            raise DatasetFormatError(f"{where}: a picture has shape {pixels.shape}; info.json declares {expected}")
        self._meter.count(frames_handed_out=1)
        return pixels


def _values_at(groups: list[RowGroup], feature: Feature, rows: npt.NDArray[np.int64]) -> Any:
    """Returns the values of rows of a data file: an array `(rows, *shape)`, or a list of str or bytes."""
    if len(groups) == 1:
        column = groups[0].columns[feature.key]
        places = rows - groups[0].first_row
        return column[places] if isinstance(column, np.ndarray) else [column[place] for place in places.tolist()]
    values = []
    for row in rows.tolist():
        holder = next(group for group in reversed(groups) if group.first_row <= row)
        values.append(holder.columns[feature.key][row - holder.first_row])
    return np.stack(values) if isinstance(groups[0].columns[feature.key], np.ndarray) else values

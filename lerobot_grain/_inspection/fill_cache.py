"""Fills the caches on disk ahead of a training: fetches, and decodes where frames are kept.

The idea: rows come first, then frames, camera by camera, and last the video of those episodes whose
frames are not kept, since nobody will ask for the video of the others. Nothing is fetched
or decoded again that is there, so a run that was ended is continued by the next one.

Rules:
* Nothing is fetched that would not be kept, because the limit holds a share only.
* The ranges are those of whole episodes, so they cover whatever windows and orders ask for.
* The indices are read in the way in which a stream reads them, so a stream finds them.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from lerobot_grain._base.arguments import check_opened
from lerobot_grain._base.byte_ranges import ByteRange, merge_ranges
from lerobot_grain._base.errors import InvalidRequestError, LeRobotGrainError
from lerobot_grain._datasets.lerobot_dataset import LeRobotIterDataset
from lerobot_grain._format.features import Feature
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._reading.frame_cache.episode_frames import EpisodeFrames, Layout
from lerobot_grain._reading.frame_cache.frame_key import FrameKey
from lerobot_grain._reading.options import ReadOptions
from lerobot_grain._reading.rows.data_files import columns_to_read, open_data_file
from lerobot_grain._reading.video_files import MAX_FETCH_BYTES, open_video
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import (
    EpisodeSelection,
    select_episodes,
    select_features,
)
from lerobot_grain._storage.http.cancellation import CancelScope
from lerobot_grain._storage.hub.address import frame_cache_directory

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")
OnProgress = Callable[[str, int, int], None]

# Examples a batch: few enough that progress is seen.
_BATCH_SIZE = 32
# Tasks that wait for a thread, for each thread: more would only take memory.
_QUEUED = 4


class _Wanted(NamedTuple):
    """Bytes of a file."""

    path: str
    extent: ByteRange


class _KeptEpisode(NamedTuple):
    """The frames of an episode of a camera, which the frame cache is to hold."""

    camera: str
    position: int
    file: EpisodeFrames

    def count_missing(self) -> int:
        """Returns how many are not there; looks at the file."""
        self.file.load()
        return int((self.file.checksums == 0).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledCache:
    """The work of a call of `fill_cache`, and what lies in the caches after it.

    Attributes:
      dataset: name and commit.
      num_episodes: that were selected.
      bytes_fetched: that arrived from the dataset's storage, those of its indices among them.
      bytes_selected: coded bytes of rows and video that the caches are to hold, those above the
        limit among them, without video of which all frames are kept.
      bytes_above_limit: those of them that do not belong to the share that is kept.
      frames_selected: frames of all cameras; 0 where no frames are kept.
      frames_decoded: those of them that were decoded now.
      frames_there: those of them that lie in the frame cache.
    """

    dataset: str
    num_episodes: int
    bytes_fetched: int
    bytes_selected: int
    bytes_above_limit: int
    frames_selected: int
    frames_decoded: int
    frames_there: int


def fill_cache(
    repository: Repository,
    *,
    features: Iterable[str] | None = None,
    episodes: EpisodeSelection = None,
    image_size: tuple[int, int] | None = None,
    read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
    on_progress: OnProgress | None = None,
) -> FilledCache:
    """Fetches a dataset into the disk cache, and decodes it into the frame cache if
    `read_options.frame_cache_bytes` is not 0, ahead of a training.

    A stream of the same features, episodes, image size and options then finds it. Nothing is
    fetched or decoded again that is there, so a call that was interrupted is continued by the next
    one.
    If the limits do not hold all, the share is filled that a training would keep.

    Args:
      repository: the opened dataset. The limit of the disk cache is that of the `StorageOptions` it
        was opened with. Nothing of a directory or a bucket is fetched: only its frames are kept.
      features, episodes, image_size: as for `LeRobotIterDataset`. The size decides which frames are
        kept, and nothing else.
      read_options: the frame cache, and memory and threads.
      on_progress: called with what is being done (`files`, `rows and video`, or `frames of` and
        the key of a camera), how much of it is done, and how much there is.

    Raises:
      InvalidRequestError: an argument is out of its range; neither of the caches would hold
        anything.
      DatasetFormatError: a file or an episode cannot be read.
      StorageError: the bytes could not be read.
    """
    check_opened(repository, of="fill_cache")
    return _Filling(repository, features, episodes, image_size, read_options).run(
        on_progress or _no_progress
    )


def _no_progress(what: str, done: int, total: int) -> None:
    del what, done, total


class _Filling:
    """One call of `fill_cache`; its arguments."""

    def __init__(
        self,
        repository: Repository,
        features: Iterable[str] | None,
        episodes: EpisodeSelection,
        image_size: tuple[int, int] | None,
        read_options: ReadOptions,
    ) -> None:
        self._repository = repository
        self._selection = select_features(repository, features)
        self._positions = select_episodes(repository, episodes)
        self._image_size = image_size
        self._read_options = read_options
        self._frames_decoded = 0
        # It checks what a stream will be asked for later.
        LeRobotIterDataset(
            repository,
            features=self._selection.keys,
            shuffle=None,
            image_size=image_size,
            read_options=read_options,
        )
        if not read_options.frame_cache_bytes:
            self._check_may_keep()

    def _check_may_keep(self) -> None:
        """Raises:
        InvalidRequestError: neither of the caches would hold anything.
        """
        episodes = self._repository.episodes
        spans = [episodes.data, *(video.files for video in episodes.videos.values())]
        storage = self._repository.storage
        paths = [path for each in spans for path in each.paths]
        if not any(map(storage.keeps, paths)):
            raise InvalidRequestError(
                f"{self._repository.description}: nothing of it would be kept on disk. Bytes of a "
                "directory, of a bucket, or of files that lie in the cache of huggingface_hub are "
                "not, nor any with StorageOptions(disk_cache_bytes=0); decoded frames are with "
                "ReadOptions(frame_cache_bytes=...)"
            )

    def run(self, on_progress: OnProgress) -> FilledCache:
        """Fetches and decodes."""
        repository = self._repository
        fetched_before = repository.storage.statistics.bytes_received
        if self._selection.videos:
            # The default order asks for it. The reader of the file says what is wrong with it.
            with contextlib.suppress(LeRobotGrainError):
                repository.gop_length()
        # Before a stream reads of this repository: what it knows of the order of rows it would not
        # ask for again, but another process would.
        rows = self._extents_of_rows(on_progress)
        self._fetch(rows, on_progress)
        kept = self._kept_episodes()
        self._decode(kept, on_progress)
        there = {(each.camera, each.position) for each in kept if not each.count_missing()}
        video = self._extents_of_video(there, on_progress)
        self._fetch(video, on_progress)
        selected = [*rows, *video]
        cameras = self._cameras if self._read_options.frame_cache_bytes else []
        num_frames = int(repository.episodes.lengths[self._positions].sum())
        return FilledCache(
            dataset=repository.description,
            num_episodes=len(self._positions),
            bytes_fetched=repository.storage.statistics.bytes_received - fetched_before,
            bytes_selected=sum(each.extent.length for each in selected),
            bytes_above_limit=sum(
                each.extent.length
                for each in selected
                if not repository.storage.would_keep(each.path, each.extent)
            ),
            frames_selected=len(cameras) * num_frames,
            frames_decoded=self._frames_decoded,
            frames_there=sum(each.file.layout.num_frames - each.count_missing() for each in kept),
        )

    @property
    def _cameras(self) -> list[Feature]:
        features = (*self._selection.columns, *self._selection.videos)
        return [feature for feature in features if feature.is_camera]

    # Coded bytes.

    def _extents_of_rows(self, on_progress: OnProgress) -> list[_Wanted]:
        """Opens the data files of the episodes; returns the row groups that hold rows of them."""
        episodes = self._repository.episodes
        numbers = np.unique(episodes.data.file_of_episode[self._positions]).tolist()
        found: list[_Wanted] = []
        opened = self._in_threads(self._rows_of_file, numbers)
        for done, extents in enumerate(opened, 1):
            found += extents
            on_progress("files", done, len(numbers))
        return found

    def _rows_of_file(self, number: int) -> list[_Wanted]:
        repository = self._repository
        episodes = repository.episodes
        path = episodes.data.paths[number]
        if not repository.storage.keeps(path):
            return []
        file = open_data_file(repository, number)
        held = episodes.data.episodes_in(number)
        wanted = held[np.isin(held, self._positions)]
        firsts = episodes.data_offsets[wanted]
        stops = firsts + episodes.lengths[wanted]
        chunks: list[ByteRange] = []
        for group, (first, stop) in enumerate(pairwise(file.table.group_starts)):
            if ((firsts < stop) & (stops > first)).any():
                names = columns_to_read(repository, file, group, self._selection)
                chunks += file.table.ranges(group, names)
        return _cut(path, chunks)

    def _extents_of_video(
        self, there: set[tuple[str, int]], on_progress: OnProgress
    ) -> list[_Wanted]:
        """Opens the video files of the episodes of which frames are not kept; returns the bytes of
        these.

        Args:
          there: camera and position of the episodes whose frames all lie on disk.
        """
        episodes = self._repository.episodes
        files: dict[tuple[str, int], list[int]] = {}
        for feature in self._selection.videos:
            file_of_episode = episodes.videos[feature.key].files.file_of_episode
            for position in self._positions.tolist():
                if (feature.key, position) not in there:
                    key = feature.key, file_of_episode.item(position)
                    files.setdefault(key, []).append(position)
        found: list[_Wanted] = []
        opened = self._in_threads(self._video_of_file, list(files.items()))
        for done, extents in enumerate(opened, 1):
            found += extents
            on_progress("files", done, len(files))
        return found

    def _video_of_file(self, wanted: tuple[tuple[str, int], list[int]]) -> list[_Wanted]:
        (camera, number), positions = wanted
        repository = self._repository
        files = repository.episodes.videos[camera].files
        path = files.paths[number]
        if not repository.storage.keeps(path):
            return []
        file = open_video(repository, camera, number)
        if len(files.episodes_in(number)) == 1:
            # A reader may fetch it whole, too.
            size = repository.storage.size_bytes(path)
            if size <= MAX_FETCH_BYTES:
                return _cut(path, [ByteRange(0, size)])
        for position in positions:
            file.check(position)
        first_gops, last_gops = file.gops_of_episodes(np.array(positions))
        bounds = zip(first_gops.tolist(), last_gops.tolist(), strict=True)
        return _cut(path, [file.byte_range_of(range(first, last + 1)) for first, last in bounds])

    def _fetch(self, wanted: list[_Wanted], on_progress: OnProgress) -> None:
        """Reads bytes, which the storage keeps."""
        storage = self._repository.storage

        def fetch(each: _Wanted) -> int:
            if storage.would_keep(each.path, each.extent):
                storage.read_ranges(each.path, [each.extent])
            return each.extent.length

        total = sum(each.extent.length for each in wanted)
        done = 0
        for num_bytes in self._in_threads(fetch, wanted):
            done += num_bytes
            on_progress("rows and video", done, total)

    def _in_threads(
        self, call: Callable[[_Value], _Result], items: Iterable[_Value]
    ) -> Iterator[_Result]:
        """Yields what a call returns for each item, in their order."""
        num_threads = self._repository.storage.options.num_connections
        requests = CancelScope()
        pool = DaemonPool(num_threads, "lerobot_grain fill", requests.enter)
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(call, item))
                if len(pending) >= _QUEUED * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # After an error, or Ctrl-C, a server that stalls is not waited for.
            pool.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=requests.end())

    # Frames.

    def _kept_episodes(self) -> list[_KeptEpisode]:
        """Returns what the frame cache is to hold: what comes first in the order of its names, as
        far as the limit allows, if the directory holds nothing else.
        """
        limit = self._read_options.frame_cache_bytes
        if not limit:
            return []
        directory = os.fspath(self._read_options.frame_cache_directory or frame_cache_directory())
        lengths = self._repository.episodes.lengths
        found = []
        for feature in self._cameras:
            key = FrameKey(self._repository, feature, self._image_size)
            shape = (*(self._image_size or feature.shape[:2]), feature.num_channels)
            frame_bytes = math.prod(shape) * np.dtype(feature.frame_dtype).itemsize
            for position in self._positions.tolist():
                path = os.path.join(directory, key.name(position))
                file = EpisodeFrames(
                    path, Layout(lengths.item(position), frame_bytes), about=feature.key
                )
                found.append(_KeptEpisode(feature.key, position, file))
        found.sort(key=lambda each: each.file.name)
        sizes = np.cumsum([each.file.layout.file_bytes for each in found])
        return found[: int(np.searchsorted(sizes, limit, side="right"))]

    def _decode(self, kept: list[_KeptEpisode], on_progress: OnProgress) -> None:
        """Decodes what is missing, until all is there or nothing more is kept."""
        for feature in self._cameras:
            of_camera = [each for each in kept if each.camera == feature.key]
            missing = {each.position: each.count_missing() for each in of_camera}
            # More than once, since frames are dropped where the disk is slower than the decoder.
            while num_missing := sum(missing.values()):
                incomplete = [position for position, count in missing.items() if count]
                self._decode_once(feature.key, incomplete, on_progress)
                missing = {each.position: each.count_missing() for each in of_camera}
                left = sum(missing.values())
                self._frames_decoded += num_missing - left
                if left >= num_missing:
                    break

    def _decode_once(self, camera: str, positions: list[int], on_progress: OnProgress) -> None:
        """Streams episodes of a camera, whose frames the reader keeps."""
        episodes = self._repository.episodes
        total = int(episodes.lengths[positions].sum())
        dataset = LeRobotIterDataset(
            self._repository,
            episodes=[episodes.number_of(position) for position in positions],
            features=[camera],
            shuffle=None,
            num_epochs=1,
            image_size=self._image_size,
            read_options=self._read_options,
        )
        done = 0
        with contextlib.closing(iter(dataset.batch(_BATCH_SIZE))) as batches:
            for batch in batches:
                done += len(batch[camera])
                on_progress(f"frames of {camera}", done, total)


def _cut(path: str, ranges: Iterable[ByteRange]) -> list[_Wanted]:
    """Returns ranges of a file, merged where they meet, and cut where one request ends."""
    found = []
    for each in merge_ranges(list(ranges), gap_bytes=0, max_bytes=1 << 62):
        # At multiples, where the cells of the disk cache begin.
        starts = range(each.start // MAX_FETCH_BYTES * MAX_FETCH_BYTES, each.stop, MAX_FETCH_BYTES)
        for start in starts:
            extent = ByteRange(max(start, each.start), min(start + MAX_FETCH_BYTES, each.stop))
            found.append(_Wanted(path, extent))
    return found

"""The Grain data sets and the Grain transformation: order -> windows -> examples. Only this module imports Grain.

    FrameOrderIterDataset              source: yields rows in the order of `_order`; state = the position
        .map(DeltaTimestamps(...))     row -> WindowRequest: 1:1, so slicing the source never tears a window
        ReadWindowsIterDataset         WindowRequest -> example; pulls its parent ahead, yields in order
    LeRobotIterDataset                 builds the three from keyword arguments

Rules, most of them forced by Grain 0.2.18:
* Nothing does I/O before the first `next`: Grain makes iterators, and asks for their states, in processes that will never read.
* `get_state` returns a fresh dict of plain ints and strings that holds nothing of the shard: it is the same on every host and worker.
* `set_state` compares first and changes nothing when something differs.
* Epochs are counted inside the source: `RepeatIterDataset` would repeat one order, and loses data above `mp_prefetch`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain._episodes import select_episodes
from lerobot_grain._errors import InvalidRequestError, StateMismatchError
from lerobot_grain._order import ORDER_VERSION, EpochOrder, FrameOrder, Shuffle
from lerobot_grain._readahead import Example, ReadAhead, ReadOptions
from lerobot_grain._repository import Repository, open_repository
from lerobot_grain._rows import Selection
from lerobot_grain._windows import TOLERANCE_SECONDS, WindowRequest, window_offsets

# Where there is no video; see the design of the order: clips shorter than this mix better but cost more requests.
_DEFAULT_CLIP_LENGTH = 16
# Positions whose rows are computed at a time: a microsecond each, where one by one they take 100.
_POSITIONS_AT_A_TIME = 1024
# Rows beyond the shuffle's buffer that the reader knows ahead.
_KNOWN_EXAMPLES = 512
TASK_KEY = "task"


class FrameOrderIterDataset(grain.IterDataset[int]):
    """The rows of a data set, as ints, in a shuffled or sequential order that is resumed exactly.

    Args:
      repository: an opened data set.
      episodes: episode numbers or a slice; `None`: all. Their order does not matter.
      shuffle: `None`: sequential, episode by episode.
      num_epochs: the stream ends after this many; `None`: it never does.
      shard_options: shard i of n gets positions i, i + n, ...; nothing is dropped at the end of an epoch. With `drop_remainder` all shards of a
        finite stream get the same number of rows.

    Raises:
      InvalidRequestError: an argument is out of its range.
      DatasetFormatError, StorageError: `clip_length` is to be found from the video, which cannot be read.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        episodes: slice | Iterable[int] | None = None,
        shuffle: Shuffle | None = Shuffle(),  # noqa: B008 (a frozen value)
        num_epochs: int | None = None,
        shard_options: grain.sharding.ShardOptions = grain.sharding.NoSharding(),  # noqa: B008 (a frozen value)
    ) -> None:
        super().__init__()
        if num_epochs is not None and (not isinstance(num_epochs, int) or isinstance(num_epochs, bool) or num_epochs < 1):
            raise InvalidRequestError(f"num_epochs={num_epochs!r}: expected an int >= 1, or None for an endless stream")
        if shuffle is not None and shuffle.clip_length is None:
            shuffle = replace(shuffle, clip_length=default_clip_length(repository))
        table = repository.episodes
        selected = select_episodes(episodes, table.num_episodes)
        self._order = FrameOrder(
            first_rows=table.first_rows[selected],
            lengths=table.lengths[selected],
            data_files=table.data.file_of_episode[selected],
            shuffle=shuffle,
        )
        self._num_epochs = num_epochs
        self._shard_options = shard_options
        # Element k of this shard is position base + start + k * step, where base is 0 or comes from a restored state.
        self._start, self._step = shard_options.shard_index, shard_options.shard_count
        self._identity = {
            "commit": repository.commit,
            "episodes": _hash_of(selected, table.lengths[selected]),
            "num_rows": self._order.num_rows,
            **_shuffle_state(shuffle),
        }

    @property
    def num_rows(self) -> int:
        """Rows of one epoch, over all shards."""
        return self._order.num_rows

    @property
    def shuffle(self) -> Shuffle | None:
        """The shuffle, with the `clip_length` that is used."""
        return self._order.shuffle

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Takes every `sl.step`-th row of this shard from the `sl.start`-th on: what Grain's `mp_prefetch` calls for each worker."""
        if sequential_slice:
            raise NotImplementedError("lerobot_grain: contiguous slices (sequential_slice) are not supported; every worker takes every n-th row")
        start, step = sl.start or 0, sl.step or 1
        if sl.stop is not None or start < 0 or step < 1:
            raise InvalidRequestError(f"set_slice({sl}): expected slice(start, None, step) with start >= 0 and step >= 1")
        self._start, self._step = self._start + start * self._step, self._step * step

    def __iter__(self) -> grain.DatasetIterator[int]:
        return _FrameOrderIterator(self)

    @property
    def _element_spec(self) -> Any:
        return grain.experimental.ShapeDtypeStruct((), np.int64)

    def __str__(self) -> str:
        return f"FrameOrderIterDataset({self._order.num_rows} rows)"


class _FrameOrderIterator(grain.DatasetIterator[int]):
    def __init__(self, dataset: FrameOrderIterDataset) -> None:
        super().__init__()
        self._dataset = dataset
        # Elements handed out since `base`; the global position is base + handed_out * step.
        self._base = self._handed_out = 0
        self._epoch: tuple[int, EpochOrder] | None = None
        self._rows: list[int] = []
        self._next = 0

    def __next__(self) -> int:
        self._assert_not_closed()
        with self._stats.record_self_time():
            if self._next == len(self._rows):
                self._compute_rows()
            row = self._rows[self._next]
            self._next += 1
            self._handed_out += 1
            return row

    def _compute_rows(self) -> None:
        """Computes the next rows of this shard, up to the end of an epoch, from the position alone."""
        dataset = self._dataset
        num_rows = dataset.num_rows
        first = self._base + dataset._start + self._handed_out * dataset._step
        stop = self._stop_position()
        if stop is not None and first >= stop:
            raise StopIteration
        epoch = first // num_rows
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, dataset._order.epoch(epoch)
        positions = np.arange(first, first + _POSITIONS_AT_A_TIME * dataset._step, dataset._step)
        limit = (epoch + 1) * num_rows if stop is None else min((epoch + 1) * num_rows, stop)
        self._rows = self._epoch[1].rows(positions[positions < limit] - epoch * num_rows).tolist()
        self._next = 0

    def _stop_position(self) -> int | None:
        """Returns the position, not counting this shard's start, at which the stream ends; `None`: never."""
        dataset = self._dataset
        if dataset._num_epochs is None:
            return None
        stop = dataset._num_epochs * dataset.num_rows
        if dataset._shard_options.drop_remainder:
            # All shards together take whole rounds from the base on. A worker's slice ends at the same position as its host's shard.
            count = dataset._shard_options.shard_count
            whole = (stop - self._base) // count * count
            return self._base + whole
        return stop

    def get_state(self) -> dict[str, Any]:
        return {
            "format": ORDER_VERSION,
            "position": self._base + self._handed_out * self._dataset._step,
            **self._dataset._identity,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        position = _checked_position(state, self._dataset._identity)
        self._base, self._handed_out = position, 0
        self._rows, self._next = [], 0

    def __str__(self) -> str:
        return str(self._dataset)


class DeltaTimestamps(grain.transforms.Map):
    """Custom Grain transformation: row -> `WindowRequest`, the frames that the example at that row needs.

    Pure arithmetic on the episode table; nothing is read. Use it as `.map(DeltaTimestamps(repository, {...}))` on any data set of rows.

    Args:
      repository: an opened data set.
      delta_timestamps: feature key -> distances in seconds from the row, such as `{"action": [0.0, 0.1, 0.2]}`.
      tolerance_seconds: a delta may be off a whole number of frames by this much.

    Raises:
      InvalidRequestError: no such feature, or a delta is not a whole number of frames; the message names the nearest ones.
    """

    def __init__(
        self,
        repository: Repository,
        delta_timestamps: Mapping[str, Sequence[float]] | None = None,
        *,
        tolerance_seconds: float = TOLERANCE_SECONDS,
    ) -> None:
        self._episodes = repository.episodes
        self._offsets = window_offsets(
            delta_timestamps or {}, fps=repository.fps, tolerance_seconds=tolerance_seconds, known_keys=tuple(repository.features)
        )

    def map(self, element: int) -> WindowRequest:
        episode, frame = self._episodes.locate(element)
        return self._offsets.request(row=element, episode=episode, frame=frame, length=int(self._episodes.lengths[episode]))


class ReadWindowsIterDataset(grain.IterDataset[Example]):
    """Reads the example of every `WindowRequest` of its parent: rows, and video decoded on the fly.

    Its parent may be any data set of requests, such as `FrameOrderIterDataset(...).filter(...).map(DeltaTimestamps(...))`. It is pulled ahead of
    the consumer; examples leave in its order, and the state is the parent's at the last example handed out.

    An example is a flat dict with the keys of the data set: NumPy arrays of the declared dtype and shape `(*shape)`, scalars for features of shape
    `(1,)`; `(time, *shape)` and a mask `{key}_is_pad`, bool `(time,)`, for keys with delta timestamps; cameras uint8 `(height, width, 3)` or
    `(time, height, width, 3)`; strings as str or lists of str; the text of the task under `task`.

    Args:
      parent: data set of `WindowRequest`.
      repository: the opened data set that they belong to.
      features: keys to read, among them `task`; `None`: all. A camera that is not read costs no byte.
      image_size: (height, width) that all cameras are resized to, or `None`.
      read_options: memory and threads.
      known_examples: requests that are pulled ahead; frames that are needed twice within this many examples are decoded once.

    Raises:
      InvalidRequestError: an argument is out of its range, or asks for a feature that does not exist or is not supported.
    """

    def __init__(
        self,
        parent: grain.IterDataset[WindowRequest],
        repository: Repository,
        *,
        features: Iterable[str] | None = None,
        image_size: tuple[int, int] | None = None,
        read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
        known_examples: int = 2048 + _KNOWN_EXAMPLES,
    ) -> None:
        super().__init__(parent)
        self._repository = repository
        self._selection = select_features(repository, features)
        self._image_size = _checked_image_size(image_size)
        self._read_options = read_options
        self._known_examples = known_examples

    def __iter__(self) -> grain.DatasetIterator[Example]:
        return _ReadWindowsIterator(self, self._parent.__iter__())

    def __str__(self) -> str:
        return f"ReadWindowsIterDataset({self._repository.description})"


class _ReadWindowsIterator(grain.DatasetIterator[Example]):
    def __init__(self, dataset: ReadWindowsIterDataset, parent: grain.DatasetIterator[WindowRequest]) -> None:
        super().__init__(parent)
        self._dataset = dataset
        self._state: dict[str, Any] | None = None  # the parent's at the last example handed out; None: as the parent stands
        self._ahead: ReadAhead[dict[str, Any]] | None = None
        self._parent_error: Exception | None = None

    def __next__(self) -> Example:
        self._assert_not_closed()
        with self._stats.record_self_time():
            try:
                example, self._state = self._take()
            except StopIteration:
                raise
            except BaseException:
                # Nothing was handed out: the next call starts again behind the last example that was.
                self._restart()
                raise
            return self._stats.record_output_spec(example)

    def _take(self) -> tuple[Example, dict[str, Any]]:
        if self._ahead is None:
            dataset = self._dataset
            self._state = self._parent.get_state()
            self._ahead = ReadAhead(
                dataset._repository,
                dataset._selection,
                image_size=dataset._image_size,
                options=dataset._read_options,
                known_examples=dataset._known_examples,
            )
        while self._parent_error is None and self._ahead.wants_more:
            try:
                request = next(self._parent)
            except Exception as error:  # also StopIteration: the examples before it are handed out first
                self._parent_error = error
            else:
                self._ahead.add(request, self._parent.get_state())
        if self._ahead.is_empty:
            assert self._parent_error is not None
            raise self._parent_error
        return self._ahead.take()

    def _restart(self) -> None:
        ahead, self._ahead, self._parent_error = self._ahead, None, None
        if ahead is not None:
            ahead.close()
            assert self._state is not None
            self._parent.set_state(self._state)
            self._state = None

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state() if self._state is None else dict(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        # The parent checks it, and raises before anything here has changed. It stands ahead of what was handed out, so it is put back if it refuses.
        self._parent.set_state(state)
        ahead, self._ahead, self._parent_error, self._state = self._ahead, None, None, None
        if ahead is not None:
            ahead.close()

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        if self._ahead is not None:
            self._ahead.close()

    def __str__(self) -> str:
        return str(self._dataset)


class LeRobotIterDataset(ReadWindowsIterDataset):
    """A LeRobotDataset, streamed as a shuffled, windowed, exactly resumable Grain data set of examples.

        dataset = LeRobotIterDataset("lerobot/pusht", delta_timestamps={"action": [i / 10 for i in range(16)]})
        for batch in dataset.batch(64): ...

    `.map`, `.filter`, `.batch`, `grain.IterDataset.mix`, `mp_prefetch` and Grain's checkpoints work on it. What an example looks like:
    `ReadWindowsIterDataset`.

    Args:
      repository: `org/name` on the Hub, a directory, or an opened `Repository`.
      revision: branch, tag or commit; by default the newest `v3.x` tag, and `main` where there is none.
      episodes: episode numbers or a slice; `None`: all. Their order does not matter.
      features: keys to read, among them `task`; `None`: all. A camera that is not read costs no byte.
      delta_timestamps: feature key -> distances in seconds from the row of the example.
      shuffle: `None`: sequential, episode by episode.
      num_epochs: the stream ends after this many; `None`: it never does.
      shard_options: which shard of the stream; `grain.sharding.ShardByJaxProcess()` for one shard a host.
      image_size: (height, width) that all cameras are resized to, or `None`.
      read_options: memory and threads, and connections where this opens the repository.
      tolerance_seconds: a delta may be off a whole number of frames by this much.
      endpoint, token, cache_dir: as for `open_repository`.

    Raises:
      InvalidRequestError: an argument is out of its range, or asks for what the data set does not have.
      DatasetFormatError: it is not a LeRobotDataset v3.x, or is malformed.
      StorageError: missing, private or gated repository, wrong revision, or the Hub could not be reached.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str] | Repository,
        *,
        revision: str | None = None,
        episodes: slice | Iterable[int] | None = None,
        features: Iterable[str] | None = None,
        delta_timestamps: Mapping[str, Sequence[float]] | None = None,
        shuffle: Shuffle | None = Shuffle(),  # noqa: B008 (a frozen value)
        num_epochs: int | None = None,
        shard_options: grain.sharding.ShardOptions = grain.sharding.NoSharding(),  # noqa: B008 (a frozen value)
        image_size: tuple[int, int] | None = None,
        read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
        tolerance_seconds: float = TOLERANCE_SECONDS,
        endpoint: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(repository, Repository):
            if not (revision is endpoint is token is cache_dir is None):
                raise InvalidRequestError("revision, endpoint, token and cache_dir belong to open_repository; the repository given is open already")
        else:
            repository = open_repository(
                repository, revision=revision, endpoint=endpoint, token=token, cache_dir=cache_dir, storage_options=read_options.storage
            )
        features = None if features is None else tuple(features)
        selection = select_features(repository, features)
        windows = delta_timestamps or {}
        if unread := [key for key in windows if key not in {feature.key for feature in selection.columns + selection.videos}]:
            raise InvalidRequestError(
                f"delta_timestamps[{unread[0]!r}]: "
                + ("it is not among features=" if unread[0] in repository.features else "there is no such feature; ")
                + ", ".join(feature.key for feature in selection.columns + selection.videos)
            )
        transformation = DeltaTimestamps(repository, windows, tolerance_seconds=tolerance_seconds)
        order = FrameOrderIterDataset(
            repository, episodes=episodes, shuffle=shuffle, num_epochs=num_epochs, shard_options=shard_options
        )
        buffer_size = 0 if order.shuffle is None else order.shuffle.buffer_size
        super().__init__(
            order.map(transformation),
            repository,
            features=features,
            image_size=image_size,
            read_options=read_options,
            # Two rows of a clip are at most two blocks of the shuffle apart.
            known_examples=2 * buffer_size + _KNOWN_EXAMPLES,
        )
        self._order = order

    @property
    def repository(self) -> Repository:
        """The opened data set: features, episodes, tasks, statistics."""
        return self._repository

    @property
    def num_rows(self) -> int:
        """Rows, and so examples, of one epoch, over all shards."""
        return self._order.num_rows

    @property
    def shuffle(self) -> Shuffle | None:
        """The shuffle, with the `clip_length` that is used."""
        return self._order.shuffle

    def __str__(self) -> str:
        return f"LeRobotIterDataset({self._repository.description})"


def default_clip_length(repository: Repository) -> int:
    """Returns the smallest multiple of the GOP length that is at least 16; 16 where there is no video."""
    gop_length = repository.gop_length() or 1
    return -(-_DEFAULT_CLIP_LENGTH // gop_length) * gop_length


def select_features(repository: Repository, features: Iterable[str] | None) -> Selection:
    """Returns what `features=` selects.

    Raises:
      InvalidRequestError: a key does not exist, is given twice, or cannot be read.
    """
    declared = repository.features
    if isinstance(features, str):
        raise InvalidRequestError(f"features={features!r}: expected a list of keys")
    keys = [*declared, TASK_KEY] if features is None else list(features)
    if unknown := [key for key in keys if key not in declared and key != TASK_KEY]:
        raise InvalidRequestError(f"{repository.description}: there is no feature {unknown[0]!r}; there are {', '.join([*declared, TASK_KEY])}")
    if len(set(keys)) < len(keys):
        raise InvalidRequestError(f"features={keys!r}: a key is given twice")
    if not keys:
        raise InvalidRequestError("features=[]: expected at least one key, or None for all")
    chosen = [declared[key] for key in keys if key in declared]
    for feature in chosen:
        problem = "a depth camera" if feature.is_depth else f"of dtype {feature.dtype}" if feature.dtype == "language" else None
        if problem is not None:
            raise InvalidRequestError(
                f"{repository.description}: feature {feature.key!r} is {problem}, which is not supported yet; name the other features in features=[...]"
            )
    return Selection(
        columns=tuple(feature for feature in chosen if not feature.is_video),
        videos=tuple(feature for feature in chosen if feature.is_video),
        with_task=TASK_KEY in keys,
    )


def _checked_image_size(image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    try:
        height, width = image_size
    except (TypeError, ValueError):
        height = width = 0
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in (height, width)):
        raise InvalidRequestError(f"image_size={image_size!r}: expected (height, width) in pixels")
    return height, width


def _hash_of(episodes: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> str:
    # Of the numbers as little-endian 64-bit integers, so that it is the same on every machine.
    return hashlib.sha256(np.stack((episodes, lengths)).astype("<i8").tobytes()).hexdigest()[:16]


def _shuffle_state(shuffle: Shuffle | None) -> dict[str, Any]:
    names = ("seed", "clip_length", "num_parts", "buffer_size", "open_files")
    # The sequential order depends on none of them; the keys of a state are always the same.
    return {"shuffled": int(shuffle is not None), **{name: -1 if shuffle is None else (getattr(shuffle, name) or 0) for name in names}}


def _checked_position(state: Mapping[str, Any], identity: Mapping[str, Any]) -> int:
    if not isinstance(state, Mapping) or "format" not in state or "position" not in state:
        raise StateMismatchError(f"this is not a state of a lerobot_grain stream: {str(state)[:200]}; expected the dict that get_state returned")
    if state["format"] != ORDER_VERSION:
        raise StateMismatchError(
            f"the state has format {state['format']!r}, this version of lerobot_grain reads {ORDER_VERSION}; "
            "resume with the version of lerobot_grain that wrote it"
        )
    for name, expected in identity.items():
        if state.get(name) != expected:
            raise StateMismatchError(f"the state was taken with {name} = {state.get(name)!r}, this stream has {expected!r}; {_REMEDIES.get(name, _REMEDY)}")
    position = state["position"]
    if not isinstance(position, int) or isinstance(position, bool) or position < 0:
        raise StateMismatchError(f"the state has position {position!r}; expected an int >= 0")
    return position


_REMEDY = "make the data set with the same shuffle, or begin a new stream"
_REMEDIES = {
    "commit": "open the data set with revision= that commit, or begin a new stream",
    "episodes": "select the same episodes (this is a hash of their numbers and lengths), or begin a new stream",
    "num_rows": "select the same episodes, or begin a new stream",
}

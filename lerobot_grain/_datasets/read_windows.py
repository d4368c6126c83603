"""The Grain dataset that reads windows, and its batches.

Its parent yields window requests. It pulls them ahead of the consumer, reads the rows, decodes
the video, and yields examples in the order of its parent. The state is the parent's, at the last
example that was handed out.

Rules:
* Nothing does I/O before the first `next`. Datasets and iterators hold no client, lock, thread or
  file before it: they pickle.
* An exception hands out nothing and loses nothing: the next call reads the same examples again
  (`_datasets/open_stream`).

The public front, which builds the whole pipeline: `_datasets/lerobot_dataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_opened, is_int
from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._base.memory import give_back
from lerobot_grain._datasets.delta_timestamps import (
    OrderedWindowsIterator,
    WindowBlockBuilder,
    windows_of,
)
from lerobot_grain._datasets.element_specs import example_spec
from lerobot_grain._datasets.feed.batches import WithBatches
from lerobot_grain._datasets.open_stream import Blocks, OneSource, OneThread, OpenStream
from lerobot_grain._order.shuffle import LOOKAHEAD_EXAMPLES
from lerobot_grain._order.windows import (
    WindowRequest,
    checked_pad_keys,
    mask_keys,
)
from lerobot_grain._reading.batches import Batch, Example, num_examples, with_arrays_of_strings
from lerobot_grain._reading.frames.frame_reader import load_decoders
from lerobot_grain._reading.options import ReadOptions
from lerobot_grain._reading.read_ahead import ReadAhead
from lerobot_grain._reading.read_context import ReadContext, ReadSource
from lerobot_grain._reading.read_statistics import Meter, ReadStatistics
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import FeatureSelection, select_features

Taken = TypeVar("Taken")


class ReadWindowsIterDataset(WithBatches[Example]):
    """Reads the example of every `WindowRequest` of its parent: rows, and video decoded on the fly.

    Its parent may be any dataset of requests, such as
    `FrameOrderIterDataset(...).filter(...).map(DeltaTimestamps(...))`. It is pulled ahead of the
    consumer; examples leave in its order, and the state is the parent's at the last example handed
    out.

    An example is a flat dict with the keys of the dataset: NumPy arrays of the declared dtype and
    shape `(*shape)`, scalars for features of shape `(1,)`; `(time, *shape)` and a mask
    `{key}_is_pad`, bool `(time,)`, for keys with delta timestamps; cameras uint8 `(height, width,
    3)` or `(time, height, width, 3)`; depth cameras float32 `(height, width, 1)` or `(time, height,
    width, 1)`, in meters or millimeters as `repository.features[key].depth.unit` says; strings as
    str or lists of str; the text of the task under `task`, and of the subtask under `subtask` where
    there are subtasks; language as a list of dicts, which a batch holds in an array of objects; and
    what windows with names add (`Window`).

    Args:
      parent: dataset of `WindowRequest`.
      repository: the opened dataset that they belong to.
      features: keys to read, among them `task`; `None`: all. A camera that is not read costs no
        byte.
      image_size: (height, width) that all cameras are resized to, depth by its nearest pixels, or
        `None`.
      read_options: memory and threads.
      pad_keys: feature key, or name of a window -> key of its mask in examples, in place of
        `{key}_is_pad`: for datasets with a feature of that name, such as `action_is_pad`.
        `plot_example` and the shaping transformations find masks that are named `{key}_is_pad`.
      known_examples: requests that are pulled ahead; frames that are needed twice within this many
        examples are decoded once.

    Raises:
      InvalidRequestError: an argument is out of its range, asks for a feature that does not exist
        or is not supported, or the mask of a window would have the key of a feature that is
        selected, or of another mask. If the windows are not known yet, since `parent` is not made
        by `DeltaTimestamps`, the last is raised when the first example with such a window is taken.
    """

    def __init__(
        self,
        parent: grain.IterDataset[WindowRequest],
        repository: Repository,
        *,
        features: Iterable[str] | None = None,
        image_size: tuple[int, int] | None = None,
        read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
        pad_keys: Mapping[str, str] | None = None,
        known_examples: int = 2048 + LOOKAHEAD_EXAMPLES,
    ) -> None:
        check_opened(repository, of="ReadWindowsIterDataset")
        super().__init__(parent)
        self._repository = repository
        selection = select_features(repository, features)
        windows = windows_of(parent)
        keys, named = windows or ((), {})
        known_keys = None if windows is None else (*keys, *named)
        checked_keys = checked_pad_keys(pad_keys, known_keys=known_keys)
        mask_keys(keys, named, selected=selection.keys, pad_keys=checked_keys)
        self.reading = Reading(
            repository=repository,
            selection=selection,
            image_size=checked_image_size(image_size),
            options=read_options,
            known_examples=known_examples,
            pad_keys=checked_keys,
        )
        # Now, so that what is not installed is said here.
        load_decoders(selection.videos)

    def __iter__(self) -> grain.DatasetIterator[Example]:
        return ReadWindowsIterator(self._parent.__iter__(), self.reading, name=str(self))

    @property
    def _element_spec(self) -> Any:
        return example_spec(
            grain.experimental.get_element_spec(self._parent),
            self.reading.selection,
            image_size=self.reading.image_size,
            pad_keys=self.reading.pad_keys,
        )

    def __str__(self) -> str:
        return f"ReadWindowsIterDataset({self._repository.description})"


class KnownBlocks(Blocks, Protocol):
    """Blocks, of which it is known what they will need.

    Attributes:
      needed_every_epoch: bool `(episodes,)`, as of `FrameOrderIterDataset`.
    """

    needed_every_epoch: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The things that are read of each request, and with what: see `ReadWindowsIterDataset`."""

    repository: Repository
    selection: FeatureSelection
    image_size: tuple[int, int] | None
    options: ReadOptions
    known_examples: int
    pad_keys: Mapping[str, str]

    def open(self, parent: grain.DatasetIterator[WindowRequest]) -> OpenStream:
        """Begins to read the requests of `parent`."""
        blocks = parent
        if not isinstance(blocks, OrderedWindowsIterator):
            blocks = WindowBlockBuilder(blocks, self.repository)
        return self.open_blocks(blocks, parent.get_state())

    def open_blocks(self, blocks: KnownBlocks, begin: dict[str, Any]) -> OpenStream:
        """Begins to read blocks of requests; `begin` is the state before the first of them."""
        context = ReadContext(self.options, num_cameras=len(self.selection.videos))
        ahead = ReadAhead(
            context,
            [self.source(0, blocks.needed_every_epoch)],
            known_examples=self.known_examples,
        )
        return OpenStream(begin, blocks, ahead, OneSource())

    def source(self, number: int, needed_every_epoch: npt.NDArray[np.bool_]) -> ReadSource:
        """Returns what is read, as a source of a reader."""
        return ReadSource(
            number=number,
            repository=self.repository,
            selection=self.selection,
            image_size=self.image_size,
            needed_every_epoch=needed_every_epoch,
            pad_keys=self.pad_keys,
            meter=Meter(self.repository.storage),
        )


class Opener(Protocol):
    """Opens streams."""

    def open(self, parent: Any) -> OpenStream:
        """Begins to read what the parent yields."""


class ReadWindowsIterator(grain.DatasetIterator[Example]):
    """Yields examples, or hands out batches of them, and counts what was handed out."""

    # For an object whose construction failed, such as a failed copy: there is nothing to close.
    _closed = True

    def __init__(self, parent: grain.DatasetIterator[Any], reading: Opener, *, name: str) -> None:
        super().__init__(parent)
        self._reading = reading
        self._name = name
        self._stream: OpenStream | None = None
        self._statistics = ReadStatistics()
        self._one_thread = OneThread()

    def __next__(self) -> Example:
        return self.hand_out(_take_example, self._stats)

    def next_batch(self, batch_size: int, *, drop_remainder: bool, stats: Any) -> Batch:
        """As of `feed/batches.MakesBatches`."""

        def take(stream: OpenStream) -> tuple[Batch, int]:
            batch = stream.take_batch(batch_size)
            count = num_examples(batch)
            if drop_remainder and count < batch_size:
                stream.num_handed_out += count
                raise StopIteration
            return with_arrays_of_strings(batch), count

        return self.hand_out(take, stats)

    def hand_out(self, take: Callable[[OpenStream], tuple[Taken, int]], stats: Any) -> Taken:
        """Returns what `take` takes of the stream, and counts it: both, or, whatever is raised
        wherever, neither.

        Args:
          take: returns it, and how many examples it is.
          stats: Grain's, of the iterator that hands it out.
        """
        held = None
        try:
            self._one_thread.enter()
            try:
                with stats.record_self_time():
                    held = self._mended()
                    stream, num_before = held
                    found, count = take(stream)
                    stats.record_output_spec(found)
                    stream.num_handed_out = num_before + count
                    return found
            finally:
                self._one_thread.leave()
        except BaseException as error:
            if held is not None:
                self._take_back(*held, error)
            if isinstance(error, CancelledError):
                # of what was waited for, by `close` in another thread
                raise StorageError("the reader was closed while it was in use") from None
            raise

    def _mended(self) -> tuple[OpenStream, int]:
        """Returns the open stream, and how many examples of it were handed out; opens it, again
        where it was torn.

        Raises:
          StopIteration: it has ended.
        """
        self._assert_not_closed()
        stream = self._stream
        if stream is not None and stream.is_torn:
            self._put_back(stream)
            stream = None
        if stream is None:
            stream = self._stream = self._reading.open(self._parent)
        if stream.has_ended:
            raise StopIteration
        return stream, stream.num_handed_out

    def _take_back(self, stream: OpenStream, num_handed_out: int, error: BaseException) -> None:
        """Puts the stream to where it was before `next` raised; the next call reads the same
        examples again.
        """
        if isinstance(error, StopIteration):
            self._statistics = self.statistics()
            stream.is_torn = False
            stream.has_ended = True
            stream.close()
            return
        stream.num_handed_out = num_handed_out
        stream.is_torn = True
        if isinstance(error, Exception):  # else the program is probably about to end
            self._put_back(stream)

    def _put_back(self, stream: OpenStream) -> None:
        """Puts the parent back to what was handed out of a torn stream, and drops that."""
        self._parent.set_state(stream.state())
        self._forget()

    def end_reading(self) -> None:
        """Ends what is being read, in any thread: a `next` that waits for it raises, and the one
        after it begins to read anew.
        """
        if (stream := self._stream) is not None:
            stream.end_requests()

    def statistics(self) -> ReadStatistics:
        """Returns what was read since the stream was begun or restored."""
        return (
            self._statistics
            if self._stream is None or self._stream.has_ended
            else self._stream.statistics()
        )

    def source_statistics(self, number: int) -> ReadStatistics:
        """Returns what was read of one source since the stream was begun or restored."""
        return ReadStatistics() if self._stream is None else self._stream.source_statistics(number)

    def _forget(self) -> None:
        """Stops reading ahead; the parent stands where it was pulled to, or was put back to."""
        self._statistics = self.statistics()
        stream = self._stream
        self._stream = None
        if stream is not None:
            stream.close()
            del stream
            give_back()

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = (
            self._parent.get_state() if self._stream is None else self._stream.state()
        )
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._move(lambda: self._parent.set_state(state))

    def _move(self, move_parent: Callable[[], None]) -> None:
        """Goes on where the parent is moved to; nothing changes if that raises."""
        stream = self._stream
        was_torn = stream is not None and stream.is_torn
        try:
            if stream is not None:
                stream.is_torn = True  # until this is done
            # The parent compares first, and raises before anything has changed.
            move_parent()
        except Exception:
            if stream is not None:
                stream.is_torn = was_torn
            raise
        self._forget()

    def _get_next_index(self) -> int:
        index: int
        if self._stream is None:
            index = grain.experimental.get_next_index(self._parent)
            return index
        if not hasattr(self._parent, "index_of"):
            raise InvalidRequestError(
                "get_next_index: the requests of a stream that was begun are pulled ahead, and "
                f"{self._parent} cannot tell the number of an earlier one; use get_state, or ask "
                "before the first next"
            )
        index = self._parent.index_of(self._stream.state())
        return index

    def _set_next_index(self, index: int) -> None:
        self._move(lambda: grain.experimental.set_next_index(self._parent, index))

    def close(self) -> None:
        if self._closed:
            return
        self._forget()
        super().close()

    def __getstate__(self) -> dict[str, Any]:
        if self._stream is not None:
            raise TypeError(
                "an iterator that was begun cannot be copied or pickled; make another one of its "
                "dataset, with this one's get_state()"
            )
        return self.__dict__

    def __str__(self) -> str:
        return self._name


def _take_example(stream: OpenStream) -> tuple[Example, int]:
    return stream.next_example(), 1


def checked_image_size(image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns what `image_size=` says.

    Raises:
      InvalidRequestError: it is not two ints >= 1.
    """
    if image_size is None:
        return None
    try:
        height, width = image_size
    except (TypeError, ValueError):
        height = width = 0
    if not all(is_int(n, least=1) for n in (height, width)):
        raise InvalidRequestError(f"image_size={image_size!r}: expected (height, width) in pixels")
    return height, width

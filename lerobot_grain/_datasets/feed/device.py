"""The device feed: from host batches to `jax.Array`s, on one device, on the devices of one host, or
of several.

A thread takes the next batch from the parent and brings it to the devices while the consumer
computes on the one before. It is a dataset of its own, because what Grain 0.2.18 has
(`grain.experimental.device_put`, made of `ThreadPrefetchIterDataset`) differs where it matters:

* It knows no sharding over several processes, and fails on batches that hold text.
* Examples read ahead are lost when a state is refused, and when an error comes in the middle of a
  batch: the stream continues after it. Here the parent is put back to the last batch that was
  handed out, so nothing is skipped.
* Its thread does not see what the consumer set with `jax.default_device` or `jax.enable_x64`, which
  JAX keeps per thread.
* It hands out arrays that may share memory with the host's: on CPU, JAX takes over a NumPy array
  that happens to be aligned instead of copying it, also with `device_put(may_alias=False)` (JAX
  0.10.2). On accelerators the transfer may still read the host's memory when `device_put` has
  returned.

Rules:
* The parent is used by one thread at a time: by the feed's, or, while that is stopped, by the
  consumer's.
* A host batch is copied (CPU) or transferred to the end (accelerators) before the parent is asked
  for the next one. So whatever happens to the memory of a host batch afterwards, what was handed
  out does not change.
* At most `buffer_size` batches wait on the devices, besides the one that the consumer holds.
* A feed that is stopped waits for no server: what the streams under it read ahead is ended, and
  read again after the parent was put back.

It does not shard keys differently, and moves nothing back to the host.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import grain
import jax

from lerobot_grain._base.arguments import check_int
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._base.permits import Permits, permits
from lerobot_grain._base.versions import jax_enable_x64
from lerobot_grain._datasets.feed.placement import put_on, spec_on
from lerobot_grain._datasets.open_stream import OneThread
from lerobot_grain._datasets.pipelines import end_reading, sources_under

# A batch that is being made may come to its end; then the requests of the streams under it are
# ended, which takes half a second. At the end of the program nothing is waited for any longer.
_GRACE_SECONDS = 0.3
_EXIT_SECONDS = 1.0


class DeviceIterDataset(grain.IterDataset[Any]):
    """Brings the batches of its parent to the devices, in a thread, ahead of the consumer.

        # the default device
        batches = dataset.batch(64).pipe(DeviceIterDataset)
        # the devices of the sharding
        batches = dataset.batch(64).pipe(DeviceIterDataset, sharding=sharding)

    It goes last, after `.map`, `.filter`, `.batch` and `.mix`; only `ElasticIterDataset` goes after
    it. A batch is any PyTree. Arrays and numbers become `jax.Array`s of the same shape and dtype
    (uint8 travels as uint8); text and other objects, and arrays of them, stay as they are, on the
    host. Dtypes follow JAX: unless `jax_enable_x64` is set, (u)int64 becomes (u)int32 and float64
    float32. Values that do not fit are an error, never wrapped.

    The state is the parent's at the last batch that was handed out; what waits on the devices is
    read again after a restore.

    Args:
      parent: dataset of batches.
      sharding: `None`: the default device, as for `jax.device_put`. A `jax.sharding.Sharding`, such
        as `NamedSharding(mesh, PartitionSpec("data"))`: how every array is laid out. If it spans
        several processes, each gives its own part of the batch, `(rows of this process, ...)`, and
        all get the same global array, `(rows of all processes, ...)`.
      buffer_size: batches that wait on the devices, besides the one that is computed on; at least
        1.

    Raises:
      InvalidRequestError: at construction: `buffer_size` or `sharding` is not one; processes that
        hold the same part of the batch would stream different shards; or the shards of a finite
        stream may end at different steps, on which programs of several processes hang. At a batch:
        an array that the sharding cannot divide, such as the last, shorter batch; a value too large
        for 32 bits.
    """

    def __init__(
        self,
        parent: grain.IterDataset[Any],
        *,
        sharding: jax.sharding.Sharding | None = None,
        buffer_size: int = 2,
    ) -> None:
        super().__init__(parent)
        check_int("buffer_size", buffer_size, least=1)
        if sharding is not None:
            if not isinstance(sharding, jax.sharding.Sharding):
                raise InvalidRequestError(
                    f"sharding={sharding!r}: expected a jax.sharding.Sharding, such as "
                    "NamedSharding(mesh, PartitionSpec('data')), or None"
                )
            _check_shards(parent, sharding)
        self._sharding = sharding
        self._buffer_size = buffer_size

    def __iter__(self) -> grain.DatasetIterator[Any]:
        return _DeviceIterator(
            self._parent.__iter__(),
            sharding=self._sharding,
            buffer_size=self._buffer_size,
            name=str(self),
        )

    @property
    def _element_spec(self) -> Any:
        return spec_on(self._sharding, grain.experimental.get_element_spec(self._parent))

    def __str__(self) -> str:
        return f"DeviceIterDataset(buffer_size={self._buffer_size})"


class _DeviceIterator(grain.DatasetIterator[Any]):
    _closed = True

    def __init__(
        self,
        parent: grain.DatasetIterator[Any],
        *,
        sharding: jax.sharding.Sharding | None,
        buffer_size: int,
        name: str,
    ) -> None:
        super().__init__(parent)
        self._sharding = sharding
        self._buffer_size = buffer_size
        self._name = name
        # the parent's at the last batch handed out; None: as the parent stands
        self._state: dict[str, Any] | None = None
        self._feed: _Feed | None = None
        self._one_thread = OneThread()

    def start_prefetch(self) -> None:
        """Starts the thread; what Grain calls after it has restored a checkpoint."""
        self._assert_not_closed()
        self._started()

    def _started(self) -> _Feed:
        if self._feed is None:
            if self._state is None:
                self._state = copy.deepcopy(self._parent.get_state())
            self._feed = _Feed(self._parent, sharding=self._sharding, buffer_size=self._buffer_size)
        return self._feed

    def __next__(self) -> Any:
        self._assert_not_closed()
        before = self._state
        is_inside = False
        try:
            self._one_thread.enter()
            is_inside = True
            try:
                with self._stats.record_self_time():
                    feed = self._started()
                    before = self._state
                    batch, state = feed.take()
                    self._stats.record_output_spec(batch)
                    self._state = state
                    return batch
            finally:
                self._one_thread.leave()
        except StopIteration:
            self._stop()
            raise
        except BaseException:
            # Nothing was handed out: the next call reads the same batch again. (Another thread that
            # is inside goes on.)
            if is_inside:
                if before is not None:  # else what `_started` has found, if it has
                    self._state = before
                self._rewind()
            raise

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = copy.deepcopy(
            self._parent.get_state() if self._state is None else self._state
        )
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._move(lambda: self._parent.set_state(state))

    def _move(self, move_parent: Callable[[], None]) -> None:
        """Goes on where the parent is moved to; where that raises, after the last batch."""
        self._stop()
        try:
            move_parent()
        except BaseException:
            self._rewind()
            raise
        self._state = None

    def _get_next_index(self) -> int:
        if self._state is not None:
            raise InvalidRequestError(
                "get_next_index: batches of a device feed that was begun are pulled ahead in a "
                "thread; use get_state, or ask before the first next"
            )
        index: int = grain.experimental.get_next_index(self._parent)
        return index

    def _set_next_index(self, index: int) -> None:
        self._move(lambda: grain.experimental.set_next_index(self._parent, index))

    def close(self) -> None:
        if self._closed:
            return
        self._stop()
        super().close()

    def _stop(self) -> None:
        """Stops the thread and drops what waits; the parent stands where it was pulled to."""
        feed = self._feed
        self._feed = None
        if feed is not None:
            feed.close()

    def _rewind(self) -> None:
        self._stop()
        if self._state is not None:
            self._parent.set_state(self._state)

    def __str__(self) -> str:
        return self._name


class _Feed:
    """The thread, and the batches that wait for the consumer.

    Does not hold the iterator, so one that is not closed is collected.
    """

    def __init__(
        self,
        parent: grain.DatasetIterator[Any],
        *,
        sharding: jax.sharding.Sharding | None,
        buffer_size: int,
    ) -> None:
        self._ready: queue.SimpleQueue[tuple[Any, dict[str, Any], BaseException | None]] = (
            queue.SimpleQueue()
        )
        # Of batches that may still wait.
        self._room = permits(buffer_size)
        stop = threading.Event()
        # JAX keeps these two per thread; the feed's takes over those of its consumer.
        configuration = jax.config.jax_enable_x64, jax.config.jax_default_device
        arguments = (parent, sharding, configuration, self._ready, self._room, stop)
        thread = threading.Thread(
            target=_run, args=arguments, daemon=True, name="lerobot_grain device"
        )
        # Also called when the feed is collected, and at the end of the program, while JAX is still
        # there.
        self.close = weakref.finalize(self, _end, parent, thread, self._room, stop)
        thread.start()

    def take(self) -> tuple[Any, dict[str, Any]]:
        """Returns the next batch and the parent's state after it; raises what the parent or the
        transfer raised at this place.
        """
        batch, state, error = self._ready.get()
        if error is not None:
            raise error
        self._room.put(None)
        return batch, state


def _run(
    parent: grain.DatasetIterator[Any],
    sharding: jax.sharding.Sharding | None,
    configuration: tuple[bool, Any],
    ready: queue.SimpleQueue[tuple[Any, dict[str, Any], BaseException | None]],
    room: Permits,
    stop: threading.Event,
) -> None:
    """The feed's thread: fills `ready` until the parent ends or fails, or `stop` is set."""
    try:
        with jax_enable_x64(configuration[0]), jax.default_device(configuration[1]):
            put = put_on(sharding)
            while not stop.is_set():
                batch = next(parent)
                state = copy.deepcopy(parent.get_state())
                room.get()
                if stop.is_set():
                    return
                ready.put((put(batch), state, None))
                del batch  # not needed while the parent makes the next one
    except BaseException as error:
        # also StopIteration: the consumer raises it, after the batches before it
        ready.put((None, {}, error))


def _end(
    parent: grain.DatasetIterator[Any],
    thread: threading.Thread,
    room: Permits,
    stop: threading.Event,
) -> None:
    stop.set()
    room.put(None)
    # The garbage collector may run in any thread; and one may never have been started, where a
    # signal handler raised before.
    if thread.ident is None or thread is threading.current_thread():
        return
    thread.join(_GRACE_SECONDS)
    gives_up_at = time.monotonic() + _EXIT_SECONDS
    # Again and again, since the thread may have begun a stream at this moment.
    while thread.is_alive() and (
        threading.main_thread().is_alive() or time.monotonic() < gives_up_at
    ):
        end_reading(parent)
        thread.join(_GRACE_SECONDS)


# Several processes


def _check_shards(parent: grain.IterDataset[Any], sharding: jax.sharding.Sharding) -> None:
    """Refuses streams that give processes arrays that differ where they must not, or leave one
    waiting for the others.
    """
    if sharding.is_fully_addressable:
        return
    index, count = _part_of_batch(sharding)
    for source in sources_under(parent):
        shard = source.shard_options
        if shard.shard_count > count:
            raise InvalidRequestError(
                f"the stream is shard {shard.shard_index} of {shard.shard_count}, but the "
                f"sharding {getattr(sharding, 'spec', sharding)} cuts the batch into {count} for "
                "the processes: some hold the same rows and must stream the same shard; use "
                f"shard_options=grain.sharding.ShardOptions({index}, {count}, "
                "drop_remainder=True) on this process"
            )
        if source.end is not None and shard.shard_count > 1 and not shard.drop_remainder:
            raise InvalidRequestError(
                f"{source.end}: {shard.shard_count} shards may end at "
                "different steps, on which all processes wait for each other; use "
                "shard_options=grain.sharding.ShardByJaxProcess(drop_remainder=True)"
            )


def _part_of_batch(sharding: jax.sharding.Sharding) -> tuple[int, int]:
    """Returns (index, count): which of the different parts of the first axis this process holds,
    and how many there are.
    """
    # A shape that every sharding over so many devices divides.
    shape = (sharding.num_devices,) * max(1, len(getattr(sharding, "spec", ())))
    rows: dict[int, set[int]] = {}
    for device, slices in sharding.devices_indices_map(shape).items():
        rows.setdefault(device.process_index, set()).update(range(*slices[0].indices(shape[0])))
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)

"""Worker processes: what each does when it starts, and a Grain dataset that reads with them and
resumes with any number of them.

Threads in one process are the default way to be parallel; processes help where the user's own
Python code is what takes the time.

Grain's `mp_prefetch` deals the positions out in turn, so its order is that of one process. The rest
needs care (Grain 0.2.18):

* A worker outlives its parent when that is killed. `worker_init` ends it.
* Its state holds one state a worker, and restores only with the same number of them. Here the state
  is the source's one position: the k-th example of n workers is the k-th of one process, whatever n
  is.
* When a worker raised or was killed, and the consumer goes on, Grain goes on without that worker:
  its examples are missing. Here the next call starts all workers again, after the last example
  that was handed out.
* A `StopIteration` out of the user's function ends that worker without a word, and an exception or
  an example that does not pickle is lost on the way, so that the consumer waits forever. Here all
  of these are errors.

Not here: a worker that blocks forever in the user's code blocks `next` and `close`, and one that
leaves through `os._exit(0)` blocks `next`: Grain waits for it inside a thread that cannot be
interrupted.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection
from typing import Any

import grain
from absl import flags

from lerobot_grain._base.arguments import check_int
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.feed.packing import MIN_SHARED_BYTES
from lerobot_grain._datasets.feed.readers import (
    ReadersIterator,
    ReadersIterDataset,
    ReadersStream,
)
from lerobot_grain._datasets.feed.worker_stream import OneToOneIterDataset, PiecesIterDataset
from lerobot_grain._datasets.positions import Element, PositionsIterDataset

# Between two looks at the number of the parent; a dead parent is usually noticed at once, by its
# sentinel.
_WATCH_SECONDS = 1.0
# Grain's default of 0 gives every small array a shared-memory block of its own: 1,300 microseconds
# for a dict of 16 of them instead of 72.
_MIN_SHARED_BYTES_OF_EXAMPLES = 64 << 10
_PIPE_BYTES = 64 << 10


def worker_init(worker_index: int, worker_count: int) -> None:  # noqa: ARG001 (Grain passes both)
    """Prepares a worker process of Grain's `mp_prefetch`; pass it as `worker_init_fn=worker_init`.

    The worker ends when its parent process does, however that ends; it keeps JAX on the CPU, so
    that it does not take memory of the accelerator; it leaves Ctrl-C to its parent; and absl's
    flags count as parsed in it, without which Grain raises where a program does not run under
    `absl.app.run`. The parent must do the last itself: `absl.flags.FLAGS.mark_as_parsed()`, before
    the first `next`.

    Args:
      worker_index: of this worker, 0 <= worker_index < worker_count.
      worker_count: number of workers.

    Raises:
      InvalidRequestError: this is not a process that `multiprocessing` started.
    """
    if multiprocessing.parent_process() is None:
        raise InvalidRequestError(
            "worker_init: expected to run in a worker process; pass it to mp_prefetch as "
            "worker_init_fn=worker_init"
        )
    _mark_flags_as_parsed()
    # The variable counts where JAX is not imported yet, as in programs that import it inside a
    # function.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if (jax := sys.modules.get("jax")) is not None:
        jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(
        target=_end_with_parent, name="lerobot_grain-parent-watch", daemon=True
    ).start()


def _end_with_parent() -> None:
    # Linux can send a signal (PR_SET_PDEATHSIG), but when the *thread* ends that
    # started this process. Grain starts it from a thread that ends in `set_state`: tried, the
    # worker was killed there and the consumer waited forever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    # The sentinel is a pipe that a process forked from the parent would hold open, so the number of
    # the parent is looked at, too. If it was another one from the start, a process stands in
    # between, and only the sentinel counts.
    watched = os.getppid() == parent.pid
    while not connection.wait([parent.sentinel], timeout=_WATCH_SECONDS):
        if watched and os.getppid() != parent.pid:
            break
    # Not sys.exit: it would end this thread only, and wait for the others.
    os._exit(1)


def _mark_flags_as_parsed() -> None:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


class WorkerPrefetchIterDataset(ReadersIterDataset[Element]):
    """Reads its parent in worker processes: the same examples in the same order, and a state that
    restores with any number of workers.

        dataset = LeRobotIterDataset("lerobot/pusht").map(slow_function)
        for batch in WorkerPrefetchIterDataset(dataset, num_workers=4).batch(64): ...

    The state is that of the parent at the last example handed out: it restores with another number
    of workers, without workers, and on another number of shards. After an error, a worker that was
    killed included, the next `next` starts the workers again and reads the example where the error
    was.

    Between the source of rows and here, every row must give one example: `.map` may stand there,
    `.filter`, `.batch`, `.random_map` and `.mix` go after. Each worker has a memory budget,
    decoding threads and connections of its own. Arrays come through shared memory, about
    `2 * buffer_size + 2` examples a worker, or pieces of batches: where no `.map` stands between
    the stream and here, and `.batch` follows right after, workers read whole pieces, of at most
    8 MiB or one example, and single examples are neither made nor sent. As always with processes
    that are spawned, a script needs `if __name__ == "__main__":`, and iterators are to be closed.

    Args:
      parent: a stream of ours, or `.map` on one.
      num_workers: processes; 0: none, everything runs in this process.
      buffer_size: examples that each worker holds ready; pieces of batches, where it reads those.

    Raises:
      InvalidRequestError: an argument is out of its range, or `parent` has a state of its own. From
        `next`: a function in `parent` raised `StopIteration`, dropped a row or put rows together,
        or made an example that does not pickle.
    """

    def __init__(
        self, parent: grain.IterDataset[Element], *, num_workers: int, buffer_size: int = 2
    ) -> None:
        for name, value, least in (
            ("num_workers", num_workers, 0),
            ("buffer_size", buffer_size, 1),
        ):
            check_int(name, value, least=least, of="WorkerPrefetchIterDataset")
        super().__init__(parent)
        self._num_workers = num_workers
        self._buffer_size = buffer_size

    def __iter__(self) -> grain.DatasetIterator[Element]:
        options = grain.multiprocessing.MultiprocessingOptions(
            num_workers=self._num_workers, per_worker_buffer_size=self._buffer_size
        )
        return ReadersIterator(
            self._parent,
            self._source,
            _WorkerProcesses(self._parent, self._source, options),
            name=str(self),
        )

    def __str__(self) -> str:
        return f"WorkerPrefetchIterDataset({self._num_workers} workers)"


class _WorkerProcesses:
    """Starts the workers (`readers.Engine`)."""

    sends_examples = True

    def __init__(
        self,
        read: grain.IterDataset[Any],
        source: PositionsIterDataset,
        options: grain.multiprocessing.MultiprocessingOptions,
    ) -> None:
        self._read = read
        self._source = source
        self._options = options

    @property
    def num_readers(self) -> int:
        return max(1, int(self._options.num_workers))

    def start(self, state: dict[str, Any], piece_size: int | None) -> ReadersStream:
        """As of `readers.Engine`."""
        _mark_flags_as_parsed()
        arguments = (self._read, self._source, state)
        of = WorkerPrefetchIterDataset.__name__
        reading = grain.experimental.WithOptionsIterDataset(
            OneToOneIterDataset(*arguments, of=of)
            if piece_size is None
            else PiecesIterDataset(*arguments, of=of, piece_size=piece_size),
            grain.experimental.DatasetOptions(min_shm_size=self._min_shared_bytes(piece_size)),
        )
        stream: ReadersStream = reading.mp_prefetch(
            self._options, worker_init_fn=worker_init
        ).__iter__()
        return stream

    def _min_shared_bytes(self, piece_size: int | None) -> int:
        """Returns from which size on an array goes through shared memory."""
        if piece_size is None:
            return _MIN_SHARED_BYTES_OF_EXAMPLES
        # All pieces that wait in the pipe are to have room in it, see `packing`.
        return min(
            MIN_SHARED_BYTES, _PIPE_BYTES // 2 // (int(self._options.per_worker_buffer_size) + 1)
        )

"""The naive way to read: frames in random order, one decoder a file, as lerobot's map-style reader
in a PyTorch loader does it.

Of two ways, the cheaper one is taken: rows wait in memory, frames are not converted
to float, decoders stay open for good, and batches are put together in shared memory, which the
parent uses where it is.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from torchcodec.decoders import VideoDecoder

from lerobot_grain import Repository, open_repository

NUM_WORKERS = 2
# Batches that each worker may be ahead, as PyTorch's `prefetch_factor`.
_PREFETCH = 2
_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The arguments of every worker. `windows`: feature key -> offsets in frames."""

    directory: str
    windows: Mapping[str, tuple[int, ...]]
    batch_size: int


class _Reader:
    """Gives the example of any row."""

    def __init__(self, job: Job) -> None:
        self._repository: Repository = open_repository(job.directory)
        self._windows = job.windows
        self.episodes = self._repository.episodes
        self.cameras = {key: self._repository.features[key].shape for key in self.episodes.videos}
        tables = [pq.read_table(Path(job.directory) / path) for path in self.episodes.data.paths]
        names = [key for key in self._repository.features if key not in self.cameras]
        self._rows = {
            name: np.concatenate([_column(table, name) for table in tables]) for name in names
        }
        self._decoders: dict[tuple[str, int], VideoDecoder] = {}
        self._directory = Path(job.directory)

    def example(self, row: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.uint8]]]:
        """Returns the values and the frames `(time, height, width, 3)` of a row."""
        episode = int(np.searchsorted(self.episodes.first_rows, row, side="right")) - 1
        first = int(self.episodes.first_rows[episode])
        last = first + int(self.episodes.lengths[episode]) - 1
        values = {
            key: column[self._window(key, row, first, last)] for key, column in self._rows.items()
        }
        return values, {
            key: self._frames(key, episode, self._window(key, row, first, last))
            for key in self.cameras
        }

    def _window(self, key: str, row: int, first: int, last: int) -> list[int]:
        return [min(max(row + offset, first), last) for offset in self._windows.get(key, (0,))]

    def _frames(self, camera: str, episode: int, rows: list[int]) -> npt.NDArray[np.uint8]:
        spans = self.episodes.videos[camera]
        file = int(spans.files.file_of_episode[episode])
        decoder = self._decoders.get((camera, file))
        if decoder is None:
            path = self._directory / spans.files.paths[file]
            decoder = VideoDecoder(
                path, seek_mode="approximate", dimension_order="NHWC", num_ffmpeg_threads=1
            )
            self._decoders[camera, file] = decoder
        start = float(spans.from_timestamp_seconds[episode])
        timestamps = [start + float(self._rows["timestamp"][row]) for row in rows]
        fps = decoder.metadata.average_fps
        assert fps is not None
        frames: npt.NDArray[np.uint8] = decoder.get_frames_at(
            [round(timestamp * fps) for timestamp in timestamps]
        ).data.numpy()
        return frames


def _column(table: Any, name: str) -> npt.NDArray[Any]:
    column = table.column(name).combine_chunks()
    if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
        values: npt.NDArray[Any] = (
            column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        )
        return values
    plain: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return plain


def _work(
    worker: int,
    job: Job,
    memory_names: list[str],
    free: Queue[int],
    done: Queue[Any],
    num_read: Any,
) -> None:
    """Makes every `NUM_WORKERS`-th batch of a random order into the shared memories that are free;
    counts examples in `num_read`.
    """
    reader = _Reader(job)
    order = np.random.default_rng(0).permutation(reader.episodes.num_rows)
    memories = [SharedMemory(name) for name in memory_names]
    done.put(None)
    for start in range(worker * job.batch_size, len(order), NUM_WORKERS * job.batch_size):
        slot = free.get()
        examples = []
        for row in order[start : start + job.batch_size].tolist():
            examples.append(reader.example(row))
            num_read.value += 1
        offset = 0
        for key in reader.cameras:
            pictures = [frames[key] for _, frames in examples]
            shape = (len(pictures), *pictures[0].shape)
            np.stack(pictures, out=np.ndarray(shape, np.uint8, memories[slot].buf, offset))
            offset += int(np.prod(shape))
        values = {key: np.stack([row[key] for row, _ in examples]) for key in examples[0][0]}
        done.put((slot, values))
    done.put(None)
    # Not before the parent has read all: what a queue still holds is lost when the process ends.
    free.get()


def measure(job: Job, *, max_seconds: float) -> tuple[int, float]:
    """Reads one epoch, but no longer than `max_seconds`.

    Returns:
      The examples, those of unfinished batches among them, because one batch of long GOPs can take
      longer than `max_seconds`; and the seconds, without the start of the workers.
    """
    repository = open_repository(job.directory)
    shapes = {key: repository.features[key].shape for key in repository.episodes.videos}
    size = (
        sum(int(np.prod(shape)) * len(job.windows.get(key, (0,))) for key, shape in shapes.items())
        * job.batch_size
    )
    context = multiprocessing.get_context("spawn")
    memories = [
        [SharedMemory(create=True, size=max(1, size)) for _ in range(_PREFETCH)]
        for _ in range(NUM_WORKERS)
    ]
    free: list[Queue[int]] = [context.Queue() for _ in memories]
    done: list[Queue[Any]] = [context.Queue() for _ in memories]
    # Each has one writer, so no lock.
    num_read = [context.RawValue("q", 0) for _ in memories]
    workers = [
        context.Process(
            target=_work,
            args=(
                number,
                job,
                [memory.name for memory in memories[number]],
                free[number],
                done[number],
                num_read[number],
            ),
            daemon=True,
        )
        for number in range(NUM_WORKERS)
    ]
    try:
        for process in workers:
            process.start()
        for queue in done:
            queue.get(timeout=_TIMEOUT_SECONDS)
        start = time.perf_counter()
        for queue in free:
            for slot in range(_PREFETCH):
                queue.put(slot)
        turn = 0
        with contextlib.suppress(Empty):
            while (
                batch := done[turn].get(timeout=max(0.0, start + max_seconds - time.perf_counter()))
            ) is not None:
                free[turn].put(batch[0])
                turn = (turn + 1) % NUM_WORKERS
        return sum(counter.value for counter in num_read), time.perf_counter() - start
    finally:
        for process in workers:
            process.kill()
            process.join()
        for memory in itertools.chain.from_iterable(memories):
            memory.close()
            memory.unlink()

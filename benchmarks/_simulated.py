"""One measurement of `cores.py`, in a process of its own: `python benchmarks/_simulated.py JOB`,
JSON in and out.

Everything is real but two things: the process is told that it may use so many cores, and the
decoder sleeps for as long as decoding would take on a core of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
import types
from dataclasses import dataclass
from typing import Any

import numpy as np

# From this cost on a frame is decoded as those of 640x480 are: one by one.
_LARGE_SECONDS = 1e-3
_LARGE = (480, 640)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement.

    Attributes:
      repository: a directory.
      cores: so many are pretended.
      picture_seconds: what decoding a frame takes on one core.
      height, width: of the frames.
      windows: feature key -> offsets in frames.
      batch_size: examples.
      warm_seconds, seconds: before the measurement, and of it.
      shard: number and count.
    """

    repository: str
    cores: int
    picture_seconds: float
    height: int
    width: int
    windows: dict[str, tuple[int, ...]]
    batch_size: int
    warm_seconds: float
    seconds: float
    shard: tuple[int, int] = (0, 1)


class _Array(np.ndarray):  # type: ignore[type-arg]
    """An array with the one method of a tensor that is used."""

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.view(np.ndarray)


class SleepingDecoder:
    """Stands in for `torchcodec.decoders.VideoDecoder`; sleeps without Python's lock.

    Attributes:
      late_seconds: for each call the time between the end of the sleep that was asked for and the
        moment when Python went on: of all decoders.
      slept_seconds: for each call what was asked for.
    """

    picture_seconds = 0.0
    pictures = np.zeros((0, 0, 0, 0), np.uint8)
    metadata = types.SimpleNamespace(height=0, width=0)
    late_seconds: list[float] = []  # noqa: RUF012 (of all decoders)
    slept_seconds: list[float] = []  # noqa: RUF012 (of all decoders)

    def __init__(self, *_: Any, **__: Any) -> None:
        self._next = 0

    def get_frames_at(self, numbers: list[int]) -> Any:
        self._pass(numbers[-1])
        return types.SimpleNamespace(
            data=self.pictures[: len(numbers)].view(_Array),
            pts_seconds=(np.array(numbers) / 30.0).view(_Array),
        )

    def get_frame_at(self, number: int) -> Any:
        self._pass(number)
        return types.SimpleNamespace(data=self.pictures[0].view(_Array), pts_seconds=number / 30.0)

    def _pass(self, number: int) -> None:
        count = number + 1 - self._next if number >= self._next else number + 1
        self._next = number + 1
        asked = count * self.picture_seconds
        start = time.perf_counter()
        time.sleep(asked)
        self.late_seconds.append(time.perf_counter() - start - asked)
        self.slept_seconds.append(asked)


def measure(job: Job) -> dict[str, Any]:
    """Reads an endless stream of batches for a while."""
    os.sched_getaffinity = lambda _: set(range(job.cores))
    os.cpu_count = lambda: job.cores
    from grain.sharding import ShardOptions

    from lerobot_grain import LeRobotIterDataset, Shuffle, read_statistics
    from lerobot_grain._video import rgb

    SleepingDecoder.picture_seconds = job.picture_seconds
    SleepingDecoder.pictures = np.random.default_rng(0).integers(
        0, 256, (512, job.height, job.width, 3), np.uint8
    )
    if job.picture_seconds >= _LARGE_SECONDS:
        SleepingDecoder.metadata = types.SimpleNamespace(height=_LARGE[0], width=_LARGE[1])
    rgb.load_decoder = lambda: (types.SimpleNamespace(VideoDecoder=SleepingDecoder), None)
    slack = _slack(job.picture_seconds)
    dataset = LeRobotIterDataset(
        job.repository,
        delta_timestamps={
            key: [offset / 30 for offset in offsets] for key, offsets in job.windows.items()
        },
        shuffle=Shuffle(),
        shard_options=ShardOptions(*job.shard),
    )
    iterator = iter(dataset.batch(job.batch_size))
    start = time.perf_counter()
    next(iterator)
    first_batch_seconds = time.perf_counter() - start
    while time.perf_counter() < start + job.warm_seconds:
        next(iterator)
    before = read_statistics(iterator)
    num_late = len(SleepingDecoder.late_seconds)
    num_slept = len(SleepingDecoder.slept_seconds)
    start = time.perf_counter()
    cpu_seconds = time.process_time()
    consumer_seconds = time.thread_time()
    times = [start]
    while times[-1] < start + job.seconds:
        next(iterator)
        times.append(time.perf_counter())
    seconds = times[-1] - start
    cpu_seconds = time.process_time() - cpu_seconds
    consumer_seconds = time.thread_time() - consumer_seconds
    now = read_statistics(iterator)
    late = SleepingDecoder.late_seconds[num_late:]
    slept = SleepingDecoder.slept_seconds[num_slept:]
    num_threads = threading.active_count()
    iterator.close()
    examples = now.examples - before.examples
    pictures = now.pictures_decoded - before.pictures_decoded
    return {
        "examples_per_second": examples / seconds,
        # The share of the time of all cores that is decoding; ideally 1.
        "of_ideal": sum(slept) / seconds / job.cores,
        "pictures_an_example": pictures / examples,
        "first_batch_seconds": first_batch_seconds,
        "consumer_ms_an_example": 1e3 * consumer_seconds / examples,
        "cores_used": cpu_seconds / seconds,
        # A share of the time of all threads that decode.
        "late_share": sum(max(0.0, each - slack) for each in late) / seconds / job.cores,
        "late_ms": 1e3 * statistics.fmean([max(0.0, each - slack) for each in late] or [0.0]),
        "longest_wait_seconds": float(np.diff(times).max()),
        "threads": num_threads,
        "budget_bytes": now.budget_bytes,
        "budget_peak_bytes": now.budget_peak_bytes,
        "copied_bytes_per_second": examples / seconds * _frames_bytes(job, now, before),
    }


def _slack(seconds: float) -> float:
    """Returns by how much a sleep is too long where nothing else runs."""
    found = []
    for _ in range(50):
        start = time.perf_counter()
        time.sleep(seconds)
        found.append(time.perf_counter() - start - seconds)
    return statistics.median(found)


def _frames_bytes(job: Job, now: Any, before: Any) -> float:
    frames = (now.frames_handed_out - before.frames_handed_out) / (now.examples - before.examples)
    return frames * job.height * job.width * 3


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))

"""One measurement, in a process of its own: `python benchmarks/_measure.py JOB`, JSON in and out.
Started by `throughput.py`.

A fresh process, so that import, caches, allocator and peak memory are those of this measurement
alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _naive
from torchcodec.decoders import VideoDecoder

from lerobot_grain import (
    LeRobotIterDataset,
    ReadOptions,
    Repository,
    Shuffle,
    open_repository,
    read_statistics,
)

# The steady state: without the beginning, when everything is still to be fetched, and without the
# end, when nothing is left to fetch.
_STEADY = (0.1, 0.9)
# The sequential limit asks for 16 small frames, or 1 large one, at a time, whichever is faster:
# 96x96, 30,000 frames/s against 25,000; 640x360, 4,250 against 4,300; 640x480, 1,060 against 1,080
# (2 cores).
_SMALL_PICTURE_BYTES, _SMALL_PICTURES = 1 << 18, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement.

    Attributes:
      kind: `ours`, `naive` or `limit`.
      repository: directory, or name on the Hub at `endpoint`.
      endpoint, cache_dir: of the Hub, else `None`.
      far_seconds: every operation on a file of a directory takes so much longer.
      windows: feature key -> offsets in frames.
      clip_length: of the shuffle; `None`: the default.
      batch_size: examples.
      budget_bytes, threads: of our reader; `None`: the defaults.
      naive_seconds: the naive reader is stopped after this long.
    """

    kind: str
    repository: str
    endpoint: str | None
    cache_dir: str | None
    far_seconds: float
    windows: dict[str, tuple[int, ...]]
    clip_length: int | None
    batch_size: int
    budget_bytes: int | None
    threads: int | None
    naive_seconds: float


def _open(job: Job) -> Repository:
    if not job.far_seconds:
        return open_repository(job.repository, endpoint=job.endpoint, cache_dir=job.cache_dir)
    # Only here: the packages that `--versus` measures may have no public storage yet.
    far = importlib.import_module("_far_storage")
    return open_repository(far.far_storage(job.repository, job.far_seconds))


def measure_ours(job: Job) -> dict[str, Any]:
    """Reads one epoch in batches, with the default order."""
    # Before the default was `None`, this argument had none.
    budget = {} if job.budget_bytes is None else {"memory_budget_bytes": job.budget_bytes}
    read_options = ReadOptions(**budget, num_decode_threads=job.threads)
    start = time.perf_counter()
    repository = _open(job)
    dataset = LeRobotIterDataset(
        repository,
        delta_timestamps={
            key: [offset / repository.fps for offset in offsets]
            for key, offsets in job.windows.items()
        },
        shuffle=Shuffle(clip_length=job.clip_length),
        num_epochs=1,
        read_options=read_options,
    )
    iterator = iter(dataset.batch(job.batch_size))
    open_seconds = time.perf_counter() - start
    before = memory_bytes("VmRSS")
    reset_peak()
    times: list[float] = []
    counts: list[int] = []
    batch_bytes = 0
    start = time.perf_counter()
    # To the last example and not beyond it: at its end a stream lets go of what is measured here.
    while sum(counts) < dataset.num_rows:
        batch = next(iterator)
        times.append(time.perf_counter() - start)
        counts.append(len(batch["index"]))
        batch_bytes = max(batch_bytes, sum(getattr(value, "nbytes", 0) for value in batch.values()))
    statistics = read_statistics(iterator)
    peak = memory_bytes("VmHWM")
    iterator.close()
    assert dataset.shuffle is not None
    assert dataset.shuffle.clip_length is not None
    return {
        "examples": sum(counts),
        "seconds": times[-1],
        "examples_per_second": sum(counts) / times[-1],
        "steady_examples_per_second": _steady_rate(times, counts),
        "open_seconds": open_seconds,
        "first_batch_seconds": times[0],
        "memory_growth_bytes": None if peak is None or before is None else peak - before,
        "batch_bytes": batch_bytes,
        "clip_length": dataset.shuffle.clip_length,
        "clips": int((-(-repository.episodes.lengths // dataset.shuffle.clip_length)).sum()),
        "cameras": len(repository.cameras),
        "statistics": asdict(statistics),
    }


def _steady_rate(times: list[float], counts: list[int]) -> float:
    first, last = (min(len(times) - 1, int(len(times) * share)) for share in _STEADY)
    if last == first:
        return sum(counts) / times[-1]
    return sum(counts[first + 1 : last + 1]) / (times[last] - times[first])


def memory_bytes(name: str) -> int | None:
    # Not getrusage: its peak is inherited from the parent process.
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(
        int(line.split()[1]) << 10
        for line in status.read_text().splitlines()
        if line.startswith(f"{name}:")
    )


def reset_peak() -> None:
    # If this is not allowed, the peak counts from the start of the process, imports included.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure_limit(job: Job) -> dict[str, Any]:
    """Decodes every video file once from start to end, as many at a time as there are cores."""
    directory = Path(job.repository)
    videos = open_repository(directory).episodes.videos
    files = [directory / path for spans in videos.values() for path in spans.files.paths]
    # Long files first, so that no core is left with the last one.
    files.sort(key=lambda file: -file.stat().st_size)
    start = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        frames = sum(pool.map(_decode_file, files))
    seconds = time.perf_counter() - start
    return {
        "frames": frames,
        "seconds": seconds,
        "examples_per_second": frames / len(videos) / seconds,
    }


def _decode_file(file: Path) -> int:
    decoder = VideoDecoder(
        file, seek_mode="approximate", dimension_order="NHWC", num_ffmpeg_threads=1
    )
    num_frames = len(decoder)
    metadata = decoder.metadata
    if (metadata.height or 0) * (metadata.width or 0) * 3 <= _SMALL_PICTURE_BYTES:
        for first in range(0, num_frames, _SMALL_PICTURES):
            decoder.get_frames_in_range(first, min(num_frames, first + _SMALL_PICTURES))
    else:
        for number in range(num_frames):
            decoder.get_frame_at(number)
    return num_frames


def measure_naive(job: Job) -> dict[str, Any]:
    """Reads a random order with one decoder a file, for a while."""
    naive = _naive.Job(directory=job.repository, windows=job.windows, batch_size=job.batch_size)
    examples, seconds = _naive.measure(naive, max_seconds=job.naive_seconds)
    return {"examples": examples, "seconds": seconds, "examples_per_second": examples / seconds}


if __name__ == "__main__":
    asked = Job(**json.loads(sys.argv[1]))
    print(
        json.dumps(
            {"ours": measure_ours, "limit": measure_limit, "naive": measure_naive}[asked.kind](
                asked
            )
        )
    )

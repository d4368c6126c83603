"""The memory and the threads that reading takes: `ReadOptions`, and the one table of the parts of
the memory budget. Pure.

Names of amounts: B is `ReadOptions.memory_budget_bytes`, R the part of it for rows, F the rest,
which is for camera frames. The shares are explained in docs/architecture/reading.md ("The budget").
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from lerobot_grain._base.arguments import check_int
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._storage.options import StorageOptions

# R is this part of B, where there is video.
_ROWS_PART = 8
# The same where there is no video, which leaves room.
_ROWS_PART_ALONE = 2
# Row groups that one block needs are kept up to this many times R: enough where a stream goes from
# one large file to the next.
_ROWS_OF_ONE_BLOCK = 2
# Row groups of one block that are less together are never too large, however small the budget.
_MIN_LARGE_BYTES = 16 << 20
# Coded bytes above which nothing is fetched ahead: this part of B.
_CODED_PART = 8
# The frames of the examples that are planned at a time: at most so many bytes, and at most this
# part of F.
_BLOCK_BYTES = 96 << 20
_BLOCK_PART = 16
# Sample tables that are kept, 30 bytes a frame: at most this, and at most this part of F.
_MAX_TABLE_BYTES = 256 << 20
_TABLES_PART = 8
# Coded bytes of small datasets that are kept, with their sample tables where files were fetched
# whole: at most this part of F.
_KEPT_PART = 8
# A GOP is long if its frames are more than this part of F: 64 of them, one in every part of the
# order, would fill half of it.
_LONG_GOP_PART = 128
# The open decoders of long GOPs, of each camera: at most this part of F.
_DECODERS_PART = 2
# Decoded frames that wait to be written to the frame cache: at most this part of F.
_UNWRITTEN_PART = 8
# Decoded frames that stay after their last known use: at most this part of F. They go as soon as
# others need room.
_STAYING_PART = 2
# The frames of the next example are decoded whatever the budget; so there are slots for this many
# times F.
_SLOTS = 2
# B by default: enough for four cores, and more for each further one, which decodes further ahead;
# but at most this part of the memory that the process may use.
_DEFAULT_BYTES = 3 << 29
_DEFAULT_CORES = 4
_BYTES_PER_CORE = 64 << 20
_MEMORY_PART = 4


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How examples are read; changes speed and memory, never what is read.

    Attributes:
      memory_budget_bytes: for coded bytes, decoded frames and rows that wait to be handed out.
        `None`: 1.5 GiB, and 64 MiB more for each core above four, but at most a quarter of the
        memory that this process may use (`default_budget_bytes`).
      num_decode_threads: `None`: one per core that this process may use.
      shared_by: how many streams read with such options at a time in this process, such as 2 for
        training and evaluation. Each has this part of the memory. Those of equal numbers of
        threads and connections have the threads together that fetch, decode and copy. A mixture is
        one stream.
      storage: connections, merging of byte ranges, timeouts and retries.
      frame_cache_bytes: of decoded and resized frames that are kept on disk, raw, so that no later
        epoch or run decodes them: 640x480 takes 0.9 MB a frame. If they are more, a fixed part
        of the episodes is kept. 0: none are. Frames of other versions of the decoder, another kind
        of processor, or files that were changed are not used.
      frame_cache_directory: where; any number of processes may share it. `None`: the folder
        `frames` next to the pieces of files that are kept (`LEROBOT_GRAIN_CACHE`, or
        `lerobot_grain` in `HF_HOME`).

    Raises:
      InvalidRequestError: a value is out of its range.
    """

    memory_budget_bytes: int | None = None
    num_decode_threads: int | None = None
    storage: StorageOptions = field(default_factory=StorageOptions)
    frame_cache_bytes: int = 0
    frame_cache_directory: str | os.PathLike[str] | None = None
    shared_by: int = 1

    def __post_init__(self) -> None:
        if self.memory_budget_bytes is not None:
            check_int("memory_budget_bytes", self.memory_budget_bytes, least=1, of="ReadOptions")
        if self.num_decode_threads is not None:
            check_int("num_decode_threads", self.num_decode_threads, least=1, of="ReadOptions")
        check_int("shared_by", self.shared_by, least=1, of="ReadOptions")
        check_int("frame_cache_bytes", self.frame_cache_bytes, least=0, of="ReadOptions")
        directory = self.frame_cache_directory
        if not isinstance(directory, str | os.PathLike | None) or directory == "":
            raise InvalidRequestError(
                f"ReadOptions(frame_cache_directory={directory!r}): expected the path of a "
                "directory, or None"
            )


def default_budget_bytes(num_cores: int, memory_bytes: int | None) -> int:
    """Returns the memory budget where none was chosen.

    Args:
      num_cores: that decode.
      memory_bytes: that the process may use; `None`: not known.
    """
    wanted = _DEFAULT_BYTES + _BYTES_PER_CORE * max(0, num_cores - _DEFAULT_CORES)
    return wanted if memory_bytes is None else max(1, min(wanted, memory_bytes // _MEMORY_PART))


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The shares of the memory budget, in bytes.

    Attributes:
      total: B.
      rows: R: row groups that are kept, unpacked; and as much again for those that were fetched
        together and are not unpacked yet.
      large_rows: if one block needs row groups of more than this, they are not kept.
      frames: F: coded bytes, decoded frames, open decoders and sample tables of all cameras.
      pending_coded: from this much coded video on, of all cameras, nothing is fetched ahead.
      block: the frames of the examples that are planned at a time.
      video_files: sample tables, and small files that were fetched whole.
      kept_video: of each camera: if its coded video is not more, all of it is kept.
      long_gop: a GOP whose frames are more is long.
      open_decoders: of each camera: the decoders of its long GOPs.
      unwritten_frames: decoded frames that wait to be written to the frame cache.
      staying_frames: of each camera: decoded frames that stay after their last known use.
    """

    total: int
    rows: int
    large_rows: int
    frames: int
    pending_coded: int
    block: int
    video_files: int
    kept_video: int
    long_gop: int
    open_decoders: int
    unwritten_frames: int
    staying_frames: int

    @classmethod
    def of(cls, total: int, *, num_cameras: int) -> MemoryBudget:
        """Divides a budget.

        Args:
          total: bytes, B.
          num_cameras: of which videos are read.
        """
        rows = total // (_ROWS_PART if num_cameras else _ROWS_PART_ALONE)
        frames = total - rows
        return cls(
            total=total,
            rows=rows,
            large_rows=max(_ROWS_OF_ONE_BLOCK * rows, _MIN_LARGE_BYTES),
            frames=frames,
            pending_coded=total // _CODED_PART,
            block=min(_BLOCK_BYTES, frames // _BLOCK_PART),
            video_files=min(_MAX_TABLE_BYTES, frames // _TABLES_PART) + frames // _KEPT_PART,
            kept_video=frames // _KEPT_PART // max(1, num_cameras),
            long_gop=frames // _LONG_GOP_PART,
            open_decoders=frames // _DECODERS_PART,
            unwritten_frames=frames // _UNWRITTEN_PART,
            staying_frames=frames // _STAYING_PART // max(1, num_cameras),
        )

    def num_slots(self, frame_bytes: int) -> int:
        """Returns for how many decoded frames a camera has memory, which is taken from the system
        only when it is used.
        """
        return _SLOTS * (self.frames // frame_bytes) + 1

    def num_staying(self, frame_bytes: int) -> int:
        """Returns how many frames of a camera stay decoded (`staying_frames`)."""
        return self.staying_frames // frame_bytes

    def examples_of_block(self, example_bytes: int, *, at_most: int) -> int:
        """Returns how many examples, at least one, are planned at a time where the frames of one
        take so many bytes.
        """
        return max(1, min(at_most, self.block // max(1, example_bytes)))

    def kept_rows(self, sizes: Sequence[int]) -> int | None:
        """Returns how many bytes of row groups are kept while a block is read; `None`: those that
        it needs are too large to be kept.

        Args:
          sizes: bytes that each of the row groups that the block needs unpacks to.
        """
        needed = sum(sizes)
        return max(self.rows, needed) if needed <= self.large_rows else None

    def large_groups_at_once(self, sizes: Sequence[int], *, at_most: int) -> int:
        """Returns how many row groups, at least one, are read at a time where they are too large to
        be kept; `sizes` as for `kept_rows`.
        """
        return max(1, min(at_most, self.rows // max(sizes)))

    @staticmethod
    def total_for(frames: int) -> int:
        """Returns the least budget, B, of which so many bytes are for camera frames."""
        return -(-frames * _ROWS_PART // (_ROWS_PART - 1))

"""The sample tables of MP4 files, read through a storage.

`_video/mp4` parses, and names the bytes that it needs next; here they are read.
"""

from __future__ import annotations

from collections.abc import Callable

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._storage.base import Storage
from lerobot_grain._video.mp4 import SampleTable, SampleTableReader, read_sample_table


def sample_table(storage: Storage, path: str, *, is_moov_last: bool = False) -> SampleTable:
    """Reads the sample table of a video file: one or two small ranges, which are kept on disk.

    One, where `moov` is its last box and `is_moov_last` says so.

    Raises:
      DatasetFormatError: not an MP4 file that can be read.
      StorageError: the bytes could not be read.
    """
    with storage.checked(path):
        reader = read_sample_table(
            storage.size_bytes(path),
            where=f"{storage.description}, {path}",
            is_moov_last=is_moov_last,
        )
        return _run(reader, lambda wanted: storage.read_ranges(path, [wanted], keep=True)[0])


def sample_table_in(contents: bytes, *, where: str) -> SampleTable:
    """Returns the sample table of a video file that is in memory.

    Raises:
      DatasetFormatError: not an MP4 file that can be read.
    """
    return _run(
        read_sample_table(len(contents), where=where),
        lambda wanted: contents[wanted.start : wanted.stop],
    )


def _run(reader: SampleTableReader, read: Callable[[ByteRange], bytes]) -> SampleTable:
    wanted = next(reader)
    while True:
        try:
            wanted = reader.send(read(wanted))
        except StopIteration as stop:
            table: SampleTable = stop.value
            return table

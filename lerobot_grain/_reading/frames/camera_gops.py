"""The GOPs of one camera while they are decoded: the open decoders of long ones, and counts.

For one thread, the consumer's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from lerobot_grain._reading.frame_cache.camera_frames import CameraFrames
from lerobot_grain._reading.frames.decoding import GopFrames, LongGopDecoder
from lerobot_grain._reading.frames.frame_store import FrameDemand
from lerobot_grain._reading.frames.gop_fetcher import GopFetcher, GopKey
from lerobot_grain._reading.read_statistics import Meter

# Memory that an open decoder holds, in frames of 12 bits a pixel: 5 MB at 640x480 (measured with
# 64 of them).
_PICTURES_OF_DECODER = 12
# GOPs that are remembered to count those that are decoded again; only a figure of the statistics.
_MAX_LATELY_DECODED = 100_000


@dataclass(eq=False, slots=True)
class OpenDecoder:
    """The decoder of a long GOP, which stays open between its pieces."""

    decoder: LongGopDecoder
    num_bytes: int
    next_frame: int  # of the file: where it goes on


class DecodeCounts:
    """Counts GOPs that go through a decoder, and those that did so not long before.

    Args:
      meter: of the source.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._lately_decoded: set[tuple[int, int]] = set()

    def count(self, begun: Sequence[GopFrames], *, num_pictures: int) -> None:
        """Counts GOPs that go through a decoder from their start, and coded pictures that do."""
        self.meter.count(
            gops_decoded=len(begun),
            gops_decoded_again=sum(map(self._was_decoded_lately, begun)),
            pictures_decoded=num_pictures,
        )

    def _was_decoded_lately(self, gop: GopFrames) -> bool:
        key = gop.file.number, gop.gop
        if key in self._lately_decoded:
            return True
        if len(self._lately_decoded) >= _MAX_LATELY_DECODED:
            self._lately_decoded.clear()
        self._lately_decoded.add(key)
        return False


class OpenDecoders:
    """The open decoders of a camera.

    Args:
      limit: on the sum of their bytes.

    Attributes:
      used_bytes: the sum.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_gop: OrderedDict[GopKey, OpenDecoder] = OrderedDict()  # least recently used first
        self.used_bytes = 0

    def find(self, key: GopKey) -> OpenDecoder | None:
        """Returns the decoder of a GOP, if it is open."""
        found = self._by_gop.get(key)
        if found is not None:
            self._by_gop.move_to_end(key)
        return found

    def add(self, key: GopKey, opened: OpenDecoder) -> None:
        """Keeps a decoder, and gives up the least recently used ones while all of them hold more
        than they may; their GOPs begin anew when needed.

        A decoder goes when the pieces that were asked of it are done.
        """
        while self._by_gop and self.used_bytes + opened.num_bytes > self._limit:
            _, oldest = self._by_gop.popitem(last=False)
            self.used_bytes -= oldest.num_bytes
        self.used_bytes += opened.num_bytes
        self._by_gop[key] = opened

    def close(self, key: GopKey) -> None:
        """Gives up the decoder of a GOP, if it is open."""
        if (closed := self._by_gop.pop(key, None)) is not None:
            self.used_bytes -= closed.num_bytes


@dataclass(frozen=True, slots=True, eq=False)
class CameraGops:
    """The GOPs of one camera.

    Attributes:
      demand: which frames are needed; slots are marked there.
      fetcher: has the coded bytes.
      counts: of what is decoded.
      decoders: of long GOPs, which stay open.
      on_disk: the frames of the camera there, where they are kept.
    """

    demand: FrameDemand
    fetcher: GopFetcher
    counts: DecodeCounts
    decoders: OpenDecoders
    on_disk: CameraFrames | None

    def next_frame(self, gop: GopFrames) -> int:
        """Returns the first frame of the file that comes out of the decoder of a GOP if it goes on
        where it is: of most, the first one of the GOP.
        """
        opened = self.decoders.find((gop.file.number, gop.episode, gop.gop))
        if opened is None or gop.frames.item(0) < opened.next_frame:
            return gop.file.frames_of(gop.gop).start
        return opened.next_frame

    def opening_bytes(self, gop: GopFrames) -> int:
        """Returns the bytes of the decoder that is opened for a GOP; 0 where none stays open."""
        key = gop.file.number, gop.episode, gop.gop
        if not self.fetcher.gops[key].is_long or self.decoders.find(key) is not None:
            return 0
        return decoder_bytes(gop)


def decoder_bytes(gop: GopFrames) -> int:
    """Returns the bytes that an open decoder of a GOP is counted as."""
    size = gop.file.table.format
    return size.height * size.width * 3 // 2 * _PICTURES_OF_DECODER

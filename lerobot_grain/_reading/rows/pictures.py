"""The embedded images of one source: encoded pictures -> frames, decoded side by side, or read from
the frame cache.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.features import Feature
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.frame_cache.camera_frames import CameraFrames
from lerobot_grain._reading.frame_cache.episode_frames import bytes_of
from lerobot_grain._reading.frame_cache.frame_writer import DecodedFrames, HeldFrames
from lerobot_grain._reading.read_context import ReadContext, ReadSource
from lerobot_grain._video.images import decode_depth_image, decode_image

# So much is read of the frame cache at a time.
_READ_BYTES = 4 << 20


class PictureReader:
    """Decodes embedded images. For one thread, the consumer's.

    Args:
      context: of the stream.
      source: of the images.
    """

    def __init__(self, context: ReadContext, source: ReadSource) -> None:
        self._context = context
        self._source = source
        self._on_disk: dict[str, CameraFrames] = {}
        for feature in source.selection.columns:
            if feature.is_camera and context.frame_cache is not None:
                self._on_disk[feature.key] = CameraFrames(
                    context.frame_cache,
                    source.repository,
                    feature,
                    image_size=source.image_size,
                    frame_bytes=math.prod(self._shape(feature))
                    * np.dtype(feature.frame_dtype).itemsize,
                )

    def expect(self, block: WindowBlock) -> None:
        """Asks the system for the frames of a block that lie in the frame cache."""
        for key, on_disk in self._on_disk.items():
            episodes, frames = _flat(block.episodes, block.frames_of(key))
            is_there = on_disk.find(episodes, frames)
            on_disk.expect(episodes[is_there], frames[is_there])

    def frames(
        self, feature: Feature, encoded: list[Any], episodes: Integers, windows: Integers
    ) -> npt.NDArray[Any]:
        """Returns the frames of examples, `(frames, height, width, channels)`.

        Args:
          feature: the camera.
          encoded: the picture of each.
          episodes: int64 `(examples,)`, positions in the episode table.
          windows: int64 `(examples, time)`, frames of the episodes.

        Raises:
          DatasetFormatError: a picture cannot be decoded.
        """
        episodes, frames = _flat(episodes, windows)
        on_disk = self._on_disk.get(feature.key)
        out = None
        missing = np.arange(len(encoded))
        if on_disk is not None and (is_there := on_disk.find(episodes, frames)).any():
            out = np.empty((len(encoded), *self._shape(feature)), feature.frame_dtype)
            rows = self._source.repository.episodes.first_rows[episodes] + frames
            found = np.flatnonzero(is_there)
            lost = self._read(on_disk, rows[found], out, found)
            missing = np.union1d(np.flatnonzero(~is_there), lost)
            self._source.meter.count(frames_from_cache=len(encoded) - len(missing))
        numbers = self._source.repository.episodes.numbers_of(episodes[missing]).tolist()
        started = time.perf_counter()
        pixels = self._decoded(feature, [encoded[place] for place in missing.tolist()], numbers)
        if on_disk is not None and pixels:
            seconds = time.perf_counter() - started
            self._keep(on_disk, pixels, episodes[missing], frames[missing], seconds=seconds)
        self._source.meter.count(frames_handed_out=len(encoded))
        if out is None:
            return np.stack(pixels)
        for place, each in zip(missing.tolist(), pixels, strict=True):
            out[place] = each
        return out

    def _read(
        self, on_disk: CameraFrames, rows: Integers, out: npt.NDArray[Any], places: Integers
    ) -> Integers:
        """Reads frames; returns the places of those that are not there any more."""
        step = max(1, _READ_BYTES // out[:1].nbytes)
        tasks = [
            self._context.copiers.submit(
                on_disk.read, rows[start : start + step], out, places[start : start + step]
            )
            for start in range(0, len(rows), step)
        ]
        lost = [
            places[start + task.result()]
            for start, task in zip(range(0, len(rows), step), tasks, strict=True)
        ]
        return np.concatenate(lost)

    def _decoded(
        self, feature: Feature, encoded: list[Any], numbers: list[int]
    ) -> list[npt.NDArray[Any]]:
        expected = self._shape(feature)
        decode_one = decode_depth_image if feature.is_depth else decode_image
        description = self._source.repository.description

        def decode(item: tuple[int, Any]) -> npt.NDArray[Any]:
            where = f"{description}, episode {item[0]}, camera {feature.key}"
            pixels = decode_one(item[1], image_size=self._source.image_size, where=where)
            if pixels.shape != expected:
                raise DatasetFormatError(
                    f"{where}: an image has shape {pixels.shape}; info.json declares {expected}"
                )
            return pixels

        return list(self._context.decoders.map(decode, zip(numbers, encoded, strict=True)))

    def _keep(
        self,
        on_disk: CameraFrames,
        pixels: list[npt.NDArray[Any]],
        episodes: Integers,
        frames: Integers,
        *,
        seconds: float,
    ) -> None:
        assert self._context.frame_cache is not None
        # Nobody else writes there, so nothing has to be held.
        memory = HeldFrames(
            lambda place: bytes_of(np.ascontiguousarray(pixels[place])),
            np.zeros(len(pixels), np.bool_),
            pixels[0].nbytes,
        )
        # A frame that is in several windows is kept once.
        _, places = np.unique(np.stack([episodes, frames]), axis=1, return_index=True)
        self._context.frame_cache.writer.offer(
            memory,
            [
                DecodedFrames(
                    on_disk.episode(episodes.item(place)),
                    frames[place : place + 1],
                    np.array([place]),
                )
                for place in places.tolist()
            ],
            decode_seconds=seconds,
        )

    def _shape(self, feature: Feature) -> tuple[int, ...]:
        """Returns the shape of a frame."""
        return (*(self._source.image_size or feature.shape[:2]), feature.num_channels)


def _flat(episodes: Integers, windows: Integers) -> tuple[Integers, Integers]:
    """Returns the episode and the frame of each frame of windows, each int64 `(frames,)`."""
    return np.repeat(episodes, windows.shape[1]), windows.reshape(-1)

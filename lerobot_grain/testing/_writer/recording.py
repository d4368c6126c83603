"""Turns episodes into frames and frames into files: draws, stamps the barcode, encodes, keeps a
few frames for the statistics.

Rules:
* Episodes are recorded side by side on a small thread pool; encoders, the PNG writer and most of
  NumPy release the interpreter lock.
* A thread holds one frame at a time.

Not here: what the default frames show (`_writer/pictures`) and how an episode becomes an MP4
(`_writer/video`).
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain.testing._writer.barcode import (
    MAX_CAMERAS,
    MAX_EPISODES,
    MAX_FRAMES_PER_EPISODE,
    MIN_HEIGHT,
    MIN_VIDEO_WIDTH,
    MIN_WIDTH,
    draw_barcodes,
)
from lerobot_grain.testing._writer.depth import Pictures, depth_of_picture
from lerobot_grain.testing._writer.pictures import draw_pictures
from lerobot_grain.testing._writer.video import Camera, encode_episode, stitch_episodes

FrameContent = Callable[[int, int, int], Pictures]
"""`(episode_index, frame_index, camera_index) -> uint8 (height, width, 3)`.

Called from several threads.

For a depth camera it returns uint16 (height, width, 1), millimeters.
"""

# lerobot estimates the statistics of cameras from a sample, too, of at least 100 frames; fewer
# suffice here and keep writing fast.
_SAMPLED_FRAMES = 8
# lerobot's thresholds: larger frames are thinned out to about 150 pixels before statistics.
_THIN_ABOVE_PIXELS = 300
_THIN_TO_PIXELS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Studio:
    """Records the frames of one dataset; see `write_dataset` for the fields."""

    cameras: tuple[Camera, ...]
    fps: int
    seed: int
    noise: float
    barcodes: bool
    frame_content: FrameContent | None

    def check_room(self, lengths: npt.NDArray[np.int64]) -> None:
        """Raises `InvalidRequestError` where the barcodes of episodes of these lengths have no room
        on the frames.
        """
        if not self.barcodes or not self.cameras:
            return
        for what, found, limit in (
            ("episodes", len(lengths), MAX_EPISODES),
            ("frames in one episode", int(lengths.max()), MAX_FRAMES_PER_EPISODE),
            ("cameras", len(self.cameras), MAX_CAMERAS),
        ):
            if found > limit:
                raise InvalidRequestError(
                    f"{found} {what} do not fit into barcodes, which hold {limit}; pass "
                    "barcodes=False"
                )
        for camera in self.cameras:
            width = MIN_VIDEO_WIDTH if camera.kind == "video" else MIN_WIDTH
            if camera.height < MIN_HEIGHT or camera.width < width:
                raise InvalidRequestError(
                    f"camera {camera.key!r}: {camera.height}x{camera.width} (height x width) has "
                    f"no room for a barcode, which needs {MIN_HEIGHT}x{width} in a {camera.kind}; "
                    "pass barcodes=False"
                )

    def film(
        self,
        camera_index: int,
        points: Sequence[npt.NDArray[np.float64]],
        paths: Sequence[Path],
        directory: Path,
    ) -> tuple[npt.NDArray[np.float64], list[Pictures]]:
        """Writes the video files of one camera.

        Args:
          camera_index: which one.
          points: what the disc shows, (frames, 2) per episode.
          paths: video file of each episode; episodes of one file are neighbors.
          directory: where temporary files may go, on the same file system.

        Returns:
          Duration of each episode in seconds as lerobot reckons it, float64 (episodes,), and
          sampled frames per episode.
        """
        camera = self.cameras[camera_index]
        with (
            tempfile.TemporaryDirectory(prefix=".recording-", dir=directory) as scratch,
            _pool() as pool,
        ):
            parts = [Path(scratch) / f"{episode}.mp4" for episode in range(len(points))]

            def record(episode: int) -> tuple[float, Pictures]:
                sample = _Sample(length=len(points[episode]))
                frames = sample.watch(self._frames(camera_index, episode, points[episode]))
                return encode_episode(
                    parts[episode], frames, camera=camera, fps=self.fps
                ), sample.frames()

            durations, samples = zip(*pool.map(record, range(len(points))), strict=True)
            for path, group in groupby(range(len(points)), key=paths.__getitem__):
                path.parent.mkdir(parents=True, exist_ok=True)
                stitch_episodes(path, [parts[episode] for episode in group], moov=camera.moov)
        return np.array(durations), list(samples)

    def embed(
        self, camera_index: int, points: Sequence[npt.NDArray[np.float64]]
    ) -> tuple[list[dict[str, bytes | str]], list[Pictures]]:
        """Returns the PNGs (depth: TIFFs) of all frames of one camera as rows of an image column,
        and sampled frames per episode.
        """
        camera = self.cameras[camera_index]

        def record(episode: int) -> tuple[list[dict[str, bytes | str]], Pictures]:
            sample = _Sample(length=len(points[episode]))
            frames = sample.watch(self._frames(camera_index, episode, points[episode]))
            cells: list[dict[str, bytes | str]] = []
            for index, frame in enumerate(frames):
                buffer = io.BytesIO()
                if camera.depth:
                    Image.fromarray(frame[..., 0]).save(buffer, format="TIFF")
                else:
                    Image.fromarray(frame).save(buffer, format="PNG", compress_level=6)
                cells.append(
                    {
                        "bytes": buffer.getvalue(),
                        "path": f"frame-{index:06d}.{'tiff' if camera.depth else 'png'}",
                    }
                )
            return cells, sample.frames()

        with _pool() as pool:
            recorded = list(pool.map(record, range(len(points))))
        return [cell for cells, _ in recorded for cell in cells], [sample for _, sample in recorded]

    def _frames(
        self, camera_index: int, episode_index: int, points: npt.NDArray[np.float64]
    ) -> Iterator[Pictures]:
        camera = self.cameras[camera_index]
        drawn: Iterator[Pictures]
        if self.frame_content is None:
            drawn = draw_pictures(
                points,
                height=camera.height,
                width=camera.width,
                episode_index=episode_index,
                camera_index=camera_index,
                seed=self.seed,
                noise=self.noise,
            )
            if camera.depth:
                drawn = map(depth_of_picture, drawn)
        else:
            drawn = (
                self._custom(self.frame_content, camera, episode_index, frame, camera_index)
                for frame in range(len(points))
            )
        for frame_index, frame in enumerate(drawn):
            if self.barcodes:
                draw_barcodes(
                    frame[None],
                    episode_index=episode_index,
                    first_frame_index=frame_index,
                    camera_index=camera_index,
                )
            yield frame

    @staticmethod
    def _custom(
        frame_content: FrameContent,
        camera: Camera,
        episode_index: int,
        frame_index: int,
        camera_index: int,
    ) -> Pictures:
        frame = np.array(frame_content(episode_index, frame_index, camera_index))
        expected = (camera.height, camera.width, camera.num_channels)
        dtype = np.dtype(np.uint16 if camera.depth else np.uint8)
        if frame.shape != expected or frame.dtype != dtype:
            raise InvalidRequestError(
                f"frame_content returned {frame.dtype} {frame.shape} for episode {episode_index} "
                f"frame {frame_index} of camera {camera.key!r}, expected {dtype} {expected}"
            )
        return frame


@dataclass(slots=True)
class _Sample:
    """Keeps some evenly spread frames out of a stream of `length`."""

    length: int
    _kept: list[Pictures] = field(default_factory=list)

    def watch(self, frames: Iterator[Pictures]) -> Iterator[Pictures]:
        wanted = set(np.linspace(0, self.length - 1, _SAMPLED_FRAMES).round().astype(int).tolist())
        for index, frame in enumerate(frames):
            if index in wanted:
                longest = max(frame.shape)
                step = longest // _THIN_TO_PIXELS if longest >= _THIN_ABOVE_PIXELS else 1
                self._kept.append(frame[::step, ::step].copy())
            yield frame

    def frames(self) -> Pictures:
        """Returns (at most 8, height, width, channels), thinned out when large."""
        return np.stack(self._kept)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="record")

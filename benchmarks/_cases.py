"""The datasets of the benchmark: what each is for, and writing it once into a cache directory."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lerobot_grain.testing import Camera, write_dataset

FPS = 30
# As noisy as a robot's camera frames (`write_dataset`). Without noise, decoders are far faster
# (96x96 AV1: 28,000 frames/s against 10,300, 2 cores), and it would be measured how fast Python can
# be called.
CAMERA_NOISE = 0.1
# Files of each camera, so that the sequential limit has work for every core until its end.
_NUM_FILES = 8
# `--scale tiny`: enough for one batch and for every file, written in a second.
TINY = 0.0
_TINY_EPISODE_LENGTH = 12


def scale_of(text: str) -> float:
    """Reads `--scale`: a number, or tiny."""
    return TINY if text == "tiny" else float(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A dataset and how it is read.

    Attributes:
      name: of the case.
      cameras: what is filmed, at `FPS`.
      episodes, episode_length: how much of it.
      noise: of the frames (`write_dataset`).
      windows: feature key -> offsets in frames.
      clip_length: of the shuffle, where the default is not meant.
      pinned: our reader gets one core only.
      target_of_limit, target_of_naive, target_of_plain: the ratios that are to be reached.
      directory: a dataset that is there already.
    """

    name: str
    cameras: tuple[Camera, ...] = ()
    episodes: int = _NUM_FILES
    episode_length: int = 0
    noise: float = CAMERA_NOISE
    windows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    clip_length: int | None = None
    pinned: bool = False
    target_of_limit: float | None = None
    target_of_naive: float | None = None
    target_of_plain: float | None = None
    directory: Path | None = None


def _camera(name: str, height: int, width: int) -> Camera:
    return Camera(key=f"observation.images.{name}", height=height, width=width)


def _h264(height: int, width: int, gop: int) -> Camera:
    return replace(_camera("top", height, width), codec="h264", gop=gop, b_frames=3)


ACTIONS = tuple(range(16))
CASES = (
    # 4,200 clips of 16. Long enough, as the others, for the start not to count.
    Case(
        name="small",
        cameras=(_camera("top", 96, 96),),
        episodes=600,
        episode_length=100,
        target_of_limit=0.6,
        target_of_naive=3,
    ),
    Case(
        name="vga3",
        cameras=tuple(_camera(name, 480, 640) for name in ("top", "left", "right")),
        episodes=60,
        episode_length=80,
        target_of_limit=0.9,
        target_of_naive=1.5,
    ),
    # 1,024 clips of one GOP.
    Case(
        name="h264_g30",
        cameras=(_h264(240, 320, 30),),
        episodes=256,
        episode_length=120,
        target_of_limit=0.6,
        target_of_naive=10,
    ),
    # 64 clips of one GOP; 1,000 would take minutes.
    Case(
        name="h264_g250",
        cameras=(_h264(360, 640, 250),),
        episodes=32,
        episode_length=500,
        target_of_limit=0.5,
        target_of_naive=20,
    ),
    Case(
        name="vga_windows",
        cameras=(_camera("top", 480, 640),),
        episodes=60,
        episode_length=128,
        windows={"observation.images.top": (-1, 0), "action": ACTIONS},
        # At 16, the frame before each clip alone costs one GOP in eight.
        clip_length=64,
        target_of_naive=2.5,
        target_of_plain=0.85,
    ),
    Case(
        name="state", episodes=1000, episode_length=1000, windows={"action": ACTIONS}, pinned=True
    ),
)


def prepare(case: Case, *, cache: Path, scale: float) -> Path:
    """Returns the directory of a dataset, and writes it when it is not there yet.

    Args:
      case: which one.
      cache: directory for all of them.
      scale: the number of episodes is multiplied by it; `TINY`: as small as makes sense.
    """
    if case.directory is not None:
        return case.directory
    episodes, length = math.ceil(case.episodes * scale), case.episode_length
    if scale == TINY:
        episodes, length = _NUM_FILES, _TINY_EPISODE_LENGTH
    episodes = max(_NUM_FILES, episodes)
    # Another definition of the case is another directory.
    digest = hashlib.sha256(repr((case.cameras, case.noise, FPS, _NUM_FILES)).encode()).hexdigest()[
        :8
    ]
    directory = cache / f"{case.name}-{episodes}x{length}-{digest}"
    if directory.is_dir():
        return directory
    unfinished = cache / f"{directory.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    write_dataset(
        unfinished,
        episode_lengths=[length] * episodes,
        fps=FPS,
        cameras=case.cameras,
        noise=case.noise,
        episodes_per_video_file=math.ceil(episodes / _NUM_FILES),
    )
    unfinished.rename(directory)
    return directory

"""The frames of one camera on disk: which there are, and reading and keeping them.

The checksums of an episode are read at its first use, which takes a few microseconds. Other
processes may write frames at any time, so an episode that lacks one is looked at again, at most
once a second.
"""

from __future__ import annotations

import os
import time

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._format.features import Feature
from lerobot_grain._reading.frame_cache.episode_frames import EpisodeFrames, Layout, bytes_of
from lerobot_grain._reading.frame_cache.frame_cache import FrameCache
from lerobot_grain._reading.frame_cache.frame_key import FrameKey
from lerobot_grain._repository.repository import Repository
from lerobot_grain._video.decoder import Frames

_LOOK_SECONDS = 1.0


class CameraFrames:
    """The frames of one camera on disk.

    `find`, `expect` and `episode` are for the consumer's thread, the others for any.

    Args:
      cache: of the reader.
      repository: the dataset.
      feature: the camera.
      image_size: (height, width) that frames are resized to, or `None`.
      frame_bytes: of one frame.
    """

    def __init__(
        self,
        cache: FrameCache,
        repository: Repository,
        feature: Feature,
        *,
        image_size: tuple[int, int] | None,
        frame_bytes: int,
    ) -> None:
        self._directory = cache.directory
        self._fetchers = cache.fetchers
        self._about = f"{repository.description}\n{feature.key}\n{image_size}\n"
        self._table = repository.episodes
        self._key = FrameKey(repository, feature, image_size)
        self._frame_bytes = frame_bytes
        self._episodes: dict[int, EpisodeFrames] = {}
        # Whether frames are asked for ahead: until all that is asked for is in memory. Not until
        # nothing is waited for, which is what asking ahead does.
        self._is_asked_for = True

    def episode(self, number: int) -> EpisodeFrames:
        """Returns the frames of an episode, by its position in the episode table."""
        found = self._episodes.get(number)
        if found is None:
            found = self._episodes[number] = EpisodeFrames(
                os.path.join(self._directory.path, self._key.name(number)),
                Layout(self._table.lengths.item(number), self._frame_bytes),
                about=f"{self._about}episode {self._table.number_of(number)}",
            )
            found.load()
        elif found.name in self._directory.deleted:
            self._directory.deleted.discard(found.name)
            found.load()
        return found

    def find(self, episodes: Integers, frames: Integers) -> npt.NDArray[np.bool_]:
        """Returns of frames of episodes, each int64 `(n,)`, whether they are there or will be
        soon, bool `(n,)`.

        One that is may turn out to be damaged, or be deleted, before it is read.
        """
        found = np.zeros(len(frames), np.bool_)
        now = time.monotonic()
        for number, members in _by_episode(episodes):
            episode = self.episode(number)
            wanted = frames[members]
            is_there = episode.will_have(wanted)
            if now - episode.loaded_at > _LOOK_SECONDS and not is_there.all():
                episode.load()
                is_there = episode.will_have(wanted)
            found[members] = is_there
        return found

    def has_all_of(self, episodes: Integers) -> bool:
        """Returns whether every frame of episodes is there, as far as is known."""
        return all(
            number in self._episodes and bool(self._episodes[number].checksums.all())
            for number in set(episodes.tolist())
        )

    def expect(self, episodes: Integers, frames: Integers) -> None:
        """Asks the system for frames that will be read soon, unless they are probably in memory."""
        if not self._is_asked_for or len(frames) == 0:
            return
        wanted = [
            (self._episodes[number], frames[members].tolist())
            for number, members in _by_episode(episodes)
        ]

        def ask() -> None:
            are_there = [episode.expect(each) for episode, each in wanted]
            if all(are_there):
                self._is_asked_for = False

        self._fetchers.submit(ask)

    def read(self, rows: Integers, out: Frames, places: Integers) -> Integers:
        """Reads frames that were there when `find` was called.

        Args:
          rows: int64 `(n,)`, of the dataset.
          out: `(any, ...)`, contiguous.
          places: int64 `(n,)`: which elements of `out` they are written to.

        Returns:
          int64 `(lost,)`: which of them are not there any more, or damaged. Their memory may hold
          anything.
        """
        if len(rows) == 0:
            return rows
        order = np.argsort(rows, kind="stable")
        episodes, frames = self._table.locate_all(rows[order])
        memory = bytes_of(out)
        size = self._frame_bytes
        starts = (places[order] * size).tolist()
        lost: list[Integers] = []
        for number, members in _by_episode(episodes):
            into = [memory[starts[place] : starts[place] + size] for place in members.tolist()]
            episode = self._episodes[number]
            damaged = episode.read(frames[members].tolist(), into)
            if episode.has_waited:
                episode.has_waited = False
                self._is_asked_for = True
            if damaged:
                lost.append(order[members[damaged]])
        return np.concatenate(lost) if lost else np.zeros(0, np.int64)


def _by_episode(episodes: Integers) -> list[tuple[int, Integers]]:
    """Returns the distinct ones of episodes, int64 `(n,)`, and the places of each, ascending."""
    order = np.argsort(episodes, kind="stable")
    in_order = episodes[order]
    bounds = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    firsts = in_order[np.append(0, bounds)] if len(episodes) else in_order
    return list(zip(firsts.tolist(), np.split(order, bounds), strict=False))

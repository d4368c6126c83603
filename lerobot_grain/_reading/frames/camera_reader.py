"""Fetches and decodes the frames of one camera ahead, and keeps each until its last known use.

Idea: every frame that a coming example needs is known, with its uses. A GOP is fetched
(`_reading/frames/gop_fetcher`) and decoded (`_reading/frames/gop_decoder`) at its first use, for
all of its frames that are known to be needed, and each frame goes after its last use.

Rules:
* One thread, the consumer's, plans; pools run tasks that know everything they need. Only a long
  GOP's decoder is shared by tasks, under its own lock.
* A slot of the store is given back when no task can write to it any more: after the task that does
  was waited for, or is done.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainError
from lerobot_grain._format.info import Feature
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.frame_cache.camera_frames import CameraFrames
from lerobot_grain._reading.frames.camera_gops import CameraGops, DecodeCounts, OpenDecoders
from lerobot_grain._reading.frames.decoding import GopFrames
from lerobot_grain._reading.frames.frame_store import (
    CACHED,
    FAILED,
    NO_SLOT,
    FrameDemand,
    FrameStore,
)
from lerobot_grain._reading.frames.gop_decoder import DecodeCandidate, GopDecoder
from lerobot_grain._reading.frames.gop_fetcher import FileKey, GopFetcher
from lerobot_grain._reading.frames.staying_frames import StayingFrames
from lerobot_grain._reading.future_cache import FutureCache
from lerobot_grain._reading.read_context import ReadContext, ReadSource
from lerobot_grain._video.decoder import Frames
from lerobot_grain._video.video_file import VideoFile

_NONE = np.zeros(0, np.int64)


class CameraReader:
    """Reads the frames of one camera.

    Args:
      context: of the stream; the caller keeps to the budget of all cameras together.
      source: of the camera.
      feature: the camera.
      decoder: of frames of its shape, which are made as those of this camera; it has the memory for
        them.
      files: of all cameras.
    """

    def __init__(
        self,
        context: ReadContext,
        source: ReadSource,
        feature: Feature,
        *,
        decoder: GopDecoder,
        files: FutureCache[FileKey, VideoFile],
    ) -> None:
        self._meter = source.meter
        self._camera = feature.key
        self._episodes = source.repository.episodes
        self._file_of_episode = self._episodes.videos[feature.key].files.file_of_episode
        self.demand = FrameDemand()
        self._fetcher = GopFetcher(
            context,
            source,
            feature.key,
            demand=self.demand,
            frame_bytes=decoder.store.frame_bytes,
            files=files,
        )
        self.decoder = decoder
        self.staying = StayingFrames(
            self.demand,
            context.budget.num_staying(decoder.store.frame_bytes),
            self._episodes,
        )
        self._gops = CameraGops(
            self.demand,
            self._fetcher,
            DecodeCounts(source.meter),
            OpenDecoders(context.budget.open_decoders),
            None
            if context.frame_cache is None
            else CameraFrames(
                context.frame_cache,
                source.repository,
                feature,
                image_size=source.image_size,
                frame_bytes=decoder.store.frame_bytes,
            ),
        )
        self._problems_of_entries: dict[int, Exception] = {}

    @property
    def store(self) -> FrameStore:
        """Memory for the frames."""
        return self.decoder.store

    @property
    def coded_bytes(self) -> int:
        """Coded bytes that go when they are decoded."""
        return self._fetcher.coded_bytes

    @property
    def used_bytes(self) -> int:
        """Coded bytes and open decoders; frames are counted by the store."""
        return self._fetcher.coded_bytes + self._fetcher.kept_bytes + self._gops.decoders.used_bytes

    def announce(self, block: WindowBlock) -> Integers:
        """Counts the frames that a block needs; returns their entries, int64 `(examples, time)`.

        The index of a file is requested as soon as a file is known to be needed, long before its
        first frame is.
        """
        on_disk = self._gops.on_disk
        if on_disk is None or not on_disk.has_all_of(block.episodes):
            for number in set(self._file_of_episode[block.episodes].tolist()):
                self._fetcher.open(number)
        entries = self.demand.add(
            self._episodes.first_rows[block.episodes][:, None] + self._window(block)
        )
        self.staying.end_waiting(entries)
        for output in block.outputs_of(self._camera):
            if output.stays is not None and output.stays.any():
                staying = entries[output.stays, output.columns].reshape(-1)
                self._give_back(self.staying.add(staying))
        return entries

    # Fetching

    def fetch(self, block: WindowBlock, entries: Integers, *, may_be_on_disk: bool = True) -> None:
        """Asks for the coded bytes of frames that were not asked for yet, or were dropped since;
        unless they lie in the frame cache.
        """
        flat = entries.reshape(-1)
        missing = np.flatnonzero(~self.demand.is_requested[flat])
        if len(missing) == 0:
            return
        frames = self._window(block).reshape(-1)
        if self._gops.on_disk is not None and may_be_on_disk:
            missing = self._not_on_disk(
                block.episodes[missing // entries.shape[1]], frames[missing], flat, missing
            )
        for index in missing.tolist():
            entry = flat.item(index)
            if self.demand.is_requested[entry]:
                continue  # with another one
            try:
                self._fetcher.fetch(
                    block.episodes.item(index // entries.shape[1]),
                    frames.item(index),
                    on_disk=self._gops.on_disk,
                )
            except LeRobotGrainError as error:
                self.demand.slots[entry] = FAILED
                self.demand.is_requested[entry] = True
                self._problems_of_entries[entry] = error

    def _not_on_disk(
        self, episodes: Integers, frames: Integers, entries: Integers, missing: Integers
    ) -> Integers:
        """Notes which of missing frames lie in the frame cache; returns the others.

        Args:
          episodes, frames: int64 `(n,)`, of them.
          entries: int64 `(any,)`.
          missing: int64 `(n,)`: which of `entries` they are.
        """
        assert self._gops.on_disk is not None
        is_there = self._gops.on_disk.find(episodes, frames)
        if self._fetcher.coded_bytes and is_there.any():
            # Coded bytes that wait go when all frames of theirs that are needed are decoded.
            is_there[is_there] = ~self._wait_coded(episodes[is_there], frames[is_there])
        found = entries[missing[is_there]]
        self.demand.slots[found] = CACHED
        self.demand.is_requested[found] = True
        return missing[~is_there]

    def _wait_coded(self, episodes: Integers, frames: Integers) -> npt.NDArray[np.bool_]:
        """Returns of frames of episodes, each int64 `(n,)`, whether the coded bytes of their GOPs
        wait to be decoded, bool `(n,)`.
        """
        found = np.zeros(len(frames), np.bool_)
        for episode in set(episodes.tolist()):
            number = self._file_of_episode.item(episode)
            try:
                file = self._meter.wait(self._fetcher.open(number), "fetch")
                file.check(episode)
            except LeRobotGrainError:
                continue  # then nothing of it waits
            members = np.flatnonzero(episodes == episode)
            gops = file.gops_of(frames[members] + file.first_frame(episode)).tolist()
            found[members] = [(number, episode, gop) in self._fetcher.gops for gop in gops]
        return found

    def expect(self, block: WindowBlock, entries: Integers) -> None:
        """Asks the system for the frames of a block that lie in the frame cache."""
        if (on_disk := self._gops.on_disk) is None:
            return
        cached = np.flatnonzero(self.demand.slots[entries.reshape(-1)] == CACHED)
        if len(cached):
            on_disk.expect(
                block.episodes[cached // entries.shape[1]], self._window(block).reshape(-1)[cached]
            )

    # Decoding

    def frames_to_decode(
        self, block: WindowBlock, entries: Integers, places: Integers
    ) -> list[DecodeCandidate]:
        """Returns what is to be decoded for a block: of every GOP that it needs, the frames that
        are known to be needed.

        In long GOPs, the frames up to the last one that the block needs.

        Args:
          block: the requests of this source.
          entries: of the frames of this camera, int64 `(examples, time)`.
          places: int64 `(examples,)`, ascending: of the examples among all of the block.
        """
        flat = entries.reshape(-1)
        waiting = np.flatnonzero(self.demand.slots[flat] == NO_SLOT)
        if len(waiting) == 0:
            return []
        is_now = np.zeros(len(self.demand.slots), np.bool_)
        is_now[flat[waiting]] = True
        examples = waiting // entries.shape[1]
        episodes = block.episodes[examples]
        frames = self._window(block).reshape(-1)[waiting]
        numbers = self._file_of_episode[episodes]
        wanted: list[DecodeCandidate] = []
        for number in sorted(set(numbers.tolist())):
            members = numbers == number
            file = self._meter.wait(self._fetcher.open(number), "fetch")
            wanted += self._frames_of_file(
                file, places[examples[members]], episodes[members], frames[members], is_now
            )
        return wanted

    def _frames_of_file(
        self,
        file: VideoFile,
        places: Integers,
        episodes: Integers,
        frames: Integers,
        is_now: npt.NDArray[np.bool_],
    ) -> list[DecodeCandidate]:
        frames = frames + file.first_frames(episodes)
        num_gops = len(file.gop_starts)
        # Places ascend, so the first member of each is its first use.
        distinct, first_members, inverse = np.unique(
            episodes * num_gops + file.gops_of(frames), return_index=True, return_inverse=True
        )
        first_uses = places[first_members].tolist()
        episodes, gops = np.divmod(distinct, num_gops)
        last = np.zeros(len(distinct), np.int64)
        np.maximum.at(last, inverse, frames)
        # All frames of these GOPs that belong to the episode, one GOP after the other.
        first = file.first_frames(episodes)
        starts = np.maximum(file.gop_starts[gops], first)
        lengths = (
            np.minimum(file.gop_starts[gops + 1], first + self._episodes.lengths[episodes]) - starts
        )
        stops = np.cumsum(lengths)
        gop_of = np.repeat(np.arange(len(distinct)), lengths)
        candidates = np.arange(stops[-1]) + (starts - (stops - lengths))[gop_of]
        entries = self.demand.find(
            candidates + (self._episodes.first_rows[episodes] - first)[gop_of]
        )
        needed = np.flatnonzero(
            (self.demand.uses[entries] > 0) & (self.demand.slots[entries] == NO_SLOT)
        )
        candidates = candidates[needed]
        entries = entries[needed]
        gop_of = gop_of[needed]
        bounds = np.searchsorted(gop_of, np.arange(len(distinct) + 1)).tolist()
        now = is_now[entries]
        wanted = []
        for i, (episode, gop) in enumerate(zip(episodes.tolist(), gops.tolist(), strict=True)):
            begin = bounds[i]
            end = bounds[i + 1]
            is_last = True
            if self._fetcher.gops[file.number, episode, gop].is_long:
                last_end = begin + int(
                    np.searchsorted(candidates[begin:end], last[i], side="right")
                )
                end, is_last = last_end, last_end == end
            part = slice(begin, end)
            wanted.append(
                DecodeCandidate(
                    self._gops,
                    GopFrames(file, episode, gop, candidates[part]),
                    entries[part],
                    now[part],
                    first_uses[i],
                    is_last,
                )
            )
        return wanted

    # Dropping

    def droppable(self) -> Integers:
        """Returns the entries of decoded frames that no task is writing, int64 `(n,)`."""
        decoded = np.flatnonzero(self.demand.slots >= 0)
        slots = self.demand.slots[decoded].astype(np.int64)
        return decoded[self.decoder.not_being_written(slots)]

    def drop(self, entries: Integers) -> None:
        """Forgets decoded frames; they are fetched and decoded again when they are needed."""
        self.decoder.give_back(self.demand.slots[entries].astype(np.int64))
        self.demand.slots[entries] = NO_SLOT
        self.demand.is_requested[entries] = False
        self.staying.drop(entries)

    def let_go(self, num_bytes: int) -> int:
        """Forgets frames that stay and that no example is known to need, of so many bytes or all
        that may go; returns the bytes of those that did.
        """
        return self._let_go(self.staying.spare(), -(-num_bytes // self.store.frame_bytes))

    def let_written_go(self) -> None:
        """Forgets frames that wait and lie in the frame cache."""
        if (on_disk := self._gops.on_disk) is not None:
            entries = self.staying.written(on_disk)
            self._let_go(entries, len(entries))

    def _let_go(self, entries: Integers, most: int) -> int:
        slots = self.demand.slots[entries].astype(np.int64)
        entries = entries[self.decoder.not_being_written(slots)][:most]
        self.drop(entries)
        return len(entries) * self.store.frame_bytes

    # Handing out

    def is_done(self, entries: Integers) -> bool:
        """Returns whether `wait` would not wait, entries int64 `(examples, time)`."""
        slots = self.demand.slots[entries]
        return self.decoder.is_done(slots[slots >= 0])

    def wait(self, entries: Integers) -> tuple[int, Exception] | None:
        """Waits for the frames of examples, entries int64 `(examples, time)`.

        Returns:
          `None`, or the first example that could not be read, and why.
        """
        slots = self.demand.slots[entries]
        problems = self.decoder.wait(slots[slots >= 0], self._meter)
        if problems or self._problems_of_entries:
            for example, window in enumerate(zip(entries.tolist(), slots.tolist(), strict=True)):
                for entry, slot in zip(*window, strict=True):
                    problem = (
                        self._problems_of_entries.get(entry)
                        if slot == FAILED
                        else problems.get(slot)
                    )
                    if problem is not None:
                        self._forget_bytes(entry, problem)
                        return example, problem
        return None

    def _forget_bytes(self, entry: int, problem: Exception) -> None:
        """Deletes what is kept on disk of the file of a frame that cannot be decoded: its bytes may
        have been sent wrongly.
        """
        if isinstance(problem, DatasetFormatError):
            episode, _ = self._episodes.place_of(self.demand.rows_of(np.array([entry])).item())
            path = self._episodes.videos[self._camera].files.paths[self._file_of_episode[episode]]
            self._meter.storage.forget(path)

    def copy_frames(self, entries: Integers, out: Frames, places: Integers) -> Integers:
        """Copies the frames of examples, which were waited for. For any thread.

        Args:
          entries: int64 `(examples, time)`.
          out: `(n, ...)`, frames of examples.
          places: int64 `(examples,)`, ascending: which of `out` they are.

        Returns:
          int64 `(lost,)`: entries of those that the frame cache has lost: see `restore`.
        """
        slots = self.demand.slots[entries.reshape(-1)]
        first = places.item(0)
        if self._gops.on_disk is not None and (is_cached := slots == CACHED).any():
            return self._copy_apart(entries, out, places, is_cached)
        if places.item(-1) - first >= len(places):
            # Not next to each other: one by one.
            each = out.reshape(len(out), entries.shape[1], *self.store.frames.shape[1:])
            for place, window in zip(places.tolist(), slots.reshape(entries.shape), strict=True):
                for time, slot in enumerate(window.tolist()):
                    each[place, time] = self.store.frames[slot]
            return _NONE
        # "clip", because "raise" would go through a copy.
        np.take(
            self.store.frames,
            slots,
            axis=0,
            out=out[first : first + len(places)].reshape(len(slots), *self.store.frames.shape[1:]),
            mode="clip",
        )
        return _NONE

    def _copy_apart(
        self, entries: Integers, out: Frames, places: Integers, is_cached: npt.NDArray[np.bool_]
    ) -> Integers:
        """The same where some lie in the frame cache."""
        assert self._gops.on_disk is not None
        time = entries.shape[1]
        each = out.reshape(len(out) * time, *self.store.frames.shape[1:])
        into = (places[:, None] * time + np.arange(time)).reshape(-1)
        flat = entries.reshape(-1)
        slots = self.demand.slots[flat]
        for place in np.flatnonzero(~is_cached).tolist():
            each[into.item(place)] = self.store.frames[slots.item(place)]
        cached = flat[is_cached]
        return cached[self._gops.on_disk.read(self.demand.rows_of(cached), each, into[is_cached])]

    def restore(self, block: WindowBlock, entries: Integers, lost: Integers) -> None:
        """Asks for the coded bytes of frames of a block that the frame cache has lost."""
        # One that stands in the block several times was lost several times.
        lost = lost[self.demand.slots[lost] == CACHED]
        self.demand.slots[lost] = NO_SLOT
        self.demand.is_requested[lost] = False
        self.fetch(block, entries, may_be_on_disk=False)

    def release(self, entries: Integers) -> None:
        """Counts a use of each of the frames; those that are needed no more go."""
        flat = entries.reshape(-1)
        self._meter.count(frames_handed_out=len(flat))
        if self._gops.on_disk is not None:
            self._meter.count(frames_from_cache=int((self.demand.slots[flat] == CACHED).sum()))
        self._give_back(self.demand.use(flat))

    def _give_back(self, slots: Integers) -> None:
        self.decoder.give_back(slots[slots >= 0])

    # Windows

    def _window(self, block: WindowBlock) -> Integers:
        """Returns int64 `(examples, time)`: the frames of the episode that the camera's windows
        consist of, those with names among them.
        """
        return block.frames_of(self._camera)

"""The public front of whole episodes and chunks: one Grain dataset, built from keyword arguments.

ChunkOrderIterDataset      source: the chunks, in the order of `_order/chunks`; its state is the
                           position
EpisodeIterDataset         reads their rows ahead, and hands them out chunk by chunk
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import grain
import numpy as np

from lerobot_grain._base.arguments import check_int
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._base.machine import memory_bytes
from lerobot_grain._datasets.element_specs import (
    IS_TRUE,
    NUMBER,
    chunk_spec,
    example_spec,
    request_spec,
)
from lerobot_grain._datasets.episodes.chunk_order import (
    ChunkOrderIterator,
    ChunkOrderIterDataset,
)
from lerobot_grain._datasets.episodes.selected_chunks import SelectedChunks, select_chunks
from lerobot_grain._datasets.lerobot_dataset import opened_repository
from lerobot_grain._datasets.open_stream import OpenStream
from lerobot_grain._datasets.positions import FollowingIterator, PartOfPositions, check_num_epochs
from lerobot_grain._datasets.read_windows import Reading, ReadWindowsIterator, checked_image_size
from lerobot_grain._datasets.sampling.selected_rows import ValidRowsArgument, WeightsArgument
from lerobot_grain._order.chunks import ChunkCut, ChunkPlaces
from lerobot_grain._order.shuffle import LOOKAHEAD_EXAMPLES, Shuffle
from lerobot_grain._reading.batches import Example, with_arrays_of_strings
from lerobot_grain._reading.frames.frame_reader import load_decoders
from lerobot_grain._reading.options import ReadOptions
from lerobot_grain._repository.opening import warn_of_notes
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import (
    EpisodeSelection,
    FeatureSelection,
    select_features,
)

LastChunk = Literal["pad", "short", "drop"]

EPISODE_KEY = "chunk_episode"
FIRST_FRAME_KEY = "chunk_first_frame"
ENDS_EPISODE_KEY = "chunk_ends_episode"
IS_PAD_KEY = "chunk_is_pad"
IS_VALID_KEY = "chunk_is_valid"
_KEYS = (EPISODE_KEY, FIRST_FRAME_KEY, ENDS_EPISODE_KEY, IS_PAD_KEY, IS_VALID_KEY)


class EpisodeIterDataset(grain.IterDataset[Example]):
    """A LeRobotDataset, streamed as whole episodes, or as chunks of consecutive frames: shuffled,
    sharded, and resumed to the chunk. For sequence models, offline RL, evaluation and conversion.

        for episode in EpisodeIterDataset("lerobot/pusht", num_epochs=1, shuffle=None): ...
        for batch in EpisodeIterDataset("lerobot/pusht", chunk_frames=32).batch(16): ...

    `.map`, `.filter`, `.batch`, `WorkerPrefetchIterDataset` and Grain's checkpoints work on it.

    An element is a flat dict with the keys of the dataset, each with a leading time axis over the
    frames of the chunk: `(time, *shape)`, `(time,)` for features of shape `(1,)`, for strings and
    for `task`; cameras uint8 `(time, height, width, 3)`. The keys that are added:

      chunk_episode: int64, number of the episode.
      chunk_first_frame: int64, frame in the episode of the first frame of the chunk.
      chunk_ends_episode: bool, whether the chunk holds the last selected frame of its episode.
      chunk_is_pad: bool `(time,)`, only with `last_chunk="pad"` and `chunk_frames`: true after the
        end of the episode, where the last frame is repeated.
      chunk_is_valid: bool `(time,)`, only with `valid_rows`: which rows are valid; padding is not.

    Args:
      repository, revision: as of `LeRobotIterDataset`.
      chunk_frames: frames of a chunk, the first one of an episode beginning with its first selected
        frame; `None`: a chunk is a whole episode, of any length. With a multiple of the GOP length
        (`repository.gop_length()`) each frame is decoded once an epoch.
      overlap_frames: frames that a chunk has in common with the next one of its episode; less than
        `chunk_frames`.
      last_chunk: the last chunk of an episode, where it has fewer frames: `"pad"` repeats its last
        frame up to `chunk_frames`, so that all chunks have one length; `"short"` gives the frames
        that there are; `"drop"` leaves it out. Without `chunk_frames` nothing is padded.
      episodes, drop_first_frames, drop_last_frames, features: as of `LeRobotIterDataset`.
      weights: of episodes, as of `LeRobotIterDataset`: how often the chunks of each come relative
        to those of others, those of weight 0 never. An epoch has as many chunks as have a weight
        above 0. Not of single rows, because a chunk has many.
      valid_rows: as of `LeRobotIterDataset`: chunks without a valid row are left out, the others
        get `chunk_is_valid`.
      shuffle: chunks are permuted as wholes, so only its seed may be chosen: `Shuffle(seed=1)`;
        `None`: in the order of episodes and frames; then `weights` can be 0 and one other number.
      num_epochs: the stream ends after this many; `None`: it never does.
      shard_options: shard i of n gets chunks i, i + n, ...; nothing is dropped at the end of an
        epoch. With `drop_remainder` all shards of a finite stream get the same number.
      image_size, read_options, endpoint, token, cache_dir: as of `LeRobotIterDataset`.

    Raises:
      InvalidRequestError: an argument is out of its range, no chunk is left, a selected feature has
        one of the keys that are added, or the frames of the longest chunk take more than half of
        the memory that this process may use.
      DatasetFormatError, StorageError: as of `LeRobotIterDataset`.

    The reader keeps to its memory budget, however long a chunk is; the chunks that are handed out
    come on top of it, the one that is used and the next one.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str] | Repository,
        *,
        revision: str | None = None,
        chunk_frames: int | None = None,
        overlap_frames: int = 0,
        last_chunk: LastChunk = "pad",
        episodes: EpisodeSelection = None,
        drop_first_frames: int = 0,
        drop_last_frames: int = 0,
        weights: WeightsArgument = None,
        valid_rows: ValidRowsArgument = None,
        features: Iterable[str] | None = None,
        shuffle: Shuffle | None = Shuffle(),  # noqa: B008 (a frozen value)
        num_epochs: int | None = None,
        shard_options: grain.sharding.ShardOptions = grain.sharding.NoSharding(),  # noqa: B008 (a frozen value)
        image_size: tuple[int, int] | None = None,
        read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
        endpoint: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        cut = _checked_cut(chunk_frames, overlap_frames, last_chunk)
        seed = _checked_seed(shuffle)
        opened = opened_repository(repository, revision, endpoint, token, cache_dir, read_options)
        selection = _checked_selection(select_features(opened, features))
        if opened is not repository:
            warn_of_notes(opened)
        chunks = select_chunks(
            opened,
            cut,
            episodes=episodes,
            dropped=(drop_first_frames, drop_last_frames),
            weights=weights,
            valid_rows=valid_rows,
            seed=seed,
            padded_to=chunk_frames if last_chunk == "pad" else None,
        )
        order = ChunkOrderIterDataset(
            chunks,
            _part_of_epochs(num_epochs, chunks.order.num_chunks, shard_options),
            num_episodes=opened.episodes.num_episodes,
            end=None if num_epochs is None else f"num_epochs={num_epochs}",
        )
        super().__init__(order)
        self._repository = opened
        self._shuffle = shuffle
        self._frames_of_all = None if last_chunk == "short" else chunk_frames
        self._reading = Reading(
            repository=opened,
            selection=selection,
            image_size=checked_image_size(image_size),
            options=read_options,
            known_examples=chunks.most_rows + LOOKAHEAD_EXAMPLES,
            pad_keys={},
        )
        _check_memory(self._reading, chunks.most_rows)
        # Now, so that what is not installed is said here.
        load_decoders(selection.videos)

    @property
    def repository(self) -> Repository:
        """The opened dataset: features, episodes, tasks, statistics."""
        return self._repository

    @property
    def num_chunks(self) -> int:
        """Chunks, and so elements, of one epoch, over all shards: with weights, as many as have one
        above 0.
        """
        return self._order.chunks.order.num_chunks

    @property
    def shuffle(self) -> Shuffle | None:
        """The shuffle, of which the seed counts; `None`: the chunks are in order."""
        return self._shuffle

    @property
    def notes(self) -> tuple[str, ...]:
        """Irregularities of the dataset that were repaired, or that do not change the values that
        are read: `Repository.notes`.
        """
        return self._repository.notes

    @property
    def _order(self) -> ChunkOrderIterDataset:
        order: ChunkOrderIterDataset = self._parent
        return order

    @property
    def _element_spec(self) -> dict[str, Any]:
        reading = self._reading
        example = example_spec(
            request_spec({}, {}, {}), reading.selection, image_size=reading.image_size, pad_keys={}
        )
        spec = chunk_spec(example, self._frames_of_all)
        spec |= {EPISODE_KEY: NUMBER, FIRST_FRAME_KEY: NUMBER, ENDS_EPISODE_KEY: IS_TRUE}
        if self._order.chunks.padded_to is not None:
            spec |= chunk_spec({IS_PAD_KEY: IS_TRUE}, self._frames_of_all)
        if self._order.chunks.valid is not None:
            spec |= chunk_spec({IS_VALID_KEY: IS_TRUE}, self._frames_of_all)
        return spec

    def __iter__(self) -> grain.DatasetIterator[Example]:
        name = str(self)
        rows = ReadWindowsIterator(self._order.__iter__(), _ReadChunks(self._reading), name=name)
        return _ChunkIterator(
            rows,
            self._order.chunks,
            self._order.part,
            numbers=self._repository.episodes.numbers_of(self._order.chunks.episodes),
        )

    def __str__(self) -> str:
        return f"EpisodeIterDataset({self._repository.description})"


@dataclass(frozen=True, slots=True)
class _ReadChunks:
    """Opens a stream of the rows of chunks."""

    reading: Reading

    def open(self, parent: ChunkOrderIterator) -> OpenStream:
        return self.reading.open_blocks(parent, parent.get_state())


class _ChunkIterator(FollowingIterator[Example]):
    """Hands out what is read of rows chunk by chunk.

    Args:
      rows: of the chunks. Nobody else takes of it.
      chunks: the chunks, and their order.
      part: which of them `rows` reads.
      numbers: int64 `(n,)`, of the selected episodes.
    """

    def __init__(
        self,
        rows: ReadWindowsIterator,
        chunks: SelectedChunks,
        part: PartOfPositions,
        *,
        numbers: np.ndarray[Any, np.dtype[np.int64]],
    ) -> None:
        super().__init__(rows)
        self._chunks = chunks
        self._start = part.start
        self._numbers = numbers
        self._places = ChunkPlaces(chunks.order)

    def __next__(self) -> Example:
        rows: ReadWindowsIterator = self._parent
        return rows.hand_out(self._take, self._stats)

    def _take(self, stream: OpenStream) -> tuple[Example, int]:
        """Returns the next chunk, and how many rows were taken for it."""
        # The state is that after the chunks that were handed out: the next one follows from it.
        position = stream.state()["position"] + self._start
        chunk = self._places.chunks(np.array([position]))
        count = self._chunks.num_rows(chunk).item(0)
        found = with_arrays_of_strings(stream.take_batch(count))
        first_row = chunk.first_rows.item(0)
        episode = chunk.episodes.item(0)
        of_table = self._chunks.episodes.item(episode)
        found[EPISODE_KEY] = self._numbers[episode]
        found[FIRST_FRAME_KEY] = np.int64(first_row - self._chunks.first_rows.item(of_table))
        found[ENDS_EPISODE_KEY] = chunk.are_last[0]
        frames = np.arange(count)
        is_pad = frames >= chunk.lengths.item(0)
        if self._chunks.padded_to is not None:
            found[IS_PAD_KEY] = is_pad
        if self._chunks.valid is not None:
            rows = first_row + np.where(is_pad, 0, frames)
            found[IS_VALID_KEY] = self._chunks.are_valid(episode, rows) & ~is_pad
        return found, count

    def __str__(self) -> str:
        return str(self._parent)


def _part_of_epochs(
    num_epochs: int | None, num_chunks: int, shard_options: grain.sharding.ShardOptions
) -> PartOfPositions:
    if num_epochs is None:
        return PartOfPositions.of_shard(None, shard_options)
    check_num_epochs(num_epochs)
    return PartOfPositions.of_shard(num_epochs * num_chunks, shard_options)


def _checked_cut(chunk_frames: int | None, overlap_frames: int, last_chunk: str) -> ChunkCut:
    if chunk_frames is not None:
        check_int("chunk_frames", chunk_frames, least=1, otherwise=", or None for whole episodes")
    check_int("overlap_frames", overlap_frames, least=0)
    if overlap_frames >= (1 if chunk_frames is None else chunk_frames):
        raise InvalidRequestError(
            f"overlap_frames={overlap_frames}: "
            + (
                "whole episodes do not overlap; give chunk_frames, too"
                if chunk_frames is None
                else f"expected less than chunk_frames, {chunk_frames}"
            )
        )
    if last_chunk not in ("pad", "short", "drop"):
        raise InvalidRequestError(f"last_chunk={last_chunk!r}: expected 'pad', 'short' or 'drop'")
    return ChunkCut(chunk_frames, overlap_frames, last_chunk == "drop")


def _checked_seed(shuffle: Shuffle | None) -> int | None:
    if shuffle is None:
        return None
    if not isinstance(shuffle, Shuffle) or replace(shuffle, seed=0) != Shuffle():
        raise InvalidRequestError(
            f"shuffle={shuffle!r}: chunks are permuted as wholes, so only the seed may be chosen; "
            f"expected Shuffle(seed={getattr(shuffle, 'seed', 0)}), or None"
        )
    return shuffle.seed


def _checked_selection(selection: FeatureSelection) -> FeatureSelection:
    if taken := [key for key in _KEYS if key in selection.keys]:
        raise InvalidRequestError(
            f"features: the dataset has a feature {taken[0]!r}, a key that chunks get; leave it "
            "out of features=[...]"
        )
    return selection


def _check_memory(reading: Reading, num_frames: int) -> None:
    """Refuses chunks whose frames do not fit into memory.

    Two are there at a time: the one that the consumer has, and the next one, which is filled.
    """
    selection = reading.selection
    frame_bytes = 0
    for camera in (*selection.videos, *selection.columns):
        if not camera.is_camera:
            continue
        height, width = reading.image_size or camera.shape[:2]
        item_bytes = np.dtype(camera.frame_dtype).itemsize
        frame_bytes += height * width * camera.num_channels * item_bytes
    needed = num_frames * frame_bytes
    limit = memory_bytes()
    if limit is not None and 2 * needed > limit:
        raise InvalidRequestError(
            f"EpisodeIterDataset: the longest chunk has {num_frames} frames, which take "
            f"{needed} bytes with all cameras; expected at most half of the memory that this "
            f"process may use, {limit // 2}. Read it in shorter chunks with chunk_frames=, smaller "
            "with image_size=, or fewer cameras with features="
        )

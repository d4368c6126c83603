"""The public front: a LeRobotDataset as one Grain dataset, built from keyword arguments.

    FrameOrderIterDataset              source: yields rows in the order of `_order`; its state is
                                       the position
        .map(DeltaTimestamps(...))     row -> WindowRequest, 1:1, so slicing the source never tears
                                       a window
        ReadWindowsIterDataset         WindowRequest -> example; pulls its parent ahead, yields in
                                       order
    LeRobotIterDataset                 builds the three

It also decides how far ahead the reader must know the order, so that each GOP is decoded once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.delta_timestamps import DeltaTimestamps, OrderedWindowsIterDataset
from lerobot_grain._datasets.frame_order import FrameOrderIterDataset
from lerobot_grain._datasets.read_windows import ReadWindowsIterDataset
from lerobot_grain._datasets.sampling.selected_rows import ValidRowsArgument, WeightsArgument
from lerobot_grain._order.named_windows import Window, check_windows
from lerobot_grain._order.seconds import TOLERANCE_SECONDS
from lerobot_grain._order.shuffle import Shuffle, lookahead_examples
from lerobot_grain._reading.options import ReadOptions
from lerobot_grain._repository.opening import open_leniently, warn_of_notes
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.row_values import ValidRows
from lerobot_grain._repository.selection import (
    EpisodeSelection,
    FeatureSelection,
    select_features,
)


class LeRobotIterDataset(ReadWindowsIterDataset):
    """A LeRobotDataset, streamed as a shuffled, windowed, exactly resumable Grain dataset of
    examples.

        chunk = {"action": [i / 10 for i in range(16)]}
        dataset = LeRobotIterDataset("lerobot/pusht", delta_timestamps=chunk)
        for batch in dataset.batch(64): ...

    `.map`, `.filter`, `.batch`, `grain.IterDataset.mix`, `mp_prefetch` and Grain's checkpoints work
    on it. An example: `ReadWindowsIterDataset`.

    Args:
      repository: `org/name` on the Hub or `org/name/folder`, `hf://buckets/org/name/folder`, a
        directory, or an opened `Repository`.
      revision: branch, tag or commit; by default the newest tag or branch `v3.x`, `v2.1` or `v2.0`,
        and `main` where there is none.
      episodes: numbers of episodes, a slice of all in the order of their numbers, the name of a
        split of info.json, or a function of an `Episode` that says whether it is selected, which is
        called now; `None`: all. Their order does not matter.
      drop_first_frames, drop_last_frames: so many rows at the start and the end of every episode
        are left out; windows still reach them. Episodes that have no other rows are left out.
      weights: how often rows come relative to each other, those of weight 0 never: as
        `Weights.values`, or a `Weights`. An epoch has as many rows as have a weight above 0.
      valid_rows: rows that are not valid are left out: as `ValidRows.values`, or a `ValidRows`,
        which also says whether windows reach them.
      stride: of each episode only every so many-th frame comes in an epoch, and the frames between
        them in the next ones: 3 reads 30 fps as 10. At most the length of the longest episode; not
        with `weights` or `valid_rows`.
      features: keys to read, among them `task`; `None`: all. A camera that is not read costs no
        byte.
      delta_timestamps: feature key -> distances in seconds from the row of the example.
      windows: name -> `Window`: values of features at other frames, under that name next to those
        of the row: a goal drawn from the future of the episode, or frames before it.
      pad_keys: feature key, or name of a window -> key of its mask in examples, in place of
        `{key}_is_pad`: for datasets with a feature of that name, such as `action_is_pad`.
      shuffle: `None`: sequential, episode by episode; then `weights` can be 0 and one other number.
      num_epochs: the stream ends after this many; `None`: it never does.
      shard_options: which shard of the stream; `grain.sharding.ShardByJaxProcess()` for one shard a
        host.
      image_size: (height, width) that all cameras are resized to, depth by its nearest pixels, or
        `None`.
      read_options: memory and threads, and connections where this opens the repository.
      tolerance_seconds: a delta may be off a whole number of frames by this much.
      endpoint, token, cache_dir: as for `open_repository`.

    Raises:
      InvalidRequestError: an argument is out of its range, or asks for what the dataset does not
        have; the mask of a window would have the key of a feature that is selected, or of another
        mask.
      DatasetFormatError: it is not a LeRobotDataset v2.0, v2.1 or v3.x, or is malformed. A feature
        or a table of texts that cannot be read is an error where it is selected.
      StorageError: missing, private or gated repository, wrong revision, or the Hub could not be
        reached.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str] | Repository,
        *,
        revision: str | None = None,
        episodes: EpisodeSelection = None,
        drop_first_frames: int = 0,
        drop_last_frames: int = 0,
        weights: WeightsArgument = None,
        valid_rows: ValidRowsArgument = None,
        stride: int = 1,
        features: Iterable[str] | None = None,
        delta_timestamps: Mapping[str, Sequence[float]] | None = None,
        windows: Mapping[str, Window] | None = None,
        pad_keys: Mapping[str, str] | None = None,
        shuffle: Shuffle | None = Shuffle(),  # noqa: B008 (a frozen value)
        num_epochs: int | None = None,
        shard_options: grain.sharding.ShardOptions = grain.sharding.NoSharding(),  # noqa: B008 (a frozen value)
        image_size: tuple[int, int] | None = None,
        read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
        tolerance_seconds: float = TOLERANCE_SECONDS,
        endpoint: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        opened = opened_repository(repository, revision, endpoint, token, cache_dir, read_options)
        selection = select_features(opened, features)
        if opened is not repository:
            warn_of_notes(opened)
        check_are_read(delta_timestamps or {}, windows or {}, opened, selection)
        order = FrameOrderIterDataset(
            opened,
            episodes=episodes,
            drop_first_frames=drop_first_frames,
            drop_last_frames=drop_last_frames,
            weights=weights,
            valid_rows=valid_rows,
            stride=stride,
            shuffle=shuffle,
            num_epochs=num_epochs,
            shard_options=shard_options,
        )
        transformation = DeltaTimestamps(
            opened,
            delta_timestamps,
            tolerance_seconds=tolerance_seconds,
            valid_rows=_in_windows(valid_rows, order),
            windows=windows,
            seed=order.draw_seed,
        )
        super().__init__(
            OrderedWindowsIterDataset(order, transformation),
            opened,
            features=selection.keys,
            image_size=image_size,
            read_options=read_options,
            pad_keys=pad_keys,
            known_examples=lookahead_examples(order.shuffle),
        )
        self._order = order

    @property
    def repository(self) -> Repository:
        """The opened dataset: features, episodes, tasks, statistics."""
        return self._repository

    @property
    def num_rows(self) -> int:
        """Rows, and so examples, of one epoch, over all shards: with weights, those that have one
        above 0; with a stride, of as many epochs as it has frames.
        """
        return self._order.num_rows

    @property
    def shuffle(self) -> Shuffle | None:
        """The shuffle, with the `clip_length` that is used."""
        return self._order.shuffle

    @property
    def notes(self) -> tuple[str, ...]:
        """Irregularities of the dataset that were repaired, or that do not change the values that
        are read: `Repository.notes`.
        """
        return self._repository.notes

    def __str__(self) -> str:
        return f"LeRobotIterDataset({self._repository.description})"


def check_are_read(
    delta_timestamps: Mapping[str, Sequence[float]],
    windows: Mapping[str, Window],
    repository: Repository,
    selection: FeatureSelection,
) -> None:
    """Checks that windows are of features that are read."""
    read = [feature.key for feature in selection.columns + selection.videos]
    if unread := [key for key in delta_timestamps if key not in read]:
        raise InvalidRequestError(
            f"delta_timestamps[{unread[0]!r}]: "
            + (
                "it is not among features="
                if unread[0] in repository.features
                else "there is no such feature; those that are read: "
            )
            + ", ".join(read)
        )
    check_windows(windows, read)


def _in_windows(
    valid_rows: ValidRowsArgument, order: FrameOrderIterDataset
) -> npt.NDArray[Any] | None:
    """Returns which rows, or episodes, windows may reach; `None`: all."""
    if not (isinstance(valid_rows, ValidRows) and valid_rows.pad_windows):
        return None
    assert order.valid_rows is not None
    return order.valid_rows.values


def opened_repository(
    repository: str | os.PathLike[str] | Repository,
    revision: str | None,
    endpoint: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    read_options: ReadOptions,
) -> Repository:
    """Returns the repository that was given, or the one that was named."""
    if not isinstance(repository, Repository):
        return open_leniently(
            repository,
            revision=revision,
            endpoint=endpoint,
            token=token,
            cache_dir=cache_dir,
            storage_options=read_options.storage,
        )
    if not (revision is endpoint is token is cache_dir is None):
        raise InvalidRequestError(
            "revision, endpoint, token and cache_dir belong to open_repository; the repository "
            "given is open already"
        )
    return repository

"""The Grain source of rows in the order of `_order`, sharded, sliced and resumed by one number.

Rules, most of them forced by Grain 0.2.18:
* Iterators do no I/O: Grain makes them, and asks for their states, in processes that will never
  read.
* `get_state` returns a fresh dict of plain ints and strings that holds nothing of the shard: it is
  the same on every host and worker.
* `set_state` compares first (`_datasets/state`) and changes nothing when something differs.
* Epochs are counted inside: `RepeatIterDataset` would repeat one order, and loses data above
  `mp_prefetch`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_int, check_opened
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.element_specs import NUMBER
from lerobot_grain._datasets.positions import (
    OneOrderIterator,
    PartOfPositions,
    PositionsIterDataset,
    are_needed_every_epoch,
    check_num_epochs,
)
from lerobot_grain._datasets.sampling.selected_rows import (
    SelectedRows,
    ValidRowsArgument,
    WeightsArgument,
    check_weights_of_order,
    select_rows,
)
from lerobot_grain._order.sampling.strided_rows import Stride
from lerobot_grain._order.shuffle import (
    EpochOrder,
    FrameOrder,
    Shuffle,
    default_clip_length,
)
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.row_values import RowValues
from lerobot_grain._repository.selection import EpisodeSelection

# Positions whose rows are computed at a time: a microsecond each, where one by one they take 100.
_POSITIONS_AT_A_TIME = 1024


class FrameOrderIterDataset(PositionsIterDataset):
    """The rows of a dataset, as ints, in a shuffled or sequential order that is resumed exactly.

    Args:
      repository: an opened dataset.
      episodes: numbers of episodes, a slice of all in the order of their numbers, the name of a
        split of info.json, or a function of an `Episode` that says whether it is selected, which is
        called now; `None`: all. Their order does not matter.
      drop_first_frames, drop_last_frames: so many rows at the start and the end of every episode
        are left out; windows still reach them. Episodes that have no other rows are left out.
      weights: how often rows come relative to each other, those of weight 0 never: as
        `Weights.values`, or a `Weights`. An epoch has as many rows as have a weight above 0.
      valid_rows: rows that are not valid are left out: as `ValidRows.values`, or a `ValidRows`,
        whose `pad_windows` is for `DeltaTimestamps`.
      stride: of each episode only every so many-th frame comes in an epoch, and the frames between
        them in the next ones: 3 reads 30 fps as 10. At most the length of the longest episode; not
        with `weights` or `valid_rows`.
      shuffle: `None`: sequential, episode by episode; then `weights` can be 0 and one other number.
      num_epochs: the stream ends after this many; `None`: it never does.
      shard_options: shard i of n gets positions i, i + n, ...; nothing is dropped at the end of an
        epoch. With `drop_remainder` all shards of a finite stream get the same number of rows.
      with_positions: yields pairs (row, position) in place of rows: what `DeltaTimestamps` needs to
        draw frames.

    Raises:
      InvalidRequestError: an argument is out of its range.
      DatasetFormatError, StorageError: `clip_length` is to be found from the video, which cannot be
        read.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        episodes: EpisodeSelection = None,
        drop_first_frames: int = 0,
        drop_last_frames: int = 0,
        weights: WeightsArgument = None,
        valid_rows: ValidRowsArgument = None,
        stride: int = 1,
        shuffle: Shuffle | None = Shuffle(),  # noqa: B008 (a frozen value)
        num_epochs: int | None = None,
        shard_options: grain.sharding.ShardOptions = grain.sharding.NoSharding(),  # noqa: B008 (a frozen value)
        with_positions: bool = False,
    ) -> None:
        check_opened(repository, of="FrameOrderIterDataset")
        check_num_epochs(num_epochs)
        if shuffle is not None and shuffle.clip_length is None:
            shuffle = replace(shuffle, clip_length=default_clip_length(repository.gop_length()))
        rows = self._rows = select_rows(
            repository,
            episodes=episodes,
            dropped=(drop_first_frames, drop_last_frames),
            weights=weights,
            valid_rows=valid_rows,
        )
        check_weights_of_order(rows.weights, is_shuffled=shuffle is not None)
        table = repository.episodes
        numbers = table.numbers_of(rows.episodes)
        order = FrameOrder(
            first_rows=rows.first_rows,
            lengths=rows.lengths,
            data_files=table.data.file_of_episode[rows.episodes],
            shuffle=shuffle,
            weights=rows.weights,
            stride=_checked_stride(stride, rows, numbers, shuffle),
        )
        self._num_episodes = table.num_episodes
        self._num_epochs = num_epochs
        self._with_positions = with_positions
        self.order = OrderWithIdentity(
            order,
            {
                "commit": commit_of(repository),
                "episodes": hash_of_episodes(numbers, rows.lengths, drop_first_frames),
                **({} if rows.weights is None else {"weights": rows.weights.digest}),
                **({} if stride == 1 else {"stride": stride}),
                "num_rows": order.num_rows,
                **_shuffle_state(shuffle),
            },
        )
        super().__init__(
            PartOfPositions.of_shard(
                None if num_epochs is None else order.start_of(num_epochs), shard_options
            ),
            end=None if num_epochs is None else f"num_epochs={num_epochs}",
        )

    @property
    def num_rows(self) -> int:
        """Rows of one epoch, over all shards: with weights, those that have one above 0; with a
        stride, of as many epochs as it has frames.
        """
        return self.order.rows.num_rows

    @property
    def num_epochs(self) -> int | None:
        """The stream ends after this many; `None`: it never does."""
        return self._num_epochs

    @property
    def shuffle(self) -> Shuffle | None:
        """The shuffle, with the `clip_length` that is used."""
        return self.order.rows.shuffle

    @property
    def selected_rows(self) -> SelectedRows:
        """Which rows it has, and how often they come."""
        return self._rows

    @property
    def draw_seed(self) -> int:
        """The seed of what is drawn at its positions: that of the shuffle, 0 without one."""
        shuffle = self.order.rows.shuffle
        return 0 if shuffle is None else shuffle.seed

    @property
    def valid_rows(self) -> RowValues | None:
        """Which rows are valid; `None`: nothing is said of it."""
        return self._rows.valid

    @property
    def needed_every_epoch(self) -> npt.NDArray[np.bool_]:
        """Bool `(episodes,)`: of which episodes this shard, or slice, needs something in every
        epoch.

        Without shards of all that are selected; else of those with so many clips that no more than
        one in twenty goes without.
        """
        return self.needed_every_epoch_of(self.part.step)

    def needed_every_epoch_of(self, step: int) -> npt.NDArray[np.bool_]:
        """Returns the same where one in `step` rows is taken."""
        found = np.zeros(self._num_episodes, np.bool_)
        counts = self.order.rows.clips_every_epoch()
        found[self._rows.episodes] = are_needed_every_epoch(counts, step=step)
        return found

    def __iter__(self) -> FrameOrderIterator:
        return FrameOrderIterator(
            self.order, self.part, with_positions=self._with_positions, name=str(self)
        )

    @property
    def _element_spec(self) -> Any:
        return (NUMBER, NUMBER) if self._with_positions else NUMBER

    def __str__(self) -> str:
        return f"FrameOrderIterDataset({self.num_rows} rows)"


@dataclass(frozen=True, slots=True)
class OrderWithIdentity:
    """An order of rows, and what a state says of it.

    Attributes:
      rows: the order.
      identity: what a state says of the stream besides the position.
    """

    rows: FrameOrder
    identity: dict[str, Any]


class FrameOrderIterator(OneOrderIterator):
    """Yields rows, or pairs (row, position), one by one; or rows some at a time."""

    def __init__(
        self,
        order: OrderWithIdentity,
        part: PartOfPositions,
        *,
        with_positions: bool,
        name: str,
    ) -> None:
        super().__init__(part, identity=order.identity, name=name)
        self._with_positions = with_positions
        self._rows = order.rows
        self._epoch: tuple[int, EpochOrder] | None = None
        # Rows that were computed, and how many elements were handed out before the first of them.
        # Assigned in one step, as `_handed_out` is: wherever an exception of a signal handler
        # strikes, both are right.
        self._computed: tuple[int, npt.NDArray[np.int64]] = (0, np.empty(0, np.int64))

    def __next__(self) -> Any:
        self._assert_not_closed()
        before = self._handed_out
        try:
            with self._stats.record_self_time():
                position = self.next_position
                row = int(self.next_rows(1)[0])
                return (row, position) if self._with_positions else row
        except BaseException:
            self._handed_out = before
            raise

    @property
    def next_position(self) -> int:
        """The position of the row that comes next, if there is one."""
        return self._base + self._part.start + self._handed_out * self._part.step

    def next_rows(self, count: int) -> npt.NDArray[np.int64]:
        """Returns the next 1 to `count` rows, int64 `(n,)`, read-only: fewer where they are
        computed in another piece.

        Raises:
          StopIteration: there are no more.
        """
        first, computed = self._computed
        if not 0 <= self._handed_out - first < len(computed):
            self._computed = first, computed = self._handed_out, self._compute_rows()
        rows = computed[self._handed_out - first :][:count]
        self._handed_out += len(rows)
        return rows

    def _compute_rows(self) -> npt.NDArray[np.int64]:
        """Returns the next rows of this shard, up to the end of an epoch, from the position
        alone.
        """
        part = self._part
        rows = self._rows
        positions = part.next_positions(
            base=self._base, handed_out=self._handed_out, count=_POSITIONS_AT_A_TIME
        )
        epochs, elements = rows.places_of(positions)
        epoch = epochs.item(0)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, rows.epoch(epoch)
        return self._epoch[1].rows(elements[epochs == epoch])

    def set_state(self, state: dict[str, Any]) -> None:
        # Also where the state is refused: then they are computed again.
        self._computed = (0, self._computed[1][:0])
        super().set_state(state)


def _checked_stride(
    stride: int, rows: SelectedRows, numbers: npt.NDArray[np.int64], shuffle: Shuffle | None
) -> Stride | None:
    check_int("stride", stride, least=1)
    if stride == 1:
        return None
    if rows.weights is not None:
        raise InvalidRequestError(
            f"stride={stride}: not together with weights or rows that are not valid; expected one "
            "of them. Rows can be left out by stride with weights of 0 and 1"
        )
    if stride > (longest := int(rows.lengths.max())):
        raise InvalidRequestError(
            f"stride={stride}: the longest selected episode has {longest} rows; expected at most "
            "that"
        )
    return Stride.of(
        stride,
        numbers,
        first_frame=rows.first_frame,
        seed=None if shuffle is None else shuffle.seed,
    )


def commit_of(repository: Repository) -> str:
    """Returns what a state calls the commit."""
    # Datasets in folders of one repository share its commit.
    return f"{repository.commit}/{repository.folder}".rstrip("/")


def hash_of_episodes(
    episodes: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], first_frame: int
) -> str:
    """Returns what a state says of the selected episodes: their numbers, the selected rows of each,
    and the first selected frame of all.
    """
    # The hash of the numbers as little-endian 64-bit integers, so that it is the same on every
    # machine. A first frame of 0, the usual one, adds nothing; rows of the same lengths that begin
    # elsewhere are others.
    numbers = np.concatenate((episodes, lengths, np.full(1 if first_frame else 0, first_frame)))
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()[:16]


def _shuffle_state(shuffle: Shuffle | None) -> dict[str, Any]:
    names = ("seed", "clip_length", "num_parts", "buffer_size", "open_files")
    # The sequential order depends on none of them; the keys of a state are always the same.
    return {
        "shuffled": int(shuffle is not None),
        **{name: -1 if shuffle is None else (getattr(shuffle, name) or 0) for name in names},
    }

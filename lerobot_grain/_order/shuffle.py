"""The order of the stream: (seed, position) -> row, computed and never buffered.

The stream is one endless sequence of rows, numbered by its *position* over all epochs: with N
selected rows, position g is element g % N of the order of epoch g // N, and the order of an epoch
holds every selected row exactly once; with weights or a stride, `_order/sampling/weighted_rows` and
`_order/sampling/strided_rows` say which rows it holds. It is made like this
(docs/architecture/order.md defines it):

1. cut every selected episode into clips of `clip_length` frames (the last one shorter);
2. permute the clips, keyed by (seed, epoch); with `open_files=n` permute the data files, and do the
   rest for n files at a time;
3. cut the rows, in that order, into V parts of equal length; the first (rows % V) parts have one
   row more. V is `num_parts`, halved until there are at least 2 clips a part;
4. inside each part, permute blocks of `buffer_size // V` rows; the first block of part v is
   shortened by the fraction v / V, so that the parts change blocks at different times and the load
   is even;
5. deal the parts out in turn: element p is element p // V of part p % V.

Rules:
* A position is found without replaying the ones before it. Setting up an epoch costs one sort of
  its clips.
* All randomness is that of `_order/philox`.
* People hold checkpoints of this order, so it cannot change; `ORDER_VERSION` is in every state, and
  the tests hold a golden order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lerobot_grain._base.arguments import check_int, check_seed
from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.philox import Stream, permutation
from lerobot_grain._order.row_sources import EveryRow, RankedRows, RowSource, Runs
from lerobot_grain._order.sampling.strided_rows import Stride, StridedRows
from lerobot_grain._order.sampling.weighted_rows import WeightedRows
from lerobot_grain._order.sampling.weights import RowWeights

ORDER_VERSION = 1

# Rows of longer GOPs are not all known in time; they are decoded more than once.
LONG_GOP = 64
# Rows beyond the shuffle's buffer that a reader knows ahead.
LOOKAHEAD_EXAMPLES = 512
# Clips that are shorter mix better but cost more requests.
_DEFAULT_CLIP_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Shuffle:
    """How the order of an epoch is shuffled.

    Attributes:
      seed: 0 <= seed < 2**64. Another seed is another order.
      buffer_size: rows that are mixed at a time, over all parts. Rows of one clip are spread over
        about this many positions.
      clip_length: frames of one episode that are read together. `None`: the smallest multiple of
        the dataset's GOP length that is at least 16, so that no frame is decoded for two clips;
        16 where there is no video.
      num_parts: places of the epoch that are read side by side: examples that follow each other
        come from this many episodes.
      open_files: `None`, or: finish this many data files before the next ones are begun, for
        datasets whose files are costly to open. Mixes less.

    Raises:
      InvalidRequestError: a value is out of its range.
    """

    seed: int = 0
    buffer_size: int = 1024
    clip_length: int | None = None
    num_parts: int = 64
    open_files: int | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed, of="Shuffle")
        for name in ("buffer_size", "clip_length", "num_parts", "open_files"):
            value = getattr(self, name)
            optional = name in ("clip_length", "open_files")
            if not (optional and value is None):
                check_int(
                    name, value, least=1, of="Shuffle", otherwise=" or None" if optional else ""
                )

    def shared_by(self, num_streams: int) -> Shuffle:
        """Returns the shuffle of one of so many streams that are mixed, so that all together mix as
        many rows at a time as one with this shuffle.

        Buffer and parts are divided by the power of two that is at least their number.

        Raises:
          InvalidRequestError: it is not an int >= 1.
        """
        check_int("num_streams", num_streams, least=1, of="Shuffle.shared_by")
        part = 1 << (num_streams - 1).bit_length()
        return replace(
            self,
            buffer_size=max(1, self.buffer_size // part),
            num_parts=max(1, self.num_parts // part),
        )


class FrameOrder:
    """The order of a selection of episodes: an immutable value.

    Args:
      first_rows: int64 `(episodes,)`, the first selected row of each selected episode.
      lengths: int64 `(episodes,)`, selected rows of each, > 0.
      data_files: int64 `(episodes,)`, number of the data file of each; only used with
        `shuffle.open_files`.
      shuffle: with `clip_length` filled in; `None` is the sequential order, the episodes as given.
      weights: of the selected rows; without a shuffle, a mask. `None`: every row comes once.
      stride: `None`: 1; else there are no weights.
    """

    def __init__(
        self,
        *,
        first_rows: Integers,
        lengths: Integers,
        data_files: Integers,
        shuffle: Shuffle | None,
        weights: RowWeights | None,
        stride: Stride | None,
    ) -> None:
        assert shuffle is None or shuffle.clip_length is not None
        assert weights is None or stride is None
        self.shuffle = shuffle
        self._data_files = data_files
        clip_length = None if shuffle is None else shuffle.clip_length
        self._source: RowSource
        if weights is not None:
            self._source = WeightedRows(
                first_rows,
                lengths,
                weights=weights,
                clip_length=clip_length,
                seed=0 if shuffle is None else shuffle.seed,
            )
        elif stride is not None:
            self._source = StridedRows(first_rows, lengths, stride=stride, clip_length=clip_length)
        else:
            self._source = EveryRow(first_rows, lengths, clip_length=clip_length)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch; with a stride, of as many epochs as it has frames."""
        return self._source.num_rows

    def start_of(self, epoch: int) -> int:
        """Returns the position at which an epoch begins."""
        return self._source.start_of(epoch)

    def places_of(self, positions: Integers) -> tuple[Integers, Integers]:
        """Returns of positions, int64 `(n,)`, the epoch, and the element in it, int64 `(n,)`
        each.
        """
        return self._source.places_of(positions)

    def clips_every_epoch(self) -> Integers:
        """Returns int64 `(episodes,)`: the number of clips of each selected episode that come in
        every epoch; of the sequential order, whether it comes.
        """
        return self._source.runs_every_epoch()

    def epoch(self, number: int) -> EpochOrder:
        """Returns the order of one epoch.

        Costs a sort of its clips; keep it while positions of the same epoch are asked for.
        """
        runs = self._source.runs(number)
        if self.shuffle is None:
            return _SequentialEpoch(runs)
        return _ShuffledEpoch(runs, self._data_files, self.shuffle, number)


class EpochOrder:
    """The order of one epoch: element p, 0 <= p < number of its rows, -> row."""

    def rows(self, elements: Integers) -> Integers:
        """Returns int64 `(n,)`: the rows at `elements`, int64 `(n,)`, each of the epoch, in any
        order.
        """
        raise NotImplementedError


class _SequentialEpoch(EpochOrder):
    def __init__(self, runs: Runs) -> None:
        self._rows = RankedRows(runs)

    def rows(self, elements: Integers) -> Integers:
        return self._rows.rows(elements)


class _ShuffledEpoch(EpochOrder):
    def __init__(self, clips: Runs, data_files: Integers, shuffle: Shuffle, epoch: int) -> None:
        groups = [clips]
        if shuffle.open_files is not None:
            members = _group_by_files(data_files[clips.episodes], shuffle, epoch)
            groups = [clips.chosen(numbers) for numbers in members]
        self._groups = [
            _Group(group, shuffle=shuffle, epoch=epoch, number=number)
            for number, group in enumerate(groups)
        ]
        self._group_starts = np.cumsum([0] + [group.num_rows for group in self._groups])

    def rows(self, elements: Integers) -> Integers:
        if len(self._groups) == 1:
            return self._groups[0].rows(elements)
        result = np.empty(len(elements), np.int64)
        numbers = np.searchsorted(self._group_starts, elements, side="right") - 1
        for number in np.unique(numbers):
            chosen = numbers == number
            result[chosen] = self._groups[number].rows(
                elements[chosen] - self._group_starts[number]
            )
        return result


class _Parts(NamedTuple):
    """How the rows of one group are cut into parts, and these into blocks.

    Attributes:
      num_parts: how many there are.
      block_length: rows of a block, but for the first and the last one of a part.
      short: rows of a part, of the shorter ones.
      num_longer: parts, the first ones, that have one row more.
    """

    num_parts: int
    block_length: int
    short: int
    num_longer: int

    @classmethod
    def of(cls, shuffle: Shuffle, *, num_rows: int, num_clips: int) -> _Parts:
        num_parts = halve_parts(shuffle.num_parts, num_clips)
        short, num_longer = divmod(num_rows, num_parts)
        return cls(num_parts, max(1, shuffle.buffer_size // num_parts), short, num_longer)


class _Keys(NamedTuple):
    """The keys that the permutations of one group have in common."""

    seed: int
    epoch: int
    group: int


class _Group:
    """Steps 2 to 5 for the clips of one group; permutes the clips when it is first asked."""

    def __init__(self, clips: Runs, *, shuffle: Shuffle, epoch: int, number: int) -> None:
        self._clips = clips
        self._keys = _Keys(shuffle.seed, epoch, number)
        self.num_rows = int(clips.lengths.sum())
        self._parts = _Parts.of(shuffle, num_rows=self.num_rows, num_clips=len(clips))
        self._permuted: RankedRows | None = None
        self._blocks: dict[tuple[int, int], Integers] = {}

    def rows(self, elements: Integers) -> Integers:
        if self._permuted is None:
            order = permutation(len(self._clips), Stream.CLIPS, **self._keys._asdict())
            self._permuted = RankedRows(self._clips.chosen(order))
        parts = self._parts
        index, part = np.divmod(elements, parts.num_parts)
        full = parts.block_length
        first_length = full - part * full // parts.num_parts
        block = np.where(index < first_length, 0, 1 + (index - first_length) // full)
        block_start = np.where(block == 0, 0, first_length + (block - 1) * full)
        offset = index - block_start
        self._shuffle_blocks(part, block, offset)
        part_start = part * parts.short + np.minimum(part, parts.num_longer)
        return self._permuted.rows(part_start + block_start + offset)

    def _shuffle_blocks(self, part: Integers, block: Integers, offset: Integers) -> None:
        """Replaces each `offset` inside its (part, block) by its image under that block's
        permutation, in place.
        """
        by_block = np.lexsort((block, part))
        changes = np.flatnonzero(np.diff(part[by_block]) | np.diff(block[by_block])) + 1
        used: dict[tuple[int, int], Integers] = {}
        for members in np.split(by_block, changes):
            if len(members):
                key = int(part[members[0]]), int(block[members[0]])
                permutation = self._blocks.get(key)
                if permutation is None:
                    permutation = self._block_permutation(*key)
                used[key] = permutation
                offset[members] = permutation[offset[members]]
        # Only the blocks just used can be asked for again soon: a stream goes forward.
        self._blocks = used

    def _block_permutation(self, part: int, block: int) -> Integers:
        parts = self._parts
        full = parts.block_length
        part_length = parts.short + (part < parts.num_longer)
        first_length = full - part * full // parts.num_parts
        start = 0 if block == 0 else first_length + (block - 1) * full
        length = min(first_length if block == 0 else full, part_length - start)
        return permutation(
            length,
            Stream.BLOCK,
            **self._keys._asdict(),
            block=block,
            part=part,
        )


def default_clip_length(gop_length: int | None) -> int:
    """Returns the smallest multiple of the GOP length that is at least 16; 16 where there is no
    video, and no GOP length.
    """
    length = gop_length or 1
    return -(-_DEFAULT_CLIP_LENGTH // length) * length


def lookahead_examples(shuffle: Shuffle | None) -> int:
    """Returns how far ahead the rows of one GOP must be known, so that it is decoded once for all
    of them.
    """
    if shuffle is None:
        return LOOKAHEAD_EXAMPLES
    # They follow each other in a part, but for its blocks: so they are spread over at most their
    # number and two blocks, times the parts.
    assert shuffle.clip_length is not None
    block = max(1, shuffle.buffer_size // shuffle.num_parts)
    return (min(shuffle.clip_length, LONG_GOP) + 2 * block) * shuffle.num_parts + LOOKAHEAD_EXAMPLES


def halve_parts(num_parts: int, num_clips: int) -> int:
    """Returns `num_parts`, halved until there are at least 2 clips a part (at least 1 part)."""
    while num_parts > 1 and num_clips < 2 * num_parts:
        num_parts //= 2
    return num_parts


def _group_by_files(files: Integers, shuffle: Shuffle, epoch: int) -> list[Integers]:
    """Returns the clips of each group of `open_files` files, as numbers of clips in ascending
    order.
    """
    assert shuffle.open_files is not None
    distinct = np.unique(files)
    order = permutation(len(distinct), Stream.FILES, seed=shuffle.seed, epoch=epoch)
    group_of = np.empty(len(distinct), np.int64)
    group_of[order] = np.arange(len(distinct)) // shuffle.open_files
    group_of_clip = group_of[np.searchsorted(distinct, files)]
    by_group = np.argsort(group_of_clip, kind="stable")
    return np.split(by_group, np.flatnonzero(np.diff(group_of_clip[by_group])) + 1)

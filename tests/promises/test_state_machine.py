"""Random runs: streams that are stopped and go on, on other numbers of shards and workers, give the
rows of one that was never stopped.

The suite takes 50 cases, always the same ones, and with the marker `long` 200. More of them:

    LEROBOT_GRAIN_CASES=10000 python -m pytest tests/promises/test_state_machine.py --timeout=0
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import grain
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import lerobot_grain as lg
from lerobot_grain._format.episodes import EpisodeTable, FileSpans
from lerobot_grain._order.sampling.strided_rows import Stride
from lerobot_grain._order.sampling.weights import scaled_weights
from lerobot_grain._order.shuffle import FrameOrder
from tests.support.cases import runs, seconds_of


def repository_of(lengths: list[int]) -> Any:
    """Returns a repository without files: nothing below the order of the rows is asked for."""
    count = len(lengths)
    stops = np.cumsum(lengths)
    files = FileSpans(
        paths=tuple(f"{number}.parquet" for number in range(-(-count // 2))),
        file_of_episode=np.arange(count) // 2,
        first_of_file=np.minimum(2 * np.arange(-(-count // 2) + 1), count),
        by_file=np.arange(count),
    )
    first_rows = stops - lengths
    table = EpisodeTable(
        first_rows=first_rows,
        lengths=np.array(lengths),
        data=files,
        data_offsets=first_rows,
        videos={},
    )
    return lg.Repository(storage=None, commit="c" * 40, info=None, episodes=table, tasks={})


class Uninterrupted:
    """The rows at all positions, epoch by epoch, straight from the order.

    Args:
      sampling: `weights`, `valid_rows` or `stride`, as the stream has them.
    """

    def __init__(
        self, repository: Any, shuffle: lg.Shuffle | None, sampling: dict[str, Any] | None = None
    ) -> None:
        table = repository.episodes
        sampling = sampling or {}
        by_row = [
            np.repeat(values, table.lengths) if len(values) < table.num_rows else np.array(values)
            for name, values in sampling.items()
            if name != "stride"
        ]
        self._order = FrameOrder(
            first_rows=table.first_rows,
            lengths=table.lengths,
            data_files=table.data.file_of_episode,
            shuffle=shuffle,
            weights=scaled_weights(
                np.prod(by_row, axis=0, dtype=float), np.ones(table.num_rows, int)
            )
            if by_row
            else None,
            stride=Stride.of(
                sampling["stride"],
                table.numbers,
                first_frame=0,
                seed=None if shuffle is None else shuffle.seed,
            )
            if sampling.get("stride", 1) > 1
            else None,
        )
        self._rows: list[int] = []
        self._num_epochs = 0

    def row(self, position: int) -> int:
        while position >= len(self._rows):
            epoch = self._num_epochs
            count = self.end_of(epoch + 1) - self.end_of(epoch)
            self._rows += self._order.epoch(epoch).rows(np.arange(count)).tolist()
            self._num_epochs += 1
        return self._rows[position]

    def end_of(self, num_epochs: int) -> int:
        """Returns the position after so many epochs."""
        return self._order.start_of(num_epochs)


SOME_WEIGHTS = st.sampled_from([0.0, 0.1, 1.0, 1.0, 2.5, 10.0])


@st.composite
def samplings(draw: st.DrawFn, lengths: list[int], *, is_shuffled: bool) -> dict[str, Any]:
    """Weights, masks, both, or a stride, as far as the stream may have them."""
    kind = draw(st.sampled_from(["none", "episodes", "rows", "mask", "both", "stride"]))
    if kind == "stride":
        return {"stride": draw(st.integers(1, max(lengths)))}
    found: dict[str, Any] = {}
    count = sum(lengths)
    if kind in ("episodes", "rows", "both") and is_shuffled:
        size = count if kind == "rows" else len(lengths)
        found["weights"] = draw(st.lists(SOME_WEIGHTS, min_size=size, max_size=size))
        found["weights"][draw(st.integers(0, size - 1))] = 1.0
    if kind in ("mask", "both"):
        found["valid_rows"] = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        # Of each episode at least one, so that there is one with a weight, too.
        for last in itertools.accumulate(lengths):
            found["valid_rows"][last - 1] = True
    return found


class Shard:
    """One shard, read by workers: each has a slice of the dataset, as `mp_prefetch` cuts it, and
    they are asked in turn.
    """

    def __init__(
        self, arguments: dict[str, Any], state: dict[str, Any] | None, num_workers: int
    ) -> None:
        self._workers = []
        for worker in range(num_workers):
            dataset = lg.FrameOrderIterDataset(**arguments)
            if num_workers > 1:
                dataset.set_slice(slice(worker, None, num_workers))
            iterator = iter(dataset)
            if state is not None:
                iterator.set_state(state)
            self._workers.append(iterator)

    def take(self, count: int) -> list[tuple[int, int]]:
        """Returns pairs (row, position): what goals are drawn by."""
        found = []
        for worker in itertools.islice(itertools.cycle(self._workers), count):
            try:
                found.append(next(worker))
            except StopIteration:
                # Those whose turn is later have none either.
                assert all(next(other, None) is None for other in self._workers)
                break
        return found

    def states(self) -> list[dict[str, Any]]:
        return [worker.get_state() for worker in self._workers]


class StoppedAndGoingOn(RuleBasedStateMachine):
    @initialize(
        data=st.data(),
        lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
        shuffle=st.one_of(
            st.none(),
            st.builds(
                lg.Shuffle,
                seed=st.integers(0, 2**64 - 1),
                buffer_size=st.integers(1, 64),
                clip_length=st.integers(1, 12),
                num_parts=st.integers(1, 16),
                open_files=st.one_of(st.none(), st.integers(1, 2)),
            ),
        ),
        num_epochs=st.one_of(st.none(), st.integers(1, 4)),
    )
    def open(
        self,
        data: st.DataObject,
        lengths: list[int],
        shuffle: lg.Shuffle | None,
        num_epochs: int | None,
    ) -> None:
        self.repository = repository_of(lengths)
        self.shuffle, self.num_epochs = shuffle, num_epochs
        self.sampling = data.draw(samplings(lengths, is_shuffled=shuffle is not None))
        self.uninterrupted = Uninterrupted(self.repository, shuffle, self.sampling)
        self.position = 0
        self.state: dict[str, Any] | None = None
        self.saved: list[tuple[int, dict[str, Any]]] = []

    # One rule for all: Hypothesis leaves out some of several rules in many of its cases.
    @rule(
        num_shards=st.integers(1, 9),
        num_workers=st.integers(1, 3),
        steps=st.integers(0, 40),
        drop_remainder=st.booleans(),
        older_checkpoint=st.one_of(st.none(), st.none(), st.integers(0, 5)),
        other_end=st.one_of(
            st.none(), st.none(), st.tuples(st.one_of(st.none(), st.integers(1, 9)))
        ),
    )
    def run(
        self,
        num_shards: int,
        num_workers: int,
        steps: int,
        drop_remainder: bool,
        older_checkpoint: int | None,
        other_end: tuple[int | None] | None,
    ) -> None:
        if self.saved and older_checkpoint is not None:
            self.position, self.state = self.saved[older_checkpoint % len(self.saved)]
        if other_end is not None:
            (self.num_epochs,) = other_end
        found, states = [], []
        for number in range(num_shards):
            shard = Shard(
                {
                    "repository": self.repository,
                    "shuffle": self.shuffle,
                    **self.sampling,
                    "with_positions": True,
                    "num_epochs": self.num_epochs,
                    "shard_options": grain.sharding.ShardOptions(
                        number, num_shards, drop_remainder=drop_remainder
                    ),
                },
                self.state,
                num_workers,
            )
            found.append(shard.take(steps))
            states.append(shard.states())
        end = self.end(num_shards, drop_remainder)
        for number, rows in enumerate(found):
            positions = range(self.position + number, end, num_shards)[:steps]
            assert rows == [(self.uninterrupted.row(position), position) for position in positions]
        if all(len(rows) == steps for rows in found):
            self.stop(num_shards, num_workers, steps, states)
        else:
            # The stream has ended. It goes on from the last checkpoint, as if this run had never
            # been.
            assert end - self.position < num_shards * steps
            assert not drop_remainder or len({len(rows) for rows in found}) == 1

    def end(self, num_shards: int, drop_remainder: bool) -> int:
        """Returns the position where the stream ends, or one that no test reaches."""
        if self.num_epochs is None:
            return self.position + 10**6
        end = self.uninterrupted.end_of(self.num_epochs)
        whole = max(0, end - self.position) // num_shards * num_shards
        return self.position + whole if drop_remainder else end

    def stop(
        self, num_shards: int, num_workers: int, steps: int, states: list[list[dict[str, Any]]]
    ) -> None:
        base = self.position
        self.position += num_shards * steps
        for workers in states:
            # Each worker counts its own turns only; together they are at one position.
            turns = [len(range(worker, steps, num_workers)) for worker in range(num_workers)]
            assert [state["position"] for state in workers] == [
                base + count * num_workers * num_shards for count in turns
            ]
            assert all(
                {**state, "position": 0} == {**states[0][0], "position": 0} for state in workers
            )
        state = {**states[0][0], "position": self.position}
        if num_workers == 1:
            assert all(workers == [state] for workers in states)
        self.state = json.loads(json.dumps(state))
        self.saved.append((self.position, self.state))


@pytest.mark.timeout(seconds_of(50))
class TestStoppedAndGoingOn(StoppedAndGoingOn.TestCase):  # type: ignore[valid-type]
    settings = runs(50)


@pytest.mark.long
@pytest.mark.timeout(seconds_of(200))
class TestStoppedAndGoingOnMoreOften(StoppedAndGoingOn.TestCase):  # type: ignore[valid-type]
    settings = runs(200)


# --- the cases that a reader would ask for, by name ----------------------------------------------

UNIONS: dict[str, tuple[list[int], int | None, bool, int]] = {
    # lengths of the episodes, epochs, drop_remainder, rows that are taken in all
    "inside an epoch": ([40, 33], None, False, 60),
    "across epochs whose length no number of shards divides": ([13], None, False, 120),
    "fewer rows than shards": ([2, 1], None, False, 120),
    "one row": ([1], None, False, 60),
    "up to the end": ([17, 14], 2, False, 60),
    "up to the end, with the same number on each shard": ([16, 15], 2, True, 60),
}


@pytest.mark.parametrize("name", UNIONS)
def test_the_union_after_k_steps_does_not_depend_on_the_number_of_shards(name: str) -> None:
    lengths, num_epochs, drop_remainder, count = UNIONS[name]
    repository = repository_of(lengths)
    shuffle = lg.Shuffle(seed=5, clip_length=4, buffer_size=16, num_parts=4)
    uninterrupted = Uninterrupted(repository, shuffle)
    expected = Counter(uninterrupted.row(position) for position in range(count))
    for num_shards in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60):
        union: Counter[int] = Counter()
        positions = set()
        for number in range(num_shards):
            options = grain.sharding.ShardOptions(number, num_shards, drop_remainder=drop_remainder)
            dataset = lg.FrameOrderIterDataset(
                repository, shuffle=shuffle, num_epochs=num_epochs, shard_options=options
            )
            iterator = iter(dataset)
            union.update(itertools.islice(iterator, count // num_shards))
            positions.add(iterator.get_state()["position"])
        assert union == expected
        assert positions == {count}


def test_without_drop_remainder_nothing_is_lost_at_the_end() -> None:
    repository = repository_of([7, 4])
    for num_shards in (1, 2, 3, 5, 11, 12, 40):
        options = [grain.sharding.ShardOptions(number, num_shards) for number in range(num_shards)]
        shards = [
            list(
                lg.FrameOrderIterDataset(
                    repository, shuffle=None, num_epochs=3, shard_options=option
                )
            )
            for option in options
        ]
        assert Counter(itertools.chain.from_iterable(shards)) == Counter([*range(11)] * 3)

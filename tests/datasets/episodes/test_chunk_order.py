"""The source of chunks: stopped anywhere, on any number of shards and workers, it goes on with the
chunks of one that was never stopped.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import itertools
import json
from typing import Any

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lerobot_grain as lg
from lerobot_grain._format.info import Feature
from tests.promises.test_state_machine import repository_of
from tests.support.datasets import make_info
from tests.support.orders import naive_chunk_order, naive_chunks

ACTION = Feature(key="action", dtype="float32", shape=(2,))


def stream(lengths: list[int], **arguments: Any) -> lg.EpisodeIterDataset:
    """A stream of a dataset without files, of which only the order is asked for."""
    repository = dataclasses.replace(repository_of(lengths), info=make_info(ACTION))
    return lg.EpisodeIterDataset(repository, features=["action"], **arguments)


def chunks_of(iterator: Any, count: int) -> list[list[int]]:
    return [
        list(range(first, first + length)) for first, length in itertools.islice(iterator, count)
    ]


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], dict[str, Any]]:
    frames = draw(st.one_of(st.none(), st.integers(1, 9)))
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    last = draw(st.sampled_from(["pad", "short", "drop"]))
    if last == "drop" and frames is not None:
        lengths[0] = max(lengths[0], frames)
    seed = draw(st.one_of(st.none(), st.integers(0, 2**64 - 1)))
    weights = st.just([1.0])
    if draw(st.booleans()):
        weights = st.lists(st.sampled_from([0.0, 1.0] if seed is None else [0.0, 0.3, 1.0, 4.0]))
    # The first episode, which has a chunk whatever the cut, is never left out.
    each = [1.0, *draw(weights)[: len(lengths) - 1]]
    return lengths, {
        "weights": dict(enumerate(each)),
        "chunk_frames": frames,
        "overlap_frames": 0 if frames is None else draw(st.integers(0, frames - 1)),
        "last_chunk": last,
        "shuffle": None if seed is None else lg.Shuffle(seed=seed),
    }


def uninterrupted(lengths: list[int], arguments: dict[str, Any], num_epochs: int) -> list[Any]:
    chunks = naive_chunks(
        (np.cumsum(lengths) - lengths).tolist(),
        lengths,
        frames=arguments["chunk_frames"],
        overlap=arguments["overlap_frames"],
        drop_shorter=arguments["last_chunk"] == "drop",
    )
    shuffle = arguments["shuffle"]
    ends = np.cumsum(lengths).tolist()
    weights = [arguments["weights"].get(bisect.bisect(ends, rows[0]), 1.0) for rows in chunks]
    seed = None if shuffle is None else shuffle.seed
    return naive_chunk_order(chunks, seed, num_epochs, weights)


@settings(max_examples=150)
@given(
    made=streams(),
    num_epochs=st.integers(1, 4),
    drop_remainder=st.booleans(),
    runs=st.lists(
        st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(0, 20)), min_size=1, max_size=6
    ),
)
def test_stopped_anywhere_it_goes_on_with_any_number_of_shards_and_workers(
    made: tuple[list[int], dict[str, Any]],
    num_epochs: int,
    drop_remainder: bool,
    runs: list[tuple[int, int, int]],
) -> None:
    lengths, arguments = made
    expected = uninterrupted(lengths, arguments, num_epochs)
    position, state = 0, None
    for num_shards, num_workers, steps in runs:
        end = len(expected)
        if drop_remainder:
            end = position + (end - position) // num_shards * num_shards
        ended = False
        for shard in range(num_shards):
            options = grain.sharding.ShardOptions(shard, num_shards, drop_remainder=drop_remainder)
            dataset = stream(lengths, num_epochs=num_epochs, shard_options=options, **arguments)
            workers = []
            for worker in range(num_workers):
                order = copy.deepcopy(dataset._order)
                if num_workers > 1:
                    order.set_slice(slice(worker, None, num_workers))
                workers.append(iter(order))
                if state is not None:
                    workers[-1].set_state(state)
            found = [
                chunk
                for worker in itertools.islice(itertools.cycle(workers), steps)
                for chunk in chunks_of(worker, 1)
            ]
            positions = range(position + shard, end, num_shards)[:steps]
            assert found == [expected[place] for place in positions]
            ended |= len(found) < steps
        if not ended and steps % num_workers == 0:
            position += num_shards * steps
            assert {worker.get_state()["position"] for worker in workers} == {position}
            state = json.loads(json.dumps(workers[0].get_state()))


def test_the_blocks_are_the_rows_of_the_chunks_and_their_states() -> None:
    lengths = [40, 3, 700, 12]
    dataset = stream(lengths, chunk_frames=16, overlap_frames=4, last_chunk="short", num_epochs=2)
    chunks = chunks_of(iter(dataset._order), 10**6)
    iterator = iter(dataset._order)
    rows: list[int] = []
    ends = list(itertools.accumulate(map(len, chunks)))
    while True:
        before = len(rows)
        try:
            (part,), state_after = iterator.next_block()
        except StopIteration:
            break
        starts = dataset.repository.episodes.first_rows
        rows += (starts[part.block.episodes] + part.block.anchor_frames).tolist()
        assert 0 < len(rows) - before <= 256
        assert part.places.tolist() == list(range(len(part.block)))
        assert len(rows) in ends
        for number, end in enumerate(ends):
            if before < end <= len(rows):
                state = state_after(end - before)
                assert state["position"] == number + 1
                again = iter(dataset._order)
                again.set_state(state)
                assert chunks_of(again, 1) == chunks[number + 1 : number + 2]
    assert rows == list(itertools.chain.from_iterable(chunks))


def test_a_padded_chunk_repeats_its_last_row() -> None:
    dataset = stream([5, 2], chunk_frames=4, shuffle=None, num_epochs=1)
    (part,), _ = iter(dataset._order).next_block()
    assert part.block.episodes.tolist() == [0] * 8 + [1] * 4
    assert part.block.anchor_frames.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 0, 1, 1, 1]


def test_which_episodes_are_needed_in_every_epoch() -> None:
    lengths = [4, 100, 30]
    arguments = {"chunk_frames": 10, "episodes": [1, 2]}
    assert stream(lengths, **arguments)._order.needed_every_epoch.tolist() == [False, True, True]
    options = grain.sharding.ShardOptions(1, 2)
    of_shard = stream(lengths, shard_options=options, **arguments)._order
    assert of_shard.needed_every_epoch.tolist() == [False, True, False]


@pytest.mark.parametrize("stop", [slice(0, 5), slice(None, None, -1)])
def test_slices_that_are_refused(stop: slice) -> None:
    with pytest.raises(lg.InvalidRequestError, match="set_slice"):
        stream([4])._order.set_slice(stop)

"""The order of chunks: golden numbers that can never change, and a slow second implementation of
the definition.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_grain._order.chunks import ChunkCut, ChunkOrder, ChunkPlaces
from lerobot_grain._order.sampling.weights import RowWeights, scaled_weights
from tests.support.orders import naive_chunk_order, naive_chunks

# The selected episodes of a small dataset, of which rows 16 to 25 are not selected.
FIRST_ROWS, LENGTHS = [0, 9, 26, 33], [9, 7, 7, 14]


def chunk_order(
    first_rows: list[int],
    lengths: list[int],
    cut: ChunkCut,
    seed: int | None,
    weights: RowWeights | None = None,
) -> ChunkOrder:
    return ChunkOrder(
        first_rows=np.array(first_rows),
        lengths=np.array(lengths),
        cut=cut,
        seed=seed,
        weights=weights,
    )


def rows_at(order: ChunkOrder, positions: list[int]) -> list[list[int]]:
    chunks = ChunkPlaces(order).chunks(np.array(positions, np.int64))
    return [
        list(range(first, first + length))
        for first, length in zip(chunks.first_rows.tolist(), chunks.lengths.tolist(), strict=True)
    ]


# --- golden orders: (first row, frames) of the chunks of two epochs ------------------------------

# fmt: off
GOLDEN = {
    "episodes": (ChunkCut(None, 0, False), 0, [
        (0, 9), (9, 7), (33, 14), (26, 7), (33, 14), (26, 7), (9, 7), (0, 9),
    ]),
    "chunks": (ChunkCut(4, 0, False), 7, [
        (4, 4), (9, 4), (45, 2), (37, 4), (13, 3), (8, 1), (30, 3), (41, 4),
        (33, 4), (0, 4), (26, 4), (9, 4), (33, 4), (8, 1), (4, 4), (37, 4),
        (30, 3), (0, 4), (13, 3), (45, 2), (41, 4), (26, 4),
    ]),
    "overlap": (ChunkCut(5, 2, False), 2**64 - 1, [
        (0, 5), (29, 4), (6, 3), (33, 5), (9, 5), (42, 5), (3, 5), (39, 5),
        (12, 4), (36, 5), (26, 5), (3, 5), (12, 4), (26, 5), (9, 5), (6, 3),
        (0, 5), (39, 5), (33, 5), (42, 5), (29, 4), (36, 5),
    ]),
    "whole chunks only": (ChunkCut(4, 0, True), 1, [
        (41, 4), (33, 4), (0, 4), (9, 4), (26, 4), (37, 4), (4, 4), (9, 4),
        (37, 4), (4, 4), (33, 4), (26, 4), (0, 4), (41, 4),
    ]),
    "in order": (ChunkCut(6, 1, False), None, [
        (0, 6), (5, 4), (9, 6), (14, 2), (26, 6), (31, 2), (33, 6), (38, 6),
        (43, 4), (0, 6), (5, 4), (9, 6), (14, 2), (26, 6), (31, 2), (33, 6),
        (38, 6), (43, 4),
    ]),
}
# fmt: on


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_order(name: str) -> None:
    # People hold checkpoints: when this fails, the order is wrong and not the numbers.
    cut, seed, expected = GOLDEN[name]
    order = chunk_order(FIRST_ROWS, LENGTHS, cut, seed)
    found = ChunkPlaces(order).chunks(np.arange(2 * order.num_chunks))
    assert list(zip(found.first_rows.tolist(), found.lengths.tolist(), strict=True)) == expected


# --- the definition ------------------------------------------------------------------------------


@st.composite
def cuts(draw: st.DrawFn) -> ChunkCut:
    frames = draw(st.one_of(st.none(), st.integers(1, 12)))
    overlap = 0 if frames is None else draw(st.integers(0, frames - 1))
    return ChunkCut(frames, overlap, draw(st.booleans()))


SEEDS = st.one_of(st.none(), st.integers(0, 9), st.integers(0, 2**64 - 1))


@given(
    episodes=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), min_size=1, max_size=8),
    cut=cuts(),
    seed=SEEDS,
)
def test_the_order_is_that_of_the_definition(
    episodes: list[tuple[int, int]], cut: ChunkCut, seed: int | None
) -> None:
    lengths = [length for _, length in episodes]
    # With rows between the episodes that are not selected.
    first_rows = [
        sum(gap + length for gap, length in episodes[:number]) + episodes[number][0]
        for number in range(len(episodes))
    ]
    order = chunk_order(first_rows, lengths, cut, seed)
    chunks = naive_chunks(
        first_rows,
        lengths,
        frames=cut.frames,
        overlap=cut.overlap,
        drop_shorter=cut.drop_shorter,
    )
    assert order.num_chunks == len(chunks)
    assert order.most_frames == max(map(len, chunks), default=0)
    if not chunks:
        return
    expected = naive_chunk_order(chunks, seed, 3)
    positions = list(range(3 * len(chunks)))
    assert rows_at(order, positions) == expected
    # Anywhere, and over the border of epochs, without the ones before it.
    assert rows_at(order, positions[len(chunks) // 2 :: 2]) == expected[len(chunks) // 2 :: 2]
    found = ChunkPlaces(order).chunks(np.array(positions))
    ends = [first + length - 1 for first, length in zip(first_rows, lengths, strict=True)]
    for rows, place, is_last in zip(expected, found.episodes, found.are_last, strict=True):
        assert first_rows[place] <= rows[0] <= rows[-1] <= ends[place]
        assert is_last == (rows[-1] == ends[place])


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), cut=cuts())
def test_every_row_is_in_a_chunk(lengths: list[int], cut: ChunkCut) -> None:
    starts = np.cumsum(lengths) - lengths
    order = chunk_order(starts.tolist(), lengths, cut, 3)
    if not order.num_chunks:
        return
    rows = [row for chunk in rows_at(order, list(range(order.num_chunks))) for row in chunk]
    if not cut.drop_shorter or cut.frames is None:
        assert set(rows) == set(range(sum(lengths)))
    if cut.overlap == 0:
        assert len(rows) == len(set(rows))


# --- weights -------------------------------------------------------------------------------------


def weights_of(each: list[float]) -> RowWeights | None:
    return scaled_weights(np.array(each, np.float64), np.ones(len(each), np.int64))


# fmt: off
GOLDEN_WEIGHTED = {
    "episodes": (ChunkCut(None, 0, False), 5, [1.0, 0.25, 0.0, 2.0], [
        (33, 14), (33, 14), (0, 9), (33, 14), (0, 9), (33, 14),
    ]),
    "chunks": (ChunkCut(6, 0, False), 7, [0.5, 0.5, 3.0, 3.0, 0.0, 1.0, 1.0, 1.0, 1.0], [
        (9, 6), (15, 1), (32, 1), (15, 1), (39, 6), (45, 2), (9, 6), (33, 6),
        (15, 1), (45, 2), (15, 1), (9, 6), (39, 6), (9, 6), (32, 1), (33, 6),
    ]),
    "mask": (ChunkCut(6, 1, False), None, [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0], [
        (0, 6), (9, 6), (14, 2), (33, 6), (38, 6), (43, 4), (0, 6), (9, 6),
        (14, 2), (33, 6), (38, 6), (43, 4),
    ]),
}
# fmt: on


@pytest.mark.parametrize("name", GOLDEN_WEIGHTED)
def test_golden_order_of_weighted_chunks(name: str) -> None:
    cut, seed, weights, expected = GOLDEN_WEIGHTED[name]
    order = chunk_order(FIRST_ROWS, LENGTHS, cut, seed, weights_of(weights))
    found = ChunkPlaces(order).chunks(np.arange(2 * order.num_chunks))
    assert list(zip(found.first_rows.tolist(), found.lengths.tolist(), strict=True)) == expected


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    cut=cuts(),
    seed=SEEDS,
    draw=st.data(),
)
def test_weighted_chunks_come_as_clips_of_one_row_would(
    lengths: list[int], cut: ChunkCut, seed: int | None, draw: st.DataObject
) -> None:
    first_rows = [sum(lengths[:number]) for number in range(len(lengths))]
    chunks = naive_chunks(
        first_rows,
        lengths,
        frames=cut.frames,
        overlap=cut.overlap,
        drop_shorter=cut.drop_shorter,
    )
    kinds = st.sampled_from([0.0, 2.0] if seed is None else [0.0, 0.1, 1.0, 2.0, 7.5])
    each = draw.draw(st.lists(kinds, min_size=len(chunks), max_size=len(chunks)))
    if not any(each) or len(set(each)) == 1:
        return
    order = chunk_order(first_rows, lengths, cut, seed, weights_of(each))
    assert order.num_chunks == sum(weight > 0 for weight in each)
    coming = [chunk for chunk, weight in zip(chunks, each, strict=True) if weight]
    assert max(map(len, coming)) <= order.most_frames <= max(map(len, chunks))
    expected = naive_chunk_order(chunks, seed, 3, each)
    assert rows_at(order, list(range(3 * order.num_chunks))) == expected


def test_which_weighted_chunks_come_in_every_epoch() -> None:
    weights = weights_of([0.5, 0.5, 3.0, 3.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    order = chunk_order(FIRST_ROWS, LENGTHS, ChunkCut(6, 0, False), 7, weights)
    # By episode of two, two, two and three chunks; their mean weight is 11 / 8.
    assert order.chunks_every_epoch().tolist() == [0, 4, 0, 2]
    assert order.most_frames == 6

"""Weights of episodes, and rows that are not valid, in streams of chunks. Their order:
`tests/order/test_chunks.py`; stopped anywhere: `test_chunk_order`.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset

# In chunks of 5: 3, 2, 5 and 2.
LENGTHS = [13, 6, 24, 8]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    """51 rows in 4 episodes, without cameras."""
    directory = tmp_path_factory.mktemp("weighted") / "data"
    return lg.open_repository(
        write_dataset(directory, episode_lengths=LENGTHS, fps=10, cameras=()).directory
    )


def stream(repository: lg.Repository, **arguments: Any) -> lg.EpisodeIterDataset:
    return lg.EpisodeIterDataset(repository, **{"chunk_frames": 5, **arguments})


def chunks_in(dataset: grain.IterDataset[Any]) -> list[dict[str, Any]]:
    with contextlib.closing(iter(dataset)) as chunks:
        return list(chunks)


def test_chunks_come_as_often_as_their_episode_weighs(repository: lg.Repository) -> None:
    # Of weights 4, 0, 1 and 1, of which 10 chunks have one: their mean is 1.9.
    weights = {0: 4.0, 1: 0.0}
    dataset = stream(repository, weights=weights, num_epochs=40)
    assert dataset.num_chunks == 10
    found = Counter(chunk["chunk_episode"].item() for chunk in chunks_in(dataset))
    assert found.keys() == {0, 2, 3}
    assert sum(found.values()) == 400
    for episode, num_chunks, weight in ((0, 3, 4), (2, 5, 1), (3, 2, 1)):
        assert found[episode] == pytest.approx(400 * num_chunks * weight / 19, rel=0.1)
    state = iter(dataset).get_state()
    assert state["num_chunks"] == 10
    assert len(state["weights"]) == 16


def test_an_array_where_every_episode_has_one_row(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    write_dataset(directory, episode_lengths=[1, 1, 1], cameras=())
    dataset = lg.EpisodeIterDataset(lg.open_repository(directory), weights=[1.0, 0.0, 2.0])
    assert dataset.num_chunks == 2


def test_equal_weights_are_the_stream_without_them(repository: lg.Repository) -> None:
    plain = stream(repository, num_epochs=2)
    equal = stream(repository, num_epochs=2, weights=lambda _: 0.7, valid_rows=[True] * 51)
    assert iter(equal).get_state() == iter(plain).get_state()
    assert [chunk["index"].tolist() for chunk in chunks_in(equal)] == [
        chunk["index"].tolist() for chunk in chunks_in(plain)
    ]


def test_states_of_other_weights_are_refused(repository: lg.Repository) -> None:
    state = iter(stream(repository, weights={0: 4.0})).get_state()
    for other in ({}, {"weights": {0: 5.0}}, {"valid_rows": {0: False}}):
        with pytest.raises(lg.StateMismatchError, match="weights"):
            iter(stream(repository, **other)).set_state(state)
    iter(stream(repository, weights={0: 8.0, 1: 2, 2: 2, 3: 2})).set_state(state)


@pytest.mark.parametrize("last_chunk", ["pad", "short"])
@pytest.mark.parametrize("shuffle", [None, lg.Shuffle(seed=3)])
def test_rows_that_are_not_valid(
    repository: lg.Repository, last_chunk: Any, shuffle: lg.Shuffle | None
) -> None:
    valid = np.ones(51, np.bool_)
    valid[[0, 2, 12]] = False
    valid[5:10] = False  # the second chunk of episode 0
    valid[13:18] = False  # the first one of episode 1, whose second one has one row
    dataset = stream(
        repository, valid_rows=valid, last_chunk=last_chunk, shuffle=shuffle, num_epochs=1
    )
    chunks = chunks_in(dataset)
    firsts = sorted(chunk["index"].item(0) for chunk in chunks)
    assert firsts == [0, 10, 18, 19, 24, 29, 34, 39, 43, 48]
    assert dataset.num_chunks == len(chunks)
    if shuffle is None:
        assert [chunk["index"].item(0) for chunk in chunks] == firsts
    for chunk in chunks:
        is_pad = chunk.get("chunk_is_pad", np.zeros(len(chunk["index"]), np.bool_))
        assert chunk["chunk_is_valid"].dtype == np.bool_
        assert chunk["chunk_is_valid"].tolist() == (valid[chunk["index"]] & ~is_pad).tolist()
    spec = grain.experimental.get_element_spec(dataset)
    assert spec["chunk_is_valid"].shape == ((5,) if last_chunk == "pad" else (None,))


def test_valid_episodes(repository: lg.Repository) -> None:
    dataset = lg.EpisodeIterDataset(
        repository, valid_rows={1: False}, weights={3: 0}, shuffle=None, num_epochs=1
    )
    chunks = chunks_in(dataset)
    assert [chunk["chunk_episode"].item() for chunk in chunks] == [0, 2]
    assert all(chunk["chunk_is_valid"].all() for chunk in chunks)


def test_weights_with_valid_rows_of_a_table(repository: lg.Repository, tmp_path: Path) -> None:
    table = tmp_path / "good.csv"
    rows = [*range(10), *range(43, 48)]
    table.write_text("index,is_valid\n" + "".join(f"{row},false\n" for row in rows))
    dataset = stream(
        repository,
        valid_rows=str(table),
        weights={0: 5.0, 2: 0.0},
        num_epochs=20,
        last_chunk="drop",
    )
    # Chunks of fewer than 5 rows are left out: so one of episode 1 is left, and none of 0 and 3.
    assert {chunk["index"].item(0) for chunk in chunks_in(dataset)} == {13}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"weights": np.arange(51.0)}, "weights=: weights of rows; a chunk comes as a whole"),
        ({"weights": dict.fromkeys(range(4), 0)}, "no chunk is left; expected at least"),
        ({"valid_rows": [False] * 51}, "no chunk is left; expected at least"),
        (
            {"valid_rows": lg.ValidRows({0: False}, pad_windows=True)},
            "chunks have no windows; expected pad_windows=False",
        ),
        ({"weights": {0: 2.0}, "shuffle": None}, "shuffle=None: weights say how often"),
        ({"weights": {0: -1.0}}, "expected a finite number >= 0"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(
    repository: lg.Repository, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=re.escape(text)):
        stream(repository, **arguments)


def test_the_longest_chunk_is_one_that_comes(repository: lg.Repository) -> None:
    whole = lg.EpisodeIterDataset(repository, weights={2: 0.0})
    assert whole._order.chunks.order.most_frames == 13

"""The episode table: what its arrays hold for tables of any order and any files, what contradicts
itself, and the selection of episodes.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._base.errors import DatasetFormatError, InvalidRequestError
from lerobot_grain._format.episodes import EpisodeTable, episode_columns, episode_table
from lerobot_grain._format.info import Feature
from tests.support.datasets import make_info

WHERE = "org/name@1a2b, meta/episodes"
INFO = make_info(
    Feature("state", "float32", (2,)),
    Feature("top", "video", (4, 6, 3)),
    Feature("image", "image", (4, 6, 3)),
)
LENGTHS = [4, 2, 5, 1]


def columns_of(**changes: Any) -> dict[str, Any]:
    """Four episodes; episodes 0 and 2 in one data file, 1 and 3 in another.

    A change of `None` leaves a column out.
    """
    columns = {
        "episode_index": [0, 1, 2, 3],
        "length": LENGTHS,
        "dataset_from_index": [0, 4, 6, 11],
        "dataset_to_index": [4, 6, 11, 12],
        "data/chunk_index": [0, 1, 0, 1],
        "data/file_index": [3, 0, 3, 0],
        "videos/top/chunk_index": [0, 0, 0, 0],
        "videos/top/file_index": [0, 0, 1, 1],
        "videos/top/from_timestamp": [0.0, 0.4, 0.0, 0.5],
    }
    changes = {name.replace("__", "/"): values for name, values in changes.items()}
    return {
        name: np.array(values)
        for name, values in {**columns, **changes}.items()
        if values is not None
    }


def table_of(**changes: Any) -> EpisodeTable:
    return episode_table(columns_of(**changes), info=INFO, where=WHERE)


def refusal(**changes: Any) -> str:
    with pytest.raises(DatasetFormatError) as caught:
        table_of(**changes)
    text = str(caught.value)
    assert text.startswith(WHERE + ": ")
    return text.removeprefix(WHERE + ": ")


def plain(value: Any) -> Any:
    """Returns nested frozen values as dicts and lists, which can be compared."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return (value.dtype.str, value.tolist()) if isinstance(value, np.ndarray) else value


def arrays_of(value: Any) -> list[np.ndarray[Any, Any]]:
    if dataclasses.is_dataclass(value):
        return [
            array
            for field in dataclasses.fields(value)
            for array in arrays_of(getattr(value, field.name))
        ]
    if isinstance(value, dict):
        return [array for inner in value.values() for array in arrays_of(inner)]
    return [value] if isinstance(value, np.ndarray) else []


# --- what the table holds ------------------------------------------------------------------------


def test_a_whole_table() -> None:
    table = table_of()
    assert (table.num_episodes, table.num_rows) == (4, 12)
    assert table.first_rows.tolist() == [0, 4, 6, 11]
    assert table.lengths.tolist() == LENGTHS
    assert table.data.paths == ("data/0-3", "data/1-0")
    assert table.data.file_of_episode.tolist() == [0, 1, 0, 1]
    assert [table.data.episodes_in(file).tolist() for file in range(2)] == [[0, 2], [1, 3]]
    # Episodes 0 and 2 follow each other in their file, though not in the dataset.
    assert table.data_offsets.tolist() == [0, 0, 4, 2]
    assert list(table.videos) == ["top"]
    assert table.videos["top"].files.paths == ("videos/top/0-0", "videos/top/0-1")
    assert [table.videos["top"].files.episodes_in(file).tolist() for file in range(2)] == [
        [0, 1],
        [2, 3],
    ]
    assert table.videos["top"].from_timestamp_seconds.tolist() == [0.0, 0.4, 0.0, 0.5]


def test_columns_that_are_read() -> None:
    assert episode_columns(INFO) == (*columns_of(), "data_chunk_index", "data_file_index")


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 3, 0, 2]], ids=str)
def test_rows_of_the_table_in_any_order(order: list[int]) -> None:
    shuffled = {name: values[order] for name, values in columns_of().items()}
    assert plain(episode_table(shuffled, info=INFO, where=WHERE)) == plain(table_of())


def test_files_are_found_by_their_numbers_and_not_by_their_order() -> None:
    table = table_of(data__chunk_index=[2, 0, 2, 1], data__file_index=[0, 9, 0, 0])
    assert table.data.paths == ("data/0-9", "data/1-0", "data/2-0")
    assert table.data.file_of_episode.tolist() == [2, 0, 2, 1]
    assert table.data_offsets.tolist() == [0, 0, 4, 0]


def test_integers_written_as_doubles() -> None:
    doubles = {name: np.array(values, np.float64) for name, values in columns_of().items()}
    assert plain(episode_table(doubles, info=INFO, where=WHERE)) == plain(table_of())


def test_from_and_to_may_be_missing() -> None:
    assert plain(table_of(dataset_from_index=None, dataset_to_index=None)) == plain(table_of())


def test_the_columns_stay_as_they_were() -> None:
    columns = columns_of()
    table = episode_table(columns, info=INFO, where=WHERE)
    assert all(values.flags.writeable for values in columns.values())
    columns["videos/top/from_timestamp"][0] = 9.0
    assert table.videos["top"].from_timestamp_seconds[0] == 0.0


def test_everything_is_read_only_and_pickles() -> None:
    table = table_of()
    arrays = arrays_of(table)
    assert len(arrays) == 3 + 3 + 3 + 1
    assert not any(array.flags.writeable for array in arrays)
    assert plain(pickle.loads(pickle.dumps(table))) == plain(table)


def test_locate() -> None:
    table = table_of()
    expected = [
        (episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)
    ]
    assert [table.locate(row) for row in range(12)] == expected
    assert table.locate(np.int64(11)) == (3, 0)
    assert all(type(number) is int for number in table.locate(5))


@pytest.mark.parametrize("row", [-1, 12, 2**70])
def test_rows_that_do_not_exist(row: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        table_of().locate(row)
    assert str(caught.value) == f"row {row}: expected 0 <= row < 12"


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)),
        min_size=1,
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_any_table_is_that_of_a_plain_loop(
    episodes: list[tuple[int, int, int, int]], random: Any
) -> None:
    lengths, chunks, files, video_files = map(list, zip(*episodes, strict=True))
    columns = columns_of(
        episode_index=list(range(len(lengths))),
        length=lengths,
        dataset_from_index=list(itertools.accumulate(lengths, initial=0))[:-1],
        dataset_to_index=list(itertools.accumulate(lengths)),
        data__chunk_index=chunks,
        data__file_index=files,
        videos__top__chunk_index=[0] * len(lengths),
        videos__top__file_index=video_files,
        videos__top__from_timestamp=[0.0] * len(lengths),
    )
    shuffled = list(range(len(lengths)))
    random.shuffle(shuffled)
    table = episode_table(
        {name: values[shuffled] for name, values in columns.items()}, info=INFO, where=WHERE
    )
    rows_of_file: dict[str, int] = {}
    for episode, (length, chunk, file, video_file) in enumerate(episodes):
        path = f"data/{chunk}-{file}"
        assert table.data.paths[table.data.file_of_episode[episode]] == path
        assert table.data_offsets[episode] == rows_of_file.get(path, 0)
        rows_of_file[path] = rows_of_file.get(path, 0) + length
        assert table.locate(sum(lengths[:episode]) + length - 1) == (episode, length - 1)
        video = table.videos["top"].files
        assert video.paths[video.file_of_episode[episode]] == f"videos/top/0-{video_file}"
    for spans, of_episode in (
        (table.data, list(zip(chunks, files, strict=True))),
        (table.videos["top"].files, [(0, n) for n in video_files]),
    ):
        for file, numbers in enumerate(sorted(set(of_episode))):
            assert spans.episodes_in(file).tolist() == [
                episode for episode, own in enumerate(of_episode) if own == numbers
            ]


# --- what contradicts itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"episode_index": [0, 1, 1, 3]},
            "episode_index should be 0, 1, 2, ... once each; found 1 where 2 was expected",
        ),
        (
            {"episode_index": [0, 1, 2, 4]},
            "episode_index should be 0, 1, 2, ... once each; found 4 where 3 was expected",
        ),
        (
            {"episode_index": [1, 2, 3, 4]},
            "episode_index should be 0, 1, 2, ... once each; found 1 where 0 was expected",
        ),
        (
            {"episode_index": [-1, 0, 1, 2]},
            "episode_index should be 0, 1, 2, ... once each; found -1 where 0 was expected",
        ),
        ({"length": [4, 0, 5, 1]}, "episode 1 has length 0; expected at least 1 frame"),
        ({"length": [4, 2, -5, 1]}, "episode 2 has length -5; expected at least 1 frame"),
        (
            {"length": [4, 2.5, 5, 1]},
            "column length has values of type float64 that are not all integers",
        ),
        (
            {"length": [4, np.nan, 5, 1]},
            "column length has values of type float64 that are not all integers",
        ),
        (
            {"length": [4, np.inf, 5, 1]},
            "column length has values of type float64 that are not all integers",
        ),
        (
            {"length": ["4", "2", "5", "1"]},
            "column length has values of type <U1 that are not all integers",
        ),
        ({"length": [True] * 4}, "column length has values of type bool that are not all integers"),
        (
            {"dataset_from_index": [0, 4, 7, 11]},
            "episode 2 has dataset_from_index 7; expected 6, since the lengths of the episodes "
            "before it add up to 6 and its own is 5",
        ),
        (
            {"dataset_to_index": [4, 6, 11, 13]},
            "episode 3 has dataset_to_index 13; expected 12, since the lengths of the episodes "
            "before it add up to 11 and its own is 1",
        ),
        (
            {"data__chunk_index": [0, -1, 0, 1]},
            "episode 1 has data/chunk_index -1 and file_index 0; expected both >= 0",
        ),
        (
            {"videos__top__file_index": [0, 0, 0, -2]},
            "episode 3 has videos/top/chunk_index 0 and file_index -2; expected both >= 0",
        ),
        (
            {"videos__top__from_timestamp": [0.0, -0.1, 0, 0]},
            "episode 1 has videos/top/from_timestamp -0.1; expected seconds >= 0 and < 1e+09",
        ),
        (
            {"videos__top__from_timestamp": [0.0, 1, np.nan, 0]},
            "episode 2 has videos/top/from_timestamp nan; expected seconds >= 0 and < 1e+09",
        ),
        (
            {"videos__top__from_timestamp": [np.inf, 1, 2, 0]},
            "episode 0 has videos/top/from_timestamp inf; expected seconds >= 0 and < 1e+09",
        ),
    ],
    ids=lambda value: str(value)[:70] if isinstance(value, dict) else "",
)
def test_contradictions(changes: dict[str, Any], text: str) -> None:
    assert refusal(**changes) == text


@pytest.mark.parametrize(
    "column",
    [
        "episode_index",
        "length",
        "data/chunk_index",
        "data/file_index",
        "videos/top/chunk_index",
        "videos/top/file_index",
    ],
)
def test_missing_columns(column: str) -> None:
    left = ", ".join(name for name in columns_of() if name != column)
    assert (
        refusal(**{column.replace("/", "__"): None})
        == f"there is no column {column}; the table has {left}"
    )


def test_missing_start_in_the_video() -> None:
    assert refusal(videos__top__from_timestamp=None) == (
        "there is no column videos/top/from_timestamp; expected the seconds at which each episode "
        "starts in its video"
    )


def test_no_columns_and_no_rows() -> None:
    with pytest.raises(
        DatasetFormatError,
        match=r"no column episode_index; the table has none of the columns that are needed",
    ):
        episode_table({}, info=INFO, where=WHERE)
    with pytest.raises(DatasetFormatError, match=r"meta/episodes: the table has no episode$"):
        episode_table(
            {name: values[:0] for name, values in columns_of().items()}, info=INFO, where=WHERE
        )


def test_cameras_without_video_are_left_out() -> None:
    # Declared, but without a path or without columns: an error where they are selected,
    # nowhere else.
    assert (
        episode_table(
            columns_of(), info=dataclasses.replace(INFO, video_path=None), where=WHERE
        ).videos
        == {}
    )
    columns = {
        name: values for name, values in columns_of().items() if not name.startswith("videos/")
    }
    assert episode_table(columns, info=INFO, where=WHERE).videos == {}


@pytest.mark.parametrize(
    "starts", [["a", "b", "c", "d"], ["0.0", "0.4", "0.0", None]], ids=["texts", "numbers as texts"]
)
def test_starts_that_are_no_numbers(starts: list[Any]) -> None:
    assert refusal(videos__top__from_timestamp=np.array(starts, object)).startswith(
        "column videos/top/from_timestamp"
    )


def test_integers_that_no_int64_holds() -> None:
    # As doubles and as uint64: neither may wrap around.
    assert refusal(length=np.array([4.0, 1e300, 5.0, 1.0])).startswith("column length")
    assert "-" not in refusal(length=np.array([4, 2**63 + 5, 5, 1], np.uint64))


def test_lengths_whose_sum_no_int64_holds() -> None:
    assert "length" in refusal(length=[2**62] * 4, dataset_from_index=None, dataset_to_index=None)

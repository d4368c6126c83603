"""Window requests from any Grain dataset: pulled ahead, read as those of the built-in order, with
windows of any lengths.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain import WindowRequest
from lerobot_grain.testing import (
    EXTRA_FEATURES,
    Camera,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)

TOP, WRIST = "observation.images.top", "observation.images.wrist"
LENGTHS = [40, 7, 1, 33]
NUM_ROWS = sum(LENGTHS)
WINDOWS = {TOP: [-0.2, 0.0], "action": [0.0, 0.1, 0.2], "observation.note": [-0.1, 0.0]}
SHUFFLE = lg.Shuffle(seed=2, clip_length=4, num_parts=4, buffer_size=16)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    cameras = (
        Camera(key=TOP, height=64, width=80),
        Camera(key=WRIST, height=64, width=80, codec="h264", gop=10, b_frames=2),
    )
    return write_dataset(
        tmp_path_factory.mktemp("requests") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=cameras,
        features=EXTRA_FEATURES,
        tasks=("a", "bc"),
        episodes_per_video_file=2,
    )


@pytest.fixture(scope="module")
def repository(written: WrittenDataset) -> lg.Repository:
    return lg.open_repository(written.directory)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert np.asarray(found).dtype == np.asarray(expected).dtype
        assert np.array_equal(found, expected)


def piped(
    repository: lg.Repository, requests: grain.IterDataset[WindowRequest], **arguments: Any
) -> lg.ReadWindowsIterDataset:
    dataset = requests.pipe(lg.ReadWindowsIterDataset, repository, **arguments)
    assert isinstance(dataset, lg.ReadWindowsIterDataset)
    return dataset


# --- as the built-in order -----------------------------------------------------------------------


@pytest.mark.parametrize("known_examples", [1, 100, 3000])
def test_requests_of_the_same_rows_give_the_same_examples_and_states(
    repository: lg.Repository, known_examples: int
) -> None:
    built_in = lg.LeRobotIterDataset(
        repository, shuffle=SHUFFLE, num_epochs=4, delta_timestamps=WINDOWS
    )
    order = lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, num_epochs=4)
    dataset = piped(
        repository,
        order.map(lg.DeltaTimestamps(repository, WINDOWS)),
        known_examples=known_examples,
    )
    for one, other in [
        (iter(dataset), iter(built_in)),
        (iter(dataset.batch(30)), iter(built_in.batch(30))),
    ]:
        for found in one:
            assert_same(found, next(other))
            assert one.get_state() == other.get_state()
        with pytest.raises(StopIteration):
            next(other)


def test_filtered_rows_are_left_out_and_nothing_else(repository: lg.Repository) -> None:
    built_in = list(
        lg.LeRobotIterDataset(repository, shuffle=SHUFFLE, num_epochs=1, delta_timestamps=WINDOWS)
    )
    order = lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, num_epochs=1)
    dataset = piped(
        repository,
        order.filter(lambda row: row % 3 != 0).map(lg.DeltaTimestamps(repository, WINDOWS)),
    )
    expected = [example for example in built_in if example["index"] % 3 != 0]
    for found, example in zip(dataset, expected, strict=True):
        assert_same(found, example)
    found_batches = list(dataset.batch(25))
    assert_same(found_batches, list(grain.IterDataset.batch(dataset, 25)))
    assert [len(batch["index"]) for batch in found_batches] == [25, 25, 4]
    # Its states, too, in the middle of what was pulled.
    iterator = iter(dataset)
    for number in range(0, len(expected), 9):
        again = iter(dataset)
        again.set_state(iterator.get_state())
        assert_same(next(again), expected[number])
        again.close()
        for _ in range(9):
            next(iterator, None)


def test_nothing_passes_the_filter(repository: lg.Repository) -> None:
    order = lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, num_epochs=1)
    dataset = piped(
        repository, order.filter(lambda row: row < 0).map(lg.DeltaTimestamps(repository))
    )
    assert list(dataset) == []
    assert list(dataset.batch(3)) == []


# --- windows of different lengths ----------------------------------------------------------------


class Requests(grain.IterDataset[WindowRequest]):
    """Requests made by a function of their number; it may raise."""

    def __init__(self, make: Callable[[int], WindowRequest], count: int) -> None:
        super().__init__()
        self.make, self.count = make, count

    def __iter__(self) -> grain.DatasetIterator[WindowRequest]:
        return _RequestsIterator(self)


class _RequestsIterator(grain.DatasetIterator[WindowRequest]):
    def __init__(self, dataset: Requests) -> None:
        super().__init__()
        self.dataset, self.next = dataset, 0

    def __next__(self) -> WindowRequest:
        if self.next >= self.dataset.count:
            raise StopIteration
        request = self.dataset.make(self.next)
        self.next += 1
        return request

    def get_state(self) -> dict[str, Any]:
        return {"next": self.next}

    def set_state(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


def request_at(repository: lg.Repository, row: int, frames: dict[str, list[int]]) -> WindowRequest:
    episode, frame = repository.episodes.locate(row)
    return WindowRequest(
        row,
        episode,
        frame,
        {key: np.array(window, np.int64) for key, window in frames.items()},
        {key: np.array(window, np.int64) % 2 == 1 for key, window in frames.items()},
    )


def uneven(number: int) -> dict[str, list[int]]:
    """Returns the windows of request `number`, which is in the first episode: of other lengths for
    every one, two and three of them.
    """
    return {
        TOP: [(5 * number + k) % 40 for k in range(1 + number % 3)],
        "action": [(7 * number) % 40] * (1 + number // 2 % 2),
        **({"observation.note": [number % 40, 3]} if number % 5 < 3 else {}),
    }


def check(written: WrittenDataset, example: dict[str, Any], number: int, row: int) -> None:
    windows = uneven(number)
    assert example["index"] == row
    assert read_barcodes(example[TOP])[:, :2].tolist() == [[0, frame] for frame in windows[TOP]]
    assert read_barcodes(example[WRIST][None]).tolist() == [[0, row, 1]]
    assert np.array_equal(
        example["action"],
        np.stack([written.expected_row(0, frame)["action"] for frame in windows["action"]]),
    )
    note = written.expected_row(0, row)["observation.note"]
    if "observation.note" in windows:
        note = [
            written.expected_row(0, frame)["observation.note"]
            for frame in windows["observation.note"]
        ]
    assert example["observation.note"] == note
    for key, window in windows.items():
        assert example[f"{key}_is_pad"].tolist() == [frame % 2 == 1 for frame in window]
    assert {key for key in example if key.endswith("_is_pad")} == {
        f"{key}_is_pad" for key in windows
    }


@pytest.mark.parametrize("budget_bytes", [3 << 29, 1 << 17], ids=["large", "small"])
def test_windows_of_different_lengths_one_after_the_other(
    written: WrittenDataset, repository: lg.Repository, budget_bytes: int
) -> None:
    rows = [(11 * number) % 40 for number in range(60)]
    requests = Requests(
        lambda number: request_at(repository, rows[number], uneven(number)), len(rows)
    )
    dataset = piped(
        repository, requests, read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes)
    )
    iterator = iter(dataset)
    for number, row in enumerate(rows):
        check(written, next(iterator), number, row)
        assert iterator.get_state() == {"next": number + 1}
    with pytest.raises(StopIteration):
        next(iterator)
    iterator.set_state({"next": 31})
    check(written, next(iterator), 31, rows[31])
    iterator.close()


def test_batches_of_equal_windows_between_those_of_other_lengths(
    written: WrittenDataset, repository: lg.Repository
) -> None:
    def make(number: int) -> WindowRequest:
        return request_at(
            repository, number % 40, {"action": [number % 40] * (1 + number // 4 % 3)}
        )

    batches = list(piped(repository, Requests(make, 40), features=["action", "index"]).batch(4))
    assert [batch["action"].shape for batch in batches] == [
        (4, 1 + number % 3, 7) for number in range(10)
    ]
    for number, batch in enumerate(batches):
        for place, value in enumerate(batch["action"]):
            expected = written.expected_row(0, 4 * number + place)["action"]
            assert np.array_equal(value, np.stack([expected] * (1 + number % 3)))


UNEQUAL: dict[str, tuple[dict[str, list[int]], dict[str, list[int]], str]] = {
    "lengths": (
        {"action": [0]},
        {"action": [0, 1]},
        r"'action' has shape \(1, 7\) in one example and \(2, 7\) in another",
    ),
    "strings": (
        {"observation.note": [0]},
        {"observation.note": [0, 1]},
        r"'observation.note' has shape \(1,\) in one .* and \(2,\) in another",
    ),
    "one more": (
        {},
        {"observation.note": [0]},
        r"'observation.note' has shape \(\) in one .* and \(1,\) in another",
    ),
    "one less": (
        {"next.done": [0]},
        {},
        r"'next.done' has shape \(1,\) in one .* and \(\) in another",
    ),
    # Nothing but the mask tells that there is a window.
    "not read": (
        {},
        {TOP: [0]},
        r"'observation.images.top_is_pad' has shape none in one .* and \(1,\) in another",
    ),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_windows_of_different_lengths_do_not_fit_into_a_batch(
    repository: lg.Repository, name: str
) -> None:
    *windows, text = UNEQUAL[name]
    requests = Requests(lambda number: request_at(repository, number, windows[number // 6]), 12)
    dataset = piped(
        repository, requests, features=["action", "index", "observation.note", "next.done"]
    )
    ours, grains = iter(dataset.batch(4)), iter(grain.IterDataset.batch(dataset, 4))
    assert_same(next(ours), next(grains))
    with pytest.raises(ValueError, match="structure"):
        next(grains)
    for _ in range(2):
        with pytest.raises(
            lg.InvalidRequestError,
            match=f"^a batch: {text}; expected windows of the same features and lengths",
        ):
            next(ours)
        assert ours.get_state() == {"next": 4}
    ours.close()
    grains.close()


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["examples", "batches", "device feed"])
def test_a_second_thread_in_next_is_refused_and_disturbs_nothing(
    repository: lg.Repository, kind: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(number: int) -> WindowRequest:
        begun.set()
        assert go_on.wait(30)
        return request_at(repository, number, {})

    dataset: Any = piped(repository, Requests(make, 9), features=["index"])
    if kind != "examples":
        dataset = dataset.batch(1)
    if kind == "device feed":
        dataset = dataset.pipe(lg.DeviceIterDataset)
    iterator = iter(dataset)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(next, iterator)
        assert begun.wait(30)
        for _ in range(2):
            with pytest.raises(
                lg.InvalidRequestError,
                match="while another thread is inside of next of the same iterator",
            ):
                next(iterator)
        go_on.set()
        found = [first.result(30), *iterator]
    assert [int(np.ravel(element["index"])[0]) for element in found] == list(range(9))
    iterator.close()


# --- errors of the parent ------------------------------------------------------------------------


class TroubleError(Exception):
    pass


@pytest.mark.parametrize("bad", [0, 1, 10, 300])
def test_an_error_of_the_parent_comes_behind_the_examples_before_it(
    repository: lg.Repository, bad: int
) -> None:
    is_repaired = False

    def make(number: int) -> WindowRequest:
        if number == bad and not is_repaired:
            raise TroubleError("number")
        return request_at(repository, number % NUM_ROWS, {})

    dataset = piped(repository, Requests(make, 330), features=["index"])
    single, batched = iter(dataset), iter(dataset.batch(7))
    assert [int(next(single)["index"]) for _ in range(bad)] == [
        number % NUM_ROWS for number in range(bad)
    ]
    found = [row for _ in range(bad // 7) for row in next(batched)["index"].tolist()]
    assert found == [number % NUM_ROWS for number in range(bad // 7 * 7)]
    for iterator, position in ((single, bad), (batched, bad // 7 * 7)):
        for _ in range(2):
            with pytest.raises(TroubleError):
                next(iterator)
            assert iterator.get_state() == {"next": position}
    is_repaired = True
    assert [int(example["index"]) for example in single] == [
        number % NUM_ROWS for number in range(bad, 330)
    ]
    rest = [row for batch in batched for row in batch["index"].tolist()]
    assert rest == [number % NUM_ROWS for number in range(bad // 7 * 7, 330)]


def test_a_request_above_the_budget_comes_behind_the_examples_before_it(
    repository: lg.Repository,
) -> None:
    requests = Requests(
        lambda number: request_at(repository, number, {TOP: [0] * (1 if number < 20 else 100)}), 30
    )
    options = lg.ReadOptions(memory_budget_bytes=1 << 18)
    iterator = iter(piped(repository, requests, features=[TOP, "index"], read_options=options))
    assert [int(next(iterator)["index"]) for _ in range(20)] == list(range(20))
    with pytest.raises(
        lg.InvalidRequestError, match="the camera frames of one example take 1536000 bytes"
    ):
        next(iterator)
    assert iterator.get_state() == {"next": 20}
    iterator.close()


IMPOSSIBLE: dict[str, tuple[tuple[int, int], dict[str, list[int]], str]] = {
    "episode": ((4, 0), {}, "there is no episode 4; the dataset has episodes 0 to 3"),
    "negative episode": ((-1, 0), {}, "there is no episode -1; the dataset has episodes 0 to 3"),
    "frame": ((1, 7), {}, r"frame is \[7\]; expected frames of episode 1, which are 0 to 6"),
    "negative frame": (
        (2, -1),
        {},
        r"frame is \[-1\]; expected frames of episode 2, which are 0 to 0",
    ),
    "window": (
        (0, 3),
        {"action": [3, 40]},
        r"frames\['action'\] is \[3, 40\]; expected frames of episode 0, which are 0 to 39",
    ),
    "negative in a window": (
        (3, 3),
        {TOP: [-1]},
        r"frames\['observation.images.top'\] is \[-1\]; expected frames of episode 3",
    ),
    "empty window": (
        (0, 3),
        {"action": []},
        "the window of 'action' is empty; expected at least one frame",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_request_for_what_is_not_there_comes_behind_the_examples_before_it(
    repository: lg.Repository, name: str
) -> None:
    """Rows of a data file and frames of a video follow each other over episodes, so that it might
    give those of another one.
    """
    (episode, frame), windows, text = IMPOSSIBLE[name]

    def make(number: int) -> WindowRequest:
        if number == 5:
            frames = {key: np.array(window, np.int64) for key, window in windows.items()}
            return WindowRequest(
                0, episode, frame, frames, {key: window < 0 for key, window in frames.items()}
            )
        return request_at(
            repository,
            number,
            {key: [0] * len(window) for key, window in windows.items() if window},
        )

    iterator = iter(piped(repository, Requests(make, 30), features=[TOP, "action", "index"]))
    assert [int(next(iterator)["index"]) for _ in range(5)] == list(range(5))
    for _ in range(2):
        with pytest.raises(lg.InvalidRequestError, match=f"^a WindowRequest: {text}"):
            next(iterator)
        assert iterator.get_state() == {"next": 5}
    iterator.set_state({"next": 6})
    assert next(iterator)["index"] == 6
    iterator.close()

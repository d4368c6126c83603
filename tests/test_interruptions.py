"""An exception of a signal handler (Ctrl-C, a scheduler's SIGTERM) inside of `next`: the stream and its state stay at an example.

It is raised at every line of ours that runs in the consumer's thread, found by tracing, once with a reader that has just begun and once with
one that reads ahead. The program then goes on, with `next` or with the state that it saves. Where the line is one of Grain's wrappers, what
Grain does counts (docs/determinism.md).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import WrittenDataset, write_dataset

PACKAGE = os.path.dirname(lg.__file__) + os.sep

# The file and the number of a line.
Place = tuple[str, int]


class Struck(BaseException):
    """What a signal handler raises, as KeyboardInterrupt is."""


class Late(Exception):
    """What another one raises, as TimeoutError is: code that goes on after errors may catch it."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(tmp_path_factory.mktemp("interrupted") / "data", episode_lengths=[9, 6, 9])


def examples(repository: lg.Repository, *, seed: int = 3) -> Any:
    shuffle = lg.Shuffle(seed=seed, clip_length=2, num_parts=2, buffer_size=6)
    deltas = {"action": [0.0, 0.1]}
    return lg.LeRobotIterDataset(repository, shuffle=shuffle, features=["index", "action"], delta_timestamps=deltas, num_epochs=3)


def filtered(repository: lg.Repository) -> Any:
    order = lg.FrameOrderIterDataset(repository, shuffle=lg.Shuffle(seed=3), num_epochs=3).filter(lambda row: int(row) % 3 != 1)
    return lg.ReadWindowsIterDataset(order.map(lg.DeltaTimestamps(repository, {"action": [0.0, 0.1]})), repository, features=["index", "action"])


def mixed(repository: lg.Repository, of: Callable[[Any], Any] = lambda stream: stream) -> Any:
    streams = [of(examples(repository, seed=seed)).map(functools.partial(dict, stream=seed)) for seed in (3, 4)]
    return grain.IterDataset.mix(streams, [2, 1])


PIPELINES: dict[str, Callable[[lg.Repository], Any]] = {
    "examples": examples,
    "batches": lambda repository: examples(repository).batch(5),
    "mapped": lambda repository: examples(repository).map(functools.partial(dict, more=1)),
    "filtered": filtered,
    "filtered batches": lambda repository: filtered(repository).batch(4),
    "device feed": lambda repository: examples(repository).batch(5).pipe(lg.DeviceIterDataset),
}
MIXTURES: dict[str, Callable[[lg.Repository], Any]] = {
    "examples": mixed,
    "batches": lambda repository: mixed(repository, lambda stream: stream.batch(3)),
}


def rows(element: dict[str, Any]) -> list[int]:
    found: list[int] = np.atleast_1d(np.asarray(element["index"])).tolist()
    return found


def elements(iterator: grain.DatasetIterator[Any], count: int | None = 4) -> list[list[int]]:
    """Returns the rows of the next elements, or of all; one `Late` that comes out is what was raised before."""
    found: list[list[int]] = []
    while True:
        try:
            while len(found) != count:
                found.append(rows(next(iterator)))
            return found
        except StopIteration:
            return found
        except Late:
            pass


def traced(call: Callable[[], Any], at: Callable[[Place], BaseException | None]) -> Any:
    """Runs `call`, and raises what `at` gives before a line of ours in this thread."""

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and (error := at((frame.f_code.co_filename, frame.f_lineno))) is not None:
            sys.settrace(None)
            raise error
        return on_line

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        return call()
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def behind(dataset: Any, taken: int) -> Iterator[grain.DatasetIterator[Any]]:
    """Yields an iterator of which `taken` elements were taken."""
    with contextlib.closing(iter(dataset)) as iterator:
        for _ in range(taken):
            next(iterator)
        yield iterator


def interrupted(dataset: Any, error: type[BaseException]) -> Iterator[tuple[int, Place, grain.DatasetIterator[Any]]]:
    """Yields iterators that were interrupted, each at another line or, where it runs more than once, at another time, behind n elements."""
    for taken in (0, 3):
        lines: Counter[Place] = Counter()
        with behind(dataset, taken) as iterator:
            traced(lambda iterator=iterator: next(iterator), lambda place: lines.update([place]))
        for place, times in lines.items():
            for hit in {1, times}:
                left = itertools.count(hit, -1)
                with behind(dataset, taken) as iterator:
                    try:
                        traced(
                            lambda iterator=iterator: next(iterator),
                            lambda found, place=place, left=left: error() if found == place and next(left) == 1 else None,
                        )
                    except error:
                        yield taken, place, iterator


@pytest.mark.parametrize("error", [Struck, Late])
@pytest.mark.parametrize("name", PIPELINES)
def test_stream_and_state_stay_at_an_element_wherever_next_is_interrupted(
    written: WrittenDataset, name: str, error: type[BaseException]
) -> None:
    dataset = PIPELINES[name](lg.open_repository(written.directory))
    with contextlib.closing(iter(dataset)) as whole:
        straight = elements(whole, None)
    num_places = 0
    for taken, place, iterator in interrupted(dataset, error):
        state = iterator.get_state()
        with contextlib.closing(iter(dataset)) as other:
            other.set_state(state)
            assert elements(other) == straight[taken : taken + 4], place
        assert elements(iterator) == straight[taken : taken + 4], place
        num_places += 1
    assert num_places > 40
    print(f"{name}: {num_places} interruptions")


@pytest.mark.parametrize("name", MIXTURES)
def test_no_stream_of_a_mixture_skips_or_repeats_a_row(written: WrittenDataset, name: str) -> None:
    """Grain has counted the turn of the stream that was interrupted: the next element is that of the next turn."""
    repository = lg.open_repository(written.directory)
    dataset = MIXTURES[name](repository)
    streams = {seed: [row for element in examples(repository, seed=seed) for row in rows(element)] for seed in (3, 4)}

    def taken_of(found: list[dict[str, Any]]) -> dict[int, list[int]]:
        return {seed: [row for element in found if element["stream"] == seed for row in rows(element)] for seed in streams}

    straight = list(dataset)
    num_places = 0
    for taken, place, iterator in interrupted(dataset, Struck):
        state = iterator.get_state()
        rest = taken_of(list(itertools.islice(iterator, 6)))
        with contextlib.closing(iter(dataset)) as other:
            other.set_state(state)
            assert taken_of(list(itertools.islice(other, 6))) == rest, place
        before = taken_of(straight[:taken])
        for seed, order in streams.items():
            found = before[seed] + rest[seed]
            assert found == order[: len(found)], place
        num_places += 1
    assert num_places > 40
    print(f"{name}: {num_places} interruptions")

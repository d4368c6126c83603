"""An exception of a signal handler (Ctrl-C, a scheduler's SIGTERM) inside of `next`: the stream and
its state stay at an example.

It is raised at every line of ours that runs in the consumer's thread, found by tracing, once with a
reader that has just begun and once with one that reads ahead. The program then goes on, with `next`
or with the state that it saves. On lines of Grain's wrappers, Grain's behavior counts
(docs/determinism.md).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import LoopbackHub, write_dataset

PACKAGE = os.path.dirname(lg.__file__) + os.sep

# Hundreds of streams, each interrupted once: minutes.
AT_EVERY_PLACE = [pytest.mark.long, pytest.mark.timeout(900)]
# Of these one in so many: no number of lines that a loop has divides it.
SOME = 47
EVERY = pytest.mark.parametrize("every", [pytest.param(1, marks=AT_EVERY_PLACE), SOME])

# The file and the number of a line.
Place = tuple[str, int]


class Struck(BaseException):
    """An error that a signal handler raises, like KeyboardInterrupt."""


class LateError(Exception):
    """One of another handler, like TimeoutError: code that continues after errors may catch it."""


# The device feed has few lines of its own, and one of them between two that were tried lost a
# batch: all are always tried, with both errors. Of the others each with one of them.
FEW: list[tuple[str, type[BaseException], int]] = [
    ("examples", Struck, SOME),
    ("batches", LateError, SOME),
    ("filtered", LateError, SOME),
    ("filtered batches", Struck, SOME),
    ("device feed", Struck, 1),
    ("device feed", LateError, 1),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    return lg.open_repository(
        write_dataset(
            tmp_path_factory.mktemp("interrupted") / "data", episode_lengths=[9, 6, 9]
        ).directory
    )


def examples(repository: lg.Repository, *, seed: int = 3) -> Any:
    shuffle = lg.Shuffle(seed=seed, clip_length=2, num_parts=2, buffer_size=6)
    deltas = {"action": [0.0, 0.1]}
    return lg.LeRobotIterDataset(
        repository,
        shuffle=shuffle,
        features=["index", "action", "task"],
        delta_timestamps=deltas,
        num_epochs=3,
    )


def filtered(repository: lg.Repository) -> Any:
    order = lg.FrameOrderIterDataset(repository, shuffle=lg.Shuffle(seed=3), num_epochs=3).filter(
        lambda row: int(row) % 3 != 1
    )
    return lg.ReadWindowsIterDataset(
        order.map(lg.DeltaTimestamps(repository, {"action": [0.0, 0.1]})),
        repository,
        features=["index", "action"],
    )


PIPELINES: dict[str, Callable[[lg.Repository], Any]] = {
    "examples": examples,
    "batches": lambda repository: examples(repository).batch(5),
    "filtered": filtered,
    "filtered batches": lambda repository: filtered(repository).batch(4),
    "device feed": lambda repository: examples(repository).batch(5).pipe(lg.DeviceIterDataset),
}
MIXTURES: dict[str, Callable[[Any], Any]] = {
    "examples": lambda stream: stream,
    "batches": lambda stream: stream.batch(3),
}


def rows(element: dict[str, Any]) -> list[int]:
    found: list[int] = np.atleast_1d(np.asarray(element["index"])).tolist()
    return found


def elements(iterator: grain.DatasetIterator[Any], count: int | None = 4) -> list[list[int]]:
    """Returns the rows of the next elements, or of all; one `LateError` that comes out is what was
    raised before.
    """
    found: list[list[int]] = []
    while True:
        try:
            while len(found) != count:
                found.append(rows(next(iterator)))
            return found
        except StopIteration:
            return found
        except LateError:
            pass


def traced(call: Callable[[], Any], at: Callable[[Place], BaseException | None]) -> Any:
    """Runs `call`, and raises what `at` gives before a line of ours in this thread."""

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        if (
            event == "line"
            and (error := at((frame.f_code.co_filename, frame.f_lineno))) is not None
        ):
            sys.settrace(None)
            raise error
        return on_line

    def on_call(frame: FrameType, _event: str, _: Any) -> Any:
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


def lines_of_next(dataset: Any, taken: int) -> Counter[Place]:
    """Returns the lines of ours that `next` runs after n elements, and how often."""
    lines: Counter[Place] = Counter()
    with behind(dataset, taken) as iterator:
        traced(lambda: next(iterator), lambda place: lines.update([place]))
    return lines


def struck(
    iterator: grain.DatasetIterator[Any], error: BaseException, *, at: Place, hit: int
) -> bool:
    """Calls `next`, and raises the error when it comes to a line for the n-th time; returns whether
    it came out.
    """
    left = itertools.count(hit, -1)
    try:
        traced(
            lambda: next(iterator), lambda place: error if place == at and next(left) == 1 else None
        )
    except type(error):
        return True
    return False


def interrupted(
    dataset: Any, error: type[BaseException], every: int
) -> Iterator[tuple[int, Place, grain.DatasetIterator[Any]]]:
    """Yields iterators that were interrupted after n elements, each at another line, the first or
    last time that it runs: every n-th.
    """
    for taken in (0, 3):
        points = [
            (place, hit)
            for place, times in lines_of_next(dataset, taken).items()
            for hit in sorted({1, times})
        ]
        for place, hit in points[::every]:
            with behind(dataset, taken) as iterator:
                if struck(iterator, error(), at=place, hit=hit):
                    yield taken, place, iterator


@pytest.mark.parametrize(
    ("name", "error", "every"),
    [
        *FEW,
        *(
            pytest.param(name, error, 1, marks=AT_EVERY_PLACE)
            for name in PIPELINES
            for error in (Struck, LateError)
            if (name, error, 1) not in FEW
        ),
    ],
)
def test_stream_and_state_stay_at_an_element_wherever_next_is_interrupted(
    repository: lg.Repository, name: str, error: type[BaseException], every: int
) -> None:
    dataset = PIPELINES[name](repository)
    with contextlib.closing(iter(dataset)) as whole:
        straight = elements(whole, None)
    num_places = 0
    for taken, place, iterator in interrupted(dataset, error, every):
        state = iterator.get_state()
        with contextlib.closing(iter(dataset)) as other:
            other.set_state(state)
            assert elements(other) == straight[taken : taken + 4], place
        assert elements(iterator) == straight[taken : taken + 4], place
        num_places += 1
    assert num_places > 50 / every
    print(f"{name}: {num_places} interruptions")


@EVERY
@pytest.mark.parametrize("name", MIXTURES)
def test_no_stream_of_a_mixture_skips_or_repeats_a_row(
    repository: lg.Repository, tmp_path: Path, name: str, every: int
) -> None:
    """Grain has counted the turn of the stream that was interrupted: the next element is that of
    the next turn.
    """
    other = lg.open_repository(
        write_dataset(tmp_path / "other", episode_lengths=[8, 8], tasks=("another",)).directory
    )
    streams = [MIXTURES[name](examples(each)) for each in (repository, other)]
    dataset = grain.IterDataset.mix(streams, [2, 1])

    def taken_of(found: list[dict[str, Any]]) -> list[list[int]]:
        """Returns the rows of each stream, told by their task."""
        pairs = [
            (str(np.atleast_1d(element["task"])[0]), row)
            for element in found
            for row in rows(element)
        ]
        return [
            [row for task, row in pairs if (task == "another") is is_other]
            for is_other in (False, True)
        ]

    whole = [taken_of(list(stream))[place] for place, stream in enumerate(streams)]
    straight = list(dataset)
    num_places = 0
    for taken, place, iterator in interrupted(dataset, Struck, every):
        state = iterator.get_state()
        rest = taken_of(list(itertools.islice(iterator, 6)))
        with contextlib.closing(iter(dataset)) as restored:
            restored.set_state(state)
            assert taken_of(list(itertools.islice(restored, 6))) == rest, place
        for order, before, behind_it in zip(whole, taken_of(straight[:taken]), rest, strict=True):
            found = before + behind_it
            assert found == order[: len(found)], place
        num_places += 1
    assert num_places > 50 / every
    print(f"a mixture of {name}: {num_places} interruptions")


def test_no_lock_of_the_process_stays_locked(hub: LoopbackHub, tmp_path: Path) -> None:
    """`with` of a `threading.Condition` is Python, where an exception may strike between the lock
    and the block: what other datasets share then stays locked.
    """
    written = write_dataset(tmp_path / "data", episode_lengths=[9]).directory
    hub.add_repository("interrupted/data", written, tags=["v3.0"])

    def read() -> int:
        repository = lg.open_repository(
            "interrupted/data", endpoint=hub.endpoint, cache_dir=tmp_path / "hub"
        )
        with contextlib.closing(repository):
            return repository.episodes.num_rows

    def struck_at(hit: int) -> bool:
        """Reads; raises where `with` of ours is in Python for the n-th time, if it is."""
        left = itertools.count(hit, -1)

        def on_line(_frame: FrameType, event: str, _: Any) -> Any:
            if event == "line" and next(left) == 0:
                sys.settrace(None)
                raise Struck
            return on_line

        def on_call(frame: FrameType, _event: str, _: Any) -> Any:
            code = frame.f_code
            is_with = code.co_name in ("__enter__", "__exit__")
            caller = frame.f_back
            if not is_with or code.co_filename != threading.__file__ or caller is None:
                return None
            return on_line if caller.f_code.co_filename.startswith(PACKAGE) else None

        before = sys.gettrace()
        sys.settrace(on_call)
        try:
            read()
        except Struck:
            return True
        finally:
            sys.settrace(before)
        return False

    num_places = next(hit for hit in itertools.count() if not struck_at(hit))
    print(f"{num_places} interruptions")
    assert num_places > 0  # in the semaphore of the dataset itself
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    # Not waited for where it never ends.
    threading.Thread(target=lambda: found.put(read()), daemon=True).start()
    assert found.get(timeout=30) == 9

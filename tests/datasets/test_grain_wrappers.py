"""What Grain's own wrappers do when an exception is raised inside `next`, as docs/determinism.md
says it. One that behaves otherwise in a
newer Grain is a reason to write that down, and no fault.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
import pytest
from grain import experimental


class LateError(Exception):
    """An error that a signal handler may raise and code may catch."""


class Struck(BaseException):
    """An error that a signal handler raises, like KeyboardInterrupt."""


class Source(grain.IterDataset[int]):
    """Eight numbers; before the n-th one an error is raised once, and nothing is lost."""

    def __init__(
        self, error: type[BaseException], at: int = 99, *, base: int = 0, pause_seconds: float = 0.0
    ) -> None:
        super().__init__()
        self.error, self.at, self.base, self.pause_seconds = error, at, base, pause_seconds

    def __iter__(self) -> grain.DatasetIterator[int]:
        return _SourceIterator(self)


class _SourceIterator(grain.DatasetIterator[int]):
    def __init__(self, dataset: Source) -> None:
        super().__init__()
        self.dataset, self.number, self.has_raised = dataset, 0, False

    def __next__(self) -> int:
        time.sleep(self.dataset.pause_seconds)
        if self.number == self.dataset.at and not self.has_raised:
            self.has_raised = True
            raise self.dataset.error
        if self.number == 8:
            raise StopIteration
        self.number += 1
        return self.dataset.base + self.number - 1

    def get_state(self) -> dict[str, Any]:
        return {"number": self.number}

    def set_state(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


class Twice(experimental.FlatMapTransform):
    max_fan_out = 2

    def flat_map(self, element: int) -> list[int]:
        return [element, element]


def once(error: type[BaseException], at: int, *, then: Any = None) -> Callable[..., Any]:
    """Returns the identity, or what returns `then`; it raises once, when it comes to `at`."""
    left = [error]

    def function(element: Any, _: Any = None) -> Any:
        if left and at in np.atleast_1d(element):
            raise left.pop()
        return element if then is None else then

    return function


def drained(iterator: grain.DatasetIterator[Any]) -> list[Any]:
    """Returns what comes until the end, with `"!"` where an exception did."""
    found: list[Any] = []
    while len(found) < 40:
        try:
            element = next(iterator)
        except StopIteration:
            return found
        except (LateError, Struck):
            found.append("!")
        else:
            found.append(np.asarray(element).tolist())
    return found


KEPT = [0, 1, 2, "!", 3, 4, 5, 6, 7]
LOST = [0, 1, 2, "!", 4, 5, 6, 7]
# Wrappers above a source, and the results, whichever exception is raised.
WRAPPERS: dict[str, tuple[Callable[[type[BaseException]], Any], list[Any]]] = {
    "map": (lambda error: Source(error, 3).map(lambda x: x), KEPT),
    "filter": (lambda error: Source(error, 3).filter(lambda _: True), KEPT),
    "repeat": (lambda error: experimental.RepeatIterDataset(Source(error, 3), 1), KEPT),
    "limit": (lambda error: experimental.LimitIterDataset(Source(error, 3), 8), KEPT),
    "flat map": (
        lambda error: experimental.FlatMapIterDataset(Source(error, 1), Twice()),
        [0, 0, "!", *sorted([*range(1, 8)] * 2)],
    ),
    "window shuffle": (
        lambda error: experimental.WindowShuffleIterDataset(
            Source(error, 2), window_size=2, seed=0
        ).map(lambda x: x // 2),
        [0, 0, "!", 1, 1, 2, 2, 3, 3],
    ),
    "function of map": (lambda error: Source(error).map(once(error, 3)), LOST),
    "function of filter": (lambda error: Source(error).filter(once(error, 3, then=True)), LOST),
    "function of random_map": (
        lambda error: Source(error).seed(0).random_map(once(error, 3)),
        LOST,
    ),
    "batch": (lambda error: Source(error, 4).batch(3), [[0, 1, 2], "!", [4, 5, 6], [7]]),
    "batch_fn": (
        lambda error: Source(error).batch(3, batch_fn=once(error, 4)),
        [[0, 1, 2], "!", [6, 7]],
    ),
    "rebatch": (
        lambda error: experimental.RebatchIterDataset(
            Source(error, 4).map(lambda x: np.array([x, x])), 3
        ),
        [
            [0, 0, 1],
            [1, 2, 2],
            "!",
            [4, 4, 5],
            [5, 6, 6],
            [7, 7],
        ],
    ),
    "zip": (
        lambda error: experimental.ZipIterDataset(
            [Source(error), Source(error, 3, base=10)], strict=False
        ),
        [[0, 10], [1, 11], [2, 12], "!", [4, 13], [5, 14], [6, 15], [7, 16]],
    ),
}


@pytest.mark.parametrize("error", [LateError, Struck])
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_comes_after_an_exception(name: str, error: type[BaseException]) -> None:
    make, expected = WRAPPERS[name]
    assert drained(iter(make(error))) == expected


def test_random_map_counts_no_element_whose_function_raised() -> None:
    iterator = iter(Source(LateError).seed(0).random_map(once(LateError, 3)))
    assert drained(iterator) == LOST
    assert iterator.get_state()["index_for_rng"] == 7


def test_a_mixture_ends_after_an_error_and_goes_on_with_the_next_turn_after_others() -> None:
    def mixture(error: type[BaseException]) -> Any:
        return iter(grain.IterDataset.mix([Source(error, 2), Source(error, base=10)], [1, 1]))

    ended = mixture(LateError)
    assert drained(ended) == [0, 10, 1, 11, "!"]
    restored = mixture(LateError)
    restored.set_state(ended.get_state())
    assert drained(restored) == []
    assert drained(mixture(Struck))[:9] == [0, 10, 1, 11, "!", 12, 2, 13, 3]


def test_a_thread_that_prefetches_hands_errors_on_and_loses_nothing() -> None:
    assert (
        drained(
            iter(
                experimental.ThreadPrefetchIterDataset(Source(LateError, 3), prefetch_buffer_size=2)
            )
        )
        == KEPT
    )
    # The handler raises in the consumer's own thread, which waits, and prefetched elements stay.
    waiting = iter(
        experimental.ThreadPrefetchIterDataset(
            Source(LateError, pause_seconds=0.1), prefetch_buffer_size=2
        )
    )

    def strike(*_: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    try:
        found = [next(waiting)]
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(Struck):
            next(waiting)
        assert waiting.get_state() == {"number": 1}
        assert found + drained(waiting) == [*range(8)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        waiting.close()

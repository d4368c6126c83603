"""Known frames against a dict of rows, and the store's slots against a set."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._reading.frames.frame_store import _PAGE, NO_SLOT, FrameDemand, FrameStore

# More pages than there are at first, rows at their borders, far apart and close together.
ROWS = st.one_of(
    st.integers(0, 3 * _PAGE),
    st.integers(0, 60).map(lambda page: page * _PAGE + 7),
    st.just(10**12),
    st.just(_PAGE - 1),
)
BLOCKS = st.integers(1, 3).flatmap(
    lambda time: st.lists(
        st.lists(ROWS, min_size=time, max_size=time), min_size=1, max_size=12
    ).map(lambda rows: np.array(rows, np.int64))
)


def assert_empty(known: FrameDemand) -> None:
    assert known._pages == {}
    assert sorted(known._free) == list(range(1, known._num_pages))
    assert not known.uses.any()
    assert not known.is_requested.any()
    assert not known._waiting_uses.any()
    assert (known.slots == NO_SLOT).all()


@settings(max_examples=150, deadline=None)
@given(blocks=st.lists(BLOCKS, min_size=1, max_size=12), ahead=st.integers(1, 6))
def test_known_frames_are_a_dict_of_rows(blocks: list[np.ndarray], ahead: int) -> None:
    """Blocks are added, decoded and used in order, with `ahead` of them known at a time."""
    known = FrameDemand()
    uses: Counter[int] = Counter()
    slots: dict[int, int] = {}
    pending: deque[tuple[np.ndarray, np.ndarray]] = deque()
    num_slots = 0
    for number in range(len(blocks) + ahead):
        if number < len(blocks):
            rows = blocks[number]
            entries = known.add(rows)
            assert entries.shape == rows.shape
            assert (entries > 0).all()
            assert (
                len(set(zip(rows.flat, entries.flat, strict=True)))
                == len(set(rows.flat))
                == len(set(entries.flat))
            )
            uses.update(rows.reshape(-1).tolist())
            pending.append((rows, entries))
        if number < ahead or not pending:
            continue
        rows, entries = pending.popleft()
        for row, entry in zip(rows.reshape(-1).tolist(), entries.reshape(-1).tolist(), strict=True):
            assert known.slots[entry] == slots.get(row, NO_SLOT)
            assert known.is_requested[entry] == (row in slots)
            if row not in slots:
                slots[row] = num_slots
                known.slots[entry], known.is_requested[entry] = num_slots, True
                num_slots += 1
        # One example after the other, as they are taken.
        for example_rows, example_entries in zip(rows.tolist(), entries, strict=True):
            uses.subtract(example_rows)
            gone = {row for row in example_rows if uses[row] == 0}
            assert sorted(known.use(example_entries).tolist()) == sorted(
                slots.pop(row) for row in gone
            )
        everything = np.array(sorted({*uses, 5, 2 * _PAGE, 10**15 + 1}), np.int64)
        found = known.find(everything)
        assert known.uses[found].tolist() == [max(0, uses[row]) for row in everything.tolist()]
        assert known.slots[found].tolist() == [
            slots.get(row, NO_SLOT) for row in everything.tolist()
        ]
        assert found[-1] == known.find(everything[-1:])[0] == 0, "there is no page of this row"
        assert (known.uses[0], known.slots[0], known.is_requested[0]) == (0, NO_SLOT, False)
    assert_empty(known)


@settings(max_examples=50, deadline=None)
@given(blocks=st.lists(BLOCKS, min_size=1, max_size=6))
def test_the_next_use_is_the_first_coming_block(blocks: list[np.ndarray]) -> None:
    known = FrameDemand()
    coming = [known.add(rows) for rows in blocks]
    found = known.next_uses(list(enumerate(coming)))
    assert len(found) == len(known.uses)
    first: dict[int, int] = {}
    for number, entries in enumerate(coming):
        for entry in entries.reshape(-1).tolist():
            first.setdefault(entry, number)
    never = np.iinfo(np.int64).max
    assert found.tolist() == [first.get(entry, never) for entry in range(len(found))]


def test_pages_are_used_again() -> None:
    """However long the stream: memory is that of the rows that are known at a time."""
    known = FrameDemand()
    pending: deque[np.ndarray] = deque()
    for page in range(1000):
        pending.append(known.add(np.array([[page * _PAGE, page * _PAGE + 9]])))
        if len(pending) > 10:
            known.use(pending.popleft().reshape(-1))
    assert known._num_pages == 16
    while pending:
        known.use(pending.popleft().reshape(-1))
    assert_empty(known)


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 9), st.randoms(use_true_random=False)), max_size=40))
def test_slots_of_a_store(steps: list[tuple[int, object]]) -> None:
    """No slot is taken twice, and none that was never used while one is free that was: the system
    gives memory for the peak only.
    """
    store = FrameStore((2, 3, 3), np.uint8, 24)
    assert (store.frames.shape, store.frame_bytes) == ((24, 2, 3, 3), 18)
    used: set[int] = set()
    peak = 0
    for count, random in steps:
        if count <= 24 - len(used) and random.random() < 0.6:
            slots, number = store.take(count)
            assert number == store.num_tasks
            assert (store.task_of[slots] == number).all()
            assert slots.dtype == np.int64
            assert len(set(slots.tolist())) == count
            assert not used & set(slots.tolist())
            used |= set(slots.tolist())
        else:
            given_back = random.sample(sorted(used), min(count, len(used)))
            store.give_back(np.array(given_back, np.int64))
            used -= set(given_back)
        peak = max(peak, len(used))
        assert used <= set(range(peak))
        assert (store.num_used, store.used_bytes) == (len(used), 18 * len(used))
    assert sorted(store.take(24 - len(used))[0].tolist()) == sorted(set(range(24)) - used)


def test_a_new_store_gives_the_lowest_slots_in_their_order() -> None:
    store = FrameStore((2, 2, 3), np.uint8, 6)
    assert store.take(2)[0].tolist() == [0, 1]
    assert store.take(3)[0].tolist() == [2, 3, 4]
    store.give_back(np.array([1, 3]))
    assert set(store.take(2)[0].tolist()) == {1, 3}
    assert store.take(1)[0].tolist() == [5]

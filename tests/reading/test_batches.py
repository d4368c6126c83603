"""Batches: equal to Grain's own, cut and joined, and in memory that nobody refers to."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lerobot_grain as lg
from lerobot_grain._base import memory
from lerobot_grain._base.memory import _MAX_FREE, _MIN_BYTES, ArrayPool
from lerobot_grain._reading.batches import Batch, join, num_examples, part_of, split
from lerobot_grain.testing import EXTRA_FEATURES, Camera, WrittenDataset, write_dataset

TOP = "observation.images.top"
WRIST = "observation.images.wrist"
PICTURE = "observation.images.picture"
NUM_ROWS = 53
WINDOWS = {
    TOP: [-0.2, 0.0, 0.3],
    WRIST: [0.0],
    PICTURE: [-0.1, 0.0],
    "action": [0.0, 0.1, 0.2],
    "next.done": [-0.1, 0.0],
    "observation.note": [0.0, 0.1],
    "observation.matrix": [0.1],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    cameras = (
        Camera(key=TOP, height=64, width=96),
        Camera(key=WRIST, height=64, width=80, codec="h264", gop=10, b_frames=2),
        Camera(key=PICTURE, height=32, width=80, kind="image"),
    )
    return write_dataset(
        tmp_path_factory.mktemp("batches") / "data",
        episode_lengths=[21, 8, 1, 23],
        fps=10,
        cameras=cameras,
        features=EXTRA_FEATURES,
        tasks=("pick", "place it carefully"),
        episodes_per_video_file={TOP: 2},
        episodes_per_data_file=2,
    )


def assert_same_batch(found: Any, expected: Any) -> None:
    """The same structure, and in it the same values with the same types; keys may stand in another
    order.
    """
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert_same_batch(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same_batch(one, other)
    else:
        assert isinstance(expected, np.ndarray)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(found, expected)


def grains_batches(
    dataset: lg.LeRobotIterDataset, batch_size: int, *, drop_remainder: bool
) -> grain.IterDataset[Any]:
    return grain.IterDataset.batch(dataset, batch_size, drop_remainder=drop_remainder)


# --- as Grain's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("batch_size", [1, 16, NUM_ROWS, 200])
@pytest.mark.parametrize("deltas", [{}, WINDOWS], ids=["rows", "windows"])
def test_batches_are_those_of_grain(
    written: WrittenDataset, deltas: dict[str, list[float]], batch_size: int, drop_remainder: bool
) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, num_epochs=1, delta_timestamps=deltas)
    found = list(dataset.batch(batch_size, drop_remainder=drop_remainder))
    expected = list(grains_batches(dataset, batch_size, drop_remainder=drop_remainder))
    assert len(found) == (NUM_ROWS // batch_size if drop_remainder else -(-NUM_ROWS // batch_size))
    assert_same_batch(found, expected)


@pytest.mark.parametrize(
    "features", [["task"], ["observation.note"], [PICTURE], [TOP], ["next.done", WRIST]], ids=str
)
def test_batches_of_few_features_are_those_of_grain(
    written: WrittenDataset, features: list[str]
) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, num_epochs=1, features=features)
    assert_same_batch(
        list(dataset.batch(7)), list(grains_batches(dataset, 7, drop_remainder=False))
    )


def test_a_batch_may_span_epochs_and_blocks(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(
        written.directory, num_epochs=12, features=["index", "observation.note", "action"]
    )
    found = list(dataset.batch(300))
    assert [num_examples(batch) for batch in found] == [300, 300, 36]
    assert_same_batch(found, list(grains_batches(dataset, 300, drop_remainder=False)))


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_states_are_those_of_grain_at_every_batch(
    written: WrittenDataset, drop_remainder: bool
) -> None:
    dataset = lg.LeRobotIterDataset(
        written.directory, num_epochs=2, features=["index", TOP], shuffle=lg.Shuffle(num_parts=4)
    )
    ours = iter(dataset.batch(11, drop_remainder=drop_remainder))
    grains = iter(grains_batches(dataset, 11, drop_remainder=drop_remainder))
    expected = list(grains_batches(dataset, 11, drop_remainder=drop_remainder))
    for batch in expected:
        state = json.loads(json.dumps(ours.get_state()))
        assert state == grains.get_state()
        # Each goes on from the other's state.
        ours.set_state(grains.get_state())
        grains.set_state(state)
        assert_same_batch(next(ours), batch)
        assert_same_batch(next(grains), batch)
    assert ours.get_state() == grains.get_state()
    for iterator in (ours, grains):
        with pytest.raises(StopIteration):
            next(iterator)
        with pytest.raises(StopIteration):
            next(iterator)
    assert ours.get_state()["position"] == grains.get_state()["position"] == 2 * NUM_ROWS


def test_a_state_of_single_examples_is_one_of_batches(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, num_epochs=1, features=["index"])
    single = iter(dataset)
    rows = [next(single)["index"] for _ in range(5)]
    batched = iter(dataset.batch(10))
    batched.set_state(single.get_state())
    rows += next(batched)["index"].tolist()
    single.set_state(batched.get_state())
    rows += [example["index"] for example in single]
    assert rows == [example["index"] for example in dataset]
    batched.close()


def test_a_function_of_ones_own_gets_single_examples(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, num_epochs=1, features=["index", TOP])
    found = list(
        dataset.batch(
            20,
            batch_fn=lambda examples: [(type(examples[0]), examples[0][TOP].shape), len(examples)],
        )
    )
    assert found == [
        [(dict, (64, 96, 3)), 20],
        [(dict, (64, 96, 3)), 20],
        [(dict, (64, 96, 3)), 13],
    ]


@pytest.mark.parametrize("batch_size", [0, -1, True, 1.5, None, "4"], ids=repr)
def test_what_is_no_batch_size_is_refused(written: WrittenDataset, batch_size: Any) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, features=["index"])
    for function in (None, len):
        with pytest.raises(
            lg.InvalidRequestError,
            match=rf"^batch\(batch_size={batch_size!r}\): expected an int >= 1$",
        ):
            dataset.batch(batch_size, batch_fn=function)


# --- cutting and joining -------------------------------------------------------------------------


def make_batch(first: int, count: int) -> Batch:
    numbers = np.arange(first, first + count)
    return {
        "scalar": numbers.astype(np.float32),
        "vector": np.stack([numbers, -numbers], axis=1),
        "large": np.repeat(numbers[:, None], 2000, axis=1),
        "text": [f"text {number}" for number in numbers],
        "texts": [[f"{number}", ""] for number in numbers],
    }


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_joining_and_cutting_are_inverse(counts: list[int], data: st.DataObject) -> None:
    starts = np.cumsum(counts) - counts
    whole = make_batch(0, sum(counts))
    joined = join(
        [make_batch(int(start), count) for start, count in zip(starts, counts, strict=True)]
    )
    assert list(joined) == list(whole)
    start = data.draw(st.integers(0, sum(counts) - 1))
    stop = data.draw(st.integers(start + 1, sum(counts)))
    for found, reference in [
        (joined, whole),
        (part_of(joined, slice(start, stop)), make_batch(start, stop - start)),
    ]:
        assert num_examples(found) == num_examples(reference)
        for key, value in reference.items():
            assert type(found[key]) is type(value)
            assert np.array_equal(found[key], value), key
    for number, example in enumerate(split(joined)):
        assert example["text"] == f"text {number}"
        assert example["texts"] == [f"{number}", ""]
        for key in ("scalar", "vector", "large"):
            assert np.array_equal(example[key], whole[key][number])
            assert example[key].dtype == whole[key].dtype


def test_a_part_has_memory_of_its_own() -> None:
    batch = make_batch(0, 4)
    part = part_of(batch, slice(1, 3))
    for key in ("scalar", "vector", "large"):
        assert not np.shares_memory(part[key], batch[key])
    part["texts"].append([])
    assert len(batch["texts"]) == 4


def test_examples_of_a_batch_do_not_overlap_and_large_ones_do_not_keep_it() -> None:
    batch = make_batch(0, 3)
    examples = split(batch)
    for key in ("vector", "large"):
        for example in examples:
            example[key][...] = example["scalar"]
        assert [example[key][0] for example in examples] == [0, 1, 2]
    assert not any(np.shares_memory(example["large"], batch["large"]) for example in examples)


def test_the_only_example_of_a_batch_is_not_copied() -> None:
    batch = make_batch(5, 1)
    (example,) = split(batch)
    assert np.shares_memory(example["large"], batch["large"])
    assert (example["large"] == 5).all()


# --- memory that is used again -------------------------------------------------------------------

SHAPE = (3, 400, 300)
UINT8 = np.dtype(np.uint8)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def aligned(array: np.ndarray) -> np.ndarray:
    """Returns a part of an array's memory that begins where JAX takes it as it is."""
    flat = array.reshape(-1)
    return flat[-address(flat) % 64 :][: _MIN_BYTES // 2]


def as_jax_array(array: np.ndarray) -> jax.Array:
    found = jax.device_put(aligned(array))
    assert found.unsafe_buffer_pointer() == address(aligned(array)), (
        "this is to test an array that JAX did not copy"
    )
    return found


HOLDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "itself": lambda array: array,
    "view of a view": lambda array: array[1:][..., ::2][0],
    "reshaped": lambda array: array.reshape(-1, 3).T,
    "other type": lambda array: array.view(np.uint32).reshape(-1)[5:],
    "memoryview": lambda array: memoryview(array)[1:2],
    "memoryview of a view": lambda array: memoryview(array.reshape(-1)[7:]),
    "frombuffer": lambda array: np.frombuffer(array, np.uint8)[9:],
    "jax.Array": as_jax_array,
    "slice of a batch": lambda array: {"a": [array[0]]}["a"][0],
}


@pytest.mark.parametrize("name", HOLDERS)
def test_an_array_that_somebody_refers_to_is_not_used_again(name: str) -> None:
    arrays = ArrayPool()
    array = arrays.empty("top", SHAPE, UINT8)
    array[...] = np.arange(array.size, dtype=np.uint8).reshape(SHAPE)
    first = address(array)
    held = HOLDERS[name](array)
    expected = np.array(held, copy=True)
    del array
    others = [arrays.empty("top", SHAPE, UINT8) for _ in range(4)]
    for other in others:
        assert address(other) != first
        other.fill(99)
    assert len({address(other) for other in others}) == 4
    assert np.array_equal(np.asarray(held), expected)
    del held, other
    if name == "jax.Array":
        gc.collect()  # JAX lets go of what it did not copy at its leisure
    assert address(arrays.empty("top", SHAPE, UINT8)) == first


def test_memory_goes_to_arrays_of_any_dtype() -> None:
    arrays = ArrayPool()
    first = address(arrays.empty("depth", (2, 300, 400, 1), np.dtype(np.float32)))
    array = arrays.empty("depth", (3, 200, 400, 1), np.dtype(np.float32))
    assert address(array) == first
    assert (array.dtype, array.shape, array.flags.c_contiguous) == (
        np.dtype(np.float32),
        (3, 200, 400, 1),
        True,
    )
    array[...] = np.arange(array.size, dtype=np.float32).reshape(array.shape)
    assert array[2, 199, 399, 0] == array.size - 1


def test_memory_goes_to_arrays_of_as_many_bytes() -> None:
    arrays = ArrayPool()
    array = arrays.empty("top", (4, 100, 1000), UINT8)
    first = address(array)
    assert array.dtype == np.uint8
    assert (array.shape, array.flags.writeable, array.flags.c_contiguous) == (
        (4, 100, 1000),
        True,
        True,
    )
    del array
    larger = arrays.empty("top", (5, 100, 1000), UINT8)
    assert address(larger) != first
    other_shape = arrays.empty("top", (1000, 400), UINT8)
    assert address(other_shape) == first
    assert other_shape.shape == (1000, 400)


def test_small_arrays_are_left_to_numpy() -> None:
    array = ArrayPool().empty("top", (_MIN_BYTES - 1,), UINT8)
    assert array.base is None
    assert ArrayPool().empty("top", (0, 5), UINT8).shape == (0, 5)


def test_only_a_few_free_arrays_are_kept() -> None:
    arrays = ArrayPool()
    many = [arrays.empty("top", SHAPE, UINT8) for _ in range(6)]
    del many
    assert [len(free) for free in arrays._free.values()] == [_MAX_FREE]


def test_free_memory_of_other_sizes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes have lengths of their own; what was made for all of them is not kept."""
    monkeypatch.setattr(memory, "_MAX_OTHER_BYTES", 4 * _MIN_BYTES)
    arrays = ArrayPool()

    def free() -> dict[int, int]:
        found = {size: len(each) for (key, size), each in arrays._free.items() if key == "top"}
        return {size // _MIN_BYTES: count for size, count in found.items()}

    other_purpose = address(arrays.empty("other", (9 * _MIN_BYTES,), UINT8))
    held = arrays.empty("top", (99 * _MIN_BYTES,), UINT8)
    for length in (3, 2, 1):
        address(arrays.empty("top", (length * _MIN_BYTES,), UINT8))
    # The size that was asked for first went; what is in use is not counted before it is free.
    assert free() == {99: 0, 2: 1, 1: 1}
    address(arrays.empty("top", (5 * _MIN_BYTES,), UINT8))
    assert free() == {99: 0, 2: 1, 1: 1, 5: 1}
    del held
    address(arrays.empty("top", (6 * _MIN_BYTES,), UINT8))
    assert free() == {6: 1}
    assert address(arrays.empty("other", (9 * _MIN_BYTES,), UINT8)) == other_purpose


def test_arrays_become_garbage_in_any_thread_and_outlive_their_maker() -> None:
    arrays = ArrayPool()
    held = [arrays.empty("top", SHAPE, UINT8)]
    first = address(held[0])
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    array = arrays.empty("top", SHAPE, UINT8)
    assert address(array) == first
    array.fill(7)
    del arrays
    assert (array == 7).all()


def test_batches_that_are_kept_stay_as_they_are(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(
        written.directory, num_epochs=4, features=[TOP, WRIST], shuffle=None
    )
    straight = list(dataset)
    kept: list[tuple[int, np.ndarray]] = []
    addresses = set()
    for number, batch in enumerate(dataset.batch(16)):
        assert batch[TOP].nbytes > _MIN_BYTES or num_examples(batch) < 16
        addresses.add(address(batch[TOP]))
        # Keeps a view of the last frame of every third batch, and nothing of the others.
        if number % 3 == 0:
            kept.append((16 * number + num_examples(batch) - 1, batch[TOP][-1][::2, ::2]))
        del batch
    assert len(addresses) < 14, "some memory was used again"
    for row, view in kept:
        assert np.array_equal(view, straight[row][TOP][::2, ::2])

"""The device feed on one device and on the four devices of one process; several processes are in
test_multihost.py.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import inspect
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import lerobot_grain as lg
from lerobot_grain._base.versions import jax_enable_x64
from lerobot_grain.testing import Camera, WrittenDataset, write_dataset
from tests.support.installed import own_lines


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("lerobot_grain device")
    ] == []


def sharding(*axes: Any) -> NamedSharding:
    """Returns a sharding over the four devices; without axes: of the first one."""
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), ("data",))
    return NamedSharding(mesh, PartitionSpec(*(axes or ("data",))))


class Source(grain.IterDataset[Any]):
    """Yields 0, 1, ..., `length` - 1, each through `make`; fails once, before each number in
    `failing`.
    """

    def __init__(
        self, length: int, make: Callable[[int], Any] = np.int32, *, failing: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.length, self.make, self.failing = length, make, set(failing)
        self.pulled = 0
        self.closed = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __iter__(self) -> grain.DatasetIterator[Any]:
        return SourceIterator(self)


class SourceIterator(grain.DatasetIterator[Any]):
    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source, self._next = source, 0

    def __next__(self) -> Any:
        source = self._source
        assert source.may_go_on.wait(20)
        if self._next == source.length:
            raise StopIteration
        if self._next in source.failing:
            source.failing.discard(self._next)
            raise lg.StorageError(f"the network failed at {self._next}")
        self._next += 1
        source.pulled += 1
        return source.make(self._next - 1)

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        if "next" not in state:
            raise lg.StateMismatchError(f"{state} is not a state of this stream")
        self._next = state["next"]

    def close(self) -> None:
        self._source.closed = True
        super().close()


@contextlib.contextmanager
def feed_of(
    dataset: grain.IterDataset[Any], **arguments: Any
) -> Iterator[grain.DatasetIterator[Any]]:
    with contextlib.closing(iter(dataset.pipe(lg.DeviceIterDataset, **arguments))) as iterator:
        yield iterator


def one(batch: Any, **arguments: Any) -> Any:
    """Returns a batch as it comes out of the feed."""
    with feed_of(Source(1, lambda _: batch), **arguments) as iterator:
        return next(iterator)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- what becomes of a batch ---------------------------------------------------------------------

LEAVES: dict[str, tuple[Any, str]] = {
    "uint8": (np.arange(8, dtype=np.uint8), "uint8"),
    "bool": (np.array([True, False] * 4), "bool"),
    "float32": (np.linspace(0, 1, 8, dtype=np.float32), "float32"),
    "float16": (np.linspace(0, 1, 8, dtype=np.float16), "float16"),
    "bfloat16": (np.linspace(0, 1, 8).astype(jnp.bfloat16), "bfloat16"),
    "int64": (np.arange(-4, 4), "int32"),
    "uint64": (np.arange(8, dtype=np.uint64), "uint32"),
    "float64": (np.array([0.5, -np.inf, np.inf, 1.5, 2, 3, 4, 5]), "float32"),
    "big-endian": (np.arange(8, dtype=">i2"), "int16"),
    "not contiguous": (np.arange(48, dtype=np.float32).reshape(8, 6)[:, ::2], "float32"),
}


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("placement", [None, sharding], ids=["default device", "sharded"])
def test_arrays_become_jax_arrays(name: str, placement: Callable[[], NamedSharding] | None) -> None:
    array, dtype = LEAVES[name]
    found = one({"a": array}, sharding=placement and placement())["a"]
    assert isinstance(found, jax.Array)
    assert str(found.dtype) == dtype
    assert np.array_equal(np.asarray(found), np.asarray(array))
    assert len(found.devices()) == (4 if placement else 1)


def test_jax_arrays_are_laid_out_too() -> None:
    # A .map with jax.numpy in it makes such arrays.
    found = one({"a": jnp.arange(8)}, sharding=sharding())["a"]
    assert found.tolist() == list(range(8))
    assert len(found.devices()) == 4


def test_numbers_become_arrays_without_axes() -> None:
    found = one({"a": 3, "b": 0.5, "c": True, "d": np.float32(2)})
    assert {key: (str(value.dtype), value.shape, value.item()) for key, value in found.items()} == {
        "a": ("int32", (), 3),
        "b": ("float32", (), 0.5),
        "c": ("bool", (), True),
        "d": ("float32", (), 2.0),
    }


@pytest.mark.parametrize("placement", [None, sharding], ids=["default device", "sharded"])
def test_text_and_objects_stay_on_the_host(placement: Callable[[], NamedSharding] | None) -> None:
    thing = object()
    batch = {
        "task": np.array(["push", "pull"]),
        "objects": np.array([thing, None], object),
        "days": np.array(["2020-01-01"], "datetime64[D]"),
        "word": "a",
        "words": ["a", "b"],
        "bytes": b"a",
        "thing": thing,
        "deque": collections.deque([1, 2]),  # NumPy would make an array of it
        "nothing": None,
    }
    found = one({**batch, "x": np.zeros(8, np.float32)}, sharding=placement and placement())
    assert isinstance(found.pop("x"), jax.Array)
    assert found.keys() == batch.keys()
    for key in ("task", "objects", "days"):
        assert found[key] is batch[key]
    assert all(
        found[key] == batch[key] for key in ("word", "words", "bytes", "thing", "deque", "nothing")
    )


def test_a_batch_may_be_any_tree() -> None:
    found = one([{"a": (np.zeros(2), ["x", np.ones(3)])}])
    assert [leaf if isinstance(leaf, str) else leaf.shape for leaf in jax.tree.leaves(found)] == [
        (2,),
        "x",
        (3,),
    ]
    assert isinstance(found[0]["a"], tuple)
    assert one(np.arange(3)).tolist() == [0, 1, 2]


def test_what_the_consumer_set_for_its_thread_holds_in_the_feed() -> None:
    batch = {"a": np.array([2**40, 1]), "b": np.array([1e300])}
    with jax_enable_x64(True), jax.default_device(jax.devices()[2]):
        found = one(batch)
    assert (str(found["a"].dtype), str(found["b"].dtype)) == ("int64", "float64")
    assert np.array_equal(np.asarray(found["a"]), batch["a"])
    assert found["a"].devices() == {jax.devices()[2]}
    # As jax.device_put without a device: a jitted function may use it beside arrays that are laid
    # out over others.
    assert not found["a"].committed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            np.array([1, 2**31]),
            r"a/b: 2147483648 \(int64\) does not fit into int32.*set jax_enable_x64, or change "
            r"the key in a .map",
        ),
        (np.array([-(2**31) - 1]), r"a/b: -2147483649 \(int64\) does not fit into int32"),
        (np.array([2**32], np.uint64), r"a/b: 4294967296 \(uint64\) does not fit into uint32"),
        (np.array([np.inf, np.nan, 1e39]), r"a/b: 1e\+39 \(float64\) does not fit into float32"),
        (2**40, r"a/b: 1099511627776 \(int64\) does not fit into int32"),
    ],
    ids=["int64", "negative", "uint64", "float64", "int"],
)
def test_values_too_large_for_32_bits_are_refused(value: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        one({"a": {"b": value}})


def test_the_largest_values_of_32_bits_pass() -> None:
    integers = np.array([-(2**31), 2**31 - 1])
    floats = np.array([np.finfo(np.float32).max, -np.inf, np.nan], np.float64)
    assert one(integers).tolist() == integers.tolist()
    assert np.array_equal(np.asarray(one(floats)), floats, equal_nan=True)


def aligned(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Returns zeros where JAX would use the array's own memory on CPU: at a multiple of 64
    bytes.
    """
    size = int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)


@pytest.mark.parametrize("placement", [None, sharding], ids=["default device", "sharded"])
def test_what_was_handed_out_never_changes(placement: Callable[[], NamedSharding] | None) -> None:
    buffer = aligned((8, 4096))
    alias = jax.device_put(buffer, placement and placement())
    buffer[:] = 99
    assert np.asarray(alias)[0, 0] == 99, (
        "JAX aliases this buffer; otherwise the test could not fail"
    )

    def reuse(number: int) -> npt.NDArray[np.uint8]:
        buffer[:] = number  # what a .map that reuses its output does
        return buffer

    with feed_of(Source(6, reuse), sharding=placement and placement()) as iterator:
        batches = list(iterator)
    buffer[:] = 99
    assert [np.unique(batch).tolist() for batch in batches] == [[number] for number in range(6)]


def test_a_transfer_is_over_before_the_parent_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A device with memory of its own may, until then, still read that of the host batch.
    source = Source(3)
    waited_for: list[int] = []
    wait = jax.block_until_ready

    def waiting(arrays: Any) -> Any:
        waited_for.append(source.pulled)
        return wait(arrays)

    monkeypatch.setattr(jax, "block_until_ready", waiting)
    with feed_of(source) as iterator:
        assert len(list(iterator)) == 3
    assert waited_for == [1, 2, 3]


# --- shardings -----------------------------------------------------------------------------------


def test_rows_are_divided_over_the_devices() -> None:
    images = np.arange(8 * 2 * 3, dtype=np.uint8).reshape(8, 2, 3)
    found = one({"image": images, "index": np.arange(8)}, sharding=sharding())
    assert found["image"].sharding.is_equivalent_to(sharding(), 3)
    for number, shard in enumerate(
        sorted(found["image"].addressable_shards, key=lambda shard: shard.device.id)
    ):
        assert np.array_equal(shard.data, images[2 * number : 2 * number + 2])
    total = jax.jit(lambda batch: batch["index"].sum() + batch["image"].astype(jnp.int32).sum())(
        found
    )
    assert int(total) == 28 + int(images.sum())


@pytest.mark.parametrize(
    ("shape", "axes", "text"),
    [
        (
            (6, 2),
            ("data",),
            r"state: shape \(6, 2\) on this process cannot be laid out over 4 devices \(4 of this "
            r"process\) by .*'data'",
        ),
        ((), ("data",), r"state: shape \(\) on this process cannot be laid out over 4 devices"),
        (
            (4,),
            ("data", None),
            r"state: shape \(4,\) .*rank at least 2.*drop keys without a batch axis in a .map",
        ),
    ],
    ids=["rows", "no axes", "too few axes"],
)
def test_what_cannot_be_divided_is_refused(
    shape: tuple[int, ...], axes: tuple[Any, ...], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        one({"state": np.zeros(shape, np.float32)}, sharding=sharding(*axes))


def test_what_has_no_axes_is_refused_on_a_mesh_of_explicit_axes_too() -> None:
    if "axis_types" not in inspect.signature(jax.make_mesh).parameters:
        pytest.skip("this JAX makes no mesh of explicit axes")
    explicit = NamedSharding(
        jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,)),
        PartitionSpec("data"),
    )
    assert one(np.arange(8), sharding=explicit).shape == (8,)
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"loss: shape \(\) on this process cannot be laid out over 4 devices",
    ):
        one({"loss": 0.5}, sharding=explicit)


def test_the_last_shorter_batch() -> None:
    with feed_of(Source(11).batch(4), sharding=sharding()) as iterator:
        assert [next(iterator).tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        for _ in range(2):  # it is not skipped
            with pytest.raises(
                lg.InvalidRequestError, match=r"shape \(3,\).*\.batch\(size, drop_remainder=True\)"
            ):
                next(iterator)
            assert iterator.get_state() == {"next": 8}
    with feed_of(Source(11).batch(4, drop_remainder=True), sharding=sharding()) as iterator:
        assert len(list(iterator)) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"buffer_size": 0}, r"buffer_size=0: expected an int >= 1"),
        ({"buffer_size": True}, r"buffer_size=True: expected an int >= 1"),
        (
            {"sharding": "data"},
            r"sharding='data': expected a jax.sharding.Sharding, such as NamedSharding",
        ),
        (
            {"sharding": PartitionSpec("data")},
            r"sharding=.*'data'.*: expected a jax.sharding.Sharding",
        ),
    ],
    ids=["buffer_size", "bool", "str", "spec"],
)
def test_arguments_are_checked(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.DeviceIterDataset(Source(1), **arguments)


# --- order, state, errors ------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_size", [1, 2, 50])
def test_the_rest_is_identical_from_any_position(buffer_size: int) -> None:
    for position in range(12):
        with feed_of(Source(11), buffer_size=buffer_size) as iterator:
            assert [int(next(iterator)) for _ in range(position)] == list(range(position))
            state = json.loads(json.dumps(iterator.get_state()))
        assert state == {"next": position}
        with feed_of(Source(11), buffer_size=buffer_size) as restored:
            restored.set_state(state)
            assert [int(batch) for batch in restored] == list(range(position, 11))
            with pytest.raises(StopIteration):
                next(restored)


def test_the_state_counts_what_was_handed_out() -> None:
    source = Source(100)
    with feed_of(source) as iterator:
        assert iterator.get_state() == {"next": 0}
        next(iterator)
        wait_until(lambda: source.pulled == 4)
        state = iterator.get_state()
        assert state == {"next": 1}
        state["next"] = 50  # it is the caller's
        assert iterator.get_state() == {"next": 1}


def test_a_restore_drops_what_was_waiting() -> None:
    source = Source(100)
    with feed_of(source) as iterator:
        next(iterator)
        wait_until(lambda: source.pulled == 4)
        for position in (40, 0, 7):
            iterator.set_state({"next": position})
            assert iterator.get_state() == {"next": position}
            assert [int(next(iterator)) for _ in range(3)] == [position, position + 1, position + 2]


def test_a_refused_state_changes_nothing() -> None:
    source = Source(100)
    with feed_of(source) as iterator:
        with pytest.raises(lg.StateMismatchError):
            iterator.set_state({})
        assert [int(next(iterator)) for _ in range(2)] == [0, 1]
        wait_until(lambda: source.pulled == 5)
        with pytest.raises(lg.StateMismatchError):
            iterator.set_state({})
        assert iterator.get_state() == {"next": 2}
        assert int(next(iterator)) == 2


def test_an_error_comes_at_its_batch_and_loses_nothing() -> None:
    with feed_of(Source(12, failing=(0, 6)).batch(4), buffer_size=8) as iterator:
        with pytest.raises(lg.StorageError, match="failed at 0"):
            next(iterator)
        assert next(iterator).tolist() == [0, 1, 2, 3]
        with pytest.raises(lg.StorageError, match="failed at 6"):
            next(iterator)
        assert iterator.get_state() == {"next": 4}
        assert [batch.tolist() for batch in iterator] == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_the_end_stays_the_end_until_a_restore() -> None:
    with feed_of(Source(3)) as iterator:
        assert len(list(iterator)) == 3
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(iterator)
        assert iterator.get_state() == {"next": 3}
        iterator.set_state({"next": 1})
        assert [int(batch) for batch in iterator] == [1, 2]
    with feed_of(Source(0)) as iterator:
        assert list(iterator) == []


def test_grains_own_checkpoint_oracle() -> None:
    # It compares with NumPy, which does not know what to do with the arrays of JAX.
    grain.experimental.assert_equal_output_after_checkpoint(
        lg.DeviceIterDataset(Source(7).batch(2)).map(np.asarray)
    )


# --- the thread ----------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_size", [1, 3])
def test_it_works_ahead_but_not_too_far(buffer_size: int) -> None:
    source = Source(100)
    with feed_of(source, buffer_size=buffer_size) as iterator:
        time.sleep(0.02)
        assert source.pulled == 0, "nothing is read before the first batch is asked for"
        for taken in range(1, 5):
            next(iterator)
            # The batches that wait on the device, and one on the host.
            wait_until(lambda: source.pulled == taken + buffer_size + 1)  # noqa: B023 (called at once)
        time.sleep(0.05)
        assert source.pulled == 4 + buffer_size + 1
        # They are there already: the parent may stand still.
        source.may_go_on.clear()
        assert [int(next(iterator)) for _ in range(buffer_size)] == [*range(4, 4 + buffer_size)]
        source.may_go_on.set()


def test_start_prefetch_starts_it() -> None:
    # Grain calls it after a checkpoint was restored.
    source = Source(100)
    with feed_of(source) as iterator:
        iterator.set_state({"next": 10})
        iterator.start_prefetch()
        wait_until(lambda: source.pulled == 3)
        assert iterator.get_state() == {"next": 10}
        assert int(next(iterator)) == 10


def feed_threads() -> int:
    return sum(thread.name.startswith("lerobot_grain device") for thread in threading.enumerate())


def test_close_ends_the_thread_and_the_parent() -> None:
    source = Source(100)
    iterator = iter(lg.DeviceIterDataset(source))
    next(iterator)
    assert feed_threads() == 1
    iterator.close()
    iterator.close()
    assert (feed_threads(), source.closed) == (0, True)
    for use in (iterator.__next__, iterator.start_prefetch):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_the_end_and_an_error_end_the_thread() -> None:
    with feed_of(Source(4, failing=(2,))) as iterator:
        with pytest.raises(lg.StorageError):
            list(iterator)
        assert feed_threads() == 0
        assert len(list(iterator)) == 2
        assert feed_threads() == 0


def test_an_iterator_that_is_dropped_ends_its_thread() -> None:
    iterator = iter(lg.DeviceIterDataset(Source(100)))
    next(iterator)
    dropped = weakref.ref(iterator)
    del iterator
    gc.collect()
    assert dropped() is None
    assert feed_threads() == 0


def test_the_garbage_collector_may_end_a_feed_in_its_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one(0)  # what JAX waits for when it starts
    wait = threading.Condition.wait
    feeds: list[Any] = []

    def ends_the_feed(self: threading.Condition, timeout: float | None = None) -> bool:
        """Stands for a collection in the middle of a wait, when its lock is held."""
        if feeds and threading.current_thread().name.startswith("lerobot_grain device"):
            feeds[0].close()
        return wait(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", ends_the_feed)
    source = Source(100)
    iterator: Any = iter(lg.DeviceIterDataset(source, buffer_size=1))
    iterator.start_prefetch()
    feeds.append(iterator._feed)
    # It made a batch, and another one, for which it waits until there is room.
    wait_until(lambda: source.pulled == 2)
    time.sleep(0.1)
    iterator.close()


def test_a_program_that_closes_nothing_ends() -> None:
    code = """
import atexit, sys, threading
# The function that is registered first runs last.
names = lambda: [thread.name for thread in threading.enumerate() if "lerobot" in thread.name]
atexit.register(lambda: print(names()))
from tests.datasets.feed.test_device import Source, lg
iterator = iter(lg.DeviceIterDataset(Source(1000).batch(2)))
print(next(iterator).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout, own_lines(done.stderr)) == (0, "[0, 1]\n[]\n", "")


# --- on a real stream ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    directory = tmp_path_factory.mktemp("device") / "data"
    return write_dataset(
        directory,
        episode_lengths=[13, 6, 11],
        fps=10,
        cameras=(Camera(height=64, width=96),),
        tasks=("a", "b"),
    )


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(np.asarray(found[key]), value), key
        assert isinstance(found[key], jax.Array) == (np.asarray(value).dtype.kind != "U"), key


def test_a_stream_of_ours(written: WrittenDataset) -> None:
    deltas = {"observation.images.top": [-0.1, 0.0], "action": [0.0, 0.1, 0.2]}
    batches = lg.LeRobotIterDataset(written.directory, delta_timestamps=deltas, num_epochs=2).batch(
        8, drop_remainder=True
    )
    expected = list(batches)
    with feed_of(batches, sharding=sharding()) as iterator:
        found = [next(iterator) for _ in range(3)]
        state = json.loads(json.dumps(iterator.get_state()))
        assert state["position"] == 24
        assert lg.read_statistics(iterator).examples >= 24
    with feed_of(batches, sharding=sharding()) as restored:
        restored.set_state(state)
        found += restored
    assert len(found) == len(expected) == 7
    for batch, host in zip(found, expected, strict=True):
        assert_same(batch, host)
    assert found[0]["observation.images.top"].dtype == np.uint8
    assert found[0]["observation.images.top"].shape == (8, 2, 64, 96, 3)


def test_behind_grains_transformations(written: WrittenDataset) -> None:
    repository = lg.open_repository(written.directory)
    streams = [
        lg.LeRobotIterDataset(
            repository, features=["index", "action", "task"], shuffle=lg.Shuffle(seed=seed)
        )
        for seed in (1, 2)
    ]
    mixed = grain.IterDataset.mix(streams, [0.75, 0.25])
    dataset = (
        mixed.filter(lambda example: example["index"] % 3 != 0)
        .map(lambda example: {**example, "twice": 2 * example["action"]})
        .batch(4)
    )
    with contextlib.closing(iter(dataset)) as host:
        expected = [next(host) for _ in range(12)]
    with feed_of(dataset) as iterator:
        for batch in expected[:5]:
            assert_same(next(iterator), batch)
        state = json.loads(json.dumps(iterator.get_state()))
    with feed_of(dataset) as restored:
        restored.set_state(state)
        for batch in expected[5:]:
            assert_same(next(restored), batch)

"""State: stop anywhere, write JSON, restore in a new iterator, process or number of shards, and get
the rest of the stream.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import EXTRA_FEATURES, Camera, WrittenDataset, write_dataset
from tests.support.forked import call_forked
from tests.support.tables import table

GOLDEN = ["av1_small", "av1_rolled", "h264_bframes", "hevc_bframes", "images", "state_only"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    """30 rows in 3 episodes, two cameras."""
    cameras = (
        Camera(height=64, width=96),
        Camera(
            key="observation.images.wrist", height=64, width=96, codec="h264", gop=5, b_frames=2
        ),
    )
    return write_dataset(
        tmp_path_factory.mktemp("state") / "data",
        episode_lengths=[13, 6, 11],
        fps=10,
        cameras=cameras,
        features=EXTRA_FEATURES,
        tasks=("a", "b"),
    )


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    restored = json.loads(json.dumps(state))
    assert restored == state
    assert len(json.dumps(state)) < 1024
    return dict(restored)


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert np.array_equal(a[key], b[key]), key
        assert np.asarray(a[key]).dtype == np.asarray(b[key]).dtype


# Only rows are read: files of other codecs are more of the same.
@pytest.mark.parametrize(
    "name", table([[name] for name in GOLDEN], lambda case: case[0] in ("av1_rolled", "images"))
)
def test_the_rest_is_identical_from_any_position(shared: Path, name: str) -> None:
    repository = lg.open_repository(shared / "golden" / name)
    shuffle = lg.Shuffle(seed=1, num_parts=4, buffer_size=32)
    dataset = lg.LeRobotIterDataset(
        repository, shuffle=shuffle, num_epochs=3, features=["index", "task", "action"]
    )
    straight = list(dataset)
    n = dataset.num_rows
    assert len(straight) == 3 * n
    for position in (0, 1, n // 2, n - 1, n, n + 7, 2 * n, 3 * n - 1, 3 * n):
        iterator = iter(dataset)
        for _ in range(position):
            next(iterator)
        state = through_json(iterator.get_state())
        restored = iter(
            lg.LeRobotIterDataset(
                repository, shuffle=shuffle, num_epochs=3, features=["index", "task", "action"]
            )
        )
        restored.set_state(state)
        rest = list(restored)
        assert len(rest) == 3 * n - position
        for found, expected in zip(rest, straight[position:], strict=True):
            assert_same(found, expected)


def test_frames_are_the_same_after_a_restore(written: WrittenDataset) -> None:
    deltas = {"observation.images.top": [-0.2, 0.0], "action": [0.0, 0.1]}
    dataset = lg.LeRobotIterDataset(written.directory, delta_timestamps=deltas, num_epochs=2)
    straight = list(dataset)
    iterator = iter(dataset)
    for position in range(0, 60, 7):
        iterator.set_state(through_json({**iterator.get_state(), "position": position}))
        for expected in straight[position : position + 5]:
            assert_same(next(iterator), expected)
    iterator.close()


def continue_each(asked: list[tuple[str, dict[str, Any]]]) -> list[list[Any]]:
    """Returns 5 examples of each stream, after the state that it is given."""
    found = []
    for directory, state in asked:
        dataset = lg.LeRobotIterDataset(directory, shuffle=lg.Shuffle(seed=4), num_epochs=3)
        with contextlib.closing(iter(dataset)) as iterator:
            iterator.set_state(state)
            found.append([seen(dataset, next(iterator)) for _ in range(5)])
    return found


def seen(dataset: lg.LeRobotIterDataset, example: dict[str, Any]) -> list[Any]:
    pixels = [zlib.crc32(example[key]) for key in dataset.repository.cameras]
    return [int(example["index"]), example["task"], pixels]


def test_restores_in_a_new_process(shared: Path) -> None:
    asked, expected = [], []
    for name in GOLDEN:
        directory = str(shared / "golden" / name)
        # The third epoch is the last one, so that no more of them are read ahead.
        dataset = lg.LeRobotIterDataset(directory, shuffle=lg.Shuffle(seed=4), num_epochs=3)
        iterator = iter(dataset)
        # In epochs 0, 1 and 2, where the dataset is small: each time the stream is stopped
        # somewhere, and what would have come is noted.
        stops = (7, dataset.num_rows, dataset.num_rows - 5)
        for skipped in stops if name == GOLDEN[0] else stops[:1]:
            for _ in range(skipped):
                next(iterator)
            asked.append((directory, through_json(iterator.get_state())))
            expected.append([seen(dataset, next(iterator)) for _ in range(5)])
        iterator.close()
    assert call_forked(continue_each, asked) == expected


def rows_of(
    dataset: lg.FrameOrderIterDataset, state: dict[str, Any] | None, count: int
) -> tuple[list[int], dict[str, Any]]:
    iterator = iter(dataset)
    if state is not None:
        iterator.set_state(state)
    rows = []
    for _ in range(count):
        try:
            rows.append(next(iterator))
        except StopIteration:
            break
    return rows, through_json(iterator.get_state())


@pytest.mark.parametrize("name", GOLDEN)
def test_the_union_of_the_shards_does_not_depend_on_their_number(shared: Path, name: str) -> None:
    repository = lg.open_repository(shared / "golden" / name)
    shuffle = lg.Shuffle(seed=2)
    straight, _ = rows_of(lg.FrameOrderIterDataset(repository, shuffle=shuffle), None, 700)
    state: dict[str, Any] | None = None
    position = 0
    # 2 -> 3 -> 1 shards, stopping inside epochs whose length none of them divides.
    for num_shards, steps in [(2, 50), (3, 77), (1, 41), (3, 60), (2, 33)]:
        per_shard = []
        states = []
        for shard in range(num_shards):
            options = grain.sharding.ShardOptions(shard, num_shards)
            rows, after = rows_of(
                lg.FrameOrderIterDataset(repository, shuffle=shuffle, shard_options=options),
                state,
                steps,
            )
            per_shard.append(rows)
            states.append(after)
        assert all(after == states[0] for after in states)
        for step in range(steps):
            found = Counter(rows[step] for rows in per_shard)
            assert found == Counter(
                straight[position + step * num_shards : position + (step + 1) * num_shards]
            )
        position += steps * num_shards
        state = states[0]
        assert state["position"] == position


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_finite_streams_end_at_the_last_row(
    written: WrittenDataset, num_shards: int, drop_remainder: bool
) -> None:
    repository = lg.open_repository(written.directory)
    counts = []
    rows: list[int] = []
    for shard in range(num_shards):
        options = grain.sharding.ShardOptions(shard, num_shards, drop_remainder=drop_remainder)
        found = list(lg.FrameOrderIterDataset(repository, num_epochs=2, shard_options=options))
        counts.append(len(found))
        rows += found
    if drop_remainder:
        assert set(counts) == {60 // num_shards}
    else:
        assert Counter(rows) == Counter([*range(30), *range(30)])


@pytest.mark.parametrize(
    "mode", ["order", "requests", "examples", "batched", "thread_prefetch", "sequential"]
)
def test_grains_own_checkpoint_oracle(written: WrittenDataset, mode: str) -> None:
    shuffle = None if mode == "sequential" else lg.Shuffle(seed=7, num_parts=2, buffer_size=8)
    repository = lg.open_repository(written.directory)
    # 17 rows in two episodes: it costs their square.
    rows: dict[str, Any] = {"shuffle": shuffle, "num_epochs": 1, "episodes": [1, 2]}
    order = lg.FrameOrderIterDataset(repository, **rows)
    deltas = {"action": [-0.1, 0.0, 0.5], "observation.images.wrist": [0.0, 0.3]}
    examples = lg.LeRobotIterDataset(repository, delta_timestamps=deltas, **rows)
    dataset: Any = {
        "order": order,
        "requests": order.map(lg.DeltaTimestamps(repository, deltas)).map(
            lambda request: request.frames
        ),
        "batched": examples.batch(4),
        "thread_prefetch": grain.experimental.ThreadPrefetchIterDataset(
            examples, prefetch_buffer_size=3
        ),
    }.get(mode, examples)
    grain.experimental.assert_equal_output_after_checkpoint(dataset)


def test_filters_between_the_parts_resume_exactly(written: WrittenDataset) -> None:
    repository = lg.open_repository(written.directory)
    rows = lg.FrameOrderIterDataset(repository, num_epochs=2).filter(lambda row: row % 3 != 1)
    dataset = lg.ReadWindowsIterDataset(
        rows.map(lg.DeltaTimestamps(repository)), repository, features=["index"]
    )
    straight = [int(example["index"]) for example in dataset]
    assert len(straight) == 40
    iterator = iter(dataset)
    for position in range(1, 40):
        next(iterator)
        restored = iter(dataset)
        restored.set_state(through_json(iterator.get_state()))
        assert [int(example["index"]) for example in restored] == straight[position:]


MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": (
        {"shuffle": lg.Shuffle(seed=1)},
        r"seed = 0, this stream has 1; make the dataset with the same shuffle",
    ),
    "clip_length": ({"shuffle": lg.Shuffle(clip_length=8)}, r"clip_length = 20, this stream has 8"),
    "num_parts": ({"shuffle": lg.Shuffle(num_parts=8)}, r"num_parts = 64, this stream has 8"),
    "buffer_size": (
        {"shuffle": lg.Shuffle(buffer_size=8)},
        r"buffer_size = 1024, this stream has 8",
    ),
    "open_files": ({"shuffle": lg.Shuffle(open_files=1)}, r"open_files = 0, this stream has 1"),
    "sequential": ({"shuffle": None}, r"shuffled = 1, this stream has 0"),
    "episodes": (
        {"episodes": [0, 1]},
        r"episodes = '[0-9a-f]{16}', this stream has '[0-9a-f]{16}'; select the same episodes",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_state_of_another_stream_is_refused(written: WrittenDataset, name: str) -> None:
    arguments, text = MISMATCHES[name]
    state = iter(lg.LeRobotIterDataset(written.directory)).get_state()
    iterator = iter(lg.LeRobotIterDataset(written.directory, **arguments))
    before = [int(next(iterator)["index"]) for _ in range(3)]
    kept = iterator.get_state()
    with pytest.raises(lg.StateMismatchError, match=text):
        iterator.set_state(state)
    assert iterator.get_state() == kept
    following = int(next(iterator)["index"])
    iterator.set_state({**kept, "position": 0})
    assert [int(next(iterator)["index"]) for _ in range(4)] == [*before, following]
    iterator.close()


def test_a_filter_behind_the_shards_resumes_on_the_same_number_of_them(
    written: WrittenDataset,
) -> None:
    repository = lg.open_repository(written.directory)
    positions = []
    for shard in range(2):
        dataset = lg.FrameOrderIterDataset(
            repository, shard_options=grain.sharding.ShardOptions(shard, 2)
        ).filter(lambda row: row < 11)
        straight, _ = rows_of(dataset, None, 20)
        for stopped in range(0, 15, 3):
            _, state = rows_of(dataset, None, stopped)
            rest, _ = rows_of(dataset, state, 5)
            assert rest == straight[stopped : stopped + 5]
        positions.append(state["position"])
    # The shards stand at other positions, so there is no one place to go on from with another
    # number of them.
    assert positions[0] != positions[1]


STREAM = "the dict that get_state of the same pipeline returned"
# Changes of a state of the stream (`None`: the key is taken away), and the error's words about
# each.
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another commit": (
        {"commit": "f" * 40},
        "commit = '{commit}', this stream has '{ours}'; open the dataset with revision= that "
        "commit (of a directory it is a hash of its meta/, of a bucket of the list of its files), "
        "or begin a new stream",
    ),
    "another seed": (
        {"seed": 7},
        "the state was taken with seed = 7, this stream has 0; make the dataset with the same "
        "shuffle, or begin a new stream",
    ),
    "another number of rows": (
        {"num_rows": 31},
        "num_rows = 31, this stream has 30; select the same episodes, or begin a new stream",
    ),
    "other episodes": (
        {"episodes": "0" * 16},
        "episodes = '0000000000000000', this stream has '{episodes}'; select the same episodes",
    ),
    "not shuffled": (
        {"shuffled": 0},
        "shuffled = 0, this stream has 1; make the dataset with the same shuffle",
    ),
    "a newer version": (
        {"format": 2},
        "the state has format 2, this version of lerobot_grain reads 1; resume with the version "
        "of lerobot_grain that wrote it",
    ),
    "a version that is no number": (
        {"format": "1"},
        "the state has format '1', this version of lerobot_grain reads 1",
    ),
    "a version that is a bool": (
        {"format": True},
        "the state has format True, this version of lerobot_grain reads 1",
    ),
    "a seed that is a float": ({"seed": 0.0}, "seed = 0.0, this stream has 0"),
    "a seed that is a bool": ({"seed": False}, "seed = False, this stream has 0"),
    "a field that is nothing": ({"open_files": "null"}, "open_files = 'null', this stream has 0"),
    "a field that is an array": (
        {"num_rows": np.array([30, 30])},
        "num_rows = array([30, 30]), this stream has 30",
    ),
    "a commit that is an array": (
        {"commit": np.array(["a", "b"])},
        "commit = array(['a', 'b'], dtype='<U1'), this stream has '{ours}'",
    ),
    "position negative": (
        {"position": -1},
        "the state has position -1; expected an int, 0 <= position < 2**62; restore an older "
        "checkpoint",
    ),
    "position too large": (
        {"position": 2**62},
        "position 4611686018427387904; expected an int, 0 <= position < 2**62",
    ),
    "position a float": ({"position": 1.0}, "position 1.0; expected an int"),
    "position a bool": ({"position": True}, "position True; expected an int"),
    "position a NumPy bool": ({"position": np.True_}, f"position {np.True_!r}; expected an int"),
    "position a text": ({"position": "3"}, "position '3'; expected an int"),
    "position a list": ({"position": [3]}, "position [3]; expected an int"),
    "position an array of one": (
        {"position": np.array([3])},
        "position array([3]); expected an int",
    ),
    **{
        f"no {name}": (
            {name: None},
            f"the state has no '{name}': it is truncated, or of something else; expected {STREAM}",
        )
        for name in (
            *("position", "commit", "episodes", "num_rows", "shuffled"),
            *("seed", "clip_length", "num_parts", "buffer_size", "open_files"),
        )
    },
    "no format": (
        {"format": None},
        "not a state of a lerobot_grain stream: it has the keys 'position', 'commit', 'episodes', ",
    ),
    "more than we write": (
        {"next_index": 3},
        f"the state has 'next_index', which no lerobot_grain stream writes; expected {STREAM}",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_state_is_refused_and_nothing_changes(written: WrittenDataset, name: str) -> None:
    changes, text = CHANGES[name]
    order = lg.FrameOrderIterDataset(lg.open_repository(written.directory))
    straight, _ = rows_of(order, None, 5)
    iterator = iter(order)
    assert [next(iterator) for _ in range(3)] == straight[:3]
    kept = iterator.get_state()
    state = {key: value for key, value in {**kept, **changes}.items() if value is not None}
    with pytest.raises(lg.StateMismatchError) as caught:
        iterator.set_state(state)
    assert text.format(commit="f" * 40, ours=kept["commit"], episodes=kept["episodes"]) in str(
        caught.value
    )
    assert iterator.get_state() == kept
    assert [next(iterator) for _ in range(2)] == straight[3:]


def test_every_field_of_a_state_is_in_the_table(written: WrittenDataset) -> None:
    state = iter(lg.FrameOrderIterDataset(lg.open_repository(written.directory))).get_state()
    assert {f"no {name}" for name in state} == {name for name in CHANGES if name.startswith("no ")}


FOREIGN: dict[str, tuple[Any, str]] = {
    "empty": ({}, f"it is empty; expected {STREAM}"),
    "of another loader": ({"next_index": 3}, f"it has the keys 'next_index'; expected {STREAM}"),
    "of a mixture": (
        {"parents": [], "index": 0, "stop": False},
        "'stop', as that of IterDataset.mix has; expected",
    ),
    "of mp_prefetch": (
        {"next_index_in_cycle": 0, "iterators_in_use_states": [], "exhausted": []},
        "'iterators_in_use_states', 'exhausted', as that of mp_prefetch has; expected",
    ),
    "of a random map": (
        {"parent": {}, "index_for_rng": 3},
        "it has the keys 'parent', 'index_for_rng', as that of another",
    ),
    "JSON text": (
        '{"format": 1}',
        "not a state of a lerobot_grain stream: str '{\"format\": 1}'; expected",
    ),
    "bytes": (b"{}", "bytes \"b'{}'\"; expected"),
    "nothing": (None, "NoneType 'None'; expected"),
    "a list": ([1, 2], "list '[1, 2]'; expected"),
    "a number": (3, "int '3'; expected"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_state_is_refused(written: WrittenDataset, name: str) -> None:
    state, text = FOREIGN[name]
    iterator = iter(lg.LeRobotIterDataset(written.directory))
    with pytest.raises(lg.StateMismatchError) as caught:
        iterator.set_state(state)
    assert text in str(caught.value)
    assert iterator.get_state()["position"] == 0


def test_a_mixture_of_states_of_other_streams_is_refused(written: WrittenDataset) -> None:
    order = lg.FrameOrderIterDataset(lg.open_repository(written.directory))
    for wrapped in (
        order.seed(0).random_map(lambda row, _: row),
        grain.IterDataset.mix([order, order]),
    ):
        with pytest.raises(lg.StateMismatchError, match=r"as that of .* has"):
            iter(order).set_state(iter(wrapped).get_state())


@pytest.mark.parametrize(
    "scalar",
    [np.int64, np.int32, np.array, jnp.asarray, np.uint64],
    ids=lambda scalar: scalar.__name__,
)
def test_numbers_may_come_back_as_scalars(written: WrittenDataset, scalar: Any) -> None:
    # Orbax gives back NumPy or JAX scalars for the ints of a tree that it saved.
    order = lg.FrameOrderIterDataset(
        lg.open_repository(written.directory), shuffle=lg.Shuffle(seed=3)
    )
    straight, state = rows_of(order, None, 12)
    iterator = iter(order)
    iterator.set_state(
        {name: scalar(value) if isinstance(value, int) else value for name, value in state.items()}
    )
    # And are plain ints again in what is saved next.
    assert through_json(iterator.get_state()) == state
    restored, _ = rows_of(order, None, 15)
    assert [next(iterator) for _ in range(3)] == restored[12:]
    assert restored[:12] == straight


def test_a_state_that_is_passed_in_is_not_kept(written: WrittenDataset) -> None:
    order = lg.FrameOrderIterDataset(lg.open_repository(written.directory))
    state = iter(order).get_state()
    iterator = iter(order)
    iterator.set_state(state)
    state["position"] = 20
    returned = iterator.get_state()
    returned["position"] = 21
    assert iterator.get_state()["position"] == 0


def test_what_may_change_between_save_and_restore(written: WrittenDataset) -> None:
    iterator = iter(lg.LeRobotIterDataset(written.directory))
    for _ in range(10):
        next(iterator)
    state = through_json(iterator.get_state())
    following = int(next(iterator)["index"])
    iterator.close()
    changed = lg.LeRobotIterDataset(
        written.directory,
        delta_timestamps={"action": [0.0, 0.1]},
        features=["action", "index", "observation.images.top"],
        image_size=(32, 48),
        read_options=lg.ReadOptions(memory_budget_bytes=1 << 20, num_decode_threads=1),
        num_epochs=5,
        tolerance_seconds=1e-3,
    )
    restored = iter(changed)
    restored.set_state(state)
    assert int(next(restored)["index"]) == following
    restored.close()

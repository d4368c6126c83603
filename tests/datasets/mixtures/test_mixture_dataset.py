"""`MixtureIterDataset`: its examples are those of its components at the positions of the
definition, singly and in batches, through the other datasets of ours and of Grain; and errors.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
import pyarrow as pa
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Camera, WrittenDataset, write_dataset
from tests.order.test_mixture import naive_places, naive_shares
from tests.support.datasets import change_info, change_table
from tests.support.forked import fork_workers

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
CAMERA = "observation.images.top"
IMAGE_SIZE = (32, 40)
SHUFFLE = lg.Shuffle(seed=4, clip_length=4, num_parts=4, buffer_size=16)
Written = dict[str, WrittenDataset]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Other lengths, frame rates, sizes and codecs of the camera, files."""
    where = tmp_path_factory.mktemp("mixtures")
    cameras = {
        "a": Camera(key=CAMERA, height=48, width=80),
        "b": Camera(key=CAMERA, height=64, width=96, codec="h264", gop=30, b_frames=2),
        "c": Camera(key=CAMERA, height=48, width=72, gop=5),
    }
    lengths = {"a": [30, 18, 7], "b": [40, 12], "c": [9]}
    return {
        name: write_dataset(
            where / name,
            episode_lengths=lengths[name],
            fps=fps,
            cameras=[cameras[name]],
            seed=fps,
            episodes_per_data_file=2,
            tasks=[f"task of {name}"],
        )
        for name, fps in (("a", 10), ("b", 30), ("c", 5))
    }


def component(written: WrittenDataset, **changes: Any) -> lg.LeRobotIterDataset:
    repository = lg.open_repository(written.directory)
    arguments: dict[str, Any] = {
        "shuffle": SHUFFLE,
        "image_size": IMAGE_SIZE,
        "delta_timestamps": {
            "action": [0.0, 1 / repository.fps, 2 / repository.fps],
            CAMERA: [-1 / repository.fps, 0.0],
        },
    } | changes
    return lg.LeRobotIterDataset(repository, **arguments)


def mixture(written: Written, **changes: Any) -> lg.MixtureIterDataset:
    components = {name: component(each) for name, each in written.items()}
    return lg.MixtureIterDataset(components, WEIGHTS, **({"seed": 9} | changes))


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert type(found[key]) is type(value), key
        assert np.array_equal(found[key], value), key


def expected_examples(
    components: dict[str, Any], weights: dict[str, float], count: int
) -> list[dict[str, Any]]:
    """The definition, and each component's own stream."""
    shares = list(naive_shares(weights).values())
    places = naive_places(shares, [0] * len(shares), seed=9, begin=0, stop=count)
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(contextlib.closing(iter(components[name])))
            for name in sorted(weights)
        ]
        found = []
        for number, own in places:
            found.append(next(streams[number]))
            assert own == sum(other == number for other, _ in places[: len(found) - 1])
    return found


@pytest.fixture(scope="module")
def straight(written: Written) -> list[dict[str, Any]]:
    components = {name: component(each) for name, each in written.items()}
    return expected_examples(components, WEIGHTS, 200)


@pytest.mark.parametrize(
    "options",
    [
        lg.ReadOptions(),
        # Everything is decoded again and again.
        lg.ReadOptions(memory_budget_bytes=100_000, num_decode_threads=3),
    ],
    ids=["by default", "little memory"],
)
def test_examples_are_those_of_the_definition(
    written: Written, straight: list[dict[str, Any]], options: lg.ReadOptions
) -> None:
    with contextlib.closing(iter(mixture(written, read_options=options))) as iterator:
        for expected in straight:
            assert_same(next(iterator), expected)


@pytest.mark.parametrize(
    ("budget_bytes", "count"), [(None, 400), (600_000, 50)], ids=["by default", "little memory"]
)
def test_many_components(written: Written, budget_bytes: int | None, count: int) -> None:
    """Blocks hold more examples, and some components have none in a block. With little memory, half
    of what is decoded is decoded again.
    """
    components = {f"{n:02}": component(written["abc"[n % 3]]) for n in range(12)}
    weights = {name: 0.5 + int(name) ** 2 for name in components}
    expected = expected_examples(components, weights, count)
    dataset = lg.MixtureIterDataset(
        components,
        weights,
        seed=9,
        read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes),
    )
    with contextlib.closing(iter(dataset)) as iterator:
        for example in expected:
            assert_same(next(iterator), example)
        assert (lg.read_statistics(iterator).gops_decoded_again > 0) == (budget_bytes is not None)
    with contextlib.closing(iter(dataset.batch(50))) as iterator:
        rows = [row for _ in range(count // 50) for row in next(iterator)["index"].tolist()]
    assert rows == [example["index"] for example in expected]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_are_those_of_grain(
    written: Written, straight: list[dict[str, Any]], batch_size: int
) -> None:
    ours = mixture(written, num_examples=150)
    grains = ours.map(lambda example: example).batch(batch_size)
    with contextlib.closing(iter(ours.batch(batch_size))) as found:
        batches = list(found)
    with contextlib.closing(iter(grains)) as wanted:
        for batch, expected in zip(batches, wanted, strict=True):
            assert batch.keys() == expected.keys()
            for key, value in expected.items():
                assert np.asarray(batch[key]).dtype == np.asarray(value).dtype
                assert np.array_equal(batch[key], value), key
    rows = np.concatenate([batch["index"] for batch in batches]).tolist()
    assert rows == [example["index"] for example in straight[:150]]


def test_batches_without_the_remainder(written: Written) -> None:
    dataset = mixture(written, num_examples=50).batch(16, drop_remainder=True)
    with contextlib.closing(iter(dataset)) as iterator:
        assert [len(batch["index"]) for batch in iterator] == [16, 16, 16]


def test_it_resumes_anywhere(written: Written, straight: list[dict[str, Any]]) -> None:
    with contextlib.closing(iter(mixture(written))) as iterator:
        states = []
        for expected in straight[:120]:
            states.append(json.dumps(iterator.get_state()))
            assert_same(next(iterator), expected)
        for position in (100, 0, 57, 58, 119):
            iterator.set_state(json.loads(states[position]))
            for expected in straight[position : position + 30]:
                assert_same(next(iterator), expected)
    assert json.loads(states[100]) == {
        **json.loads(states[0]),
        "position": 100,
    }


def test_shards_take_turns(written: Written, straight: list[dict[str, Any]]) -> None:
    for number in range(3):
        dataset = mixture(
            written, num_examples=100, shard_options=grain.sharding.ShardOptions(number, 3)
        )
        with contextlib.closing(iter(dataset)) as iterator:
            found = list(iterator)
        assert len(found) == len(straight[number:100:3])
        for example, expected in zip(found, straight[number:100:3], strict=True):
            assert_same(example, expected)


# --- with transformations ------------------------------------------------------------------------


def named(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def add(example: dict[str, Any]) -> dict[str, Any]:
        return {"from": name, "nested": {"row": example["index"], "images": example[CAMERA]}}

    return add


class Double(grain.transforms.Map):
    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        nested = element["nested"]
        return {**element, "nested": {**nested, "row": 2 * nested["row"]}}


def test_maps_of_the_components(written: Written, straight: list[dict[str, Any]]) -> None:
    components: dict[str, Any] = {
        name: component(each).map(named(name)).map(Double()) for name, each in written.items()
    }
    dataset = lg.MixtureIterDataset(components, WEIGHTS, seed=9)
    with contextlib.closing(iter(dataset)) as iterator:
        found = list(itertools.islice(iterator, 50))
    for example, expected in zip(found, straight, strict=False):
        assert example["nested"]["row"] == 2 * expected["index"]
        assert f"task of {example['from']}" == expected["task"]
        assert np.array_equal(example["nested"]["images"], expected[CAMERA])
    with contextlib.closing(iter(dataset.batch(16))) as iterator:
        batch = next(iterator)
    assert batch["nested"]["images"].shape == (16, 2, *IMAGE_SIZE, 3)
    assert batch["from"].tolist() == [example["from"] for example in found[:16]]


def test_an_error_of_a_map_stays_at_its_example(
    written: Written, straight: list[dict[str, Any]]
) -> None:
    fails = [True]
    # An example of "a" that comes later than others, and for the first time.
    place = next(
        number
        for number, example in enumerate(straight)
        if number > 20 and example["task"] == "task of a"
    )

    def checked(example: dict[str, Any]) -> dict[str, Any]:
        if fails[0] and example["index"] == straight[place]["index"]:
            raise ValueError("not this one")
        return example

    components: dict[str, Any] = {name: component(each) for name, each in written.items()}
    components["a"] = components["a"].map(checked)
    with contextlib.closing(iter(lg.MixtureIterDataset(components, WEIGHTS, seed=9))) as iterator:
        for expected in straight[:place]:
            assert_same(next(iterator), expected)
        for _ in range(2):
            with pytest.raises(ValueError, match="not this one"):
                next(iterator)
        fails[0] = False
        for expected in straight[place:60]:
            assert_same(next(iterator), expected)


def test_a_map_that_raises_stop_iteration_is_an_error(written: Written) -> None:
    def ends(_: dict[str, Any]) -> dict[str, Any]:
        return next(iter([]))

    components = {"a": component(written["a"]).map(ends)}
    with (
        contextlib.closing(iter(lg.MixtureIterDataset(components))) as iterator,
        pytest.raises(lg.InvalidRequestError, match=r"\.map of 'a' raised StopIteration"),
    ):
        next(iterator)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"image_size": (16, 20)}, CAMERA),
        ({"delta_timestamps": {}}, "observation.images.top|action"),
        ({"features": ["index", CAMERA], "delta_timestamps": {CAMERA: [-1 / 30, 0.0]}}, ".*"),
    ],
    ids=["size", "windows", "features"],
)
def test_components_of_another_structure(
    written: Written, batched: bool, changes: dict[str, Any], key: str
) -> None:
    components = {"a": component(written["a"]), "b": component(written["b"], **changes)}
    mixed: Any = lg.MixtureIterDataset(components, {"a": 1, "b": 1})
    dataset = mixed.batch(8) if batched else mixed
    text = (
        rf"a mixture: '({key})' is .* in an example of '[ab]', and .* in one of '[ab]'; expected "
        "the same keys, shapes and dtypes of all components"
    )
    with (
        contextlib.closing(iter(dataset)) as iterator,
        pytest.raises(lg.InvalidRequestError, match=text),
    ):
        list(itertools.islice(iterator, 64))


def test_texts_of_maps_may_have_any_length(written: Written) -> None:
    def named(example: dict[str, Any]) -> dict[str, Any]:
        task = example["task"]
        return {"name": np.array(task + "x" * int(example["index"])), "code": np.bytes_(task)}

    components: dict[str, Any] = {
        name: component(each).map(named) for name, each in written.items()
    }
    with contextlib.closing(iter(lg.MixtureIterDataset(components, WEIGHTS))) as iterator:
        examples = list(itertools.islice(iterator, 40))
    assert len({str(example["name"].dtype) for example in examples}) > 1
    assert {example["code"].decode() for example in examples} == {
        f"task of {name}" for name in written
    }


def test_a_text_and_a_number_are_different(written: Written) -> None:
    components = {
        "a": component(written["a"]).map(lambda _: {"x": np.array("1")}),
        "b": component(written["b"]).map(lambda _: {"x": np.array(1)}),
    }
    with (
        contextlib.closing(iter(lg.MixtureIterDataset(components))) as iterator,
        pytest.raises(lg.InvalidRequestError, match=r"'x' is (int64|str) \(\) .* (int64|str) \(\)"),
    ):
        list(itertools.islice(iterator, 64))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda each: each.filter(bool), "'a' is made with FilterIterDataset; expected"),
        (lambda each: each.batch(4), "'a' is made with BatchIterDataset"),
        (
            lambda each: each.random_map(lambda example, _: example, seed=1),
            "'a' is made with RandomMapIterDataset",
        ),
        (lambda each: each.map(bool).filter(bool), "'a' is made with FilterIterDataset"),
    ],
)
def test_other_transformations_are_refused(
    written: Written, change: Callable[[Any], Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.MixtureIterDataset({"a": change(component(written["a"]))})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_epochs": 3}, "'a' has num_epochs=3; components are endless, and num_examples="),
        (
            {"shard_options": grain.sharding.ShardOptions(1, 2)},
            "'a' is shard 1 of 2; expected the whole stream",
        ),
    ],
)
def test_parts_of_streams_are_refused(
    written: Written, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.MixtureIterDataset({"a": component(written["a"], **arguments)})


def test_a_slice_is_refused(written: Written) -> None:
    sliced = component(written["a"])
    sliced.parents[0].order.set_slice(slice(1, None, 2))
    with pytest.raises(lg.InvalidRequestError, match="'a' is shard 1 of 2"):
        lg.MixtureIterDataset({"a": sliced})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"weights": {"a": 1}}, "'b' has no weight; expected one weight for each"),
        ({"weights": {"a": 1, "b": 1, "d": 1}}, "'d' has a weight, but is no component"),
        ({"weights": {"a": 1, "b": 0}}, "the weight of 'b' is 0"),
        ({"seed": -1}, r"MixtureIterDataset\(seed=-1\): expected an int, 0 <= seed"),
        ({"seed": 2**64}, "expected an int, 0 <= seed"),
        ({"num_examples": 0}, "num_examples=0"),
    ],
)
def test_arguments_that_make_no_sense(
    written: Written, arguments: dict[str, Any], text: str
) -> None:
    components = {name: component(written[name]) for name in "ab"}
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.MixtureIterDataset(components, **arguments)


# --- with the rest of the package and of Grain ---------------------------------------------------


def test_equal_weights_where_none_are_given(written: Written) -> None:
    components = {name: component(each) for name, each in written.items()}
    shares = lg.MixtureIterDataset(components).shares
    assert shares == {"a": 21846, "b": 21845, "c": 21845}


def test_statistics_of_all_and_of_each(written: Written) -> None:
    with contextlib.closing(iter(mixture(written).batch(32))) as batches:
        components = [next(batches)["task"].tolist() for _ in range(3)]
        found = lg.read_statistics(batches)
    assert found.examples == 96
    with contextlib.closing(iter(mixture(written))) as iterator:
        for _ in range(96):
            next(iterator)
        each = iterator.component_statistics()
        whole = lg.read_statistics(iterator)
    tasks = list(itertools.chain.from_iterable(components))
    for name, statistics in each.items():
        assert statistics.examples == tasks.count(f"task of {name}")
        assert statistics.pictures_decoded > 0
        assert statistics.bytes_fetched > 0
    for count in ("examples", "bytes_fetched", "pictures_decoded", "frames_handed_out"):
        assert sum(getattr(every, count) for every in each.values()) == getattr(whole, count)


def test_threads_are_those_of_one_stream(written: Written) -> None:
    options = lg.ReadOptions(num_decode_threads=2, storage=lg.StorageOptions(num_connections=3))
    # Threads of tests before this one may not have ended yet.
    before = set(threading.enumerate())
    components = {f"{n:02}": component(written["a"]) for n in range(20)}
    with contextlib.closing(
        iter(lg.MixtureIterDataset(components, read_options=options).batch(32))
    ) as batches:
        for _ in range(5):
            next(batches)
        begun = set(threading.enumerate()) - before
        ours = [each.name for each in begun if "lerobot_grain" in each.name]
    assert len(ours) <= 2 + 3 + 4, ours


def test_pickled(written: Written, straight: list[dict[str, Any]]) -> None:
    dataset = pickle.loads(pickle.dumps(mixture(written)))
    with contextlib.closing(iter(dataset)) as iterator:
        for expected in straight[:10]:
            assert_same(next(iterator), expected)


def test_in_worker_processes(
    written: Written, straight: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    parent = mixture(written, num_examples=40)
    dataset = lg.WorkerPrefetchIterDataset(parent, num_workers=2)
    with contextlib.closing(iter(dataset)) as iterator:
        found = list(itertools.islice(iterator, 15))
        state = iterator.get_state()
    with contextlib.closing(iter(parent)) as iterator:
        iterator.set_state(state)
        found += list(iterator)
    assert len(found) == 40
    for example, expected in zip(found, straight, strict=False):
        assert_same(example, expected)


def test_on_a_device(written: Written, straight: list[dict[str, Any]]) -> None:
    features = ["index", "action", CAMERA]
    components = {name: component(each, features=features) for name, each in written.items()}
    dataset = lg.MixtureIterDataset(components, WEIGHTS, seed=9).batch(8)
    with contextlib.closing(iter(dataset.pipe(lg.DeviceIterDataset))) as feed:
        rows = [next(feed)["index"].tolist() for _ in range(3)]
        state = feed.get_state()
        rows.append(next(feed)["index"].tolist())
        feed.set_state(state)
        assert next(feed)["index"].tolist() == rows[3]
    assert list(itertools.chain.from_iterable(rows)) == [
        example["index"] for example in straight[:32]
    ]


def test_language_of_any_number_of_messages(tmp_path: Any) -> None:
    rows = 12
    said = [[{"role": "user", "content": f"{row}"}] * (row % 3) for row in range(rows)]
    components = {}
    for name in "ab":
        directory = write_dataset(tmp_path / name, episode_lengths=[7, 5], cameras=[]).directory
        change_table(
            directory / "data/chunk-000/file-000.parquet",
            lambda table: table.append_column("said", pa.array(said)),
        )
        entry = {"dtype": "language", "shape": [1], "names": None}
        change_info(directory, lambda info, entry=entry: info["features"].update(said=entry))
        components[name] = lg.LeRobotIterDataset(
            directory, features=["said", "index"], shuffle=lg.Shuffle(seed=3)
        )
    mixture = lg.MixtureIterDataset(components, num_examples=3 * rows)
    for example in mixture:
        assert example["said"] == said[int(example["index"])]
    for batch in mixture.batch(8):
        assert [list(each) for each in batch["said"]] == [said[row] for row in batch["index"]]

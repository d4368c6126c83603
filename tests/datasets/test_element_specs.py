"""Element specs: `grain.experimental.get_element_spec` of every dataset of ours against what comes
out, from `meta/` alone; and the numbers of elements, `get_next_index` and `set_next_index`.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import pytest
from grain.experimental import get_element_spec, get_next_index, set_next_index
from jax.sharding import NamedSharding, PartitionSpec

import lerobot_grain as lg
from lerobot_grain._base.versions import jax_enable_x64
from lerobot_grain.testing import EXTRA_FEATURES, Camera, Feature, write_dataset
from tests.support.datasets import add_language
from tests.support.tables import table

GOLDEN = ["av1_small", "av1_rolled", "h264_bframes", "hevc_bframes", "images", "depth"]
GOLDEN += ["state_only"]
REAL = ["cr5_v30", "cr5_v21", "gr00t_v30"]
CAMERAS = [
    Camera(key="top", height=32, width=80, codec="h264"),
    Camera(key="still", height=48, width=96, kind="image"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds of features: cameras, numbers, strings, and language."""
    found = write_dataset(
        tmp_path_factory.mktemp("specs") / "data",
        episode_lengths=[7, 5],
        fps=10,
        cameras=CAMERAS,
        features={**EXTRA_FEATURES, "small": Feature(dtype="int16", shape=(2,))},
        tasks=("pick", "place it there"),
    ).directory
    add_language(found, "said", row_group_size=5)
    return found


def assert_is(spec: Any, value: Any, count: int | None = None) -> None:
    """Checks that a spec says exactly what came; `count`: the length that it leaves open."""
    if isinstance(spec, dict):
        assert spec.keys() == value.keys()
        for key in spec:
            assert_is(spec[key], value[key], count)
    elif isinstance(spec, list):
        assert isinstance(value, list)
        for each, item in zip(spec, value, strict=True):
            assert_is(each, item, count)
    elif spec.dtype == np.dtype(str) and spec.shape == ():
        assert type(value) is str
    elif spec.dtype == np.dtype(object) and spec.shape == ():
        assert type(value) is list
    else:
        assert isinstance(value, np.ndarray | np.generic | jax.Array)
        assert tuple(count if size is None else size for size in spec.shape) == value.shape
        assert value.dtype.kind == "U" if spec.dtype.kind == "U" else value.dtype == spec.dtype


def all_windows(repository: lg.Repository) -> dict[str, list[float]]:
    step = 1 / repository.fps
    return {key: [-step, 0.0, 2 * step] for key in repository.features}


def check(repository: lg.Repository, **arguments: Any) -> None:
    """Checks single examples, batches, and a short last batch."""
    dataset = lg.LeRobotIterDataset(repository, num_epochs=1, **arguments)
    spec = get_element_spec(dataset)
    with contextlib.closing(iter(dataset)) as examples:
        for example in itertools.islice(examples, 3):
            assert_is(spec, example)
            # What makes a tree of the one makes the same tree of the other, language aside.
            plain = {key: value for key, value in spec.items() if key != "said"}
            structure = jax.tree.structure({key: example[key] for key in plain})
            assert jax.tree.structure(plain) == structure
    batches = dataset.batch(dataset.num_rows - 1)
    with contextlib.closing(iter(batches)) as found:
        for batch in found:
            assert_is(get_element_spec(batches), batch, len(batch["task"]))
    dropping = dataset.batch(2, drop_remainder=True)
    with contextlib.closing(iter(dropping)) as found:
        assert_is(get_element_spec(dropping), next(found))
    # As Grain has it of the same examples.
    assert get_element_spec(dropping) == get_element_spec(
        grain.IterDataset.batch(dataset, 2, drop_remainder=True)
    )
    assert get_element_spec(batches) == get_element_spec(grain.IterDataset.batch(dataset, 9))


# All four of some, two of the others; cr5_v21 has the same frames as cr5_v30.
@pytest.mark.parametrize(
    ("name", "image_size", "windows"),
    table(
        itertools.product([*GOLDEN, *REAL], [None, (20, 26)], ["none", "all"]),
        lambda case: (
            case[0] in ("av1_small", "depth")
            or ((case[1] is None) is (case[2] == "none") and case[0] != "cr5_v21")
        ),
    ),
)
def test_examples_of_golden_and_real_datasets(
    shared: Path, name: str, image_size: tuple[int, int] | None, windows: str
) -> None:
    repository = lg.open_repository(shared / ("golden" if name in GOLDEN else "real") / name)
    numbers = repository.episodes.numbers.tolist()
    check(
        repository,
        image_size=image_size,
        delta_timestamps=all_windows(repository) if windows == "all" else None,
        episodes=numbers[:: max(1, len(numbers) // 2)] if name in GOLDEN else numbers[:1],
        # 20 rows of them.
        drop_last_frames=0 if name in GOLDEN else int(repository.episodes.lengths[0]) - 20,
    )


@pytest.mark.parametrize("windows", ["none", "all"])
def test_examples_of_every_kind_of_feature(directory: Path, windows: str) -> None:
    repository = lg.open_repository(directory)
    check(repository, delta_timestamps=all_windows(repository) if windows == "all" else None)


def test_windows_with_names(directory: Path) -> None:
    repository = lg.open_repository(directory)
    everything = [key for key in repository.features if key != "said"]
    windows = {
        "goal": lg.Window(everything, lg.UniformDraw(0.1, 0.3)),
        "end": lg.Window("still", lg.LastFrame()),
        "around": lg.Window(["top", "observation.note", "action"], [-0.1, 0.0, 0.2]),
        "now": lg.Window("action", [0.0]),
    }
    check(repository, windows=windows, pad_keys={"goal": "no_goal"}, image_size=(8, 10))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"chunk_frames": 3},
        {"chunk_frames": 4, "last_chunk": "short"},
        {"chunk_frames": 4, "last_chunk": "drop", "overlap_frames": 1, "image_size": (8, 10)},
    ],
)
def test_chunks(directory: Path, arguments: dict[str, Any]) -> None:
    features = [key for key in lg.open_repository(directory).features if key != "said"]
    dataset = lg.EpisodeIterDataset(directory, num_epochs=1, features=features, **arguments)
    spec = get_element_spec(dataset)
    for number, chunk in enumerate(dataset):
        time = len(chunk["action"])
        assert_is(spec, chunk, time)
        assert (None in spec["action"].shape) == (
            arguments.get("last_chunk", "pad") == "short"
        ) or ("chunk_frames" not in arguments)
        iterator = iter(dataset)
        set_next_index(iterator, number)
        assert get_next_index(iterator) == number
        assert next(iterator)["index"].tolist() == chunk["index"].tolist()
        assert get_next_index(iterator) == number + 1


def test_what_a_spec_says(directory: Path) -> None:
    dataset = lg.LeRobotIterDataset(
        directory,
        features=["top", "observation.state", "next.done", "observation.note", "said", "task"],
        delta_timestamps={"observation.state": [-0.1, 0.0], "observation.note": [0.0, 0.1]},
        pad_keys={"observation.state": "padded"},
        image_size=(8, 10),
    )
    spec = grain.experimental.ShapeDtypeStruct
    text = spec((), np.dtype(str))
    assert get_element_spec(dataset) == {
        "top": spec((8, 10, 3), np.dtype(np.uint8)),
        "observation.state": spec((2, 7), np.dtype(np.float32)),
        "next.done": spec((), np.dtype(np.bool_)),
        "observation.note": [text, text],
        "said": spec((), np.dtype(object)),
        "task": text,
        "padded": spec((2,), np.dtype(np.bool_)),
        "observation.note_is_pad": spec((2,), np.dtype(np.bool_)),
    }
    open_text = spec((None,), np.dtype(str))
    batches = get_element_spec(dataset.batch(4))
    assert batches["top"] == spec((None, 8, 10, 3), np.dtype(np.uint8))
    assert batches["task"] == open_text
    assert batches["observation.note"] == [open_text, open_text]
    assert batches["said"] == spec((None,), np.dtype(object))


def test_nothing_but_meta_is_read(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    for folder in ("data", "videos"):
        shutil.rmtree(copy / folder)
    repository = lg.open_repository(copy)
    # The length of GOPs is what a shuffle would look for in a video.
    dataset = lg.LeRobotIterDataset(repository, shuffle=lg.Shuffle(clip_length=4))
    before = threading.active_count()
    alone = get_element_spec(lg.LeRobotIterDataset(directory))
    mixture = lg.MixtureIterDataset({"a": dataset, "b": dataset})
    workers = lg.WorkerPrefetchIterDataset(dataset, num_workers=2)
    for same in (dataset, mixture, workers):
        assert get_element_spec(same) == alone
        assert get_element_spec(same.batch(3)) == get_element_spec(dataset.batch(3))
    assert get_element_spec(lg.DeviceIterDataset(dataset.batch(3)))["task"].shape == (None,)
    assert threading.active_count() == before


def test_the_three_parts(directory: Path) -> None:
    repository = lg.open_repository(directory)
    order = lg.FrameOrderIterDataset(repository, num_epochs=1)
    requests = order.map(lg.DeltaTimestamps(repository, {"action": [0.0, 0.1, 0.2]}))
    parts = requests.filter(lambda request: request.frame > 1).pipe(
        lg.ReadWindowsIterDataset, repository
    )
    assert_is(get_element_spec(order), np.int64(next(iter(order))))
    assert get_element_spec(requests).frames["action"].shape == (3,)
    with contextlib.closing(iter(parts)) as examples:
        assert_is(get_element_spec(parts), next(examples))
    with pytest.raises(ValueError, match="output_spec"):
        get_element_spec(
            requests.map(lambda request: request).pipe(lg.ReadWindowsIterDataset, repository)
        )
    with pytest.raises(lg.InvalidRequestError, match="expected that of WindowRequests"):
        get_element_spec(lg.ReadWindowsIterDataset(order, repository))


class Renamed(grain.transforms.Map):
    """Says what it makes, as Grain wants it."""

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        return {"state": element["observation.state"].astype(np.float64)}

    def output_spec(self, input_spec: dict[str, Any]) -> dict[str, Any]:
        shape = input_spec["observation.state"].shape
        return {"state": grain.experimental.ShapeDtypeStruct(shape, np.dtype(np.float64))}


def test_after_a_map_that_has_an_output_spec(directory: Path) -> None:
    dataset = lg.LeRobotIterDataset(directory, features=["observation.state"]).map(Renamed())
    mixture = lg.MixtureIterDataset({"a": dataset, "b": dataset})
    for stream in (dataset.batch(4), mixture, mixture.batch(4)):
        with contextlib.closing(iter(stream)) as found:
            assert_is(get_element_spec(stream), next(found), 4)


def test_components_of_a_mixture_that_differ(directory: Path) -> None:
    dataset = lg.LeRobotIterDataset(directory, features=["top"])
    other = lg.LeRobotIterDataset(directory, features=["top"], image_size=(8, 8))
    with pytest.raises(lg.InvalidRequestError) as caught:
        get_element_spec(lg.MixtureIterDataset({"a": dataset, "b": other}))
    for text in ("'top' is", "(8, 8, 3)", "of 'b', and", "(32, 80, 3)", "those of 'a'; expected"):
        assert text in str(caught.value)


# --- devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_x64", [False, True])
def test_batches_on_devices(directory: Path, is_x64: bool) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    dataset = lg.LeRobotIterDataset(
        directory, delta_timestamps={"observation.note": [0.0, 0.1], "action": [0.0]}
    )
    with jax_enable_x64(is_x64):
        for of in (None, sharding):
            feed = lg.DeviceIterDataset(dataset.batch(4, drop_remainder=True), sharding=of)
            spec = get_element_spec(feed)
            with contextlib.closing(iter(feed)) as batches:
                batch = next(batches)
            assert_is(spec, batch)
            assert spec["index"].dtype == (np.int64 if is_x64 else np.int32)
            assert isinstance(spec["index"], jax.ShapeDtypeStruct)
            assert spec["index"].sharding == of
            assert isinstance(spec["task"], grain.experimental.ShapeDtypeStruct)
            numbers = {key: spec[key] for key in ("action", "top", "next.done")}
            traced = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[:2], tree), numbers)
            assert traced["action"].shape == (2, 1, 7)
        open_ended = lg.DeviceIterDataset(dataset.batch(4))
        assert get_element_spec(open_ended)["index"].shape == (None,)


# --- numbers of elements -------------------------------------------------------------------------


def plain(directory: Path, **arguments: Any) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(directory, features=["index"], num_epochs=3, **arguments)


def mixture(directory: Path, **arguments: Any) -> lg.MixtureIterDataset:
    component = lg.LeRobotIterDataset(directory, features=["index"])
    return lg.MixtureIterDataset({"a": component, "b": component}, num_examples=36, **arguments)


STREAMS: dict[str, Callable[..., Any]] = {
    "stream": plain,
    "mixture": mixture,
    "order": lambda directory, **arguments: plain(directory, **arguments)._order,
    "requests": lambda directory, **arguments: plain(directory, **arguments)._parent,
    "map": lambda directory, **arguments: plain(directory, **arguments).map(dict),
    "workers": lambda directory, **arguments: lg.WorkerPrefetchIterDataset(
        plain(directory, **arguments).map(dict), num_workers=0
    ),
}


def _comparable(element: Any) -> Any:
    return element.row if isinstance(element, lg.WindowRequest) else str(element)


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("name", STREAMS)
def test_elements_by_their_numbers(directory: Path, name: str, shard: int) -> None:
    options = grain.sharding.ShardOptions(shard, 2, drop_remainder=True)
    dataset = STREAMS[name](directory, shard_options=options)
    with contextlib.closing(iter(dataset)) as iterator:
        straight = []
        for element in iterator:
            straight.append(_comparable(element))
            assert get_next_index(iterator) == len(straight)
        assert len(straight) == 18
        for index in (5, 0, 17):
            set_next_index(iterator, index)
            assert get_next_index(iterator) == index
            state = iterator.get_state()
            assert _comparable(next(iterator)) == straight[index]
            assert get_next_index(iterator) == index + 1
            with contextlib.closing(iter(dataset)) as other:
                other.set_state(state)
                assert get_next_index(other) == index
                assert _comparable(next(other)) == straight[index]
        set_next_index(iterator, 18)
        with pytest.raises(StopIteration):
            next(iterator)
        for wrong in (-1, 1.5, True):
            with pytest.raises(lg.InvalidRequestError, match="expected an int >= 0"):
                set_next_index(iterator, wrong)


@pytest.mark.parametrize("is_on_device", [False, True])
def test_batches_by_their_numbers(directory: Path, is_on_device: bool) -> None:
    dataset = plain(directory).batch(5)
    if is_on_device:
        dataset = lg.DeviceIterDataset(dataset)
    with contextlib.closing(iter(dataset)) as iterator:
        assert get_next_index(iterator) == 0
        straight = [batch["index"].tolist() for batch in iterator]
        for index in (3, 7, 0):
            set_next_index(iterator, index)
            assert get_next_index(iterator) == index
            assert next(iterator)["index"].tolist() == straight[index]
            if is_on_device:
                with pytest.raises(lg.InvalidRequestError, match="pulled ahead in a thread"):
                    get_next_index(iterator)
            else:
                assert get_next_index(iterator) == index + 1
        with pytest.raises(lg.InvalidRequestError, match="expected an int >= 0"):
            set_next_index(iterator, -1)
        assert next(iterator)["index"].tolist() == straight[1], "nothing has changed"


def test_a_state_of_other_shards_may_be_between_two_elements(directory: Path) -> None:
    with contextlib.closing(iter(plain(directory))) as iterator:
        next(iterator)
        state = iterator.get_state()
    options = grain.sharding.ShardOptions(0, 2)
    with contextlib.closing(iter(plain(directory, shard_options=options))) as iterator:
        iterator.set_state(state)
        with pytest.raises(lg.InvalidRequestError, match="position 1 of all shards, which is no"):
            get_next_index(iterator)


def test_numbers_that_a_parent_cannot_tell(directory: Path) -> None:
    repository = lg.open_repository(directory)
    requests = lg.FrameOrderIterDataset(repository).map(lg.DeltaTimestamps(repository))
    with contextlib.closing(iter(lg.ReadWindowsIterDataset(requests, repository))) as iterator:
        set_next_index(iterator, 3)
        assert get_next_index(iterator) == 3
        next(iterator)
        with pytest.raises(lg.InvalidRequestError, match="cannot tell the number of an earlier"):
            get_next_index(iterator)

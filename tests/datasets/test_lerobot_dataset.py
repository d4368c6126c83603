"""The public front: what examples look like, what is selected, what is refused, and that nothing is
left behind.
"""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
import threading
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle  # comes with Grain, which pickles datasets with it
import grain
import jax
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base import memory
from lerobot_grain._video.decoder import load_decoder
from lerobot_grain.testing import (
    EXTRA_FEATURES,
    Camera,
    LoopbackHub,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)

TOP = "observation.images.top"
WRIST = "observation.images.wrist"
PICTURE = "observation.images.picture"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    cameras = (
        Camera(key=TOP, height=64, width=96),
        Camera(key=WRIST, height=96, width=128, codec="h264", gop=10, b_frames=2),
        Camera(key=PICTURE, height=32, width=80, kind="image"),
    )
    return write_dataset(
        tmp_path_factory.mktemp("dataset") / "data",
        episode_lengths=[21, 8, 30, 1, 17],
        fps=10,
        cameras=cameras,
        features=EXTRA_FEATURES,
        tasks=("pick", "place"),
        episodes_per_video_file={TOP: 2, WRIST: 3},
        episodes_per_data_file=2,
    )


def test_an_example_without_windows(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, num_epochs=1)
    seen = 0
    for example in dataset:
        episode, frame = int(example["episode_index"]), int(example["frame_index"])
        expected = written.expected_row(episode, frame)
        assert set(example) == {*expected, TOP, WRIST, PICTURE}
        for key, value in expected.items():
            assert np.array_equal(example[key], value), key
            if not isinstance(value, str):
                assert np.asarray(example[key]).dtype == value.dtype, key
                assert np.shape(example[key]) == value.shape, key
        for number, (key, shape) in enumerate(
            [(TOP, (64, 96, 3)), (WRIST, (96, 128, 3)), (PICTURE, (32, 80, 3))]
        ):
            assert example[key].shape == shape
            assert example[key].dtype == np.uint8
            assert read_barcodes(example[key][None]).tolist() == [[episode, frame, number]]
        seen += 1
    assert seen == written.total_frames


def test_an_example_with_windows(written: WrittenDataset) -> None:
    deltas = {
        TOP: [-0.3, 0.0, 0.1],
        WRIST: [0.0],
        PICTURE: [0.2, -0.2],
        "action": [0.0, 5.0],
        "next.reward": [-0.1, 0.0],
    }
    deltas |= {"observation.note": [0.0, 0.1], "observation.matrix": [0.1]}
    for example in lg.LeRobotIterDataset(written.directory, num_epochs=1, delta_timestamps=deltas):
        episode, frame = int(example["episode_index"]), int(example["frame_index"])
        length = int(written.episode_lengths[episode])
        for key, values in deltas.items():
            wanted = np.array([frame + round(10 * value) for value in values])
            frames = np.clip(wanted, 0, length - 1)
            assert np.array_equal(example[f"{key}_is_pad"], wanted != frames)
            assert example[f"{key}_is_pad"].dtype == np.bool_
            if key in (TOP, WRIST, PICTURE):
                assert read_barcodes(example[key])[:, :2].tolist() == [[episode, f] for f in frames]
                continue
            expected = [written.expected_row(episode, int(f))[key] for f in frames]
            if key == "observation.note":
                assert example[key] == expected
            else:
                assert np.array_equal(example[key], np.stack(expected))
                assert example[key].dtype == expected[0].dtype


def test_batches_are_jax_arrays_after_one_call(written: WrittenDataset) -> None:
    features = [TOP, "action", "next.done", "index"]
    dataset = lg.LeRobotIterDataset(
        written.directory, features=features, delta_timestamps={"action": [0.0, 0.1]}
    ).batch(16)
    iterator = iter(dataset)
    batch = jax.device_put(next(iterator))
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
        TOP: ((16, 64, 96, 3), "uint8"),
        "action": ((16, 2, 7), "float32"),
        "action_is_pad": ((16, 2), "bool"),
        "next.done": ((16,), "bool"),
        "index": ((16,), "int32"),
    }
    iterator.close()


def test_what_is_handed_out_may_be_written_to(written: WrittenDataset) -> None:
    arguments: dict[str, Any] = {
        "num_epochs": 1,
        "delta_timestamps": {TOP: [-0.1, 0.0], "action": [0.0, 0.1]},
    }
    expected = list(lg.LeRobotIterDataset(written.directory, **arguments))
    for found, reference in zip(
        lg.LeRobotIterDataset(written.directory, **arguments), expected, strict=True
    ):
        for key, value in found.items():
            assert np.array_equal(value, reference[key])
            if isinstance(value, np.ndarray):
                value.fill(0)


def test_image_size_resizes_every_camera(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(
        written.directory, num_epochs=1, image_size=(48, 64), delta_timestamps={WRIST: [0.0, 0.1]}
    )
    for example in dataset:
        assert example[TOP].shape == (48, 64, 3)
        assert example[WRIST].shape == (2, 48, 64, 3)
        assert example[PICTURE].shape == (48, 64, 3)


@pytest.mark.parametrize("episodes", [[3, 0], slice(1, 4), slice(-2, None), np.array([4])], ids=str)
def test_selected_episodes_only(written: WrittenDataset, episodes: Any) -> None:
    dataset = lg.LeRobotIterDataset(
        written.directory, episodes=episodes, num_epochs=2, features=["episode_index", "index"]
    )
    chosen = sorted(range(5)[episodes] if isinstance(episodes, slice) else episodes)
    rows = sorted(int(example["index"]) for example in dataset)
    starts = np.cumsum(written.episode_lengths) - written.episode_lengths
    expected = [starts[e] + k for e in chosen for k in range(written.episode_lengths[e])]
    assert rows == sorted(expected * 2)


def test_the_default_clip_follows_the_longest_gop_of_all_cameras(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, features=["action"])
    assert dataset.shuffle is not None
    # gops of 2 and 10: the multiple of 10 that is at least 16
    assert dataset.shuffle.clip_length == 20


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"features": ["nope"]}, r"there is no feature 'nope'; there are observation.state, action,"),
    ({"features": "action"}, r"features='action': expected a list of keys"),
    ({"features": []}, r"expected at least one key"),
    ({"features": ["action", "action"]}, r"a key is given twice"),
    ({"episodes": [7]}, r"there is no episode 7; the dataset has episodes 0 to 4"),
    ({"episodes": [1, 1]}, r"1 is given 2 times"),
    ({"episodes": []}, r"selects none of the 5 episodes"),
    ({"episodes": ["0"]}, r"expected episode numbers"),
    ({"num_epochs": 0}, r"num_epochs=0: expected an int >= 1"),
    (
        {"delta_timestamps": {"action": [0.05]}},
        r"0.05 s is 0.5 frames at 10 fps.*nearest ones are 0.0 s \(0 frames\) and 0.1 s \(1 "
        r"frames\)",
    ),
    (
        {"delta_timestamps": {"nope": [0.0]}},
        r"delta_timestamps\['nope'\]: there is no such feature",
    ),
    (
        {"features": ["action"], "delta_timestamps": {TOP: [0.0]}},
        r"delta_timestamps\['observation.images.top'\]: it is not among features=",
    ),
    ({"image_size": (0, 3)}, r"image_size=\(0, 3\): expected \(height, width\)"),
    ({"image_size": 224}, r"image_size=224: expected \(height, width\)"),
    ({"revision": "main"}, r"is a directory, which has no revision"),
]


@pytest.mark.parametrize(
    ("arguments", "text"), REFUSED, ids=[next(iter(a)) + str(i) for i, (a, _) in enumerate(REFUSED)]
)
def test_what_cannot_be_is_refused_at_construction(
    written: WrittenDataset, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.LeRobotIterDataset(written.directory, **arguments)


@pytest.fixture(scope="module")
def refusing_hub(written: WrittenDataset, hub: LoopbackHub) -> LoopbackHub:
    hub.add_repository("tests/gated_one", written.directory, gated=True)
    hub.add_repository("tests/here", written.directory, tags=("v3.0",))
    return hub


HUB_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    (
        "tests/nowhere",
        {},
        r"there is no dataset tests/nowhere on http://localhost:\d+, or it is private",
    ),
    ("tests/gated_one", {}, r"tests/gated_one is gated: ask for access on its page"),
    (
        "tests/here",
        {"revision": "v9"},
        r"tests/here@v9: the repository has no revision 'v9'; its tags and branches: v3.0, main",
    ),
]


@pytest.mark.parametrize(
    ("name", "arguments", "text"), HUB_ERRORS, ids=[name for name, _, _ in HUB_ERRORS]
)
def test_what_the_hub_refuses(
    refusing_hub: LoopbackHub, tmp_path: Path, name: str, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.StorageError, match=text):
        lg.LeRobotIterDataset(name, endpoint=refusing_hub.endpoint, cache_dir=tmp_path, **arguments)


def test_an_older_data_set_says_what_it_is(hub: LoopbackHub, tmp_path: Path) -> None:
    written = write_dataset(tmp_path / "data", episode_lengths=[3], cameras=())
    info = written.directory / "meta/info.json"
    info.write_text(info.read_text().replace("v3.0", "v1.6"))
    hub.add_repository("tests/v16", written.directory, tags=("v1.6",))
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"tests/v16@[0-9a-f]{12}, meta/info.json: this is a LeRobotDataset v1.6; expected "
        r"v2.0, v2.1 or v3.x",
    ):
        lg.LeRobotIterDataset("tests/v16", endpoint=hub.endpoint, cache_dir=tmp_path / "cache")


def test_data_sets_pickle_and_deepcopy(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, num_epochs=1, features=["index", TOP])
    expected = [int(example["index"]) for example in dataset]
    for again in (
        cloudpickle.loads(cloudpickle.dumps(dataset)),
        pickle.loads(pickle.dumps(dataset)),
        copy.deepcopy(dataset),
    ):
        assert [int(example["index"]) for example in again] == expected


def all_threads() -> set[threading.Thread]:
    """Returns the threads of the process; the watch of requests of earlier tests, which ends by
    itself, has ended.
    """
    for thread in threading.enumerate():
        if thread.name == "lerobot_grain watch":
            thread.join(timeout=30)
    return set(threading.enumerate())


def test_close_leaves_no_thread_and_ends_the_iterator(written: WrittenDataset) -> None:
    before = all_threads()
    iterator = iter(lg.LeRobotIterDataset(written.directory))
    next(iterator)
    assert all_threads() - before
    iterator.close()
    iterator.close()
    assert all_threads() <= before  # threads of tests before it may end meanwhile
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_an_exhausted_iterator_leaves_no_thread(written: WrittenDataset) -> None:
    before = all_threads()
    iterator = iter(lg.LeRobotIterDataset(written.directory, num_epochs=1, features=["index"]))
    assert sum(1 for _ in iterator) == written.total_frames
    with pytest.raises(StopIteration):
        next(iterator)
    assert all_threads() <= before  # threads of tests before it may end meanwhile


def test_nothing_is_read_before_the_first_next(written: WrittenDataset) -> None:
    before = all_threads()
    iterator = iter(lg.LeRobotIterDataset(written.directory))
    iterator.set_state(iterator.get_state())
    assert all_threads() <= before  # threads of tests before it may end meanwhile


def test_mixes_and_maps_like_any_grain_data_set(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, features=["index", "action"])
    doubled = dataset.map(
        lambda example: {"index": example["index"], "action": 2 * example["action"]}
    )
    mixed = grain.IterDataset.mix([dataset, doubled], weights=[1, 1]).batch(4)
    iterator = iter(mixed)
    first = next(iterator)
    assert first["action"].shape == (4, 7)
    assert np.array_equal(first["action"][1], 2 * first["action"][0])
    iterator.close()


@pytest.mark.parametrize(
    "options",
    [{"memory_budget_bytes": 1 << 18}, {"num_decode_threads": 1}, {"num_decode_threads": 8}],
    ids=str,
)
def test_budget_and_threads_do_not_change_what_is_read(
    written: WrittenDataset, options: dict[str, int]
) -> None:
    deltas = {TOP: [-0.5, 0.0], WRIST: [0.0, 0.7]}
    expected = list(lg.LeRobotIterDataset(written.directory, num_epochs=1, delta_timestamps=deltas))
    found = lg.LeRobotIterDataset(
        written.directory,
        num_epochs=1,
        delta_timestamps=deltas,
        read_options=lg.ReadOptions(**options),
    )
    for a, b in zip(found, expected, strict=True):
        for key, value in b.items():
            assert np.array_equal(a[key], value), key


def test_a_declared_camera_without_video_is_an_error_only_for_those_who_select_it(
    written: WrittenDataset, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    shutil.copytree(written.directory, directory)
    info = json.loads((directory / "meta" / "info.json").read_text())
    info["features"]["observation.images.ghost"] = info["features"][TOP]
    (directory / "meta" / "info.json").write_text(json.dumps(info))
    assert (
        sum(1 for _ in lg.LeRobotIterDataset(directory, features=["index", TOP], num_epochs=1))
        == written.total_frames
    )
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"camera 'observation.images.ghost' has no video: .*columns "
        r"videos/observation.images.ghost/",
    ):
        lg.LeRobotIterDataset(directory)


def test_statistics_of_an_epoch(written: WrittenDataset) -> None:
    iterator = iter(lg.LeRobotIterDataset(written.directory, num_epochs=1).batch(8))
    for _ in iterator:
        pass
    found = lg.read_statistics(iterator)
    assert found.examples == written.total_frames
    assert found.frames_handed_out == 3 * written.total_frames
    assert found.gops_decoded_again == 0
    assert 2 * written.total_frames <= found.pictures_decoded < 2.2 * written.total_frames
    assert 0 < found.bytes_needed <= found.bytes_fetched
    assert found.budget_used_bytes < 200_000, "only sample tables and row groups"
    assert 0 < found.budget_peak_bytes <= found.budget_bytes
    with pytest.raises(lg.InvalidRequestError, match="found 0 lerobot_grain streams"):
        lg.read_statistics(iter(grain.MapDataset.range(3).to_iter_dataset()))


def test_a_missing_decoder_is_named_at_construction(
    written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    load_decoder.cache_clear()
    try:
        with pytest.raises(
            lg.LeRobotGrainError,
            match=r"the video decoder cannot be loaded .*; install FFmpeg's shared libraries .*; "
            r"installed: torch \S+, torchcodec \S+$",
        ):
            lg.LeRobotIterDataset(written.directory)
        assert next(
            iter(lg.LeRobotIterDataset(written.directory, features=["action"], num_epochs=1))
        )["action"].shape == (7,)
    finally:
        load_decoder.cache_clear()


class Unloadable(types.ModuleType):
    """torchcodec where its library lacks another one, as its CUDA build does without CUDA's NPP."""

    def __getattr__(self, name: str) -> Any:
        missing = "OSError: {}: cannot open shared object file: No such file or directory\n"
        tried = "".join(
            f"FFmpeg version {n}:\n" + missing.format(name)
            for n, name in ((8, "libavutil.so.60"), (5, "libnppicc.so.13"))
        )
        raise RuntimeError(
            "Could not load libtorchcodec. Likely causes:\n 1. FFmpeg is not properly "
            f"installed\n{tried}"
        )


def test_a_library_that_the_decoder_lacks_is_named(
    written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", Unloadable("torchcodec"))
    load_decoder.cache_clear()
    try:
        with pytest.raises(
            lg.LeRobotGrainError,
            match=r"cannot be loaded \(libnppicc\.so\.13 cannot be found\); install",
        ):
            lg.LeRobotIterDataset(written.directory)
    finally:
        load_decoder.cache_clear()


def test_a_closed_stream_gives_its_memory_back(
    written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the operating system, and not again a moment later."""
    clock: list[float] = []
    told: list[int] = []
    monkeypatch.setattr(memory, "_told_at", 0.0)
    monkeypatch.setattr(memory, "_trim", told.append)
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    for now, expected in ((100.0, [0]), (101.0, [0]), (120.0, [0, 0])):
        clock.append(now)
        iterator = iter(lg.LeRobotIterDataset(written.directory))
        next(iterator)
        iterator.close()
        assert told == expected
    iterator.close()
    monkeypatch.setattr(memory, "_trim", None)  # another C library
    memory.give_back()

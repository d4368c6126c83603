"""Mixtures of streams with `grain.IterDataset.mix`: shares, and states that restore exactly, also
at the borders of epochs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Camera, write_dataset

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
Directories = dict[str, Path]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Directories:
    """Other lengths, frame rates, cameras and dimensions."""
    where = tmp_path_factory.mktemp("mixture")
    small = Camera(height=48, width=80)
    wide = Camera(key="observation.images.wrist", height=64, width=96, codec="h264", gop=5)
    return {
        "a": write_dataset(
            where / "a", episode_lengths=[9, 8], fps=10, cameras=[small], action_size=2
        ).directory,
        "b": write_dataset(
            where / "b", episode_lengths=[7, 12], fps=30, cameras=[wide], action_size=5
        ).directory,
        "c": write_dataset(
            where / "c", episode_lengths=[3], fps=5, cameras=[], action_size=1
        ).directory,
    }


def streams(
    directories: Directories, *, num_epochs: int | None = None, shard: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """Returns the streams, made equal: (name, row), three actions padded to five, one frame."""

    def common(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def of(example: dict[str, Any]) -> dict[str, Any]:
            cameras = [key for key in example if key.startswith("observation.images")]
            action = example["action"].reshape(3, -1)  # a feature of shape (1,) is a scalar
            return {
                "from": name,
                "row": int(example["index"]),
                "action": np.pad(action, [(0, 0), (0, 5 - action.shape[1])]),
                "image": example[cameras[0]] if cameras else np.zeros((32, 40, 3), np.uint8),
            }

        return of

    datasets = {}
    for name, directory in directories.items():
        repository = lg.open_repository(directory)
        datasets[name] = lg.LeRobotIterDataset(
            repository,
            features=[*repository.cameras, "action", "index"],
            delta_timestamps={"action": [0.0, 1 / repository.fps, 2 / repository.fps]},
            shuffle=lg.Shuffle(seed=8),
            num_epochs=num_epochs,
            image_size=(32, 40),
            shard_options=grain.sharding.ShardOptions(*shard),
        ).map(common(name))
    return datasets


def mixture(directories: Directories, **changes: Any) -> Any:
    # More epochs than any test reads, also of "c" with its 3 rows. Without an end hundreds of them
    # would be read ahead.
    return grain.IterDataset.mix(streams(directories, **({"num_epochs": 20} | changes)), WEIGHTS)


def names(examples: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(example["from"], example["row"]) for example in examples]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert names(found) == names(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one["action"], other["action"])
        assert np.array_equal(one["image"], other["image"])


def take(iterator: Any, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(iterator, count))


def test_each_component_is_its_own_stream_in_its_own_share(directories: Directories) -> None:
    with contextlib.closing(iter(mixture(directories))) as iterator:
        mixed = take(iterator, 100)
    for name, dataset in streams(directories).items():
        with contextlib.closing(iter(dataset)) as alone:
            assert_same(
                [example for example in mixed if example["from"] == name],
                take(alone, round(100 * WEIGHTS[name])),
            )


@pytest.mark.parametrize("batch_size", [None, 4])
def test_restores_exactly_anywhere(directories: Directories, batch_size: int | None) -> None:
    dataset = mixture(directories) if batch_size is None else mixture(directories).batch(batch_size)
    with contextlib.closing(iter(dataset)) as straight:
        states, elements = [], []
        for _ in range(40):
            states.append(json.dumps(straight.get_state()))
            elements.append(next(straight))
    assert max(map(len, states)) < 1024
    with contextlib.closing(iter(dataset)) as restored:
        # In one iterator, forwards and backwards; in the epochs 0 to 2 of "a", and 0 to 6 of "c".
        for position in (0, 35, 17, 6, 1, 34):
            restored.set_state(json.loads(states[position]))
            for expected in elements[position : position + 4]:
                found = next(restored)
                assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_restores_on_another_number_of_shards(directories: Directories) -> None:
    # Every shard takes the same components in the same turn, so after k examples on each all shards
    # have the same state.
    states, taken = [], []
    for shard in range(2):
        with contextlib.closing(iter(mixture(directories, shard=(shard, 2)))) as iterator:
            taken += names(take(iterator, 20))
            states.append(iterator.get_state())
    assert states[0] == states[1]
    with contextlib.closing(iter(mixture(directories))) as alone:
        straight = names(take(alone, 60))
    with contextlib.closing(iter(mixture(directories))) as restored:
        restored.set_state(states[0])
        rest = names(take(restored, 20))
    for name in WEIGHTS:
        found = sorted(row for origin, row in taken if origin == name) + [
            row for origin, row in rest if origin == name
        ]
        expected = [row for origin, row in straight if origin == name]
        first = sum(origin == name for origin, _ in taken)
        assert found == sorted(expected[:first]) + expected[first:]


def test_a_component_that_has_changed_is_refused(directories: Directories) -> None:
    with contextlib.closing(iter(mixture(directories))) as iterator:
        state = iterator.get_state()
    exchanged = {"a": directories["b"], "b": directories["a"], "c": directories["c"]}
    with (
        contextlib.closing(iter(mixture(exchanged))) as iterator,
        pytest.raises(lg.StateMismatchError, match="taken with commit = "),
    ):
        iterator.set_state(state)


def test_an_error_ends_a_mixture_and_the_state_before_it_goes_on(directories: Directories) -> None:
    calls = itertools.count()

    def fails_once(example: dict[str, Any]) -> dict[str, Any]:
        if next(calls) == 3:
            raise lg.StorageError("no answer")
        return example

    with contextlib.closing(iter(mixture(directories))) as iterator:
        straight = take(iterator, 20)
    components = streams(directories)
    components["a"] = components["a"].map(fails_once)
    with contextlib.closing(iter(grain.IterDataset.mix(components, WEIGHTS))) as iterator:
        # The fourth example of "a", whose share is one half.
        found = take(iterator, 6)
        state = iterator.get_state()
        with pytest.raises(lg.StorageError, match="no answer"):
            next(iterator)
        # That is Grain's: its mixture ends at the first error of a component, and says so in its
        # state.
        assert next(iterator, None) is None
        assert iterator.get_state()["stop"]
        iterator.set_state(state)
        assert_same(found + take(iterator, 14), straight)


def test_a_finite_mixture_ends_with_its_first_component(directories: Directories) -> None:
    with contextlib.closing(iter(mixture(directories, num_epochs=1))) as iterator:
        found = names(list(iterator))
    assert len([row for name, row in found if name == "c"]) == 3
    assert len(set(found)) == len(found)

"""Goals in streams: the frames, values and texts of the row that was drawn stand beside those of
the row of the example; stopped anywhere and on any number of shards the same.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import (
    EXTRA_FEATURES,
    Camera,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)
from tests.datasets.test_delta_timestamps import assert_same
from tests.support.draws import draw_frame, word
from tests.support.forked import fork_workers

TOP, WRIST, EYE, DEPTH = (f"observation.images.{name}" for name in ("top", "wrist", "eye", "depth"))
STATE, NOTE = "observation.state", "observation.note"
LENGTHS = [40, 7, 1, 33]
FPS = 10
SHUFFLE = lg.Shuffle(seed=2, clip_length=4, num_parts=4, buffer_size=16)
DRAWS: dict[str, Any] = {
    "goal": lg.UniformDraw(0.5, 2.0),
    "far": lg.GeometricDraw(1.0),
    "end": lg.LastFrame(),
}
FEATURES: dict[str, Any] = {"goal": [TOP, STATE, NOTE], "far": WRIST, "end": [TOP, EYE, DEPTH]}
WINDOWS = {
    **{name: lg.Window(FEATURES[name], draw) for name, draw in DRAWS.items()},
    "before": lg.Window([TOP, STATE, NOTE], [-0.5, 0.0]),
}
OUTPUTS = {key: name for name, window in WINDOWS.items() for key in window.outputs(name)}
FEATURE_OF = {
    key: feature
    for name, window in WINDOWS.items()
    for key, feature in window.outputs(name).items()
}


def write(where: Path, **arguments: Any) -> WrittenDataset:
    return write_dataset(
        where,
        episode_lengths=LENGTHS,
        fps=FPS,
        features=EXTRA_FEATURES,
        tasks=("a", "bc"),
        **arguments,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    cameras = (
        Camera(key=TOP, height=64, width=80),
        Camera(key=WRIST, height=64, width=80, codec="h264", gop=10, b_frames=2),
        Camera(key=EYE, height=64, width=80, kind="image"),
        Camera(key=DEPTH, height=64, width=80, depth=True),
    )
    return write(
        tmp_path_factory.mktemp("goals") / "data", cameras=cameras, episodes_per_video_file=2
    )


@pytest.fixture(scope="module")
def repository(written: WrittenDataset) -> lg.Repository:
    return lg.open_repository(written.directory)


@pytest.fixture(scope="module")
def rows(repository: lg.Repository) -> list[dict[str, Any]]:
    """All rows without windows, in order."""
    return list(lg.LeRobotIterDataset(repository, shuffle=None, num_epochs=1))


def stream(repository: Any, **arguments: Any) -> lg.LeRobotIterDataset:
    defaults = {"shuffle": SHUFFLE, "num_epochs": 2, "windows": WINDOWS}
    return lg.LeRobotIterDataset(repository, **defaults | arguments)


def assert_is_example(
    example: dict[str, Any], position: int, rows: list[dict[str, Any]], seed: int = SHUFFLE.seed
) -> None:
    """Compares the windows of an example with single rows, by the definition of the draws."""
    row, frame = int(example["index"]), int(example["frame_index"])
    length = LENGTHS[int(example["episode_index"])]
    for name, draw in DRAWS.items():
        drawn, is_pad = draw_frame(draw, word(name, seed, position), frame, length, fps=FPS)
        assert_same(example[f"{name}_is_pad"], np.bool_(is_pad))
        assert_same(example[f"{name}_seconds"], np.float32((drawn - frame) / FPS))
        for key in WINDOWS[name].outputs(name):
            assert_same(example[key], rows[row + drawn - frame][FEATURE_OF[key]])
    offsets = [max(-frame, -5), 0]
    assert example["before_is_pad"].tolist() == [frame < 5, False]
    assert_same(example["before_seconds"], np.array(offsets, np.float64).astype(np.float32) / 10)
    for key in (f"before.{TOP}", f"before.{STATE}"):
        expected = [rows[row + offset][FEATURE_OF[key]] for offset in offsets]
        assert_same(example[key], np.stack(expected))
    assert example[f"before.{NOTE}"] == [rows[row + offset][NOTE] for offset in offsets]


def test_every_value_is_that_of_the_row_that_was_drawn(
    repository: lg.Repository, rows: list[dict[str, Any]]
) -> None:
    found = list(stream(repository))
    plain = list(stream(repository, windows=None))
    assert len(found) == 2 * len(rows)
    for position, (example, without) in enumerate(zip(found, plain, strict=True)):
        assert_is_example(example, position, rows)
        assert_same({key: example[key] for key in without}, without)
        assert set(example) - set(without) == {
            *FEATURE_OF,
            *(f"{name}_{what}" for name in WINDOWS for what in ("is_pad", "seconds")),
        }
    drawn = {float(example["goal_seconds"]) for example in found}
    assert len(drawn) > 12
    assert sum(bool(example["goal_is_pad"]) for example in found) > 2


def test_goal_frames_carry_the_barcode_of_the_row_that_was_drawn(
    repository: lg.Repository,
) -> None:
    for example in stream(repository, num_epochs=1):
        for key, name in OUTPUTS.items():
            if name == "before" or FEATURE_OF[key] not in (TOP, WRIST):
                continue
            frame = example["frame_index"] + round(float(example[f"{name}_seconds"]) * FPS)
            ((episode, barcode, *_),) = read_barcodes(example[key][None])
            assert (episode, barcode) == (example["episode_index"], frame)


def test_batches_are_the_examples(repository: lg.Repository) -> None:
    dataset = stream(repository)
    assert_same(list(dataset.batch(13)), list(grain.IterDataset.batch(dataset, 13)))


def test_stopped_anywhere_on_any_number_of_shards(
    repository: lg.Repository, rows: list[dict[str, Any]]
) -> None:
    position = 0
    state: dict[str, Any] | None = None
    for count, steps in ((1, 5), (3, 7), (2, 20), (5, 3)):
        states = []
        for number in range(count):
            shard = grain.sharding.ShardOptions(number, count)
            with contextlib.closing(iter(stream(repository, shard_options=shard))) as iterator:
                if state is not None:
                    iterator.set_state(state)
                for k, example in enumerate(itertools.islice(iterator, steps)):
                    assert_is_example(example, position + number + k * count, rows)
                states.append(iterator.get_state())
        assert all(each == states[0] for each in states)
        state = states[0]
        position += count * steps
    # Windows are not in the state: one of a stream without them restores, and the other way round.
    assert state is not None
    plain = iter(stream(repository, windows=None))
    plain.set_state(state)
    assert plain.get_state() == state
    plain.close()


def test_workers_draw_what_one_process_draws(
    repository: lg.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    dataset = stream(
        repository,
        num_epochs=1,
        features=["index", STATE],
        windows={"goal": lg.Window(STATE, DRAWS["goal"])},
    )
    with contextlib.closing(
        iter(lg.WorkerPrefetchIterDataset(pickle.loads(pickle.dumps(dataset)), num_workers=2))
    ) as iterator:
        for found, expected in zip(iterator, dataset, strict=True):
            assert_same(found, expected)


@pytest.mark.parametrize(
    "sampling",
    [
        {"weights": {0: 2.5, 3: 0.3}},
        {"stride": 3},
        {"shuffle": None},
        {"valid_rows": [row % 5 != 0 for row in range(sum(LENGTHS))]},
        {"drop_last_frames": 3, "episodes": [0, 3]},
    ],
    ids=lambda sampling: next(iter(sampling)),
)
def test_draws_depend_on_the_position_whatever_gives_the_rows(
    repository: lg.Repository, rows: list[dict[str, Any]], sampling: dict[str, Any]
) -> None:
    seed = 0 if "shuffle" in sampling else SHUFFLE.seed
    found = list(stream(repository, **sampling))
    assert len(found) > 40
    for position, example in enumerate(found):
        assert_is_example(example, position, rows, seed)


def test_with_padded_windows_goals_are_drawn_among_the_valid_rows(
    repository: lg.Repository,
) -> None:
    is_valid = np.array([row % 4 < 2 or row % 7 == 0 for row in range(sum(LENGTHS))])
    dataset = stream(
        repository,
        valid_rows=lg.ValidRows(is_valid, pad_windows=True),
        features=["index", "frame_index", "episode_index", STATE],
        windows={name: lg.Window(STATE, draw) for name, draw in DRAWS.items()},
    )
    first_rows = np.cumsum(LENGTHS) - LENGTHS
    for position, example in enumerate(dataset):
        episode, frame = int(example["episode_index"]), int(example["frame_index"])
        first, length = int(first_rows[episode]), LENGTHS[episode]
        for name, draw in DRAWS.items():
            drawn, is_pad = draw_frame(
                draw,
                word(name, SHUFFLE.seed, position),
                frame,
                length,
                fps=FPS,
                is_valid=is_valid[first : first + length].tolist(),
            )
            assert is_valid[first + drawn]
            assert example[f"{name}_is_pad"] == is_pad
            assert example[f"{name}_seconds"] == np.float32((drawn - frame) / FPS)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_older_datasets(tmp_path: Path, version: str) -> None:
    cameras = (Camera(key=TOP, height=64, width=80),)
    data = write(tmp_path / "data", cameras=cameras, version=version)
    windows = {"goal": lg.Window([TOP, STATE], DRAWS["goal"])}
    count = 0
    for position, example in enumerate(stream(data.directory, num_epochs=1, windows=windows)):
        frame = int(example["frame_index"])
        length = LENGTHS[int(example["episode_index"])]
        expected, _ = draw_frame(
            DRAWS["goal"], word("goal", SHUFFLE.seed, position), frame, length, fps=FPS
        )
        assert read_barcodes(example[f"goal.{TOP}"][None])[0][1] == expected
        count += 1
    assert count == sum(LENGTHS)


def test_a_mixture_draws_what_its_components_draw_alone(
    repository: lg.Repository, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", cameras=(Camera(key=TOP, height=64, width=80),))
    arguments: dict[str, Any] = {
        "num_epochs": None,
        "features": ["index", TOP, STATE],
        "windows": {
            "goal": lg.Window([TOP, STATE], DRAWS["goal"]),
            "near": lg.Window(TOP, [0.0, 0.1]),
        },
    }
    components = {
        "one": stream(repository, **arguments),
        "two": stream(other.directory, **arguments, episodes=[0, 3]),
    }
    alone = {name: iter(dataset) for name, dataset in components.items()}
    mixture = lg.MixtureIterDataset(components, {"one": 2, "two": 1}, num_examples=90)
    (order,) = mixture.parents
    names = [name for name, _ in itertools.islice(iter(order), 90)]
    examples = list(mixture)
    for name, found in zip(names, examples, strict=True):
        assert_same(found, next(alone[name]))
    assert_same(list(mixture.batch(15)), list(grain.IterDataset.batch(mixture, 15)))
    for iterator in alone.values():
        iterator.close()


def test_a_small_budget_changes_nothing(
    repository: lg.Repository, rows: list[dict[str, Any]]
) -> None:
    options = lg.ReadOptions(memory_budget_bytes=1 << 20)
    for position, example in enumerate(stream(repository, num_epochs=1, read_options=options)):
        assert_is_example(example, position, rows)


def test_goals_from_the_frame_cache(
    repository: lg.Repository, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    options = lg.ReadOptions(frame_cache_bytes=1 << 30, frame_cache_directory=tmp_path)
    for _ in range(2):
        iterator = iter(stream(repository, read_options=options))
        for position, example in enumerate(iterator):
            assert_is_example(example, position, rows)
        statistics = lg.read_statistics(iterator)
    assert statistics.frames_from_cache > 0.9 * statistics.frames_handed_out


# --- pipelines of one's own ----------------------------------------------------------------------


def test_a_pipeline_of_ones_own(repository: lg.Repository) -> None:
    order = lg.FrameOrderIterDataset(
        repository, shuffle=SHUFFLE, num_epochs=2, with_positions=True
    ).filter(lambda element: element[0] % 3 != 0)
    transformation = lg.DeltaTimestamps(
        repository, {"action": [0.0, 0.1]}, windows=WINDOWS, seed=SHUFFLE.seed
    )
    dataset = lg.ReadWindowsIterDataset(order.map(transformation), repository)
    expected = [
        example
        for example in stream(repository, delta_timestamps={"action": [0.0, 0.1]})
        if example["index"] % 3 != 0
    ]
    for found, example in zip(dataset, expected, strict=True):
        assert_same(found, example)
    assert_same(list(dataset.batch(20)), list(grain.IterDataset.batch(dataset, 20)))


def test_rows_without_positions_have_windows_that_are_not_drawn(repository: lg.Repository) -> None:
    order = lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, num_epochs=1)
    fixed = {"end": WINDOWS["end"], "before": WINDOWS["before"]}
    dataset = lg.ReadWindowsIterDataset(
        order.map(lg.DeltaTimestamps(repository, windows=fixed)), repository
    )
    built_in = stream(repository, num_epochs=1, windows=fixed)
    for found, expected in zip(dataset, built_in, strict=True):
        assert_same(found, expected)
    drawn = order.map(lg.DeltaTimestamps(repository, windows=WINDOWS))
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"the frame of windows\['goal'\] is drawn by the position of the row in its order, "
        r"which is not known; expected pairs \(row, position\)",
    ):
        next(iter(lg.ReadWindowsIterDataset(drawn, repository)))


def test_positions_of_shards_and_states(repository: lg.Repository) -> None:
    def pairs(shard: int, count: int, state: Any = None) -> tuple[list[Any], Any]:
        iterator = iter(
            lg.FrameOrderIterDataset(
                repository,
                shuffle=SHUFFLE,
                shard_options=grain.sharding.ShardOptions(shard, count),
                with_positions=True,
            )
        )
        if state is not None:
            iterator.set_state(state)
        return list(itertools.islice(iterator, 30)), iterator.get_state()

    whole, _ = pairs(0, 1)
    assert [position for _, position in whole] == list(range(30))
    for number in range(3):
        found, state = pairs(number, 3)
        assert found[:10] == whole[number::3]
        again, _ = pairs(number, 3, state)
        assert [position for _, position in again] == list(range(90 + number, 180, 3))


# --- what policies do with them ------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 6])
def test_goals_in_shapes_that_policies_want(
    repository: lg.Repository, batch_size: int | None
) -> None:
    goal_top, goal_state = f"goal.{TOP}", f"goal.{STATE}"
    dataset: Any = stream(
        repository,
        delta_timestamps={"action": [0.0, 0.1]},
        features=[TOP, WRIST, STATE, "action", "task", EYE, DEPTH, NOTE],
    )
    if batch_size is not None:
        dataset = dataset.batch(batch_size)
    example = next(iter(dataset))
    axes = () if batch_size is None else (batch_size,)
    padded = lg.PadDimensions({goal_state: 9}).map(example)
    assert padded[goal_state].shape == (*axes, 9)
    delta = lg.DeltaActions([True] * 6, state_key=goal_state).map(example)
    assert np.allclose(
        delta["action"][..., :6], (example["action"] - example[goal_state][..., None, :])[..., :6]
    )
    resized = lg.ResizeWithPad([goal_top, "far"], (32, 32)).map(example)
    assert resized[goal_top].shape == resized["far"].shape == (*axes, 32, 32, 3)
    openpi = lg.OpenPiFormat(
        cameras={"base_0_rgb": TOP, "left_wrist_0_rgb": "far", "right_wrist_0_rgb": goal_top}
    ).map(example)
    assert openpi["image"]["left_wrist_0_rgb"].shape == (*axes, 224, 224, 3)
    assert openpi["image_mask"]["left_wrist_0_rgb"].all()
    with pytest.raises(lg.InvalidRequestError, match="'before' without delta_timestamps"):
        lg.OpenPiFormat(cameras={"base_0_rgb": "before"}).map(
            {**example, "before": example[f"before.{TOP}"]}
        )
    if batch_size is not None:
        keys = lg.example_keys(jax.random.key(0), step=0, rows=np.arange(batch_size))
        changed = lg.augment_images(lambda _, image: image, keys, example[goal_top])
        assert np.allclose(changed * 255, example[goal_top], atol=1e-3)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"features": ["index", STATE]}, "windows['goal']: no feature 'observation.images.top' is"),
        (
            {"windows": {STATE: lg.Window(TOP, [0.0])}},
            "windows['observation.state']: there is a feature 'observation.state'",
        ),
        (
            {"windows": {"goal": lg.Window("task", [0.0])}},
            "windows['goal']: no feature 'task' is read",
        ),
        (
            {"windows": {"goal": lg.Window(STATE, [0.0])}, "pad_keys": {"goal": "index"}},
            "pad_keys={'goal': 'index'}: the mask of the window of 'goal' and the feature 'index'",
        ),
        (
            {"windows": {"goal": lg.Window(STATE, [0.0])}, "pad_keys": {"gaol": "x"}},
            "pad_keys['gaol']: there is no window of it; there are those of goal",
        ),
        (
            {"windows": {"goal": lg.Window(STATE, lg.UniformDraw(0.25, 1))}},
            "windows['goal']: UniformDraw: 0.25 s is 2.5 frames at 10 fps",
        ),
    ],
)
def test_arguments_that_are_refused(
    repository: lg.Repository, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError) as caught:
        stream(repository, **arguments)
    assert str(caught.value).startswith(text)


def test_masks_have_the_keys_that_pad_keys_says(repository: lg.Repository) -> None:
    example = next(iter(stream(repository, pad_keys={"goal": "reached", "before": "b"})))
    assert "goal_is_pad" not in example
    assert example["reached"].dtype == np.bool_
    assert example["b"].shape == (2,)

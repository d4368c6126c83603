"""Whole episodes and chunks: the frames of the stream of rows, in chunks; each frame decoded once;
resumed to the chunk; within the memory budget.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import lerobot_grain as lg
from lerobot_grain._base import machine
from lerobot_grain._datasets.episodes import episode_dataset
from lerobot_grain.testing import (
    EXTRA_FEATURES,
    Camera,
    Feature,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)
from tests.support.datasets import examples_of
from tests.support.forked import fork_workers
from tests.support.oracle import NAMES, Oracle
from tests.support.orders import naive_chunk_order, naive_chunks

TOP, WRIST, STILL = (f"observation.images.{name}" for name in ("top", "wrist", "still"))
LENGTHS = [13, 6, 24, 8]
ADDED = {"chunk_episode", "chunk_first_frame", "chunk_ends_episode", "chunk_is_pad"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    """51 rows in 4 episodes, GOPs of 4, two cameras, embedded images, and strings."""
    return write_dataset(
        tmp_path_factory.mktemp("chunks") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(
            Camera(key=TOP, height=32, width=80, gop=4, codec="h264"),
            Camera(key=WRIST, height=48, width=80, gop=4, codec="h264", b_frames=2),
            Camera(key=STILL, height=32, width=80, kind="image"),
        ),
        features=EXTRA_FEATURES,
        tasks=("pick", "place it there"),
        episodes_per_data_file=2,
        episodes_per_video_file=3,
    )


@pytest.fixture(scope="module")
def repository(written: WrittenDataset) -> lg.Repository:
    return lg.open_repository(written.directory)


def chunks_in(dataset: grain.IterDataset[Any]) -> list[dict[str, Any]]:
    with contextlib.closing(iter(dataset)) as chunks:
        return list(chunks)


def check(
    dataset: lg.EpisodeIterDataset, rows: list[dict[str, Any]], *, padded_to: int | None = None
) -> list[list[int]]:
    """Checks all chunks of a stream against the examples of the stream of rows; returns their rows,
    without the padding.
    """
    episodes = dataset.repository.episodes
    found = []
    for chunk in chunks_in(dataset):
        indices = chunk["index"].tolist()
        is_pad = chunk.get("chunk_is_pad", np.zeros(len(indices), np.bool_))
        assert ("chunk_is_pad" in chunk) == (padded_to is not None)
        assert padded_to in (None, len(indices))
        real = [row for row, pad in zip(indices, is_pad.tolist(), strict=True) if not pad]
        assert indices == real + [real[-1]] * (len(indices) - len(real))
        assert real == list(range(real[0], real[0] + len(real)))
        number, first_frame = episodes.locate(real[0])
        assert (chunk["chunk_episode"], chunk["chunk_first_frame"]) == (number, first_frame)
        assert chunk["chunk_episode"].dtype == chunk["chunk_first_frame"].dtype == np.int64
        assert chunk["chunk_ends_episode"].dtype == np.bool_
        length = episodes.lengths.item(episodes.place_of(real[0])[0])
        assert bool(chunk["chunk_ends_episode"]) == (first_frame + len(real) == length)
        assert set(chunk) - ADDED == set(rows[0])
        for key, first in rows[0].items():
            assert isinstance(chunk[key], np.ndarray), key
            expected = np.stack([rows[row][key] for row in indices])
            assert chunk[key].shape == expected.shape, key
            assert chunk[key].dtype == expected.dtype or isinstance(first, str), key
            assert np.array_equal(chunk[key], expected), key
        found.append(real)
    return found


# name -> arguments, and what the definition calls them
CUTS: dict[str, dict[str, Any]] = {
    "episodes": {},
    "padded": {"chunk_frames": 8},
    "overlapping": {"chunk_frames": 7, "overlap_frames": 3, "last_chunk": "short"},
    "overlapping by all but one, padded": {"chunk_frames": 6, "overlap_frames": 5},
    "whole chunks": {"chunk_frames": 8, "last_chunk": "drop"},
    "frame by frame": {"chunk_frames": 1},
    "longer than episodes": {"chunk_frames": 30},
}


def expected_rows(lengths: list[int], seed: int | None, num_epochs: int, **cut: Any) -> list[Any]:
    chunks = naive_chunks(
        (np.cumsum(lengths) - lengths).tolist(),
        lengths,
        frames=cut.get("chunk_frames"),
        overlap=cut.get("overlap_frames", 0),
        drop_shorter=cut.get("last_chunk") == "drop",
    )
    return naive_chunk_order(chunks, seed, num_epochs)


def padding(cut: dict[str, Any]) -> int | None:
    return cut.get("chunk_frames") if cut.get("last_chunk", "pad") == "pad" else None


@pytest.mark.parametrize("seed", [3, None], ids=["shuffled", "in order"])
@pytest.mark.parametrize("name", CUTS)
def test_the_frames_are_those_of_the_stream_of_rows(
    repository: lg.Repository, name: str, seed: int | None
) -> None:
    cut = CUTS[name]
    dataset = lg.EpisodeIterDataset(
        repository,
        shuffle=None if seed is None else lg.Shuffle(seed=seed),
        num_epochs=2,
        **cut,
    )
    expected = expected_rows(LENGTHS, seed, 2, **cut)
    assert 2 * dataset.num_chunks == len(expected)
    assert check(dataset, examples_of(repository), padded_to=padding(cut)) == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_frames_are_those_of_the_map_style_reader(shared: Path, name: str) -> None:
    oracle = Oracle.of(shared, name, "none")
    repository = lg.open_repository(shared / "golden" / name)
    for arguments in ({}, {"chunk_frames": 16}, {"chunk_frames": 9, "overlap_frames": 4}):
        rows = {}
        for chunk in chunks_in(lg.EpisodeIterDataset(repository, num_epochs=1, **arguments)):
            for place, row in enumerate(chunk["index"].tolist()):
                values = {key: chunk[key] for key in set(chunk) - ADDED}
                rows[row] = {
                    key: str(value[place]) if value.dtype.kind == "U" else value[place]
                    for key, value in values.items()
                }
        assert len(rows) == repository.episodes.num_rows
        oracle.check([rows[row] for row in oracle.rows], repository)


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_version_2(tmp_path: Path, version: str) -> None:
    directory = write_dataset(
        tmp_path / "data",
        version=version,
        episode_lengths=[9, 5],
        fps=10,
        cameras=[Camera(key=TOP, height=32, width=80, gop=4, codec="h264")],
    ).directory
    dataset = lg.EpisodeIterDataset(directory, chunk_frames=4, num_epochs=1)
    assert check(dataset, examples_of(directory), padded_to=4) == expected_rows(
        [9, 5], 0, 1, chunk_frames=4
    )


def test_selections_and_sizes(repository: lg.Repository) -> None:
    dataset = lg.EpisodeIterDataset(
        repository,
        episodes=[2, 0],
        drop_first_frames=2,
        drop_last_frames=1,
        features=[TOP, "index", "task"],
        image_size=(16, 40),
        shuffle=None,
        num_epochs=1,
    )
    first, second = chunks_in(dataset)
    assert first["index"].tolist() == list(range(2, 12))
    assert second["index"].tolist() == list(range(21, 42))
    assert (first["chunk_episode"], first["chunk_first_frame"]) == (0, 2)
    assert first["chunk_ends_episode"]
    assert first[TOP].shape == (10, 16, 40, 3)
    assert first["task"].tolist() == ["pick"] * 10
    assert set(first) == {TOP, "index", "task"} | ADDED - {"chunk_is_pad"}
    (only_task, *_) = chunks_in(
        lg.EpisodeIterDataset(repository, features=["task"], shuffle=None, num_epochs=1)
    )
    assert only_task["task"].tolist() == ["pick"] * 13


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "arguments"),
    [
        (3, {"chunk_frames": 8}),
        (3, {}),
        (None, {"chunk_frames": 5}),
        (None, {"chunk_frames": 8, "overlap_frames": 3}),
    ],
    ids=["chunks of whole GOPs", "episodes", "in order", "in order, overlapping"],
)
def test_every_frame_is_decoded_once(
    repository: lg.Repository, seed: int | None, arguments: dict[str, Any]
) -> None:
    dataset = lg.EpisodeIterDataset(
        repository,
        features=[TOP, WRIST],
        shuffle=None if seed is None else lg.Shuffle(seed=seed),
        num_epochs=1,
        **arguments,
    )
    iterator = iter(dataset)
    num_rows = sum(len(chunk[TOP]) for chunk in iterator)
    statistics = lg.read_statistics(iterator)
    assert statistics.pictures_decoded == 2 * sum(LENGTHS)
    assert statistics.examples == num_rows
    iterator.close()


def test_a_chunk_longer_than_the_budget_keeps_to_it(tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[300, 40],
        fps=10,
        cameras=[Camera(key=TOP, height=64, width=96, gop=10, codec="h264")],
    ).directory
    budget = 1 << 20
    dataset = lg.EpisodeIterDataset(
        directory,
        shuffle=None,
        num_epochs=1,
        read_options=lg.ReadOptions(memory_budget_bytes=budget, num_decode_threads=2),
    )
    iterator = iter(dataset)
    first, second = iterator
    assert first[TOP].nbytes > 5 * budget
    for chunk, number in ((first, 0), (second, 1)):
        barcodes = read_barcodes(chunk[TOP])
        assert barcodes[:, 1].tolist() == list(range(len(chunk[TOP])))
        assert set(barcodes[:, 0]) == {number}
    assert lg.read_statistics(iterator).budget_peak_bytes <= budget
    iterator.close()


def test_a_chunk_that_does_not_fit_into_memory_is_refused(
    repository: lg.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 24 * (32 * 80 + 48 * 80 + 32 * 80) * 3
    monkeypatch.setattr(episode_dataset, "memory_bytes", lambda: 2 * needed)
    lg.EpisodeIterDataset(repository)
    monkeypatch.setattr(episode_dataset, "memory_bytes", lambda: 2 * needed - 2)
    with pytest.raises(lg.InvalidRequestError) as caught:
        lg.EpisodeIterDataset(repository)
    assert str(caught.value) == (
        f"EpisodeIterDataset: the longest chunk has 24 frames, which take {needed} bytes with all "
        f"cameras; expected at most half of the memory that this process may use, {needed - 1}. "
        "Read it in shorter chunks with chunk_frames=, smaller with image_size=, or fewer cameras "
        "with features="
    )
    for fitting in ({"chunk_frames": 8}, {"image_size": (8, 8)}, {"features": ["action"]}):
        lg.EpisodeIterDataset(repository, **fitting)
    monkeypatch.setattr(episode_dataset, "memory_bytes", lambda: None)
    lg.EpisodeIterDataset(repository)
    assert episode_dataset.memory_bytes is not machine.memory_bytes


def test_a_frame_that_cannot_be_read_is_an_error_of_its_chunk(tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[8, 8, 8],
        fps=10,
        cameras=[Camera(key=TOP, height=32, width=80, gop=4, codec="h264")],
        episodes_per_video_file=1,
    ).directory
    video = sorted((directory / "videos").rglob("*.mp4"))[1]
    whole = video.read_bytes()
    video.unlink()
    iterator = iter(lg.EpisodeIterDataset(directory, chunk_frames=8, shuffle=None, num_epochs=1))
    assert next(iterator)["chunk_episode"] == 0
    state = iterator.get_state()
    assert state["position"] == 1
    for _ in range(2):
        with pytest.raises(lg.StorageError, match=re.escape(video.name)):
            next(iterator)
        assert iterator.get_state() == state
    video.write_bytes(whole)
    assert [int(chunk["chunk_episode"]) for chunk in iterator] == [1, 2]
    iterator.close()


# --- state ---------------------------------------------------------------------------------------


def small(repository: lg.Repository, **arguments: Any) -> lg.EpisodeIterDataset:
    return lg.EpisodeIterDataset(
        repository,
        **{"chunk_frames": 5, "features": ["index"], "shuffle": lg.Shuffle(seed=9)} | arguments,
    )


def rows_of(chunk: dict[str, Any]) -> list[int]:
    return chunk["index"].tolist()


def test_it_is_resumed_to_the_chunk_on_any_number_of_shards(repository: lg.Repository) -> None:
    arguments: dict[str, Any] = {"num_epochs": 3, "last_chunk": "short"}
    straight = [rows_of(chunk) for chunk in chunks_in(small(repository, **arguments))]
    state: dict[str, Any] = {}
    position = 0
    for num_shards, steps in ((1, 2), (3, 4), (2, 5), (1, 1), (4, 2)):
        states = []
        for shard in range(num_shards):
            options = grain.sharding.ShardOptions(shard, num_shards)
            iterator = iter(small(repository, shard_options=options, **arguments))
            if state:
                iterator.set_state(state)
            for step in range(steps):
                chunk = next(iterator)
                assert rows_of(chunk) == straight[position + shard + step * num_shards]
                of_chunk = (chunk["chunk_episode"], chunk["chunk_first_frame"])
                assert of_chunk == repository.episodes.locate(int(chunk["index"][0]))
            states.append(iterator.get_state())
            iterator.close()
        assert all(each == states[0] for each in states)
        state = json.loads(json.dumps(states[0]))
        position += num_shards * steps
        assert state["position"] == position
    restored = iter(small(repository, **arguments))
    for start in (position, 0, 7, len(straight) - 1, len(straight)):
        restored.set_state({**state, "position": start})
        assert [rows_of(chunk) for chunk in itertools.islice(restored, 3)] == straight[start:][:3]
    restored.close()


def test_the_state(repository: lg.Repository) -> None:
    iterator = iter(small(repository, overlap_frames=2))
    rows = iter(lg.FrameOrderIterDataset(repository)).get_state()
    assert iterator.get_state() == {
        "format": 1,
        "position": 0,
        "unit": "chunks",
        "commit": repository.commit,
        "episodes": rows["episodes"],
        "num_chunks": 16,
        "chunk_frames": 5,
        "overlap_frames": 2,
        "shuffled": 1,
        "seed": 9,
    }
    in_order = iter(small(repository, shuffle=None, chunk_frames=None)).get_state()
    assert (in_order["shuffled"], in_order["seed"], in_order["chunk_frames"]) == (0, -1, 0)
    # How the last chunk is given, and what is read, may change.
    other = small(repository, overlap_frames=2, last_chunk="short", features=None, num_epochs=2)
    iter(other).set_state(iterator.get_state())


def test_states_of_rows_are_refused_and_those_of_chunks_in_streams_of_rows(
    repository: lg.Repository,
) -> None:
    rows = iter(lg.LeRobotIterDataset(repository, features=["index"]))
    chunks = iter(small(repository))
    next(chunks)
    before = chunks.get_state()
    remedy = (
        "; restore states of a LeRobotIterDataset (rows) and of an EpisodeIterDataset (chunks) in "
        "a stream of the same kind, or begin a new stream"
    )
    for target, source, text in (
        (chunks, rows, "the state counts rows, this stream counts chunks"),
        (rows, chunks, "the state counts chunks, this stream counts rows"),
    ):
        with pytest.raises(lg.StateMismatchError) as caught:
            target.set_state(source.get_state())
        assert str(caught.value) == text + remedy
    assert chunks.get_state() == before
    chunks.close()
    rows.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"chunk_frames": 6}, "chunk_frames = 5, this stream has 6; give the same chunk_frames="),
        (
            {"overlap_frames": 1},
            "overlap_frames = 0, this stream has 1; give the same overlap_frames=",
        ),
        ({"last_chunk": "drop"}, "num_chunks = 12, this stream has 8; give the same last_chunk="),
        ({"shuffle": lg.Shuffle(seed=8)}, "seed = 9, this stream has 8"),
        ({"shuffle": None}, "shuffled = 1, this stream has 0"),
        ({"episodes": [0, 1, 2]}, "episodes = "),
        ({"drop_first_frames": 1}, "episodes = "),
    ],
    ids=str,
)
def test_states_of_other_streams_are_refused(
    repository: lg.Repository, change: dict[str, Any], text: str
) -> None:
    state = iter(small(repository)).get_state()
    with pytest.raises(lg.StateMismatchError, match=text):
        iter(small(repository, **change)).set_state(state)


def test_orbax_saves_and_restores_batches(repository: lg.Repository, tmp_path: Path) -> None:
    def batches() -> Any:
        return iter(small(repository).batch(2))

    saved = batches()
    for _ in range(3):
        next(saved)
    with ocp.CheckpointManager(tmp_path, item_names=("data",)) as checkpoints:
        checkpoints.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(saved)))
        expected = [next(saved)["index"].tolist() for _ in range(4)]
        checkpoints.wait_until_finished()
        restored = batches()
        checkpoints.restore(
            3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored))
        )
    assert [next(restored)["index"].tolist() for _ in range(4)] == expected
    saved.close()
    restored.close()


# --- transformations after it --------------------------------------------------------------------


def test_batches_of_padded_chunks(repository: lg.Repository) -> None:
    with contextlib.closing(iter(lg.EpisodeIterDataset(repository, chunk_frames=8).batch(3))) as it:
        batch = next(it)
    assert batch[TOP].shape == (3, 8, 32, 80, 3)
    assert batch["chunk_is_pad"].shape == batch["task"].shape == (3, 8)
    assert batch["chunk_episode"].shape == (3,)
    assert batch["observation.note"].shape == (3, 8)


def test_worker_processes(repository: lg.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)
    dataset = small(repository, num_epochs=2, features=["index", TOP])
    straight = chunks_in(dataset)
    with contextlib.closing(
        iter(lg.WorkerPrefetchIterDataset(dataset.map(dict), num_workers=2))
    ) as iterator:
        for expected in straight[:5]:
            found = next(iterator)
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[key], expected[key]) for key in expected)
        state = iterator.get_state()
    assert state["position"] == 5
    one = iter(dataset)
    one.set_state(state)
    assert [rows_of(chunk) for chunk in one] == [rows_of(chunk) for chunk in straight[5:]]
    one.close()


def test_the_device_feed(repository: lg.Repository) -> None:
    dataset = small(repository, features=["action", TOP], chunk_frames=8, num_epochs=1)
    expected = chunks_in(dataset.batch(2))
    with contextlib.closing(iter(lg.DeviceIterDataset(dataset.batch(2)))) as batches:
        found = list(batches)
    assert isinstance(found[0][TOP], jax.Array)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one[TOP], other[TOP])
        assert np.array_equal(one["chunk_is_pad"], other["chunk_is_pad"])


def test_grains_own_mixture(repository: lg.Repository) -> None:
    mixed = grain.IterDataset.mix(
        [small(repository), small(repository, shuffle=None, chunk_frames=None)], [2, 1]
    )
    iterator = iter(mixed)
    for _ in range(4):
        next(iterator)
    restored = iter(mixed)
    restored.set_state(iterator.get_state())
    expected = [rows_of(next(iterator)) for _ in range(6)]
    assert [rows_of(next(restored)) for _ in range(6)] == expected
    iterator.close()
    restored.close()


def test_a_mixture_refuses_it(repository: lg.Repository) -> None:
    chunks = lg.EpisodeIterDataset(repository, chunk_frames=8)
    for dataset in (chunks, chunks.map(dict)):
        with pytest.raises(lg.InvalidRequestError) as caught:
            lg.MixtureIterDataset({"a": dataset}, {"a": 1})
        assert str(caught.value) == (
            "a mixture: 'a' is made with EpisodeIterDataset; expected a LeRobotIterDataset, or "
            ".map on one. grain.IterDataset.mix takes streams of chunks"
        )


# --- arguments -----------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"chunk_frames": 0}, "chunk_frames=0: expected an int >= 1, or None for whole episodes"),
    ({"chunk_frames": True}, "chunk_frames=True: expected an int"),
    ({"chunk_frames": 4, "overlap_frames": 4}, "overlap_frames=4: expected less than chunk_fr"),
    ({"chunk_frames": 4, "overlap_frames": -1}, "overlap_frames=-1: expected an int >= 0"),
    ({"overlap_frames": 1}, "overlap_frames=1: whole episodes do not overlap; give chunk_frames"),
    ({"last_chunk": "keep"}, "last_chunk='keep': expected 'pad', 'short' or 'drop'"),
    (
        {"chunk_frames": 25, "last_chunk": "drop"},
        "chunk_frames=25, last_chunk='drop': the longest selected episode has 24 frames",
    ),
    (
        {"shuffle": lg.Shuffle(seed=4, num_parts=2)},
        "only the seed may be chosen; expected Shuffle(s",
    ),
    ({"shuffle": 4}, "shuffle=4: chunks are permuted as wholes"),
    ({"num_epochs": 0}, "num_epochs=0: expected an int >= 1, or None for an endless stream"),
    ({"image_size": 4}, "image_size=4: expected (height, width) in pixels"),
    ({"features": ["nothing"]}, "nothing"),
    ({"episodes": [9]}, "9"),
    ({"revision": "main"}, "the repository given is open already"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=lambda value: str(value)[:40])
def test_arguments_that_are_refused(
    repository: lg.Repository, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=re.escape(text)):
        lg.EpisodeIterDataset(repository, **arguments)


def test_a_feature_that_has_a_key_that_is_added(tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[4],
        cameras=(),
        features={"chunk_is_pad": Feature(dtype="bool")},
    ).directory
    with pytest.raises(lg.InvalidRequestError) as caught:
        lg.EpisodeIterDataset(directory)
    assert str(caught.value) == (
        "features: the dataset has a feature 'chunk_is_pad', a key that chunks get; leave it out "
        "of features=[...]"
    )
    assert chunks_in(lg.EpisodeIterDataset(directory, features=["action"], num_epochs=1))


def test_it_says_what_it_is(repository: lg.Repository) -> None:
    dataset = small(repository)
    assert dataset.repository is repository
    assert (dataset.num_chunks, dataset.shuffle) == (12, lg.Shuffle(seed=9))
    assert str(dataset) == f"EpisodeIterDataset({repository.description})"
    assert dataset.notes == repository.notes

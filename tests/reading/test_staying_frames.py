"""Frames that stay though no known example needs them: the last frame of an episode is decoded
once, whatever clips need it, and so is the rest of its GOP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._format.episodes import EpisodeTable
from lerobot_grain._reading.frame_cache import frame_writer
from lerobot_grain._reading.frames.frame_store import NO_SLOT, FrameDemand
from lerobot_grain._reading.frames.staying_frames import StayingFrames
from lerobot_grain.testing import Camera, read_barcodes, write_dataset

TOP = "observation.images.top"
WINDOWS: dict[str, dict[str, lg.Window]] = {
    "none": {},
    "last": {"end": lg.Window(TOP, lg.LastFrame())},
}


def stream(
    repository: lg.Repository,
    windows: dict[str, lg.Window],
    shuffle: lg.Shuffle,
    num_epochs: int,
    options: lg.ReadOptions = lg.ReadOptions(),  # noqa: B008 (a frozen value)
) -> Any:
    """Begins a stream of which few examples are known ahead, so that others of an episode come when
    nobody knows of it.
    """
    order = lg.FrameOrderIterDataset(repository, shuffle=shuffle, num_epochs=num_epochs)
    requests = order.map(lg.DeltaTimestamps(repository, windows=windows))
    return iter(
        lg.ReadWindowsIterDataset(requests, repository, known_examples=1, read_options=options)
    )


def staying_of(demand: FrameDemand, most: int) -> StayingFrames:
    """Those of a dataset of which no GOP is decoded."""
    return StayingFrames(demand, most, cast(EpisodeTable, None))


def needed(demand: FrameDemand, *rows: int) -> Any:
    """Counts a use of rows; as if their frames were decoded, too."""
    entries = demand.add(np.array(rows))
    demand.slots[entries] = rows
    demand.is_requested[entries] = True
    return entries


def test_a_frame_stays_until_others_take_its_place() -> None:
    demand = FrameDemand()
    staying = staying_of(demand, 2)
    entries = needed(demand, 5, 700, 9)
    assert staying.add(entries[:2]).tolist() == []
    assert demand.use(entries[:2]).tolist() == []
    # Asked for again, it is not the one that goes.
    assert needed(demand, 5).tolist() == entries[:1].tolist()
    staying.add(entries[:1])
    assert demand.use(entries[:1]).tolist() == []
    assert staying.add(entries[2:]).tolist() == [700]
    assert demand.uses[entries].tolist() == [1, 0, 2]
    assert demand.use(entries[2:]).tolist() == []
    # Still needed by examples, it goes after the last of them.
    assert staying.add(needed(demand, 300, 301)).tolist() == [5, 9]


def test_frames_that_were_dropped_are_forgotten() -> None:
    demand = FrameDemand()
    staying = staying_of(demand, 8)
    entries = needed(demand, 5, 6)
    staying.add(entries[:1])
    demand.use(entries)
    assert demand.uses[entries].tolist() == [1, 0]
    demand.slots[entries] = NO_SLOT
    staying.drop(entries)
    assert demand.uses[entries].tolist() == [0, 0]
    assert demand.find(np.array([5])).tolist() == [0]


def test_those_that_no_example_needs_are_spare_but_for_the_latest_quarter() -> None:
    demand = FrameDemand()
    staying = staying_of(demand, 4)
    entries = needed(demand, 5, 6, 7, 300)
    assert staying.spare().tolist() == []
    staying.add(entries)
    staying.add(entries[:1])
    assert staying.spare().tolist() == []
    demand.use(entries[[0, 1, 3]])
    demand.slots[entries[3]] = NO_SLOT  # not decoded
    assert staying.spare().tolist() == entries[[1]].tolist()
    staying.add(entries[1:])
    assert staying.spare().tolist() == entries[[0, 1]].tolist()


def test_without_room_none_stays() -> None:
    demand = FrameDemand()
    entries = needed(demand, 5)
    staying_of(demand, 0).add(entries)
    assert demand.use(entries).tolist() == [5]


@pytest.mark.parametrize("gop", [2, 10])
def test_the_last_frame_of_an_episode_is_decoded_once(tmp_path: Path, gop: int) -> None:
    lengths = [120] * 6
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=lengths,
        fps=10,
        cameras=[Camera(key=TOP, height=64, width=80, gop=gop)],
    ).directory
    repository = lg.open_repository(directory)
    pictures = {}
    for name, windows in WINDOWS.items():
        iterator = stream(repository, windows, lg.Shuffle(clip_length=10, num_parts=2), 4)
        for example in iterator:
            if windows:
                assert read_barcodes(example["end"][None])[0][1] == 119
        pictures[name] = lg.read_statistics(iterator).pictures_decoded
    assert pictures["last"] - pictures["none"] <= gop * len(lengths)


def test_half_of_the_memory_for_frames_may_be_those_that_stay(tmp_path: Path) -> None:
    # 60 frames of 15 kB: a quarter of it.
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[6] * 60,
        fps=10,
        cameras=[Camera(key=TOP, height=64, width=80, gop=6)],
    ).directory
    repository = lg.open_repository(directory)
    options = lg.ReadOptions(memory_budget_bytes=4 << 20)
    shuffle = lg.Shuffle(clip_length=3, num_parts=2, buffer_size=8)
    pictures = {}
    for name, windows in WINDOWS.items():
        iterator = stream(repository, windows, shuffle, 2, options)
        assert sum(1 for _ in iterator) == 720
        statistics = lg.read_statistics(iterator)
        assert statistics.budget_peak_bytes <= 4 << 20
        pictures[name] = statistics.pictures_decoded
    # What is decoded more in the first epoch is decoded less in the second one.
    assert pictures["last"] <= pictures["none"]


CAMERAS = {
    "short": Camera(key=TOP, height=64, width=80, gop=10),
    "B pictures": Camera(key=TOP, height=64, width=80, gop=10, codec="h264", b_frames=3),
    # Decoded in pieces, with little memory.
    "long": Camera(key=TOP, height=64, width=80, gop=40),
}


# Two GOPs of the longest.
LENGTH = 80


@pytest.fixture(scope="module", params=CAMERAS)
def repository(tmp_path_factory: pytest.TempPathFactory, request: Any) -> lg.Repository:
    """Six episodes of frames of 15 kB."""
    return lg.open_repository(
        write_dataset(
            tmp_path_factory.mktemp("data") / "data",
            episode_lengths=[LENGTH] * 6,
            fps=10,
            cameras=[CAMERAS[request.param]],
        ).directory
    )


@pytest.mark.parametrize("memory_bytes", [1 << 30, 3 << 19])
def test_the_rest_of_the_gop_of_a_last_frame_waits_for_its_clip(
    repository: lg.Repository, memory_bytes: int
) -> None:
    options = lg.ReadOptions(memory_budget_bytes=memory_bytes)
    clip_length = repository.gop_length()
    shuffle = lg.Shuffle(clip_length=clip_length, num_parts=2, buffer_size=16)
    pictures = {}
    for name, windows in WINDOWS.items():
        iterator = stream(repository, windows, shuffle, 1, options)
        for example in iterator:
            shown = {int(example["frame_index"]): example[TOP]}
            if windows:
                shown[LENGTH - 1] = example["end"]
            codes = read_barcodes(np.stack(list(shown.values())))[:, :2].tolist()
            assert codes == [[int(example["episode_index"]), frame] for frame in shown]
        statistics = lg.read_statistics(iterator)
        assert statistics.budget_peak_bytes <= memory_bytes
        pictures[name] = statistics.pictures_decoded
    if memory_bytes == 1 << 30:
        assert pictures["last"] <= pictures["none"]


def test_frames_that_wait_on_disk_leave_their_memory_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the disk is: all that is decoded is kept.
    for limit in ("_WAITED_PART", "_MAX_SAVED_SECONDS", "_STALLED_SECONDS"):
        monkeypatch.setattr(frame_writer, limit, 1e9)
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[20] * 60,
        fps=10,
        cameras=[Camera(key=TOP, height=64, width=80, gop=10, codec="h264")],
        statistics=False,
    ).directory
    repository = lg.open_repository(directory)
    shuffle = lg.Shuffle(clip_length=10, num_parts=2, buffer_size=16)
    pictures = {}
    for name, windows in WINDOWS.items():
        options = lg.ReadOptions(
            memory_budget_bytes=7 << 19,
            num_decode_threads=1,
            frame_cache_bytes=1 << 30,
            frame_cache_directory=tmp_path / name,
        )
        iterator = stream(repository, windows, shuffle, 1, options)
        for example in iterator:
            row = [int(example["episode_index"]), int(example["frame_index"])]
            shown = {tuple(row): example[TOP]}
            if windows:
                shown[row[0], 19] = example["end"]
            codes = read_barcodes(np.stack(list(shown.values())))[:, :2].tolist()
            assert codes == [list(place) for place in shown]
        pictures[name] = lg.read_statistics(iterator).pictures_decoded
    assert pictures["last"] <= pictures["none"]

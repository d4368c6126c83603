"""Whole epochs from the loopback Hub, through the real client: the same examples as from the
directory, and no byte more than needed.
"""

from __future__ import annotations

import functools
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
from torchcodec.decoders import VideoDecoder

import lerobot_grain as lg
from lerobot_grain._reading.rows.timestamps import episode_timestamps
from lerobot_grain._repository.sample_tables import sample_table
from lerobot_grain._video.video_file import VideoFile
from lerobot_grain.testing import LoopbackHub, RequestRecord


@pytest.fixture
def serve(hub: LoopbackHub, tmp_path: Path) -> Iterator[Any]:
    """Serves a directory under a name, and gives the arguments that open it; the log holds only
    what comes after.
    """

    def add(name: str, directory: Path) -> dict[str, Any]:
        hub.add_repository(f"tests/{name}", directory, tags=("v3.0",))
        hub.clear_requests()
        return {
            "repository": f"tests/{name}",
            "endpoint": hub.endpoint,
            "cache_dir": tmp_path / "cache",
        }

    yield add
    hub.clear_faults()


def ranges_of(requests: list[RequestRecord]) -> list[RequestRecord]:
    """The requests that read ranges of rows and video."""
    return [
        request
        for request in requests
        if request.kind == "cdn" and request.file and not request.file.startswith("meta/")
    ]


def bytes_sent(requests: list[RequestRecord]) -> int:
    return sum(request.body_bytes_sent for request in requests)


def needed_bytes(repository: lg.Repository, cameras: list[str], columns: list[str]) -> int:
    """Every GOP that holds a selected row, each moov, each projected column chunk, counted once."""
    total = 0
    for key in cameras:
        spans = repository.episodes.videos[key]
        for number, path in enumerate(spans.files.paths):
            table = sample_table(repository.storage, path)
            file = VideoFile.linked(
                table,
                path=path,
                camera=key,
                number=number,
                episodes=repository.episodes,
                fps=repository.fps,
                read_timestamps=functools.partial(episode_timestamps, repository),
                where=path,
            )
            total += int(table.sizes.sum())
            assert (
                file.table.num_frames
                == repository.episodes.lengths[spans.files.episodes_in(number)].sum()
            )
            total += moov_bytes(Path(repository.storage.description) / path)
    for path in repository.episodes.data.paths:
        metadata = pq.read_metadata(Path(repository.storage.description) / path)
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                if any(
                    chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.")
                    for name in columns
                ):
                    total += chunk.total_compressed_size
    return total


def moov_bytes(path: Path) -> int:
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    return int.from_bytes(data[start : start + 4], "big")


def test_an_epoch_moves_hardly_more_bytes_than_it_needs(
    shared: Path, serve: Any, hub: LoopbackHub
) -> None:
    directory = shared / "golden" / "av1_rolled"
    local = lg.open_repository(directory)
    dataset = lg.LeRobotIterDataset(**serve("av1_rolled", directory), num_epochs=1)
    # Opening reads no row, and of the video only the moov of one file of each camera.
    assert not [r for r in hub.requests() if "/data/" in r.path]
    assert len(ranges_of(hub.requests())) == 2
    rows = sorted(int(example["index"]) for example in dataset)
    assert rows == list(range(649))

    requests = hub.requests()
    streamed = ranges_of(requests)
    needed = needed_bytes(local, list(local.cameras), list(local.features))
    ratio = bytes_sent(streamed) / needed
    print(
        f"moved {bytes_sent(streamed)} bytes for {needed}: {ratio:.3f}, in {len(streamed)} requests"
    )
    assert ratio <= 1.15
    resolved = Counter(
        urlsplit(r.path).path for r in requests if r.kind == "resolver" and "/meta/" not in r.path
    )
    assert len(resolved) == 6
    assert set(resolved.values()) == {1}
    assert not [r for r in requests if r.body_bytes_sent > 1 << 20]
    assert not [r for r in requests if r.kind == "cdn" and r.had_authorization]


def test_a_camera_that_is_left_out_costs_no_byte(
    shared: Path, serve: Any, hub: LoopbackHub
) -> None:
    directory = shared / "golden" / "av1_rolled"
    features = ["index", "observation.images.wrist"]
    arguments = serve("no_top", directory)
    dataset = lg.LeRobotIterDataset(
        **arguments, num_epochs=1, features=features, shuffle=lg.Shuffle(clip_length=16)
    )
    assert sum(1 for _ in dataset) == 649
    assert not [r for r in hub.requests() if "observation.images.top" in r.path]
    needed = needed_bytes(
        lg.open_repository(directory), ["observation.images.wrist"], ["index", "episode_index"]
    )
    streamed = ranges_of(hub.requests())
    # the footer is larger than two small columns
    assert bytes_sent(streamed) <= 1.15 * needed + (32 << 10)


@pytest.mark.parametrize("name", [pytest.param("cr5_v30", marks=pytest.mark.long), "gr00t_v30"])
def test_real_video_is_bit_identical_to_sequential_decoding(
    shared: Path, serve: Any, name: str
) -> None:
    directory = shared / "real" / name
    dataset = lg.LeRobotIterDataset(
        **serve(name, directory), num_epochs=1, shuffle=lg.Shuffle(seed=3)
    )
    repository = dataset.repository
    (key,) = repository.cameras
    spans = repository.episodes.videos[key]
    # In both datasets the episodes fill their files, so the rows of a file are its frames, in
    # order, decoded from start to end.
    expected: dict[int, int] = {}
    for number, path in enumerate(spans.files.paths):
        held = spans.files.episodes_in(number)
        rows = np.concatenate(
            [
                repository.episodes.first_rows[e] + np.arange(repository.episodes.lengths[e])
                for e in held
            ]
        )
        frames = VideoDecoder(directory / path, dimension_order="NHWC", num_ffmpeg_threads=1)
        expected |= {
            row: zlib.crc32(frame.numpy()) for row, frame in zip(rows.tolist(), frames, strict=True)
        }
    seen = set()
    for example in dataset:
        assert zlib.crc32(example[key]) == expected[int(example["index"])]
        seen.add(int(example["index"]))
    assert len(seen) == repository.episodes.num_rows


def test_the_official_pusht_without_its_video(shared: Path, serve: Any) -> None:
    directory = shared / "real" / "pusht_rows_v30"
    dataset = lg.LeRobotIterDataset(
        **serve("pusht", directory),
        num_epochs=1,
        features=["index", "action", "task"],
        delta_timestamps={"action": [i / 10 for i in range(16)]},
    )
    assert dataset.num_rows == 25650
    assert dataset.shuffle is not None
    assert dataset.shuffle.clip_length == 16
    seen = []
    for example in dataset:
        seen.append(int(example["index"]))
        assert example["action"].shape == (16, 2)
    assert sorted(seen) == list(range(25650))

    with_camera = iter(lg.LeRobotIterDataset(dataset.repository, num_epochs=1))
    with pytest.raises(
        lg.MissingFileError,
        match=r"tests/pusht@[0-9a-f]{12}.*videos/observation.image/chunk-000/file-000.mp4",
    ):
        next(with_camera)
    assert with_camera.get_state()["position"] == 0
    with_camera.close()


def test_hub_and_directory_give_the_same_stream(shared: Path, serve: Any) -> None:
    directory = shared / "golden" / "hevc_bframes"
    deltas = {"observation.images.front": [-0.1, 0.0], "action": [0.0, 0.1]}
    from_hub = lg.LeRobotIterDataset(
        **serve("hevc", directory), num_epochs=1, delta_timestamps=deltas
    )
    from_directory = lg.LeRobotIterDataset(directory, num_epochs=1, delta_timestamps=deltas)
    for a, b in zip(from_hub, from_directory, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert np.array_equal(a[key], b[key]), key


def test_a_moved_branch_does_not_change_a_stream(
    shared: Path, serve: Any, hub: LoopbackHub, tmp_path: Path
) -> None:
    arguments = serve("moved", shared / "golden" / "av1_small")
    dataset = lg.LeRobotIterDataset(**arguments, revision="main", num_epochs=1, features=["index"])
    other = tmp_path / "other"
    shutil.copytree(shared / "golden" / "state_only", other)
    hub.add_commit("tests/moved", other, branches=("main",))
    assert sum(1 for _ in dataset) == 234
    reopened = lg.LeRobotIterDataset(**arguments, revision="main", features=["index"])
    assert reopened.num_rows == 780
    state = iter(dataset).get_state()
    with pytest.raises(lg.StateMismatchError, match="open the dataset with revision= that commit"):
        iter(reopened).set_state(state)


def test_damaged_video_bytes_stop_the_stream_at_their_example(
    shared: Path, serve: Any, tmp_path: Path
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(shared / "golden" / "h264_bframes", directory)
    (video,) = directory.glob("videos/*/*/*.mp4")
    data = bytearray(video.read_bytes())
    table = sample_table(lg.open_repository(directory).storage, str(video.relative_to(directory)))
    key = int(table.key_samples[3])
    start = int(table.offsets[key])
    data[start : start + 64] = bytes(64)
    video.chmod(0o644)
    video.write_bytes(data)
    iterator = iter(
        lg.LeRobotIterDataset(**serve("damaged", directory), shuffle=None, num_epochs=1)
    )
    handed_out: list[int] = []
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"tests/damaged@[0-9a-f]{12}, videos/.*mp4: episode \d+, camera .*front, GOP 3",
    ):
        handed_out.extend(int(example["index"]) for example in iterator)
    # The examples before the damage came, and asking again gives the same error, not the
    # example after it.
    first_damaged = table.presentation.tolist().index(key)
    assert handed_out == list(range(first_damaged))
    with pytest.raises(lg.DatasetFormatError, match="GOP 3"):
        next(iterator)
    assert iterator.get_state()["position"] == first_damaged
    iterator.close()

"""Opening a dataset: what its description holds, what is read for it, incomplete and contradictory
metadata, and a large one.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_grain import LeRobotIterDataset
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    LeRobotGrainWarning,
    MissingFileError,
)
from lerobot_grain._repository import metadata as metadata_module
from lerobot_grain._repository import opening
from lerobot_grain._repository.opening import open_repository
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.sample_tables import sample_table
from lerobot_grain._storage.base import Storage
from lerobot_grain._storage.opening import open_storage
from lerobot_grain._storage.options import StorageOptions, StorageStatistics
from lerobot_grain.testing import (
    EXTRA_FEATURES,
    Camera,
    WrittenDataset,
    write_dataset,
    write_synthetic_metadata,
)
from tests.support.datasets import change_table

TOP, WRIST, PICTURE = "top", "wrist", "picture"
EPISODES = "meta/episodes/chunk-000/file-{:03d}.parquet"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(
        tmp_path_factory.mktemp("written") / "data",
        episode_lengths=[21, 8, 30, 11, 17],
        fps=10,
        cameras=(
            Camera(key=TOP, height=64, width=96, gop=3),
            Camera(key=WRIST, height=64, width=96, codec="h264", gop=10),
            Camera(key=PICTURE, height=32, width=80, kind="image"),
        ),
        features=EXTRA_FEATURES,
        tasks=("pick", "place"),
        episodes_per_video_file={TOP: 2, WRIST: 3},
        episodes_per_data_file=2,
        episodes_per_metadata_file=2,
    )


@pytest.fixture
def directory(written: WrittenDataset, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(written.directory, tmp_path / "copy")


def refusal(directory: Path, kind: type[LeRobotGrainError] = DatasetFormatError) -> str:
    with pytest.raises(kind) as caught:
        open_repository(directory)
    assert str(caught.value).startswith(str(directory))
    return str(caught.value).removeprefix(str(directory)).removeprefix(", ").removeprefix(": ")


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value)))


def set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


# --- what is opened ------------------------------------------------------------------------------


def test_the_description_of_a_data_set(written: WrittenDataset) -> None:
    repository = open_repository(written.directory)
    assert repository.description == str(written.directory)
    assert (repository.fps, repository.info.codebase_version) == (10.0, "v3.0")
    assert set(repository.features) == {*written.rows, TOP, WRIST, PICTURE}
    assert repository.cameras == tuple(
        key for key in repository.features if key in (TOP, WRIST, PICTURE)
    )
    assert repository.tasks == {0: "pick", 1: "place"}
    table = repository.episodes
    assert table.lengths.tolist() == [21, 8, 30, 11, 17]
    assert table.data.paths == tuple(
        f"data/chunk-000/file-{number:03d}.parquet" for number in range(3)
    )
    assert {key: len(spans.files.paths) for key, spans in table.videos.items()} == {
        TOP: 3,
        WRIST: 2,
    }
    for key in (TOP, WRIST):
        assert (
            table.videos[key].from_timestamp_seconds.tolist()
            == written.episodes[f"videos/{key}/from_timestamp"].tolist()
        )
    for path in (
        *table.data.paths,
        *table.videos[TOP].files.paths,
        *table.videos[WRIST].files.paths,
    ):
        assert (written.directory / path).is_file()
    stats = repository.stats
    assert stats is not None
    assert stats["action"]["mean"].shape == (7,)
    assert stats["action"]["mean"].dtype == np.float64
    assert stats[TOP]["max"].shape == (3, 1, 1)
    np.testing.assert_allclose(stats["action"]["max"], written.rows["action"].max(0))


@pytest.mark.parametrize(
    ("name", "gop_length"),
    [
        ("golden/av1_small", 2),
        ("golden/av1_rolled", 2),
        ("golden/h264_bframes", 30),
        ("golden/images", None),
        ("golden/state_only", None),
        ("real/cr5_v30", 2),
        ("real/gr00t_v30", 250),
        ("real/pusht_rows_v30", None),
    ],
)
def test_golden_and_real_data_sets(shared: Path, name: str, gop_length: int | None) -> None:
    repository = open_repository(shared / name)
    table = repository.episodes
    declared = json.loads((shared / name / "meta/info.json").read_text())
    assert (table.num_episodes, table.num_rows) == (
        declared["total_episodes"],
        declared["total_frames"],
    )
    assert repository.tasks
    assert repository.gop_length() == gop_length
    rows = 0
    for number, path in enumerate(table.data.paths):
        episodes = pq.read_table(shared / name / path, columns=["episode_index"])[
            "episode_index"
        ].to_numpy()
        held = table.data.episodes_in(number)
        assert np.repeat(held, table.lengths[held]).tolist() == episodes.tolist()
        rows += len(episodes)
    assert rows == table.num_rows


def test_it_pickles(written: WrittenDataset) -> None:
    repository = open_repository(written.directory)
    again: Repository = pickle.loads(pickle.dumps(repository))
    assert (again.commit, again.info, again.tasks) == (
        repository.commit,
        repository.info,
        repository.tasks,
    )
    assert again.episodes.first_rows.tolist() == repository.episodes.first_rows.tolist()
    assert again.gop_length() == repository.gop_length()


def test_a_path_as_text(written: WrittenDataset) -> None:
    assert (
        open_repository(str(written.directory)).commit == open_repository(written.directory).commit
    )


# --- what is read for it -------------------------------------------------------------------------


class Recording(Storage):
    """Passes everything on, and remembers what was read."""

    def __init__(self, inner: Storage) -> None:
        self.inner, self.reads = inner, list[tuple[str, ByteRange | None]]()
        self.description, self.commit, self.options = inner.description, inner.commit, inner.options

    def list_metadata(self) -> Mapping[str, int]:
        return self.inner.list_metadata()

    def read_metadata(self, path: str, *, max_bytes: int) -> bytes:
        self.reads.append((path, None))
        return self.inner.read_metadata(path, max_bytes=max_bytes)

    def size_bytes(self, path: str) -> int:
        self.reads.append((path, None))
        return self.inner.size_bytes(path)

    def close(self) -> None:
        self.inner.close()

    def _disk_cache(self, path: str) -> None:  # noqa: ARG002 (never)
        return None

    @property
    def statistics(self) -> StorageStatistics:
        return self.inner.statistics

    def read_range(self, path: str, wanted: ByteRange) -> bytes:
        self.reads.append((path, wanted))
        return self.inner.read_range(path, wanted)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[Repository, Recording]]:
    def opened(path: Path) -> tuple[Repository, Recording]:
        storage = Recording(
            open_storage(
                path,
                revision=None,
                endpoint=None,
                token=None,
                cache_dir=None,
                options=StorageOptions(merge_gap_bytes=0),
            )
        )
        monkeypatch.setattr(opening, "open_storage", lambda *_args, **_options: storage)
        return open_repository(path), storage

    return opened


def test_opening_reads_neither_rows_nor_video(written: WrittenDataset, recorded: Any) -> None:
    _, storage = recorded(written.directory)
    paths = {path for path, _ in storage.reads}
    expected = {
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        *(EPISODES.format(number) for number in range(3)),
    }
    assert paths == expected


def test_the_gop_length_takes_a_few_small_ranges_of_one_file_per_camera(
    written: WrittenDataset, recorded: Any
) -> None:
    repository, storage = recorded(written.directory)
    storage.reads.clear()
    assert repository.gop_length() == 10
    files = {path for path, _ in storage.reads}
    assert files == {f"videos/{key}/chunk-000/file-000.mp4" for key in (TOP, WRIST)}
    for path in files:
        ranges = [wanted for name, wanted in storage.reads if name == path and wanted is not None]
        assert 1 <= len(ranges) <= 3
        assert sum(wanted.length for wanted in ranges) <= (written.directory / path).stat().st_size


def test_large_episode_tables_are_read_by_column(
    written: WrittenDataset, recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_repository(written.directory)
    monkeypatch.setattr(metadata_module, "_WHOLE_TABLE_BYTES", 1000)
    monkeypatch.setattr(opening, "_hash_of_metadata", lambda *_: "0" * 40)
    repository, storage = recorded(written.directory)
    assert repository.episodes.data_offsets.tolist() == expected.episodes.data_offsets.tolist()
    assert repository.tasks == expected.tasks
    path = EPISODES.format(0)
    with pq.ParquetFile(written.directory / path) as file:
        footer = (written.directory / path).stat().st_size - 8 - file.metadata.serialized_size
    read = [wanted for name, wanted in storage.reads if name == path and wanted is not None]
    in_columns = sum(wanted.length for wanted in read if wanted.stop <= footer)
    assert 0 < in_columns < footer / 4


# --- the commit of a directory -------------------------------------------------------------------


def test_the_commit_of_a_directory_is_that_of_its_metadata(
    written: WrittenDataset, directory: Path
) -> None:
    commit = open_repository(directory).commit
    assert len(commit) == 40
    assert set(commit) <= set("0123456789abcdef")
    assert commit == open_repository(written.directory).commit
    (directory / "data/chunk-000/file-000.parquet").write_bytes(b"not of meta/")
    (directory / "README.md").write_text("hello")
    assert open_repository(directory).commit == commit


@pytest.mark.parametrize(
    "change",
    [
        lambda root: change_json(
            root / "meta/stats.json", lambda stats: {**stats, "action": {"mean": [0.0]}}
        ),
        lambda root: change_json(
            root / "meta/info.json", lambda info: {**info, "robot_type": "other"}
        ),
        lambda root: (root / "meta/notes.txt").write_text(""),
        lambda root: (root / "meta/stats.json").unlink(),
        lambda root: (root / EPISODES.format(0)).with_name("copy.parquet").write_bytes(b"x"),
    ],
    ids=["stats", "info", "new file", "no stats", "new table"],
)
def test_a_change_of_meta_is_another_commit(directory: Path, change: Callable[[Path], Any]) -> None:
    commit = open_repository(directory).commit
    change(directory)
    assert open_repository(directory).commit != commit


# --- GOP lengths ---------------------------------------------------------------------------------


def remove_video(directory: Path, *keys: str) -> None:
    for key in keys:
        shutil.rmtree(directory / "videos" / key)


def set_video_info(directory: Path, **lengths: int | None) -> None:
    def change(info: Any) -> Any:
        for key, length in lengths.items():
            info["features"][key]["info"].pop("video.g", None)
            if length is not None:
                info["features"][key]["info"]["video.g"] = length
        return info

    change_json(directory / "meta/info.json", change)


def test_the_longest_gop_of_all_cameras_counts(directory: Path) -> None:
    assert open_repository(directory).gop_length() == 10
    set_video_info(directory, top=250, wrist=250)
    assert open_repository(directory).gop_length() == 10, (
        "what info.json says counts only where there is no file"
    )


def test_where_a_file_is_missing_info_counts(directory: Path) -> None:
    remove_video(directory, WRIST)
    assert open_repository(directory).gop_length() == 10
    set_video_info(directory, wrist=60)
    assert open_repository(directory).gop_length() == 60
    set_video_info(directory, wrist=None)
    assert open_repository(directory).gop_length() == 3
    remove_video(directory, TOP)
    assert open_repository(directory).gop_length() == 3, "what info.json says of the other camera"
    set_video_info(directory, top=None)
    assert open_repository(directory).gop_length() is None


def test_a_damaged_file_is_an_error_and_no_guess(directory: Path) -> None:
    path = directory / f"videos/{TOP}/chunk-000/file-000.mp4"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(
        DatasetFormatError, match=rf"^{directory}, videos/{TOP}/chunk-000/file-000.mp4: .*truncated"
    ):
        open_repository(directory).gop_length()


@pytest.mark.parametrize(("length", "expected"), [(7, 3), (6, 3), (4, 3), (3, 3), (1, 1)], ids=str)
def test_the_most_common_length_counts_and_the_longest_of_equally_common_ones(
    tmp_path: Path, length: int, expected: int
) -> None:
    # A GOP of 3, and a shorter one at the end of the episode: 7 frames are 3, 3 and 1, 4 frames are
    # 3 and 1.
    cameras = (Camera(key=TOP, height=64, width=96, codec="h264", gop=3),)
    written = write_dataset(
        tmp_path / "data", episode_lengths=[length], fps=10, cameras=cameras, statistics=False
    )
    assert open_repository(written.directory).gop_length() == expected


# --- incomplete and contradictory metadata -------------------------------------------------------


def test_a_directory_that_is_no_data_set(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "there is no meta/info.json; this is not a LeRobotDataset"
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/tasks.jsonl").write_text("{}")
    assert (
        refusal(tmp_path)
        == "there is no meta/info.json; this is not a LeRobotDataset (meta/ holds meta/tasks.jsonl)"
    )


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="is not a directory"):
        open_repository(tmp_path / "nothing")


def test_malformed_info(directory: Path) -> None:
    (directory / "meta/info.json").write_text("{")
    assert refusal(directory).startswith("meta/info.json: not valid JSON (")


def test_missing_episode_table(directory: Path) -> None:
    shutil.rmtree(directory / "meta/episodes")
    assert (
        refusal(directory) == "meta/episodes: there is no episode table; expected "
        "meta/episodes/chunk-000/file-000.parquet"
    )


def test_a_second_copy_of_the_episode_table_is_ignored(directory: Path) -> None:
    folder = directory / "meta/episodes/chunk-000"
    for copy in (
        "backup/file-000.parquet",
        "chunk-000/file-000.parquet.bak",
        "chunk-000/copy.parquet",
        "chunk-000/file-x.parquet",
        "chunk-0a/file-000.parquet",
    ):
        (directory / "meta/episodes" / copy).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "file-000.parquet", directory / "meta/episodes" / copy)
    (folder / "old").mkdir()
    shutil.copy(folder / "file-000.parquet", folder / "old/file-000.parquet")
    assert open_repository(directory).episodes.lengths.tolist() == [21, 8, 30, 11, 17]


def test_files_of_the_episode_table_in_any_order_of_names(directory: Path) -> None:
    folder = directory / "meta/episodes/chunk-000"
    (folder / "file-000.parquet").rename(folder / "file-1000.parquet")
    (directory / "meta/episodes/chunk-010").mkdir()
    (folder / "file-001.parquet").rename(directory / "meta/episodes/chunk-010/file-000.parquet")
    assert open_repository(directory).episodes.lengths.tolist() == [21, 8, 30, 11, 17]


def test_a_missing_file_of_the_episode_table(directory: Path) -> None:
    (directory / EPISODES.format(1)).unlink()
    assert (
        refusal(directory)
        == "meta/episodes: episode_index should be 0, 1, 2, ... once each; found 4 where 2 was "
        "expected"
    )
    (directory / EPISODES.format(2)).unlink()
    with pytest.warns(LeRobotGrainWarning):
        repository = open_repository(directory)
    assert repository.notes == (
        "meta/info.json: total_episodes is 5, but the episode table has 2, which is what is read",
        "meta/info.json: total_frames is 87, but the episode table has 29, which is what is read",
    )


def test_totals_that_contradict_the_episode_table(directory: Path) -> None:
    change_json(directory / "meta/info.json", lambda info: {**info, "total_frames": 88})
    with pytest.warns(
        LeRobotGrainWarning,
        match="meta/info.json: total_frames is 88, but the episode table has 87, which is what is "
        "read",
    ):
        repository = open_repository(directory)
    assert repository.episodes.num_rows == 87
    assert repository.notes == (
        "meta/info.json: total_frames is 88, but the episode table has 87, which is what is read",
    )
    change_json(directory / "meta/info.json", lambda info: {**info, "total_frames": None})
    assert open_repository(directory).notes == ()


@pytest.mark.parametrize(
    "column", ["dataset_to_index", "data/file_index", f"videos/{TOP}/from_timestamp"]
)
def test_files_of_the_episode_table_with_different_columns(directory: Path, column: str) -> None:
    change_table(directory / EPISODES.format(1), lambda table: table.drop_columns([column]))
    assert (
        refusal(directory)
        == f"{EPISODES.format(1)}: there is no column {column}, which other files of the episode "
        "table have"
    )


def test_a_column_that_no_file_has(directory: Path) -> None:
    for number in range(3):
        change_table(
            directory / EPISODES.format(number),
            lambda table: table.drop_columns([f"videos/{TOP}/from_timestamp"]),
        )
    assert refusal(directory) == (
        f"meta/episodes: there is no column videos/{TOP}/from_timestamp; expected the seconds at "
        "which each episode starts in its video"
    )


def test_a_camera_that_the_episode_table_does_not_know_is_not_in_the_way(directory: Path) -> None:
    # Real datasets declare cameras without files: an error only where they are selected.
    def declare(info: Any) -> Any:
        return {**info, "features": {**info["features"], "third": info["features"][TOP]}}

    change_json(directory / "meta/info.json", declare)
    repository = open_repository(directory)
    assert "third" in repository.cameras
    assert list(repository.episodes.videos) == [TOP, WRIST]
    assert repository.gop_length() == 10


@pytest.mark.parametrize("column", ["length", "episode_index"])
def test_missing_values_in_the_episode_table(directory: Path, column: str) -> None:
    change_table(directory / EPISODES.format(0), lambda table: set_column(table, column, [1, None]))
    assert (
        refusal(directory)
        == f"meta/episodes: column {column} has values of type float64 that are not all integers"
    )


@pytest.mark.parametrize("path", [EPISODES.format(1), "meta/tasks.parquet"])
def test_truncated_tables(directory: Path, path: str) -> None:
    data = (directory / path).read_bytes()
    (directory / path).write_bytes(data[:-100])
    assert refusal(directory).startswith(
        f"{path}: not a parquet file, or truncated: its {len(data) - 100} bytes end with b'"
    )
    (directory / path).write_bytes(b"")
    assert refusal(directory).startswith(
        f"{path}: not a parquet file, or truncated: its 0 bytes end with b''"
    )


def test_paths_that_lead_out_of_the_data_set(directory: Path) -> None:
    change_json(
        directory / "meta/info.json", lambda info: {**info, "video_path": "../../{video_key}.mp4"}
    )
    repository = open_repository(directory)
    path = repository.episodes.videos[TOP].files.paths[0]
    with pytest.raises(
        DatasetFormatError, match=r"'\.\./\.\./top\.mp4' is not the path of a file of a dataset"
    ):
        sample_table(repository.storage, path)


def test_a_video_file_that_is_missing(directory: Path) -> None:
    remove_video(directory, TOP)
    repository = open_repository(directory)
    with pytest.raises(
        MissingFileError,
        match=rf"^{directory}: there is no file videos/{TOP}/chunk-000/file-001.mp4$",
    ):
        sample_table(repository.storage, repository.episodes.videos[TOP].files.paths[1])


# --- tasks ---------------------------------------------------------------------------------------


def write_tasks(directory: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), directory / "meta/tasks.parquet")


def test_missing_tasks(directory: Path) -> None:
    (directory / "meta/tasks.parquet").unlink()
    assert refusal(directory) == "there is no meta/tasks.parquet; expected the table of task texts"


@pytest.mark.parametrize(
    "columns",
    [
        {"task_index": [0, 1], "task": ["a", "b"]},
        {"task_index": [0, 1], "__index_level_0__": ["a", "b"]},
        {"task": ["a", "b"], "task_index": pa.array([0, 1], pa.int32())},
        {"task_index": [1, 0], "task": ["b", "a"]},
        {"task_index": [0.0, 1.0], "task": ["a", "b"]},
        {"task_index": [0, 1], "task": pa.array(["a", "b"], pa.large_string())},
        {"task_index": [0, 1], "task": ["a", "b"], "difficulty": [1, 2]},
        {"task_index": [0, 1], "task": pa.array(["a", "b"]).dictionary_encode()},
        {"task_index": [0, 1], "task": ["a", "b"], "category": ["x", "y"]},
        {"task_index": [0, 1], "__index_level_0__": ["a", "b"], "category": ["x", "y"]},
        {"task_index": [0, 1], "__index_level_0__": ["x", "y"], "task": ["a", "b"]},
        {"task_index": [0, 1, 0], "task": ["a", "b", "a"]},
    ],
    ids=[
        "task",
        "__index_level_0__",
        "other order",
        "not sorted",
        "doubles",
        "large strings",
        "more columns",
        "categories",
        "more texts",
        "more texts next to the old name",
        "both names",
        "a row twice",
    ],
)
def test_tables_of_tasks(directory: Path, columns: dict[str, Any]) -> None:
    write_tasks(directory, **columns)
    assert open_repository(directory).tasks == {0: "a", 1: "b"}


@pytest.mark.parametrize("numbers", [[0, 4, 9], [1, 2, 3], [9, -1, 4], [7.0, 3.0, 1e9]], ids=str)
def test_numbers_of_tasks_need_not_follow_each_other(directory: Path, numbers: list[Any]) -> None:
    write_tasks(directory, task_index=numbers, task=["a", "b", "a"])
    assert open_repository(directory).tasks == {
        int(number): text for number, text in zip(numbers, "aba", strict=True)
    }


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (
            {"task_index": [0, 0], "task": ["a", "b"]},
            "task_index 0 is 'a' and 'b'; expected one text for a number",
        ),
        (
            {"task_index": [0, None], "task": ["a", "b"]},
            "task_index is [0.0, nan]...; expected integers",
        ),
        (
            {"task_index": [0, 0.5], "task": ["a", "b"]},
            "task_index is [0.0, 0.5]...; expected integers",
        ),
        (
            {"task_index": [0, 1e300], "task": ["a", "b"]},
            "task_index is [0.0, 1e+300]...; expected integers",
        ),
        (
            {"task_index": [True, False], "task": ["a", "b"]},
            "task_index is [True, False]...; expected integers",
        ),
        (
            {"index": [0, 1], "task": ["a", "b"]},
            "found the columns index, task; expected task_index and one of texts",
        ),
        (
            {"task_index": ["0", "1"], "n": [1, 2]},
            "found the columns task_index, n; expected task_index and one of texts",
        ),
        (
            {"task_index": [0, 1]},
            "found the columns task_index; expected task_index and one of texts",
        ),
        (
            {"task_index": [0], "a": ["x"], "b": ["y"]},
            "found the columns task_index, a, b; expected task_index and one of texts",
        ),
        ({"task_index": [0, 1], "task": ["a", None]}, "found None in column task; expected texts"),
        (
            {"task_index": [0], "task": [["a"]]},
            "found array(['a'], dtype=object) in column task; expected texts",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_tables_of_tasks_that_make_no_sense(
    directory: Path, columns: dict[str, Any], text: str
) -> None:
    write_tasks(directory, **columns)
    assert refusal(directory) == f"meta/tasks.parquet: {text}"


def test_a_data_set_without_any_task(directory: Path) -> None:
    write_tasks(directory, task_index=pa.array([], pa.int64()), task=pa.array([], pa.string()))
    assert open_repository(directory).tasks == {}


# --- statistics ----------------------------------------------------------------------------------


def test_missing_statistics(directory: Path) -> None:
    (directory / "meta/stats.json").unlink()
    assert open_repository(directory).stats is None


def opened_with_notes(directory: Path) -> Repository:
    with pytest.warns(LeRobotGrainWarning) as caught:
        repository = open_repository(directory)
    assert [str(warning.message) for warning in caught] == [
        f"{directory}: {note}" for note in repository.notes
    ]
    return repository


WHOLE = (
    "meta/stats.json: expected feature -> statistic -> numbers ({}); "
    "compute_stats(repository) makes others"
)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", "found a JSON list"),
        ("null", "found a JSON NoneType"),
        ('{"action": 5}', "'action' is 5"),
        ('{"action": {"mean": [[1], [1, 2]]}}', "mean of 'action' is [[1], [1, 2]]"),
        ('{"action": {"mean": "x"}}', "mean of 'action' is 'x'"),
        ('{"action": {"mean": {}}}', "mean of 'action' is {}"),
        ('{"action": {"mean": null}}', "mean of 'action' is None"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
        ('{"action": {"mean": 1' + "0" * 400 + "}}", "mean of 'action' is 1000"),
    ],
    ids=[
        "empty",
        "list",
        "null",
        "number",
        "ragged",
        "text",
        "object",
        "null in it",
        "deep",
        "huge number",
    ],
)
def test_statistics_that_are_none(directory: Path, raw: str, reason: str) -> None:
    """Opening notes it; only asking for them raises."""
    (directory / "meta/stats.json").write_text(raw)
    repository = opened_with_notes(directory)
    begin = WHOLE.format(reason)[
        : len(WHOLE.format(reason)) - len("); compute_stats(repository) makes others")
    ]
    assert len(repository.notes) == 1
    for _ in range(2):
        with pytest.raises(DatasetFormatError) as caught:
            _ = repository.stats
        assert str(caught.value).startswith(f"{directory}, {begin}")
        assert repository.notes[0].startswith(begin)
    assert (
        next(iter(LeRobotIterDataset(repository, features=["index"], shuffle=None)))["index"] == 0
    )


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"note": {"min": ["a"], "max": ["z"], "count": [9]}},
            "2 of its values are no numbers and are left out: min of 'note' is ['a'], ...",
        ),
        (
            {"note": {"min": ["7"], "count": [9]}},
            "1 of its values are no numbers and are left out: min of 'note' is ['7']",
        ),
        (
            {"episode_count": 9},
            "1 of its values are no numbers and are left out: 'episode_count' is 9",
        ),
        (
            {"__meta__": {"version": "2", "created": "2026-01-01"}},
            "2 of its values are no numbers and are left out: version of '__meta__' is '2', ...",
        ),
        (
            {"extra": None, "more": [1, 2]},
            "2 of its values are no numbers and are left out: 'extra' is None, ...",
        ),
        (
            {"extra": {"mean": {"x": 1}}},
            "1 of its values are no numbers and are left out: mean of 'extra' is {'x': 1}",
        ),
    ],
    ids=str,
)
def test_statistics_of_the_others_are_given(
    directory: Path, changes: dict[str, Any], note: str
) -> None:
    expected = open_repository(directory).stats
    change_json(directory / "meta/stats.json", lambda stats: {**changes, **stats})
    repository = opened_with_notes(directory)
    assert repository.notes == (f"meta/stats.json: {note}",)
    assert repository.stats is not None
    assert expected is not None
    assert list(repository.stats) == list(expected)
    for key, statistics in expected.items():
        for name, value in statistics.items():
            assert np.array_equal(repository.stats[key][name], value)


def test_single_statistics_that_are_no_numbers(directory: Path) -> None:
    def change(stats: Any) -> Any:
        stats["action"] |= {
            "std": [None, *stats["action"]["std"][1:]],
            "q50": "x",
            "mean": [1, 2.5, None, 4, 5, 6, 7],
        }
        return stats

    change_json(directory / "meta/stats.json", change)
    repository = opened_with_notes(directory)
    assert repository.notes == (
        "meta/stats.json: 1 of its values are no numbers and are left out: q50 of 'action' is 'x'",
    )
    assert repository.stats is not None
    assert np.isnan(repository.stats["action"]["std"]).tolist() == [True, *[False] * 6]
    np.testing.assert_array_equal(repository.stats["action"]["mean"], [1, 2.5, np.nan, 4, 5, 6, 7])
    assert "q50" not in repository.stats["action"]


def test_statistics_without_any_entry(directory: Path) -> None:
    (directory / "meta/stats.json").write_text("{}")
    assert open_repository(directory).stats == {}


# --- a large dataset ----------------------------------------------------------------------------

_MEASURE = """
import json, sys, time

def peak_bytes():  # of this program: ru_maxrss would also count the process that it was forked from
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

import lerobot_grain as lg
found = {"imported_bytes": peak_bytes()}
# Of the processor: other programs do not count.
started = time.process_time()
repository = lg.open_repository(sys.argv[1])
found["open_seconds"] = time.process_time() - started
found["opened_bytes"] = peak_bytes()
found["num_rows"] = repository.episodes.num_rows
rows = lg.FrameOrderIterDataset(repository)
found["clip_length"] = rows.shuffle.clip_length
for position in (0, 20_000_000):
    seconds = []
    for _ in range(3):
        iterator = iter(rows)
        iterator.set_state({**iterator.get_state(), "position": position})
        started = time.process_time()
        first = [next(iterator) for _ in range(64)]
        seconds.append(time.process_time() - started)
    found[f"seconds_at_{position}"] = min(seconds)
    found[f"rows_at_{position}"] = first
print(json.dumps(found))
"""


def test_a_data_set_of_the_size_of_droid(tmp_path_factory: pytest.TempPathFactory) -> None:
    metadata = write_synthetic_metadata(tmp_path_factory.mktemp("large") / "data")
    assert (len(metadata.episode_lengths), len(metadata.cameras)) == (130_000, 3)
    command = [sys.executable, "-c", _MEASURE, str(metadata.directory)]
    found = json.loads(
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            timeout=100,
        ).stdout
    )
    shutil.rmtree(metadata.directory)
    grown = found["opened_bytes"] - found["imported_bytes"]
    ratio = found["seconds_at_20000000"] / found["seconds_at_0"]
    print(
        f"\nopened in {found['open_seconds']:.2f} s; peak {found['opened_bytes'] / 1e6:.0f} MB, "
        f"{grown / 1e6:.0f} MB of it to open; first rows in {found['seconds_at_0']:.3f} s, at "
        f"position 20,000,000 in {found['seconds_at_20000000']:.3f} s (x {ratio:.2f})"
    )
    assert found["num_rows"] == metadata.total_frames > 25_000_000
    assert found["clip_length"] == 16
    assert found["open_seconds"] < 5
    assert found["opened_bytes"] < 600e6
    assert ratio < 3
    assert len({*found["rows_at_0"], *found["rows_at_20000000"]}) == 128

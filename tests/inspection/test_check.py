"""`check`: datasets damaged on purpose, each finding seen, and none where nothing is wrong; what
it costs; what the command prints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain._cli.main import main
from lerobot_grain._inspection import dataset_checks
from lerobot_grain.testing import EXTRA_FEATURES, Camera, LoopbackHub, WrittenDataset, write_dataset
from tests.support.datasets import change_info, change_table
from tests.support.helpers import encoded
from tests.support.odd_videos import TURNS, edited, film, joined, times_of, turned

TOP, PICTURE = "top", "picture"
LENGTHS = [12, 8, 10, 6]
TABLE = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-{:03d}.parquet"
VIDEO = "videos/top/chunk-000/file-{:03d}.mp4"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(
        tmp_path_factory.mktemp("check") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(
            Camera(key=TOP, height=64, width=96),
            Camera(key=PICTURE, height=32, width=80, kind="image"),
        ),
        features=EXTRA_FEATURES,
        tasks=("a", "b"),
        episodes_per_data_file=2,
        episodes_per_video_file=2,
    )


@pytest.fixture
def directory(written: WrittenDataset, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(written.directory, tmp_path / "copy")


def set_values(directory: Path, column: str, values: list[float]) -> None:
    change_table(
        directory / TABLE,
        lambda table: table.set_column(table.column_names.index(column), column, pa.array(values)),
    )


def checked(directory: Path, **arguments: Any) -> lg.CheckReport:
    return lg.check(lg.open_repository(directory), **arguments)


def found(report: lg.CheckReport) -> dict[str, tuple[bool, str | None, tuple[int, ...]]]:
    """Returns kind -> (is_problem, feature, episodes); no kind may be there twice."""
    kinds = {
        finding.kind: (finding.is_problem, finding.feature, finding.episodes)
        for finding in report.findings
    }
    assert len(kinds) == len(report.findings)
    assert all(finding.text for finding in report.findings)
    return kinds


def text_of(report: lg.CheckReport, kind: str) -> str:
    return next(finding.text for finding in report.findings if finding.kind == kind)


# --- nothing is wrong ----------------------------------------------------------------------------


def test_a_sound_data_set_and_what_it_costs(written: WrittenDataset) -> None:
    seen: list[tuple[int, int]] = []
    report = checked(written.directory, on_progress=lambda done, total: seen.append((done, total)))
    assert report.findings == ()
    assert report.is_fine
    assert (report.unusable_features, report.unusable_episodes, report.usable_episodes) == (
        (),
        (),
        [0, 1, 2, 3],
    )
    assert (report.num_files, report.num_files_checked) == (4, 4)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    (camera,) = report.cameras
    assert (camera.key, camera.codecs, camera.sizes) == (TOP, ("av1",), ((64, 96),))
    assert (camera.gop_length, camera.gop_min, camera.gop_max) == (2, 2, 2)
    # Coded pictures are all of a file but its boxes.
    files = sum((written.directory / VIDEO.format(number)).stat().st_size for number in range(2))
    assert files - 2 * 2000 < camera.bytes_per_frame * sum(LENGTHS) < files
    assert report.rows is not None
    assert report.rows.num_groups == 4
    metadata = [pq.read_metadata(written.directory / DATA.format(number)) for number in range(2)]
    groups = [m.row_group(g) for m in metadata for g in range(2)]
    sizes = [
        sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        for group in groups
    ]
    assert report.rows.largest_group_bytes == max(sizes)
    assert set(report.rows.bytes_per_row) == {*written.rows, PICTURE}
    assert sum(report.rows.bytes_per_row.values()) == pytest.approx(sum(sizes) / sum(LENGTHS))
    assert report.bytes_per_epoch == round(sum(LENGTHS) * report.bytes_per_example)
    # A clip of 16 frames an episode, 4 row groups, 4 files.
    assert (report.clip_length, report.num_clips, report.requests_per_epoch) == (
        16,
        4,
        4 + 4 + 2 * 4,
    )


GOLDEN = ["av1_small", "av1_rolled", "h264_bframes", "hevc_bframes", "images", "state_only"]
REAL: dict[str, dict[str, tuple[bool, str | None]]] = {
    "golden/depth": {},
    "real/cr5_v30": {},
    "real/gr00t_v30": {"long_gops": (False, "observation.images.ego_view")},
    "real/pusht_rows_v30": {"missing_file": (True, "observation.image")},
    **{f"golden/{name}": {} for name in GOLDEN},
}


@pytest.mark.parametrize("name", REAL)
def test_golden_and_real_data_sets(shared: Path, name: str) -> None:
    assert {
        kind: (is_problem, feature)
        for kind, (is_problem, feature, _) in found(checked(shared / name)).items()
    } == REAL[name]


# --- video files ---------------------------------------------------------------------------------


def test_files_that_are_not_there_or_damaged(directory: Path) -> None:
    (directory / VIDEO.format(0)).unlink()
    data = (directory / VIDEO.format(1)).read_bytes()
    (directory / VIDEO.format(1)).write_bytes(data[: len(data) // 2])
    (directory / DATA.format(1)).write_bytes(b"PAR1")
    report = checked(directory)
    assert [
        (finding.kind, finding.is_problem, finding.feature, finding.episodes)
        for finding in report.findings
    ] == [
        ("refused_file", True, None, (2, 3)),
        ("missing_file", True, TOP, (0, 1)),
        ("refused_file", True, TOP, (2, 3)),
    ]
    assert [finding.path for finding in report.findings] == [
        DATA.format(1),
        VIDEO.format(0),
        VIDEO.format(1),
    ]
    assert (
        report.findings[0].text
        == f"{DATA.format(1)}: not a parquet file, or truncated: its 4 bytes end with b'PAR1'; "
        "expected b'PAR1'"
    )
    assert report.findings[1].text == f"{VIDEO.format(0)}: there is no such file"
    assert report.findings[2].text.startswith(f"{VIDEO.format(1)}: ")
    # The camera has no usable file at all; without it the first two episodes can be read.
    assert (report.unusable_features, report.unusable_episodes, report.usable_episodes) == (
        (TOP,),
        (2, 3),
        [0, 1],
    )
    assert report.cameras == ()


def test_a_file_that_cannot_be_read(directory: Path) -> None:
    (directory / VIDEO.format(0)).unlink()
    (directory / VIDEO.format(0)).mkdir()
    assert found(checked(directory)) == {"unreadable_file": (True, TOP, (0, 1))}


def test_frames_that_rows_have_and_the_file_has_not(directory: Path) -> None:
    # 12 and 8 rows.
    (directory / VIDEO.format(0)).write_bytes(encoded("av1", num_frames=19, gop=2))
    report = checked(directory)
    # Not all versions of the encoder write another header for another length of the GOP.
    several = {"several_encodings": (False, TOP, ())}
    assert found(report) | several == {"frames": (True, TOP, (1,))} | several
    assert text_of(report, "frames") == (
        f"{VIDEO.format(0)}: episode 1: it has 8 rows, but only 7 frames from 1.200000 s until "
        "the file ends; which frame belongs to which row is not known"
    )
    assert (report.unusable_features, report.unusable_episodes) == ((), (1,))


def test_frames_that_no_row_has(directory: Path) -> None:
    (directory / VIDEO.format(0)).write_bytes(longer := encoded("av1", num_frames=25, gop=2))
    (directory / VIDEO.format(1)).write_bytes(longer)
    report = checked(directory)
    assert [
        (finding.kind, finding.is_problem, finding.episodes) for finding in report.findings
    ] == [
        ("unused_frames", False, (1,)),
        ("unused_frames", False, (3,)),
    ]
    assert (
        report.findings[0].text
        == f"{VIDEO.format(0)}: 5 of its 25 frames belong to no row, 5 of them after episode 1"
    )
    assert report.is_fine


def test_frames_in_front_of_the_first_episode(directory: Path) -> None:
    (directory / VIDEO.format(0)).write_bytes(encoded("av1", num_frames=22, gop=2))
    set_values(directory, "videos/top/from_timestamp", [0.2, 1.4, 0.0, 1.0])
    set_values(directory, "videos/top/to_timestamp", [1.4, 2.2, 1.0, 1.6])
    report = checked(directory)
    assert text_of(report, "unused_frames") == (
        f"{VIDEO.format(0)}: 2 of its 22 frames belong to no row, all of them before the first "
        "episode"
    )
    assert report.is_fine


def test_episodes_that_begin_between_two_frames(directory: Path) -> None:
    set_values(directory, "videos/top/from_timestamp", [0.0, 1.22, 0.0, 1.06])
    report = checked(directory)
    # There is one frame for each row, so it is known which is whose. The frame nearest to the start
    # of episode 3 is its second one.
    assert [(f.episodes, f.text) for f in report.findings if f.kind == "from_timestamp"] == [
        (
            (1,),
            f"{VIDEO.format(0)}: episode 1 should start at 1.220000 s; its first frame is the one "
            "at 1.200000 s; lerobot refuses it",
        ),
        (
            (3,),
            f"{VIDEO.format(1)}: episode 3 should start at 1.060000 s; its first frame is the one "
            "at 1.000000 s; lerobot refuses it",
        ),
    ]
    assert report.is_fine
    kinds = {
        finding.kind: (finding.is_problem, finding.feature, finding.episodes)
        for finding in report.findings
    }
    # And it begins after the end of episode 2, by more than half a frame.
    assert kinds["spans"] == (False, TOP, (3,))
    assert (
        "episode 3 does not begin at the end of episode 2 in the same file: +0.060000 s"
        in text_of(report, "spans")
    )
    assert kinds["durations"] == (False, TOP, (3,))


def test_episodes_that_overlap(directory: Path) -> None:
    set_values(directory, "videos/top/from_timestamp", [0.0, 0.9, 0.0, 1.0])
    report = checked(directory)
    kinds = found(report)
    assert kinds["frames"] == (True, TOP, (0,))
    assert (
        "episode 0: it has 12 rows, but only 9 frames from 0.000000 s until the next episode starts"
        in text_of(report, "frames")
    )
    assert "episode 1 begins before the end of episode 0 in the same file: -0.300000 s" in text_of(
        report, "spans"
    )
    assert (
        "episode 1 has 8 rows, but 1.100000 s of video until its to_timestamp, +3.0 frames"
        in text_of(report, "durations")
    )
    assert "3 of its 20 frames belong to no row, 3 of them after episode 1" in text_of(
        report, "unused_frames"
    )


def test_headers_that_hide_and_turn_frames(directory: Path) -> None:
    data = film("h264", 0, 22)
    times = times_of(data)
    (directory / VIDEO.format(0)).write_bytes(
        turned(edited(data, (times.length, times.start + times.frame + 1)), TURNS[180])
    )
    report = checked(directory)
    kinds = {
        finding.kind: finding.episodes
        for finding in report.findings
        if finding.path == VIDEO.format(0)
    }
    assert kinds == {"hidden_frames": (), "rotation": (), "key_frame": (1,)}
    assert (
        text_of(report, "hidden_frames")
        == f"{VIDEO.format(0)}: its edit list hides 2 of its 22 coded pictures, here as in FFmpeg"
    )
    assert (
        text_of(report, "rotation")
        == f"{VIDEO.format(0)}: its header turns frames by 180 degrees clockwise; they are given "
        "turned"
    )
    assert report.is_fine


def test_episodes_that_begin_inside_the_one_before(directory: Path) -> None:
    """Each has a frame more than rows, and starts are counted from rows: each but the first is
    given frames of the one before.
    """
    films = [film("h264", 0, 13), film("h264", 1, 9)]
    (directory / VIDEO.format(0)).write_bytes(joined(*films))
    report = checked(directory)
    kinds = {
        finding.kind: finding for finding in report.findings if finding.path == VIDEO.format(0)
    }
    assert sorted(kinds) == ["key_frame", "unused_frames"]
    assert kinds["key_frame"].episodes == (1,)
    assert (
        "2 of its 22 frames belong to no row, 2 of them after episode 1"
        in kinds["unused_frames"].text
    )
    # If the starts are those of the video, all is well.
    set_values(directory, "videos/top/from_timestamp", [0.0, 1.3, 0.0, 1.0])
    assert "key_frame" not in {finding.kind for finding in checked(directory).findings}


def test_video_of_another_frame_rate_with_a_frame_for_every_row(directory: Path) -> None:
    change_info(directory, lambda info: info.update(fps=20))
    report = checked(directory)
    times = [finding for finding in report.findings if finding.kind == "frame_times"]
    assert [finding.episodes for finding in times] == [(0, 1), (2, 3)]
    assert times[0].text == (
        f"{VIDEO.format(0)}: a frame of episode 0 is 0.550000 s from where 20 fps put it; its "
        "frames are 0.100000 s apart on average (10 fps); the k-th row is given the k-th frame; "
        "lerobot refuses it (and 1 more episode)"
    )
    assert "camera 'top' has video.fps 10; the dataset has fps 20" in text_of(report, "frame_rate")
    assert report.is_fine


def test_video_of_another_frame_rate_with_more_frames_than_rows(directory: Path) -> None:
    def change_timestamps(factor: float) -> None:
        for number in range(2):
            change_table(
                directory / DATA.format(number),
                changed_column("timestamp", lambda column: pc.multiply(column, factor)),
            )

    # Two frames a row, and timestamps of a clock that runs too fast.
    (directory / VIDEO.format(0)).write_bytes(encoded("av1", num_frames=40, gop=2))
    (directory / VIDEO.format(1)).write_bytes(encoded("av1", num_frames=32, gop=2))
    change_info(directory, lambda info: info.update(fps=5))
    change_timestamps(1.875)
    set_values(directory, "videos/top/from_timestamp", [0.0, 2.4, 0.0, 2.0])
    report = checked(directory)
    wrong = [finding for finding in report.findings if finding.is_problem]
    assert [(finding.kind, finding.episodes) for finding in wrong] == [
        ("frames", (0, 1)),
        ("frames", (2, 3)),
    ]
    assert wrong[0].text == (
        f"{VIDEO.format(0)}: episode 0: it has 12 rows and 24 frames from 0.000000 s on, which "
        "frame belongs to which row is not known; the frames of the file come at 10 a second, "
        "info.json says fps 5 (and 1 more episode)"
    )
    assert report.unusable_features == (TOP,)
    # If the timestamps are multiples of 1 / fps, they name frames that are there.
    change_timestamps(2.0 / 1.875)
    assert checked(directory).is_fine


def test_frames_of_another_size(directory: Path) -> None:
    change_info(directory, lambda info: info["features"][TOP].update(shape=[48, 96, 3]))
    report = checked(directory, max_files=1)
    assert found(report) == {"frame_size": (True, TOP, (0, 1))}
    assert text_of(report, "frame_size") == (
        f"{VIDEO.format(0)}: its frames are 64x96 (height x width), info.json declares 48x96; "
        "only with image_size= they are read"
    )


def test_encodings_that_differ(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / VIDEO.format(1)).write_bytes(encoded("h264", num_frames=16, gop=8))
    change_info(
        directory, lambda info: info["features"][TOP]["info"].update({"video.codec": "libx265"})
    )
    monkeypatch.setattr(dataset_checks, "LONG_GOP", 1)
    report = checked(directory)
    assert [(finding.kind, finding.text) for finding in report.findings] == [
        (
            "key_frame",
            f"{VIDEO.format(1)}: episode 3 does not begin at a key frame, as an episode that was "
            "recorded on its own does; if the episodes before it have more frames than the table "
            "says, its frames are theirs",
        ),
        (
            "codec",
            "meta/info.json: camera 'top' has video.codec 'libx265'; its files have av1, h264",
        ),
        ("several_encodings", "videos/top: its files have 2 codecs"),
        (
            "several_encodings",
            "videos/top: its 2 files have 2 parameter sets; frames of different ones are not "
            "decoded together, which is slower",
        ),
        (
            "long_gops",
            "videos/top: most key frames are 2 frames apart; above 1 a shuffled stream may "
            "decode frames more than once",
        ),
    ]
    assert report.is_fine
    assert (report.cameras[0].codecs, report.cameras[0].gop_max) == (("av1", "h264"), 8)


@pytest.mark.parametrize("name", ["av1", "libsvtav1"])
def test_a_codec_by_the_name_of_its_encoder(directory: Path, name: str) -> None:
    change_info(directory, lambda info: info["features"][TOP]["info"].update({"video.codec": name}))
    assert checked(directory).findings == ()


def test_a_camera_without_video(directory: Path) -> None:
    change_table(
        directory / TABLE,
        lambda table: table.drop(
            [name for name in table.column_names if name.startswith("videos/")]
        ),
    )
    report = checked(directory)
    assert found(report) == {"no_video": (True, TOP, (0, 1, 2, 3))}
    assert (report.unusable_features, report.unusable_episodes) == ((TOP,), ())


# --- data files ----------------------------------------------------------------------------------


def test_a_data_file_with_another_number_of_rows(directory: Path) -> None:
    change_table(directory / DATA.format(0), lambda table: table.slice(1))
    report = checked(directory)
    assert found(report) == {"refused_file": (True, None, (0, 1))}
    assert (
        text_of(report, "refused_file")
        == f"{DATA.format(0)}: it has 19 rows; the episode table puts 20 into it"
    )


def changed_column(name: str, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(
        table.column_names.index(name), name, change(table[name].combine_chunks())
    )


@pytest.mark.parametrize(
    ("change", "kind", "feature", "text"),
    [
        (
            lambda table: table.drop(["action"]),
            "missing_column",
            "action",
            "there is no column 'action', which info.json declares",
        ),
        (
            changed_column("next.reward", lambda values: pc.cast(values, pa.string())),
            *(
                "column_type",
                "next.reward",
                "column 'next.reward' is of type string; info.json declares float32 (1,)",
            ),
        ),
        (
            changed_column(
                "next.reward",
                lambda values: pa.array([[1.0, 2.0]] * len(values), pa.list_(pa.float32(), 2)),
            ),
            *(
                "column_type",
                "next.reward",
                "is of type fixed_size_list<element: float>[2]; info.json declares float32 (1,)",
            ),
        ),
        (
            changed_column("action", lambda values: pa.array([[[0.0]]] * len(values))),
            *(
                "column_type",
                "action",
                "is of type list<element: list<element: double>>; info.json declares float32 (7,)",
            ),
        ),
        (
            changed_column("observation.note", lambda values: pa.array(range(len(values)))),
            *(
                "column_type",
                "observation.note",
                "column 'observation.note' is of type int64; info.json declares string (1,)",
            ),
        ),
        (
            changed_column(
                PICTURE, lambda values: pa.StructArray.from_arrays([values.field("path")], ["path"])
            ),
            *(
                "column_type",
                PICTURE,
                "column 'picture' is of type struct<path: string>; info.json declares image (32, "
                "80, 3)",
            ),
        ),
    ],
    ids=[
        "missing",
        "text for number",
        "two for one",
        "matrix for vector",
        "number for text",
        "picture outside",
    ],
)
def test_columns_that_cannot_be_read(
    directory: Path, change: Any, kind: str, feature: str, text: str
) -> None:
    change_table(directory / DATA.format(1), change)
    report = checked(directory)
    assert found(report) == {kind: (True, feature, (2, 3))}
    assert text in text_of(report, kind)
    assert report.unusable_episodes == (2, 3)
    with pytest.raises(lg.DatasetFormatError):
        list(lg.LeRobotIterDataset(directory, episodes=[2], features=[feature], num_epochs=1))


@pytest.mark.parametrize(
    "change",
    [
        changed_column(
            "action", lambda values: pa.array(values.to_pylist(), pa.list_(pa.float32()))
        ),
        changed_column(
            "next.reward",
            lambda values: pa.array(
                [[value] for value in values.to_pylist()], pa.list_(pa.float32())
            ),
        ),
        changed_column("observation.note", lambda values: pc.cast(values, pa.large_string())),
        changed_column("observation.note", lambda values: values.dictionary_encode()),
        changed_column(PICTURE, lambda values: values.field("bytes")),
    ],
    ids=[
        "lists of any length",
        "number in a list",
        "large texts",
        "texts of a dictionary",
        "binary pictures",
    ],
)
def test_columns_of_other_types_that_are_read(directory: Path, change: Any) -> None:
    change_table(directory / DATA.format(1), change)
    assert checked(directory).findings == ()
    assert len(list(lg.LeRobotIterDataset(directory, episodes=[2], num_epochs=1))) == 10


def test_a_row_that_is_said_to_be_enormous_is_not_made_up(directory: Path) -> None:
    change_info(directory, lambda info: info["features"]["action"].update(shape=[1 << 30]))
    change_table(
        directory / DATA.format(0),
        changed_column(
            "action", lambda values: pa.array(values.to_pylist(), pa.list_(pa.float32()))
        ),
    )
    # The other file has lists of 7, which tells.
    assert found(checked(directory)) == {"column_type": (True, "action", (2, 3))}


def test_numbers_of_another_type_and_columns_that_nobody_declared(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_table(
        directory / DATA.format(0),
        changed_column("next.reward", lambda values: pc.cast(values, pa.float64())),
    )
    change_table(
        directory / DATA.format(1),
        lambda table: table.append_column("extra", pa.array(range(table.num_rows))),
    )
    monkeypatch.setattr(dataset_checks, "_LARGE_GROUP_BYTES", 100)
    report = checked(directory)
    assert found(report) == {
        "column_type": (False, "next.reward", ()),
        "undeclared_columns": (False, None, ()),
        "large_row_groups": (False, None, ()),
    }
    assert (
        "column 'next.reward' holds float64; info.json declares float32, which its values are "
        "converted to" in text_of(report, "column_type")
    )
    assert (
        text_of(report, "undeclared_columns")
        == "data: columns that info.json does not declare, and that are not read: ['extra']"
    )
    assert "MB, and every row of it needs all of them" in text_of(report, "large_row_groups")


# --- meta/ ---------------------------------------------------------------------------------------


def test_totals_and_splits_that_lie(directory: Path) -> None:
    change_info(
        directory,
        lambda info: info.update(
            total_tasks=7, splits={"train": "0:100", "val": "0:10%", "test": "1:2"}
        ),
    )
    report = checked(directory)
    assert [finding.kind for finding in report.findings] == ["split", "split", "total_tasks"]
    assert report.findings[0].text.startswith(
        "meta/info.json: split 'train', '0:100', cannot be selected: "
    )
    assert report.findings[2].text == "meta/info.json: total_tasks is 7, the table of tasks has 2"
    assert report.is_fine


def test_notes_of_the_data_set_are_findings(directory: Path) -> None:
    change_info(directory, lambda info: info.update(total_frames=1))
    with pytest.warns(lg.LeRobotGrainWarning):
        report = checked(directory)
    assert [(finding.kind, finding.text) for finding in report.findings] == [
        (
            "note",
            f"meta/info.json: total_frames is 1, but the episode table has {sum(LENGTHS)}, which "
            "is what is read",
        )
    ]
    assert report.is_fine


def test_a_table_without_durations(directory: Path) -> None:
    change_table(directory / TABLE, lambda table: table.drop(["videos/top/to_timestamp"]))
    assert (
        text_of(checked(directory), "durations")
        == "meta/episodes: there is no column videos/top/to_timestamp of seconds"
    )


# --- what is said is what is so ------------------------------------------------------------------


def test_the_reader_reads_what_is_called_usable_and_nothing_else(directory: Path) -> None:
    (directory / VIDEO.format(0)).write_bytes(encoded("av1", num_frames=19, gop=2))
    change_table(directory / DATA.format(1), lambda table: table.slice(1))
    report = checked(directory)
    assert report.unusable_episodes == (1, 2, 3)
    for episode in range(4):
        dataset = lg.LeRobotIterDataset(directory, episodes=[episode], num_epochs=1)
        if episode in report.usable_episodes:
            assert len(list(dataset)) == LENGTHS[episode]
        else:
            with pytest.raises(lg.DatasetFormatError):
                list(dataset)


def test_a_sample_of_the_files(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    write_dataset(
        directory, episode_lengths=[2] * 9, cameras=(), barcodes=False, episodes_per_data_file=1
    )
    for number in (0, 3, 8):
        (directory / DATA.format(number)).unlink()
    report = checked(directory, max_files=3)
    assert (report.num_files, report.num_files_checked) == (9, 3)
    assert [finding.path for finding in report.findings] == [DATA.format(0), DATA.format(8)]
    assert report.rows is not None
    assert report.rows.num_groups == 9
    assert checked(directory, max_files=100).unusable_episodes == (0, 3, 8)
    for value in (0, 1.5, True):
        with pytest.raises(
            lg.InvalidRequestError,
            match=rf"check\(max_files={value}\): expected an int >= 1, or None for all",
        ):
            checked(directory, max_files=value)


def test_a_camera_of_which_no_checked_file_is_there(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    write_dataset(
        directory,
        episode_lengths=[4, 4],
        cameras=(Camera(key=TOP, height=64, width=96),),
        episodes_per_video_file=1,
    )
    (directory / VIDEO.format(0)).unlink()
    # The data file that was checked has the other episode, too.
    report = checked(directory, max_files=1)
    assert (report.unusable_features, report.unusable_episodes) == ((TOP,), ())
    report = checked(directory)
    assert (report.unusable_features, report.unusable_episodes) == ((), (0,))


def test_only_indices_are_fetched(
    written: WrittenDataset, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "check/data"
    hub.add_repository(name, written.directory, tags=["v3.0"])
    repository = lg.open_repository(name, endpoint=hub.endpoint, cache_dir=tmp_path)
    hub.clear_requests()
    report = lg.check(repository)
    assert (report.findings, report.num_files_checked) == ((), 4)
    fetched = [
        request
        for request in hub.requests()
        if request.method == "GET" and request.path.startswith("/xet-bridge")
    ]
    # Each small file is read with its index and the bytes around it; the default clip_length looks
    # into the first video again.
    assert 4 <= len(fetched) <= 12
    repository.close()


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_findings_costs_and_what_to_leave_out(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / VIDEO.format(0)).write_bytes(encoded("av1", num_frames=19, gop=2))
    assert main(["check", str(directory)]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    title, count, *rest = captured.out.splitlines()
    assert title == f"{directory}: 4 episodes, 36 rows at 10 fps"
    assert count.startswith("4 of 4 files checked in ")
    assert rest[1:4] == [
        "problems:",
        "  frames, top, 1 episode",
        f"    {VIDEO.format(0)}: episode 1: it has 8 rows, but only 7 frames from 1.200000 s "
        "until the file ends; which frame belongs to which row is not known",
    ]
    assert rest[5:7] in (["notes:", "  several_encodings, top"], ["notes: none", ""])  # see above
    labels = [
        line.split("  ")[1] for line in rest[rest.index("costs, each byte fetched once:") + 1 : -3]
    ]
    assert labels == ["top", "rows", "an example", "an epoch", "clip_length"]
    assert rest[-2:] == [
        "3 of 4 episodes can be read; to leave the others out:",
        "  episodes=lambda episode: episode.index not in {1}",
    ]
    selection = eval(rest[-1].strip().removeprefix("episodes="))
    assert (
        len(
            list(
                lg.LeRobotIterDataset(
                    directory, episodes=selection, num_epochs=1, features=["index"]
                )
            )
        )
        == 12 + 10 + 6
    )


def test_the_command_of_a_sound_data_set(
    written: WrittenDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(written.directory), "--max-files", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("2 of 4 files checked in ")
    assert lines[1].endswith("; a sample: what it finds is there, and there may be more of it")
    assert lines[3] == "problems: none"
    assert lines[5] == "notes: none"


def test_findings_of_one_kind_are_shown_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "data"
    write_dataset(
        directory, episode_lengths=[2] * 6, cameras=(), barcodes=False, episodes_per_data_file=1
    )
    for number in range(1, 6):
        (directory / DATA.format(number)).unlink()
    assert main(["check", str(directory)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:9] == [
        "  missing_file, 5 episodes",
        *(f"    {DATA.format(number)}: there is no such file" for number in (1, 2, 3)),
        "    ... and 2 more files",
    ]
    (directory / DATA.format(0)).unlink()
    assert main(["check", str(directory)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "no episode can be read"


def test_json_has_everything(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / VIDEO.format(0)).unlink()
    assert main(["check", str(directory), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == [
        {
            "kind": "missing_file",
            "is_problem": True,
            "path": VIDEO.format(0),
            "feature": TOP,
            "episodes": [0, 1],
            "text": f"{VIDEO.format(0)}: there is no such file",
        }
    ]
    assert (report["is_fine"], report["unusable_episodes"], report["usable_episodes"]) == (
        False,
        [0, 1],
        [2, 3],
    )
    assert report["cameras"][0]["sizes"] == [[64, 96]]
    assert set(report) >= {
        "dataset",
        "rows",
        "clip_length",
        "bytes_per_example",
        "bytes_per_epoch",
        "requests_per_epoch",
        "seconds",
    }


def test_a_data_set_that_cannot_be_opened_is_status_2(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "meta/tasks.parquet").unlink()
    assert main(["check", str(directory)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err
        == f"lerobot-grain: {directory}: there is no meta/tasks.parquet; expected the table of "
        "task texts\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["check", str(directory), "--max-files", "0"])
    assert ended.value.code == 2


def test_progress_is_written_to_a_terminal_and_erased(
    written: WrittenDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["check", str(written.directory)]) == 0
    error = capsys.readouterr().err
    assert "1 of 4 files " in error
    # The line is erased, and the cursor is back.
    assert error.endswith(("\r\x1b[2K\x1b[?25h", "\x1b[1A\x1b[2K"))

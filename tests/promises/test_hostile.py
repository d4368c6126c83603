"""Files that lie: each gives the format error, in bounded time and memory, and nothing is written
outside of the cache.

The refusals of single modules are in their own tests; here are the attacks on memory, time and
paths, and what fuzzing (`fuzz/`) found.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainWarning, short_repr
from lerobot_grain._format.episodes import episode_table
from lerobot_grain._format.info import DatasetInfo, Feature, parse_info
from lerobot_grain._parquet import table as parquet_table
from lerobot_grain._parquet.columns import to_encoded_images, to_numpy, to_strings
from lerobot_grain._parquet.files import InMemoryFile
from lerobot_grain._parquet.table import open_table, read_columns
from lerobot_grain._reading.rows.data_files import open_data_file
from lerobot_grain._repository import metadata, opening
from lerobot_grain._repository.opening import open_repository
from lerobot_grain._repository.sample_tables import sample_table
from lerobot_grain.testing import Camera, LoopbackHub, write_dataset
from tests.support.helpers import box, edit_box, encoded, read_table
from tests.support.process_memory import status_bytes

# Hangs and memory are what is tested: the hard limits are far above what is seen.
pytestmark = pytest.mark.timeout(60)

TRACK = "moov/trak/mdia/minf/stbl"


@contextlib.contextmanager
def memory_within(max_bytes: int) -> Iterator[None]:
    """Checks by how much this process grows at its peak, with all that native code takes.

    Linux only.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = status_bytes("VmHWM")
    yield
    assert status_bytes("VmHWM") - before < max_bytes


def refusal(read: Callable[[], Any], *, max_bytes: int = 256 << 20) -> str:
    """Returns the text of the format error, which must come without much memory."""
    with memory_within(max_bytes), pytest.raises(DatasetFormatError) as caught:
        read()
    assert len(str(caught.value)) < 3000
    return str(caught.value)


# --- paths ---------------------------------------------------------------------------------------

KEY = "top"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written") / "data"
    cameras = (Camera(key=KEY, height=64, width=96, codec="h264"),)
    write_dataset(root, episode_lengths=[3, 2], fps=10, cameras=cameras, statistics=False)
    return root


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "copy")


def change_info(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = directory / "meta/info.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


ELSEWHERE = [
    "../../{video_key}/{chunk_index}-{file_index}",
    "a/../../../{file_index}",
    "/etc/passwd",
    "https://example.org/{file_index}",
    "file:///etc/passwd",
    "..\\..\\{file_index}",
    "a//{file_index}",
    "a/{file_index}?download=true",
    "a/{file_index}#x",
    "a/\x00/{file_index}",
    "a/\r\nHost: example.org/{file_index}",
    "%2e%2e/{file_index}",
]


@pytest.mark.parametrize("template", ELSEWHERE)
def test_templates_that_lead_elsewhere(
    directory: Path, hub: LoopbackHub, tmp_path: Path, template: str
) -> None:
    change_info(directory, lambda info: {**info, "data_path": template, "video_path": template})
    name = f"tests/elsewhere-{ELSEWHERE.index(template)}"
    hub.add_repository(name, directory, tags=("v3.0",))
    (tmp_path / "work").mkdir()
    before = files_in(tmp_path)
    repository = open_repository(name, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    hub.clear_requests()
    for read in (
        lambda: open_data_file(repository, 0),
        lambda: sample_table(repository.storage, repository.episodes.videos[KEY].files.paths[0]),
    ):
        # A name that only looks like a way out is a file that is not there.
        with pytest.raises(lg_error(template)):
            read()
    repository.close()
    assert {r.path.split("/resolve/")[0] for r in hub.requests()} <= {f"/datasets/{name}"}
    # The latter is the disk cache (conftest.py).
    assert {path.split("/")[0] for path in files_in(tmp_path) - before} == {"cache", "kept"}


def lg_error(template: str) -> type[Exception]:
    return OSError if template.startswith("%") else DatasetFormatError


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("key", ["../../x", "/etc", "https://example.org", "a\\b", "a\0b"])
def test_cameras_whose_key_leads_elsewhere(directory: Path, key: str) -> None:
    # The key is part of the path of its videos.
    change_info(directory, lambda info: {**info, "features": {key: info["features"][KEY]}})
    path = directory / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.rename_columns(
            [name.replace(f"videos/{KEY}/", f"videos/{key}/") for name in table.column_names]
        ),
        path,
    )
    repository = open_repository(directory)
    text = refusal(
        lambda: sample_table(repository.storage, repository.episodes.videos[key].files.paths[0])
    )
    assert "is not the path of a file of a dataset" in text


# --- texts and numbers of info.json --------------------------------------------------------------

INFO: dict[str, Any] = {
    "codebase_version": "v3.0",
    "fps": 10,
    "features": {
        "action": {"dtype": "float32", "shape": [2]},
        "top": {"dtype": "video", "shape": [4, 6, 3], "info": {"video.g": 2}},
    },
    "video_path": "videos/{video_key}/{chunk_index}-{file_index}.mp4",
}
LONG, DEEP = "x" * 1_000_000, "[" * 900 + "]" * 900


def info_of(raw: bytes) -> DatasetInfo:
    return parse_info(raw, where="org/name@1a2b, meta/info.json")


def with_feature(**fields: Any) -> bytes:
    return json.dumps({**INFO, "features": {"key": fields}}).encode()


@pytest.mark.parametrize(
    "value",
    [json.dumps(LONG), json.dumps([LONG] * 20), DEEP, "[" + "9" * 4000 + "]"],
    ids=["long", "list", "deep", "digits"],
)
@pytest.mark.parametrize(
    "place",
    [
        *(
            '{"codebase_version": @}',
            '{"codebase_version": "v3.0", "fps": @}',
            '{"codebase_version": "v3.0", "storage_format": @}',
        ),
        *(
            json.dumps({**INFO, field: "@"}).replace('"@"', "@")
            for field in ("fps", "total_frames", "features", "data_path", "video_path")
        ),
        *(
            json.dumps({**INFO, "features": {"a": feature}}).replace('"@"', "@")
            for feature in ("@", {"dtype": "@"})
        ),
        *(
            json.dumps({**INFO, "features": {"a": {"dtype": kind, "shape": "@"}}}).replace(
                '"@"', "@"
            )
            for kind in ("float32", "video")
        ),
        json.dumps(
            {**INFO, "features": {"a": {"dtype": "video", "shape": [4, 6, 3], "info": "@"}}}
        ).replace('"@"', "@"),
    ],
)
def test_messages_stay_short_and_values_need_not_be_printable(place: str, value: str) -> None:
    assert refusal(lambda: info_of(place.replace("@", value).encode())).startswith(
        "org/name@1a2b, meta/info.json: "
    )


def test_shown() -> None:
    assert short_repr({"a": [1, None]}) == "{'a': [1, None]}"
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert short_repr([10**5000]) == "[an int of 16610 bits]"
    assert short_repr(deep) == "[[[[[[[...]]]]]]]"
    assert len(short_repr([[LONG] * 100] * 100)) < 500


TOO_MANY = "expected at most 32 dimensions and 2147483648 values"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            json.dumps({**INFO, "fps": 1e-300}).encode(),
            "fps is 1e-300; expected at least 1e-06 and at most 1e+06 frames per second",
        ),
        (
            json.dumps({**INFO, "fps": 1e300}).encode(),
            "fps is 1e+300; expected at least 1e-06 and at most 1e+06 frames per second",
        ),
        (with_feature(dtype="float32", shape=[1] * 33), TOO_MANY),
        (
            with_feature(dtype="float32", shape=[1 << 16, 1 << 16]),
            f"has shape [65536, 65536]; {TOO_MANY}",
        ),
        (with_feature(dtype="float32", shape=[0, 1 << 40]), TOO_MANY),
        (with_feature(dtype="float32", shape=[10**400]), TOO_MANY),
        (with_feature(dtype="video", shape=[10**9, 10**9, 3]), TOO_MANY),
        (
            json.dumps({**INFO, "features": {"k" * 257: {}}}).encode(),
            "has a key of 257 characters; expected at most 256",
        ),
        (
            json.dumps({**INFO, "video_path": "v/" + "x" * 511}).encode(),
            "of 513 characters; expected a relative path with the fields",
        ),
        (
            json.dumps({**INFO, "data_path": "{file_index}" * 17}).encode(),
            "of 204 characters; expected a relative path with the fields",
        ),
    ],
    ids=str,
)
def test_numbers_and_texts_beyond_all_reason(raw: bytes, text: str) -> None:
    assert text in refusal(lambda: info_of(raw))


def test_of_equal_keys_the_last_counts() -> None:
    # As in Python's own reader, and so in lerobot.
    assert info_of(json.dumps(INFO).encode()[:-1] + b', "fps": 7}').fps == 7


def test_a_gop_length_that_no_encoder_has_is_not_believed() -> None:
    features = info_of(
        with_feature(dtype="video", shape=[4, 6, 3], info={"video.g": 10**30})
    ).features
    assert features["key"].gop_length is None


@pytest.mark.parametrize("element", [b"[],", b'{"":0},'])
def test_json_of_the_largest_size_that_is_read(element: bytes) -> None:
    raw = b"[" + element * (opening._MAX_INFO_BYTES // len(element) - 1) + b"0]"
    assert len(raw) > 4_000_000
    assert "found a JSON list" in refusal(lambda: info_of(raw), max_bytes=400 << 20)


def test_json_above_the_limit_is_not_read(directory: Path) -> None:
    with (directory / "meta/stats.json").open("wb") as file:
        file.truncate((8 << 20) + 1)
    with pytest.warns(
        LeRobotGrainWarning, match=r"meta/stats.json: has 8388609 bytes, expected at most 8388608"
    ):
        repository = open_repository(directory)
    text = refusal(lambda: repository.stats, max_bytes=64 << 20)
    assert text == f"{directory}: meta/stats.json has 8388609 bytes, expected at most 8388608"
    with (directory / "meta/info.json").open("wb") as file:
        file.truncate((4 << 20) + 1)
    text = refusal(lambda: open_repository(directory), max_bytes=64 << 20)
    assert text == f"{directory}: meta/info.json has 4194305 bytes, expected at most 4194304"


# --- the episode table ---------------------------------------------------------------------------

DATASET_INFO = info_of(json.dumps(INFO).encode())


def table_of(**changes: Any) -> Any:
    columns: dict[str, Any] = {
        "episode_index": [0, 1],
        "length": [3, 2],
        "data/chunk_index": [0, 0],
        "data/file_index": [0, 0],
        "videos/top/chunk_index": [0, 0],
        "videos/top/file_index": [0, 0],
        "videos/top/from_timestamp": [0.0, 0.3],
    }
    columns |= {name.replace("__", "/"): values for name, values in changes.items()}
    return episode_table(
        {name: np.array(values) for name, values in columns.items()},
        info=DATASET_INFO,
        where="org/name@1a2b, table",
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"length": [1 << 33, 1]},
            "the lengths add up to more than 4294967296 frames, which no dataset holds",
        ),
        (
            {"length": [1 << 40] * 2},
            "the lengths add up to more than 4294967296 frames, which no dataset holds",
        ),
        (
            {"length": [1 << 50, 1]},
            "column length has values above 1099511627776, which no dataset holds",
        ),
        (
            {"videos__top__from_timestamp": [0, 1e300]},
            "episode 1 has videos/top/from_timestamp 1e+300; expected seconds >= 0 and < 1e+09",
        ),
        (
            {"length": np.array([3, np.inf], np.float16)},
            "column length has values of type float64 that are not all integers",
        ),
    ],
    ids=str,
)
def test_tables_beyond_all_reason(changes: dict[str, Any], text: str) -> None:
    assert refusal(lambda: table_of(**changes)) == f"org/name@1a2b, table: {text}"


def test_half_floats_are_integers_like_others() -> None:
    # Found by fuzzing: comparing them with a limit that they do not hold was a warning of NumPy.
    assert table_of(length=np.array([3, 2], np.float16)).lengths.tolist() == [3, 2]


def test_an_episode_table_with_very_many_rows(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "_MAX_EPISODES", 1)
    path = "meta/episodes/chunk-000/file-000.parquet"
    assert (
        refusal(lambda: open_repository(directory))
        == f"{directory}, {path}: it has 2 rows; at most 1 are read"
    )


def test_a_table_of_tasks_with_very_many_rows(directory: Path) -> None:
    rows = (1 << 20) + 1
    table = pa.table(
        {
            "task_index": np.zeros(rows, np.int64),
            "task": pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["pick"]),
        }
    )
    pq.write_table(table, directory / "meta/tasks.parquet")
    assert (directory / "meta/tasks.parquet").stat().st_size < 10_000
    assert refusal(lambda: open_repository(directory)).endswith(
        f"meta/tasks.parquet: it has {rows} rows; at most {rows - 1} are read"
    )


# --- parquet -------------------------------------------------------------------------------------


def written_table(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def opened(data: bytes) -> Any:
    return open_table(InMemoryFile("org/name@1a2b", data), "a.parquet")


def read_all(data: bytes) -> dict[str, Any]:
    return read_columns(opened(data), None)


def with_footer(data: bytes, footer: bytes) -> bytes:
    (length,) = struct.unpack("<I", data[-8:-4])
    return data[: len(data) - 8 - length] + footer + struct.pack("<I", len(footer)) + data[-4:]


def footer_of(data: bytes) -> bytes:
    (length,) = struct.unpack("<I", data[-8:-4])
    return data[-8 - length : -8]


SMALL = written_table(
    pa.table({"a": [1, None, 3], "l": [[1.0], [2.0, 3.0], None], "s": ["x", "y", None]}),
    row_group_size=2,
)


def test_every_byte_of_a_footer() -> None:
    # Found by fuzzing: pyarrow 26 ends the process (SIGABRT) at level histograms that do not fit
    # the schema, at encrypted columns without a key, and at row groups with too few columns.
    footer = footer_of(SMALL)
    refused = 0
    for place in range(len(footer)):
        for value in {0, 0xFF, footer[place] ^ 1, footer[place] + 2 & 0xFF}:
            try:
                read_all(with_footer(SMALL, footer[:place] + bytes([value]) + footer[place + 1 :]))
            except DatasetFormatError:
                refused += 1
    assert refused > len(footer)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


# Thrift, compact protocol: field 2, a schema of a root and one column; field 3, no rows.
SCHEMA = b"\x15\x02\x19\x2c\x48\x04root\x15\x02\x00\x15\x04\x25\x00\x18\x01a\x00\x16\x00"


@pytest.mark.parametrize("count", [300, 199_000, 1 << 20, 9_000_000, 1 << 31])
@pytest.mark.parametrize("inside", [b"", b"\x19\x1c"], ids=["row groups", "columns"])
def test_lists_in_a_footer_that_are_not_there(count: int, inside: bytes) -> None:
    # Found by measuring: 52 bytes made pyarrow take 6 GB.
    footer = SCHEMA + (inside or b"") + b"\x19\xfc" + varint(count) + b"\x00"
    data = with_footer(SMALL, footer)
    assert "damaged parquet footer (" in refusal(lambda: opened(data), max_bytes=64 << 20)


def test_numbers_of_rows_that_disagree() -> None:
    data = written_table(pa.table({"a": pa.array(range(1_000_003))}))
    footer = footer_of(data)
    changed = footer.replace(varint(1_000_003 << 1), varint(1_000_004 << 1), 1)
    assert changed != footer
    text = refusal(lambda: opened(with_footer(data, changed)))
    assert (
        text == "org/name@1a2b, a.parquet: the footer says 1000004 rows, but its 1 row groups have "
        "1000003; the file is damaged"
    )


def test_two_columns_of_one_name() -> None:
    column = pa.array([1])
    data = written_table(pa.Table.from_arrays([column, column], ["a", "a"]))
    assert (
        refusal(lambda: opened(data))
        == "org/name@1a2b, a.parquet: there are 2 columns 'a'; expected one"
    )


@pytest.mark.parametrize("list_size", [None, 100])
def test_numbers_packed_to_nothing(monkeypatch: pytest.MonkeyPatch, list_size: int | None) -> None:
    monkeypatch.setattr(parquet_table, "_MAX_UNPACKED_BYTES", 16 << 20)
    zeros = pa.array(np.zeros(3_000_000, np.int64))
    column = zeros if list_size is None else pa.FixedSizeListArray.from_arrays(zeros, list_size)
    data = written_table(pa.table({"zeros": column}), row_group_size=3_000_000, compression="zstd")
    assert len(data) < 100_000
    text = refusal(lambda: opened(data).read_group(0, ["zeros"]), max_bytes=8 << 20)
    assert text.startswith("org/name@1a2b, a.parquet, row group 0: its ")
    assert text.endswith(
        "; at most 16777216 are read, write the file again with smaller row groups"
    )


def test_one_long_text_in_every_row() -> None:
    # A dictionary with one text of 100 KB, and 50,000 times its number: 5 GB.
    texts = pa.DictionaryArray.from_arrays(np.zeros(50_000, np.int32), ["x" * 100_000])
    data = written_table(pa.table({"text": texts}), store_schema=False)
    assert len(data) < 20_000
    text = refusal(lambda: opened(data).read_group(0, ["text"]), max_bytes=400 << 20)
    assert text.startswith(
        "org/name@1a2b, a.parquet, row group 0: it unpacks to more than 268435456 bytes"
    )


def test_long_texts_that_fit_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_table, "_MAX_UNPACKED_BYTES", 100_000)
    values = ["long" * 1000 if row == 5 else f"{row % 3}" for row in range(1000)]
    data = written_table(pa.table({"text": pa.array(values), "index": pa.array(range(1000))}))
    table = opened(data).read_group(0, ["text", "index"])
    assert table["text"].num_chunks > 1
    assert (table["text"].to_pylist(), table["index"].to_pylist()) == (values, list(range(1000)))


def test_many_row_groups_that_are_too_much_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written_table(pa.table({"zeros": np.zeros(30_000, np.int64)}), row_group_size=10_000)
    monkeypatch.setattr(parquet_table, "_MAX_UNPACKED_BYTES", 170_000)
    assert opened(data).read_group(2, ["zeros"]).num_rows == 10_000
    assert refusal(lambda: read_all(data)).endswith(
        f"a.parquet: its {len(data)} bytes unpack to more than 170000, which are not read"
    )


def test_a_page_with_more_values_than_its_chunk() -> None:
    data = written_table(
        pa.table({"a": pa.array(range(10))}),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    table = opened(data)
    (chunk,) = table.ranges(0, ["a"])
    stop = data.index(b"\x2c\x15\x14", chunk.start) + 3
    # 2,147,483,647 values in place of 10 take 4 bytes more, which are taken from the page: it has
    # 86 bytes, twice in its header.
    header = data[chunk.start : stop].replace(varint(2 * 86), varint(2 * 82))
    lie = header[:-1] + varint(2 * (2**31 - 1)) + data[stop : chunk.stop - 4]
    assert len(lie) == chunk.length
    text = refusal(
        lambda: opened(data[: chunk.start] + lie + data[chunk.stop :]).read_group(0, ["a"])
    )
    assert text.startswith(
        f"org/name@1a2b, a.parquet, row group 0: its {chunk.length} bytes unpack to 17179869176; "
        "at most 268435456 are read"
    )


def test_a_page_that_is_said_to_unpack_to_gigabytes() -> None:
    data = written_table(
        pa.table({"a": pa.array(range(10))}),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    (chunk,) = opened(data).ranges(0, ["a"])
    unpacked, packed = varint(2 * 86), varint(2 * 83)
    # 2 GB in place of 86 bytes takes 3 bytes more, which are taken from the page.
    lie = data[chunk.start : chunk.stop - 3].replace(
        b"\x15" + unpacked + b"\x15" + unpacked, b"\x15" + varint(2**32 - 2) + b"\x15" + packed
    )
    assert len(lie) == chunk.length
    text = refusal(
        lambda: opened(data[: chunk.start] + lie + data[chunk.stop :]).read_group(0, ["a"])
    )
    assert "bytes unpack to 2147483647; at most 268435456 are read" in text


def test_types_and_columns_with_endless_names(directory: Path) -> None:
    column = pa.chunked_array([pa.array([{LONG: 1}])])
    where = "org/name@1a2b, a.parquet"
    refusal(lambda: to_numpy(column, Feature("key", "float32", (2,)), where=where))
    refusal(lambda: to_encoded_images(column, Feature("key", "image", (4, 6, 3)), where=where))
    pq.write_table(pa.table({LONG: [1]}), directory / "meta/tasks.parquet")
    refusal(lambda: open_repository(directory))


def test_statistics_with_an_endless_text(directory: Path) -> None:
    (directory / "meta/stats.json").write_text(json.dumps({"action": {"mean": LONG}}))
    with pytest.warns(LeRobotGrainWarning) as caught:
        repository = open_repository(directory)
    assert len(str(caught[0].message)) < 2000
    refusal(lambda: repository.stats)


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(struct.pack("<3i", 0, 1, 3)), pa.py_buffer(b"\xff\xfe\xfd")]
)


def test_texts_that_are_not_utf8() -> None:
    # Found by fuzzing: UnicodeDecodeError.
    column = pa.chunked_array([NOT_UTF8])
    where = "org/name@1a2b, a.parquet"
    for read in (
        lambda: to_strings(column, Feature("key", "string", (1,)), where=where),
        lambda: to_encoded_images(column, Feature("key", "image", (4, 6, 3)), where=where),
        lambda: to_numpy(column, Feature("key", "float32", (1,)), where=where),
        lambda: read_all(written_table(pa.table({"text": NOT_UTF8}))),
    ):
        assert refusal(read).startswith(f"{where}")


def test_names_that_are_not_utf8() -> None:
    data = SMALL.replace(b"\x18\x01s", b"\x18\x01\xff")
    assert data != SMALL
    assert refusal(lambda: read_all(data)).startswith("org/name@1a2b, a.parquet: ")


# --- MP4 -----------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"codec": "h264", "b_frames": 2}


def refused_mp4(data: bytes) -> str:
    return refusal(lambda: read_table(data, where="org/name@1a2b, a.mp4")).removeprefix(
        "org/name@1a2b, a.mp4: "
    )


@pytest.mark.parametrize("path", ["moov", "moov/trak", TRACK, f"{TRACK}/stsd"])
def test_millions_of_tiny_boxes(path: str) -> None:
    kind = path.rsplit("/", 1)[-1]
    data = edit_box(
        encoded(**PLAIN), path, lambda payload: box(kind, payload + box("free", b"") * 2_000_000)
    )
    assert refused_mp4(data) == f"{kind} holds more than 1000 boxes"


def test_boxes_in_boxes() -> None:
    nested = struct.pack(">I4s", 8, b"trak")
    deep = b"".join(struct.pack(">I4s", 8 * (100_000 - depth), b"trak") for depth in range(100_000))
    data = edit_box(encoded(**PLAIN), "moov", lambda payload: box("moov", payload + deep + nested))
    assert refused_mp4(data) == "trak holds 0 boxes mdia; expected one"


@pytest.mark.parametrize("kind", ["stsd", "stts", "ctts", "stss", "stsc", "stsz", "stco"])
def test_tables_of_samples_that_are_there_twice(kind: str) -> None:
    data = edit_box(encoded(**PLAIN), f"{TRACK}/{kind}", lambda payload: box(kind, payload) * 2)
    assert refused_mp4(data) == f"stbl holds two boxes {kind}; expected one"


@pytest.mark.parametrize("media_time", [1 << 30, (1 << 63) - 1])
def test_edit_lists_behind_the_last_picture(media_time: int) -> None:
    elst = struct.pack(">IIQqI", 1 << 24, 1, 0, media_time, 1 << 16)
    text = refused_mp4(
        edit_box(encoded(**PLAIN), "moov/trak/edts/elst", lambda _: box("elst", elst))
    )
    assert text.startswith(
        f"an edit list that shows 0 ticks from {media_time} on, where there is no picture; they "
        "begin at "
    )


def test_chunks_that_lie_over_each_other() -> None:
    # Nobody is harmed: the same bytes are several pictures, all inside of the file.
    data = encoded(**PLAIN)
    start = int(read_table(data).offsets[0])
    data = edit_box(
        data,
        f"{TRACK}/stco",
        lambda _: box("stco", struct.pack(">II", 0, 30) + struct.pack(">I", start) * 30),
    )
    data = edit_box(
        data, f"{TRACK}/stsc", lambda _: box("stsc", struct.pack(">IIIII", 0, 1, 1, 1, 1))
    )
    table = read_table(data)
    assert set(table.offsets.tolist()) == {start}
    assert not table.is_plain


def test_as_many_pictures_as_are_read_in_a_moov_of_nothing() -> None:
    # Samples of constant size and one run of everything: 4 million pictures in 1 KB.
    count = 4_000_000
    data = edit_box(
        encoded(**PLAIN), f"{TRACK}/stsz", lambda _: box("stsz", struct.pack(">III", 0, 1, count))
    )
    data = edit_box(
        data, f"{TRACK}/stts", lambda _: box("stts", struct.pack(">IIII", 0, 1, count, 1))
    )
    data = edit_box(data, f"{TRACK}/ctts", lambda _: b"")
    data = edit_box(data, f"{TRACK}/stss", lambda _: b"")
    data = edit_box(
        data, f"{TRACK}/stsc", lambda _: box("stsc", struct.pack(">IIIII", 0, 1, 1, count, 1))
    )
    data = edit_box(data, "moov/trak/edts", lambda _: b"")
    with memory_within(512 << 20):
        assert read_table(data, size_bytes=1 << 30).num_frames == count


def test_a_moov_of_the_largest_size_is_not_copied_for_every_box_in_it() -> None:
    filler = box("free", bytes(60 << 20))
    moov = edit_box(encoded(**PLAIN), TRACK, lambda payload: box("stbl", payload + filler))
    with memory_within(200 << 20):
        assert read_table(moov).num_frames == 30

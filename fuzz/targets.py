"""The targets of the fuzzer: a target takes the bytes of an input, reads them as the package does,
and checks what it got.

A target swallows `DatasetFormatError`; any other exception that leaves it is a finding.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from fuzz.corpus import CAMERAS, EPISODE_LENGTHS, FPS
from fuzz.mutations import DTYPES, mutate_json, mutate_mp4, mutate_parquet
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.episodes import EpisodeTable, episode_columns, episode_table
from lerobot_grain._format.info import Feature, parse_info
from lerobot_grain._parquet.columns import to_encoded_images, to_numpy, to_strings
from lerobot_grain._parquet.files import InMemoryFile
from lerobot_grain._parquet.table import open_table, read_columns
from lerobot_grain._video.mp4 import SampleTable, read_sample_table
from lerobot_grain._video.small_mp4 import coded_unit, small_mp4
from lerobot_grain._video.video_file import VideoFile
from tests.support.datasets import make_info

_WHERE = "org/name@1a2b, a file"
_INFO = replace(
    make_info(
        *(Feature(camera.key, camera.kind, (camera.height, camera.width, 3)) for camera in CAMERAS)
    ),
    fps=float(FPS),
)
# As info.json of the corpus declares them, and some as it does not.
_FEATURES = (
    *(
        Feature("action", "float32", (7,)),
        Feature("observation.state", "float32", (7,)),
        Feature("observation.matrix", "float32", (2, 3)),
    ),
    *(
        Feature("timestamp", "float32", (1,)),
        Feature("episode_index", "int64", (1,)),
        Feature("next.done", "bool", (1,)),
    ),
    *(
        Feature("observation.note", "string", (1,)),
        Feature("png", "image", (32, 80, 3)),
        Feature("task_index", "int8", (1,)),
    ),
)
# More bytes than this are not asked of a file that is said to be larger than its bytes.
_MAX_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
      mutate: makes an input of one of its seeds.
      run: reads an input.
      share: of all inputs, in parts of the sum of all shares: as many as take about equal time.
    """

    mutate: Callable[[Random, bytes], bytes]
    run: Callable[[bytes], None]
    share: int

    def accepts(self, data: bytes) -> bool:
        """Runs an input; returns whether it was read, and not refused."""
        try:
            self.run(data)
        except DatasetFormatError as error:
            if not str(error).startswith("org/name@1a2b"):
                raise AssertionError(
                    f"the message does not begin with the place: {str(error)[:200]}"
                ) from error
            if len(str(error)) > 4000:
                raise AssertionError(
                    f"the message has {len(str(error))} characters: {str(error)[:200]}..."
                ) from error
            return False
        return True


# --- MP4 -----------------------------------------------------------------------------------------


def _run_mp4(data: bytes) -> None:
    """Reads a file of a declared size (8 bytes, big-endian) that has the following bytes, and zeros
    after them.
    """
    size, file = int.from_bytes(data[:8], "big"), data[8:]

    def read(start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= size
        return file[start:stop].ljust(stop - start, b"\0")

    reader = read_sample_table(size, where=_WHERE)
    try:
        wanted = next(reader)
        while True:
            wanted = reader.send(read(*wanted))
    except StopIteration as stop:
        table: SampleTable = stop.value
    assert (table.offsets >= 0).all()
    assert (table.sizes >= 0).all()
    assert (table.offsets <= size - table.sizes).all()
    assert len(np.unique(table.presentation)) == table.num_frames > 0
    assert 0 <= table.presentation.min() <= table.presentation.max() < table.num_samples
    video = VideoFile.linked(
        table,
        path="a.mp4",
        camera="h264",
        number=0,
        episodes=_EPISODES,
        fps=FPS,
        read_timestamps=lambda episodes: [
            np.arange(_EPISODES.lengths[episode]) / FPS for episode in episodes
        ],
        where=_WHERE,
    )
    for gop in (0, len(table.key_samples) // 2, len(table.key_samples) - 1):
        frames_of_gop = video.frames_of(gop)
        for wanted_frames in (frames_of_gop, frames_of_gop[:1]):
            if not wanted_frames:
                continue
            unit = video.unit(gop, wanted_frames)
            assert 0 <= unit.byte_range.start <= unit.byte_range.stop <= size
            if unit.byte_range.length > _MAX_READ_BYTES:
                continue
            payload = read(*unit.byte_range) if unit.byte_range.length else b""
            coded = coded_unit(table, unit, payload, where=_WHERE)
            assert len(small_mp4(table.format, [coded, coded])) >= 2 * int(coded.sizes.sum())
    for episode in range(len(EPISODE_LENGTHS)):
        with contextlib.suppress(DatasetFormatError):
            video.check(episode)


# --- metadata ------------------------------------------------------------------------------------


def _run_info(data: bytes) -> None:
    info = parse_info(data, where=_WHERE)
    assert 0 < info.fps < float("inf")
    for template in (info.data_path, info.video_path):
        if template is not None:
            for key in info.features:
                assert (
                    len(template.path(chunk_index=1 << 40, file_index=1 << 40, video_key=key))
                    < 10_000
                )
    for feature in info.features.values():
        np.empty((0, *feature.shape))
    episode_columns(info)


def _run_episodes(data: bytes) -> None:
    """Makes the table of columns in JSON: name -> {"dtype": of NumPy or null, "values": list}.

    What no parquet file gives is left out.
    """
    try:
        declared = json.loads(data)
        lengths = [len(column["values"]) for column in declared.values()]
        columns = {str(name): _column(column)[: min(lengths)] for name, column in declared.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return
    table = episode_table(columns, info=_INFO, where=_WHERE)
    last = table.num_rows - 1
    assert table.locate(last) == (table.num_episodes - 1, int(table.lengths[-1]) - 1)
    assert (table.lengths > 0).all()
    assert (table.data_offsets >= 0).all()
    for number in range(len(table.data.paths)):
        assert len(table.data.episodes_in(number))


def _column(column: Mapping[str, Any]) -> npt.NDArray[Any]:
    values = list(column["values"])
    if column["dtype"] not in DTYPES:
        raise ValueError("no dtype of the columns of a parquet file")
    if any(isinstance(value, list | dict) for value in values):
        array = np.empty(len(values), object)
        array[:] = values
        return array
    with np.errstate(all="ignore"):
        return (
            np.array(values)
            if column["dtype"] is None
            else np.array(values).astype(column["dtype"])
        )


# --- parquet -------------------------------------------------------------------------------------


def _run_parquet(data: bytes) -> None:
    table = open_table(InMemoryFile("org/name@1a2b", data), "a file")
    where = table.where
    if len(data) % 2:
        columns = read_columns(table, None)
        assert {len(values) for values in columns.values()} <= {table.num_rows}
        return
    features = [feature for feature in _FEATURES if feature.key in table.leaves]
    for group in range(min(table.metadata.num_row_groups, 4)):
        found = table.read_group(group, [feature.key for feature in features])
        for feature in features:
            column = found.column(feature.key)
            if feature.is_camera:
                values: Any = to_encoded_images(column, feature, where=where)
            elif feature.dtype == "string":
                values = to_strings(column, feature, where=where)
            else:
                values = to_numpy(column, feature, where=where)
            assert len(values) == table.group_starts[group + 1] - table.group_starts[group]


def _episodes_of_corpus() -> EpisodeTable:
    count = len(EPISODE_LENGTHS)
    columns = {
        name: np.zeros(count, np.int64) for name in episode_columns(_INFO) if "dataset" not in name
    }
    starts = np.cumsum(EPISODE_LENGTHS) - np.array(EPISODE_LENGTHS)
    columns |= {"episode_index": np.arange(count), "length": np.array(EPISODE_LENGTHS)}
    columns |= {f"videos/{camera.key}/from_timestamp": starts / FPS for camera in CAMERAS}
    return episode_table(columns, info=_INFO, where=_WHERE)


_EPISODES = _episodes_of_corpus()

TARGETS: Mapping[str, Target] = {
    "mp4": Target(mutate_mp4, _run_mp4, share=4),
    "info": Target(mutate_json, _run_info, share=8),
    "episodes": Target(mutate_json, _run_episodes, share=7),
    "parquet": Target(mutate_parquet, _run_parquet, share=1),
}


def make_input(target: Target, seeds: tuple[bytes, ...], *, seed: int, number: int) -> bytes:
    """Returns input `number` of a run, which is always the same for equal arguments."""
    random = Random(seed << 64 | number)
    return target.mutate(random, seeds[random.randrange(len(seeds))])

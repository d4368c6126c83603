"""Opens one pinned revision of a data set: what it holds, and where. Reads `meta/` and nothing else.

Rules:
* The revision is resolved to a commit once; after that nothing can change under a stream. A bucket and a
  directory have no commits; a hash of the list of files, or of `meta/`, stands for it.
* The versions of the format differ in `meta/` and in nothing else that is seen here: v2.x (`_repository/metadata_v2`) gives the same tables
  as v3.
* Of the episode tables only the few columns that are needed are read: the statistics of every episode would be a hundred times as much.
* A repository is a value that pickles; opening one again in another process costs nothing.
* Files that disagree are an error where it could change what is read. Where it could not, a note says so, and a warning once.
* Statistics are not needed to read rows. What is wrong with their file is a note, and an error for who asks for them. That the bytes could
  not be had is an error all the same: it says nothing about the dataset, and what the Hub has is to be in the cache afterwards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError, InvalidRequestError, LeRobotGrainWarning, MissingFileError
from lerobot_grain._format.episodes import EpisodeTable, episode_columns, episode_table
from lerobot_grain._format.info import DatasetInfo, Feature, parse_info
from lerobot_grain._format.row_order import RowOrders, RowTimestamps
from lerobot_grain._format.texts import UnreadableTexts, texts_of_table
from lerobot_grain._parquet.files import InMemoryFile
from lerobot_grain._parquet.table import open_table, read_columns
from lerobot_grain._repository import metadata_v2 as v2
from lerobot_grain._repository.json_lines import pieces_of
from lerobot_grain._repository.stats_file import Statistics, parse_stats
from lerobot_grain._storage.base import Storage
from lerobot_grain._storage.opening import open_storage
from lerobot_grain._storage.options import StorageOptions
from lerobot_grain._video.mp4 import SampleTable, SampleTableReader, read_sample_table

INFO_PATH, STATS_PATH = "meta/info.json", "meta/stats.json"
TASKS_PATH, SUBTASKS_PATH = "meta/tasks.parquet", "meta/subtasks.parquet"
_EPISODES_PATH = re.compile(r"meta/episodes/chunk-([0-9]{1,9})/file-([0-9]{1,9})\.parquet")

# A metadata file is refused above these sizes before it is read; the largest public data sets have a hundredth of them. JSON takes up to 40
# times its size in memory.
_MAX_INFO_BYTES, _MAX_STATS_BYTES, _MAX_TABLE_BYTES = 4 << 20, 8 << 20, 1 << 30
# Rows may be packed to nothing. The largest public data sets have 2 million episodes and 100,000 tasks.
_MAX_EPISODES, _MAX_TASKS = 1 << 22, 1 << 20
# Up to this size a table is fetched whole, into the Hub's cache, where it costs nothing the next time; above, only its projected columns
# are read.
_WHOLE_TABLE_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Repository:
    """One revision of a LeRobotDataset.

    Attributes:
      storage: reads its files.
      commit: 40 hexadecimal digits: the commit on the Hub, a hash of the list of files for a bucket, or of `meta/` for a directory.
      info: what `meta/info.json` says.
      episodes: the episode table.
      tasks: task texts by `task_index`.
      subtasks: texts by `subtask_index`; `None` where there is no `meta/subtasks.parquet`.
      notes: what in the files is odd or was repaired, and does not change what is read; one text each. Opening issues each as a
        `LeRobotGrainWarning`.
      row_orders: in which row groups of data files the rows lie in order, as far as this process has read them.
      row_timestamps: of row groups, as far as this process has read them to link rows to frames.
      folder: of the repository on the Hub that the dataset lies in; empty: it is the whole repository, a bucket or a directory.
    """

    storage: Storage
    commit: str
    info: DatasetInfo
    episodes: EpisodeTable
    tasks: Mapping[int, str]
    subtasks: Mapping[int, str] | None = None
    notes: tuple[str, ...] = ()
    folder: str = ""
    _stats: list[Statistics | None] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)
    row_orders: RowOrders = dataclasses.field(default_factory=RowOrders, init=False, repr=False, compare=False)
    row_timestamps: RowTimestamps = dataclasses.field(default_factory=RowTimestamps, init=False, repr=False, compare=False)

    @property
    def stats(self) -> Statistics | None:
        """Feature key -> statistic (`mean`, `std`, `min`, `max`, `count`, quantiles) -> float64 array; `None` where there are none.

        As `meta/stats.json` has them; entries that are no numbers are left out, and `notes` name them. In v2.1, which has them for each
        episode, the first use adds those up: that reads up to 10 KB an episode.

        Raises:
          DatasetFormatError: they are malformed. `compute_stats` makes new ones.
          StorageError: the bytes could not be had.
        """
        if not self._stats:
            self._stats.append(_read_stats(self.storage, self.info, self.episodes)[0])
        return self._stats[0]

    @property
    def description(self) -> str:
        """Names the dataset in messages: `org/name@1a2b3c4d5e6f`, `org/name/folder@1a2b3c4d5e6f`, a bucket, or its directory."""
        return self.storage.description

    @property
    def fps(self) -> float:
        return self.info.fps

    @property
    def features(self) -> Mapping[str, Feature]:
        return self.info.features

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of all cameras, those with video and those with embedded images."""
        return tuple(key for key, feature in self.features.items() if feature.is_camera)

    def close(self) -> None:
        """Closes the connections of this process; a later read opens new ones."""
        self.storage.close()

    def episode_column(self, name: str) -> npt.NDArray[Any]:
        """Reads one column of `meta/episodes`, any of those that the file has, such as `tasks`.

        Returns:
          `(episodes,)`, in the order of `episodes`: numbers as numbers, texts as str, lists as arrays.

        Raises:
          InvalidRequestError: there is no such column.
          StorageError: the bytes could not be had.
        """
        listing = self.storage.list_metadata()
        if self.info.major_version == 2:
            columns = v2.read_column(self.storage, listing, name)
        else:
            columns = _read_episode_columns(self.storage, listing, tuple(dict.fromkeys(("episode_index", name))))
        if name not in columns:
            raise InvalidRequestError(f"{self.description}: the episode table has no column {name!r}")
        return columns[name][np.argsort(columns["episode_index"], kind="stable")]

    def gop_length(self) -> int | None:
        """Returns the pictures from key frame to key frame: the most common number in one file of each camera, the largest of all cameras.

        Reads one or two small ranges of one file per camera. Where a camera has no video file, `video.g` of info.json counts; `None`
        where nothing is known.

        Raises:
          DatasetFormatError: a file is not one that can be read.
          StorageError: the bytes could not be had.
        """
        lengths = []
        for key, spans in self.episodes.videos.items():
            try:
                is_one_episode = len(spans.files.episodes_in(0)) == 1
                counts = np.bincount(sample_table(self.storage, spans.files.paths[0], is_moov_last=is_one_episode).gop_lengths())
            except MissingFileError:
                lengths.append(self.features[key].gop_length)
            else:
                # Of equally common ones the longest: a short last GOP of an episode must not win in a file of two.
                lengths.append(int(len(counts) - 1 - np.argmax(counts[::-1])))
        return max((length for length in lengths if length is not None), default=None)


def open_repository(
    repository: str | os.PathLike[str],
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    storage_options: StorageOptions | None = None,
) -> Repository:
    """Opens a data set on the Hub, in a bucket or in a directory. No row and no video is read.

    Args:
      repository: `org/name` on the Hub, `org/name/folder` where the dataset lies in a folder of it, or a bucket
        (`hf://buckets/org/name/folder`) or directory with the same layout.
      revision: branch, tag or commit; by default the newest tag or branch `v3.x`, `v2.1` or `v2.0`, and `main` where there is none. Not for
        buckets and directories.
      endpoint: of the Hub; by default huggingface.co, or what `HF_ENDPOINT` says.
      token: a Hub token; by default the one that `huggingface_hub` finds; `False` sends none.
      cache_dir: of the Hub client, for the files of `meta/`; by default its usual one. Pieces of other files are kept in the folder
        `lerobot_grain` in it, by default in that of `HF_HOME`, or where `LEROBOT_GRAIN_CACHE` says.
      storage_options: connections, timeouts, merging of byte ranges, and what is kept on disk.

    Raises:
      InvalidRequestError: `repository` is neither a directory nor the name of a repository.
      DatasetFormatError: it is not a LeRobotDataset v2.0, v2.1 or v3.x, or its metadata is malformed.
      StorageError: missing, private or gated repository, wrong revision, or the Hub could not be reached.
    """
    opened = open_leniently(
        repository, revision=revision, endpoint=endpoint, token=token, cache_dir=cache_dir, storage_options=storage_options
    )
    for texts in (opened.tasks, opened.subtasks):
        if isinstance(texts, UnreadableTexts):
            raise DatasetFormatError(texts.problem)
    warn_of_notes(opened)
    return opened


def open_leniently(
    repository: str | os.PathLike[str],
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    storage_options: StorageOptions | None = None,
) -> Repository:
    """As `open_repository`, but a table of tasks or subtasks that cannot be read is an error for who asks for its texts, and else a note.

    The notes are not issued as warnings: `warn_of_notes` does that.
    """
    options = StorageOptions() if storage_options is None else storage_options
    storage = open_storage(repository, revision=revision, endpoint=endpoint, token=token, cache_dir=cache_dir, options=options)
    listing = storage.list_metadata()
    if INFO_PATH not in listing:
        raise DatasetFormatError(
            f"{storage.description}: there is no {INFO_PATH}; this is not a LeRobotDataset"
            + (f" (meta/ holds {', '.join(sorted(listing)[:8])})" if listing else "")
            + storage.elsewhere()
        )
    with storage.checked(INFO_PATH):
        info = parse_info(storage.read_metadata(INFO_PATH, max_bytes=_MAX_INFO_BYTES), where=f"{storage.description}, {INFO_PATH}")
    episodes = _read_episodes(storage, listing, info)
    is_v2 = info.major_version == 2
    tasks = _texts(
        lambda: v2.read_tasks(storage, listing, max_tasks=_MAX_TASKS) if is_v2 else _read_texts(storage, listing, TASKS_PATH, "task")
    )
    subtasks = _texts(lambda: _read_texts(storage, listing, SUBTASKS_PATH, "subtask")) if SUBTASKS_PATH in listing else None
    stats: list[Statistics | None] = []
    odd: list[str] = []
    if v2.EPISODES_STATS_PATH not in listing:
        # Small, and found in the cache when the Hub cannot be reached.
        try:
            found, odd_stats = _read_stats(storage, info, episodes)
        except DatasetFormatError as error:
            odd.append(f"{_note_of(error, storage, STATS_PATH)}; until then there are no statistics")
        else:
            stats.append(found)
            odd += [f"{STATS_PATH}: {note}" for note in odd_stats]
    notes = (
        *storage.notes,
        *(f"{INFO_PATH}: {note}" for note in (*info.notes, *_odd_totals(info, episodes))),
        *(f"meta/episodes: {note}" for note in episodes.notes),
        *(
            _note_of(texts.problem, storage, path)
            for texts, path in ((tasks, v2.TASKS_PATH if is_v2 else TASKS_PATH), (subtasks, SUBTASKS_PATH))
            if isinstance(texts, UnreadableTexts)
        ),
        *odd,
    )
    opened = Repository(
        storage=storage,
        commit=storage.commit or _hash_of_metadata(storage, listing),
        info=info,
        episodes=episodes,
        tasks=tasks,
        subtasks=subtasks,
        notes=notes,
        folder=storage.folder,
    )
    opened._stats.extend(stats)
    return opened


def warn_of_notes(opened: Repository) -> None:
    """Issues the notes about a dataset as warnings."""
    for note in opened.notes:
        warnings.warn(f"{opened.description}: {note}", LeRobotGrainWarning, stacklevel=3)


def sample_table(storage: Storage, path: str, *, is_moov_last: bool = False) -> SampleTable:
    """Reads the sample table of a video file: one or two small ranges, which are kept on disk.

    One, where `moov` is its last box and `is_moov_last` says so.

    Raises:
      DatasetFormatError: not an MP4 file that can be read.
      StorageError: the bytes could not be had.
    """
    with storage.checked(path):
        reader = read_sample_table(storage.size_bytes(path), where=f"{storage.description}, {path}", is_moov_last=is_moov_last)
        return _run(reader, lambda wanted: storage.read_ranges(path, [wanted], keep=True)[0])


def sample_table_in(contents: bytes, *, where: str) -> SampleTable:
    """Returns the sample table of a video file that is in memory.

    Raises:
      DatasetFormatError: not an MP4 file that can be read.
    """
    return _run(read_sample_table(len(contents), where=where), lambda wanted: contents[wanted.start : wanted.stop])


def _run(reader: SampleTableReader, read: Callable[[ByteRange], bytes]) -> SampleTable:
    wanted = next(reader)
    while True:
        try:
            wanted = reader.send(read(wanted))
        except StopIteration as stop:
            table: SampleTable = stop.value
            return table


def _read_episodes(storage: Storage, listing: Mapping[str, int], info: DatasetInfo) -> EpisodeTable:
    if info.major_version == 2:
        path, columns = v2.EPISODES_PATH, v2.read_episode_columns(storage, listing, info, max_episodes=_MAX_EPISODES)
    else:
        path, columns = "meta/episodes", _read_episode_columns(storage, listing, episode_columns(info))
    return episode_table(columns, info=info, where=f"{storage.description}, {path}")


def _read_episode_columns(storage: Storage, listing: Mapping[str, int], wanted: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Returns name -> array `(episodes,)`, in the order of the files, of the columns of `meta/episodes` that there are."""
    # Only names of the format count: a real data set holds a second copy of its table in another folder under meta/episodes.
    numbered = sorted((int(match[1]), int(match[2]), path) for path in listing if (match := _EPISODES_PATH.fullmatch(path)))
    if not numbered:
        raise DatasetFormatError(
            f"{storage.description}, meta/episodes: there is no episode table; expected meta/episodes/chunk-000/file-000.parquet"
        )
    pieces: list[dict[str, npt.NDArray[Any]]] = []
    left = _MAX_EPISODES
    for _, _, path in numbered:
        pieces.append(_read_table(storage, path, listing[path], wanted, max_rows=left))
        left -= max(map(len, pieces[-1].values()), default=0)
    names = [name for name in wanted if any(name in piece for piece in pieces)]
    for (_, _, path), piece in zip(numbered, pieces, strict=True):
        if missing := [name for name in names if name not in piece]:
            raise DatasetFormatError(
                f"{storage.description}, {path}: there is no column {missing[0]}, which other files of the episode table have"
            )
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


def _odd_totals(info: DatasetInfo, episodes: EpisodeTable) -> list[str]:
    totals = (("total_episodes", info.total_episodes, episodes.num_episodes), ("total_frames", info.total_frames, episodes.num_rows))
    return [
        f"{field} is {declared}, but the episode table has {found}, which is what is read"
        for field, declared, found in totals
        if declared not in (None, found)
    ]


def _read_table(
    storage: Storage, path: str, size_bytes: int, columns: tuple[str, ...] | None, *, max_rows: int
) -> dict[str, npt.NDArray[Any]]:
    with storage.checked(path):
        if size_bytes > _WHOLE_TABLE_BYTES:
            table = open_table(storage, path)
        else:
            table = open_table(InMemoryFile(storage.description, storage.read_metadata(path, max_bytes=_MAX_TABLE_BYTES)), path)
        if table.num_rows > max_rows:
            raise DatasetFormatError(f"{table.where}: it has {table.num_rows} rows; at most {max_rows} are read")
        return read_columns(table, columns)


def _texts(read: Callable[[], dict[int, str]]) -> Mapping[int, str]:
    try:
        return read()
    except DatasetFormatError as error:
        return UnreadableTexts(str(error))


def _read_texts(storage: Storage, listing: Mapping[str, int], path: str, kind: str) -> dict[int, str]:
    """Returns the texts of tasks or subtasks by their number."""
    if path not in listing:
        raise DatasetFormatError(f"{storage.description}: there is no {path}; expected the table of {kind} texts")
    columns = _read_table(storage, path, listing[path], None, max_rows=_MAX_TASKS)
    return texts_of_table(columns, kind, where=f"{storage.description}, {path}")


def _note_of(error: DatasetFormatError | str, storage: Storage, path: str) -> str:
    """Returns a message as a note has it: after the path, and without the name of the dataset."""
    return f"{path}: {str(error).removeprefix(storage.description).lstrip(',: ').removeprefix(path).lstrip(': ')}"


def _read_stats(storage: Storage, info: DatasetInfo, episodes: EpisodeTable) -> tuple[Statistics | None, tuple[str, ...]]:
    """Returns the statistics, and notes about them."""
    listing = storage.list_metadata()
    if info.major_version == 2 and v2.EPISODES_STATS_PATH in listing:
        return v2.read_episodes_stats(storage, listing, info, episodes.numbers), ()
    if STATS_PATH not in listing:
        return None, ()
    with storage.checked(STATS_PATH):
        return parse_stats(storage.read_metadata(STATS_PATH, max_bytes=_MAX_STATS_BYTES), where=f"{storage.description}, {STATS_PATH}")


def _hash_of_metadata(storage: Storage, listing: Mapping[str, int]) -> str:
    digest = hashlib.sha256()
    for path in sorted(listing):
        contents = hashlib.sha256()
        for piece in pieces_of(storage, path, listing[path]):
            contents.update(piece)
        digest.update(f"{path} {contents.hexdigest()}\n".encode())
    return digest.hexdigest()[:40]

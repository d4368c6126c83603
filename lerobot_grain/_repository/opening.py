"""Opens one pinned revision of a dataset: what it holds, and where. Reads `meta/` and nothing else.

Rules:
* The revision is resolved to a commit once; after that nothing can change under a stream. A bucket
  and a directory have no commits; a hash of the list of files, or of `meta/`, stands for it.
* Files that disagree are an error where it could change what is read. If it could not, a note says
  so, and a warning once.
* Statistics are not needed to read rows. A defect of their file is a note, and raises when they are
  asked for. If its bytes could not be read, opening raises: that says nothing about the
  dataset, and what the Hub has is to be in the cache afterwards.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping

from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainWarning
from lerobot_grain._format.episodes import EpisodeTable
from lerobot_grain._format.info import DatasetInfo, parse_info
from lerobot_grain._format.layout import (
    EPISODES_FOLDER,
    EPISODES_STATS_PATH_V2,
    INFO_PATH,
    STATS_PATH,
    SUBTASKS_PATH,
    TASKS_PATH,
    TASKS_PATH_V2,
)
from lerobot_grain._format.texts import UnreadableTexts
from lerobot_grain._repository import metadata_v2 as v2
from lerobot_grain._repository.json_lines import pieces_of
from lerobot_grain._repository.metadata import MAX_TASKS, read_episodes, read_stats, read_texts
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.stats_file import KnownStatistics
from lerobot_grain._storage.base import Storage
from lerobot_grain._storage.opening import open_storage
from lerobot_grain._storage.options import StorageOptions

# A metadata file is refused above these sizes before it is read; the largest public datasets have
# a hundredth of them. JSON takes up to 40 times its size in memory.
_MAX_INFO_BYTES = 4 << 20


def open_repository(
    repository: str | os.PathLike[str] | Storage,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    storage_options: StorageOptions | None = None,
) -> Repository:
    """Opens a dataset on the Hub, in an object store or in a directory. No row and no video is
    read.

    Args:
      repository: `org/name` on the Hub, `org/name/folder` where the dataset lies in a folder of it,
        or a bucket (`hf://buckets/org/name/folder`, `s3://bucket/folder`, `gs://bucket/folder`) or
        directory with the same layout; or a `Storage` of your own, whose own options count.
      revision: branch, tag or commit; by default the newest tag or branch `v3.x`, `v2.1` or `v2.0`,
        and `main` where there is none. Not for buckets and directories.
      endpoint: of the Hub; by default huggingface.co, or what `HF_ENDPOINT` says. For `s3://` and
        `gs://` that of the store, by default what its usual settings say.
      token: a Hub token; by default the one that `huggingface_hub` finds; `False` sends none. For
        `s3://` and `gs://` `None` takes the usual credentials, if there are any, `False` none, and
        `True` raises where there are none; for `gs://` also an access token.
      cache_dir: of the Hub client, for the files of `meta/`; by default its usual one. Pieces of
        other files are kept in the folder `lerobot_grain` in it, by default in that of `HF_HOME`,
        or where `LEROBOT_GRAIN_CACHE` says.
      storage_options: connections, timeouts, merging of byte ranges, and what is kept on disk.

    Raises:
      InvalidRequestError: `repository` is neither a directory nor the name of a repository.
      DatasetFormatError: it is not a LeRobotDataset v2.0, v2.1 or v3.x, or its metadata is
        malformed.
      StorageError: missing, private or gated repository, wrong revision, or the Hub could not be
        reached.
    """
    opened = open_leniently(
        repository,
        revision=revision,
        endpoint=endpoint,
        token=token,
        cache_dir=cache_dir,
        storage_options=storage_options,
    )
    for texts in (opened.tasks, opened.subtasks):
        if isinstance(texts, UnreadableTexts):
            raise DatasetFormatError(texts.problem)
    warn_of_notes(opened)
    return opened


def open_leniently(
    repository: str | os.PathLike[str] | Storage,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    storage_options: StorageOptions | None = None,
) -> Repository:
    """As `open_repository`, but a table of tasks or subtasks that cannot be read is an error where
    its texts are asked for, and else a note.

    The notes are not issued as warnings: `warn_of_notes` does that.
    """
    options = StorageOptions() if storage_options is None else storage_options
    storage = open_storage(
        repository,
        revision=revision,
        endpoint=endpoint,
        token=token,
        cache_dir=cache_dir,
        options=options,
    )
    listing = storage.list_metadata()
    info = _read_info(storage, listing)
    episodes = read_episodes(storage, listing, info)
    tasks = _read_tasks(storage, listing, info)
    subtasks = _read_subtasks(storage, listing)
    small_stats, odd_stats = _read_small_stats(storage, listing, info, episodes)
    notes = (
        *storage.notes,
        *(f"{INFO_PATH}: {note}" for note in (*info.notes, *_odd_totals(info, episodes))),
        *(f"{EPISODES_FOLDER}: {note}" for note in episodes.notes),
        *_notes_of_texts(storage, info, tasks, subtasks),
        *odd_stats,
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
    storage.keep_opening()
    if small_stats.are_read:
        opened.known_stats.keep(small_stats.stats)
    return opened


def warn_of_notes(opened: Repository) -> None:
    """Issues the notes about a dataset as warnings."""
    for note in opened.notes:
        warnings.warn(f"{opened.description}: {note}", LeRobotGrainWarning, stacklevel=3)


def _read_info(storage: Storage, listing: Mapping[str, int]) -> DatasetInfo:
    if INFO_PATH not in listing:
        raise DatasetFormatError(
            f"{storage.description}: there is no {INFO_PATH}; this is not a LeRobotDataset"
            + (f" (meta/ holds {', '.join(sorted(listing)[:8])})" if listing else "")
            + storage.elsewhere()
        )
    with storage.checked(INFO_PATH):
        return parse_info(
            storage.read_metadata(INFO_PATH, max_bytes=_MAX_INFO_BYTES),
            where=f"{storage.description}, {INFO_PATH}",
        )


def _read_tasks(
    storage: Storage, listing: Mapping[str, int], info: DatasetInfo
) -> Mapping[int, str]:
    return _texts(
        lambda: (
            v2.read_tasks(storage, listing, max_tasks=MAX_TASKS)
            if info.major_version == 2
            else read_texts(storage, listing, TASKS_PATH, "task")
        )
    )


def _read_subtasks(storage: Storage, listing: Mapping[str, int]) -> Mapping[int, str] | None:
    if SUBTASKS_PATH not in listing:
        return None
    return _texts(lambda: read_texts(storage, listing, SUBTASKS_PATH, "subtask"))


def _texts(read: Callable[[], dict[int, str]]) -> Mapping[int, str]:
    try:
        return read()
    except DatasetFormatError as error:
        return UnreadableTexts(str(error))


def _read_small_stats(
    storage: Storage, listing: Mapping[str, int], info: DatasetInfo, episodes: EpisodeTable
) -> tuple[KnownStatistics, list[str]]:
    """Reads statistics where they are small, and returns notes about them.

    Those of every episode (v2.1) are not: they are read when they are asked for.
    """
    known = KnownStatistics()
    if EPISODES_STATS_PATH_V2 in listing:
        return known, []
    # Found in the cache when the Hub cannot be reached.
    try:
        stats, odd = read_stats(storage, info, episodes)
    except DatasetFormatError as error:
        note = _note_of(error, storage, STATS_PATH)
        return known, [f"{note}; until then there are no statistics"]
    known.keep(stats)
    return known, [f"{STATS_PATH}: {note}" for note in odd]


def _notes_of_texts(
    storage: Storage,
    info: DatasetInfo,
    tasks: Mapping[int, str],
    subtasks: Mapping[int, str] | None,
) -> list[str]:
    """Returns a note about each table of texts that cannot be read."""
    tasks_path = TASKS_PATH_V2 if info.major_version == 2 else TASKS_PATH
    return [
        _note_of(texts.problem, storage, path)
        for texts, path in ((tasks, tasks_path), (subtasks, SUBTASKS_PATH))
        if isinstance(texts, UnreadableTexts)
    ]


def _odd_totals(info: DatasetInfo, episodes: EpisodeTable) -> list[str]:
    totals = (
        ("total_episodes", info.total_episodes, episodes.num_episodes),
        ("total_frames", info.total_frames, episodes.num_rows),
    )
    return [
        f"{field} is {declared}, but the episode table has {found}, which is what is read"
        for field, declared, found in totals
        if declared not in (None, found)
    ]


def _note_of(error: DatasetFormatError | str, storage: Storage, path: str) -> str:
    """Returns a message as a note has it: after the path, and without the name of the dataset."""
    text = str(error).removeprefix(storage.description).lstrip(",: ")
    return f"{path}: {text.removeprefix(path).lstrip(': ')}"


def _hash_of_metadata(storage: Storage, listing: Mapping[str, int]) -> str:
    digest = hashlib.sha256()
    for path in sorted(listing):
        contents = hashlib.sha256()
        for piece in pieces_of(storage, path, listing[path]):
            contents.update(piece)
        digest.update(f"{path} {contents.hexdigest()}\n".encode())
    return digest.hexdigest()[:40]

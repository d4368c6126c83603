"""The paths of the files of a dataset, and the versions of the format that are read: the one place
that says so. Pure.

    meta/   info.json, the episode table, the texts of tasks and subtasks, statistics
    data/   rows, in parquet files
    videos/ video, in MP4 files

The files of `data/` and `videos/` are where the templates of info.json say: `TEMPLATES` are
lerobot's. In v2.0 and v2.1 every episode is a file of `data/` and of each camera, and the tables of
`meta/` are lines of JSON.

To read another version: docs/architecture/extending.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

METADATA = "meta"
# lerobot has always written these folders, although info.json could name others.
FOLDERS = (METADATA, "data", "videos")

# In all versions; in v2.1 without the statistics.
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"

# In v3.x. Only files with names of this form are parts of the episode table.
EPISODES_FOLDER = "meta/episodes"
EPISODES_PATH = re.compile(r"meta/episodes/chunk-([0-9]{1,9})/file-([0-9]{1,9})\.parquet")
TASKS_PATH = "meta/tasks.parquet"
SUBTASKS_PATH = "meta/subtasks.parquet"

# In v2.0 and v2.1; the statistics in v2.1 only.
EPISODES_PATH_V2 = "meta/episodes.jsonl"
TASKS_PATH_V2 = "meta/tasks.jsonl"
EPISODES_STATS_PATH_V2 = "meta/episodes_stats.jsonl"

# lerobot's templates by the major version of the format, for datasets that name none.
TEMPLATES = {
    2: {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
    },
    3: {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}
# The fields of templates that are numbers.
TEMPLATE_NUMBERS = {2: ("episode_chunk", "episode_index"), 3: ("chunk_index", "file_index")}

# The versions that are read, for messages; `is_read` and the tags say the same.
VERSIONS = ("v2.0", "v2.1", "v3.x")
_VERSION_TAG = re.compile(r"v(2\.[01]|3\.[0-9]{1,9}(\.[0-9]{1,9})?)")
# The revision that is read where there is no tag of a version.
_NO_VERSION = "main"


def is_read(major: int, minor: int) -> bool:
    """Returns whether a version of the format is read."""
    return major == 3 or (major == 2 and minor in (0, 1))


def versions_read(conjunction: str) -> str:
    """Returns the versions that are read for a message: `v2.0, v2.1 and v3.x`."""
    return f"{', '.join(VERSIONS[:-1])} {conjunction} {VERSIONS[-1]}"


def newest_version_tag(names: Iterable[str]) -> str:
    """Returns the newest of `v3.x`, `v2.1` and `v2.0` by number, or "main" when there is none of
    them.

    As lerobot does: a tag stands for a version of the format, and moves when a dataset is uploaded
    again. Converters have made branches of these names instead, so `names` are those of tags and
    branches. `main` may be anything.
    """
    found = [name for name in names if _VERSION_TAG.fullmatch(name)]
    return max(
        found, key=lambda tag: [int(number) for number in tag[1:].split(".")], default=_NO_VERSION
    )


def default_revisions() -> str:
    """Returns which revisions are looked for, in this order, for a message."""
    return f"{', '.join(reversed(VERSIONS))} or {_NO_VERSION}"

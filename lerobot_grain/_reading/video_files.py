"""Opens the video files of a camera: the index of each, and a small file of one episode whole.

The frames of an episode that has more of them than rows are found by the timestamps of the rows,
which its data file has. This is the only place where a video file needs one.
"""

from __future__ import annotations

import functools

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._reading.rows.timestamps import episode_timestamps
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.sample_tables import sample_table, sample_table_in
from lerobot_grain._video.video_file import VideoFile

# Coded bytes of a camera that are fetched in one request, at most.
MAX_FETCH_BYTES = 4 << 20
# A file of one episode is fetched whole up to this size, however large the dataset is: a request
# costs as much as so many bytes.
_WHOLE_FILE_BYTES = 64 << 10


def open_video(
    repository: Repository, camera: str, number: int, *, keep_bytes: int = 0
) -> VideoFile:
    """Reads the index of a video file of a camera, and a small file of one episode whole.

    Args:
      repository: the dataset.
      camera: its key.
      number: of the file, among those of the camera.
      keep_bytes: of all files of the camera: if they are not more, judged by this one, files of one
        episode are read whole.

    Raises:
      DatasetFormatError: not an MP4 file that can be read.
      StorageError: the bytes could not be read.
    """
    storage = repository.storage
    episodes = repository.episodes
    files = episodes.videos[camera].files
    path = files.paths[number]
    held = files.episodes_in(number)
    where = f"{storage.description}, {path}"
    contents = None
    with storage.checked(path):
        if is_one_episode := len(held) == 1:
            size = storage.size_bytes(path)
            is_kept = (
                size <= MAX_FETCH_BYTES
                and size * episodes.num_rows <= keep_bytes * episodes.lengths.item(held.item())
            )
            if is_kept or size <= _WHOLE_FILE_BYTES:
                contents = storage.read_ranges(
                    path, [ByteRange(0, size)], keep=size <= _WHOLE_FILE_BYTES
                )[0]
        table = (
            sample_table(storage, path, is_moov_last=is_one_episode)
            if contents is None
            else sample_table_in(contents, where=where)
        )
        if repository.features[camera].is_depth and table.format.rotation:
            raise DatasetFormatError(
                f"{where}: its matrix turns the frames by {table.format.rotation} degrees; depth "
                "video is not read turned, since lerobot gives it as it is coded"
            )
        return VideoFile.linked(
            table,
            path=path,
            camera=camera,
            number=number,
            episodes=episodes,
            fps=repository.fps,
            read_timestamps=functools.partial(episode_timestamps, repository),
            contents=contents,
            where=where,
        )

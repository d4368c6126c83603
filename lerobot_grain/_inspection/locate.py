"""Says where one row is: the data file and row group, and for each camera the frame, GOP and bytes.

For people who look at a frame that seems wrong. Every figure comes from the tables that the reader
uses (the episode table, `VideoFile`, the order of a row group), so this module and a stream cannot
disagree. It reads indexes, and of the row group the columns that order its rows. It decodes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_opened
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._reading.rows.data_files import load_group, open_data_file
from lerobot_grain._reading.video_files import open_video
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.sample_tables import sample_table
from lerobot_grain._repository.selection import FeatureSelection, select_features


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLocation:
    """The place of the frame of one camera that belongs to a row.

    Attributes:
      camera: its key.
      path: the video file, from the top of the dataset; for embedded images the data file.
      frame: number of the frame in the video file, from 0, in the order in which a player shows
        them; `None` for embedded images, as all that follows.
      time_seconds: when the frame is presented, from the start of the file.
      gop: number of the GOP in the file, from 0, at whose key frame decoding starts.
      samples: numbers of the samples (coded pictures) that are decoded for the frame, in the order
        in which the file stores them, from 0.
      byte_range: the first byte of the GOP in the file, and the first byte after it. This is the
        range that is fetched for any frame of the GOP.
    """

    camera: str
    path: str
    frame: int | None = None
    time_seconds: float | None = None
    gop: int | None = None
    samples: tuple[int, ...] = ()
    byte_range: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.byte_range is None:
            return f"{self.camera}: an image embedded in {self.path}"
        start, stop = self.byte_range
        return (
            f"{self.camera}: frame {self.frame} of {self.path}, at {self.time_seconds:.6f} s\n  "
            f"GOP {self.gop}: bytes [{start}, {stop}), {stop - start} bytes\n  decoded for it: "
            f"{len(self.samples)} coded picture{'s' * (len(self.samples) > 1)}, samples "
            f"{runs(self.samples)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLocation:
    """The place of one row. `print` shows it on several lines.

    Attributes:
      dataset: name and commit.
      row: of the dataset.
      episode: number of its episode, as the dataset counts them.
      episode_position: position of the episode in the episode table, from 0. It differs from
        `episode` if the numbers of the episodes have gaps.
      frame: frame in the episode, from 0.
      episode_length: frames of the episode.
      path: the data file, from the top of the dataset.
      row_group: its number in the file, from 0.
      row_in_group: where the row is stored in the row group, from 0.
      cameras: key of the camera -> where its frame is.
    """

    dataset: str
    row: int
    episode: int
    episode_position: int
    frame: int
    episode_length: int
    path: str
    row_group: int
    row_in_group: int
    cameras: Mapping[str, FrameLocation]

    def __str__(self) -> str:
        lines = [
            f"{self.dataset}, row {self.row}",
            f"episode {self.episode} (position {self.episode_position} in the episode table): "
            f"frame {self.frame} of {self.episode_length}",
            f"row {self.row_in_group} of row group {self.row_group} of {self.path}",
            *map(str, self.cameras.values()),
        ]
        return "\n".join(lines)


def locate(repository: Repository, row: int, camera: str | None = None) -> RowLocation:
    """Returns where one row is stored, and the frames that belong to it.

        print(locate(repository, 4711, "observation.images.top"))

    It reads the index of each file that is involved, and from the data file the columns that order
    the rows of the row group. No frame is decoded.

    Args:
      repository: the opened dataset.
      row: of the dataset, 0 <= row < `repository.episodes.num_rows`.
      camera: key of the only camera to look at; `None`: all cameras.

    Raises:
      InvalidRequestError: there is no such row or no such camera.
      DatasetFormatError: a file cannot be read, or it is not known which frame belongs to the row,
        as when a stream reads it.
      StorageError: the bytes could not be read.
    """
    check_opened(repository, of="locate")
    if isinstance(row, bool) or not isinstance(row, int | np.integer):
        raise InvalidRequestError(f"locate(row={row!r}): expected an int")
    cameras = repository.cameras if camera is None else (_existing(repository, camera),)
    return locate_frames(repository, int(row), cameras)


def locate_frames(repository: Repository, row: int, cameras: Sequence[str]) -> RowLocation:
    """Returns the same for some of the dataset's cameras, or none; raises as `locate`."""
    episodes = repository.episodes
    position, frame = episodes.place_of(row)
    file = open_data_file(repository, episodes.data.file_of_episode.item(position))
    row_in_file = episodes.data_offsets.item(position) + frame
    group = file.table.group_of_row(row_in_file)
    # This learns the order of the rows of the group, and checks that they are those of the episode
    # table.
    load_group(repository, file, group, FeatureSelection((), (), ()))
    order = repository.row_orders[file.number, group]
    row_in_group = row_in_file - file.table.group_starts[group]
    return RowLocation(
        dataset=repository.description,
        row=row,
        episode=episodes.number_of(position),
        episode_position=position,
        frame=frame,
        episode_length=episodes.lengths.item(position),
        path=file.table.path,
        row_group=group,
        row_in_group=row_in_group if order.places is None else order.places.item(row_in_group),
        cameras={
            key: _frame_location(repository, key, position, frame, data_path=file.table.path)
            for key in cameras
        },
    )


def _existing(repository: Repository, camera: str) -> str:
    if camera not in repository.cameras and camera not in repository.info.unreadable:
        known = ", ".join(repository.cameras) or "no cameras"
        raise InvalidRequestError(
            f"{repository.description}: there is no camera {camera!r}; there are {known}"
        )
    return camera


def _frame_location(
    repository: Repository, camera: str, position: int, frame: int, *, data_path: str
) -> FrameLocation:
    """Returns where a camera's frame of an episode is; `position` is that of the episode in the
    table.
    """
    if not select_features(repository, [camera]).videos:
        return FrameLocation(camera=camera, path=data_path)
    file = open_video(
        repository, camera, repository.episodes.videos[camera].files.file_of_episode.item(position)
    )
    file.check(position)
    in_file = file.first_frame(position) + frame
    table = file.table
    gop = file.gops_of(np.array([in_file])).item(0)
    sample = table.presentation.item(in_file)
    shown_frame = in_file
    if file.num_hidden:
        # The reader does not count frames that belong to no row; a player does.
        presentation = sample_table(repository.storage, file.path).presentation
        shown_frame = np.flatnonzero(presentation == sample).item(0)
    byte_range = file.byte_range(gop)
    return FrameLocation(
        camera=camera,
        path=file.path,
        frame=shown_frame,
        time_seconds=table.pts.item(sample) / table.timescale,
        gop=gop,
        samples=tuple(file.unit(gop, [in_file]).samples.tolist()),
        byte_range=(byte_range.start, byte_range.stop),
    )


def runs(samples: tuple[int, ...]) -> str:
    """Returns ascending numbers as text, such as `12 to 19, 24`."""
    numbers: npt.NDArray[np.int64] = np.array(samples)
    found = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found)

"""Streams LeRobotDataset v3.0 robot data sets from the Hugging Face Hub as a Google Grain IterDataset: shuffled, windowed, resumable."""

from lerobot_grain._check import CheckReport, check
from lerobot_grain._check_files import Finding
from lerobot_grain._dataset import LeRobotIterDataset, ReadWindowsIterDataset, read_statistics
from lerobot_grain._device import DeviceIterDataset
from lerobot_grain._errors import (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    LeRobotGrainWarning,
    MissingFileError,
    StateMismatchError,
    StorageError,
)
from lerobot_grain._frame_order import FrameOrderIterDataset
from lerobot_grain._order import Shuffle
from lerobot_grain._readahead import ReadOptions
from lerobot_grain._repository import Repository, open_repository
from lerobot_grain._requests import DeltaTimestamps
from lerobot_grain._selection import Episode, train_eval_split
from lerobot_grain._statistics import ReadStatistics
from lerobot_grain._storage_options import StorageOptions
from lerobot_grain._windows import WindowRequest
from lerobot_grain._workers import WorkerPrefetchIterDataset, worker_init

__version__ = "0.1.0"

__all__ = [
    "CheckReport",
    "DatasetFormatError",
    "DeltaTimestamps",
    "DeviceIterDataset",
    "Episode",
    "Finding",
    "FrameOrderIterDataset",
    "InvalidRequestError",
    "LeRobotGrainError",
    "LeRobotGrainWarning",
    "LeRobotIterDataset",
    "MissingFileError",
    "ReadOptions",
    "ReadStatistics",
    "ReadWindowsIterDataset",
    "Repository",
    "Shuffle",
    "StateMismatchError",
    "StorageError",
    "StorageOptions",
    "WindowRequest",
    "WorkerPrefetchIterDataset",
    "check",
    "open_repository",
    "read_statistics",
    "train_eval_split",
    "worker_init",
]

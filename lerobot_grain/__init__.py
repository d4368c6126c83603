"""Streams LeRobotDataset v3.x, v2.1 and v2.0 data sets from the Hugging Face Hub as a Grain IterDataset: shuffled, windowed, resumable."""

from lerobot_grain._dataset import LeRobotIterDataset, ReadWindowsIterDataset, read_statistics
from lerobot_grain._device import DeviceIterDataset
from lerobot_grain._errors import (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    MissingFileError,
    StateMismatchError,
    StorageError,
)
from lerobot_grain._frame_order import FrameOrderIterDataset
from lerobot_grain._order import Shuffle
from lerobot_grain._readahead import ReadOptions
from lerobot_grain._repository import Repository, open_repository
from lerobot_grain._requests import DeltaTimestamps
from lerobot_grain._statistics import ReadStatistics
from lerobot_grain._storage import StorageOptions
from lerobot_grain._windows import WindowRequest
from lerobot_grain._workers import WorkerPrefetchIterDataset, worker_init

__version__ = "0.1.0"

__all__ = [
    "DatasetFormatError",
    "DeltaTimestamps",
    "DeviceIterDataset",
    "FrameOrderIterDataset",
    "InvalidRequestError",
    "LeRobotGrainError",
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
    "open_repository",
    "read_statistics",
    "worker_init",
]

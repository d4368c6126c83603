"""Streams LeRobotDataset v3.x, v2.1 and v2.0 data sets from the Hugging Face Hub as a Grain IterDataset: shuffled, windowed, resumable."""

from lerobot_grain._augment import augment_images, example_keys
from lerobot_grain._check import CheckReport, check
from lerobot_grain._check_files import Finding
from lerobot_grain._compute_stats import compute_stats, stats_of
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
from lerobot_grain._normalize import Normalizer, normalizer
from lerobot_grain._openpi import OpenPiDataLoader, OpenPiFormat
from lerobot_grain._order import Shuffle
from lerobot_grain._plot import plot_example
from lerobot_grain._readahead import ReadOptions
from lerobot_grain._repository import Repository, open_repository
from lerobot_grain._requests import DeltaTimestamps
from lerobot_grain._selection import Episode, train_eval_split
from lerobot_grain._shaping import DeltaActions, PadDimensions, ResizeWithPad, resize_with_pad
from lerobot_grain._statistics import ReadStatistics
from lerobot_grain._storage_options import StorageOptions
from lerobot_grain._windows import WindowRequest
from lerobot_grain._workers import WorkerPrefetchIterDataset, worker_init

__version__ = "0.1.0"

__all__ = [
    "CheckReport",
    "DatasetFormatError",
    "DeltaActions",
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
    "Normalizer",
    "OpenPiDataLoader",
    "OpenPiFormat",
    "PadDimensions",
    "ReadOptions",
    "ReadStatistics",
    "ReadWindowsIterDataset",
    "Repository",
    "ResizeWithPad",
    "Shuffle",
    "StateMismatchError",
    "StorageError",
    "StorageOptions",
    "WindowRequest",
    "WorkerPrefetchIterDataset",
    "augment_images",
    "check",
    "compute_stats",
    "example_keys",
    "normalizer",
    "open_repository",
    "plot_example",
    "read_statistics",
    "resize_with_pad",
    "stats_of",
    "train_eval_split",
    "worker_init",
]

"""Streams LeRobotDataset v3.x, v2.1 and v2.0 datasets from the Hugging Face Hub as a Grain
IterDataset: shuffled, windowed, resumable.
"""

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    LeRobotGrainWarning,
    MissingFileError,
    StateMismatchError,
    StorageError,
)
from lerobot_grain._datasets.delta_timestamps import DeltaTimestamps
from lerobot_grain._datasets.episodes.episode_dataset import EpisodeIterDataset
from lerobot_grain._datasets.feed.device import DeviceIterDataset
from lerobot_grain._datasets.feed.elastic import ElasticIterDataset
from lerobot_grain._datasets.feed.remote.flight_readers import FlightReaders
from lerobot_grain._datasets.feed.remote.ray_readers import RayReaders
from lerobot_grain._datasets.feed.remote.reader_server import ReaderServer
from lerobot_grain._datasets.feed.remote.remote_readers import RemoteReaderIterDataset
from lerobot_grain._datasets.feed.workers import WorkerPrefetchIterDataset, worker_init
from lerobot_grain._datasets.frame_order import FrameOrderIterDataset
from lerobot_grain._datasets.lerobot_dataset import LeRobotIterDataset
from lerobot_grain._datasets.mixtures.mixture_dataset import MixtureIterDataset
from lerobot_grain._datasets.mixtures.open_repositories import open_repositories
from lerobot_grain._datasets.pipelines import read_statistics
from lerobot_grain._datasets.read_rows import read_rows
from lerobot_grain._datasets.read_windows import ReadWindowsIterDataset
from lerobot_grain._inspection.check import CheckReport, check
from lerobot_grain._inspection.file_checks import Finding
from lerobot_grain._inspection.fill_cache import FilledCache, fill_cache
from lerobot_grain._inspection.locate import FrameLocation, RowLocation, locate
from lerobot_grain._inspection.plot import plot_example
from lerobot_grain._order.draws import GeometricDraw, LastFrame, UniformDraw
from lerobot_grain._order.named_windows import Window
from lerobot_grain._order.shuffle import Shuffle
from lerobot_grain._order.windows import WindowRequest
from lerobot_grain._reading.options import ReadOptions
from lerobot_grain._reading.read_statistics import ReadStatistics
from lerobot_grain._repository.opening import open_repository
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.row_values import ValidRows, Weights
from lerobot_grain._repository.selection import Episode, train_eval_split
from lerobot_grain._storage.base import Storage
from lerobot_grain._storage.options import StorageOptions, StorageStatistics
from lerobot_grain._training.augmentation import augment_images, example_keys
from lerobot_grain._training.normalization import Normalizer, normalizer
from lerobot_grain._training.openpi import OpenPiDataLoader, OpenPiFormat
from lerobot_grain._training.returns_to_go import ReturnsToGo
from lerobot_grain._training.shaping import (
    DeltaActions,
    PadDimensions,
    ResizeWithPad,
    resize_with_pad,
)
from lerobot_grain._training.statistics import compute_stats, stats_of

__version__ = "0.2.0"

__all__ = [
    "ByteRange",
    "CheckReport",
    "DatasetFormatError",
    "DeltaActions",
    "DeltaTimestamps",
    "DeviceIterDataset",
    "ElasticIterDataset",
    "Episode",
    "EpisodeIterDataset",
    "FilledCache",
    "Finding",
    "FlightReaders",
    "FrameLocation",
    "FrameOrderIterDataset",
    "GeometricDraw",
    "InvalidRequestError",
    "LastFrame",
    "LeRobotGrainError",
    "LeRobotGrainWarning",
    "LeRobotIterDataset",
    "MissingFileError",
    "MixtureIterDataset",
    "Normalizer",
    "OpenPiDataLoader",
    "OpenPiFormat",
    "PadDimensions",
    "RayReaders",
    "ReadOptions",
    "ReadStatistics",
    "ReadWindowsIterDataset",
    "ReaderServer",
    "RemoteReaderIterDataset",
    "Repository",
    "ResizeWithPad",
    "ReturnsToGo",
    "RowLocation",
    "Shuffle",
    "StateMismatchError",
    "Storage",
    "StorageError",
    "StorageOptions",
    "StorageStatistics",
    "UniformDraw",
    "ValidRows",
    "Weights",
    "Window",
    "WindowRequest",
    "WorkerPrefetchIterDataset",
    "augment_images",
    "check",
    "compute_stats",
    "example_keys",
    "fill_cache",
    "locate",
    "normalizer",
    "open_repositories",
    "open_repository",
    "plot_example",
    "read_rows",
    "read_statistics",
    "resize_with_pad",
    "stats_of",
    "train_eval_split",
    "worker_init",
]

# Tracebacks, and pickles that go to other processes, name an exception by the path that users
# import it from.
for _exception in (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    LeRobotGrainWarning,
    MissingFileError,
    StateMismatchError,
    StorageError,
):
    _exception.__module__ = "lerobot_grain"
del _exception

"""For tests and demos of your own pipelines: writes datasets, serves them from a Hub on this
machine, reads the barcodes of frames.

    with LoopbackHub() as hub:
        write_dataset(directory, episode_lengths=[50, 40])
        hub.add_repository("org/name", directory, tags=["v3.0"])
        dataset = LeRobotIterDataset("org/name", endpoint=hub.endpoint)

Writing video needs PyAV: `pip install "lerobot_grain[testing]"`.
"""

from lerobot_grain.testing._hub.loopback import (
    Fault,
    HubRepository,
    LoopbackHub,
    RequestRecord,
    mixed_faults,
)
from lerobot_grain.testing._stores.conformance import check_storage
from lerobot_grain.testing._writer.barcode import draw_barcodes, read_barcodes
from lerobot_grain.testing._writer.dataset import write_dataset
from lerobot_grain.testing._writer.large_metadata import WrittenMetadata, write_synthetic_metadata
from lerobot_grain.testing._writer.rows import EXTRA_FEATURES, Feature, WrittenDataset
from lerobot_grain.testing._writer.video import Camera

__all__ = [
    "EXTRA_FEATURES",
    "Camera",
    "Fault",
    "Feature",
    "HubRepository",
    "LoopbackHub",
    "RequestRecord",
    "WrittenDataset",
    "WrittenMetadata",
    "check_storage",
    "draw_barcodes",
    "mixed_faults",
    "read_barcodes",
    "write_dataset",
    "write_synthetic_metadata",
]

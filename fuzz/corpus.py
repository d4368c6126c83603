"""The files that the fuzzer damages: small, of every kind that the readers know, made when they are
needed.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_grain.testing import EXTRA_FEATURES, Camera, write_dataset

FPS = 10
EPISODE_LENGTHS = (5, 3, 7)
CAMERAS = (
    Camera(key="av1", height=64, width=96, gop=4),
    Camera(key="h264", height=64, width=96, codec="h264", gop=4, b_frames=2),
    Camera(key="hevc", height=64, width=96, codec="hevc", gop=4, b_frames=2, open_gop=True),
    Camera(key="png", height=32, width=80, kind="image"),
)

Seeds = Mapping[str, tuple[bytes, ...]]


def make_seeds() -> Seeds:
    """Returns for every target (`targets.TARGETS`) the inputs that mutations begin with."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        write_dataset(
            root,
            episode_lengths=EPISODE_LENGTHS,
            fps=FPS,
            cameras=CAMERAS,
            features=EXTRA_FEATURES,
            tasks=("pick", "place"),
            episodes_per_video_file={"h264": 2},
            statistics=False,
        )
        videos = [path.read_bytes() for path in sorted(root.glob("videos/**/*.mp4"))]
        tables = [path.read_bytes() for path in sorted(root.glob("**/*.parquet"))]
        info = (root / "meta/info.json").read_bytes()
    return {
        "mp4": tuple(len(video).to_bytes(8, "big") + video for video in videos),
        "info": (info,),
        "episodes": (_episode_columns(tables),),
        # Uncompressed, a changed byte is a changed value; compressed, most are only a page that
        # does not unpack.
        "parquet": tuple(
            _rewritten(table, compression) for table in tables for compression in ("none", "snappy")
        ),
    }


def _rewritten(table: bytes, compression: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        pq.read_table(io.BytesIO(table)), sink, compression=compression, row_group_size=6
    )
    return sink.getvalue()


def _episode_columns(tables: list[bytes]) -> bytes:
    """Returns the columns of the episode table as the JSON that the target `episodes` takes: name
    -> {"dtype", "values"}.
    """
    found: list[pa.Table] = [
        table
        for data in tables
        if "length" in (table := pq.read_table(io.BytesIO(data))).column_names
    ]
    columns: dict[str, Any] = {}
    for field in found[0].schema:
        if field.name in ("episode_index", "length") or field.name.startswith(
            ("dataset_", "data/", "videos/")
        ):
            columns[field.name] = {"dtype": None, "values": found[0][field.name].to_pylist()}
    return json.dumps(columns).encode()

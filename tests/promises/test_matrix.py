"""Datasets of every kind against each other: version x codec x GOP x B pictures x place of `moov`
x files x row groups x features.

Each pair of values of two of these stands together in at least one dataset. Every one is streamed,
shuffled and with windows, from its directory and from the loopback Hub: each frame must carry its
own barcode, every other value must be the written one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import (
    EXTRA_FEATURES,
    Camera,
    LoopbackHub,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)
from tests.support.pairwise import choose, pairs_of

KEY = "observation.images.camera"
# The first ones hold all pairs, and always run.
NUM_DATASETS, NUM_ALWAYS = 66, 39
LENGTHS = [5, 1, 8, 4]

PICTURES: Mapping[str, Mapping[str, Any]] = {
    "av1": {"codec": "av1"},
    "h264": {"codec": "h264"},
    "hevc": {"codec": "hevc"},
    "hevc-open": {"codec": "hevc", "open_gop": True},
    "mpeg4": {"codec": "mpeg4"},
    "vp9": {"codec": "vp9"},
    "depth": {"depth": True},
    "image": {"kind": "image"},
    "depth-image": {"kind": "image", "depth": True},
}
FACTORS: Mapping[str, tuple[Any, ...]] = {
    "version": ("v3.0", "v2.1", "v2.0"),
    "pictures": tuple(PICTURES),
    "gop": (1, 2, (3, 1, 4), 30),
    "b_frames": (0, 2),
    "moov": ("as_recorded", "start", "end"),
    "episodes_per_video_file": (None, 1, 2),
    "episodes_per_data_file": (None, 1, 3),
    "rows_per_row_group": (None, 3, 1000),
    "features": ("plain", "extra", "no state"),
}


def is_possible(values: Mapping[str, Any]) -> bool:
    is_stored_in_rows = PICTURES[values["pictures"]].get("kind") == "image"
    return (
        # One file an episode.
        (
            values["version"] == "v3.0"
            or values["episodes_per_video_file"] == values["episodes_per_data_file"] == 1
        )
        # B pictures where there is room for them, in the codecs that have them.
        and (
            values["b_frames"] == 0
            or (values["pictures"] in ("h264", "hevc", "hevc-open") and values["gop"] == 30)
        )
        and (values["pictures"] != "hevc-open" or values["b_frames"] > 0)
        # No video, no difference.
        and (
            not is_stored_in_rows
            or (values["gop"], values["moov"], values["episodes_per_video_file"]) == (2, "start", 1)
        )
    )


DATASETS = choose(FACTORS, NUM_DATASETS, is_possible=is_possible)
assert {pair for values in DATASETS for pair in pairs_of(values)} == {
    pair for values in DATASETS[:NUM_ALWAYS] for pair in pairs_of(values)
}


@pytest.fixture(scope="module")
def served() -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        yield running


def write(directory: Path, values: Mapping[str, Any]) -> WrittenDataset:
    camera = Camera(
        key=KEY,
        height=64,
        width=96,
        gop=values["gop"],
        b_frames=values["b_frames"],
        moov=values["moov"],
        **PICTURES[values["pictures"]],
    )
    return write_dataset(
        directory,
        version=values["version"],
        episode_lengths=LENGTHS,
        fps=10,
        cameras=[camera],
        state_size=0 if values["features"] == "no state" else 7,
        features=EXTRA_FEATURES if values["features"] == "extra" else {},
        tasks=("pick", "place"),
        episodes_per_video_file=values["episodes_per_video_file"],
        episodes_per_data_file=values["episodes_per_data_file"],
        rows_per_row_group=values["rows_per_row_group"],
        statistics=False,
    )


def check(repository: lg.Repository, written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(
        repository,
        delta_timestamps={KEY: [-0.1, 0.0, 0.2], "action": [0.0, 0.1]},
        shuffle=lg.Shuffle(seed=1, clip_length=4, num_parts=2, buffer_size=8),
        num_epochs=1,
    )
    rows = []
    for example in dataset:
        episode, frame = int(example["episode_index"]), int(example["frame_index"])
        rows.append(int(example["index"]))
        wanted = [min(max(frame + offset, 0), LENGTHS[episode] - 1) for offset in (-1, 0, 2)]
        assert read_barcodes(example[KEY]).tolist() == [[episode, f, 0] for f in wanted]
        expected = written.expected_row(episode, frame)
        following = written.expected_row(episode, min(frame + 1, LENGTHS[episode] - 1))
        expected["action"] = np.stack([expected["action"], following["action"]])
        for key, value in expected.items():
            assert np.array_equal(example[key], value), key
    assert sorted(rows) == list(range(sum(LENGTHS)))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(
            values,
            id="-".join(map(str, values.values())),
            marks=() if number < NUM_ALWAYS else pytest.mark.long,
        )
        for number, values in enumerate(DATASETS)
    ],
)
def test_every_kind_streams_exactly(
    values: dict[str, Any], served: LoopbackHub, tmp_path: Path
) -> None:
    written = write(tmp_path / "data", values)
    check(lg.open_repository(written.directory), written)
    name = f"matrix/{DATASETS.index(values)}"
    served.add_repository(name, written.directory, tags=[values["version"]])
    check(
        lg.open_repository(
            name, endpoint=served.endpoint, token=False, cache_dir=tmp_path / "cache"
        ),
        written,
    )

"""The oracle: what lerobot's map-style reader returns for datasets that lerobot's own recorder
wrote.

Every example of the four window specifications must be equal, bit for bit, depth among it; and in a
whole epoch every camera frame of RGB must carry the barcode of its own episode and frame.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import read_barcodes

NAMES = ["av1_small", "av1_rolled", "h264_bframes", "hevc_bframes", "images", "state_only", "depth"]
SPECIFICATIONS = ["none", "act", "hist", "wide"]
DEPTH = "observation.images.depth"


class Rows(grain.IterDataset[int]):
    """A source of given rows, in the place of the order."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.rows = rows

    def __iter__(self) -> Any:
        return (
            grain.MapDataset.source(self.rows)
            .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            .__iter__()
        )


def example_at(
    repository: lg.Repository, rows: list[int], deltas: dict[str, list[float]]
) -> list[dict[str, Any]]:
    windows = Rows(rows).map(lg.DeltaTimestamps(repository, deltas))
    return list(lg.ReadWindowsIterDataset(windows, repository))


@pytest.mark.parametrize("specification", SPECIFICATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_sample_of_the_oracle(shared: Path, name: str, specification: str) -> None:
    oracle = json.loads((shared / "golden" / f"{name}.oracle.json").read_text())
    with np.load(shared / "golden" / f"{name}.oracle.npz") as arrays:
        expected = {
            key.split("/", 1)[1]: arrays[key]
            for key in arrays.files
            if key.startswith(f"{specification}/")
        }
    samples = oracle["samples"][specification]
    deltas = oracle["specs"][specification] or {}
    repository = lg.open_repository(shared / "golden" / name)
    examples = example_at(repository, samples["index"], deltas)
    assert [example["index"] for example in examples] == samples["index"]

    failed = {int(row) for row in samples.get("lerobot_failed", {})}
    compared = [example for example in examples if example["index"] not in failed]
    assert [example["task"] for example in compared] == samples["task"]
    assert set(expected) >= {key for key in examples[0] if specification != "act" and key != "task"}
    for key in expected:
        found = [example[key] for example in compared]
        if key in repository.cameras:
            is_window = key in deltas
            for pixels, reference in zip(found, expected[key], strict=True):
                assert pixels.dtype == (np.float32 if key == DEPTH else np.uint8)
                if is_window and pixels.shape[0] == 1:
                    pixels = pixels[0]  # lerobot drops the time axis of a list of one delta
                assert np.array_equal(
                    np.moveaxis(pixels, -1, -3), reference if key == DEPTH else _as_uint8(reference)
                ), key
        else:
            stacked = np.stack(found)
            assert stacked.dtype == expected[key].dtype or stacked.dtype.kind == "U"
            assert np.array_equal(stacked, expected[key]), key
    for row in failed:  # lerobot itself raised; the barcode decides
        _check_windows(
            repository,
            next(example for example in examples if example["index"] == row),
            deltas,
            int(row),
        )


def _as_uint8(reference: np.ndarray) -> np.ndarray:
    # lerobot gives embedded images as float32 in [0, 1].
    return (
        np.round(reference * 255).astype(np.uint8) if reference.dtype == np.float32 else reference
    )


def _check_windows(
    repository: lg.Repository, example: dict[str, Any], deltas: dict[str, list[float]], row: int
) -> None:
    episode, frame = repository.episodes.locate(row)
    length = int(repository.episodes.lengths[episode])
    for key in set(repository.cameras) & set(deltas):
        wanted = np.array([frame + round(delta * repository.fps) for delta in deltas[key]])
        barcodes = read_barcodes(example[key])
        assert barcodes[:, 1].tolist() == np.clip(wanted, 0, length - 1).tolist()
        assert (barcodes[:, 0] == episode).all()
        assert np.array_equal(example[f"{key}_is_pad"], (wanted < 0) | (wanted >= length))


@pytest.mark.parametrize("shuffle", [lg.Shuffle(seed=5), None], ids=["shuffled", "sequential"])
@pytest.mark.parametrize("name", NAMES)
def test_every_frame_of_an_epoch_carries_its_barcode(
    shared: Path, name: str, shuffle: lg.Shuffle | None
) -> None:
    repository = lg.open_repository(shared / "golden" / name)
    dataset = lg.LeRobotIterDataset(repository, num_epochs=1, shuffle=shuffle)
    cameras = [key for key in repository.cameras if key != DEPTH]
    numbers = {key: number for number, key in enumerate(repository.cameras)}
    rows = []
    for example in dataset:
        rows.append(int(example["index"]))
        for key in cameras:
            (barcode,) = read_barcodes(example[key][None])
            assert barcode.tolist() == [
                example["episode_index"],
                example["frame_index"],
                numbers[key],
            ]
    assert sorted(rows) == list(range(repository.episodes.num_rows))
    assert (rows == sorted(rows)) == (shuffle is None)


# These small budgets always run.
ALWAYS = (("av1_rolled", "1 MB"), ("hevc_bframes", "4 MB"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(
            name,
            options,
            marks=[] if (name, label) in ALWAYS else [pytest.mark.long],
            id=f"{name}-{label}",
        )
        for name in ("av1_rolled", "h264_bframes", "hevc_bframes")
        for label, options in {"1 MB": (1 << 20, 1), "4 MB": (4 << 20, 8)}.items()
    ],
)
def test_a_small_budget_decodes_again_but_gives_the_same_frames(
    shared: Path, name: str, options: tuple[int, int]
) -> None:
    """All GOPs are long for such a budget, decoded in pieces, and dropped and decoded again; with
    windows that reach back and ahead.
    """
    repository = lg.open_repository(shared / "golden" / name)
    cameras = list(repository.cameras)
    deltas = {cameras[0]: [-1.0, 0.0, 1.0]}
    dataset = lg.LeRobotIterDataset(
        repository,
        num_epochs=1,
        features=[*cameras, "index", "episode_index", "frame_index"],
        delta_timestamps=deltas,
        read_options=lg.ReadOptions(memory_budget_bytes=options[0], num_decode_threads=options[1]),
    )
    iterator = iter(dataset)
    rows = []
    for example in iterator:
        rows.append(int(example["index"]))
        _check_windows(repository, example, deltas, rows[-1])
        for number, key in enumerate(cameras[1:], 1):
            assert read_barcodes(example[key][None]).tolist() == [
                [example["episode_index"], example["frame_index"], number]
            ]
    assert sorted(rows) == list(range(repository.episodes.num_rows))
    statistics = lg.read_statistics(iterator)
    print(f"{statistics.pictures_decoded} pictures decoded for {len(rows)} rows")
    assert statistics.pictures_decoded > 1.5 * len(rows) * len(cameras)

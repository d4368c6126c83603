"""The goldens: what lerobot's map-style reader returns for rows of datasets that lerobot's own
recorder wrote, and whether examples are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lerobot_grain as lg
from lerobot_grain.testing import read_barcodes

NAMES = ["av1_small", "av1_rolled", "h264_bframes", "hevc_bframes", "images", "state_only", "depth"]
SPECIFICATIONS = ["none", "act", "hist", "wide"]
DEPTH = "observation.images.depth"


@dataclass(frozen=True)
class Oracle:
    """The samples of one dataset with the windows of one specification.

    Attributes:
      rows: that were read.
      deltas: feature key -> delta timestamps.
      failed: rows at which lerobot itself raised.
      tasks: of the other rows.
      arrays: feature key -> values of the other rows; frames are `(..., channels, height, width)`.
      has_all_keys: whether these are all keys of an example, but for `task`.
    """

    rows: list[int]
    deltas: dict[str, list[float]]
    failed: set[int]
    tasks: list[str]
    arrays: dict[str, np.ndarray]
    has_all_keys: bool

    @classmethod
    def of(cls, shared: Path, name: str, specification: str) -> Oracle:
        found = json.loads((shared / "golden" / f"{name}.oracle.json").read_text())
        samples = found["samples"][specification]
        with np.load(shared / "golden" / f"{name}.oracle.npz") as arrays:
            return cls(
                rows=samples["index"],
                deltas=found["specs"][specification] or {},
                failed={int(row) for row in samples.get("lerobot_failed", {})},
                tasks=samples["task"],
                arrays={
                    key.split("/", 1)[1]: arrays[key]
                    for key in arrays.files
                    if key.startswith(f"{specification}/")
                },
                has_all_keys=specification != "act",
            )

    def check(self, examples: Sequence[dict[str, Any]], repository: lg.Repository) -> None:
        """Checks the examples at `rows`: bit for bit; where lerobot failed, by their barcodes."""
        assert [example["index"] for example in examples] == self.rows
        compared = [example for example in examples if example["index"] not in self.failed]
        assert [example["task"] for example in compared] == self.tasks
        if self.has_all_keys:
            assert set(self.arrays) >= set(examples[0]) - {"task"}
        for key, expected in self.arrays.items():
            self._check_key(key, [example[key] for example in compared], expected, repository)
        for example in examples:
            if int(example["index"]) in self.failed:
                check_barcodes(repository, example, self.deltas)

    def _check_key(
        self, key: str, found: list[Any], expected: np.ndarray, repository: lg.Repository
    ) -> None:
        if key not in repository.cameras:
            stacked = np.stack(found)
            assert stacked.dtype == expected.dtype or stacked.dtype.kind == "U"
            assert np.array_equal(stacked, expected), key
            return
        for pixels, reference in zip(found, expected, strict=True):
            assert pixels.dtype == (np.float32 if key == DEPTH else np.uint8)
            if key in self.deltas and pixels.shape[0] == 1:
                pixels = pixels[0]  # lerobot drops the time axis of a list of one delta
            assert np.array_equal(
                np.moveaxis(pixels, -1, -3), reference if key == DEPTH else _as_uint8(reference)
            ), key


def check_barcodes(
    repository: lg.Repository, example: dict[str, Any], deltas: dict[str, list[float]]
) -> None:
    """Checks the windows of cameras of an example by the barcodes of their frames."""
    episode, frame = repository.episodes.locate(int(example["index"]))
    length = int(repository.episodes.lengths[episode])
    for key in set(repository.cameras) & set(deltas):
        wanted = np.array([frame + round(delta * repository.fps) for delta in deltas[key]])
        barcodes = read_barcodes(example[key])
        assert barcodes[:, 1].tolist() == np.clip(wanted, 0, length - 1).tolist()
        assert (barcodes[:, 0] == episode).all()
        assert np.array_equal(example[f"{key}_is_pad"], (wanted < 0) | (wanted >= length))


def _as_uint8(reference: np.ndarray) -> np.ndarray:
    # lerobot gives embedded images as float32 in [0, 1].
    return (
        np.round(reference * 255).astype(np.uint8) if reference.dtype == np.float32 else reference
    )

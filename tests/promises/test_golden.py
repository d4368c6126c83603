"""The oracle: what lerobot's map-style reader returns for datasets that lerobot's own recorder
wrote.

Every example of the four window specifications must be equal, bit for bit, depth among it; and in a
whole epoch every camera frame of RGB must carry the barcode of its own episode and frame.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import grain
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import read_barcodes
from tests.support.oracle import DEPTH, NAMES, SPECIFICATIONS, Oracle, check_barcodes
from tests.support.tables import table


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


@pytest.mark.parametrize("specification", SPECIFICATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_sample_of_the_oracle(shared: Path, name: str, specification: str) -> None:
    oracle = Oracle.of(shared, name, specification)
    repository = lg.open_repository(shared / "golden" / name)
    windows = Rows(oracle.rows).map(lg.DeltaTimestamps(repository, oracle.deltas))
    oracle.check(list(lg.ReadWindowsIterDataset(windows, repository)), repository)


# In order those of one codec and of pictures in rows.
@pytest.mark.parametrize(
    ("name", "order"),
    table(
        itertools.product(NAMES, ("shuffled", "sequential")),
        lambda case: case[1] == "shuffled" or case[0] in ("av1_small", "images"),
    ),
)
def test_every_frame_of_an_epoch_carries_its_barcode(shared: Path, name: str, order: str) -> None:
    shuffle = lg.Shuffle(seed=5) if order == "shuffled" else None
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


# These small budgets always run, with so many episodes.
ALWAYS = {("av1_rolled", "1 MB"): 3, ("hevc_bframes", "4 MB"): 3}
BUDGETS = {"1 MB": (1 << 20, 1), "4 MB": (4 << 20, 8)}


@pytest.mark.parametrize(
    ("name", "budget", "num_episodes"),
    [
        *(pytest.param(*case, count, id="-".join(case)) for case, count in ALWAYS.items()),
        *(
            pytest.param(name, budget, None, marks=pytest.mark.long, id=f"{name}-{budget}, all")
            for name in ("av1_rolled", "h264_bframes", "hevc_bframes")
            for budget in BUDGETS
        ),
    ],
)
def test_a_small_budget_decodes_again_but_gives_the_same_frames(
    shared: Path, name: str, budget: str, num_episodes: int | None
) -> None:
    """All GOPs are long for such a budget, decoded in pieces, and dropped and decoded again; with
    windows that reach back and ahead.
    """
    repository = lg.open_repository(shared / "golden" / name)
    cameras = list(repository.cameras)
    deltas = {cameras[0]: [-1.0, 0.0, 1.0]}
    num_bytes, num_threads = BUDGETS[budget]
    episodes = range(num_episodes or repository.episodes.num_episodes)
    dataset = lg.LeRobotIterDataset(
        repository,
        num_epochs=1,
        features=[*cameras, "index", "episode_index", "frame_index"],
        delta_timestamps=deltas,
        episodes=episodes,
        read_options=lg.ReadOptions(memory_budget_bytes=num_bytes, num_decode_threads=num_threads),
    )
    iterator = iter(dataset)
    rows = []
    for example in iterator:
        rows.append(int(example["index"]))
        check_barcodes(repository, example, deltas)
        for number, key in enumerate(cameras[1:], 1):
            assert read_barcodes(example[key][None]).tolist() == [
                [example["episode_index"], example["frame_index"], number]
            ]
    assert sorted(rows) == list(range(int(repository.episodes.lengths[: len(episodes)].sum())))
    statistics = lg.read_statistics(iterator)
    print(f"{statistics.pictures_decoded} pictures decoded for {len(rows)} rows")
    assert statistics.pictures_decoded > 1.5 * len(rows) * len(cameras)

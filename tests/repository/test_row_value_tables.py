"""Tables of weights and valid rows that are files of the dataset: of a directory, of the Hub at the
pinned commit, and of a bucket; and which of two files of one name is read.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain._repository import row_value_tables
from lerobot_grain.testing import LoopbackHub, write_dataset

LENGTHS = [5, 4, 6]
QUALITY = "meta/annotations/quality.parquet"
MASK = "meta/annotations/v2/mask.csv"
# Of the rows of episode 1, and of two others.
NOT_VALID = [2, 5, 6, 7, 8, 14]
VALID = [row for row in range(sum(LENGTHS)) if row not in NOT_VALID]


def annotate(directory: Path, weights: list[float]) -> None:
    (directory / "meta/annotations/v2").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"episode_index": [0, 1, 2], "weight": weights}), directory / QUALITY)
    lines = ["index,is_valid", *(f"{row},false" for row in NOT_VALID)]
    (directory / MASK).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module", params=["v3.0", "v2.1", "v2.0"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_dataset(
        tmp_path_factory.mktemp("annotated") / "data",
        version=request.param,
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(),
    ).directory
    annotate(directory, [1.0, 0.0, 3.0])
    return directory


def rows(repository: lg.Repository, **arguments: Any) -> list[int]:
    given = {"shuffle": lg.Shuffle(clip_length=4), "num_epochs": 2} | arguments
    return list(lg.FrameOrderIterDataset(repository, **given))


def check_is_read(repository: lg.Repository) -> None:
    assert rows(repository, weights=QUALITY) == rows(repository, weights={1: 0.0, 2: 3.0})
    assert rows(repository, valid_rows=MASK, shuffle=None, num_epochs=1) == VALID
    given = lg.Weights(QUALITY, rest=0.0)
    assert rows(repository, weights=given) == rows(repository, weights={1: 0.0, 2: 3.0})


def test_of_a_directory(directory: Path) -> None:
    check_is_read(lg.open_repository(directory))


def test_of_a_bucket(directory: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    name = f"annotated/{directory.parent.name}"
    hub.add_bucket(name, directory)
    repository = lg.open_repository(
        f"hf://buckets/{name}", endpoint=hub.endpoint, cache_dir=tmp_path
    )
    check_is_read(repository)


def test_of_the_hub_at_the_pinned_commit(directory: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    name = f"annotated/{directory.parent.name}"
    hub.add_repository(name, directory)
    older = lg.open_repository(name, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    changed = shutil.copytree(directory, tmp_path / "changed")
    annotate(changed, [0.0, 1.0, 0.0])
    hub.add_commit(name, changed)
    check_is_read(older)
    newer = lg.open_repository(name, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    assert newer.commit != older.commit
    assert sorted(rows(newer, weights=QUALITY, num_epochs=1)) == [5, 6, 7, 8]
    # The second time it is in the client's cache, as all of meta/.
    hub.clear_requests()
    check_is_read(older)
    assert hub.requests() == []


def test_a_text_below_meta_is_of_the_dataset_and_a_path_of_this_machine(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate(tmp_path, [0.0, 1.0, 0.0])
    monkeypatch.chdir(tmp_path)
    repository = lg.open_repository(directory)
    of_dataset = rows(repository, weights={1: 0.0, 2: 3.0})
    of_machine = rows(repository, weights={0: 0.0, 2: 0.0})
    assert rows(repository, weights=QUALITY) == of_dataset
    for given in (f"./{QUALITY}", Path(QUALITY), str(tmp_path / QUALITY)):
        assert rows(repository, weights=given) == of_machine


def refusal(repository: lg.Repository, **arguments: Any) -> str:
    with pytest.raises((lg.InvalidRequestError, lg.DatasetFormatError)) as caught:
        rows(repository, **arguments)
    return str(caught.value)


def test_a_table_that_is_not_there(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = lg.open_repository(directory)
    # One of this machine does not stand in for it.
    missing = "meta/annotations/other.csv"
    (tmp_path / "meta/annotations").mkdir(parents=True)
    (tmp_path / missing).write_text("episode_index,weight\n1,0\n")
    monkeypatch.chdir(tmp_path)
    assert refusal(repository, weights=missing) == (
        f"weights='{missing}': {directory} has no such file; below meta/ it has {QUALITY}, {MASK}. "
        f"A file of this machine is named './{missing}'"
    )
    assert refusal(repository, valid_rows="meta/../secret.csv").startswith(
        f"valid_rows='meta/../secret.csv': {directory} has no such file; "
    )


def test_a_dataset_without_tables(tmp_path: Path) -> None:
    written = write_dataset(tmp_path, episode_lengths=[3], fps=10, cameras=())
    text = refusal(lg.open_repository(written.directory), valid_rows=MASK)
    assert "has no such file; below meta/ it has no table of rows. A file of" in text


BAD: dict[str, tuple[str, bytes, str]] = {
    "other columns": (
        "q.csv",
        b"episode,quality\n0,1\n",
        "/q.csv has 'episode', 'quality'; expected the columns 'weight', and 'index' or",
    ),
    "a row that is not there": (
        "q.csv",
        b"index,weight\n2,1\n15,1\n",
        "/q.csv, row 1: index is 15; the dataset has rows 0 to 14",
    ),
    "a pointer of Git LFS": (
        "q.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"1" * 64 + b"\nsize 77\n",
        "/q.parquet: it is a Git LFS pointer",
    ),
    "empty": ("q.parquet", b"", "the file is empty (0 bytes)"),
    "no Parquet": ("q.parquet", b"PAR1 and nothing else", "/q.parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_it_is_said_with_its_place(
    directory: Path, tmp_path: Path, case: str
) -> None:
    name, contents, text = BAD[case]
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "meta/annotations" / name).write_bytes(contents)
    found = refusal(lg.open_repository(copy), weights=f"meta/annotations/{name}")
    assert f"{copy}, meta/annotations/{name}" in found
    assert text in found


def test_a_table_that_is_too_large_is_not_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_value_tables, "_MAX_TABLE_BYTES", 20)
    text = refusal(lg.open_repository(directory), valid_rows=MASK)
    assert text.endswith(
        f"{MASK} has {(directory / MASK).stat().st_size} bytes, expected at most 20"
    )

"""How often the Hub is asked, seen in the log of the loopback Hub: it counts requests to its API
and its resolver, and limits them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lerobot_grain as lg
from lerobot_grain.testing import LoopbackHub, RequestRecord
from tests.support.forked import fork_workers
from tests.support.streams import DATA_AND_VIDEO

pytestmark = pytest.mark.timeout(180, method="thread")

NUM_ROWS = 36


@pytest.fixture
def arguments(
    hub: LoopbackHub, small_dataset: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[dict[str, Any]]:
    """Opens the dataset on the Hub, with an empty cache and eight connections."""
    name = f"economy/{request.node.name.replace('_', '-')}"
    hub.add_repository(name, small_dataset, tags=["v3.0"])
    hub.clear_requests()
    options = lg.ReadOptions(storage=lg.StorageOptions(num_connections=8))
    yield {
        "repository": name,
        "endpoint": hub.endpoint,
        "cache_dir": tmp_path,
        "read_options": options,
    }
    hub.set_latency(0)


def by_file(requests: list[RequestRecord], kind: str = "resolver") -> Counter[str]:
    return Counter(r.file for r in requests if r.kind == kind and r.file)


def num_rows(dataset: Any) -> int:
    with contextlib.closing(iter(dataset)) as iterator:
        return sum(1 for _ in iterator)


def test_one_process_with_eight_connections(hub: LoopbackHub, arguments: dict[str, Any]) -> None:
    # So that questions overlap.
    hub.set_latency(0.01)
    dataset = lg.LeRobotIterDataset(**arguments, num_epochs=2)
    opening = hub.requests()
    assert [r.path.split("/")[5] for r in opening if r.kind == "api"] == [
        "refs",
        "revision",
        "tree",
    ]
    assert set(by_file(opening).values()) == {1}
    assert not [r for r in opening if r.file and r.file.startswith("data/")]
    # A second iterator and the epochs of both share what the first one learned.
    assert num_rows(dataset) == num_rows(dataset) == 2 * NUM_ROWS
    found = hub.requests()
    assert [r for r in found[len(opening) :] if r.kind not in ("resolver", "cdn")] == []
    assert set(by_file(found).values()) == {1}
    assert sorted(file for file in by_file(found) if not file.startswith("meta/")) == DATA_AND_VIDEO
    # Those of huggingface_hub, which downloads `meta/`, are its own.
    assert len({r.connection_id for r in found if r.origin == "cdn"}) <= 8 + len(by_file(opening))


def test_opening_again_finds_meta_in_the_cache(hub: LoopbackHub, arguments: dict[str, Any]) -> None:
    lg.LeRobotIterDataset(**arguments)
    hub.clear_requests()
    lg.LeRobotIterDataset(**arguments, shuffle=lg.Shuffle(clip_length=8))
    # What the newest version is, and its commit; not the list of `meta/`.
    assert [r.kind for r in hub.requests()] == ["api"] * 2


def test_four_workers(
    hub: LoopbackHub, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    dataset = lg.LeRobotIterDataset(
        **arguments, num_epochs=1, shuffle=lg.Shuffle(seed=5, num_parts=4, buffer_size=4)
    )
    hub.clear_requests()
    workers = lg.WorkerPrefetchIterDataset(dataset, num_workers=4)
    assert num_rows(workers) == NUM_ROWS
    found = hub.requests()
    # Everything that the API and `meta/` say came with the dataset.
    assert {r.kind for r in found} == {"resolver", "cdn"}
    assert sorted(by_file(found)) == DATA_AND_VIDEO
    assert max(by_file(found).values()) <= 4
    assert multiprocessing.active_children() == []

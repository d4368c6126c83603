"""An object store that misbehaves: the faults of `test_faults`, as far as they are of a store, with
the same outcome, and what a store refuses.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Fault, LoopbackHub, mixed_faults
from tests.promises import test_faults as hub_faults
from tests.promises.test_faults import (
    CONTENTS,
    GAVE_UP,
    KINDS,
    NUM_HITS,
    PATTERNS,
    STAGES,
    Kind,
    fingerprint,
    whole_epoch,
)

# The fixtures of the Hub's faults: the dataset, the server, and what an epoch of it gives.
directory = hub_faults.directory
server = hub_faults.server
faulty = hub_faults.faulty
expected = hub_faults.expected

pytestmark = pytest.mark.timeout(60)

STORES = {"s3": "s3", "gs": "gcs"}
LIST = {"path_regex": r"^(/faults/|/storage/v1/b/faults/o)$"}
# The kinds of faults of answers, with those that are about links left out.
OF_STORES = {
    name: replace(kind, stages=tuple(stage for stage in kind.stages if stage in CONTENTS))
    for name, kind in KINDS.items()
    if set(kind.stages) & set(CONTENTS)
    and not {"Location", "X-Repo-Commit"} & set(kind.fault.get("headers", {}))
    and kind.fault.get("status") not in (401, 403, 404)
    and name != "flipped metadata"
} | {
    "no list": Kind({"corrupt_at": 5}, 5, GAVE_UP + ".* no list of files", ("list",)),
    "list 503": Kind({"status": 503}, 5, GAVE_UP + "HTTP 503", ("list",)),
    "list truncated": Kind({"truncate_at": 9}, 5, GAVE_UP + "RemoteProtocol", ("list",), ("five",)),
    "list stalled": Kind({"latency_seconds": 100}, 5, GAVE_UP + "ReadTimeout", ("list",)),
    "denied": Kind(
        {"status": 403, "body": b"<Error><Code>AccessDenied</Code></Error>"},
        0,
        r"access to the bucket faults at http://localhost:\d+ is denied \(HTTP 403",
        ("list", "rows", "video"),
        ("first",),
    ),
    "gone": Kind({"status": 404}, 0, "the file is gone", CONTENTS, ("middle",)),
    "changed": Kind({"status": 412}, 0, "the file was overwritten", CONTENTS, ("first",)),
    "redirect": Kind(
        {"status": 302, "headers": {"Location": "http://localhost:9/"}},
        0,
        "answered with HTTP 302",
        ("rows",),
        ("first",),
    ),
}
# One pattern of most, and few of the second store: all are read by the same code. One stage of a
# kind always, the n-th of the n-th kind.
CASES = [
    pytest.param(
        *(store, kind, stage, pattern),
        id=f"{store}-{name}-{stage}-{pattern}",
        marks=[]
        if pattern == kind.patterns[0]
        and (stage == kind.stages[number % len(kind.stages)] or store == "gs")
        else [pytest.mark.long],
    )
    for number, (name, kind) in enumerate(OF_STORES.items())
    for stage, pattern in itertools.product(kind.stages, kind.patterns)
    for store in STORES
    if (pattern == kind.patterns[0] or name in ("503", "other size", "no list"))
    and (store == "s3" or stage in ("list", "rows"))
]


@pytest.fixture(scope="module")
def buckets(server: LoopbackHub, directory: Path) -> None:
    for store in STORES:
        server.add_bucket(f"{store}://faults", directory)


def endpoint_of(hub: LoopbackHub, store: str) -> str:
    return hub.s3_endpoint if store == "s3" else hub.gcs_endpoint


def opened(hub: LoopbackHub, store: str, **changes: Any) -> lg.LeRobotIterDataset:
    arguments = {"endpoint": endpoint_of(hub, store), "token": False}
    return hub_faults.opened(hub, Path(), repository=f"{store}://faults", **arguments | changes)


def test_the_table_is_long_enough() -> None:
    print(f"{len(CASES)} combinations of {len(OF_STORES)} kinds of faults")
    assert len(CASES) >= 60


@pytest.mark.usefixtures("buckets")
@pytest.mark.parametrize(("store", "kind", "stage", "pattern"), CASES)
@pytest.mark.timeout(20)
def test_fault(
    faulty: LoopbackHub, expected: list[Any], store: str, kind: Kind, stage: str, pattern: str
) -> None:
    asked = {**(LIST if stage == "list" else STAGES[stage]), "origin": STORES[store]}
    faulty.add_fault(Fault(**{**asked, **PATTERNS[pattern], **kind.fault}))
    is_slow = kind.fault.keys() & {"latency_seconds", "stall_at", "bandwidth_bytes_per_second"}
    options = hub_faults.OPTIONS if is_slow else hub_faults.UNHURRIED
    seen, errors = whole_epoch(lambda: opened(faulty, store, options=options), faulty)
    assert seen == expected
    assert any(record.faulted for record in faulty.requests()), "nothing went wrong"
    if NUM_HITS[pattern] <= kind.survived:
        assert errors == []
    else:
        assert re.search(kind.text, errors[0]), errors
        assert len(errors) == 1
        assert errors[0].startswith(f"{store}://faults: ")


@pytest.mark.usefixtures("buckets")
@pytest.mark.parametrize("store", STORES)
def test_an_epoch_with_many_faults(faulty: LoopbackHub, expected: list[Any], store: str) -> None:
    for seed in range(9):
        for fault in mixed_faults(0.15, seed=seed):
            # Statuses and redirects that mean what they say, at a store.
            if fault.origin != "hub" and fault.status not in (302, 403):
                faulty.add_fault(replace(fault, origin=STORES[store]))
        dataset = opened(faulty, store, options=hub_faults.PATIENT)
        assert [fingerprint(example) for example in dataset] == expected
        dataset.repository.close()
        if sum(record.faulted for record in faulty.requests()) >= 5:
            return
    pytest.fail("next to nothing went wrong in nine epochs")

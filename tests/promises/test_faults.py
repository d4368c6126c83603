"""A Hub that misbehaves: every fault, at every stage of a stream, once, in the middle, five times
in a row and forever.

Whatever happens, the stream is exact in the end: either it never notices, or it stops with the
error of the table; then the fault is taken away, and the same iterator (where opening failed: the
next one) gives the rest. Nothing hangs: every case has a hard limit.
"""

from __future__ import annotations

import itertools
import pickle
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import (
    Camera,
    Fault,
    LoopbackHub,
    mixed_faults,
    read_barcodes,
    write_dataset,
)

pytestmark = pytest.mark.timeout(60)

REPOSITORY = "faults/arm"
CAMERA = "observation.images.top"
EPISODE_LENGTHS = [6, 5, 7, 6]
# One connection, so that requests follow each other in the same order in every run. Six attempts
# survive five faults in a row. No cache, which would take requests away from faults.
OPTIONS = lg.StorageOptions(
    disk_cache_bytes=0,
    num_connections=1,
    merge_gap_bytes=0,
    read_timeout_seconds=0.1,
    deadline_seconds=3.0,
    max_attempts=6,
    pause_seconds=0.002,
)
# For faults that come at once: on a busy machine a right answer takes longer than 0.1 s now and
# then, and a fault that is to be an error would be taken for one that stands still, and be asked
# for again.
UNHURRIED = replace(OPTIONS, read_timeout_seconds=10.0, deadline_seconds=15.0)
ACTION = {"action": [0.0, 0.1]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "arm"
    camera = Camera(key=CAMERA, height=64, width=96)
    write_dataset(
        path,
        episode_lengths=EPISODE_LENGTHS,
        fps=10,
        cameras=[camera],
        episodes_per_video_file=2,
        episodes_per_data_file=2,
    )
    return path


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        running.add_repository(REPOSITORY, directory, tags=["v3.0"])
        yield running


@pytest.fixture
def faulty(server: LoopbackHub) -> Iterator[LoopbackHub]:
    """The Hub of this file, without faults, log and latency of the test before."""
    server.clear_requests()
    yield server
    server.clear_faults()
    server.set_latency(0)
    server.set_rate_limit("resolvers", requests=10**6)


def opened(
    hub: LoopbackHub, cache: Path, *, options: lg.StorageOptions = OPTIONS, **changes: Any
) -> lg.LeRobotIterDataset:
    arguments: dict[str, Any] = {
        "repository": REPOSITORY,
        "endpoint": hub.endpoint,
        "cache_dir": cache,
        "num_epochs": 1,
        "delta_timestamps": ACTION,
        "read_options": lg.ReadOptions(storage=options, num_decode_threads=1),
    }
    return lg.LeRobotIterDataset(**(arguments | changes))


@pytest.fixture(scope="module")
def pickled(
    server: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> dict[lg.StorageOptions, bytes]:
    """An opened dataset, as another process would get it: without connections and links."""
    found = {}
    for options in (OPTIONS, UNHURRIED):
        dataset = opened(server, tmp_path_factory.mktemp("cache"), options=options)
        dataset.repository.close()
        found[options] = pickle.dumps(dataset)
    return found


def fingerprint(example: dict[str, Any]) -> tuple[int, int, int]:
    """Row, and checksums of its frame and of everything else."""
    rest = b"".join(
        np.asarray(value).tobytes()
        for key, value in sorted(example.items())
        if key not in (CAMERA, "task")
    )
    return (
        int(example["index"]),
        zlib.crc32(example[CAMERA]),
        zlib.crc32(rest + example["task"].encode()),
    )


@pytest.fixture(scope="module")
def expected(directory: Path) -> list[tuple[int, int, int]]:
    """The examples of an epoch from the directory."""
    return [
        fingerprint(example)
        for example in lg.LeRobotIterDataset(directory, num_epochs=1, delta_timestamps=ACTION)
    ]


# --- every fault at every stage ------------------------------------------------------------------

# The first read of a video, also where it goes on after it broke; no GOP begins there.
FIRST_BYTES = r"^bytes=(\d\d?|1\d\d)-"
# Which requests: those of the API, for links to files, for metadata, for the index of a video, for
# rows and for frames.
STAGES: dict[str, dict[str, Any]] = {
    "api": {"origin": "hub", "path_regex": f"^/api/datasets/{REPOSITORY}/(refs|revision|tree)"},
    "link": {"origin": "hub", "method": "HEAD", "path_regex": "/resolve/"},
    "metadata": {"method": "GET", "path_regex": "^meta/"},
    "moov": {"origin": "cdn", "path_regex": r"\.mp4$", "range_regex": FIRST_BYTES},
    "rows": {"origin": "cdn", "path_regex": "^data/"},
    "video": {"origin": "cdn", "path_regex": r"\.mp4$", "range_regex": f"(?!{FIRST_BYTES})"},
}
CONTENTS = ("metadata", "moov", "rows", "video")
FOR_EVER = 10**9
PATTERNS: dict[str, dict[str, Any]] = {
    "first": {"times": 1},
    "middle": {"skip": 1, "times": 1},
    "five": {"times": 5},
    "ever": {"times": None},
}
NUM_HITS = {"first": 1, "middle": 1, "five": 5, "ever": FOR_EVER}


@dataclass(frozen=True)
class Kind:
    """A kind of fault, and what a stream makes of it.

    Attributes:
      fault: what goes wrong.
      survived: how many times in a row it goes unnoticed.
      text: of the error that comes after that.
      stages, patterns: where it is tried.
    """

    fault: dict[str, Any]
    survived: int
    text: str = ""
    stages: tuple[str, ...] = tuple(STAGES)
    patterns: tuple[str, ...] = tuple(PATTERNS)


GAVE_UP = r"gave up after 6 attempt\(s\), the last one failed with: "
NO_SERVER = {"Location": "http://localhost:9/elsewhere"}
KINDS = {
    # Statuses that say "later".
    "503": Kind(
        {"status": 503},
        5,
        GAVE_UP + r"HTTP 503 from (localhost|127\.0\.0\.1)($|; if only this list)",
    ),
    "500": Kind(
        {"status": 500, "body": b"<html>" * 9000}, 5, GAVE_UP + "HTTP 500", patterns=("first",)
    ),
    "503, Retry-After": Kind(
        {"status": 503, "headers": {"Retry-After": "0"}},
        5,
        GAVE_UP + "HTTP 503",
        patterns=("five",),
    ),
    "429": Kind({"status": 429}, 5, GAVE_UP + "HTTP 429", patterns=("ever",)),
    "429, RateLimit": Kind(
        {"status": 429, "headers": {"RateLimit": '"x";r=0;t=0'}},
        5,
        GAVE_UP + "HTTP 429",
        patterns=("middle",),
    ),
    "429 for an hour": Kind(
        {"status": 429, "headers": {"Retry-After": "3600"}},
        0,
        "refuses .* for the next 3600 s",
        patterns=("first",),
    ),
    # Connections that break.
    "closed": Kind(
        {"close_before": True}, 5, GAVE_UP + "RemoteProtocolError at", patterns=("middle",)
    ),
    "reset before": Kind(
        {"reset_before": True},
        5,
        GAVE_UP + r"(ReadError|RemoteProtocolError) at",
        patterns=("five",),
    ),
    "reset at 0": Kind(
        {"reset_at": 0},
        5,
        GAVE_UP + r"(ReadError|RemoteProtocolError) at",
        ("api", *CONTENTS),
        ("first",),
    ),
    "reset": Kind({"reset_at": 20}, 5, GAVE_UP + r"(ReadError|RemoteProtocolError) at", CONTENTS),
    "truncated": Kind(
        {"truncate_at": 20},
        5,
        GAVE_UP + "RemoteProtocolError at",
        CONTENTS,
        patterns=("first", "five"),
    ),
    "truncated at 10": Kind({"truncate_at": 10}, 5, GAVE_UP + "RemoteProtocolError at", ("api",)),
    # Connections that stand still, or hardly move.
    "stalled before": Kind(
        {"latency_seconds": 100}, 5, GAVE_UP + "ReadTimeout at", patterns=("first",)
    ),
    "stalled forever": Kind(
        {"latency_seconds": 100},
        5,
        GAVE_UP + "ReadTimeout at",
        ("api", "link", "moov", "rows"),
        ("ever",),
    ),
    "stalled": Kind(
        {"stall_at": 20}, 5, GAVE_UP + "ReadTimeout at", ("metadata", "video"), ("middle", "five")
    ),
    "drip": Kind(
        {"bandwidth_bytes_per_second": 100},
        5,
        GAVE_UP + ".* bytes in .* s, too slowly",
        ("metadata", "rows"),
        ("first", "ever"),
    ),
    "late": Kind({"latency_seconds": 0.03}, FOR_EVER, patterns=("five",)),
    "slow": Kind({"bandwidth_bytes_per_second": 1e6}, FOR_EVER, patterns=("ever",)),
    # Answers to another question.
    "range ignored": Kind(
        {"ignore_range": True}, 5, GAVE_UP + ".* ignores byte ranges", ("rows", "video")
    ),
    "whole file": Kind(
        {"ignore_range": True}, FOR_EVER, stages=("metadata", "moov"), patterns=("first", "five")
    ),
    "short": Kind(
        {"short_206": 3},
        5,
        GAVE_UP + "answered with Content-Range",
        CONTENTS,
        patterns=("middle", "ever"),
    ),
    "other range": Kind(
        {"wrong_content_range": True},
        5,
        GAVE_UP + "answered with Content-Range",
        CONTENTS,
        ("first", "ever"),
    ),
    "other size": Kind(
        {"size_change": 1},
        5,
        GAVE_UP + "answered with Content-Range .*; the file was changed$",
        CONTENTS,
    ),
    "compressed": Kind(
        {"headers": {"Content-Encoding": "gzip"}},
        5,
        GAVE_UP + ".* encoding 'gzip'",
        CONTENTS,
        ("ever",),
    ),
    "not JSON": Kind(
        {"corrupt_at": 5}, 5, GAVE_UP + ".*answered with something that is not JSON", ("api",)
    ),
    "other commit": Kind(
        {"headers": {"X-Repo-Commit": "f" * 40}},
        5,
        GAVE_UP + f".* answered for commit {'f' * 40}, expected",
        ("link",),
    ),
    "other tree": Kind(
        {"path_regex": "/tree/", "headers": {"X-Repo-Commit": "0"}},
        5,
        "for commit 0",
        ("api",),
        ("first", "ever"),
    ),
    "no size": Kind({"headers": {"X-Linked-Size": ""}}, 5, "told no size", ("link",), ("ever",)),
    "flipped metadata": Kind(
        {"corrupt_at": 70}, 2, "its contents have the hash .* also when read 3 times", ("metadata",)
    ),
    # Links and redirects.
    "expired": Kind(
        {"status": 403, "body": b"<Error/>"}, 2, "HTTP 403 from .* also for 2 fresh links", CONTENTS
    ),
    "gone": Kind(
        {"status": 404}, 2, "HTTP 404 from .* also for 2 fresh links", CONTENTS, ("ever",)
    ),
    "unauthorized link": Kind(
        {"status": 401}, 2, "HTTP 401 from .* also for 2 fresh links", CONTENTS, ("middle",)
    ),
    "another host": Kind(
        {"status": 302, "headers": NO_SERVER},
        5,
        GAVE_UP + "ConnectError at localhost",
        CONTENTS,
        ("first",),
    ),
    "another file": Kind(
        {"status": 307, "headers": {"Location": "/elsewhere"}},
        2,
        "for 2 fresh links",
        CONTENTS,
        ("middle",),
    ),
    "circle": Kind(
        {"status": 302, "headers": {"Location": "/again"}, "path_regex": ""},
        0,
        "more than 5 redirects",
        ("rows",),
        ("ever",),
    ),
    "another scheme": Kind(
        {"status": 302, "headers": {"Location": "file:///etc/passwd"}},
        0,
        "redirects to file:",
        CONTENTS,
        ("first",),
    ),
    # Access.
    "gated": Kind(
        {"status": 401, "headers": {"X-Error-Code": "GatedRepo"}},
        0,
        "is gated: ask for",
        ("api", "link"),
        ("first", "ever"),
    ),
    "private": Kind(
        {"status": 401, "headers": {"X-Error-Code": "RepoNotFound"}},
        0,
        "it is private",
        ("api", "link"),
        ("first", "middle"),
    ),
    "no such file": Kind(
        {"status": 404, "headers": {"X-Error-Code": "EntryNotFound"}},
        0,
        "no such file",
        ("link",),
        ("first",),
    ),
    "401": Kind({"status": 401}, 0, "or it is private", ("api", "link"), ("middle",)),
    "404": Kind({"status": 404}, 0, "answered with HTTP 404", ("api", "link"), ("first", "ever")),
    "403": Kind({"status": 403}, 0, "answered with HTTP 403", ("api", "link"), ("middle",)),
}


# These are always tried at every stage: an answer that says "later", and one that breaks.
EVERYWHERE = ("503", "reset")


def always(number: int, name: str) -> set[tuple[str, str]]:
    """Returns so many (stage, pattern) that each pattern of a kind is among them, and one stage of
    the API and one of contents: of kind n the n-th, so that each has many kinds.
    """
    kind = KINDS[name]
    stages = kind.stages
    if name not in EVERYWHERE:
        groups = (
            [stage for stage in kind.stages if (stage in CONTENTS) is is_content]
            for is_content in (False, True)
        )
        stages = tuple(group[number % len(group)] for group in groups if group)
    count = max(len(stages), len(kind.patterns))
    pairs = zip(itertools.cycle(stages), itertools.cycle(kind.patterns), strict=True)
    return set(itertools.islice(pairs, count))


CASES = [
    pytest.param(
        *(kind, stage, pattern),
        id=f"{name}-{stage}-{pattern}",
        marks=[] if (stage, pattern) in always(number, name) else [pytest.mark.long],
    )
    for number, (name, kind) in enumerate(KINDS.items())
    for stage, pattern in itertools.product(kind.stages, kind.patterns)
]


def test_the_table_is_long_enough() -> None:
    print(
        f"{len(CASES)} combinations of {len(KINDS)} kinds of faults, {len(STAGES)} stages and "
        f"{len(PATTERNS)} patterns"
    )
    assert len(CASES) >= 120


@pytest.mark.parametrize(("kind", "stage", "pattern"), CASES)
@pytest.mark.timeout(20)
def test_fault(
    faulty: LoopbackHub,
    pickled: dict[lg.StorageOptions, bytes],
    tmp_path: Path,
    expected: list[Any],
    kind: Kind,
    stage: str,
    pattern: str,
) -> None:
    faulty.add_fault(Fault(**{**STAGES[stage], **PATTERNS[pattern], **kind.fault}))
    options = (
        OPTIONS
        if kind.fault.keys() & {"latency_seconds", "stall_at", "bandwidth_bytes_per_second"}
        else UNHURRIED
    )
    is_opened = stage in ("moov", "rows", "video")
    seen, errors = whole_epoch(
        lambda: (
            pickle.loads(pickled[options])
            if is_opened
            else opened(faulty, tmp_path, options=options)
        ),
        faulty,
    )
    assert seen == expected
    assert any(record.faulted for record in faulty.requests()), (
        "the case is no case: nothing went wrong"
    )
    if NUM_HITS[pattern] <= kind.survived:
        assert errors == []
    else:
        assert re.search(kind.text, errors[0]), errors
        assert len(errors) == 1
        assert errors[0].startswith(REPOSITORY)


def whole_epoch(
    open_it: Callable[[], lg.LeRobotIterDataset], hub: LoopbackHub
) -> tuple[list[Any], list[str]]:
    """Reads an epoch; after an error the faults are taken away, and it is gone on.

    Returns what was read, and the texts of the errors.
    """
    errors: list[str] = []

    def note(error: lg.LeRobotGrainError) -> None:
        assert isinstance(error, lg.StorageError | lg.DatasetFormatError)
        assert not re.search("Signature|Policy|Bearer", str(error))
        errors.append(str(error))
        hub.clear_faults()

    try:
        dataset = open_it()
    except lg.LeRobotGrainError as error:
        note(error)
        dataset = open_it()
    seen = []
    iterator = iter(dataset)
    while True:
        try:
            seen.append(fingerprint(next(iterator)))
        except StopIteration:
            break
        except lg.LeRobotGrainError as error:
            note(error)
    iterator.close()
    dataset.repository.close()
    return seen, errors


# --- many faults at once -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(server: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 episodes, whose epoch takes more than 100 requests."""
    path = tmp_path_factory.mktemp("many") / "arm"
    write_dataset(
        path,
        episode_lengths=[12] * 40,
        fps=10,
        cameras=[Camera(key=CAMERA, height=64, width=96)],
        episodes_per_video_file=10,
        episodes_per_data_file=10,
    )
    server.add_repository("faults/many", path, tags=["v3.0"])
    return path


PATIENT = replace(
    OPTIONS, num_connections=8, read_timeout_seconds=0.3, deadline_seconds=20.0, pause_seconds=0.02
)
CLIPS = lg.Shuffle(seed=1, clip_length=4)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2))])
def test_an_epoch_with_five_percent_of_faults_of_all_kinds(
    faulty: LoopbackHub, many: Path, tmp_path: Path, seed: int
) -> None:
    """Epoch after epoch, each with other faults, until seven requests met one.

    Which requests do is drawn by their byte ranges. These differ with the versions of the encoder
    and of pyarrow, and so does the number of faults in one epoch: five of 115 requests on the
    average, but one or none as well.
    """
    plain = [
        fingerprint(example) for example in lg.LeRobotIterDataset(many, num_epochs=1, shuffle=CLIPS)
    ]
    num_faulted = num_retries = 0
    for draw in range(seed, 30, 3):
        faulty.clear_faults()
        faulty.clear_requests()
        for fault in mixed_faults(0.05, seed=draw):
            faulty.add_fault(fault)
        dataset = opened(
            faulty,
            tmp_path / f"{draw}",
            repository="faults/many",
            options=PATIENT,
            shuffle=CLIPS,
            delta_timestamps=None,
        )
        assert [fingerprint(example) for example in dataset] == plain
        requests = faulty.requests()
        faulted = sum(record.faulted for record in requests)
        print(f"seed {draw}: {faulted} of {len(requests)} requests met a fault")
        num_faulted += faulted
        num_retries += dataset.repository.storage.statistics.retries
        dataset.repository.close()
        if num_faulted >= 7:
            break
    assert num_faulted >= 7, "the network was not bad: next to nothing went wrong in ten epochs"
    assert num_retries >= num_faulted / 4


def test_barcodes_are_those_of_the_rows_while_links_expire(
    faulty: LoopbackHub, many: Path, tmp_path: Path
) -> None:
    assert many.is_dir()
    faulty.set_url_lifetime(1)
    dataset = opened(
        faulty,
        tmp_path,
        repository="faults/many",
        options=PATIENT,
        shuffle=CLIPS,
        delta_timestamps=None,
    )
    faulty.set_url_lifetime(3600)
    for number, example in enumerate(dataset):
        if number % 100 == 0:
            faulty.expire_urls()
        row = int(example["episode_index"]), int(example["frame_index"]), 0
        assert tuple(read_barcodes(example[CAMERA][None])[0].tolist()) == row


# --- closing -------------------------------------------------------------------------------------

# A request that stalls would be waited for a minute.
STUBBORN = replace(OPTIONS, num_connections=4, read_timeout_seconds=60, deadline_seconds=120)


def test_closing_a_reader_ends_its_requests_and_nothing_else(
    faulty: LoopbackHub, many: Path, tmp_path: Path
) -> None:
    """It returns at once although requests stall, and the repository can be read on, by the same
    iterator too.
    """
    plain = [
        fingerprint(example) for example in lg.LeRobotIterDataset(many, num_epochs=1, shuffle=CLIPS)
    ]
    # Blocks of few examples, so that not everything is fetched before the first one is there.
    few = lg.ReadOptions(storage=STUBBORN, memory_budget_bytes=6 << 20, num_decode_threads=1)
    dataset = opened(
        faulty,
        tmp_path,
        repository="faults/many",
        options=STUBBORN,
        shuffle=CLIPS,
        delta_timestamps=None,
        read_options=few,
    )
    faulty.set_latency(0.01)
    iterator = iter(dataset)
    seen = [fingerprint(next(iterator))]
    faulty.add_fault(Fault(origin="cdn", latency_seconds=1000, times=None))
    wait_for(lambda: any(record.faulted for record in faulty.requests()))
    started = time.monotonic()
    iterator.set_state(iterator.get_state())
    assert time.monotonic() - started < 60  # of 1000 that an answer would take
    faulty.clear_faults()
    faulty.set_latency(0)
    seen += [fingerprint(example) for example in itertools.islice(iterator, 99)]
    assert seen == plain[:100]
    iterator.close()
    faulty.clear_requests()
    faulty.add_fault(Fault(origin="cdn", stall_at=10, times=None))
    other, seen = iter(dataset), []
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: seen.extend(map(fingerprint, other)))
        wait_for(lambda: sum(record.faulted for record in faulty.requests()) >= 4)
        dataset.repository.close()
        faulty.clear_faults()
        with pytest.raises(lg.StorageError, match="the storage was closed while it was in use"):
            reading.result(timeout=30)
    assert seen + [fingerprint(example) for example in other] == plain
    other.close()


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


# --- flipped bytes -------------------------------------------------------------------------------


def test_rows_with_page_checksums_cannot_be_changed_unnoticed(
    faulty: LoopbackHub, directory: Path, tmp_path: Path, expected: list[Any]
) -> None:
    copy = tmp_path / "checked"
    shutil.copytree(directory, copy)
    for path in copy.glob("data/*/*.parquet"):
        pq.write_table(
            pq.read_table(path),
            path,
            write_page_checksum=True,
            compression="none",
            row_group_size=6,
        )
    faulty.add_repository("faults/checked", copy, tags=["v3.0"])
    dataset = opened(faulty, tmp_path / "cache", repository="faults/checked")
    for at in (150, 250, 700):
        faulty.add_fault(Fault(path_regex="^data/", range_regex="^bytes=4-", corrupt_at=at))
        iterator = iter(dataset)
        with pytest.raises(
            lg.DatasetFormatError,
            match=r"data/chunk-000/file-00\d.parquet, row group 0: damaged parquet data",
        ):
            list(iterator)
        assert len([fingerprint(example) for example in iterator]) > 0
        iterator.close()
    assert [fingerprint(example) for example in dataset] == expected

"""A server that speaks HTTP slowly, endlessly or with anything in its headers: each request ends
within its deadline, with our error or the
exact bytes. A raw socket answers, since no HTTP library would send such answers.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import Any

import pytest

from lerobot_grain._base.errors import StorageError
from lerobot_grain._storage.http.calls import Deadline
from lerobot_grain._storage.http.client import HttpClient, LinkRefused
from lerobot_grain._storage.http.responses import RangeSource
from lerobot_grain._storage.options import StorageOptions
from tests.support.raw_server import (
    CONTENTS,
    LENGTH,
    RANGE,
    STATUS,
    WANTED,
    Script,
    forever,
    serving,
)

# Of an answer that never ends: the shorter, the sooner the test ends. Of others: never reached.
DEADLINE_SECONDS, PATIENT_SECONDS = 0.3, 10.0
# Time that a loaded machine may need on top of the deadline; never reached where all is well.
GRACE_SECONDS = 8.0

CHUNKED = b"Transfer-Encoding: chunked\r\n"


def outcome(script: Script, *, deadline_seconds: float, **options: Any) -> bytes | str:
    """Returns the bytes that were read, or the text of the error; fails where it takes longer than
    the deadline.
    """
    arguments = {"max_attempts": 2, "pause_seconds": 0.01, "read_timeout_seconds": 0.5} | options
    transport = HttpClient(StorageOptions(deadline_seconds=deadline_seconds, **arguments))
    pieces: list[bytes] = []
    began = time.monotonic()
    with serving(script) as server:
        source = RangeSource(server.url, {}, len(CONTENTS))
        try:
            found: bytes | str = transport.retry(
                "file",
                deadline_seconds,
                lambda deadline: transport.read_range(
                    source, WANTED, pieces, subject="file", deadline=deadline
                ),
            )
        except (StorageError, LinkRefused) as error:
            found = str(error)
        finally:
            transport.close()
    assert time.monotonic() - began < deadline_seconds + GRACE_SECONDS
    return found


ENDLESS: dict[str, Script] = {
    "nothing": [forever(b"")],
    "status line": [b"HTTP/1.1 206 ", forever(b"x")],
    "before the status line": [forever(b"\r\n")],
    "name of a header": [STATUS, forever(b"x")],
    "value of a header": [STATUS, b"X: ", forever(b"x")],
    "headers": [STATUS, forever(b"X: y\r\n")],
    "early hints": [forever(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")],
    "continue": [forever(b"HTTP/1.1 100 Continue\r\n\r\n")],
    "processing": [forever(b"HTTP/1.1 102 Processing\r\n\r\n")],
    "body": [STATUS, RANGE, LENGTH, b"\r\n", forever(b"x")],
    "body that stalls": [STATUS, RANGE, LENGTH, b"\r\n", CONTENTS[:100], forever(b"")],
    "body without a length": [STATUS, RANGE, b"\r\n", CONTENTS[:-1], forever(b"")],
    "size of a chunk": [STATUS, RANGE, CHUNKED, b"\r\n", forever(b"0")],
    "extension of a chunk": [STATUS, RANGE, CHUNKED, b"\r\n400;x=", forever(b"y")],
    "chunk": [STATUS, RANGE, CHUNKED, b"\r\n400\r\n", CONTENTS[:10], forever(b"x")],
    "small chunks": [STATUS, RANGE, CHUNKED, b"\r\n", forever(b"1\r\nx\r\n")],
    "trailers": [
        STATUS,
        RANGE,
        CHUNKED,
        b"\r\n400\r\n",
        CONTENTS,
        b"\r\n0\r\n",
        forever(b"X: y\r\n"),
    ],
    "value of a trailer": [
        STATUS,
        RANGE,
        CHUNKED,
        b"\r\n400\r\n",
        CONTENTS,
        b"\r\n0\r\nX: ",
        forever(b"y"),
    ],
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_ended_at_the_deadline(name: str) -> None:
    found = outcome(ENDLESS[name], deadline_seconds=DEADLINE_SECONDS, max_attempts=6)
    assert isinstance(found, str)
    assert found.startswith("file: ")


def test_redirects_without_end() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: /file\r\nContent-Length: 0\r\n\r\n"
    found = outcome([answer], deadline_seconds=PATIENT_SECONDS)
    assert isinstance(found, str)
    assert "redirects" in found


HEADERS = (
    *(
        "Content-Range",
        "Content-Length",
        "Content-Type",
        "Content-Encoding",
        "ETag",
        "Location",
        "Date",
        "Retry-After",
        "RateLimit",
    ),
    *(
        "RateLimit-Policy",
        "Set-Cookie",
        "Server",
        "X-Error-Code",
        "X-Error-Message",
        "X-Repo-Commit",
        "X-Linked-Size",
        "X-Linked-ETag",
    ),
)
VALUES = {
    "escapes": b"\x1b[2J\x1b]0;owned\x07",
    "64 KB": b"9" * 65536,
    "NUL": b"a\0b",
    "not ASCII": "ü\u202e".encode(),
    "a huge number": b"9" * 400,
    "empty": b"",
}
STATUSES = {
    "206": STATUS,
    "302": b"HTTP/1.1 302 Found\r\n",
    "403": b"HTTP/1.1 403 Forbidden\r\n",
    "503": b"HTTP/1.1 503 Busy\r\n",
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("header", HEADERS)
def test_anything_in_a_header_is_an_error_of_ours_or_changes_nothing(
    header: str, value: str
) -> None:
    for name, status in STATUSES.items():
        head = {b"Content-Range": RANGE, b"Content-Length": LENGTH}
        head[header.encode()] = header.encode() + b": " + VALUES[value] + b"\r\n"
        if name == "302":
            head.setdefault(b"Location", b"Location: /file\r\n")
        script = [status, *head.values(), b"\r\n", CONTENTS]
        found = outcome(script, deadline_seconds=PATIENT_SECONDS, max_attempts=1)
        if isinstance(found, bytes):
            assert name == "206"
            assert found == CONTENTS
        else:
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", found), found
            assert len(found) < 1000


def test_a_server_that_is_away_for_a_while_is_waited_for() -> None:
    """Refused connections are no attempts: there may be many more than `max_attempts`."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    transport = HttpClient(StorageOptions(deadline_seconds=30, max_attempts=2, pause_seconds=0.01))
    source = RangeSource(f"http://127.0.0.1:{port}/file", {}, len(CONTENTS))
    answer = STATUS + RANGE + LENGTH + b"\r\n" + CONTENTS
    refused = []

    def attempt(deadline: Deadline) -> bytes:
        if len(refused) == 6:
            servers.enter_context(serving([answer], port=port))
        refused.append(deadline.num_attempts)
        return transport.read_range(source, WANTED, [], subject="file", deadline=deadline)

    with contextlib.ExitStack() as servers:
        assert transport.retry("file", 30, attempt) == CONTENTS
    assert refused == [1] * 7


def test_no_cookie_is_kept() -> None:
    transport = HttpClient(StorageOptions())
    cookies = b"Set-Cookie: a=b\r\nSet-Cookie: c=d; Path=/; Domain=127.0.0.1\r\n"
    with (
        serving([STATUS, RANGE, LENGTH, cookies, b"\r\n", CONTENTS]) as server,
        contextlib.closing(transport),
    ):
        for _ in range(2):
            source = RangeSource(server.url, {}, len(CONTENTS))
            transport.retry(
                "file",
                30,
                lambda deadline, source=source: transport.read_range(
                    source, WANTED, [], subject="file", deadline=deadline
                ),
            )
    assert len(server.heads) == 2
    assert not any(b"cookie" in head.lower() for head in server.heads)


@pytest.mark.parametrize(
    "limit",
    [
        b"RateLimit: api;r=0;t=86400\r\n",
        b"RateLimit: api;r=0;t=331\r\nRateLimit-Policy: fixed;q=9;w=300\r\n",
    ],
)
def test_a_limit_that_is_longer_than_any_window_is_not_waited_for(limit: bytes) -> None:
    transport = HttpClient(StorageOptions(deadline_seconds=30))
    with serving([STATUS, RANGE, LENGTH, limit, b"\r\n", CONTENTS]) as server:
        for _ in range(3):
            source = RangeSource(server.url, {}, len(CONTENTS))
            found = transport.retry(
                "file",
                30,
                lambda deadline, source=source: transport.read_range(
                    source, WANTED, [], subject="file", deadline=deadline
                ),
            )
            assert found == CONTENTS
    assert transport.counters.snapshot().pause_seconds < 1

"""The messages between a test and the process of its loopback Hub: faults going in, request records
coming out.

Rules:
* Both are frozen values. A fault says which requests it waits for and what goes wrong with them;
  the counting is done by the server.
* Only the standard library, and little of it: the server's process imports this module at start-up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

Origin = Literal["hub", "cdn", "s3", "gcs"]
RequestKind = Literal["api", "resolver", "git_file", "cdn", "list", "object", "other"]
_ORIGINS = ("hub", "cdn", "s3", "gcs")


class RequestRecord(NamedTuple):
    """One request that the loopback Hub received, in the order of arrival.

    Attributes:
      time_seconds: when the head of the request was complete, in seconds since the epoch.
      origin: `"hub"`, `"cdn"`, `"s3"` or `"gcs"`.
      kind: `"api"` (`/api/datasets/...` and `/api/buckets/...`), `"resolver"`
        (`/datasets/.../resolve/...`, `/buckets/...`), `"git_file"` (contents of a small file, from
        `/api/resolve-cache/...`), `"cdn"` (contents of all others), `"list"` and `"object"` (of
        an object store), `"other"` (anything else).
      method: for example `"GET"`.
      path: path of the URL, percent-decoded, without the query (so that no signature is ever in a
        log).
      file: path of the file inside its repository, where the request is about one file that exists;
        otherwise None.
      range: the Range header as it was sent, or None.
      had_authorization: whether there was an Authorization header.
      status: HTTP status of the answer; 0 when the connection was closed without one.
      body_bytes_sent: bytes of the body that were written so far; smaller than Content-Length for
        an answer that is under way or was cut.
      connection_id: number of the TCP connection, unique over all origins.
      faulted: whether a `Fault` changed this answer.
    """

    time_seconds: float
    origin: Origin
    kind: RequestKind
    method: str
    path: str
    file: str | None
    range: str | None
    had_authorization: bool
    status: int
    body_bytes_sent: int
    connection_id: int
    faulted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong with some requests.

    If several faults match a request, the first one added that has finished skipping, is not used
    up and is drawn is applied; later ones are left alone and do not count it. Offsets count bytes
    of the body of the answer, from 0; one past the end of the body acts at its end.

        # one request in twenty
        Fault(origin="cdn", status=503, headers={"Retry-After": "1"}, times=None, probability=0.05)
        # a rate limit
        Fault(origin="hub", status=429, headers={"RateLimit": '"resolvers";r=0;t=5'})
        # the eleventh never ends
        Fault(path_regex=r"\\.mp4$", stall_at=0, skip=10)
        # links that have expired
        Fault(origin="cdn", status=403, times=5)
        # of another commit
        Fault(origin="hub", method="HEAD", headers={"X-Repo-Commit": "0" * 40})
        # access was taken away
        Fault(origin="hub", status=401, headers={"X-Error-Code": "GatedRepo"})
        # to another host
        Fault(origin="cdn", status=302, headers={"Location": "http://localhost:9/elsewhere"})
        # in a circle
        Fault(origin="cdn", status=302, headers={"Location": "/again"}, times=None)
        # a slow drip
        Fault(origin="cdn", bandwidth_bytes_per_second=100)

    Attributes:
      origin: `"hub"`, `"cdn"`, `"s3"`, `"gcs"`, or None for all.
      method: `"GET"`, `"HEAD"`, `"POST"`, or None for every one.
      path_regex: searched (not anchored) in the URL's path, percent-decoded and without the query,
        and in the path of the file inside its repository. One hit is enough, so that `r"\\.mp4$"`
        also finds the requests to the CDN, whose URLs do not name the file.
      range_regex: searched in the Range header; None matches with or without one, any string only
        requests that have one.
      skip: how many matching requests are let through first.
      times: how many requests it is applied to; None for no end.
      probability: of being drawn, for each matching request. The draw depends on `seed`, the
        request (method, path and Range) and on how often it came before: not on the order of
        requests, so that several threads meet the same faults in every run.
      seed: of `probability`.
      status: answer with this status, `headers` and `body` instead of the real answer (a HEAD gets
        no body).
      headers: added to the answer, replacing those of the same name; also without `status`.
      body: the body that goes with `status`.
      latency_seconds: wait so long before the first byte of the answer, on top of
        `LoopbackHub.set_latency`. Very long: a stall before the head of the answer.
      bandwidth_bytes_per_second: send the body no faster than this.
      truncate_at: close the connection (FIN) after so many bytes of the body; Content-Length still
        promises all.
      reset_at: the same with a reset (RST), 0: between head and body.
      stall_at: send so many bytes of the body and then nothing, until the client hangs up.
      close_before: close the connection (FIN) before the first byte of the answer.
      reset_before: the same with a reset (RST).
      ignore_range: answer 200 with the whole file.
      short_206: leave so many bytes out at the end of a 206, with Content-Length and Content-Range
        to match; at least one byte is sent.
      wrong_content_range: let a 206 claim, in Content-Range, to start and end one byte later than
        it does.
      size_change: let the answer tell a size of the file that is so many bytes larger (or smaller)
        than it is: in X-Linked-Size of the resolver, in Content-Range of a 206, in Content-Length
        of a HEAD for a small file.
      corrupt_at: invert all bits of the byte at this offset.

    Raises:
      ValueError: nothing would go wrong, the connection would end in two ways, a number is
        negative, a probability is none, or a regular expression is none.
    """

    origin: Origin | None = None
    method: str | None = None
    path_regex: str = ""
    range_regex: str | None = None
    skip: int = 0
    times: int | None = 1
    probability: float = 1.0
    seed: int = 0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    latency_seconds: float = 0.0
    bandwidth_bytes_per_second: float | None = None
    truncate_at: int | None = None
    reset_at: int | None = None
    stall_at: int | None = None
    close_before: bool = False
    reset_before: bool = False
    ignore_range: bool = False
    short_206: int | None = None
    wrong_content_range: bool = False
    size_change: int = 0
    corrupt_at: int | None = None

    def __post_init__(self) -> None:
        if self.origin not in (None, *_ORIGINS):
            raise ValueError(
                f"origin of a fault is {self.origin!r}, expected 'hub', 'cdn', 's3', 'gcs' or None"
            )
        for name in ("path_regex", "range_regex"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise ValueError(
                    f"{name} of a fault is {getattr(self, name)!r}, which is no regular "
                    f"expression: {error}"
                ) from None
        for name in (
            "skip",
            "times",
            "latency_seconds",
            "truncate_at",
            "reset_at",
            "stall_at",
            "short_206",
            "corrupt_at",
        ):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} of a fault is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability of a fault is {self.probability}, expected 0 to 1")
        if self.bandwidth_bytes_per_second is not None and self.bandwidth_bytes_per_second <= 0:
            raise ValueError(
                f"bandwidth_bytes_per_second of a fault is {self.bandwidth_bytes_per_second}, "
                "expected more than 0"
            )
        if len(self._endings()) > 1:
            raise ValueError(
                f"a fault ends the connection in one way, not in {len(self._endings())}: "
                f"{', '.join(self._endings())}"
            )
        if self.body and self.status is None:
            raise ValueError(
                "a fault has a body but no status; the body replaces the answer only together "
                "with a status"
            )
        if not self._does_something():
            raise ValueError(
                "a fault without an action; give it for example status=503 or truncate_at=1000"
            )

    def _endings(self) -> list[str]:
        endings = [
            name
            for name in ("truncate_at", "reset_at", "stall_at")
            if getattr(self, name) is not None
        ]
        return endings + [name for name in ("close_before", "reset_before") if getattr(self, name)]

    def _does_something(self) -> bool:
        numbers = (self.status, self.short_206, self.corrupt_at, self.bandwidth_bytes_per_second)
        switches = (
            self.headers,
            self.latency_seconds,
            self.ignore_range,
            self.wrong_content_range,
            self.size_change,
            self._endings(),
        )
        return any(number is not None for number in numbers) or any(map(bool, switches))


def mixed_faults(probability: float, *, seed: int = 0) -> list[Fault]:
    """Returns faults of every kind that may pass, for an imitation of a bad network: add all of
    them to a `LoopbackHub`.

    Among them are none that mean what they say (no access, no such file, another size at the
    resolver), and no flipped bytes, which HTTP cannot notice.

    Args:
      probability: that a request meets one of them, about.
      seed: of what is drawn.
    """
    of_both: list[dict[str, Any]] = [
        {"status": 503},
        {"status": 500, "body": b"Internal Server Error"},
        {"status": 503, "headers": {"Retry-After": "0"}},
        {"status": 429},
        {"close_before": True},
        {"reset_before": True},
        {"latency_seconds": 1000},
        {"latency_seconds": 0.5},
        {"reset_at": 500},
        {"truncate_at": 1000},
    ]
    of_one: list[dict[str, Any]] = [
        {"origin": "cdn", "stall_at": 500},
        {"origin": "cdn", "bandwidth_bytes_per_second": 1000},
        {"origin": "cdn", "ignore_range": True},
        {"origin": "cdn", "short_206": 10},
        {"origin": "cdn", "wrong_content_range": True},
        {"origin": "cdn", "size_change": 1},
        {"origin": "cdn", "headers": {"Content-Encoding": "gzip"}},
        {"origin": "cdn", "status": 403},
        {"origin": "cdn", "status": 302, "headers": {"Location": "/elsewhere"}},
        {"origin": "hub", "status": 429, "headers": {"RateLimit": '"resolvers";r=0;t=1'}},
        {"origin": "hub", "headers": {"X-Repo-Commit": "0" * 40}},
    ]
    kinds = of_both + of_one
    # Nearly all requests are those to the CDN.
    share = probability / (len(of_both) + sum(kind["origin"] == "cdn" for kind in of_one))
    return [
        Fault(times=None, probability=share, seed=1000 * seed + number, **kind)
        for number, kind in enumerate(kinds)
    ]


def encode_fault(fault: Fault) -> dict[str, Any]:
    """Returns `fault` as JSON values; the inverse is `decode_fault`."""
    return asdict(fault) | {"headers": dict(fault.headers), "body": fault.body.decode("latin-1")}


def decode_fault(values: dict[str, Any]) -> Fault:
    return Fault(**(values | {"body": values["body"].encode("latin-1")}))

"""The part of HTTP/1.1 that the loopback Hub speaks, without sockets: requests from bytes, answers
to bytes, and ranges of files.

Rules:
* An answer's body is bytes or a slice of a file on disk; a slice is read only while it is being
  sent.
* RFC 9110 sections 13 (conditions) and 14 (ranges). Only a single range is understood; several, and
  units other than bytes, are ignored, which the RFC allows and the real CDN does too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import unquote

from lerobot_grain.testing._hub.messages import RequestKind

REASONS = {
    200: "OK",
    206: "Partial Content",
    302: "Found",
    304: "Not Modified",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
# Real heads are below 4 KB, of which the signed query of a CDN URL is the longest part.
MAX_HEAD_BYTES = 65536

_SINGLE_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


class FileSlice(NamedTuple):
    """The bytes `[start, stop)` of the file at `disk_path`, which had this size and mtime (in ns)
    when it was listed.
    """

    disk_path: str
    size_bytes: int
    mtime_ns: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def raw_path(self) -> str:
        """The path as it was sent: a quoted `/` (`%2F`, in a branch's name) is not a
        separator yet.
        """
        return self.target.partition("?")[0]

    @property
    def path(self) -> str:
        return unquote(self.raw_path)

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to send.

    `file` is the path inside the repository that the request was about, `kind` is that of
    `RequestRecord`.
    """

    status: int
    headers: dict[str, str]
    body: bytes | FileSlice
    kind: RequestKind = "other"
    file: str | None = None

    @property
    def body_bytes(self) -> int:
        return (
            self.body.stop - self.body.start if isinstance(self.body, FileSlice) else len(self.body)
        )


class BadRequestError(Exception):
    """The client does not speak HTTP/1.1 as far as it is understood here."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def parse_request(buffer: bytearray) -> tuple[Request, int] | None:
    """Returns the request at the start of `buffer` and its length in bytes, or None while it is
    incomplete.

    Raises:
      BadRequestError: malformed, too large, or with a chunked body.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_HEAD_BYTES:
            raise BadRequestError(431)
        return None
    lines = buffer[:end].decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[1].startswith("/"):
        raise BadRequestError(400)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequestError(400)
        headers[name.lower()] = value.strip()
    if words[2] == "HTTP/1.0":
        headers.setdefault("connection", "close")
    if "transfer-encoding" in headers:
        raise BadRequestError(411)
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise BadRequestError(400)
    stop = end + 4 + int(length)
    if len(buffer) < stop:
        return None
    return Request(words[0], words[1], headers, bytes(buffer[end + 4 : stop])), stop


def render_head(answer: Answer) -> bytes:
    """Returns the status line and the headers.

    Content-Length is the body's unless the answer gives one.
    """
    lines = [f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    # 304 never has a body, RFC 9110 section 15.4.5; its Content-Length would be that of the file.
    if answer.status != 304 and not any(
        name.lower() == "content-length" for name in answer.headers
    ):
        lines.append(f"Content-Length: {answer.body_bytes}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def with_headers(answer: Answer, headers: dict[str, str]) -> Answer:
    """Returns `answer` with `headers` added, which replace those of the same name in any case."""
    replaced = {name.lower() for name in headers}
    kept = {name: value for name, value in answer.headers.items() if name.lower() not in replaced}
    return replace(answer, headers=kept | headers)


def xml_error(status: int, code: str, message: str) -> Answer:
    """Returns an error as the object store under the CDN words it."""
    text = (
        '<?xml version="1.0" '
        f'encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    )
    return Answer(status, {"Content-Type": "application/xml"}, text.encode())


def answer_file(request: Request, whole: FileSlice, etag: str, content_type: str) -> Answer:
    """Answers a GET or HEAD for the file `whole`, whose strong entity tag (with its quotes) is
    `etag`: 200, 206, 304, 412 or 416.
    """
    headers = {"Content-Type": content_type, "ETag": etag, "Accept-Ranges": "bytes"}
    if not _names(request.headers.get("if-match", "*"), etag):
        return with_headers(
            xml_error(412, "PreconditionFailed", "At least one of the preconditions did not hold"),
            {"ETag": etag},
        )
    if "if-none-match" in request.headers and _names(request.headers["if-none-match"], etag):
        return Answer(304, headers, b"")
    size = whole.size_bytes
    found = _SINGLE_RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or found.groups() == ("", "") or request.headers.get("if-range", etag) != etag:
        return Answer(200, headers, whole)
    first, last = found.groups()
    if first == "":
        start = max(0, size - int(last))
        stop = size
    else:
        start = int(first)
        stop = min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            # An invalid range is as good as none, RFC 9110 section 14.1.1.
            return Answer(200, headers, whole)
    if start >= size:
        return with_headers(
            xml_error(416, "InvalidRange", "The requested range is not satisfiable"),
            {"Content-Range": f"bytes */{size}"},
        )
    return Answer(
        206,
        headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"},
        whole._replace(start=start, stop=stop),
    )


def _names(condition: str, etag: str) -> bool:
    return condition.strip() == "*" or etag in [tag.strip() for tag in condition.split(",")]

"""Validates HTTP responses: status, headers and addresses. No I/O.

The idea: a server, a proxy or a CDN may answer anything. An answer counts only if it is exactly
what was asked for; one that is not is asked for again, and what is never right becomes the error.

Rules:
* Texts hold scheme, host and path of a URL, never its query (a signed link is a key to the file for
  an hour) and never a header.
* A response that may be right the next time is a `RetryableError`; one that must not be tried again
  (a redirect away from https) is a `StorageError`.
"""

from __future__ import annotations

import dataclasses
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import parse_qs, urljoin, urlsplit

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._storage.git_files import MAX_POINTER_BYTES, blob_name, hash_in

# A link is used until 30 s before its end: a request that waits in a queue must still find it
# valid.
_LINK_MARGIN_SECONDS = 30.0
# The Hub signs for an hour; an unsigned link is asked for again as often.
_LONGEST_LINK_SECONDS = 3600.0

# The most that a message quotes from a server.
_MAX_SHOWN = 200

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Values of Content-Encoding with which the bytes are sent as they are stored: those that programs
# give to objects by mistake, and `aws-chunked`, which some stores keep from the upload.
_NO_ENCODING = frozenset({"", "identity", "none", "binary", "utf-8", "utf8", "aws-chunked"})

_CONTENT_RANGE = re.compile(r"bytes (?:\d+-\d+|\*)/(\d{1,18})")
_SIZE = re.compile(r"\d{1,18}")
# No user and password, which would come back in messages; a path, because mirrors and gateways have
# one.
_ENDPOINT = re.compile(r"https?://([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[\w./~-]*)?")
# Also of a relative one, as redirects may have it.
_URL_QUERY = re.compile(r"(/[^\s?#'\"]*)[?#][^\s'\"]*")


class RetryableError(Exception):
    """An attempt failed in a way that the next one may not; the text says how, free of secrets."""


class LinkRefused(Exception):  # noqa: N818 (the caller's cue to ask for another link)
    """A server refuses a link (HTTP 401, 403, 404, ...): expired, signed wrongly, or leading
    nowhere any more.
    """


@dataclasses.dataclass(slots=True, eq=False)
class RangeSource:
    """The address of the bytes of one file, with its known properties.

    Attributes:
      url: may be signed, so it never stands in a text.
      headers: sent along as long as redirects stay at the origin of `url`.
      file_bytes: the size of the whole file; every answer must agree.
      etag: of the first answer; every later one must agree.
      may_be_pointer: whether the last answer told another size, or none, that a Git LFS pointer may
        have.
    """

    url: str
    headers: Mapping[str, str]
    file_bytes: int
    etag: str | None = None
    may_be_pointer: bool = False


class Response(NamedTuple):
    """Status and headers of an answer; the body went where `HttpClient.exchange` was told to put
    it. `headers` ignores case.
    """

    status: int
    headers: Mapping[str, str]


def cut(text: str) -> str:
    """Returns a text of a server for a message: without control characters, and no longer than a
    line or two.
    """
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:_MAX_SHOWN])
    return shown if len(text) <= _MAX_SHOWN else f"{shown}..."


def redact(text: str) -> str:
    """Returns `text` with the query and fragment of every URL in it cut off, whole ones and paths
    alike.
    """
    return _URL_QUERY.sub(r"\1", text)


def describe_url(url: str) -> str:
    """Returns scheme, host, port and path: what may stand in a message."""
    parts = urlsplit(url)
    return cut(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Returns (scheme, host, port) in a form that compares equal for the same server."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return (
        scheme,
        (parts.hostname or "").lower(),
        parts.port or {"http": 80, "https": 443}.get(scheme),
    )


def host_of(url: str) -> str:
    """Returns the name of the server, for a message."""
    return cut(origin_of(url)[1])


def checked_endpoint(endpoint: str, *, of: str, example: str) -> str:
    """Returns the address of a server that a user named, without a slash at its end.

    Args:
      endpoint: as it was given.
      of, example: what it should be the address of, and such an address; for the message.

    Raises:
      InvalidRequestError: it is none.
    """
    endpoint = endpoint.rstrip("/")
    if not _ENDPOINT.fullmatch(endpoint):
        raise InvalidRequestError(
            f"endpoint {endpoint.rpartition('@')[2]!r}: expected the address of {of}, such as "
            f"{example}"
        )
    return endpoint


def next_hop(url: str, location: str | None, *, subject: str) -> str:
    """Returns where a redirect leads.

    Raises:
      StorageError: it leads nowhere, away from HTTP, or from https to http (where anyone on the way
        could read and change the bytes).
    """
    try:
        target = urljoin(url, location or "")
        scheme, host, _ = origin_of(target)
    except ValueError:
        target = scheme = host = ""
    if not location or scheme not in ("http", "https") or not host:
        found = f"{cut(scheme)}:" if location and scheme else "nowhere"
        raise StorageError(
            f"{subject}: {describe_url(url)} redirects to {found}, expected an http or https "
            "address"
        )
    if origin_of(url)[0] == "https" and scheme == "http":
        raise StorageError(
            f"{subject}: {describe_url(url)} redirects from https to http at {cut(host)}, which "
            "is refused"
        )
    return target


def lifetime_seconds(url: str, date: str | None) -> float:
    """Returns how long a signed link may be used from now on; zero or less when it is good for the
    next request only.

    Args:
      url: with `Expires` (CloudFront: a time) or `X-Amz-Expires` (S3: seconds) in its query, or
        none of them.
      date: the `Date` of the answer that brought it: `Expires` is a time of the server's clock, and
        ours may be wrong by hours.
    """
    query = parse_qs(urlsplit(url).query)
    try:
        now = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        now = time.time()
    seconds = [_LONGEST_LINK_SECONDS]
    for name, counted_from in (("Expires", now), ("X-Amz-Expires", 0.0)):
        seconds += [
            float(value) - counted_from for value in query.get(name, []) if value.isdecimal()
        ]
    return min(seconds) - _LINK_MARGIN_SECONDS


def accept_range(answer: Response, *, source: RangeSource, asked: ByteRange) -> int | None:
    """Returns the length of the body if the answer is exactly the range `asked`, None if its status
    says something else.

    A whole file may be answered with status 200, RFC 9110 section 14.2.

    Raises:
      RetryableError: it is a body, but another one. The RFC allows a server to ignore a range and
        send everything; CloudFront does for compressed answers.
    """
    is_whole = asked == (0, source.file_bytes)
    source.may_be_pointer = _may_be_pointer(answer, source.file_bytes)
    if answer.status not in (200, 206):
        return None
    if answer.status == 200 and not is_whole:
        raise RetryableError(
            f"{describe_url(source.url)} ignores byte ranges (HTTP 200 with the whole file, "
            "expected 206)"
        )
    found = answer.headers.get("Content-Range", "none")
    expected = f"bytes {asked.start}-{asked.stop - 1}/{source.file_bytes}"
    if answer.status == 206 and found != expected:
        told = _CONTENT_RANGE.fullmatch(found)
        changed = "; the file was changed" if told and int(told[1]) != source.file_bytes else ""
        raise RetryableError(
            f"answered with Content-Range {cut(found)!r}, expected {expected!r}{changed}"
        )
    encoding = answer.headers.get("Content-Encoding", "identity")
    length = answer.headers.get("Content-Length", str(asked.length))
    if encoding.strip().lower() not in _NO_ENCODING or length != str(asked.length):
        raise RetryableError(
            f"answered with {cut(length)} bytes, encoding {cut(encoding)!r}; expected "
            f"{asked.length} bytes as they are"
        )
    etag = answer.headers.get("ETag")
    if source.etag is None:
        source.etag = etag
    elif etag != source.etag:
        raise RetryableError(
            f"the file was changed while it was read (ETag {cut(str(etag))}, before "
            f"{cut(source.etag)})"
        )
    return asked.length


def _may_be_pointer(answer: Response, file_bytes: int) -> bool:
    size = str(file_bytes)
    if answer.status in (206, 416):
        told = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        size = told[1] if told else size
    elif answer.status == 200:
        size = answer.headers.get("Content-Length", "0")
    return (
        bool(_SIZE.fullmatch(size)) and int(size) <= MAX_POINTER_BYTES and int(size) != file_bytes
    )


def size_in(answer: Response, size_header: str, etag_header: str) -> int | None:
    """Returns the size of a file that an answer about it tells; None if it tells none that can be
    right.

    Mirrors that do not know it, or whose answers to HEAD are those of a handler without a body,
    tell 0: only an ETag that is the hash of nothing says that a file is empty.
    """
    size = answer.headers.get(size_header, "")
    told = hash_in(answer.headers.get(etag_header))
    if not _SIZE.fullmatch(size) or (int(size) == 0 and not (told and blob_name(b"", told))):
        return None
    return int(size)


def untrusted_certificate(error: BaseException | None) -> str | None:
    """Returns what to say of a server when `error` comes from a certificate that was not accepted,
    else None. Asking again is of no use.
    """
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"shows a certificate that is not trusted ({error.verify_message}); if it is a "
                "mirror or proxy of yours, let SSL_CERT_FILE or SSL_CERT_DIR name its certificate "
                "authority"
            )
        error = error.__cause__ or error.__context__
    return None

"""`FlightReaders`: readers that are `ReaderServer`s, asked through Arrow Flight.

Rules:
* A lane has a server of its own, its home: of n servers, lane i has server i. A lane whose server
  does not answer asks the next one, and goes home again when that is back.
* What arrives is data: record batches and JSON.
* A machine that is gone does not say so. A server from which nothing has come for a while is asked
  whether it is there, and counts as lost if it does not answer. Silence alone is no reason: a piece
  may take minutes. gRPC's own pings are not used: servers that send nothing take more than one in
  5 minutes as an attack.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grain
import pyarrow as pa
from pyarrow.lib import ArrowException

from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._datasets.feed.packing import PackedBatch, unchanged
from lerobot_grain._datasets.feed.remote.definition import definition_of
from lerobot_grain._datasets.feed.remote.flight import check_token, flight_module
from lerobot_grain._datasets.feed.remote.lanes import LaneRequest, LostReaderError
from lerobot_grain._datasets.feed.remote.reader_server import is_loopback
from lerobot_grain._datasets.feed.remote.record_batches import batch_of
from lerobot_grain._datasets.feed.remote.tickets import Note, ticket_of
from lerobot_grain._datasets.feed.worker_stream import Piece

# Readers are machines of one's own: no proxy of the environment leads to them.
_OPTIONS = [("grpc.enable_http_proxy", 0)]
# A lane that waits for a chunk asks so often whether its server is there, and waits so long for the
# answer.
_LOOK_SECONDS = 10.0
_ANSWER_SECONDS = 10.0
# A lane that is a guest looks so often whether its own server is back.
_HOME_SECONDS = 10.0
_PING_SECONDS = 1.0
_NOTHING = pa.schema([])
_SCHEMES = ("grpc", "grpc+tls")
_SECRET = "@?#"


@dataclass(frozen=True, slots=True)
class FlightReaders:
    """Readers that are `ReaderServer`s: `readers=` of `RemoteReaderIterDataset`.

        FlightReaders(["grpc+tls://reader-0:8815", "grpc+tls://reader-1:8815"], token=token)

    Attributes:
      urls: of the servers, as `ReaderServer.url`; one that comes twice reads two shards. At least
        one.
      token: that the servers want.
      root_certificates: path of a PEM file with the certificate that signed those of the servers;
        `None`: those of the system.
      allow_insecure: whether a token, or examples, may go to another machine without TLS.

    Raises:
      InvalidRequestError: a URL is none; it leads to another machine without TLS; the token is
        none that can be sent; or pyarrow was built without Flight.
      StorageError: the PEM file cannot be read.
    """

    urls: Sequence[str]
    token: str | None = field(default=None, repr=False)
    root_certificates: str | Path | None = None
    allow_insecure: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.urls, str) or not self.urls:
            raise InvalidRequestError(
                f"FlightReaders: urls is {'a str' if self.urls else 'empty'}; expected a list of "
                "at least one URL"
            )
        object.__setattr__(self, "urls", tuple(self.urls))
        flight_module("FlightReaders")
        check_token(self.token, of="FlightReaders")
        for number, url in enumerate(self.urls):
            self._check(number, url)
        _certificates(self.root_certificates)

    def _check(self, number: int, url: str) -> None:
        # A password or a query would stand in messages.
        has_secret = isinstance(url, str) and any(sign in url for sign in _SECRET)
        try:
            parts = urlsplit(url)
            is_right = (
                parts.scheme in _SCHEMES
                and parts.hostname
                and parts.port
                and parts.path in ("", "/")
                and not has_secret
            )
        except (AttributeError, TypeError, ValueError):  # also of what is no text
            is_right = False
        if not is_right:
            found = f"holds one of {' '.join(_SECRET)}" if has_secret else f"is {url!r}"
            raise InvalidRequestError(
                f"FlightReaders: urls[{number}] {found}; expected grpc://host:port or "
                "grpc+tls://host:port, as ReaderServer.url is; the token goes into token="
            )
        is_safe = parts.scheme == "grpc+tls" or is_loopback(parts.hostname or "")
        if not (is_safe or self.allow_insecure):
            raise InvalidRequestError(
                f"FlightReaders: {url} leads to another machine without TLS; expected grpc+tls://, "
                "or allow_insecure=True on a network where everybody may read"
            )

    @property
    def num_readers(self) -> int:
        """Shards that are read, one for each URL."""
        return len(self.urls)

    def open(self, dataset: grain.IterDataset[Any]) -> OpenFlightReaders:
        """As of `remote_readers.RemoteReaders`."""
        return OpenFlightReaders(self, definition_of(dataset, asked_by="RemoteReaderIterDataset"))


class OpenFlightReaders:
    """Connections to the servers (`lanes.OpenReaders`)."""

    def __init__(self, readers: FlightReaders, definition: Mapping[str, Any]) -> None:
        self._flight = flight_module("FlightReaders")
        self._readers = readers
        self._definition = definition
        self._headers = (
            []
            if readers.token is None
            else [(b"authorization", f"Bearer {readers.token}".encode())]
        )
        # By lane: how many servers it has gone on from its home, and what it reads from.
        self._moves = [0] * readers.num_readers
        self._reading: dict[int, _Stream] = {}
        # The garbage collector may call `close` in a thread that holds it.
        self._lock = threading.RLock()
        self._is_closed = False

    def pieces(self, lane: int, request: LaneRequest) -> Iterator[Piece]:
        """As of `lanes.OpenReaders`."""
        parts: list[PackedBatch] = []
        while True:
            # Where the examples got other shapes in the middle of a piece, its rest comes alone.
            collected = sum(part.num_examples for part in parts)
            asked = replace(request.after(collected), piece_size=request.piece_size - collected)
            url = self._url(lane)
            goes_home_at = time.monotonic() + _HOME_SECONDS
            has_come = False
            for batch, note in self._messages(lane, url, asked):
                if batch is None:
                    if parts:
                        yield Piece(request.first, tuple(parts), note.error)
                    elif note.error is not None:
                        raise note.error
                    return
                if not has_come and note.first != asked.first:
                    raise _unknown(url, f"position {note.first} in place of {asked.first}")
                has_come = True
                parts.append(unchanged(batch_of(batch)))
                del batch
                if note.goes_on:
                    continue
                piece = Piece(request.first, tuple(parts), note.error)
                parts.clear()
                request = request.after(piece.num_examples)
                yield piece
                del piece
                if asked.piece_size < request.piece_size:
                    break
                if self._moves[lane] and time.monotonic() > goes_home_at:
                    if self._is_there(self._readers.urls[lane]):
                        self._moves[lane] = 0
                        break
                    goes_home_at = time.monotonic() + _HOME_SECONDS
            else:
                if not has_come:
                    raise self._lost(lane, url, "it ended without a piece")

    def _messages(self, lane: int, url: str, request: LaneRequest) -> Iterator[tuple[Any, Note]]:
        """Yields record batches, `None` at the end, and what is said of each."""
        flight = self._flight
        options = flight.FlightCallOptions(headers=self._headers)
        asked = flight.FlightDescriptor.for_command(ticket_of(request, self._definition))
        try:
            with self._client(url) as client:
                # It waits for a connection. Not `do_get`, which waits for the first piece, too, and
                # cannot be ended while it does.
                writer, reader = client.do_exchange(asked, options)
                stream = _Stream(reader, lambda: self._answers(client, _ANSWER_SECONDS))
                self._note(lane, stream)
                try:
                    with contextlib.suppress(OSError):
                        # A refusal of the token may be complete before this is sent.
                        writer.begin(_NOTHING)
                        writer.done_writing()
                    while True:
                        yield _read(stream.read_chunk(), url)
                finally:
                    self._note(lane, None)
                    stream.end()
                    with contextlib.suppress(ArrowException, OSError):
                        # Said to be canceled; else it would be printed when it is collected.
                        writer.close()
        except StopIteration:
            # Without a note that it ends: the server was closed, or wants to be asked again.
            return
        except StorageError:
            raise
        except flight.FlightUnauthenticatedError:
            raise StorageError(
                f"the reader at {url} refuses the token; expected the one that it was started "
                "with, in FlightReaders(token=...)"
            ) from None
        except (flight.FlightError, ArrowException, OSError) as error:
            raise self._lost(lane, url, str(error)) from None

    def _lost(self, lane: int, url: str, reason: str) -> LostReaderError:
        """Returns the error that a server was lost; the lane asks the next one from now on."""
        self._moves[lane] += 1
        line = next(iter(reason.splitlines()), "it did not say why")
        return LostReaderError(f"the reader at {url} was lost: {line[:200]}")

    def _note(self, lane: int, stream: _Stream | None) -> None:
        """Notes what a lane reads from, so that `close` ends it; `None`: nothing any more."""
        with self._lock:
            self._reading.pop(lane, None)
            if stream is not None:
                self._reading[lane] = stream
                if self._is_closed:
                    stream.cancel()

    def _is_there(self, url: str) -> bool:
        try:
            with self._client(url) as client:
                return self._answers(client, _PING_SECONDS)
        except (self._flight.FlightError, ArrowException, OSError):
            return False

    def _answers(self, client: Any, seconds: float) -> bool:
        """Returns whether the server of a client answers, over its connection."""
        flight = self._flight
        options = flight.FlightCallOptions(timeout=seconds, headers=self._headers)
        try:
            return bool(list(client.do_action(flight.Action("ping", b""), options)))
        except (flight.FlightError, ArrowException, OSError):
            return False

    def _url(self, lane: int) -> str:
        urls = self._readers.urls
        return urls[(lane + self._moves[lane]) % len(urls)]

    def _client(self, url: str) -> Any:
        return self._flight.FlightClient(
            url,
            tls_root_certs=_certificates(self._readers.root_certificates),
            generic_options=_OPTIONS,
        )

    def close(self) -> None:
        """As of `lanes.OpenReaders`."""
        with self._lock:
            self._is_closed = True
            # A collection of garbage in the middle may end a lane of this thread, too.
            for stream in list(self._reading.values()):
                stream.cancel()


class _Stream:
    """What a lane reads from; a thread cancels it if its server is gone while the lane waits.

    Args:
      reader: of Flight.
      is_there: asks the server whether it is there.
    """

    def __init__(self, reader: Any, is_there: Callable[[], bool]) -> None:
        self._reader = reader
        self._is_there = is_there
        # Odd while the lane waits for a chunk; raised where a wait begins, and where it ends.
        self._turn = 0
        self._has_ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="lerobot_grain watch").start()

    def read_chunk(self) -> Any:
        """Waits for the next chunk; raises once it is canceled."""
        self._turn += 1
        try:
            return self._reader.read_chunk()
        finally:
            self._turn += 1

    def cancel(self) -> None:
        """Makes `read_chunk` raise; takes no lock, since the garbage collector may call it."""
        self._reader.cancel()

    def end(self) -> None:
        """Ends the thread, too."""
        self._has_ended.set()
        self._reader.cancel()

    def _watch(self) -> None:
        while not self._has_ended.wait(_LOOK_SECONDS):
            turn = self._turn
            if turn % 2 and not self._is_there() and self._turn == turn:
                self._reader.cancel()
                return


def _read(chunk: Any, url: str) -> tuple[Any, Note]:
    """Returns the record batch in a chunk, and what is said of it; `None`: the stream ends."""
    try:
        note = Note.of(chunk.app_metadata.to_pybytes())
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError):
        raise _unknown(url, "a message that is none of a reader") from None
    has_examples = chunk.data is not None and chunk.data.num_rows > 0
    if not has_examples and not note.ends:
        raise _unknown(url, "an empty message")
    return (chunk.data if has_examples else None), note


def _unknown(url: str, what: str) -> StorageError:
    return StorageError(
        f"the server at {url} sent {what}; expected a ReaderServer of the same version of "
        "lerobot_grain"
    )


def _certificates(path: str | Path | None) -> bytes | None:
    """Returns the certificates in a PEM file."""
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StorageError(
            f"FlightReaders(root_certificates={str(path)!r}): {error.strerror}; expected a PEM file"
        ) from None

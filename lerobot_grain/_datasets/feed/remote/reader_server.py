"""`ReaderServer`: reads streams for consumers on other machines, through Arrow Flight.

Rules:
* Nothing is kept of a consumer: a ticket says all (`tickets`). A server that is started again, or
  another one with the same dataset, serves what a lost one did not send.
* Nothing that a ticket holds is run or unpickled: the dataset is the one that the server was
  started with, and another one is refused.
* It reads on where the consumer has taken what was sent: gRPC's window is the limit, besides what
  the stream itself reads ahead.
* Errors of what is read are sent as messages, so that they come at their place in the stream.
"""

from __future__ import annotations

import copy
import functools
import hmac
import ipaddress
import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import pyarrow as pa

from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._datasets.feed.packing import unpacked
from lerobot_grain._datasets.feed.remote.definition import definition_of
from lerobot_grain._datasets.feed.remote.flight import check_token, flight_module
from lerobot_grain._datasets.feed.remote.record_batches import empty_like, record_batch_of
from lerobot_grain._datasets.feed.remote.tickets import Note, request_in
from lerobot_grain._datasets.feed.worker_stream import Piece, PiecesIterDataset
from lerobot_grain._datasets.pipelines import only_source_under

_SHUTDOWN_SECONDS = 5.0


class ReaderServer:
    """Reads a stream for `RemoteReaderIterDataset`s on other machines, through Arrow Flight.

        if __name__ == "__main__":
            dataset = LeRobotIterDataset("lerobot/pusht", delta_timestamps=chunk)
            with ReaderServer(dataset, port=8815) as server:
                server.wait()

    It serves from its construction on, any number of consumers, each from the state that it asks
    for, in any number of shards. Each stream that is read has a memory budget and threads of its
    own.

    By default only this machine reaches it. If it listens beyond, it wants a token and TLS:
    examples are sent to everybody who knows the token, and nobody else sees them.

    Args:
      dataset: the same as that of the consumers; its `shard_options` do not count.
      host: address to listen on; `"0.0.0.0"`: all of the machine.
      port: 0: a free one.
      token: that consumers must send; `None`: everybody who reaches the port is served.
      certificate, private_key: paths of PEM files, for TLS.
      allow_insecure: whether it may listen beyond this machine without a token or without TLS.

    Attributes:
      url: `grpc://host:port`, or `grpc+tls://host:port`.
      port: that it listens on.

    Raises:
      InvalidRequestError: `dataset` is none that readers can read; it would listen beyond this
        machine without a token or without TLS; a certificate comes without its key; the token is
        none that can be sent; or pyarrow was built without Flight.
      StorageError: a PEM file cannot be read, or the port cannot be listened on.
    """

    def __init__(
        self,
        dataset: grain.IterDataset[Any],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        certificate: str | os.PathLike[str] | None = None,
        private_key: str | os.PathLike[str] | None = None,
        allow_insecure: bool = False,
    ) -> None:
        check_token(token, of="ReaderServer")
        if (certificate is None) != (private_key is None):
            raise InvalidRequestError(
                "ReaderServer: found one of certificate and private_key; expected both, or neither"
            )
        if not (is_loopback(host) or allow_insecure) and (token is None or certificate is None):
            raise InvalidRequestError(
                f"ReaderServer(host={host!r}): it would listen beyond this machine without "
                f"{'a token' if token is None else 'TLS'}; expected token=, certificate= and "
                "private_key=, or allow_insecure=True on a network where everybody may read"
            )
        served = _Served(dataset)
        scheme = "grpc" if certificate is None else "grpc+tls"
        try:
            certificates = (
                None
                if certificate is None or private_key is None
                else [(Path(certificate).read_bytes(), Path(private_key).read_bytes())]
            )
            self._server = _server_class()(
                served, f"{scheme}://{_in_url(host)}:{port}", token, certificates
            )
        except OSError as error:
            raise StorageError(
                f"ReaderServer(host={host!r}, port={port}): {error}; expected an address and a "
                "free port of this machine, and PEM files that can be read"
            ) from None
        self.port: int = self._server.port
        self.url = f"{scheme}://{_in_url(host)}:{self.port}"
        served.where = f"the reader at {self.url}"
        self._served = served

    def wait(self) -> None:
        """Serves until the process is told to end (SIGINT, SIGTERM), or `close` is called."""
        self._server.serve()

    def close(self) -> None:
        """Ends what is sent, and stops to listen. Consumers go on with other servers."""
        self._served.stop.set()
        # A stream whose consumer takes nothing never ends.
        thread = threading.Thread(target=self._server.shutdown, daemon=True)
        thread.start()
        thread.join(_SHUTDOWN_SECONDS)

    def __enter__(self) -> ReaderServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"ReaderServer({self.url})"


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Part(NamedTuple):
    """A record batch, and what is said of it."""

    batch: Any
    note: Note


class _Served:
    """The stream that a server reads.

    Attributes:
      where: names the server.
      stop: set when the server is closed.
    """

    def __init__(self, dataset: grain.IterDataset[Any]) -> None:
        self._definition = definition_of(dataset, asked_by="ReaderServer")
        # Its own: the part of the source changes with every ticket.
        self._dataset = copy.deepcopy(dataset)
        self._source = only_source_under(self._dataset, asked_by="ReaderServer")
        self._lock = threading.Lock()
        self.where = "a reader"
        self.stop = threading.Event()

    def parts(self, ticket: bytes) -> Generator[_Part, None, None]:
        """Yields what a ticket asks for; an error that ends it is a note, too. Where the examples
        get other shapes, it just ends: a stream of Flight has one schema.
        """
        pieces: Any = None
        try:
            pieces = self._open(ticket)
            schema = None
            for piece in pieces:
                for part in _parts_of(piece):
                    # With the metadata, where shapes and dtypes stand: `!=` compares none.
                    if schema is not None and not part.batch.schema.equals(
                        schema, check_metadata=True
                    ):
                        return
                    schema = part.batch.schema
                    yield part
                if self.stop.is_set():
                    return
            yield _Part(None, Note(ends=True))
        except Exception as error:
            yield _Part(None, Note(ends=True, error=error))
        finally:
            if pieces is not None:
                pieces.close()

    def _open(self, ticket: bytes) -> grain.DatasetIterator[Piece]:
        request = request_in(
            ticket, self._definition, self._source.part.num_positions, where=self.where
        )
        with self._lock:
            # Iterators take over the part when they are made.
            self._source.part = request.part
            return PiecesIterDataset(
                self._dataset,
                copy.copy(self._source),
                request.state,
                of="RemoteReaderIterDataset",
                piece_size=request.piece_size,
            ).__iter__()


def _parts_of(piece: Piece) -> list[_Part]:
    last = len(piece.parts) - 1
    return [
        _Part(
            record_batch_of(unpacked(part)),
            Note(piece.first, goes_on=number < last, error=piece.error if number == last else None),
        )
        for number, part in enumerate(piece.parts)
    ]


@functools.cache
def _server_class() -> Any:
    """Returns the class of Flight's servers that serve a stream; pyarrow may be without Flight."""
    flight = flight_module("ReaderServer")

    class Checks(flight.ServerMiddlewareFactory):  # type: ignore[name-defined]
        """Refuses calls without the token."""

        def __init__(self, token: str) -> None:
            self._expected = f"Bearer {token}".encode()

        def start_call(self, _info: Any, headers: dict[str, list[Any]]) -> None:
            found = [value for name, value in headers.items() if name.lower() == "authorization"]
            given = str(found[0][0]).encode() if found and found[0] else b""
            if not hmac.compare_digest(given, self._expected):
                raise flight.FlightUnauthenticatedError(
                    "the token is missing, or not the right one"
                )

    class Server(flight.FlightServerBase):  # type: ignore[name-defined]
        def __init__(
            self, served: _Served, location: str, token: str | None, certificates: Any
        ) -> None:
            self._served = served
            middleware = None if token is None else {"token": Checks(token)}
            super().__init__(location, tls_certificates=certificates, middleware=middleware)

        def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
            # The consumer sends nothing but the ticket. If an answer were complete before that has
            # ended, the consumer's side of Arrow would drop it.
            for _ in reader:
                pass
            parts = self._served.parts(descriptor.command)
            try:
                _send(parts, writer, context)
            finally:
                parts.close()

        def do_action(self, _context: Any, _action: Any) -> list[bytes]:
            return [b"here"]

    return Server


def _send(parts: Iterator[_Part], writer: Any, context: Any) -> None:
    """Sends parts until there are no more, or nobody wants them."""
    empty: Any = None
    while not context.is_cancelled():
        # No variable keeps a part while the next one is made.
        part = next(parts, None)
        if part is None:
            return
        if empty is None:
            # The first one says what the schema is.
            empty = empty_like(pa.schema([]) if part.batch is None else part.batch.schema)
            writer.begin(empty.schema)
        batch = empty if part.batch is None else part.batch
        writer.write_with_metadata(batch, pa.py_buffer(part.note.packed()))
        del part, batch

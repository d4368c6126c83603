"""The process of the loopback Hub: a listening socket for each origin, and a control pipe on
standard input and output.

It is started by `LoopbackHub` (module `_hub`), in a process of its own so that it does not compete
with the test for the interpreter lock.

Rules:
* Asyncio protocols, no HTTP library: only those can reset, cut or stall a connection at a given
  byte.
* Small answers are written from within the callback that received the request; a task is made only
  where something has to be waited for.
* Requests and commands are handled in one thread, and a request is in the log before the first byte
  of its answer is sent. A test that has received an answer therefore finds it in the log.
* It ends when its standard input does, which is when the parent closes the pipe or dies however
  suddenly.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import json
import os
import signal
import socket
import struct
import sys
import termios
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

from lerobot_grain.testing._hub.buckets import Bucket
from lerobot_grain.testing._hub.cdn import CdnOrigin
from lerobot_grain.testing._hub.faults import BEFORE_THE_ANSWER, Delivery, FaultRules, apply_fault
from lerobot_grain.testing._hub.http import (
    Answer,
    BadRequestError,
    FileSlice,
    Request,
    parse_request,
    render_head,
    with_headers,
)
from lerobot_grain.testing._hub.messages import Origin, RequestRecord, decode_fault
from lerobot_grain.testing._hub.model import Repository
from lerobot_grain.testing._hub.open_files import OpenFiles
from lerobot_grain.testing._hub.origin import HubOrigin
from lerobot_grain.testing._stores.gcs import GcsOrigin
from lerobot_grain.testing._stores.s3 import S3Origin

CHUNK_BYTES = 262_144
# A limited body is sent in this many pieces a second, so that a slow one comes as a drip and not in
# bursts.
PIECES_PER_SECOND = 50
# How often to look whether the peer has acknowledged everything.
ACKNOWLEDGED_CHECK_SECONDS = 0.002
# For a parent that died while a forked child of it still holds the control pipe open.
PARENT_CHECK_SECONDS = 0.5


class Server:
    """Shared by the connections: origins, faults, the log, and the limits of the network."""

    def __init__(self, hub: HubOrigin, cdn: CdnOrigin, page_entries: int) -> None:
        self.hub = hub
        self.cdn = cdn
        s3 = S3Origin(hub.tokens, page_entries)
        gcs = GcsOrigin(hub.tokens, page_entries)
        # By the scheme of their names; those of the Hub have none.
        self.buckets = {"": hub.buckets, "s3": s3.buckets, "gs": gcs.buckets}
        self._answers: dict[Origin, Callable[[Request], Answer]] = {
            "hub": hub.answer,
            "cdn": cdn.answer,
            "s3": s3.answer,
            "gcs": gcs.answer,
        }
        self.faults = FaultRules()
        self.log: list[list[Any]] = []
        self.open_files = OpenFiles()
        self.latency_seconds = 0.0
        self.bandwidth_bytes_per_second: float | None = None
        self.connection_count = 0

    def deliver(
        self, origin: Origin, request: Request, connection_id: int
    ) -> tuple[Delivery, list[Any]]:
        """Returns how to answer, and the entry in the log, in which the sender counts the bytes of
        the body.
        """
        received_at_seconds = time.time()

        def answer_again(changed: Request) -> Answer:
            return self._answer(origin, changed)

        answer = answer_again(request)
        delivery = Delivery(answer, self.latency_seconds, self.bandwidth_bytes_per_second)
        fault = self.faults.choose(origin, request, answer.file)
        if fault is not None:
            delivery = apply_fault(fault, request, delivery, answer_again)
        if request.method == "HEAD":
            answer = with_headers(
                delivery.answer,
                {"Content-Length": str(delivery.answer.body_bytes)} | delivery.answer.headers,
            )
            delivery = replace(delivery, answer=replace(answer, body=b""))
        record = RequestRecord(
            time_seconds=received_at_seconds,
            origin=origin,
            kind=answer.kind,
            method=request.method,
            path=request.path,
            file=answer.file,
            range=request.headers.get("range"),
            had_authorization="authorization" in request.headers,
            status=0 if delivery.ending in BEFORE_THE_ANSWER else delivery.answer.status,
            body_bytes_sent=0,
            connection_id=connection_id,
            faulted=fault is not None,
        )
        entry = list(record)
        self.log.append(entry)
        return delivery, entry

    def _answer(self, origin: Origin, request: Request) -> Answer:
        try:
            answer = self._answers[origin](request)
            if isinstance(answer.body, FileSlice):
                self.open_files.check(answer.body)
        except Exception as error:
            traceback.print_exc()
            text = f"The loopback Hub failed: {type(error).__name__}: {error}"
            answer = Answer(500, {"Content-Type": "text/plain; charset=utf-8"}, text.encode())
        return with_headers(
            answer, {"Date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())}
        )


_BYTES_SENT = RequestRecord._fields.index("body_bytes_sent")


class Connection(asyncio.Protocol):
    """One connection of a client. Asyncio sets TCP_NODELAY on it."""

    def __init__(self, server: Server, origin: Origin) -> None:
        self._server = server
        self._origin = origin
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._flushed = asyncio.Event()
        self._flushed.set()
        server.connection_count += 1
        self._id = server.connection_count

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def pause_writing(self) -> None:
        self._flushed.clear()

    def resume_writing(self) -> None:
        self._flushed.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._answer_next()

    def _answer_next(self) -> None:
        while self._buffer and self._task is None and not self._transport.is_closing():
            try:
                parsed = parse_request(self._buffer)
            except BadRequestError as error:
                self._transport.write(
                    render_head(Answer(error.status, {"Connection": "close"}, b""))
                )
                self._transport.close()
                return
            if parsed is None:
                return
            request, length = parsed
            del self._buffer[:length]
            closes = request.headers.get("connection", "").lower() == "close"
            delivery, entry = self._server.deliver(self._origin, request, self._id)
            if closes and delivery.ending == "keep":
                delivery = replace(
                    delivery,
                    ending="close",
                    answer=with_headers(delivery.answer, {"Connection": "close"}),
                )
            if self._is_immediate(delivery):
                self._write_at_once(delivery.answer, entry)
            else:
                self._task = asyncio.get_running_loop().create_task(self._send(delivery, entry))

    def _is_immediate(self, delivery: Delivery) -> bool:
        waits = (
            delivery.delay_seconds > 0
            or delivery.bandwidth_bytes_per_second is not None
            or not self._flushed.is_set()
        )
        return (
            not waits
            and delivery.ending == "keep"
            and delivery.corrupt_at is None
            and delivery.answer.body_bytes <= CHUNK_BYTES
        )

    def _write_at_once(self, answer: Answer, entry: list[Any]) -> None:
        body = (
            self._server.open_files.read(answer.body)
            if isinstance(answer.body, FileSlice)
            else answer.body
        )
        entry[_BYTES_SENT] = len(body)
        self._transport.write(render_head(answer) + body)

    async def _send(self, delivery: Delivery, entry: list[Any]) -> None:
        if delivery.delay_seconds > 0:
            await asyncio.sleep(delivery.delay_seconds)
        if delivery.ending == "drop":
            self._transport.close()
            return
        if delivery.ending == "reset_before":
            await self._reset()
            return
        self._transport.write(render_head(delivery.answer))
        started_at_seconds = time.monotonic()
        for piece in self._pieces(delivery):
            await self._flushed.wait()
            if self._transport.is_closing():
                # the client has hung up, which is heard of only when something is waited for
                return
            if delivery.bandwidth_bytes_per_second is not None:
                # By the clock, so that sleeps which are a little too long do not add up.
                due_at_seconds = (
                    started_at_seconds
                    + (entry[_BYTES_SENT] + len(piece)) / delivery.bandwidth_bytes_per_second
                )
                await asyncio.sleep(due_at_seconds - time.monotonic())
            entry[_BYTES_SENT] += len(piece)
            self._transport.write(piece)
        if delivery.ending == "keep":
            self._task = None
            self._answer_next()
        elif delivery.ending == "close":
            self._transport.close()
        elif delivery.ending == "reset":
            await self._reset()
        # After a stall the task stays set, so that nothing is read from this connection until the
        # client hangs up.

    async def _reset(self) -> None:
        connection = self._transport.get_extra_info("socket")
        # A reset drops what is still in asyncio's and the kernel's buffers. The peer can read the
        # bytes that it has acknowledged after the reset, too.
        while self._transport.get_write_buffer_size() > 0 or _unacknowledged_bytes(connection) > 0:
            await asyncio.sleep(ACKNOWLEDGED_CHECK_SECONDS)
        # Closing with a linger time of zero sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _pieces(self, delivery: Delivery) -> Iterator[bytes]:
        body = delivery.answer.body
        limit = delivery.bandwidth_bytes_per_second
        length = (
            delivery.answer.body_bytes
            if delivery.stop_at is None
            else min(delivery.stop_at, delivery.answer.body_bytes)
        )
        piece_bytes = (
            CHUNK_BYTES
            if limit is None
            else max(1, min(CHUNK_BYTES, round(limit / PIECES_PER_SECOND)))
        )
        corrupt_at = (
            None
            if delivery.corrupt_at is None
            else min(delivery.corrupt_at, delivery.answer.body_bytes - 1)
        )
        for start in range(0, length, piece_bytes):
            stop = min(start + piece_bytes, length)
            if isinstance(body, FileSlice):
                piece = self._server.open_files.read(
                    body._replace(start=body.start + start, stop=body.start + stop)
                )
            else:
                piece = body[start:stop]
            if corrupt_at is not None and start <= corrupt_at < stop:
                at = corrupt_at - start
                piece = piece[:at] + bytes((piece[at] ^ 0xFF,)) + piece[at + 1 :]
            yield piece


def _unacknowledged_bytes(connection: socket.socket) -> int:
    return int.from_bytes(
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder
    )


class Control(asyncio.Protocol):
    """Commands of the parent, one JSON object a line on standard input, each answered with a line
    on standard output.
    """

    def __init__(self, server: Server, ended: asyncio.Event) -> None:
        self._server = server
        self._ended = ended
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            number = command.pop("number")
            try:
                handler: Callable[..., Any] = getattr(self, f"_do_{command.pop('do')}")
                say({"number": number, "result": handler(**command)})
            except BrokenPipeError:
                self._ended.set()
            except Exception as error:
                # Without a reply the parent would wait forever.
                say({"number": number, "error": str(error) or repr(error)})

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._ended.set()

    def _do_add_repository(
        self, repository_id: str, private: bool, gated: str | bool, token: str | None, **commit: Any
    ) -> str:
        if repository_id in self._server.hub.repositories:
            raise ValueError(f"repository {repository_id} exists already; add_commit adds to it")
        repository = Repository(repository_id, private, gated, token)
        sha = repository.add_commit(**commit)
        self._server.hub.repositories[repository_id] = repository
        if token is not None:
            self._server.hub.tokens.add(token)
        return sha

    def _do_add_commit(self, repository_id: str, **commit: Any) -> str:
        if repository_id not in self._server.hub.repositories:
            raise ValueError(f"there is no repository {repository_id}; add_repository makes one")
        return self._server.hub.repositories[repository_id].add_commit(**commit)

    def _do_add_bucket(
        self, bucket_id: str, directory: str, private: bool, token: str | None
    ) -> None:
        buckets, name = self._buckets(bucket_id)
        if name in buckets:
            raise ValueError(f"bucket {bucket_id} exists already; put_bucket_file changes it")
        buckets[name] = Bucket(name, directory, private, token)
        if token is not None:
            self._server.hub.tokens.add(token)

    def _do_put_bucket_file(self, bucket_id: str, path: str, source: str) -> None:
        self._bucket(bucket_id).put(path, source)

    def _do_delete_bucket_file(self, bucket_id: str, path: str) -> None:
        if self._bucket(bucket_id).files.pop(path, None) is None:
            raise ValueError(f"there is no file {path} in bucket {bucket_id}")

    def _bucket(self, bucket_id: str) -> Bucket:
        buckets, name = self._buckets(bucket_id)
        if name in buckets:
            return buckets[name]
        raise ValueError(f"there is no bucket {bucket_id}; add_bucket makes one")

    def _buckets(self, bucket_id: str) -> tuple[dict[str, Bucket], str]:
        """Returns the buckets of the origin that has a bucket, and its name there."""
        scheme, _, name = bucket_id.rpartition("://")
        return self._server.buckets[scheme], name

    def _do_add_token(self, token: str) -> None:
        self._server.hub.tokens.add(token)

    def _do_requests(self) -> list[list[Any]]:
        return self._server.log

    def _do_clear_requests(self) -> None:
        self._server.log.clear()

    def _do_set_latency(self, seconds: float) -> None:
        self._server.latency_seconds = seconds

    def _do_set_bandwidth(self, bytes_per_second: float | None) -> None:
        self._server.bandwidth_bytes_per_second = bytes_per_second

    def _do_set_rate_limit(self, bucket: str, requests: int, window_seconds: float) -> None:
        self._server.hub.limit_rate(bucket, requests, window_seconds)

    def _do_set_url_lifetime(self, seconds: int) -> None:
        self._server.cdn.url_lifetime_seconds = seconds

    def _do_expire_urls(self) -> None:
        self._server.cdn.expire_urls()

    def _do_add_fault(self, fault: dict[str, Any]) -> None:
        self._server.faults.add(decode_fault(fault))

    def _do_clear_faults(self) -> None:
        self._server.faults.clear()


def say(message: dict[str, Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(sys.stdout.fileno(), line) :]


async def serve(page_entries: int) -> None:
    loop = asyncio.get_running_loop()
    # The names differ, not only the ports: clients treat a redirect to another port of the same
    # host as one within the Hub.
    sockets: dict[Origin, socket.socket] = {
        origin: socket.create_server(("127.0.0.1", 0), backlog=1024) for origin in get_args(Origin)
    }
    addresses = {
        origin: f"http://{'127.0.0.1' if origin == 'cdn' else 'localhost'}:"
        f"{listening.getsockname()[1]}"
        for origin, listening in sockets.items()
    }
    cdn = CdnOrigin(addresses["cdn"])
    server = Server(HubOrigin(addresses["hub"], cdn, page_entries), cdn, page_entries)
    for origin, listening in sockets.items():
        await loop.create_server(
            functools.partial(Connection, server, origin), sock=listening, backlog=1024
        )
    ended = asyncio.Event()
    await loop.connect_read_pipe(lambda: Control(server, ended), sys.stdin)
    parent = os.getppid()
    say({"number": 0, "result": addresses})
    while os.getppid() == parent and not ended.is_set():
        try:
            await asyncio.wait_for(ended.wait(), PARENT_CHECK_SECONDS)
        except TimeoutError:
            continue


def main() -> None:
    # Ctrl-C goes to the whole process group; the parent decides when its Hub ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(int(sys.argv[-1])))

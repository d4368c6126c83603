"""A server on a raw socket, which answers what no HTTP library would send, and the parts of right
answers about 1,024 bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

from lerobot_grain._base.byte_ranges import ByteRange

CONTENTS = bytes(range(256)) * 4
WANTED = ByteRange(0, len(CONTENTS))
STATUS = b"HTTP/1.1 206 Partial Content\r\n"
RANGE = f"Content-Range: bytes 0-{len(CONTENTS) - 1}/{len(CONTENTS)}\r\n".encode()
LENGTH = f"Content-Length: {len(CONTENTS)}\r\n".encode()
ANSWER = STATUS + RANGE + LENGTH + b"\r\n" + CONTENTS

# A server's answer: bytes at once, or an endless source of pieces, one every tenth of a second.
Script = Sequence["bytes | Callable[[], bytes]"]


def forever(piece: bytes) -> Callable[[], bytes]:
    return lambda: piece


class RawServer:
    """Answers every request with one script, or the n-th one, from 0 on, with `script(n)`; counts
    connections, keeps heads of requests.
    """

    def __init__(self, script: Script | Callable[[int], Script], *, port: int = 0) -> None:
        self._script = script
        self._numbers = itertools.count()
        self.num_connections = self.num_requests = 0
        self.heads: list[bytes] = []
        self._is_closed = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/file"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.num_connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            # Or each part would wait for the word that the one before has come: 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            while not self._is_closed.is_set():
                while b"\r\n\r\n" not in received:
                    if not (piece := connection.recv(65536)):
                        return
                    received += piece
                self.heads.append(received)
                received = b""
                self.num_requests += 1
                number = next(self._numbers)
                for part in self._script(number) if callable(self._script) else self._script:
                    if callable(part):
                        while not self._is_closed.wait(0.05):
                            connection.sendall(part())
                    else:
                        connection.sendall(part)

    def close(self) -> None:
        self._is_closed.set()
        self._socket.close()


@contextlib.contextmanager
def serving(script: Script | Callable[[int], Script], *, port: int = 0) -> Iterator[RawServer]:
    server = RawServer(script, port=port)
    try:
        yield server
    finally:
        server.close()

"""The connections of a process, by server, each for one request at a time.

The idea: every connection has a client of its own. So an attempt knows its socket, and can have
it broken, wherever it waits, without a word to any other; and all datasets of a process share
the idle ones, and one limit.

Rules:
* A connection that an attempt ended badly on is closed, not used again.
* No cookies are kept: those of a Hub would go on to a CDN on the same host, and pile up.
* A process that was forked starts without connections, and one that ends closes the idle ones.
"""

from __future__ import annotations

import atexit
import contextlib
import http.cookiejar
import os
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2

from lerobot_grain._base.per_process import PerProcess
from lerobot_grain._storage.http.cancellation import CHECK_SECONDS
from lerobot_grain._storage.http.responses import origin_of

# The limit of a process, unless one dataset is allowed more: with other files, 60 datasets stay
# below the usual limit of 1,024 open ones.
_MAX_CONNECTIONS = 128
# Idle connections are dropped by the Hub's CDN after about a minute; with httpx2's 5 s, requests 6
# s apart opened a connection each.
_KEEPALIVE_SECONDS = 60.0
# Settings that a connection depends on besides its server.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_PROXIES = tuple(
    spelled
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for spelled in (name, name.upper())
)

# The server, and what of the environment decides how it is reached.
_Key = tuple[Any, ...]


class Connection:
    """A client with at most one open connection. For one thread at a time, but for `break_off`."""

    def __init__(self, key: _Key, certificates: ssl.SSLContext) -> None:
        self.key = key
        self.idle_since = 0.0
        # Of one thread again and again: the garbage collector may end a reader inside of `note`.
        self._lock = threading.RLock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.client = httpx2.Client(
            follow_redirects=False,
            trust_env=True,  # proxies of the environment
            verify=certificates,
            cookies=http.cookiejar.CookieJar(
                http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
            ),
            limits=httpx2.Limits(
                max_connections=1, max_keepalive_connections=1, keepalive_expiry=_KEEPALIVE_SECONDS
            ),
        )

    def note(self, event: str, details: Mapping[str, Any]) -> None:
        """Remembers each socket that httpx2 opens.

        Over TLS it is another one than that of the connection under it.
        """
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._sockets.add(details["return_value"].get_extra_info("socket"))

    def break_off(self) -> None:
        """Breaks the connection: a thread that waits for it gets an error."""
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            # Not the method of an SSLSocket, which would let another thread go on without
            # encryption.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class Connections:
    """Those of one process. Thread-safe."""

    def __init__(self) -> None:
        # Taken as such, as in `CancelScope`.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._idle: dict[_Key, deque[Connection]] = {}
        self._num_open = self._num_idle = 0
        self._certificates: tuple[_Key, ssl.SSLContext] | None = None

    @contextlib.contextmanager
    def lease(self, url: str, *, at_most: int, check: Callable[[], None]) -> Iterator[Connection]:
        """Lends a connection to the server of `url`, made where no idle one is; closes it if what
        is done with it raises.

        Args:
          url: of the request.
          at_most: connections of the process, or more, where more are usual.
          check: called now and then while all are in use; raises where nothing is waited for any
            more.
        """
        key = (origin_of(url), _environment(_PROXIES), _environment(_CERTIFICATES))
        connection = self._take(key, max(at_most, _MAX_CONNECTIONS), check)
        is_good = False
        try:
            yield connection
            is_good = True
        finally:
            self._give_back(connection, is_good=is_good)

    def _take(self, key: _Key, limit: int, check: Callable[[], None]) -> Connection:
        with self._lock:
            while True:
                if idle := self._idle.get(key):
                    self._num_idle -= 1
                    return idle.pop()
                if self._num_open < limit:
                    self._num_open += 1
                    break
                if self._num_idle:
                    self._close_oldest()
                    continue
                self._changed.wait(CHECK_SECONDS)
                check()
        try:
            return Connection(key, self._context(key[-1]))
        except BaseException:
            with self._lock:
                self._num_open -= 1
            raise

    def _give_back(self, connection: Connection, *, is_good: bool) -> None:
        now = time.monotonic()
        with self._lock:
            if is_good:
                connection.idle_since = now
                self._idle.setdefault(connection.key, deque()).append(connection)
                self._num_idle += 1
            else:
                self._num_open -= 1
            while self._num_idle and self._oldest()[0] < now - _KEEPALIVE_SECONDS:
                self._close_oldest()
            self._changed.notify()
        if not is_good:
            connection.client.close()

    def _oldest(self) -> tuple[float, _Key]:
        return min((idle[0].idle_since, key) for key, idle in self._idle.items() if idle)

    def _close_oldest(self) -> None:
        _, key = self._oldest()
        connection = self._idle[key].popleft()
        if not self._idle[key]:
            del self._idle[key]
        self._num_idle -= 1
        self._num_open -= 1
        connection.client.close()

    def close_idle(self, origins: set[tuple[str, str, int | None]] | None) -> None:
        """Closes the idle connections to some servers; `None`: to all."""
        with self._lock:
            keys = [key for key in self._idle if origins is None or key[0] in origins]
            closed = [each for key in keys for each in self._idle.pop(key)]
            self._num_idle -= len(closed)
            self._num_open -= len(closed)
            self._changed.notify_all()
        for connection in closed:
            connection.client.close()

    def _context(self, key: _Key) -> ssl.SSLContext:
        """Returns the certificates that are trusted; reading them takes longer than a request."""
        with self._lock:
            if self._certificates is None or self._certificates[0] != key:
                self._certificates = key, httpx2.create_ssl_context()
            return self._certificates[1]


def _environment(names: tuple[str, ...]) -> _Key:
    return tuple(os.environ.get(name) for name in names)


# Those of this process.
connections = PerProcess(Connections)
# Python says of each socket that is left open at the end of a program that it was, if it is asked
# to (`-X dev`).
atexit.register(lambda: connections().close_idle(None))

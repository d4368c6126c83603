"""A server in front of a loopback Hub that answers differently: a mirror that serves the files
itself, or a Hub that redirects.

It runs in a thread of the test. Attributes set its gaps and faults, also while
it runs.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

Headers = dict[str, str]
_REDIRECTS = (301, 302, 303, 307, 308)


class Asked(NamedTuple):
    """A request that came: path with query, and whether there was a token."""

    method: str
    path: str
    had_authorization: bool


class Mirror:
    """Passes requests on to `upstream`, a LoopbackHub's endpoint.

    Attributes:
      log: the requests so far.
      serves_files: whether it fetches files itself, and answers with all of them or a range, as
        repository managers do, or passes on the answers of the Hub, among them its redirects to the
        CDN.
      head_length: the Content-Length in the answer to HEAD of a file that it serves, from its path
        and size; None: without that header.
      tells_commit: whether it says of which commit a file is that it serves.
      contents: what it serves in the place of a file, from its path and contents.
      obeys_ranges: whether a range of a file is answered with that range, from its path.
      change: path, status, headers and body of an answer of the Hub -> those of its own.
      route: path -> None, or (status, headers, body) as the answer.
      rewrite: path of a request -> path that the Hub is asked for.
    """

    def __init__(self, upstream: str, *, prefix: str = "", serves_files: bool = True) -> None:
        self.log: list[Asked] = []
        self.serves_files = serves_files
        self.head_length: Callable[[str, int], str | None] = lambda _path, size: str(size)
        self.tells_commit = True
        self.contents: Callable[[str, bytes], bytes] = lambda _path, data: data
        self.obeys_ranges: Callable[[str], bool] = lambda _path: True
        self.change: Callable[[str, int, Headers, bytes], tuple[int, Headers, bytes]] = (
            lambda _path, *answer: answer
        )
        self.route: Callable[[str], tuple[int, Headers, bytes] | None] = lambda _path: None
        self.rewrite: Callable[[str], str] = lambda path: path
        self._upstream, self._prefix = upstream, prefix
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Otherwise the body waits 40 ms for the receipt of the headers, in every answer.
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                mirror._answer(self)

            do_HEAD = do_GET  # noqa: N815 (as the base class calls it)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.endpoint = self.origin + prefix

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def paths(self, part: str) -> list[str]:
        """Returns the paths of all requests so far that have `part` in them."""
        return [asked.path for asked in self.log if part in asked.path]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        sent = {
            name.title(): value
            for name, value in handler.headers.items()
            if name.title() not in ("Host", "Connection")
        }
        self.log.append(Asked(handler.command, handler.path, "Authorization" in sent))
        status, headers, body = self._respond(handler.command, handler.path, sent)
        handler.send_response(status)
        for name, value in headers.items():
            if name not in ("Transfer-Encoding", "Connection", "Date", "Server", "Content-Length"):
                handler.send_header(name, value)
        length = str(len(body)) if handler.command == "GET" else headers.get("Content-Length")
        if length:
            handler.send_header("Content-Length", length)
        else:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    def _respond(self, method: str, path: str, sent: Headers) -> tuple[int, Headers, bytes]:
        if (own := self.route(path)) is not None:
            return own
        if not path.startswith(f"{self._prefix}/"):
            return 404, {}, b"not here"
        path = self.rewrite(path.removeprefix(self._prefix))
        if self.serves_files and "/resolve/" in path:
            return self._file(method, path, sent)
        return self.change(path, *_fetch(method, self._upstream + path, sent))

    def _file(self, method: str, path: str, sent: Headers) -> tuple[int, Headers, bytes]:
        asked = {name: value for name, value in sent.items() if name != "Range"}
        status, headers, data = _fetch("GET", self._upstream + path, asked)
        while status in _REDIRECTS:
            target = headers["Location"]
            status, headers, data = _fetch(
                "GET", target if target.startswith("http") else self._upstream + target, {}
            )
        if status != 200:
            return status, headers, data
        commit, _, file = path.split("/resolve/")[1].partition("/")
        data = self.contents(unquote(file), data)
        headers = {"Etag": f'"{len(data):08x}-{sum(data) % 251}"'} | (
            {"X-Repo-Commit": commit} if self.tells_commit else {}
        )
        if method == "HEAD":
            length = self.head_length(unquote(file), len(data))
            return 200, headers | ({} if length is None else {"Content-Length": length}), b""
        if "Range" not in sent or not self.obeys_ranges(unquote(file)):
            return 200, headers, data
        first, _, last = sent["Range"].removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            return 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b""
        stop = min(int(last) + 1, len(data))
        return (
            206,
            headers | {"Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"},
            data[int(first) : stop],
        )


def _fetch(method: str, url: str, headers: Headers) -> tuple[int, Headers, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request(
            method, parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers
        )
        answer = connection.getresponse()
        return (
            answer.status,
            {name.title(): value for name, value in answer.getheaders()},
            answer.read(),
        )
    finally:
        connection.close()

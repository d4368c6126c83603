"""A Hugging Face Hub on this machine's loopback interface, for tests of code that reads dataset
repositories.

Idea: directories on disk are served as dataset repositories and buckets by a process of its own,
over two origins as the real Hub does: the hub on `http://localhost:<port>`, and the CDN, to which
it redirects for large files with signed URLs, on `http://127.0.0.1:<other port>`. huggingface_hub
works with it unchanged (`HfApi(endpoint=hub.endpoint)`, `hf_hub_download(...,
endpoint=hub.endpoint)`). Every request is logged, and anything can be made to go wrong with a
`Fault`.

The same process has two further origins, an S3 and a Google Cloud Storage, whose buckets are
directories, too: as much of them as reading takes.

Not included: uploads over HTTP, Xet, models and spaces, TLS.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from lerobot_grain.testing._hub.messages import Fault, RequestRecord, encode_fault, mixed_faults

__all__ = ["Fault", "HubRepository", "LoopbackHub", "RequestRecord", "mixed_faults"]

# Gives the server's process our packages without running their `__init__` modules, which import far
# more than it needs; and with it absolute imports that mean the same in both processes. -I and -S
# leave out site-packages, which a standard library program can spare.
_START = """
import sys, types
names = ("", ".testing", ".testing._hub", ".testing._stores")
for name, folder in zip(["lerobot_grain" + name for name in names], sys.argv[1:5]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from lerobot_grain.testing._hub.server import main
main()
"""
_REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_STORE_BUCKET = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]*", re.ASCII)
# The server ends within milliseconds of the end of its input; after this long something is wrong
# with it.
_STOP_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A dataset repository as it was when it was added, or when the commit was.

    Attributes:
      repository_id: for example `"org/name"`.
      commit: 40 hexadecimal digits of the newest commit. Derived from the repository's id, the
        paths, sizes and modification times of its files, and the commits before; so the same
        directory gives the same commit in the next run.
    """

    repository_id: str
    commit: str


class LoopbackHub:
    """A Hub that serves directories of this machine, and the means to disturb it.

        with LoopbackHub() as hub:
            repository = hub.add_repository("org/name", directory, tags=["v3.0"])
            hub.add_fault(Fault(origin="cdn", path_regex=r"\\.mp4$", reset_at=1000))
            ...  # read with endpoint=hub.endpoint
            of_cdn = [record for record in hub.requests() if record.origin == "cdn"]
            assert not any(record.had_authorization for record in of_cdn)

    Files with the suffixes .json, .jsonl, .md and .txt and `.gitattributes` are plain git files:
    the resolver redirects (307) to contents on the hub's own origin. All others count as LFS: it
    redirects (302) to the CDN. Directories `.git` and `.cache` are left out, links are followed.

    All files of a bucket are redirected to the CDN.

    A directory must not change after it was added: answers for a file whose size or modification
    time differ are 500 with that explanation. New contents are a new directory and `add_commit`, in
    a bucket a new file and `put_bucket_file`.

    Access is as on the real Hub. Without a token a private repository looks missing (401,
    RepoNotFound). A token that is neither a repository's nor was added with `add_token` is refused
    everywhere (401). The listings of a gated repository are open, its contents are not (GatedRepo:
    401 without a token, 403 with one that is not the repository's).

    The Hub starts with the object and ends with `close`, at the end of the `with` block, with the
    object, or when this process dies. Its methods may be called from several threads. Objects
    cannot be pickled; pass `endpoint` to other processes.

    Args:
      page_entries: entries of a page of the tree listing. The real Hub has 1000; fewer make a small
        repository test the paging.

    Raises:
      ValueError: `page_entries` below 1.
      RuntimeError: from every method, when the Hub's process is gone.
    """

    def __init__(self, *, page_entries: int = 1000) -> None:
        if page_entries < 1:
            raise ValueError(f"page_entries is {page_entries}, expected 1 or more")
        self._lock = threading.Lock()
        self._command_number = 0
        hub = Path(__file__).resolve().parent
        folders = (hub.parent.parent, hub.parent, hub, hub.parent / "_stores")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, *map(str, folders), str(page_entries)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stop = weakref.finalize(self, _stop, self._process, os.getpid())
        self._origins: dict[str, str] = self._read_reply()

    @property
    def endpoint(self) -> str:
        """`"http://localhost:<port>"`, to be given to huggingface_hub as `endpoint`."""
        return self._origins["hub"]

    @property
    def cdn_origin(self) -> str:
        """`"http://127.0.0.1:<port>"`, where the signed URLs lead to."""
        return self._origins["cdn"]

    @property
    def s3_endpoint(self) -> str:
        """`"http://localhost:<port>"`, with the buckets `s3://...` that were added."""
        return self._origins["s3"]

    @property
    def gcs_endpoint(self) -> str:
        """`"http://localhost:<port>"`, with the buckets `gs://...` that were added."""
        return self._origins["gcs"]

    @property
    def process_id(self) -> int:
        return self._process.pid

    def add_repository(
        self,
        repository_id: str,
        directory: str | os.PathLike[str],
        *,
        branches: Iterable[str] = ("main",),
        tags: Iterable[str] = (),
        private: bool = False,
        gated: bool | Literal["auto", "manual"] = False,
        token: str | None = None,
    ) -> HubRepository:
        """Serves `directory` as a dataset repository with one commit.

        Args:
          repository_id: `"org/name"`.
          directory: read from while the Hub runs, never written to.
          branches: names of branches that point to the commit. Without `"main"`, requests that name
            no revision find none.
          tags: names of tags that point to the commit.
          private: whether only `token` can see it.
          gated: whether only `token` can read its files; True is `"auto"`.
          token: the token that has access; None for a private or gated repository that nobody has
            access to.

        Raises:
          ValueError: a malformed id, no such directory, or the repository exists already.
        """
        if not _REPOSITORY_ID.fullmatch(repository_id):
            raise ValueError(f"repository_id is {repository_id!r}, expected 'org/name'")
        access = {"private": private, "gated": "auto" if gated is True else gated, "token": token}
        commit = self._call(
            "add_repository",
            repository_id=repository_id,
            **_commit(directory, branches, tags),
            **access,
        )
        return HubRepository(repository_id, commit)

    def add_commit(
        self,
        repository_id: str,
        directory: str | os.PathLike[str],
        *,
        branches: Iterable[str] = ("main",),
        tags: Iterable[str] = (),
    ) -> HubRepository:
        """Adds a commit with the contents of `directory`, and moves (or makes) the branches and
        tags that are named.

        Older commits remain readable by their sha.

        Raises:
          ValueError: no such repository or directory.
        """
        return HubRepository(
            repository_id,
            self._call(
                "add_commit", repository_id=repository_id, **_commit(directory, branches, tags)
            ),
        )

    def add_bucket(
        self,
        bucket_id: str,
        directory: str | os.PathLike[str],
        *,
        private: bool = False,
        token: str | None = None,
    ) -> None:
        """Serves the files of `directory`, those of now, as a Storage Bucket, or as a bucket of an
        object store.

        Args:
          bucket_id: `"org/name"`; a dataset repository may have the same name. Or `"s3://name"`,
            at `s3_endpoint`, or `"gs://name"`, at `gcs_endpoint`.
          directory: read from while the Hub runs, never written to.
          private: whether only `token` can see it.
          token: the token that has access, of S3 `"KEY_ID:SECRET"`; None for a private bucket that
            nobody has access to.

        Raises:
          ValueError: a malformed id, no such directory, or the bucket exists already.
        """
        if not _REPOSITORY_ID.fullmatch(bucket_id) and not _STORE_BUCKET.fullmatch(bucket_id):
            raise ValueError(
                f"bucket_id is {bucket_id!r}, expected 'org/name', 's3://name' or 'gs://name'"
            )
        self._call(
            "add_bucket",
            bucket_id=bucket_id,
            directory=_directory(directory),
            private=private,
            token=token,
        )

    def put_bucket_file(self, bucket_id: str, path: str, source: str | os.PathLike[str]) -> None:
        """Overwrites a file of a bucket with the contents of the file `source`, or adds it.

        `source` must not change afterwards. Links that were signed before go on serving the old
        contents.

        Raises:
          ValueError: no such bucket or source.
        """
        self._call(
            "put_bucket_file", bucket_id=bucket_id, path=path, source=os.path.abspath(source)
        )

    def delete_bucket_file(self, bucket_id: str, path: str) -> None:
        """Takes a file out of a bucket.

        Raises:
          ValueError: no such bucket or file.
        """
        self._call("delete_bucket_file", bucket_id=bucket_id, path=path)

    def add_token(self, token: str) -> None:
        """Makes `token` that of a known user who has access to public repositories only."""
        self._call("add_token", token=token)

    def requests(self) -> list[RequestRecord]:
        """Returns the requests since the start or the last `clear_requests`, in the order of
        arrival.

        A request is among them as soon as the first byte of its answer could be received.
        """
        return [RequestRecord(*values) for values in self._call("requests")]

    def clear_requests(self) -> None:
        """Empties the log, which otherwise grows by about 1 KB a request."""
        self._call("clear_requests")

    def set_latency(self, seconds: float) -> None:
        """Lets so many seconds pass between each request, to any origin, and the first byte of its
        answer.
        """
        if seconds < 0:
            raise ValueError(f"latency is {seconds} s, expected 0 or more")
        self._call("set_latency", seconds=seconds)

    def set_bandwidth(self, bytes_per_second: float | None) -> None:
        """Limits the bodies of answers to so many bytes a second and connection; None lifts the
        limit.
        """
        if bytes_per_second is not None and bytes_per_second <= 0:
            raise ValueError(
                f"bandwidth is {bytes_per_second} bytes/s, expected more than 0 or None"
            )
        self._call("set_bandwidth", bytes_per_second=bytes_per_second)

    def set_rate_limit(
        self, bucket: Literal["api", "resolvers"], *, requests: int, window_seconds: float = 300
    ) -> None:
        """Answers 429 to what exceeds `requests` in a fixed window, and counts down in the
        RateLimit header.

        Until it is called for a bucket, RateLimit and RateLimit-Policy announce the quota of an
        anonymous client with all of it left.

        Args:
          bucket: `"resolvers"` for URLs with `/resolve/`, `"api"` for all others of the hub. The
            CDN has no limit.
          requests: how many are answered in a window, from all clients together.
          window_seconds: length of the window, which starts with its first request; announced
            rounded to whole seconds.
        """
        if bucket not in ("api", "resolvers") or requests < 0 or window_seconds <= 0:
            raise ValueError(
                f"rate limit of {requests} {bucket!r} requests in {window_seconds} s, "
                "expected 0 or more 'api' or 'resolvers' requests in more than 0 s"
            )
        self._call(
            "set_rate_limit", bucket=bucket, requests=requests, window_seconds=window_seconds
        )

    def set_url_lifetime(self, seconds: int) -> None:
        """Signs URLs from now on for so many seconds (3600 at the start).

        With 0 they have expired when they are made.
        """
        self._call("set_url_lifetime", seconds=int(seconds))

    def expire_urls(self) -> None:
        """Makes the CDN answer 403 to every URL that was signed so far, whatever its `Expires`
        says.
        """
        self._call("expire_urls")

    def add_fault(self, fault: Fault) -> None:
        """Puts `fault` in force, after those that are."""
        self._call("add_fault", fault=encode_fault(fault))

    def clear_faults(self) -> None:
        self._call("clear_faults")

    def close(self) -> None:
        """Ends the Hub's process and waits for its end. Closing twice is allowed."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, command: str, **arguments: Any) -> Any:
        with self._lock:
            if not self._stop.alive:
                raise RuntimeError("the loopback Hub is closed")
            assert self._process.stdin is not None
            self._command_number += 1
            line = (
                json.dumps({"do": command, "number": self._command_number, **arguments}).encode()
                + b"\n"
            )
            # That the process is gone is told by the missing reply.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line)
                self._process.stdin.flush()
            return self._read_reply()

    def _read_reply(self) -> Any:
        assert self._process.stdout is not None
        reply: dict[str, Any] = {"number": -1}
        # An earlier call that was interrupted (Ctrl-C) has left its reply in the pipe.
        while reply["number"] != self._command_number:
            line = self._process.stdout.readline()
            if not line:
                status = self._process.wait(_STOP_TIMEOUT_SECONDS)
                raise RuntimeError(
                    f"the process of the loopback Hub ended with status {status}; standard error "
                    "may say why"
                )
            reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["result"]


def _directory(directory: str | os.PathLike[str]) -> str:
    path = os.path.abspath(directory)
    if not os.path.isdir(path):
        raise ValueError(f"{path} is no directory, so it cannot be served as a repository")
    return path


def _commit(
    directory: str | os.PathLike[str], branches: Iterable[str], tags: Iterable[str]
) -> dict[str, Any]:
    for name, names in (("branches", branches), ("tags", tags)):
        if isinstance(names, str):
            raise ValueError(f"{name} is the string {names!r}, expected a list of names")
    return {"directory": _directory(directory), "branches": list(branches), "tags": list(tags)}


def _stop(process: subprocess.Popen[bytes], owner_process_id: int) -> None:
    # A fork has a copy of the object, but the process is not its child.
    if os.getpid() != owner_process_id:
        return
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()

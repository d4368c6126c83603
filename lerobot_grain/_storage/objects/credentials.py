"""Credentials that sign requests to an object store, and getting it in bounded time.

The idea: the libraries that find credentials ask other services for them (the machine's, a token
service), with their own time limits and without a way to be ended. So they work in a thread of
their own, which nobody has to wait for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from typing import Protocol, TypeVar

from lerobot_grain._base.errors import LeRobotGrainError, StorageError
from lerobot_grain._storage.http.cancellation import CHECK_SECONDS

_T = TypeVar("_T")


class Credentials(Protocol):
    """Signs requests. Thread-safe; not picklable."""

    @property
    def source(self) -> str:
        """Their origin, for messages; never a secret."""

    def is_fresh(self) -> bool:
        """Returns whether `headers` would ask nobody."""

    def refresh(self) -> None:
        """Gets what `headers` needs. May take long.

        Raises:
          StorageError: it cannot be got.
        """

    def headers(self, url: str) -> dict[str, str]:
        """Returns the headers that sign a GET of an address."""

    def secret(self) -> object:
        """Returns what is to be compared: a store that refuses credentials will refuse those with
        the same secret.
        """


class Anonymous:
    """Signs nothing.

    Args:
      source: why.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def is_fresh(self) -> bool:
        return True

    def refresh(self) -> None:
        return None

    def headers(self, url: str) -> dict[str, str]:  # noqa: ARG002 (none for any)
        return {}

    def secret(self) -> object:
        return None


class BearerToken:
    """A token that the user gave."""

    source = "the token that was given"

    def __init__(self, token: str) -> None:
        self._token = token

    def is_fresh(self) -> bool:
        return True

    def refresh(self) -> None:
        return None

    def headers(self, url: str) -> dict[str, str]:  # noqa: ARG002 (the same for all)
        return {"Authorization": f"Bearer {self._token}"}

    def secret(self) -> object:
        return self._token


def in_time(
    work: Callable[[], _T], *, subject: str, seconds: float, check: Callable[[], None]
) -> _T:
    """Returns what `work` returns, from a thread that is left alone when it takes too long.

    Args:
      work: may wait for others, and cannot be ended.
      subject: begins the error message.
      seconds: for it.
      check: called now and then; raises where nothing is waited for any more.

    Raises:
      StorageError: it took longer.
      LeRobotGrainError: `work` raised it, or `check`.
    """
    result: Future[_T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # handed to whoever waits
            result.set_exception(error)

    threading.Thread(target=run, name="lerobot_grain credentials", daemon=True).start()
    ends_at = time.monotonic() + seconds
    while not result.done():
        futures.wait([result], CHECK_SECONDS)
        check()
        if time.monotonic() > ends_at:
            raise StorageError(f"{subject}: no credentials were got within {seconds:g} s")
    problem = result.exception()
    if isinstance(problem, LeRobotGrainError):
        # A new one, without what it was raised from, which may hold a secret.
        raise type(problem)(f"{subject}: {problem}")
    return result.result()

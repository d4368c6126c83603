"""The common part of all storages that are read over HTTP: each process makes its own session when
it first reads.
"""

from __future__ import annotations

import abc
import os
from typing import Any, Generic, TypeVar

from lerobot_grain._storage.base import Storage
from lerobot_grain._storage.http.session import Session
from lerobot_grain._storage.options import StorageStatistics

AnySession = TypeVar("AnySession", bound=Session)


class SessionStorage(Storage, Generic[AnySession]):
    """A storage whose files are read by the session of this process."""

    __slots__ = ()

    _process_state: dict[int, Any]

    @abc.abstractmethod
    def _make_session(self) -> AnySession:
        """Returns a session for this process."""

    def use(self, session: AnySession) -> None:
        """Makes the session that opened the storage the one of this process."""
        self._process_state[os.getpid()] = session

    def close(self) -> None:
        session = self._process_state.pop(os.getpid(), None)
        if session is not None:
            session.close()

    @property
    def statistics(self) -> StorageStatistics:
        session = self._process_state.get(os.getpid())
        return session.statistics() if session is not None else StorageStatistics()

    def _session(self) -> AnySession:
        # By process, since a connection must not be shared with a forked child. The parent's is
        # left alone there: closing it could wait for a lock forever.
        session: AnySession | None = self._process_state.get(os.getpid())
        if session is None:
            # Without a lock, which a fork could copy locked: of several that threads make at once,
            # one is used.
            session = self._process_state.setdefault(os.getpid(), self._make_session())
        return session

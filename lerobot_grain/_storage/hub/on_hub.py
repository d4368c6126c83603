"""The common part of the storages of a commit and of a bucket: each process makes its own session
when it first reads.
"""

from __future__ import annotations

import os

from lerobot_grain._storage.base import PROCESS_STATE_LOCK, Storage
from lerobot_grain._storage.git_files import LfsPointer
from lerobot_grain._storage.hub.address import HubAddress
from lerobot_grain._storage.hub.session import HubSession
from lerobot_grain._storage.options import StorageStatistics


class OnHub(Storage):
    """A storage whose files are read by the session of this process."""

    __slots__ = ()

    repository: HubAddress
    _process_state: dict[int, HubSession]

    @property
    def notes(self) -> tuple[str, ...]:
        return self.repository.notes

    # The message before it names the path.
    def _about_pointer(self, path: str, pointer: LfsPointer) -> str:  # noqa: ARG002
        return (
            f"the server sent {pointer}, in place of the file: {self.repository.endpoint} is a "
            "mirror without Git LFS, or the dataset was uploaded from a clone without it; read it "
            "from the Hub itself, or run `git lfs pull` in that clone and upload it again"
        )

    def use(self, session: HubSession) -> None:
        """Makes the session that opened the storage the one of this process."""
        self._process_state[os.getpid()] = session

    def close(self) -> None:
        with PROCESS_STATE_LOCK:
            session = self._process_state.pop(os.getpid(), None)
        if session is not None:
            session.close()

    @property
    def statistics(self) -> StorageStatistics:
        session = self._process_state.get(os.getpid())
        return session.statistics() if session is not None else StorageStatistics()

    def _session(self) -> HubSession:
        # By process, since a connection must not be shared with a forked child. The parent's is
        # left alone there: closing it could wait for a lock forever.
        if (session := self._process_state.get(os.getpid())) is not None:
            return session
        with PROCESS_STATE_LOCK:
            if (session := self._process_state.get(os.getpid())) is None:
                session = self._process_state[os.getpid()] = HubSession(self.repository)
            return session

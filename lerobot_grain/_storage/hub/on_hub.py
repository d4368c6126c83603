"""The common part of the storages of a commit and of a bucket of the Hub."""

from __future__ import annotations

from lerobot_grain._storage.git_files import LfsPointer
from lerobot_grain._storage.hub.address import HubAddress
from lerobot_grain._storage.hub.session import HubSession
from lerobot_grain._storage.session_storage import SessionStorage


class OnHub(SessionStorage[HubSession]):
    """A storage whose files are read by the session of this process."""

    __slots__ = ()

    repository: HubAddress

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

    def _make_session(self) -> HubSession:
        return HubSession(self.repository)

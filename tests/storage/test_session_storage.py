"""Sessions of storages, one for each process."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lerobot_grain._storage.objects.object_storage import ObjectStorage
from lerobot_grain._storage.objects.s3 import name_s3
from lerobot_grain._storage.options import StorageOptions


def storage(bucket: str) -> ObjectStorage:
    address = name_s3(
        f"s3://{bucket}",
        revision=None,
        endpoint="http://localhost:1",
        token=False,
        options=StorageOptions(),
        cache_root="",
    )
    return ObjectStorage(address.name, "0" * 40, address.options, address, {})


def test_no_storage_waits_for_the_session_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor would the child of a process that forks while one is being made."""
    is_making = threading.Event()
    may_go_on = threading.Event()
    make = ObjectStorage._make_session

    def make_slowly(self: ObjectStorage) -> Any:
        if self.description == "s3://slow":
            is_making.set()
            assert may_go_on.wait(20)
        return make(self)

    monkeypatch.setattr(ObjectStorage, "_make_session", make_slowly)
    slow = storage("slow")
    making = threading.Thread(target=slow._session, daemon=True)
    making.start()
    assert is_making.wait(20)
    other = threading.Thread(target=storage("other")._session, daemon=True)
    other.start()
    other.join(5)
    was_waiting = other.is_alive()
    may_go_on.set()
    making.join(20)
    assert not was_waiting
    assert slow._session() is slow._session()
    slow.close()

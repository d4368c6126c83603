"""Fixtures of all tests: where the shared data sets lie, and an environment without network and without the user's Hub settings."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from lerobot_grain.testing import LoopbackHub

SHARED = Path(__file__).parents[2] / "shared"

# Several devices to shard over. Here, because it has to be said before anything asks JAX for one.
jax.config.update("jax_num_cpu_devices", 4)
# A hanging test dumps the stacks of all threads before pytest-timeout ends it.
faulthandler.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden and real data sets; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("the shared data sets (../shared) are not here")
    return SHARED


@pytest.fixture(autouse=True)
def _hub_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # Not the user's, and nothing of an earlier test.
    monkeypatch.setenv("LEROBOT_GRAIN_CACHE", str(tmp_path / "kept"))


@pytest.fixture(scope="session")
def hub() -> Iterator[LoopbackHub]:
    """One loopback Hub for the whole session; tests add repositories of their own names."""
    with LoopbackHub() as running:
        yield running

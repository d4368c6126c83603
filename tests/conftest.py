"""Fixtures of all tests: where the shared datasets lie, and an environment without network and
without the user's Hub settings.

Also the order of the files.
"""

from __future__ import annotations

import faulthandler
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from lerobot_grain.testing import LoopbackHub
from tests.support.forked import offer_forking
from tests.support.streams import digest, write_small

SHARED = Path(__file__).parents[2] / "shared"

# The files that take more than 6 s, the longest first. They are begun first, so that
# none of them runs at the end, while the other processes have nothing to do. pytest-xdist alone
# begins with the files of the most tests: those of one long test come last.
LONGEST_FIRST = [
    "test_frame_cache.py",
    "test_examples.py",
    "test_dataset_cache.py",
    "test_read_ahead.py",
    "test_faults.py",
    "test_piece_cache.py",
    "test_workers.py",
    "test_commands.py",
    "test_interruptions.py",
    "test_exit.py",
    "test_element_specs.py",
    "test_docs.py",
    "test_writer.py",
    "test_remote_readers.py",
    "test_benchmark.py",
    "test_worker_batches.py",
    "test_weighted_rows.py",
    "test_fill_cache.py",
    "test_staying_frames.py",
    "test_storage.py",
    "test_metadata_v2.py",
    "test_versions.py",
    "test_secrets.py",
    "test_architecture.py",
    "test_mixture_dataset.py",
    "test_episode_dataset.py",
    "test_normalization.py",
    "test_state.py",
    "test_mirrors.py",
    "test_grain_mix.py",
    "test_read_context.py",
    "test_goals.py",
    "test_hub.py",
    "test_fuzz.py",
    "test_hostile_server.py",
    "test_repository.py",
    "test_golden.py",
    "test_notebooks.py",
    "test_store_faults.py",
    "test_entry_cache.py",
    "test_resume.py",
    "test_hub_stream.py",
    "test_codecs.py",
    "test_odd_videos.py",
    "test_batches.py",
    "test_locate.py",
    "test_object_storage.py",
    "test_checkpoint.py",
    "test_row_order.py",
    "test_together.py",
    "test_statistics.py",
    "test_cache_command.py",
    "test_shaping.py",
    "test_selected_rows.py",
    "test_chunk_order.py",
    "test_shuffle.py",
    "test_bucket_storage.py",
    "test_connections.py",
    "test_hostile.py",
    "test_matrix.py",
    "test_small_mp4.py",
    "test_mp4.py",
    "test_images.py",
]

# Several devices to shard over. Here, because it has to be said before anything asks JAX for one.
jax.config.update("jax_num_cpu_devices", 4)
# The policies of tests are small: compiling them takes longer than running them. The environment is
# that of the processes that tests start.
jax.config.update("jax_disable_most_optimizations", True)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The time that an example takes depends on the machine only. The cases are the same in every run,
# so that a run says something about the code and not about its luck; `LEROBOT_GRAIN_CASES` draws
# others, and keeps those that fail.
if "LEROBOT_GRAIN_CASES" in os.environ:
    hypothesis.settings.register_profile("ours", deadline=None)
else:
    hypothesis.settings.register_profile("ours", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ours")
# A hanging test dumps the stacks of all threads before pytest-timeout ends it.
faulthandler.enable()


def pytest_configure(config: pytest.Config) -> None:
    # Of `--dist loadfile`, where pytest-xdist is there.
    config.option.loadscopereorder = False
    if config.getoption("dist", "no") != "no":
        offer_forking()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Spares the garbage collector what is there from the beginning: thousands of tests and the
    modules of large libraries, 0.8 s of a core at every full collection.
    """
    gc.disable()
    result = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden and real datasets; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("the shared datasets (../shared) are not here")
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


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of `write_small`, once for the whole session; it is not to be changed."""
    return write_small(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture(scope="session")
def small_digest(small_dataset: Path) -> str:
    """The hash of all examples that its files hold."""
    return digest(small_dataset)

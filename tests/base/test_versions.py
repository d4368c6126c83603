"""Features that older versions of the dependencies lack: each is taken away from the installed one,
as the older one has it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base import versions
from lerobot_grain._datasets.feed import device
from lerobot_grain._video import rgb
from lerobot_grain.testing import Camera, write_dataset
from tests.support.installed import own_lines

# The decoder finds CUDA's libraries there, if it needs them.
LIBRARIES = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def test_enable_x64_of_jax_before_0_8(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.delattr(jax, "enable_x64", raising=False)
    monkeypatch.setattr(
        importlib.import_module("jax.experimental"), "enable_x64", used.append, raising=False
    )
    assert versions.jax_enable_x64(True) is None
    assert used == [True]


def test_enable_x64_of_jax() -> None:
    with versions.jax_enable_x64(True):
        assert jax.numpy.asarray(np.int64(2**40)).dtype == np.int64
    with versions.jax_enable_x64(False):
        assert jax.numpy.asarray(np.int64(1)).dtype == np.int32


@pytest.mark.parametrize("is_offline", [True, False])
def test_offline_mode_of_huggingface_hub_before_1_10(
    monkeypatch: pytest.MonkeyPatch, is_offline: bool
) -> None:
    older = types.SimpleNamespace(constants=types.SimpleNamespace(HF_HUB_OFFLINE=is_offline))
    monkeypatch.setitem(sys.modules, "huggingface_hub", older)
    assert versions.hub_is_offline() is is_offline


def test_lists_of_files_of_older_huggingface_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = {"revision": "0" * 40, "cache_dir": str(tmp_path)}
    assert versions.cached_repo_tree("org/name", **arguments) is None, "nothing was downloaded"
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace())
    assert versions.cached_repo_tree("org/name", **arguments) is None


@pytest.mark.parametrize("size", [(64, 96), (400, 520)], ids=["decoded together", "one by one"])
def test_resizing_by_torchcodec_before_0_10(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: tuple[int, int]
) -> None:
    camera = Camera(height=size[0], width=size[1])
    written = write_dataset(tmp_path / "data", episode_lengths=[4], fps=10, cameras=[camera])
    decoders, transforms = rgb.load_decoder()
    found = {}
    for name, had in {"old": None, "new": transforms}.items():
        monkeypatch.setattr(rgb, "load_decoder", lambda had=had: (decoders, had))
        dataset = lg.LeRobotIterDataset(
            written.directory, shuffle=None, num_epochs=1, image_size=(32, 48)
        )
        found[name] = np.stack([example[camera.key] for example in dataset]).astype(int)
        assert found[name].shape == (4, 32, 48, 3)
    # Two ways to do the same: 0.1 to 0.25 levels of 255 apart in the mean.
    assert abs(found["old"] - found["new"]).mean() < 1


def test_without_torch_everything_but_video_works(tmp_path: Path) -> None:
    written = write_dataset(
        tmp_path / "data", episode_lengths=[8], fps=10, cameras=[Camera(kind="image")]
    )
    code = f"""
import sys
sys.modules["torch"] = sys.modules["torchcodec"] = None
import lerobot_grain as lg
dataset = lg.LeRobotIterDataset({str(written.directory)!r}).batch(4)
batches = iter(dataset.pipe(lg.DeviceIterDataset))
print(sorted(value.shape for value in next(batches).values() if value.ndim > 3))
batches.close()
"""
    environment = {"PYTHONPATH": str(Path(lg.__file__).parents[1]), "PATH": "", **LIBRARIES}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, own_lines(done.stderr)) == (0, "[(4, 96, 96, 3)]\n", "")


def test_versions_are_named() -> None:
    assert re.fullmatch(
        r"torch \d+\.\d+\.\S+, no lerobot_grain_of_tomorrow",
        versions.installed("torch", "lerobot_grain_of_tomorrow"),
    )


def test_whatever_fails_in_the_thread_of_the_device_feed_is_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was waited for forever where the thread failed before its first batch, as it did with JAX
    0.7.
    """
    written = write_dataset(tmp_path / "data", episode_lengths=[8], fps=10, cameras=[])

    def missing(_: bool) -> None:
        raise AttributeError("no enable_x64")

    monkeypatch.setattr(device, "jax_enable_x64", missing)
    feed = iter(lg.LeRobotIterDataset(written.directory).batch(2).pipe(lg.DeviceIterDataset))
    with pytest.raises(AttributeError, match="no enable_x64"):
        next(feed)
    feed.close()


@pytest.mark.parametrize("imported_first", [True, pytest.param(False, marks=pytest.mark.long)])
def test_torchcodec_after_tensorflow_does_not_import_triton(
    tmp_path: Path, imported_first: bool
) -> None:
    """Triton ends the interpreter there; here it says so, and ends it, too.

    Without TensorFlow it may be imported.
    """
    for name, contents in {
        "tensorflow": "",
        "triton": "import os\nprint('triton', flush=True)\nos._exit(11)\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(contents)
    code = f"""
import sys
if {imported_first}:
    import tensorflow
from lerobot_grain._video.decoder import load_decoder
from tests.support.installed import own_lines
load_decoder()
print("triton" in sys.modules)
try:
    import torch._dynamo.utils
    from torch.utils._triton import has_triton_package
    print(has_triton_package())
except ImportError as error:
    print(error)
"""
    path = f"{tmp_path}:{Path(lg.__file__).parents[1]}"
    environment = {"PYTHONPATH": path, "PATH": "", **LIBRARIES}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if imported_first:
        assert (done.returncode, done.stdout, own_lines(done.stderr)) == (0, "False\nFalse\n", "")
    else:
        assert (done.returncode, done.stdout) in ((11, "triton\n"), (0, "False\nFalse\n"))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)
def test_a_stream_of_video_after_tensorflow(tmp_path: Path) -> None:
    """With the real one: the interpreter goes on, and so do TensorFlow and torch."""
    directory = write_dataset(tmp_path / "data", episode_lengths=[4]).directory
    code = f"""
import tensorflow as tf
import lerobot_grain as lg
print(len(list(lg.LeRobotIterDataset({str(directory)!r}, num_epochs=1))))
print(float(tf.constant(1.0) + 1))
import torch
print(float(torch.zeros(2).sum()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "4\n2.0\n0.0\n"), done.stderr

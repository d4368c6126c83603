"""Names of files: the same for the same frames, others for all that may differ."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import features

import lerobot_grain as lg
from lerobot_grain._base import machine
from lerobot_grain._reading.frame_cache.frame_key import FrameKey
from lerobot_grain._video.decoder import decoder_version
from lerobot_grain._video.depth import depth_decoder_version
from lerobot_grain._video.images import image_decoder_version


def names(directory: Path, *, size: tuple[int, int] | None = None, **changes: object) -> list[str]:
    repository = lg.open_repository(directory)
    if changes:
        repository = dataclasses.replace(repository, **changes)
    key = FrameKey(repository, repository.features["top"], size)
    return [key.name(episode) for episode in range(repository.episodes.num_episodes)]


def test_names_are_those_of_another_process_and_differ_by_episode(small_dataset: Path) -> None:
    found = names(small_dataset)
    assert found == names(small_dataset)
    assert len(set(found)) == len(found)
    assert all(len(name) == len("0" * 16 + "-" + "0" * 32 + ".frames") for name in found)


def test_the_rank_is_of_commit_camera_and_episode(small_dataset: Path) -> None:
    found, resized = names(small_dataset), names(small_dataset, size=(8, 8))
    assert [name[:16] for name in found] == [name[:16] for name in resized]
    assert not set(found) & set(resized)
    assert not {name[:16] for name in found} & {
        name[:16] for name in names(small_dataset, commit="another")
    }


def test_a_copy_in_another_place_has_other_names(small_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(small_dataset, tmp_path / "copy")
    assert not set(names(small_dataset)) & set(names(tmp_path / "copy"))


def test_only_the_episodes_of_a_changed_file_have_other_names(
    small_dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_dataset, copy)
    before = names(copy)
    os.utime(copy / "videos/top/chunk-000/file-001.mp4", (1, 1))  # of episodes 2 and 3
    after = names(copy)
    assert [one == other for one, other in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(text: str | None) -> str:
        monkeypatch.setattr(machine, "_PROCESSORS", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").unlink(missing_ok=True)
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        machine.processor.cache_clear()
        return machine.processor()

    try:
        assert of("processor : 0\nflags\t\t: sse avx\nflags\t\t: other\n").endswith(" avx sse")
        assert of("Features\t: fp asimd\n").endswith(" asimd fp")
        assert of(None)
    finally:
        machine.processor.cache_clear()


@pytest.mark.parametrize(
    ("version", "packages", "libraries"),
    [
        (decoder_version, ("torch", "torchcodec", "numpy"), ["FFmpeg "]),
        (depth_decoder_version, ("av", "numpy"), ["FFmpeg "]),
        (
            image_decoder_version,
            ("pillow", "numpy"),
            [
                f"'{name}': {features.version(name)!r}"
                for name in ("jpg", "libjpeg_turbo", "libtiff", "webp", "zlib")
            ],
        ),
    ],
)
def test_a_decoder_is_named_with_all_that_decides_its_pixels(
    version: Callable[[], str], packages: tuple[str, ...], libraries: list[str]
) -> None:
    found = version()
    for package in packages:
        assert f"{package} {importlib.metadata.version(package)}" in found
    assert all(library in found for library in libraries)
    assert "unknown" not in found

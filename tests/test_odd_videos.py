"""Video files that no lerobot recorder wrote: what torchcodec shows of the whole file, read from start to end, is what rows are given.

PyAV, with an FFmpeg of its own, is the second witness, by barcode.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from tests.odd_videos import (
    CODECS,
    KEY,
    TURNS,
    VideoOf,
    codes_by_pyav,
    codes_of,
    decoded,
    edited,
    film,
    joined,
    times_of,
    turned,
    with_headers,
    write_with_videos,
)
from tests.pairwise import choose

# At least 120 of them by `scripts/test.sh --long`, the first ones always: those hold the rarest pairs.
NUM_FILES, NUM_ALWAYS = 132, 22

FACTORS: Mapping[str, tuple[Any, ...]] = {
    "codec": tuple(CODECS),
    "headers": ("described", "in samples", "in some samples", "of two recorders"),
    "edit": ("as written", "none", "wait", "cut 0.07", "cut 0.6", "cut 1.4", "cut 6.4", "short"),
    "turn": ("0", "90", "180 in mvhd", "270"),
    "rate": ("fps", "29.97", "double"),
    "num_episodes": (1, 2),
}


def is_possible(values: Mapping[str, Any]) -> bool:
    # AV1 has its headers in the samples anyway, VP9 has none.
    return (values["headers"] == "described" or values["codec"] not in ("av1", "vp9")) and (
        values["headers"] != "of two recorders" or values["num_episodes"] == 2
    )


FILES = choose(FACTORS, NUM_FILES, is_possible=is_possible)


def made(values: Mapping[str, Any]) -> bytes:
    """Returns the file that the values describe, of episodes of 11 and 8 frames."""
    rate = {"fps": Fraction(10), "29.97": Fraction(30000, 1001), "double": Fraction(20)}[values["rate"]]
    films = [film(values["codec"], 0, 11, rate=rate)]
    if values["num_episodes"] == 2:
        films.append(film(values["codec"], 1, 8, rate=rate, is_other=values["headers"] == "of two recorders"))
    if values["headers"] != "described":
        films = [with_headers(each, first=values["headers"] == "in some samples") for each in films]
    data = joined(*films) if len(films) > 1 else films[0]
    times = times_of(data)
    kind, _, cut = values["edit"].partition(" ")
    if kind == "cut":
        data = edited(data, (times.length, times.start + round(float(cut) * times.frame)))
    elif kind == "wait":
        data = edited(data, (130, -1), (times.length, times.start))
    elif kind == "short":
        data = edited(data, (times.length - round(1.5 * times.frame * times.movie / times.media), times.start))
    elif kind == "none":
        data = edited(data)
    turn, _, where = values["turn"].partition(" in ")
    return turned(data, TURNS[int(turn)], where=where or "tkhd") if turn != "0" else data


def check(directory: Path, files: list[VideoOf], expected: np.ndarray, *, fps: int) -> None:
    """Streams a data set, shuffled and through windows; the row `index` must have the frame of this number."""
    repository = lg.open_repository(directory)
    lengths = [length for file in files for length in file.lengths]
    firsts = np.cumsum([0, *lengths])
    dataset = lg.LeRobotIterDataset(
        repository,
        features=[KEY, "index", "episode_index"],
        delta_timestamps={KEY: [-1 / fps, 0.0, 2 / fps]},
        shuffle=lg.Shuffle(seed=1, clip_length=4, num_parts=2, buffer_size=8),
        num_epochs=1,
    )
    rows = []
    for example in dataset:
        row, episode = int(example["index"]), int(example["episode_index"])
        rows.append(row)
        wanted = np.clip(row + np.array([-1, 0, 2]), firsts[episode], firsts[episode + 1] - 1)
        np.testing.assert_array_equal(example[KEY], expected[wanted])
    assert sorted(rows) == list(range(sum(lengths)))


def parametrized() -> list[Any]:
    return [
        pytest.param(values, id="-".join(map(str, values.values())), marks=[pytest.mark.long] if number >= NUM_ALWAYS else [])
        for number, values in enumerate(FILES)
    ]


@pytest.mark.parametrize("values", parametrized())
def test_rows_have_the_frames_that_the_decoder_shows(values: Mapping[str, Any], tmp_path: Path) -> None:
    data = made(values)
    turn, codes = int(values["turn"].split()[0]), codes_by_pyav(data)
    shown = decoded(data)
    # FFmpeg's decoder of AV1 gives, in version 5, the frames behind the end of an edit, too; in version 8, which PyAV has, no more.
    assert len(shown) == len(codes) or (values["codec"], values["edit"]) == ("av1", "short")
    shown = shown[: len(codes)]
    assert codes_of(shown, turn) == codes
    step, fps, rate = {"fps": (1, 10, Fraction(10)), "29.97": (1, 30, Fraction(30)), "double": (2, 10, Fraction(20))}[values["rate"]]
    counts = [sum(episode == number for episode, _ in codes) for number in range(values["num_episodes"])]
    starts = [float(sum(counts[:number]) / rate) for number in range(len(counts))]
    odd = VideoOf(data, [-(-count // step) for count in counts], starts)
    # A file of the first recorder without anything odd, whose GOPs are decoded together with those of the other one where they can be.
    plain = VideoOf(turned(film(values["codec"], 2, 9, rate=rate), TURNS[turn]), [9] if step == 1 else [5], [0.0])
    frames, begin = [], 0
    for count in counts:
        frames.append(shown[begin : begin + count : step])
        begin += count
    expected = np.concatenate([*frames, decoded(plain.data)[::step]])
    written = write_with_videos(tmp_path / "data", [odd, plain], fps=fps, size=expected.shape[1:3])
    check(written.directory, [odd, plain], expected, fps=fps)

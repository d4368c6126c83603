"""Windows: deltas to offsets, clamping at both ends of an episode and its masks, and what is
refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.seconds import TOLERANCE_SECONDS
from lerobot_grain._order.windows import WindowOffsets, window_offsets

KEYS = ("state", "action", "camera")


def offsets_of(
    deltas: dict[str, Any],
    *,
    fps: float = 10.0,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    known_keys: Sequence[str] = KEYS,
) -> WindowOffsets:
    return window_offsets(
        deltas, fps=fps, tolerance_seconds=tolerance_seconds, known_keys=known_keys
    )


def message(deltas: Any, **options: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        offsets_of({"action": deltas}, **options)
    return str(caught.value)


def window(
    deltas: Any,
    *,
    frame: int = 50,
    length: int = 100,
    fps: float = 10.0,
    tolerance_seconds: float = 1e-4,
) -> tuple[list[int], list[bool]]:
    offsets = offsets_of({"action": deltas}, fps=fps, tolerance_seconds=tolerance_seconds)
    request = offsets.request(row=1000 + frame, episode=3, frame=frame, length=length)
    return request.frames["action"].tolist(), request.is_pad["action"].tolist()


def test_a_request_names_its_anchor() -> None:
    request = offsets_of({"action": [0.0]}).request(row=1005, episode=3, frame=5, length=8)
    assert (request.row, request.episode, request.frame) == (1005, 3, 5)
    assert request.frames["action"].dtype == np.int64
    assert request.is_pad["action"].dtype == np.bool_


@pytest.mark.parametrize(
    ("frame", "frames", "is_pad"),
    [
        (0, [0, 0, 0, 1, 3], [True, True, False, False, False]),
        (1, [0, 0, 1, 2, 4], [True, False, False, False, False]),
        (2, [0, 1, 2, 3, 4], [False, False, False, False, True]),
        (4, [2, 3, 4, 4, 4], [False, False, False, True, True]),
    ],
)
def test_clamping_at_both_ends_of_an_episode_of_5_frames(
    frame: int, frames: list[int], is_pad: list[bool]
) -> None:
    assert window([-0.2, -0.1, 0.0, 0.1, 0.3], frame=frame, length=5) == (frames, is_pad)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(KEYS), st.lists(st.integers(-300, 300), min_size=1, max_size=8)
    ),
    st.sampled_from([1.0, 10.0, 14.985, 29.97, 30.0, 50.0]),
    st.integers(1, 60),
    st.integers(0, 59),
)
def test_windows_are_those_of_a_plain_loop(
    offsets: dict[str, list[int]], fps: float, length: int, frame: int
) -> None:
    frame %= length
    deltas = {key: [offset / fps for offset in values] for key, values in offsets.items()}
    made = offsets_of(deltas, fps=fps)
    assert made.keys == tuple(offsets)
    request = made.request(row=7, episode=1, frame=frame, length=length)
    assert set(request.frames) == set(request.is_pad) == set(offsets)
    for key, values in offsets.items():
        frames, is_pad = [], []
        for offset in values:
            wanted = frame + offset
            is_pad.append(wanted < 0 or wanted >= length)
            frames.append(0 if wanted < 0 else length - 1 if wanted >= length else wanted)
        assert request.frames[key].tolist() == frames
        assert request.is_pad[key].tolist() == is_pad
    block = made.block(
        episodes=np.array([4, 1]), frames=np.array([0, frame]), lengths=np.array([1, length])
    )
    for key in offsets:
        assert block.frames[key][1].tolist() == request.frames[key].tolist()
        assert block.is_pad[key][1].tolist() == request.is_pad[key].tolist()


def test_one_request_does_not_change_the_next() -> None:
    offsets = offsets_of({"action": [-0.1, 0.0, 0.1]})
    first = offsets.request(row=3, episode=0, frame=3, length=9)
    clamped = offsets.request(row=0, episode=0, frame=0, length=1)
    again = offsets.request(row=4, episode=0, frame=4, length=9)
    assert first.frames["action"].tolist() == [2, 3, 4]
    assert clamped.frames["action"].tolist() == [0, 0, 0]
    assert clamped.is_pad["action"].tolist() == [True, False, True]
    assert again.frames["action"].tolist() == [3, 4, 5]
    assert again.is_pad["action"].tolist() == [False, False, False]


@pytest.mark.parametrize("frame", [0, 5])
def test_nothing_of_a_request_can_be_written(frame: int) -> None:
    # Features with equal offsets may share arrays, and masks without padding are shared by all
    # requests: so none of them is writable.
    request = offsets_of({"state": [-0.1, 0.0], "action": [-0.1, 0.0]}).request(
        row=0, episode=0, frame=frame, length=9
    )
    for array in (*request.frames.values(), *request.is_pad.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        assert array.base is None or not array.base.flags.writeable


def test_requests_and_offsets_pickle() -> None:
    offsets = pickle.loads(pickle.dumps(offsets_of({"state": [0.0], "action": [-0.1, 0.1]})))
    request = offsets.request(row=0, episode=0, frame=0, length=9)
    again = pickle.loads(pickle.dumps(request))
    assert (again.row, again.episode, again.frame) == (0, 0, 0)
    assert {key: values.tolist() for key, values in again.frames.items()} == {
        "state": [0],
        "action": [0, 1],
    }


@pytest.mark.parametrize(
    "deltas",
    [
        np.arange(-1, 3) / 10,
        (np.arange(-1, 3) / 10).astype(np.float32),
        [np.float64(-0.1), np.float32(0.0), np.float16(0.1), 0.2],
        (-0.1, 0, 0.1, 0.2),
        (value / 10 for value in range(-1, 3)),
    ],
    ids=["float64 array", "float32 array", "scalars", "tuple", "generator"],
)
def test_deltas_of_any_kind_of_sequence(deltas: Any) -> None:
    # The float16 nearest to 0.1 is 0.09998: within the tolerance.
    assert window(deltas)[0] == [49, 50, 51, 52]


def test_whole_seconds_as_integers() -> None:
    assert window([np.int32(-1), 2])[0] == [40, 70]


def test_order_and_repetition_of_deltas_are_kept() -> None:
    assert window([0.2, 0.0, 0.2, -0.1]) == ([52, 50, 52, 49], [False] * 4)


def test_rounded_deltas_are_within_the_tolerance() -> None:
    # As people write thirds of a second: 0.0333 * 30 = 0.999.
    assert window([0.0333, 0.0667, -0.0333], fps=30.0)[0] == [51, 52, 49]
    assert window([0.033], fps=30.0, tolerance_seconds=1e-3)[0] == [51]


@pytest.mark.parametrize(
    ("delta", "frame", "is_pad"),
    [
        (86400.0, 99, True),
        (-86400.0, 0, True),
        (1e9, 99, True),
        (1e15, 99, True),
        (1e18, 99, True),
        (-1e18, 0, True),
        (1e300, 99, True),
        (10**18, 99, True),
    ],
    ids=str,
)
def test_a_delta_may_be_of_any_size(delta: float, frame: int, is_pad: bool) -> None:
    assert window([0.0, delta]) == ([50, frame], [False, is_pad])


def test_a_delta_at_the_end_of_the_integers() -> None:
    # At 1 fps this is 2**63 - 1024 frames; with the anchor added it must not wrap around.
    assert window([9.223372036854774784e18], frame=2000, length=4000, fps=1.0) == ([3999], [True])
    assert window([-(2.0**63)], frame=2000, length=4000, fps=1.0) == ([0], [True])


def test_a_delta_that_no_float_holds() -> None:
    assert message([10**400]).endswith("expected a finite number of seconds")
    assert message([1e308], fps=100.0).startswith("delta_timestamps['action']")


def test_no_deltas_at_all() -> None:
    request = offsets_of({}).request(row=5, episode=0, frame=5, length=9)
    assert (request.frames, request.is_pad) == ({}, {})


def test_a_delta_between_two_frames_names_both() -> None:
    assert message([0.0, 0.15]) == (
        "delta_timestamps['action']: 0.15 s is 1.5 frames at 10 fps; expected a whole number of "
        "frames within tolerance_seconds=0.0001. The nearest ones are 0.1 s (1 frames) and 0.2 s "
        "(2 frames)"
    )
    assert message([-0.012], fps=30.0) == (
        "delta_timestamps['action']: -0.012 s is -0.36 frames at 30 fps; "
        "expected a whole number of frames within tolerance_seconds=0.0001. "
        "The nearest ones are -0.03333333333333333 s (-1 frames) and 0.0 s (0 frames)"
    )
    assert "s is 1.5 frames" in message([np.float32(0.15)])


def test_the_nearest_deltas_of_the_message_are_accepted() -> None:
    for fps in (10.0, 15.0, 29.97, 30.0, 50.0):
        text = message([1.234 / fps], fps=fps)
        nearest = [
            float(piece.split(" s (")[0])
            for piece in text.split("The nearest ones are ")[1].split(" and ")
        ]
        assert window(nearest, fps=fps)[0] == [51, 52]


def test_the_tolerance_is_in_seconds() -> None:
    # 0.0334 s at 30 fps is 6.7e-5 s off, whatever that is in frames.
    assert window([0.0334], fps=30.0)[0] == [51]
    assert "is 1.002 frames at 30 fps" in message([0.0334], fps=30.0, tolerance_seconds=6e-5)


@pytest.mark.parametrize(
    "delta",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        True,
        np.True_,
        "0.1",
        None,
        [0.1],
        1j,
        np.complex64(1),
        np.timedelta64(1, "s"),
    ],
    ids=lambda delta: f"{type(delta).__name__} {delta}",
)
def test_what_is_no_number_of_seconds(delta: Any) -> None:
    assert (
        message([0.0, delta])
        == f"delta_timestamps['action'] holds {delta!r}; expected a finite number of seconds"
    )


@pytest.mark.parametrize("deltas", [0.1, None, np.float32(0.1)], ids=["float", "None", "float32"])
def test_deltas_that_are_not_a_list(deltas: Any) -> None:
    assert message(deltas).startswith("delta_timestamps['action']")


def test_empty_list() -> None:
    assert (
        message([])
        == "delta_timestamps['action'] is empty; expected at least one delta in seconds, such as "
        "[0.0]"
    )


def test_unknown_key() -> None:
    assert (
        message([0.0], known_keys=["state", "camera"])
        == "delta_timestamps['action']: no such feature is read; there are state, camera"
    )


@pytest.mark.parametrize("tolerance", [-1e-9, float("nan"), float("inf"), None, "1"])
def test_tolerance_that_makes_no_sense(tolerance: Any) -> None:
    assert (
        message([0.0], tolerance_seconds=tolerance)
        == f"tolerance_seconds={tolerance!r}: expected a number of seconds >= 0"
    )

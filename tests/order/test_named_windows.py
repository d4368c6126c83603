"""Windows with names: their frames against the definition written a second time, and what is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain import (
    GeometricDraw,
    InvalidRequestError,
    LastFrame,
    UniformDraw,
    Window,
)
from lerobot_grain._order.named_windows import NamedWindows
from lerobot_grain._order.valid_windows import ValidRuns
from lerobot_grain._order.windows import WindowOffsets, mask_keys
from tests.support.draws import draw_frame, word

KEYS = ("state", "top", "wrist")


def windows_of(windows: Any, *, longest: int = 100, known_keys: Sequence[str] = KEYS) -> Any:
    return NamedWindows(
        windows, fps=10.0, tolerance_seconds=1e-4, known_keys=known_keys, longest=longest
    )


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    draw=st.one_of(
        st.builds(
            lambda first, more: UniformDraw(first / 10, (first + more) / 10),
            st.integers(0, 20),
            st.integers(0, 20),
        ),
        st.builds(GeometricDraw, st.floats(0.1, 5)),
        st.just(LastFrame()),
    ),
    start=st.integers(0, 50),
    seed=st.integers(0, 2**64 - 1),
    with_mask=st.booleans(),
    data=st.data(),
)
def test_drawn_frames_are_those_of_the_definition(
    lengths: list[int], draw: Any, start: int, seed: int, with_mask: bool, data: st.DataObject
) -> None:
    count = sum(lengths)
    is_valid = np.ones(count, np.bool_)
    if with_mask:
        is_valid[:] = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    first_rows = (np.cumsum(lengths) - lengths)[episodes]
    anchors = np.arange(count) - first_rows
    block = WindowOffsets({}).block(
        episodes=episodes, frames=anchors, lengths=np.array(lengths)[episodes]
    )
    window = windows_of({"goal": Window(["state", "top"], draw)}, longest=max(lengths)).frames(
        block,
        first_rows=first_rows,
        lengths=np.array(lengths)[episodes],
        positions=start + np.arange(count),
        seed=seed,
        valid=ValidRuns(is_valid) if with_mask else None,
    )["goal"]
    assert window.outputs == {"goal.state": "state", "goal.top": "top"}
    assert not window.has_time
    assert window.seconds.dtype == np.float32
    for row in range(count):
        episode, frame, first = episodes[row], anchors.item(row), first_rows.item(row)
        length = lengths[episode]
        expected, is_pad = draw_frame(
            draw,
            word("goal", seed, start + row),
            frame,
            length,
            fps=10.0,
            is_valid=is_valid[first : first + length].tolist(),
        )
        assert window.frames[row].tolist() == [expected]
        assert window.is_pad[row].tolist() == [is_pad]
        assert window.seconds[row] == np.float32((expected - frame) / 10)


def test_fixed_frames_have_a_time_axis_and_are_padded_as_delta_timestamps_are() -> None:
    block = WindowOffsets({}).block(
        episodes=np.array([0, 0]), frames=np.array([0, 4]), lengths=np.array([5, 5])
    )
    window = windows_of({"near": Window("state", [-0.1, 0.0, 0.2])}).frames(
        block,
        first_rows=np.array([0, 0]),
        lengths=np.array([5, 5]),
        positions=None,
        seed=0,
        valid=None,
    )["near"]
    assert window.has_time
    assert window.outputs == {"near": "state"}
    assert window.frames.tolist() == [[0, 0, 2], [3, 4, 4]]
    assert window.is_pad.tolist() == [[True, False, False], [False, False, True]]
    assert window.seconds.tolist() == [
        [0, 0, np.float32(0.2)],
        [np.float32(-0.1), 0, 0],
    ]


def test_frames_that_many_examples_have() -> None:
    count = 6
    block = WindowOffsets({}).block(
        episodes=np.zeros(count, np.int64), frames=np.arange(count), lengths=np.full(count, count)
    )
    found = windows_of(
        {"end": Window("top", LastFrame()), "near": Window("top", UniformDraw(0.1, 0.1))}
    ).frames(
        block,
        first_rows=np.zeros(count, np.int64),
        lengths=np.full(count, count),
        positions=np.arange(count),
        seed=0,
        valid=None,
    )
    assert found["end"].stays.tolist() == [True] * count
    # At the end of the episode it is the last frame, too, but only a few rows are near it.
    assert not found["near"].stays.any()


# --- refusals ------------------------------------------------------------------------------------

END = LastFrame()
REFUSED: list[tuple[Any, str]] = [
    (
        [("goal", Window("top", END))],
        "windows=[('goal', Window(features='top', ",
    ),
    ({"": Window("top", END)}, "windows['']: expected the name of the window"),
    ({3: Window("top", END)}, "windows[3]: expected the name of the window"),
    ({"goal": [0.0]}, "windows['goal'] is [0.0]; expected a Window, such as"),
    ({"top": Window("state", END)}, "windows['top']: there is a feature 'top'; give the window"),
    ({"goal": Window(["top", "no"], END)}, "windows['goal']: no feature 'no' is read; there are"),
    ({"goal": Window("top", [])}, "windows['goal'] is empty; expected at least one delta"),
    ({"goal": Window("top", [0.05])}, "windows['goal']: 0.05 s is 0.5 frames at 10 fps; expected"),
    (
        {"goal": Window("top", [float("nan")])},
        "windows['goal'] holds nan; expected a finite number of seconds",
    ),
]


@pytest.mark.parametrize(("windows", "text"), REFUSED, ids=range(len(REFUSED)))
def test_windows_that_are_none(windows: Any, text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        windows_of(windows)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("features", [[], ["top", "top"], [3], 3, None, {"top"}])
def test_features_that_are_none(features: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"Window\(features=.*different ones"):
        Window(features, END)


@pytest.mark.parametrize("frames", ["0.1", 0.5, None, LastFrame])
def test_frames_that_are_none(frames: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Window("top", frames)
    assert str(caught.value) == (
        f"Window(frames={frames!r}): expected a list of seconds, such as [0.0], or a draw: "
        "UniformDraw(0.5, 2.0), GeometricDraw(2.0) or LastFrame()"
    )


def test_keys_that_are_taken() -> None:
    def keys(**arguments: Any) -> dict[str, str]:
        arguments = {
            "named": {"goal": {"goal.top": "top"}},
            "selected": ["top", "action"],
            "pad_keys": {},
        } | arguments
        return mask_keys(["action"], arguments.pop("named"), **arguments)

    assert keys() == {"action": "action_is_pad", "goal": "goal_is_pad"}
    assert keys(pad_keys={"goal": "reached"})["goal"] == "reached"
    for arguments, text in (
        (
            {"selected": ["top", "goal.top"]},
            "windows['goal']: its values and the feature 'goal.top', which is selected, would both "
            "be 'goal.top' in examples; give the window another name",
        ),
        (
            {"selected": ["top", "goal_seconds"]},
            "windows['goal']: its values and the feature 'goal_sec",
        ),
        (
            {"selected": ["top", "goal_is_pad"]},
            "windows['goal']: the mask of the window of 'goal' and the feature 'goal_is_pad', which"
            " is selected, would both be 'goal_is_pad' in examples; give the mask another key",
        ),
        (
            {"named": {"goal": {"goal": "top"}, "x": {"goal_seconds": "top"}}},
            "windows['x']: its values and the values of windows['goal'] would both be 'goal_sec",
        ),
        (
            {"selected": ["action"]},
            "windows['goal']: 'top' is not among features=; there are action",
        ),
        (
            {"pad_keys": {"goal": "goal.top"}},
            "pad_keys={'goal': 'goal.top'}: the mask of the window of 'goal' and the values of "
            "windows['goal'] would both be 'goal.top'",
        ),
        (
            {"pad_keys": {"goal": "action_is_pad"}},
            "pad_keys={'goal': 'action_is_pad'}: the mask of the window of 'goal' and the mask of "
            "'action' would both be 'action_is_pad'",
        ),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            keys(**arguments)
        assert str(caught.value).startswith(text)

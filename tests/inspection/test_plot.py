"""Plots of examples: what is drawn for every kind of value, with and without windows, single and
in batches.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Camera, write_dataset

TOP, WRIST = "observation.images.top", "observation.images.wrist"
DELTAS = {TOP: [-0.1, 0.0, 0.1], "action": [0.0, 0.1, 0.2, 0.3]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    cameras = [
        Camera(key=TOP, height=32, width=80, kind="image"),
        Camera(key=WRIST, height=24, width=72, kind="image"),
    ]
    directory = tmp_path_factory.mktemp("plot") / "data"
    written = write_dataset(
        directory,
        episode_lengths=[8],
        fps=10,
        cameras=cameras,
        action_size=3,
        tasks=["pay $5 for the $\\frac{cube"],
    )
    return lg.open_repository(written.directory)


@pytest.fixture(scope="module")
def last(repository: lg.Repository) -> dict[str, Any]:
    """The last row of the episode."""
    with contextlib.closing(
        iter(lg.LeRobotIterDataset(repository, delta_timestamps=DELTAS, shuffle=None, num_epochs=1))
    ) as examples:
        return dict(list(examples)[-1])


def drawn(figure: Any) -> Any:
    """Renders a figure, and returns it."""
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return figure


def axes_of(figure: Any) -> dict[str, list[Any]]:
    """Returns the axes of every feature; those of the panels by title, those of cameras by the
    title of their strip.
    """
    found: dict[str, list[Any]] = {}
    for strip in figure.subfigs:
        for axes in strip.axes:
            title = axes.get_title(loc="left") or strip.get_suptitle()
            found.setdefault(title.split("  ")[0], []).append(axes)
    return found


def test_an_example_with_windows(last: dict[str, Any], repository: lg.Repository) -> None:
    figure = drawn(lg.plot_example(last, repository, delta_timestamps=DELTAS))
    assert figure.get_suptitle() == "pay \\$5 for the \\$\\frac{cube"
    assert figure.get_supxlabel().split("    ") == [
        "timestamp: 0.7",
        "frame_index: 7",
        "episode_index: 0",
        "index: 7",
        "task_index: 0",
    ]
    axes = axes_of(figure)
    assert [plot.get_xlabel() for plot in axes[TOP]] == ["-0.1 s", "0 s", "+0.1 s, pad"]
    assert [
        np.array_equal(plot.images[0].get_array(), frame)
        for plot, frame in zip(axes[TOP], last[TOP], strict=True)
    ] == [True] * 3
    assert len(axes[WRIST]) == 1
    (action,) = axes["action"]
    assert [text.get_text() for text in action.get_legend().get_texts()] == list(
        repository.features["action"].names or ()
    )
    assert np.array_equal([line.get_ydata() for line in action.lines], last["action"].T)
    assert np.allclose(action.lines[0].get_xdata(), DELTAS["action"])
    # The last three of the four actions are past the end of the episode.
    assert [round(patch.get_x(), 3) for patch in action.patches] == [0.05, 0.15, 0.25]
    (state,) = axes["observation.state"]
    assert np.allclose(state.containers[0].markerline.get_ydata(), last["observation.state"])


def test_the_same_without_a_repository_and_out_of_a_batch(last: dict[str, Any]) -> None:
    batch = {
        key: np.stack([np.zeros_like(value), value]) if key != "task" else np.array(["", value])
        for key, value in last.items()
    }
    axes = axes_of(drawn(lg.plot_example(batch, index=1, max_frames=2)))
    assert [plot.get_xlabel() for plot in axes[TOP]] == ["frame 0", "frame 2, pad"]
    assert np.array_equal([line.get_ydata() for line in axes["action"][0].lines], last["action"].T)
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"index=2: there is no such example in a batch whose '.*' has shape \(2,",
    ):
        lg.plot_example(batch, index=2)
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"index=0: .*'timestamp' has shape \(\); leave index out for a single example",
    ):
        lg.plot_example({"timestamp": np.float32(1)}, index=0)


def test_every_kind_of_value_is_drawn() -> None:
    depth = np.arange(3 * 8 * 10, dtype=np.float32).reshape(3, 8, 10, 1)
    depth[0, 0, 0] = np.nan
    example = {
        "depth": depth,
        "depth_is_pad": np.array([True, False, False]),
        "gray": np.full((8, 10, 1), 100, np.uint8),
        "augmented": jnp.linspace(-1, 1, 8 * 10 * 3).reshape(8, 10, 3),
        "millimeters": np.full((8, 10, 1), 1000, np.uint16),
        "many": np.ones((5, 40), np.float32),
        "many_is_pad": np.zeros(5, bool),
        "many_dim_is_pad": np.zeros((5, 40), bool),
        "number": np.arange(4.0),
        "number_is_pad": np.array([True, False, False, True]),
        "flags": np.array([True, False]),
        "matrix": np.ones((3, 3)),
        "tactile": np.ones((100, 300)),
        "one": np.array([0.25], np.float32),
        "done": np.bool_(True),
        "_note": "a $ odd _text_",
        "texts": np.array(["left", "left", "right"], object),
        "texts_is_pad": np.zeros(3, bool),
        "nothing": np.zeros((0,), np.float32),
        "task": "",
    }
    figure = drawn(lg.plot_example(example))
    axes = axes_of(figure)
    assert set(axes) == {
        "depth",
        "gray",
        "augmented",
        "millimeters",
        "many",
        "number",
        "flags",
        "matrix",
        "tactile",
    }
    assert [plot.get_xlabel() for plot in axes["depth"][:3]] == [
        "frame 0, pad",
        "frame 1",
        "frame 2",
    ]
    assert {plot.images[0].get_clim() for plot in axes["depth"][:3]} == {(1, 239)}
    assert len(axes["depth"]) == 4  # a scale of colors beside the frames
    assert axes["gray"][0].images[0].get_clim() == (0, 255)
    assert np.allclose(
        axes["augmented"][0].images[0].get_array().ravel(), np.linspace(0, 1, 240), atol=1e-6
    )
    assert axes["many"][0].collections[0].get_array().shape == (40, 5)
    assert axes["many"][0].get_legend() is None
    assert [patch.get_x() for patch in axes["number"][0].patches] == [-0.5, 2.5]
    assert len(axes["tactile"][0].containers[0].markerline.get_ydata()) == 30_000
    assert re.split(r"\s{2,}|\n", figure.get_supxlabel()) == [
        "one: 0.25",
        "done: True",
        "_note: a \\$ odd _text_",
        "texts: left | right",
        "nothing:",
    ]


def test_deltas_in_any_order_stand_where_their_time_is() -> None:
    example = {
        "action": np.array([0.0, -0.4, 0.1]),
        "action_is_pad": np.array([False, True, False]),
    }
    (axes,) = axes_of(lg.plot_example(example, delta_timestamps={"action": [0.0, -0.4, 0.1]}))[
        "action"
    ]
    assert np.array_equal(axes.lines[0].get_xdata(), axes.lines[0].get_ydata())
    (shade,) = axes.patches
    assert np.allclose([shade.get_x(), shade.get_width()], [-0.6, 0.4])


def test_an_example_of_one_number_is_a_figure_too() -> None:
    assert drawn(lg.plot_example({"index": np.int64(3)})).get_supxlabel() == "index: 3"


@pytest.mark.parametrize(
    ("example", "arguments", "text"),
    [
        ({}, {}, "plot_example: there is nothing to draw; the example has no keys"),
        (
            {"action_is_pad": np.zeros(2)},
            {},
            "there is nothing to draw; the example has action_is_pad",
        ),
        ({"index": 1}, {"max_frames": 0}, "max_frames=0: expected an int >= 1"),
        (
            {"action": np.zeros((2, 1)), "action_is_pad": np.zeros(2, bool)},
            {"delta_timestamps": {"action": [0.0]}},
            "delta_timestamps['action'] has 1 deltas; the window of the example has 2 frames",
        ),
    ],
    ids=["empty", "masks only", "no frames", "deltas"],
)
def test_what_cannot_be_drawn(
    example: dict[str, Any], arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=re.escape(text)):
        lg.plot_example(example, **arguments)


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        lg.InvalidRequestError,
        match=r'needs matplotlib; install it with: pip install "lerobot_grain\[examples\]"',
    ):
        lg.plot_example({"index": 1})


def test_pyplot_is_left_alone(last: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    lg.plot_example(last)
    assert "matplotlib.pyplot" not in sys.modules


def test_the_picture_of_the_documentation_is_there() -> None:
    picture = Path(__file__).parents[2] / "docs" / "images" / "plot_example.png"
    assert 20_000 < picture.stat().st_size < 150_000


def test_windows_with_names(repository: lg.Repository) -> None:
    windows = {
        "goal": lg.Window(TOP, lg.LastFrame()),
        "end": lg.Window(["action"], lg.LastFrame()),
        "before": lg.Window([WRIST, "action"], [-0.1, 0.0]),
    }
    with contextlib.closing(
        iter(lg.LeRobotIterDataset(repository, windows=windows, shuffle=None, num_epochs=1))
    ) as examples:
        first = next(examples)
    figure = drawn(lg.plot_example(first, repository))
    found = axes_of(figure)
    assert len(found[f"before.{WRIST}"]) == 2
    assert [plot.get_xlabel() for plot in found[f"before.{WRIST}"]] == ["0 s, pad", "0 s"]
    assert len(found["goal"]) == 1
    assert len(found["before.action"][0].lines) == 3
    assert found["end.action"]
    text = figure.get_supxlabel()
    assert "goal_is_pad: False" in text
    assert "end_is_pad: False" in text
    assert "goal_seconds: 0.7" in text

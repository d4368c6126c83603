"""Draws one example: camera frames over time, actions and states over time with their pads,
the text of the task.

Made to be looked at before a training starts: whether the windows are the right ones, which camera
is which, where the padding is, and what shaping and augmentation made of it.

Rules:
* It draws into a `matplotlib.figure.Figure` of its own; pyplot, and so any global state, is not
  touched.
* matplotlib is optional, and only asked for when something is drawn.
* The dataset, if it is given, says how a value is drawn; else the shape does: three axes, the last
  of 1, 3 or 4, are an image.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import evenly_spread
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._reading.batches import has_window, is_mask_of
from lerobot_grain._repository.repository import Repository

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

Values = npt.NDArray[Any]

_WIDTH_INCHES = 11.0
_CAMERA_INCHES = 1.9
_PANEL_INCHES = 2.3
# More than these are not told apart by color, or not readable.
_MAX_NAMED_DIMENSIONS = 8
_MAX_CURVES = 16
# Smaller than any image, larger than any matrix that is a feature and has a last axis of 1, 3 or
# 4.
_MIN_PICTURE_PIXELS = 8


def plot_example(
    example: Mapping[str, Any],
    repository: Repository | None = None,
    *,
    index: int | None = None,
    delta_timestamps: Mapping[str, Sequence[float]] | None = None,
    max_frames: int = 8,
) -> Figure:
    """Draws one example.

        plot_example(next(iter(dataset)), dataset.repository).savefig("example.png")

    Cameras are rows of frames, features with a window curves over time (frames past the ends of
    the episode are framed in red and shaded), or a map of colors where there are many dimensions,
    other vectors stems. Numbers and texts stand below, the task is the title.

    Args:
      example: flat dict of arrays, numbers and texts, as the dataset hands it out, also after
        `.map`. Arrays may be on a device.
      repository: names the dimensions and says which features are cameras.
      index: which example, where `example` is a batch; `None`: it is one example.
      delta_timestamps: those that it was read with; then time is in seconds from the row of the
        example, otherwise in frames of the window.
      max_frames: of a camera's window that are shown, evenly spread over it.

    Returns:
      A `matplotlib.figure.Figure`: `figure.savefig(path)`. As the last value of a notebook's cell
        it shows, after `%matplotlib inline`.

    Raises:
      InvalidRequestError: matplotlib is missing; there is nothing to draw; `index` is not in the
        batch; `delta_timestamps` has another length than the window.
    """
    figure_class, layout_class = _matplotlib_classes()
    if max_frames < 1:
        raise InvalidRequestError(f"max_frames={max_frames!r}: expected an int >= 1")
    parts = _parts(_one_example(example, index), repository, delta_timestamps or {})
    if not parts.num_values:
        raise InvalidRequestError(
            "plot_example: there is nothing to draw; the example has "
            f"{', '.join(example) or 'no keys'}"
        )
    heights = _heights_inches(parts)
    figure = figure_class(
        figsize=(_WIDTH_INCHES, sum(heights) + 0.9), layout=layout_class(w_pad=0.08)
    )
    _write_texts(figure, parts)
    strips: Any = (
        figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if heights
        else ()
    )
    for strip, key in zip(strips, parts.cameras, strict=False):
        _draw_camera(strip, key, parts, max_frames)
    for row, strip in enumerate(strips[len(parts.cameras) :]):
        _draw_panels(strip, parts.panels[2 * row : 2 * row + 2], parts, repository)
    return figure


def _matplotlib_classes() -> tuple[type[Figure], type[ConstrainedLayoutEngine]]:
    try:
        # Not with the package: it takes half a second, also in every worker process.
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError:
        raise InvalidRequestError(
            'plot_example needs matplotlib; install it with: pip install "lerobot_grain[examples]"'
        ) from None
    return Figure, ConstrainedLayoutEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The parts of an example that are drawn, by the key of the feature.

    Attributes:
      num_values: values of the example, without masks.
      frames: the numbers, `(time, *shape)`, of one frame for features without a window.
      pads: masks `(time,)` of the windows.
      times: of the frames of the windows, `(time,)`: in seconds as floats, or counted.
      cameras, panels: keys that are drawn as frames, and as curves or stems.
      task: the text of the task; `None`: there is none.
      words: values that stand below as text.
    """

    num_values: int
    frames: dict[str, Values]
    pads: dict[str, Values]
    times: dict[str, Values]
    cameras: list[str]
    panels: list[str]
    task: Values | None
    words: dict[str, Values]


def _parts(
    example: Mapping[str, Values],
    repository: Repository | None,
    delta_timestamps: Mapping[str, Sequence[float]],
) -> _Parts:
    windows = {key: name for key in example if (name := _window_of(example, key)) is not None}
    masks = {f"{name}_is_pad" for name in windows.values()} | {
        key
        for key, value in example.items()
        # A draw has one bool, which is shown.
        if key.endswith("_is_pad") and value.ndim and key.removesuffix("_is_pad") not in example
    }
    values = {key: value for key, value in example.items() if key not in masks}
    pads = {key: example[f"{name}_is_pad"] for key, name in windows.items()}
    seconds = {key: example.get(f"{name}_seconds") for key, name in windows.items()}
    frames = {
        key: value if key in pads else value[None]
        for key, value in values.items()
        if value.dtype.kind in "biuf"
    }
    cameras = [key for key, value in frames.items() if _is_camera(key, value, repository)]
    panels = [key for key in frames if key not in cameras and (key in pads or frames[key].size > 1)]
    return _Parts(
        num_values=len(values),
        frames=frames,
        pads=pads,
        times={
            key: _times(key, len(is_pad), delta_timestamps.get(key, seconds[key]))
            for key, is_pad in pads.items()
        },
        cameras=cameras,
        panels=panels,
        task=values.get("task"),
        words={
            key: value
            for key, value in values.items()
            if key not in cameras and key not in panels and key != "task"
        },
    )


def _window_of(example: Mapping[str, Values], key: str) -> str | None:
    """Returns the name of the window whose mask says which frames of a value are padded: its own
    key, or what stands before a dot, where that is the name of a window of several features.
    """
    if has_window(example, key):
        return key
    parts = key.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        mask = example.get(f"{name}_is_pad")
        if name not in example and mask is not None and is_mask_of(mask, example[key]):
            return name
    return None


def _one_example(example: Mapping[str, Any], index: int | None) -> dict[str, Values]:
    if index is None:
        return {key: np.asarray(value) for key, value in example.items()}
    lengths = {key: np.shape(value)[:1] for key, value in example.items()}
    if bad := [
        key for key, length in lengths.items() if not length or not -length[0] <= index < length[0]
    ]:
        raise InvalidRequestError(
            f"index={index}: there is no such example in a batch whose {bad[0]!r} has shape "
            f"{np.shape(example[bad[0]])}; leave index out for a single example"
        )
    return {key: np.asarray(value[index]) for key, value in example.items()}


def _times(key: str, num_frames: int, deltas: Sequence[float] | Values | None) -> Values:
    if deltas is None:
        return np.arange(num_frames)
    if len(deltas) != num_frames:
        raise InvalidRequestError(
            f"delta_timestamps[{key!r}] has {len(deltas)} deltas; the window of the example has "
            f"{num_frames} frames"
        )
    return np.asarray(deltas, np.float64)


def _is_camera(key: str, frames: Values, repository: Repository | None) -> bool:
    if frames.ndim != 4 or frames.shape[-1] not in (1, 3, 4):
        return False
    if repository is not None and key in repository.features:
        return repository.features[key].is_camera
    return bool(min(frames.shape[1:3]) >= _MIN_PICTURE_PIXELS)


def _names(key: str, size: int, repository: Repository | None) -> tuple[str, ...]:
    """Returns the names of the dimensions where the dataset has them, else their numbers."""
    names = (
        repository.features[key].names
        if repository is not None and key in repository.features
        else None
    )
    return names if names is not None and len(names) == size else tuple(map(str, range(size)))


# Drawing


def _heights_inches(parts: _Parts) -> list[float]:
    """Returns the heights of the strips: one for each camera, then one for every two panels."""
    num_panel_strips = math.ceil(len(parts.panels) / 2)
    return [_CAMERA_INCHES] * len(parts.cameras) + [_PANEL_INCHES] * num_panel_strips


def _write_texts(figure: Figure, parts: _Parts) -> None:
    """Writes the task above, and what is not drawn below."""
    if parts.task is not None:
        figure.suptitle(_wrapped(_as_text(parts.task), 90), fontsize="large", fontweight="bold")
    if parts.words:
        words = "    ".join(f"{key}: {_as_text(value)}" for key, value in parts.words.items())
        figure.supxlabel(_wrapped(words, 160), fontsize="small")


def _draw_camera(strip: Any, key: str, parts: _Parts, max_frames: int) -> None:
    frames = parts.frames[key]
    is_pad = parts.pads.get(key)
    times = parts.times.get(key)
    shown = evenly_spread(len(frames), max_frames)
    strip.suptitle(
        _plain(f"{key}  {frames.dtype} {frames.shape[1:]}"), x=0.01, ha="left", fontsize="medium"
    )
    axes = np.atleast_1d(strip.subplots(1, len(shown)))
    is_map = frames.shape[-1] == 1
    style: dict[str, Any] = (
        {"cmap": "gray" if frames.dtype == np.uint8 else "viridis"} | _limits(frames)
        if is_map
        else {}
    )
    pictures = frames[..., 0] if is_map else _colors(frames)
    for plot, frame in zip(axes, shown, strict=True):
        image = plot.imshow(pictures[frame], **style)
        plot.set(xticks=[], yticks=[])
        padded = is_pad is not None and bool(is_pad[frame])
        if times is not None:
            plot.set_xlabel(
                _time(times[frame]) + (", pad" if padded else ""),
                fontsize="small",
                color="red" if padded else "black",
            )
        for spine in plot.spines.values():
            spine.set(color="red" if padded else "black", linewidth=2 if padded else 0.5)
    if is_map and frames.dtype != np.uint8:
        strip.colorbar(image, ax=list(axes), pad=0.01).ax.tick_params(labelsize="small")


def _draw_panels(
    strip: Any, keys: Sequence[str], parts: _Parts, repository: Repository | None
) -> None:
    """Draws one or two features side by side."""
    axes = strip.subplots(1, 2)
    for plot, key in zip(axes, keys, strict=False):
        frames = parts.frames[key]
        names = _names(key, math.prod(frames.shape[1:]), repository)
        curves = frames.reshape(len(frames), -1).astype(np.float64)
        if key in parts.pads:
            _draw_curves(plot, curves, parts.pads[key], parts.times[key], names)
        else:
            _draw_stems(plot, curves[0], names)
        plot.set_title(_plain(key), fontsize="medium", loc="left")
        plot.tick_params(labelsize="small")
    if len(keys) == 1:
        axes[1].remove()


def _limits(frames: Values) -> dict[str, float]:
    """Returns one scale for all frames, so that they can be compared."""
    if frames.dtype == np.uint8:
        return {"vmin": 0, "vmax": 255}
    finite = frames[np.isfinite(frames)]
    return {"vmin": float(finite.min()), "vmax": float(finite.max())} if finite.size else {}


def _colors(frames: Values) -> Values:
    """Returns images as matplotlib takes them: uint8, or floats in [0, 1].

    Some policies take floats in [-1, 1].
    """
    if frames.dtype.kind != "f":
        return frames
    return np.clip((frames + 1) / 2 if frames.min() < 0 else frames, 0, 1).astype(np.float32)


def _draw_curves(
    plot: Any, curves: Values, is_pad: Values, times: Values, names: tuple[str, ...]
) -> None:
    order = np.argsort(times, kind="stable")
    times = times[order]
    curves = curves[order]
    is_pad = is_pad[order]
    middles = (times[1:] + times[:-1]) / 2
    first, last = (middles[0], middles[-1]) if len(middles) else (times[0] - 0.5, times[0] + 0.5)
    edges = np.array([2 * times[0] - first, *middles, 2 * times[-1] - last])
    if curves.shape[1] > _MAX_CURVES:
        plot.pcolormesh(edges, np.arange(curves.shape[1] + 1) - 0.5, curves.T)
    else:
        plot.plot(times, curves, ".-", linewidth=1)
    for frame in np.flatnonzero(is_pad):
        plot.axvspan(edges[frame], edges[frame + 1], color="gray", alpha=0.3, linewidth=0)
    plot.set_xlabel(
        "seconds" if times.dtype.kind == "f" else "frame of the window", fontsize="small"
    )
    if 1 < len(plot.lines) <= _MAX_NAMED_DIMENSIONS:
        plot.legend(
            plot.lines,
            map(_plain, names),
            fontsize="x-small",
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )


def _draw_stems(plot: Any, values: Values, names: tuple[str, ...]) -> None:
    plot.stem(values, basefmt="k-")
    if len(values) <= _MAX_NAMED_DIMENSIONS:
        plot.set_xticks(range(len(values)), map(_plain, names))


# Texts


def _time(time: Any) -> str:
    return f"{time:+.3g} s".replace("+0 ", "0 ") if isinstance(time, float) else f"frame {time}"


def _as_text(value: Values) -> str:
    """Returns a value that is not drawn as text: a number short, of texts over time each once."""
    if value.ndim == 0 or value.size == 1:
        item = value.reshape(-1)[0] if value.size else ""
        return f"{item:.6g}" if isinstance(item, float | np.floating) else str(item)
    return " | ".join(dict.fromkeys(str(item) for item in value.ravel()))


def _wrapped(text: str, width: int) -> str:
    return _plain("\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" ...")))


def _plain(text: str) -> str:
    # To matplotlib a pair of these is a formula, and a wrong formula is an error.
    return text.replace("$", r"\$")

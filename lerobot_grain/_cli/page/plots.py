"""Draws curves over time as SVG.

The drawing is stretched to the width that there is, with lines of constant width; numbers and names
stand around it as text of the page, so that they are as large on a telephone as on a screen. Colors
are those of the style sheet, light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from lerobot_grain._cli.page.style import NUM_COLORS
from lerobot_grain._inspection.overview.shown import Curves, Values

# The drawing's own units, in both directions.
_UNITS = 1000.0
# Above it, the distance of two values may be no finite number.
_LARGEST = 1e300
# With more points there is no room for dots.
_MOST_DOTS = 45


def plots(curves: Curves, *, is_example: bool) -> str:
    """Returns the HTML of a feature over time: one drawing for every `NUM_COLORS` dimensions.

    Args:
      curves: at least one frame.
      is_example: time is counted from a row, which is marked, and its values are stated; else from
        the start of the episode.
    """
    count = len(curves.names)
    groups = [
        slice(start, min(start + NUM_COLORS, curves.values.shape[1]))
        for start in range(0, curves.values.shape[1], NUM_COLORS)
    ]
    drawn = groups[-1].stop
    more = (
        ""
        if drawn == count
        else f'<p class="note">{count - drawn} further dimensions are not drawn.</p>'
    )
    return "".join(_plot(curves, group, is_example=is_example) for group in groups) + more


def _plot(curves: Curves, group: slice, *, is_example: bool) -> str:
    values = curves.values[:, group]
    names = curves.names[group]
    low, high = _limits(values)
    start, stop = _time_limits(curves.seconds)
    title = escape(curves.key)
    if len(curves.names) > NUM_COLORS:
        title += f" <small>{group.start} to {group.stop - 1} of {len(curves.names)}</small>"
    x_ticks = "".join(
        f'<span style="left:{100 * (tick - start) / (stop - start):.2f}%">{_number(tick)}</span>'
        for tick in ticks(start, stop, most=5)
    )
    y_ticks = ticks(low, high, most=5)
    digits = _digits(y_ticks)
    y_labels = "".join(
        f'<span style="top:{100 * (high - tick) / (high - low):.2f}%">'
        f"{_number(tick, digits)}</span>"
        for tick in y_ticks
    )
    grid = "".join(
        f'<path class="grid" d="M0 {_y(tick, low, high)}H{_UNITS:.0f}"/>' for tick in y_ticks
    )
    places = (curves.seconds - start) / (stop - start) * _UNITS
    lines = "".join(
        f'<path class="c{number}" d="{_line(places, values[:, number], low, high)}"/>'
        f'<path class="c{number} dots" d="{_dots(places, values[:, number], low, high)}"/>'
        for number in range(values.shape[1])
    )
    row = (
        f'<path class="row" d="M{-start / (stop - start) * _UNITS:.1f} 0V{_UNITS:.0f}"/>'
        if is_example and start <= 0 <= stop
        else ""
    )
    described = escape(_described(curves, names, values), quote=True)
    return (
        f'<figure class="plot"><figcaption>{title}</figcaption>'
        f'<div class="chart"><div class="ys" aria-hidden="true">{y_labels}</div>'
        f'<svg viewBox="0 0 {_UNITS:.0f} {_UNITS:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{described}">{_pads(curves.is_pad, places)}{grid}{row}{lines}</svg>'
        f'<div class="xs" aria-hidden="true">{x_ticks}</div><div class="unit">seconds</div></div>'
        f'<ul class="legend">{"".join(_legend(curves, names, values, is_example=is_example))}</ul>'
        "</figure>"
    )


def _limits(values: Values) -> tuple[float, float]:
    drawn = values[np.abs(values) < _LARGEST]
    if not drawn.size:
        return -1.0, 1.0
    low, high = float(drawn.min()), float(drawn.max())
    is_constant = high - low < 1 / _LARGEST
    margin = max(abs(high) * 0.1, 0.5) if is_constant else (high - low) * 0.06
    return low - margin, high + margin


def _time_limits(seconds: Values) -> tuple[float, float]:
    """Returns the ends of the drawing: half a frame beyond the first and the last one."""
    half = float(np.diff(seconds).min(initial=1.0)) / 2 if len(seconds) > 1 else 0.5
    half = half or 0.5
    return float(seconds[0]) - half, float(seconds[-1]) + half


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Returns round numbers in `[low, high]`, ascending, `low < high`: at most `most` of them, of
    the steps 1, 2 and 5 times a power of ten.
    """
    exponent = math.floor(math.log10((high - low) / most))
    for base in (1, 2, 5, 10, 20, 50):
        step = base * 10.0**exponent
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first < most:
            return [number * step for number in range(first, last + 1)]
    return []


def _digits(values: Sequence[float]) -> int:
    """Returns how many digits tell the numbers of `ticks` apart, at least 4."""
    step = values[1] - values[0] if len(values) > 1 else 0.0
    if not step:
        return 4
    largest = max(abs(values[0]), abs(values[-1]))
    return min(max(4, 1 + math.ceil(math.log10(largest / step))), 17)


def _number(value: float, digits: int = 4) -> str:
    text = f"{value:.{digits}g}"
    return "0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _y(value: float, low: float, high: float) -> str:
    return f"{(high - value) / (high - low) * _UNITS:.1f}"


def _line(places: Values, values: Values, low: float, high: float) -> str:
    """Returns a line that is interrupted where a value is no number, or too large."""
    parts = []
    is_open = False
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        is_drawn = abs(value) < _LARGEST
        if is_drawn:
            parts.append(f"{'L' if is_open else 'M'}{place:.1f} {_y(value, low, high)}")
        is_open = is_drawn
    return "".join(parts)


def _dots(places: Values, values: Values, low: float, high: float) -> str:
    """Returns a dot for every frame, where there are few: a line of no length has round ends."""
    if len(places) > _MOST_DOTS:
        return ""
    return "".join(
        f"M{place:.1f} {_y(value, low, high)}h0"
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
        if abs(value) < _LARGEST
    )


def _pads(is_pad: Values, places: Values) -> str:
    """Returns the shades of the padded frames, from the middle between two frames to the next."""
    if not is_pad.any():
        return ""
    middles = [0.0, *((places[1:] + places[:-1]) / 2).tolist(), _UNITS]
    return "".join(
        f'<rect class="pad" x="{middles[frame]:.1f}" y="0" '
        f'width="{middles[frame + 1] - middles[frame]:.1f}" height="{_UNITS:.0f}"/>'
        for frame in np.flatnonzero(is_pad).tolist()
    )


def _legend(
    curves: Curves, names: Sequence[str], values: Values, *, is_example: bool
) -> Iterator[str]:
    """Yields the names, with the value at the row, or the first and last one of an episode."""
    row = int(np.abs(curves.seconds).argmin())
    for number, name in enumerate(names):
        column = values[:, number]
        value = (
            _number(column[row])
            if is_example
            else f"{_number(column[0])} \N{RIGHTWARDS ARROW} {_number(column[-1])}"
        )
        yield (
            f'<li><i class="c{number}"></i>{escape(name)} <span class="value">{value}</span></li>'
        )


def _described(curves: Curves, names: Sequence[str], values: Values) -> str:
    """Returns a drawing in words."""
    spans = []
    for number, name in enumerate(names):
        finite = values[:, number][np.isfinite(values[:, number])]
        spans.append(
            f"{name} from {finite.min():.4g} to {finite.max():.4g}"
            if finite.size
            else f"{name} has no finite value"
        )
    padded = int(curves.is_pad.sum())
    return (
        f"{curves.key} over {curves.seconds[-1] - curves.seconds[0]:.3g} seconds: "
        f"{'; '.join(spans)}"
        + (f"; {padded} frame{'s are' if padded > 1 else ' is'} padding" if padded else "")
    )

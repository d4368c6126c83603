"""The chain from a row to its bytes, as `locate` finds it, as tables of the page."""

from __future__ import annotations

from html import escape

from lerobot_grain import FrameLocation, RowLocation
from lerobot_grain._inspection.locate import runs


def places_table(place: RowLocation) -> str:
    """Returns the HTML of where a row and its frames are stored."""
    rows = [
        ("episode", f"{place.episode}, position {place.episode_position} in the episode table"),
        ("frame", f"{place.frame} of {place.episode_length}"),
        ("data file", place.path),
        ("row group", f"{place.row_group}, row {place.row_in_group} of it"),
    ]
    tables = [_table(f"Row {place.row}", rows)]
    tables += [_table(camera.camera, _frame_rows(camera)) for camera in place.cameras.values()]
    return f'<div class="places">{"".join(tables)}</div>'


def _frame_rows(camera: FrameLocation) -> list[tuple[str, str]]:
    if camera.byte_range is None:
        return [("embedded in", camera.path)]
    start, stop = camera.byte_range
    count = len(camera.samples)
    decoded = f"{count} coded picture{'s' * (count > 1)}, samples {runs(camera.samples)}"
    return [
        ("video file", camera.path),
        ("frame", f"{camera.frame} of the file, at {camera.time_seconds:.6f} s"),
        ("GOP", f"{camera.gop}: {stop - start:,} bytes, [{start}, {stop})"),
        ("decoded for it", decoded),
    ]


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(text)}</td></tr>'
        for label, text in rows
    )
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"

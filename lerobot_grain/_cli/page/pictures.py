"""Camera frames as pictures inside the page."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from lerobot_grain._inspection.overview.shown import Pictures, Values

_QUALITY = 82


def strip(pictures: Pictures, *, is_example: bool) -> str:
    """Returns the HTML of the frames of a camera, in order of time; or why there are none.

    Args:
      pictures: the camera.
      is_example: time is counted from a row; else from the start of the episode.
    """
    key = escape(pictures.key)
    problem = ""
    if pictures.problem is not None:
        what = "Frames of this camera" if len(pictures.frames) else "This camera"
        problem = f'<p class="problem">{what} cannot be read: {escape(pictures.problem)}</p>'
    if not len(pictures.frames):
        return f'<div class="camera"><h4>{key}</h4>{problem}</div>'
    height, width = pictures.size
    about = f"{width}\N{MULTIPLICATION SIGN}{height}"
    near, far = pictures.depth_limits or (0.0, 0.0)
    if pictures.unit is not None:
        about += (
            f", depth {near:,.4g} to {far:,.4g} {escape(pictures.unit)}, near is light, "
            "black has no depth"
        )
    figures = []
    for seconds, is_pad, frame in zip(
        pictures.seconds.tolist(), pictures.is_pad.tolist(), pictures.frames, strict=True
    ):
        shown = frame if pictures.unit is None else _grey(frame, near, far)
        when = time_text(seconds, is_example=is_example)
        alt = escape(f"{pictures.key} at {when}" + (", padding" if is_pad else ""), quote=True)
        figures.append(
            f'<figure class="frame{" padded" if is_pad else ""}"><img alt="{alt}" '
            f'width="{width}" height="{height}" src="{_data_uri(shown)}">'
            f"<figcaption>{when}{' <b>pad</b>' if is_pad else ''}</figcaption></figure>"
        )
    return (
        f'<div class="camera"><h4>{key} <small>{about}</small></h4>{problem}'
        f'<div class="frames">{"".join(figures)}</div></div>'
    )


def time_text(seconds: float, *, is_example: bool) -> str:
    """Returns a time as it stands under a picture: with its sign, where it is one from a row."""
    if not is_example:
        return f"{seconds:.2f} s"
    if seconds == 0:
        return "0 s"
    return f"{seconds:+.2f} s".replace("-", "\N{MINUS SIGN}")


def _grey(frame: Values, near: float, far: float) -> Values:
    """Returns depth `(height, width, 1)` as uint8 `(height, width)`: 255 near, 40 far, 0 none."""
    depth = frame[..., 0]
    has_depth = np.isfinite(depth) & (depth > 0)
    share = (np.where(has_depth, depth, near) - near) / ((far - near) or 1.0)
    grey: Values = np.where(has_depth, 255 - 215 * share, 0).astype(np.uint8)
    return grey


def _data_uri(pixels: Values) -> str:
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

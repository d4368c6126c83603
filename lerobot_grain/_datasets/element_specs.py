"""Element specs: shapes and dtypes of what our datasets yield, from `meta/` alone; for
`grain.experimental.get_element_spec`.

Rules:
* A spec has the structure of what comes: a dict with the same keys, and for a window of texts a
  list.
* A text has the dtype `str` (NumPy's `<U0`), whose length is open, in examples and in batches: how
  long texts are stands in the data.
* Language is one leaf of dtype `object` without axes, as it is stacked: how many messages there are
  stands in the data, too.
* The first axis of a batch is `None` unless a shorter last batch is dropped, as Grain has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.windows import WindowRequest, mask_keys
from lerobot_grain._repository.selection import FeatureSelection

Spec = grain.experimental.ShapeDtypeStruct

TEXT = Spec((), np.dtype(str))
NUMBER = Spec((), np.dtype(np.int64))
_OBJECT = Spec((), np.dtype(object))


def request_spec(windows: Mapping[str, int]) -> WindowRequest:
    """Returns the spec of window requests: one whose values are specs.

    Args:
      windows: feature key -> frames of its window.
    """
    frames: Mapping[str, Any] = {
        key: Spec((time,), np.dtype(np.int64)) for key, time in windows.items()
    }
    masks: Mapping[str, Any] = {
        key: Spec((time,), np.dtype(np.bool_)) for key, time in windows.items()
    }
    number: Any = NUMBER
    return WindowRequest(number, number, number, frames, masks)


def example_spec(
    request: object,
    selection: FeatureSelection,
    *,
    image_size: tuple[int, int] | None,
    pad_keys: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the spec of the examples that are read of requests.

    Args:
      request: spec of the requests.
      selection, image_size, pad_keys: as of what is read.

    Raises:
      InvalidRequestError: `request` is not one of window requests.
    """
    if not isinstance(request, WindowRequest):
        raise InvalidRequestError(
            f"get_element_spec: the requests have the spec {request!r}; expected that of "
            "WindowRequests, as .map(DeltaTimestamps(...)) has it"
        )
    found: dict[str, Any] = {}
    for feature in selection.columns + selection.videos:
        window: Any = request.frames.get(feature.key)
        time: tuple[int, ...] = () if window is None else window.shape
        if feature.dtype == "string":
            found[feature.key] = [TEXT] * time[0] if time else TEXT
        elif feature.is_camera:
            size = image_size or feature.shape[:2]
            shape = (*time, *size, feature.num_channels)
            found[feature.key] = Spec(shape, np.dtype(feature.frame_dtype))
        elif feature.is_array:
            shape = time if feature.is_scalar else (*time, *feature.shape)
            found[feature.key] = Spec(shape, np.dtype(feature.dtype))
        else:
            found[feature.key] = Spec(time, _OBJECT.dtype)
    masks = mask_keys(request.is_pad, selected=selection.keys, pad_keys=pad_keys)
    return {
        **found,
        **dict.fromkeys(selection.texts, TEXT),
        **{masks[key]: mask for key, mask in request.is_pad.items()},
    }


def batch_spec(
    example: Mapping[str, Any], batch_size: int, *, drop_remainder: bool
) -> dict[str, Any]:
    """Returns the spec of batches of examples of ours."""
    count = batch_size if drop_remainder else None
    return {
        key: [_stacked(each, count) for each in spec]
        if isinstance(spec, list)
        else _stacked(spec, count)
        for key, spec in example.items()
    }


def _stacked(spec: Any, count: int | None) -> Any:
    return Spec((count, *spec.shape), spec.dtype)


def example_bytes(example: Any) -> int:
    """Returns the bytes of the arrays of an example of ours, of its spec."""
    return sum(
        math.prod(spec.shape) * spec.dtype.itemsize
        for spec in example.values()
        if not isinstance(spec, list)
    )


def common_spec(specs: Mapping[str, Any]) -> Any:
    """Returns the spec of the examples of all components of a mixture.

    Args:
      specs: by name of the component.

    Raises:
      InvalidRequestError: they are not equal.
    """
    (first_name, first), *others = specs.items()
    for name, spec in others:
        if spec == first:
            continue
        text = f"the examples of {name!r} have the spec {spec}, those of {first_name!r} {first}"
        if isinstance(spec, Mapping) and isinstance(first, Mapping):
            key = next(key for key in {**first, **spec} if first.get(key) != spec.get(key))
            text = (
                f"{key!r} is {spec.get(key, 'missing')} in the examples of {name!r}, and "
                f"{first.get(key, 'missing')} in those of {first_name!r}"
            )
        raise InvalidRequestError(
            f"get_element_spec: {text}; expected the same keys, shapes and dtypes of all components"
        )
    return first

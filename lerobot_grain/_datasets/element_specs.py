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
import sys
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.windows import NamedFrames, WindowRequest, mask_keys
from lerobot_grain._repository.selection import FeatureSelection

# Grain has named it since 0.2.17; before, it is only in its own module.
Spec: Any = (
    getattr(grain.experimental, "ShapeDtypeStruct", None)
    or sys.modules["grain._src.python.dataset.base"].ShapeDtypeStruct
)

TEXT = Spec((), np.dtype(str))
NUMBER = Spec((), np.dtype(np.int64))
IS_TRUE = Spec((), np.dtype(np.bool_))
_OBJECT = Spec((), np.dtype(object))


def request_spec(
    windows: Mapping[str, int],
    outputs: Mapping[str, Mapping[str, str]],
    named: Mapping[str, int | None],
) -> WindowRequest:
    """Returns the spec of window requests: one whose values are specs.

    Args:
      windows: feature key -> frames of its window.
      outputs: name of a window -> key in examples -> feature key.
      named: name of a window -> its frames; `None`: it is a draw.
    """
    number: Any = NUMBER
    return WindowRequest(
        number,
        number,
        number,
        {key: _of_window(time, np.int64) for key, time in windows.items()},
        {key: _of_window(time, np.bool_) for key, time in windows.items()},
        {
            name: NamedFrames(
                outputs=outputs[name],
                frames=_of_window(time or 1, np.int64),
                is_pad=_of_window(time or 1, np.bool_),
                seconds=_of_window(time or 1, np.float32),
                has_time=time is not None,
                stays=_of_window(None, np.bool_),
            )
            for name, time in named.items()
        },
    )


def _of_window(time: int | None, dtype: npt.DTypeLike) -> Any:
    return Spec(() if time is None else (time,), np.dtype(dtype))


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
    features = {feature.key: feature for feature in selection.columns + selection.videos}
    found: dict[str, Any] = {}
    for key, feature in features.items():
        window: Any = request.frames.get(key)
        found[key] = _value_spec(feature, () if window is None else window.shape, image_size)
    masks = mask_keys(
        request.is_pad,
        {name: window.outputs for name, window in request.named.items()},
        selected=selection.keys,
        pad_keys=pad_keys,
    )
    found |= dict.fromkeys(selection.texts, TEXT)
    found |= {masks[key]: mask for key, mask in request.is_pad.items()}
    for name, named in request.named.items():
        time = named.frames.shape if named.has_time else ()
        for key, feature_key in named.outputs.items():
            found[key] = _value_spec(features[feature_key], time, image_size)
        found[masks[name]] = Spec(time, named.is_pad.dtype)
        found[f"{name}_seconds"] = Spec(time, named.seconds.dtype)
    return found


def _value_spec(feature: Any, time: tuple[int, ...], image_size: tuple[int, int] | None) -> Any:
    """Returns the spec of the values of a feature of a repository; `time`: frames of the window, if
    there is one.
    """
    if feature.dtype == "string":
        return [TEXT] * time[0] if time else TEXT
    if feature.is_camera:
        size = image_size or feature.shape[:2]
        return Spec((*time, *size, feature.num_channels), np.dtype(feature.frame_dtype))
    if feature.is_array:
        shape = time if feature.is_scalar else (*time, *feature.shape)
        return Spec(shape, np.dtype(feature.dtype))
    return Spec(time, _OBJECT.dtype)


def chunk_spec(example: Mapping[str, Any], num_frames: int | None) -> dict[str, Any]:
    """Returns the spec of chunks of examples without windows; `num_frames`: `None`, where chunks
    differ in it.
    """
    return {key: _stacked(spec, num_frames) for key, spec in example.items()}


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

"""Shapes that a policy wants: actions relative to the state, padded dimensions, frames padded to
a size. On the host, in NumPy.

Each is a `grain.transforms.Map` for `dataset.map(...)`. Nothing in it is random, so nothing of it
is in a state. It counts axes from the last, so it works on examples and, after `.batch`, on whole
batches, which is quicker.

Rules:
* An example is never changed: what is handed out is a new dict, with new arrays where they differ,
  and the other values as they came.
* The order that policies are trained with is: delta actions, normalization, padding. A padded
  dimension is then 0 in every unit.

Not included: anything random (`_training/augmentation`), normalization (a subtraction and a
division), renaming, tokenizing: a lambda does that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
import numpy.typing as npt
from PIL import Image

from lerobot_grain._base.arguments import is_int
from lerobot_grain._base.errors import InvalidRequestError, short_repr
from lerobot_grain._base.versions import array_namespace
from lerobot_grain._reading.batches import has_window
from lerobot_grain._video.images import nearest

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class PadDimensions(grain.transforms.Map):
    """Pads the last axis of features with zeros, so that robots with fewer joints or motors fit
    together.

        dataset.map(PadDimensions({"observation.state": 32, "action": 32}))

    Each padded key gets a mask `{key}_dim_is_pad`, bool in the shape of the padded value, true
    where there is nothing of the robot.

    A feature that is one number a frame has no axis to pad; give it one before. (Scalars of a whole
    batch look like one vector: pad them before `.batch`.)

    Attributes:
      sizes: feature key -> size of its last axis afterwards.

    Raises:
      InvalidRequestError: at construction: a size is not an int >= 1. At an example: a key is not
        there, has no axis, or more values.
    """

    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        for key, size in self.sizes.items():
            if not is_int(size, least=1):
                raise InvalidRequestError(
                    f"PadDimensions: the size of {key!r} is {size!r}; expected an int >= 1"
                )

    def map(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the example with padded features and their masks."""
        padded = dict(example)
        for key, size in self.sizes.items():
            values = array_at(example, key, "PadDimensions")
            if values.ndim == 0 or (
                has_window(example, key) and values.shape == np.shape(example[f"{key}_is_pad"])
            ):
                raise InvalidRequestError(
                    f"PadDimensions: {key!r} is one number a frame; expected a vector, so add an "
                    "axis before: x[..., None]"
                )
            if values.shape[-1] > size:
                raise InvalidRequestError(
                    f"PadDimensions: {key!r} has {values.shape[-1]} dimensions; expected at most "
                    f"{size}"
                )
            widths = [(0, 0)] * (values.ndim - 1) + [(0, size - values.shape[-1])]
            padded[key] = np.pad(values, widths)
            padded[f"{key}_dim_is_pad"] = np.pad(
                np.zeros(values.shape, np.bool_), widths, constant_values=True
            )
        return padded


@dataclass(frozen=True, slots=True)
class DeltaActions(grain.transforms.Map):
    """Makes actions relative to the state of the example: action minus state, in the dimensions of
    a mask.

        # six joints; the gripper stays absolute
        delta = DeltaActions(mask=[True] * 6 + [False])
        dataset = dataset.map(delta)
        actions = delta.to_absolute(policy(observation), state)     # on the robot

    All actions of a window are relative to the one state of the example, not to the action before.

    Attributes:
      mask: true for the dimensions that become relative. Those past its end stay absolute.
        Dimension i of the action belongs to dimension i of the state.
      action_key, state_key: features of floats, `([batch,] [time,] dimensions)` and `([batch,]
        dimensions)`.
      state_frame: for a state with a window: which of its frames actions are relative to, such as
        -1 for the last.

    Raises:
      InvalidRequestError: at construction: the mask is not one of bools. At an example: a key is
        missing, not of floats, has fewer dimensions than the mask, or action and state do not fit
        together.
    """

    mask: Sequence[bool]
    action_key: str = "action"
    state_key: str = "observation.state"
    state_frame: int | None = None

    def __post_init__(self) -> None:
        if not len(self.mask) or not all(isinstance(value, bool | np.bool_) for value in self.mask):
            raise InvalidRequestError(
                f"DeltaActions: mask is {short_repr(self.mask)}; expected a bool for every "
                "dimension of the action"
            )

    def map(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the example with relative actions."""
        actions, state = (
            array_at(example, key, "DeltaActions") for key in (self.action_key, self.state_key)
        )
        if has_window(example, self.state_key) != (self.state_frame is not None):
            raise InvalidRequestError(
                f"DeltaActions: {self.state_key!r} has shape {state.shape}, and state_frame is "
                f"{self.state_frame}; expected a frame number for a state with a window, such as "
                "-1, and None for one without"
            )
        if self.state_frame is not None:
            if not -state.shape[-2] <= self.state_frame < state.shape[-2]:
                raise InvalidRequestError(
                    f"DeltaActions: state_frame is {self.state_frame}; {self.state_key!r} has "
                    f"{state.shape[-2]} frames"
                )
            state = state[..., self.state_frame, :]
        return {**example, self.action_key: actions - self._origin(actions, state)}

    def to_absolute(self, actions: Any, state: Any) -> Any:
        """Returns relative actions as absolute ones: the inverse of `map`.

        Args:
          actions: `([batch,] [time,] dimensions)`, an array of NumPy or JAX, also inside of
            `jax.jit`.
          state: `([batch,] dimensions)`, of the same kind, from when the actions were predicted.
        """
        return actions + self._origin(actions, state)

    def _origin(self, actions: Any, state: Any) -> Any:
        """Returns what the actions are relative to, in a shape that broadcasts to theirs: 0 where
        they are absolute.
        """
        for key, values in ((self.action_key, actions), (self.state_key, state)):
            if values.dtype.kind not in "fV":  # bfloat16 is a "V" to NumPy
                raise InvalidRequestError(
                    f"DeltaActions: {key!r} is {values.dtype}; expected floats"
                )
            if values.ndim == 0 or values.shape[-1] < len(self.mask):
                raise InvalidRequestError(
                    f"DeltaActions: {key!r} has shape {values.shape}; expected at least the "
                    f"{len(self.mask)} dimensions of the mask"
                )
        if actions.shape[:-2] == state.shape[:-1] and actions.ndim == state.ndim + 1:
            state = state[..., None, :]
        elif actions.shape[:-1] != state.shape[:-1]:
            raise InvalidRequestError(
                f"DeltaActions: {self.action_key!r} has shape {actions.shape} and "
                f"{self.state_key!r} {state.shape}; expected ([batch,] [time,] dimensions) and "
                "([batch,] dimensions)"
            )
        is_delta = np.zeros(actions.shape[-1], np.bool_)
        is_delta[: len(self.mask)] = self.mask
        # `where`, not a product: a NaN in a dimension that is left out stays out.
        same_place = np.where(is_delta, np.arange(len(is_delta)), 0)
        return (
            array_namespace(actions)
            .where(is_delta, state[..., same_place], 0)
            .astype(actions.dtype)
        )


@dataclass(frozen=True, slots=True)
class ResizeWithPad(grain.transforms.Map):
    """Resizes cameras to one size without distortion, as `resize_with_pad` does.

        dataset.map(ResizeWithPad(["observation.images.top"], (224, 224)))

    `image_size=` of the dataset resizes while decoding, which is cheaper; asked for a size of the
    camera's own proportions, such as (168, 224) for 480x640, it leaves only the borders to be added
    here.

    Attributes:
      keys: of the cameras.
      size: (height, width) in pixels.

    Raises:
      InvalidRequestError: at construction: `size` or `keys` is not one. At an example: a key is
        missing or not of frames.
    """

    keys: Sequence[str]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if isinstance(self.keys, str):
            raise InvalidRequestError(
                f"ResizeWithPad: keys is {self.keys!r}; expected a list of keys, such as "
                f"[{self.keys!r}]"
            )
        _check_size(self.size)

    def map(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the example with its cameras in the size."""
        resized = {
            key: resize_with_pad(array_at(example, key, "ResizeWithPad"), self.size)
            for key in self.keys
        }
        return {**example, **resized}


def resize_with_pad(images: Values, size: tuple[int, int]) -> Values:
    """Returns frames as large as they fit into a size with their own proportions, in the middle,
    with zeros (black) around them.

    Colors are interpolated by Pillow (bilinear, over all pixels that a new one covers), as openpi
    does it; depth takes the nearest pixel, because a mixture of two distances is neither, and 0
    often stands for "not known".

    Args:
      images: `(..., height, width, channels)`: uint8 with 1 or 3 channels, or another dtype with 1,
        which is depth.
      size: (height, width) in pixels.

    Raises:
      InvalidRequestError: neither frames nor depth, or not a size.
    """
    _check_size(size)
    is_depth = images.ndim >= 3 and images.dtype != np.uint8 and images.shape[-1] == 1
    if not is_depth and (
        images.ndim < 3 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3)
    ):
        raise InvalidRequestError(
            f"resize_with_pad: found {images.dtype} {images.shape}; "
            "expected uint8 (..., height, width, 1 or 3), or depth (..., height, width, 1)"
        )
    *leading, height, width, channels = images.shape
    if (height, width) == size:
        return images
    # In integers: in floats some squares come out a pixel short.
    if height * size[1] > width * size[0]:
        inner = size[0], max(1, width * size[0] // height)
    else:
        inner = max(1, height * size[1] // width), size[1]
    top = (size[0] - inner[0]) // 2
    left = (size[1] - inner[1]) // 2
    padded = np.zeros((*leading, *size, channels), images.dtype)
    count = math.prod(leading)
    rooms = padded.reshape(count, *size, channels)[:, top : top + inner[0], left : left + inner[1]]
    for room, image in zip(rooms, images.reshape(count, height, width, channels), strict=True):
        room[:] = nearest(image[..., 0], inner)[..., None] if is_depth else _bilinear(image, inner)
    return padded


def _bilinear(image: Values, size: tuple[int, int]) -> Values:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized: Values = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized.reshape(*size, image.shape[-1])


def _check_size(size: Any) -> None:
    if not (isinstance(size, tuple) and len(size) == 2 and all(is_int(n, least=1) for n in size)):
        raise InvalidRequestError(f"size={size!r}: expected (height, width) in pixels")


def array_at(example: Mapping[str, Any], key: str, subject: str) -> Values:
    """Returns the array of a key; `subject` names the caller in the message."""
    if key not in example:
        raise InvalidRequestError(
            f"{subject}: the example has no {key!r}; it has {', '.join(example)}"
        )
    return np.asarray(example[key])

"""Feeds openpi's JAX trainer: its dict of a batch, and its protocol of a data loader.

openpi (github.com/Physical-Intelligence/openpi, `src/openpi/training/data_loader.py` and
`models/model.py`) asks of a data loader two things: `data_config()`, whose normalization statistics
it writes into its checkpoints, and to be iterable over (observation, actions) on the devices.
openpi itself is not needed here: its class of observations is given as a function.

Not included: normalization and delta actions. They come before, by openpi's own transforms or by
those of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._reading.batches import has_window
from lerobot_grain._training.shaping import array_at, resize_with_pad

# openpi's `IMAGE_KEYS` and `IMAGE_RESOLUTION` (models/model.py): its models take these three,
# always.
_IMAGES = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
_IMAGE_SIZE = (224, 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPiFormat(grain.transforms.Map):
    """Makes openpi's dict of an example, or, after `.batch`, of a batch (shapes without the batch
    axis):

    | key | value |
    |---|---|
    | `image` | name -> uint8 `(height, width, 3)`; a camera that the robot does not have is black |
    | `image_mask` | name -> bool `()`, false for those |
    | `state` | float32 `(dimensions,)` |
    | `actions` | float32 `(horizon, dimensions)` |
    | `tokenized_prompt`, `tokenized_prompt_mask` | int32 and bool `(tokens,)`, with `tokenize` |

    State and actions keep their dimensions; `PadDimensions` before it brings them to those of the
    model. openpi has no mask for actions past the end of an episode: it learns the last one
    repeated, here as with its own loader.

    Attributes:
      cameras: openpi's name -> key of the camera, without delta timestamps.
      state_key: of the state, without delta timestamps.
      action_key: of the actions, with delta timestamps.
      tokenize: text of the task -> (tokens, mask), of one length for all texts, such as
        `PaligemmaTokenizer(48).tokenize`.
      images: the names that the model takes.
      image_size: (height, width); frames are resized without distortion.

    Raises:
      InvalidRequestError: at construction: no camera, or one whose name the model does not take. At
        an example: a key is missing, or has a window where there must be none, or none where there
        must be one.
    """

    cameras: Mapping[str, str]
    state_key: str = "observation.state"
    action_key: str = "action"
    tokenize: Callable[[str], tuple[Any, Any]] | None = None
    images: Sequence[str] = _IMAGES
    image_size: tuple[int, int] = _IMAGE_SIZE

    def __post_init__(self) -> None:
        if not self.cameras or not set(self.cameras) <= set(self.images):
            raise InvalidRequestError(
                f"OpenPiFormat: cameras is {dict(self.cameras)!r}; expected name -> key for one "
                f"or more of {', '.join(self.images)}"
            )

    def map(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns openpi's dict."""
        for key, windowed in {
            **dict.fromkeys([*self.cameras.values(), self.state_key], False),
            self.action_key: True,
        }.items():
            array_at(example, key, "OpenPiFormat")
            found = has_window(example, key)
            if key in self.cameras.values():
                # The mask of a frame that was drawn has the axis of a batch only, as the state.
                axes = array_at(example, self.state_key, "OpenPiFormat").ndim - 1
                found = found and np.ndim(example[f"{key}_is_pad"]) > axes
            if found != windowed:
                raise InvalidRequestError(
                    f"OpenPiFormat: expected {key!r} with{'' if windowed else 'out'} "
                    "delta_timestamps"
                )
        state, actions = (
            np.asarray(example[key], np.float32) for key in (self.state_key, self.action_key)
        )
        pictures = {
            name: resize_with_pad(np.asarray(example[key]), self.image_size)
            for name, key in self.cameras.items()
        }
        black = np.zeros_like(next(iter(pictures.values())))
        formatted = {
            "image": {name: pictures.get(name, black) for name in self.images},
            "image_mask": {
                name: np.full(state.shape[:-1], name in pictures) for name in self.images
            },
            "state": state,
            "actions": actions,
        }
        if self.tokenize is not None:
            texts = array_at(example, "task", "OpenPiFormat")
            tokens, masks = zip(*(self.tokenize(str(text)) for text in texts.ravel()), strict=True)
            formatted["tokenized_prompt"] = np.reshape(
                np.asarray(tokens, np.int32), (*texts.shape, -1)
            )
            formatted["tokenized_prompt_mask"] = np.reshape(
                np.asarray(masks, np.bool_), (*texts.shape, -1)
            )
        return formatted


class OpenPiDataLoader:
    """A stream as openpi's `DataLoader`: what its `create_data_loader` returns.

        dataset = dataset.batch(64).map(OpenPiFormat(cameras=...))
        dataset = dataset.pipe(DeviceIterDataset, sharding=data_sharding)
        loader = OpenPiDataLoader(
            dataset, data_config=data_config, observation=Observation.from_dict
        )

    Unlike openpi's it can continue where it was: its iterator is Grain's, with `get_state`,
    `set_state` and `close`, and a checkpoint of it is one of the stream. openpi's loop takes the
    next batch before it saves, so take the state before that `next`: where openpi saves, it already
    counts a batch that was not trained on, and a training that resumes would miss it.

    Args:
      batches: dataset of openpi's dicts, batched, on the devices.
      data_config: what `data_config()` returns; the trainer takes the normalization statistics from
        it.
      observation: makes an observation of a dict; openpi's is `Observation.from_dict`. `None`: the
        dict without `actions`.
    """

    def __init__(
        self,
        batches: grain.IterDataset[Any],
        *,
        data_config: Any,
        observation: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self._pairs = batches.map(_Pair(observation))
        self._data_config = data_config

    def data_config(self) -> Any:
        """Returns the config that was given."""
        return self._data_config

    def __iter__(self) -> grain.DatasetIterator[Any]:
        """Returns an iterator over (observation, actions)."""
        return self._pairs.__iter__()


@dataclass(frozen=True, slots=True)
class _Pair(grain.transforms.Map):
    observation: Callable[[dict[str, Any]], Any] | None

    def map(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        if "actions" not in batch:
            raise InvalidRequestError(
                f"OpenPiDataLoader: a batch has no 'actions', only {', '.join(batch)}; put "
                "OpenPiFormat before it"
            )
        rest = {key: value for key, value in batch.items() if key != "actions"}
        return rest if self.observation is None else self.observation(rest), batch["actions"]

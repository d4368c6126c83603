"""Normalization on the device, inside of the jitted step: statistics -> a pytree of arrays, with
`normalize` and its inverse.

    normalizer = lg.normalizer(repository, {"action": "quantiles"})

    @jax.jit
    def step(params, batch):
        # uint8 in, float32 out: frames travel to the device as bytes
        batch = normalizer.normalize(batch)
        ...

Every mode is one affine map for each number of a feature, y = (x - center) / width. The modes and
statistics are named as in lerobot.

Rules:
* If the width is 0 (a number that never changes: std is 0, min == max, or both quantiles are equal)
  every x becomes 0, and every y `center`, which is that number. No epsilon: what changes a little
  is not changed a little more.
* Statistics belong to the last axes of an array, so batches and windows broadcast. A shape that
  does not fit is an error, never broadcast.
* Frames are `(..., height, width, channels)`: uint8, or floating point in [0, 1], of which their
  statistics are. Depth has its own unit.

Not included: clipping; rotations and quaternions, which need more than an affine map; relative
actions, which are a `.map` before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_opened
from lerobot_grain._base.errors import DatasetFormatError, InvalidRequestError, short_repr
from lerobot_grain._repository.metadata import stats_path
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.stats_file import Statistics

Mode = Literal[
    "mean_std",
    "min_max",
    "quantiles",
    "quantile10",
    "imagenet",
    "zero_one",
    "minus_one_one",
    "identity",
]
Affine = Mapping[str, Any]  # "center" and "width": arrays

# Mode -> the statistics that become -1 and 1.
_BOUNDS = {"min_max": ("min", "max"), "quantiles": ("q01", "q99"), "quantile10": ("q10", "q90")}
# Mode of cameras -> (center, width), of frames in [0, 1]. ImageNet's are those that torchvision's
# and lerobot's models were trained with.
_OF_CAMERAS: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]] = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "zero_one": (0.0, 1.0),
    "minus_one_one": (0.5, 0.5),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Normalizer:
    """Normalizes batches, and takes it back. A pytree of float32 arrays; made by `normalizer`.

    Close over it in a jitted function, or pass it as an argument. Save `to_dict()` with the policy,
    and inference needs no dataset.

    Attributes:
      values: low-dimensional feature -> `center` and `width`, float32 `(*shape)`, `()` for scalars.
      cameras: camera -> the same, float32 `(channels,)` or `()`, of frames in [0, 1].
    """

    values: Mapping[str, Affine]
    cameras: Mapping[str, Affine]

    def normalize(
        self, batch: Mapping[str, Any], keys: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Returns the batch with its features normalized.

        Args:
          batch: feature key -> array, of one example or with any batch and time axes before it,
            NumPy's or JAX's, also traced.
          keys: what is normalized; `None`: all of the batch that this normalizer knows. The rest is
            passed on.

        Returns:
          `jax.Array`s of the same shapes, float32; float64 where the batch is, with
          `jax_enable_x64`.

        Raises:
          InvalidRequestError: a key is not in the batch or not known, or an array does not have the
            shape of the statistics.
        """
        return self._mapped(
            batch,
            keys,
            lambda x, center, width: jnp.where(
                width == 0, 0, (x - center) / jnp.where(width == 0, 1, width)
            ),
        )

    def unnormalize(
        self, batch: Mapping[str, Any], keys: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Returns the batch with its features in the units of the dataset again, frames in [0,
        1]; arguments as for `normalize`.
        """
        return self._mapped(batch, keys, lambda y, center, width: y * width + center)

    def to_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns `{"values": {key: {"center": array, "width": array}}, "cameras": ...}`, as Orbax
        and others save it.
        """
        return {"values": _copied(self.values), "cameras": _copied(self.cameras)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Normalizer:
        """Returns what `to_dict` was made of. Arrays may have become lists, as in JSON.

        Raises:
          InvalidRequestError: it is not such a dict.
        """
        try:
            parts = [saved["values"], saved["cameras"]]
            return cls(
                *(
                    {key: _affine(found["center"], found["width"]) for key, found in part.items()}
                    for part in parts
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"Normalizer.from_dict: expected what to_dict() returns ({error!r})"
            ) from None

    def _mapped(
        self, batch: Mapping[str, Any], keys: Iterable[str] | None, function: Callable[..., Any]
    ) -> dict[str, Any]:
        known = {**self.values, **self.cameras}
        chosen = [key for key in batch if key in known] if keys is None else list(keys)
        mapped = dict(batch)
        for key in chosen:
            if key not in known or key not in batch:
                place, found = (
                    ("the normalizer", known) if key not in known else ("the batch", batch)
                )
                raise InvalidRequestError(
                    f"{key!r} is not in {place}, which has {', '.join(found) or 'nothing'}"
                )
            center = known[key]["center"]
            width = known[key]["width"]
            x = jnp.asarray(batch[key])
            if x.shape[x.ndim - center.ndim :] != center.shape:
                raise InvalidRequestError(
                    f"{key!r} has shape {x.shape}; expected (..., "
                    f"{', '.join(map(str, center.shape))}), as its statistics"
                )
            if key in self.cameras and x.dtype == jnp.uint8:
                x = x.astype(jnp.float32) / 255
            mapped[key] = function(x, center, width)
        return mapped


class _HasOutputs(Protocol):
    """A `Window`."""

    def outputs(self, name: str) -> Mapping[str, str]: ...


def normalizer(
    source: Repository | Statistics,
    modes: Mapping[str, Mode] | None = None,
    *,
    stats: Statistics | None = None,
    windows: Mapping[str, _HasOutputs] | None = None,
) -> Normalizer:
    """Returns the normalization of a dataset.

    Args:
      source: an opened dataset; or, without one, its statistics: feature key -> statistic ->
        array.
      modes: feature key -> mode, in place of the default.
      stats: statistics of some features, such as `compute_stats` and `stats_of` give, in place of
        those of the source.

        | mode | y |
        |---|---|
        | `mean_std` | (x - mean) / std |
        | `min_max` | min and max become -1 and 1; nothing is clipped |
        | `quantiles`, `quantile10` | the same of q01 and q99, q10 and q90 |
        | `imagenet` | cameras: (x - mean) / std of ImageNet |
        | `zero_one`, `minus_one_one` | cameras: 0 and 255 become 0 and 1, or -1 and 1 |
        | `identity` | x, of its own dtype |

        The default is `imagenet` for cameras (`mean_std` for depth), `mean_std` for numbers that
        are `observation.*`, `action` or `action.*`, and `identity` for all else (`timestamp`, ...).
      windows: those with a name that examples are read with (`Window`): their values are normalized
        as those of their features, so that a goal can be compared with a state.

    Raises:
      InvalidRequestError: a feature, mode or statistic does not exist, or one number of `stats`
        stands for a feature of several.
      DatasetFormatError: a statistic that is needed is malformed, or those of the dataset have
        another shape than their feature.
    """
    check_opened(source, of="normalizer")
    known = _known_features(source, stats or {})
    of_values: dict[str, Affine] = {}
    of_cameras: dict[str, Affine] = {}
    for key, mode in {**known.default_modes(), **(modes or {})}.items():
        _check_mode(known, key, mode)
        if mode in _OF_CAMERAS:
            of_cameras[key] = _affine(*_OF_CAMERAS[mode])
        elif mode != "identity":
            of_its_kind = of_cameras if key in known.channels else of_values
            of_its_kind[key] = _of_feature(known, key, mode)
    for name, window in (windows or {}).items():
        for output, key in window.outputs(name).items():
            if known.repository is not None and key not in known.repository.features:
                raise InvalidRequestError(
                    f"windows[{name!r}]: {known.where} has no feature {key!r}"
                )
            for of_its_kind in (of_values, of_cameras):
                if key in of_its_kind:
                    of_its_kind[output] = of_its_kind[key]
    return Normalizer(of_values, of_cameras)


@dataclass(frozen=True, slots=True)
class _KnownFeatures:
    """The features that can be normalized, and their statistics.

    Attributes:
      where: names the source in messages.
      repository: the source, where it is a dataset.
      keys: of the features.
      channels: camera -> how many.
      given: feature key -> statistics that are not those of the dataset.
    """

    where: str
    repository: Repository | None
    keys: tuple[str, ...]
    channels: Mapping[str, int]
    given: Statistics

    def default_modes(self) -> dict[str, Mode]:
        return {key: _default_mode(key, self.channels.get(key)) for key in self.keys}

    def statistics_of(self, key: str) -> Mapping[str, npt.NDArray[np.float64]]:
        """Returns the statistics of a feature; empty: there are none."""
        if key in self.given or self.repository is None:
            return self.given.get(key, {})
        # Not before they are needed: they may be malformed, which does not matter where others
        # are given.
        return (self.repository.stats or {}).get(key, {})


def _known_features(source: Repository | Statistics, stats: Statistics) -> _KnownFeatures:
    if isinstance(source, Repository):
        features = source.features
        return _KnownFeatures(
            where=source.description,
            repository=source,
            keys=tuple(
                key for key, feature in features.items() if feature.is_camera or feature.is_array
            ),
            channels={key: features[key].shape[-1] for key in source.cameras},
            given=stats,
        )
    given = {**source, **stats}
    return _KnownFeatures(
        where="statistics",
        repository=None,
        keys=tuple(given),
        channels={
            key: count for key, statistics in given.items() if (count := _num_channels(statistics))
        },
        given=given,
    )


def _check_mode(known: _KnownFeatures, key: str, mode: Mode) -> None:
    """Refuses a mode that does not exist, or not for this feature, and a feature that is not
    known.
    """
    if mode not in get_args(Mode):
        raise InvalidRequestError(
            f"modes[{key!r}]={mode!r}: expected one of {', '.join(get_args(Mode))}"
        )
    is_known = key in known.keys
    # Cameras of constant modes need not be among the statistics.
    if not is_known and (known.repository is not None or mode not in _OF_CAMERAS):
        raise InvalidRequestError(
            f"{known.where}: there is no feature {key!r} of numbers or frames; there are "
            f"{', '.join(known.keys)}"
        )
    if mode in _OF_CAMERAS and is_known and known.channels.get(key) != 3:
        raise InvalidRequestError(
            f"modes[{key!r}]={mode!r}: that is for cameras of three channels, and {key!r} is none"
        )


def _of_feature(known: _KnownFeatures, key: str, mode: Mode) -> Affine:
    """Returns the map of a feature in a mode that its statistics are needed for."""
    statistics = known.statistics_of(key)
    if known.repository is not None:
        _check_shapes(known.repository, key, statistics, mode, is_given=key in known.given)
    return _of_statistics(statistics, mode, where=f"{known.where}: feature {key!r}")


def _num_channels(statistics: Mapping[str, npt.NDArray[np.float64]]) -> int:
    """Returns how many channels the frames have that statistics are of; 0: they are of
    numbers.
    """
    shapes = map(np.shape, statistics.values())
    return max((shape[0] for shape in shapes if len(shape) == 3 and shape[1:] == (1, 1)), default=0)


def _default_mode(key: str, num_channels: int | None) -> Mode:
    if num_channels == 3:
        return "imagenet"
    return (
        "mean_std"
        if num_channels or key == "action" or key.startswith(("action.", "observation."))
        else "identity"
    )


def _check_shapes(
    repository: Repository,
    key: str,
    statistics: Mapping[str, npt.NDArray[np.float64]],
    mode: Mode,
    *,
    is_given: bool,
) -> None:
    """Checks that the statistics which a mode needs are those of a feature: one number would fit
    whatever it has.

    Args:
      is_given: they are not those of the dataset, and may be of what a transformation made of the
        feature, of another size.

    Raises:
      DatasetFormatError: those of the dataset are not.
      InvalidRequestError: those that were given are not.
    """
    feature = repository.features[key]
    last = feature.shape[-1:]
    # For numbers the statistics of the last axes, or of all axes, as older versions of lerobot have
    # them.
    fitting = (
        [(*last, 1, 1), last]
        if feature.is_camera
        else [feature.shape[axis:] for axis in range(len(feature.shape))]
    )
    is_of_one = math.prod(last if feature.is_camera else feature.shape) == 1
    for name in _BOUNDS.get(mode, ("mean", "std", "min", "max")):
        shape = np.shape(statistics.get(name, np.empty(0)))
        is_one = math.prod(shape) == 1
        if (
            name not in statistics
            or shape in fitting
            or (is_one and is_of_one)
            or (is_given and not is_one)
        ):
            continue
        expected = "one number" if is_of_one else " or ".join(map(str, fitting))
        text = (
            f"feature {key!r} has shape {feature.shape}, and its statistic {name!r} {shape}; "
            f"expected {expected}"
        )
        if is_given:
            raise InvalidRequestError(
                f"{repository.description}: {text}. If they are of one number that a "
                "transformation made of the feature, give them in place of the dataset: "
                "normalizer(stats)"
            )
        raise DatasetFormatError(
            f"{repository.description}, {stats_path(repository.info)}: {text}. "
            "compute_stats(repository) makes others, for normalizer(repository, stats=...)"
        )


def _of_statistics(
    statistics: Mapping[str, npt.NDArray[np.float64]], mode: Mode, *, where: str
) -> Affine:
    names = _BOUNDS.get(mode, ("mean", "std"))
    if missing := [name for name in names if name not in statistics]:
        raise InvalidRequestError(
            f"{where} has no statistic {missing[0]!r}, which {mode!r} needs; it has "
            f"{', '.join(statistics) or 'none'}. Pass stats=compute_stats(repository), it has all"
        )
    first, second = (_one_axis(statistics[name]) for name in names)
    spread = second if mode == "mean_std" else second - first
    if first.shape != second.shape or not (
        np.isfinite(first).all() and np.isfinite(second).all() and (spread >= 0).all()
    ):
        bound = "below 0 in std" if mode == "mean_std" else "larger in the first than in the second"
        raise DatasetFormatError(
            f"{where} has {names[0]} {short_repr(first.tolist())} and {names[1]} "
            f"{short_repr(second.tolist())}; expected finite numbers, as many of each, and none "
            f"{bound}"
        )
    if mode != "mean_std":
        return _affine((first + second) / 2, spread / 2)
    if not {"min", "max"} <= set(statistics):
        return _affine(first, spread)
    # Sums leave traces: 1e-17 in place of a deviation of 0, and a mean that is not quite the
    # number.
    low = _one_axis(statistics["min"])
    high = _one_axis(statistics["max"])
    if not low.shape == high.shape == first.shape:
        raise DatasetFormatError(
            f"{where} has mean {short_repr(first.tolist())}, min {short_repr(low.tolist())} and "
            f"max {short_repr(high.tolist())}; expected as many of each"
        )
    return _affine(np.where(low == high, low, first), np.where(low == high, 0, spread))


def _one_axis(statistic: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns a statistic as it stands at the last axes of a batch: scalars have none there,
    frames their channels.
    """
    array = np.asarray(statistic, np.float64)
    if array.ndim == 3 and array.shape[1:] == (1, 1):
        array = array[:, 0, 0]
    return array.reshape(()) if array.size == 1 else array


def _affine(center: npt.ArrayLike, width: npt.ArrayLike) -> Affine:
    wide = np.asarray(width, np.float32)
    # A width that float32 cannot divide by counts as 0.
    wide = np.where(wide < np.finfo(np.float32).tiny, np.float32(0), wide)
    return {"center": np.asarray(center, np.float32), "width": wide}


def _copied(part: Mapping[str, Affine]) -> dict[str, dict[str, Any]]:
    return {key: dict(affine) for key, affine in part.items()}

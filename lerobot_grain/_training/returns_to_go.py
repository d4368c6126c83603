"""Returns: the sum of the rewards from each frame to the end of its episode, for offline RL and
sequence models that are conditioned on them.

One column of all data files is read, once, when the transformation is made; after that it is a
lookup by row. So it costs nothing in the stream, and a window or a chunk needs no frame beyond its
own end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_opened
from lerobot_grain._base.arrays import Integers, read_only
from lerobot_grain._base.errors import DatasetFormatError, InvalidRequestError, short_repr
from lerobot_grain._reading.rows.whole_columns import read_whole_column
from lerobot_grain._repository.repository import Repository

Returns = npt.NDArray[np.float32]


class ReturnsToGo(grain.transforms.Map):
    """Adds the return from each frame on: G(t) = reward(t) + discount * G(t + 1), and the reward
    alone at the last frame of the episode.

        returns = ReturnsToGo(dataset.repository, discount=0.99)
        dataset = dataset.map(returns)

    It works on examples, on windows, on chunks of `EpisodeIterDataset`, and after `.batch`: the
    output has the shape of `index` in the example, so `delta_timestamps={"index": [...]}` asks for
    a window of returns, whose mask is `index_is_pad`. A frame that is repeated has the same return.

    Args:
      repository: the opened dataset that the examples come from.
      reward: key of a feature with one number or bool a frame; bools count as 0 and 1.
      discount: 0 <= discount <= 1.
      output: key that the returns get, float32.

    Raises:
      InvalidRequestError: at construction: there is no such feature, it is not one number a frame,
        or an argument is out of its range. At an example: it has neither `index`, nor
        `episode_index` and `frame_index`; they name no row of the dataset; or it has the output's
        key.
      DatasetFormatError: a reward is not finite or missing, a return is more than a float32 holds,
        or a data file is not what the metadata says.
      StorageError: the bytes could not be read.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        reward: str = "next.reward",
        discount: float = 1.0,
        output: str = "returns_to_go",
    ) -> None:
        check_opened(repository, of="ReturnsToGo")
        is_number = isinstance(discount, int | float | np.number) and not isinstance(discount, bool)
        if not (is_number and 0 <= discount <= 1):
            raise InvalidRequestError(
                f"ReturnsToGo(discount={discount!r}): expected a number, 0 <= discount <= 1"
            )
        if not isinstance(output, str) or not output:
            raise InvalidRequestError(
                f"ReturnsToGo(output={output!r}): expected the key that the returns get"
            )
        self._about = repository.description
        self._episodes = repository.episodes
        self._output = output
        rewards = _read_rewards(repository, reward)
        # A sum that overflows becomes infinite, which `_as_float32` refuses.
        with np.errstate(over="ignore", invalid="ignore"):
            returns = _returns(
                rewards,
                self._episodes.first_rows,
                self._episodes.lengths,
                discount=float(discount),
            )
        self._values: Returns = read_only(_as_float32(returns, repository, reward))

    @property
    def values(self) -> Returns:
        """Float32 `(rows,)`, read-only: the returns of all rows of the dataset."""
        return self._values

    def map(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the example with the returns of its frames."""
        if self._output in example:
            raise InvalidRequestError(
                f"ReturnsToGo: the example has {self._output!r} already; give another output="
            )
        return {**example, self._output: self._values[self._rows(example)]}

    def _rows(self, example: Mapping[str, Any]) -> Integers:
        """Returns the rows of the frames of an example, which exist."""
        if "index" in example:
            rows = _integers(example, "index")
            problem = (rows < 0) | (rows >= len(self._values))
            keys: tuple[str, ...] = ("index",)
        elif "episode_index" in example and "frame_index" in example:
            numbers, frames = (_integers(example, key) for key in ("episode_index", "frame_index"))
            if numbers.shape != frames.shape:
                raise InvalidRequestError(
                    f"ReturnsToGo: 'episode_index' has shape {numbers.shape}, 'frame_index' has "
                    f"{frames.shape}; expected the same windows of both, or 'index' in features="
                )
            found = self._episodes.positions_of(numbers)
            rows = self._episodes.first_rows[found] + frames
            problem = (found < 0) | (frames < 0) | (frames >= self._episodes.lengths[found])
            keys = ("episode_index", "frame_index")
        else:
            raise InvalidRequestError(
                f"ReturnsToGo: an example has the keys {short_repr(list(example))}; expected "
                "'index', or 'episode_index' and 'frame_index', which say what row it is: name "
                "them in features="
            )
        if problem.any():
            place = np.unravel_index(int(np.argmax(problem)), problem.shape)
            named = ", ".join(f"{key} {np.asarray(example[key])[place]}" for key in keys)
            raise InvalidRequestError(
                f"ReturnsToGo: an example has {named}; expected a row of {self._about}, which has "
                f"{len(self._values)} rows in episodes {self._episodes.shown_numbers}"
            )
        return rows


def _integers(example: Mapping[str, Any], key: str) -> Integers:
    values = np.asarray(example[key])
    if values.dtype.kind not in "iu":
        raise InvalidRequestError(
            f"ReturnsToGo: {key!r} is {short_repr(example[key])}; expected ints"
        )
    return values.astype(np.int64)


def _read_rewards(repository: Repository, key: str) -> npt.NDArray[np.float64]:
    """Returns the rewards of all rows, all of them finite."""
    episodes = repository.episodes
    scalars = [
        name
        for name, feature in repository.features.items()
        if feature.is_array and feature.is_scalar
    ]
    if key not in repository.features:
        raise InvalidRequestError(
            f"ReturnsToGo(reward={key!r}): {repository.description} has no such feature; those "
            f"with one number a frame are {', '.join(scalars) or 'none'}"
        )
    feature = repository.features[key]
    if key not in scalars:
        raise InvalidRequestError(
            f"ReturnsToGo(reward={key!r}): the feature has dtype {feature.dtype} and shape "
            f"{feature.shape}; expected one number a frame"
        )
    column = read_whole_column(repository, feature, selected=np.arange(episodes.num_episodes))
    rewards = column.astype(np.float64)
    if (bad := np.flatnonzero(~np.isfinite(rewards))).size:
        row = bad.item(0)
        number, frame = episodes.locate(row)
        raise DatasetFormatError(
            f"{repository.description}: {key!r} is {rewards[row]} at row {row}, frame {frame} of "
            f"episode {number}; expected finite rewards"
        )
    return rewards


def _as_float32(values: npt.NDArray[np.float64], repository: Repository, key: str) -> Returns:
    """Returns the returns of all rows as float32, all of them finite."""
    with np.errstate(over="ignore"):
        found: Returns = values.astype(np.float32)
    if (bad := np.flatnonzero(~np.isfinite(found))).size:
        row = bad.item(0)
        number, frame = repository.episodes.locate(row)
        raise DatasetFormatError(
            f"{repository.description}: the return of {key!r} is {values[row]:g} at row {row}, "
            f"frame {frame} of episode {number}; expected at most {np.finfo(np.float32).max:g}, "
            "the largest float32. Give a smaller discount=, or scale the rewards"
        )
    return found


def _returns(
    rewards: npt.NDArray[np.float64],
    first_rows: Integers,
    lengths: Integers,
    *,
    discount: float,
) -> npt.NDArray[np.float64]:
    """Returns float64 `(rows,)`: the return from each row on, added up from the end of its
    episode.
    """
    found = rewards.copy()
    longest_first = np.argsort(-lengths, kind="stable")
    last_rows = (first_rows + lengths - 1)[longest_first]
    ascending = lengths[longest_first][::-1]
    # One step back in all episodes that are long enough at a time.
    for back in range(1, int(lengths.max(initial=0))):
        count = len(ascending) - int(np.searchsorted(ascending, back, side="right"))
        rows = last_rows[:count] - back
        found[rows] += discount * found[rows + 1]
    return found

"""Selects the contents of a stream: the values of `features=` and `episodes=`, and the split of a
dataset into training and held-out episodes.

Rules:
* A feature that cannot be read raises where it is selected, by name or by `features=None`, and
  affects no other selection.
* A selection is evaluated once, when the dataset is made: what is kept is the positions of
  episodes in the table, ascending.
* Lists and functions name episodes by their numbers. Slices, and the ranges of splits, count the
  episodes in the order of their numbers, as lerobot counts them; that is the same but where numbers
  have gaps.
* A predicate reads only the columns of the episode table that it asks for, each once.
* A split text that can be understood in two ways is refused: percentages depend on how they are
  rounded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_opened, check_seed
from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError, InvalidRequestError, short_repr
from lerobot_grain._format.info import TASK_KEY, Feature
from lerobot_grain._format.layout import INFO_PATH
from lerobot_grain._format.texts import UnreadableTexts
from lerobot_grain._order.philox import shuffled_episodes
from lerobot_grain._repository.repository import Repository

SUBTASK_KEY = "subtask"
# Keys of texts that are looked up in a table of meta/ -> columns that number them.
INDEX_OF = {TASK_KEY: "task_index", SUBTASK_KEY: "subtask_index"}

_MAX_NUMBER = 2**63 - 1
_RANGE = re.compile(r"\s*([0-9]{1,12})?\s*:\s*([0-9]{1,12})?\s*")


@dataclass(frozen=True, slots=True)
class FeatureSelection:
    """Which features are read.

    Attributes:
      columns: features that are columns of the data files: low-dimensional ones and embedded
        images.
      videos: features that are video files.
      texts: `task`, `subtask` or both: which texts examples have.
    """

    columns: tuple[Feature, ...]
    videos: tuple[Feature, ...]
    texts: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that select this."""
        return (*(feature.key for feature in self.columns + self.videos), *self.texts)


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode, as a function given as `episodes=` sees it.

        episodes=lambda episode: episode.length >= 50 and "pick" in episode.tasks[0]
        episodes=lambda episode: episode["success"]

    Attributes:
      index: its number.
      length: its frames.
    """

    index: int
    length: int
    _position: int = field(repr=False)
    _column: Callable[[str], npt.NDArray[Any]] = field(repr=False, compare=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The texts of its tasks, as the episode table has them.

        Raises:
          InvalidRequestError: the episode table has no column `tasks`.
          DatasetFormatError: they are no texts.
        """
        found = self["tasks"]
        texts = (
            (found,)
            if isinstance(found, str)
            else tuple(found if isinstance(found, np.ndarray | list | tuple) else (found,))
        )
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise DatasetFormatError(
                f"the episode table: episode {self.index} has {short_repr(odd[0])} in column "
                "tasks; expected texts"
            )
        return texts

    def __getitem__(self, column: str) -> Any:
        """Returns its value in any column of the episode table.

        Raises:
          InvalidRequestError: there is no such column.
        """
        return self._column(column)[self._position]


def select_features(repository: Repository, features: Iterable[str] | None) -> FeatureSelection:
    """Returns what `features=` selects.

    Raises:
      InvalidRequestError: a key does not exist, or is given twice.
      DatasetFormatError: a selected feature cannot be read, a camera has no video, or a table of
        texts is missing or malformed.
    """
    declared = repository.features
    unreadable = repository.info.unreadable
    if isinstance(features, str):
        raise InvalidRequestError(f"features={features!r}: expected a list of keys")
    known = [*declared, *text_keys(repository)]
    keys = [*known, *unreadable] if features is None else list(features)
    if refused := {key: unreadable[key] for key in keys if key in unreadable}:
        raise DatasetFormatError(
            f"{repository.description}, {INFO_PATH}: {next(iter(refused.values()))}. "
            + _without(
                [key for key in keys if key not in refused],
                list(refused),
                is_asked=features is not None,
            )
        )
    if unknown := [key for key in keys if key not in known]:
        raise InvalidRequestError(
            f"{repository.description}: there is no feature {unknown[0]!r}; there are "
            f"{', '.join(known)}"
        )
    if len(set(keys)) < len(keys):
        raise InvalidRequestError(f"features={keys!r}: a key is given twice")
    if not keys:
        raise InvalidRequestError("features=[]: expected at least one key, or None for all")
    chosen = [declared[key] for key in keys if key in declared]
    for feature in chosen:
        if feature.is_video and feature.key not in repository.episodes.videos:
            raise DatasetFormatError(
                f"{repository.description}: camera {feature.key!r} has no video: the episode "
                f"table has no columns videos/{feature.key}/...; name the other features in "
                "features=[...]"
            )
    texts = tuple(key for key in keys if key not in declared)
    for key in texts:
        if isinstance(table := texts_of(repository, key), UnreadableTexts):
            raise DatasetFormatError(
                f"{table.problem}. "
                + _without(
                    [other for other in keys if other != key], [key], is_asked=features is not None
                )
            )
    return FeatureSelection(
        columns=tuple(feature for feature in chosen if not feature.is_video),
        videos=tuple(feature for feature in chosen if feature.is_video),
        texts=texts,
    )


def _without(left: list[str], refused: list[str], *, is_asked: bool) -> str:
    """Returns the end of a message: how to read the features that can be read; with their names,
    where they were not asked for by name.
    """
    names = ", ".join(map(repr, refused))
    if is_asked or not left:
        return f"Leave {names} out of features=[...]"
    return f"To read all but {names}: features={left!r}"


def text_keys(repository: Repository) -> list[str]:
    """Returns the keys of texts that are looked up in a table of `meta/`: `task`, and `subtask`
    where there are subtasks.
    """
    declared = repository.features
    has_subtasks = (
        repository.subtasks is not None
        and INDEX_OF[SUBTASK_KEY] in declared
        and SUBTASK_KEY not in declared
    )
    return [TASK_KEY, *([SUBTASK_KEY] if has_subtasks else [])]


def texts_of(repository: Repository, key: str) -> Mapping[int, str]:
    """Returns the table of the texts of a key; of `subtask` only where there is one."""
    texts = repository.tasks if key == TASK_KEY else repository.subtasks
    assert texts is not None
    return texts


EpisodeSelection = slice | str | Iterable[int] | Callable[[Episode], bool] | None


def select_episodes(repository: Repository, episodes: EpisodeSelection) -> Integers:
    """Returns int64 `(n,)`, ascending: positions of the episodes that `episodes=` selects; `None`
    selects all.

    Raises:
      InvalidRequestError: one does not exist, is given twice, or none is left; there is no such
        split; a function returns no bool.
      DatasetFormatError: the split is not one that can be read.
      StorageError: a column that a function asks for could not be read.
    """
    num_episodes = repository.episodes.num_episodes
    if episodes is None:
        return np.arange(num_episodes)
    if isinstance(episodes, slice):
        try:
            selected = np.arange(num_episodes)[episodes]
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"episodes={episodes!r}: not a slice of episode numbers ({error})"
            ) from None
    elif isinstance(episodes, str):
        selected = _episodes_of_split(repository, episodes)
    elif callable(episodes):
        selected = _accepted_episodes(repository, episodes)
    elif isinstance(episodes, Iterable):
        selected = _listed_episodes(repository, list(episodes))
    else:
        raise InvalidRequestError(
            f"episodes={episodes!r}: expected a list of episode numbers (int), a slice, the name "
            "of a split, or a function of an Episode"
        )
    if selected.size == 0:
        raise InvalidRequestError(
            f"episodes={episodes!r} selects none of the {num_episodes} episodes"
        )
    return np.sort(selected)


def train_eval_split(
    repository: Repository,
    *,
    eval_fraction: float = 0.1,
    seed: int = 0,
    episodes: EpisodeSelection = None,
) -> tuple[Integers, Integers]:
    """Splits a dataset into episodes to train on and episodes to hold out, at random and the same
    forever.

        train, held_out = train_eval_split(repository, eval_fraction=0.1)
        dataset = LeRobotIterDataset(repository, episodes=train)

    Which episodes are held out is a function of the number of episodes, the fraction and the seed,
    on every machine and in every version. When episodes are added at the end, or left out, most of
    the others stay on their side.

    Args:
      repository: the opened dataset.
      eval_fraction: share of the episodes that is held out, 0 < eval_fraction < 1; rounded, and at
        least one on either side.
      seed: 0 <= seed < 2**64.
      episodes: only these are split; as for `LeRobotIterDataset`.

    Returns:
      Two int64 arrays of episode numbers, ascending, without a common one: to train on, and held
        out.

    Raises:
      InvalidRequestError: an argument is out of its range, or there is one episode only.
    """
    check_opened(repository, of="train_eval_split")
    if (
        isinstance(eval_fraction, bool)
        or not isinstance(eval_fraction, int | float)
        or not 0 < eval_fraction < 1
    ):
        raise InvalidRequestError(
            f"train_eval_split(eval_fraction={eval_fraction!r}): expected a number > 0 and < 1"
        )
    check_seed(seed, of="train_eval_split")
    selected = select_episodes(repository, episodes)
    if len(selected) < 2:
        raise InvalidRequestError(
            f"train_eval_split: {repository.description} has one episode to split; expected at "
            "least 2"
        )
    num_held_out = min(max(int(eval_fraction * len(selected) + 0.5), 1), len(selected) - 1)
    drawn = shuffled_episodes(repository.episodes.num_episodes, seed=seed)
    held_out = np.sort(drawn[np.isin(drawn, selected)][:num_held_out])
    numbers_of = repository.episodes.numbers_of
    return numbers_of(np.setdiff1d(selected, held_out)), numbers_of(held_out)


def _listed_episodes(repository: Repository, given: list[Any]) -> Integers:
    table = repository.episodes
    if not all(
        isinstance(number, int | np.integer) and not isinstance(number, bool) for number in given
    ):
        raise InvalidRequestError(
            f"episodes={given[:8]!r}: expected episode numbers (int) or a slice"
        )
    # Those that no int64 holds are not there.
    numbers = np.array([number if 0 <= number <= _MAX_NUMBER else -1 for number in given], np.int64)
    positions = table.positions_of(numbers)
    if (bad := np.flatnonzero(positions < 0)).size:
        raise InvalidRequestError(
            f"episodes: there is no episode {given[bad[0]]}; the dataset has episodes "
            f"{table.shown_numbers}"
        )
    distinct, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        raise InvalidRequestError(
            f"episodes: {distinct[counts > 1][0]} is given {counts.max()} times; expected every "
            "episode once"
        )
    return positions


def _episodes_of_split(repository: Repository, name: str) -> Integers:
    splits = repository.info.splits
    num_episodes = repository.episodes.num_episodes
    if name not in splits:
        raise InvalidRequestError(
            f"episodes={name!r}: {repository.description} has no such split; "
            + (
                f"{INFO_PATH} has {short_repr(list(splits))}"
                if splits
                else f"{INFO_PATH} has none; select with episode numbers"
            )
        )
    where = (
        f"{repository.description}, {INFO_PATH}: split {short_repr(name)} is "
        f"{short_repr(splits[name])}"
    )
    is_selected = np.zeros(num_episodes, np.bool_)
    for piece in splits[name].split(","):
        found = _RANGE.fullmatch(piece)
        if found is None:
            raise DatasetFormatError(
                f'{where}; expected ranges of episodes such as "0:50" or "0:50, 60:80"; select '
                "with episode numbers"
            )
        start = int(found[1] or 0)
        stop = int(found[2] or num_episodes)
        if max(start, stop) > num_episodes:
            raise DatasetFormatError(
                f"{where}, but there are {num_episodes} episodes; select with episode numbers"
            )
        is_selected[start:stop] = True
    return np.flatnonzero(is_selected)


def _accepted_episodes(repository: Repository, accepts: Callable[[Episode], bool]) -> Integers:
    column = functools.cache(repository.episode_column)
    accepted = []
    table = repository.episodes
    for position, (index, length) in enumerate(
        zip(table.numbers.tolist(), table.lengths.tolist(), strict=True)
    ):
        answer = accepts(Episode(index, length, position, column))
        if not isinstance(answer, bool | np.bool_):
            raise InvalidRequestError(
                f"episodes={accepts!r}: it returned {short_repr(answer)} for episode {index}; "
                "expected True or False"
            )
        if answer:
            accepted.append(position)
    return np.array(accepted, np.int64)

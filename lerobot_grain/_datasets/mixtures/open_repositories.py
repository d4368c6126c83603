"""Opens many datasets at once."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from typing import Any

from lerobot_grain._base.errors import InvalidRequestError, LeRobotGrainError
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._reading.options import ReadOptions
from lerobot_grain._repository.opening import open_repository
from lerobot_grain._repository.repository import Repository

# Opening one takes a Hub a handful of answers, one after the other.
_OPENED_AT_ONCE = 16
# From a directory it takes some milliseconds of Python, for which more threads only get into each
# other's way: 500 of them 3.6 s with 2 to 4 threads, 5.2 s with 16. Not one,
# for directories that are far away.
_DIRECTORIES_AT_ONCE = 4


def open_repositories(
    repositories: Mapping[str, str | os.PathLike[str]],
    *,
    revisions: Mapping[str, str] | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
) -> dict[str, Repository]:
    """Opens many datasets, such as the components of a mixture, side by side.

    Also reads what the default clip length of their streams depends on (`Repository.gop_length`),
    so that making these sends no request.

    Args:
      repositories: by a name of your choice, what `open_repository` takes.
      revisions: by name, the branch, tag or commit of those that are not to be opened at their
        default one.
      endpoint, token, cache_dir: as for `open_repository`, for all of them.
      read_options: connections and timeouts; the rest does not count here.

    Returns:
      The opened repositories by name, in the same order.

    Raises:
      LeRobotGrainError: some could not be opened. The text names each of them and says why; the
        class is that of their errors, where it is one.
    """
    chosen = revisions or {}
    if unknown := sorted(chosen.keys() - repositories.keys()):
        raise InvalidRequestError(
            f"revisions[{unknown[0]!r}]: there is no such repository; expected some of "
            f"{', '.join(map(repr, repositories))}"
        )
    open_one = functools.partial(
        _open,
        endpoint=endpoint,
        token=token,
        cache_dir=cache_dir,
        storage_options=read_options.storage,
    )
    all_local = all(
        isinstance(each, str | os.PathLike) and os.path.isdir(os.path.expanduser(each))
        for each in repositories.values()
    )
    num_threads = _DIRECTORIES_AT_ONCE if all_local else _OPENED_AT_ONCE
    with DaemonPool(num_threads, "lerobot_grain open") as pool:
        opening = {
            name: pool.submit(open_one, repository, revision=chosen.get(name))
            for name, repository in repositories.items()
        }
        opened: dict[str, Repository] = {}
        errors: dict[str, LeRobotGrainError] = {}
        for name, future in opening.items():
            try:
                opened[name] = future.result()
            except LeRobotGrainError as error:
                errors[name] = error
    if errors:
        raise _one_error(errors, num_repositories=len(repositories))
    return opened


def _one_error(
    errors: Mapping[str, LeRobotGrainError], *, num_repositories: int
) -> LeRobotGrainError:
    """Returns an error that says of each repository why it could not be opened."""
    lines = [f"  {name!r}: {error}" for name, error in errors.items()]
    kinds = {type(error) for error in errors.values()}
    kind = kinds.pop() if len(kinds) == 1 else LeRobotGrainError
    heading = f"{len(errors)} of {num_repositories} datasets could not be opened:"
    return kind("\n".join([heading, *lines]))


def _open(repository: str | os.PathLike[str], **arguments: Any) -> Repository:
    opened = open_repository(repository, **arguments)
    # Raised again by a stream that needs it.
    with contextlib.suppress(LeRobotGrainError):
        opened.gop_length()
    return opened

"""Checks of arguments that many doors have: whole numbers, tokens, opened datasets.

True and False are ints for Python; as a number they are a mistake.
"""

from __future__ import annotations

import os

from lerobot_grain._base.errors import InvalidRequestError


def is_int(value: object, *, least: int | None = None) -> bool:
    """Returns whether a value is an int and not a bool, and at least `least`."""
    return (
        isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
    )


def check_int(name: str, value: object, *, least: int, of: str = "", otherwise: str = "") -> None:
    """Checks an argument.

    Args:
      name: of the argument.
      value: what was given.
      least: the smallest one that is right.
      of: what the argument belongs to, `name=value` in brackets after it.
      otherwise: ends the message: what else is right.

    Raises:
      InvalidRequestError: it is no int, or less than `least`.
    """
    if not is_int(value, least=least):
        argument = f"{name}={value!r}"
        raise InvalidRequestError(
            f"{f'{of}({argument})' if of else argument}: expected an int >= {least}{otherwise}"
        )


def is_token(value: object) -> bool:
    """Returns whether a value is a text that a header can carry as a token."""
    return (
        isinstance(value, str)
        and value.isascii()
        and value.isprintable()
        and value == value.strip() != ""
    )


def check_seed(seed: object, *, of: str) -> None:
    """Checks the seed of `of`.

    Raises:
      InvalidRequestError: it is no int, 0 <= seed < 2**64.
    """
    if not (isinstance(seed, int) and is_int(seed, least=0) and seed < 2**64):
        raise InvalidRequestError(f"{of}(seed={seed!r}): expected an int, 0 <= seed < 2**64")


def check_opened(repository: object, *, of: str) -> None:
    """Checks that `of` was given an opened dataset, and not the name of one.

    Raises:
      InvalidRequestError: it is a name or a path.
    """
    if isinstance(repository, str | os.PathLike):
        name = os.fspath(repository)
        raise InvalidRequestError(
            f"{of}: {name!r} is the name of a dataset; expected an opened one, "
            f"open_repository({name!r})"
        )

"""How the values of options are written on the command line."""

from __future__ import annotations

import argparse
import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", re.ASCII | re.IGNORECASE)
_EPISODES = re.compile(r"(\d{1,12})?(:)?(\d{1,12})?", re.ASCII)
_PREFIXES = "kmgt"


def image_size(text: str) -> tuple[int, int]:
    """Returns (height, width) of a text such as `96x128`.

    Raises:
      argparse.ArgumentTypeError: it is another one.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH such as 96x128")
    return int(height), int(width)


def positive(text: str) -> int:
    """Returns a whole number of at least 1.

    Raises:
      argparse.ArgumentTypeError: it is none.
    """
    return _whole(text, least=1)


def seconds(text: str) -> float:
    """Returns a number of seconds above 0.

    Raises:
      argparse.ArgumentTypeError: it is none, or not finite.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0")
    return value


def count(text: str) -> int:
    """Returns a whole number of at least 0.

    Raises:
      argparse.ArgumentTypeError: it is none.
    """
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
    return int(text)


def size_bytes(text: str) -> int:
    """Returns the bytes of a text such as `500000000`, `20GB` (10^9 each) or `16GiB` (2^30 each).

    Raises:
      argparse.ArgumentTypeError: it is another one, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = "" if found is None else found[2].lower().removesuffix("b")
    if found is None or unit == "i":
        raise argparse.ArgumentTypeError(f"{text!r}: expected bytes, such as 500000000 or 20GB")
    base = 1024 if unit.endswith("i") else 1000
    number = int(float(found[1]) * base ** (1 + _PREFIXES.index(unit[0]) if unit else 0))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least one byte")
    return number


def episodes(text: str) -> slice | list[int]:
    """Returns the episodes of a text: `:50`, `50:` or `10:20` in their order, or numbers such as
    `0,7,9`.

    Raises:
      argparse.ArgumentTypeError: it is another one.
    """
    parts = text.split(",")
    if all(part.isascii() and part.isdecimal() for part in parts):
        return [int(part) for part in parts]
    found = _EPISODES.fullmatch(text)
    if found is None or not found[2]:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected episodes, such as :50, 10:20 or 0,7,9"
        )
    return slice(*(None if bound is None else int(bound) for bound in (found[1], found[3])))


def window(text: str) -> tuple[str, list[float]]:
    """Returns feature and seconds of a text such as `action=0,0.1,0.2`.

    Raises:
      argparse.ArgumentTypeError: it is another one.
    """
    key, separator, values = text.rpartition("=")
    try:
        if not separator:
            raise ValueError
        return key, [float(value) for value in values.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected KEY=SECONDS,SECONDS,... such as action=0,0.1,0.2"
        ) from None

"""Checks of arguments, and arrays that cannot be written to: what every folder uses of `_base`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.arguments import check_int, is_int
from lerobot_grain._base.arrays import read_only


@pytest.mark.parametrize("value", [True, 1.0, "1", None, np.int64(1), 0])
def test_what_is_no_int_of_at_least_one(value: Any) -> None:
    assert not is_int(value, least=1)
    with pytest.raises(lg.InvalidRequestError) as found:
        check_int("count", value, least=1)
    assert str(found.value) == f"count={value!r}: expected an int >= 1"


def test_the_text_names_what_the_argument_belongs_to_and_what_else_is_right() -> None:
    with pytest.raises(lg.InvalidRequestError) as found:
        check_int("clip_length", -1, least=1, of="Shuffle", otherwise=" or None")
    assert str(found.value) == "Shuffle(clip_length=-1): expected an int >= 1 or None"


def test_ints() -> None:
    check_int("count", 0, least=0)
    assert is_int(1, least=1)
    assert is_int(-(2**70))


def test_read_only_returns_the_same_array() -> None:
    array = np.zeros(2, np.int64)
    assert read_only(array) is array
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1

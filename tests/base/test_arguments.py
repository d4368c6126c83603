"""Checks of arguments, and arrays that cannot be written to: what every folder uses of `_base`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.arguments import check_int, check_opened, is_int
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


# Every public door that takes an opened dataset and not a name.
DOORS: dict[str, Callable[[Any], object]] = {
    "DeltaTimestamps": lg.DeltaTimestamps,
    "FrameOrderIterDataset": lg.FrameOrderIterDataset,
    "ReadWindowsIterDataset": lambda name: lg.ReadWindowsIterDataset(
        grain.MapDataset.range(1).to_iter_dataset(), name
    ),
    "ReturnsToGo": lg.ReturnsToGo,
    "check": lg.check,
    "compute_stats": lg.compute_stats,
    "fill_cache": lg.fill_cache,
    "locate": lambda name: lg.locate(name, 0),
    "normalizer": lg.normalizer,
    "read_rows": lambda name: lg.read_rows(name, 0),
    "train_eval_split": lambda name: lg.train_eval_split(name, eval_fraction=0.1),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["org/name", Path("org/name")], ids=["text", "path"])
def test_a_name_where_an_opened_dataset_is_expected(door: str, name: Any) -> None:
    with pytest.raises(lg.InvalidRequestError) as found:
        DOORS[door](name)
    assert str(found.value) == (
        f"{door}: 'org/name' is the name of a dataset; expected an opened one, "
        "open_repository('org/name')"
    )


def test_the_doors_are_all_that_take_a_repository_alone() -> None:
    found = set()
    for name in lg.__all__:
        value = getattr(lg, name)
        if not callable(value) or (isinstance(value, type) and issubclass(value, Exception)):
            continue
        kinds = [str(each.annotation) for each in inspect.signature(value).parameters.values()]
        if any(kind.startswith("Repository") and "Path" not in kind for kind in kinds):
            found.add(name)
    assert found - {"plot_example"} == set(DOORS)


def test_an_opened_dataset_passes() -> None:
    check_opened({"action": {}}, of="normalizer")

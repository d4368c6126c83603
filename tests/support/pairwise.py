"""Combinations of values such that each possible pair of them stands together in at least one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

Factors = Mapping[str, tuple[Any, ...]]


def pairs_of(values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return list(itertools.combinations(values.items(), 2))


def choose(
    factors: Factors, count: int, *, is_possible: Callable[[Mapping[str, Any]], bool]
) -> list[dict[str, Any]]:
    """Returns `count` possible combinations that hold every possible pair of values."""
    possible = [
        values
        for row in itertools.product(*factors.values())
        if is_possible(values := dict(zip(factors, row, strict=True)))
    ]
    chance = random.Random(0)
    chance.shuffle(possible)
    held = {}  # pair -> some that hold it
    for values in possible:
        for pair in pairs_of(values):
            held.setdefault(pair, []).append(values)
    missing, chosen = dict.fromkeys(held), []
    while missing:
        # Among some that hold the rarest pair, the one that holds most others.
        rarest = min(missing, key=lambda pair: len(held[pair]))
        best = max(
            held[rarest][:40], key=lambda values: sum(pair in missing for pair in pairs_of(values))
        )
        chosen.append(best)
        for pair in pairs_of(best):
            missing.pop(pair, None)
    assert len(chosen) <= count
    return chosen + [values for values in possible if values not in chosen][: count - len(chosen)]

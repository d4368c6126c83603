"""How many random cases a property is tried with."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

# The suite takes few cases, always the same ones; the marker `long` more, and this variable as many
# as it says, drawn anew.
_WANTED = os.environ.get("LEROBOT_GRAIN_CASES")


def runs(count: int) -> Any:
    """Returns the settings of random runs of several steps: `count` of them, if the environment
    does not say how many.
    """
    return settings(
        max_examples=int(_WANTED or count),
        stateful_step_count=6,
        derandomize=_WANTED is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def seconds_of(count: int) -> int:
    """Returns the time after which so many runs hang."""
    return max(120, int(_WANTED or count))

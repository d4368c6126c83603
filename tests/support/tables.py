"""Tables of cases of which some always run and all run as `long`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def table(cases: Iterable[Sequence[Any]], runs_always: Callable[[Any], bool]) -> list[Any]:
    """Returns the cases, for `pytest.mark.parametrize`.

    Args:
      cases: the arguments of each.
      runs_always: of a case; without it, it is `long`.
    """
    return [
        pytest.param(*case, marks=() if runs_always(case) else pytest.mark.long) for case in cases
    ]

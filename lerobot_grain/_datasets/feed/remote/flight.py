"""Arrow Flight, which some builds of pyarrow are without."""

from __future__ import annotations

from typing import Any

from lerobot_grain._base.errors import InvalidRequestError


def flight_module(asked_by: str) -> Any:
    """Returns `pyarrow.flight`.

    Raises:
      InvalidRequestError: pyarrow has none.
    """
    try:
        # Its library of 20 MB is loaded where it is used.
        import pyarrow.flight
    except ImportError as error:
        raise InvalidRequestError(
            f"{asked_by}: pyarrow was built without Arrow Flight ({error}); install the wheel of "
            "PyPI, or conda-forge's pyarrow in place of pyarrow-core"
        ) from None
    return pyarrow.flight

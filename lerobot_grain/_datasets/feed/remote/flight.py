"""Arrow Flight, which some builds of pyarrow are without; and the tokens that its calls carry."""

from __future__ import annotations

from typing import Any

from lerobot_grain._base.arguments import is_token
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


def check_token(token: object, *, of: str) -> None:
    """Checks that a token, or `None`, can be sent as it is; never quotes it.

    Raises:
      InvalidRequestError: it is empty, or holds what a header cannot.
    """
    if token is not None and not is_token(token):
        raise InvalidRequestError(
            f"{of}: a header cannot carry this token; expected a str of printable ASCII, "
            "not empty, without spaces or line breaks around it; .strip() what comes from a file"
        )

"""Tickets: what a consumer asks a reader server for, as JSON; and the messages that come with what
it sends.

A server keeps nothing of a consumer between two tickets: a ticket holds the definition of the
stream, its shard, the size of the pieces and the state. Whatever it holds, it is data: it is
compared, and never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grain

from lerobot_grain._base import errors
from lerobot_grain._base.arguments import is_int
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.feed.remote.definition import check_same
from lerobot_grain._datasets.feed.remote.lanes import LaneRequest
from lerobot_grain._datasets.positions import PartOfPositions

# For mixtures of thousands of datasets.
_MAX_TICKET_BYTES = 16 << 20
_MAX_PIECE_SIZE = 1 << 16
_MAX_INT = 1 << 62
# Errors that come to the consumer as what they are; the others become a RuntimeError.
_ERRORS: dict[str, type[Exception]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.LeRobotGrainError)
}


def ticket_of(request: LaneRequest, definition: Mapping[str, Any]) -> bytes:
    """Returns the ticket for what a lane reads."""
    part = request.part
    shard = part.shard_options
    return json.dumps(
        {
            "definition": definition,
            "shard": [shard.shard_index, shard.shard_count, int(shard.drop_remainder)],
            "start": part.start,
            "step": part.step,
            "piece_size": request.piece_size,
            "state": request.state,
        }
    ).encode()


def request_in(
    ticket: bytes, definition: Mapping[str, Any], num_positions: int | None, *, where: str
) -> LaneRequest:
    """Returns what a ticket asks for; its state is checked where it is restored.

    Args:
      ticket: from anywhere.
      definition, num_positions: of the stream that is served.
      where: names the server.

    Raises:
      InvalidRequestError: it is no ticket, or one for another stream.
    """
    try:
        found = json.loads(ticket) if len(ticket) <= _MAX_TICKET_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("definition"), dict):
        raise InvalidRequestError(
            f"{where}: a ticket of {len(ticket)} bytes that is no JSON object with a definition; "
            "expected one that FlightReaders makes"
        )
    check_same(found["definition"], definition, where=where)
    shard = found.get("shard")
    numbers = [
        *(shard if isinstance(shard, list) and len(shard) == 3 else [None]),
        *(found.get(name) for name in ("start", "step", "piece_size")),
    ]
    if not all(is_int(number, least=0) and number < _MAX_INT for number in numbers):
        raise _no_ticket(where, numbers)
    index, count, drop_remainder, start, step, piece_size = numbers
    if not (index < count and step >= 1 and 1 <= piece_size <= _MAX_PIECE_SIZE):
        raise _no_ticket(where, numbers)
    options = grain.sharding.ShardOptions(index, count, drop_remainder=bool(drop_remainder))
    part = PartOfPositions(num_positions, options, start, step)
    return LaneRequest(found.get("state", {}), part, piece_size)


def _no_ticket(where: str, numbers: list[Any]) -> InvalidRequestError:
    return InvalidRequestError(
        f"{where}: a ticket with shard, start, step and piece_size {numbers}; expected shard index "
        f"< shard count, step >= 1 and 1 <= piece_size <= {_MAX_PIECE_SIZE}"
    )


@dataclass(frozen=True, slots=True)
class Note:
    """The message that comes with a record batch.

    Attributes:
      first: position of the first example of its piece.
      goes_on: whether the next record batch belongs to the same piece.
      ends: whether nothing comes after it: the stream has ended, or failed.
      error: of the example after its piece, if that could not be read.
    """

    first: int = -1
    goes_on: bool = False
    ends: bool = False
    error: Exception | None = None

    def packed(self) -> bytes:
        """Returns it as JSON."""
        error = None if self.error is None else [type(self.error).__name__, str(self.error)]
        return json.dumps([self.first, self.goes_on, self.ends, error]).encode()

    @classmethod
    def of(cls, message: bytes) -> Note:
        """Returns the note in a message of a server.

        Raises:
          ValueError, TypeError, OverflowError, RecursionError: it is none.
        """
        first, goes_on, ends, error = json.loads(message)
        if error is None:
            return cls(int(first), bool(goes_on), bool(ends))
        name, text = map(str, error)
        kind = _ERRORS.get(name)
        found = RuntimeError(f"{name} in a reader: {text}") if kind is None else kind(text)
        return cls(int(first), bool(goes_on), bool(ends), found)

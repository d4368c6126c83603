"""Compares a state with the stream that it is to be restored into, and words the refusals.

A state is a dict of plain ints and strings: `format`, `position`, and the *identity* of the
stream, which is everything that its order depends on. A state belongs to a stream if the
identities are equal. Nothing here changes a stream: the caller compares first.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from lerobot_grain._base.errors import StateMismatchError
from lerobot_grain._order.shuffle import ORDER_VERSION

# The wrapping that Grain 0.2.18 puts around a state, so that a message can name it.
_WRAPPERS = (
    ({"parents", "index", "stop"}, "IterDataset.mix"),
    ({"iterators_in_use_states", "exhausted"}, "mp_prefetch"),
    ({"parent"}, "another transformation"),
)
# The fields that only some streams have.
_OPTIONAL = ("weights", "stride")
# The field that names what the position of a state counts, where that is not rows.
_UNIT = "unit"
# The field that states of mixtures have, and no others.
_COMPONENTS = "components"
_EXPECTED = "the dict that get_state of the same pipeline returned"
# Far above any run; the arithmetic on positions is done in 64 bits.
_POSITION_LIMIT = 1 << 62
_REMEDY = "make the dataset with the same shuffle, or begin a new stream"
_REMEDIES = {
    "commit": (
        "open the dataset with revision= that commit (of a directory it is a hash of its meta/, "
        "of a bucket of the list of its files), or begin a new stream"
    ),
    "episodes": (
        "select the same episodes, with the same drop_first_frames and drop_last_frames (this is "
        "a hash of the numbers of the episodes and of their rows), or begin a new stream"
    ),
    "num_rows": "select the same episodes, or begin a new stream",
    "weights": (
        "give the same weights= and valid_rows= (this is a hash of the weights of the selected "
        "rows), or begin a new stream"
    ),
    "stride": "give the same stride=, or begin a new stream",
    "num_chunks": "give the same last_chunk= ('drop' leaves chunks out), or begin a new stream",
    "chunk_frames": "give the same chunk_frames= (0: whole episodes), or begin a new stream",
    "overlap_frames": "give the same overlap_frames=, or begin a new stream",
}


def checked_position(state: object, identity: Mapping[str, Any]) -> int:
    """Returns the position in a state of the stream with this identity; raises StateMismatchError
    for every other one.
    """
    if not isinstance(state, Mapping) or "format" not in state:
        raise StateMismatchError(
            f"this is not a state of a lerobot_grain stream: {_described(state)}; expected "
            f"{_EXPECTED}"
        )
    if _COMPONENTS in state:
        raise StateMismatchError(
            "this is a state of a MixtureIterDataset, this stream is of one dataset; restore it "
            "in a mixture of the same components, or begin a new stream"
        )
    format_version = as_int(state["format"])
    if format_version != ORDER_VERSION:
        raise StateMismatchError(
            f"the state has format {state['format']!r}, this version of lerobot_grain reads "
            f"{ORDER_VERSION}; resume with the version of lerobot_grain that wrote it, or begin a "
            "new stream"
        )
    if "position" not in state:
        raise _truncated("position")
    check_identity(
        {key: value for key, value in state.items() if key not in ("format", "position")},
        identity,
    )
    position = as_position(state["position"])
    if position is None:
        raise StateMismatchError(
            f"the state has position {state['position']!r}; expected an int, 0 <= position < "
            "2**62; restore an older checkpoint"
        )
    return position


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Compares what a state says of a stream besides the position with what the stream is; raises
    StateMismatchError if that is not the same.
    """
    units = [str(each.get(_UNIT, "rows")) for each in (state, identity)]
    if units[0] != units[1]:
        raise StateMismatchError(
            f"the state counts {units[0]}, this stream counts {units[1]}; restore states of a "
            "LeRobotIterDataset (rows) and of an EpisodeIterDataset (chunks) in a stream of the "
            "same kind, or begin a new stream"
        )
    for name in _OPTIONAL:
        if (name in state) != (name in identity):
            without = ("without", "with")
            raise StateMismatchError(
                f"the state was taken {without[name in state]} {name}, this stream is "
                f"{without[name in identity]}; {_REMEDIES[name]}"
            )
    if missing := [name for name in identity if name not in state]:
        raise _truncated(missing[0])
    if unknown := [name for name in state if name not in identity]:
        raise StateMismatchError(
            f"the state has {unknown[0]!r}, which no lerobot_grain stream writes; expected "
            f"{_EXPECTED}"
        )
    for name, expected in identity.items():
        value = state[name]
        # Compared as what it is to be: an array of something else has no single truth value.
        if not (
            as_int(value) == expected
            if isinstance(expected, int)
            else isinstance(value, str) and value == expected
        ):
            raise StateMismatchError(
                f"the state was taken with {name} = {value!r}, this stream has {expected!r}; "
                f"{_REMEDIES.get(name, _REMEDY)}"
            )


def _truncated(name: str) -> StateMismatchError:
    return StateMismatchError(
        f"the state has no {name!r}: it is truncated, or of something else; expected {_EXPECTED}"
    )


def as_position(value: object) -> int | None:
    """Returns a position; `None` if it is none."""
    position = as_int(value)
    return None if position is None or not 0 <= position < _POSITION_LIMIT else position


def as_int(value: object) -> int | None:
    """Returns an int, also of the NumPy and JAX scalars that Orbax makes of one; `None` for
    everything else, bools included.
    """
    try:
        # NumPy below 2.3 has an index for its bools, with a warning.
        return None if isinstance(value, bool | np.bool_) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _described(state: object) -> str:
    if not isinstance(state, Mapping):
        return f"{type(state).__name__} {str(state)[:200]!r}"
    keys = ", ".join(repr(key) for key in list(state)[:8])
    for marks, transformation in _WRAPPERS:
        if marks <= state.keys():
            return f"it has the keys {keys}, as that of {transformation} has"
    return f"it has the keys {keys}" if keys else "it is empty"

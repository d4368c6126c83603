"""How fast the answers to one dataset usually come, and so how long an attempt waits for one.

The idea: a request that takes much longer than usual is sent again on another connection, which
mostly is faster than waiting. Later attempts are more patient, so that slow answers are read too.

It sends nothing and looks at no clock.
"""

from __future__ import annotations

# A read timeout is not made shorter than this for attempts: what is not cached at the CDN may take
# a second or two. The first one, which is followed by more patient ones, may be cut after this many
# times what answers usually take, and this many seconds.
_LEAST_PATIENCE_SECONDS = 2.0
_FIRST_PATIENCE = 10
_LEAST_FIRST_PATIENCE_SECONDS = 0.5
# The first attempts are also cut when they bring this many times fewer bytes a second than is
# usual, and the rest would take longer than their patience: a drip. Usual are those of bodies of a
# few KB and more, with the time until they begin; at first, those of a slow link.
_DRIP_PART = 10
_MEASURED_BYTES = 4 << 10
_SLOW_RATE = 100_000
# From this attempt on there is all the patience that the options allow.
_PATIENT_ATTEMPT = 4


class UsualPace:
    """The usual time until an answer begins, and the usual rate of bodies.

    Any number of threads; an update that is lost to another one does no harm.

    Attributes:
      seconds: from a request until its answer begins.
      bytes_per_second: of bodies, with the time until they begin.
    """

    def __init__(self) -> None:
        self.seconds = _LEAST_PATIENCE_SECONDS / _FIRST_PATIENCE
        self.bytes_per_second = float(_SLOW_RATE)

    def note_beginning(self, seconds: float) -> None:
        """Takes in how long an answer took to begin."""
        self.seconds += 0.1 * (seconds - self.seconds)

    def note_body(self, received: int, length: int, seconds: float) -> None:
        """Takes in how many bytes of a body of some length came within some time."""
        if length >= _MEASURED_BYTES:
            self.bytes_per_second += 0.1 * (received / seconds - self.bytes_per_second)

    def is_drip(self, received: int, seconds: float, num_attempts: int) -> bool:
        """Returns whether a body comes so much more slowly than usual that the n-th attempt may be
        cut.
        """
        return (
            num_attempts < _PATIENT_ATTEMPT
            and received * _DRIP_PART < self.bytes_per_second * seconds
        )

    def patience_seconds(self, timeout_seconds: float, num_attempts: int) -> float:
        """Returns the read timeout of the n-th attempt: little for the first, then a fourth, a
        half, and all of it.
        """
        least = min(timeout_seconds, _LEAST_PATIENCE_SECONDS)
        if num_attempts <= 1:
            return min(least, max(_LEAST_FIRST_PATIENCE_SECONDS, _FIRST_PATIENCE * self.seconds))
        return max(least, timeout_seconds * 0.5 ** max(0, _PATIENT_ATTEMPT - num_attempts))

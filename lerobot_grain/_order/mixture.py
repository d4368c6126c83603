"""The order of a mixture: (seed, weights, position) -> component and its own position, computed.

The positions of a mixture are counted from the one at which its present weights began, and cut into
turns of `TURN` slots. In every turn each component has the same number of slots, its *share*; which
slots these are is shuffled anew for every turn. A component is read in its own order, and its own
positions follow each other, however they are spread over the turns (docs/architecture/order.md,
"Mixtures").

Rules, as in `_order/shuffle`:
* A position is found without replaying the ones before it. Setting up a turn costs two sorts of its
  slots.
* People hold checkpoints of this order, so it cannot change; the tests hold a golden order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Rational

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.philox import Stream, permutation

# Slots of a turn. Shares are within one slot of the weights, so 65,536 give each component of a
# hundred its share to 0.15 percent.
TURN = 1 << 16
# With more components, shares of one slot would be too coarse.
MAX_COMPONENTS = 4096
# Turns that are kept: a reader asks for positions that go forward, and one before them for a state.
_KEPT_TURNS = 2


def shares_of(weights: Mapping[str, float | Rational]) -> dict[str, int]:
    """Returns how many slots of a turn each component has, by name, in the order of names: at least
    1, `TURN` in all.

    Weights are taken as exact fractions of their sum. Quotas below 1 become 1 and leave; the others
    share what is left by largest remainder, ties to the earlier name.

    Args:
      weights: by name of the component, finite and > 0; they need not sum to 1.

    Raises:
      InvalidRequestError: there are none, or too many, or a weight is out of its range.
    """
    if not 1 <= len(weights) <= MAX_COMPONENTS:
        raise InvalidRequestError(
            f"a mixture of {len(weights)} components: expected 1 to {MAX_COMPONENTS}"
        )
    exact = {name: _exact(name, weights[name]) for name in sorted(weights)}
    shares: dict[str, int] = {}
    left = TURN
    while True:
        others = {name: weight for name, weight in exact.items() if name not in shares}
        total = sum(others.values())
        quotas = {name: left * weight / total for name, weight in others.items()}
        small = [name for name, quota in quotas.items() if quota < 1]
        if not small:
            break
        shares.update(dict.fromkeys(small, 1))
        left -= len(small)
    shares.update({name: math.floor(quota) for name, quota in quotas.items()})
    missing = TURN - sum(shares.values())
    # The sort is stable, so ties stay in the order of names.
    by_remainder = sorted(quotas, key=lambda name: math.floor(quotas[name]) - quotas[name])
    for name in by_remainder[:missing]:
        shares[name] += 1
    return {name: shares[name] for name in exact}


def _exact(name: str, weight: object) -> Fraction:
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float | Rational | np.integer | np.floating)
        or not math.isfinite(weight)
        or (found := Fraction(weight.item() if isinstance(weight, np.generic) else weight)) <= 0
    ):
        raise InvalidRequestError(
            f"the weight of {name!r} is {weight!r}; expected a finite number > 0"
        )
    return found


class MixtureOrder:
    """The order from one beginning on: a value, but for the turns that it keeps.

    Args:
      seed: 0 <= seed < 2**64.
      begin: the position from which the shares hold.
      shares: slots of each component in a turn, `TURN` in all.
      starts: the own position of each component at `begin`.
    """

    def __init__(
        self, *, seed: int, begin: int, shares: Sequence[int], starts: Sequence[int]
    ) -> None:
        assert sum(shares) == TURN
        self.begin = begin
        self._seed = seed
        self._shares = np.array(shares, np.int64)
        self._starts = np.array(starts, np.int64)
        self._turns: dict[int, tuple[Integers, Integers]] = {}

    def places(self, positions: Integers) -> tuple[Integers, Integers]:
        """Returns of positions of the mixture, int64 `(n,)`, not before `begin`: the number of the
        component, and its own position, int64 `(n,)` each.
        """
        turns, slots = np.divmod(positions - self.begin, TURN)
        components = np.empty(len(positions), np.int64)
        own = np.empty(len(positions), np.int64)
        for turn in np.unique(turns).tolist():
            members = turns == turn
            arranged, earlier = self._turn(turn)
            found = arranged[slots[members]]
            components[members] = found
            own[members] = (
                self._starts[found] + turn * self._shares[found] + earlier[slots[members]]
            )
        return components, own

    def own_positions(self, position: int) -> Integers:
        """Returns the own position at which each component stands at a position of the mixture, not
        before `begin`: int64 `(components,)`.
        """
        turn, slot = divmod(position - self.begin, TURN)
        arranged, _ = self._turn(turn)
        taken = np.bincount(arranged[:slot], minlength=len(self._shares))
        found: Integers = self._starts + turn * self._shares + taken
        return found

    def _turn(self, number: int) -> tuple[Integers, Integers]:
        """Returns of each slot of a turn its component, and how many earlier slots of the turn that
        component has: int64 `(TURN,)` each.
        """
        kept = self._turns.get(number)
        if kept is None:
            components = np.repeat(np.arange(len(self._shares)), self._shares)
            arranged = components[
                permutation(TURN, Stream.MIXTURE, seed=self._seed, epoch=number, block=self.begin)
            ]
            by_component = np.argsort(arranged, kind="stable")
            firsts = np.cumsum(self._shares) - self._shares
            earlier = np.empty(TURN, np.int64)
            earlier[by_component] = np.arange(TURN) - np.repeat(firsts, self._shares)
            kept = arranged, earlier
            self._turns[number] = kept
            while len(self._turns) > _KEPT_TURNS:
                del self._turns[next(iter(self._turns))]
        return kept

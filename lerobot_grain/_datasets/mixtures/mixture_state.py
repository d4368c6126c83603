"""The state of a mixture: what it holds, and how it is compared with the mixture that it is to be
restored into.

    {"format": 1, "seed": 0, "position": 5120, "begin": 0, "components": {
        "arm": {"start": 0, "share": 49152, "identity": {...}},
        "hand": {"start": 0, "share": 16384, "identity": {...}}}}

From position `begin` on, each component has `share` slots of every turn, and there it stands at
`start` of its own positions. `identity` is the state of its stream without the position. A
component that was taken out has share 0; it continues at `start` if it returns. The state holds
nothing of the shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lerobot_grain._base.errors import StateMismatchError
from lerobot_grain._datasets.state import as_int, as_position, check_identity
from lerobot_grain._order.mixture import TURN, MixtureOrder

MIXTURE_VERSION = 1

_EXPECTED = "the dict that get_state of the same mixture returned"
_ALLOW = "or say MixtureIterDataset(..., allow_changes=True) to go on with the ones of this mixture"


@dataclass(frozen=True, slots=True)
class ComponentState:
    """The part of a state that belongs to a component: see above."""

    start: int
    share: int
    identity: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MixtureState:
    """The state of a mixture, but for the position.

    Attributes:
      seed: of the mixture.
      begin: the position from which the shares hold.
      components: by name, in the order of names; those that were taken out, too.
    """

    seed: int
    begin: int
    components: Mapping[str, ComponentState]

    @classmethod
    def new(
        cls, *, seed: int, shares: Mapping[str, int], identities: Mapping[str, Mapping[str, Any]]
    ) -> MixtureState:
        """Returns that of a mixture that was not begun."""
        return cls(
            seed,
            0,
            {name: ComponentState(0, share, identities[name]) for name, share in shares.items()},
        )

    @property
    def present(self) -> dict[str, ComponentState]:
        """The components that have slots."""
        return {name: each for name, each in self.components.items() if each.share}

    def order(self) -> MixtureOrder:
        """Returns the order from `begin` on, of the components that have slots."""
        present = self.present.values()
        return MixtureOrder(
            seed=self.seed,
            begin=self.begin,
            shares=[each.share for each in present],
            starts=[each.start for each in present],
        )

    def at(self, position: int) -> dict[str, Any]:
        """Returns the state at a position, as `get_state` does: ints, strings and dicts."""
        return {
            "format": MIXTURE_VERSION,
            "seed": self.seed,
            "position": position,
            "begin": self.begin,
            "components": {
                name: {"start": each.start, "share": each.share, "identity": {**each.identity}}
                for name, each in self.components.items()
            },
        }

    def changed_at(
        self,
        position: int,
        shares: Mapping[str, int],
        identities: Mapping[str, Mapping[str, Any]],
    ) -> MixtureState:
        """Returns the state whose components and shares are others from a position on."""
        own = dict(zip(self.present, self.order().own_positions(position).tolist(), strict=True))
        stopped = {
            name: replace(each, share=0, start=own.get(name, each.start))
            for name, each in self.components.items()
        }
        new = {
            name: ComponentState(
                stopped[name].start if name in stopped else 0, share, identities[name]
            )
            for name, share in shares.items()
        }
        return MixtureState(self.seed, position, dict(sorted({**stopped, **new}.items())))


def restored(
    state: object, mixture: MixtureState, *, allow_changes: bool
) -> tuple[MixtureState, int]:
    """Reads a state.

    Args:
      state: that `get_state` returned.
      mixture: that it is to be restored into, not begun.
      allow_changes: whether shares and components may differ.

    Returns:
      The mixture from there on, and the position.

    Raises:
      StateMismatchError: it is not a state of this mixture.
    """
    found, position = _parsed(state)
    if found.seed != mixture.seed:
        raise StateMismatchError(
            f"the state was taken with seed = {found.seed}, this mixture has {mixture.seed}; make "
            "the mixture with the same seed, or begin a new stream"
        )
    for name, component in mixture.components.items():
        if name in found.components:
            try:
                check_identity(found.components[name].identity, component.identity)
            except StateMismatchError as error:
                raise StateMismatchError(f"component {name!r}: {error}") from None
    shares = {name: each.share for name, each in mixture.components.items()}
    before = {name: each.share for name, each in found.present.items()}
    if before == shares:
        return found, position
    if not allow_changes:
        raise StateMismatchError(f"{_difference(before, shares)}; make the mixture so, {_ALLOW}")
    identities = {name: each.identity for name, each in mixture.components.items()}
    return found.changed_at(position, shares, identities), position


def _difference(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Says how the shares of a state differ from those of a mixture."""
    gone = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    if gone or new:
        return (
            f"the state was taken with the components {_listed(before)}, this mixture has "
            f"{_listed(now)}"
        )
    name = next(name for name in before if before[name] != now[name])
    return (
        f"the state was taken with {before[name]} of {TURN} slots for {name!r}, this mixture has "
        f"{now[name]}: its weights are others"
    )


def _listed(names: Mapping[str, int]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:8], f"and {len(shown) - 8} more"])


def _parsed(state: object) -> tuple[MixtureState, int]:
    """Returns what a state says, and its position."""
    if not isinstance(state, Mapping) or "components" not in state:
        keys = list(state)[:8] if isinstance(state, Mapping) else type(state).__name__
        raise StateMismatchError(
            f"this is not a state of a mixture: it has {keys}; expected {_EXPECTED}"
        )
    if as_int(state.get("format")) != MIXTURE_VERSION:
        raise StateMismatchError(
            f"the state of the mixture has format {state.get('format')!r}, this version of "
            f"lerobot_grain reads {MIXTURE_VERSION}; resume with the version that wrote it"
        )
    _check_keys(state, {"format", "seed", "position", "begin", "components"}, "the state")
    position = as_position(state["position"])
    begin = as_position(state["begin"])
    seed = as_int(state["seed"])
    if position is None or begin is None or seed is None or begin > position:
        raise StateMismatchError(
            f"the state of the mixture has seed {state['seed']!r}, begin {state['begin']!r}, "
            f"position {state['position']!r}; expected ints, 0 <= begin <= position < 2**62"
        )
    if not isinstance(state["components"], Mapping):
        raise StateMismatchError("the state of the mixture has no dict of components")
    components = {
        name: _parsed_component(name, state["components"][name])
        for name in sorted(state["components"])
    }
    if (total := sum(each.share for each in components.values())) != TURN:
        raise StateMismatchError(
            f"the shares in the state of the mixture sum to {total}; expected {TURN}; restore an "
            "older checkpoint"
        )
    return MixtureState(seed, begin, components), position


def _parsed_component(name: str, state: object) -> ComponentState:
    if not isinstance(state, Mapping):
        raise StateMismatchError(f"the state of component {name!r} is {state!r}; expected a dict")
    _check_keys(state, {"start", "share", "identity"}, f"the state of component {name!r}")
    start = as_position(state["start"])
    share = as_position(state["share"])
    identity = state["identity"]
    if isinstance(identity, Mapping):
        # As plain numbers again, whatever a checkpoint library has made of them.
        identity = {
            key: value if isinstance(value, str) else as_int(value)
            for key, value in identity.items()
        }
    if start is None or share is None or not isinstance(identity, Mapping):
        raise StateMismatchError(
            f"the state of component {name!r} has start {state['start']!r}, share "
            f"{state['share']!r}; expected ints >= 0, and a dict as identity"
        )
    return ComponentState(start, share, identity)


def _check_keys(state: Mapping[str, Any], expected: set[str], what: str) -> None:
    if state.keys() != expected:
        raise StateMismatchError(
            f"{what} has the keys {sorted(map(str, state))}; expected {sorted(expected)}"
        )

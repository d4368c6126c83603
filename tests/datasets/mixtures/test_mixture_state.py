"""Mixtures that are stopped and go on, with other weights, components and numbers of shards: random
runs against the definition, and the states that are refused.

The suite takes 50 cases, always the same ones, and with the marker `long` 200. More of them:

    LEROBOT_GRAIN_CASES=5000 python -m pytest tests/datasets/mixtures/test_mixture_state.py \
        --timeout=0
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset
from tests.order.test_mixture import MIXTURE, naive_shares
from tests.support.cases import runs
from tests.support.draws import draw_frame, word

LENGTHS = {"arm": [5, 9], "bin": [3], "car": [20, 2, 8], "dog": [1], "eye": [50]}
# Components with an order of their own kind are mixed as any other.
SAMPLING: dict[str, dict[str, Any]] = {
    "arm": {"weights": {0: 2.5, 1: 0.3}},
    "car": {"stride": 3},
    "eye": {"valid_rows": [frame % 7 < 4 for frame in range(50)]},
}
SHUFFLE = lg.Shuffle(seed=1, clip_length=2, num_parts=2, buffer_size=8)
FPS = 30
GOAL = lg.UniformDraw(1 / FPS, 8 / FPS)


@pytest.fixture(scope="module", name="components")
def _components(tmp_path_factory: pytest.TempPathFactory) -> dict[str, lg.LeRobotIterDataset]:
    where = tmp_path_factory.mktemp("state")
    return {
        name: lg.LeRobotIterDataset(
            write_dataset(where / name, episode_lengths=lengths, cameras=[]).directory,
            shuffle=SHUFFLE,
            windows={"goal": lg.Window("action", GOAL)},
            **SAMPLING.get(name, {}),
        )
        for name, lengths in LENGTHS.items()
    }


def rows_of(dataset: lg.LeRobotIterDataset) -> list[int]:
    """The rows of the first epochs of a component alone."""
    source = dataset.parents[0].order
    with contextlib.closing(iter(source)) as rows:
        return list(itertools.islice(rows, 4000))


class Model:
    """A mixture by its definition, one position after the other, with no state but that."""

    def __init__(self, rows: dict[str, list[int]], weights: dict[str, float], seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._own = dict.fromkeys(rows, 0)
        self.position = 0
        self.change(weights)

    def change(self, weights: dict[str, float]) -> None:
        shares = naive_shares(weights)
        if getattr(self, "_shares", None) == shares:
            return
        self._shares = shares
        self._begin = self.position

    def take(self, count: int) -> list[tuple[str, int]]:
        names = list(self._shares)
        found = []
        self.own_positions: list[int] = []  # of what was taken last
        for _ in range(count):
            turn, slot = divmod(self.position - self._begin, 65536)
            assert turn == 0, "the runs are short"
            if slot == 0:
                slots = np.repeat(np.arange(len(names)), list(self._shares.values()))
                counter = self._begin * 2**64 + MIXTURE * 2**192
                words = np.random.Philox(key=self._seed, counter=counter).random_raw(65536)
                self._turn = slots[np.argsort(words, kind="stable")]
            name = names[self._turn[slot]]
            found.append((name, self._rows[name][self._own[name]]))
            self.own_positions.append(self._own[name])
            self._own[name] += 1
            self.position += 1
        return found


class MixtureRuns(RuleBasedStateMachine):
    """A mixture that is stopped, changed and restored on other numbers of shards."""

    datasets: dict[str, lg.LeRobotIterDataset]
    rows: dict[str, list[int]]

    @initialize(
        weights=st.dictionaries(st.sampled_from(sorted(LENGTHS)), st.floats(0.01, 100), min_size=1),
        seed=st.sampled_from([0, 1, 2**64 - 1]),
    )
    def begin(self, weights: dict[str, float], seed: int) -> None:
        self.seed = seed
        self.weights = weights
        self.model = Model(self.rows, weights, seed)
        self.state: dict[str, Any] | None = None

    @rule(
        count=st.sampled_from([1, 2, 3, 5]),
        steps=st.integers(0, 40),
        in_blocks=st.booleans(),
    )
    def read(self, count: int, steps: int, in_blocks: bool) -> None:
        """All shards take so many examples, and stop."""
        # Weights that nobody read with leave no trace in a state.
        self.model.change(self.weights)
        expected = self.model.take(count * steps)
        states = []
        for number in range(count):
            iterator = self.mixture(number, count)
            if in_blocks:
                rows, state, goals = blocks_of(iterator, steps)
                own_positions = self.model.own_positions[number::count]
                assert goals == list(map(goal_of, rows, own_positions))
            else:
                rows, state = singles_of(iterator, steps)
            assert rows == expected[number::count]
            states.append(state)
        assert all(state == states[0] for state in states)
        self.state = json.loads(json.dumps(states[0]))

    @rule(
        weights=st.dictionaries(st.sampled_from(sorted(LENGTHS)), st.floats(0.01, 100), min_size=1)
    )
    def change(self, weights: dict[str, float]) -> None:
        """Other weights from the next reading on; components come and go."""
        self.weights = weights

    @rule(weight=st.sampled_from([0.5, 2, 3]))
    def scale(self, weight: float) -> None:
        """The same shares."""
        if naive_shares(self.weights) == naive_shares(
            scaled := {name: weight * each for name, each in self.weights.items()}
        ):
            self.weights = scaled

    def mixture(self, number: int, count: int) -> Any:
        dataset = lg.MixtureIterDataset(
            {name: self.datasets[name] for name in self.weights},
            self.weights,
            seed=self.seed,
            shard_options=grain.sharding.ShardOptions(number, count),
            allow_changes=True,
        )
        (order,) = dataset.parents
        iterator = iter(order)
        if self.state is not None:
            iterator.set_state(self.state)
        return iterator


def singles_of(iterator: Any, count: int) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    return list(itertools.islice(iterator, count)), iterator.get_state()


def goal_of(row: tuple[str, int], own_position: int) -> int:
    """The frame of the goal of a row of a component, by the definition."""
    name, frame = row
    for length in LENGTHS[name]:
        if frame < length:
            drawn, _ = draw_frame(
                GOAL, word("goal", SHUFFLE.seed, own_position), frame, length, fps=FPS
            )
            return drawn
        frame -= length
    raise AssertionError(row)


def blocks_of(iterator: Any, count: int) -> tuple[list[tuple[str, int]], dict[str, Any], list[int]]:
    """The same through blocks, of which the last is not taken to its end; and frames of goals."""
    if count == 0:
        return [], iterator.get_state(), []
    names = [component.name for component in iterator._components]
    parts, state_after = iterator.next_block()
    found: list[Any] = [None] * sum(len(part.places) for part in parts)
    goals = [0] * len(found)
    for source, block, places in parts:
        repository = iterator._components[source].reading.repository
        rows = repository.episodes.first_rows[block.episodes] + block.anchor_frames
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            found[place] = names[source], row
        drawn = block.named["goal"].frames[:, 0].tolist()
        for place, goal in zip(places.tolist(), drawn, strict=True):
            goals[place] = goal
    return found[:count], state_after(count), goals[:count]


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_random_runs_equal_the_definition(
    components: dict[str, lg.LeRobotIterDataset], count: int
) -> None:
    class Runs(MixtureRuns):
        datasets = components
        rows = {name: rows_of(dataset) for name, dataset in components.items()}  # noqa: RUF012

    test = Runs.TestCase()
    test.settings = runs(count)
    test.runTest()


# --- states --------------------------------------------------------------------------------------

WEIGHTS = {"arm": 3.0, "bin": 1.0}


def order_of(
    components: dict[str, lg.LeRobotIterDataset],
    weights: dict[str, float] = WEIGHTS,
    **arguments: Any,
) -> Any:
    chosen = {name: components[name] for name in weights}
    return iter(lg.MixtureIterDataset(chosen, weights, **arguments).parents[0])


def test_a_state(components: dict[str, lg.LeRobotIterDataset]) -> None:
    iterator = order_of(components, seed=5)
    next(iterator)
    identity = {
        key: value
        for key, value in iter(components["arm"]).get_state().items()
        if key != "position"
    }
    state = iterator.get_state()
    assert list(state["components"]) == ["arm", "bin"]
    assert {**state, "components": state["components"]["arm"]} == {
        "format": 1,
        "seed": 5,
        "position": 1,
        "begin": 0,
        "components": {"start": 0, "share": 49152, "identity": identity},
    }


def test_changes_that_were_not_announced_are_refused(
    components: dict[str, lg.LeRobotIterDataset],
) -> None:
    iterator = order_of(components)
    list(itertools.islice(iterator, 10))
    state = iterator.get_state()
    for weights, text in (
        ({"arm": 1.0, "bin": 1.0}, "with 49152 of 65536 slots for 'arm', this mixture has 32768"),
        ({"arm": 3.0}, "with the components 'arm', 'bin', this mixture has 'arm'; make"),
        ({**WEIGHTS, "car": 1.0}, "this mixture has 'arm', 'bin', 'car'; make"),
    ):
        other = order_of(components, weights)
        list(itertools.islice(other, 3))
        before = other.get_state()
        with pytest.raises(lg.StateMismatchError, match=text):
            other.set_state(state)
        assert other.get_state() == before
        order_of(components, weights, allow_changes=True).set_state(state)


def test_a_component_goes_on_where_it_was_taken_out(
    components: dict[str, lg.LeRobotIterDataset],
) -> None:
    rows = rows_of(components["bin"])
    iterator = order_of(components)
    first = [row for name, row in itertools.islice(iterator, 30) if name == "bin"]
    alone = order_of(components, {"arm": 1.0}, allow_changes=True)
    alone.set_state(iterator.get_state())
    assert {name for name, _ in itertools.islice(alone, 7)} == {"arm"}
    assert alone.get_state()["components"]["bin"]["share"] == 0
    back = order_of(components, allow_changes=True)
    back.set_state(alone.get_state())
    assert back.get_state()["begin"] == 37
    rest = [row for name, row in itertools.islice(back, 40) if name == "bin"]
    assert first + rest == rows[: len(first) + len(rest)]


def _without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in path[:-1]:
            state = state[name]
        del state[path[-1]]

    return change


def _with(value: object, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in path[:-1]:
            state = state[name]
        state[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_without("components"), "this is not a state of a mixture: it has"),
        (_with(2, "format"), "has format 2, this version of lerobot_grain reads 1"),
        (_without("format"), "has format None"),
        (_without("seed"), "the state has the keys .*; expected"),
        (_with(1, "extra"), "the state has the keys"),
        (_with(8, "seed"), "the state was taken with seed = 8, this mixture has 0"),
        (_with(-1, "position"), "position -1; expected ints"),
        (_with(2**62, "position"), "expected ints"),
        (_with(9, "begin"), "begin 9, position 4; expected ints, 0 <= begin <= position"),
        (_with(True, "position"), "position True"),
        (_with("4", "position"), "position '4'"),
        (_with([], "components"), "has no dict of components"),
        (_with(1, "components", "arm"), "the state of component 'arm' is 1; expected a dict"),
        (_without("components", "bin", "start"), "the state of component 'bin' has the keys"),
        (_with(-1, "components", "bin", "start"), "component 'bin' has start -1, share 16384"),
        (_with(7, "components", "bin", "share"), "the shares .* sum to 49159; expected 65536"),
        (_with(None, "components", "bin", "identity"), "and a dict as identity"),
        (
            _with("0" * 40, "components", "bin", "identity", "commit"),
            "component 'bin': the state was taken with commit = '0000",
        ),
        (
            _without("components", "arm", "identity", "num_rows"),
            "component 'arm': the state has no 'num_rows'",
        ),
        (
            _with(1, "components", "arm", "identity", "new"),
            "component 'arm': the state has 'new', which",
        ),
    ],
)
def test_states_that_are_none(
    components: dict[str, lg.LeRobotIterDataset],
    change: Callable[[dict[str, Any]], None],
    text: str,
) -> None:
    iterator = order_of(components)
    list(itertools.islice(iterator, 4))
    before = iterator.get_state()
    state = copy.deepcopy(before)
    change(state)
    with pytest.raises(lg.StateMismatchError, match=text):
        iterator.set_state(state)
    assert iterator.get_state() == before


def test_states_of_streams_and_mixtures_are_told_apart(
    components: dict[str, lg.LeRobotIterDataset],
) -> None:
    mixture = order_of(components)
    stream = iter(components["arm"])
    with pytest.raises(lg.StateMismatchError, match="this is not a state of a mixture: it has"):
        mixture.set_state(stream.get_state())
    with pytest.raises(lg.StateMismatchError, match=r"^this is a state of a MixtureIterDataset"):
        stream.set_state(mixture.get_state())
    with pytest.raises(lg.StateMismatchError, match="it has list"):
        mixture.set_state([1])


def test_numbers_of_checkpoint_libraries(components: dict[str, lg.LeRobotIterDataset]) -> None:
    iterator = order_of(components)
    expected = list(itertools.islice(iterator, 8))
    iterator = order_of(components)
    list(itertools.islice(iterator, 4))

    def as_arrays(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: as_arrays(each) for key, each in value.items()}
        return np.asarray(value) if isinstance(value, int) else value

    iterator.set_state(as_arrays(iterator.get_state()))
    json.dumps(iterator.get_state())
    assert list(itertools.islice(iterator, 4)) == expected[4:]

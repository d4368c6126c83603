"""Normalization: what each mode does, that it comes back, and that it is at home in JAX."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import lerobot_grain as lg
from lerobot_grain._base.versions import jax_enable_x64
from lerobot_grain.testing import EXTRA_FEATURES, Camera, write_dataset

STATS = {
    "observation.state": {
        "mean": np.array([1.0, -2.0, 5.0]),
        "std": np.array([0.5, 4.0, 0.0]),
        "min": np.array([-1.0, -10.0, 5.0]),
        "max": np.array([3.0, 6.0, 5.0]),
        "q01": np.array([-0.5, -8.0, 5.0]),
        "q10": np.array([0.0, -7.0, 5.0]),
        "q90": np.array([2.0, 1.0, 5.0]),
        "q99": np.array([2.5, 4.0, 5.0]),
    },
    "observation.images.top": {
        "mean": np.full((3, 1, 1), 0.25),
        "std": np.full((3, 1, 1), 0.125),
        "min": np.zeros((3, 1, 1)),
        "max": np.ones((3, 1, 1)),
    },
    "next.reward": {"mean": np.array([0.5]), "std": np.array([2.0])},
}
STATE, TOP = "observation.state", "observation.images.top"
LEROBOT = {
    "mean_std": None,
    "min_max": ("min", "max"),
    "quantiles": ("q01", "q99"),
    "quantile10": ("q10", "q90"),
}


def state(*axes: int) -> np.ndarray:
    """Returns float32 `(*axes, 3)` within the statistics."""
    return np.random.default_rng(0).uniform([-1, -10, 5], [3, 6, 5], (*axes, 3)).astype(np.float32)


def pictures(*axes: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*axes, 6, 5, 3), np.uint8)


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(), (8,), (8, 4), (2, 8, 4)], ids=str)
@pytest.mark.parametrize("mode", LEROBOT)
def test_modes_of_numbers(mode: Any, axes: tuple[int, ...]) -> None:
    normalizer = lg.normalizer(STATS, {STATE: mode})
    x = state(*axes)
    batch = {STATE: x, "task": "pick", "index": np.arange(3)}
    found = normalizer.normalize(batch)
    statistics = STATS[STATE]
    # lerobot's formula, but for its epsilon.
    if bounds := LEROBOT[mode]:
        low, high = (statistics[name] for name in bounds)
        expected = 2 * (x - low) / (high - low + 1e-30) - 1
    else:
        expected = (x - statistics["mean"]) / (statistics["std"] + 1e-30)
    assert isinstance(found[STATE], jax.Array)
    assert (found[STATE].dtype, found[STATE].shape) == (jnp.float32, x.shape)
    np.testing.assert_allclose(found[STATE][..., :2], expected[..., :2], rtol=1e-5, atol=1e-6)
    # The third never changes.
    assert (found[STATE][..., 2] == 0).all()
    back = normalizer.unnormalize(found)
    np.testing.assert_allclose(back[STATE], x, rtol=1e-6, atol=1e-6)
    assert (back[STATE][..., 2] == 5).all()
    # All else passes through.
    assert found["task"] is batch["task"]
    assert found["index"] is batch["index"]
    assert batch[STATE] is x


@pytest.mark.parametrize(
    ("mode", "mean", "std"),
    [
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("zero_one", 0, 1),
        ("minus_one_one", 0.5, 0.5),
        ("mean_std", 0.25, 0.125),
        ("min_max", 0.5, 0.5),
    ],
)
def test_modes_of_cameras(mode: Any, mean: Any, std: Any) -> None:
    normalizer = lg.normalizer(STATS, {TOP: mode})
    x = pictures(2, 3)
    found = normalizer.normalize({TOP: x})[TOP]
    scaled = x.astype(np.float64) / 255
    assert (found.dtype, found.shape) == (jnp.float32, x.shape)
    np.testing.assert_allclose(found, (scaled - mean) / std, atol=2e-6)
    # Floating point is in [0, 1] already.
    np.testing.assert_allclose(
        normalizer.normalize({TOP: scaled.astype(np.float32)})[TOP], found, atol=2e-6
    )
    np.testing.assert_allclose(normalizer.unnormalize({TOP: found})[TOP], scaled, atol=1e-6)


def test_identity_keeps_the_dtype() -> None:
    normalizer = lg.normalizer(STATS, {TOP: "identity", STATE: "identity"})
    assert normalizer.to_dict() == {"values": {}, "cameras": {}}
    assert normalizer.normalize({TOP: (x := pictures())})[TOP] is x


def test_scalars_have_no_axis_of_their_own() -> None:
    normalizer = lg.normalizer(STATS, {"next.reward": "mean_std"})
    for shape in [(), (4,), (4, 2)]:
        found = normalizer.normalize({"next.reward": np.full(shape, 4.5, np.float32)})[
            "next.reward"
        ]
        assert found.shape == shape
        assert (found == 2).all()


@pytest.mark.parametrize(
    ("mode", "statistics", "number"),
    [
        ("mean_std", {"mean": [0.1], "std": [0.0]}, 0.1),
        ("min_max", {"min": [-7.3], "max": [-7.3]}, -7.3),
        ("quantiles", {"q01": [1e-3], "q99": [1e-3]}, 1e-3),
        # Sums make this of a number that never changes.
        ("mean_std", {"mean": [0.30001], "std": [1e-9], "min": [0.3], "max": [0.3]}, 0.3),
        ("mean_std", {"mean": [0.3], "std": [1e-40]}, 0.3),
    ],
)
def test_what_never_changes_comes_back_exactly(
    mode: Any, statistics: dict[str, list[float]], number: float
) -> None:
    normalizer = lg.normalizer(
        {"action": {name: np.array(value) for name, value in statistics.items()}}, {"action": mode}
    )
    for x in (number, number + 1, -1e30):
        assert normalizer.normalize({"action": np.float32(x)})["action"] == 0
    for y in (0.0, 1.0, -50.0):
        assert normalizer.unnormalize({"action": np.float32(y)})["action"] == np.float32(number)


# --- defaults ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    directory = tmp_path_factory.mktemp("normalize") / "data"
    camera = Camera(key=TOP, height=24, width=24, kind="image")
    write_dataset(
        directory,
        episode_lengths=[6, 5],
        cameras=[camera],
        features=EXTRA_FEATURES,
        state_size=3,
        action_size=2,
    )
    return lg.open_repository(directory)


def test_defaults_of_a_repository(repository: lg.Repository) -> None:
    normalizer = lg.normalizer(repository)
    assert set(normalizer.values) == {STATE, "action", "observation.matrix"}
    assert set(normalizer.cameras) == {TOP}
    batch = next(iter(lg.LeRobotIterDataset(repository, num_epochs=1).batch(11)))
    found = normalizer.normalize(batch)
    for key in normalizer.values:
        flat = np.asarray(found[key]).reshape(-1, found[key].shape[-1])
        np.testing.assert_allclose(flat.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(flat.std(0), 1, atol=1e-5)
    np.testing.assert_allclose(
        found[TOP], lg.normalizer({}, {TOP: "imagenet"}).normalize(batch)[TOP]
    )
    for key in set(batch) - {*normalizer.values, TOP}:
        assert found[key] is batch[key]


def test_defaults_of_statistics(repository: lg.Repository) -> None:
    assert repository.stats is not None
    assert jax.tree.all(
        jax.tree.map(np.array_equal, lg.normalizer(repository.stats), lg.normalizer(repository))
    )
    depth = {
        "observation.images.depth": {
            "mean": np.full((1, 1, 1), 1400.0),
            "std": np.full((1, 1, 1), 200.0),
        }
    }
    found = lg.normalizer(depth).normalize(
        {"observation.images.depth": np.full((2, 4, 4, 1), 1800, np.float32)}
    )
    assert (found["observation.images.depth"] == 2).all()


def test_statistics_in_place_of_those_of_the_source(repository: lg.Repository) -> None:
    relative = {"action": {"q01": np.array([-1.0, -2.0]), "q99": np.array([1.0, 6.0])}}
    for source in (repository, repository.stats):
        found = lg.normalizer(source, {"action": "quantiles"}, stats=relative)
        assert set(found.cameras) == {TOP}
        assert [found.values["action"][name].tolist() for name in ("center", "width")] == [
            [0, 2],
            [1, 4],
        ]
        assert np.array_equal(
            found.values[STATE]["width"], lg.normalizer(source).values[STATE]["width"]
        )


# --- in JAX --------------------------------------------------------------------------------------


@pytest.fixture
def normalizer() -> lg.Normalizer:
    return lg.normalizer(STATS)


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    return {STATE: state(8, 2), TOP: pictures(8)}


def test_jit_closed_over_and_as_an_argument(
    normalizer: lg.Normalizer, batch: dict[str, np.ndarray]
) -> None:
    expected = normalizer.normalize(batch)
    for found in (
        jax.jit(normalizer.normalize)(batch),
        jax.jit(lambda n, b: n.normalize(b))(normalizer, batch),
    ):
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)


def test_vmap(normalizer: lg.Normalizer, batch: dict[str, np.ndarray]) -> None:
    found = jax.vmap(normalizer.normalize)(batch)
    for key, value in normalizer.normalize(batch).items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)


def test_gradients_are_finite(normalizer: lg.Normalizer) -> None:
    with jax.debug_nans(True), jax.debug_infs(True):
        for function, expected in (
            (normalizer.normalize, [2, 0.25, 0]),
            (normalizer.unnormalize, [0.5, 4, 0]),
        ):
            found = jax.grad(lambda x, function=function: function({STATE: x})[STATE].sum())(
                jnp.asarray(state())
            )
            np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32", "uint8"])
def test_float32_comes_out(normalizer: lg.Normalizer, dtype: str) -> None:
    x = jnp.asarray([1, 2, 5], dtype)
    found = normalizer.normalize({STATE: x})[STATE]
    assert found.dtype == jnp.float32
    # Bytes that are no image are not scaled.
    assert found.tolist() == [0, 1, 0]
    assert normalizer.unnormalize({STATE: found})[STATE].tolist() == [1, 2, 5]


def test_float64_stays(normalizer: lg.Normalizer) -> None:
    with jax_enable_x64(True):
        assert normalizer.normalize({STATE: state().astype(np.float64)})[STATE].dtype == jnp.float64


def test_shardings_stay(normalizer: lg.Normalizer, batch: dict[str, np.ndarray]) -> None:
    sharding = NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), ("data",)), PartitionSpec("data")
    )
    placed = jax.device_put(batch, sharding)
    for function in (normalizer.normalize, jax.jit(normalizer.normalize)):
        for key, value in function(placed).items():
            assert value.sharding.is_equivalent_to(sharding, value.ndim), key


# --- saved ---------------------------------------------------------------------------------------


def through_json(saved: Any, directory: Path) -> Any:
    del directory
    return json.loads(json.dumps(jax.tree.map(np.ndarray.tolist, saved)))


def through_orbax(saved: Any, directory: Path) -> Any:
    with ocp.CheckpointManager(directory) as checkpoints:
        checkpoints.save(0, args=ocp.args.StandardSave(saved))
        checkpoints.wait_until_finished()
        return checkpoints.restore(0, args=ocp.args.StandardRestore())


@pytest.mark.parametrize(
    "through", [lambda saved, _: saved, through_json, through_orbax], ids=["dict", "json", "orbax"]
)
@pytest.mark.parametrize(
    "modes", [{}, {TOP: "identity"}, {STATE: "quantiles", TOP: "zero_one"}], ids=str
)
def test_saved_and_made_again(through: Any, modes: Any, tmp_path: Path) -> None:
    normalizer = lg.normalizer(STATS, modes)
    again = lg.Normalizer.from_dict(through(normalizer.to_dict(), tmp_path))
    assert jax.tree.structure(again) == jax.tree.structure(normalizer)
    for found, expected in zip(jax.tree.leaves(again), jax.tree.leaves(normalizer), strict=True):
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "saved",
    [
        {"values": {"action": {"center": [0.0]}}},
        {"values": 3},
        {"action": {}},
        {"values": {"a": []}},
    ],
    ids=str,
)
def test_what_is_not_a_saved_normalizer(saved: Any) -> None:
    with pytest.raises(
        lg.InvalidRequestError, match=r"from_dict: .*expected what to_dict\(\) returns"
    ):
        lg.Normalizer.from_dict(saved)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stats", "modes", "text"),
    [
        (
            STATS,
            {STATE: "std"},
            r"modes\['observation.state'\]='std': expected one of mean_std, min_max, ",
        ),
        (
            STATS,
            {"action": "mean_std"},
            r"statistics: there is no feature 'action' of numbers or frames; there are "
            r"observation.state, ",
        ),
        (STATS, {"actoin": "identity"}, "there is no feature 'actoin'"),
        (
            STATS,
            {STATE: "imagenet"},
            r"modes\['observation.state'\]='imagenet': that is for cameras of three channels, and ",
        ),
        (
            STATS,
            {"next.reward": "quantiles"},
            r"statistics: feature 'next.reward' has no statistic 'q01', which 'quantiles' needs; "
            r"it has mean, std. Pass stats=compute_stats\(",
        ),
    ],
    ids=["mode", "missing", "typing error", "no camera", "no quantiles"],
)
def test_requests_that_cannot_be(stats: Any, modes: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.normalizer(stats, modes)


@pytest.mark.parametrize(
    "statistics",
    [
        {"mean": [0.0, np.nan], "std": [1.0, 1.0]},
        {"mean": [0.0, 1.0], "std": [1.0, -1.0]},
        {"mean": [0.0, 1.0], "std": [1.0, 1.0, 1.0]},
    ],
    ids=["not finite", "negative", "shapes"],
)
def test_malformed_statistics(statistics: Any) -> None:
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"statistics: feature 'action' has mean \[.*\] and std \[.*\]; expected finite "
        r"numbers",
    ):
        lg.normalizer({"action": statistics})


@pytest.mark.parametrize(
    ("mean", "bound"), [([0.0, 1.0], [0.5]), ([0.5], [0.5, 0.5])], ids=["one bound", "more bounds"]
)
def test_bounds_of_another_shape_than_the_mean(mean: list[float], bound: list[float]) -> None:
    statistics = {"mean": mean, "std": np.ones(len(mean)), "min": bound, "max": bound}
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"feature 'action' has mean .*, min .* and max .*; expected as many of each",
    ):
        lg.normalizer({"action": statistics})  # type: ignore[dict-item]


def test_a_repository_without_statistics(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", episode_lengths=[3], cameras=[], statistics=False)
    repository = lg.open_repository(tmp_path / "data")
    text = (
        r"data: feature 'observation.state' has no statistic 'mean', .*; it has none. "
        r"Pass stats=compute_stats\(repository\), it has all"
    )
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.normalizer(repository)
    assert set(lg.normalizer(repository, stats=lg.compute_stats(repository)).values) == {
        STATE,
        "action",
    }


MATRIX, REWARD = "observation.matrix", "next.reward"
ODD_SHAPES = {
    "one number": (
        STATE,
        {"mean": [0.5], "std": [2.0]},
        r"\(3,\), and its statistic 'mean' \(1,\); expected \(3,\)\. ",
    ),
    "a scalar": (
        "action",
        {"mean": 0.5, "std": 2.0},
        r"\(2,\), and its statistic 'mean' \(\); expected \(2,\)\. ",
    ),
    "one deviation": (
        "action",
        {"mean": [0.5, 1.0], "std": [2.0]},
        r"\(2,\), and its statistic 'std' \(1,\); expected",
    ),
    "one least": (
        "action",
        {"mean": [0.5, 1], "std": [2, 1], "min": [0.5]},
        r"\(2,\), and its statistic 'min' \(1,\); expected",
    ),
    "of a matrix": (
        MATRIX,
        {"mean": [0.5], "std": [2.0]},
        r"and its statistic 'mean' \(1,\); expected \(2, 3\) or \(3,\)\. ",
    ),
    "a row": (
        "action",
        {"mean": [[0.5, 1.0]], "std": [[2.0, 1.0]]},
        r"\(2,\), and its statistic 'mean' \(1, 2\); expected",
    ),
    "of two": (
        REWARD,
        {"mean": [0.5, 1.0], "std": [2.0, 1.0]},
        r"\(1,\), and its statistic 'mean' \(2,\); expected one number\. ",
    ),
    "channels": (
        TOP,
        {"mean": [[[0.5]]], "std": [[[0.1]]]},
        r"'mean' \(1, 1, 1\); expected \(3, 1, 1\) or \(3,\)\. ",
    ),
}


@pytest.fixture
def with_stats(tmp_path: Path) -> Any:
    """A dataset with other statistics of some features."""

    def write(**changed: Any) -> lg.Repository:
        camera = Camera(key=TOP, height=24, width=24, kind="image")
        path = tmp_path / "data/meta/stats.json"
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        write_dataset(
            tmp_path / "data",
            episode_lengths=[3],
            cameras=[camera],
            features=EXTRA_FEATURES,
            state_size=3,
            action_size=2,
        )
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        return lg.open_repository(tmp_path / "data")

    return write


@pytest.mark.parametrize("name", ODD_SHAPES)
def test_statistics_of_another_shape_than_their_feature(with_stats: Any, name: str) -> None:
    """One number would stand for all numbers of the feature, and nobody would see it."""
    key, statistics, text = ODD_SHAPES[name]
    repository = with_stats(**{key: statistics})
    with pytest.raises(
        lg.DatasetFormatError, match=rf"data, meta/stats\.json: feature '{key}' has shape .*{text}"
    ):
        lg.normalizer(repository, {key: "mean_std"})
    # Where others or none are needed, they are no error.
    lg.normalizer(repository, {key: "identity"})
    lg.normalizer(repository, {key: "mean_std"}, stats=lg.compute_stats(repository, features=[key]))


def test_statistics_of_all_axes_or_of_the_last(with_stats: Any) -> None:
    for mean in ([1.0, 2.0, 3.0], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]):
        repository = with_stats(
            **{
                MATRIX: {"mean": mean, "std": np.ones_like(mean).tolist()},
                REWARD: {"mean": 1.0, "std": 2.0},
            }
        )
        found = lg.normalizer(repository, {REWARD: "mean_std"}).normalize(
            {MATRIX: np.zeros((4, 2, 3), np.float32), REWARD: np.float32(5)}
        )
        assert np.array_equal(found[MATRIX], np.broadcast_to(-np.array(mean), (4, 2, 3)))
        assert found[REWARD] == 2


def test_one_number_in_place_of_the_statistics_of_a_feature(repository: lg.Repository) -> None:
    one = {"action": {"mean": np.array([1.0]), "std": np.array([2.0])}}
    text = (
        r"feature 'action' has shape \(2,\), and its statistic 'mean' \(1,\); expected "
        r"\(2,\)\. If they .*: normalizer\(stats\)"
    )
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.normalizer(repository, stats=one)
    # Statistics of an action that a transformation has padded.
    padded = {"action": {"mean": np.zeros(8), "std": np.ones(8)}}
    assert lg.normalizer(repository, stats=padded).values["action"]["width"].shape == (8,)


def test_a_feature_that_the_repository_does_not_have(repository: lg.Repository) -> None:
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"there is no feature 'observation\.images\.tpo' of numbers or frames; there are "
        r"observation\.state, ",
    ):
        lg.normalizer(repository, {"observation.images.tpo": "zero_one"})


@pytest.mark.parametrize(
    ("found", "keys", "text"),
    [
        (
            {STATE: state(4)[..., :2]},
            None,
            r"'observation.state' has shape \(4, 2\); expected \(\.\.\., 3\), as its statistics",
        ),
        ({STATE: np.float32(0)}, None, r"'observation.state' has shape \(\); expected"),
        (
            {TOP: np.zeros((2, 3, 6, 5), np.uint8)},
            None,
            r"'observation.images.top' has shape \(2, 3, 6, 5\); expected \(\.\.\., 3\)",
        ),
        (
            {STATE: state(4)},
            ["action"],
            "'action' is not in the normalizer, which has observation.state, "
            "observation.images.top",
        ),
        ({"index": 1}, [STATE], "'observation.state' is not in the batch, which has index"),
    ],
    ids=["size", "axes", "channels first", "not known", "not there"],
)
def test_batches_that_do_not_fit(
    normalizer: lg.Normalizer, found: Any, keys: Any, text: str
) -> None:
    for function in (normalizer.normalize, normalizer.unnormalize):
        with pytest.raises(lg.InvalidRequestError, match=text):
            function(found, keys)


def test_only_some_keys(normalizer: lg.Normalizer, batch: dict[str, np.ndarray]) -> None:
    found = normalizer.normalize(batch, [STATE])
    assert found[TOP] is batch[TOP]
    assert found[STATE] is not batch[STATE]


def test_goals_are_normalized_as_their_features() -> None:
    windows = {
        "goal": lg.Window([STATE, TOP, "next.reward"], lg.LastFrame()),
        "near": lg.Window(STATE, [0.0, 0.1]),
    }
    normalizer = lg.normalizer(STATS, windows=windows)
    batch = {
        STATE: state(4),
        f"goal.{STATE}": state(4),
        "near": state(4, 2),
        TOP: pictures(4),
        f"goal.{TOP}": pictures(4),
        "goal.next.reward": np.ones(4, np.float32),
        "goal_seconds": np.ones(4, np.float32),
    }
    found = normalizer.normalize(batch)
    assert np.array_equal(found[STATE], found[f"goal.{STATE}"])
    assert np.array_equal(found[TOP], found[f"goal.{TOP}"])
    assert np.array_equal(
        found["near"], lg.normalizer(STATS).normalize({STATE: state(4, 2)})[STATE]
    )
    # Without a mode of its own the feature is left as it is, and so is its goal.
    for key in ("goal.next.reward", "goal_seconds"):
        assert found[key] is batch[key]
    again = lg.Normalizer.from_dict(normalizer.to_dict()).unnormalize(found)
    assert np.allclose(again[f"goal.{STATE}"][..., :2], state(4)[..., :2], atol=1e-5)
    # Windows that are not named stay as they are.
    assert lg.normalizer(STATS).normalize(batch)["near"] is batch["near"]

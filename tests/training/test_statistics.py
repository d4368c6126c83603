"""Statistics of rows and of streams: what NumPy and lerobot say of the same numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import numpy.typing as npt
import pytest

import lerobot_grain as lg
from lerobot_grain._training import running_statistics
from lerobot_grain._training import statistics as training_statistics
from lerobot_grain._training.running_statistics import QUANTILES, RunningStats
from lerobot_grain.testing import EXTRA_FEATURES, Camera, LoopbackHub, WrittenDataset, write_dataset

STATE, TOP = "observation.state", "observation.images.top"
LENGTHS = [40, 7, 25, 1, 30]


def numpy_stats(values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the statistics of the last axis, each by its own definition."""
    rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1).astype(np.float64)
    named = {name: np.quantile(rows, fraction, axis=0) for name, fraction in QUANTILES.items()}
    moments = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {**moments, "count": np.array([len(rows)]), **named}


def assert_equal(found: Any, expected: Any, *, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    assert list(found) == ["min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"]
    for name, value in found.items():
        assert (value.dtype, value.shape) == (np.float64, np.shape(expected[name])), name
        np.testing.assert_allclose(value, expected[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    """Three data files, with row groups that are not episodes, and no statistics."""
    directory = tmp_path_factory.mktemp("stats") / "data"
    return write_dataset(
        directory,
        episode_lengths=LENGTHS,
        cameras=[],
        features=EXTRA_FEATURES,
        episodes_per_data_file=2,
        rows_per_row_group=9,
        statistics=False,
    )


@pytest.fixture(scope="module")
def repository(written: WrittenDataset) -> lg.Repository:
    return lg.open_repository(written.directory)


# --- rows ----------------------------------------------------------------------------------------


def test_all_features_of_all_rows(written: WrittenDataset, repository: lg.Repository) -> None:
    assert repository.stats is None
    found = lg.compute_stats(repository)
    assert list(found) == [key for key in repository.features if key != "observation.note"]
    for key, stats in found.items():
        assert_equal(stats, numpy_stats(written.rows[key]))
    assert found["next.done"]["mean"].shape == (1,)
    assert found["observation.matrix"]["mean"].shape == (3,)


@pytest.mark.parametrize("episodes", [[1], [3], [4, 0], slice(1, None, 2), range(2, 5)], ids=str)
def test_some_episodes(written: WrittenDataset, repository: lg.Repository, episodes: Any) -> None:
    chosen = np.arange(len(LENGTHS))[episodes] if isinstance(episodes, slice) else list(episodes)
    wanted = np.isin(written.rows["episode_index"], chosen)
    found = lg.compute_stats(repository, features=["action", "index"], episodes=episodes)
    for key, stats in found.items():
        assert_equal(stats, numpy_stats(written.rows[key][wanted]))


def test_row_groups_by_themselves_and_together(
    repository: lg.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = lg.compute_stats(repository, features=[STATE])
    monkeypatch.setattr(training_statistics, "_RUN_BYTES", 1)
    assert_equal(lg.compute_stats(repository, features=[STATE])[STATE], together[STATE])


def test_every_time_the_same(repository: lg.Repository) -> None:
    first, second = (lg.compute_stats(repository) for _ in range(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


def read_from_hub(
    hub: LoopbackHub, directory: Path, cache_dir: Path, **arguments: Any
) -> tuple[int, int]:
    """Returns (requests, bytes) of `compute_stats` of the actions."""
    name = hub.add_repository(f"stats/{cache_dir.name}", directory, tags=["v3.0"]).repository_id
    repository = lg.open_repository(name, endpoint=hub.endpoint, cache_dir=cache_dir)
    before = repository.storage.statistics
    lg.compute_stats(repository, features=["action"], **arguments)
    after = repository.storage.statistics
    repository.close()
    return after.requests - before.requests, after.bytes_received - before.bytes_received


def test_many_row_groups_are_one_request(hub: LoopbackHub, tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data", episode_lengths=[20] * 10, cameras=[], rows_per_row_group=5
    ).directory
    # The size, the footer and the rows.
    assert read_from_hub(hub, directory, tmp_path / "groups")[0] <= 4


def test_only_what_is_needed_is_fetched(hub: LoopbackHub, tmp_path: Path) -> None:
    camera = Camera(key=TOP, height=64, width=96, kind="image")
    directory = write_dataset(
        tmp_path / "data", episode_lengths=[120] * 3, cameras=[camera], episodes_per_data_file=1
    ).directory
    size = sum(path.stat().st_size for path in directory.glob("data/**/*.parquet"))
    assert size > 1_000_000
    assert read_from_hub(hub, directory, tmp_path / "columns")[1] < 100_000
    assert read_from_hub(hub, directory, tmp_path / "episodes", episodes=[1])[1] < 35_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float) -> None:
    def rows(episode: int, length: int) -> dict[str, npt.NDArray[Any]]:
        action = np.ones((length, 2), np.float32)
        if episode == 2:
            action[3, 1] = value
        return {"action": action}

    options: dict[str, Any] = {
        "episodes_per_data_file": 2,
        "rows_per_row_group": 4,
        "statistics": False,
        "row_values": rows,
    }
    write_dataset(
        tmp_path / "data", episode_lengths=[6, 5, 9, 4], cameras=[], action_size=2, **options
    )
    repository = lg.open_repository(tmp_path / "data")
    text = (
        rf"data/chunk-000/file-001.parquet: feature 'action' is \[\s*1\.\s+{value}\] in row 14 "
        rf"\(episode 2, frame 3\); expected finite"
    )
    with pytest.raises(lg.DatasetFormatError, match=text):
        lg.compute_stats(repository)
    # As the message says.
    assert lg.compute_stats(repository, episodes=[0, 1, 3])["action"]["std"].tolist() == [0, 0]
    assert STATE in lg.compute_stats(repository, features=[STATE])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"features": ["observation.note"]},
            "'observation.note' is text, which has no statistics; leave it out of features",
        ),
        ({"features": ["action", "task"]}, "'task' is text"),
        ({"features": ["state"]}, "there is no feature 'state'"),
        ({"episodes": [5]}, "there is no episode 5"),
        ({"camera_frames": 0}, "camera_frames=0: expected an int >= 1"),
    ],
    ids=str,
)
def test_requests_that_cannot_be(repository: lg.Repository, arguments: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.compute_stats(repository, **arguments)


# --- lerobot -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["av1_small", "av1_rolled", "h264_bframes", "hevc_bframes", "images", "state_only", "depth"],
)
def test_as_lerobot_but_for_its_quantiles(shared: Path, name: str) -> None:
    repository = lg.open_repository(shared / "golden" / name)
    assert repository.stats is not None
    found = lg.compute_stats(repository)
    lengths = repository.episodes.lengths
    episodes = [lg.compute_stats(repository, episodes=[number]) for number in range(len(lengths))]
    for key, stats in found.items():
        theirs = repository.stats[key]
        # It adds up in float32, and counts the rows of a matrix once.
        scale = np.maximum(abs(theirs["min"]), abs(theirs["max"])).max()
        for statistic in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(
                stats[statistic],
                theirs[statistic],
                rtol=1e-5,
                atol=1e-6 * scale,
                err_msg=f"{key} {statistic}",
            )
        # Its quantiles are the means of those of the episodes. It does not interpolate between
        # rows, which shows in short episodes.
        for statistic in QUANTILES if repository.features[key].dtype != "bool" else ():
            mean = np.average(
                [episode[key][statistic] for episode in episodes], axis=0, weights=lengths
            )
            near = 0.05 * (theirs["max"] - theirs["min"]).max() + 1e-9
            np.testing.assert_allclose(
                mean, theirs[statistic], atol=near, err_msg=f"{key} {statistic}"
            )


def test_as_what_others_say_of_all_rows(shared: Path) -> None:
    # GR00T's own statistics, of all rows at once. A v2.0 dataset: each episode is a file.
    repository = lg.open_repository(shared / "real" / "gr00t_v20")
    assert repository.stats is not None
    keys = ["observation.state", "action"]
    for key, stats in lg.compute_stats(repository, features=keys).items():
        for statistic in ("min", "max", "mean", "std", "q01", "q99"):
            np.testing.assert_allclose(
                stats[statistic],
                repository.stats[key][statistic],
                rtol=1e-4,
                atol=2e-5,
                err_msg=statistic,
            )


@pytest.mark.parametrize(
    ("name", "key", "atol"),
    # Embedded images are stored as they were counted; video and depth, in millimeters, were
    # counted before they were encoded.
    [("images", TOP, 1e-4), ("av1_small", TOP, 0.02), ("depth", "observation.images.depth", 1)],
)
def test_pictures_as_lerobot(shared: Path, name: str, key: str, atol: float) -> None:
    repository = lg.open_repository(shared / "golden" / name)
    assert repository.stats is not None
    found = lg.compute_stats(repository, features=[key])
    for statistic in ("min", "max", "mean", "std"):
        value, theirs = found[key][statistic], repository.stats[key][statistic]
        assert value.shape == theirs.shape == (repository.features[key].shape[-1], 1, 1)
        np.testing.assert_allclose(value, theirs, atol=atol, err_msg=statistic)
    # Depth is mean_std, whoever says that it is depth.
    for source in (lg.normalizer(repository, stats=found), lg.normalizer(found)):
        assert (source.cameras[key]["center"].shape == ()) == (name == "depth")


# --- cameras -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_pictures(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    directory = tmp_path_factory.mktemp("pictures") / "data"
    camera = Camera(key=TOP, height=24, width=304, kind="image")
    return lg.open_repository(
        write_dataset(
            directory, episode_lengths=[12, 8], cameras=[camera], state_size=2, action_size=1
        ).directory
    )


def test_all_frames_of_a_camera(with_pictures: lg.Repository) -> None:
    pictures = next(
        iter(
            lg.LeRobotIterDataset(with_pictures, features=[TOP], num_epochs=1, episodes=[1]).batch(
                8
            )
        )
    )[TOP]
    found = lg.compute_stats(with_pictures, features=[TOP, STATE], episodes=[1])
    assert list(found) == [TOP, STATE]
    # Every second pixel: a side has 304.
    expected = numpy_stats(pictures[:, ::2, ::2] / 255)
    assert found[TOP]["count"] == 8 * 12 * 152
    assert_equal(
        found[TOP],
        {
            name: value if name == "count" else value.reshape(3, 1, 1)
            for name, value in expected.items()
        },
    )
    assert found[STATE]["count"] == 8


def test_some_frames_of_a_camera(with_pictures: lg.Repository) -> None:
    found = lg.compute_stats(with_pictures, features=[TOP], camera_frames=3)[TOP]
    assert found["count"] == 3 * 12 * 152
    assert TOP not in lg.compute_stats(with_pictures)


# --- streams -------------------------------------------------------------------------------------


def test_what_is_padding_does_not_count(written: WrittenDataset, repository: lg.Repository) -> None:
    def to_relative(example: dict[str, Any]) -> dict[str, Any]:
        return example | {"action": example["action"] - example[STATE]}

    windows = {"action": [step / repository.fps for step in range(8)]}
    dataset = lg.LeRobotIterDataset(
        repository, features=[STATE, "action"], delta_timestamps=windows, num_epochs=1
    ).map(to_relative)
    found = lg.stats_of(dataset.batch(16), keys=["action"])["action"]
    expected, start = [], 0
    for length in LENGTHS:
        for frame in range(length):
            reached = min(frame + 8, length)
            expected.append(
                written.rows["action"][start + frame : start + reached]
                - written.rows[STATE][start + frame]
            )
        start += length
    assert_equal(found, numpy_stats(np.concatenate(expected)), rtol=1e-9)
    # Ready for use.
    normalizer = lg.normalizer({"action": found}, {"action": "min_max"})
    assert (
        abs(np.asarray(normalizer.normalize(next(iter(dataset.batch(16))))["action"])).max()
        <= 1 + 1e-6
    )


def test_only_some_batches() -> None:
    batches = [{"a": np.full((4, 2), number)} for number in range(5)]
    assert lg.stats_of(batches, keys=["a"], num_batches=3)["a"]["max"].tolist() == [2, 2]
    assert lg.stats_of(batches, keys=["a"])["a"]["max"].tolist() == [4, 4]
    stream = grain.MapDataset.source(batches).repeat().to_iter_dataset()
    assert lg.stats_of(stream, keys=["a"], num_batches=7)["a"]["count"] == 28


def test_scalars_and_pictures() -> None:
    batch = {
        "reward": np.arange(6.0),
        "top": np.full((2, 3, 4, 5, 3), 51, np.uint8),
        "bytes": np.full((2, 3), 51, np.uint8),
    }
    found = lg.stats_of([batch], keys=list(batch))
    assert found["reward"]["mean"].tolist() == [2.5]
    assert found["top"]["mean"].tolist() == [[[0.2]], [[0.2]], [[0.2]]]
    assert found["bytes"]["mean"].tolist() == [51] * 3
    nothing = lg.stats_of([{"a": np.ones((4, 0))}], keys=["a"])["a"]
    assert [nothing[name].shape for name in ("mean", "q50")] == [(0,), (0,)]
    assert nothing["count"] == 4


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([{"b": np.ones(2)}], "batch 0 has no key 'a'; it has b"),
        ([{"a": np.array(["x"])}], "batch 0: 'a' is of dtype <U1, which has no statistics"),
        (
            [{"a": np.ones((2, 2))}, {"a": np.ones((2, 3))}],
            "batch 1: 'a' has 3 numbers on the last axis; expected 2",
        ),
        (
            [{"a": np.ones((2, 2))}, {"a": np.array([[1, 2], [3, np.nan]])}],
            r"batch 1: 'a' is nan at \[1, 1\]; expected finite numbers",
        ),
        ([], "there is not one number of 'a'; expected at least one batch that is not all padding"),
        ([{"a": np.ones((2, 2)), "a_is_pad": np.ones(2, bool)}], "there is not one number of 'a'"),
    ],
    ids=["key", "text", "size", "nan", "none", "padding"],
)
def test_streams_without_statistics(batches: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.stats_of(batches, keys=["a"])


# --- numbers in pieces ---------------------------------------------------------------------------

RNG = np.random.default_rng(0)
COLUMNS = {
    "normal": RNG.normal(size=20_000),
    "far from zero": RNG.normal(size=20_000) * 1e-3 + 1e6,
    "both signs, all sizes": RNG.normal(size=20_000) ** 9,
    "integers": RNG.integers(-40, 40, 20_000),
    "large integers": np.arange(20_000) + (1 << 40),
    "bool": RNG.random(20_000) < 0.3,
    "float32": RNG.exponential(size=20_000).astype(np.float32),
    "bytes": RNG.integers(0, 256, 20_000).astype(np.uint8),
}


def in_pieces(column: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    stats = RunningStats(1)
    for piece in np.split(column, [0, 1, 2, 900, 901, 7_000]):
        stats.update(piece[:, None])
    return stats.result()


@pytest.mark.parametrize("name", COLUMNS)
def test_pieces_are_as_the_whole(name: str) -> None:
    found, column = in_pieces(COLUMNS[name]), COLUMNS[name]
    assert_equal(found, numpy_stats(column), rtol=1e-9)


@pytest.mark.parametrize("name", COLUMNS)
def test_counted_quantiles_are_within_their_bound(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = COLUMNS[name]
    exact = in_pieces(column)
    monkeypatch.setattr(running_statistics, "MAX_HELD_BYTES", 1_000)
    found = in_pieces(column)
    ordered = np.sort(column).astype(np.float64)
    for statistic, fraction in QUANTILES.items():
        of_its_rank = ordered[int(fraction * (len(column) - 1))]
        assert (
            abs(found[statistic][0] - of_its_rank)
            <= abs(of_its_rank - float(column[0])) / 2048 + 1e-12
        ), statistic
    for statistic in ("min", "max", "mean", "std", "count"):
        assert found[statistic] == exact[statistic]


@pytest.mark.parametrize("value", [0.1, -1e30, 3], ids=str)
@pytest.mark.parametrize("held", [1 << 20, 100])
def test_what_never_changes_has_no_deviation(
    value: float, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_statistics, "MAX_HELD_BYTES", held)
    found = in_pieces(np.full(20_000, value))
    assert found.pop("count") == 20_000
    assert found.pop("std") == 0
    assert {number.item() for number in found.values()} == {float(value)}


# --- docs ----------------------------------------------------------------------------------------


def test_the_code_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "normalization.md").read_text()
    seen: dict[str, Any] = {}
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[30, 20, 9],
        cameras=[Camera(key=TOP, height=24, width=24, kind="image")],
    ).directory

    def loss(params: Any, batch: Any) -> Any:
        seen["train"] = {key: value.dtype for key, value in batch.items()}
        return params * batch["action"].sum()

    def policy(params: Any, observation: Any) -> Any:
        return params * observation[STATE]

    names: dict[str, Any] = {"name": str(directory), "loss": loss, "policy": policy}
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    exec(blocks[0], names)
    batch = next(
        iter(lg.LeRobotIterDataset(names["repository"], features=[STATE, "action", TOP]).batch(4))
    )
    assert np.isfinite(names["train_step"](1.0, batch))
    assert {dtype.name for dtype in seen["train"].values()} == {"float32"}
    assert names["act"](1.0, {STATE: batch[STATE]}).shape == (4, 7)
    before = names["normalizer"]
    exec(blocks[1], names)
    assert jax.tree.all(jax.tree.map(np.array_equal, names["normalizer"], before))
    exec(blocks[2], names)
    assert names["training"]["action"]["count"] == 50
    assert names["pictures"][TOP]["mean"].shape == (3, 1, 1)
    exec(blocks[3], names)
    assert set(names["normalizer"].cameras) == {TOP}
    assert names["relative"]["action"]["count"] == sum(
        min(16, length - frame) for length in (30, 20, 9) for frame in range(length)
    )

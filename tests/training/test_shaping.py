"""The steps between stream and policy: shapes on the host, augmentation on the device and on the
host; exact after a resume.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import lerobot_grain as lg
from lerobot_grain.testing import Camera, write_dataset

TOP = "observation.images.top"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    """24 rows in 2 episodes, frames of 64x96."""
    cameras = [Camera(key=TOP, height=64, width=96)]
    written = write_dataset(
        tmp_path_factory.mktemp("shaping") / "data",
        episode_lengths=[14, 10],
        fps=10,
        cameras=cameras,
    )
    return lg.open_repository(written.directory)


def example(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "action": np.arange(12, dtype=np.float32).reshape(4, 3),
        "action_is_pad": np.array([False, False, True, True]),
        "observation.state": np.array([1, 10, 100], np.float32),
        "task": "pick",
    }
    return values | changes


def batched(one: dict[str, Any]) -> dict[str, Any]:
    return {key: np.stack([value, value]) for key, value in one.items()}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        a, b = np.asarray(one[key]), np.asarray(other[key])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), key
        assert np.array_equal(a, b), key


TRANSFORMATIONS = [
    lg.PadDimensions({"action": 5, "observation.state": 4}),
    lg.DeltaActions([True, False, True]),
    lg.ResizeWithPad([TOP], (32, 32)),
]


@pytest.mark.parametrize(
    "transformation", TRANSFORMATIONS, ids=lambda transformation: type(transformation).__name__
)
def test_a_batch_is_shaped_as_its_examples_are_and_nothing_is_changed_in_place(
    transformation: grain.transforms.Map,
) -> None:
    one = example(**{TOP: np.random.default_rng(0).integers(0, 255, (2, 30, 40, 3), np.uint8)})
    before = {key: np.copy(value) for key, value in one.items()}
    for value in one.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    shaped = transformation.map(one)
    assert_equal(one, before)
    assert_equal(transformation.map(batched(one)), batched(shaped))
    # Worker processes get it pickled.
    assert_equal(pickle.loads(pickle.dumps(transformation)).map(one), shaped)
    assert one["task"] == shaped["task"]


# --- padding -------------------------------------------------------------------------------------


def test_padding_adds_zeros_and_a_mask() -> None:
    padded = lg.PadDimensions({"action": 5, "observation.state": 3}).map(example())
    assert padded["action"].tolist() == [
        [0, 1, 2, 0, 0],
        [3, 4, 5, 0, 0],
        [6, 7, 8, 0, 0],
        [9, 10, 11, 0, 0],
    ]
    assert padded["action_dim_is_pad"].tolist() == [[False, False, False, True, True]] * 4
    assert padded["observation.state"].tolist() == [1, 10, 100]
    assert not padded["observation.state_dim_is_pad"].any()
    assert padded["action_is_pad"].shape == (4,)


@pytest.mark.parametrize(
    ("sizes", "changes", "text"),
    [
        ({"action": 2}, {}, "PadDimensions: 'action' has 3 dimensions; expected at most 2"),
        (
            {"actions": 2},
            {},
            "PadDimensions: the example has no 'actions'; it has action, action_is_pad, "
            "observation.state, task",
        ),
        (
            {"action": 2},
            {"action": np.float32(1)},
            "PadDimensions: 'action' is one number a frame; expected a vector",
        ),
        (
            {"action": 9},
            {"action": np.zeros(4, np.float32)},
            "PadDimensions: 'action' is one number a frame; expected a vector",
        ),
    ],
    ids=["too many", "missing", "scalar", "window of scalars"],
)
def test_what_cannot_be_padded(sizes: Any, changes: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=re.escape(text)):
        lg.PadDimensions(sizes).map(example(**changes))


@pytest.mark.parametrize("size", [0, True, 2.0])
def test_sizes_are_checked_at_construction(size: Any) -> None:
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"PadDimensions: the size of 'action' is .*; expected an int >= 1",
    ):
        lg.PadDimensions({"action": size})


# --- delta actions -------------------------------------------------------------------------------


def test_delta_actions_are_relative_to_the_state_where_the_mask_says_so() -> None:
    found = lg.DeltaActions([True, False, True]).map(example())["action"]
    assert found.dtype == np.float32
    assert found.tolist() == [[-1, 1, -98], [2, 4, -95], [5, 7, -92], [8, 10, -89]]


@pytest.mark.parametrize(
    ("mask", "changes", "expected"),
    [
        ([True], {}, [[-1, 1, 2], [2, 4, 5], [5, 7, 8], [8, 10, 11]]),
        (
            [False, True],
            {"observation.state": np.array([np.nan, 1.0])},
            [[0, 0, 2], [3, 3, 5], [6, 6, 8], [9, 9, 11]],
        ),
        ([True] * 3, {"action": np.ones(3, np.float32)}, [0, -9, -99]),
    ],
    ids=["short mask", "state of fewer dimensions, NaN where it is not used", "no window"],
)
def test_delta_actions_of_other_shapes(
    mask: list[bool], changes: dict[str, Any], expected: Any
) -> None:
    assert lg.DeltaActions(mask).map(example(**changes))["action"].tolist() == expected


def test_a_frame_of_a_windowed_state_can_be_named() -> None:
    state = np.array([[9, 9, 9], [1, 10, 100]], np.float32)
    window = example(**{"observation.state": state, "observation.state_is_pad": np.zeros(2, bool)})
    delta = lg.DeltaActions([True, False, True], state_frame=-1)
    expected = lg.DeltaActions([True, False, True]).map(example())["action"]
    assert np.array_equal(delta.map(window)["action"], expected)
    assert np.array_equal(delta.map(batched(window))["action"], np.stack([expected, expected]))
    with pytest.raises(
        lg.InvalidRequestError, match=r"state_frame is 2; 'observation.state' has 2 frames"
    ):
        lg.DeltaActions([True], state_frame=2).map(window)
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"has shape \(2, 3\), and state_frame is None; expected a frame number",
    ):
        lg.DeltaActions([True]).map(window)


def test_delta_actions_are_taken_back_also_on_a_device() -> None:
    delta = lg.DeltaActions([True, False, True])
    one = example()
    relative = delta.map(one)["action"]
    assert np.array_equal(delta.to_absolute(relative, one["observation.state"]), one["action"])
    found = jax.jit(delta.to_absolute)(jnp.asarray(relative), jnp.asarray(one["observation.state"]))
    assert isinstance(found, jax.Array)
    assert np.array_equal(found, one["action"])
    short = delta.to_absolute(
        jnp.asarray(relative, jnp.bfloat16), jnp.asarray(one["observation.state"])
    )
    assert short.dtype == jnp.bfloat16
    assert np.allclose(short, one["action"], atol=0.5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"action": np.ones((4, 3), np.int64)}, "'action' is int64; expected floats"),
        (
            {"action": np.ones((4, 1), np.float32)},
            "'action' has shape (4, 1); expected at least the 2 dimensions of the mask",
        ),
        (
            {"observation.state": np.ones((5, 3), np.float32)},
            "'action' has shape (4, 3) and 'observation.state' (5, 3); expected",
        ),
    ],
    ids=["integers", "few dimensions", "shapes"],
)
def test_what_cannot_be_relative(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=re.escape(f"DeltaActions: {text}")):
        lg.DeltaActions([True, True]).map(example(**changes))


@pytest.mark.parametrize("mask", [[], [1, 0], "yes"])
def test_masks_are_checked_at_construction(mask: Any) -> None:
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"DeltaActions: mask is .*; expected a bool for every dimension",
    ):
        lg.DeltaActions(mask)


# --- resizing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "inner"),
    [
        (480, 640, (168, 224)),
        (640, 480, (224, 168)),
        (36, 36, (224, 224)),
        (720, 1280, (126, 224)),
        (1, 1000, (1, 224)),
        (100, 301, (74, 224)),
    ],
)
def test_pictures_keep_their_proportions_and_stand_in_the_middle(
    height: int, width: int, inner: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)
    found = lg.resize_with_pad(image, (224, 224))
    assert found.shape == (224, 224, 3)
    assert found.dtype == np.uint8
    top, left = (224 - inner[0]) // 2, (224 - inner[1]) // 2
    resized = np.asarray(Image.fromarray(image).resize(inner[::-1], Image.Resampling.BILINEAR))
    assert np.array_equal(found[top : top + inner[0], left : left + inner[1]], resized)
    assert found.sum(dtype=np.int64) == resized.sum(dtype=np.int64)


def test_resizing_agrees_with_jax_image() -> None:
    image = np.asarray(Image.radial_gradient("L").resize((96, 64)))[..., None].repeat(3, axis=-1)
    expected = jax.image.resize(image.astype(np.float32), (24, 36, 3), "linear")
    assert np.abs(lg.resize_with_pad(image, (24, 36)) - np.asarray(expected)).max() <= 1


def test_depth_is_never_mixed_and_nothing_is_resampled_without_need() -> None:
    depth = np.array([[0, 0, 5, 5], [0, 0, 5, 5]], np.float32)[..., None]
    assert lg.resize_with_pad(depth, (2, 2))[..., 0].tolist() == [[0, 5], [0, 0]]
    assert set(np.unique(lg.resize_with_pad(depth, (7, 9)))) == {0, 5}
    image = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 1), np.uint8)
    assert lg.resize_with_pad(image, (20, 30)) is image
    assert np.array_equal(lg.resize_with_pad(image, (30, 30))[:, 5:25], image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8)],
)
def test_what_is_no_picture(image: Any) -> None:
    with pytest.raises(
        lg.InvalidRequestError,
        match=re.escape(f"resize_with_pad: found {image.dtype} {image.shape}; expected uint8"),
    ):
        lg.resize_with_pad(image, (8, 8))


@pytest.mark.parametrize(
    "make", [lambda: lg.ResizeWithPad([TOP], (224, 0)), lambda: lg.ResizeWithPad([TOP], 224)]
)
def test_sizes_of_pictures_are_checked_at_construction(make: Callable[[], Any]) -> None:
    with pytest.raises(lg.InvalidRequestError, match=r"expected \(height, width\) in pixels"):
        make()


def test_one_key_is_not_taken_for_many() -> None:
    with pytest.raises(lg.InvalidRequestError, match=r"expected a list of keys, such as \['top'\]"):
        lg.ResizeWithPad("top", (224, 224))


# --- on the device -------------------------------------------------------------------------------


def shifted(key: jax.Array, image: jax.Array) -> jax.Array:
    """A crop of half the width, as a library would do it."""
    left = jax.random.randint(key, (), 0, image.shape[1] // 2)
    return jax.lax.dynamic_slice_in_dim(image, left, image.shape[1] // 2, axis=1)


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 64, 3), np.uint8)
IMAGES[:, 1:] = IMAGES[:, :1]  # nothing moves


KEY = jax.random.key(1)


def keys_of(rows: list[int], step: int = 0) -> jax.Array:
    return lg.example_keys(KEY, step=step, rows=jnp.array(rows))


def test_keys_are_those_of_the_row_and_the_step_wherever_it_stands() -> None:
    data = jax.random.key_data(keys_of([5, 3, 9]))
    assert np.array_equal(jax.random.key_data(keys_of([9, 5, 3])), data[np.array([2, 0, 1])])
    assert (
        len(
            {
                tuple(key)
                for step in range(3)
                for key in jax.random.key_data(keys_of([5, 3, 9], step)).tolist()
            }
        )
        == 9
    )
    expected = jax.random.fold_in(jax.random.fold_in(KEY, 0), 3)
    assert np.array_equal(jax.random.key_data(expected), data[1])


def test_frames_of_an_example_are_changed_alike_and_examples_are_not() -> None:
    found = jax.jit(lambda keys, images: lg.augment_images(shifted, keys, images, dtype=jnp.uint8))(
        keys_of(list(range(6))), IMAGES
    )
    assert (found.shape, found.dtype) == ((6, 3, 8, 32, 3), jnp.uint8)
    found = np.asarray(found)
    assert (found == found[:, :1]).all()
    lefts = [
        next(
            left
            for left in range(32)
            if np.array_equal(IMAGES[i, 0, :, left : left + 32], found[i, 0])
        )
        for i in range(6)
    ]
    assert len(set(lefts)) > 3
    # An example is changed alike in any batch, and without a time axis.
    single = lg.augment_images(shifted, keys_of([4, 2]), IMAGES[[4, 2], 0], dtype=jnp.uint8)
    assert np.array_equal(single, np.asarray(found)[[4, 2], 0])


def test_pictures_come_as_floats_or_as_they_were() -> None:
    found = lg.augment_images(lambda _, image: image * 2 - 0.5, keys_of([0]), IMAGES[:1])
    assert found.dtype == jnp.float32
    assert np.allclose(found, np.clip(IMAGES[:1] / 255 * 2 - 0.5, 0, 1), atol=1e-6)
    floats = lg.augment_images(
        lambda _, image: image, keys_of([0]), IMAGES[:1] / np.float32(255), dtype=jnp.uint8
    )
    assert np.array_equal(floats, IMAGES[:1])
    almost_white = lg.augment_images(
        lambda _, image: jnp.full_like(image, 0.999), keys_of([0]), IMAGES[:1], dtype=jnp.uint8
    )
    assert (np.asarray(almost_white) == 255).all()


@pytest.mark.parametrize(
    ("images", "arguments", "text"),
    [
        (
            IMAGES[:2],
            {},
            r"keys of shape (3,) and images of shape (2, 3, 8, 64, 3); expected (batch,) and",
        ),
        (IMAGES[0, 0], {}, "and images of shape (8, 64, 3)"),
        (IMAGES[:3].astype(np.int32), {}, "found int32; expected uint8 or floats"),
        (IMAGES[:3], {"dtype": jnp.int8}, "found int8; expected uint8 or floats"),
    ],
)
def test_what_cannot_be_augmented(images: Any, arguments: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=re.escape(text)):
        lg.augment_images(shifted, keys_of([0, 1, 2]), images, **arguments)


# --- through a stream ----------------------------------------------------------------------------


def random_crop(one: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    top, left = rng.integers(0, 16, 2)
    return {**one, TOP: one[TOP][..., top : top + 48, left : left + 64, :]}


def stream(repository: lg.Repository, shard: int, num_shards: int) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(
        repository,
        features=[TOP, "index", "action", "observation.state"],
        delta_timestamps={TOP: [-0.1, 0.0], "action": [0.0, 0.1]},
        shuffle=lg.Shuffle(seed=2, num_parts=2, buffer_size=8),
        shard_options=grain.sharding.ShardOptions(shard, num_shards),
    )


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_resumed_stream_has_the_same_crops(repository: lg.Repository, num_shards: int) -> None:
    def make(shard: int) -> grain.IterDataset[Any]:
        delta, pad = lg.DeltaActions([True] * 7), lg.PadDimensions({"action": 9})
        return (
            stream(repository, shard, num_shards)
            .map(delta)
            .map(pad)
            .random_map(random_crop, seed=shard)
            .batch(2)
        )

    for shard in range(num_shards):
        with contextlib.closing(iter(make(shard))) as batches:
            straight = [dict(batch) for batch in itertools.islice(batches, 7)]
        resumed: list[dict[str, Any]] = []
        state = None
        for count in (2, 5):  # two shards are in their second epoch then
            with contextlib.closing(iter(make(shard))) as batches:
                if state is not None:
                    batches.set_state(json.loads(state))
                resumed += [dict(batch) for batch in itertools.islice(batches, count)]
                state = json.dumps(batches.get_state())
        assert straight[0][TOP].shape == (2, 2, 48, 64, 3)
        for one, other in zip(straight, resumed, strict=True):
            assert_equal(one, other)


def test_augmentation_on_the_device_does_not_depend_on_shards_or_stops(
    repository: lg.Repository,
) -> None:
    """One process, and two that stop in the middle: every (step, row) has the same frames."""

    change = jax.jit(
        lambda step, rows, images: lg.augment_images(
            shifted, lg.example_keys(KEY, step=step, rows=rows), images, dtype=jnp.uint8
        )
    )

    def pictures(num_shards: int, stop: int) -> dict[tuple[int, int], bytes]:
        found: dict[tuple[int, int], bytes] = {}
        state = None
        for first, last in ((0, stop), (stop, 4)):
            for shard in range(num_shards):
                with contextlib.closing(
                    iter(stream(repository, shard, num_shards).batch(8 // num_shards))
                ) as batches:
                    if state is not None:
                        batches.set_state(state)
                    for step in range(first, last):
                        batch = next(batches)
                        rows = batch["index"].tolist()
                        images = np.asarray(change(step, batch["index"], batch[TOP]))
                        found |= {
                            (step, row): image.tobytes()
                            for row, image in zip(rows, images, strict=True)
                        }
                    after = batches.get_state()
            state = after
        return found

    assert pictures(1, 4) == pictures(2, 2)


def test_the_code_of_the_documentation_runs(
    repository: lg.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dm_pix")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lg, "open_repository", lambda _: repository)
    page = (ROOT / "docs" / "augmentation.md").read_text()
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(code, names)
    with contextlib.closing(iter(names["batches"])) as batches:
        batch = next(batches)
    assert batch[TOP].shape == (32, 224, 224, 3)
    assert batch["action"].shape == batch["action_dim_is_pad"].shape == (32, 16, 32)
    assert abs(batch["observation.state"][:, :7].mean()) < 1
    assert not batch["observation.state"][:, 7:].any()
    assert (names["pictures"].shape, names["pictures"].dtype) == ((32, 224, 224, 3), jnp.float32)
    with contextlib.closing(iter(names["prompts"])) as prompts:
        assert next(prompts) == {"prompt": "Task: pick the cube"}
    with contextlib.closing(iter(names["crops"])) as crops:
        assert next(crops)[TOP].shape == (32, 48, 64, 3)
    with Image.open("example.png") as picture:
        assert picture.width == 1100

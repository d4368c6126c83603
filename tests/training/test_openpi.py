"""Existing trainers, as stand-ins written after their public sources: what they ask of a data
loader, they get from the stream.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lerobot_grain as lg
from lerobot_grain.testing import Camera, write_dataset
from tests.support import openpi_stand_in
from tests.support.maxtext_checkpoints import loader_of
from tests.support.openpi_script import FEEDS, import_script
from tests.support.openpi_stand_in import Observation, PaligemmaTokenizer

TOP = "observation.images.top"
PAGES = Path(__file__).parents[2] / "docs" / "trainers"
HORIZON = 4
tokenize = PaligemmaTokenizer(8).tokenize
MESH = Mesh(np.array(jax.devices()[:1]), ("data",))
SHARDING = NamedSharding(MESH, PartitionSpec("data"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    """24 rows in 2 episodes."""
    cameras = [Camera(key=TOP, height=48, width=96)]
    directory = tmp_path_factory.mktemp("adapters") / "data"
    return lg.open_repository(
        write_dataset(
            directory, episode_lengths=[14, 10], fps=10, cameras=cameras, tasks=["pick", "place"]
        ).directory
    )


# --- openpi --------------------------------------------------------------------------------------


@runtime_checkable
class DataLoader(Protocol):
    """`openpi.training.data_loader.DataLoader`."""

    def data_config(self) -> Any: ...

    def __iter__(self) -> Iterator[tuple[Any, jax.Array]]: ...


def stream(repository: lg.Repository, **arguments: Any) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(
        repository,
        features=[TOP, "observation.state", "action", "task", "index"],
        delta_timestamps={"action": [step / 10 for step in range(HORIZON)]},
        shuffle=lg.Shuffle(seed=1, num_parts=2, buffer_size=8),
        **arguments,
    )


def openpi_loader(repository: lg.Repository) -> lg.OpenPiDataLoader:
    batches = (
        stream(repository)
        .batch(4)
        .map(lg.PadDimensions({"observation.state": 32, "action": 32}))
        .map(lg.OpenPiFormat(cameras={"base_0_rgb": TOP}, tokenize=tokenize))
        .pipe(lg.DeviceIterDataset, sharding=SHARDING)
    )
    return lg.OpenPiDataLoader(batches, data_config="config", observation=Observation.from_dict)


def test_openpi_gets_its_protocol_and_its_observations(repository: lg.Repository) -> None:
    loader = openpi_loader(repository)
    assert isinstance(loader, DataLoader)
    assert loader.data_config() == "config"
    with (
        contextlib.closing(iter(loader)) as pairs,
        contextlib.closing(iter(stream(repository).batch(4))) as batches,
    ):
        for (observation, actions), batch in itertools.islice(zip(pairs, batches, strict=True), 3):
            assert isinstance(actions, jax.Array)
            assert actions.sharding == SHARDING
            assert (actions.shape, actions.dtype) == ((4, HORIZON, 32), jnp.float32)
            assert np.array_equal(actions[..., :7], batch["action"])
            assert np.array_equal(observation.state[:, :7], batch["observation.state"])
            top = np.asarray(observation.images["base_0_rgb"])
            assert (top[:, :56] == -1).all()
            assert (top[:, -56:] == -1).all()
            expected = lg.resize_with_pad(batch[TOP], (224, 224)).astype(np.float32) / 255 * 2 - 1
            assert np.allclose(top, expected, atol=1e-6)
            assert observation.image_masks["base_0_rgb"].all()
            assert not observation.image_masks["left_wrist_0_rgb"].any()
            assert (np.asarray(observation.images["left_wrist_0_rgb"]) == -1).all()
            texts = [
                "".join(map(chr, tokens[tokens > 0]))
                for tokens in np.asarray(observation.tokenized_prompt)
            ]
            assert texts == batch["task"].tolist()


def test_openpi_goes_on_where_it_was(repository: lg.Repository) -> None:
    with contextlib.closing(iter(openpi_loader(repository))) as pairs:
        next(pairs)
        state = json.loads(json.dumps(pairs.get_state()))
        expected = next(pairs)
    with contextlib.closing(iter(openpi_loader(repository))) as pairs:
        pairs.set_state(state)
        found = next(pairs)
    assert np.array_equal(found[1], expected[1])
    assert np.array_equal(found[0].images["base_0_rgb"], expected[0].images["base_0_rgb"])


def test_examples_are_formatted_as_batches_are(repository: lg.Repository) -> None:
    format_ = lg.OpenPiFormat(
        cameras={"left_wrist_0_rgb": TOP}, tokenize=tokenize, image_size=(32, 32)
    )
    one, other = stream(repository).map(format_).batch(3), stream(repository).batch(3).map(format_)
    with contextlib.closing(iter(one)) as examples, contextlib.closing(iter(other)) as batches:
        a, b = next(examples), next(batches)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.array_equal(x, y)


def test_without_a_class_of_observations_it_is_the_dict(repository: lg.Repository) -> None:
    batches = stream(repository).batch(2).map(lg.OpenPiFormat(cameras={"base_0_rgb": TOP}))
    with contextlib.closing(iter(lg.OpenPiDataLoader(batches, data_config=None))) as pairs:
        observation, actions = next(pairs)
    assert observation.keys() == {"image", "image_mask", "state"}
    assert actions.shape == (2, HORIZON, 7)


EXAMPLE = {
    TOP: np.zeros((8, 8, 3), np.uint8),
    "observation.state": np.zeros(2, np.float32),
    "action": np.zeros((4, 2), np.float32),
    "action_is_pad": np.zeros(4, np.bool_),
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda e: e | {TOP: e[TOP][None], f"{TOP}_is_pad": np.zeros(1, bool)},
            f"expected '{TOP}' without delta_timestamps",
        ),
        (
            lambda e: (
                e
                | {
                    "observation.state": np.zeros((1, 2), np.float32),
                    "observation.state_is_pad": np.zeros(1, bool),
                }
            ),
            "expected 'observation.state' without delta_timestamps",
        ),
        (
            lambda e: {key: value for key, value in e.items() if key != "action_is_pad"},
            "expected 'action' with delta_timestamps",
        ),
        (
            lambda e: {key: value for key, value in e.items() if key != "observation.state"},
            "the example has no 'observation.state'; it has",
        ),
        (dict, "the example has no 'task'; it has"),
    ],
    ids=["camera with window", "state with window", "action without", "no state", "no task"],
)
def test_what_openpi_cannot_take(change: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=re.escape(f"OpenPiFormat: {text}")):
        lg.OpenPiFormat(cameras={"base_0_rgb": TOP}, tokenize=tokenize).map(change(EXAMPLE))


@pytest.mark.parametrize("cameras", [{}, {"top": TOP}])
def test_names_of_cameras_are_checked(cameras: dict[str, str]) -> None:
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"expected name -> key for one or more of base_0_rgb, left_wrist_0_rgb",
    ):
        lg.OpenPiFormat(cameras=cameras)


def test_batches_in_another_form_are_refused(repository: lg.Repository) -> None:
    loader = lg.OpenPiDataLoader(stream(repository).batch(2), data_config=None)
    text = r"a batch has no 'actions', only .*put OpenPiFormat before it"
    with (
        contextlib.closing(iter(loader)) as pairs,
        pytest.raises(lg.InvalidRequestError, match=text),
    ):
        next(pairs)


# --- the documentation ---------------------------------------------------------------------------


def blocks_of(page: str) -> list[str]:
    text = (PAGES / f"{page}.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def openpi_loaders() -> Iterator[lg.OpenPiDataLoader]:
    """Yields the loader of each form of `openpi_data.py`."""

    def repack(example: dict[str, Any]) -> dict[str, Any]:
        """openpi's RepackTransform, data transform and tokenizer in one."""
        pictures = {
            name: lg.resize_with_pad(example[TOP], (224, 224))
            for name in lg.OpenPiFormat(cameras={"base_0_rgb": TOP}).images
        }
        tokens, mask = tokenize(str(example["prompt"]))
        prompt = {"tokenized_prompt": tokens.astype(np.int32), "tokenized_prompt_mask": mask}
        masks = dict.fromkeys(pictures, np.True_)
        return {
            "image": pictures,
            "image_mask": masks,
            "state": example["observation.state"],
            "actions": example["action"],
            **prompt,
        }

    def subtract(example: dict[str, Any]) -> dict[str, Any]:
        example["actions"][..., :2] -= example["state"][:2]  # in place, as openpi's DeltaActions
        return example

    data_config = types.SimpleNamespace(
        repack_transforms=types.SimpleNamespace(inputs=[repack]),
        data_transforms=types.SimpleNamespace(inputs=[subtract]),
        model_transforms=types.SimpleNamespace(inputs=[]),
        norm_stats=None,
        use_quantile_norm=False,
    )
    config = types.SimpleNamespace(
        batch_size=4,
        seed=0,
        model=types.SimpleNamespace(action_horizon=HORIZON, action_dim=32, max_token_len=8),
        data=types.SimpleNamespace(create=lambda *_: data_config),
        assets_dirs=None,
    )
    with openpi_stand_in.importable():
        for feed in FEEDS:
            import_script(openpi_stand_in.SCRIPT, feed)
            yield sys.modules["openpi_data"].create_data_loader(config, SHARDING)


def test_the_code_of_the_documentation_runs(
    repository: lg.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """openpi twice, MaxText with a stop, and a loop of one's own; all give the rows of the plain
    stream.
    """
    monkeypatch.setattr(lg, "open_repository", lambda _: repository)
    specs, maxtext, levanter = (
        code for page in ("README", "maxtext", "levanter") for code in blocks_of(page)
    )
    features = ["observation.state", "action"]
    of_specs: dict[str, Any] = {
        "dataset": lg.LeRobotIterDataset(repository, features=features),
        "DeviceIterDataset": lg.DeviceIterDataset,
        "grain": grain,
        "jitted_step": jax.jit(lambda state, batch: state + batch["action"].sum()),
        "sharding": SHARDING,
        "state": np.float32(0),
    }
    exec(specs, of_specs)
    assert of_specs["spec"]["action"].shape[0] == 64
    found = []
    for loader in openpi_loaders():
        with contextlib.closing(iter(loader)) as pairs:
            found.append(next(pairs))
    (one, actions), (other, relative) = found
    assert np.array_equal(one.state[:, :7], other.state)
    assert np.array_equal(one.tokenized_prompt, other.tokenized_prompt)
    assert np.array_equal(one.images["base_0_rgb"], other.images["base_0_rgb"])
    assert np.allclose(actions[..., :2] - one.state[:, None, :2], relative[..., :2])

    names: dict[str, Any] = {
        "repository": repository,
        "MultiHostDataLoadIterator": loader_of,
        "local_batch_size": 4,
        "mesh": MESH,
    }
    exec(maxtext, names)
    assert isinstance(names["data_iterator"].local_iterator, grain.experimental.ElasticIterator)
    with contextlib.closing(names["data_iterator"].local_iterator):
        first = next(names["data_iterator"])
        state = names["data_iterator"].local_iterator.get_state()
        second = next(names["data_iterator"])
    assert np.array_equal(first["observation.state"], one.state[:, :7])
    assert first[TOP].shape == (4, 48, 96, 3)
    again = loader_of(names["dataset"].batch(4), MESH)
    with contextlib.closing(again.local_iterator):
        again.local_iterator.set_state(state)
        assert np.array_equal(next(again)["action"], second["action"])

    exec(levanter, names)
    with contextlib.closing(iter(names["loader"])) as batches:
        batch = next(batches)
    assert np.array_equal(batch["action"], first["action"])
    assert batch["action"].sharding.is_equivalent_to(first["action"].sharding, 3)

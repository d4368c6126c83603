"""Feeds Kauldron's Trainer: a stream as its `kd.data.Pipeline`.

Kauldron (github.com/google-research/kauldron, `data/pipelines.py` and `data/iterators/`) asks of a
pipeline its `element_spec`, with which it initializes the model, and an iterator that says which
handler of Orbax saves it. The pipeline here answers the first from `meta/`, and has the state of
the stream saved as JSON: one file, the same on every process, which any number of them restores.

This is the one module that imports Kauldron, and with it TensorFlow. So it is imported by users
only, as `lerobot_grain.kauldron`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import enp
from kauldron import data

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.feed.elastic import ElasticIterDataset


@dataclasses.dataclass(frozen=True, kw_only=True, eq=True)
class KauldronPipeline(data.Pipeline):
    """A stream as Kauldron's Trainer, evaluators and checkpointer take it.

        batches = dataset.batch(32, drop_remainder=True)
        trainer = kd.train.Trainer(train_ds=KauldronPipeline(batches=batches), ...)

    Its iterators are saved and restored with the model by Kauldron's checkpointer; the state is
    that of the stream. Every `iter()` begins at the beginning.

    Attributes:
      batches: dataset of dicts of numbers and bools, batched: the part of this process, on the
        host. With one process it may also end in `DeviceIterDataset`. What
        `ElasticIterDataset` refuses cannot be given.
      batch_size: of all processes together; only for the rates that Kauldron logs.
      seed: not used; the order is the stream's own.

    Raises:
      InvalidRequestError: at construction: `batches` is no Grain dataset, or one that
        `ElasticIterDataset` refuses. With `element_spec` and `iter()`: a key holds text or objects,
        which no device takes; the batch size is open; or a device feed gives arrays of all
        processes.
    """

    batches: grain.IterDataset[Any]
    # The iterator from which the spec was taken, for the next `iter()`.
    _opened: list[grain.DatasetIterator[Any]] = dataclasses.field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if hasattr(super(), "__post_init__"):
            super().__post_init__()
        if not isinstance(self.batches, grain.IterDataset):
            raise InvalidRequestError(
                f"KauldronPipeline: batches is a {type(self.batches).__name__}; expected a "
                "grain.IterDataset, such as dataset.batch(32, drop_remainder=True)"
            )
        _ = self._elastic

    @functools.cached_property
    def _elastic(self) -> ElasticIterDataset[Any]:
        return ElasticIterDataset(self.batches)

    @functools.cached_property
    def element_spec(self) -> Any:
        """Key -> shape and dtype of a batch of this process, `etils.enp.ArraySpec`.

        From `meta/`, without reading. After a transformation without `output_spec` it is that of
        the first batch, which the next iterator yields again: no second stream is opened.
        """
        spec = self._declared_spec()
        if spec is None:
            spec = self._first_batch()
        else:
            _check(spec)
        return jax.tree.map(lambda leaf: enp.ArraySpec(shape=leaf.shape, dtype=leaf.dtype), spec)

    def _declared_spec(self) -> Any:
        """Returns the spec as Grain finds it, or `None` where a transformation declares none."""
        try:
            return grain.experimental.get_element_spec(self._elastic)
        except InvalidRequestError:
            raise
        except (ValueError, NotImplementedError):  # by the versions of Grain
            return None

    def _first_batch(self) -> Any:
        """Returns the first batch; the iterator that it came from is kept, where it began."""
        batches = iter(self._elastic)
        try:
            state = batches.get_state()
            first = next(batches, None)
            if first is None:
                raise InvalidRequestError(
                    "KauldronPipeline: the stream ends before its first batch; expected one or "
                    "more; make the batch smaller, or select more rows"
                )
            arrays = jax.tree.map(
                lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), first
            )
            _check(arrays)
            batches.set_state(state)
        except BaseException:
            batches.close()
            raise
        self._opened.append(batches)
        return arrays

    def __iter__(self) -> data.iterators.Iterator:
        _ = self.element_spec  # its refusals come before the first batch
        return _Iterator(
            source=self, iter=self._opened.pop() if self._opened else iter(self._elastic)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Iterator(data.iterators.Iterator):
    iter: grain.DatasetIterator[Any]

    def __next__(self) -> Any:
        return next(self.iter)

    # Kauldron's names of what it asks for when it saves and restores.

    def __kd_ocp_handlers__(self) -> ocp.CheckpointHandler:
        return ocp.JsonCheckpointHandler()

    def __kd_ocp_save_args__(self) -> ocp.args.CheckpointArgs:
        return ocp.args.JsonSave(self.iter.get_state())

    def __kd_ocp_restore_args__(self) -> ocp.args.CheckpointArgs:
        return ocp.args.JsonRestore()

    def __kd_ocp_restore_post__(self, value: Any) -> _Iterator:
        self.iter.set_state(value)
        return self


def _check(spec: Any) -> None:
    """Refuses batches that Kauldron cannot bring to a device, with the key."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(spec):
        subject = f"KauldronPipeline: {jax.tree_util.keystr(path)}"
        if np.dtype(leaf.dtype).kind in "OSU":
            raise InvalidRequestError(
                f"{subject} of a batch is {leaf.dtype}, which no device takes; expected numbers "
                "and bools; leave it out of features=, or make numbers of it in a .map, such as "
                "tokens"
            )
        if None in leaf.shape:
            raise InvalidRequestError(
                f"{subject} of a batch has the shape {leaf.shape}; expected a known size; write "
                ".batch(..., drop_remainder=True)"
            )
        sharding = getattr(leaf, "sharding", None)
        if sharding is not None and not sharding.is_fully_addressable:
            raise InvalidRequestError(
                f"{subject} of a batch is an array of all processes; expected the part of this "
                "process, of which Kauldron makes such arrays; leave DeviceIterDataset out"
            )
